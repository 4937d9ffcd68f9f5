"""How well a text fits a picture as CLIP-like encoders see it: the usual metric, against which EPViT is compared.

CLIPScore = 2.5 max(cos(picture, text), 0) (arXiv 2104.08718, equation 1), with a small `CLIPModel` that was trained on
renders and captions of the scenes world by contrast within a batch (arXiv 2103.00020), without swapped captions.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mezzotint.loading import zoo_path

__all__ = ["TextSimilarity", "clip_score"]

_WEIGHT = 2.5


def clip_score(cosine: Float[Tensor, " batch"]) -> Float[Tensor, " batch"]:
    """CLIPScore of cosines: 0..2.5."""
    return _WEIGHT * cosine.clamp_min(0)


class TextSimilarity:
    """A trained pair of encoders.

    Args:
        model: a `CLIPModel`.
        tokenizer: of its text encoder.
    """

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model, self.tokenizer = model.eval(), tokenizer

    @staticmethod
    def load(folder: str | Path | None = None, *, device: str | torch.device = "cpu") -> TextSimilarity:
        """Load encoders from a folder in transformers' layout, by default the embedded ones."""
        from transformers import CLIPModel, CLIPTokenizer

        place = Path(folder) if folder is not None else zoo_path("epvit") / "similarity"
        model = CLIPModel.from_pretrained(place, use_safetensors=True, local_files_only=True, dtype=torch.float32)
        return TextSimilarity(model.to(device), CLIPTokenizer.from_pretrained(place, local_files_only=True))

    def tokens(self, texts: Sequence[str]) -> Int[Tensor, "batch tokens"]:
        """Token numbers of texts, padded and cut to the encoder's length."""
        length = self.model.config.text_config.max_position_embeddings
        settings = {"padding": "max_length", "max_length": length, "truncation": True, "return_tensors": "pt"}
        return self.tokenizer(list(texts), **settings).input_ids

    @torch.no_grad()
    def cosine(
        self, pictures: Float[Tensor, "batch 3 height width"], texts: Sequence[str], *, batch_size: int = 128
    ) -> Float[Tensor, " batch"]:
        """Cosine of each picture and its text, -1..1.

        Args:
            pictures: sRGB in 0..1, of the side the encoder was made for.
            texts: one a picture.
            batch_size: pictures at a time.

        Raises:
            ValueError: the numbers of pictures and texts differ.
        """
        if len(pictures) != len(texts):
            raise ValueError(f"one text a picture, got {len(pictures)} pictures and {len(texts)} texts")
        ids = self.tokens(texts).to(pictures.device)
        parts = zip(pictures.split(batch_size), ids.split(batch_size), strict=True)
        found = [self.model(input_ids=words, pixel_values=part * 2 - 1) for part, words in parts]
        return torch.cat([(one.image_embeds * one.text_embeds).sum(-1) for one in found])

    def score(self, pictures: Float[Tensor, "batch 3 height width"], texts: Sequence[str]) -> Float[Tensor, " batch"]:
        """CLIPScore of each picture and its text; raises as `cosine`."""
        return clip_score(self.cosine(pictures, texts))
