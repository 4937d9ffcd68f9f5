"""Plots of rows and figures: one small SVG a panel, drawn by matplotlib, coloured by the page.

Every colour is drawn as a placeholder and replaced by a CSS variable with a fallback, so that a panel inlined in a page follows its light or
dark theme, and the same panel as a file of its own still has colours. Text stays text. One panel is as wide as a telephone: a page
puts panels side by side where there is room.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from io import StringIO
from typing import Any

from matplotlib import rc_context
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from mezzotint.evidence.evidence import Evidence
from mezzotint.evidence.figures import Figure, Series
from mezzotint.evidence.records import Row
from mezzotint.evidence.verdict import arm_interval

__all__ = ["COLOURS", "Panel", "figure_panel", "row_panels", "slots"]

# The method first (burnished copper), then baselines and ablations; the last is for oracles. Light-theme values; style.css has the dark ones.
COLOURS = ("#b4481e", "#2f6690", "#5b8c5a", "#8a5a9e", "#b08a1e", "#3a8f8f", "#a34a6b", "#6b705c", "#7d7468")
_ROLES = {"#010101": ("ink", "#2b2622"), "#010102": ("muted", "#6f665c"), "#010103": ("grid", "#ddd5c8")}
_INK, _MUTED, _GRID = _ROLES
_MARKERS = "osD^vPXp*"
_SIZE = (3.5, 2.45)
_RC = {"svg.fonttype": "none", "font.family": "sans-serif", "font.sans-serif": ["DejaVu Sans"], "font.size": 8.5}


@dataclass(frozen=True)
class Panel:
    """A drawn plot.

    Attributes:
        title: what distinguishes it from the panels beside it; may be empty.
        svg: without size, so that the page decides.
        names: series in it, for the legend.
    """

    title: str
    svg: str
    names: tuple[str, ...]


def slots(evidence: Evidence) -> dict[str, int]:
    """Give every arm, and every other label that a figure uses, its colour: the same on the whole page.

    Args:
        evidence: of one method.
    """
    oracle = len(COLOURS) - 1
    found = {arm.name: oracle for arm in evidence.arms if arm.kind == "oracle"}
    ranked = sorted(evidence.arms, key=lambda arm: ("method", "baseline", "ablation", "oracle").index(arm.kind))
    labels = [arm.name for arm in ranked if arm.kind != "oracle"]
    labels += [series.name for figure in evidence.figures for series in figure.series]
    for label in dict.fromkeys(labels):
        found.setdefault(label, sum(slot != oracle for slot in found.values()) % oracle)
    return found


def _placeholder(slot: int) -> str:
    return f"#0102{slot:02x}"


def _axes() -> tuple[Canvas, Any]:
    canvas = Canvas(figsize=_SIZE, layout="constrained")
    axes = canvas.add_subplot()
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(_GRID)
    axes.tick_params(colors=_MUTED, which="both", length=2.5, width=0.6)
    axes.grid(visible=True, color=_GRID, linewidth=0.5)
    axes.set_axisbelow(True)
    return canvas, axes


def _svg(canvas: Canvas, salt: str) -> str:
    """Render; ids are salted by the title, because several panels share one page."""
    buffer = StringIO()
    with rc_context({**_RC, "svg.hashsalt": salt}):
        FigureCanvasSVG(canvas).print_svg(buffer, metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = buffer.getvalue()[buffer.getvalue().index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    prefix = re.sub(r"\W+", "-", salt).strip("-").lower() or "panel"
    text = re.sub(r'\bid="', f'id="{prefix}-', text)
    text = re.sub(r"""(url\(|href=")#""", rf"\1#{prefix}-", text)
    text = re.sub(r'(<svg[^>]*?) (?:width)="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) (?:height)="[^"]*"', r'\1 role="img"', text, count=1)
    return _coloured(text)


def _coloured(svg: str) -> str:
    for placeholder, (name, fallback) in _ROLES.items():
        svg = svg.replace(placeholder, f"var(--{name}, {fallback})")
    for slot, fallback in enumerate(COLOURS):
        svg = svg.replace(_placeholder(slot), f"var(--s{slot}, {fallback})")
    return svg


def _scale(axis: Any, *, log: bool, rate: bool = False) -> None:
    if log:
        axis._set_axes_scale("log")  # noqa: SLF001  (the one spelling for x and y)
        axis.set_major_locator(LogLocator(10, subs=(1, 2, 5), numticks=8))
        axis.set_minor_locator(NullLocator())
        axis.set_minor_formatter(NullFormatter())
    else:
        axis.set_major_locator(MaxNLocator(5))
    axis.set_major_formatter(FuncFormatter(partial(_tick, rate=rate)))


def _tick(value: float, _: object = None, *, rate: bool = False) -> str:
    text = f"{value * 100:.4g} %" if rate else f"{value:.4g}"
    return text.replace("-", "\N{MINUS SIGN}")


def _draw_series(axes: Any, series: Series, *, slot: int, kind: str, offset: float = 0.0, width: float = 0.8) -> None:
    colour, first = _placeholder(slot), slot == 0
    order = 5 if first else 3
    if kind == "points":
        axes.scatter(series.x, series.y, s=7, color=colour, alpha=0.6, linewidths=0, zorder=order)
    elif kind == "bars":
        axes.bar([x + offset for x in series.x], series.y, width=width, color=colour, alpha=0.9, zorder=order)
        if series.low:
            axes.vlines([x + offset for x in series.x], series.low, series.high, color=_INK, linewidth=1, zorder=6)
    else:
        marker = _MARKERS[slot] if len(series.x) <= 24 else None
        style = ":" if slot == len(COLOURS) - 1 else "-"
        axes.plot(series.x, series.y, style, color=colour, marker=marker, ms=4.2 if first else 3.4,
                  lw=2.0 if first else 1.2, zorder=order)  # fmt: skip
        if series.low:
            axes.fill_between(series.x, series.low, series.high, color=colour, alpha=0.16, linewidth=0, zorder=order - 1)


def figure_panel(figure: Figure, colours: Mapping[str, int], *, salt: str = "", rate: bool = False) -> Panel:
    """Draw a figure of series.

    Args:
        figure: with series.
        colours: label -> slot, of `slots`.
        salt: makes ids unique on a page; the figure's title is added.
        rate: print the vertical axis in per cent.
    """
    canvas, axes = _axes()
    _scale(axes.xaxis, log=figure.x_log)
    _scale(axes.yaxis, log=figure.y_log, rate=rate)
    count = len(figure.series)
    for index, series in enumerate(figure.series):
        width = 0.8 / count
        _draw_series(axes, series, slot=colours[series.name], kind=figure.kind, width=width * 0.92,
                     offset=(index - (count - 1) / 2) * width)  # fmt: skip
    if figure.ticks:
        axes.set_xticks(range(len(figure.ticks)), figure.ticks)
    axes.set_xlabel(figure.x_label, color=_MUTED)
    axes.set_ylabel(figure.y_label, color=_MUTED)
    return Panel(figure.title, _svg(canvas, f"{salt}-{figure.title}"), tuple(series.name for series in figure.series))


def _many(rows: Sequence[Row]) -> bool:
    return len({row.at for row in rows if row.at is not None}) > 1


def _spread(rows: Sequence[Row]) -> tuple[float, float]:
    intervals = [arm_interval(row, arm) for row in rows for arm in row.values]
    return min(item.low for item in intervals), max(item.high for item in intervals)


def _logarithmic(rows: Sequence[Row]) -> bool:
    low, high = _spread(rows)
    return rows[0].unit != "rate" and low > 0 and high / low > 12


def _line_panel(
    rows: Sequence[Row], colours: Mapping[str, int], *, salt: str, log: bool, limits: tuple[float, float]
) -> Panel:
    ordered = sorted((row for row in rows if row.at is not None), key=lambda row: row.at or 0.0)
    series = []
    for arm in dict.fromkeys(arm for row in ordered for arm in row.values):
        points = [(row.at, arm_interval(row, arm)) for row in ordered if arm in row.values]
        x, found = zip(*points, strict=True)
        series.append(Series.of(arm, x, [i.estimate for i in found], low=[i.low for i in found], high=[i.high for i in found]))
    canvas, axes = _axes()
    places = [row.at for row in ordered]
    _scale(axes.xaxis, log=(places[-1] or 0) > 3 * (places[0] or 1) > 0)
    _scale(axes.yaxis, log=log, rate=rows[0].unit == "rate")
    axes.xaxis.set_major_locator(MaxNLocator(5) if len(places) > 7 else _fixed(places))
    for item in series:
        _draw_series(axes, item, slot=colours[item.name], kind="lines")
    axes.set_ylim(*_padded(limits, log=log))
    axes.set_xlabel(ordered[0].axis, color=_MUTED)
    title = rows[0].group
    return Panel(title, _svg(canvas, f"{salt}-{rows[0].metric}-{title}"), tuple(item.name for item in series))


def _padded(limits: tuple[float, float], *, log: bool) -> tuple[float, float]:
    """Room around the numbers; all panels of a metric have one range, so that they can be compared by eye."""
    if log:
        return limits[0] / 1.15, limits[1] * 1.15
    pad = 0.05 * (limits[1] - limits[0]) or 0.5
    return limits[0] - pad, limits[1] + pad


def _fixed(places: Sequence[float | None]) -> Any:
    from matplotlib.ticker import FixedLocator

    return FixedLocator([place for place in places if place is not None])


def _dot_panel(row: Row, colours: Mapping[str, int], *, salt: str, log: bool, limits: tuple[float, float]) -> Panel:
    canvas, axes = _axes()
    names = list(row.values)
    canvas.set_size_inches(_SIZE[0], 0.75 + 0.25 * len(names))
    for place, arm in enumerate(names):
        found, colour = arm_interval(row, arm), _placeholder(colours[arm])
        axes.plot([found.low, found.high], [place, place], color=colour, lw=2.2, solid_capstyle="round", alpha=0.55)
        axes.plot([found.estimate], [place], _MARKERS[colours[arm]], color=colour, ms=5.5)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")
    axes.spines["left"].set_visible(False)
    _scale(axes.xaxis, log=log, rate=row.unit == "rate")
    axes.tick_params(axis="y", length=0, colors=_INK)
    axes.set_xlim(*_padded(limits, log=log))
    axes.set_xlabel(row.unit if row.unit != "rate" else "", color=_MUTED)
    return Panel(row.condition, _svg(canvas, f"{salt}-{row.metric}-{row.condition}"), tuple(names))


def row_panels(rows: Sequence[Row], colours: Mapping[str, int], *, salt: str = "") -> tuple[Panel, ...]:
    """Draw the rows of one metric: lines over ``at`` where it varies, else dots with intervals; one panel a group.

    Args:
        rows: of one metric.
        colours: arm -> slot, of `slots`.
        salt: makes ids unique on a page.
    """
    log = _logarithmic(rows)
    if not _many(rows):
        return tuple(_dot_panel(row, colours, salt=salt, log=log, limits=_spread(rows)) for row in rows)
    groups = dict.fromkeys(row.group for row in rows)
    return tuple(
        _line_panel([row for row in rows if row.group == group], colours, salt=salt, log=log, limits=_spread(rows))
        for group in groups
    )
