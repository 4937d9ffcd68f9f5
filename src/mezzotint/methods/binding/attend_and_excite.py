"""Attend-and-Excite: every noun of the prompt gets a place in the picture (Chefer et al. 2023, arXiv 2301.13826).

A_s is the highest cell of noun s in the smoothed attention maps; L = max_s (1 - A_s); z <- z - alpha_t grad_z L in the
first half of the steps. At three steps the latents are moved until every A_s reaches a threshold.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from mezzotint.attention.sites import Grid

from .focusing import bound, require_text_attention, syntaxes
from .latent_steps import Progress, Rule, descend, repeated, stepping
from .resolve import Named, words_named
from .words import Syntax

__all__ = ["attend_and_excite", "excitation", "excite", "nouns", "smoothed"]

THRESHOLDS: Mapping[float, float] = {0.0: 0.05, 0.2: 0.5, 0.4: 0.8}
"""Fraction of the trajectory -> what every A_s must reach there: steps 0, 10 and 20 of 50."""

Subjects = Sequence[Sequence[Sequence[int]]]


def smoothed(
    maps: Float[Tensor, "rows tokens height width"], *, sigma: float = 0.5
) -> Float[Tensor, "rows tokens height width"]:
    """Gaussian smoothing with a 3 x 3 kernel, reflected at the border.

    Args:
        maps: at least two cells a side.
        sigma: standard deviation in cells.
    """
    line = torch.exp(-torch.tensor([1.0, 0.0, 1.0]) / (2 * sigma**2)).to(maps)
    line /= line.sum()
    padded = F.pad(maps, (1, 1, 1, 1), mode="reflect")
    across = padded[..., :-2] * line[0] + padded[..., 1:-1] * line[1] + padded[..., 2:] * line[2]
    return across[..., :-2, :] * line[0] + across[..., 1:-1, :] * line[1] + across[..., 2:, :] * line[2]


def excitation(
    maps: Float[Tensor, "rows tokens height width"], subjects: Subjects, *, first: int = 1, sharpness: float = 100.0
) -> list[Float[Tensor, " subjects"]]:
    """A_s of the subjects of every row, 0..1.

    Args:
        maps: averaged attention maps of all text tokens.
        subjects: token indices of every subject of every row; a subject of several tokens has the mean of their maps.
        first: tokens before this one (BOS) take no part in the softmax over tokens.
        sharpness: factor before that softmax.
    """
    shares = smoothed((maps[:, first:] * sharpness).softmax(1))
    return [
        torch.stack([shares[row, [token - first for token in span]].mean(0).max() for span in spans])
        if spans
        else shares.new_zeros(0)
        for row, spans in enumerate(subjects)
    ]


def excite(
    subjects: Subjects,
    *,
    first: int = 1,
    scale: float = 20.0,
    part: float = 0.5,
    thresholds: Mapping[float, float] = THRESHOLDS,
    refinements: int = 20,
) -> Rule:
    """The rule by which latents are moved.

    Args:
        subjects: token indices of every subject of every prompt.
        first: see `excitation`.
        scale: alpha_t = scale * sqrt(s), where s falls linearly from 1 to 0.5 over the trajectory.
        part: of the trajectory in which latents are moved.
        thresholds: fraction of the trajectory -> what A_s must reach at that step.
        refinements: most moves to reach a threshold.
    """

    def losses(maps: Tensor) -> Tensor:
        found = excitation(maps, repeated(subjects, len(maps)), first=first)
        return torch.stack([(1 - each).max() if len(each) else maps.new_zeros(()) for each in found])

    def rule(latents: Tensor, progress: Progress, maps_of: Callable[[Tensor], Tensor]) -> Tensor:
        index, length = progress.index, progress.length
        if index >= part * length:
            return latents
        alpha = scale * math.sqrt(1 - 0.5 * index / max(length - 1, 1))
        loss, gradient = descend(latents, maps_of, losses)
        wanted = {round(fraction * length): value for fraction, value in thresholds.items()}
        for _ in range(refinements if index in wanted else 0):
            short = loss > 1 - wanted[index]
            if not short.any():
                break
            latents = latents - alpha * gradient * short[:, None, None, None]
            loss, gradient = descend(latents, maps_of, losses)
        return latents - alpha * gradient

    return rule


def nouns(syntax: Syntax) -> tuple[int, ...]:
    """Word indices of the nouns of a prompt: heads of its constituents and of its bindings, in order."""
    heads = {head for part in syntax.constituents for head in part.heads}
    return tuple(sorted(heads | {binding.head for binding in syntax.bindings}))


@contextmanager
def attend_and_excite(
    pipe: Any,
    prompt: str | Sequence[str],
    *,
    bindings: Sequence[Any] | None = None,
    parser: Any = None,
    subjects: Sequence[Any] | None = None,
    grid: Grid | None = None,
    scale: float = 20.0,
    part: float = 0.5,
    thresholds: Mapping[float, float] = THRESHOLDS,
    refinements: int = 20,
) -> Iterator[None]:
    """Let every noun of the prompt be attended to in what the pipeline draws inside the context.

    Args:
        pipe: a diffusers pipeline with cross-attention to a text.
        prompt: one or several.
        bindings: as for `focus`, one list a prompt; their heads are nouns.
        parser: as for `focus`.
        subjects: what must be attended to, words named as for `focus`, one list a prompt; all nouns when None. Name the
            things alone where the prompt has surroundings ("on a gray floor"), which are everywhere and no maximum.
        grid: height and width of the attention maps; the one that plays the role of 16x16 when not given.
        scale: see `excite`.
        part: see `excite`.
        thresholds: see `excite`.
        refinements: see `excite`.

    Raises:
        ValueError: the pipeline has no text tokens to attend to, or is called with another prompt; a subject is not in
            the prompt; they are no list, or not one a prompt.
    """
    require_text_attention(pipe)
    single = isinstance(prompt, str)
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    parsed = syntaxes(prompts, [bindings] if single and bindings is not None else bindings, parser)
    if isinstance(subjects, str):
        raise ValueError(f"subjects must be a list of words, got the text {subjects!r}: give [{subjects!r}]")
    named = [subjects] * len(prompts) if single or subjects is None else list(subjects)
    if len(named) != len(prompts):
        raise ValueError(f"subjects must have one list a prompt: {len(prompts)} prompts, {len(named)} lists")
    tokens = [_tokens(pipe, syntax, some) for syntax, some in zip(parsed, named, strict=True)]
    rule = excite(
        tokens, first=_first(pipe), scale=scale, part=part, thresholds=thresholds, refinements=refinements
    )  # fmt: skip
    with stepping(pipe, prompts, rule, grid=grid):
        yield


def _tokens(pipe: Any, syntax: Syntax, subjects: Sequence[Named] | None) -> list[tuple[int, ...]]:
    """The tokens of every subject that the text encoder reads."""
    meant: list[tuple[int, ...]] = [(noun,) for noun in nouns(syntax)]
    if subjects is not None:
        meant = [words_named(syntax.words, name) for name in subjects]
    spans = bound(pipe, syntax).tokens
    found = [tuple(token for number in numbers for token in spans[number]) for numbers in meant]
    return [each for each in found if each]


def _first(pipe: Any) -> int:
    """1 where texts begin with a BOS token, else 0 (T5)."""
    bos = pipe.tokenizer.bos_token_id
    return int(bos is not None and pipe.tokenizer("a").input_ids[0] == bos)
