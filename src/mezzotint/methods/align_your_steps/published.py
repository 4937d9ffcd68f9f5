"""The four schedules printed by the authors of Align Your Steps (arXiv 2404.14507) on their quick-start page.

The sigmas were rounded by hand; where timesteps exist they are authoritative (training index 736 of Stable Diffusion is
3.864, printed as 3.861). Values descend as printed: from pure noise to the last level that the sampler reaches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .grids import Grid, resample, snap


@dataclass(frozen=True)
class Published:
    """One printed schedule of 10 steps: 11 `sigmas` and, for discrete-time models, 11 `timesteps` of 1000."""

    sigmas: tuple[float, ...]
    timesteps: tuple[int, ...] | None


PUBLISHED = {
    "sd15": Published(
        (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029),
        (999, 850, 736, 645, 545, 455, 343, 233, 124, 24, 0),
    ),
    "sdxl": Published(
        (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029),
        (999, 845, 730, 587, 443, 310, 193, 116, 53, 13, 0),
    ),
    "deepfloyd-if": Published(
        (160.41, 8.081, 3.315, 1.885, 1.207, 0.785, 0.553, 0.293, 0.186, 0.030, 0.006),
        (995, 920, 811, 686, 555, 418, 315, 174, 109, 12, 0),
    ),
    "svd": Published((700.00, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034, 0.002), None),
}


def published_grid(name: str, steps: int) -> Grid:
    """The printed sigmas, ascending, log-linearly interpolated when `steps` is not 10.

    Raises:
        ValueError: the name is not one of PUBLISHED.
    """
    return resample(tuple(reversed(_entry(name).sigmas)), steps)


def published_indices(name: str, steps: int, training_sigmas: Sequence[float]) -> tuple[int, ...]:
    """Training indices, ascending, of a printed schedule on a discrete-time model.

    Ten steps on a model of 1000 training levels give the printed timesteps bit for bit. Other numbers of steps
    interpolate the noise levels of those timesteps; a schedule without timesteps is snapped to the nearest levels.

    Raises:
        ValueError: the name is unknown, or the printed noise levels leave the model's training range.
    """
    entry = _entry(name)
    if entry.timesteps is None:
        return snap(published_grid(name, steps), training_sigmas)
    if len(training_sigmas) != 1000:
        raise ValueError(f"the {name} schedule is for 1000 training levels, got {len(training_sigmas)}")
    indices = tuple(reversed(entry.timesteps))
    if steps == 10:
        return indices
    return snap(resample([training_sigmas[i] for i in indices], steps), training_sigmas)


def _entry(name: str) -> Published:
    if name not in PUBLISHED:
        raise ValueError(f"published schedule must be one of {sorted(PUBLISHED)}, got {name!r}")
    return PUBLISHED[name]
