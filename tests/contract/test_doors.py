"""What every door promises: a printable card, typed and documented functions, verbs that name tasks."""

from __future__ import annotations

import inspect
import re
import sys
import types
from collections.abc import Callable, Iterator

import pytest

from mezzotint import methods
from mezzotint.methods import Card, Door

DOORS = methods.discover()
FUNCTIONS = [
    pytest.param(function, id=f"{door.name} {verb}") for door in DOORS for verb, function in door.verbs.items()
]
VERBS = {
    "methods", "show", "sample", "schedule", "distill", "quantize", "learn", "control", "edit", "erase", "audit",
    "protect", "align", "texture", "decompose", "restore", "segment", "represent", "views", "scene", "tryon", "detect",
    "evaluate", "demo", "bench", "world", "zoo", "studio",
}  # fmt: skip
CARD = {"title": "T", "claim": "C", "paper": "P", "arxiv": "", "bibtex": "B", "family": "F"}


def _arguments(function: Callable) -> dict[str, str]:
    """The Args section of a Google-style docstring: name -> text."""
    doc = inspect.getdoc(function) or ""
    section = re.search(r"^Args:\n((?:[ \t]+.*\n?|\n)+)", doc, re.MULTILINE)
    found = re.findall(r"^ {4}(\w+)(?: \([^)]*\))?: (.+)", section[1] if section else "", re.MULTILINE)
    return dict(found)


@pytest.mark.parametrize("door", DOORS, ids=lambda door: door.name)
def test_a_card_says_what_its_page_needs(door: Door) -> None:
    card = door.card
    assert card.slug == door.name
    assert card.inputs
    assert card.outputs
    assert card.claim.rstrip(".").count(". ") == 0, "one sentence"
    assert re.fullmatch(r"|\d{4}\.\d{4,5}(v\d+)?", card.arxiv)
    assert re.match(r"\s*@\w+\{[^,]+,", card.bibtex)
    assert card.bibtex.count("{") == card.bibtex.count("}")
    assert all("\n" not in line for line in card.departures)


@pytest.mark.parametrize("door", DOORS, ids=lambda door: door.name)
def test_a_door_has_one_to_three_functions_and_verbs_of_the_house(door: Door) -> None:
    public = [getattr(door.module, name) for name in getattr(door.module, "__all__", ())]
    functions = [item for item in public if inspect.isfunction(item)]
    assert 1 <= len(functions) <= 3
    assert set(door.verbs) <= VERBS
    assert all(function in functions for function in door.verbs.values())


@pytest.mark.parametrize("function", FUNCTIONS)
def test_every_parameter_is_typed_and_explained(function: Callable) -> None:
    signature = inspect.signature(function)
    assert inspect.getdoc(function)
    assert signature.return_annotation is not inspect.Signature.empty
    explained = _arguments(function)
    for name, parameter in signature.parameters.items():
        assert parameter.annotation is not inspect.Parameter.empty, name
        assert name in explained, f"{name} is missing in the Args section"


@pytest.mark.parametrize(("field", "value"), [("slug", "no slug"), ("title", " "), ("claim", ""), ("bibtex", "")])
def test_an_unprintable_card_is_refused(field: str, value: str) -> None:
    with pytest.raises(ValueError, match=field):
        Card(**{"slug": "s", **CARD, field: value})


class Point:
    """Stands in for an installed package's entry point, which cannot be made at test time."""

    def __init__(self, name: str, module: types.ModuleType) -> None:
        self.name, self.module = name, module

    def load(self) -> types.ModuleType:
        return self.module


@pytest.fixture
def foreign(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, types.ModuleType], None]]:
    def bring(name: str, module: types.ModuleType) -> None:
        monkeypatch.setattr(methods, "_foreign", lambda: {name: Point(name, module)})
        methods.names.cache_clear()

    yield bring
    methods.names.cache_clear()
    methods.discover.cache_clear()


def test_another_package_can_bring_a_method(foreign: Callable) -> None:
    module = types.ModuleType("their_method")
    module.CARD = Card(slug="theirs", **CARD)
    foreign("theirs", module)
    assert "theirs" in methods.names()
    assert methods.door("theirs") is module
    assert "their_method" not in sys.modules


def test_a_second_method_of_one_name_is_refused(foreign: Callable) -> None:
    if not methods.names():
        pytest.skip("no method of ours yet")
    foreign(methods.names()[0], types.ModuleType("theirs"))
    with pytest.raises(ValueError, match=f"brings {DOORS[0].name} again"):
        methods.names()


def test_a_door_without_a_card_is_refused(foreign: Callable) -> None:
    foreign("theirs", types.ModuleType("theirs"))
    with pytest.raises(TypeError, match="must define CARD"):
        methods.door("theirs")


def test_an_unknown_method_is_named() -> None:
    with pytest.raises(KeyError, match="unknown method 'nothing'; methods: "):
        methods.door("nothing")
