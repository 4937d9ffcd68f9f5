"""The fast path from prompts to pictures: the network's calls, one batched decoding, and as little else as possible.

What depends on the prompt is computed once a run: each different text is encoded once, the negative one once for all
runs, and not at all without guidance. The loop drives the pipeline's own scheduler around the bare network. Picture k
is drawn from `rng.stream(seed, "sample", 0, k)`, start noise first, as the pipeline's own call draws it from one
generator a picture; so the pictures are the pipeline's, to rounding.
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mezzotint.diffusion.condition import Condition, Prompt
from mezzotint.diffusion.denoiser import Denoiser
from mezzotint.diffusion.guidance import Composed, guided
from mezzotint.diffusion.latents import decode, latent_shape
from mezzotint.diffusion.rng import stream
from mezzotint.runtime import Report, accelerate, steady
from mezzotint.runtime.compiling import Unchanging, unguarded

__all__ = ["Sampler", "fast_sampler"]


class Sampler:
    """A pipeline's sampler with its settings bound.

    Args:
        pipe: a latent diffusion pipeline whose scheduler reads timesteps (DDIM, DPM-Solver++, LCM, PNDM ...).
        steps: number of steps.
        timesteps: of a schedule, instead of `steps`; the scheduler must take custom timesteps.
        guidance_scale: 1 is the conditional model alone: half the rows, no negative prompt.
        negative_prompt: what to steer away from.
        size: height and width of the latents; the pipeline's own when not given.
        decode_batch: pictures decoded at a time.

    Raises:
        ValueError: neither or both of steps and timesteps, or a negative prompt without guidance.
    """

    def __init__(
        self,
        pipe: Any,
        *,
        steps: int | None = None,
        timesteps: Sequence[int] | None = None,
        guidance_scale: float = 1.0,
        negative_prompt: str = "",
        size: tuple[int, int] | None = None,
        decode_batch: int = 16,
    ) -> None:
        if (steps is None) == (timesteps is None):
            raise ValueError(f"give either steps or timesteps, got {'neither' if steps is None else 'both'}")
        if negative_prompt and guidance_scale == 1:
            raise ValueError("a negative prompt acts through guidance: with guidance_scale 1 it would have no effect")
        self.pipe, self.scale, self.negative = pipe, float(guidance_scale), negative_prompt
        self.denoiser = Denoiser(pipe)
        self.shape = (latent_shape(pipe)[0], *(size or latent_shape(pipe)[1:]))
        self.decode_batch = decode_batch
        self.report: Report | None = None
        self._asked: dict[str, Any] = {"num_inference_steps": steps} if timesteps is None else {"timesteps": timesteps}
        self._uncond: Condition | None = None
        self._device: torch.device | None = None
        self._unchanging: Unchanging | None = None

    @property
    def device(self) -> torch.device:
        """Where the pipeline computes."""
        return self._device or self.pipe.device

    @property
    def embeds_guidance(self) -> bool:
        """Whether the network takes its guidance scale as an embedding, as latent consistency models do."""
        return getattr(self.denoiser.model.config, "time_cond_proj_dim", None) is not None

    @property
    def rows(self) -> int:
        """Rows of a network call for each picture: 2 with classifier-free guidance, else 1."""
        return 1 if self.scale == 1 or self.embeds_guidance else 2

    @torch.no_grad()
    def __call__(
        self, prompts: Sequence[Any], *, seed: int = 0, first: int = 0
    ) -> Float[Tensor, "count 3 height width"]:
        """Pictures in 0..1, float32, one for each prompt.

        Args:
            prompts: texts, or classes of class-conditional models.
            seed: of the run.
            first: number of the first picture in the run.
        """
        return decode(self.pipe, self.latents(prompts, seed=seed, first=first), batch_size=self.decode_batch)

    @torch.no_grad()
    def latents(self, prompts: Sequence[Any], *, seed: int = 0, first: int = 0) -> Float[Tensor, "count channels h w"]:
        """Clean latents, float32; see `__call__`."""
        # A compiled network is left alone.
        with steady(self.denoiser.model, self.rows) if self.report is None else nullcontext():
            return self._latents(prompts, seed=seed, first=first)

    def _latents(self, prompts: Sequence[Any], *, seed: int, first: int) -> Tensor:
        device = self.device
        view, scheduler = self.conditioned(prompts), copy.deepcopy(self.pipe.scheduler)
        scheduler.set_timesteps(device=device, **self._asked)
        generators = [stream(seed, "sample", 0, first + k) for k in range(len(prompts))]
        noise = [torch.randn(self.shape, generator=generator) for generator in generators]
        x = torch.stack(noise).to(device) * scheduler.init_noise_sigma
        draws = "generator" in inspect.signature(scheduler.step).parameters
        options: dict[str, Any] = {"generator": generators} if draws else {}
        same, last = self._unchanging is not None and self._unchanging(), None
        for t in scheduler.timesteps:
            given = scheduler.scale_model_input(x, t)
            form = given.dtype, given.shape, given.stride(), t.dtype
            with unguarded() if same and form == last else nullcontext():
                output, last = view.model_output(given, t), form
            # Networks stored channels last return that layout; a compiled one would be compiled anew for it.
            x = scheduler.step(output, t, x, return_dict=False, **options)[0].contiguous()
        return x

    def conditioned(self, prompts: Sequence[Any]) -> Composed:
        """The network with these prompts and the guidance bound.

        Args:
            prompts: one a picture.
        """
        if self.rows == 2:
            cond, uncond = self._both(list(prompts))
            return guided(self.denoiser, cond, uncond, self.scale)
        cond = Condition.alone(self.pipe, list(prompts), device=self.device)
        if self.embeds_guidance:
            weights = torch.full((len(prompts),), self.scale - 1)
            width = self.denoiser.model.config.time_cond_proj_dim
            embedded = self.pipe.get_guidance_scale_embedding(weights, embedding_dim=width).to(self.device)
            cond = dataclasses.replace(cond, timestep_cond=embedded)
        return guided(self.denoiser, cond, None, 1.0)

    def _both(self, prompts: Prompt) -> tuple[Condition, Condition]:
        if not Condition.independent(self.pipe):
            return Condition.from_prompt(self.pipe, prompts, self.negative)
        self._uncond = self._uncond or Condition.alone(self.pipe, self.negative, device=self.device)
        return Condition.alone(self.pipe, prompts, device=self.device), self._uncond


@contextmanager
def fast_sampler(
    pipe: Any,
    *,
    pictures: int,
    batch_size: int = 16,
    precision: Any = "auto",
    compiled: bool | None = None,
    threads: int | None = None,
    restore: bool = True,
    **settings: Any,
) -> Iterator[Sampler]:
    """A sampler on the engine that this machine does best for a run of so many pictures; see `runtime.accelerate`.

    Args:
        pipe: a latent diffusion pipeline.
        pictures: length of the run, by which the cost of compiling is judged.
        batch_size: pictures of a call; a compiled network is compiled for it.
        precision: see `runtime.accelerate`.
        compiled: True or False to insist, None to decide by predicted payback.
        threads: CPU threads, None to choose by measurement.
        restore: False saves the memory of the original weights; see `runtime.accelerate`.
        **settings: of `Sampler`.

    Raises:
        ValueError: a value outside its range.
    """
    if min(pictures, batch_size) < 1:
        raise ValueError(f"pictures and batch_size must be at least 1, got {pictures} and {batch_size}")
    sampler = Sampler(pipe, **settings)
    calls = -(-pictures // batch_size) * _calls(sampler)
    example = _example(sampler, batch_size)
    engine: dict[str, Any] = {"precision": precision, "compiled": compiled, "threads": threads, "restore": restore}
    with accelerate(pipe, calls=calls, batch=batch_size * sampler.rows, example=example, **engine) as report:
        # An engine stays where it was made, and looking for it takes a pipeline a millisecond.
        sampler.report, sampler._device = report, pipe.device
        sampler._unchanging = Unchanging(sampler.denoiser.model) if report.compiled else None
        yield sampler


def _calls(sampler: Sampler) -> int:
    scheduler = copy.deepcopy(sampler.pipe.scheduler)
    scheduler.set_timesteps(**sampler._asked)
    return len(scheduler.timesteps)


class _SeenError(Exception):
    """The arguments of a call are known, so that it need not be made."""


def _example(sampler: Sampler, batch: int) -> dict[str, Any]:
    """The arguments of one call exactly as the loop makes them: a compiled network is compiled for their layout."""
    found: dict[str, Any] = {}
    network = sampler.denoiser.model

    def keep(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        first = "sample" if hasattr(sampler.pipe, "unet") else "hidden_states"
        found.update(dict(zip((first,), args, strict=True)) | kwargs)
        raise _SeenError

    hook = network.register_forward_pre_hook(keep, with_kwargs=True)
    try:
        prompt: Any = "" if getattr(sampler.pipe, "text_encoder", None) is not None else 0
        with torch.no_grad(), suppress(_SeenError):
            view = sampler.conditioned([prompt] * batch)
            view.model_output(torch.zeros(batch, *sampler.shape, device=sampler.pipe.device), torch.tensor(500))
    finally:
        hook.remove()
    return found
