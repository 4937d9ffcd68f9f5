"""What methods do to ``mezzotint sample``: their options, and their work around every batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, get_args, get_type_hints

from mezzotint.cli.forms import Option, keyword_options
from mezzotint.cli.terminal import note
from mezzotint.methods import Effect

__all__ = ["Asked", "asked", "attached", "checked", "options"]

Asked = Mapping[str, Mapping[str, Any]]
"""Method -> the options given for it, plain data."""


@dataclass(frozen=True)
class _Found:
    method: str
    effect: Effect
    options: tuple[Option, ...]


def _all() -> list[_Found]:
    """Effects of all methods in the order in which they are attached."""
    from mezzotint.cli.verbs import doors

    stages = get_args(get_type_hints(Effect)["stage"])
    found = [_Found(door.name, door.effect, keyword_options(door.effect.attach)) for door in doors() if door.effect]
    return sorted(found, key=lambda item: (stages.index(item.effect.stage), item.method))


def options() -> Iterator[Option]:
    """Options that the methods add to ``sample``."""
    for found in _all():
        yield from found.options


def asked(values: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Pick the methods' options out of all values; a method none of whose options was given is left out."""
    picked = {
        found.method: {item.name: _plain(values[item.name]) for item in found.options if item.name in values}
        for found in _all()
    }
    defaults = {found.method: {item.name: _plain(item.default) for item in found.options} for found in _all()}
    return {method: given for method, given in picked.items() if given and given != defaults[method]}


def checked(foreign: Any) -> dict[str, dict[str, Any]]:
    """Read foreign data as what `asked` gives.

    Raises:
        ValueError: no such method or option is here, or a value has another type than the option.
    """
    if not isinstance(foreign, Mapping) or not all(isinstance(given, Mapping) for given in foreign.values()):
        raise ValueError(f"effects of the request must be an object of objects, got {foreign!r}")
    known = {found.method: {item.name: item for item in found.options} for found in _all()} if foreign else {}
    for method, given in foreign.items():
        if method not in known:
            raise ValueError(f"the picture was made with the method {method!r}, which is not here")
        for name, value in given.items():
            if name not in known[method] or not _fits(value, known[method][name].default):
                raise ValueError(f"the method {method!r} takes no {name} = {value!r} here")
    return {method: dict(given) for method, given in foreign.items()}


@contextmanager
def attached(pipe: Any, prompts: tuple[str, ...], given: Asked) -> Iterator[None]:
    """Attach the methods asked for, in their order; leaving detaches them, and what they report is said."""
    with ExitStack() as stack:
        reports = [
            stack.enter_context(found.effect.attach(pipe, prompts, **_typed(given[found.method])))
            for found in (_all() if given else ())
            if found.method in given
        ]
        yield
    for report in reports:
        if "__str__" in vars(type(report)):
            note(str(report))


def _typed(given: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}


def _plain(value: Any) -> Any:
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _fits(value: Any, default: Any) -> bool:
    """Whether a foreign value is of an option's kind: that of its default; lists hold words."""
    if isinstance(default, tuple | list):
        return isinstance(value, list) and all(isinstance(item, str) for item in value)
    return value is None or isinstance(value, str) if default is None else type(value) is type(default)
