"""MultiBooth: concepts of one's own, learnt one by one and placed together by boxes (arXiv 2404.14239)."""

from __future__ import annotations

from typing import Any, Literal

from mezzotint.methods import Card

from .concept import Concept

__all__ = ["CARD", "VERBS", "Concept", "learn"]

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
        steps: optimiser steps; 900 suit Stable Diffusion, 400 the embedded model.
        rank: of the LoRA.
        layers: attention layers whose keys and values are adapted: all, or those that read the text (cross).
        encoder: what gives the embedding: a qformer that looks at the pictures, or one free vector.
        acn: give the embedding the length of the class noun's.
        regulariser: factor lambda of the embedding's squared length before that.
        learning_rate: of AdamW; 8e-5 suits Stable Diffusion, 1e-3 the embedded model.
        encoder_rate: factor on it for the encoder.
        batch_size: pictures of a step.
        weight_decay: of AdamW.
        queries: of the qformer.
        encoder_layers: of the qformer; 12 beside text encoders of width 768 and more, else 2.
        templates: contexts to show the concept in, with {} for placeholder and noun; the usual 27 when not given.
        flip: show mirrored pictures too; for symmetric things only.
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


VERBS = {"learn": learn}
