"""The loss of a batch (arXiv 2404.14239, equation 4), for one concept or several at once.

    L = E || target - model(z_t, t, tau(P)) ||^2 + lambda ||v||^2 [+ w E || target' - model(z'_t, t, tau(class)) ||^2]

v enters tau through vhat = ACN(v) at the placeholder's token. The term in brackets is the prior preservation of
DreamBooth (arXiv 2208.12242, equation 2), which the baselines use. The target is what the model predicts: noise for
Stable Diffusion 1.5, as in the paper.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mezzotint.diffusion import Condition, Denoiser, Predictor
from mezzotint.training import Step

from .normalisation import normalise, squared_norm
from .pictures import Subject
from .placeholder import Placeholders

__all__ = ["Learnt", "Objective", "Prior", "gathered", "reconstruction"]


@dataclass(frozen=True, eq=False)
class Learnt:
    """One concept in a training run.

    Attributes:
        word: what stands for it in prompts.
        prompts: the contexts that it is shown in.
        encoder: gives v of image features for each text encoder; None where the word is one of the vocabulary.
        lengths: ||c_l|| for each text encoder, to normalise v to; None leaves v as it is.
    """

    word: str
    prompts: tuple[str, ...]
    encoder: nn.Module | None = None
    lengths: tuple[float, ...] | None = None

    def embeddings(self, v: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """vhat: v normalised, or v itself."""
        if self.lengths is None:
            return v
        return tuple(normalise(vector, length) for vector, length in zip(v, self.lengths, strict=True))


@dataclass(frozen=True, eq=False)
class Prior:
    """Pictures of the class in general, so that training on a few of one thing does not change the whole class.

    Attributes:
        mean: of their latents, all concepts' one after the other.
        std: of their latents.
        prompts: one a latent, such as "a photo of a dog".
        weight: of the term.
    """

    mean: Float[Tensor, "count channels h w"]
    std: Float[Tensor, "count channels h w"]
    prompts: tuple[str, ...]
    weight: float = 1.0


class Objective:
    """The loss as `training.fit` wants it: a function of batch and step.

    Args:
        pipe: the pipeline, with the placeholders installed while the loss is called.
        words: the placeholders; None where no concept has an encoder.
        concepts: what is learnt; the batch says of each item which one it shows.
        penalty: lambda.
        prior: the prior-preservation term.
    """

    def __init__(
        self,
        pipe: Any,
        words: Placeholders | None,
        concepts: Sequence[Learnt],
        *,
        penalty: float = 0.0,
        prior: Prior | None = None,
    ) -> None:
        self.pipe, self.words, self.concepts, self.penalty, self.prior = pipe, words, tuple(concepts), penalty, prior
        self.denoiser = Denoiser(pipe)

    def __call__(self, batch: Any, step: Step) -> tuple[Tensor, dict[str, Any]]:
        """The mean loss of a part of a batch, with its terms."""
        length, logged = self._embed(batch["features"]), {}
        prompts = self._prompts(batch["concept"], step.uniform("template"))
        latents = batch["mean"] + batch["std"] * step.normal("autoencoder", *batch["mean"].shape[1:])
        loss = reconstruction(self.denoiser, latents, self._read(prompts), step)
        if length is not None:
            logged = {"reconstruction": loss.detach(), "length": length.detach().sqrt()}
            loss = loss + self.penalty * length
        if self.prior is not None:
            loss = loss + self.prior.weight * self._preserved(self.prior, step)
        return loss, logged

    def _embed(self, features: Tensor) -> Tensor | None:
        """Give the placeholders their vectors; returns ||v||^2, averaged over concepts and summed over encoders."""
        norms = []
        for concept in self.concepts:
            if concept.encoder is None or self.words is None:
                continue
            v = concept.encoder(features)
            self.words.vectors[concept.word] = concept.embeddings(v)
            norms.append(torch.stack([squared_norm(vector) for vector in v]).sum())
        return torch.stack(norms).mean() if norms else None

    def _prompts(self, concept: Int[Tensor, " count"], share: Float[Tensor, " count"]) -> list[str]:
        shown = [self.concepts[index].prompts for index in concept.tolist()]
        return [choice[int(value * len(choice))] for choice, value in zip(shown, share.tolist(), strict=True)]

    def _read(self, prompts: list[str]) -> Condition:
        cond, _ = Condition.from_prompt(self.pipe, prompts, gradients=True)
        return cond

    def _preserved(self, prior: Prior, step: Step) -> Tensor:
        chosen = step.integers("prior", 0, len(prior.mean))
        noise = step.normal("prior autoencoder", *prior.mean.shape[1:])
        latents = prior.mean[chosen] + prior.std[chosen] * noise
        cond, _ = Condition.from_prompt(self.pipe, [prior.prompts[index] for index in chosen.tolist()])
        return reconstruction(self.denoiser, latents, cond, step, purpose="prior ")


def reconstruction(
    denoiser: Predictor, latents: Float[Tensor, "count channels h w"], cond: Condition, step: Step, *, purpose: str = ""
) -> Float[Tensor, ""]:
    """E || target - model(z_t, t, c) ||^2, a mean over all numbers, with t uniform over the training timesteps."""
    levels = denoiser.levels
    t = step.integers(f"{purpose}timestep", 0, len(levels))
    noise = step.normal(f"{purpose}noise", *latents.shape[1:])
    noisy = levels.add_noise(latents, noise, t)
    made = denoiser.model_output(noisy, t, cond)
    target = {"epsilon": noise, "sample": latents}.get(denoiser.prediction_type)
    if target is None:
        target = levels.v_from_eps(noisy, t, noise)
    return (made - target).square().mean()


def gathered(subjects: Sequence[Subject]) -> dict[str, Tensor]:
    """The pictures of several subjects as one table for `training.fit`; "concept" says whose each is."""
    whose = [torch.full((len(subject.mean),), index) for index, subject in enumerate(subjects)]
    parts = {name: torch.cat([getattr(subject, name) for subject in subjects]) for name in ("mean", "std", "features")}
    return {**parts, "concept": torch.cat(whose)}
