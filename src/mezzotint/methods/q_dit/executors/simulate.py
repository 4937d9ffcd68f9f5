"""The reference executor: quantise, dequantise, multiply in float32 (arXiv 2406.17343, as its public code computes)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from mezzotint.methods.q_dit.packing import StoredWeight
from mezzotint.methods.q_dit.quantiser import Grid, LayerSpec, fake_quantise

__all__ = ["Simulate"]


class Simulate:
    """Computes with the numbers that the codes stand for, on any device.

    The weight is dequantised at the first call and kept: this executor shows what quantisation costs in quality, not
    what it saves.
    """

    name = "simulate"

    def __init__(self, weight: StoredWeight, spec: LayerSpec) -> None:
        self.weight = weight.codes().dequantised()
        self.spec = spec

    def prepare(self, x: Float[Tensor, "*batch width"], grid: Grid | None) -> Float[Tensor, "tokens width"]:
        """Round the activations to their grid."""
        spec = self.spec
        found = fake_quantise(x, spec.activation, spec.group, scope=spec.act_scope, grid=grid)
        return found.reshape(-1, x.shape[-1])

    def multiply(
        self, prepared: Float[Tensor, "tokens width"], bias: Float[Tensor, " rows"] | None
    ) -> Float[Tensor, "tokens rows"]:
        """The layer's output."""
        return torch.nn.functional.linear(prepared, self.weight, bias)

    def resident_bytes(self) -> int:
        """Memory beside the packed weight."""
        return self.weight.numel() * self.weight.element_size()
