"""MultiBooth: concepts of one's own, learnt one by one and placed together by boxes (arXiv 2404.14239)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

from mezzotint.methods import Card, Effect

from .concept import Concept

__all__ = ["CARD", "EFFECT", "VERBS", "Concept", "learn", "place"]

CARD = Card(
    slug="multibooth",
    title="MultiBooth",
    claim="Concepts learnt one by one from a few pictures each, normalised to the length of ordinary words and kept to "
    "their own boxes, appear together more faithfully than jointly trained or simply summed ones.",
    paper="Zhu, Li, Ma, He and Li. MultiBooth: Towards Generating All Your Concepts in an Image from Text. AAAI 2025.",
    arxiv="2404.14239",
    bibtex="""@inproceedings{zhu2025multibooth,
  title     = {MultiBooth: Towards Generating All Your Concepts in an Image from Text},
  author    = {Zhu, Chenyang and Li, Kai and Ma, Yue and He, Chunming and Li, Xiu},
  booktitle = {AAAI Conference on Artificial Intelligence},
  year      = {2025}
}""",
    family="personalisation",
    inputs=("a latent diffusion pipeline that reads text", "three to five pictures of each concept"),
    outputs=("concept folder: embeddings and LoRA", "an effect on sampling, undone on leaving"),
    composes_with=("LoRA", "attention edits", "sampling schedules", "quantised weights"),
    departures=(
        "One embedding is kept: the mean v over the training pictures in eval mode, then normalised.",
        "Without weights of the user's the QFormer begins at random; the paper names models that it follows.",
        "Image features are those of the pipeline's CLIP encoder, or patches of the latents where it has none.",
        "The QFormer's vocabulary is the class noun's tokens alone, begun as the text encoder's rows.",
        "With text encoders of another width, or two of them (SDXL), a linear layer follows the mean for each.",
        "A noun of several tokens has the mean of their lengths as the length to normalise to.",
        "The loss is taken on what the model predicts: noise, v or the sample; the paper knows noise only.",
        "Each draw redraws the autoencoder's noise from cached means and deviations of the latents.",
        "Optimiser, batch size and the number of queries are not in the paper: AdamW, 1 and 16.",
        "Placeholders are read through hooks; no table is resized and one vector a text encoder is stored.",
        "Baselines: DreamBooth in its LoRA form by default; Custom Diffusion's new word begins as the class noun.",
        "Regions read the tokens of both texts; their sum, equation 5, pairs unlike words and doubles keys (text_mix).",
        "Where boxes overlap, weights sum to 1 once; equation 9 as printed divides by the number of boxes twice.",
        "Outside all boxes the base prompt is read with the base's weights; the paper is silent.",
        "In the unconditional half regions read the null text and keep their LoRA; the paper is silent.",
        "Self-attention gets each LoRA at the positions of its box (self_lora); the paper speaks of cross-attention.",
        "Region prompts are made by a template, and boxes are equal strips, where the user gives none.",
    ),
)


def learn(
    pipe: Any,
    *,
    images: str,
    class_word: str,
    placeholder: str = "<S>",
    steps: int = 900,
    rank: int = 16,
    layers: Literal["all", "cross"] = "all",
    encoder: Literal["qformer", "free"] = "qformer",
    acn: bool = True,
    regulariser: float = 0.01,
    learning_rate: float = 8e-5,
    encoder_rate: float = 1.0,
    batch_size: int = 1,
    weight_decay: float = 1e-2,
    queries: int = 16,
    encoder_layers: int | None = None,
    templates: tuple[str, ...] = (),
    flip: bool = False,
    precision: Literal["float32", "bfloat16"] = "float32",
    seed: int = 0,
    run: str | None = None,
    out: str | None = None,
    vision: Any = None,
) -> Concept:
    """Learn one concept from a few pictures of it; the pipeline stays as it is.

    Args:
        pipe: a latent diffusion pipeline with text encoders (Stable Diffusion, SDXL ...).
        images: folder with three to five pictures of the concept; of each the square in the middle is used.
        class_word: the class noun, such as cube or dog.
        placeholder: the word that will stand for the concept in prompts, followed by the class noun.
        steps: optimiser steps; 900 suit Stable Diffusion, 200 the embedded model.
        rank: of the LoRA.
        layers: attention layers whose keys and values are adapted: all, or those that read the text (cross).
        encoder: what gives the embedding: a qformer that looks at the pictures, or one free vector.
        acn: give the embedding the length of the class noun's.
        regulariser: factor lambda of the embedding's squared length before that.
        learning_rate: of AdamW; 8e-5 suits Stable Diffusion, 3e-3 the embedded model.
        encoder_rate: factor on it for the encoder.
        batch_size: pictures of a step.
        weight_decay: of AdamW.
        queries: of the qformer.
        encoder_layers: of the qformer; 12 beside text encoders of width 768 and more, else 2.
        templates: contexts to show the concept in, with {} for placeholder and noun; the usual 27 when not given.
        flip: show mirrored pictures too; for symmetric things only.
        precision: of the arithmetic; bfloat16 is autocast around the loss, what is learnt stays in float32.
        seed: of every draw.
        run: folder for checkpoints, so that a killed run can be continued; none when not given.
        out: folder to write the concept to; refused before the training where it is not empty.
        vision: a CLIPVisionModel of the caller's; the pipeline's image encoder or its latents when not given.

    Raises:
        ValueError: no pictures, a noun or placeholder that will not do, or a pipeline without cross-attention.
        FileExistsError: there is something in the folder to write to.
        NonFiniteError: the loss stopped being finite; the run's folder keeps the last good state.
    """
    given = dict(locals())
    from .learning import learn_given

    return learn_given(given.pop("pipe"), **given)


@contextmanager
def place(
    pipe: Any,
    prompt: str,
    concepts: Any,
    *,
    boxes: Any = None,
    region_prompts: Mapping[str, str] | Sequence[str] | None = None,
    weights: Mapping[str, float] | Sequence[float] | None = None,
    text_mix: Literal["concat", "mean", "sum"] = "concat",
    self_lora: Literal["regional", "off"] = "regional",
    branches: tuple[str, ...] | None = None,
) -> Iterator[Any]:
    """Until the block ends, the pipeline makes pictures with several learnt concepts, each in its box.

        with mz.multibooth.place(pipe, "a <S> cube and a <V> sphere", {"<S>": (mine, (0, 0, 0.5, 1)), ...}):
            image = pipe("a <S> cube and a <V> sphere").images[0]

    Args:
        pipe: a latent diffusion pipeline that reads text; nothing of it is copied, and no weight is written.
        prompt: the base prompt, which names every placeholder and is also given to the pipeline.
        concepts: a list of concepts, or a mapping from the placeholders to be used to them (so that two with the same
            placeholder meet); each a `Concept` or its folder, alone or as (concept, box).
        boxes: [x0, y0, x1, y1] in shares of the picture, one a concept in their order or by placeholder; or a function
            from their number to boxes. Equal vertical strips in the order of the prompt when not given at all.
        region_prompts: what each box shows; the concept's phrase in the prompt's shared context when not given.
        weights: the concepts' shares where boxes overlap, divided by their sum there; equal when not given.
        text_mix: how region and base prompt are joined: concat reads the tokens of both; mean, or the paper's sum, adds
            them token by token, with the words of both prompts in each other's places.
        self_lora: LoRA of self-attention inside the boxes, or off.
        branches: names of the parts of a guided batch, in order; asked of the pipeline when not given. Pipelines that
            do not tell whether they guide (PixArt) need ("cond",) when they do not.

    Yields:
        A `placement.Placement`: every concept's box, prompt and weight.

    Raises:
        ValueError: a concept of another base model, twice the same placeholder, a placeholder that its region prompt
            does not name or the text encoder does not read, boxes or weights that are none, or a pipeline without
            cross-attention.
    """
    from .placement import arranged, placed

    found = arranged(prompt, concepts, boxes=boxes, region_prompts=region_prompts, weights=weights)
    with placed(pipe, found, text_mix=text_mix, self_lora=self_lora, branches=branches):
        yield found


VERBS = {"learn": learn}


@contextmanager
def _act(pipe: Any, prompts: Sequence[str], *, concept: tuple[str, ...] = ()) -> Iterator[None]:
    """Place learnt concepts while `mezzotint sample` draws.

    Args:
        pipe: the pipeline.
        prompts: of the batch.
        concept: NAME=FOLDER or NAME=FOLDER@x0,y0,x1,y1; the prompt says <NAME> before the class noun; may be given
            several times. Sides are shares of the picture; without any, equal strips from left to right.
    """
    different = list(dict.fromkeys(prompts))
    if len(different) > 1:
        raise ValueError("concepts are placed for one prompt at a time: add --batch-size 1")
    named = [_named(each) for each in concept]
    if twice := [name for name, count in Counter(name for name, _ in named).items() if count > 1]:
        raise ValueError(f"--concept names {twice[0]} more than once: give every concept a name of its own")
    with place(pipe, different[0], dict(named)):
        yield


def _named(text: str) -> tuple[str, tuple[str, tuple[float, ...] | None]]:
    """NAME=FOLDER@x0,y0,x1,y1 as a placeholder, a folder and a box."""
    name, equals, rest = text.partition("=")
    folder, at, sides = rest.rpartition("@") if "@" in rest else (rest, "", "")
    if not (name and equals and folder):
        raise ValueError(f"--concept must be NAME=FOLDER or NAME=FOLDER@x0,y0,x1,y1, got {text!r}")
    try:
        box = tuple(float(side) for side in sides.split(",")) if at else None
    except ValueError:
        raise ValueError(f"the box of --concept {name} must be four numbers x0,y0,x1,y1, got {sides!r}") from None
    return name if name.startswith("<") else f"<{name}>", (folder, box)


EFFECT = Effect(_act, stage="words")
