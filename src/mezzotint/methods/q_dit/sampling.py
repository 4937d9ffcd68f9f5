"""Latents of a network from fixed noise, DDIM (arXiv 2010.02502): what quantised and full precision are compared on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mezzotint.diffusion import Condition, Denoiser, guided, latent_shape, normal
from mezzotint.diffusion.condition import Prompt

from .layers import network_of

__all__ = ["Correct", "ddim_timesteps", "sample_latents", "start_noise", "trajectory"]

Correct = Callable[[Tensor, int], Tensor]
"""Corrects a predicted noise at a timestep."""


def ddim_timesteps(pipe: Any, steps: int) -> list[int]:
    """Training timesteps of a DDIM run, falling.

    Raises:
        ValueError: the scheduler has no discrete timesteps.
    """
    from diffusers import DDIMScheduler

    if getattr(pipe.scheduler, "alphas_cumprod", None) is None:
        raise ValueError(f"{type(pipe.scheduler).__name__} has no discrete timesteps, which DDIM needs")
    scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    scheduler.set_timesteps(steps)
    return [int(t) for t in scheduler.timesteps]


def start_noise(pipe: Any, count: int, *, seed: int, first: int = 0) -> Float[Tensor, "count channels height width"]:
    """Start noise of pictures `first` and following; independent of the batch."""
    return normal(
        latent_shape(pipe), seed=seed, purpose="quantised latents", first=first, count=count, device=pipe.device
    )


def trajectory(
    pipe: Any,
    prompts: Prompt,
    noise: Float[Tensor, "batch channels height width"],
    *,
    steps: int,
    guidance: float = 1.5,
    network: nn.Module | None = None,
    correct: Correct | None = None,
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Yield timestep, latents and guided noise of every step, and at the end (-1, latents, noise of the last step).

    Args:
        pipe: gives conditions and noise levels.
        prompts: one, or one for each item.
        noise: start.
        steps: DDIM steps.
        guidance: scale.
        network: instead of the pipeline's own.
        correct: applied to the guided noise.
    """
    cond, uncond = Condition.from_prompt(pipe, prompts)
    denoiser = guided(Denoiser(network or network_of(pipe), pipe.scheduler), cond, uncond, guidance)
    times = ddim_timesteps(pipe, steps)
    x, eps = noise, noise
    for t, to in zip(times, [*times[1:], -1], strict=True):
        # Inside the loop: a generator must not hold the mode while its caller runs.
        with torch.no_grad():
            eps = denoiser.eps(x, t)
            eps = eps if correct is None else correct(eps, t)
        yield t, x, eps
        x = denoiser.levels.ddim_step(x, eps, t, to)
    yield -1, x, eps


def sample_latents(
    pipe: Any,
    prompts: Prompt,
    noise: Float[Tensor, "batch channels height width"],
    *,
    steps: int,
    guidance: float = 1.5,
    network: nn.Module | None = None,
    correct: Correct | None = None,
) -> Float[Tensor, "batch channels height width"]:
    """The last latents of `trajectory`."""
    options: dict[str, Any] = {"guidance": guidance, "network": network, "correct": correct}
    *_, last = trajectory(pipe, prompts, noise, steps=steps, **options)
    return last[1]
