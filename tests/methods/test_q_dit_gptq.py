"""Laws of GPTQ with groups: without correlation it is rounding, with correlation it is better than rounding."""

import warnings

import pytest
import torch

from mezzotint.methods.q_dit.gptq import Hessian, gptq, inverse_factor
from mezzotint.methods.q_dit.quantiser import Precision, quantise
from mezzotint.methods.q_dit.ranges import weight_grid


@pytest.fixture(scope="module")
def layer():
    """A weight, strongly correlated inputs and their matrix."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(24, 288, generator=generator)
    mixing = torch.randn(288, 48, generator=generator)
    inputs = torch.randn(800, 48, generator=generator) @ mixing.T + 0.1 * torch.randn(800, 288, generator=generator)
    hessian = Hessian(288)
    for rows in inputs.reshape(8, 100, 288):
        hessian.add(rows)
    return weight, inputs, hessian.matrix


def error(weight, codes, inputs):
    return float(((weight - codes.dequantised()) @ inputs.T).square().sum())


def test_the_matrix_is_the_sum_of_outer_products_over_the_samples():
    inputs = torch.arange(24.0).reshape(2, 3, 4)
    hessian = Hessian(4)
    hessian.add(inputs[:1])
    hessian.add(inputs[1:])
    rows = inputs.reshape(6, 4)
    torch.testing.assert_close(hessian.matrix, rows.T @ rows * (2 / 2))
    with pytest.raises(ValueError, match="no input was seen"):
        _ = Hessian(4).matrix


def test_the_factor_is_upper_and_its_square_is_the_inverse(layer):
    _, _, matrix = layer
    factor, dead = inverse_factor(matrix)
    assert not dead.any()
    assert torch.equal(factor, factor.triu())
    damped = matrix.double() + 0.01 * matrix.diagonal().double().mean() * torch.eye(288)
    torch.testing.assert_close(factor.double().T @ factor.double() @ damped, torch.eye(288).double(), rtol=0, atol=1e-3)


@pytest.mark.parametrize("group", [32, 72, 96, 288])
@pytest.mark.parametrize("symmetric", [False, True])
def test_without_correlation_it_is_rounding_to_nearest(layer, group, symmetric):
    weight, precision = layer[0], Precision(4, symmetric)
    codes, plain = gptq(weight, torch.eye(288), precision, group), quantise(weight, precision, group)
    assert torch.equal(codes.codes, plain.codes)
    assert torch.equal(codes.scale, plain.scale)
    assert torch.equal(codes.zero, plain.zero)


@pytest.mark.parametrize("group", [1, 32, 96, 144, 288])
@pytest.mark.parametrize("stale", [False, True])
def test_with_correlation_it_errs_far_less_than_rounding(layer, group, stale):
    weight, inputs, matrix = layer
    codes = gptq(weight, matrix, Precision(4), group, official_stale_params=stale)
    # With one channel a group every number is its own scale: rounding is exact already.
    if group == 1:
        torch.testing.assert_close(codes.dequantised(), weight, rtol=1e-3, atol=1e-3)
    else:
        assert error(weight, codes, inputs) < 0.3 * error(weight, quantise(weight, Precision(4), group), inputs)


def test_every_group_has_the_scales_of_its_columns_as_they_were_when_it_began(layer):
    """With current columns the last group, which nothing follows, is its own reference: its codes span the range."""
    weight, _, matrix = layer
    current, stale = (gptq(weight, matrix, Precision(4), 32, official_stale_params=s) for s in (False, True))
    torch.testing.assert_close(current.scale[:, 0], weight_grid(weight[:, :32], Precision(4), 32)[0][:, 0])
    assert torch.equal(current.scale[:, 0], stale.scale[:, 0])
    assert not torch.equal(current.scale[:, 1:4], stale.scale[:, 1:4])
    # Stale scales of the first column block are those of the weight as it was given.
    torch.testing.assert_close(stale.scale[:, :4], weight_grid(weight[:, :128], Precision(4), 32)[0])


def test_a_group_of_a_multiple_of_the_column_block_has_no_stale_form(layer):
    weight, _, matrix = layer
    weight, matrix = weight[:, :256], matrix[:256, :256]
    for group in (128, 256):
        current, stale = (gptq(weight, matrix, Precision(4), group, official_stale_params=s) for s in (False, True))
        assert torch.equal(current.codes, stale.codes)


def test_dead_channels_give_zero_columns(layer):
    weight, inputs, _ = layer
    inputs = inputs.clone()
    inputs[:, [3, 100]] = 0
    hessian = Hessian(288)
    hessian.add(inputs)
    made = gptq(weight, hessian.matrix, Precision(4), 32).dequantised()
    assert (made[:, [3, 100]] == 0).all()
    assert (made[:, 4] != 0).any()


def test_more_bits_err_less(layer):
    weight, inputs, matrix = layer
    errors = [error(weight, gptq(weight, matrix, Precision(bits), 96), inputs) for bits in (2, 4, 8)]
    assert errors[2] < 0.1 * errors[1] < 0.1 * errors[0]


def test_rows_are_rounded_independently(layer):
    weight, _, matrix = layer
    order = torch.randperm(24, generator=torch.Generator().manual_seed(1))
    codes, permuted = gptq(weight, matrix, Precision(4), 32), gptq(weight[order], matrix, Precision(4), 32)
    torch.testing.assert_close(permuted.dequantised(), codes.dequantised()[order], rtol=1e-4, atol=1e-4)


def test_bad_matrices_and_weights_are_refused(layer):
    weight, _, matrix = layer
    with pytest.raises(ValueError, match="calibration inputs must be finite"):
        gptq(weight, matrix * float("nan"), Precision(4), 32)
    with pytest.raises(ValueError, match="weight must be finite"):
        gptq(weight * float("inf"), matrix, Precision(4), 32)
    with pytest.raises(ValueError, match="not positive definite: raise damping"):
        gptq(weight, matrix - 2 * matrix.diagonal().mean() * torch.eye(288), Precision(4), 32)
    with pytest.raises(ValueError, match="must divide the 288 input channels, got 100"):
        gptq(weight, matrix, Precision(4), 100)


def test_too_few_inputs_are_warned_about():
    few, enough = Hessian(128), Hessian(128)
    few.add(torch.randn(3, 128))
    enough.add(torch.randn(4, 128))
    with pytest.warns(UserWarning, match="layer 'fc': 3 calibration inputs for 128 channels"):
        few.warn_if_few("fc")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        enough.warn_if_few("fc")
