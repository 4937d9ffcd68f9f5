"""The optimisation: coordinate search with early stopping, then two subdivisions (arXiv 2404.14507, Alg. 1 and B.1).

Every objective gives the cost K(a, b) of one step and the candidates for a level between two neighbours; the chain
table and the Monte-Carlo estimate are searched by the same code. End points never move.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from .chain import ChainTable
from .grids import Grid, check_grid, log_snr, resample, subdivide
from .klub import MonteCarlo

Quality = Callable[[Grid], float]


@runtime_checkable
class Objective(Protocol):
    """Cost of one step, and where a level between two neighbours may go."""

    def interval(self, low: float, high: float) -> float:
        """K(low, high); the same value whenever it is asked."""
        ...

    def candidates(self, low: float, current: float, high: float) -> Sequence[float]:
        """Levels strictly between the neighbours, the current one not among them."""
        ...

    def knows(self, level: float) -> bool:
        """Whether steps to and from this level have a cost."""
        ...


@dataclass(frozen=True)
class TableObjective:
    """The chain table as an objective. `count` includes the current level; None takes every level between."""

    table: ChainTable
    count: int | None = 11

    def __post_init__(self) -> None:
        """Refuse fewer than two candidates."""
        _check_count(self.count)

    def interval(self, low: float, high: float) -> float:
        """K(low, high) from the table."""
        return self.table.interval(low, high)

    def candidates(self, low: float, current: float, high: float) -> Sequence[float]:
        """Table levels near log-uniform points strictly inside (low, high)."""
        inside = self.table.between(low, high, None if self.count is None else self.count - 1)
        return tuple(s for s in inside if s != current)

    def knows(self, level: float) -> bool:
        """Only the table's own levels have a cost."""
        return level in self.table.levels


@dataclass(frozen=True)
class MonteCarloObjective:
    """The Monte-Carlo estimate as an objective, remembering what it has estimated.

    Attributes:
        estimator: of single steps.
        count: candidates for a level, the current one included.
        training_sigmas: levels that candidates are snapped to; None for continuous-time models.
    """

    estimator: MonteCarlo
    count: int = 11
    training_sigmas: Sequence[float] | None = None
    known: dict[tuple[float, float], float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse fewer than two candidates."""
        _check_count(self.count)

    def interval(self, low: float, high: float) -> float:
        """K(low, high), estimated once."""
        if (low, high) not in self.known:
            self.known[low, high] = self.estimator.interval(low, high).mean
        return self.known[low, high]

    def candidates(self, low: float, current: float, high: float) -> Sequence[float]:
        """Log-uniform points strictly inside (low, high), moved to distinct training levels where there are any."""
        points = log_snr(self.count, low, high)[1:-1]
        if self.training_sigmas is None:
            return tuple(p for p in points if p != current)
        inside = [s for s in self.training_sigmas if low < s < high]
        chosen = {_closest(inside, p) for p in points if inside}
        return tuple(sorted(chosen - {current}))

    def knows(self, level: float) -> bool:  # noqa: ARG002 - the protocol's signature
        """Every level can be estimated."""
        return True


@dataclass(frozen=True)
class Pass:
    """State after one pass: pass 0 is the initial grid.

    Attributes:
        stage: number of steps being optimised.
        number: of the pass within the stage.
        grid: ascending noise levels.
        objective: KLUB of the grid.
        quality: metric of samples (lower is better), None where it was not measured.
        updates: levels moved by this pass.
    """

    stage: int
    number: int
    grid: Grid
    objective: float
    quality: float | None = None
    updates: int = 0


def total(grid: Sequence[float], objective: Objective) -> float:
    """KLUB of a grid: the sum of its step costs over the levels that the objective knows."""
    known = [t for t in grid if objective.knows(t)]
    return sum(objective.interval(a, b) for a, b in itertools.pairwise(known))


def best_level(low: float, current: float, high: float, objective: Objective) -> float:
    """The candidate with the least K(low, t) + K(t, high); the current level wins ties.

    A current level without a cost gives way to any candidate, and stays where there is none (a log-midpoint between two
    neighbouring levels of a table).
    """
    levels = tuple(objective.candidates(low, current, high))
    if not levels:
        return current
    if objective.knows(current):
        levels = (current, *levels)
    return min(levels, key=lambda t: objective.interval(low, t) + objective.interval(t, high))


def coordinate_pass(grid: Sequence[float], objective: Objective, *, limit: int | None = None) -> tuple[Grid, int]:
    """Visit t_1 .. t_{n-1} once, each moved to its best candidate; returns the grid and how many levels moved.

    Args:
        grid: ascending levels.
        objective: to lower; a pass never raises it.
        limit: stop after this many points have been visited.
    """
    levels, moved = list(grid), 0
    last = len(levels) - 1 if limit is None else min(len(levels) - 1, 1 + limit)
    for i in range(1, last):
        best = best_level(levels[i - 1], levels[i], levels[i + 1], objective)
        moved += best != levels[i]
        levels[i] = best
    return tuple(levels), moved


def coordinate_search(
    grid: Sequence[float], objective: Objective, *, quality: Quality | None = None, max_updates: int = 300
) -> list[Pass]:
    """Passes until no level moves or the updates are used up; `best_pass` picks the one to keep.

    Args:
        grid: initial ascending levels.
        objective: step costs.
        quality: sample-quality metric of a grid, lower is better, evaluated before the first and after every pass.
        max_updates: point updates (visits) in total; the paper uses fewer than 300.

    Raises:
        ValueError: the grid does not ascend, or max_updates is negative.
    """
    check_grid(grid)
    if max_updates < 0:
        raise ValueError(f"max_updates must be at least 0, got {max_updates}")
    stage, left = len(grid) - 1, max_updates
    passes = [_state(tuple(grid), objective, quality, stage=stage, number=0, moved=0)]
    while left > 0 and stage > 1:
        levels, moved = coordinate_pass(passes[-1].grid, objective, limit=left)
        left -= stage - 1
        if not moved:
            break
        passes.append(_state(levels, objective, quality, stage=stage, number=len(passes), moved=moved))
    return passes


def best_pass(passes: Sequence[Pass]) -> Pass:
    """Early stopping: the pass with the best quality, or the last one where quality was not measured."""
    measured = [(p.quality, p.number, p) for p in passes if p.quality is not None]
    return min(measured)[2] if measured else passes[-1]


def refine(grid: Sequence[float], objective: Objective) -> Pass:
    """Double the steps and move only the new levels; their neighbours are frozen, so all are independent."""
    levels = list(subdivide(grid))
    moved = 0
    for i in range(1, len(levels), 2):
        best = best_level(levels[i - 1], levels[i], levels[i + 1], objective)
        moved += best != levels[i]
        levels[i] = best
    stage = len(levels) - 1
    return Pass(stage, 1, tuple(levels), total(levels, objective), None, moved)


def hierarchical(
    initial: Sequence[float],
    objective: Objective,
    steps: int,
    *,
    quality: Quality | None = None,
    max_updates: int = 300,
    doublings: int = 2,
) -> tuple[Grid, tuple[Pass, ...]]:
    """The whole procedure: search the initial grid, keep its best pass, double it, read the result at `steps`.

    Args:
        initial: ascending grid of the first stage; the paper starts with 10 steps.
        objective: step costs.
        steps: wanted number of steps. Divisors of a stage are read from it without further doublings.
        quality: sample-quality metric for the early stopping of the first stage; None runs it to the end.
        max_updates: of the first stage.
        doublings: at most; two give 10, 20 and 40 steps.

    Returns:
        The grid with `steps` steps, and every pass.
    """
    history = coordinate_search(initial, objective, quality=quality, max_updates=max_updates)
    grid = best_pass(history).grid
    for _ in range(doublings):
        if (len(grid) - 1) % steps == 0:
            break
        history.append(refine(grid, objective))
        grid = history[-1].grid
    return resample(grid, steps), tuple(history)


def _state(grid: Grid, objective: Objective, quality: Quality | None, *, stage: int, number: int, moved: int) -> Pass:
    measured = None if quality is None else float(quality(grid))
    return Pass(stage, number, grid, total(grid, objective), measured, moved)


def _closest(levels: Sequence[float], wanted: float) -> float:
    return min(levels, key=lambda s: abs(math.log(s / wanted)))


def _check_count(count: int | None) -> None:
    if count is not None and count < 2:
        raise ValueError(f"candidates must be at least 2 (the current level is one of them), got {count}")
