"""The distances between student and target: pseudo-Huber (arXiv 2310.14189, eq. 10) and, for an ablation, squares."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

__all__ = ["huber", "squares"]

C = 0.001


def huber(output: Float[Tensor, "*shape"], target: Float[Tensor, "*shape"], c: float = C) -> Float[Tensor, ""]:
    """Mean of sqrt(d^2 + c^2) - c over all elements.

    Written as d^2 / (sqrt(d^2 + c^2) + c), the same number, exactly 0 at d = 0 and without cancellation near it.

    Args:
        output: the student's.
        target: of the same shape.
        c: where squares turn into absolute values, above 0.
    """
    square = (output.float() - target.float()).square()
    return (square / ((square + c**2).sqrt() + c)).mean()


def squares(output: Float[Tensor, "*shape"], target: Float[Tensor, "*shape"]) -> Float[Tensor, ""]:
    """Mean of d^2."""
    return (output.float() - target.float()).square().mean()
