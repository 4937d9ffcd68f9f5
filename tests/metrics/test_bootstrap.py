"""Laws of the paired two-way bootstrap."""

from __future__ import annotations

import math

import pytest
import torch
from jaxtyping import TypeCheckError

from mezzotint.diffusion.rng import stream
from mezzotint.metrics import bootstrap
from mezzotint.metrics.bootstrap import (
    effect,
    mean_interval,
    paired_difference,
    percentile_interval,
    resampled_indices,
    resampled_means,
    resampled_statistic,
)


def _table(
    seeds: int, units: int, *, seed: int = 0, spread: tuple[float, float, float] = (0.0, 1.0, 1.0)
) -> torch.Tensor:
    generator = stream(seed, "test-table")
    by_seed = torch.randn(seeds, 1, generator=generator, dtype=torch.float64)
    by_unit = torch.randn(1, units, generator=generator, dtype=torch.float64)
    rest = torch.randn(seeds, units, generator=generator, dtype=torch.float64)
    return spread[0] * by_seed + spread[1] * by_unit + spread[2] * rest


def test_means_match_a_loop_over_resampled_tables() -> None:
    values = _table(3, 5)
    seeds, units = (resampled_indices(n, draws=20, seed=4, purpose=p) for n, p in ((3, "seeds"), (5, "units")))
    expected = torch.stack([values[s][:, u].mean() for s, u in zip(seeds, units, strict=True)])
    torch.testing.assert_close(resampled_means(values[None], draws=20, seed=4)[:, 0], expected)


def test_a_constant_has_no_spread() -> None:
    found = mean_interval(torch.full((3, 7), 0.25))
    assert (found.estimate, found.low, found.high) == (0.25, 0.25, 0.25)


def test_an_arm_differs_from_itself_by_nothing() -> None:
    values = _table(3, 20)
    found = paired_difference(values, values)
    assert (found.estimate, found.low, found.high) == (0.0, 0.0, 0.0)


def test_what_prompts_share_cancels() -> None:
    """The difference is constant although prompts differ wildly: pairing must see that."""
    baseline = 100 * _table(3, 20)
    found = paired_difference(baseline - 0.5, baseline)
    torch.testing.assert_close(torch.tensor([found.low, found.high]), torch.tensor([-0.5, -0.5]))


def test_breaking_the_pairs_breaks_that() -> None:
    baseline = 100 * _table(3, 20)
    found = paired_difference(baseline[:, torch.arange(19, -1, -1)] - 0.5, baseline)
    assert found.low < -1.5
    assert found.high > 0.5


def test_moves_and_scales_with_the_values() -> None:
    values = _table(3, 12)
    plain, moved = mean_interval(values), mean_interval(3 * values + 7)
    for name in ("estimate", "low", "high"):
        assert getattr(moved, name) == pytest.approx(3 * getattr(plain, name) + 7, abs=1e-9)


def test_a_ratio_does_not_know_the_unit() -> None:
    ours, baseline = _table(2, 15).exp(), _table(2, 15, seed=1).exp() + 1
    metres, feet = (paired_difference(k * ours, k * baseline, relative=True) for k in (1.0, 3.28))
    for name in ("estimate", "low", "high"):
        assert getattr(metres, name) == pytest.approx(getattr(feet, name), abs=1e-9)
    assert metres.estimate == pytest.approx((ours.mean() / baseline.mean() - 1).item())


def test_one_seed_has_the_textbook_standard_error() -> None:
    values = _table(1, 400)
    draws = resampled_means(values[None], draws=4_000)[:, 0]
    textbook = values.std(correction=0) / math.sqrt(400)
    torch.testing.assert_close(draws.std(), textbook, rtol=0.05, atol=0)


def test_blocks_of_any_size_give_the_same_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    values = torch.stack([_table(3, 10), _table(3, 10, seed=1)])
    whole = resampled_means(values, draws=500)
    monkeypatch.setattr(bootstrap, "_REMEMBERED", 0)
    monkeypatch.setattr(bootstrap, "_ROWS", 37)
    torch.testing.assert_close(resampled_means(values, draws=500), whole)


def test_repeats_bit_for_bit_and_another_seed_differs() -> None:
    values = _table(3, 10)
    assert mean_interval(values, seed=2) == mean_interval(values, seed=2)
    assert mean_interval(values, seed=2) != mean_interval(values, seed=3)


def test_seeds_and_units_are_resampled_independently() -> None:
    seeds, units = (resampled_indices(6, draws=2_000, purpose=name) for name in ("seeds", "units"))
    assert (seeds == units).double().mean().item() == pytest.approx(1 / 6, abs=0.01)


CASES = [
    (1, 40, (0.0, 1.0, 1.0)),
    (1, 5, (0.0, 1.0, 0.0)),
    (3, 40, (0.0, 1.0, 1.0)),
    (3, 40, (1.0, 1.0, 1.0)),
    (3, 1, (1.0, 0.0, 0.0)),
    (2, 60, (0.2, 1.0, 1.0)),
]


def _coverage(seeds: int, units: int, spread: tuple[float, float, float], trials: int = 200) -> float:
    tables = (_table(seeds, units, seed=k, spread=spread) for k in range(trials))
    found = [mean_interval(table, draws=500) for table in tables]
    return sum(item.low <= 0 <= item.high for item in found) / trials


@pytest.mark.parametrize(("seeds", "units", "spread"), CASES)
def test_covers_the_truth_nineteen_times_of_twenty(seeds: int, units: int, spread: tuple[float, float, float]) -> None:
    """200 trials at 95 % have a standard deviation of 1.5 %: 90 % is three of them below."""
    assert _coverage(seeds, units, spread) >= 0.90


def test_without_the_expansion_few_seeds_are_not_covered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap, "_stretch", lambda effects, **_: torch.zeros_like(effects))
    assert _coverage(3, 40, (1.0, 1.0, 1.0)) < 0.86
    assert _coverage(3, 1, (1.0, 0.0, 0.0)) < 0.82


def test_no_expansion_for_many_units() -> None:
    """The stretch of 2,000 units is below a thousandth of the interval's width."""
    values = _table(1, 2_000)
    found = mean_interval(values, draws=2_000)
    low, high = percentile_interval(resampled_means(values[None], draws=2_000)[:, 0])
    assert found.high - found.low == pytest.approx(high - low, rel=1e-3)


def test_a_statistic_of_a_set_is_resampled_like_a_mean() -> None:
    values = _table(1, 30)[0]
    draws = resampled_statistic(lambda chosen: values[chosen].mean().item(), 30, draws=50, seed=5)
    torch.testing.assert_close(draws, resampled_means(values[None, None], draws=50, seed=5)[:, 0])


def test_percentiles_of_known_draws() -> None:
    low, high = percentile_interval(torch.arange(1001, dtype=torch.float64), level=0.9)
    assert (low, high) == pytest.approx((50.0, 950.0))


@pytest.mark.parametrize("level", [0.0, 1.0, -0.5, 2.0])
def test_refuses_impossible_levels(level: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        percentile_interval(torch.zeros(3), level=level)


def test_refuses_what_cannot_be_compared() -> None:
    with pytest.raises((ValueError, TypeCheckError)):
        paired_difference(torch.zeros(2, 3), torch.zeros(3, 2))
    with pytest.raises(ValueError, match="finite"):
        mean_interval(torch.tensor([[1.0, math.nan]]))
    with pytest.raises(ValueError, match="empty"):
        mean_interval(torch.zeros(0, 3))
    with pytest.raises(ValueError, match="above 0"):
        effect(torch.tensor(1.0), torch.tensor(0.0), relative=True)
    with pytest.raises(ValueError, match="at least 1"):
        resampled_indices(0, draws=5)
