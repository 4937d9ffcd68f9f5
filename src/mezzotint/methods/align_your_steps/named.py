"""Named schedules: the closed-form grids and the published ones, on a model's training levels or continuous."""

from __future__ import annotations

from typing import Any

from . import grids
from .grids import Grid
from .published import PUBLISHED, published_grid, published_indices
from .schedule import Final, Schedule
from .solvers import training_sigmas


def named_schedule(
    name: str,
    steps: int,
    *,
    pipe: Any = None,
    ends: tuple[float | None, float | None] = (None, None),
    c: float = 1.0,
    final: Final = "t_min",
    clamp: bool = False,
) -> Schedule:
    """See `align_your_steps.make`."""
    sigmas = None if pipe is None else training_sigmas(pipe.scheduler)
    fields: dict[str, Any] = {"final": final, "name": name}
    if name in PUBLISHED:
        return _published(name, steps, sigmas, clamp=clamp, fields=fields)
    grid = named_grid(name, steps, sigmas=sigmas, ends=ends, c=c)
    return Schedule.from_grid(grid, sigmas, clamp=clamp, **fields)


def named_grid(
    name: str,
    steps: int,
    *,
    sigmas: Grid | None = None,
    ends: tuple[float | None, float | None] = (None, None),
    c: float = 1.0,
) -> Grid:
    """The ascending grid of a closed form between two noise levels, or between the model's own ends.

    Raises:
        ValueError: unknown name; no ends and no model; a time-spaced grid without a model.
    """
    if name in grids.DISCRETE:
        if sigmas is None:
            raise ValueError(f"the {name} grid is spaced in training timesteps and needs a discrete-time model")
        return grids.DISCRETE[name](steps, sigmas)
    low, high = ends
    low = sigmas[0] if low is None and sigmas is not None else low
    high = sigmas[-1] if high is None and sigmas is not None else high
    if low is None or high is None:
        raise ValueError("a continuous grid needs s_min and s_max, or a pipeline to read them from")
    if name in grids.SCALED:
        return grids.SCALED[name](steps, low, high, c=c)
    if name not in grids.CONTINUOUS:
        known = sorted({*grids.CONTINUOUS, *grids.SCALED, *grids.DISCRETE, *PUBLISHED})
        raise ValueError(f"schedule must be one of {known}, got {name!r}")
    return grids.CONTINUOUS[name](steps, low, high)


def _published(name: str, steps: int, sigmas: Grid | None, *, clamp: bool, fields: dict[str, Any]) -> Schedule:
    if sigmas is None:
        return Schedule.from_grid(published_grid(name, steps), **fields)
    if clamp:
        return Schedule.from_grid(published_grid(name, steps), sigmas, clamp=True, **fields)
    return Schedule.from_levels(published_indices(name, steps, sigmas), sigmas, **fields)
