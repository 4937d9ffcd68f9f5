"""Figures as data: the numbers are kept, the drawing is made when a page is written.

A figure of numbers follows the page into its dark mode and can be drawn again years later. Whatever cannot be said
with series is a picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any, Literal

__all__ = ["Figure", "Series"]


@dataclass(frozen=True)
class Series:
    """One line, cloud or set of bars.

    Attributes:
        name: of an arm (it then has the arm's colour everywhere), or any label.
        x: horizontal positions.
        y: values.
        low: lower ends of intervals, or empty.
        high: upper ends of intervals, or empty.
    """

    name: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        """Refuse a series that cannot be drawn."""
        lengths = {len(self.x), len(self.y), *(len(ends) for ends in (self.low, self.high) if ends)}
        if len(lengths) != 1 or bool(self.low) != bool(self.high):
            raise ValueError(f"x, y, low and high of series {self.name!r} must be of one length, got {sorted(lengths)}")

    @classmethod
    def of(cls, name: str, x: Any, y: Any, *, low: Any = (), high: Any = ()) -> Series:
        """Take numbers from tensors, arrays or lists.

        Args:
            name: label.
            x: horizontal positions.
            y: values.
            low: lower ends of intervals.
            high: upper ends of intervals.
        """
        plain = [tuple(float(value) for value in numbers) for numbers in (x, y, low, high)]
        return cls(name, plain[0], plain[1], plain[2], plain[3])


@dataclass(frozen=True)
class Figure:
    """A plot, or a picture.

    Attributes:
        title: short, unique in the experiment.
        caption: what to see in it, one or two sentences.
        series: numbers to draw.
        kind: ``"lines"`` (with bands), ``"points"`` (a scatter) or ``"bars"``.
        x_label: with unit.
        y_label: with unit.
        x_log: logarithmic horizontal axis.
        y_log: logarithmic vertical axis.
        ticks: names at x = 0, 1, 2, ... instead of numbers.
        png: an encoded picture instead of series.
    """

    title: str
    caption: str = ""
    series: tuple[Series, ...] = ()
    kind: Literal["lines", "points", "bars"] = "lines"
    x_label: str = ""
    y_label: str = ""
    x_log: bool = False
    y_log: bool = False
    ticks: tuple[str, ...] = ()
    png: bytes = b""

    def __post_init__(self) -> None:
        """Refuse a figure that shows nothing, or two things."""
        if bool(self.series) == bool(self.png):
            raise ValueError(f"figure {self.title!r} must have either series or a picture")

    @classmethod
    def lines(cls, title: str, series: Sequence[Series], *, caption: str = "", **axes: Any) -> Figure:
        """Draw lines.

        Args:
            title: short and unique.
            series: what to draw.
            caption: what to see in it.
            **axes: ``x_label``, ``y_label``, ``x_log``, ``y_log``, ``ticks``, ``kind``.
        """
        return cls(title, caption, tuple(series), **axes)

    @classmethod
    def from_matplotlib(cls, title: str, figure: Any, *, caption: str = "") -> Figure:
        """Keep a matplotlib figure as a picture; it stands on white also on a dark page.

        Args:
            title: short and unique.
            figure: a `matplotlib.figure.Figure`.
            caption: what to see in it.
        """
        buffer = BytesIO()
        figure.savefig(buffer, format="png", dpi=160, facecolor="white", metadata={"Software": None})
        return cls(title, caption, png=buffer.getvalue())
