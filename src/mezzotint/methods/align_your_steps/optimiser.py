"""From a pipeline to its optimised schedule: data, denoiser, objective, stop metric and search put together.

arXiv 2404.14507, Algorithm 1 with section 3.3 and appendix B.1; the chain table is our alternative to Algorithm 2.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor

from mezzotint.metrics.similarity import rmse

from . import grids
from .chain import chain_table
from .data import Clean, clean_data
from .fingerprint import fingerprint
from .frozen import Frozen, freeze, run, start_noise
from .grids import Grid
from .klub import Denoise, MonteCarlo
from .progress import watched
from .schedule import Final, Schedule
from .search import MonteCarloObjective, Objective, Pass, Quality, TableObjective, hierarchical
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

    def __post_init__(self) -> None:
        """Refuse values outside their range before anything is computed."""
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")
        if self.candidates < 2:
            raise ValueError(f"candidates must be at least 2 (the current level is one of them), got {self.candidates}")
        if self.levels < FIRST_STAGE + 1:
            raise ValueError(f"levels must be at least {FIRST_STAGE + 1}, got {self.levels}")
        if self.mode not in ("chain", "monte_carlo"):
            raise ValueError(f"mode must be 'chain' or 'monte_carlo', got {self.mode!r}")
        if min(self.stop_samples, self.reference_steps, self.batch_size) < 1:
            raise ValueError("stop_samples, reference_steps and batch_size must be at least 1")

    @property
    def expected_items(self) -> int:
        """About how many items the denoiser will be given, for the progress bar."""
        table = self.samples * (self.levels if self.mode == "chain" else 22 * self.max_updates)
        return table + self.early_stopping * self.stop_samples * (self.reference_steps + 12 * FIRST_STAGE)


def optimise_pipeline(pipe: Any, *, clean: Clean | None = None, **options: Any) -> Schedule:
    """See `align_your_steps.optimise`; the options are those of `Settings`."""
    settings = Settings(**options)
    sigmas = training_sigmas(pipe.scheduler)
    if settings.steps >= len(sigmas):
        raise ValueError(f"steps must be below the {len(sigmas)} training levels of the model, got {settings.steps}")
    fields: dict[str, Any] = {"final": settings.final, "name": "align-your-steps"}
    if settings.steps == 1:
        return Schedule.from_levels((0, len(sigmas) - 1), sigmas, **fields)
    clean = _gathered(pipe, settings) if clean is None else clean
    frozen = freeze(pipe, clean.prompts, settings.guidance)
    with watched("optimising the schedule", settings.expected_items) as advance:
        counted = Counted(frozen, advance)
        grid, history = _searched(pipe, counted, clean, sigmas=sigmas, settings=settings)
    facts = _facts(pipe, frozen, clean, settings) | {"network_evaluations": counted.items * frozen.evaluations}
    schedule = Schedule.from_grid(grid, sigmas, clamp=True, facts=facts, history=history, **fields)
    for text in doubts(schedule, pipe, None):
        warnings.warn(text, stacklevel=3)
    return schedule


def _gathered(pipe: Any, settings: Settings) -> Clean:
    return clean_data(
        pipe,
        settings.data,
        settings.samples,
        prompts=settings.prompts,
        guidance=settings.guidance,
        seed=settings.seed,
        batch_size=settings.batch_size,
    )


def _searched(
    pipe: Any, denoise: Denoise, clean: Clean, *, sigmas: Grid, settings: Settings
) -> tuple[Grid, tuple[Pass, ...]]:
    objective = make_objective(denoise, clean, sigmas, settings)
    quality = trajectory_error(pipe, denoise, sigmas, settings) if settings.early_stopping else None
    start = first_grid(objective, sigmas)
    return hierarchical(start, objective, settings.steps, quality=quality, max_updates=settings.max_updates)


class Counted:
    """A denoiser that counts the items it has denoised and tells them to a progress bar."""

    def __init__(self, frozen: Frozen, advance: Callable[[int], None]) -> None:
        self.frozen, self.advance = frozen, advance
        self.items = 0

    def __call__(self, x: Tensor, sigma: Tensor, rows: Tensor) -> Tensor:
        """Denoise, and count."""
        self.items += len(x)
        self.advance(len(x))
        return self.frozen(x, sigma, rows)


def make_objective(denoise: Denoise, clean: Clean, sigmas: Grid, settings: Settings) -> Objective:
    """The objective of a mode: a chain table over training levels, or the Monte-Carlo estimate."""
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
    table = chain_table(
        denoise,
        clean.latents,
        table_levels(sigmas, settings.levels),
        seed=settings.seed,
        batch_size=settings.batch_size,
    )
    return TableObjective(table, settings.candidates)


def table_levels(sigmas: Grid, count: int) -> Grid:
    """`count` distinct training levels, as evenly spaced in ln sigma as the training levels allow."""
    wanted = grids.log_snr(min(count, len(sigmas)) - 1, sigmas[0], sigmas[-1])
    return tuple(sigmas[i] for i in grids.snap(wanted, sigmas, clamp=True))


def first_grid(objective: Objective, sigmas: Grid) -> Grid:
    """The time-uniform start of discrete-time models, on the table's levels where there is a table."""
    start = grids.time_uniform(FIRST_STAGE, sigmas)
    return objective.table.nearest(start) if isinstance(objective, TableObjective) else start


def trajectory_error(pipe: Any, denoise: Denoise, sigmas: Grid, settings: Settings) -> Quality:
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
