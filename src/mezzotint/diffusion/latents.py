"""Between pictures and the latents that a latent diffusion model denoises: z = (encoded - shift) * scaling_factor.

Latent diffusion, arXiv 2112.10752, section 3.1; the factor makes the latents' standard deviation about 1 (appendix G).
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mezzotint.diffusion.denoiser import Denoiser

__all__ = ["decode", "latent_shape", "pixels", "posterior"]


def latent_shape(pipe: Any) -> tuple[int, int, int]:
    """Channels, height and width of the latents that a pipeline samples by default."""
    config = Denoiser(pipe).model.config
    size: Any = config.sample_size
    height, width = (size, size) if isinstance(size, int) else size
    return int(config.in_channels), int(height), int(width)


def pixels(pipe: Any) -> int:
    """Side in pixels of the square pictures that a latent pipeline is made for."""
    return latent_shape(pipe)[2] * 2 ** (len(pipe.vae.config.block_out_channels) - 1)


@torch.no_grad()
def posterior(
    pipe: Any, pictures: Float[Tensor, "batch 3 height width"]
) -> tuple[Float[Tensor, "batch channels h w"], Float[Tensor, "batch channels h w"]]:
    """Mean and standard deviation of the latents of pictures in 0..1, in the denoiser's units, float32.

    Args:
        pipe: a latent diffusion pipeline.
        pictures: values in 0..1.
    """
    shift, scale = _affine(pipe.vae)
    found = pipe.vae.encode(pictures.to(next(pipe.vae.parameters())) * 2 - 1).latent_dist
    return (found.mean.float() - shift) * scale, found.std.float() * scale


@torch.no_grad()
def decode(
    pipe: Any, latents: Float[Tensor, "batch channels h w"], *, batch_size: int = 16
) -> Float[Tensor, "batch 3 height width"]:
    """Pictures in 0..1 of clean latents.

    Args:
        pipe: a latent diffusion pipeline.
        latents: in the denoiser's units.
        batch_size: pictures at a time.
    """
    shift, scale = _affine(pipe.vae)
    weight = next(pipe.vae.parameters())
    parts = [pipe.vae.decode((z / scale + shift).to(weight)).sample.float() for z in latents.split(batch_size)]
    return (torch.cat(parts) / 2 + 0.5).clamp(0, 1)


def _affine(vae: Any) -> tuple[float, float]:
    return float(getattr(vae.config, "shift_factor", None) or 0.0), float(vae.config.scaling_factor)
