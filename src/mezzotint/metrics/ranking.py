"""How well a score tells true from false: the area under the ROC curve.

It is the probability that a random true item scores higher than a random false one, ties counting half (Hanley and
McNeil, "The meaning and use of the area under a ROC curve", Radiology 1982), from the sum of ranks.
"""

from __future__ import annotations

from jaxtyping import Float
from scipy.stats import rankdata
from torch import Tensor

from mezzotint.metrics.bootstrap import Interval, percentile_interval, resampled_statistic

__all__ = ["auc", "auc_interval"]


def auc(true: Float[Tensor, " true"], false: Float[Tensor, " false"]) -> float:
    """Area under the ROC curve, 0..1; 0.5 is chance.

    Args:
        true: scores of true items; higher should mean true.
        false: scores of false items.

    Raises:
        ValueError: one of them is empty.
    """
    if not len(true) or not len(false):
        raise ValueError(f"true and false items are both needed, got {len(true)} and {len(false)}")
    ranks = rankdata([*true.tolist(), *false.tolist()])[: len(true)]
    return float((ranks.sum() - len(true) * (len(true) + 1) / 2) / (len(true) * len(false)))


def auc_interval(
    true: Float[Tensor, " pairs"], false: Float[Tensor, " others"], *, level: float = 0.95, draws: int = 500
) -> Interval:
    """`auc` of paired scores with its bootstrap interval over pairs.

    Args:
        true: score of the true text or graph of each picture.
        false: score of a false one of the same picture.
        level: probability inside the interval.
        draws: number of resamples.

    Raises:
        ValueError: the numbers differ, or there are none.
    """
    if len(true) != len(false):
        raise ValueError(f"scores must come in pairs, got {len(true)} and {len(false)}")
    found = auc(true, false)
    resampled = resampled_statistic(lambda chosen: auc(true[chosen], false[chosen]), len(true), draws=draws)
    return Interval(found, *percentile_interval(resampled, level=level))
