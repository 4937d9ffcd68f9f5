"""What the baselines share: training several concepts at once, on weights of the backbone, with prior preservation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mezzotint.attention.sites import backbone
from mezzotint.diffusion import decode, rng
from mezzotint.diffusion.latents import latent_shape, posterior
from mezzotint.runtime.arithmetic import Arithmetic
from mezzotint.training import Config, Run, fit

from .base import text_parts
from .encoder import Free
from .normalisation import class_embedding
from .objective import Learnt, Objective, Prior, gathered
from .pictures import Subject
from .placeholder import Placeholders, noun_ids
from .templates import TEMPLATES, prompts

__all__ = ["Training", "free_embedding", "prior_of", "sampled_class", "train_jointly", "trainable"]


@dataclass(frozen=True)
class Training:
    """Settings of a baseline.

    Attributes:
        steps: optimiser steps.
        batch_size: pictures of a step; the prior term takes as many again.
        learning_rate: of AdamW.
        token_rate: factor on it for embeddings of new words.
        templates: contexts; the usual 27 when empty.
        precision: "bfloat16" for autocast around the loss.
        seed: of every draw.
    """

    steps: int = 900
    batch_size: int = 1
    learning_rate: float = 1e-4
    token_rate: float = 1.0
    templates: tuple[str, ...] = ()
    precision: Arithmetic = "float32"
    seed: int = 0

    def config(self) -> Config:
        """For `training.fit`."""
        return Config(
            steps=self.steps,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            rates={"token": self.token_rate},
            precision=self.precision,
            seed=self.seed,
        )

    def prompts(self, subject: Subject) -> tuple[str, ...]:
        """The contexts of a subject."""
        return tuple(prompts(subject.phrase, self.templates or TEMPLATES))


def train_jointly(
    pipe: Any,
    subjects: Sequence[Subject],
    training: Training,
    *,
    weights: Mapping[str, nn.Parameter],
    tokens: Sequence[Free] = (),
    prior: Prior | None = None,
    progress: bool = True,
) -> Run:
    """Run the loop on several subjects; what is trained holds its result afterwards.

    Args:
        pipe: with its networks frozen but for `weights`.
        subjects: what is learnt.
        training: the settings.
        weights: trained parameters by name; may be none.
        tokens: the embedding of each subject's placeholder; none where words of the vocabulary are used.
        prior: the prior-preservation term.
        progress: show a bar.
    """
    words = Placeholders(pipe, [subject.word for subject in subjects]) if tokens else None
    encoders: Sequence[Free | None] = tokens or [None] * len(subjects)
    learnt = [
        Learnt(subject.word, training.prompts(subject), encoder)
        for subject, encoder in zip(subjects, encoders, strict=True)
    ]
    trained: dict[str, Any] = {f"weights.{name}": value for name, value in weights.items()}
    trained |= {f"token.{index}": encoder for index, encoder in enumerate(tokens)}
    with words.installed() if words is not None else nullcontext():
        objective = Objective(pipe, words, learnt, prior=prior)
        return fit(objective, trained, gathered(subjects), training.config(), progress=progress)


def free_embedding(pipe: Any, class_word: str) -> Free:
    """A free vector for each text encoder that begins as the class noun's embedding."""
    parts = text_parts(pipe)
    start = [class_embedding(part.table.weight, noun_ids(part, class_word)) for part in parts]
    return Free(start).to(pipe.device)


@contextmanager
def trainable(pipe: Any, names: Sequence[str]) -> Iterator[dict[str, nn.Parameter]]:
    """Copies of named weights in the backbone, to be trained in place; the originals come back at the end."""
    network = backbone(pipe)
    live = {name: network.get_parameter(name) for name in names}
    kept = {name: (value.data, value.requires_grad) for name, value in live.items()}
    try:
        for value in live.values():
            value.data = value.data.clone()
            value.requires_grad_(True)
        yield live
    finally:
        for name, (data, needs) in kept.items():
            live[name].data = data
            live[name].requires_grad_(needs)
            live[name].grad = None


def prior_of(pipe: Any, pictures: Mapping[str, Float[Tensor, "count 3 height width"]], *, weight: float = 1.0) -> Prior:
    """Prior preservation from pictures of each class, shown as "a photo of a <class>".

    Args:
        pipe: the base pipeline.
        pictures: class noun -> pictures in 0..1.
        weight: of the term.
    """
    encoded = [posterior(pipe, shown.to(pipe.device)) for shown in pictures.values()]
    texts = [f"a photo of a {noun}" for noun, shown in pictures.items() for _ in range(len(shown))]
    mean, std = (torch.cat(list(parts)) for parts in zip(*encoded, strict=True))
    return Prior(mean, std, tuple(texts), weight)


@torch.no_grad()
def sampled_class(
    pipe: Any, class_word: str, count: int, *, steps: int = 50, guidance: float = 7.5, seed: int = 0
) -> Float[Tensor, "count 3 height width"]:
    """Pictures of a class by the base model itself, as DreamBooth takes them (arXiv 2208.12242, section 3.2).

    Args:
        pipe: the base pipeline.
        class_word: the class noun.
        count: pictures.
        steps: sampling steps.
        guidance: guidance scale.
        seed: picture k depends on (seed, k) alone.
    """
    made = []
    for first in range(count):
        noise = rng.normal(
            latent_shape(pipe), seed=seed, purpose=f"multibooth/class/{class_word}", first=first, count=1
        )
        settings: dict[str, Any] = {"num_inference_steps": steps, "guidance_scale": guidance, "output_type": "latent"}
        made.append(decode(pipe, pipe(f"a photo of a {class_word}", latents=noise.to(pipe.device), **settings).images))
    return torch.cat(made)
