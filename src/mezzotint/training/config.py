"""The settings of a training run: one frozen dataclass, checked when it is made, and the learning-rate schedule.

The cosine schedule is that of SGDR without restarts (Loshchilov and Hutter, arXiv 1608.03983, equation 5) after a
linear warm-up. Everything is a pure function of the step, so no schedule state is ever saved.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal

import torch

from mezzotint.runtime.arithmetic import Arithmetic

# Fields that may differ between the run in a folder and the call that continues it: they do not change what a step
# computes, except `steps`, whose change is how a run is made longer and is announced.
FREE = {
    "steps",
    "checkpoint_every",
    "keep",
    "held_out_every",
    "held_out_items",
    "watch_every",
    "log_every",
    "stop_after",
    "workers",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of `mezzotint.training.fit`.

    Args:
        steps: optimiser steps of the whole run, at least 1.
        batch_size: items of one optimiser step, over all processes and accumulated parts.
        accumulation: number of parts in which a process works through its share of a batch.
        optimiser: "adamw", or "muon" (Muon for matrices and convolutions, AdamW for the rest).
        learning_rate: peak learning rate, above 0.
        rates: factor on the learning rate of tensors whose name starts with the key; the longest matching key decides.
        betas: decay rates of AdamW's two moments, each in [0, 1).
        epsilon: AdamW's denominator term, above 0.
        weight_decay: decoupled decay of tensors with two or more dimensions (gains, biases are left alone), at least 0.
        momentum: Muon's momentum, in [0, 1).
        schedule: course of the learning rate after the warm-up.
        warmup: steps of linear warm-up, in 0..steps.
        final: learning rate at the end of "cosine" and "linear" as a fraction of the peak, in [0, 1].
        clip: largest norm of the gradient of all tensors together; None for no clipping.
        precision: "float32", or "bfloat16" for autocast around the loss (weights and moments stay as they are).
        ema: decay of the moving average of the weights, in [0, 1); None for no average.
        ema_warmup: shorten the average early in the run: decay min(ema, (1 + n) / (10 + n)) at update n.
        seed: seed of every draw of the run.
        checkpoint_every: steps between checkpoints, at least 1. One more is always written at the start and at the end.
        keep: complete checkpoints to keep, at least 1.
        held_out_every: steps between measurements of the held-out loss; 0 for never.
        held_out_items: held-out items a measurement looks at.
        watch_every: steps between calls of `watch`; 0 for never.
        log_every: steps between rows of the log; a row is the mean of the steps since the last one.
        stop_after: seconds after which the run stops, with a checkpoint, to be continued later (a call takes at least
            one step); None for never.
        workers: processes that load a map-style dataset; 0 loads in this one.

    Raises:
        ValueError: if a setting is out of its range.
    """

    steps: int
    batch_size: int
    accumulation: int = 1
    optimiser: Literal["adamw", "muon"] = "adamw"
    learning_rate: float = 1e-4
    rates: Mapping[str, float] = dataclasses.field(default_factory=dict)
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8
    weight_decay: float = 1e-2
    momentum: float = 0.95
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    warmup: int = 0
    final: float = 0.0
    clip: float | None = 1.0
    precision: Arithmetic = "float32"
    ema: float | None = None
    ema_warmup: bool = True
    seed: int = 0
    checkpoint_every: int = 1000
    keep: int = 2
    held_out_every: int = 0
    held_out_items: int = 256
    watch_every: int = 0
    log_every: int = 50
    stop_after: float | None = None
    workers: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulation", "checkpoint_every", "keep", "held_out_items", "log_every"):
            _at_least(name, getattr(self, name), 1)
        for name in ("warmup", "held_out_every", "watch_every", "workers", "weight_decay"):
            _at_least(name, getattr(self, name), 0)
        for name in ("learning_rate", "epsilon", "clip", "stop_after"):
            _positive(name, getattr(self, name))
        for name, value in self.rates.items():
            _at_least(f"rates[{name!r}]", value, 0)
        for name, value in (("betas[0]", self.betas[0]), ("betas[1]", self.betas[1]), ("momentum", self.momentum)):
            _below_one(name, value)
        _below_one("ema", 0.0 if self.ema is None else self.ema)
        _choice("optimiser", self.optimiser, ("adamw", "muon"))
        _choice("schedule", self.schedule, ("constant", "cosine", "linear"))
        _choice("precision", self.precision, ("float32", "bfloat16"))
        if not 0.0 <= self.final <= 1.0:
            raise ValueError(f"final must be in 0..1 (a fraction of the learning rate), got {self.final}")
        if self.warmup > self.steps:
            raise ValueError(f"warmup must be at most steps ({self.steps}), got {self.warmup}")
        if self.batch_size % self.accumulation:
            raise ValueError(f"batch_size ({self.batch_size}) must be a multiple of accumulation ({self.accumulation})")

    @property
    def dtype(self) -> torch.dtype:
        """The precision as torch names it."""
        return torch.bfloat16 if self.precision == "bfloat16" else torch.float32

    def rate(self, step: int) -> float:
        """Factor on the learning rate of the update that follows `step` finished updates, in [0, 1]."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        if self.schedule == "constant":
            return 1.0
        progress = min(1.0, (step - self.warmup) / max(1, self.steps - self.warmup))
        falling = 1.0 - progress if self.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))
        return self.final + (1.0 - self.final) * falling

    def rate_of(self, name: str) -> float:
        """Factor that `rates` gives to the tensor called `name`."""
        keys = [key for key in self.rates if name.startswith(key)]
        return self.rates[max(keys, key=len)] if keys else 1.0

    def to_json(self) -> dict[str, Any]:
        """The settings as plain JSON values."""
        values = dataclasses.asdict(self)
        return {**values, "betas": list(self.betas), "rates": dict(self.rates)}

    def differences(self, saved: Mapping[str, Any]) -> dict[str, str]:
        """Settings that change what a step computes and differ from those in `saved`, as name: "saved -> now"."""
        now = self.to_json()
        names = [name for name in now if name not in FREE and name in saved and saved[name] != now[name]]
        return {name: f"{saved[name]} -> {now[name]}" for name in names}


def _at_least(name: str, value: float, least: int) -> None:
    if not (math.isfinite(value) and value >= least):
        raise ValueError(f"{name} must be at least {least}, got {value}")


def _positive(name: str, value: float | None) -> None:
    if value is not None and not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} must be a finite number above 0, got {value}")


def _below_one(name: str, value: float) -> None:
    if not 0.0 <= value < 1.0:
        raise ValueError(f"{name} must be in [0, 1), got {value}")


def _choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")
