"""Latents of pictures and back."""

import torch
from torch.testing import assert_close

from mezzotint.diffusion import decode, latent_shape, pixels, posterior
from tests.methods.conftest import sd15_shaped


def test_units_are_the_denoisers_and_shapes_the_pipelines():
    pipe = sd15_shaped()
    pictures = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert (latent_shape(pipe), pixels(pipe)) == ((4, 8, 8), 16)
    mean, std = posterior(pipe, pictures)
    with torch.no_grad():
        there = pipe.vae.encode(pictures * 2 - 1).latent_dist
        back = pipe.vae.decode(there.mean).sample
    assert_close(mean, there.mean * pipe.vae.config.scaling_factor)
    assert_close(std, there.std * pipe.vae.config.scaling_factor)
    assert_close(decode(pipe, mean, batch_size=1), (back / 2 + 0.5).clamp(0, 1), rtol=1e-4, atol=1e-4)
