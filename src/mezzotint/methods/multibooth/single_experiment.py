"""Parts E1 and E4 of the experiment: one concept at a time, and how long its embedding is.

Every arm learns the same pictures in the same number of steps and batch size, and makes pictures of the same prompts
from the same noise.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from mezzotint.diffusion import decode, latent_shape, rng
from mezzotint.metrics.similarity import cosine
from mezzotint.runtime.arithmetic import Arithmetic, autocast
from mezzotint.worlds.scenes import FLOORS

from .concept import Concept
from .custom_diffusion import custom_diffusion
from .dreambooth import RARE, dreambooth
from .finetuned import Finetuned, summed
from .joint import Training, prior_of
from .judge import Judge
from .learning import class_lengths, learn_concept
from .options import Options
from .pictures import Subject
from .textual_inversion import textual_inversion
from .world import CONCEPTS, Thing, class_pictures, pictures_of

__all__ = [
    "ARMS",
    "FULL",
    "QUICK",
    "TEMPLATES",
    "Known",
    "Made",
    "Size",
    "claims",
    "learn_arms",
    "learn_concept_once",
    "measure_single",
    "options_of",
    "painted",
]

IDENTITY, ALIGNED, SIMILAR = "pictures of the concept", "floors as asked", "cosine to renders of the concept"
LENGTH, SECONDS = "length of the embedding", "seconds of learning"
OURS, NOUN, RENDERS = "MultiBooth", "class noun", "renders"
WORD = "<S>"
_FLOORS = tuple(FLOORS)
TEMPLATES = ("a {}", "a picture of a {}", "a scene with a {}", "there is a {}", "a photo of a {}")

ARMS: tuple[tuple[str, Any, str], ...] = (
    (OURS, "method", "QFormer, normalised embedding, LoRA of keys and values"),
    ("Textual Inversion", "baseline", "one free vector, everything else frozen"),
    ("DreamBooth", "baseline", "LoRA of all attention projections on a rare word, with prior preservation"),
    ("Custom Diffusion", "baseline", "keys and values of cross-attention and one free vector, with prior preservation"),
    (NOUN, "baseline", "the base model, asked for the class noun"),
    ("no normalisation", "ablation", "the embedding is v itself"),
    ("no regulariser", "ablation", "lambda = 0"),
    ("neither", "ablation", "no normalisation and lambda = 0"),
    ("no QFormer", "ablation", "one free vector, normalised and regularised"),
    (RENDERS, "oracle", "held-out renders of the concept itself"),
)
VARIANTS: dict[str, dict[str, Any]] = {
    OURS: {},
    "no normalisation": {"acn": False},
    "no regulariser": {"regulariser": 0.0},
    "neither": {"acn": False, "regulariser": 0.0},
    "no QFormer": {"encoder": "free"},
}


@dataclass(frozen=True)
class Size:
    """How much is run: concepts, their pictures, steps and batch of learning; pictures an arm, sampling steps.

    `arms` names those that learn; all when empty. `precision` is that of learning and sampling, in every arm.
    """

    concepts: int
    shown: int
    steps: int
    batch: int
    pictures: int
    sampling: int
    judge_steps: int
    judge_views: int
    arms: tuple[str, ...] = ()
    precision: Arithmetic = "float32"

    def autocast(self, pipe: Any) -> AbstractContextManager[Any]:
        """The precision of sampling."""
        return autocast(pipe.device, self.precision)


QUICK = Size(
    concepts=1,
    shown=4,
    steps=120,
    batch=4,
    pictures=8,
    sampling=20,
    judge_steps=200,
    judge_views=40,
    arms=(OURS, "Textual Inversion"),
    precision="bfloat16",
)
FULL = Size(
    concepts=3,
    shown=4,
    steps=200,
    batch=4,
    pictures=12,
    sampling=20,
    judge_steps=400,
    judge_views=40,
    precision="bfloat16",
)
"""With the part on several concepts about three hours of one core for three seeds."""


@dataclass(frozen=True, eq=False)
class Made:
    """One arm's result for one concept.

    Attributes:
        model: what makes pictures.
        length: of its embedding in the first text encoder; None where there is none of its own.
        seconds: that learning took.
        concept: what was stored, for arms that store one.
    """

    model: Finetuned
    length: float | None
    seconds: float
    concept: Concept | None = None


Known: TypeAlias = dict[tuple[Thing, int, Options], Made]
"""What was learnt, by thing, number of pictures and options, so that parts of the experiment learn nothing twice."""


def options_of(kind: Thing, size: Size, seed: int, **changes: Any) -> Options:
    """How the small world's concepts are learnt; the learning rate is the better one of 1e-3 and 3e-3 on the cone."""
    settings: dict[str, Any] = {"rank": 8, "learning_rate": 3e-3, "encoder_rate": 0.5, "queries": 8}
    shared: dict[str, Any] = {"steps": size.steps, "batch_size": size.batch, "templates": TEMPLATES, "seed": seed}
    shared |= {"precision": size.precision}
    return Options(**{"class_word": kind.class_word, "placeholder": WORD, **settings, **shared, **changes})


def learn_concept_once(pipe: Any, kind: Thing, size: Size, options: Options, *, known: Known) -> Made:
    """MultiBooth's concept of a thing, from what is known or learnt now and remembered."""
    key = (kind, size.shown, options)
    if key not in known:
        pictures = pictures_of(kind, size.shown, seed=options.seed)
        known[key] = _timed(partial(_multibooth, pipe, pictures, options))
    return known[key]


def learn_arms(pipe: Any, kind: Thing, size: Size, seed: int, *, known: Known | None = None) -> dict[str, Made]:
    """Learn one thing in every way, each within the same number of steps.

    Args:
        pipe: the base.
        kind: what is learnt.
        size: how much is run.
        seed: of pictures, weights and draws.
        known: concepts that are learnt already; those of this call are added.
    """
    pictures, known = pictures_of(kind, size.shown, seed=seed), {} if known is None else known
    ways: dict[str, Callable[[], Made]] = {
        arm: partial(learn_concept_once, pipe, kind, size, options_of(kind, size, seed, **changes), known=known)
        for arm, changes in VARIANTS.items()
    }
    subject = Subject.of(pipe, pictures, word=WORD, class_word=kind.class_word)
    training = Training(
        steps=size.steps, batch_size=size.batch, templates=TEMPLATES, precision=size.precision, seed=seed
    )
    prior = prior_of(pipe, {kind.class_word: class_pictures(kind, 4 * size.shown, seed=seed)})
    ways["Textual Inversion"] = lambda: _inverted(pipe, subject, replace(training, learning_rate=5e-3))
    rare = replace(subject, word=RARE[0])
    ways["DreamBooth"] = lambda: Made(
        dreambooth(pipe, [rare], replace(training, learning_rate=1e-3), prior=prior, rank=8, progress=False), None, 0.0
    )
    ways["Custom Diffusion"] = lambda: _custom(
        custom_diffusion(
            pipe, [subject], replace(training, learning_rate=1e-3, token_rate=2.0), prior=prior, progress=False
        )
    )
    return {arm: _timed(way) for arm, way in ways.items() if arm in (size.arms or ways)}


def painted(
    pipe: Any, model: Finetuned, prompts: Sequence[str], *, size: Size, guidance: float, seed: int
) -> Float[Tensor, "count 3 height width"]:
    """Pictures of prompts; picture k starts from the same noise in every arm."""
    noise = rng.normal(latent_shape(pipe), seed=seed, purpose="multibooth/pictures", count=len(prompts))
    with model.applied(pipe), torch.no_grad(), size.autocast(pipe):
        settings: dict[str, Any] = {"num_inference_steps": size.sampling, "guidance_scale": guidance}
        made = pipe(list(prompts), latents=noise.to(pipe.device), output_type="latent", **settings)
        return decode(pipe, made.images)


def measure_single(
    trial: Any,
    pipe: Any,
    seeds: Sequence[int],
    size: Size,
    *,
    guidance: float,
    judge: Judge,
    known: Known | None = None,
) -> None:
    """E1 and E4: identity, prompt, similarity, lengths and seconds of every arm.

    Args:
        trial: the experiment.
        pipe: the base.
        seeds: one row of every table each.
        size: how much is run.
        guidance: scale.
        judge: trained on these concepts, at least.
        known: concepts that are learnt already.
    """
    kinds = CONCEPTS[: size.concepts]
    tables: dict[str, list[dict[str, list[float]]]] = {name: [] for name in (IDENTITY, ALIGNED, SIMILAR)}
    lengths: list[dict[str, list[float]]] = []
    seconds: list[dict[str, list[float]]] = []
    for seed in seeds:
        arms = [learn_arms(pipe, kind, size, seed, known=known) for kind in kinds]
        shown = [
            _shown(pipe, kind, made, size=size, guidance=guidance, seed=seed)
            for kind, made in zip(kinds, arms, strict=True)
        ]
        for name, measured in _measured(judge, kinds, shown, seed).items():
            tables[name].append(measured)
        lengths.append(_lengths(pipe, kinds, arms))
        seconds.append({arm: [one[arm].seconds for one in arms] for arm in arms[0]})
        if seed == seeds[0]:
            _sample(trial, judge, kinds, shown)
    notes = {IDENTITY: "by the identity judge", ALIGNED: "by the scene parser", SIMILAR: "of the parser's features"}
    for name, table in tables.items():
        unit = "" if name == SIMILAR else "rate"
        trial.measure(name, _table(table), unit=unit, direction="higher", note=notes[name], counted="pictures")
    trial.measure(LENGTH, _table(lengths), note="norm in the text encoder's token table", counted="concepts")
    trial.measure(SECONDS, _table(seconds), unit="s", direction="lower", counted="concepts")


def claims(trial: Any, size: Size) -> None:
    """What part E1 is to show, of the arms that were run."""
    run = size.arms or tuple(name for name, _, _ in ARMS)
    if "Textual Inversion" in run:
        text = "one concept is recognised more often than by Textual Inversion"
        trial.claim(text, IDENTITY, OURS, over=("Textual Inversion",))
    if "DreamBooth" in run:
        text = "one concept is recognised about as often as by DreamBooth"
        trial.claim(text, IDENTITY, OURS, over=("DreamBooth",), margin=-0.05)
    ideas = {"no normalisation": "normalisation", "no regulariser": "the regulariser", "no QFormer": "the QFormer"}
    for arm, idea in (ideas | {"neither": "normalisation with the regulariser"}).items():
        if arm in run:
            trial.claim(f"{idea} makes the concept recognised more often", IDENTITY, OURS, over=(arm,))
            trial.claim(f"{idea} keeps more of the prompt", ALIGNED, OURS, over=(arm,))


def _multibooth(pipe: Any, pictures: Tensor, options: Options) -> Made:
    concept = learn_concept(pipe, pictures, options, progress=False)
    return Made(summed(pipe, [concept]), float(concept.embeddings[0].norm()), 0.0, concept)


def _inverted(pipe: Any, subject: Subject, training: Training) -> Made:
    concept = textual_inversion(pipe, subject, training, progress=False)
    return Made(summed(pipe, [concept]), float(concept.embeddings[0].norm()), 0.0, concept)


def _custom(model: Finetuned) -> Made:
    return Made(model, float(model.vectors[WORD][0].norm()), 0.0)


def _timed(way: Callable[[], Made]) -> Made:
    began = time.perf_counter()
    made = way()
    return replace(made, seconds=made.seconds or time.perf_counter() - began)


def _shown(
    pipe: Any, kind: Thing, arms: Mapping[str, Made], *, size: Size, guidance: float, seed: int
) -> dict[str, Tensor]:
    """Pictures of one concept by every arm, of the base model, and renders."""
    floors = [_FLOORS[k % len(_FLOORS)] for k in range(size.pictures)]
    models = {arm: made.model for arm, made in arms.items()} | {NOUN: Finetuned({}, {}, (kind.class_word,))}
    pictures = {}
    for arm, model in models.items():
        prompts = [f"a {model.phrases[0]} on a {floor} floor" for floor in floors]
        pictures[arm] = painted(pipe, model, prompts, size=size, guidance=guidance, seed=seed)
    side = pictures[NOUN].shape[-1]
    return {**pictures, RENDERS: pictures_of(kind, size.pictures, seed=seed, split="test", side=side)}


def _measured(
    judge: Judge, kinds: Sequence[Thing], shown: Sequence[Mapping[str, Tensor]], seed: int
) -> dict[str, dict[str, list[float]]]:
    found: dict[str, dict[str, list[float]]] = {IDENTITY: {}, ALIGNED: {}, SIMILAR: {}}
    for kind, pictures in zip(kinds, shown, strict=True):
        own = judge.parser.features(pictures_of(kind, 32, seed=seed + 1, split="validation")).mean(0)
        for arm, made in pictures.items():
            names = judge.seen(made)
            found[IDENTITY].setdefault(arm, []).extend(float(name == kind) for name in names)
            features = judge.parser.features(made)
            found[SIMILAR].setdefault(arm, []).extend(cosine(features, own.expand_as(features)).tolist())
            if arm != RENDERS:
                floors = [found_floor["floor"] for found_floor in judge.parser.background(made)]
                asked = [_FLOORS[k % len(_FLOORS)] for k in range(len(made))]
                right = [float(a == b) for a, b in zip(floors, asked, strict=True)]
                found[ALIGNED].setdefault(arm, []).extend(right)
    return found


def _lengths(pipe: Any, kinds: Sequence[Thing], arms: Sequence[Mapping[str, Made]]) -> dict[str, list[float]]:
    """The row of the paper's table 1."""
    rows = {NOUN: [class_lengths(pipe, kind.class_word)[0] for kind in kinds]}
    for arm, made in arms[0].items():
        if made.length is not None:
            rows[arm] = [float(one[arm].length or 0.0) for one in arms]
    return rows


def _sample(trial: Any, judge: Judge, kinds: Sequence[Thing], shown: Sequence[Mapping[str, Tensor]]) -> None:
    for kind, pictures in zip(kinds, shown, strict=True):
        for arm, made in pictures.items():
            right = judge.seen(made[:1])[0] == kind
            trial.sample(arm, f"a {WORD} {kind.class_word} on a {_FLOORS[0]} floor", made[0], right=right)


def _table(rows: Sequence[Mapping[str, list[float]]]) -> dict[str, list[list[float]]]:
    return {arm: [row[arm] for row in rows] for arm in rows[0]}
