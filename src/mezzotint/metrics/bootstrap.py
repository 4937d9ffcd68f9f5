"""Paired two-way bootstrap: confidence intervals over prompts x seeds.

Values of an experiment form a table ``seeds x units`` (a unit is mostly a prompt). Seeds and units are crossed random
effects, so both are resampled, independently of each other and with replacement (the pigeonhole bootstrap of Owen,
"The pigeonhole bootstrap", Annals of Applied Statistics 2007, arXiv:0712.1111), and all arms are resampled with the
same draws: differences between arms are *paired*.

The interval is the percentile interval of the resampled means, expanded for small numbers: with n seeds a resample
spreads by ``sqrt((n - 1) / n)`` too little and a normal law is assumed where Student's holds, so the part of the spread
that seeds (and likewise units) explain beyond the residual is stretched by ``sqrt(n / (n - 1)) t(n - 1) / z`` (the
expanded percentile interval of Hesterberg, "What teachers should know about the bootstrap", The American Statistician
2015, arXiv:1411.5279, applied to each factor of an analysis of variance). Without it, three seeds that
differ as much as prompts do would be covered in 79 % of cases instead of 95 %; `tests/metrics/test_bootstrap.py`
measures the coverage. With one seed the interval speaks of that seed only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Float, Int64
from scipy.stats import norm as normal
from scipy.stats import t as student
from torch import Tensor

from mezzotint.diffusion.rng import stream

__all__ = [
    "DRAWS",
    "MINIMUM_UNITS",
    "Interval",
    "effect",
    "mean_interval",
    "paired_difference",
    "percentile_interval",
    "resampled_indices",
    "resampled_means",
    "resampled_statistic",
]

DRAWS = 10_000
# Seeds or units, whichever are more: two values have no spread to speak of.
MINIMUM_UNITS = 3
# Resamples at a time, numbers in memory at a time, and numbers worth remembering.
_ROWS, _NUMBERS, _REMEMBERED = 1_000, 1_000_000, 12_000_000


@dataclass(frozen=True)
class Interval:
    """An estimate with its interval, in the unit of the values.

    Attributes:
        estimate: the statistic on the data themselves.
        low: lower end.
        high: upper end.
    """

    estimate: float
    low: float
    high: float


def _counts(count: int, *, rows: int, draws: int, seed: int, purpose: str) -> Iterator[Float[Tensor, "draw unit"]]:
    """How often each unit occurs in each resample, ``rows`` resamples at a time to bound the memory."""
    generator = stream(seed, f"bootstrap-{purpose}")
    for first in range(0, draws, rows):
        indices = torch.randint(count, (min(rows, draws - first), count), generator=generator)
        counts = torch.zeros(indices.shape, dtype=torch.float64)
        yield counts.scatter_add_(1, indices, torch.ones_like(counts))


def _resamples(seeds: int, units: int, *, draws: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Counts of seeds and of units, in blocks of resamples."""
    rows = max(1, min(_ROWS, _NUMBERS // (seeds + units)))
    return zip(
        _counts(seeds, rows=rows, draws=draws, seed=seed, purpose="seeds"),
        _counts(units, rows=rows, draws=draws, seed=seed, purpose="units"),
        strict=True,
    )


@lru_cache(maxsize=2)
def _remembered(seeds: int, units: int, *, draws: int, seed: int) -> tuple[tuple[Tensor, Tensor], ...]:
    return tuple(_resamples(seeds, units, draws=draws, seed=seed))


def _blocks(seeds: int, units: int, *, draws: int, seed: int) -> Iterable[tuple[Tensor, Tensor]]:
    """All rows of an experiment have one shape: its resamples are drawn once, unless they are too many to keep."""
    source = _remembered if draws * (seeds + units) <= _REMEMBERED else _resamples
    return source(seeds, units, draws=draws, seed=seed)


def resampled_indices(units: int, *, draws: int, seed: int = 0, purpose: str = "units") -> Int64[Tensor, "draw unit"]:
    """Draw the indices of a bootstrap: ``units`` of ``units`` with replacement, ``draws`` times.

    Args:
        units: how many there are, at least 1.
        draws: number of resamples, at least 1.
        seed: of the derived random stream.
        purpose: names the stream, so that seeds and prompts are resampled independently.

    Raises:
        ValueError: ``units`` or ``draws`` is below 1.
    """
    if units < 1 or draws < 1:
        raise ValueError(f"units and draws must be at least 1, got {units} and {draws}")
    generator = stream(seed, f"bootstrap-{purpose}")
    return torch.randint(units, (draws, units), generator=generator)


def resampled_means(
    values: Float[Tensor, "arm seed unit"], *, draws: int = DRAWS, seed: int = 0
) -> Float[Tensor, "draw arm"]:
    """Means of all arms under the same resamples of seeds and units.

    Args:
        values: finite numbers; every arm measured on the same seeds and units.
        draws: number of resamples.
        seed: of the resampling.

    Returns:
        float64 means, on the device of ``values``.

    Raises:
        ValueError: a value is not finite, or the table is empty.
    """
    if values.numel() == 0:
        raise ValueError(f"values must not be empty, got shape {tuple(values.shape)}")
    if not torch.isfinite(values).all():
        raise ValueError(
            "values must be finite: leave out a prompt in all arms, or count its failure as the worst value"
        )
    table = values.double()
    arms, seeds, units = table.shape
    by_seed = table.permute(1, 0, 2).reshape(seeds, arms * units)
    means = []
    for chosen, weights in _blocks(seeds, units, draws=draws, seed=seed):
        resampled = (chosen.to(table.device) @ by_seed).view(-1, arms, units)
        means.append(torch.einsum("dau,du->da", resampled, weights.to(table.device)) / (seeds * units))
    return torch.cat(means)


def _stretch(effects: Tensor, *, repeats: int, residual: float | None, level: float) -> Tensor:
    """What must be added to a factor's main effects so that their resampled mean spreads as Student's law says."""
    count = effects.numel()
    variance = repeats * effects.square().sum().item() / max(count - 1, 1)
    if count < 2 or variance == 0:
        return torch.zeros_like(effects)
    explained = 1.0 if residual is None else math.sqrt(max(0.0, 1 - residual / variance))
    tail = (1 + level) / 2
    factor = math.sqrt(count / (count - 1)) * student.ppf(tail, count - 1) / normal.ppf(tail)
    return effects * explained * (factor - 1)


def _expansion(table: Float[Tensor, "seed unit"], *, level: float, draws: int, seed: int) -> Float[Tensor, " draw"]:
    """What each resampled mean of a table must be moved by; see the top of this file."""
    seeds, units = table.shape
    centred = table - table.mean()
    by_seed, by_unit = centred.mean(1), centred.mean(0)
    freedom = (seeds - 1) * (units - 1)
    rest = (centred - by_seed[:, None] - by_unit).square().sum().item()
    residual = rest / freedom if freedom else None
    seed_part = _stretch(by_seed, repeats=units, residual=residual, level=level) / seeds
    unit_part = _stretch(by_unit, repeats=seeds, residual=residual, level=level) / units
    blocks = _blocks(seeds, units, draws=draws, seed=seed)
    return torch.cat([c.to(table.device) @ seed_part + w.to(table.device) @ unit_part for c, w in blocks])


def resampled_statistic(
    statistic: Callable[[Int64[Tensor, " unit"]], float], units: int, *, draws: int = 200, seed: int = 0
) -> Float[Tensor, " draw"]:
    """Bootstrap of a statistic of a whole sample, such as a Frechet distance, over its units.

    Arms that are called with the same ``units``, ``draws`` and ``seed`` see the same resamples, so their differences
    are paired.

    Args:
        statistic: takes the indices of the resampled units.
        units: size of the sample.
        draws: number of resamples.
        seed: of the resampling.
    """
    indices = resampled_indices(units, draws=draws, seed=seed)
    return torch.tensor([statistic(chosen) for chosen in indices], dtype=torch.float64)


def percentile_interval(draws: Float[Tensor, " draw"], *, level: float = 0.95) -> tuple[float, float]:
    """Central interval of resampled statistics.

    Args:
        draws: resampled values of one statistic.
        level: probability inside, between 0 and 1.

    Raises:
        ValueError: ``level`` is not between 0 and 1.
    """
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, got {level}")
    tails = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64, device=draws.device)
    low, high = torch.quantile(draws.double(), tails).tolist()
    return low, high


def mean_interval(
    values: Float[Tensor, "seed unit"], *, level: float = 0.95, draws: int = DRAWS, seed: int = 0
) -> Interval:
    """Mean of one arm with its two-way bootstrap interval.

    Args:
        values: one arm's table.
        level: probability inside the interval.
        draws: number of resamples.
        seed: of the resampling.
    """
    means = resampled_means(values[None], draws=draws, seed=seed)[:, 0]
    means = means + _expansion(values.double(), level=level, draws=draws, seed=seed)
    low, high = percentile_interval(means, level=level)
    return Interval(values.double().mean().item(), low, high)


def paired_difference(
    ours: Float[Tensor, "seed unit"],
    baseline: Float[Tensor, "seed unit"],
    *,
    relative: bool = False,
    level: float = 0.95,
    draws: int = DRAWS,
    seed: int = 0,
) -> Interval:
    """Interval of ``ours - baseline``, or of ``ours / baseline - 1``, over the same seeds and units.

    Args:
        ours: table of the method.
        baseline: table of the baseline; entry (s, u) was measured on the same seed and prompt as ours.
        relative: ratio of the means instead of their difference; the baseline's mean must be positive in every
            resample.
        level: probability inside the interval.
        draws: number of resamples.
        seed: of the resampling.

    Raises:
        ValueError: the tables differ in shape, or a ratio to a baseline that is not positive was asked for.
    """
    if ours.shape != baseline.shape:
        raise ValueError(
            "paired arms must be measured on the same seeds and units, "
            f"got {tuple(ours.shape)} and {tuple(baseline.shape)}"
        )
    means = resampled_means(torch.stack([ours, baseline]), draws=draws, seed=seed)
    effects = effect(means[:, 0], means[:, 1], relative=relative)
    one, other = ours.double(), baseline.double()
    centre = effect(one.mean(), other.mean(), relative=relative)
    # What each entry contributes to the effect; of a ratio, to first order.
    influence = (one - (1 + centre) * other) / other.mean() if relative else one - other
    effects = effects + _expansion(influence, level=level, draws=draws, seed=seed)
    low, high = percentile_interval(effects, level=level)
    return Interval(centre.item(), low, high)


def effect(
    ours: Float[Tensor, "*draw"], baseline: Float[Tensor, "*draw"], *, relative: bool = False
) -> Float[Tensor, "*draw"]:
    """Difference, or ratio minus one, of two means.

    Args:
        ours: mean of the method, or its resampled means.
        baseline: the same of the baseline.
        relative: ratio minus one.

    Raises:
        ValueError: ``relative``, and a baseline mean is not positive.
    """
    if not relative:
        return ours - baseline
    if not (baseline > 0).all():
        raise ValueError(
            "a relative difference needs a baseline mean above 0 in every resample: use the plain difference"
        )
    return ours / baseline - 1
