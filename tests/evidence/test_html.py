"""The page: self-contained, safe, readable, and it says what the numbers say."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from importlib.resources import files as resources
from pathlib import Path

import pytest

from mezzotint.evidence import Claim, Evidence, Facts, write_report
from mezzotint.evidence.charts import COLOURS
from mezzotint.evidence.html import best_arms, gallery, render, strip
from mezzotint.evidence.records import Sample

_VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """Collects what tests ask of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        if tag not in _VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"script", "style"} & set(self.open):
            self.words.append(data)

    def values(self, name: str) -> list[str]:
        return [value for _, key, value in self.attributes if key == name]

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))


@pytest.fixture(scope="module")
def many(make: Callable[..., Evidence]) -> list[Evidence]:
    other = Facts("etching", "Etching", "Etched plates print worse.", family="attention")
    third = Facts("drypoint", "Drypoint", "Nothing to see.")
    return [make(), make(better=-0.2, facts=other), make(better=0.0, facts=third, pictures=False)]


@pytest.fixture(scope="module")
def page(many: list[Evidence]) -> Page:
    return Page(render(many))


def test_nothing_is_fetched(page: Page) -> None:
    assert page.values("src")
    for source in page.values("src"):
        assert source == "" or source.startswith("data:image/png;base64,")
    for target in page.values("href"):
        assert target.startswith(("#", "https://arxiv.org/abs/"))
    assert "link" not in page.tags
    assert "@import" not in render_style()


def render_style() -> str:
    return (resources("mezzotint.evidence") / "templates" / "style.css").read_text()


def test_foreign_words_are_words(page: Page, many: list[Evidence]) -> None:
    """The prompt of a sample and the title of a method carry markup; the page runs none of it."""
    assert page.tags.count("script") == 1
    assert "alert(1)</script>" not in render(many)
    assert any("a <script>alert(1)</script> sphere" in value for value in page.values("alt"))
    assert "Burnishing <& polishing>" in page.text


def test_tags_close_and_ids_are_unique(page: Page) -> None:
    assert page.open == []
    ids = page.values("id")
    assert len(ids) == len(set(ids))


def test_every_link_inside_the_page_leads_somewhere(page: Page) -> None:
    ids = set(page.values("id"))
    inner = [value[1:] for tag, name, value in page.attributes if tag == "a" and name == "href" and value[0] == "#"]
    assert {"burnishing", "etching", "drypoint"} <= set(inner)
    assert all(target in ids for target in inner if target)


def test_verdicts_are_those_of_the_numbers(page: Page, many: list[Evidence]) -> None:
    assert [e.outcome for e in many] == ["supported", "contradicted", "inconclusive"]
    assert "1 supported" in page.text
    assert "1 contradicted" in page.text
    badges = [value for tag, name, value in page.attributes if tag == "span" and name == "class" and "large" in value]
    assert [badge.split()[1] for badge in badges] == [e.outcome for e in many]


def test_pictures_stand_before_numbers(many: list[Evidence]) -> None:
    text = render(many[:1])
    assert text.index('class="gallery"') < text.index("What was claimed") < text.index("<table>")


def test_all_arms_departures_and_settings_are_told(page: Page, many: list[Evidence]) -> None:
    for evidence in many:
        for arm in evidence.arms:
            assert arm.note in page.text
        for line in evidence.facts.departures:
            assert line in page.text
    assert "On plates" in page.text
    assert "steps" in page.text


def test_one_method_needs_no_overview(many: list[Evidence]) -> None:
    text = render(many[:1])
    assert "Every claim, measured" not in text
    assert "<nav" not in text


def test_written_to_a_file_or_into_a_folder(many: list[Evidence], tmp_path: Path) -> None:
    first = write_report(many[:1], tmp_path / "report")
    second = write_report(many[:1], tmp_path / "deep" / "page.html")
    assert first == tmp_path / "report" / "index.html"
    assert second.read_bytes() == first.read_bytes()
    assert sorted(p.name for p in tmp_path.rglob("*.*")) == ["index.html", "page.html"]


def test_nothing_to_report_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one"):
        write_report([], tmp_path)


def test_the_best_arm_is_marked_and_oracles_do_not_compete(evidence: Evidence) -> None:
    assert best_arms(evidence.row("right"), evidence) == {"ours"}
    assert best_arms(evidence.row("error", "DDIM, 10 steps"), evidence) == {"ours"}
    assert best_arms(replace(evidence.row("right"), direction="neither"), evidence) == set()


def test_a_gallery_keeps_order_and_starts_a_line_for_a_second_picture() -> None:
    samples = [Sample(arm, prompt, b"") for arm, prompt in (("a", "p"), ("b", "p"), ("a", "q"), ("a", "p"))]
    arms, lines = gallery(samples)
    assert arms == ["a", "b"]
    assert lines == [("p", [samples[0], samples[1]]), ("", [samples[3], None]), ("q", [samples[2], None])]


def test_the_strip_shades_the_side_on_which_the_claim_wins(evidence: Evidence) -> None:
    up, down = evidence.verdicts
    shown = strip(up.claim, up.comparisons[0], direction="higher")
    assert shown.wins == "right"
    assert shown.zero < shown.low < shown.estimate < shown.high
    shown = strip(down.claim, down.comparisons[0], direction="lower")
    assert shown.wins == "left"
    assert shown.low < shown.estimate < shown.high < shown.zero
    lenient = strip(Claim("c", "right", "ours", ("plain",), margin=-0.05), up.comparisons[0], direction="higher")
    assert lenient.margin < lenient.zero


def _themes() -> list[dict[str, str]]:
    blocks = re.findall(r":root[^{]*\{([^}]*)\}", render_style())
    found = [dict(re.findall(r"--(\w+):\s*(#[0-9a-f]{6})\b", block)) for block in blocks]
    return [theme for theme in found if "ink" in theme]


def _luminance(colour: str) -> float:
    parts = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _contrast(one: str, other: str) -> float:
    low, high = sorted((_luminance(one), _luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_words_are_readable_in_both_themes() -> None:
    """Contrast of WCAG 2: 4.5 for words, 3 for lines and marks in plots."""
    themes = _themes()
    assert len(themes) == 3
    for theme in themes:
        for ground in ("paper", "panel"):
            for words in ("ink", "muted", "accent", "supported", "contradicted", "inconclusive"):
                assert _contrast(theme[words], theme[ground]) >= 4.5, (words, ground, theme["paper"])
            for slot in range(len(COLOURS)):
                assert _contrast(theme[f"s{slot}"], theme[ground]) >= 2.9, (slot, ground, theme["paper"])


def test_the_switch_and_the_system_give_the_same_dark_and_plots_the_same_light() -> None:
    light, system, switched = _themes()
    assert system == switched
    assert tuple(light[f"s{slot}"] for slot in range(len(COLOURS))) == COLOURS
