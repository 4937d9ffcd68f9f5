"""From pictures of a concept to its embedding: a QFormer, or one free vector (arXiv 2404.14239, section 3.2).

    O = QFormer(xi, l, W),   v = mean_k O_k

W are K learnt queries, l is the class noun, xi are the features of a frozen image encoder. The QFormer is that of
InstructBLIP (arXiv 2305.06500, section 2.3), in which queries and text attend to each other and the queries alone to
the picture; it is trained with the concept and thrown away afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["Free", "QFormer", "Shape", "image_features", "patches", "pooled"]

_MOST_PATCHES = 64
_BASE = 768


@dataclass(frozen=True)
class Shape:
    """Sizes of a QFormer.

    Attributes:
        queries: K.
        layers: transformer layers; every second one looks at the picture.
        hidden: width of a token.
        heads: of its attention.
    """

    queries: int
    layers: int
    hidden: int
    heads: int

    @classmethod
    def of(cls, width: int, *, queries: int = 16, layers: int | None = None) -> Shape:
        """BERT-base beside text encoders of its width and wider ones, two layers beside small ones."""
        hidden = min(width, _BASE)
        heads = next(count for count in (hidden // 64, 4, 2, 1) if count and hidden % count == 0)
        return cls(queries, layers or (12 if hidden == _BASE else 2), hidden, heads)


class QFormer(nn.Module):
    """Pictures and a class noun to one vector a picture, for each text encoder.

    Args:
        shape: its sizes.
        noun: number of tokens of the class noun.
        features: width of the image features.
        widths: width of each text encoder.
        start: [noun, hidden] what the noun's word embeddings start from; random when not given.
    """

    def __init__(
        self, shape: Shape, *, noun: int, features: int, widths: Sequence[int], start: Tensor | None = None
    ) -> None:
        super().__init__()
        from transformers import InstructBlipQFormerConfig, InstructBlipQFormerModel

        config = InstructBlipQFormerConfig(
            vocab_size=noun,
            hidden_size=shape.hidden,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            intermediate_size=4 * shape.hidden,
            max_position_embeddings=max(noun, 1),
            encoder_hidden_size=features,
            pad_token_id=None,
        )
        self.network = InstructBlipQFormerModel(config)
        self.queries = nn.Parameter(torch.randn(1, shape.queries, shape.hidden) * config.initializer_range)
        # Where a text encoder is as wide as the QFormer, nothing stands between the mean and the embedding.
        self.heads = nn.ModuleList(
            nn.Identity() if width == shape.hidden else nn.Linear(shape.hidden, width) for width in widths
        )
        self.noun = noun
        if start is not None and start.shape == (noun, shape.hidden):
            self.network.get_input_embeddings().weight.data.copy_(start)

    def forward(self, features: Float[Tensor, "batch patches channels"]) -> tuple[Tensor, ...]:
        """V of each picture, [batch, width] for each text encoder."""
        count, asked = len(features), int(self.queries.shape[1])
        mask = torch.ones(count, asked + self.noun, dtype=torch.long, device=features.device)
        found = self.network(
            input_ids=torch.arange(self.noun, device=features.device).expand(count, -1),
            attention_mask=mask,
            query_embeds=self.queries.expand(count, -1, -1),
            encoder_hidden_states=features,
        ).last_hidden_state
        v = pooled(found[:, :asked])
        return tuple(head(v) for head in self.heads)


class Free(nn.Module):
    """One free vector for each text encoder: Textual Inversion's embedding, and the ablation without QFormer.

    Args:
        start: [width] each, what the vectors begin as: the class noun's embedding.
    """

    def __init__(self, start: Sequence[Tensor]) -> None:
        super().__init__()
        self.vectors = nn.ParameterList([nn.Parameter(vector.detach().clone().float()) for vector in start])

    def forward(self, features: Float[Tensor, "batch patches channels"]) -> tuple[Tensor, ...]:
        """The vectors, whatever the picture."""
        return tuple(vector.expand(len(features), -1) for vector in self.vectors)


def pooled(outputs: Float[Tensor, "batch queries width"]) -> Float[Tensor, "batch width"]:
    """v: the mean of the query outputs."""
    return outputs.mean(1)


def patches(latents: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch patches features"]:
    """Latents cut into squares, each a token: image features where a pipeline has no image encoder.

    The side of a square is the smallest power of two that leaves at most 64 of them; the rest of a side that it does
    not divide is filled with zeros.
    """
    side, (height, width) = 1, latents.shape[-2:]
    while -(-height // side) * -(-width // side) > _MOST_PATCHES:
        side *= 2
    filled = F.pad(latents, (0, -width % side, 0, -height % side))
    return F.unfold(filled, side, stride=side).mT


@torch.no_grad()
def image_features(
    pictures: Float[Tensor, "batch 3 height width"], latents: Float[Tensor, "batch channels h w"], vision: Any = None
) -> Float[Tensor, "batch patches features"]:
    """What the QFormer sees of each picture.

    Args:
        pictures: in 0..1.
        latents: of the same pictures.
        vision: a `CLIPVisionModel`, whose last hidden states are used; patches of the latents when not given.
    """
    if vision is None:
        return patches(latents).float()
    from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

    size, weight = int(vision.config.image_size), next(vision.parameters())
    resized = F.interpolate(pictures, (size, size), mode="bicubic", antialias=True).clamp(0, 1)
    mean, std = (resized.new_tensor(values)[:, None, None] for values in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD))
    return vision(((resized - mean) / std).to(weight)).last_hidden_state.float().to(pictures.device)
