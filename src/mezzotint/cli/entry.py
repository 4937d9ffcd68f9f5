"""The entry point: which verb, which function of it, what it answers, and which exit code that gives."""

from __future__ import annotations

import dataclasses
import inspect
import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from functools import partial
from typing import Any

from mezzotint.cli import effects, terminal
from mezzotint.cli.forms import Form, call, form, parse, summary
from mezzotint.cli.shelves import Later, recipe, zoo_train
from mezzotint.cli.verbs import Verb, all_verbs, find, overview

__all__ = ["main"]

_INPUT_ERRORS = (ValueError, FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError, PermissionError)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: the words after ``mezzotint``; the process's own when not given.

    Returns:
        0 done, 2 wrong usage or input, 1 failure. An error is one line on stderr;
        ``--traceback`` shows where it arose.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    show_traceback = bool(words) and words[0] == "--traceback"
    words = words[1:] if show_traceback else words
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _warn
            code = _run(words)
        sys.stdout.flush()
        return code
    except SystemExit as stop:
        return int(stop.code or 0)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (Exception, KeyboardInterrupt) as cause:  # noqa: BLE001  the command line's outermost edge
        if show_traceback:
            traceback.print_exc()
        terminal.error(_spoken(words), _reason(cause))
        return 2 if isinstance(cause, _INPUT_ERRORS) else 1


def _warn(message: Warning | str, category: type[Warning], filename: str, lineno: int, *_: Any, **__: Any) -> None:
    """Say a warning in one line; the libraries' news about their own future interest no user of a command."""
    del filename, lineno
    if not issubclass(category, DeprecationWarning | PendingDeprecationWarning | FutureWarning):
        terminal.note("warning: " + " ".join(str(message).split()))


def _reason(cause: BaseException) -> str:
    """Say what went wrong; an unforeseen error also names its type and how to see where it arose."""
    if isinstance(cause, KeyboardInterrupt):
        return "interrupted"
    if isinstance(cause, OSError) and cause.strerror:
        return f"{cause.strerror}: {cause.filename}" if cause.filename else cause.strerror
    if isinstance(cause, _INPUT_ERRORS):
        return str(cause)
    return f"failed: {type(cause).__name__}: {cause} (mezzotint --traceback ... shows where)"


def _spoken(words: Sequence[str]) -> str:
    return words[0] if words and not words[0].startswith("-") else ""


def _run(words: list[str]) -> int:
    if words and words[0] == "--version":
        from mezzotint import __version__

        print(__version__)
        return 0
    if not words or words[0] in ("--help", "-h"):
        print(overview(all_verbs()))
        return 0 if words else 2
    verb = find(words[0])
    if verb.generated:
        return _run_generated(verb, words[1:])
    prog, rest = f"mezzotint {verb.name}", words[1:]
    if "" in verb.choices:
        return _run_command(form(verb.choices[""], generated=False), rest, prog)
    if not rest or rest[0] in ("--help", "-h"):
        print(_subverbs(verb))
        return 0 if rest else 2
    chosen = terminal.choose(rest[0], verb.choices, "subject")
    function, rest, prog = verb.choices[chosen], rest[1:], f"{prog} {chosen}"
    if function is zoo_train and rest and not rest[0].startswith("-"):
        function, rest, prog = recipe(rest[0]), rest[1:], f"{prog} {rest[0]}"
    chosen_function = function.resolve() if isinstance(function, Later) else function
    return _run_command(form(chosen_function, generated=False), rest, prog)


def _subverbs(verb: Verb) -> str:
    told = {name: item.summary if isinstance(item, Later) else summary(item) for name, item in verb.choices.items()}
    lines = [f"  {name:<10} {text}" for name, text in told.items()]
    return "\n".join(
        [f"usage: mezzotint {verb.name} {{{','.join(verb.choices)}}} ...", "", f"{verb.summary}.", "", *lines]
    )


def _run_command(described: Form, words: Sequence[str], prog: str) -> int:
    takes_effects = "effects" in inspect.signature(described.function).parameters
    if takes_effects:
        described = dataclasses.replace(described, added=tuple(effects.options()))
    values = parse(described, words, prog=prog)
    if takes_effects:
        described = dataclasses.replace(described, function=partial(described.function, effects=effects.asked(values)))
    return terminal.emit(call(described, values), as_json=values["json"])


def _take_method(verb: Verb, words: list[str]) -> tuple[str, list[str]]:
    """Take ``--method NAME`` out of the words; a verb that one method serves does not need it."""
    for place, word in enumerate(words):
        flag, equals, value = word.partition("=")
        if flag == "--method":
            following = [value] if equals else words[place + 1 : place + 2]
            name = terminal.choose(following[0].replace("-", "_") if following else "", verb.choices, "method")
            return name, words[:place] + words[place + (1 if equals else 2) :]
    if len(verb.choices) > 1:
        raise terminal.UsageError(f"several methods do this: add --method with one of {', '.join(verb.choices)}")
    return next(iter(verb.choices)), words


def _run_generated(verb: Verb, words: list[str]) -> int:
    if len(verb.choices) > 1 and words in (["--help"], ["-h"]):
        print(_subverbs(verb).replace("{", "--method {"))
        return 0
    name, rest = _take_method(verb, words)
    described = form(verb.choices[name], generated=True)
    values = parse(described, rest, prog=f"mezzotint {verb.name}")
    if described.saves:
        terminal.check_free(values["out"])
    if described.loads:
        values["pipe"] = None if values["model"] is None else _load(values)
    result = call(described, values)
    return terminal.emit(_saved(result, values) if described.saves else result, as_json=values["json"])


def _load(values: dict[str, Any]) -> Any:
    from mezzotint.cli.pipelines import load

    return load(values["model"], device=values["device"], dtype=values["dtype"])


def _saved(result: Any, values: dict[str, Any]) -> Any:
    """Save a result where ``--out`` says, and add that place to what is printed."""
    out = values["out"]
    if out is None:
        return result
    if not hasattr(result, "save"):
        raise terminal.UsageError(f"this verb gives a {type(result).__name__}, which has no file: leave --out away")
    result.save(terminal.folder(out))
    data = terminal.plain(result)
    written = [path.stat().st_size for path in out.rglob("*") if path.is_file()]
    size = {"disk_bytes": sum(written)} if written else {}
    return {"out": str(out), **size, **(data if isinstance(data, dict) else {"result": data})}
