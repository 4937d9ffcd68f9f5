"""The student's consistency function f(x, g, t) (arXiv 2404.13903, sec. 3.3).

    f(x, g, t) = c_skip(t) x + c_out(t) (x - s(g, t) eps(x, t, e(g), text)) / alpha_t

for networks that predict noise; for velocity, with n = sqrt(alpha_t^2 + s^2), the clean sample is
(alpha_t / n)(x / n) - (s / n) v, and for networks that predict the sample it is the output itself (ours).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from mezzotint.diffusion import Condition, Denoiser, Levels
from mezzotint.diffusion.levels import per_item

from .embedding import WIDTH, gamma_embedding, guidance_embedding
from .scalings import SCALING, boundary_scalings
from .sub_path import Jump, SigmaMode, effective_time, sigma

__all__ = ["Conditioning", "Point", "Student", "clean", "consistency"]

Conditioning = Literal["embedding", "effective_time", "none"]
"""How the network learns of gamma: by e(g), by the timestep of the same noise level, or not at all."""


@dataclass(frozen=True, eq=False)
class Point:
    """Where a sample lies: x = alpha x0 + noise eps, at place gamma of the sub-path that ends at t. All float64."""

    t: Tensor
    gamma: Float[Tensor, " batch"]
    alpha: Float[Tensor, " batch"]
    noise: Float[Tensor, " batch"]

    @classmethod
    def on_path(cls, jump: Jump, gamma: Float[Tensor, " batch"], mode: SigmaMode = "quadrature") -> Point:
        """The point x_g of a jump."""
        return cls(jump.t, gamma, jump.alpha, sigma(jump, gamma, mode))

    @classmethod
    def end(cls, levels: Levels, t: Tensor) -> Point:
        """The point g = 1: an ordinary noisy sample at t."""
        alpha = levels.alpha(t).double()
        return cls(t, torch.ones_like(alpha), alpha, levels.std(t).double())


def clean(
    x: Float[Tensor, "batch *item"],
    output: Float[Tensor, "batch *item"],
    point: Point,
    prediction_type: str = "epsilon",
) -> Float[Tensor, "batch *item"]:
    """The clean sample that the network's output at x means.

    Raises:
        ValueError: an unknown prediction type.
    """
    alpha, noise = point.alpha, point.noise
    if prediction_type == "epsilon":
        return ((x - per_item(noise, x) * output) / per_item(alpha, x)).to(x.dtype)
    if prediction_type == "v_prediction":
        norm = torch.hypot(alpha, noise)
        return (per_item(alpha / norm**2, x) * x - per_item(noise / norm, x) * output).to(x.dtype)
    if prediction_type == "sample":
        return output
    raise ValueError(f"prediction_type must be epsilon, v_prediction or sample, got {prediction_type!r}")


def consistency(
    x: Float[Tensor, "batch *item"], x0: Float[Tensor, "batch *item"], t: Tensor, scaling: float = SCALING
) -> Float[Tensor, "batch *item"]:
    """c_skip(t) x + c_out(t) x0."""
    c_skip, c_out = boundary_scalings(t, scaling)
    return (per_item(c_skip, x) * x + per_item(c_out, x) * x0).to(x.dtype)


@dataclass(frozen=True, eq=False)
class Student:
    """f as a function of samples and the points where they lie.

    Attributes:
        denoiser: the network with its levels and prediction type.
        conditioning: how it is told gamma.
        width: features of the embedding.
        scaling: S of the boundary scalings.
    """

    denoiser: Denoiser
    conditioning: Conditioning = "embedding"
    width: int = WIDTH
    scaling: float = SCALING

    def __call__(
        self,
        x: Float[Tensor, "batch *item"],
        point: Point,
        cond: Condition | None = None,
        *,
        weight: Float[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, "batch *item"]:
        """f(x, g, t).

        Args:
            x: samples.
            point: where they lie.
            cond: conditions, one an item.
            weight: guidance weights w to embed in place of gamma (LCM).
        """
        output = self._output(x, point, cond, weight)
        x0 = clean(x, output, point, self.denoiser.prediction_type)
        return consistency(x, x0, point.t, self.scaling)

    def _output(self, x: Tensor, point: Point, cond: Condition | None, weight: Tensor | None) -> Tensor:
        if self.conditioning == "effective_time":
            t, norm = effective_time(self.denoiser.levels, point.alpha, point.noise)
            return self.denoiser.model_output(x / per_item(norm, x), t, cond)
        if self.conditioning == "none":
            return self.denoiser.model_output(x, point.t, cond)
        embedded = (
            gamma_embedding(point.gamma, self.width) if weight is None else guidance_embedding(weight, self.width)
        )
        named = dataclasses.replace(cond or Condition(), timestep_cond=embedded.to(x.dtype))
        return self.denoiser.model_output(x, point.t, named)
