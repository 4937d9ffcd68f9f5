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
from itertools import combinations, product
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
from .world import CONCEPTS, Thing, appearances, class_pictures, pictures_of

__all__ = ["ARMS", "FULL", "QUICK", "Learnt", "Size", "claims", "learn_all", "measure_regional"]

IN_BOX, CONFUSED, BOTH = "concepts in their own boxes", "another concept in the box", "all concepts in their boxes"
THERE, SECONDS, SWAP = "all concepts in the picture", "seconds a picture", "seconds to swap a stored concept in"
KEPT = "the first concept in its box"
PAIRS = "two concepts, side by side"
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
    single_experiment.Size(
        concepts=2, shown=4, steps=30, batch=4, pictures=8, sampling=15, judge_steps=200, judge_views=40
    ),
    pictures=8,
    conditions=(PAIRS,),
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
    known = {seed: learn_all(pipe, kinds, size, seed) for seed in seeds}
    easel = Easel(pipe, size.learning.sampling, guidance)
    for condition in size.conditions:
        _measure_condition(trial, easel, known, condition=condition, size=size, judge=judge, kinds=kinds)
    _measure_swaps(trial, pipe, tuple(known.values()))
    _measure_seconds(trial, easel, tuple(known.values()), size)


def _judge(kinds: Sequence[Thing], size: Size) -> Judge:
    one = size.learning
    return Judge.train(appearances(tuple(kinds)), views=one.judge_views, steps=one.judge_steps, progress=False)


@dataclass(frozen=True, eq=False)
class Easel:
    """How pictures are made: the pipeline, sampling steps and guidance scale."""

    pipe: Any
    steps: int
    guidance: float

    def paint(
        self, context: AbstractContextManager[Any], prompt: str, count: int, seed: int
    ) -> Float[Tensor, "count 3 height width"]:
        """Pictures of one prompt within a context; picture k of a seed starts from the same noise in every arm."""
        noise = rng.normal(latent_shape(self.pipe), seed=seed, purpose="multibooth/regions", count=count)
        settings: dict[str, Any] = {"num_inference_steps": self.steps, "guidance_scale": self.guidance}
        with context, torch.no_grad():
            made = self.pipe([prompt] * count, latents=noise.to(self.pipe.device), output_type="latent", **settings)
            return decode(self.pipe, made.images)


@dataclass(frozen=True, eq=False)
class Seen:
    """Pictures of some concepts in one layout, and what the judge says of them."""

    chosen: tuple[int, ...]
    prompt: str
    pictures: Float[Tensor, "count 3 height width"]
    scores: Mapping[str, list[float]]


def _measure_condition(
    trial: Any,
    easel: Easel,
    known: Mapping[int, Learnt],
    *,
    condition: str,
    size: Size,
    judge: Judge,
    kinds: Sequence[Thing],
) -> None:
    """E2 in one condition, every arm; and E3 for ours: does the first concept stay when its neighbour is another?"""
    shared: dict[str, Any] = {"unit": "rate", "counted": "pictures"}
    for arm in size.arms:
        rows = [
            list(_seen(easel, judge, learnt, arm=arm, layouts=LAYOUTS[condition], kinds=kinds, seed=seed, size=size))
            for seed, learnt in known.items()
        ]
        for metric in (BOTH, IN_BOX, CONFUSED, THERE):
            table = [[value for seen in row for value in seen.scores[metric]] for row in rows]
            better = "lower" if metric == CONFUSED else "higher"
            trial.measure(metric, {arm: table}, direction=better, group=condition, **shared)
        first = rows[0][0]
        asked = f"{known[next(iter(known))].prompt(OURS, first.chosen)} ({condition})"
        trial.sample(arm, asked, first.pictures[0], right=bool(first.scores[BOTH][0]))
        if arm == OURS and condition == PAIRS:
            for chosen in sorted({seen.chosen for seen in rows[0] if seen.chosen[0] == 0}):
                kept = [[value for seen in row if seen.chosen == chosen for value in seen.scores[KEPT]] for row in rows]
                beside = f"beside the {kinds[chosen[1]].class_word}"
                trial.measure(KEPT, {arm: kept}, direction="higher", group=beside, **shared)


def _seen(
    easel: Easel,
    judge: Judge,
    learnt: Learnt,
    *,
    arm: str,
    layouts: Sequence[Sequence[Sides]],
    kinds: Sequence[Thing],
    seed: int,
    size: Size,
) -> Iterator[Seen]:
    """Every combination of concepts in every layout, by one arm."""
    way = learnt.way(easel.pipe, arm)
    for number, chosen in enumerate(combinations(range(len(kinds)), len(layouts[0]))):
        prompt = learnt.prompt(arm, chosen)
        for boxes in layouts:
            made = easel.paint(way(chosen, prompt, boxes), prompt, size.pictures, seed * 1000 + number)
            yield Seen(chosen, prompt, made, _scores(judge, made, [kinds[index] for index in chosen], boxes))


def _scores(judge: Judge, pictures: Tensor, wanted: Sequence[Thing], boxes: Sequence[Sides]) -> dict[str, list[float]]:
    """Each picture's share of boxes with the right concept and with a stray one; whether all are right, or there."""
    scores: dict[str, list[float]] = {IN_BOX: [], CONFUSED: [], BOTH: [], THERE: [], KEPT: []}
    own = dict(zip(wanted, boxes, strict=True))
    for objects in _objects(judge, pictures):
        right = [any(kind == name and _inside(place, box) for name, place in objects) for kind, box in own.items()]
        strays = [(name, place) for name, place in objects if name in own and not _inside(place, own[name])]
        others = [any(name != kind and _inside(place, box) for name, place in strays) for kind, box in own.items()]
        scores[IN_BOX].append(sum(right) / len(right))
        scores[CONFUSED].append(sum(others) / len(others))
        scores[BOTH].append(float(all(right)))
        scores[THERE].append(float(set(wanted) <= {name for name, _ in objects}))
        scores[KEPT].append(float(right[0]))
    return scores


def _objects(judge: Judge, pictures: Tensor) -> list[list[tuple[Thing, tuple[float, float]]]]:
    """Every object that the scene parser finds in each picture, as the judge names it, and its middle."""
    places = [[(item.x, item.y) for item in items] for items in judge.parser.parse(pictures)]
    flat = [place for several in places for place in several]
    owners = torch.tensor([index for index, several in enumerate(places) for _ in several], dtype=torch.long)
    names = iter(judge.name(pictures[owners], torch.tensor(flat)) if flat else [])
    return [[(next(names), place) for place in several] for several in places]


def _inside(place: tuple[float, float], box: Sides) -> bool:
    return box[0] <= place[0] <= box[2] and box[1] <= place[1] <= box[3]


def _measure_swaps(trial: Any, pipe: Any, known: Sequence[Learnt]) -> None:
    """E3: what it takes to put another stored concept beside the first, from stored modules to a ready pipeline."""
    rows = []
    for learnt in known:
        spent = []
        for other in range(1, len(learnt.concepts)):
            chosen = (0, other)
            began = time.perf_counter()
            with learnt.way(pipe, OURS)(chosen, learnt.prompt(OURS, chosen), LAYOUTS[PAIRS][0]):
                spent.append(time.perf_counter() - began)
        rows.append(spent)
    trial.measure(SWAP, {OURS: rows}, unit="s", direction="lower", counted="swaps", note="no training")


def _measure_seconds(trial: Any, easel: Easel, known: Sequence[Learnt], size: Size) -> None:
    """E5: the arms take turns in every round, so that whatever else the machine does meets all of them."""
    tables: dict[int, dict[str, list[list[float]]]] = {count: {OURS: [], SUMMED: []} for count in size.counts}
    for learnt in known:
        spent = _spent(easel, learnt, size)
        for (count, arm), values in spent.items():
            tables[count][arm].append(values)
    for count, table in tables.items():
        trial.measure(SECONDS, table, unit="s", direction="lower", at=count, axis="concepts", counted="rounds",
                      note="one picture at a time, entering included; disjoint boxes")  # fmt: skip
    base, most = (statistics.median(tables[count][OURS][0]) for count in (size.counts[0], size.counts[-1]))
    trial.note(f"{size.counts[-1]} concepts take {most / base:.2f} times as long as none (median of the first seed).")


def _spent(easel: Easel, learnt: Learnt, size: Size) -> dict[tuple[int, str], list[float]]:
    """Seconds of each round by number of concepts and arm; a first round warms up."""
    spent: dict[tuple[int, str], list[float]] = {}
    for turn, count in product(range(size.rounds + 1), size.counts):
        many = _many(learnt, count)
        for arm, context in _timed_arms(easel.pipe, many):
            began = time.perf_counter()
            easel.paint(context, _prompt_of(many), 1, turn)
            spent.setdefault((count, arm), []).extend([time.perf_counter() - began] if turn else [])
    return spent


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
