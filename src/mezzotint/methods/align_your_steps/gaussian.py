"""Closed forms for Gaussian data N(0, c^2 I_d), where D(x, t) = c^2 x / (c^2 + t^2).

They are the laws that the estimates are tested against (arXiv 2404.14507, A.3 and eq. 31). Constants follow Theorem 3.2
with its factor 1/2: the bound of the paper's eq. 8-10 carries one factor 2 too many and the arg-min is the same.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor


def denoise(x: Float[Tensor, "batch *item"], sigma: float, *, c: float) -> Float[Tensor, "batch *item"]:
    """Posterior mean E[x0 | x0 + sigma eps = x] for x0 ~ N(0, c^2 I)."""
    return x * (c**2 / (c**2 + sigma**2))


def gap(t: float, b: float, *, c: float, d: int = 1) -> float:
    """E || D(x_t, t) - D(x_b, b) ||^2 for t <= b."""
    return d * c**4 * (1 / (c**2 + t**2) - 1 / (c**2 + b**2))


def log_gap(a: float, b: float, *, c: float) -> float:
    """L = ln(1 + c^2/a^2) - ln(1 + c^2/b^2), the natural length of the interval (a, b)."""
    return math.log1p((c / a) ** 2) - math.log1p((c / b) ** 2)


def interval(a: float, b: float, *, c: float, d: int = 1) -> float:
    """K(a, b) = (d/2) (e^L - 1 - L)."""
    length = log_gap(a, b, c=c)
    return d / 2 * (math.expm1(length) - length)


def klub(grid: Sequence[float], *, c: float, d: int = 1) -> float:
    """KLUB of a whole ascending grid: logarithms of the end points plus one rational term a step."""
    t0, tn = grid[0], grid[-1]
    ends = math.log((tn**2 + c**2) / (t0**2 + c**2)) - math.log(tn**2 / t0**2)
    terms = sum((b**2 - a**2) / ((c**2 + b**2) * a**2) for a, b in itertools.pairwise(grid))
    return d / 2 * (ends + c**2 * terms)


def output_std(grid: Sequence[float], *, c: float) -> float:
    """Standard deviation that DDIM reaches at t_0 when it starts from the exact marginal at t_n."""
    angles = [math.atan(t / c) for t in grid]
    product = math.prod(math.cos(b - a) for a, b in itertools.pairwise(angles))
    return math.sqrt(c**2 + grid[0] ** 2) * product


def std_ratio(grid: Sequence[float], *, c: float) -> float:
    """Standard deviation of the samples over that of the data at t_0; 1 is perfect."""
    return output_std(grid, c=c) / math.sqrt(c**2 + grid[0] ** 2)


def sample_kl(ratio: float) -> float:
    """KL per dimension of the data at t_0 from samples whose standard deviation is `ratio` times too large."""
    return (ratio**-2 - 1 + math.log(ratio**2)) / 2


def path_kl(a: float, b: float, *, c: float, substeps: int = 1) -> float:
    """Exact KL per dimension between the true reverse chain and the chain with D frozen at b, over (a, b).

    The forward transitions do not depend on x0, so the ratio of both laws is a function of x_a and x_b alone: the value
    is the same for every number of sub-steps and equals `interval(a, b)`.
    """
    levels = [a * (b / a) ** (k / substeps) for k in range(substeps + 1)]
    total = 0.0
    for low, high in itertools.pairwise(levels):
        kept = 1 - (low / high) ** 2
        frozen_variance = low**2 * kept
        true_variance = frozen_variance + kept**2 * c**2 * high**2 / (c**2 + high**2)
        ratio = true_variance / frozen_variance
        drift = kept**2 * gap(high, b, c=c) / frozen_variance
        total += (ratio - 1 - math.log(ratio) + drift) / 2
    return total
