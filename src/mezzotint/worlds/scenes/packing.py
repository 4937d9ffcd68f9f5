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
    """Objects of a batch of scenes, padded to the largest number; colours are linear RGB."""

    centre: Float[Tensor, "batch objects 3"]
    radius: Float[Tensor, "batch objects"]
    bound: Float[Tensor, "batch objects"]
    cosine: Float[Tensor, "batch objects"]
    sine: Float[Tensor, "batch objects"]
    shape: Int[Tensor, "batch objects"]
    present: Bool[Tensor, "batch objects"]
    colour: Float[Tensor, "batch objects 3"]
    pattern: Int[Tensor, "batch objects"]
    shiny: Bool[Tensor, "batch objects"]
    floor: Float[Tensor, "batch 3"]
    sky: Float[Tensor, "batch 3"]
    ambient: Float[Tensor, " batch"]


def linear(colour: tuple[float, float, float]) -> list[float]:
    """sRGB in 0..1 to linear light (power 2.2)."""
    return [channel**2.2 for channel in colour]


def pack(scenes: list[Scene], device: str | torch.device = "cpu") -> Packed:
    """Collect the objects of a batch of scenes into padded tensors on a device."""
    width = max([1, *(len(scene.objects) for scene in scenes)])
    blank = Object("sphere", "red")
    rows = [list(scene.objects) + [blank] * (width - len(scene.objects)) for scene in scenes]

    def table(value: object, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.tensor(value, dtype=dtype, device=device)

    turns = [[math.radians(item.rotation) for item in row] for row in rows]
    return Packed(
        centre=table([[(item.x, item.radius * HALF_HEIGHT[item.shape], item.z) for item in row] for row in rows]),
        radius=table([[item.radius for item in row] for row in rows]),
        bound=table([[item.radius * BOUND[item.shape] for item in row] for row in rows]),
        cosine=table([[math.cos(turn) for turn in row] for row in turns]),
        sine=table([[math.sin(turn) for turn in row] for row in turns]),
        shape=table([[SHAPES.index(item.shape) for item in row] for row in rows], torch.long),
        present=table([[k < len(scene.objects) for k in range(width)] for scene in scenes], torch.bool),
        colour=table([[linear(COLOURS[item.colour]) for item in row] for row in rows]),
        pattern=table([[PATTERNS.index(item.pattern) for item in row] for row in rows], torch.long),
        shiny=table([[item.material == "shiny" for item in row] for row in rows], torch.bool),
        floor=table([linear(FLOORS[scene.floor]) for scene in scenes]),
        sky=table([linear(SKIES[scene.sky]) for scene in scenes]),
        ambient=table([scene.light.ambient for scene in scenes]),
    )
