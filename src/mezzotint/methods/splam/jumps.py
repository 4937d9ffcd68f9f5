"""The teacher's jumps, made once and drawn from at every step (ours).

A teacher that takes several guided steps a jump costs more than everything else in a step of the training. Its jumps do
not depend on the student, so a store of them can be used many times, with new gammas and against the moving target.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from mezzotint import files
from mezzotint.diffusion import rng
from mezzotint.training import Step

from .cache import Cached, tracked
from .objective import Objective
from .options import Options

__all__ = ["stored"]

FOLDER, BATCHES = "jumps", 64


def stored(objective: Objective, data: Cached, options: Options, *, folder: Path | None = None) -> dict[str, Tensor]:
    """x_t, x_to, t, weight and caption of `options.jumps` jumps, as a training loop draws items from them.

    Args:
        objective: makes them.
        data: latents, gone through in a new order each time.
        options: batch size, seed and number.
        folder: where they are kept, 64 batches a file; files that are there are read, so a killed run goes on.
    """
    count, total = options.batch_size, len(data.mean)
    batches = -(-options.jumps // count)
    again = [rng.stream(options.seed, "jumps/order", k) for k in range(-(-batches * count // total))]
    order = torch.cat([torch.randperm(total, generator=generator) for generator in again])[: batches * count]
    parts = []
    for first in tracked(range(0, batches, BATCHES), "the teacher's jumps", -(-batches // BATCHES)):
        place = None if folder is None else folder / FOLDER / f"{first:06d}.safetensors"
        if place is not None and place.is_file():
            parts.append(files.read_safetensors(place))
            continue
        numbers = range(first, min(first + BATCHES, batches))
        made = [_made(objective, data, order[k * count :][:count], seed=options.seed, number=k) for k in numbers]
        parts.append(_joined(made))
        if place is not None:
            files.write_safetensors(place, parts[-1])
    return {name: value[: options.jumps] for name, value in _joined(parts).items()}


def _joined(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat([part[name] for part in parts]).contiguous() for name in parts[0]}


def _made(objective: Objective, data: Cached, places: Tensor, *, seed: int, number: int) -> dict[str, Tensor]:
    count = len(places)
    device = next(objective.student.denoiser.model.parameters()).device
    step = Step(seed, number, 0, count, count, device, part="jumps")
    batch = {name: value[places].to(step.device) for name, value in data.tensors().items()}
    latents, cond, uncond = objective.prepare(batch, step)
    made = objective.jumps(latents, (cond, uncond), step)
    return {name: value.cpu() for name, value in (made | {"caption": batch["caption"]}).items()}
