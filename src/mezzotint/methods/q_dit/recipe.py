"""A recipe: everything that says how a network is quantised, and the named ones that the method is compared with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

from .gptq import DAMPING
from .groups import DEFAULT, check_group, largest_group
from .layers import Target
from .quantiser import LayerSpec, Precision, Scope
from .ranges import Ranges

__all__ = ["GroupChoice", "Recipe", "layer_specs", "named_recipes"]

W4, A8 = Precision(4), Precision(8)
GroupChoice: TypeAlias = int | Literal["row", "auto"] | Mapping[str, int]
"""One size; "row": the whole width; "auto": the largest divisor of each width up to 128; or a size by layer name."""


@dataclass(frozen=True)
class Recipe:
    """How to quantise.

    Attributes:
        weights: precision of weights, below 16 bits.
        activations: precision of inputs.
        group: see GroupChoice; a mapping need not name modulation layers.
        method: "rtn" rounds to nearest, "gptq" makes up for the rounding.
        ranges: of weights, see `ranges.weight_grid`.
        clip_ratio: of weights, round-to-nearest alone.
        act_scope: see LayerSpec.
        act_range: see LayerSpec.
        static: how static ranges are found: running averages, or least squared error (PTQ4DM).
        per_tensor: one static range for a layer's whole input, whatever the group.
        smoothing: SmoothQuant's alpha; None: none.
        modulation: whether adaLN layers are quantised (weights alone).
        damping: of GPTQ.
        official_stale_params: of GPTQ, see there.
    """

    weights: Precision = W4
    activations: Precision = A8
    group: GroupChoice = DEFAULT
    method: Literal["rtn", "gptq"] = "gptq"
    ranges: Ranges = "max"
    clip_ratio: float = 1.0
    act_scope: Scope = "token"
    act_range: Literal["dynamic", "static"] = "dynamic"
    static: Literal["average", "error"] = "average"
    per_tensor: bool = False
    smoothing: float | None = None
    modulation: bool = True
    damping: float = DAMPING
    official_stale_params: bool = False

    def __post_init__(self) -> None:
        """Refuse combinations that mean nothing."""
        if not self.weights.quantised:
            raise ValueError("weights must have fewer than 16 bits: at 16 nothing is quantised")
        if self.method not in {"rtn", "gptq"}:
            raise ValueError(f"method must be 'rtn' or 'gptq', got {self.method!r}")
        if self.per_tensor and self.act_range != "static":
            raise ValueError("per_tensor ranges are static: set act_range='static'")
        if self.smoothing is not None and not 0 <= self.smoothing <= 1:
            raise ValueError(f"smoothing must lie in 0..1, got {self.smoothing}")

    @property
    def needs_calibration(self) -> bool:
        """Whether calibration data decide anything."""
        static = self.act_range == "static" and self.activations.quantised
        return self.method == "gptq" or static or self.smoothing is not None


def layer_specs(targets: Iterable[Target], recipe: Recipe) -> dict[str, LayerSpec]:
    """How each layer is quantised.

    Args:
        targets: layers.
        recipe: how.

    Raises:
        ValueError: a group that does not divide a layer's width, or a mapping that leaves a layer out.
    """
    specs = {}
    for target in targets:
        group = _group(target, recipe.group)
        check_group(target.width, group, target.name)
        inputs = Precision(16) if target.modulation else recipe.activations
        dynamic = target.modulation or not inputs.quantised
        specs[target.name] = LayerSpec(
            weight=recipe.weights,
            activation=inputs,
            group=group,
            act_scope=recipe.act_scope,
            act_range="dynamic" if dynamic else recipe.act_range,
        )
    return specs


def _group(target: Target, choice: GroupChoice) -> int:
    if choice == "row":
        return target.width
    if target.modulation or choice == "auto":
        return largest_group(target.width)
    if isinstance(choice, Mapping):
        if target.name not in choice:
            raise ValueError(f"group sizes must be given for every layer; {target.name!r} is missing")
        return choice[target.name]
    if not isinstance(choice, int):
        raise ValueError(f"group must be a number, 'auto', 'row' or sizes by layer, got {choice!r}")
    return choice


def named_recipes(weights: int = 4, activations: int = 8, *, group: GroupChoice = DEFAULT) -> dict[str, Recipe]:
    """The method and its baselines by name, as the specification of each defines them.

    Args:
        weights: bits.
        activations: bits.
        group: of the grouped ones.
    """
    row = Recipe(Precision(weights), Precision(activations), group="row", method="rtn")
    grouped = replace(row, group=group)
    static: dict[str, Any] = {"act_range": "static", "per_tensor": True}
    return {
        "RTN-T": replace(row, **static),
        "RTN-D": row,
        "RTN-g static": replace(grouped, act_range="static"),
        "RTN-g": grouped,
        "GPTQ-row": replace(row, method="gptq"),
        "GPTQ-g": replace(grouped, method="gptq"),
        "SmoothQuant": replace(row, smoothing=0.5),
        "PTQ4DM": replace(row, **static, static="error"),
        "G4W+P4A": replace(grouped, method="gptq", **static, static="error"),
    }
