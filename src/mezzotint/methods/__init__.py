"""The methods: one folder each, found by looking, never registered.

A method is a folder here, or a module that another package names in the entry-point group ``mezzotint.methods``.
Its ``__init__.py`` is its *door*: ``CARD``, one to three typed functions, ``VERBS``, which maps a command-line verb
to the function that serves it, and ``EFFECT``, where the method acts on ``mezzotint sample``. A door imports no torch;
the bodies of its functions do.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

__all__ = ["GROUP", "Card", "Door", "Effect", "discover", "door", "names"]

GROUP = "mezzotint.methods"


@dataclass(frozen=True)
class Card:
    """What a method is: the facts that its page, its report and the command line show.

    Attributes:
        slug: name of the folder, a Python identifier.
        title: the method's name, as its authors write it.
        claim: what is to be measured, one sentence.
        paper: authors, title, venue and year, one line.
        arxiv: arXiv identifier such as ``"2404.14507"``; empty where there is none.
        bibtex: the entry that ``mezzotint cite`` prints.
        family: what kind of method it is, such as ``"sampling"``.
        inputs: what it takes, one word or phrase each.
        outputs: what it gives.
        composes_with: slugs or families with which it works in one image.
        departures: every difference from the paper, one line each.
    """

    slug: str
    title: str
    claim: str
    paper: str
    arxiv: str
    bibtex: str
    family: str
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    composes_with: tuple[str, ...] = ()
    departures: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse a card that a page could not print."""
        if not self.slug.isidentifier():
            raise ValueError(f"slug must be a Python identifier, got {self.slug!r}")
        for name in ("title", "claim", "paper", "bibtex", "family"):
            if not getattr(self, name).strip():
                raise ValueError(f"{name} of the card {self.slug!r} must not be empty")


@dataclass(frozen=True)
class Effect:
    """What a method does to a pipeline while ``mezzotint sample`` draws.

    Attributes:
        attach: ``(pipe, prompts, *, options) -> context manager``, entered around every batch and left without a trace.
            Its keyword-only parameters become options of ``sample``, documented under ``Args:``; with none of them
            given, the method takes no part.
        stage: effects on the model come first, then those that teach it words, then those that read the prompt.
    """

    attach: Callable[..., AbstractContextManager[Any]]
    stage: Literal["model", "words", "prompt"] = "prompt"


@dataclass(frozen=True)
class Door:
    """A method that was found.

    Attributes:
        name: its slug.
        module: its ``__init__`` module, imported.
        verbs: command-line verb -> the typed function that serves it.
    """

    name: str
    module: ModuleType
    verbs: Mapping[str, Callable[..., Any]] = field(default_factory=dict)

    @property
    def effect(self) -> Effect | None:
        """What it does to ``mezzotint sample``, if anything."""
        return getattr(self.module, "EFFECT", None)

    @property
    def card(self) -> Card:
        """The method's card."""
        return self.module.CARD

    @property
    def experiment(self) -> ModuleType:
        """The module with ``experiment(seeds, budget) -> Evidence``; importing it may import torch."""
        return importlib.import_module(f"{self.module.__name__}.experiment")


def _folders() -> dict[str, str]:
    here = Path(__file__).parent
    found = (path.parent.name for path in here.glob("*/__init__.py"))
    return {name: f"{__name__}.{name}" for name in found if not name.startswith("_")}


def _foreign() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=GROUP)}


@lru_cache(maxsize=1)
def names() -> tuple[str, ...]:
    """Name all methods, sorted, without importing them.

    Raises:
        ValueError: two packages bring a method of one name.
    """
    own, foreign = _folders(), _foreign()
    if both := sorted(own.keys() & foreign.keys()):
        raise ValueError(f"method names must be unique, but another package brings {', '.join(both)} again: rename it")
    return tuple(sorted(own.keys() | foreign.keys()))


def door(name: str) -> ModuleType:
    """Import the door of one method.

    Args:
        name: its slug.

    Raises:
        KeyError: there is no such method.
        TypeError: its module has no ``CARD``.
    """
    if name not in names():
        raise KeyError(f"unknown method {name!r}; methods: {', '.join(names())}")
    own = _folders()
    module = importlib.import_module(own[name]) if name in own else _foreign()[name].load()
    if not isinstance(getattr(module, "CARD", None), Card):
        raise TypeError(f"the door of method {name!r} must define CARD = mezzotint.methods.Card(...)")
    return module


@lru_cache(maxsize=1)
def discover() -> tuple[Door, ...]:
    """Import the doors of all methods, sorted by name."""
    modules = {name: door(name) for name in names()}
    return tuple(Door(name, module, getattr(module, "VERBS", {})) for name, module in modules.items())
