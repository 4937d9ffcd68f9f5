"""DreamBooth (Ruiz et al., arXiv 2208.12242): the backbone is finetuned on a rare word, with prior preservation.

L = E || eps - eps_theta(z_t, t, tau("a [rare] dog")) ||^2
  + w E || eps' - eps_theta(z'_t, t, tau("a photo of a dog")) ||^2

In its usual LoRA form on all attention projections, or with all weights of the backbone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from mezzotint.attention.sites import backbone
from mezzotint.training import lora

from .finetuned import Finetuned
from .joint import Training, train_jointly, trainable
from .learning import ADAPTER, borrowed
from .objective import Prior
from .pictures import Subject

__all__ = ["RARE", "dreambooth"]

RARE = ("sks", "zwx", "ktn", "olis")
"""Words that mean next to nothing to a text encoder, one for each concept."""


def dreambooth(
    pipe: Any,
    subjects: Sequence[Subject],
    training: Training,
    *,
    prior: Prior | None,
    rank: int = 16,
    full: bool = False,
    progress: bool = True,
) -> Finetuned:
    """Finetune on one or several concepts jointly.

    Args:
        pipe: a latent diffusion pipeline; it stays as it is.
        subjects: their words are rare words of the vocabulary; no embedding is new.
        training: the settings.
        prior: the prior-preservation term; None goes without.
        rank: of the LoRA.
        full: train all weights of the backbone instead of a LoRA.
        progress: show a bar.
    """
    network = backbone(pipe)
    phrases = tuple(subject.phrase for subject in subjects)
    with borrowed(pipe):
        if full:
            with trainable(pipe, [name for name, _ in network.named_parameters()]) as live:
                train_jointly(pipe, subjects, training, weights=live, prior=prior, progress=progress)
                return Finetuned({name: value.detach().clone() for name, value in live.items()}, {}, phrases)
        adapter = lora.add(network, rank=rank, name=ADAPTER, seed=training.seed)
        train_jointly(pipe, subjects, training, weights=adapter, prior=prior, progress=progress)
        return Finetuned(_folded(network), {}, phrases)


def _folded(network: Any) -> dict[str, Tensor]:
    """W + B A of every adapted layer, under the name that the weight has without the adapter."""
    found = {}
    for name, layer in lora.layers(network, ADAPTER).items():
        A, B = layer.lora_A[ADAPTER].weight.detach(), layer.lora_B[ADAPTER].weight.detach()
        found[f"{name}.weight"] = layer.get_base_layer().weight.detach().float() + layer.scaling[ADAPTER] * (B @ A)
    return found
