"""Reads a picture of the scenes world back into its objects: the measuring instrument of the evidence.

The network is a stock `SegformerForSemanticSegmentation` (arXiv 2105.15203) whose label maps, on a grid of half
the picture's side, are an objectness heat map with peaks at object centres (as CenterNet's, arXiv 1904.07850), the
words of each attribute, and the words of the floor and the sky. `SceneParser` turns the maps into `ParsedObject`s
and the encoder's last stage into features.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mezzotint.loading import zoo_path
from mezzotint.metrics.scene_accuracy import ParsedObject
from mezzotint.worlds.scenes.vocabulary import COLOURS, FLOORS, MATERIALS, PATTERNS, SHAPES, SIZES, SKIES

ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "shape": SHAPES,
    "colour": tuple(COLOURS),
    "size": tuple(SIZES),
    "material": MATERIALS,
    "pattern": PATTERNS,
}
BACKGROUND: dict[str, tuple[str, ...]] = {"floor": tuple(FLOORS), "sky": tuple(SKIES)}
LABELS: tuple[str, ...] = (
    "object",
    *(f"{name}:{word}" for name, words in {**ATTRIBUTES, **BACKGROUND}.items() for word in words),
)
_MOST_OBJECTS = 6
_PEAK_WINDOW = 5


def split_logits(logits: Float[Tensor, "batch labels ..."]) -> dict[str, Float[Tensor, "batch words ..."]]:
    """The label maps by name: `object`, then one block of words for each attribute and each part of the background."""
    sizes = {"object": 1, **{name: len(words) for name, words in {**ATTRIBUTES, **BACKGROUND}.items()}}
    return dict(zip(sizes, logits.split(list(sizes.values()), dim=1), strict=True))


class SceneParser(nn.Module):
    """A trained parser.

    Args:
        network: the segmentation network; its labels must be `LABELS`.
        threshold: objectness from which a peak counts as an object, in 0..1; chosen on validation renders.
    """

    def __init__(self, network: Any, *, threshold: float = 0.5) -> None:
        super().__init__()
        self.network = network.eval()
        self.threshold = threshold

    @staticmethod
    def load(folder: str | Path | None = None, *, device: str | torch.device = "cpu") -> SceneParser:
        """Load a parser from a folder in transformers' layout, by default the embedded one.

        Raises:
            ValueError: when the network's labels are not those of this world.
        """
        from transformers import SegformerForSemanticSegmentation

        network = SegformerForSemanticSegmentation.from_pretrained(
            folder or zoo_path("scene-parser"), use_safetensors=True, local_files_only=True, dtype=torch.float32
        )
        found = tuple(network.config.id2label[index] for index in range(network.config.num_labels))
        if found != LABELS:
            raise ValueError(
                f"{folder} is no parser of this world: its labels are {found[:3]}... and not {LABELS[:3]}..."
            )
        return SceneParser(network.to(device))

    @torch.inference_mode()
    def parse(
        self, pictures: Float[Tensor, "batch 3 height width"], *, batch_size: int = 64
    ) -> list[list[ParsedObject]]:
        """Objects of each picture, surest first; x and y are those of the centre, as shares of the picture.

        Args:
            pictures: sRGB in 0..1, 64 pixels a side for the embedded parser.
            batch_size: pictures at a time.
        """
        return [found for part in pictures.split(batch_size) for found in self._parse(self.logits(part))]

    @torch.inference_mode()
    def background(self, pictures: Float[Tensor, "batch 3 height width"]) -> list[dict[str, str]]:
        """Floor and sky of each picture."""
        maps = split_logits(self.logits(pictures))
        chosen = {name: maps[name].mean((-1, -2)).argmax(1).tolist() for name in BACKGROUND}
        return [{name: BACKGROUND[name][chosen[name][k]] for name in BACKGROUND} for k in range(len(pictures))]

    @torch.inference_mode()
    def features(
        self, pictures: Float[Tensor, "batch 3 height width"], *, batch_size: int = 64
    ) -> Float[Tensor, "batch features"]:
        """Mean over the picture of the encoder's last stage, for Frechet distances."""
        parts = [
            self.network.segformer(_centred(part)).last_hidden_state.mean((-1, -2))
            for part in pictures.split(batch_size)
        ]
        return torch.cat(parts)

    def logits(self, pictures: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch labels rows columns"]:
        """Raw label maps, differentiable in the pictures."""
        return self.network(_centred(pictures)).logits

    def _parse(self, logits: Float[Tensor, "batch labels rows columns"]) -> list[list[ParsedObject]]:
        maps = split_logits(logits)
        score, place = peaks(maps["object"].sigmoid()[:, 0])
        words = {
            name: torch.gather(maps[name].flatten(2), 2, place[:, None].expand(-1, len(ATTRIBUTES[name]), -1)).argmax(1)
            for name in ATTRIBUTES
        }
        rows, columns = logits.shape[-2:]
        x, y = ((place % columns) + 0.5) / columns, ((place // columns) + 0.5) / rows
        table = {name: value.tolist() for name, value in words.items()}
        scores, xs, ys = score.tolist(), x.tolist(), y.tolist()
        return [
            [
                ParsedObject(
                    **{name: ATTRIBUTES[name][table[name][b][k]] for name in ATTRIBUTES},
                    x=xs[b][k],
                    y=ys[b][k],
                    score=scores[b][k],
                )
                for k in range(_MOST_OBJECTS)
                if scores[b][k] >= self.threshold
            ]
            for b in range(len(logits))
        ]


def peaks(
    heat: Float[Tensor, "batch rows columns"],
) -> tuple[Float[Tensor, "batch peaks"], Int[Tensor, "batch peaks"]]:
    """Values and flat positions of the highest local maxima, best first."""
    highest = nn.functional.max_pool2d(heat[:, None], _PEAK_WINDOW, stride=1, padding=_PEAK_WINDOW // 2)[:, 0]
    alone = torch.where(heat == highest, heat, 0.0)
    best = alone.flatten(1).topk(_MOST_OBJECTS, dim=1)
    return best.values, best.indices


def _centred(pictures: Tensor) -> Tensor:
    return pictures * 2 - 1
