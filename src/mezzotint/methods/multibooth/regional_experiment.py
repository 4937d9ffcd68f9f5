"""Parts E2, E3 and E5 of the experiment: several concepts in one picture, in any combination, and what it costs.

Every arm makes pictures of the same prompts from the same noise. Arms without boxes are judged in the same boxes, and
besides by whether the concepts are there at all.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import combinations, product
from typing import Any, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from mezzotint.diffusion import decode, latent_shape, rng

from . import place, single_experiment
from .concept import Concept
from .finetuned import summed
from .judge import Judge
from .regional_arms import (
    ARMS,
    BOOTH,
    CUSTOM,
    FULL,
    INVERTED,
    LAYOUTS,
    MEAN,
    MERGED,
    OURS,
    PAIRS,
    QUICK,
    SUM,
    SUMMED,
    WORDS,
    Learnt,
    Sides,
    Size,
    learn_all,
)
from .single_experiment import Known
from .world import CONCEPTS, Thing, appearances

__all__ = ["ARMS", "FULL", "QUICK", "Size", "claims", "measure_regional", "scores"]

IN_BOX, CONFUSED, BOTH = "concepts in their own boxes", "another concept in the box", "all concepts in their boxes"
THERE, SECONDS, SWAP = "all concepts in the picture", "seconds a picture", "seconds to swap a stored concept in"
KEPT = "the first concept in its box"

Found: TypeAlias = tuple[Thing, tuple[float, float]]
"""What an object is taken for, and its middle."""


def measure_regional(
    trial: Any,
    pipe: Any,
    seeds: Sequence[int],
    size: Size,
    *,
    guidance: float,
    judge: Judge | None = None,
    known: Known | None = None,
) -> None:
    """E2, E3 and E5: who is where, what swapping costs, and seconds for every number of concepts.

    Args:
        trial: the experiment.
        pipe: the base.
        seeds: one row of every table each.
        size: how much is run.
        guidance: scale.
        judge: trained on the concepts; trained here when not given.
        known: concepts that are learnt already; those of this call are added.
    """
    kinds = CONCEPTS[: size.learning.concepts]
    judge = judge or _judge(kinds, size)
    learnt = {seed: learn_all(pipe, kinds, size, seed, known=known) for seed in seeds}
    easel = Easel(pipe, size.learning, guidance)
    for condition in size.conditions:
        if len(LAYOUTS[condition][0]) > len(kinds):
            raise ValueError(f"{condition} needs more than the {len(kinds)} concepts that are learnt")
        _measure_condition(trial, easel, learnt, condition=condition, size=size, judge=judge, kinds=kinds)
    _measure_swaps(trial, pipe, tuple(learnt.values()))
    _measure_seconds(trial, easel, tuple(learnt.values()), size)


def _judge(kinds: Sequence[Thing], size: Size) -> Judge:
    one = size.learning
    return Judge.train(appearances(tuple(kinds)), views=one.judge_views, steps=one.judge_steps, progress=False)


@dataclass(frozen=True, eq=False)
class Easel:
    """How pictures are made: the pipeline, sampling steps and precision, and guidance scale."""

    pipe: Any
    size: single_experiment.Size
    guidance: float

    def paint(
        self, context: AbstractContextManager[Any], prompt: str, count: int, seed: int
    ) -> Float[Tensor, "count 3 height width"]:
        """Pictures of one prompt within a context; picture k of a seed starts from the same noise in every arm."""
        noise = rng.normal(latent_shape(self.pipe), seed=seed, purpose="multibooth/regions", count=count)
        settings: dict[str, Any] = {"num_inference_steps": self.size.sampling, "guidance_scale": self.guidance}
        with context, torch.no_grad(), self.size.autocast(self.pipe):
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
            yield Seen(chosen, prompt, made, scores(_objects(judge, made), [kinds[index] for index in chosen], boxes))


def scores(
    pictures: Sequence[Sequence[Found]], wanted: Sequence[Thing], boxes: Sequence[Sides]
) -> dict[str, list[float]]:
    """Each picture's share of boxes with the right concept and with a stray one; whether all are right, or there.

    Args:
        pictures: the objects found in each, and where.
        wanted: the concepts, all different.
        boxes: one for each of them. A concept outside its own box and inside another one is astray.
    """
    found: dict[str, list[float]] = {IN_BOX: [], CONFUSED: [], BOTH: [], THERE: [], KEPT: []}
    own = dict(zip(wanted, boxes, strict=True))
    for objects in pictures:
        right = [any(kind == name and _inside(place, box) for name, place in objects) for kind, box in own.items()]
        strays = [(name, place) for name, place in objects if name in own and not _inside(place, own[name])]
        others = [any(name != kind and _inside(place, box) for name, place in strays) for kind, box in own.items()]
        found[IN_BOX].append(sum(right) / len(right))
        found[CONFUSED].append(sum(others) / len(others))
        found[BOTH].append(float(all(right)))
        found[THERE].append(float(set(wanted) <= {name for name, _ in objects}))
        found[KEPT].append(float(right[0]))
    return found


def _objects(judge: Judge, pictures: Tensor) -> list[list[Found]]:
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
        for other, how in ((MEAN, "averaged"), (SUM, "summed")):
            if other in size.arms:
                trial.claim(f"texts side by side are better than {how} ones ({condition})", BOTH, OURS, over=(other,),
                            condition=condition)  # fmt: skip
    for count in (2, size.counts[-1]):
        trial.claim(f"{count} concepts cost at most half as much again as without regions", SECONDS, OURS,
                    over=(SUMMED,), condition=f"{count} concepts", margin=-0.5, relative=True)  # fmt: skip
