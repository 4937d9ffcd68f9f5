"""Integer execution with operators of stock torch, by the exact zero-point expansion (see `operands`).

Each group is one product of unsigned by signed 8-bit integers in oneDNN, whose packed weights are made at the first
call. Where oneDNN has no exact integer unit to use, `torch._int_mm` takes its place, also on CUDA.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float, Int8, Int32
from torch import Tensor

from mezzotint.methods.q_dit.packing import StoredWeight
from mezzotint.methods.q_dit.quantiser import Grid, LayerSpec

from .operands import IntegerInput, IntegerWeight, encode_input, zero_point_terms

__all__ = ["GroupProducts", "Integer", "has_onednn"]

_CUDA_MULTIPLE = 32
_CANCELLED = 16.0
"""Zero points' terms over the output, by their norms, for one group: above it sums are taken exactly. With G groups the
relative error is about 4e-8 sqrt(1 + G / 2) times that ratio (measured on layers of 195 to 4608 channels)."""


def has_onednn(device: torch.device) -> bool:
    """Whether oneDNN multiplies 8-bit integers exactly here: without VNNI its 16-bit sums may saturate."""
    ready = hasattr(torch.ops.onednn, "qlinear_pointwise") and hasattr(torch.cpu, "_is_vnni_supported")
    return bool(device.type == "cpu" and ready and torch.cpu._is_vnni_supported())


class GroupProducts:
    """Products of 8-bit codes with one weight matrix, scaled by its rows.

    Args:
        codes: signed codes of the weight.
        scale: of every row.
    """

    def __init__(self, codes: Int8[Tensor, "rows width"], scale: Float[Tensor, " rows"]) -> None:
        self.scale = scale.contiguous()
        self.packed: Any = None
        self.codes = codes.contiguous()
        if has_onednn(codes.device) and codes.numel():
            self.packed = torch.ops.onednn.qlinear_prepack(self.codes, None)
            self.zeros = torch.zeros(codes.shape[0], dtype=torch.int64)
            self.codes = codes[:, :0]

    def __call__(self, x: Tensor, zero: int = 0, *, scaled: bool = True) -> Float[Tensor, "tokens rows"]:
        """Scale_j sum_k (x_ik - zero) w_jk in float32, for unsigned codes x; the sums alone if not scaled."""
        scale = self.scale if scaled else torch.ones_like(self.scale)
        if self.packed is not None:
            scalars: tuple[Any, ...] = (None, 1.0, 0, torch.float32, "none", [], "")
            x = x.contiguous()
            return torch.ops.onednn.qlinear_pointwise(x, 1.0, zero, self.packed, scale, self.zeros, *scalars)
        return scale * self._plain(x, zero)

    def _plain(self, x: Tensor, zero: int) -> Tensor:
        """`torch._int_mm` wants signed operands, and on CUDA whole blocks of them."""
        tokens, (rows, width) = x.shape[0], self.codes.shape
        multiple = _CUDA_MULTIPLE if x.is_cuda else 1
        signed = (x.short() - 128).to(torch.int8)
        left = torch.nn.functional.pad(signed, (0, -width % multiple, 0, -tokens % multiple))
        right = torch.nn.functional.pad(self.codes, (0, -width % multiple, 0, -rows % multiple))
        product = torch._int_mm(left, right.T.contiguous())[:tokens, :rows]
        return (product + (128 - zero) * self.codes.sum(-1, dtype=torch.int32)).float()


class Integer:
    """One integer product a group, then the zero points' two skinny products.

    Where these two are large and nearly equal, as with outliers beside an offset, their difference would show how they
    were rounded. Then, and always on CUDA, each group's product is put right while it is still a whole number.
    """

    name = "integer"

    def __init__(self, weight: StoredWeight, spec: LayerSpec) -> None:
        self.spec = spec
        self.middle = 2 ** (spec.activation.bits - 1)
        self.cancelled = _CANCELLED / math.sqrt(1 + weight.scale.shape[1] / 2)
        found = IntegerWeight.of(weight)
        pieces = zip(found.codes.split(weight.group, dim=1), found.scale.unbind(1), strict=True)
        self.groups = [GroupProducts(codes, scale) for codes, scale in pieces]
        # The zero points need sums and scales only.
        self.weight = IntegerWeight(found.codes[:, :0], found.scale, found.zero, found.total)
        self.bytes = found.codes.numel() + sum(
            part.numel() * 4 for part in (found.scale, found.total, found.zero) if part is not None
        )

    def prepare(self, x: Float[Tensor, "*batch width"], grid: Grid | None) -> IntegerInput:
        """Codes of the activations."""
        return encode_input(x, self.spec, grid)

    def multiply(self, prepared: IntegerInput, bias: Float[Tensor, " rows"] | None) -> Float[Tensor, "tokens rows"]:
        """The layer's output."""
        shift = self._shift(prepared)
        terms = zero_point_terms(prepared, self.weight, shift=shift)
        out = terms.neg()
        for u, product in enumerate(self.groups):
            out.addcmul_(product(self._piece(prepared, u), shift), prepared.scale[:, u : u + 1])
        zero = self.weight.zero
        if zero is not None and (out.is_cuda or terms.norm() > self.cancelled * out.norm()):
            out = self._exactly(prepared, zero, shift)
        return out if bias is None else out.add_(bias)

    def _shift(self, prepared: IntegerInput) -> int:
        """What products take from the codes of x: near the zero points the terms, and what cancels, are smallest."""
        return self.middle if prepared.zero.is_cuda else round(float(prepared.zero.float().mean()))

    def _exactly(
        self, prepared: IntegerInput, zero: Int32[Tensor, "rows groups"], shift: int
    ) -> Float[Tensor, "tokens rows"]:
        """The same group by group; whole numbers below 2^24 are exact in float32."""
        rows = prepared.zero.float() - shift, prepared.total.float()
        columns = self.weight.total.T.float(), zero.T.float()
        out = prepared.scale.new_zeros((prepared.codes.shape[0], len(zero)))
        for u, product in enumerate(self.groups):
            whole = product(self._piece(prepared, u), shift, scaled=False)
            for row, column in zip(rows, columns, strict=True):
                whole.addcmul_(row[:, u : u + 1], column[u], value=-1)
            out.addcmul_(whole.mul_(self.weight.scale[:, u]), prepared.scale[:, u : u + 1])
        return out

    def _piece(self, prepared: IntegerInput, group: int) -> Tensor:
        return prepared.codes[:, group * prepared.group : (group + 1) * prepared.group]

    def resident_bytes(self) -> int:
        """Memory beside the packed weight: a byte a code, scales, sums and zero points."""
        return self.bytes
