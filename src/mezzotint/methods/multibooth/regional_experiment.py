"""Parts E2, E3 and E5 of the experiment: several concepts in one picture, in any combination, and what it costs.

Concepts are learnt one by one; the baselines jointly, in as many steps as all of these together. Every arm makes
pictures of the same prompts from the same noise. Arms without boxes are judged in the same boxes, and besides by
whether the concepts are there at all.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from typing import Any, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from mezzotint.diffusion import decode, latent_shape, rng
from mezzotint.worlds.scenes import caption, sample

from . import place, single_experiment
from .concept import Concept
from .custom_diffusion import custom_diffusion, merged
from .dreambooth import RARE, dreambooth
from .finetuned import Finetuned, summed
from .joint import Training, prior_of
from .judge import Judge
from .learning import learn_concept
from .pictures import Subject
from .textual_inversion import textual_inversion
from .world import CONCEPTS, Thing, class_pictures, pictures_of

__all__ = ["ARMS", "FULL", "QUICK", "Learnt", "Size", "claims", "learn_all", "measure_regional"]

IN_BOX, CONFUSED, BOTH = "concepts in their own boxes", "another concept in the box", "all concepts in their boxes"
THERE, SECONDS, SWAP = "all concepts in the picture", "seconds a picture", "seconds to swap a stored concept in"
KEPT = "first concept in its box"
OURS, SUMMED, SUM, CROSS = "MultiBooth", "no regions", "texts summed", "no LoRA in self-attention"
INVERTED, BOOTH, CUSTOM, MERGED = "Textual Inversion", "DreamBooth", "Custom Diffusion", "Custom Diffusion, merged"
WORDS = ("<S>", "<V>", "<W>", "<X>", "<Y>")

ARMS: tuple[tuple[str, Any, str], ...] = (
    (MERGED, "baseline", "models learnt one by one, merged in closed form"),
    (SUMMED, "ablation", "the LoRA of all concepts summed over the whole picture, the base prompt, no boxes"),
    (SUM, "ablation", "region and base text are added, as equation 5 is printed"),
    (CROSS, "ablation", "regional LoRA in cross-attention alone"),
)
"""Arms that the part on single concepts does not have."""

Sides: TypeAlias = tuple[float, float, float, float]
LAYOUTS: dict[str, tuple[tuple[Sides, ...], ...]] = {
    "two concepts, side by side": (((0, 0, 0.5, 1), (0.5, 0, 1, 1)),),
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
    single_experiment.Size(
        concepts=2, shown=4, steps=30, batch=4, pictures=8, sampling=15, judge_steps=200, judge_views=40
    ),
    pictures=8,
    conditions=("two concepts, side by side",),
    arms=(OURS, SUMMED, SUM),
    rounds=3,
    counts=(0, 2, 5),
)
FULL = Size(
    single_experiment.FULL,
    pictures=8,
    conditions=tuple(LAYOUTS),
    arms=(OURS, SUMMED, SUM, CROSS, INVERTED, BOOTH, CUSTOM, MERGED),
    rounds=9,
)

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
        if arm in (OURS, SUM, CROSS):
            changes: dict[str, Any] = {SUM: {"text_mix": "sum"}, CROSS: {"self_lora": "off"}}.get(arm, {})
            return lambda chosen, prompt, boxes: place(
                pipe, prompt, [self.concepts[index] for index in chosen], boxes=boxes, **changes
            )
        if arm == SUMMED:
            return lambda chosen, *_: summed(pipe, [self.concepts[index] for index in chosen]).applied(pipe)
        return lambda *_: self.models[arm].applied(pipe)


def learn_all(pipe: Any, kinds: Sequence[Thing], size: Size, seed: int) -> Learnt:
    """Learn every thing alone, and all of them jointly by the baselines.

    Args:
        pipe: the base; it stays as it is.
        kinds: what is learnt.
        size: how much is run.
        seed: of pictures, weights and draws.
    """
    one = size.learning
    shown = [pictures_of(kind, one.shown, seed=seed) for kind in kinds]
    named = list(zip(WORDS, kinds, shown, strict=False))
    concepts = tuple(
        learn_concept(pipe, pictures, single_experiment.options_of(kind, one, seed, placeholder=word), progress=False)
        for word, kind, pictures in named
    )
    if not {INVERTED, BOOTH, CUSTOM, MERGED} & set(size.arms):
        return Learnt(concepts, {}, {})
    subjects = [Subject.of(pipe, pictures, word=word, class_word=kind.class_word) for word, kind, pictures in named]
    models = dict(_baselines(pipe, subjects, kinds, size=size, seed=seed))
    return Learnt(concepts, models, {arm: model.phrases for arm, model in models.items()})


def _baselines(
    pipe: Any, subjects: Sequence[Subject], kinds: Sequence[Thing], *, size: Size, seed: int
) -> Iterator[tuple[str, Finetuned]]:
    one = size.learning
    prior = prior_of(pipe, {kind.class_word: class_pictures(kind, 4 * one.shown, seed=seed) for kind in kinds})
    settings = partial(Training, batch_size=one.batch, templates=single_experiment.TEMPLATES, seed=seed)
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
        yield CUSTOM, custom(subjects, settings(steps=together, learning_rate=2e-4, token_rate=10.0))
    if MERGED in size.arms:
        way = settings(steps=alone, learning_rate=2e-4, token_rate=10.0)
        captions = [caption(scene, "plain", seed=seed).text for scene in sample(200, seed=seed, split="train")]
        yield MERGED, merged(pipe, [custom([each], way) for each in subjects], captions)


def measure_regional(
    trial: Any, pipe: Any, seeds: Sequence[int], size: Size, *, guidance: float, judge: Judge | None = None
) -> None:
    """E2, E3 and E5: who is where, what swapping costs, and seconds for every number of concepts.

    Args:
        trial: the experiment.
        pipe: the base.
        seeds: one row of every table each.
        size: how much is run.
        guidance: scale.
        judge: trained on the concepts; trained here when not given.
    """
    kinds = CONCEPTS[: size.learning.concepts]
    judge = judge or _judge(kinds, size)
    known = [learn_all(pipe, kinds, size, seed) for seed in seeds]
    paint = partial(_painted, pipe, steps=size.learning.sampling, guidance=guidance)
    for condition in size.conditions:
        if len(LAYOUTS[condition][0]) <= len(kinds):
            _measure_condition(trial, judge, dict(zip(seeds, known, strict=True)), condition, size=size, paint=paint)
    _measure_swaps(trial, pipe, known)
    _measure_seconds(trial, pipe, known, size=size, guidance=guidance)


def _judge(kinds: Sequence[Thing], size: Size) -> Judge:
    from .world import appearances

    one = size.learning
    return Judge.train(appearances(tuple(kinds)), views=one.judge_views, steps=one.judge_steps, progress=False)


def _painted(
    pipe: Any, context: AbstractContextManager[Any], prompt: str, count: int, *, seed: int, steps: int, guidance: float
) -> Float[Tensor, "count 3 height width"]:
    noise = rng.normal(latent_shape(pipe), seed=seed, purpose="multibooth/regions", count=count).to(pipe.device)
    with context, torch.no_grad():
        made = pipe([prompt] * count, latents=noise, num_inference_steps=steps, guidance_scale=guidance,
                    output_type="latent").images  # fmt: skip
        return decode(pipe, made)


def _measure_condition(
    trial: Any, judge: Judge, known: Mapping[int, Learnt], condition: str, *, size: Size, paint: Callable[..., Tensor]
) -> None:
    """E2 and E3 in one condition: every combination of concepts in every layout, by every arm."""
    layouts, kinds = LAYOUTS[condition], judge.things[: size.learning.concepts]
    metrics = (IN_BOX, CONFUSED, BOTH, THERE, KEPT)
    for arm in size.arms:
        rows: dict[str, list[list[float]]] = {metric: [] for metric in metrics}
        for seed, learnt in known.items():
            found: dict[str, list[float]] = {metric: [] for metric in metrics}
            for number, chosen in enumerate(combinations(range(len(kinds)), len(layouts[0]))):
                for boxes in layouts:
                    prompt = learnt.prompt(arm, chosen)
                    context = learnt.way(paint.args[0], arm)(chosen, prompt, boxes)  # type: ignore[attr-defined]
                    made = paint(context, prompt, size.pictures, seed=seed * 1000 + number)
                    scores = _scores(judge, made, [kinds[index] for index in chosen], boxes)
                    for metric, values in scores.items():
                        found[metric] += values
                    if number == 0 and boxes is layouts[0] and seed == next(iter(known)):
                        trial.sample(arm, f"{learnt.prompt(OURS, chosen)} ({condition})", made[0],
                                     right=bool(scores[BOTH][0]))  # fmt: skip
            for metric in metrics:
                rows[metric].append(found[metric])
        for metric, table in rows.items():
            better = "lower" if metric == CONFUSED else "higher"
            trial.measure(metric, {arm: table}, unit="rate", direction=better, group=condition, counted="pictures")


def _scores(judge: Judge, pictures: Tensor, wanted: Sequence[Thing], boxes: Sequence[Sides]) -> dict[str, list[float]]:
    """Every picture's share of boxes with the right concept and with another's, and whether all are right or there."""
    seen = [judge.seen(pictures, box) for box in boxes]
    scores: dict[str, list[float]] = {IN_BOX: [], CONFUSED: [], BOTH: [], THERE: [], KEPT: []}
    for names in zip(*seen, strict=True):
        right = [name == kind for name, kind in zip(names, wanted, strict=True)]
        others = [name in wanted and name != kind for name, kind in zip(names, wanted, strict=True)]
        scores[IN_BOX].append(sum(right) / len(right))
        scores[CONFUSED].append(sum(others) / len(others))
        scores[BOTH].append(float(all(right)))
        scores[THERE].append(float(set(wanted) <= set(names)))
        scores[KEPT].append(float(right[0]))
    return scores


def _measure_swaps(trial: Any, pipe: Any, known: Sequence[Learnt]) -> None:
    """E3: what it takes to put another stored concept beside the first, from stored modules to a ready pipeline."""
    rows = []
    for learnt in known:
        spent = []
        for other in range(1, len(learnt.concepts)):
            chosen = (0, other)
            began = time.perf_counter()
            with learnt.way(pipe, OURS)(chosen, learnt.prompt(OURS, chosen), LAYOUTS["two concepts, side by side"][0]):
                spent.append(time.perf_counter() - began)
        rows.append(spent)
    trial.measure(SWAP, {OURS: rows}, unit="s", direction="lower", counted="swaps", note="no training")


def _measure_seconds(trial: Any, pipe: Any, known: Sequence[Learnt], *, size: Size, guidance: float) -> None:
    """E5: the arms take turns in every round, so that whatever else the machine does meets all of them."""
    tables: dict[int, dict[str, list[list[float]]]] = {count: {OURS: [], SUMMED: []} for count in size.counts}
    for learnt in known:
        spent: dict[tuple[int, str], list[float]] = {}
        for turn in range(size.rounds + 1):
            for count in size.counts:
                many = _many(learnt, count)
                for arm, context in _timed_arms(pipe, many):
                    began = time.perf_counter()
                    _painted(pipe, context, _prompt_of(many), 1, seed=turn, steps=size.learning.sampling,
                             guidance=guidance)  # fmt: skip
                    spent.setdefault((count, arm), []).extend([time.perf_counter() - began] if turn else [])
        for (count, arm), values in spent.items():
            tables[count][arm].append(values)
    for count, table in tables.items():
        trial.measure(SECONDS, table, unit="s", direction="lower", at=count, axis="concepts", counted="rounds",
                      note="one picture at a time, entering included; disjoint boxes")  # fmt: skip
    base, most = (statistics.median(tables[count][OURS][0]) for count in (size.counts[0], size.counts[-1]))
    trial.note(f"{size.counts[-1]} concepts take {most / base:.2f} times as long as none (median of the first seed).")


def _many(learnt: Learnt, count: int) -> list[Concept]:
    """So many concepts; stored ones come again under other placeholders."""
    return [learnt.concepts[k % len(learnt.concepts)].renamed(WORDS[k]) for k in range(count)]


def _prompt_of(concepts: Sequence[Concept]) -> str:
    return " and ".join(f"a {concept.phrase}" for concept in concepts) or "a cube"


def _timed_arms(pipe: Any, concepts: Sequence[Concept]) -> list[tuple[str, AbstractContextManager[Any]]]:
    return [
        (OURS, place(pipe, _prompt_of(concepts), concepts)),
        (SUMMED, summed(pipe, concepts).applied(pipe)),
    ]


def claims(trial: Any, size: Size) -> None:
    """What E2 and E5 are to show."""
    for condition in size.conditions:
        trial.claim(f"regions put more concepts where they belong ({condition})", BOTH, OURS, over=(SUMMED,),
                    condition=condition)  # fmt: skip
        trial.claim(f"regions confuse concepts less ({condition})", CONFUSED, OURS, over=(SUMMED,),
                    condition=condition)  # fmt: skip
        rivals = tuple(arm for arm in (INVERTED, BOOTH, CUSTOM, MERGED) if arm in size.arms)
        if rivals:
            trial.claim(f"concepts learnt alone meet more faithfully than those learnt jointly ({condition})", THERE,
                        OURS, over=rivals, condition=condition)  # fmt: skip
        trial.claim(f"the mean of the texts is better than their sum ({condition})", BOTH, OURS, over=(SUM,),
                    condition=condition)  # fmt: skip
    for count in (2, size.counts[-1]):
        trial.claim(f"{count} concepts cost at most half as much again as without regions", SECONDS, OURS,
                    over=(SUMMED,), condition=f"{count} concepts", margin=-0.5, relative=True)  # fmt: skip
