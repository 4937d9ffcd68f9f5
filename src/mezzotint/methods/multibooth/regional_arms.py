"""What the parts with several concepts compare: sizes and layouts, and every way of learning and applying concepts.

Concepts are learnt one by one; the baselines jointly, in as many steps as all of these together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeAlias

from mezzotint.worlds.scenes import caption, sample

from . import place, single_experiment
from .concept import Concept
from .custom_diffusion import custom_diffusion, merged
from .dreambooth import RARE, dreambooth
from .finetuned import Finetuned, summed
from .joint import Training, prior_of
from .pictures import Subject
from .textual_inversion import textual_inversion
from .world import Thing, class_pictures, pictures_of

__all__ = ["ARMS", "FULL", "LAYOUTS", "PAIRS", "QUICK", "WORDS", "Learnt", "Sides", "Size", "learn_all"]

PAIRS = "two concepts, side by side"
OURS, SUMMED, CROSS = "MultiBooth", "no regions", "no LoRA in self-attention"
MEAN, SUM = "texts averaged", "texts summed"
INVERTED, BOOTH, CUSTOM, MERGED = "Textual Inversion", "DreamBooth", "Custom Diffusion", "Custom Diffusion, merged"
WORDS = ("<S>", "<V>", "<W>", "<X>", "<Y>")

ARMS: tuple[tuple[str, Any, str], ...] = (
    (MERGED, "baseline", "models learnt one by one, merged in closed form"),
    (SUMMED, "ablation", "the LoRA of all concepts summed over the whole picture, the base prompt, no boxes"),
    (MEAN, "ablation", "region and base text are averaged token by token"),
    (SUM, "ablation", "region and base text are added token by token, as equation 5 is printed"),
    (CROSS, "ablation", "regional LoRA in cross-attention alone"),
)
"""Arms that the part on single concepts does not have."""

Sides: TypeAlias = tuple[float, float, float, float]

LAYOUTS: dict[str, tuple[tuple[Sides, ...], ...]] = {
    PAIRS: (((0, 0, 0.5, 1), (0.5, 0, 1, 1)),),
    "two concepts, overlapping": (
        ((0, 0, 0.6, 1), (0.4, 0, 1, 1)),
        ((0, 0, 0.65, 0.8), (0.35, 0.2, 1, 1)),
        ((0, 0, 0.7, 1), (0.45, 0.25, 1, 1)),
    ),
    "three concepts, side by side": (((0, 0, 0.34, 1), (0.33, 0, 0.67, 1), (0.66, 0, 1, 1)),),
}


@dataclass(frozen=True)
class Size:
    """How much is run.

    Attributes:
        learning: concepts, their pictures, and steps of learning one.
        pictures: of each combination and condition.
        conditions: of `LAYOUTS`.
        arms: which are run.
        rounds: of timing; each makes one picture with every number of concepts.
        counts: numbers of concepts that are timed.
    """

    learning: single_experiment.Size
    pictures: int
    conditions: tuple[str, ...]
    arms: tuple[str, ...]
    rounds: int
    counts: tuple[int, ...] = (0, 1, 2, 3, 5)


QUICK = Size(
    replace(single_experiment.QUICK, concepts=2, arms=()),
    pictures=8,
    conditions=(PAIRS,),
    arms=(OURS, SUMMED, MEAN),
    rounds=3,
    counts=(0, 2, 5),
)
FULL = Size(
    replace(single_experiment.FULL, concepts=3),
    pictures=8,
    conditions=tuple(LAYOUTS),
    arms=(OURS, SUMMED, MEAN, SUM, CROSS, INVERTED, BOOTH, CUSTOM, MERGED),
    rounds=5,
)

_OURS: dict[str, dict[str, Any]] = {
    OURS: {},
    MEAN: {"text_mix": "mean"},
    SUM: {"text_mix": "sum"},
    CROSS: {"self_lora": "off"},
}

Way: TypeAlias = Callable[[Sequence[int], str, Sequence[Sides]], AbstractContextManager[Any]]


@dataclass(frozen=True, eq=False)
class Learnt:
    """All that one seed has learnt.

    Attributes:
        concepts: stored concepts with placeholders of their own.
        models: the baselines, each with all concepts.
        phrases: by arm, how prompts name each concept; those of `concepts` where an arm is not named.
    """

    concepts: tuple[Concept, ...]
    models: Mapping[str, Finetuned]
    phrases: Mapping[str, tuple[str, ...]]

    def prompt(self, arm: str, chosen: Sequence[int]) -> str:
        """What an arm is asked for."""
        own = tuple(concept.phrase for concept in self.concepts)
        return " and ".join(f"a {self.phrases.get(arm, own)[index]}" for index in chosen)

    def way(self, pipe: Any, arm: str) -> Way:
        """How an arm is applied to a pipeline: (concepts, prompt, boxes) -> context."""
        if (changes := _OURS.get(arm)) is not None:
            return lambda chosen, prompt, boxes: place(
                pipe, prompt, [self.concepts[index] for index in chosen], boxes=boxes, **changes
            )
        if arm == SUMMED:
            return lambda chosen, *_: summed(pipe, [self.concepts[index] for index in chosen]).applied(pipe)
        return lambda *_: self.models[arm].applied(pipe)


def learn_all(
    pipe: Any, kinds: Sequence[Thing], size: Size, seed: int, *, known: single_experiment.Known | None = None
) -> Learnt:
    """Learn every thing alone, and all of them jointly by the baselines.

    Args:
        pipe: the base; it stays as it is.
        kinds: what is learnt.
        size: how much is run.
        seed: of pictures, weights and draws.
        known: concepts that are learnt already; those of this call are added.
    """
    one, known = size.learning, {} if known is None else known
    shown = [pictures_of(kind, one.shown, seed=seed) for kind in kinds]
    named = list(zip(WORDS, kinds, shown, strict=False))
    concepts = tuple(_concept(pipe, kind, one, seed, word=word, known=known) for word, kind, _ in named)
    if not {INVERTED, BOOTH, CUSTOM, MERGED} & set(size.arms):
        return Learnt(concepts, {}, {})
    subjects = [Subject.of(pipe, pictures, word=word, class_word=kind.class_word) for word, kind, pictures in named]
    models = dict(_baselines(pipe, subjects, kinds, size=size, seed=seed))
    return Learnt(concepts, models, {arm: model.phrases for arm, model in models.items()})


def _concept(
    pipe: Any, kind: Thing, size: single_experiment.Size, seed: int, *, word: str, known: single_experiment.Known
) -> Concept:
    options = single_experiment.options_of(kind, size, seed, placeholder=word)
    made = single_experiment.learn_concept_once(pipe, kind, size, options, known=known)
    assert made.concept is not None
    return made.concept


def _baselines(
    pipe: Any, subjects: Sequence[Subject], kinds: Sequence[Thing], *, size: Size, seed: int
) -> Iterator[tuple[str, Finetuned]]:
    one = size.learning
    prior = prior_of(pipe, {kind.class_word: class_pictures(kind, 4 * one.shown, seed=seed) for kind in kinds})
    shared: dict[str, Any] = {"batch_size": one.batch, "precision": one.precision, "seed": seed}
    settings = partial(Training, templates=single_experiment.TEMPLATES, **shared)
    alone, together = one.steps, one.steps * len(subjects)
    custom = partial(custom_diffusion, pipe, prior=prior, progress=False)
    if INVERTED in size.arms:
        way = settings(steps=alone, learning_rate=5e-3)
        yield INVERTED, summed(pipe, [textual_inversion(pipe, each, way, progress=False) for each in subjects])
    if BOOTH in size.arms:
        rare = [
            Subject(word, each.class_word, each.mean, each.std, each.features)
            for word, each in zip(RARE, subjects, strict=False)
        ]
        way = settings(steps=together, learning_rate=1e-3)
        yield BOOTH, dreambooth(pipe, rare, way, prior=prior, rank=8, progress=False)
    if CUSTOM in size.arms:
        yield CUSTOM, custom(subjects, settings(steps=together, learning_rate=1e-3, token_rate=2.0))
    if MERGED in size.arms:
        way = settings(steps=alone, learning_rate=1e-3, token_rate=2.0)
        captions = [caption(scene, "plain", seed=seed).text for scene in sample(200, seed=seed, split="train")]
        yield MERGED, merged(pipe, [custom([each], way) for each in subjects], captions)
