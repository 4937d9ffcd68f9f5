"""The moving average: its closed form, its limits, and swapping it in and out."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from mezzotint.training import EMA
from tests.training import small


def walk(decay: float, steps: int, *, warmup: bool = False) -> tuple[EMA, list[torch.Tensor]]:
    """A weight that walks at random, its average, and all its values beginning with the first."""
    weight = nn.Parameter(small.seeded(lambda: torch.randn(5)))
    ema, values = EMA({"w": weight}, decay, warmup=warmup), [weight.detach().clone()]
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        weight.data += torch.randn(5, generator=generator)
        ema.update()
        values.append(weight.detach().clone())
    return ema, values


def test_closed_form() -> None:
    """average_m = d^m w_0 + (1 - d) sum_j d^(m-1-j) w_(j+1)."""
    decay, steps = 0.8, 6
    ema, values = walk(decay, steps)
    expected = decay**steps * values[0]
    for j in range(steps):
        expected = expected + (1 - decay) * decay ** (steps - 1 - j) * values[j + 1]
    assert_close(ema.average["w"], expected)


def test_decay_zero_is_the_last_weight() -> None:
    ema, values = walk(0.0, 4)
    assert torch.equal(ema.average["w"], values[-1])


def test_warmup_follows_its_formula_and_ends_at_the_decay() -> None:
    ema, _ = walk(0.5, 0, warmup=True)
    decays = []
    for _ in range(12):
        decays.append(ema.current_decay())
        ema.update()
    assert decays == [min(0.5, (1 + n) / (10 + n)) for n in range(12)]
    assert decays[-1] == 0.5


def test_applied_is_undone_bit_for_bit_after_an_exception() -> None:
    net = small.network()
    ema = EMA(dict(net.named_parameters()), 0.9)
    before = {name: value.detach().clone() for name, value in net.named_parameters()}
    ema.average["0.weight"] += 1.0

    def fail() -> None:
        with ema.applied():
            assert torch.equal(net[0].weight, before["0.weight"] + 1.0)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert all(torch.equal(value, before[name]) for name, value in net.named_parameters())


def test_half_precision_weights_are_averaged_in_single_precision() -> None:
    """Steps of 1e-3 vanish in bfloat16 beside 1; in the float32 average they add up."""
    weight = nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    ema = EMA({"w": weight}, 0.999, warmup=False)
    weight.data.fill_(2.0)
    for _ in range(10):
        ema.update()
    assert_close(ema.average["w"], torch.full((3,), 2 - 0.999**10))


def test_the_average_of_a_module_drives_a_functional_call() -> None:
    net = small.network(plain=True)
    ema = EMA({f"net.{name}": value for name, value in net.named_parameters()}, 0.5, warmup=False)
    for value in net.parameters():
        value.data.mul_(3.0)
    picture = torch.ones(1, 2, 4, 4)
    called = torch.func.functional_call(net, ema.of("net"), (picture,))
    with ema.applied():
        assert_close(net(picture), called)
    with pytest.raises(ValueError, match="no module called 'other'"):
        ema.of("other")


def test_decay_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match=r"decay must be in \[0, 1\), got 1.0"):
        EMA({}, 1.0)
