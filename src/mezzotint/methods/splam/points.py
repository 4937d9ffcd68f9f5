"""The solver points of the distillation and the timesteps of few-step sampling.

N points tau_i = (i + 1) T / N - 1 (arXiv 2310.04378, sec. 4.3; the same in SPLAM, arXiv 2404.13903); a jump leads from
t = tau_i to t' = max(tau_i - T / N, 0). A sampler of n steps takes the points floor(j N / n) in descending order.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from itertools import pairwise

__all__ = ["POINTS", "TRAINED", "check_timesteps", "sampling_timesteps", "skip", "solver_points"]

POINTS, TRAINED = 50, 1000


def skip(points: int = POINTS, trained: int = TRAINED) -> int:
    """Training steps k = T / N between two solver points.

    Args:
        points: N, from 1 to T, a divisor of T.
        trained: T, the training timesteps of the model.

    Raises:
        ValueError: N is out of range or does not divide T: T - 1 would then be no solver point.
    """
    if not 1 <= points <= trained:
        raise ValueError(f"points must be in 1..{trained} (the training timesteps of the model), got {points}")
    if trained % points:
        near = [n for n in range(1, trained + 1) if trained % n == 0 and points / 2 <= n <= 2 * points]
        raise ValueError(f"points must divide the {trained} training timesteps, got {points}; near it: {near}")
    return trained // points


def solver_points(points: int = POINTS, trained: int = TRAINED) -> tuple[int, ...]:
    """tau_0 < ... < tau_{N-1} = T - 1; for N = 50 and T = 1000: 19, 39, ..., 999."""
    step = skip(points, trained)
    return tuple((i + 1) * step - 1 for i in range(points))


def sampling_timesteps(steps: int, points: int = POINTS, trained: int = TRAINED) -> tuple[int, ...]:
    """Timesteps of an n-step sampler, descending, as diffusers' LCMScheduler has them.

    Args:
        steps: n, from 1 to N.
        points: N.
        trained: T.

    Raises:
        ValueError: n is out of range.
    """
    if not 1 <= steps <= points:
        raise ValueError(f"steps must be in 1..{points} (the points it was distilled on), got {steps}")
    descending = solver_points(points, trained)[::-1]
    return tuple(descending[j * points // steps] for j in range(steps))


def check_timesteps(timesteps: Sequence[int], points: int = POINTS, trained: int = TRAINED) -> tuple[int, ...]:
    """Timesteps given by a user, as a tuple; warns of those that the student never saw.

    Raises:
        ValueError: none, not strictly decreasing, or outside 0..T-1.
    """
    given = tuple(int(t) for t in timesteps)
    if not given or any(b >= a for a, b in pairwise(given)):
        raise ValueError(f"timesteps must be strictly decreasing, got {list(given)}")
    if given[0] >= trained or given[-1] < 0:
        raise ValueError(f"timesteps must lie in 0..{trained - 1}, got {list(given)}")
    if strange := sorted(set(given) - set(solver_points(points, trained))):
        warnings.warn(f"timesteps {strange} are none of the {points} points of the distillation", stacklevel=3)
    return given
