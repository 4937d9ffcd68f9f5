"""Guidance: classifier-free (arXiv 2207.12598), with a negative prompt, and weighted sums of many prompts.

    out = out_u + sum_j w_j (out_j - out_u)

One term is classifier-free guidance with scale w. The sum is taken on what the model itself predicts, as diffusers
does; noise, clean sample and velocity are affine in each other, hence it is the same operation in all of them. All
rows are evaluated in one model call, unconditional rows first (the order that attention edits rely on).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from mezzotint.diffusion.branches import stacked
from mezzotint.diffusion.condition import Condition
from mezzotint.diffusion.denoiser import Predictor
from mezzotint.diffusion.levels import Timestep, per_item

__all__ = ["Composed", "Term", "composed", "guided"]

Weight: TypeAlias = float | Tensor
Term: TypeAlias = tuple[Condition, Weight]
"""A condition and its weight: one number, or a tensor with one an item."""


def guided(denoiser: Predictor, cond: Condition, uncond: Condition | None, scale: Weight) -> Composed:
    """Classifier-free guidance: a denoiser with its conditions bound.

    Args:
        denoiser: what to guide.
        cond: the condition; one item, or as many as the samples.
        uncond: the unconditional or negative condition; may be None if scale is 1.
        scale: guidance scale; 1 is the conditional model (and one row a sample), 0 the unconditional one.

    Raises:
        ValueError: if uncond is missing and scale is not 1.
    """
    return composed(denoiser, [(cond, scale)], uncond)


def composed(denoiser: Predictor, terms: Sequence[Term], uncond: Condition | None) -> Composed:
    """Weighted sum of the guidance of many prompts (arXiv 2206.01714, sec. 3): a denoiser with its conditions bound.

    Args:
        denoiser: what to guide.
        terms: conditions with weights of any sign.
        uncond: the unconditional or negative condition.

    Raises:
        ValueError: without terms, or if uncond is missing and needed.
    """
    return Composed(denoiser, terms, uncond)


class Composed(Predictor):
    """A denoiser whose prediction is the guided sum; has all methods of `Denoiser`, called without a condition."""

    def __init__(self, denoiser: Predictor, terms: Sequence[Term], uncond: Condition | None) -> None:
        if not terms:
            raise ValueError("guidance needs at least one term (condition, weight)")
        self.denoiser = denoiser
        self.levels = denoiser.levels
        self.prediction_type = denoiser.prediction_type
        self.weights = tuple(weight for _, weight in terms)
        # At scale 1 the unconditional rows cancel; leaving them out halves the work and is exact.
        self.plain = len(terms) == 1 and isinstance(self.weights[0], (int, float)) and self.weights[0] == 1
        if uncond is None and not self.plain:
            raise ValueError("guidance with a scale other than 1 needs an unconditional condition, got None")
        conditions = [cond for cond, _ in terms]
        self.conditions = conditions if self.plain or uncond is None else [uncond, *conditions]
        self._rows: tuple[int, Condition] | None = None

    def model_output(
        self, x: Float[Tensor, "batch ..."], t: Timestep, cond: Condition | None = None
    ) -> Float[Tensor, "batch ..."]:
        """Return the guided sum of the model's predictions for x_t (VP).

        Raises:
            ValueError: if a condition is given, or a bound one fits neither one sample nor all.
        """
        if cond is not None:
            raise ValueError("the conditions of a guided denoiser are already bound; call it without one")
        rows = self._condition(len(x))
        count = len(self.conditions)
        steps = t.repeat(count) if count > 1 and isinstance(t, Tensor) and t.ndim else t
        with stacked(*self._branches()):
            outputs = self.denoiser.model_output(torch.cat([x] * count) if count > 1 else x, steps, rows)
        return outputs if self.plain else self._sum(outputs.chunk(count))

    def _branches(self) -> tuple[str, ...]:
        """What edits of attention call these rows; many prompts have no customary names."""
        names = ("cond",) if self.plain else ("uncond", "cond")
        return names if len(self.conditions) == len(names) else ()

    def _sum(self, outputs: Sequence[Tensor]) -> Tensor:
        base = result = outputs[0]
        for output, weight in zip(outputs[1:], self.weights, strict=True):
            scale = per_item(weight, base) if isinstance(weight, Tensor) else weight
            result = result + scale * (output - base)
        return result.to(base.dtype)

    def _condition(self, batch: int) -> Condition:
        # Built once a run: a sampler calls with the same batch at every step.
        if self._rows is None or self._rows[0] != batch:
            first, *rest = [_fitted(condition, batch) for condition in self.conditions]
            self._rows = (batch, first.concat(*rest))
        return self._rows[1]


def _fitted(condition: Condition, batch: int) -> Condition:
    if condition.batch in (None, batch):
        return condition
    if condition.batch == 1:
        return condition.repeat(batch)
    raise ValueError(f"a condition of {condition.batch} items does not fit a batch of {batch}; use 1 or {batch}")
