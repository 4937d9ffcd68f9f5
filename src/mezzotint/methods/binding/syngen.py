"""SynGen: a modifier's attention map should be its noun's, and nobody else's (Rassin et al. 2023, arXiv 2306.08877).

With the symmetric divergence of two maps that sum to 1, D(p, q) = (KL(p || q) + KL(q || p)) / 2, the loss of a pair
(noun n, modifier m) is D(n, m) minus the mean of D(n, u) and of D(m, u) over all word tokens u outside the phrase,
averaged over the two. z <- z - 20 grad_z L in the first half of the steps.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mezzotint.attention.sites import Grid

from .focusing import bound, require_text_attention, syntaxes
from .latent_steps import Progress, Rule, descend, repeated, stepping
from .report import Bound

__all__ = ["Pair", "divergence", "pair_loss", "pairs_of", "separate", "syngen"]

EPSILON = 1e-12


@dataclass(frozen=True)
class Pair:
    """Tokens of a noun and of one of its modifiers, and the word tokens outside their phrase."""

    noun: tuple[int, ...]
    modifier: tuple[int, ...]
    outside: tuple[int, ...]


def pairs_of(prompt: Bound) -> tuple[Pair, ...]:
    """The pairs of a prompt: a phrase is a noun with all its modifiers."""
    pairs = []
    for number in prompt.acting:
        attribute, head = prompt.bindings[number]
        phrase = {head} | {one for one, other in prompt.bindings if other == head}
        inside = {token for word in phrase for token in prompt.tokens[word]}
        outside = tuple(sorted(_word_tokens(prompt) - inside))
        pairs.append(Pair(prompt.tokens[head], prompt.tokens[attribute], outside))
    return tuple(pairs)


def divergence(one: Float[Tensor, "*batch cells"], other: Float[Tensor, "*batch cells"]) -> Float[Tensor, "*batch"]:
    """(KL(p || q) + KL(q || p)) / 2 of maps, each normalised to sum 1; in nat."""
    p, q = (_normalised(each) for each in (one, other))
    return ((p - q) * (p.log() - q.log())).sum(-1) / 2


def pair_loss(maps: Float[Tensor, "tokens height width"], pair: Pair) -> Float[Tensor, ""]:
    """Positive and negative loss of one pair; sub-tokens pair each with each.

    Args:
        maps: averaged attention maps of all text tokens.
        pair: whose loss it is.
    """
    cells = maps.flatten(1)
    total = cells.new_zeros(())
    for noun, modifier in itertools.product(pair.noun, pair.modifier):
        total = total + divergence(cells[noun], cells[modifier])
        if pair.outside:
            others = cells[list(pair.outside)]
            away = [divergence(cells[token].expand_as(others), others).mean() for token in (noun, modifier)]
            total = total - (away[0] + away[1]) / 2
    return total


def separate(pairs: Sequence[Sequence[Pair]], *, scale: float = 20.0, part: float = 0.5) -> Rule:
    """The rule by which latents are moved.

    Args:
        pairs: of every prompt.
        scale: step size.
        part: of the trajectory in which latents are moved (25 of 50 steps).
    """

    def losses(maps: Tensor) -> Tensor:
        zero = maps.new_zeros(())
        return torch.stack(
            [
                sum((pair_loss(own, pair) for pair in found), start=zero)
                for own, found in zip(maps, repeated(pairs, len(maps)), strict=True)
            ]
        )

    def rule(latents: Tensor, progress: Progress, maps_of: Callable[[Tensor], Tensor]) -> Tensor:
        if progress.index >= part * progress.length:
            return latents
        return latents - scale * descend(latents, maps_of, losses)[1]

    return rule


@contextmanager
def syngen(
    pipe: Any,
    prompt: str | Sequence[str],
    *,
    bindings: Sequence[Any] | None = None,
    parser: Any = None,
    grid: Grid | None = None,
    scale: float = 20.0,
    part: float = 0.5,
) -> Iterator[None]:
    """Pull modifiers' attention to their nouns in what the pipeline draws inside the context.

    Args:
        pipe: a diffusers pipeline with cross-attention to a text.
        prompt: one or several.
        bindings: as for `focus`.
        parser: as for `focus`.
        grid: height and width of the attention maps; the one that plays the role of 16x16 when not given.
        scale: step size.
        part: of the trajectory in which latents are moved.

    Raises:
        ValueError: the pipeline has no text tokens to attend to, or is called with another prompt.
    """
    require_text_attention(pipe)
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    given = [bindings] if isinstance(prompt, str) and bindings is not None else bindings
    each = [pairs_of(bound(pipe, syntax)) for syntax in syntaxes(prompts, given, parser)]
    with stepping(pipe, prompts, separate(each, scale=scale, part=part), grid=grid):
        yield


def _word_tokens(prompt: Bound) -> set[int]:
    """Tokens of words; punctuation marks are none."""
    named = zip(prompt.words, prompt.tokens, strict=True)
    return {token for word, span in named if any(letter.isalnum() for letter in word) for token in span}


def _normalised(cells: Tensor) -> Tensor:
    return (cells + EPSILON) / (cells + EPSILON).sum(-1, keepdim=True)
