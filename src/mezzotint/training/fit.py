"""The one training loop of the library.

`fit` runs a loss over data with a moving average, warm-up and schedule, clipping, accumulation, bfloat16 autocast,
several processes through accelerate, crash-safe checkpoints and exact resume: on the CPU a run killed at any moment and
continued ends with the weights of an uninterrupted one, bit for bit, because every draw and the order of the data are
derived from (seed, step) and because weights, moments and average are stored exactly.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from mezzotint.training import data as batching
from mezzotint.training.checkpoints import Checkpoints, State, locked
from mezzotint.training.config import Config
from mezzotint.training.data import Data
from mezzotint.training.ema import EMA
from mezzotint.training.finite import NonFiniteError
from mezzotint.training.learner import Learner, Loss, MakeOptimiser
from mezzotint.training.measure import Watch, measure
from mezzotint.training.processes import Processes
from mezzotint.training.progress import Display, Log, Row
from mezzotint.training.resume import Resume, choose, refuse_changes
from mezzotint.training.trainables import Parameters, Trainables


@dataclasses.dataclass(frozen=True)
class Run:
    """What `fit` returns; the modules it was given hold the trained (not averaged) weights.

    Attributes:
        step: optimiser steps done, over all calls that worked on this run.
        rows: the log, one mapping a row, each with "step"; training rows have "loss", "norm", "rate" (means since the
            row before), measured ones "held_out" and what `watch` returned.
        ema: the moving average, or None; `with run.ema.applied(): ...` puts it into the modules.
        complete: whether all steps of the configuration are done.
    """

    step: int
    rows: list[Row]
    ema: EMA | None
    complete: bool


def fit(
    loss: Loss,
    parameters: Parameters,
    data: Data,
    config: Config,
    *,
    folder: str | Path | None = None,
    resume: Resume = "auto",
    overwrite: bool = False,
    accept: tuple[str, ...] = (),
    held_out: Data | None = None,
    watch: Watch | None = None,
    make_optimiser: MakeOptimiser | None = None,
    tensorboard: bool = False,
    progress: bool = True,
) -> Run:
    """Train `parameters` to make `loss` small on `data`.

    Args:
        loss: called with a part of a batch and its `Step`; returns the mean loss over the part's items, alone or with a
            mapping of numbers to log. It draws noise from the step, so that runs can be repeated and continued.
        parameters: a module, or a mapping from names to modules and parameters; what has `requires_grad` is trained,
            on the device where it is.
        data: tensors in memory by name, a map-style dataset, a `Source`, or a function (step, generator) -> batch.
        config: the settings.
        folder: where checkpoints, log and grids go; None keeps everything in memory and nothing on disk.
        resume: "auto" continues the run in `folder`, or begins one where there is none; "must" only continues; "never"
            only begins.
        overwrite: with resume="never", remove the run that `folder` holds.
        accept: names of settings that may differ from those the run was begun with ("items" for the size of the data).
        held_out: data for the held-out loss: the same items and noise at every measurement, with the averaged weights.
        watch: called with the step, under the averaged weights in eval mode; the numbers it returns are logged,
            pictures (batch, 3, height, width) in 0..1 are written as grids to `folder/samples`.
        make_optimiser: makes another optimiser than the configured one from the named parameters.
        tensorboard: also write tensorboard events to `folder/tensorboard`.
        progress: show a bar (or lines) with loss and rate on standard error.

    Returns:
        The state of the run; see `Run`.

    Raises:
        CheckpointError: if a checkpoint cannot be written or read, or the folder holds a run that may not be touched.
        NonFiniteError: if the loss or a gradient stops being finite; weights and folder hold the state before that
            step.
        ValueError: if data, settings and saved run do not fit together.
    """
    trainables = Trainables.of(parameters)
    processes = Processes(trainables.device)
    place = None if folder is None else Path(folder)
    if place is None and resume == "must":
        raise ValueError('resume="must" needs a folder to continue from')
    with locked(place) if place is not None and processes.main else nullcontext():
        learner = Learner(loss, trainables, config, processes=processes, make=make_optimiser)
        display = Display(config.steps, config.batch_size, show=progress and processes.main)
        run = _Folder(place, learner, display, {"config": config.to_json(), "items": batching.size(data)})
        run.begin(resume, overwrite=overwrite, accept=accept)
        with _opened(display, place, learner, tensorboard=tensorboard) as log:
            _train(learner, run, log, data=data, held_out=held_out, watch=watch)
    return Run(learner.step, log.rows, learner.ema, learner.step >= config.steps)


class _Folder:
    """The run's folder, or none: begins, continues and saves."""

    def __init__(self, path: Path | None, learner: Learner, display: Display, facts: dict[str, Any]) -> None:
        self.path, self.learner, self.display, self.facts = path, learner, display, facts
        self.checkpoints = Checkpoints(path, keep=learner.config.keep, say=display.say) if path else None
        self.saved = -1

    def begin(self, resume: Resume, *, overwrite: bool, accept: tuple[str, ...]) -> None:
        """Continue the run in the folder or begin one with a checkpoint of step 0, as `resume` says."""
        if self.checkpoints is None:
            return
        checkpoints, learner = self.checkpoints, self.learner
        name = learner.processes.on_main(lambda: choose(checkpoints, resume, overwrite=overwrite))
        if name is None:
            self.save()
            return
        state = checkpoints.read(Path(name))
        refuse_changes(state, self.facts, learner.config, accept=accept)
        learner.restore(state)
        self.saved = learner.step
        planned = state.facts["config"]["steps"]
        change = "" if planned == learner.config.steps else f" (it was planned for {planned})"
        self.display.say(f"continuing {self.path} from step {learner.step} of {learner.config.steps}{change}")

    def save(self, *, prune: bool = True) -> None:
        """Write a checkpoint of the present step, once."""
        if self.checkpoints is None or self.saved == self.learner.step:
            return
        checkpoints, state = self.checkpoints, self.learner.state()
        full = State(state.step, state.tensors, {**self.facts, **state.facts})
        self.learner.processes.on_main(lambda: str(checkpoints.write(full, prune=prune)))
        self.saved = self.learner.step


@contextmanager
def _opened(display: Display, folder: Path | None, learner: Learner, *, tensorboard: bool) -> Iterator[Log]:
    log = Log(folder if learner.processes.main else None, learner.step, tensorboard=tensorboard)
    display.start(learner.step)
    try:
        yield log
    finally:
        display.close()
        log.close()


def _train(learner: Learner, run: _Folder, log: Log, *, data: Data, held_out: Data | None, watch: Watch | None) -> None:
    config, began = learner.config, time.monotonic()
    parts = batching.batches(
        data,
        seed=config.seed,
        batch_size=config.batch_size,
        shares=learner.shares,
        start=learner.step,
        workers=config.workers,
    )
    while learner.step < config.steps:
        try:
            loss = learner.update(parts)
        except NonFiniteError:
            # The state before the failed step is good; earlier checkpoints stay, in case it was already on its way
            # down.
            run.save(prune=False)
            raise
        run.display.update(learner.step, loss)
        row = measure(learner, held_out, watch, run.path)
        if row:
            log.add({"step": learner.step, **row})
        if learner.step % config.checkpoint_every == 0:
            run.save()
        if _out_of_time(learner, began):
            break
    run.save()


def _out_of_time(learner: Learner, began: float) -> bool:
    limit = learner.config.stop_after
    return limit is not None and learner.processes.on_main(lambda: time.monotonic() - began > limit)
