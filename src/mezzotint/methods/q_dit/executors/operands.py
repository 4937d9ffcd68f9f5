"""Operands of an integer linear layer, and what its zero points amount to (arXiv 2406.17343, exact expansion).

With x ~ sX (qX - ZX) and W ~ sW (qW - ZW), group by group u, and P_u = qX[:, u] qW[:, u]^T in integers,

    Y = sum_u diag(sX_u) P_u diag(sW_u) - (sX . ZX) (sW . CW)^T - (sX . D) (sW . ZW)^T + b,    D = CX - g ZX,

where CX and CW are sums of codes over a group. The zero points thus cost two matrix products of inner size K / g, and
one when the weight is symmetric. Activations are held unsigned and weights signed, as integer units want them: codes
and zero points are moved together, which leaves their difference, and so x and W, as they are. The differences of up to
7 bits are signed bytes themselves, so that only weights of 8 bits have zero points left.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int8, Int32, UInt8
from torch import Tensor

from mezzotint.methods.q_dit.packing import StoredWeight
from mezzotint.methods.q_dit.quantiser import Codes, Grid, LayerSpec, Precision, quantise

__all__ = ["IntegerInput", "IntegerWeight", "encode_input", "zero_point_terms"]

_BYTE_BITS = 8


@dataclass(frozen=True, eq=False)
class IntegerInput:
    """Activations as unsigned codes.

    Attributes:
        codes: 0..255.
        scale: sX, one a token and group.
        zero: ZX, moved with the codes.
        total: D, the sum of codes minus zero points over a group.
        group: group size g.
    """

    codes: UInt8[Tensor, "tokens width"]
    scale: Float[Tensor, "tokens groups"]
    zero: Int32[Tensor, "tokens groups"]
    total: Int32[Tensor, "tokens groups"]
    group: int

    @classmethod
    def of(cls, codes: Codes, precision: Precision) -> IntegerInput:
        """Operands from codes of any leading shape."""
        width, groups = codes.codes.shape[-1], codes.scale.shape[-1]
        unsigned = (codes.codes.reshape(-1, width) - precision.lowest).contiguous()
        zero = codes.zero.reshape(-1, groups).int() - precision.lowest
        total = unsigned.unflatten(-1, (groups, codes.group)).sum(-1, dtype=torch.int32) - codes.group * zero
        scale = codes.scale.reshape(-1, groups).contiguous()
        return cls(unsigned.to(torch.uint8), scale, zero.contiguous(), total, codes.group)


@dataclass(frozen=True, eq=False)
class IntegerWeight:
    """A weight as signed codes.

    Attributes:
        codes: -128..127.
        scale: sW, one a row and group.
        zero: ZW, moved with the codes; None when all are zero.
        total: CW, the sum of codes over a group.
    """

    codes: Int8[Tensor, "rows width"]
    scale: Float[Tensor, "rows groups"]
    zero: Int32[Tensor, "rows groups"] | None
    total: Int32[Tensor, "rows groups"]

    @classmethod
    def of(cls, weight: StoredWeight) -> IntegerWeight:
        """Operands from a stored weight."""
        found = weight.codes()
        byte = weight.precision.bits == _BYTE_BITS
        moved = centre(weight.precision) if byte else found.zero.repeat_interleave(weight.group, dim=-1)
        signed = (found.codes - moved).to(torch.int8)
        total = signed.unflatten(-1, (-1, weight.group)).sum(-1, dtype=torch.int32)
        return cls(signed, found.scale, centred_zero(weight) if byte else None, total)


def centre(precision: Precision) -> int:
    """What is taken from a weight's codes to make them signed."""
    return 0 if precision.symmetric else 2 ** (precision.bits - 1)


def centred_zero(weight: StoredWeight) -> Int32[Tensor, "rows groups"] | None:
    """Zero points of the signed codes; None when all are zero."""
    return None if weight.zero is None else weight.zero_points().int() - centre(weight.precision)


def encode_input(x: Float[Tensor, "*batch width"], spec: LayerSpec, grid: Grid | None) -> IntegerInput:
    """Quantise activations as a layer asks.

    Args:
        x: float32 input of the layer.
        spec: of the layer; activations of 8 bits or fewer.
        grid: the fixed ranges of a static layer.

    Raises:
        ValueError: numbers that are not finite.
    """
    codes = quantise(x, spec.activation, spec.group, scope=spec.act_scope, grid=grid)
    return IntegerInput.of(codes, spec.activation)


def zero_point_terms(x: IntegerInput, weight: IntegerWeight, *, shift: int = 0) -> Float[Tensor, "tokens rows"]:
    """What is to be taken from the scaled integer products: two skinny matrix products, one for symmetric weights.

    Args:
        x: activations.
        weight: its codes are not needed, only their sums.
        shift: what the products have taken from the codes of x already. Near the zero points, it keeps the products
            and these terms small, so that less is lost where they cancel.
    """
    left, right = x.scale * (x.zero - shift), weight.scale * weight.total
    if weight.zero is not None:
        left = torch.cat([left, x.scale * x.total], dim=1)
        right = torch.cat([right, weight.scale * weight.zero], dim=1)
    return left @ right.T
