"""PTQD correction (arXiv 2305.10657, section 3): quantisation noise as an affine function of the noise plus a rest.

At every timestep eps_q - eps = k eps + mu + rest. The correlated part is undone, (eps_q - mu) / (1 + k); a stochastic
sampler adds that much less variance of its own as the rest brings.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mezzotint.diffusion import Condition, Denoiser, guided
from mezzotint.diffusion.condition import Prompt

from .sampling import trajectory

__all__ = ["Affine", "Correction", "fit_affine", "fit_correction", "reduced_variance"]


@dataclass(frozen=True)
class Affine:
    """Error of a predicted noise at one timestep: eps_q - eps = slope eps + bias + rest.

    Attributes:
        slope: k, above -1.
        bias: mu.
        variance: of the rest.
    """

    slope: float
    bias: float
    variance: float

    def undo(self, eps: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch ..."]:
        """The noise without the error's affine part."""
        return (eps - self.bias) / (1 + self.slope)


def fit_affine(quantised: Float[Tensor, "..."], exact: Float[Tensor, "..."]) -> Affine:
    """Least squares of the error on the exact noise.

    Args:
        quantised: predicted by the quantised network.
        exact: by the full-precision one, on the same inputs.

    Raises:
        ValueError: the shapes differ, or the exact noise is constant.
    """
    if quantised.shape != exact.shape:
        raise ValueError(f"both noises must have one shape, got {tuple(quantised.shape)} and {tuple(exact.shape)}")
    x, error = exact.double(), (quantised.double() - exact.double())
    spread = (x - x.mean()).square().sum()
    if spread == 0:
        raise ValueError("the exact noise must not be constant")
    slope = ((x - x.mean()) * (error - error.mean())).sum() / spread
    bias = error.mean() - slope * x.mean()
    rest = error - slope * x - bias
    return Affine(float(slope), float(bias), float(rest.square().mean()))


def reduced_variance(variance: float, coefficient: float, error: Affine) -> float:
    """Variance that a stochastic sampler still has to add, not below 0.

    Args:
        variance: sigma_t^2 of the step.
        coefficient: of the noise in the step's mean.
        error: at this timestep.
    """
    return max(0.0, variance - coefficient**2 * error.variance / (1 + error.slope) ** 2)


@dataclass(frozen=True)
class Correction:
    """The affine error of every timestep; call it as `sampling.Correct`.

    Attributes:
        errors: by timestep; the nearest one is used.
    """

    errors: Mapping[int, Affine]

    def __call__(self, eps: Tensor, timestep: int) -> Tensor:
        """Undo the error of the nearest timestep."""
        nearest = min(self.errors, key=lambda t: abs(t - timestep))
        return self.errors[nearest].undo(eps)


@torch.no_grad()
def fit_correction(
    pipe: Any,
    network: nn.Module,
    prompts: Prompt,
    noise: Float[Tensor, "batch channels height width"],
    *,
    steps: int,
    guidance: float = 1.5,
) -> Correction:
    """Compare guided noise of both networks along full-precision trajectories.

    Args:
        pipe: full precision.
        network: quantised.
        prompts: one, or one for each item.
        noise: start of the trajectories; not that of the pictures to be judged.
        steps: DDIM steps of the runs to be corrected.
        guidance: their scale.
    """
    cond, uncond = Condition.from_prompt(pipe, prompts)
    quantised = guided(Denoiser(network, pipe.scheduler), cond, uncond, guidance)
    visited = trajectory(pipe, prompts, noise, steps=steps, guidance=guidance)
    return Correction({t: fit_affine(quantised.eps(x, t), eps) for t, x, eps in visited if t >= 0})
