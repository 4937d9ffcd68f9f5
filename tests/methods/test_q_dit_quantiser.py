"""Laws of the quantisers: what is kept exactly, how far a number can move, and who shares a scale with whom."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mezzotint.methods.q_dit.quantiser import (
    BITS,
    LayerSpec,
    Precision,
    fake_quantise,
    group_ranges,
    quantise,
    ranges_to_grid,
)
from mezzotint.methods.q_dit.ranges import ErrorRange, RunningRange, weight_grid

ROUNDED = [Precision(bits, symmetric) for bits in BITS[:-1] for symmetric in (False, True)]
EXACT = {"rtol": 2e-6, "atol": 0.0}
precisions = st.sampled_from(ROUNDED)


def numbers(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def tensors():
    whole = st.integers(-4000, 4000).map(lambda k: k / 128)
    return st.lists(whole, min_size=16, max_size=16).map(lambda values: torch.tensor(values).reshape(2, 8))


@given(x=tensors(), precision=precisions, group=st.sampled_from([1, 2, 4, 8]))
def test_no_number_moves_further_than_half_a_step_and_rounding_again_changes_nothing(x, precision, group):
    codes = quantise(x, precision, group)
    made = codes.dequantised()
    step = codes.scale.repeat_interleave(group, dim=-1)
    assert ((made - x).abs() <= step / 2 * (1 + 1e-5) + 1e-6 * x.abs()).all()
    assert codes.codes.min() >= precision.lowest
    assert codes.codes.max() <= precision.highest
    # An exact tie at the range's end makes the grid of the result another one; the error bound still holds there.
    again = fake_quantise(made, precision, group)
    ends = zip(group_ranges(made, group), group_ranges(x, group), strict=True)
    if all(torch.allclose(a, b, rtol=1e-5) for a, b in ends):
        torch.testing.assert_close(again, made, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("precision", ROUNDED, ids=str)
def test_rounding_twice_is_rounding_once(precision):
    made = fake_quantise(numbers(64, 32), precision, 16)
    torch.testing.assert_close(fake_quantise(made, precision, 16), made, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("precision", ROUNDED, ids=str)
def test_zero_is_kept_and_constants_are_exact(precision):
    x = numbers(4, 32)
    x[:, ::3] = 0
    assert (fake_quantise(x, precision, 8)[:, ::3] == 0).all()
    assert (fake_quantise(torch.zeros(3, 8), precision, 8) == 0).all()
    for value in (1.3, -0.7):
        constant = torch.full((2, 8), value)
        torch.testing.assert_close(fake_quantise(constant, precision, 8), constant, **EXACT)


def test_a_group_of_one_sign_keeps_its_values_where_the_official_form_saturates():
    x = torch.linspace(1.0, 1.1, 32)[None]
    low, high = group_ranges(x, 32)
    official = ranges_to_grid(low, high, Precision(8), official=True)
    assert (fake_quantise(x, Precision(8), 32) - x).abs().max() < 0.0025
    assert (fake_quantise(x, Precision(8), 32, grid=official) - x).abs().max() > 0.9


@pytest.mark.parametrize("precision", ROUNDED, ids=str)
@pytest.mark.parametrize("power", [-3, 5])
def test_a_power_of_two_passes_through(precision, power):
    x = numbers(8, 32)
    assert torch.equal(fake_quantise(x * 2.0**power, precision, 8), fake_quantise(x, precision, 8) * 2.0**power)


@pytest.mark.parametrize("bits", BITS[:-1])
def test_symmetric_codes_are_odd(bits):
    x, precision = numbers(8, 32), Precision(bits, symmetric=True)
    codes = quantise(x, precision, 8)
    assert (codes.scale > 0).all()
    assert (codes.zero == 0).all()
    assert torch.equal(fake_quantise(-x, precision, 8), -fake_quantise(x, precision, 8))


def test_sixteen_bits_leave_everything_alone():
    x = numbers(2, 8)
    assert fake_quantise(x, Precision(16), 4) is x
    with pytest.raises(ValueError, match="16 bits"):
        quantise(x, Precision(16), 4)


@pytest.mark.parametrize("precision", ROUNDED, ids=str)
def test_the_short_way_equals_codes_and_back(precision):
    x = numbers(2, 3, 32)
    for scope in ("token", "sample"):
        codes = quantise(x, precision, 8, scope=scope)
        assert torch.equal(codes.dequantised(), fake_quantise(x, precision, 8, scope=scope))


def test_groups_of_the_whole_width_are_rows_and_groups_of_one_are_exact():
    x = numbers(6, 16)
    by_row = torch.cat([fake_quantise(row[None], Precision(4), 16) for row in x])
    assert torch.equal(fake_quantise(x, Precision(4), 16), by_row)
    torch.testing.assert_close(fake_quantise(x, Precision(2), 1), x, **EXACT)


@given(x=tensors(), precision=precisions)
def test_halving_the_groups_never_makes_a_step_larger(x, precision):
    steps = [quantise(x, precision, group).scale.max() for group in (8, 4, 2, 1)]
    assert steps == sorted(steps, reverse=True)


@pytest.mark.parametrize("scope", ["token", "sample"])
def test_a_sample_is_rounded_alike_in_every_batch_but_not_with_one_range_for_all(scope):
    x = numbers(3, 5, 16) * torch.tensor([0.1, 1, 10])[:, None, None]
    alone = torch.cat([fake_quantise(item[None], Precision(8), 8, scope=scope) for item in x])
    assert torch.equal(fake_quantise(x, Precision(8), 8, scope=scope), alone)
    wide = RunningRange(16)
    wide.update(x)
    static = fake_quantise(x, Precision(8), 16, grid=wide.grid(Precision(8)))
    narrow = RunningRange(16)
    narrow.update(x[:1])
    assert not torch.equal(static[:1], fake_quantise(x[:1], Precision(8), 16, grid=narrow.grid(Precision(8))))


def test_tokens_have_ranges_of_their_own_and_samples_one_for_all_tokens():
    x = numbers(2, 6, 16)
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    for scope in ("token", "sample"):
        permuted = fake_quantise(x[:, order], Precision(4), 8, scope=scope)
        assert torch.equal(permuted, fake_quantise(x, Precision(4), 8, scope=scope)[:, order])
    single = x[:, :1]
    assert torch.equal(
        fake_quantise(single, Precision(4), 8, scope="sample"), fake_quantise(single, Precision(4), 8, scope="token")
    )
    x[0, 0] *= 100
    changed = fake_quantise(x, Precision(4), 8, scope="sample")
    assert torch.equal(changed[1], fake_quantise(x[1:], Precision(4), 8, scope="sample")[0])
    assert not torch.equal(changed[0, 1:], fake_quantise(x, Precision(4), 8)[0, 1:])


def test_the_least_error_range_errs_less_than_the_extremes_when_there_are_outliers():
    weight = numbers(8, 64)
    weight[:, 0] = 6
    errors = {}
    for rule in ("max", "mse"):
        grid = weight_grid(weight, Precision(3), 64, ranges=rule)
        errors[rule] = (fake_quantise(weight, Precision(3), 64, grid=grid) - weight).abs().pow(2.4).mean(-1)
    assert (errors["mse"] <= errors["max"]).all()
    assert errors["mse"].mean() < 0.97 * errors["max"].mean()


def test_a_clip_ratio_multiplies_the_range():
    weight = numbers(4, 32)
    full, half = (weight_grid(weight, Precision(4), 8, clip_ratio=ratio)[0] for ratio in (1.0, 0.5))
    torch.testing.assert_close(half, full / 2)
    with pytest.raises(ValueError, match="clip_ratio must lie"):
        weight_grid(weight, Precision(4), 8, clip_ratio=0.0)


def test_a_running_range_is_the_weighted_mean_of_batch_extremes():
    running = RunningRange(4)
    for scale in (1.0, 3.0):
        running.update(scale * torch.tensor([[-1.0, 0, 0, 2], [0, 0, 0, 1]]))
    torch.testing.assert_close(running.low, torch.tensor([-(0.9 + 0.3)]))
    torch.testing.assert_close(running.high, torch.tensor([2 * (0.9 + 0.3)]))
    with pytest.raises(ValueError, match="no batch was seen"):
        RunningRange(4).grid(Precision(8))


def test_the_static_range_of_least_error_cuts_a_rare_outlier_and_serves_every_group():
    x = numbers(200, 8)
    x[0, 5] = 30
    found = ErrorRange(4)
    found.update(x)
    scale, _ = found.grid(Precision(4))
    wide = RunningRange(4)
    wide.update(x)
    extremes, _ = wide.grid(Precision(4))
    assert scale.shape == extremes.shape == (2,)
    assert scale[1] < 0.8 * extremes[1]

    def error(grid):
        return (fake_quantise(x, Precision(4), 4, grid=grid) - x).square().mean()

    assert error(found.grid(Precision(4))) < error(wide.grid(Precision(4)))


def test_empty_tensors_stay_empty():
    for shape in ((0, 16), (3, 0)):
        assert quantise(torch.zeros(shape), Precision(8), 8).dequantised().shape == shape
        assert fake_quantise(torch.zeros(shape), Precision(8), 8).shape == shape


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_refused(bad):
    x = numbers(2, 8)
    x[1, 3] = bad
    grid = ranges_to_grid(torch.full((2, 1), -1.0), torch.ones(2, 1), Precision(8))
    for fixed in (None, grid):
        with pytest.raises(ValueError, match="must be finite"):
            fake_quantise(x, Precision(8), 8, grid=fixed)


def test_bad_precisions_groups_and_specs_are_refused():
    with pytest.raises(ValueError, match=r"bits must be one of 2, 3, 4, 5, 6, 8, 16, got 7"):
        Precision(7)
    for group in (0, -1, 3):
        with pytest.raises(ValueError, match=f"must divide the 16 input channels, got {group}"):
            quantise(numbers(2, 16), Precision(8), group)
    with pytest.raises(ValueError, match="group must be at least 1"):
        LayerSpec(Precision(4), Precision(8), 0)
