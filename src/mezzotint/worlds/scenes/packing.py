"""Scenes as padded tensors: one row an object, ready for the ray tracer."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mezzotint.worlds.scenes.geometry import BOUND, HALF_HEIGHT
from mezzotint.worlds.scenes.scene import Object, Scene
from mezzotint.worlds.scenes.vocabulary import COLOURS, FLOORS, PATTERNS, SHAPES, SKIES


@dataclass(frozen=True)
class Packed:
    """Objects of a batch of scenes, padded to the largest number (`width`); colours are linear RGB.

    By place in the scene: centre, bound, present. By item, which is scene * width + place: frames (rows x, y, z of the
    centre, radius, cosine and sine of the rotation), shape, colour, pattern, shiny. By scene: floor, sky, ambient.
    `shapes` lists the codes that occur.
    """

    centre: Float[Tensor, "3 width batch"]
    bound: Float[Tensor, "width batch"]
    present: Bool[Tensor, "width batch"]
    frames: Float[Tensor, "6 items"]
    shape: Int[Tensor, " items"]
    colour: Float[Tensor, "3 items"]
    pattern: Int[Tensor, " items"]
    shiny: Bool[Tensor, " items"]
    floor: Float[Tensor, "3 batch"]
    sky: Float[Tensor, "3 batch"]
    ambient: Float[Tensor, " batch"]
    shapes: tuple[int, ...]

    @property
    def width(self) -> int:
        """Number of places for objects in each scene."""
        return self.present.shape[0]

    @property
    def batch(self) -> int:
        """Number of scenes."""
        return self.present.shape[1]


def linear(colour: tuple[float, float, float]) -> list[float]:
    """Turn sRGB in 0..1 into linear light (power 2.2)."""
    return [channel**2.2 for channel in colour]


def pack(scenes: list[Scene], device: str | torch.device = "cpu") -> Packed:
    """Collect the objects of a batch of scenes into padded tensors on a device."""
    width = max([1, *(len(scene.objects) for scene in scenes)])
    blank = Object("sphere", "red")
    rows = [list(scene.objects) + [blank] * (width - len(scene.objects)) for scene in scenes]
    items = [item for row in rows for item in row]

    def table(value: object, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.tensor(value, dtype=dtype, device=device)

    def by_place(values: Tensor) -> Tensor:
        return values.unflatten(-1, (len(scenes), width)).transpose(-1, -2).contiguous()

    frames = table([_frame(item) for item in items]).T.contiguous()
    return Packed(
        centre=by_place(frames[:3]),
        bound=by_place(table([item.radius * BOUND[item.shape] for item in items])),
        present=by_place(table([k < len(scene.objects) for scene in scenes for k in range(width)], torch.bool)),
        frames=frames,
        shape=table([SHAPES.index(item.shape) for item in items], torch.long),
        colour=table([linear(COLOURS[item.colour]) for item in items]).T.contiguous(),
        pattern=table([PATTERNS.index(item.pattern) for item in items], torch.long),
        shiny=table([item.material == "shiny" for item in items], torch.bool),
        floor=table([linear(FLOORS[scene.floor]) for scene in scenes]).T.contiguous(),
        sky=table([linear(SKIES[scene.sky]) for scene in scenes]).T.contiguous(),
        ambient=table([scene.light.ambient for scene in scenes]),
        shapes=tuple(sorted({SHAPES.index(item.shape) for scene in scenes for item in scene.objects})),
    )


def _frame(item: Object) -> tuple[float, ...]:
    turn = math.radians(item.rotation)
    return item.x, item.radius * HALF_HEIGHT[item.shape], item.z, item.radius, math.cos(turn), math.sin(turn)
