"""The settings of focused cross-attention, and what they may be. Importing it imports no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

__all__ = ["Mode", "Options", "Several", "Variant"]

Mode = Literal["averaged", "online", "online_signed", "online_strict", "oracle"]
Several = Literal["union", "sum"]
Variant = Literal["disclip", "disclip-leaf", "disclip-avg"]


@dataclass(frozen=True, kw_only=True)
class Options:
    """Settings of `focus`, which explains them.

    Raises:
        ValueError: one is outside its range.
    """

    mode: Mode = "averaged"
    tau: float = 0.6
    mask_uncond: bool = False
    min_keep: int = 1
    steps: tuple[float, float] = (0.0, 1.0)
    several: Several = "union"
    mask_value: float = -50.0

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        if self.mode not in get_args(Mode):
            raise ValueError(f"mode must be one of {', '.join(get_args(Mode))}, got {self.mode!r}")
        if self.several not in get_args(Several):
            raise ValueError(f"several must be union or sum, got {self.several!r}")
        if not 0 <= self.tau < 1:
            raise ValueError(f"tau must lie in [0, 1), got {self.tau}")
        if self.min_keep < 0:
            raise ValueError(f"min_keep must be at least 0, got {self.min_keep}")
        if not 0 <= self.steps[0] < self.steps[1] <= 1:
            raise ValueError(f"steps must be an interval inside (0.0, 1.0), got {self.steps}")
        if not self.mask_value < 0:
            raise ValueError(f"mask_value must be negative, such as -50 or -inf, got {self.mask_value}")
        if self.mode == "online_strict" and math.isinf(self.mask_value):
            raise ValueError("mask_value must be finite in mode online_strict, which may close every token of a row")

    @property
    def masked_branches(self) -> tuple[str, ...]:
        """Guidance branches whose rows are masked; the released scripts mask both."""
        return ("cond", "uncond") if self.mask_uncond or self.mode == "online_strict" else ("cond",)
