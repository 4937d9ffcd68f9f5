"""Moving scale between layers changes no function; it only decides where the outliers are."""

import copy

import pytest
import torch

from mezzotint.methods.q_dit.apply import channel_maxima
from mezzotint.methods.q_dit.calibration import Calibration
from mezzotint.methods.q_dit.folds import (
    fold_modulation,
    fold_values,
    inject_outliers,
    modulated_blocks,
    smooth,
    smoothing_scale,
    timestep_weighted_maximum,
)
from mezzotint.methods.q_dit.layers import find_targets
from tests.diffusion.conftest import tiny_dit, tiny_pixart


@pytest.fixture(scope="module")
def network():
    return tiny_dit()


@pytest.fixture(scope="module")
def calibration():
    generator = torch.Generator().manual_seed(5)
    return Calibration.of(
        hidden_states=torch.randn(6, 4, 8, 8, generator=generator),
        timestep=torch.tensor([1, 100, 300, 500, 700, 900]),
        class_labels=torch.arange(6),
    )


def output(network, calibration):
    with torch.no_grad():
        return network(**calibration.arguments())[0]


def spread(maxima):
    return float(maxima.max() / maxima.median())


def test_injected_outliers_change_the_channels_and_not_the_function(network, calibration):
    injected = copy.deepcopy(network)
    inject_outliers(injected, channels=3, seed=1)
    torch.testing.assert_close(output(injected, calibration), output(network, calibration), rtol=1e-5, atol=1e-5)
    layers = [
        "transformer_blocks.0.attn1.to_q",
        "transformer_blocks.1.ff.net.0.proj",
        "transformer_blocks.1.attn1.to_out.0",
    ]
    before, after = (channel_maxima(model, layers, calibration) for model in (network, injected))
    assert all(spread(after[name]) > 3 * spread(before[name]) for name in layers)


def test_forgetting_the_bias_of_the_scale_would_change_the_function(network, calibration):
    broken = copy.deepcopy(network)
    block = modulated_blocks(broken)["transformer_blocks.0"]
    scale = torch.full((16,), 0.1)
    kept = block.norm1.linear.bias[16:32].detach().clone()
    readers = [block.attn1.to_q, block.attn1.to_k, block.attn1.to_v]
    fold_modulation(block.norm1.linear, readers, scale, chunk=0)
    torch.testing.assert_close(output(broken, calibration), output(network, calibration), rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        block.norm1.linear.bias[16:32] = kept / scale
    assert (output(broken, calibration) - output(network, calibration)).abs().max() > 1e-3


def test_scale_of_the_values_passes_through_attention(network, calibration):
    folded = copy.deepcopy(network)
    attention = modulated_blocks(folded)["transformer_blocks.1"].attn1
    fold_values(attention.to_v, attention.to_out[0], torch.linspace(0.1, 10, 16))
    torch.testing.assert_close(output(folded, calibration), output(network, calibration), rtol=1e-5, atol=1e-5)


def test_smoothing_keeps_the_function_and_undoes_injected_outliers(network, calibration):
    injected = copy.deepcopy(network)
    inject_outliers(injected, channels=3, seed=1)
    layers = [target.name for target in find_targets(injected) if not target.modulation]
    smoothed = copy.deepcopy(injected)
    divisors = smooth(smoothed, channel_maxima(injected, layers, calibration))
    assert set(divisors) == {f"transformer_blocks.{k}.ff.net.2" for k in (0, 1)}
    query, feed = "transformer_blocks.0.attn1.to_q", "transformer_blocks.0.ff.net.0.proj"
    before, after = (channel_maxima(model, [query, feed], calibration) for model in (injected, smoothed))
    assert all(spread(after[name]) < 0.5 * spread(before[name]) for name in (query, feed))
    for name, divisor in divisors.items():
        layer = smoothed.get_submodule(name)
        layer.register_forward_pre_hook(lambda _, args, divisor=divisor: (args[0] / divisor,))
    torch.testing.assert_close(output(smoothed, calibration), output(network, calibration), rtol=1e-5, atol=1e-5)


def test_networks_without_modulated_blocks_divide_at_run_time():
    network = tiny_pixart()
    layers = [target.name for target in find_targets(network)]
    maxima = {name: torch.rand(network.get_submodule(name).in_features) + 0.1 for name in layers}
    assert set(smooth(copy.deepcopy(network), maxima)) == set(layers)
    with pytest.raises(ValueError, match="PixArtTransformer2DModel has none"):
        inject_outliers(network)


def test_half_alpha_shares_the_outliers_equally():
    activation, weight = torch.rand(8) * 10 + 0.1, torch.rand(8) + 0.1
    scale = smoothing_scale(activation, weight, alpha=0.5)
    torch.testing.assert_close(activation / scale, weight * scale)
    torch.testing.assert_close(smoothing_scale(activation, weight, alpha=1.0), activation)
    assert (smoothing_scale(torch.zeros(2), torch.ones(2)) == 1).all()
    with pytest.raises(ValueError, match="alpha must lie"):
        smoothing_scale(activation, weight, alpha=1.1)


def test_steps_whose_outliers_complement_the_weights_count_more():
    weight = torch.tensor([1.0, 2, 3, 4])
    alike, opposite = torch.tensor([10.0, 20, 30, 40]), torch.tensor([4.0, 3, 2, 1])
    mixed = timestep_weighted_maximum(torch.stack([alike, opposite]), weight)
    share = torch.softmax(torch.tensor([-1.0, 1.0]), 0)
    torch.testing.assert_close(mixed, share[0] * alike + share[1] * opposite)
