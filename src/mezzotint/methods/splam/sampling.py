"""Pictures from a distilled pipeline in a few network calls; a picture's noise depends on seed and number only."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mezzotint.diffusion import Condition, Denoiser, Predictor, decode, guided, latent_shape, rng

from .checks import check_guidance, known
from .distilled import Distilled
from .embedding import guidance_embedding
from .points import check_timesteps, sampling_timesteps
from .sampler import multistep
from .student import Point, clean, consistency
from .teacher import exact

__all__ = ["fresh_noise", "generate", "latents", "pictures", "refuse"]


def pictures(
    model: Any,
    prompts: Sequence[Any],
    *,
    steps: int = 4,
    timesteps: Sequence[int] | None = None,
    guidance_scale: float | None = None,
    negative_prompt: str | None = None,
    seed: int = 0,
    online: bool = False,
    batch_size: int = 16,
) -> list[Any]:
    """See `mezzotint.methods.splam.sample`."""
    from PIL import Image

    prompts = [prompts] if isinstance(prompts, str | int) else list(prompts)
    if not prompts:
        raise ValueError("prompts must not be empty")
    pipe, allowed, default = _resolved(model, online=online)
    scale = default if guidance_scale is None else float(guidance_scale)
    check_guidance(scale, allowed, negative_prompt)
    points, trained = (
        int(pipe.scheduler.config.original_inference_steps),
        int(pipe.scheduler.config.num_train_timesteps),
    )
    visited = (
        sampling_timesteps(steps, points, trained) if timesteps is None else check_timesteps(timesteps, points, trained)
    )
    made = generate(
        pipe, prompts, visited, scale=scale, negative_prompt=negative_prompt, seed=seed, batch_size=batch_size
    )
    arrays = (made * 255).round().byte().movedim(1, -1).cpu().numpy()
    return [Image.fromarray(array) for array in arrays]


def generate(
    pipe: Any,
    prompts: Sequence[Any],
    timesteps: Sequence[int],
    *,
    scale: float = 1.0,
    negative_prompt: str | None = None,
    seed: int = 0,
    batch_size: int = 16,
) -> Float[Tensor, "count 3 height width"]:
    """Pictures in 0..1 of a plain (folded) pipeline, whatever its scheduler."""
    parts = []
    for first in range(0, len(prompts), batch_size):
        part = list(prompts[first : first + batch_size])
        cond, uncond = _conditions(pipe, part, negative_prompt, scale)
        noise, draw = fresh_noise(pipe, len(part), seed=seed, first=first)
        parts.append(decode(pipe, latents(pipe, noise, timesteps, cond=cond, uncond=uncond, scale=scale, draw=draw)))
    return torch.cat(parts)


def latents(
    pipe: Any,
    noise: Float[Tensor, "batch channels h w"],
    timesteps: Sequence[int],
    *,
    cond: Condition,
    draw: Callable[[int], Tensor],
    uncond: Condition | None = None,
    scale: float = 1.0,
) -> Float[Tensor, "batch channels h w"]:
    """Clean latents of a distilled pipeline: one call of f for each timestep.

    Args:
        pipe: with a plain network at g = 1, or one that takes the embedding of its guidance weight.
        noise: the start.
        timesteps: descending.
        cond: one condition for each item.
        draw: noise between two steps.
        uncond: for a scale above 1 of a network without embedding: classifier-free guidance, two rows a call.
        scale: guidance scale.
    """
    import dataclasses

    denoiser = Denoiser(pipe)
    width = getattr(denoiser.model.config, "time_cond_proj_dim", None)
    view: Predictor = guided(denoiser, cond, uncond, 1.0 if width else float(scale))
    if width:
        embedded = guidance_embedding(torch.full((len(noise),), scale - 1.0, device=noise.device), width)
        embedded = embedded.to(denoiser.model.dtype)
        view = guided(denoiser, dataclasses.replace(cond, timestep_cond=embedded), None, 1.0)
    levels = exact(denoiser.levels)

    def f(x: Tensor, t: Tensor) -> Tensor:
        output = view.model_output(x, t)
        return consistency(x, clean(x, output, Point.end(levels, t), denoiser.prediction_type), t)

    return multistep(f, noise, timesteps, levels=levels, draw=draw)


def fresh_noise(pipe: Any, count: int, *, seed: int, first: int = 0) -> tuple[Tensor, Callable[[int], Tensor]]:
    """Start noise of pictures first..first+count-1, and the noise after step j; the same in every batch."""
    shape, device = latent_shape(pipe), pipe.device

    def draw(purpose: str, step: int = 0) -> Tensor:
        return rng.normal(shape, seed=seed, purpose=purpose, step=step, first=first, count=count, device=device)

    return draw("splam/start"), lambda j: draw("splam/step", j)


def _conditions(
    pipe: Any, prompts: Sequence[Any], negative_prompt: str | None, scale: float
) -> tuple[Condition, Condition | None]:
    """Without guidance, as distilled models are sampled, the negative prompt is never encoded."""
    if scale == 1:
        return Condition.alone(pipe, list(prompts)), None
    return Condition.from_prompt(pipe, list(prompts), negative_prompt or "")


def _resolved(model: Any, *, online: bool) -> tuple[Any, tuple[float, float], float]:
    """The pipeline, the guidance scales it allows, and the one it wants."""
    if isinstance(model, Distilled):
        wanted = model.options.guidance if model.options.mode == "lcm" else 1.0
        return model.pipeline(online=online), model.options.sampling_guidance, wanted
    if online:
        raise ValueError("a pipeline holds one set of weights; online goes with the result of distil")
    if type(model.scheduler).__name__ != "LCMScheduler":
        name = type(model.scheduler).__name__
        raise ValueError(f"this pipeline has a {name}, so it is not distilled: few steps need an LCMScheduler")
    return model, *_saved(model)


def refuse(pipe: Any, scale: float, negative_prompt: str | None = None) -> None:
    """Refuse what a pipeline that was saved by `distil` cannot follow; says nothing of other pipelines.

    Raises:
        ValueError: a guidance scale that it was not trained for, or a negative prompt that would be ignored.
    """
    if known(pipe) is not None:
        check_guidance(scale, _saved(pipe)[0], negative_prompt)


def _saved(pipe: Any) -> tuple[tuple[float, float], float]:
    """Allowed and wanted guidance from the facts beside a saved pipeline; unknown LCMs are taken as they are built."""
    if (facts := known(pipe)) is not None:
        from .options import Options

        kept = facts["distillation"]["options"]
        named: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in kept.items()}
        options = Options(**named)
        return options.sampling_guidance, float(facts["recommended"]["guidance_scale"])
    if getattr(Denoiser(pipe).model.config, "time_cond_proj_dim", None) is None:
        return (1.0, 1.0), 1.0
    warnings.warn(
        "nothing is known of this model's distillation; guidance_scale is taken as LCM takes it", stacklevel=4
    )
    return (1.0, 15.0), 9.0
