"""Frechet distance between feature distributions, carefully in float64.

Heusel et al., "GANs trained by a two time-scale update rule ..." (arXiv:1706.08500), equation 6: with Gaussians fitted
to two sets of features, ``d^2 = |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2))``.

The trace of the matrix root is never taken from a matrix root. With centred features ``A``, ``B`` scaled so that
``C1 = A^T A`` and ``C2 = B^T B``, the eigenvalues of ``C1 C2`` are the squared singular values of ``A B^T``; the trace
of its root is their sum. That keeps the accuracy of the data (a root of an eigenvalue near zero loses half the digits)
and holds for singular covariances: fewer samples than features.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mezzotint.metrics.bootstrap import resampled_statistic

__all__ = ["Moments", "frechet_bootstrap", "frechet_distance", "frechet_floor", "frechet_from_moments"]


@dataclass(frozen=True)
class Moments:
    """A Gaussian fitted to features.

    Attributes:
        mean: centre.
        factor: any ``F`` with covariance ``F^T F`` (unbiased covariance, divisor ``n - 1``).
        count: number of features it was fitted to.
    """

    mean: Float[Tensor, " feature"]
    factor: Float[Tensor, "rank feature"]
    count: int

    @classmethod
    def fit(cls, features: Float[Tensor, "sample feature"]) -> Moments:
        """Fit to features.

        Args:
            features: at least two rows of finite numbers.

        Raises:
            ValueError: there are fewer than two rows, or a number is not finite.
        """
        if features.shape[0] < 2:
            raise ValueError(f"a covariance needs at least 2 samples, got {features.shape[0]}")
        if not torch.isfinite(features).all():
            raise ValueError("features must be finite, got NaN or infinity: look at the pictures they came from")
        table = features.double()
        mean = table.mean(0)
        centred = (table - mean) / (table.shape[0] - 1) ** 0.5
        if centred.shape[0] > centred.shape[1]:
            centred = torch.linalg.qr(centred, mode="r").R
        return cls(mean, centred, features.shape[0])

    @classmethod
    def from_covariance(
        cls, mean: Float[Tensor, " feature"], covariance: Float[Tensor, "feature feature"], *, count: int
    ) -> Moments:
        """Take published moments; eigenvalues that rounding has made negative count as zero.

        Args:
            mean: centre.
            covariance: symmetric and positive semidefinite, up to rounding.
            count: number of samples it was estimated from.

        Raises:
            ValueError: the covariance has an eigenvalue that is negative beyond rounding.
        """
        values, vectors = torch.linalg.eigh(covariance.double())
        largest = values.abs().max().item()
        if values.min().item() < -1e-8 * largest:
            raise ValueError(
                f"a covariance must be positive semidefinite, got the eigenvalue {values.min().item():.3g}"
            )
        return cls(mean.double(), values.clamp(min=0).sqrt()[:, None] * vectors.T, count)


def frechet_from_moments(first: Moments, second: Moments) -> float:
    """Squared Frechet distance of two fitted Gaussians (what is reported as FID), 0 or more.

    Args:
        first: one Gaussian.
        second: the other, of the same number of features.

    Raises:
        ValueError: the numbers of features differ.
    """
    if first.mean.shape != second.mean.shape:
        raise ValueError(f"features must agree, got {first.mean.shape[0]} and {second.mean.shape[0]}")
    shift = (first.mean - second.mean).square().sum()
    traces = first.factor.square().sum() + second.factor.square().sum()
    cross = torch.linalg.svdvals(first.factor @ second.factor.T).sum()
    return max(0.0, (shift + traces - 2 * cross).item())


def frechet_distance(features: Float[Tensor, "sample feature"], reference: Float[Tensor, "other feature"]) -> float:
    """Squared Frechet distance between two sets of features.

    The estimate is biased upwards for finite samples, and the bias depends on their number: compare only equal counts,
    and beside `frechet_floor`.

    Args:
        features: of the pictures to judge.
        reference: of real pictures.

    Raises:
        ValueError: see `Moments.fit` and `frechet_from_moments`.
    """
    return frechet_from_moments(Moments.fit(features), Moments.fit(reference))


def frechet_floor(
    reference: Float[Tensor, "other feature"], held_out: Float[Tensor, "sample feature"], *, count: int
) -> float:
    """Real against real: the distance that a perfect generator would be given with ``count`` pictures.

    Args:
        reference: the real features against which generators are judged.
        held_out: other real features; the first ``count`` are used.
        count: how many pictures a generator is judged on.

    Raises:
        ValueError: fewer than ``count`` features are held out.
    """
    if held_out.shape[0] < count:
        raise ValueError(f"the floor for {count} pictures needs as many held-out features, got {held_out.shape[0]}")
    return frechet_distance(held_out[:count], reference)


def frechet_bootstrap(
    features: Float[Tensor, "sample feature"],
    reference: Float[Tensor, "other feature"],
    *,
    draws: int = 200,
    seed: int = 0,
) -> Float[Tensor, " draw"]:
    """Frechet distances of resampled pictures, for a `Row` with ``draws``.

    Arms with the same number of pictures, ``draws`` and ``seed`` share the resamples (picture k of each comes from the
    same prompt and noise), so their differences are paired. A resample repeats pictures, which raises every distance
    a little: use differences of arms, whose bias cancels, and never the mean of the draws.

    Args:
        features: of one arm's pictures.
        reference: of real pictures, not resampled.
        draws: number of resamples.
        seed: of the resampling.
    """
    target = Moments.fit(reference)
    table = features.double()
    return resampled_statistic(
        lambda chosen: frechet_from_moments(Moments.fit(table[chosen.to(table.device)]), target),
        features.shape[0],
        draws=draws,
        seed=seed,
    )
