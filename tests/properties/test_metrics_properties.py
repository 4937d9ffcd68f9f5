"""Properties of the measuring instruments, for any numbers."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mezzotint.diffusion.rng import stream
from mezzotint.metrics.bootstrap import mean_interval, paired_difference, resampled_means
from mezzotint.metrics.distances import energy_distance, kernel_distance
from mezzotint.metrics.frechet import frechet_distance
from mezzotint.metrics.scene_accuracy import ParsedObject, WantedObject, score_scene
from mezzotint.metrics.similarity import cosine, psnr, rmse

few = settings(deadline=None, max_examples=40)
seeds = st.integers(0, 2**31)
sizes = st.integers(1, 5)
shapes = st.sampled_from(("cube", "sphere", "cone"))
colours = st.sampled_from(("red", "blue", "green"))
wanted_parts = st.tuples(shapes, st.none() | colours)
parsed_parts = st.tuples(shapes, colours, st.floats(0, 1))


def _normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=stream(seed, "test-property"), dtype=torch.float64)


@few
@given(sizes, st.integers(1, 20), seeds, st.floats(0.1, 10), st.floats(-5, 5))
def test_intervals_hold_their_estimate_and_follow_the_unit(
    n: int, units: int, seed: int, scale: float, shift: float
) -> None:
    values = _normal(n, units, seed=seed)
    found, moved = (mean_interval(v, draws=200, seed=seed) for v in (values, scale * values + shift))
    assert found.low <= found.high
    for name in ("estimate", "low", "high"):
        assert getattr(moved, name) == pytest.approx(scale * getattr(found, name) + shift, abs=1e-8)


@few
@given(sizes, st.integers(1, 20), seeds)
def test_turning_a_comparison_round_turns_its_sign(n: int, units: int, seed: int) -> None:
    """To within the small-sample rule: the quantiles of the mirrored draws are the mirrored quantiles."""
    ours, theirs = _normal(n, units, seed=seed), _normal(n, units, seed=seed + 1)
    there, back = (paired_difference(a, b, draws=201, seed=seed) for a, b in ((ours, theirs), (theirs, ours)))
    assert back.estimate == pytest.approx(-there.estimate)
    assert (back.low, back.high) == pytest.approx((-there.high, -there.low), abs=1e-9)


@few
@given(sizes, st.integers(1, 12), seeds)
def test_resampled_means_stay_within_the_values(n: int, units: int, seed: int) -> None:
    values = _normal(n, units, seed=seed)
    means = resampled_means(values[None], draws=100, seed=seed)
    assert means.min() >= values.min() - 1e-12
    assert means.max() <= values.max() + 1e-12


@few
@given(st.integers(2, 30), st.integers(1, 12), seeds)
def test_frechet_is_a_squared_distance(count: int, size: int, seed: int) -> None:
    """Symmetric, never negative, zero to itself, and its root keeps the triangle inequality."""
    x, y, z = (_normal(count, size, seed=seed + k) * (k + 1) + k for k in range(3))
    xy, yz, xz = frechet_distance(x, y), frechet_distance(y, z), frechet_distance(x, z)
    assert frechet_distance(y, x) == pytest.approx(xy, rel=1e-9, abs=1e-10)
    assert frechet_distance(x, x) <= 1e-9
    assert xz**0.5 <= xy**0.5 + yz**0.5 + 1e-6


@few
@given(st.integers(1, 20), st.integers(1, 20), st.integers(1, 4), seeds)
def test_energy_is_a_distance_and_blind_to_order(n: int, m: int, size: int, seed: int) -> None:
    x, y = _normal(n, size, seed=seed), _normal(m, size, seed=seed + 1)
    found = energy_distance(x, y)
    assert found >= -1e-12
    assert energy_distance(y, x) == pytest.approx(found, abs=1e-10)
    assert energy_distance(x.flip(0), y.flip(0)) == pytest.approx(found, abs=1e-10)
    assert energy_distance(torch.cat([x, x]), y) == pytest.approx(found, abs=1e-10), "a set twice is the same law"


@few
@given(st.integers(2, 15), st.integers(1, 6), seeds)
def test_kernel_distance_is_symmetric_and_blind_to_rotation(count: int, size: int, seed: int) -> None:
    x, y = _normal(count, size, seed=seed), _normal(count + 1, size, seed=seed + 1)
    turn = torch.linalg.qr(_normal(size, size, seed=seed + 2)).Q
    found = kernel_distance(x, y)
    assert kernel_distance(y, x) == pytest.approx(found, rel=1e-9, abs=1e-9)
    assert kernel_distance(x @ turn, y @ turn) == pytest.approx(found, rel=1e-7, abs=1e-7)


@few
@given(st.integers(1, 4), seeds, st.floats(0.01, 2))
def test_more_error_is_less_similar(count: int, seed: int, strength: float) -> None:
    x, noise = _normal(count, 3, 5, 5, seed=seed), _normal(count, 3, 5, 5, seed=seed + 1)
    near, far = x + strength * noise, x + 2 * strength * noise
    torch.testing.assert_close(rmse(far, x), 2 * rmse(near, x))
    torch.testing.assert_close(
        psnr(near, x) - psnr(far, x), torch.full((count,), 20.0).double() * torch.tensor(2.0).double().log10()
    )
    assert (cosine(near, x) <= 1 + 1e-12).all()


@few
@given(st.lists(wanted_parts, min_size=1, max_size=4), st.lists(parsed_parts, max_size=5), st.randoms())
def test_scene_scores_are_shares_and_blind_to_order(wants: list, sees: list, random: object) -> None:
    wanted = [WantedObject(*part) for part in wants]
    parsed = [ParsedObject(shape, colour, score=score) for shape, colour, score in sees]
    found = score_scene(wanted, parsed)
    for name in ("right", "exact", "objects", "presence", "binding", "swap", "missing", "count", "relations"):
        assert 0 <= getattr(found, name) <= 1
    assert found.exact <= found.right <= (found.objects == 1)
    assert found.objects <= found.presence
    assert found.missing == (found.presence < 1)
    seen = sum(item.score >= 0.5 for item in parsed)
    assert found.extra == seen - round(found.presence * len(wanted))
    shuffled = list(parsed)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    again = score_scene(wanted[::-1], shuffled)
    for name in ("right", "exact", "objects", "presence", "missing", "extra", "count"):
        assert getattr(again, name) == pytest.approx(getattr(found, name))


@few
@given(st.lists(st.tuples(shapes, colours), min_size=1, max_size=4))
def test_a_perfect_picture_is_right_whatever_was_wanted(wants: list) -> None:
    wanted = [WantedObject(*part) for part in wants]
    found = score_scene(wanted, [ParsedObject(item.shape, item.colour) for item in reversed(wanted)])
    assert (found.exact, found.swap, found.binding, found.extra) == (1, 0, 1, 0)
