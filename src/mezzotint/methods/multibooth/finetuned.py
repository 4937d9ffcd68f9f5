"""What baselines leave behind: changed weights of the backbone and vectors of new words, applied for a while.

Stored concepts take this form too, as ordinary LoRA inference: W + sum_i B_i A_i everywhere. With several concepts that
is the paper's ablation without its region module (arXiv 2404.14239, table 3).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from mezzotint.attention.sites import backbone

from .concept import Concept
from .placeholder import Placeholders

__all__ = ["Finetuned", "summed", "swapped"]


@dataclass(frozen=True, eq=False)
class Finetuned:
    """A finetuned pipeline, as its difference from the base.

    Attributes:
        weights: parameters of the backbone by name, whole, as they have to be.
        vectors: placeholder -> its embedding for each text encoder.
        phrases: how prompts name each concept, in the order in which they were learnt.
    """

    weights: Mapping[str, Tensor]
    vectors: Mapping[str, tuple[Tensor, ...]]
    phrases: tuple[str, ...]

    @contextmanager
    def applied(self, pipe: Any) -> Iterator[None]:
        """The pipeline with these weights and words; it is as it was afterwards.

        Args:
            pipe: the base that it was learnt on.
        """
        words = Placeholders(pipe, list(self.vectors))
        words.vectors.update(self.vectors)
        with ExitStack() as stack:
            stack.enter_context(words.installed())
            stack.enter_context(swapped(backbone(pipe), self.weights))
            yield


def summed(pipe: Any, concepts: Sequence[Concept]) -> Finetuned:
    """Stored concepts as weights: the LoRA of all of them added to the base, over the whole picture.

    Raises:
        ValueError: a concept of another base.
    """
    network, weights = backbone(pipe), dict[str, Tensor]()
    for concept in concepts:
        concept.check(pipe)
        for layer, (A, B) in concept.lora.items():
            name = f"{layer}.weight"
            base = network.get_parameter(name).detach()
            weights[name] = weights.get(name, base.float()) + (B @ A).to(base.device)
    vectors = {concept.placeholder: concept.embeddings for concept in concepts}
    return Finetuned(weights, vectors, tuple(concept.phrase for concept in concepts))


@contextmanager
def swapped(network: nn.Module, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Put other values into named parameters; the very tensors that were there come back.

    Raises:
        ValueError: a parameter is missing or has another shape.
    """
    live = dict(network.named_parameters())
    for name, value in weights.items():
        if name not in live or live[name].shape != value.shape:
            raise ValueError(f"{name} of shape {tuple(value.shape)} does not fit this network: it has another base")
    kept = {name: live[name].data for name in weights}
    try:
        for name, value in weights.items():
            live[name].data = value.detach().to(kept[name])
        yield
    finally:
        for name, data in kept.items():
            live[name].data = data
