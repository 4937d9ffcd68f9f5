"""Uniform quantisers over groups of input channels (arXiv 2406.17343, section 3.1, equations 2 to 5).

Asymmetric, b bits: s = (max - min) / (2^b - 1), Z = round(-min / s), q = clip(round(x / s) + Z, 0, 2^b - 1).
Symmetric: s = max|x| / (2^(b-1) - 1), q = clip(round(x / s), -2^(b-1), 2^(b-1) - 1), Z = 0. Both: xhat = s (q - Z).
Ranges are extended to contain zero, so that zero is kept and a one-signed group does not saturate.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from jaxtyping import Float, Int16
from torch import Tensor

from .groups import check_group, count_groups

__all__ = [
    "BITS",
    "LEAST_SCALE",
    "Codes",
    "Grid",
    "LayerSpec",
    "Precision",
    "Scope",
    "encode",
    "fake_quantise",
    "group_ranges",
    "quantise",
    "ranges_to_grid",
]

BITS = (2, 3, 4, 5, 6, 8, 16)
LEAST_SCALE = 1e-8
Scope: TypeAlias = Literal["token", "sample"]
Grid: TypeAlias = tuple[Float[Tensor, "*grid cells"], Int16[Tensor, "*grid cells"]]
"""Scale and zero point of every group; broadcastable where it is fixed."""


@dataclass(frozen=True)
class Precision:
    """How many bits a number gets.

    Attributes:
        bits: one of BITS; 16 means not quantised.
        symmetric: codes lie around zero and the zero point is 0.
    """

    bits: int
    symmetric: bool = False

    def __post_init__(self) -> None:
        """Refuse bit widths that nothing here can store."""
        if self.bits not in BITS:
            raise ValueError(f"bits must be one of {', '.join(map(str, BITS))}, got {self.bits}")

    @property
    def quantised(self) -> bool:
        """Whether numbers are rounded at all."""
        return self.bits < 16

    @property
    def lowest(self) -> int:
        """Smallest code."""
        return -(2 ** (self.bits - 1)) if self.symmetric else 0

    @property
    def highest(self) -> int:
        """Largest code."""
        return 2 ** (self.bits - 1) - 1 if self.symmetric else 2**self.bits - 1


@dataclass(frozen=True)
class LayerSpec:
    """How one linear layer is quantised.

    Attributes:
        weight: precision of the weight.
        activation: precision of the input; 16 bits: weight-only.
        group: group size g along the input channels, of weights and activations alike.
        act_scope: one activation range for every token and group, or for every sample and group.
        act_range: measured in the forward pass, or fixed beforehand from calibration data.
    """

    weight: Precision
    activation: Precision
    group: int
    act_scope: Scope = "token"
    act_range: Literal["dynamic", "static"] = "dynamic"

    def __post_init__(self) -> None:
        """Refuse what no layer can have."""
        if self.group < 1:
            raise ValueError(f"group must be at least 1, got {self.group}")
        if self.act_scope not in {"token", "sample"}:
            raise ValueError(f"act_scope must be 'token' or 'sample', got {self.act_scope!r}")
        if self.act_range not in {"dynamic", "static"}:
            raise ValueError(f"act_range must be 'dynamic' or 'static', got {self.act_range!r}")


@dataclass(frozen=True, eq=False)
class Codes:
    """Integers with their scales: x ~ scale (codes - zero), group by group along the last axis.

    Attributes:
        codes: asymmetric 0..2^b-1, symmetric -2^(b-1)..2^(b-1)-1.
        scale: one positive number a group; may be an expanded view.
        zero: zero point of every group, 0 for symmetric codes; may be an expanded view.
        group: group size g.
    """

    codes: Int16[Tensor, "*batch width"]
    scale: Float[Tensor, "*batch groups"]
    zero: Int16[Tensor, "*batch groups"]
    group: int

    def dequantised(self) -> Float[Tensor, "*batch width"]:
        """The numbers that the codes stand for, s (q - Z), in float32."""
        if self.codes.numel() == 0:
            return torch.zeros(self.codes.shape, device=self.codes.device)
        grouped = _grouped(self.codes, self.group) - self.zero[..., None]
        return (self.scale[..., None] * grouped.float()).reshape(self.codes.shape)


def ranges_to_grid(
    low: Float[Tensor, "*batch groups"],
    high: Float[Tensor, "*batch groups"],
    precision: Precision,
    *,
    official: bool = False,
) -> Grid:
    """Scale and zero point for numbers between `low` and `high`.

    Args:
        low: smallest number of every group.
        high: largest number of every group.
        precision: below 16 bits.
        official: the public code's form: ranges are not extended to zero and the zero point is clamped to the codes,
            which saturates one-signed groups.

    Raises:
        ValueError: 16 bits, or ranges that are not finite.
    """
    if not precision.quantised:
        raise ValueError("a precision of 16 bits has no grid: it leaves numbers as they are")
    low, high = low.float(), high.float()
    if precision.symmetric:
        scale = _finite(torch.maximum(low.abs(), high.abs()) / precision.highest).clamp(min=LEAST_SCALE)
        return scale, torch.zeros_like(scale, dtype=torch.int16)
    if not official:
        low, high = low.clamp(max=0), high.clamp(min=0)
    scale = _finite((high - low) / precision.highest).clamp(min=LEAST_SCALE)
    zero = (-low / scale).round().clamp(0, precision.highest)
    return scale, zero.to(torch.int16)


def group_ranges(
    x: Float[Tensor, "*batch width"], group: int, *, scope: Scope = "token"
) -> tuple[Float[Tensor, "*batch groups"], Float[Tensor, "*batch groups"]]:
    """Smallest and largest number of every group.

    Args:
        x: last axis is cut into groups; for scope "sample" the first axis counts samples and those between are tokens.
        group: group size g, divides the width.
        scope: "token": of every piece of every token; "sample": over all tokens of a sample.

    Returns:
        Two tensors with one number a group; for scope "sample" expanded views with one row a token.

    Raises:
        ValueError: the group does not divide the width.
    """
    check_group(x.shape[-1], group)
    low, high = _grouped(x, group).aminmax(dim=-1)
    if scope == "token" or x.ndim < 3:
        return low, high
    tokens = tuple(range(1, x.ndim - 1))
    return low.amin(tokens, keepdim=True).expand_as(low), high.amax(tokens, keepdim=True).expand_as(high)


def encode(x: Float[Tensor, "*batch width"], grid: Grid, precision: Precision, group: int) -> Float[Tensor, "*b width"]:
    """Codes of numbers on a given grid, as whole floats.

    Args:
        x: numbers; those outside the grid are clipped to its ends.
        grid: scale and zero of every group, broadcastable to x's groups.
        precision: below 16 bits.
        group: group size g.
    """
    scale, zero = grid
    codes = (_grouped(x.float(), group) / scale[..., None]).round_().add_(zero[..., None])
    return codes.clamp_(precision.lowest, precision.highest).reshape(x.shape)


def quantise(
    x: Float[Tensor, "*batch width"],
    precision: Precision,
    group: int,
    *,
    scope: Scope = "token",
    grid: Grid | None = None,
) -> Codes:
    """Round numbers to integers, group by group along the last axis.

    Args:
        x: any floating dtype; computed in float32. Empty tensors give empty codes.
        precision: below 16 bits.
        group: group size g, divides the width.
        scope: see `group_ranges`.
        grid: fixed scales and zero points, broadcastable to [*batch, groups]; measured from x when not given.

    Raises:
        ValueError: 16 bits, a group that does not divide the width, or numbers that are not finite.
    """
    groups = count_groups(x.shape[-1], group)
    if x.numel() == 0:
        empty = torch.zeros((*x.shape[:-1], groups), device=x.device)
        return Codes(x.to(torch.int16), empty, empty.to(torch.int16), group)
    found = _grid(x, precision, group, scope) if grid is None else _finite_on(x, grid)
    codes = encode(x, found, precision, group)
    scale, zero = (part.expand(*x.shape[:-1], groups) for part in found)
    return Codes(codes.to(torch.int16), scale, zero, group)


def fake_quantise(
    x: Float[Tensor, "*batch width"],
    precision: Precision,
    group: int,
    *,
    scope: Scope = "token",
    grid: Grid | None = None,
) -> Float[Tensor, "*batch width"]:
    """Quantise and dequantise in one go, bit-identical to ``quantise(...).dequantised()``; 16 bits return x itself.

    Args:
        x: numbers.
        precision: of the codes in between.
        group: group size g, divides the width.
        scope: see `group_ranges`.
        grid: see `quantise`.

    Raises:
        ValueError: see `quantise`.
    """
    if not precision.quantised:
        return x
    check_group(x.shape[-1], group)
    if x.numel() == 0:
        return x
    found = _grid(x, precision, group, scope) if grid is None else _finite_on(x, grid)
    codes = encode(x, found, precision, group)
    scale, zero = found
    return (_grouped(codes, group).sub_(zero[..., None]) * scale[..., None]).reshape(x.shape).to(x.dtype)


def _grouped(x: Tensor, group: int) -> Tensor:
    return x.reshape(*x.shape[:-1], x.shape[-1] // group, group)


def _grid(x: Tensor, precision: Precision, group: int, scope: Scope) -> Grid:
    low, high = group_ranges(x, group, scope=scope)
    return ranges_to_grid(low, high, precision)


def _finite_on(x: Tensor, grid: Grid) -> Grid:
    """A fixed grid would clip an infinity to its end and hide it."""
    _finite(x)
    return grid


def _finite(numbers: Tensor) -> Tensor:
    if not torch.isfinite(numbers).all():
        raise ValueError("numbers to quantise must be finite, got NaN or infinity: look at the layer they came from")
    return numbers
