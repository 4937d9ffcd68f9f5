"""Laws of the kernel and the energy distance."""

from __future__ import annotations

import itertools

import pytest
import scipy.stats
import torch
from jaxtyping import TypeCheckError

from mezzotint.diffusion.rng import stream
from mezzotint.metrics import distances
from mezzotint.metrics.distances import energy_distance, kernel_distance


def _points(count: int, size: int, *, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, size, generator=stream(seed, "test-points"), dtype=torch.float64)


def test_energy_on_a_line_is_the_area_between_distribution_functions() -> None:
    x, y = _points(40, 1), _points(25, 1, seed=1) * 2 + 0.5
    expected = scipy.stats.energy_distance(x[:, 0].numpy(), y[:, 0].numpy()) ** 2
    assert energy_distance(x, y) == pytest.approx(expected, rel=1e-9)


def test_energy_of_a_set_with_itself_is_nothing() -> None:
    x = _points(30, 3)
    assert energy_distance(x, x.flip(0)) == pytest.approx(0, abs=1e-12)


def test_energy_in_blocks_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = _points(50, 2), _points(33, 2, seed=1)
    whole = energy_distance(x, y)
    monkeypatch.setattr(distances, "_ROWS", 7)
    assert energy_distance(x, y) == pytest.approx(whole, rel=1e-12)


def test_energy_scales_with_the_unit_and_ignores_where_zero_is() -> None:
    x, y = _points(50, 2), _points(33, 2, seed=1) + 1
    assert energy_distance(3 * x + 5, 3 * y + 5) == pytest.approx(3 * energy_distance(x, y), rel=1e-9)


def test_energy_sees_collapse_that_likelihood_rewards() -> None:
    """Samples at the mode are likely, yet far from the distribution."""
    data, fresh = _points(400, 2), _points(400, 2, seed=1)
    assert energy_distance(fresh * 0.05, data) > 20 * energy_distance(fresh, data)


def test_unbiased_energy_averages_to_zero_for_equal_distributions() -> None:
    found = torch.tensor(
        [energy_distance(_points(10, 2, seed=2 * k), _points(10, 2, seed=2 * k + 1), unbiased=True) for k in range(200)]
    )
    assert abs(found.mean()) < 3 * found.std() / 200**0.5
    assert (found < 0).any()


def test_kernel_distance_is_its_definition() -> None:
    x, y = _points(6, 4), _points(5, 4, seed=1) + 0.3

    def kernel(a: torch.Tensor, b: torch.Tensor) -> float:
        return float((a @ b / 4 + 1) ** 3)

    within = [sum(kernel(a, b) for a, b in itertools.permutations(s, 2)) / (len(s) * (len(s) - 1)) for s in (x, y)]
    between = sum(kernel(a, b) for a in x for b in y) / 30
    assert kernel_distance(x, y) == pytest.approx(sum(within) - 2 * between, rel=1e-10)


def test_kernel_distance_is_unbiased() -> None:
    found = torch.tensor(
        [kernel_distance(_points(12, 3, seed=2 * k), _points(12, 3, seed=2 * k + 1)) for k in range(200)]
    )
    assert abs(found.mean()) < 3 * found.std() / 200**0.5


def test_refuses_what_cannot_be_compared() -> None:
    with pytest.raises((ValueError, TypeCheckError)):
        energy_distance(_points(3, 2), _points(3, 3))
    with pytest.raises(ValueError, match="at least 2 rows"):
        kernel_distance(_points(1, 2), _points(3, 2))
    with pytest.raises(ValueError, match="finite"):
        energy_distance(torch.full((3, 2), torch.inf), _points(3, 2))
