"""A method exists everywhere or nowhere: its folder, its tests, its page, its row, its verb, its experiment."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

import mezzotint
from mezzotint import methods

ROOT = Path(__file__).parents[2]
NAMES = [name for name in methods.names() if (ROOT / "src" / "mezzotint" / "methods" / name).is_dir()]
HEADINGS = (
    "idea", "equations", "usage", "what is measured", "differences from the paper", "results beside the paper",
    "limits", "cite",
)  # fmt: skip


def _stems(pattern: str, prefix: str = "") -> set[str]:
    return {path.stem.removeprefix(prefix) for path in ROOT.glob(pattern)} - {"index", "conftest"}


def test_every_method_has_its_laws_and_every_law_its_method() -> None:
    assert {name for name in NAMES if not (ROOT / "tests" / "methods" / f"test_{name}.py").is_file()} == set()
    tested = _stems("tests/methods/test_*.py", "test_")
    assert {stem for stem in tested if not any(stem.startswith(name) for name in NAMES)} == set()


def test_every_method_has_its_page_and_every_page_its_method() -> None:
    assert _stems("docs/methods/*.md") == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_page_has_the_fixed_headings_in_order(name: str) -> None:
    lines = (ROOT / "docs" / "methods" / f"{name}.md").read_text(encoding="utf-8").lower().splitlines()
    found = [line.removeprefix("## ") for line in lines if line.startswith("## ")]
    matched = [heading for line in found for heading in HEADINGS if line.startswith(heading)]
    assert matched == list(HEADINGS)


def test_every_method_has_its_row_in_the_results() -> None:
    results = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    titles = [methods.door(name).CARD.title for name in NAMES]
    assert [title for title in titles if title not in results] == []


@pytest.mark.parametrize("name", NAMES)
def test_every_method_has_an_experiment_that_imports_on_demand(name: str) -> None:
    assert find_spec(f"mezzotint.methods.{name}.experiment") is not None


def test_the_package_offers_exactly_the_methods() -> None:
    assert set(methods.names()) <= set(dir(mezzotint))
    assert {door.name for door in methods.discover()} == set(methods.names())
    with pytest.raises(AttributeError, match="no attribute 'no_such_method'; methods: "):
        _ = mezzotint.no_such_method
