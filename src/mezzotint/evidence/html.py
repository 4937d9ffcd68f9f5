"""The page: self-contained HTML with pictures first, then verdicts, then numbers.

Everything is inside the one file (styles, plots, pictures as data URIs); it opens without network, follows the
reader's light or dark setting, and reads on a telephone. What comes from evidence is escaped: a page of foreign
evidence runs none of its text.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files as resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from mezzotint import files
from mezzotint.evidence.charts import Panel, colour, figure_panel, row_panels, slots
from mezzotint.evidence.evidence import Evidence
from mezzotint.evidence.figures import Figure
from mezzotint.evidence.numbers import Printed, common_decimals, print_duration, print_effect, print_interval
from mezzotint.evidence.records import Claim, Row, Sample
from mezzotint.evidence.verdict import Comparison, Verdict, arm_interval

__all__ = ["render", "write_report"]

_ARROWS = {"higher": "higher is better", "lower": "lower is better", "neither": ""}


@dataclass(frozen=True)
class Cell:
    """One number of a table.

    Attributes:
        printed: in words.
        best: whether no arm that competes is better in this row.
    """

    printed: Printed
    best: bool


@dataclass(frozen=True)
class Strip:
    """An interval drawn on a line: positions in per cent of its width.

    Attributes:
        low: left end of the interval.
        high: right end.
        estimate: the dot.
        zero: where no difference is.
        margin: where the claim's margin is.
        wins: on which side the claim wins: ``"left"`` or ``"right"``.
    """

    low: float
    high: float
    estimate: float
    zero: float
    margin: float
    wins: str


def data_uri(png: bytes) -> str:
    """Embed a picture.

    Args:
        png: encoded picture.
    """
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def strip(claim: Claim, comparison: Comparison, *, direction: str) -> Strip:
    """Place an effect, zero and the margin on a line.

    Args:
        claim: gives the margin.
        comparison: gives the effect.
        direction: of the metric.
    """
    sign = 1 if direction == "higher" else -1
    found, margin = comparison.effect, sign * claim.margin
    left, right = min(found.low, 0.0, margin), max(found.high, 0.0, margin)
    span = (right - left) or 1.0

    def place(value: float) -> float:
        return round(6 + 88 * (value - left) / span, 2)

    wins = "right" if sign > 0 else "left"
    return Strip(place(found.low), place(found.high), place(found.estimate), place(0.0), place(margin), wins)


def best_arms(row: Row, evidence: Evidence) -> set[str]:
    """Name the arms whose mean is the best of those that compete: oracles do not.

    Args:
        row: one row.
        evidence: knows the kinds of the arms.
    """
    kinds = {arm.name: arm.kind for arm in evidence.arms}
    means = {arm: arm_interval(row, arm).estimate for arm in row.values if kinds[arm] != "oracle"}
    if row.direction == "neither" or len(means) < 2:
        return set()
    best = (max if row.direction == "higher" else min)(means.values())
    return {arm for arm, mean in means.items() if mean == best}


def table(rows: Sequence[Row], evidence: Evidence) -> list[tuple[str, list[Cell | None]]]:
    """Lay out one metric: its conditions down, the arms that were measured across.

    Args:
        rows: of one metric.
        evidence: gives the order of the arms.
    """
    lines = []
    for row in rows:
        best = best_arms(row, evidence)
        intervals = {arm: arm_interval(row, arm) for arm in row.values}
        decimals = common_decimals(list(intervals.values()))
        printed = {a: print_interval(found, row.unit, decimals=decimals) for a, found in intervals.items()}
        for arm in printed.keys() - row.draws.keys() if row.shape == (1, 1) else ():
            printed[arm] = replace(printed[arm], span="")  # a single value has no interval
        cells = [Cell(printed[arm], arm in best) if arm in printed else None for arm in columns(rows, evidence)]
        lines.append((row.condition, cells))
    return lines


def columns(rows: Sequence[Row], evidence: Evidence) -> list[str]:
    """Arms measured in any of the rows, in the experiment's order.

    Args:
        rows: of one metric.
        evidence: gives the order.
    """
    measured = {arm for row in rows for arm in row.values}
    return [arm.name for arm in evidence.arms if arm.name in measured]


def gallery(samples: Sequence[Sample]) -> tuple[list[str], list[tuple[str, list[Sample | None]]]]:
    """Lay out pictures: arms across, prompts down. A second picture of one arm and prompt starts a second line.

    Args:
        samples: in any order; the order of first appearance is kept.
    """
    arms = list(dict.fromkeys(sample.arm for sample in samples))
    lines: dict[tuple[str, int], dict[str, Sample]] = {}
    seen: dict[tuple[str, str], int] = {}
    for sample in samples:
        repeat = seen.get((sample.prompt, sample.arm), 0)
        seen[sample.prompt, sample.arm] = repeat + 1
        lines.setdefault((sample.prompt, repeat), {})[sample.arm] = sample
    prompts = list(dict.fromkeys(prompt for prompt, _ in lines))
    ordered = sorted(lines, key=lambda key: (prompts.index(key[0]), key[1]))
    return arms, [(key[0] if key[1] == 0 else "", [lines[key].get(arm) for arm in arms]) for key in ordered]


def _figures(evidence: Evidence, colours: dict[str, int]) -> list[tuple[Figure, Panel | None]]:
    slug = evidence.facts.slug
    return [(f, None if f.png else figure_panel(f, colours, salt=slug)) for f in evidence.figures]


def _section(evidence: Evidence) -> dict[str, Any]:
    """Everything the template shows of one method."""
    colours = slots(evidence)
    metrics = []
    for metric in evidence.metrics:
        rows = evidence.rows_of(metric)
        metrics.append({
            "name": metric,
            "better": _ARROWS[rows[0].direction],
            "notes": list(dict.fromkeys(row.note for row in rows if row.note)),
            "panels": row_panels(rows, colours, salt=evidence.facts.slug),
            "columns": columns(rows, evidence),
            "table": table(rows, evidence),
            "size": rows[0].size,
        })  # fmt: skip
    arms, lines = gallery(evidence.samples)
    return {
        "evidence": evidence, "facts": evidence.facts, "slots": colours, "metrics": metrics, "arms": arms,
        "lines": lines, "verdicts": evidence.verdicts, "figures": _figures(evidence, colours),
        "cover": _cover(evidence), "sketch": _sketch(evidence, colours),
        "tally": _tally(evidence.verdicts), "kinds": {arm.name: arm.kind for arm in evidence.arms},
    }  # fmt: skip


def _cover(evidence: Evidence) -> list[Sample]:
    """The pictures that stand for a method: its own, right ones first."""
    own = {arm.name for arm in evidence.arms if arm.kind == "method"}
    mine = [sample for sample in evidence.samples if sample.arm in own] or list(evidence.samples)
    return sorted(mine, key=lambda sample: sample.right is False)[:4]


def _tally(verdicts: Sequence[Verdict]) -> str:
    """How many claims ended how, such as ``"3 supported, 1 inconclusive"``."""
    outcomes = [verdict.outcome for verdict in verdicts]
    names = ("supported", "inconclusive", "contradicted")
    return ", ".join(f"{outcomes.count(name)} {name}" for name in names if name in outcomes)


def _sketch(evidence: Evidence, colours: dict[str, int]) -> Panel | None:
    """The plot that stands for a method without pictures."""
    if evidence.samples or not evidence.rows:
        return None
    rows = evidence.rows_of(evidence.metrics[0])
    return row_panels(rows, colours, salt=f"sketch-{evidence.facts.slug}")[0]


def _effect(verdict: Verdict, comparison: Comparison) -> Printed:
    return print_effect(comparison.effect, verdict.row.unit, relative=verdict.claim.relative)


def _strip(verdict: Verdict, comparison: Comparison) -> Strip:
    return strip(verdict.claim, comparison, direction=verdict.row.direction)


def _resource(name: str) -> str:
    return (resources("mezzotint.evidence") / "templates" / name).read_text(encoding="utf-8")


@cache
def _template() -> Any:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(uri=data_uri, duration=print_duration, svg=_inline)
    return environment.from_string(_resource("page.html.j2"))


def _inline(panel: Panel) -> Markup:
    # Drawn by ourselves from numbers; matplotlib escapes the labels in it.
    return Markup(panel.svg)  # noqa: S704


def render(evidences: Sequence[Evidence], *, title: str = "mezzotint") -> str:
    """Make the page of one or many methods.

    Args:
        evidences: in the order in which they appear.
        title: of the page.

    Returns:
        HTML that needs nothing else.

    Raises:
        ValueError: there is no evidence.
    """
    if not evidences:
        raise ValueError("a report needs at least one piece of evidence, got none")
    outcomes = [evidence.outcome for evidence in evidences]
    counts = {name: outcomes.count(name) for name in ("supported", "inconclusive", "contradicted") if name in outcomes}
    page: str = _template().render(
        title=title, sections=[_section(evidence) for evidence in evidences], counts=counts,
        seconds=sum(evidence.seconds for evidence in evidences), style=Markup(_resource("style.css")),  # noqa: S704
        script=Markup(_resource("page.js.html")), effect=_effect, strip=_strip, colour=colour,  # noqa: S704
    )  # fmt: skip
    return page


def write_report(evidences: Sequence[Evidence], path: str | Path, *, title: str = "mezzotint") -> Path:
    """Write the page, complete or not at all.

    Args:
        evidences: one for each method, in the order in which they appear.
        path: a file that ends in ``.html``, or a folder, which gets an ``index.html``.
        title: of the page.

    Returns:
        The file that was written.

    Raises:
        ValueError: there is no evidence.
        OSError: the place cannot be written.
    """
    target = Path(path)
    target = target if target.suffix == ".html" else target / "index.html"
    page = render(evidences, title=title)
    target.parent.mkdir(parents=True, exist_ok=True)
    files.write_text(target, page)
    return target
