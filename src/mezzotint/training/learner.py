"""The state of a training run and one step of it: forward, backward, average over processes, clip, update, average.

Everything the steps to come depend on is in `Learner.state()`; everything random is derived from the step's number.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any, NoReturn

import torch
from torch import Tensor

from mezzotint.runtime.arithmetic import autocast
from mezzotint.training import data as batching
from mezzotint.training import finite, optimisers
from mezzotint.training import optimiser_state as moments
from mezzotint.training.checkpoints import State
from mezzotint.training.config import Config
from mezzotint.training.data import Batch
from mezzotint.training.ema import EMA
from mezzotint.training.processes import Processes
from mezzotint.training.step import Step
from mezzotint.training.trainables import Trainables

Loss = Callable[[Batch, Step], Tensor | tuple[Tensor, Mapping[str, Any]]]
MakeOptimiser = Callable[[Mapping[str, Tensor]], torch.optim.Optimizer]


class Learner:
    """Weights, optimiser and moving average of a run after `step` steps.

    Args:
        loss: see `mezzotint.training.fit`.
        trainables: what is trained.
        config: the settings.
        processes: the processes that share the work.
        make: makes the optimiser; None for the configured one.
    """

    def __init__(
        self,
        loss: Loss,
        trainables: Trainables,
        config: Config,
        *,
        processes: Processes,
        make: MakeOptimiser | None = None,
    ) -> None:
        self.loss, self.trainables, self.config, self.processes = loss, trainables, config, processes
        self.shares = processes.shares(config.batch_size, config.accumulation)
        processes.same_start(trainables.tensors())
        self.optimiser = make(trainables.parameters) if make else _configured(config, trainables)
        self.peaks = [float(group["lr"]) for group in self.optimiser.param_groups]
        self.ema = EMA(trainables.parameters, config.ema, warmup=config.ema_warmup) if config.ema is not None else None
        self.step = 0
        self.window: dict[str, float] = {}

    def update(self, parts: Iterator[Batch]) -> float:
        """Take one step on the next parts of the data and return its loss.

        Raises:
            NonFiniteError: if the loss or a gradient is not finite; the weights are then as before the step.
        """
        rate = self.config.rate(self.step)
        for group, peak in zip(self.optimiser.param_groups, self.peaks, strict=True):
            group["lr"] = peak * rate
        self.optimiser.zero_grad(set_to_none=True)
        values, culprit = self._backward(parts)
        values = self.processes.average(self.trainables.parameters, values)
        if not math.isfinite(values["loss"]):
            self._stop("loss", self.processes.first_of(culprit))
        norm = self._clip()
        self.optimiser.step()
        if self.ema is not None:
            self.ema.update()
        self.step += 1
        for name, value in {**values, "norm": norm, "rate": rate, "updates": 1.0}.items():
            self.window[name] = self.window.get(name, 0.0) + value
        return values["loss"]

    def evaluate(self, batch: Batch, step: Step) -> tuple[Tensor, Mapping[str, Any]]:
        """The loss of a part, and the numbers that came with it.

        Raises:
            ValueError: if the loss is not a single number.
        """
        with autocast(self.trainables.device, self.config.precision):
            result = self.loss(batching.move(batch, self.trainables.device), step)
        value, extra = result if isinstance(result, tuple) else (result, {})
        if value.ndim:
            raise ValueError(f"the loss must be a single number, got a tensor of shape {tuple(value.shape)}")
        return value, extra

    def at(self, first: int, count: int, *, step: int | None = None, part: str = "train") -> Step:
        """The `Step` of a part of the present batch, or of batch `step` of another kind of data."""
        number = self.step if step is None else step
        seed, size = self.config.seed, self.config.batch_size
        return Step(seed, number, first, count, size, self.trainables.device, part, self.ema)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The modules in eval mode, without gradients, holding the averaged weights where the run keeps an average."""
        with self.trainables.evaluating(), self.ema.applied() if self.ema else nullcontext():
            yield

    def state(self) -> State:
        """Everything that the steps to come depend on."""
        tensors, numbers = moments.gather(self.optimiser, self.trainables.parameters)
        groups = {"model": self.trainables.tensors(), "optimiser": tensors}
        if self.ema is not None:
            groups["ema"] = self.ema.average
        updates = self.ema.updates if self.ema else 0
        return State(self.step, groups, {"numbers": numbers, "ema_updates": updates, "window": self.window})

    def restore(self, state: State) -> None:
        """Go back to a saved state.

        Raises:
            ValueError: if it is the state of other tensors.
        """
        self.trainables.load(state.tensors["model"])
        moments.scatter(self.optimiser, self.trainables.parameters, state.tensors["optimiser"], state.facts["numbers"])
        if self.ema is not None:
            self.ema.load(state.tensors["ema"], int(state.facts["ema_updates"]))
        self.step = state.step
        self.window = dict(state.facts["window"])

    def _backward(self, parts: Iterator[Batch]) -> tuple[dict[str, float], str]:
        """Gradients of this process's parts; mean numbers, and the layer to blame if a loss is not finite."""
        totals: dict[str, float] = {}
        culprit = ""
        for first, count in self.shares:
            batch, step = next(parts), self.at(first, count)
            with step.ambient():
                value, extra = self.evaluate(batch, step)
                if torch.isfinite(value):
                    (value / len(self.shares)).backward()
            if not culprit and not torch.isfinite(value):
                culprit = self._blame(batch, step)
            for name, number in {"loss": value, **extra}.items():
                plain = float(number.detach() if isinstance(number, Tensor) else number)
                totals[name] = totals.get(name, 0.0) + plain / len(self.shares)
        return totals, culprit

    def _clip(self) -> float:
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
            return finite.first_bad_layer(self.trainables.modules, lambda: self.evaluate(batch, step))

    def _stop(self, what: str, layer: str) -> NoReturn:
        self.optimiser.zero_grad(set_to_none=True)
        raise finite.NonFiniteError(
            f"the {what} of step {self.step + 1} is not finite, first in {layer}; the weights are those of step "
            f"{self.step}. Lower the learning rate, lengthen the warm-up, or clip the gradient",
            step=self.step,
            layer=layer,
        )


def _configured(config: Config, trainables: Trainables) -> torch.optim.Optimizer:
    shared: dict[str, Any] = {
        "weight_decay": config.weight_decay,
        "betas": config.betas,
        "epsilon": config.epsilon,
        "rate_of": config.rate_of,
    }
    if config.optimiser == "muon":
        return optimisers.muon(trainables.given, config.learning_rate, momentum=config.momentum, **shared)
    return optimisers.adamw(trainables.given, config.learning_rate, **shared)
