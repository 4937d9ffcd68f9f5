"""The reference executor: quantise, dequantise, multiply in float32 (arXiv 2406.17343, as its public code computes)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from mezzotint.methods.q_dit.packing import StoredWeight
from mezzotint.methods.q_dit.quantiser import Grid, LayerSpec, fake_quantise

from .native import KernelWeight, Library

__all__ = ["Simulate"]


class Simulate:
    """Computes with the numbers that the codes stand for, on any device.

    Args:
        weight: where it will be computed.
        spec: of the layer.
        dense: keep the dequantised weight in float32, the fastest and what an experiment wants; otherwise it is made
            at every call and given up again, so that a layer takes no more memory than its integers.
        library: compiled kernels that dequantise faster, on the processor.
    """

    name = "simulate"

    def __init__(
        self, weight: StoredWeight, spec: LayerSpec, *, dense: bool = True, library: Library | None = None
    ) -> None:
        self.spec = spec
        self.stored, self.library = weight, library
        self.weight: Tensor | None = weight.codes().dequantised() if dense else None
        self.kernel_weight = None if dense or library is None else KernelWeight(weight)

    def prepare(self, x: Float[Tensor, "*batch width"], grid: Grid | None) -> Float[Tensor, "tokens width"]:
        """Round the activations to their grid."""
        spec = self.spec
        found = fake_quantise(x, spec.activation, spec.group, scope=spec.act_scope, grid=grid)
        return found.reshape(-1, x.shape[-1])

    def multiply(
        self, prepared: Float[Tensor, "tokens width"], bias: Float[Tensor, " rows"] | None
    ) -> Float[Tensor, "tokens rows"]:
        """The layer's output."""
        return torch.nn.functional.linear(prepared, self._dense() if self.weight is None else self.weight, bias)

    def resident_bytes(self) -> int:
        """Memory beside the packed weight."""
        if self.weight is not None:
            return self.weight.numel() * self.weight.element_size()
        return 0 if self.kernel_weight is None else self.kernel_weight.extra_bytes()

    def _dense(self) -> Float[Tensor, "rows width"]:
        if self.library is None or self.kernel_weight is None:
            return self.stored.codes().dequantised()
        return self.library.dequantise(self.kernel_weight)
