"""What a concept is learnt for: the text encoders of a pipeline, and the keys and values of its backbone's attention.

All 32 attention layers of Stable Diffusion 1.5 at rank 16 make 1,591,296 numbers, 6.4 MB in float32, which is what the
paper's "under 7 MB" fits (arXiv 2404.14239, section 4.1); its cross-attention alone would make half of that.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from torch import nn

from mezzotint.attention.sites import backbone, located_sites

from .concept import Concept
from .options import Layers

__all__ = ["Layers", "TextPart", "check", "fingerprint", "lora_numbers", "projections", "text_parts"]

_PARTS = (("tokenizer", "text_encoder"), ("tokenizer_2", "text_encoder_2"))


@dataclass(frozen=True)
class TextPart:
    """One text encoder of a pipeline with its tokenizer.

    Attributes:
        tokenizer_name: under which the pipeline holds the tokenizer.
        tokenizer: the tokenizer.
        encoder: the text encoder.
    """

    tokenizer_name: str
    tokenizer: Any
    encoder: Any

    @property
    def table(self) -> Any:
        """The encoder's token table, a module whose `weight` is [words, width]."""
        return self.encoder.get_input_embeddings()

    @property
    def lookups(self) -> list[Any]:
        """Every module that looks tokens up in that table: T5 reads it through another one than it names."""
        weight = self.table.weight
        return [part for part in self.encoder.modules() if isinstance(part, nn.Embedding) and part.weight is weight]

    @property
    def width(self) -> int:
        """Numbers of one token's embedding."""
        return int(self.table.weight.shape[1])


def text_parts(pipe: Any) -> list[TextPart]:
    """The text encoders that a pipeline reads prompts with, in its order.

    Raises:
        ValueError: it has none.
    """
    found = [(tokenizer, getattr(pipe, tokenizer, None), getattr(pipe, encoder, None)) for tokenizer, encoder in _PARTS]
    parts = [TextPart(name, words, encoder) for name, words, encoder in found if words is not None and encoder]
    if not parts:
        raise ValueError(f"{type(pipe).__name__} reads no text: concepts need a tokenizer and a text encoder")
    return parts


def projections(pipe: Any, layers: Layers = "all") -> dict[str, tuple[int, int]]:
    """The key and value layers that a concept may adapt: name in the backbone -> (inputs, outputs).

    Args:
        pipe: a diffusers pipeline, or its U-Net or transformer.
        layers: "all" attention, or "cross" for those that read the text.

    Raises:
        ValueError: the backbone has no cross-attention, or `layers` is neither.
    """
    if layers not in ("all", "cross"):
        raise ValueError(f"layers must be 'all' or 'cross', got {layers!r}")
    network = backbone(pipe)
    placed = located_sites(network)
    if not any(site.kind == "cross" for site, _ in placed):
        raise ValueError(f"{type(network).__name__} has no cross-attention: no prompt can place a concept in it")
    return {
        f"{site.name}.{part}": (site.context_dim, attention.inner_kv_dim)
        for site, attention in placed
        if layers == "all" or site.kind == "cross"
        for part in ("to_k", "to_v")
    }


def lora_numbers(shapes: dict[str, tuple[int, int]], rank: int) -> int:
    """Numbers of a LoRA of this rank: rank (inputs + outputs) for each layer."""
    return sum(rank * (inputs + outputs) for inputs, outputs in shapes.values())


def fingerprint(pipe: Any) -> str:
    """Sixteen hexadecimal digits from the class, layers and widths of a pipeline's networks.

    Checkpoints of one architecture have one fingerprint: a concept moves to a finetuned model, never to other shapes.
    """
    widths = [part.width for part in text_parts(pipe)]
    facts = [type(backbone(pipe)).__name__, widths, sorted(projections(pipe).items())]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def check(concept: Concept, pipe: Any) -> None:
    """See `Concept.check`."""
    widths, own = [part.width for part in text_parts(pipe)], [len(vector) for vector in concept.embeddings]
    if widths != own:
        raise ValueError(
            f"concept {concept.placeholder!r} has embeddings of widths {own}, this pipeline's text encoders have "
            f"{widths}: it was learnt for another base model"
        )
    shapes = projections(pipe)
    for name, (A, B) in concept.lora.items():
        if shapes.get(name) != (A.shape[1], B.shape[0]):
            raise ValueError(
                f"concept {concept.placeholder!r} adapts {name} with {(A.shape[1], B.shape[0])} inputs and outputs, "
                f"this backbone has {shapes.get(name, 'no such layer')}: it was learnt for another base model"
            )
    if concept.base != fingerprint(pipe):
        raise ValueError(
            f"concept {concept.placeholder!r} was learnt for the base model {concept.base}, this is "
            f"{fingerprint(pipe)}: load the model that it was learnt for, or learn it again"
        )
