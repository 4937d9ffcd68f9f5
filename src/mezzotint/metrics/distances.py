"""Distances between two samples that need no fitted Gaussian.

* `kernel_distance`: unbiased squared MMD with the cubic kernel, Binkowski et al., "Demystifying MMD GANs"
  (arXiv:1801.01401).
* `energy_distance`: Szekely and Rizzo, "Energy statistics" (Journal of Statistical Planning and Inference 143, 2013).
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["energy_distance", "kernel_distance"]

_ROWS = 2_048


def _check(first: Tensor, second: Tensor, minimum: int) -> None:
    if first.shape[1] != second.shape[1]:
        raise ValueError(f"samples must have the same number of features, got {first.shape[1]} and {second.shape[1]}")
    if min(first.shape[0], second.shape[0]) < minimum:
        raise ValueError(f"samples must have at least {minimum} rows, got {first.shape[0]} and {second.shape[0]}")
    if not (torch.isfinite(first).all() and torch.isfinite(second).all()):
        raise ValueError("samples must be finite, got NaN or infinity")


def kernel_distance(first: Float[Tensor, "sample feature"], second: Float[Tensor, "other feature"]) -> float:
    """Unbiased squared maximum mean discrepancy with ``k(x, y) = (x.y / d + 1)^3``; may be slightly negative.

    Unlike the Frechet distance its expectation does not depend on the number of samples.

    Args:
        first: features of one set, two rows or more.
        second: features of the other.

    Raises:
        ValueError: rows too few, features of different number, or not finite.
    """
    _check(first, second, 2)
    x, y = first.double(), second.double()

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.T / a.shape[1] + 1) ** 3

    def within(a: Tensor) -> Tensor:
        own = kernel(a, a)
        return (own.sum() - own.diagonal().sum()) / (a.shape[0] * (a.shape[0] - 1))

    return (within(x) + within(y) - 2 * kernel(x, y).mean()).item()


def _mean_distance(a: Tensor, b: Tensor) -> Tensor:
    # Rows in blocks: 20,000 x 20,000 distances would be 3 GB at once. The plain form, not |a|^2 + |b|^2 - 2ab, keeps
    # close pairs exact.
    total = sum(
        (torch.cdist(rows, b, compute_mode="donot_use_mm_for_euclid_dist").sum() for rows in a.split(_ROWS)),
        a.new_zeros(()),
    )
    return total / (a.shape[0] * b.shape[0])


def energy_distance(
    first: Float[Tensor, "sample feature"], second: Float[Tensor, "other feature"], *, unbiased: bool = False
) -> float:
    """Squared energy distance ``2 E|X-Y| - E|X-X'| - E|Y-Y'|`` in units of the features, zero for equal distributions.

    Args:
        first: one sample.
        second: the other.
        unbiased: leave out the zero distances of a point to itself (may then be slightly negative); otherwise 0 or
            more.

    Raises:
        ValueError: rows too few, features of different number, or not finite.
    """
    _check(first, second, 2 if unbiased else 1)
    x, y = first.double(), second.double()
    n, m = (size / (size - 1) if unbiased else 1.0 for size in (x.shape[0], y.shape[0]))
    return (2 * _mean_distance(x, y) - n * _mean_distance(x, x) - m * _mean_distance(y, y)).item()
