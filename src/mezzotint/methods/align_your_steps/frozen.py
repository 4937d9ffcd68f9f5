"""A diffusers pipeline as the frozen denoiser D(x, sigma) that the objective needs, guidance included.

Every guidance scale is its own model: D = D_u + g (D_c - D_u) (arXiv 2404.14507, sec. 4; classifier-free guidance:
2207.12598). Nothing is trained: parameters keep their values and their `requires_grad`, and no graph is recorded.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mezzotint.diffusion import Condition, Denoiser, guided
from mezzotint.loading import recommended

from .klub import Denoise
from .schedule import Schedule
from .solvers import backbone, item_noise, sample


@dataclass(frozen=True)
class Frozen:
    """The denoiser of a pipeline with one condition for every clean item.

    Attributes:
        denoiser: the shared view of the pipeline's network.
        cond: conditions; row k belongs to clean item k. None for unconditional models.
        uncond: negative conditions of the same length, or None.
        guidance: scale; 1 leaves the guidance out.
    """

    denoiser: Denoiser
    cond: Condition | None = None
    uncond: Condition | None = None
    guidance: float = 1.0

    def __call__(
        self, x: Float[Tensor, "batch *item"], sigma: Float[Tensor, " batch"], rows: Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch *item"]:
        """Denoise `x` at variance-exploding levels `sigma` under the conditions of `rows` (modulo their number)."""
        if self.cond is None:
            return self.denoiser.denoise(x, sigma)
        rows = rows % (self.cond.batch or 1)
        uncond = None if self.uncond is None else self.uncond[rows]
        return guided(self.denoiser, self.cond[rows], uncond, self.guidance).denoise(x, sigma)

    @property
    def evaluations(self) -> int:
        """Network evaluations that one denoised item costs."""
        return 1 if self.cond is None or self.guidance == 1.0 else 2


def is_conditional(pipe: Any) -> bool:
    """Whether a pipeline takes prompts or classes."""
    if getattr(pipe, "text_encoder", None) is not None or getattr(pipe, "text_encoder_2", None) is not None:
        return True
    return getattr(pipe, "transformer", None) is not None


def default_guidance(pipe: Any) -> float:
    """The scale that the model recommends, else the one its call uses by itself; 1 for unconditional pipelines."""
    if not is_conditional(pipe):
        return 1.0
    if (best := recommended(pipe, "guidance_scale")) is not None:
        return float(best)
    parameter = inspect.signature(pipe.__call__).parameters.get("guidance_scale")
    return 1.0 if parameter is None or parameter.default is None else float(parameter.default)


def freeze(pipe: Any, prompts: Sequence[Any], guidance: float | None = None) -> Frozen:
    """The denoiser of a pipeline under prompts (texts, or class indices and names for DiT).

    Args:
        pipe: a diffusers pipeline.
        prompts: one for each clean item; ignored by unconditional models.
        guidance: scale; the pipeline's default when None.

    Raises:
        ValueError: guidance is given to an unconditional model.
    """
    if not is_conditional(pipe):
        if guidance not in (None, 1.0):
            raise ValueError(f"{type(pipe).__name__} is unconditional and takes no guidance, got {guidance}")
        return Frozen(Denoiser(pipe))
    cond, uncond = Condition.from_prompt(pipe, list(prompts))
    return Frozen(Denoiser(pipe), cond, uncond, default_guidance(pipe) if guidance is None else float(guidance))


def start_noise(pipe: Any, count: int, *, seed: int, first: int = 0) -> Float[Tensor, "count channels height width"]:
    """Standard normal latents of the pipeline's own size; item k belongs to (seed, first + k)."""
    from mezzotint.diffusion import rng

    network = backbone(pipe)
    size: Any = network.config.sample_size  # type: ignore[union-attr]
    height, width = (size, size) if isinstance(size, int) else size
    parameter = next(network.parameters())
    return rng.normal(
        (int(network.config.in_channels), height, width),  # type: ignore[union-attr,arg-type]
        seed=seed,
        purpose="start noise",
        first=first,
        count=count,
        device=parameter.device,
        dtype=torch.float32,
    )


@torch.no_grad()
def run(
    denoise: Denoise,
    noise: Float[Tensor, "count *item"],
    schedule: Schedule,
    *,
    solver: str,
    seed: int = 0,
    batch_size: int = 64,
) -> Float[Tensor, "count *item"]:
    """Sample with a schedule; item k starts from noise k under condition k, whatever the batch size.

    Returns:
        Latents at the schedule's last level, in variance-exploding coordinates.
    """
    parts = []
    for first in range(0, len(noise), batch_size):
        part = noise[first : first + batch_size]
        rows = torch.arange(first, first + len(part), device=noise.device)
        added = item_noise(part, seed=seed, first=first)
        parts.append(sample(_at_level(denoise, rows), part, schedule, solver=solver, added=added))
    return torch.cat(parts)


def _at_level(denoise: Denoise, rows: Tensor) -> Callable[[Tensor, float], Tensor]:
    def at_level(x: Tensor, sigma: float) -> Tensor:
        return denoise(x, torch.full((len(x),), sigma, dtype=x.dtype, device=x.device), rows)

    return at_level
