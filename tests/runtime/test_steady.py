"""Steady evaluation: what a picture is does not depend on how many are made at once."""

import pytest
import torch
from torch import nn

import mezzotint
from mezzotint.diffusion import Sampler
from mezzotint.runtime import steady

PROMPTS = ["a red cube on a gray floor", "a blue sphere", "a green cone and a yellow torus", "a pink capsule"]


@pytest.fixture(scope="module")
def pipe():
    return mezzotint.load("scenes")


def test_a_batch_of_the_embedded_pipeline_is_its_singles(pipe):
    sampler = Sampler(pipe, steps=8, guidance_scale=4.5)
    batch = sampler.latents(PROMPTS, seed=3)
    singles = [sampler.latents([prompt], seed=3, first=k) for k, prompt in enumerate(PROMPTS)]
    # Equal to the bit where it was measured; other processors may have other kernels.
    assert float((batch - torch.cat(singles)).abs().max()) <= 1e-6


def test_products_of_few_rows_are_made_as_for_one_picture():
    seen = []

    class Spy(nn.Linear):
        def forward(self, rows):
            seen.append(tuple(rows.shape))
            return super().forward(rows)

    layer = Spy(5, 7)
    rows = torch.randn(5, 5)
    plain = layer(rows)
    seen.clear()
    with steady(layer, rows=2):
        made = [layer(rows), layer(rows[:2]), layer(rows[:1]), layer(rows[None])]
    assert seen == [(2, 5), (2, 5), (1, 5), (2, 5), (1, 5), (1, 5, 5)]
    for part, count in zip(made, (5, 2, 1), strict=False):
        torch.testing.assert_close(part, plain[:count])
    torch.testing.assert_close(made[3][0], plain)
    with pytest.raises(ValueError, match="at least 1, got 0"), steady(layer, rows=0):
        pass


def test_everything_is_as_before_afterwards(pipe):
    with steady(pipe):
        assert "forward" in vars(pipe.unet.time_embedding.linear_1)
    assert not any("forward" in vars(part) for part in pipe.unet.modules())
