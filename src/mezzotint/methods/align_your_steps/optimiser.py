"""From a pipeline to its optimised schedule: data, denoiser, objective, stop metric and search put together.

arXiv 2404.14507, Algorithm 1 with section 3.3 and appendix B.1; the chain table is our alternative to Algorithm 2.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor

from . import grids
from .chain import chain_table
from .data import Clean, clean_data
from .fingerprint import fingerprint
from .frozen import Frozen, freeze, run, start_noise
from .grids import Grid
from .klub import MonteCarlo
from .schedule import Final, Schedule
from .search import MonteCarloObjective, Objective, Quality, TableObjective, hierarchical
from .solvers import backbone, doubts, training_sigmas

FIRST_STAGE = 10


@dataclass(frozen=True)
class Settings:
    """Everything that an optimisation depends on beside the pipeline; see `align_your_steps.optimise`."""

    steps: int = 10
    guidance: float | None = None
    data: str = "auto"
    prompts: tuple[Any, ...] = ()
    samples: int = 192
    mode: Literal["chain", "monte_carlo"] = "chain"
    levels: int = 64
    candidates: int = 11
    c: float = 0.5
    early_stopping: bool = True
    stop_solver: Literal["ddim", "2m"] = "2m"
    stop_samples: int = 32
    reference_steps: int = 100
    max_updates: int = 300
    final: Final = "t_min"
    seed: int = 0
    batch_size: int = 64


def optimise_pipeline(pipe: Any, *, clean: Clean | None = None, **options: Any) -> Schedule:
    """See `align_your_steps.optimise`; the options are those of `Settings`."""
    settings = Settings(**options)
    sigmas = training_sigmas(pipe.scheduler)
    if settings.steps < 1:
        raise ValueError(f"steps must be at least 1, got {settings.steps}")
    if settings.steps >= len(sigmas):
        raise ValueError(f"steps must be below the {len(sigmas)} training levels of the model, got {settings.steps}")
    fields: dict[str, Any] = {"final": settings.final, "name": "align-your-steps"}
    if settings.steps == 1:
        return Schedule.from_levels((0, len(sigmas) - 1), sigmas, **fields)
    if clean is None:
        clean = clean_data(
            pipe,
            settings.data,
            settings.samples,
            prompts=settings.prompts,
            guidance=settings.guidance,
            seed=settings.seed,
            batch_size=settings.batch_size,
        )
    frozen = freeze(pipe, clean.prompts, settings.guidance)
    counted = Counted(frozen)
    objective = make_objective(counted, clean, sigmas, settings)
    quality = trajectory_error(pipe, counted, sigmas, settings) if settings.early_stopping else None
    grid, history = hierarchical(
        first_grid(objective, sigmas), objective, settings.steps, quality=quality, max_updates=settings.max_updates
    )
    facts = _facts(pipe, frozen, clean, settings) | {"network_evaluations": counted.items * frozen.evaluations}
    schedule = Schedule.from_grid(grid, sigmas, clamp=True, facts=facts, history=history, **fields)
    for text in doubts(schedule, pipe, None):
        warnings.warn(text, stacklevel=3)
    return schedule


class Counted:
    """A denoiser that counts the items it has denoised."""

    def __init__(self, frozen: Frozen) -> None:
        self.frozen = frozen
        self.items = 0

    def __call__(self, x: Tensor, sigma: Tensor, rows: Tensor) -> Tensor:
        """Denoise, and count."""
        self.items += len(x)
        return self.frozen(x, sigma, rows)


def make_objective(denoise: Any, clean: Clean, sigmas: Grid, settings: Settings) -> Objective:
    """The objective of a mode: a chain table over training levels, or the Monte-Carlo estimate.

    Raises:
        ValueError: unknown mode, or too few levels or candidates.
    """
    if settings.mode == "monte_carlo":
        estimator = MonteCarlo(
            denoise,
            clean.latents,
            samples=settings.samples,
            c=settings.c,
            seed=settings.seed,
            batch_size=settings.batch_size,
        )
        return MonteCarloObjective(estimator, settings.candidates, sigmas)
    if settings.mode != "chain":
        raise ValueError(f"mode must be 'chain' or 'monte_carlo', got {settings.mode!r}")
    table = chain_table(
        denoise,
        clean.latents,
        table_levels(sigmas, settings.levels),
        seed=settings.seed,
        batch_size=settings.batch_size,
    )
    return TableObjective(table, settings.candidates)


def table_levels(sigmas: Grid, count: int) -> Grid:
    """`count` distinct training levels, as evenly spaced in ln sigma as the training levels allow.

    Raises:
        ValueError: fewer levels than a grid of the first stage needs.
    """
    count = min(count, len(sigmas))
    if count < FIRST_STAGE + 1:
        raise ValueError(f"levels must be at least {FIRST_STAGE + 1}, got {count}")
    wanted = grids.log_snr(count - 1, sigmas[0], sigmas[-1])
    return tuple(sigmas[i] for i in grids.snap(wanted, sigmas, clamp=True))


def first_grid(objective: Objective, sigmas: Grid) -> Grid:
    """The time-uniform start of discrete-time models, on the table's levels where there is a table."""
    start = grids.time_uniform(FIRST_STAGE, sigmas)
    return objective.table.nearest(start) if isinstance(objective, TableObjective) else start


def trajectory_error(pipe: Any, denoise: Any, sigmas: Grid, settings: Settings) -> Quality:
    """Stop metric: mean RMSE between latents of few steps and of many from the same start noise.

    The seeds of this start noise are used for nothing else.
    """
    noise = start_noise(pipe, settings.stop_samples, seed=settings.seed + STOP_SEED)
    many = min(settings.reference_steps, len(sigmas) - 1)

    def sampled(grid: Grid) -> Float[Tensor, "count ..."]:
        schedule = Schedule.from_grid(grid, sigmas, clamp=True, final=settings.final)
        return run(denoise, noise, schedule, solver=settings.stop_solver, batch_size=settings.batch_size)

    reference = sampled(grids.time_uniform(many, sigmas))
    return lambda grid: rmse(sampled(grid), reference).mean().item()


STOP_SEED = 7_919


def rmse(a: Float[Tensor, "count *item"], b: Float[Tensor, "count *item"]) -> Float[Tensor, " count"]:
    """Root mean squared difference of each pair of items."""
    return (a.double() - b.double()).flatten(1).square().mean(1).sqrt()


def _facts(pipe: Any, frozen: Frozen, clean: Clean, settings: Settings) -> dict[str, Any]:
    return {
        "guidance": frozen.guidance,
        "model": fingerprint(backbone(pipe)),
        "data": clean.source,
        "samples": len(clean.latents),
        "mode": settings.mode,
        "levels": settings.levels if settings.mode == "chain" else None,
        "candidates": settings.candidates,
        "early_stopping": f"RMSE, {settings.stop_solver}" if settings.early_stopping else None,
        "seed": settings.seed,
    }
