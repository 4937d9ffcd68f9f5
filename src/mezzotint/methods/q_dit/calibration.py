"""Calibration data: the network's own inputs along full-precision sampling (arXiv 2406.17343, section 4.1).

Pictures are sampled with the unchanged pipeline, DDIM with 50 steps at guidance 1.5, and of every batch of 16 each
picture gives its input at one timestep, drawn without replacement; of the guided halves the conditional one is kept.
"""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import torch
from jaxtyping import Int
from torch import Tensor, nn

from mezzotint.diffusion import Condition
from mezzotint.diffusion.rng import stream

from .layers import network_of

__all__ = ["Calibration", "Visits", "collect", "draw_visits"]

Visits: TypeAlias = Literal["uniform", "normal"]
SAMPLES, BATCH, STEPS, GUIDANCE = 256, 16, 50, 1.5
_SHARED_ARGUMENTS = frozenset({"img_ids", "txt_ids", "image_rotary_emb"})


@dataclass(frozen=True)
class Calibration:
    """Inputs of a network, batch first.

    Attributes:
        items: every keyword argument that has one row an item, sample and timestep included.
        fixed: arguments that belong to all items.
    """

    items: Condition
    fixed: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse calibration without data."""
        if not self.items.batch:
            raise ValueError("calibration must not be empty: give at least one input of the network")

    @staticmethod
    def of(fixed: dict[str, Any] | None = None, **items: Any) -> Calibration:
        """From the network's own keyword arguments, batch first."""
        return Calibration(Condition(extra=items), fixed or {})

    def __len__(self) -> int:
        return self.items.batch or 0

    def __getitem__(self, index: slice | Tensor) -> Calibration:
        return Calibration(self.items[index], self.fixed)

    def batches(self, size: int = 32) -> Iterator[dict[str, Any]]:
        """Keyword arguments of one call after the other."""
        for first in range(0, len(self), size):
            yield {**self.items[first : first + size].arguments(), **self.fixed}

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of one call with all items."""
        return {**self.items.arguments(), **self.fixed}


def draw_visits(count: int, steps: int, *, seed: int, batch: int = 0, visits: Visits = "uniform") -> Int[Tensor, " n"]:
    """The step at which each picture of a batch is looked at.

    Args:
        count: pictures of the batch.
        steps: sampling steps; without replacement as long as there are enough.
        seed: of the draw.
        batch: number of the batch.
        visits: "uniform", or "normal": PTQ4DM's normal distribution over timesteps, centred below the middle with a
            standard deviation of half the steps, truncated (arXiv 2211.15736, equation 12).

    Raises:
        ValueError: an unknown distribution.
    """
    generator = stream(seed, "calibration steps", batch)
    if visits == "uniform":
        rounds = [torch.randperm(steps, generator=generator) for _ in range(math.ceil(count / steps))]
        return torch.cat(rounds)[:count]
    if visits != "normal":
        raise ValueError(f"visits must be 'uniform' or 'normal', got {visits!r}")
    # Low timesteps come last in sampling: the mean 0.4 T of the timestep is 0.6 of the steps.
    centre = 0.6 * steps
    drawn = centre + 0.5 * steps * torch.randn(64 * count, generator=generator)
    inside = drawn[(drawn >= 0) & (drawn < steps)][:count]
    return inside.long()


@torch.no_grad()
def collect(
    pipe: Any,
    prompts: Sequence[Any] = (),
    *,
    samples: int = SAMPLES,
    steps: int = STEPS,
    guidance: float = GUIDANCE,
    seed: int = 0,
    batch_size: int = BATCH,
    visits: Visits = "uniform",
) -> Calibration:
    """Sample with a pipeline and keep inputs of its network.

    Args:
        pipe: full-precision pipeline; called as it is, and stopped when every picture was looked at.
        prompts: texts or class indices, used in turn; when empty, random classes for class-conditional models, and for
            others the empty prompt, with a warning.
        samples: how many inputs.
        steps: sampling steps; DDIM for models with discrete timesteps, otherwise the pipeline's own scheduler.
        guidance: guidance scale.
        seed: of noise, classes and steps.
        batch_size: pictures sampled at once.
        visits: see `draw_visits`.

    Raises:
        ValueError: numbers below 1.
    """
    if min(samples, steps, batch_size) < 1:
        raise ValueError(f"samples, steps and batch_size must be at least 1, got {samples}, {steps}, {batch_size}")
    asked = _asked(pipe, prompts, samples, seed)
    parts = []
    with _sampler(pipe):
        for batch, first in enumerate(range(0, samples, batch_size)):
            chosen = asked[first : first + batch_size]
            visit = draw_visits(len(chosen), steps, seed=seed, batch=batch, visits=visits)
            noise = [stream(seed, "calibration noise", index=first + k) for k in range(len(chosen))]
            settings = {"num_inference_steps": steps, "guidance_scale": guidance, "generator": noise}
            parts.append(_watched(pipe, chosen, visit, settings))
    items = parts[0][0].concat(*(items for items, _ in parts[1:]))
    return Calibration(items, parts[0][1])


class _EnoughError(Exception):
    """Ends a pipeline's run: everything wanted was seen, and decoding pictures would be lost work."""


@dataclass
class _Watcher:
    """Keeps the rows of every call whose step some picture was to be looked at."""

    names: list[str]
    visit: Tensor
    kept: dict[int, Condition] = field(default_factory=dict)
    fixed: dict[str, Any] = field(default_factory=dict)
    step: int = 0

    def __call__(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        arguments = {**dict(zip(self.names, args, strict=False)), **kwargs}
        sample = arguments[self.names[0]]
        rows, count = len(sample), len(self.visit)
        given = {name: value for name, value in arguments.items() if value is not None and name != "return_dict"}
        self.fixed = {name: value for name, value in given.items() if name in _SHARED_ARGUMENTS}
        items = {name: _rows(value, rows) for name, value in given.items() if name not in _SHARED_ARGUMENTS}
        # Of the guided halves DiT puts the conditional one first, all others last.
        first = 0 if "class_labels" in items else rows - count
        for picture in (self.visit == self.step).nonzero().flatten().tolist():
            self.kept[picture] = Condition(extra=items)[first + picture]
        self.step += 1
        if len(self.kept) == count:
            raise _EnoughError


def _watched(
    pipe: Any, prompts: Sequence[Any], visit: Tensor, settings: dict[str, Any]
) -> tuple[Condition, dict[str, Any]]:
    network = network_of(pipe)
    watcher = _Watcher(list(inspect.signature(network.forward).parameters), visit)
    handle = network.register_forward_pre_hook(watcher, with_kwargs=True)
    try:
        with suppress(_EnoughError):
            pipe(list(prompts), **settings)
    finally:
        handle.remove()
    if missing := len(visit) - len(watcher.kept):
        raise ValueError(f"the pipeline made {watcher.step} calls, {missing} inputs are missing: use more steps")
    first, *rest = [watcher.kept[picture] for picture in range(len(visit))]
    return first.concat(*rest), watcher.fixed


def _rows(value: Any, rows: int) -> Any:
    """One row an item: a timestep or size that holds for the whole call is repeated."""
    if isinstance(value, Tensor):
        return value.expand(rows, *value.shape[1:]) if value.ndim == 0 or len(value) == 1 != rows else value
    if isinstance(value, dict):
        return {name: _rows(item, rows) for name, item in value.items()}
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return torch.full((rows,), value)
    return value


def _asked(pipe: Any, prompts: Sequence[Any], samples: int, seed: int) -> list[Any]:
    labels = getattr(pipe, "labels", None)
    if prompts:
        given = [_class(labels, prompt) if hasattr(pipe, "labels") else prompt for prompt in prompts]
        return [given[k % len(given)] for k in range(samples)]
    classes = sorted(set(labels.values())) if labels else range(_class_count(pipe))
    if not classes:
        warnings.warn(
            "calibrating on the empty prompt: give prompts like those that will be drawn (prompts=, --prompts)",
            stacklevel=4,
        )
        return [""] * samples
    drawn = torch.randint(len(classes), (samples,), generator=stream(seed, "calibration classes"))
    return [int(classes[k]) for k in drawn.tolist()]


def _class(labels: Any, prompt: Any) -> int:
    """Index of a class, given as such or by name."""
    if isinstance(prompt, int):
        return prompt
    if prompt not in (labels or {}):
        raise ValueError(f"unknown class {prompt!r}; the model has {len(labels or {})} names, or give an index")
    return int(labels[prompt])


def _class_count(pipe: Any) -> int:
    return int(getattr(network_of(pipe).config, "num_embeds_ada_norm", None) or 0) if hasattr(pipe, "labels") else 0


@contextmanager
def _sampler(pipe: Any) -> Iterator[None]:
    """DDIM without a progress bar while the block runs, where the model has discrete timesteps."""
    from diffusers import DDIMScheduler

    before, bar = pipe.scheduler, dict(getattr(pipe, "_progress_bar_config", {}))
    if getattr(before, "alphas_cumprod", None) is not None:
        pipe.scheduler = DDIMScheduler.from_config(before.config)
    pipe.set_progress_bar_config(disable=True)
    try:
        yield
    finally:
        pipe.scheduler = before
        pipe.set_progress_bar_config(**bar)
