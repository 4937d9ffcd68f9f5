"""A run small enough to be repeated many times, with every kind of state that a run can have."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from mezzotint.training import Config, Run, Step, fit

T = TypeVar("T")


def seeded(make: Callable[[], T], seed: int = 0) -> T:
    """Something made from a fixed seed; the global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


def network(*, plain: bool = False) -> nn.Sequential:
    """Every kind of layer with a state; `plain` leaves out those whose output depends on the whole batch."""
    middle = [] if plain else [nn.BatchNorm2d(8), nn.Dropout(0.1)]
    return seeded(
        lambda: nn.Sequential(
            nn.Conv2d(2, 8, 3, padding=1),
            *middle,
            nn.SiLU(),
            nn.Flatten(),
            nn.Linear(8 * 16, 12),
            nn.LayerNorm(12),
            nn.SiLU(),
            nn.Linear(12, 1),
        )
    )


def tensors(items: int = 50) -> dict[str, Tensor]:
    """Items to learn from: the mean of a random picture."""
    pictures = seeded(lambda: torch.randn(items, 2, 4, 4), 1)
    return {"picture": pictures, "mean": pictures.mean(dim=(1, 2, 3))}


def regression(net: nn.Module) -> Callable[[Any, Step], tuple[Tensor, dict[str, Tensor]]]:
    """Squared error on noisy pictures, where the noise is drawn from the step."""

    def loss(batch: Any, step: Step) -> tuple[Tensor, dict[str, Tensor]]:
        noisy = batch["picture"] + 0.1 * step.normal("noise", 2, 4, 4)
        weight = step.uniform("weight", 0.5, 1.5)
        error = (net(noisy).squeeze(1).float() - batch["mean"]).square()
        return (weight * error).mean(), {"weight": weight.mean()}

    return loss


def settings(**changes: Any) -> Config:
    """The settings of the small run."""
    usual: dict[str, Any] = {
        "steps": 12,
        "batch_size": 8,
        "accumulation": 2,
        "learning_rate": 1e-2,
        "schedule": "cosine",
        "warmup": 3,
        "ema": 0.9,
        "checkpoint_every": 2,
        "log_every": 3,
    }
    return Config(**(usual | changes))


def train(folder: Path | None = None, *, net: nn.Module | None = None, **changes: Any) -> tuple[dict[str, Tensor], Run]:
    """Do the small run with changed arguments of fit or settings; its weights and average, and what fit returned."""
    net = network() if net is None else net
    names = ("resume", "overwrite", "accept", "held_out", "watch", "make_optimiser", "tensorboard")
    options = {name: changes.pop(name) for name in names if name in changes}
    data = changes.pop("data", None)
    data = tensors() if data is None else data
    run = fit(regression(net), net, data, settings(**changes), folder=folder, progress=False, **options)
    return state(net, run), run


def state(net: nn.Module, run: Run) -> dict[str, Tensor]:
    """Everything that training has changed."""
    kept = {f"model/{name}": value.detach().clone() for name, value in net.state_dict().items()}
    if run.ema is not None:
        kept |= {f"ema/{name}": value.clone() for name, value in run.ema.average.items()}
    return kept


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    """Bit equality, name by name."""
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
