"""Who is it? A small network that tells the appearances of `world` apart, trained on exact renders of them.

It looks at a window of half the picture's side around an object. It is trained for the experiment that uses it, on
training scenery, and refuses to work unless it names more than 97 % of held-out views. Where objects are in a made
picture is found by the scene parser, whose own words for them are not used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from mezzotint.metrics.parser import SceneParser
from mezzotint.training import Config, Step, fit
from mezzotint.worlds.scenes import render
from mezzotint.worlds.scenes.sampling import Split
from mezzotint.zoo.saving import seeded

from .world import Thing, scenes_of

__all__ = ["ENOUGH", "Judge", "windows"]

ENOUGH = 0.97
_SIDE, _JITTER = 32, 4
_WIDTHS = (32, 64, 96)

Box = tuple[float, float, float, float]


@dataclass(frozen=True, eq=False)
class Judge:
    """A trained judge.

    Attributes:
        things: what it tells apart.
        network: windows to one score for each of them.
        accuracy: share of held-out views that it names rightly.
        parser: finds the objects of a picture.
    """

    things: tuple[Thing, ...]
    network: nn.Module
    accuracy: float
    parser: SceneParser

    @classmethod
    def train(
        cls, things: Sequence[Thing], *, views: int = 40, steps: int = 700, seed: int = 0, progress: bool = True
    ) -> Judge:
        """Train a judge and examine it.

        Args:
            things: at least two.
            views: renders of each of them to train on; half as many more for the examination.
            steps: optimiser steps of 64 windows.
            seed: of scenes, weights and draws.
            progress: show a bar.

        Raises:
            ValueError: it names 97 % of the held-out views or fewer, so nothing may be measured with it.
        """
        things = tuple(things)
        network = seeded(lambda: _network(len(things)), seed)
        shown, held = _labelled(things, views, seed, "train"), _labelled(things, views // 2, seed, "validation")
        config = Config(
            steps=steps, batch_size=64, learning_rate=2e-3, schedule="cosine", warmup=min(50, steps), seed=seed
        )
        fit(_loss(network), network, shown, config, progress=progress)
        network.eval().requires_grad_(False)
        accuracy = float((network(_middle(held["window"])).argmax(1) == held["label"]).float().mean())
        if accuracy <= ENOUGH:
            raise ValueError(
                f"the judge names {accuracy:.1%} of the held-out views, more than {ENOUGH:.0%} are needed: "
                "give it more views or steps"
            )
        return cls(things, network, accuracy, SceneParser.load())

    @torch.inference_mode()
    def name(self, pictures: Float[Tensor, "batch 3 height width"], centres: Float[Tensor, "batch 2"]) -> list[Thing]:
        """What stands at a place of each picture.

        Args:
            pictures: in 0..1.
            centres: x and y as shares of the sides.
        """
        scores = self.network(windows(pictures, centres, _SIDE) * 2 - 1)
        return [self.things[index] for index in scores.argmax(1).tolist()]

    def seen(
        self, pictures: Float[Tensor, "batch 3 height width"], boxes: Box | Sequence[Box] = (0.0, 0.0, 1.0, 1.0)
    ) -> list[Thing | None]:
        """What the surest object in a box is; None where there is no object in it.

        Args:
            pictures: in 0..1.
            boxes: (x0, y0, x1, y1) as shares of the sides, for all pictures or one each.
        """
        each: list[Any] = [boxes] * len(pictures) if isinstance(boxes[0], (int, float)) else list(boxes)
        found = [
            next(((o.x, o.y) for o in objects if _within(o, box)), None)
            for objects, box in zip(self.parser.parse(pictures), each, strict=True)
        ]
        places = torch.tensor([place or (0.5, 0.5) for place in found])
        names = self.name(pictures, places) if len(pictures) else []
        return [name if place is not None else None for name, place in zip(names, found, strict=True)]


def windows(
    pictures: Float[Tensor, "batch 3 height width"], centres: Float[Tensor, "batch 2"], side: int, *, share: float = 0.5
) -> Float[Tensor, "batch 3 side side"]:
    """Square windows around places, border pixels repeated outside.

    Args:
        pictures: in 0..1.
        centres: x and y as shares of the sides.
        side: of the result, pixels.
        share: side of the window as a share of the picture's.
    """
    theta = torch.zeros(len(pictures), 2, 3, device=pictures.device)
    theta[:, 0, 0] = theta[:, 1, 1] = share
    theta[:, :, 2] = centres.to(theta) * 2 - 1
    grid = F.affine_grid(theta, [len(pictures), 3, side, side], align_corners=False)
    return F.grid_sample(pictures, grid, padding_mode="border", align_corners=False)


def _within(item: Any, box: Box) -> bool:
    return box[0] <= item.x <= box[2] and box[1] <= item.y <= box[3]


def _network(count: int) -> nn.Module:
    layers: list[nn.Module] = []
    for before, width in zip((3, *_WIDTHS[:-1]), _WIDTHS, strict=True):
        layers += [nn.Conv2d(before, width, 3, stride=2, padding=1), nn.GroupNorm(8, width), nn.GELU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(_WIDTHS[-1] * (_SIDE // 8) ** 2, count))


def _labelled(things: Sequence[Thing], views: int, seed: int, split: Split) -> dict[str, Tensor]:
    """Windows of renders, a little larger than the network's, with the number of what stands in their middle."""
    larger, parts = _SIDE + 2 * _JITTER, []
    for kind in things:
        frame = render(scenes_of(kind, views, seed=seed, split=split), 64)
        parts.append(windows(frame.rgb.clone(), _middles(frame.instance == 1), larger, share=larger / 64))
    labels = torch.arange(len(things)).repeat_interleave(views)
    return {"window": (torch.cat(parts) * 255).round().to(torch.uint8), "label": labels}


def _middles(masks: Tensor) -> Float[Tensor, "batch 2"]:
    """Centre of each mask [batch, 1, height, width] as shares of the sides."""
    weight = masks.float().clone()
    height, width = weight.shape[-2:]
    total = weight.sum((1, 2, 3)).clamp_min(1)
    x = (weight.sum((1, 2)) * (torch.arange(width) + 0.5)).sum(1) / total / width
    y = (weight.sum((1, 3)) * (torch.arange(height) + 0.5)).sum(1) / total / height
    return torch.stack([x, y], dim=1)


def _loss(network: nn.Module) -> Any:
    def of_batch(batch: dict[str, Tensor], step: Step) -> Tensor:
        place = step.integers("jitter", 0, (2 * _JITTER + 1) ** 2)
        rows, columns = place // (2 * _JITTER + 1), place % (2 * _JITTER + 1)
        span = torch.arange(_SIDE, device=place.device)
        items = torch.arange(len(place), device=place.device)[:, None, None]
        cut = batch["window"].movedim(1, -1)[
            items, (rows[:, None] + span)[:, :, None], (columns[:, None] + span)[:, None]
        ]
        # The soft pictures of a decoder are not renders: a little noise keeps the judge from counting pixels.
        noisy = cut.movedim(-1, 1).float() / 127.5 - 1 + 0.06 * step.normal("noise", 3, _SIDE, _SIDE)
        return F.cross_entropy(network(noisy), batch["label"])

    return of_batch


def _middle(larger: Tensor) -> Tensor:
    return larger[..., _JITTER:-_JITTER, _JITTER:-_JITTER].float() / 127.5 - 1
