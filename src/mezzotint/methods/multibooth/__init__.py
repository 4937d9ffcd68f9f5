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
        "One embedding is stored: the mean over the training pictures in eval mode, then normalised; the paper is "
        "silent on which picture's embedding is kept.",
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
    learning_rate: float = 8e-5,
    batch_size: int = 1,
    seed: int = 0,
) -> Concept:
    """Learn one concept from a few pictures; the pipeline stays as it is.

    Args:
        pipe: a latent diffusion pipeline with text encoders (Stable Diffusion, SDXL ...).
        images: folder with the pictures of the concept, three to five.
        class_word: the class noun, such as cube or dog.
        placeholder: the word that will stand for the concept in prompts.
        steps: optimiser steps.
        rank: of the LoRA.
        layers: attention layers whose keys and values are adapted: all, or those that read the text (cross).
        learning_rate: of AdamW.
        batch_size: pictures of a step.
        seed: of every draw.
    """
    options = dict(locals())
    from .learning import learn_concept

    return learn_concept(options.pop("pipe"), **options)


VERBS = {"learn": learn}
