"""Fast mode (ours, not Q-DiT): grouped storage, executed with one scale a row and one a token.

The stored weight keeps its bits and groups. For execution every row is rounded once more, to 8 bits with a single
scale, and activations get one symmetric 8-bit range a token, so a layer is a single integer product. That second
rounding changes the result; a table must name it "fast", never "Q-DiT".
"""

from __future__ import annotations

import dataclasses

import torch
from jaxtyping import Float
from torch import Tensor

from mezzotint.methods.q_dit.packing import StoredWeight
from mezzotint.methods.q_dit.quantiser import LEAST_SCALE, Grid, LayerSpec, Precision

from . import native
from .integer import GroupProducts
from .operands import IntegerInput, encode_input

__all__ = ["Fast"]

_BYTE = Precision(8, symmetric=True)
_MIDDLE = 128


class Fast:
    """One product a layer."""

    name = "fast"

    def __init__(self, weight: StoredWeight, spec: LayerSpec) -> None:
        self.spec = dataclasses.replace(
            spec, activation=_BYTE, group=weight.width, act_scope="token", act_range="dynamic"
        )
        dense = weight.codes().dequantised()
        scale = (dense.abs().amax(1) / _BYTE.highest).clamp(min=LEAST_SCALE)
        self.products = GroupProducts((dense / scale[:, None]).round().to(torch.int8), scale)
        self.bytes = dense.numel() + 4 * len(scale)

    def prepare(self, x: Float[Tensor, "*batch width"], grid: Grid | None) -> IntegerInput:  # noqa: ARG002 - one interface
        """Codes of the activations, one range a token."""
        library = native.library() if x.device.type == "cpu" else None
        return encode_input(x, self.spec, None) if library is None else library.quantise(x, self.spec)

    def multiply(self, prepared: IntegerInput, bias: Float[Tensor, " rows"] | None) -> Float[Tensor, "tokens rows"]:
        """The layer's output."""
        products = self.products(prepared.codes, _MIDDLE)
        return products.mul_(prepared.scale) if bias is None else torch.addcmul(bias, products, prepared.scale)

    def resident_bytes(self) -> int:
        """Memory beside the packed weight."""
        return self.bytes
