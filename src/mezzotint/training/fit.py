"""The one training loop of the library.

`fit` runs a loss over data with a moving average, warm-up and schedule, clipping, accumulation, bfloat16 autocast, several
processes through accelerate, crash-safe checkpoints and exact resume: on the CPU a run killed at any moment and continued
ends with the weights of an uninterrupted one, bit for bit, because every draw and the order of the data are derived from
(seed, step) and because weights, moments and average are stored exactly.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from mezzotint.training import data as batching
from mezzotint.training import finite, grids, optimisers
from mezzotint.training import optimiser_state as moments
from mezzotint.training.checkpoints import CheckpointError, Checkpoints, State, locked, step_of
from mezzotint.training.config import Config
from mezzotint.training.data import Batch, Data
from mezzotint.training.ema import EMA
from mezzotint.training.processes import Processes
from mezzotint.training.progress import Display, Log, Row
from mezzotint.training.step import Step
from mezzotint.training.trainables import Parameters, Trainables

Loss = Callable[[Batch, Step], Tensor | tuple[Tensor, Mapping[str, Any]]]
Watch = Callable[[int], Mapping[str, Any]]
Resume = Literal["auto", "must", "never"]


@dataclasses.dataclass(frozen=True)
class Run:
    """What `fit` returns; the modules it was given hold the trained (not averaged) weights.

    Attributes:
        step: optimiser steps done, over all calls that worked on this run.
        rows: the log, one mapping a row, each with "step"; training rows have "loss", "norm", "rate", measured ones their
            own names ("held_out", and what `watch` returned).
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
    held_out: Data | None = None,
    watch: Watch | None = None,
    optimiser: Callable[[Mapping[str, Tensor]], torch.optim.Optimizer] | None = None,
    tensorboard: bool = False,
    progress: bool = True,
) -> Run:
    """Train `parameters` to make `loss` small on `data`.

    Args:
        loss: called with a part of a batch and its `Step`; returns the mean loss over the part's items, alone or with a
            mapping of numbers to log. It draws noise from the step, so that runs can be repeated and continued.
        parameters: a module, or a mapping from names to modules and parameters; what has `requires_grad` is trained, where it is.
        data: tensors in memory by name, a map-style dataset, a `data.Source`, or a function (step, generator) -> batch.
        config: the settings.
        folder: where checkpoints, log and grids go; None keeps everything in memory and nothing on disk.
        resume: "auto" continues the run in `folder` or begins one in an empty folder; "must" only continues; "never" only begins.
        overwrite: with resume="never", remove the run that `folder` holds.
        held_out: data for the held-out loss; the same items and the same noise at every measurement, with the averaged weights.
        watch: called with the step, under the averaged weights in eval mode; the numbers it returns are logged, pictures
            (batch, 3, height, width) in 0..1 are written as grids to `folder/samples`.
        optimiser: makes another optimiser than the configured one from the named parameters.
        tensorboard: also write tensorboard events to `folder/tensorboard`.
        progress: show a bar (or lines) with loss and rate on standard error.

    Returns:
        The state of the run; see `Run`.

    Raises:
        CheckpointError: if a checkpoint cannot be written or read, or the folder holds a run that may not be touched.
        NonFiniteError: if the loss or a gradient stops being finite; weights and folder hold the state before that step.
        ValueError: if data, settings and saved run do not fit together.
    """
    trainables = Trainables.of(parameters)
    processes = Processes(trainables.device)
    place = None if folder is None else Path(folder)
    if place is None and resume == "must":
        raise ValueError('resume="must" needs a folder to continue from')
    with locked(place) if place is not None and processes.main else contextlib.nullcontext():
        loop = _Loop(loss, trainables, config, processes, place, optimiser)
        loop.display = Display(config.steps, 0, config.batch_size, show=progress and processes.main)
        try:
            loop.begin(resume, overwrite=overwrite, facts={"config": config.to_json(), "items": batching.size(data)})
            loop.open(tensorboard=tensorboard)
            loop.train(data, held_out, watch)
        finally:
            loop.close()
    return Run(loop.step, loop.rows, loop.ema, loop.step >= config.steps)


class _Loop:
    """The state of one call of `fit`."""

    def __init__(
        self,
        loss: Loss,
        trainables: Trainables,
        config: Config,
        processes: Processes,
        folder: Path | None,
        optimiser: Callable[[Mapping[str, Tensor]], torch.optim.Optimizer] | None,
    ) -> None:
        self.loss, self.trainables, self.config, self.processes, self.folder = (
            loss,
            trainables,
            config,
            processes,
            folder,
        )
        self.shares = processes.shares(config.batch_size, config.accumulation)
        self.optimiser = optimiser(trainables.parameters) if optimiser else _make_optimiser(config, trainables)
        for group in self.optimiser.param_groups:
            group["peak"] = float(group["lr"])
        self.ema = EMA(trainables.parameters, config.ema, warmup=config.ema_warmup) if config.ema is not None else None
        self.checkpoints = Checkpoints(folder, keep=config.keep, say=self.say) if folder else None
        self.step = 0
        self.saved = -1
        self.window: dict[str, float] = {}
        self.facts: dict[str, Any] = {}
        self.display: Display | None = None
        self.log: Log | None = None
        self.began = time.monotonic()

    def say(self, line: str) -> None:
        """One line to the user."""
        if self.display is not None:
            self.display.say(line)

    @property
    def rows(self) -> list[Row]:
        """The log so far."""
        return self.log.rows if self.log else []

    # Beginning and continuing

    def begin(self, resume: Resume, *, overwrite: bool, facts: dict[str, Any]) -> None:
        """Continue the run in the folder or begin a new one, as `resume` says."""
        self.facts = facts
        self.processes.same_start(self.trainables.tensors())
        if self.ema is not None:
            self.ema = EMA(self.trainables.parameters, self.ema.decay, warmup=self.ema.warmup)
        if self.checkpoints is None:
            return
        chosen = self.processes.on_main(lambda: self._choose(resume, overwrite))
        if chosen is not None:
            self._restore(self.checkpoints.read(Path(chosen)))
            self.say(f"continuing {self.folder} from step {self.step} of {self.config.steps}")
        else:
            self.save()

    def _choose(self, resume: Resume, overwrite: bool) -> str | None:
        assert self.checkpoints is not None and self.folder is not None
        started = self.checkpoints.paths() or (self.folder / "log.jsonl").exists()
        if resume == "never" and started:
            if not overwrite:
                raise CheckpointError(
                    f"{self.folder} already holds a run; continue it with resume='auto', or say overwrite=True to remove it"
                )
            _remove_run(self.folder)
        chosen = None if resume == "never" else self.checkpoints.newest()
        if chosen is None and (resume == "must" or (started and resume == "auto")):
            raise CheckpointError(
                f"{self.folder} holds no readable checkpoint to continue from, and a new run is not begun there silently; "
                "choose another folder, or say resume='never', overwrite=True"
            )
        self.checkpoints.begin_after(chosen)
        return str(chosen) if chosen else None

    def _restore(self, state: State) -> None:
        changed = self.config.differences(state.facts["config"])
        if state.facts["items"] != self.facts["items"]:
            changed.append(f"items of the data: {state.facts['items']} -> {self.facts['items']}")
        if changed:
            raise ValueError(f"the run in {self.folder} was begun with other settings: {'; '.join(changed)}")
        if state.facts["config"]["steps"] != self.config.steps:
            self.say(f"the run was planned for {state.facts['config']['steps']} steps, now for {self.config.steps}")
        self.trainables.load(state.tensors["model"])
        moments.scatter(self.optimiser, self.trainables.parameters, state.tensors["optimiser"], state.facts["numbers"])
        if self.ema is not None:
            self.ema.load(state.tensors["ema"], int(state.facts["ema_updates"]))
        self.step = self.saved = state.step
        self.window = dict(state.facts["window"])

    def save(self) -> None:
        """Write a checkpoint of the present step, once."""
        if self.checkpoints is None or self.saved == self.step:
            return
        self.processes.on_main(lambda: self.checkpoints.write(self.state()) and None)  # type: ignore[union-attr, func-returns-value]
        self.saved = self.step

    def state(self) -> State:
        """Everything that the steps to come depend on."""
        tensors, numbers = moments.gather(self.optimiser, self.trainables.parameters)
        groups = {"model": self.trainables.tensors(), "optimiser": tensors}
        if self.ema is not None:
            groups["ema"] = self.ema.average
        updates = self.ema.updates if self.ema else 0
        return State(
            self.step, groups, {**self.facts, "numbers": numbers, "ema_updates": updates, "window": self.window}
        )

    def open(self, *, tensorboard: bool) -> None:
        """Open log and display at the step the run begins at."""
        self.log = Log(self.folder if self.processes.main else None, self.step, tensorboard=tensorboard)
        show = self.display is not None and self.display.show
        self.display = Display(self.config.steps, self.step, self.config.batch_size, show=show)

    def close(self) -> None:
        """Close log and display."""
        if self.log is not None:
            self.log.close()
        if self.display is not None:
            self.display.close()

    # Training

    def train(self, data: Data, held_out: Data | None, watch: Watch | None) -> None:
        """Take the remaining steps."""
        config = self.config
        parts = batching.batches(
            data,
            seed=config.seed,
            batch_size=config.batch_size,
            shares=self.shares,
            start=self.step,
            workers=config.workers,
        )
        while self.step < config.steps and not self._out_of_time():
            self._update(parts)
            row = self._measure(held_out, watch)
            if self.log is not None and row:
                self.log.add({"step": self.step, **row})
            if self.step % config.checkpoint_every == 0:
                self.save()
        self.save()

    def _out_of_time(self) -> bool:
        if self.config.stop_after is None:
            return False
        return self.processes.on_main(lambda: time.monotonic() - self.began > (self.config.stop_after or 0.0))

    def _update(self, parts: Iterator[Batch]) -> None:
        rate = self.config.rate(self.step)
        for group in self.optimiser.param_groups:
            group["lr"] = group["peak"] * rate
        self.optimiser.zero_grad(set_to_none=True)
        values = self._backward(parts)
        names = sorted(values)
        means = torch.tensor([values[name] for name in names], dtype=torch.float64)
        values = dict(zip(names, self.processes.average(self.trainables.parameters, means).tolist(), strict=True))
        values["norm"] = self._norm(values["loss"])
        self.optimiser.step()
        if self.ema is not None:
            self.ema.update()
        self.step += 1
        for name, value in {**values, "rate": rate, "updates": 1.0}.items():
            self.window[name] = self.window.get(name, 0.0) + value
        if self.display is not None:
            self.display.update(self.step, values["loss"])

    def _backward(self, parts: Iterator[Batch]) -> dict[str, float]:
        totals: dict[str, float] = {}
        for first, count in self.shares:
            batch = batching.move(next(parts), self.trainables.device)
            step = self._step(first, count)
            with step.ambient():
                value, extra = self._evaluate(batch, step)
                if torch.isfinite(value):
                    (value / len(self.shares)).backward()
            if not torch.isfinite(value):
                self._stop("loss", self._blame(batch, step))
            for name, number in {"loss": value, **extra}.items():
                plain = float(number.detach() if isinstance(number, Tensor) else number)
                totals[name] = totals.get(name, 0.0) + plain / len(self.shares)
        return totals

    def _evaluate(self, batch: Batch, step: Step) -> tuple[Tensor, Mapping[str, Any]]:
        bfloat16 = self.config.precision == "bfloat16"
        with torch.autocast(self.trainables.device.type, dtype=torch.bfloat16, enabled=bfloat16):
            result = self.loss(batch, step)
        value, extra = result if isinstance(result, tuple) else (result, {})
        if value.ndim:
            raise ValueError(f"the loss must be a single number, got a tensor of shape {tuple(value.shape)}")
        return value, extra

    def _step(self, first: int, count: int, *, step: int | None = None, part: str = "train") -> Step:
        number = self.step if step is None else step
        size = self.config.batch_size
        return Step(self.config.seed, number, first, count, size, self.trainables.device, part, self.ema)

    def _norm(self, loss: float) -> float:
        trained = [value for value in self.trainables.parameters.values() if value.grad is not None]
        if self.config.clip is None:
            norm = torch.nn.utils.get_total_norm([value.grad for value in trained if value.grad is not None])
        else:
            norm = torch.nn.utils.clip_grad_norm_(trained, self.config.clip)
        if not torch.isfinite(norm):
            self._stop("gradient", finite.bad_gradient(self.trainables.parameters) or "the sum over all layers")
        return float(norm)

    def _blame(self, batch: Batch, step: Step) -> str:
        with step.ambient():
            return finite.first_bad_layer(self.trainables.modules, lambda: self._evaluate(batch, step))

    def _stop(self, what: str, layer: str) -> None:
        self.optimiser.zero_grad(set_to_none=True)
        kept = f"; the last checkpoint in {self.folder} is of step {self.saved}" if self.folder else ""
        raise finite.NonFiniteError(
            f"the {what} of step {self.step + 1} is not finite, first in {layer}; the weights are those of step {self.step}{kept}. "
            "Lower the learning rate, lengthen the warm-up, or clip the gradient",
            step=self.step,
            layer=layer,
        )

    # Measuring

    def _measure(self, held_out: Data | None, watch: Watch | None) -> Row:
        config, row = self.config, {}
        last = self.step >= config.steps
        if (self.step % config.log_every == 0 or last) and self.window:
            count = self.window.pop("updates")
            row = {name: value / count for name, value in self.window.items()}
            self.window = {}
        if held_out is not None and config.held_out_every and (self.step % config.held_out_every == 0 or last):
            with self._averaged():
                row["held_out"] = self._held_out(held_out)
        if watch is not None and config.watch_every and (self.step % config.watch_every == 0 or last):
            with self._averaged():
                row |= self.processes.on_main(lambda: self._watch(watch))
        return row

    @contextlib.contextmanager
    def _averaged(self) -> Iterator[None]:
        with self.trainables.evaluating(), self.ema.applied() if self.ema else contextlib.nullcontext():
            yield

    def _held_out(self, data: Data) -> float:
        config = self.config
        known = batching.size(data)
        items = min(config.held_out_items, known or config.held_out_items)
        rounds = max(1, items // config.batch_size)
        parts = batching.batches(
            data, seed=config.seed, batch_size=config.batch_size, shares=self.shares, shuffle=False, split="held-out"
        )
        total = 0.0
        for number, (first, count) in itertools.product(range(rounds), self.shares):
            step = self._step(first, count, step=number, part="held-out")
            with step.ambient():
                total += float(self._evaluate(batching.move(next(parts), self.trainables.device), step)[0])
        return self.processes.mean(total / (rounds * len(self.shares)))

    def _watch(self, watch: Watch) -> Row:
        with self._step(0, 1, part="watch").ambient():
            found = watch(self.step)
        pictures = {name: value for name, value in found.items() if isinstance(value, Tensor) and value.ndim == 4}
        if self.folder is not None:
            for name, value in pictures.items():
                grids.write(self.folder / "samples" / f"{name}-{self.step:08d}.png", value)
        return {name: float(value) for name, value in found.items() if name not in pictures}


def _make_optimiser(config: Config, trainables: Trainables) -> torch.optim.Optimizer:
    named: dict[str, Any] = {**trainables.modules, **_loose(trainables)}
    make = optimisers.muon if config.optimiser == "muon" else optimisers.adamw
    extra: dict[str, Any] = {"momentum": config.momentum} if config.optimiser == "muon" else {}
    return make(
        named, config.learning_rate, weight_decay=config.weight_decay, betas=config.betas, epsilon=config.epsilon,
        rate_of=config.rate_of, **extra,
    )  # fmt: skip


def _loose(trainables: Trainables) -> dict[str, Tensor]:
    held = {id(value) for module in trainables.modules.values() for value in module.parameters()}
    return {name: value for name, value in trainables.parameters.items() if id(value) not in held}


def _remove_run(folder: Path) -> None:
    for name in ("checkpoints", "samples", "tensorboard"):
        shutil.rmtree(folder / name, ignore_errors=True)
    for name in ("log.jsonl", "latest"):
        (folder / name).unlink(missing_ok=True)


__all__ = ["Loss", "Resume", "Run", "Watch", "fit", "step_of"]
