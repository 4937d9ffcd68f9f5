"""The fused executor: activations quantised and multiplied by compiled kernels (own design; see `kernels.cpp`).

The weight stays in its packed bits; kernels expand a panel of it at a time. Weight-only layers with few rows, such as
the adaptive norms of a transformer, are multiplied straight from the packed weight; with many rows the weight is
expanded once a call and multiplied by torch.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from mezzotint.methods.q_dit.packing import StoredWeight
from mezzotint.methods.q_dit.quantiser import Grid, LayerSpec

from .native import KernelWeight, Library
from .operands import IntegerInput, encode_input

__all__ = ["Fused"]

_FEW_ROWS = 32


class Fused:
    """Runs a layer in the compiled kernels.

    Args:
        weight: on the processor.
        spec: of the layer.
        library: the compiled kernels.
        level: instruction set.
    """

    name = "fused"

    def __init__(self, weight: StoredWeight, spec: LayerSpec, library: Library, level: str = "best") -> None:
        self.spec, self.library, self.level = spec, library, level
        self.weight = KernelWeight(weight)

    def prepare(
        self, x: Float[Tensor, "*batch width"], grid: Grid | None
    ) -> IntegerInput | Float[Tensor, "tokens width"]:
        """Codes of the activations; the activations themselves for a weight-only layer."""
        spec = self.spec
        if not spec.activation.quantised:
            return x.reshape(-1, x.shape[-1])
        if grid is None and (spec.act_scope == "token" or x.ndim < 3):
            return self.library.quantise(x, spec, self.level)
        return encode_input(x, spec, grid)

    def multiply(
        self, prepared: IntegerInput | Float[Tensor, "tokens width"], bias: Float[Tensor, " rows"] | None
    ) -> Float[Tensor, "tokens rows"]:
        """The layer's output."""
        if isinstance(prepared, IntegerInput):
            return self.library.linear(prepared, self.weight, bias, self.level)
        if prepared.shape[0] <= _FEW_ROWS:
            return self.library.weight_only(prepared, self.weight, bias, self.level)
        return torch.nn.functional.linear(prepared, self.library.dequantise(self.weight, self.level), bias)

    def resident_bytes(self) -> int:
        """Memory beside the packed weight."""
        return self.weight.extra_bytes()
