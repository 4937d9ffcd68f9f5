"""Muon and AdamW: what one update is, which tensor goes where, and that state survives as plain tensors."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from mezzotint.training import adamw, muon, optimiser_state
from mezzotint.training.optimisers import orthogonalise
from tests.training import small


def gradients(net: nn.Module, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    for value in net.parameters():
        value.grad = torch.randn(value.shape, generator=generator)


@pytest.mark.parametrize("shape", [(3, 8, 20), (2, 20, 8), (1, 1, 9)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_singular_values_come_near_one_and_vectors_stay(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """For X = U S V' the iteration gives U p(S) V' with p(s) in about 0.7..1.2."""
    matrices = small.seeded(lambda: torch.randn(shape))
    result = orthogonalise(matrices, dtype=dtype)
    left, _, right = torch.linalg.svd(matrices, full_matrices=False)
    inner = left.mT @ result @ right.mT
    values = inner.diagonal(dim1=-2, dim2=-1)
    assert bool(((values > 0.6) & (values < 1.3)).all())
    off = inner - torch.diag_embed(values)
    assert float(off.abs().max()) < (1e-4 if dtype == torch.float32 else 0.1)


def test_scale_and_sign_of_a_matrix_do_not_matter_beyond_its_direction() -> None:
    matrices = small.seeded(lambda: torch.randn(2, 6, 9))
    result = orthogonalise(matrices, dtype=torch.float32)
    assert_close(orthogonalise(1000.0 * matrices, dtype=torch.float32), result)
    assert_close(orthogonalise(-matrices, dtype=torch.float32), -result)
    assert torch.equal(orthogonalise(torch.zeros(1, 3, 3)), torch.zeros(1, 3, 3))


def test_muon_moves_with_the_root_mean_square_of_adamw() -> None:
    """0.2 sqrt(max(m, n)) times an orthogonal m x n matrix has root mean square 0.2, whatever the shape."""
    for shape in ((64, 64), (32, 256), (16, 8, 3, 3)):
        layer = nn.Module()
        layer.weight = nn.Parameter(torch.zeros(shape))
        gradients(layer)
        muon(layer, 1.0, weight_decay=0.0).step()
        assert float(layer.weight.detach().square().mean().sqrt()) == pytest.approx(0.2, rel=0.2)


def test_one_muon_update_by_hand() -> None:
    """First step from zero momentum: M = 0.05 G, direction 0.05 G + 0.95 (M - ... ) is parallel to G."""
    layer = nn.Linear(6, 4, bias=False)
    before = layer.weight.detach().clone()
    gradients(layer)
    assert layer.weight.grad is not None
    muon(layer, 0.1, weight_decay=0.5, product_dtype=torch.float32).step()
    direction = orthogonalise(layer.weight.grad[None], dtype=torch.float32)[0]
    expected = before * (1 - 0.1 * 0.5) - 0.1 * 0.2 * math.sqrt(6) * direction
    assert_close(layer.weight.detach(), expected, atol=1e-5, rtol=1e-4)


def test_momentum_is_nesterov_s() -> None:
    """Second step: M = 0.95 M + 0.05 G; direction = 0.05 G + 0.95 M."""
    layer = nn.Linear(5, 5, bias=False)
    optimiser = muon(layer, 0.1, weight_decay=0.0, product_dtype=torch.float32)
    momentum = torch.zeros(5, 5)
    for seed in (1, 2):
        gradients(layer, seed)
        assert layer.weight.grad is not None
        before = layer.weight.detach().clone()
        momentum = 0.95 * momentum + 0.05 * layer.weight.grad
        direction = orthogonalise((0.05 * layer.weight.grad + 0.95 * momentum)[None], dtype=torch.float32)[0]
        optimiser.step()
        assert_close(layer.weight.detach(), before - 0.1 * 0.2 * math.sqrt(5) * direction, atol=1e-5, rtol=1e-4)


def test_convolutions_are_treated_as_their_flattened_matrices() -> None:
    convolution, linear = nn.Conv2d(3, 4, 2, bias=False), nn.Linear(12, 4, bias=False)
    linear.weight.data = convolution.weight.detach().reshape(4, 12).clone()
    gradients(convolution)
    gradients(linear)
    for layer in (convolution, linear):
        muon(layer, 0.1).step()
    assert_close(convolution.weight.reshape(4, 12), linear.weight)


def test_vectors_and_tables_follow_torch_s_adamw() -> None:
    net = nn.ModuleDict({"table": nn.Embedding(7, 3), "norm": nn.LayerNorm(3)})
    other = nn.ModuleDict({"table": nn.Embedding(7, 3), "norm": nn.LayerNorm(3)})
    other.load_state_dict(net.state_dict())
    ours, torchs = muon(net, 0.01, weight_decay=0.1), adamw(other, 0.01, weight_decay=0.1)
    for seed in range(4):
        gradients(net, seed)
        gradients(other, seed)
        ours.step()
        torchs.step()
    for name, value in net.named_parameters():
        assert_close(value, other.get_parameter(name))


def test_gains_and_biases_are_not_decayed() -> None:
    layer = nn.Linear(3, 2)
    for value in layer.parameters():
        value.grad = torch.zeros_like(value)
    before = {name: value.detach().clone() for name, value in layer.named_parameters()}
    adamw(layer, 0.1, weight_decay=0.5).step()
    assert torch.equal(layer.bias, before["bias"])
    assert_close(layer.weight.detach(), before["weight"] * (1 - 0.1 * 0.5))


def test_tensors_without_a_gradient_stay() -> None:
    net = small.network(plain=True)
    net[0].weight.grad = torch.ones_like(net[0].weight)
    before = {name: value.detach().clone() for name, value in net.named_parameters()}
    muon(net, 0.1).step()
    moved = [name for name, value in net.named_parameters() if not torch.equal(value, before[name])]
    assert moved == ["0.weight"]


@pytest.mark.parametrize("make", [adamw, muon])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gathered_state_continues_bit_for_bit(make: object, dtype: torch.dtype) -> None:
    """Half precision included: `Optimizer.load_state_dict` would round the float32 moments of Muon."""
    assert callable(make)
    first, second = (small.network().to(dtype, memory_format=torch.channels_last) for _ in range(2))
    one, two = make(first, 0.01), make(second, 0.01)
    named = [dict(net.named_parameters()) for net in (first, second)]

    def step(net: nn.Module, optimiser: torch.optim.Optimizer, seed: int) -> None:
        for value, noise in zip(net.parameters(), _noise(net, seed), strict=True):
            value.grad = noise.to(value)
        optimiser.step()

    for seed in range(3):
        step(first, one, seed)
    second.load_state_dict(first.state_dict())
    tensors, numbers = optimiser_state.gather(one, named[0])
    optimiser_state.scatter(two, named[1], {key: value.contiguous() for key, value in tensors.items()}, numbers)
    step(first, one, 9)
    step(second, two, 9)
    assert all(torch.equal(value, named[1][name]) for name, value in named[0].items())


def _noise(net: nn.Module, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.empty_like(value, dtype=torch.float32).copy_(torch.randn(value.shape, generator=generator))
        for value in net.parameters()
    ]


def test_state_of_unknown_tensors_is_refused() -> None:
    net = small.network()
    with pytest.raises(ValueError, match="not among the parameters"):
        optimiser_state.gather(adamw(net, 0.1), {"only": net[0].weight})
