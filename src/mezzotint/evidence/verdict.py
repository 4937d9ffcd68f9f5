"""Verdicts: computed from numbers, never typed.

The paired bootstrap 95 % interval of the effect (arm - baseline, or their ratio - 1, signed so that positive is
better) is compared with the claim's margin: *supported* when it lies above, *contradicted* when it lies below, else
*inconclusive*. A claim over several baselines is supported only when it holds over each of them (an intersection-union
test, which needs no correction for their number).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch

from mezzotint.evidence.records import Claim, Row, Values
from mezzotint.metrics.bootstrap import (
    MINIMUM_UNITS,
    Interval,
    effect,
    mean_interval,
    paired_difference,
    percentile_interval,
)

__all__ = ["Comparison", "Outcome", "Verdict", "arm_interval", "difference", "judge", "overall"]

# Differences that are all alike say nothing of their spread; five equal signs still happen by chance in 6 % of cases.
_ALIKE = 6

Outcome = Literal["supported", "contradicted", "inconclusive"]


@dataclass(frozen=True)
class Comparison:
    """One arm against one baseline.

    Attributes:
        baseline: name of the other arm.
        ours: interval of the arm's mean.
        theirs: interval of the baseline's mean.
        effect: interval of arm - baseline (or of the ratio - 1), not signed: in the metric's own direction.
        outcome: what follows from it.
        reason: why a verdict could not be drawn; empty when it was.
    """

    baseline: str
    ours: Interval
    theirs: Interval
    effect: Interval
    outcome: Outcome
    reason: str = ""


@dataclass(frozen=True)
class Verdict:
    """The outcome of a claim.

    Attributes:
        claim: what was claimed.
        outcome: of all comparisons together.
        comparisons: one for each baseline.
        row: the measurements that decided.
    """

    claim: Claim
    outcome: Outcome
    comparisons: tuple[Comparison, ...]
    row: Row

    @property
    def closest(self) -> Comparison:
        """The comparison with the smallest advantage: the number to quote."""
        return min(self.comparisons, key=lambda item: _sign(self.row) * item.effect.estimate)


def _sign(row: Row) -> int:
    return 1 if row.direction == "higher" else -1


def _table(row: Row, arm: str) -> torch.Tensor:
    if arm not in row.values:
        raise ValueError(f"{row.metric!r} was not measured for {arm!r}; arms of this row: {', '.join(row.values)}")
    return torch.tensor(row.values[arm], dtype=torch.float64)


def arm_interval(row: Row, arm: str) -> Interval:
    """Mean of an arm with its interval.

    A set-level row is resampled by its ``draws``; their bias (a resample repeats pictures) is removed by centring them
    on the estimate.

    Args:
        row: the measurements.
        arm: one of its arms.

    Raises:
        ValueError: the arm is not in the row.
    """
    _table(row, arm)
    found = _mean(row.values[arm], row.draws.get(arm, ()))
    if row.unit != "rate":
        return found
    if found.estimate in (0.0, 1.0):
        # All alike has no spread to resample: the exact binomial limit says what may still have been missed.
        missed = 1 - 0.025 ** (1 / max(row.shape))
        return Interval(found.estimate, found.estimate * (1 - missed), 1 - (1 - found.estimate) * (1 - missed))
    # Few seeds can stretch an interval beyond what a share can be.
    return Interval(found.estimate, max(0.0, found.low), min(1.0, found.high))


# A page asks for each interval several times: in its plot, its table and its verdicts.
@lru_cache(maxsize=4096)
def _mean(values: Values, resampled: tuple[float, ...]) -> Interval:
    table = torch.tensor(values, dtype=torch.float64)
    if not resampled:
        return mean_interval(table)
    draws = torch.tensor(resampled, dtype=torch.float64)
    low, high = percentile_interval(draws - draws.mean() + table.mean())
    return Interval(table.mean().item(), low, high)


def difference(row: Row, arm: str, baseline: str, *, relative: bool = False) -> Interval:
    """Interval of arm - baseline, or of their ratio - 1, in the metric's own direction.

    Args:
        row: the measurements.
        arm: one of its arms.
        baseline: another.
        relative: ratio of means.

    Raises:
        ValueError: an arm is not in the row, or a ratio to a mean that is not positive was asked for.
    """
    ours, theirs = _table(row, arm), _table(row, baseline)
    if arm not in row.draws or baseline not in row.draws:
        found = paired_difference(ours, theirs, relative=relative)
        if row.unit != "rate" or relative:
            return found
        return Interval(found.estimate, max(-1.0, found.low), min(1.0, found.high))
    resampled = [torch.tensor(row.draws[name], dtype=torch.float64) for name in (arm, baseline)]
    centre = effect(ours.mean(), theirs.mean(), relative=relative)
    draws = effect(resampled[0], resampled[1], relative=relative)
    low, high = percentile_interval(draws - draws.mean() + centre)
    return Interval(centre.item(), low, high)


def _outcome(interval: Interval, *, sign: int, margin: float) -> Outcome:
    ends = sorted((sign * interval.low, sign * interval.high))
    if ends[0] > margin:
        return "supported"
    return "contradicted" if ends[1] < margin else "inconclusive"


def _compare(claim: Claim, row: Row, baseline: str) -> Comparison:
    interval = difference(row, claim.arm, baseline, relative=claim.relative)
    seeds, units = row.shape
    resampled = claim.arm in row.draws and baseline in row.draws
    needed = MINIMUM_UNITS if interval.high > interval.low else _ALIKE
    enough = resampled or max(seeds, units) >= needed
    reason = (
        "" if enough else f"{row.size} are too few for an interval: measure at least {needed} seeds or {row.counted}"
    )
    found = _outcome(interval, sign=_sign(row), margin=claim.margin)
    outcome: Outcome = "inconclusive" if reason else found
    return Comparison(baseline, arm_interval(row, claim.arm), arm_interval(row, baseline), interval, outcome, reason)


def overall(outcomes: Sequence[Outcome]) -> Outcome:
    """Outcome of several together: contradicted if any is, supported only if all are.

    Args:
        outcomes: at least one.

    Raises:
        ValueError: there is none.
    """
    if not outcomes:
        raise ValueError("an overall outcome needs at least one outcome")
    if "contradicted" in outcomes:
        return "contradicted"
    return "supported" if set(outcomes) == {"supported"} else "inconclusive"


def judge(claim: Claim, row: Row) -> Verdict:
    """Decide a claim.

    Args:
        claim: the comparison.
        row: the deciding row.

    Raises:
        ValueError: the row has no better direction, or an arm of the claim was not measured in it.
    """
    if row.direction == "neither":
        raise ValueError(f"{row.metric!r} has no better direction: a claim about it cannot be decided")
    comparisons = tuple(_compare(claim, row, baseline) for baseline in claim.over)
    return Verdict(claim, overall([item.outcome for item in comparisons]), comparisons, row)
