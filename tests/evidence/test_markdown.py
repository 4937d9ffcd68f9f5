"""Results as Markdown: the same verdicts, tables that parse, pictures that exist."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from mezzotint.evidence import Evidence, Facts, to_markdown, write_results


def _tables(text: str) -> list[list[str]]:
    blocks = re.findall(r"(?:^\|.*\|$\n?)+", text, flags=re.MULTILINE)
    return [block.strip().splitlines() for block in blocks]


def _cells(line: str) -> int:
    return len(re.findall(r"(?<!\\)\|", line)) - 1


def test_tables_are_rectangular_even_with_bars_in_names(make: Callable[..., Evidence]) -> None:
    odd = make(facts=Facts("odd", "Odd", "a | b <c>"))
    for table in _tables(to_markdown(odd)):
        assert len({_cells(line) for line in table}) == 1
        assert re.fullmatch(r"\|( ---:? \|)+", table[1])


def test_says_what_the_numbers_say(evidence: Evidence, make: Callable[..., Evidence]) -> None:
    assert to_markdown(evidence).count("**supported**") == 3
    assert "**contradicted**" in to_markdown(make(better=-0.2))
    for line in evidence.facts.departures:
        assert f"- {line}" in to_markdown(evidence)


def test_markup_in_names_stays_words(evidence: Evidence) -> None:
    assert "Burnishing &lt;&amp; polishing&gt;" in to_markdown(evidence)


def test_the_results_page_shows_pictures_that_exist(evidence: Evidence, tmp_path: Path) -> None:
    page = write_results([evidence], tmp_path / "docs" / "results.md")
    text = page.read_text()
    shown = re.findall(r"\]\((results/[^)]+)\)", text)
    written = {p.relative_to(page.parent).as_posix() for p in page.parent.rglob("*.*") if p != page}
    assert set(shown) == written
    assert len(shown) == 4 + 2
    first = evidence.samples[0]
    assert (page.parent / "results/burnishing/sample-0-0.png").read_bytes() == first.png


def test_every_method_of_the_summary_has_its_section(make: Callable[..., Evidence], tmp_path: Path) -> None:
    found = [make(), make(better=-0.2, facts=Facts("etching", "Etching"))]
    text = write_results(found, tmp_path / "results.md").read_text()
    for evidence in found:
        assert f"](#{evidence.facts.slug})" in text
        assert f"{{ #{evidence.facts.slug} }}" in text
    assert write_results(found, tmp_path / "results.md").read_text() == text


def test_no_results_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one"):
        write_results([], tmp_path / "results.md")


def test_pages_of_other_measurements_stay_linked(evidence: Evidence, tmp_path: Path) -> None:
    target = tmp_path / "results.md"
    assert "Measured beside" not in write_results([evidence], target).read_text(encoding="utf-8")
    (tmp_path / "results" / "speed.md").write_text("# Speed\n\nfast\n", encoding="utf-8")
    for _ in range(2):
        text = write_results([evidence], target).read_text(encoding="utf-8")
        assert text.count("[Speed](results/speed.md)") == 1
