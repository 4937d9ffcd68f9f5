"""The objective: the Kullback-Leibler upper bound (KLUB) of a step, by Monte Carlo with importance sampling.

K(a, b) = int_a^b t^-3 E || D(x_t, t) - D(x_b, b) ||^2 dt, with x_b = x_t + sqrt(b^2 - t^2) eps'
(arXiv 2404.14507, Theorem 3.2, eq. 10 and Algorithm 2; the constant is 1 and the coordinates are variance-exploding).
The noise levels are drawn from pi(t) = t^-3 h(t) / Z with h(t) = 1/(t^2 + c^2) - 1/(b^2 + c^2), and every mean is
multiplied by Z: Z depends on the interval, so candidates could not be compared without it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mezzotint.diffusion import rng

GOLDEN = (math.sqrt(5) - 1) / 2
Density = Literal["importance", "log-uniform", "uniform"]
Joint = Literal["markov", "shared"]


@runtime_checkable
class Denoise(Protocol):
    """D(x, sigma): the denoised estimate of `x` at variance-exploding noise levels `sigma`, one for each item.

    `rows` says which clean item each entry of the batch came from, so that it can be given the same condition.
    """

    def __call__(
        self, x: Float[Tensor, "batch *item"], sigma: Float[Tensor, " batch"], rows: Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch *item"]:
        """Denoise a batch."""
        ...


@dataclass(frozen=True)
class Estimate:
    """A Monte-Carlo mean, its standard error, and the standard deviation of one value over the mean."""

    mean: float
    error: float
    relative_std: float


def normaliser(a: float, b: float, c: float) -> float:
    """Z(a, b) = int_a^b t^-3 h(t) dt = (e^L - 1 - L) / (2 c^4), L = ln(1 + c^2/a^2) - ln(1 + c^2/b^2).

    Raises:
        ValueError: unless 0 < a <= b and c > 0.
    """
    if not 0 < a <= b or c <= 0:
        raise ValueError(f"an interval needs 0 < a <= b and c > 0, got a={a}, b={b}, c={c}")
    length = math.log1p((c / a) ** 2) - math.log1p((c / b) ** 2)
    # Below 1e-4 the difference of expm1(L) and L loses its digits; three terms of the series keep them all.
    excess = math.expm1(length) - length if length > 1e-4 else length**2 / 2 + length**3 / 6 + length**4 / 24
    return excess / (2 * c**4)


def cumulative(x: Float[Tensor, " n"], a: float, b: float, c: float) -> Float[Tensor, " n"]:
    """Unnormalised distribution function of pi on (a, b): 0 at a, `normaliser(a, b, c)` at b; float64."""
    logs = torch.log1p((c / x) ** 2) - math.log1p((c / a) ** 2)
    return logs / (2 * c**4) + (1 / c**2 - 1 / (b**2 + c**2)) / 2 * (1 / a**2 - x**-2)


def draw_levels(u: Float[Tensor, " n"], a: float, b: float, c: float) -> Float[Tensor, " n"]:
    """Noise levels in (a, b) with density pi from numbers `u` in 0..1: the closed-form CDF inverted by bisection."""
    target = u.double() * normaliser(a, b, c)
    low, high = torch.full_like(target, math.log(a)), torch.full_like(target, math.log(b))
    for _ in range(50):
        middle = (low + high) / 2
        below = cumulative(middle.exp(), a, b, c) < target
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return ((low + high) / 2).exp()


def importance(t: Float[Tensor, " n"], b: float, c: float) -> Float[Tensor, " n"]:
    """h(t) = 1/(t^2 + c^2) - 1/(b^2 + c^2), written without the cancellation near b; float64."""
    return (b - t) * (b + t) / ((t**2 + c**2) * (b**2 + c**2))


def levels_and_weights(
    u: Float[Tensor, " n"], a: float, b: float, *, c: float, density: Density
) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """Levels t and weights w such that the mean of w || D_t - D_b ||^2 is an unbiased estimate of K(a, b)."""
    if density == "importance":
        t = draw_levels(u, a, b, c)
        # The largest u may land on b itself, where both the gap and h vanish.
        return t, normaliser(a, b, c) / importance(t, b, c).clamp_min(torch.finfo(torch.float64).tiny)
    if density == "log-uniform":
        t = (math.log(a) + u.double() * math.log(b / a)).exp()
        return t, math.log(b / a) * t**-2
    if density == "uniform":
        t = a + u.double() * (b - a)
        return t, (b - a) * t**-3
    raise ValueError(f"density must be 'importance', 'log-uniform' or 'uniform', got {density!r}")


def mass(a: float, b: float, c: float, density: Density) -> float:
    """Integral of the unnormalised density over (a, b): the share of the draws that an interval gets."""
    return {"importance": normaliser(a, b, c), "log-uniform": math.log(b / a), "uniform": b - a}[density]


@dataclass(frozen=True)
class MonteCarlo:
    """KLUB of single steps for one denoiser and one set of clean items.

    Draw k always uses the same clean item, uniform number and noise, whatever the interval: candidates are compared
    with common random numbers, every estimate is a deterministic function of its interval, and the batch size changes
    nothing.

    Attributes:
        denoise: the frozen denoiser, guidance included.
        clean: clean items x0 (latents with the VAE's scaling factor applied).
        samples: draws for the two intervals around a point together, as in Algorithm 2; each interval gets half.
        c: parameter of the importance density; the paper takes 0.5 for every data set.
        seed: of the noise.
        batch_size: items for one call of the denoiser.
        density: of the noise levels t; the last two exist for the ablation.
        joint: law of (x_t, x_b). "shared" draws x_b = x0 + b eps with the noise of x_t, which is wrong (ablation).
    """

    denoise: Denoise
    clean: Float[Tensor, "count *item"]
    samples: int = 8192
    c: float = 0.5
    seed: int = 0
    batch_size: int = 256
    density: Density = "importance"
    joint: Joint = "markov"

    def __post_init__(self) -> None:
        """Refuse an empty data set and sample counts that leave an interval without a draw."""
        if len(self.clean) == 0:
            raise ValueError("clean items are needed to estimate KLUB, got an empty data set")
        if self.samples < 4 or self.batch_size < 1:
            raise ValueError(f"need samples >= 4 and batch_size >= 1, got {self.samples} and {self.batch_size}")

    def interval(self, a: float, b: float) -> Estimate:
        """Estimate K(a, b) from samples // 2 draws."""
        count = self.samples // 2
        t, weights = levels_and_weights(self._uniform(count), a, b, c=self.c, density=self.density)
        high = torch.full_like(t, b)
        return _estimate(self._gaps(t, high) * weights)

    def pair(self, low: float, middle: float, high: float) -> Estimate:
        """Algorithm 2: estimate K(low, middle) + K(middle, high) from draws spread over both in proportion to Z."""
        masses = mass(low, middle, self.c, self.density), mass(middle, high, self.c, self.density)
        u, share = self._uniform(self.samples), masses[0] / sum(masses)
        first = u < share
        inner = torch.where(first, u / share, (u - share) / (1 - share)).clamp(0, 1)
        below = levels_and_weights(inner, low, middle, c=self.c, density=self.density)
        above = levels_and_weights(inner, middle, high, c=self.c, density=self.density)
        t = torch.where(first, below[0], above[0])
        weights = torch.where(first, below[1] / share, above[1] / (1 - share))
        return _estimate(self._gaps(t, torch.where(first, middle, high).double()) * weights)

    def _uniform(self, count: int) -> Float[Tensor, " n"]:
        # An additive golden-ratio sequence is even over 0..1 for every length and uncorrelated with the data order.
        start = torch.rand((), generator=rng.stream(self.seed, "klub levels"), dtype=torch.float64)
        return (start + GOLDEN * torch.arange(count, dtype=torch.float64)) % 1.0

    def _gaps(self, t: Float[Tensor, " n"], b: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """|| D(x_t, t) - D(x_b, b) ||^2 of every draw; float64 on the CPU."""
        parts = [
            self._gap_batch(t[first : first + self.batch_size], b[first : first + self.batch_size], first)
            for first in range(0, len(t), self.batch_size)
        ]
        return torch.cat(parts)

    @torch.no_grad()
    def _gap_batch(self, t: Float[Tensor, " n"], b: Float[Tensor, " n"], first: int) -> Float[Tensor, " n"]:
        rows = torch.arange(first, first + len(t), device=self.clean.device) % len(self.clean)
        x0, noise = self.clean[rows], self._noise("klub noise", first, len(t))
        x_t = x0 + expand(t, x0) * noise
        if self.joint == "shared":
            x_b = x0 + expand(b, x0) * noise
        else:
            added = ((b - t) * (b + t)).clamp_min(0).sqrt()
            x_b = x_t + expand(added, x0) * self._noise("klub added noise", first, len(t))
        low, high = self.denoise(x_t, t.to(x0), rows), self.denoise(x_b, b.to(x0), rows)
        return (low.double() - high.double()).flatten(1).square().sum(1).cpu()

    def _noise(self, purpose: str, first: int, count: int) -> Tensor:
        return rng.normal(
            tuple(self.clean.shape[1:]),
            seed=self.seed,
            purpose=purpose,
            first=first,
            count=count,
            device=self.clean.device,
            dtype=self.clean.dtype,
        )


def expand(levels: Float[Tensor, " n"], like: Float[Tensor, "n *item"]) -> Tensor:
    """Levels shaped so that they multiply a batch of items of the same dtype and device."""
    return levels.to(like).reshape(-1, *[1] * (like.ndim - 1))


def unconditional(function: Callable[[Tensor, Tensor], Tensor]) -> Denoise:
    """A `Denoise` from a function of (x, sigma), sigma shaped to multiply x: analytic denoisers, toy networks."""

    def denoise(x: Tensor, sigma: Tensor, rows: Tensor) -> Tensor:  # noqa: ARG001 - one condition for all
        return function(x, expand(sigma, x))

    return denoise


def _estimate(values: Float[Tensor, " n"]) -> Estimate:
    mean, std = values.mean().item(), values.std().item()
    return Estimate(mean, std / math.sqrt(len(values)), std / mean if mean else 0.0)
