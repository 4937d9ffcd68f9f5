"""What is measured while a run trains: means of the log rows, the held-out loss, and what the caller watches."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from mezzotint.training import data as batching
from mezzotint.training import grids
from mezzotint.training.data import Data
from mezzotint.training.learner import Learner
from mezzotint.training.progress import Row

Watch = Callable[[int], Mapping[str, Any]]


def measure(learner: Learner, held_out: Data | None, watch: Watch | None, folder: Path | None) -> Row:
    """Everything that is due at the learner's present step, by name; empty when nothing is."""
    config, row = learner.config, Row()
    last = learner.step >= config.steps

    def due(every: int) -> bool:
        return every > 0 and (last or learner.step % every == 0)

    if due(config.log_every):
        row |= _means(learner)
    if held_out is not None and due(config.held_out_every):
        with learner.averaged():
            row["held_out"] = held_out_loss(learner, held_out)
    if watch is not None and due(config.watch_every):
        with learner.averaged():
            row |= learner.processes.on_main(lambda: _watched(learner, watch, folder))
    return row


def held_out_loss(learner: Learner, data: Data) -> float:
    """Mean loss over the first items of `data`, always with the same noise: its course shows the weights alone."""
    config = learner.config
    items = min(config.held_out_items, batching.size(data) or config.held_out_items)
    rounds = max(1, items // config.batch_size)
    parts = batching.batches(
        data,
        seed=config.seed,
        batch_size=config.batch_size,
        shares=learner.shares,
        shuffle=False,
        split="held-out",
    )
    total = 0.0
    for number, (first, count) in itertools.product(range(rounds), learner.shares):
        step = learner.at(first, count, step=number, part="held-out")
        with step.ambient():
            total += float(learner.evaluate(next(parts), step)[0])
    return learner.processes.mean(total / (rounds * len(learner.shares)))


def _means(learner: Learner) -> Row:
    count = learner.window.pop("updates", 1.0)
    row = {name: value / count for name, value in learner.window.items()}
    learner.window = {}
    return row


def _watched(learner: Learner, watch: Watch, folder: Path | None) -> Row:
    with learner.at(0, 1, part="watch").ambient():
        found = watch(learner.step)
    pictures = {name: value for name, value in found.items() if isinstance(value, Tensor) and value.ndim == 4}
    if folder is not None:
        for name, value in pictures.items():
            grids.write(folder / "samples" / f"{name}-{learner.step:08d}.png", value)
    return {name: float(value) for name, value in found.items() if name not in pictures}
