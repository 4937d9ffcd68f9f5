"""Numbers as they are printed: as many digits as the interval warrants, a true minus sign, per cent for rates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from mezzotint.metrics.bootstrap import Interval

__all__ = ["Printed", "common_decimals", "print_duration", "print_effect", "print_interval"]


@dataclass(frozen=True)
class Printed:
    """An interval in words.

    Attributes:
        value: the estimate with its unit.
        span: the interval, such as ``"84.0 to 90.6"``.
    """

    value: str
    span: str

    def __str__(self) -> str:
        return f"{self.value} [{self.span}]" if self.span else self.value


def _decimals(interval: Interval) -> int:
    """Digits behind the point: two significant digits of the half width, else three of the value."""
    half = (interval.high - interval.low) / 2
    scale = half if half > 0 else abs(interval.estimate) / 10
    return 0 if scale == 0 else max(0, min(6, 1 - math.floor(math.log10(scale))))


def _number(value: float, decimals: int, *, signed: bool = False) -> str:
    if value != 0 and not 1e-5 <= abs(value) < 1e7:
        text = f"{value:+.2e}" if signed else f"{value:.2e}"
    else:
        rounded = round(value, decimals) + 0.0  # no negative zero
        text = f"{rounded:+,.{decimals}f}" if signed and rounded else f"{rounded:,.{decimals}f}"
    return text.replace("-", "\N{MINUS SIGN}").replace(",", "\N{THIN SPACE}")


def _scaled(interval: Interval, factor: float) -> Interval:
    return Interval(interval.estimate * factor, interval.low * factor, interval.high * factor)


def _print(interval: Interval, suffix: str, *, signed: bool, decimals: int) -> Printed:
    value, low, high = (_number(x, decimals, signed=signed) for x in (interval.estimate, interval.low, interval.high))
    return Printed(f"{value}\N{NO-BREAK SPACE}{suffix}" if suffix else value, f"{low} to {high}")


def print_interval(interval: Interval, unit: str = "", *, decimals: int | None = None) -> Printed:
    """Print a mean.

    Args:
        interval: the mean and its interval.
        unit: as in `Row`; ``"rate"`` prints per cent with one decimal.
        decimals: digits behind the point, of `common_decimals`; as the interval warrants when ``None``.
    """
    if unit == "rate":
        return _print(_scaled(interval, 100), "%", signed=False, decimals=1)
    return _print(interval, unit, signed=False, decimals=_decimals(interval) if decimals is None else decimals)


def common_decimals(intervals: Sequence[Interval]) -> int | None:
    """Digits behind the point for numbers side by side; ``None`` if their precisions differ too much.

    Args:
        intervals: at least one.
    """
    wanted = [_decimals(interval) for interval in intervals]
    return min(wanted) if max(wanted) - min(wanted) <= 1 else None


def print_effect(interval: Interval, unit: str = "", *, relative: bool = False) -> Printed:
    """Print a difference, always with its sign.

    Args:
        interval: the difference (or ratio - 1) and its interval.
        unit: of the metric; differences of rates are points.
        relative: the difference is a ratio - 1, printed in per cent.
    """
    if relative or unit == "rate":
        return _print(_scaled(interval, 100), "%" if relative else "points", signed=True, decimals=1)
    return _print(interval, unit, signed=True, decimals=_decimals(interval))


def print_duration(seconds: float) -> str:
    """Print a wall time.

    Args:
        seconds: 0 or more.
    """
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
