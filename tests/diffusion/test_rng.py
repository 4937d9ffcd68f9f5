"""Derived streams: the same key gives the same bits, another key other bits, and batches do not matter."""

import pytest
import torch

from mezzotint.diffusion.rng import normal, stream, uniform

KEY = {"seed": 5, "purpose": "latents", "step": 3}


def draw(*key):
    return torch.randn(64, generator=stream(*key))


def test_a_stream_is_a_function_of_its_key_alone():
    before = torch.random.get_rng_state()
    first = draw(5, "latents", 3, 2)
    torch.randn(1000, generator=stream(6, "latents"))
    assert torch.equal(first, draw(5, "latents", 3, 2))
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize(
    "other",
    [(6, "latents", 3, 2), (5, "latent", 3, 2), (5, "latents", 4, 2), (5, "latents", 3, 3), (-5, "latents", 3, 2)],
)
def test_any_change_of_the_key_gives_unrelated_draws(other):
    first, second = draw(5, "latents", 3, 2), draw(*other)
    assert (first == second).sum() == 0
    assert torch.corrcoef(torch.stack([first, second]))[0, 1].abs() < 0.5


def test_arguments_cannot_be_confused_with_each_other():
    # 1/23 and 12/3 would share a text if the parts were only joined.
    assert not torch.equal(draw(1, "p", 23, 4), draw(12, "p", 3, 4))
    assert not torch.equal(draw(1, "2/p", 3, 4), draw(1, "p", 2, 3))


def test_an_item_of_a_batch_equals_the_item_alone():
    batch = normal((4, 3), count=6, **KEY)
    for k in range(6):
        assert torch.equal(batch[k], normal((4, 3), first=k, count=1, **KEY)[0])
    assert torch.equal(batch[2:5], normal((4, 3), first=2, count=3, **KEY))


def test_dtypes_see_the_same_noise():
    single = normal((8,), count=3, **KEY)
    assert torch.equal(single.double(), normal((8,), count=3, dtype=torch.float64, **KEY))
    assert torch.equal(single.bfloat16(), normal((8,), count=3, dtype=torch.bfloat16, **KEY))


def test_many_items_are_standard_normal_and_uniform():
    # 20,000 items x 1 draw: mean 0 +- 0.007, variance 1 +- 0.01; correlated streams would show in the mean of pairs.
    values = normal((1,), count=20_000, seed=1, purpose="law")[:, 0].double()
    assert values.mean().abs() < 0.03
    assert (values.var() - 1).abs() < 0.05
    assert (values[:-1] * values[1:]).mean().abs() < 0.03
    flat = uniform((1,), count=20_000, seed=1, purpose="law")[:, 0]
    assert flat.min() >= 0
    assert flat.max() < 1
    torch.testing.assert_close(flat.double().mean().item(), 0.5, atol=0.01, rtol=0)


def test_no_items_and_negative_counts():
    assert normal((4, 3), count=0, **KEY).shape == (0, 4, 3)
    with pytest.raises(ValueError, match="at least 0, got -1"):
        normal((4,), count=-1, **KEY)
