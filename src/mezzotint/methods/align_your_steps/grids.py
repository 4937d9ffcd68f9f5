"""Noise-level grids t_0 < t_1 < ... < t_n with closed forms: where every search starts and what it is compared with.

EDM: Karras et al. (arXiv 2206.00364, eq. 5). Time-uniform, LogSNR and the Gaussian-optimal ("arctan") grid: Align Your
Steps (arXiv 2404.14507, sec. 3.1, A.3 and B.1). KLUB-Gaussian: equal terms of eq. 31 there. All levels are
variance-exploding standard deviations (sigma = sqrt((1 - abar) / abar)); grids ascend as in the paper.
"""

from __future__ import annotations

import itertools
import math
from bisect import bisect_left
from collections.abc import Callable, Sequence

Grid = tuple[float, ...]
# Relative room at the ends of the training range for levels that were rounded to single precision.
SLACK = 1e-6


def check_range(steps: int, s_min: float, s_max: float) -> None:
    """Raise ValueError unless `steps` >= 1 and 0 < s_min < s_max are finite."""
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    if not 0 < s_min < s_max < math.inf:
        raise ValueError(f"noise levels need 0 < s_min < s_max, got s_min={s_min} and s_max={s_max}")


def check_grid(grid: Sequence[float]) -> None:
    """Raise ValueError unless the grid has two or more finite, positive, strictly increasing levels."""
    values = [float(t) for t in grid]
    if len(values) < 2:
        raise ValueError(f"a grid needs at least 2 noise levels, got {len(values)}")
    if not all(math.isfinite(t) for t in values):
        raise ValueError(f"noise levels must be finite, got {values}")
    if min(values) <= 0:
        raise ValueError(f"noise levels must be positive, got {min(values)}")
    if any(a >= b for a, b in itertools.pairwise(values)):
        raise ValueError(f"a grid must be strictly monotone without duplicates, got {values}")


def edm(steps: int, s_min: float, s_max: float, *, rho: float = 7.0) -> Grid:
    """Levels equally spaced in sigma^(1/rho) (arXiv 2206.00364, eq. 5)."""
    check_range(steps, s_min, s_max)
    roots = _spaced(s_min ** (1 / rho), s_max ** (1 / rho), steps)
    return _with_ends([r**rho for r in roots], s_min, s_max)


def log_snr(steps: int, s_min: float, s_max: float) -> Grid:
    """Levels equally spaced in ln sigma, i.e. in log signal-to-noise ratio."""
    check_range(steps, s_min, s_max)
    return _with_ends([math.exp(x) for x in _spaced(math.log(s_min), math.log(s_max), steps)], s_min, s_max)


def linear_sigma(steps: int, s_min: float, s_max: float) -> Grid:
    """Levels equally spaced in sigma (what the paper's appendix prints under the name of LogSNR)."""
    check_range(steps, s_min, s_max)
    return _with_ends(_spaced(s_min, s_max, steps), s_min, s_max)


def arctan(steps: int, s_min: float, s_max: float, *, c: float = 1.0) -> Grid:
    """The grid that is optimal for DDIM on Gaussian data of standard deviation `c` (arXiv 2404.14507, A.3)."""
    check_range(steps, s_min, s_max)
    angles = _spaced(math.atan(s_min / c), math.atan(s_max / c), steps)
    return _with_ends([c * math.tan(a) for a in angles], s_min, s_max)


def cosine_log_snr(steps: int, s_min: float, s_max: float) -> Grid:
    """Sigma = tan(pi tau / 2) at equal steps of tau, the cosine schedule; the same grid as `arctan` with c = 1."""
    return arctan(steps, s_min, s_max, c=1.0)


def klub_gaussian(steps: int, s_min: float, s_max: float, *, c: float = 1.0) -> Grid:
    """The minimum of KLUB for Gaussian data of standard deviation `c`: ln(1 + c^2 / sigma^2) equally spaced.

    A diagnostic of the objective. As a sampler's grid it is poor: it spends the steps near s_min.
    """
    check_range(steps, s_min, s_max)
    logs = _spaced(math.log1p((c / s_min) ** 2), math.log1p((c / s_max) ** 2), steps)
    return _with_ends([c / math.sqrt(math.expm1(x)) for x in logs], s_min, s_max)


def time_uniform(steps: int, training_sigmas: Sequence[float]) -> Grid:
    """Equal steps of the training index of a discrete-time model, rounded to whole indices."""
    check_range(steps, training_sigmas[0], training_sigmas[-1])
    return _by_index(_spaced(0.0, 1.0, steps), training_sigmas)


def time_quadratic(steps: int, training_sigmas: Sequence[float]) -> Grid:
    """Training indices that grow as (i / n)^2; indices that round to the same level are moved apart."""
    check_range(steps, training_sigmas[0], training_sigmas[-1])
    return _by_index([x**2 for x in _spaced(0.0, 1.0, steps)], training_sigmas)


CONTINUOUS: dict[str, Callable[[int, float, float], Grid]] = {
    "edm": edm,
    "log-snr": log_snr,
    "linear-sigma": linear_sigma,
    "cosine-log-snr": cosine_log_snr,
}
SCALED: dict[str, Callable[..., Grid]] = {"arctan": arctan, "klub-gaussian": klub_gaussian}
DISCRETE: dict[str, Callable[[int, Sequence[float]], Grid]] = {
    "time-uniform": time_uniform,
    "time-quadratic": time_quadratic,
}


def distinct(indices: Sequence[int], count: int) -> tuple[int, ...]:
    """Move non-decreasing level indices apart until all differ; the first and the last keep their place.

    Args:
        indices: non-decreasing whole numbers in 0..count-1.
        count: number of training levels.

    Raises:
        ValueError: there are more indices than levels between the first and the last.
    """
    result = [int(i) for i in indices]
    if result[-1] - result[0] + 1 < len(result):
        levels = result[-1] - result[0] + 1
        raise ValueError(f"{len(result) - 1} steps need {len(result)} distinct training levels, got {levels}")
    for i in range(1, len(result)):
        result[i] = max(result[i], result[i - 1] + 1)
    result[-1] = int(indices[-1])
    for i in range(len(result) - 2, 0, -1):
        result[i] = min(result[i], result[i + 1] - 1)
    if not 0 <= result[0] < result[-1] < count:
        raise ValueError(f"level indices must be in 0..{count - 1}, got {result[0]}..{result[-1]}")
    return tuple(result)


def snap(grid: Sequence[float], training_sigmas: Sequence[float], *, clamp: bool = False) -> tuple[int, ...]:
    """Nearest training level (in ln sigma) of each noise level, duplicates moved apart: indices, ascending.

    Args:
        grid: noise levels t_0 < ... < t_n.
        training_sigmas: noise level of each training timestep, ascending.
        clamp: move levels outside the training range to its ends instead of refusing them.

    Raises:
        ValueError: a level lies outside the training range, or there are fewer training levels than levels wanted.
    """
    check_grid(grid)
    logs = [math.log(s) for s in training_sigmas]
    wanted = [math.log(t) for t in grid]
    if not clamp and (wanted[0] < logs[0] - SLACK or wanted[-1] > logs[-1] + SLACK):
        raise ValueError(
            f"noise levels {grid[0]:.6g}..{grid[-1]:.6g} leave the training range "
            f"{training_sigmas[0]:.6g}..{training_sigmas[-1]:.6g}; pass clamp=True to move them to its ends"
        )
    if len(grid) > len(logs):
        raise ValueError(f"{len(grid) - 1} steps need {len(grid)} distinct training levels, got {len(logs)}")
    return distinct([_nearest(logs, x) for x in wanted], len(logs))


def resample(grid: Sequence[float], steps: int) -> Grid:
    """Read a grid as the piecewise-linear function i/n -> ln t_i and sample it at i/steps (arXiv 2404.14507, 3.3).

    Whole positions return the level itself, so resampling to n is the identity and to n/2 takes every second level.

    Raises:
        ValueError: steps is below 1, or the grid is not a strictly increasing sequence of positive levels.
    """
    check_grid(grid)
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    last = len(grid) - 1
    return tuple(_at(grid, i * last, steps) for i in range(steps + 1))


def subdivide(grid: Sequence[float]) -> Grid:
    """Double the number of steps by log-midpoints; the old levels keep every bit (arXiv 2404.14507, B.1)."""
    check_grid(grid)
    return resample(grid, 2 * (len(grid) - 1))


def _at(grid: Sequence[float], numerator: int, denominator: int) -> float:
    index, rest = divmod(numerator, denominator)
    if rest == 0:
        return float(grid[index])
    weight = rest / denominator
    return math.exp((1 - weight) * math.log(grid[index]) + weight * math.log(grid[index + 1]))


def _nearest(ascending: Sequence[float], value: float) -> int:
    right = min(max(bisect_left(ascending, value), 1), len(ascending) - 1)
    return right - 1 if value - ascending[right - 1] <= ascending[right] - value else right


def _spaced(first: float, last: float, steps: int) -> list[float]:
    return [first + (last - first) * (i / steps) for i in range(steps + 1)]


def _with_ends(values: Sequence[float], s_min: float, s_max: float) -> Grid:
    # Powers and tangents do not return the end points bit for bit, and end points never move.
    return (float(s_min), *values[1:-1], float(s_max))


def _by_index(positions: Sequence[float], training_sigmas: Sequence[float]) -> Grid:
    count = len(training_sigmas)
    indices = distinct([round(x * (count - 1)) for x in positions], count)
    return tuple(float(training_sigmas[i]) for i in indices)
