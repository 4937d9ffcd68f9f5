"""Ranges of weights and static ranges of activations (arXiv 2406.17343, section 3.1, and the public code's options).

Weights: the extremes of a group, extremes times a clip ratio, or the shrunken range with the least error. Static
activation ranges: running averages over calibration batches, or the range with the least error on kept samples.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from .groups import count_groups
from .quantiser import Grid, Precision, fake_quantise, group_ranges, ranges_to_grid

__all__ = ["OFFICIAL_SHRINK", "ErrorRange", "Ranges", "RunningRange", "StaticRange", "least_error_grid", "weight_grid"]

Ranges: TypeAlias = Literal["max", "mse"]
OFFICIAL_SHRINK = tuple(1 - 0.001 * i for i in range(100))
"""Shrink factors that the public code tries."""
KEEP = 0.9
"""Weight of the past in the running average of static ranges."""


def weight_grid(
    weight: Float[Tensor, "rows width"],
    precision: Precision,
    group: int,
    *,
    ranges: Ranges = "max",
    clip_ratio: float = 1.0,
    official: bool = False,
) -> Grid:
    """Scale and zero point of every row and group of a weight.

    Args:
        weight: rows are output channels.
        precision: below 16 bits.
        group: group size g, divides the width.
        ranges: "max": the extremes; "mse": the shrunken range with the least mean |w - what|^2.4.
        clip_ratio: multiplies the extremes, in (0, 1].
        official: see `ranges_to_grid`.

    Raises:
        ValueError: a clip ratio outside its range, an unknown rule; see also `ranges_to_grid`.
    """
    if not 0 < clip_ratio <= 1:
        raise ValueError(f"clip_ratio must lie in (0, 1], got {clip_ratio}")
    if ranges not in {"max", "mse"}:
        raise ValueError(f"ranges must be 'max' or 'mse', got {ranges!r}")
    low, high = group_ranges(weight, group)
    low, high = clip_ratio * low, clip_ratio * high
    if ranges == "max":
        return ranges_to_grid(low, high, precision, official=official)
    return least_error_grid(weight, (low, high), precision, group, official=official)


def least_error_grid(
    x: Float[Tensor, "*batch width"],
    extremes: tuple[Tensor, Tensor],
    precision: Precision,
    group: int,
    *,
    shrink: Iterable[float] = OFFICIAL_SHRINK,
    power: float = 2.4,
    official: bool = False,
) -> Grid:
    """For every group, the shrunken range whose codes err least in the mean of |x - xhat|^power; ties keep the first.

    Args:
        x: numbers.
        extremes: smallest and largest number of every group.
        precision: below 16 bits.
        group: group size g.
        shrink: factors to try, in order.
        power: exponent of the error.
        official: see `ranges_to_grid`.
    """
    low, high = extremes
    best: tuple[Tensor, Tensor, Tensor] | None = None
    for factor in shrink:
        scale, zero = ranges_to_grid(factor * low, factor * high, precision, official=official)
        gap = fake_quantise(x, precision, group, grid=(scale, zero)).float() - x.float()
        error = gap.reshape(*scale.shape, group).abs().pow(power).mean(-1)
        if best is None:
            best = (error, scale, zero)
            continue
        better = error < best[0]
        pairs = zip((error, scale, zero), best, strict=True)
        best = tuple(torch.where(better, new, old) for new, old in pairs)  # type: ignore[assignment]
    assert best is not None, "shrink must not be empty"
    return best[1], best[2]


@dataclass
class RunningRange:
    """Static range by running averages of batch extremes, over all tokens, one a group.

    Attributes:
        group: group size g; the whole width gives the range of the whole tensor.
        keep: weight of the past.
    """

    group: int
    keep: float = KEEP
    low: Float[Tensor, " groups"] | None = None
    high: Float[Tensor, " groups"] | None = None

    def update(self, x: Float[Tensor, "*batch width"]) -> None:
        """Take in one batch."""
        lows, highs = group_ranges(x, self.group)
        low, high = lows.flatten(0, -2).amin(0), highs.flatten(0, -2).amax(0)
        self.low = low if self.low is None else self.keep * self.low + (1 - self.keep) * low
        self.high = high if self.high is None else self.keep * self.high + (1 - self.keep) * high

    def grid(self, precision: Precision) -> Grid:
        """Scale and zero point of every group.

        Raises:
            ValueError: no batch was taken in.
        """
        if self.low is None or self.high is None:
            raise ValueError("static ranges need calibration data: no batch was seen")
        return ranges_to_grid(self.low, self.high, precision)


class ErrorRange:
    """Static range with the least squared error on kept samples (PTQ4DM, arXiv 2211.15736, section 3.3).

    Args:
        group: group size g; the whole width gives the range of the whole tensor.
        rows: tokens kept of every batch, evenly spaced.
    """

    def __init__(self, group: int, rows: int = 256) -> None:
        self.group = group
        self.rows = rows
        self._kept: list[Tensor] = []

    def update(self, x: Float[Tensor, "*batch width"]) -> None:
        """Take in one batch."""
        flat = x.detach().float().flatten(0, -2)
        self._kept.append(flat[:: max(1, len(flat) // self.rows)].clone())

    def grid(self, precision: Precision) -> Grid:
        """Scale and zero point of every group.

        Raises:
            ValueError: no batch was taken in.
        """
        if not self._kept:
            raise ValueError("static ranges need calibration data: no batch was seen")
        table = torch.cat(self._kept)
        groups = count_groups(table.shape[1], self.group)
        # One row a group, holding that group's numbers of all tokens.
        rows = table.reshape(len(table), groups, self.group).transpose(0, 1).reshape(groups, -1)
        extremes = group_ranges(rows, rows.shape[1])
        shrink = [1 - 0.01 * i for i in range(80)]
        scale, zero = least_error_grid(rows, extremes, precision, rows.shape[1], shrink=shrink, power=2.0)
        return scale[:, 0], zero[:, 0]


StaticRange: TypeAlias = RunningRange | ErrorRange
