"""Properties of evidence: round trips, verdicts, printed numbers and pages, for any words and numbers."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mezzotint.evidence import Arm, Claim, Evidence, Facts, Figure, Row, Sample, Series, to_markdown
from mezzotint.evidence.charts import figure_panel, slots
from mezzotint.evidence.html import gallery, render
from mezzotint.evidence.numbers import print_effect, print_interval
from mezzotint.evidence.serialise import from_plain, to_plain
from mezzotint.evidence.verdict import judge
from mezzotint.metrics.bootstrap import Interval

few = settings(deadline=None, max_examples=40)
pages = settings(deadline=None, max_examples=10)
words = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=20)
numbers = st.floats(-1e6, 1e6)
directions = st.sampled_from(("higher", "lower"))


@st.composite
def tables(draw: st.DrawFn) -> tuple[tuple[float, ...], ...]:
    units = draw(st.integers(1, 4))
    line = st.lists(numbers, min_size=units, max_size=units).map(tuple)
    return tuple(draw(st.lists(line, min_size=1, max_size=3)))


# Evidence is built in the tests, not in strategies: run-time type checks draw from `random`, which strategies must not.
arm_parts = st.lists(st.tuples(words, st.sampled_from(("baseline", "ablation", "oracle"))), min_size=2, max_size=4,
                     unique_by=lambda part: part[0])  # fmt: skip
parts = st.tuples(
    arm_parts, tables(), directions, st.lists(words, min_size=8, max_size=8), st.binary(max_size=30), numbers
)


def _build(drawn: tuple) -> Evidence:
    arms, table, direction, texts, png, number = drawn
    names = [name for name, _ in arms]
    moved = {name: tuple(tuple(v + k for v in line) for line in table) for k, name in enumerate(names)}
    row = Row(texts[0], moved, direction=direction, note=texts[1])
    kinds = (Arm(names[0], "method"), *(Arm(name, kind, texts[2]) for name, kind in arms[1:]))
    claim = Claim(texts[3], row.metric, names[0], tuple(names[1:]), margin=number / 1e6)
    samples = tuple(Sample(name, texts[4], png) for name in names)
    figure = Figure(texts[5], series=(Series.of(names[0], [0, 1], [number, 1]),))
    facts = Facts("slug", texts[6], texts[7], departures=(texts[0],))
    return Evidence(facts, kinds, (row,), (claim,), (figure,), samples, (0,), settings={texts[1]: texts[2]})


@few
@given(parts)
def test_any_evidence_survives_json(drawn: tuple) -> None:
    evidence = _build(drawn)
    assert Evidence.from_json(json.loads(json.dumps(evidence.to_json()))) == evidence


@few
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | words,
        lambda inner: st.lists(inner) | st.dictionaries(words, inner),
        max_leaves=8,
    )
)
def test_any_other_json_is_refused_in_words(plain: object) -> None:
    with pytest.raises(ValueError, match=r"not evidence|Evidence"):
        Evidence.from_json({**plain, "format": "mezzotint-evidence-1"} if isinstance(plain, dict) else plain)


@few
@given(words, st.lists(st.tuples(numbers, numbers, st.floats(0, 10)), max_size=4))
def test_series_come_back_from_a_file(name: str, points: list[tuple[float, float, float]]) -> None:
    x, y, half = zip(*points, strict=True) if points else ((), (), ())
    low, high = ([v + sign * h for v, h in zip(y, half, strict=True)] for sign in (-1, 1))
    series = Series.of(name, x, y, low=low, high=high)
    assert from_plain(Series, json.loads(json.dumps(to_plain(series)))) == series


@few
@given(tables(), st.floats(-3, 3), directions, st.floats(-2, 2))
def test_the_other_direction_is_the_other_verdict(
    table: tuple[tuple[float, ...], ...], shift: float, direction: str, margin: float
) -> None:
    """Better by more than the margin one way is worse by less the other way."""
    values = {"ours": tuple(tuple(v + shift for v in line) for line in table), "plain": table}
    row = Row("m", values, direction=direction)  # type: ignore[arg-type]
    other = replace(row, direction="lower" if direction == "higher" else "higher")
    there = judge(Claim("c", "m", "ours", ("plain",), margin=margin), row).outcome
    back = judge(Claim("c", "m", "ours", ("plain",), margin=-margin), other).outcome
    turned = {"supported": "contradicted", "contradicted": "supported", "inconclusive": "inconclusive"}
    assert back == turned[there]


@few
@given(tables(), st.floats(-3, 3), st.floats(0, 2))
def test_a_harder_claim_is_never_easier(table: tuple[tuple[float, ...], ...], shift: float, more: float) -> None:
    values = {"ours": tuple(tuple(v + shift for v in line) for line in table), "plain": table}
    row = Row("m", values, direction="higher")
    rank = ("contradicted", "inconclusive", "supported")
    easy, hard = (judge(Claim("c", "m", "ours", ("plain",), margin=m), row).outcome for m in (0.0, more))
    assert rank.index(hard) <= rank.index(easy)


@few
@given(st.floats(-1e9, 1e9), st.floats(0, 1e6), st.sampled_from(("", "rate", "mm")), st.booleans())
def test_printed_numbers_can_be_read_again(value: float, half: float, unit: str, effect: bool) -> None:
    interval = Interval(value, value - half, value + half)
    shown = (print_effect if effect else print_interval)(interval, unit).value
    text = shown.split("\N{NO-BREAK SPACE}")[0].replace("\N{MINUS SIGN}", "-").replace("\N{THIN SPACE}", "")
    factor = 100 if unit == "rate" else 1
    assert not re.fullmatch(r"-0\.?0*", text)
    assert math.isclose(float(text) / factor, value, rel_tol=6e-3, abs_tol=max(half / 5, 1e-6, 6e-4 * (unit == "rate")))


@few
@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("pqr")), max_size=12))
def test_a_gallery_shows_every_picture_once(pairs: list[tuple[str, str]]) -> None:
    samples = [Sample(arm, prompt, bytes([k])) for k, (arm, prompt) in enumerate(pairs)]
    arms, lines = gallery(samples)
    shown = [sample for _, line in lines for sample in line if sample is not None]
    assert sorted(s.png for s in shown) == sorted(s.png for s in samples)
    assert all(len(line) == len(arms) for _, line in lines)
    prompts = [prompt for prompt, _ in lines if prompt]
    assert len(prompts) == len(set(prompts))


@pages
@given(parts)
def test_pages_of_any_words_run_none_of_them(drawn: tuple) -> None:
    evidence = _build(drawn)
    odd = replace(
        evidence, facts=replace(evidence.facts, title="</title><script>x</script>", claim='"><img src=y onerror=z>')
    )
    page = render([odd])
    assert page.count("<script") == 1
    assert "<img src=y" not in page
    assert "<script>x" not in to_markdown(odd)


@pages
@given(words, words)
def test_plots_of_any_words_are_drawn(name: str, label: str) -> None:
    assume(name.strip())
    figure = Figure(name, series=(Series.of(name, [0, 1], [0, 1]),), x_label=label)
    evidence = Evidence(Facts("s", "S"), (Arm("a", "method"),), (), figures=(figure,))
    svg = figure_panel(figure, slots(evidence)).svg
    assert svg.startswith("<svg ")
    assert svg.rstrip().endswith("</svg>")
