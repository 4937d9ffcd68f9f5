"""Laws of the Frechet distance: closed forms, invariances, and digits that a matrix root would lose."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from mezzotint.diffusion.rng import stream
from mezzotint.metrics.bootstrap import percentile_interval
from mezzotint.metrics.frechet import (
    Moments,
    frechet_bootstrap,
    frechet_distance,
    frechet_floor,
    frechet_from_moments,
)


def _features(count: int, size: int, *, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, size, generator=stream(seed, "test-features"), dtype=torch.float64)


def test_diagonal_gaussians_have_a_closed_form() -> None:
    one = Moments.from_covariance(torch.tensor([1.0, -2.0]), torch.diag(torch.tensor([4.0, 9.0])), count=10)
    other = Moments.from_covariance(torch.tensor([0.0, 1.0]), torch.diag(torch.tensor([1.0, 25.0])), count=10)
    assert frechet_from_moments(one, other) == pytest.approx(1 + 9 + (2 - 1) ** 2 + (3 - 5) ** 2)


def test_agrees_with_the_matrix_root() -> None:
    x, y = _features(200, 12), _features(150, 12, seed=1) @ torch.diag(torch.linspace(0.5, 2, 12, dtype=torch.float64))
    c1, c2 = np.cov(x.numpy(), rowvar=False), np.cov(y.numpy(), rowvar=False)
    root = sqrtm(c1 @ c2)
    expected = float(((x.mean(0) - y.mean(0)) ** 2).sum()) + np.trace(c1 + c2 - 2 * root.real)
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("count", "size"), [(300, 8), (20, 64)])
def test_a_set_is_at_no_distance_from_itself(count: int, size: int) -> None:
    """Also with fewer samples than features, where roots of singular covariances leave 1e-6."""
    x = _features(count, size)
    assert frechet_distance(x, x.flip(0)) <= 1e-11


def test_a_shift_costs_its_square() -> None:
    x = _features(100, 6)
    shift = torch.tensor([3.0, 0, 4.0, 0, 0, 0], dtype=torch.float64)
    assert frechet_distance(x + shift, x) == pytest.approx(25.0, rel=1e-12)


def test_a_scale_costs_the_difference_of_standard_deviations() -> None:
    x = _features(100, 6)
    x = x - x.mean(0)
    trace = x.var(0).sum().item()
    assert frechet_distance(3 * x, x) == pytest.approx(4 * trace, rel=1e-12)


def test_symmetric_and_blind_to_rotation() -> None:
    x, y = _features(80, 7), 2 * _features(90, 7, seed=1) + 1
    turn = torch.linalg.qr(_features(7, 7, seed=2)).Q
    found = frechet_distance(x, y)
    assert frechet_distance(y, x) == pytest.approx(found, rel=1e-12)
    assert frechet_distance(x @ turn, y @ turn) == pytest.approx(found, rel=1e-10)


def test_published_moments_mean_the_same_as_features() -> None:
    x, y = _features(80, 7), 2 * _features(90, 7, seed=1)
    moments = [Moments.from_covariance(f.mean(0), torch.cov(f.T), count=f.shape[0]) for f in (x, y)]
    assert frechet_from_moments(*moments) == pytest.approx(frechet_distance(x, y), rel=1e-9)


def test_the_floor_is_what_real_pictures_get_and_shrinks_with_their_number() -> None:
    real, held_out = _features(2_000, 10), _features(1_000, 10, seed=1)
    few, many = (frechet_floor(real, held_out, count=n) for n in (50, 1_000))
    assert few == frechet_distance(held_out[:50], real)
    assert 0 < many < few / 5


def test_resamples_are_paired_between_arms() -> None:
    """Two arms whose pictures move together: their distances do too, and the difference is far surer than either."""
    real, noise = _features(500, 5), _features(200, 5, seed=1)
    ours, theirs = (frechet_bootstrap(noise + shift, real, draws=60) for shift in (0.5, 0.6))
    low, high = percentile_interval(theirs - ours)
    alone = percentile_interval(ours)
    assert low > 0
    assert high - low < (alone[1] - alone[0]) / 2


def test_refuses_what_has_no_distance() -> None:
    with pytest.raises(ValueError, match="at least 2"):
        Moments.fit(_features(1, 3))
    with pytest.raises(ValueError, match="finite"):
        Moments.fit(torch.full((4, 3), torch.nan))
    with pytest.raises(ValueError, match="agree"):
        frechet_from_moments(Moments.fit(_features(5, 3)), Moments.fit(_features(5, 4)))
    with pytest.raises(ValueError, match="semidefinite"):
        Moments.from_covariance(torch.zeros(2), torch.diag(torch.tensor([1.0, -1.0])), count=5)
    with pytest.raises(ValueError, match="as many held-out"):
        frechet_floor(_features(5, 3), _features(5, 3), count=6)
