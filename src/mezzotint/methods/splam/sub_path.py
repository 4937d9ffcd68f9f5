"""The sub-path: a straight line from r x_t' to x_t, and how much noise lies on it (arXiv 2404.13903, sec. 3.2).

    x_g = (1 - g) r x_t' + g x_t,   r = alpha_t / alpha_t',   g in [0, 1]

The factor r takes the drift out, so that every x_g carries the signal alpha_t x0. Its noise is, as the paper derives it
from the forward kernel, s(g)^2 = (r s_t')^2 + g^2 (1 - r^2) ("quadrature"). A DDIM point shares its noise with x_t, and
then s(g) = (1 - g) r s_t' + g s_t ("linear"). Both agree at g = 0 and g = 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from mezzotint.diffusion import Levels
from mezzotint.diffusion.levels import per_item

__all__ = ["Jump", "SigmaMode", "check_gamma", "effective_time", "line", "sigma"]

SigmaMode = Literal["quadrature", "linear"]


@dataclass(frozen=True, eq=False)
class Jump:
    """The levels of one jump t -> t' for every item of a batch, in float64."""

    t: Tensor
    to: Tensor
    alpha: Float[Tensor, " batch"]
    std: Float[Tensor, " batch"]
    alpha_to: Float[Tensor, " batch"]
    std_to: Float[Tensor, " batch"]

    @classmethod
    def between(cls, levels: Levels, t: Tensor, to: Tensor) -> Jump:
        """Read the levels at timesteps t and t'; `levels` should hold a float64 table (`exact`)."""
        return cls(t, to, levels.alpha(t), levels.std(t), levels.alpha(to), levels.std(to))

    @property
    def ratio(self) -> Float[Tensor, " batch"]:
        """R = alpha_t / alpha_t', below 1."""
        return self.alpha / self.alpha_to


def check_gamma(gamma: Tensor) -> None:
    """Refuse places outside the sub-path (looked at on the CPU only: a look at another device would stall it).

    Raises:
        ValueError: a gamma outside [0, 1].
    """
    if gamma.device.type == "cpu" and not bool(((gamma >= 0) & (gamma <= 1)).all()):
        raise ValueError(f"gamma must lie in [0, 1], got {gamma.min().item():g}..{gamma.max().item():g}")


def line(
    x_t: Float[Tensor, "batch *item"],
    x_to: Float[Tensor, "batch *item"],
    ratio: Float[Tensor, " batch"],
    gamma: Float[Tensor, " batch"],
) -> Float[Tensor, "batch *item"]:
    """x_g on the sub-path; exactly r x_t' at g = 0 and x_t at g = 1.

    Args:
        x_t: samples at t.
        x_to: samples at t'.
        ratio: r.
        gamma: g in [0, 1].

    Raises:
        ValueError: g outside [0, 1].
    """
    check_gamma(gamma)
    share = gamma.double()
    return (per_item((1 - share) * ratio, x_to) * x_to + per_item(share, x_t) * x_t).to(x_t.dtype)


def sigma(jump: Jump, gamma: Float[Tensor, " batch"], mode: SigmaMode = "quadrature") -> Float[Tensor, " batch"]:
    """Standard deviation s(g) of the noise of x_g (float64).

    The quadrature form is written as a mean of variances with weights 1 - g^2 and g^2, which is the formula above by
    s_t^2 = r^2 s_t'^2 + 1 - r^2 and exact at both ends.

    Args:
        jump: the levels.
        gamma: g in [0, 1].
        mode: "quadrature" (the paper) or "linear" (exact for DDIM pairs).

    Raises:
        ValueError: g outside [0, 1], or an unknown mode.
    """
    check_gamma(gamma)
    share, low, high = gamma.double(), jump.ratio * jump.std_to, jump.std
    if mode == "linear":
        return (1 - share) * low + share * high
    if mode != "quadrature":
        raise ValueError(f"sigma_mode must be 'quadrature' or 'linear', got {mode!r}")
    return ((1 - share**2) * low**2 + share**2 * high**2).sqrt()


def effective_time(
    levels: Levels, alpha: Float[Tensor, " batch"], noise: Float[Tensor, " batch"]
) -> tuple[Float[Tensor, " batch"], Float[Tensor, " batch"]]:
    """The fractional timestep at which sigma is noise / alpha, and the norm that x has to be divided by there.

    x_g / sqrt(alpha^2 + noise^2) is an ordinary noisy sample of that timestep, so a teacher is right at every g. Ours,
    not the paper's.
    """
    return levels.timestep(noise / alpha, fractional=True).float(), torch.hypot(alpha, noise)
