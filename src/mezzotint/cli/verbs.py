"""The verbs: those of the house, listed here once, and those of the methods, found through their doors.

A verb names the task. When two methods serve one task, ``--method NAME`` says which is meant.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mezzotint.cli import catalogue, pictures, replay, reports, shelves
from mezzotint.cli.terminal import choose, note
from mezzotint.methods import Door

__all__ = ["Verb", "all_verbs", "doors", "find", "overview"]

Command = Callable[..., Any]


@dataclass(frozen=True)
class Verb:
    """A word of the command line.

    Attributes:
        name: the word.
        summary: what it does, one line.
        heading: under which heading ``--help`` lists it.
        choices: what the next word chooses from (or ``--method``, for a method's verb): name -> function.
            One entry named ``""`` is a verb that needs no such word.
        generated: the functions are methods', so ``--model`` and ``--out`` are added.
    """

    name: str
    summary: str
    heading: str
    choices: Mapping[str, Any]
    generated: bool = False


def _one(name: str, heading: str, function: Command) -> Verb:
    from mezzotint.cli.forms import summary

    return Verb(name, summary(function), heading, {"": function})


def _house() -> list[Verb]:
    pictures_heading, methods_heading, house_heading = "pictures", "methods and their evidence", "data, models, machine"
    return [
        _one("sample", pictures_heading, pictures.sample),
        _one("show", pictures_heading, replay.show),
        _one("rerun", pictures_heading, replay.rerun),
        _one("methods", methods_heading, catalogue.methods),
        _one("cite", methods_heading, catalogue.cite),
        _one("demo", methods_heading, reports.demo),
        _one("bench", methods_heading, reports.bench),
        Verb("world", "Make data with exact ground truth", house_heading, shelves.WORLDS),
        Verb("zoo", "List, locate, train and verify the embedded models", house_heading, shelves.ZOO),
        _one("doctor", house_heading, catalogue.doctor),
    ]


def doors() -> Iterator[Door]:
    """Import the doors one by one; a broken one is named on stderr and does not take the others with it."""
    from mezzotint.methods import door, names

    for name in names():
        try:
            module = door(name)
        except Exception as cause:  # noqa: BLE001  other packages bring methods too, and may be broken in any way
            note(f"method {name} is left out: {type(cause).__name__}: {cause}")
            continue
        yield Door(name, module, getattr(module, "VERBS", {}))


def _of_methods() -> dict[str, Verb]:
    from mezzotint.cli.forms import summary

    served: dict[str, dict[str, Command]] = {}
    for found in doors():
        for word, function in found.verbs.items():
            served.setdefault(word, {})[found.name] = function
    return {
        word: Verb(word, f"{summary(next(iter(by.values())))} ({', '.join(by)})", "tasks of the methods", by, True)
        for word, by in sorted(served.items())
    }


def all_verbs() -> dict[str, Verb]:
    """Return every verb by its name.

    Raises:
        ValueError: a method claims a word of the house.
    """
    house, tasks = {verb.name: verb for verb in _house()}, _of_methods()
    if both := sorted(house.keys() & tasks.keys()):
        raise ValueError(f"verbs {', '.join(both)} belong to the house: the method must name another task")
    return house | tasks


_SPELLINGS = {"distil": "distill", "quantise": "quantize"}
"""Words that are spelt in two ways; the verb has one of them."""


def find(word: str) -> Verb:
    """Find a verb; for the house's own the methods are not even looked at, but `sample` asks them for their effects.

    Raises:
        UsageError: there is none; the message names the nearest.
    """
    house = {verb.name: verb for verb in _house()}
    if word in house:
        return house[word]
    verbs = all_verbs()
    return verbs[choose(_SPELLINGS.get(word, word), verbs, "verb")]


def overview(verbs: Mapping[str, Verb]) -> str:
    """Write what ``mezzotint --help`` prints."""
    lines = ["usage: mezzotint [--version] [--traceback] VERB ...", "", "Diffusion-model methods with evidence.", ""]
    for heading in dict.fromkeys(verb.heading for verb in verbs.values()):
        lines.append(f"{heading}:")
        lines += [f"  {verb.name:<10} {verb.summary}" for verb in verbs.values() if verb.heading == heading]
        lines.append("")
    return "\n".join([*lines, "mezzotint VERB --help explains one verb; --json prints data for programs."])
