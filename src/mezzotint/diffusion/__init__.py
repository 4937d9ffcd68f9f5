"""The mathematics that all methods share: random streams, noise levels, denoiser view, guidance, inversion."""

from __future__ import annotations

from mezzotint.diffusion.condition import Condition, text_window
from mezzotint.diffusion.denoiser import Denoiser, Predictor
from mezzotint.diffusion.guidance import Composed, composed, guided
from mezzotint.diffusion.inversion import Trajectory, invert, replay
from mezzotint.diffusion.latents import decode, latent_shape, pixels, posterior
from mezzotint.diffusion.levels import Levels
from mezzotint.diffusion.rng import normal, stream, uniform
from mezzotint.diffusion.sampling import Sampler, fast_sampler

__all__ = [
    "Composed",
    "Condition",
    "Denoiser",
    "Levels",
    "Predictor",
    "Sampler",
    "Trajectory",
    "composed",
    "decode",
    "fast_sampler",
    "guided",
    "invert",
    "latent_shape",
    "normal",
    "pixels",
    "posterior",
    "replay",
    "stream",
    "text_window",
    "uniform",
]
