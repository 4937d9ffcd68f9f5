"""From a typed function to its command line: names, types, defaults and help texts have one source, the function.

Rules: a positional-only parameter becomes a positional argument and ``*names`` takes several; every other parameter
becomes an option; its help is its line in the docstring's ``Args:`` section. Where the function takes a ``pipe``, the
command line takes ``--model`` (with ``--device`` and ``--dtype``) and loads it; where its result can be saved, there is
an ``--out``. A parameter that a command line cannot spell (a tensor, a callable) keeps its default.
"""

from __future__ import annotations

import dataclasses
import inspect
import io
import re
import types
import typing
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from mezzotint.cli.terminal import UsageError, choose

__all__ = ["Form", "Option", "argument_help", "call", "form", "keyword_options", "parse", "summary"]

Dtype = Literal["float32", "bfloat16", "float16"]

ONE_SPELLING = {"guidance_scale": "guidance", "num_inference_steps": "steps", "num_steps": "steps"}
_PLAIN = (int, float, str, bool, Path)
_ENTRY = re.compile(r"^\*{0,2}(\w+)(?: \([^)]*\))?:\s*(.*)$")
_REWORDED = (
    (r"\[/?bold\]", ""),
    (r"^Error parsing (\S+): no type matching \S+ could be instantiated from \[(.*?)\].*$", r"\1 cannot be \2"),
    (r"^Missing from [^:]+: (\S+(?: [A-Z]+)?)\s+(.*?)[\s.]*(?:\(required\))?$", r"\1 is missing: \2"),
    (r"^Error parsing (\S+): invalid literal for int\(\).*?: (.*)$", r"\1 must be a whole number, got \2"),
    (r"^Error parsing (\S+): could not convert string to float: (.*)$", r"\1 must be a number, got \2"),
)


@dataclass(frozen=True)
class Option:
    """One argument of a command: the parameter's name, its spelling, type, default and help."""

    name: str
    spelling: str
    kind: Any
    help: str
    default: Any = inspect.Parameter.empty
    positional: bool = False
    variadic: bool = False
    repeated: bool = False


@dataclass(frozen=True)
class Form:
    """The command line of a function.

    Attributes:
        function: what it calls.
        options: its arguments, in the order of the signature.
        loads: the function takes a ``pipe``, which the command line loads.
        needs_model: the ``pipe`` has no default, so there is always a model.
        saves: the function's result can be saved, so the command line offers ``--out``.
        added: options beyond the function's own, which others have added.
    """

    function: Callable[..., Any]
    options: tuple[Option, ...]
    loads: bool
    saves: bool
    needs_model: bool = False
    added: tuple[Option, ...] = ()


def summary(function: Callable[..., Any]) -> str:
    """Return the first paragraph of a function's docstring, on one line, without the final stop."""
    paragraph = inspect.cleandoc(function.__doc__ or "").split("\n\n")[0]
    return " ".join(paragraph.replace("``", "").replace("`", "").split()).rstrip(".")


def argument_help(function: Callable[..., Any]) -> dict[str, str]:
    """Read the ``Args:`` section of a Google-style docstring: parameter name -> help text on one line."""
    found: dict[str, list[str]] = {}
    inside, indent, current = False, 0, ""
    for line in inspect.cleandoc(function.__doc__ or "").splitlines():
        text, depth = line.strip(), len(line) - len(line.lstrip())
        if depth == 0 and text:
            inside, indent = text == "Args:", 0
            continue
        if not inside or not text:
            continue
        indent = indent or depth
        entry = _ENTRY.match(text) if depth == indent else None
        if entry:
            current = entry[1]
            found[current] = [entry[2]]
        elif current:
            found[current].append(text)
    return {name: " ".join(" ".join(words).replace("``", "").replace("`", "").split()) for name, words in found.items()}


def _resolved(function: Callable[..., Any], name: str) -> Any:
    """Resolve one annotation; ``None`` where its name is known to type checkers only."""
    inner = inspect.unwrap(function)
    if name not in inner.__annotations__:
        return None
    holder = types.SimpleNamespace(__annotations__={name: inner.__annotations__[name]})
    try:
        return typing.get_type_hints(holder, getattr(inner, "__globals__", {}), include_extras=True).get(name)
    except NameError:
        return None


def _spellable(kind: Any) -> bool:
    """Whether a command line can spell values of this type."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if kind in _PLAIN or kind is type(None) or origin is Literal:
        return True
    if origin in (typing.Union, types.UnionType):
        return all(_spellable(item) for item in inner)
    if origin is Annotated:
        return _spellable(inner[0])
    return origin in (tuple, list, Sequence) and all(item is Ellipsis or _spellable(item) for item in inner)


def _option(function: Callable[..., Any], parameter: inspect.Parameter, texts: dict[str, str]) -> Option | None:
    kind = _resolved(function, parameter.name)
    variadic = parameter.kind is inspect.Parameter.VAR_POSITIONAL
    if not _spellable(kind):
        if parameter.default is inspect.Parameter.empty and parameter.kind is not inspect.Parameter.VAR_KEYWORD:
            raise TypeError(
                f"{function.__module__}.{function.__name__}: the command line cannot give {parameter.name!r} of type "
                f"{parameter.annotation}; give it a default or a plain type"
            )
        return None
    return Option(
        name=parameter.name,
        spelling=ONE_SPELLING.get(parameter.name, parameter.name).replace("_", "-"),
        kind=tuple[kind, ...] if variadic else kind,  # type: ignore[valid-type]
        help=texts.get(parameter.name, ""),
        default=() if variadic else parameter.default,
        positional=variadic or parameter.kind is inspect.Parameter.POSITIONAL_ONLY,
        variadic=variadic,
    )


def keyword_options(function: Callable[..., Any]) -> tuple[Option, ...]:
    """Describe a function's keyword-only parameters as options; one that takes several words is given repeatedly.

    Raises:
        TypeError: one has a type that no command line can spell, and no default.
    """
    texts = argument_help(function)
    parameters = inspect.signature(function).parameters.values()
    made = (_option(function, item, texts) for item in parameters if item.kind is inspect.Parameter.KEYWORD_ONLY)
    return tuple(
        dataclasses.replace(option, repeated=isinstance(option.default, tuple)) for option in made if option is not None
    )


def _saves(function: Callable[..., Any]) -> bool:
    """Whether the result has ``save(path)``; a type known to type checkers only is given the benefit of the doubt."""
    annotation = inspect.unwrap(function).__annotations__.get("return")
    kind = _resolved(function, "return")
    if kind is None or kind is type(None):
        return annotation not in (None, "None")
    return hasattr(typing.get_origin(kind) or kind, "save")


def form(function: Callable[..., Any], *, generated: bool) -> Form:
    """Describe the command line of a function.

    Args:
        function: typed, with a Google-style docstring.
        generated: it is a method's function, to which ``--model``, ``--device``, ``--dtype``, ``--out`` are added.

    Raises:
        TypeError: a parameter without a default has a type that no command line can spell.
    """
    parameters = inspect.signature(function).parameters
    texts = argument_help(function)
    loads = generated and "pipe" in parameters
    own = (_option(function, item, texts) for name, item in parameters.items() if not (loads and name == "pipe"))
    options = tuple(option for option in own if option is not None)
    saves = generated and "out" not in parameters and _saves(function)
    needs_model = loads and parameters["pipe"].default is inspect.Parameter.empty
    return Form(function, options, loads, saves, needs_model)


_MODEL = Option("model", "model", str, "embedded pipeline, folder in diffusers layout, or hub id", "scenes")
_MODEL_OR_NONE = Option(
    "model",
    "model",
    str | None,
    "embedded pipeline, folder or hub id whose levels and kind are used; none when not given",
    None,
)
_DEVICE = Option("device", "device", str, "where to compute, such as cpu or cuda", "cpu")
_DTYPE = Option("dtype", "dtype", Dtype, "arithmetic of the model", "float32")
_OUT = Option("out", "out", Path | None, "where to save the result; without it, it is only printed", None)
_JSON = Option("json", "json", bool, "print JSON for programs", False)


def _arguments(described: Form) -> list[Option]:
    """Put the function's own options first, then those that the command line adds."""
    taken = {option.name for option in described.options}
    model = _MODEL if described.needs_model else _MODEL_OR_NONE
    added = [*((model, _DEVICE, _DTYPE) if described.loads else ()), *((_OUT,) if described.saves else ()), _JSON]
    return [*described.options, *described.added, *(option for option in added if option.name not in taken)]


def _metavar(option: Option) -> str | None:
    """Name the value in help texts; without ``None``, which is said by leaving the option away."""
    if option.positional:
        return f"{option.name.upper()}{' ...' if option.variadic else ''}"
    inner = [item for item in typing.get_args(option.kind) if item is not type(None)]
    optional = typing.get_origin(option.kind) in (typing.Union, types.UnionType) and len(inner) == 1
    return inner[0].__name__.upper() if optional and inner[0] in _PLAIN else None


def _described(option: Option) -> Any:
    """Give tyro an option's spelling and texts; defaults that say nothing are not printed."""
    import tyro

    silent = option.default in ("", (), None, inspect.Parameter.empty) or isinstance(option.default, bool)
    hint = "" if silent else f"(default: {option.default})"
    required = option.default is inspect.Parameter.empty and not option.positional
    return tyro.conf.arg(
        name=option.spelling,
        help=f"do not: {option.help}" if option.default is True else option.help or None,
        metavar=_metavar(option),
        help_behavior_hint="(required)" if required else hint,
    )


def _model_of(described: Form) -> type:
    """Build the dataclass whose fields are the arguments, for tyro to fill in."""
    import tyro

    made: list[Any] = []
    for option in sorted(_arguments(described), key=lambda item: item.default is not inspect.Parameter.empty):
        marks: list[Any] = [_described(option)]
        marks += [tyro.conf.Positional] if option.positional else []
        marks += [tyro.conf.UseAppendAction] if option.repeated else []
        kind: Any = option.kind
        for mark in marks:
            kind = Annotated[kind, mark]
        field = dataclasses.field() if option.default is inspect.Parameter.empty else _default(option.default)
        made.append((option.name, kind, field))
    return dataclasses.make_dataclass("Arguments", made)


def _default(value: Any) -> Any:
    if isinstance(value, list):
        return dataclasses.field(default_factory=lambda: list(value))
    return dataclasses.field(default=value)


def _refuse_unknown_flags(described: Form, argv: Sequence[str]) -> None:
    flags = {"--help"}
    for option in _arguments(described):
        if not option.positional:
            negated = option.default is True and option.kind is bool
            flags.add(f"--no-{option.spelling}" if negated else f"--{option.spelling}")
    for word in argv:
        if word == "--":
            return
        flag = word.split("=", 1)[0].replace("_", "-")
        if flag.startswith("--"):
            choose(flag, flags, "option")


def _one_line(report: str) -> str:
    """Reduce tyro's boxed report, drawn with lines or (to a pipe) with dashes, to its message, in one line."""
    lines = [line.strip("│ ") for line in report.splitlines() if not line.startswith(("╭", "╰"))]
    rules = [number for number, line in enumerate(lines) if line and not line.strip("─-")]
    first = rules.pop(0) + 1 if rules and "│" not in report else 0
    message = " ".join(" ".join(lines[first : rules[0] if rules else None] or [report]).split())
    text = re.sub(r"\s+([.,;])", r"\1", message).rstrip(".")
    for pattern, replacement in _REWORDED:
        text = re.sub(pattern, replacement, text)
    return text[:1].lower() + text[1:] if text[1:2].islower() else text


def parse(described: Form, argv: Sequence[str], *, prog: str) -> dict[str, Any]:
    """Read the arguments of a command.

    Args:
        described: its form.
        argv: the words after the verb.
        prog: how the command is called, for help texts.

    Returns:
        parameter name -> value, with the options that the command line adds.

    Raises:
        UsageError: the words do not fit, in one line.
        SystemExit: ``--help`` was asked for and printed (code 0).
    """
    import tyro

    _refuse_unknown_flags(described, argv)
    report = io.StringIO()
    try:
        with redirect_stderr(report):
            values: Any = tyro.cli(
                _model_of(described),
                prog=prog,
                description=summary(described.function) + ".",
                args=list(argv),
                config=(tyro.conf.FlagCreatePairsOff,),
            )
    except SystemExit as stop:
        if not stop.code:
            raise
        raise UsageError(f"{_one_line(report.getvalue())}; see {prog} --help") from None
    return {field.name: getattr(values, field.name) for field in dataclasses.fields(values)}


def call(described: Form, values: dict[str, Any]) -> Any:
    """Call the function with the values of its own parameters (and ``pipe``, where it takes one)."""
    given = {option.name for option in described.options} | ({"pipe"} if described.loads else set())
    parameters = inspect.signature(described.function).parameters
    variadic = any(item.kind is inspect.Parameter.VAR_POSITIONAL for item in parameters.values())
    first: list[Any] = []
    named: dict[str, Any] = {}
    for name, item in parameters.items():
        value = values[name] if name in given else item.default
        if item.kind is inspect.Parameter.VAR_POSITIONAL:
            first += value
        elif item.kind is inspect.Parameter.POSITIONAL_ONLY or (variadic and item.kind is item.POSITIONAL_OR_KEYWORD):
            first.append(value)
        elif name in given:
            named[name] = value
    return described.function(*first, **named)
