"""E2 of the experiment: pictures of held-out prompts with several objects, made by every arm and read by the judges.

All arms of a seed start from the same noise. An arm is a context in which the pipeline is called with the prompts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, count, islice
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mezzotint.diffusion.latents import latent_shape
from mezzotint.diffusion.rng import normal
from mezzotint.evidence import Experiment
from mezzotint.metrics.scene_accuracy import WantedObject
from mezzotint.runtime.arithmetic import Arithmetic, autocast
from mezzotint.worlds.scenes.captions import Caption, caption
from mezzotint.worlds.scenes.graph import graph
from mezzotint.worlds.scenes.sampling import Split, sample
from mezzotint.worlds.scenes.scene import Scene

from . import focus
from .attend_and_excite import attend_and_excite
from .judging import Judges
from .rule_parser import RuleParser
from .structure_diffusion import structured
from .syngen import syngen
from .words import Constituent, Syntax

__all__ = ["ABLATIONS", "ARMS", "Prompts", "Size", "base_error", "judged", "made", "prompts_of", "whole_top"]

_AT_ONCE = 64
Arm = Callable[[Any, list[str], "Prompts"], AbstractContextManager[Any]]


@dataclass(frozen=True)
class Size:
    """How much is run: prompts a seed, prompts of the ablations, sampling steps, guidance, pictures on the page.

    `precision` is that of sampling, in every arm: "bfloat16" is autocast.
    """

    prompts: int
    ablated: int
    steps: int
    guidance: float = 7.5
    batch: int = 25
    shown: int = 4
    pilot: int = 48
    precision: Arithmetic = "float32"


@dataclass(frozen=True)
class Prompts:
    """Captions, and what each asks for.

    Attributes:
        told: captions with their exact bindings.
        wanted: objects with the attributes that the caption names.
    """

    told: tuple[Caption, ...]
    wanted: tuple[tuple[WantedObject, ...], ...]

    @property
    def texts(self) -> list[str]:
        """The captions' texts."""
        return [one.text for one in self.told]

    def part(self, first: int, count: int) -> Prompts:
        """`count` of them from `first` on."""
        return Prompts(self.told[first : first + count], self.wanted[first : first + count])


def prompts_of(
    number: int, objects: tuple[int, int], *, seed: int, splits: Sequence[Split] = ("test", "held_out")
) -> Prompts:
    """Captions of scenes in which no noun and no colour occurs twice, from the splits in turn.

    The first prompts of a larger number are those of a smaller one.

    Args:
        number: how many.
        objects: smallest and largest number of objects, 2 or 3.
        seed: of scenes and captions.
        splits: of the scenes; every object of "held_out" is a pair of shape and colour that training never showed.
    """
    turns = zip(*(_scenes(split, objects, seed=seed) for split in splits), strict=True)
    found = tuple(islice(chain.from_iterable(turns), number))
    told = tuple(caption(scene, "plain", seed=k) for k, scene in enumerate(found))
    wanted = tuple(tuple(graph(scene).wanted(said)) for scene, said in zip(found, told, strict=True))
    return Prompts(told, wanted)


def _scenes(split: Split, objects: tuple[int, int], *, seed: int) -> Iterator[Scene]:
    """Endless scenes of a split in which no shape and no colour occurs twice."""
    for first in count(0, _AT_ONCE):
        yield from filter(_different, sample(_AT_ONCE, seed=seed, split=split, first=first, objects=objects))


def whole_top(prompt: str) -> Syntax:
    """As the built-in parser, but phrases of several nouns keep their attributes: no abstraction."""
    found = RuleParser()(prompt)

    def kept(part: Constituent) -> Constituent:
        return replace(part, text=prompt[part.start : part.end]) if len(part.heads) > 1 else part

    return replace(found, constituents=tuple(map(kept, found.constituents)))


def _structured(pipe: Any, texts: list[str], _: Prompts) -> AbstractContextManager[Any]:
    return structured(pipe, texts, [RuleParser()(text) for text in texts])


def _disclip(pipe: Any, texts: list[str], _: Prompts, **settings: Any) -> AbstractContextManager[Any]:
    """Phrases embedded one by one, and no attention masked."""
    return focus(pipe, texts, bindings=[[] for _ in texts], **{"disclip": True, **settings})


def _focused(pipe: Any, texts: list[str], _: Prompts, **settings: Any) -> AbstractContextManager[Any]:
    return focus(pipe, texts, **settings)


def _excited(pipe: Any, texts: list[str], prompts: Prompts, **settings: Any) -> AbstractContextManager[Any]:
    """Its subjects are the objects, as its users would name them, and not the floor."""
    nouns = [list(dict.fromkeys(noun for _, noun in _places(one))) for one in prompts.told]
    return attend_and_excite(pipe, texts, subjects=nouns, **settings)


@contextmanager
def _both(pipe: Any, texts: list[str], prompts: Prompts) -> Iterator[None]:
    """As in the paper, which puts its own into Attend-and-Excite."""
    with focus(pipe, texts, disclip=True), _excited(pipe, texts, prompts):
        yield


def _syngen(pipe: Any, texts: list[str], prompts: Prompts, **settings: Any) -> AbstractContextManager[Any]:
    """Pairs of the objects; the step size is the best of 20 (the authors'), 5, 2 and 1 on 24 validation prompts."""
    return syngen(pipe, texts, bindings=[_places(one) for one in prompts.told], **{"scale": 5.0, **settings})


def _gold(pipe: Any, texts: list[str], prompts: Prompts) -> AbstractContextManager[Any]:
    return focus(pipe, texts, bindings=[_places(one) for one in prompts.told])


def _places(told: Caption) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Attribute and noun of every binding, in characters."""
    return [((b.word.start, b.word.end), (b.noun.start, b.noun.end)) for b in told.bindings]


ARMS: dict[str, Arm] = {
    "FCA + DisCLIP": partial(_focused, disclip=True),
    "FCA": _focused,
    "DisCLIP": _disclip,
    "stock": lambda *_: nullcontext(),
    "Attend-and-Excite": _excited,
    "StructureDiffusion": _structured,
    "SynGen": _syngen,
}
ABLATIONS: dict[str, Arm] = {
    "DisCLIP-leaf": partial(_disclip, disclip="disclip-leaf"),
    "DisCLIP-avg": partial(_disclip, disclip="disclip-avg"),
    "DisCLIP, no abstraction": partial(_disclip, parser=whole_top),
    "FCA, tau 0.3": partial(_focused, tau=0.3),
    "FCA, tau 0.9": partial(_focused, tau=0.9),
    "FCA online": partial(_focused, mode="online"),
    "FCA online, signed": partial(_focused, mode="online_signed"),
    "FCA online, as released": partial(_focused, mode="online_strict"),
    "FCA, both halves": partial(_focused, mask_uncond=True),
    "FCA, exact bindings": _gold,
    "Attend-and-Excite, FCA + DisCLIP": _both,
}


@dataclass(frozen=True, eq=False)
class Made:
    """Pictures of one arm and seed, and the seconds a picture of every batch took."""

    pictures: Float[Tensor, "count 3 height width"]
    seconds: tuple[float, ...]


def made(pipe: Any, arm: Arm, prompts: Prompts, size: Size, *, seed: int) -> Made:
    """Pictures of prompts; the noise of picture k does not depend on the arm or the batch.

    Args:
        pipe: a text-to-image pipeline.
        arm: the context to call it in.
        prompts: what to draw.
        size: steps, guidance, batch.
        seed: of the noise.
    """
    pictures, seconds = [], []
    for first in range(0, len(prompts.told), size.batch):
        part = prompts.part(first, size.batch)
        noise = normal(latent_shape(pipe), seed=seed, purpose="binding", first=first, count=len(part.told))
        start = time.perf_counter()
        with arm(pipe, part.texts, part), autocast(pipe.device, size.precision):
            pictures.append(_call(pipe, part.texts, noise, size))
        seconds.append((time.perf_counter() - start) / len(part.told))
    return Made(torch.cat(pictures), tuple(seconds))


def base_error(pipe: Any, judges: Judges, size: Size, objects: tuple[int, int], *, seed: int) -> float:
    """Share of the plain pipeline's pictures of validation prompts with an attribute on the wrong object."""
    prompts = prompts_of(size.pilot, objects, seed=seed, splits=("validation",))
    shown = made(pipe, ARMS["stock"], prompts, size, seed=seed).pictures
    found = judges.of(shown, prompts.wanted, prompts.texts)["swap"]
    return sum(found) / len(found)


def judged(
    trial: Experiment,
    pipe: Any,
    judges: Judges,
    *,
    asked: Sequence[tuple[int, Prompts]],
    size: Size,
    arms: Mapping[str, Arm],
    group: str,
) -> None:
    """Make the pictures of all arms and seeds, and add what the judges say of them.

    Args:
        trial: the experiment.
        pipe: a text-to-image pipeline.
        judges: of the pictures.
        asked: seed and prompts, one of each a seed.
        size: how much is run.
        arms: by name.
        group: condition of the rows.
    """
    for name, arm in arms.items():
        runs = [(made(pipe, arm, prompts, size, seed=seed), prompts) for seed, prompts in asked]
        found = [judges.of(run.pictures, prompts.wanted, prompts.texts) for run, prompts in runs]
        for key, (metric, unit, direction, note) in METRICS.items():
            table = {name: [one[key] for one in found]}
            trial.measure(metric, table, unit=unit, direction=direction, group=group, note=note)  # type: ignore[arg-type]
        seconds = {name: [run.seconds for run, _ in runs]}
        trial.measure(SECONDS, seconds, unit="s", direction="lower", group=group, counted="batches")
        _show(trial, name, runs[0][0].pictures, found[0], texts=asked[0][1].texts[: size.shown])


SECONDS = "seconds per picture"
METRICS: dict[str, tuple[str, str, str, str]] = {
    "leakage": ("EPViT leakage", "rate", "lower", "mean probability that an object has an attribute of another one"),
    "epvit": ("EPViT binding", "rate", "higher", "mean probability that an attribute is on its object"),
    "binding": ("attributes bound", "rate", "higher", "share found on their objects by the scene parser"),
    "swap": ("pictures with a swap", "rate", "lower", "an object has an attribute of another one: scene parser"),
    "missing": ("pictures with a missing object", "rate", "lower", "scene parser"),
    "presence": ("objects present", "rate", "higher", "scene parser"),
    "right": ("pictures right", "rate", "higher", "every object there with its attributes: scene parser"),
    "clip_score": ("CLIPScore", "", "higher", "2.5 max(cos, 0) of the small similarity"),
}


@torch.no_grad()
def _call(pipe: Any, texts: list[str], noise: Tensor, size: Size) -> Float[Tensor, "count 3 height width"]:
    done = pipe(
        texts,
        latents=noise.to(pipe.device, pipe.unet.dtype),
        guidance_scale=size.guidance,
        num_inference_steps=size.steps,
        output_type="pt",
    )
    return done.images.float().clamp(0, 1)


def _show(
    trial: Experiment, arm: str, pictures: Tensor, found: Mapping[str, Sequence[float]], *, texts: list[str]
) -> None:
    for k, text in enumerate(texts):
        trial.sample(arm, text, pictures[k], right=bool(found["right"][k]))


def _different(scene: Scene) -> bool:
    items = scene.objects
    return len({item.shape for item in items}) == len({item.colour for item in items}) == len(items)
