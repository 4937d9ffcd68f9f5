"""The teacher's jumps, made once and drawn from at every step (ours).

A teacher that takes several guided steps a jump costs more than everything else in a step of the training. Its jumps do
not depend on the student, so a store of them can be used many times, with new gammas and against the moving target.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from mezzotint import files
from mezzotint.diffusion import rng
from mezzotint.training import Step

from .cache import Cached
from .objective import Objective
from .options import Options

__all__ = ["stored"]

FILE = "jumps.safetensors"


def stored(objective: Objective, data: Cached, options: Options, *, folder: Path | None = None) -> dict[str, Tensor]:
    """x_t, x_to, t, weight and caption of `options.jumps` jumps, as a training loop draws items from them.

    Args:
        objective: makes them.
        data: latents, gone through in a new order each time.
        options: batch size, seed and number.
        folder: where they are kept; what is there is read.
    """
    if folder is not None and (folder / FILE).is_file():
        return files.read_safetensors(folder / FILE)
    count, total = options.batch_size, len(data.mean)
    batches = -(-options.jumps // count)
    again = [rng.stream(options.seed, "jumps/order", k) for k in range(-(-batches * count // total))]
    order = torch.cat([torch.randperm(total, generator=generator) for generator in again])[: batches * count]
    parts = [_made(objective, data, places, seed=options.seed, number=k) for k, places in enumerate(order.split(count))]
    made = {name: torch.cat([part[name] for part in parts])[: options.jumps].contiguous() for name in parts[0]}
    if folder is not None:
        files.write_safetensors(folder / FILE, made)
    return made


def _made(objective: Objective, data: Cached, places: Tensor, *, seed: int, number: int) -> dict[str, Tensor]:
    count = len(places)
    device = next(objective.student.denoiser.model.parameters()).device
    step = Step(seed, number, 0, count, count, device, part="jumps")
    batch = {name: value[places].to(step.device) for name, value in data.tensors().items()}
    latents, cond, uncond = objective.prepare(batch, step)
    made = objective.jumps(latents, (cond, uncond), step)
    return {name: value.cpu() for name, value in (made | {"caption": batch["caption"]}).items()}
