"""Plots of rows and figures: one small SVG a panel, drawn by matplotlib, coloured by the page.

Every colour is drawn as a placeholder and replaced by a CSS variable with a fallback, so that a panel inlined in a
page follows its light or dark theme, and the same panel as a file of its own still has colours. Text stays text. One
panel is as wide as a telephone: a page puts panels side by side where there is room.
"""

from __future__ import annotations

import re
import warnings
import zlib
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

__all__ = ["COLOURS", "Panel", "colour", "figure_panel", "row_panels", "slots"]

# The method first (burnished copper), then baselines and ablations; the last is for oracles. Light-theme values;
# style.css has the dark ones.
COLOURS = ("#b4481e", "#2f6690", "#5b8c5a", "#8a5a9e", "#b08a1e", "#3a8f8f", "#a34a6b", "#6b705c", "#7d7468")
_ROLES = {"#010101": ("ink", "#2b2622"), "#010102": ("muted", "#6f665c"), "#010103": ("grid", "#ddd5c8"),
          "#010104": ("panel", "#fffdf9")}  # fmt: skip
_INK, _MUTED, _GRID, _PAPER = _ROLES
_ORACLE = len(COLOURS) - 1
_MARKERS = "osD^vPXp*"
_FEW = 3
_SMALL, _WIDE, _LARGE = (2.85, 2.1), 3.3, (4.9, 3.0)
# Labels are words, not formulas: a dollar sign stays one.
_RC = {"svg.fonttype": "none", "font.family": "sans-serif", "font.sans-serif": ["DejaVu Sans"], "font.size": 8.5,
       "axes.labelsize": 8.5, "xtick.labelsize": 8.5, "ytick.labelsize": 8.5, "axes.labelcolor": _MUTED,
       "text.parse_math": False}  # fmt: skip


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

    @property
    def file(self) -> str:
        """The plot as a file of its own, on paper: a page that shows a file cannot colour what is in it."""
        return self.svg.replace("<svg ", '<svg style="background: #fffdf9" ', 1)


def slots(evidence: Evidence) -> dict[str, int]:
    """Give every arm, and every other label that a figure uses, its colour: the same on the whole page.

    Args:
        evidence: of one method.
    """
    found = {arm.name: _ORACLE for arm in evidence.arms if arm.kind == "oracle"}
    ranked = sorted(evidence.arms, key=lambda arm: ("method", "baseline", "ablation", "oracle").index(arm.kind))
    labels = [arm.name for arm in ranked if arm.kind != "oracle"]
    labels += [series.name for figure in evidence.figures for series in figure.series]
    fresh = [label for label in dict.fromkeys(labels) if label not in found]
    for place, label in enumerate(fresh):
        found[label] = place if place < _ORACLE else _ORACLE + 1 + (place - _ORACLE) % (_ORACLE - 1)
    return found


def colour(slot: int) -> int:
    """Number of the colour of a slot: the slots after the oracle's use the baselines' colours again, hollow and dashed.

    Args:
        slot: of `slots`.
    """
    return slot if slot <= _ORACLE else slot - _ORACLE


def _placeholder(slot: int) -> str:
    return f"#0102{colour(slot):02x}"


def _look(slot: int) -> dict[str, Any]:
    """Marker of a slot; hollow ones repeat a colour."""
    paint = _placeholder(slot)
    face = paint if slot <= _ORACLE else _PAPER
    return {"marker": _MARKERS[colour(slot)], "color": paint, "markerfacecolor": face, "markeredgecolor": paint}


def _axes(size: tuple[float, float]) -> tuple[Canvas, Any]:
    canvas = Canvas(figsize=size, layout="constrained", facecolor="none")
    axes = canvas.add_subplot(facecolor="none")
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
    with rc_context({"svg.hashsalt": salt}), warnings.catch_warnings():
        # The browser draws the words, with its fonts; matplotlib only measures them with its own.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font", category=UserWarning)
        FigureCanvasSVG(canvas).print_svg(
            buffer, metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
        )
    text = buffer.getvalue()[buffer.getvalue().index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    # A style element would style the whole page around the plot: its one rule becomes two inherited attributes.
    text = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>\s*", "", text, count=1, flags=re.DOTALL)
    text = text.replace("<svg ", '<svg stroke-linejoin="round" stroke-linecap="butt" ', 1)
    prefix = f"p{zlib.crc32(salt.encode()):08x}"
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
        axis._set_axes_scale("log")
        axis.set_major_locator(LogLocator(10, subs=(1, 2, 5), numticks=8))
        axis.set_minor_locator(NullLocator())
        axis.set_minor_formatter(NullFormatter())
    else:
        axis.set_major_locator(MaxNLocator(5))
    axis.set_major_formatter(FuncFormatter(partial(_tick, rate=rate)))


def _tick(value: Any, _: object = None, *, rate: bool = False) -> str:
    text = f"{value * 100:.4g} %" if rate else f"{value:.4g}"
    return text.replace("-", "\N{MINUS SIGN}")


def _draw_series(axes: Any, series: Series, *, slot: int) -> None:
    """A line with its band; the method's own lies on top, thicker."""
    look, first = _look(slot), slot == 0
    order = 5 if first else 3
    if len(series.x) > 24:
        look["marker"] = None
    style = "-" if slot < _ORACLE else ":" if slot == _ORACLE else "--"
    axes.plot(series.x, series.y, style, **look, ms=4.2 if first else 3.4, lw=2.0 if first else 1.2, zorder=order)
    if series.low:
        axes.fill_between(
            series.x, series.low, series.high, color=look["color"], alpha=0.16, linewidth=0, zorder=order - 1
        )


def _draw_points(axes: Any, series: Series, *, slot: int) -> None:
    axes.scatter(
        series.x, series.y, s=7, color=_placeholder(slot), alpha=0.6, linewidths=0, zorder=5 if slot == 0 else 3
    )


def _draw_bars(axes: Any, figure: Figure, colours: Mapping[str, int]) -> None:
    axes.grid(visible=False, axis="x")
    width = 0.8 / len(figure.series)
    for index, series in enumerate(figure.series):
        places = [x + (index - (len(figure.series) - 1) / 2) * width for x in series.x]
        axes.bar(places, series.y, width=width * 0.92, color=_placeholder(colours[series.name]), zorder=3)
        if series.low:
            axes.vlines(places, series.low, series.high, color=_INK, linewidth=1, zorder=6)


@rc_context(_RC)
def figure_panel(figure: Figure, colours: Mapping[str, int], *, salt: str = "", rate: bool = False) -> Panel:
    """Draw a figure of series.

    Args:
        figure: with series.
        colours: label -> slot, of `slots`.
        salt: makes ids unique on a page; the figure's title is added.
        rate: print the vertical axis in per cent.
    """
    canvas, axes = _axes(_LARGE)
    _scale(axes.xaxis, log=figure.x_log)
    _scale(axes.yaxis, log=figure.y_log, rate=rate)
    if figure.kind == "bars":
        _draw_bars(axes, figure, colours)
    for series in figure.series if figure.kind != "bars" else ():
        (_draw_points if figure.kind == "points" else _draw_series)(axes, series, slot=colours[series.name])
    if figure.ticks:
        axes.set_xticks(range(len(figure.ticks)), figure.ticks)
    axes.set_xlabel(figure.x_label)
    axes.set_ylabel(figure.y_label)
    return Panel(figure.title, _svg(canvas, f"{salt}-{figure.title}"), tuple(series.name for series in figure.series))


def _banded(arm: str, colours: Mapping[str, int], count: int) -> bool:
    """Whether an arm's interval is drawn: of many that overlap only the method's, the others stand in the table."""
    return count <= _FEW or colours[arm] == 0


def _spread(rows: Sequence[Row], colours: Mapping[str, int]) -> tuple[float, float]:
    """Least and greatest number that is drawn."""
    ends = [
        end
        for row in rows
        for arm in row.values
        for found in [arm_interval(row, arm)]
        for end in ((found.low, found.high) if _banded(arm, colours, len(row.values)) else (found.estimate,))
    ]
    return min(ends), max(ends)


def _logarithmic(rows: Sequence[Row]) -> bool:
    intervals = [arm_interval(row, arm) for row in rows for arm in row.values]
    low, high = min(item.low for item in intervals), max(item.high for item in intervals)
    return rows[0].unit != "rate" and low > 0 and high / low > 12


def _line(ordered: Sequence[Row], arm: str, *, band: bool) -> Series:
    points = [(row.at, arm_interval(row, arm)) for row in ordered if arm in row.values]
    x, found = zip(*points, strict=True)
    low, high = [item.low for item in found], [item.high for item in found]
    return Series.of(arm, x, [item.estimate for item in found], low=low if band else (), high=high if band else ())


@rc_context(_RC)
def _line_panel(
    rows: Sequence[Row], colours: Mapping[str, int], *, salt: str, log: bool, limits: tuple[float, float]
) -> Panel:
    ordered = sorted((row for row in rows if row.at is not None), key=lambda row: row.at or 0.0)
    arms = list(dict.fromkeys(arm for row in ordered for arm in row.values))
    series = [_line(ordered, arm, band=_banded(arm, colours, len(arms))) for arm in arms]
    canvas, axes = _axes(_SMALL)
    places = [row.at for row in ordered]
    _scale(axes.xaxis, log=(places[-1] or 0) > 3 * (places[0] or 1) > 0)
    _scale(axes.yaxis, log=log, rate=rows[0].unit == "rate")
    axes.xaxis.set_major_locator(MaxNLocator(5) if len(places) > 7 else _fixed(places))
    for item in series:
        _draw_series(axes, item, slot=colours[item.name])
    axes.set_ylim(*_padded(limits, log=log, rate=rows[0].unit == "rate"))
    axes.set_xlabel(ordered[0].axis)
    title = rows[0].group
    return Panel(title, _svg(canvas, f"{salt}-{rows[0].metric}-{title}"), tuple(item.name for item in series))


def _padded(limits: tuple[float, float], *, log: bool, rate: bool) -> tuple[float, float]:
    """Room around the numbers; all panels of a metric have one range, so that they can be compared by eye."""
    low, high = limits
    if log:
        return low / 1.15, high * 1.15
    pad = 0.05 * (high - low) or (0.1 if rate else 0.5)
    return (max(low - pad, -0.02), min(high + pad, 1.02)) if rate else (low - pad, high + pad)


def _fixed(places: Sequence[float | None]) -> Any:
    from matplotlib.ticker import FixedLocator

    return FixedLocator([place for place in places if place is not None])


@rc_context(_RC)
def _dot_panel(row: Row, colours: Mapping[str, int], *, salt: str, log: bool, limits: tuple[float, float]) -> Panel:
    names = list(row.values)
    canvas, axes = _axes((_WIDE, 0.7 + 0.22 * len(names)))
    for place, arm in enumerate(names):
        found, look = arm_interval(row, arm), _look(colours[arm])
        axes.plot(
            [found.low, found.high], [place, place], color=look["color"], lw=2.2, solid_capstyle="round", alpha=0.55
        )
        axes.plot([found.estimate], [place], **look, ms=5.5)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")
    axes.spines["left"].set_visible(False)
    _scale(axes.xaxis, log=log, rate=row.unit == "rate")
    axes.tick_params(axis="y", length=0, colors=_INK)
    axes.set_xlim(*_padded(limits, log=log, rate=row.unit == "rate"))
    axes.set_xlabel(row.unit if row.unit != "rate" else "")
    return Panel(row.condition, _svg(canvas, f"{salt}-{row.metric}-{row.condition}"), tuple(names))


def row_panels(rows: Sequence[Row], colours: Mapping[str, int], *, salt: str = "") -> tuple[Panel, ...]:
    """Draw the rows of one metric: lines over ``at`` where it varies, else dots with intervals; one panel a group.

    Args:
        rows: of one metric.
        colours: arm -> slot, of `slots`.
        salt: makes ids unique on a page.
    """
    log = _logarithmic(rows)
    panels: list[Panel] = []
    for group in dict.fromkeys(row.group for row in rows):
        members = [row for row in rows if row.group == group]
        if len({row.at for row in members if row.at is not None}) > 1:
            panels.append(_line_panel(members, colours, salt=salt, log=log, limits=_spread(rows, colours)))
        else:
            whole = _spread(rows, dict.fromkeys(colours, 0))
            panels += [_dot_panel(row, colours, salt=salt, log=log, limits=whole) for row in members]
    return tuple(panels)
