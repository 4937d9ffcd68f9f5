"""Random scenes from an integer seed: disjoint splits, and pairs of shape and colour that training never shows.

Scene k of a split is a function of (seed, split, k) alone, so any part of a data set can be made again by itself.
"""

from __future__ import annotations

import math
from typing import Literal, TypeVar

import torch

from mezzotint.diffusion.rng import stream
from mezzotint.worlds.scenes.scene import Camera, Light, Object, Scene
from mezzotint.worlds.scenes.vocabulary import COLOURS, FLOORS, HELD_OUT, MATERIALS, PATTERNS, SHAPES, SIZES, SKIES

Split = Literal["train", "validation", "test", "held_out"]
Combinations = Literal["seen", "held_out", "all"]
T = TypeVar("T")

_DRAWS = 512
_COUNT_WEIGHTS = {1: 0.35, 2: 0.45, 3: 0.20}
_X_REACH, _Z_RANGE = 2.15, (-2.3, 1.3)
_GAP = 0.1
_TRIES = 60


class _Uniforms:
    """Uniform numbers of one scene, handed out in order."""

    def __init__(self, generator: torch.Generator) -> None:
        self._values = iter(torch.rand(_DRAWS, generator=generator).tolist())

    def between(self, low: float, high: float) -> float:
        return low + (high - low) * next(self._values)

    def choice(self, items: tuple[T, ...], weights: tuple[float, ...] | None = None) -> T:
        total = sum(weights) if weights else float(len(items))
        target = self.between(0.0, total)
        for item, weight in zip(items, weights or (1.0,) * len(items), strict=True):
            target -= weight
            if target < 0:
                return item
        return items[-1]


def sample(
    count: int,
    *,
    seed: int = 0,
    split: Split = "train",
    first: int = 0,
    objects: tuple[int, int] = (1, 3),
    combinations: Combinations | None = None,
) -> list[Scene]:
    """Draw `count` scenes, the scenes `first .. first + count - 1` of a split.

    Args:
        count: how many scenes, at least 0.
        seed: integer seed of the data set.
        split: train, validation, test, or held_out (its own scenes, in which every object is a held-out combination).
        first: index of the first scene.
        objects: smallest and largest number of objects, within 1..3.
        combinations: which (shape, colour) pairs may occur; by default `held_out` for the split of that name, else
        `seen`.

    Raises:
        ValueError: for a negative count, an unknown split, or a range of objects outside 1..3.
    """
    if count < 0 or first < 0:
        raise ValueError(f"count and first must not be negative, got {count} and {first}")
    if split not in ("train", "validation", "test", "held_out"):
        raise ValueError(f"split must be train, validation, test or held_out; got {split!r}")
    if not 1 <= objects[0] <= objects[1] <= 3:
        raise ValueError(f"objects must be a range within 1..3, got {objects}")
    pairs = allowed_pairs(combinations or ("held_out" if split == "held_out" else "seen"))
    return [
        _draw(_Uniforms(stream(seed, f"scenes/{split}", 0, index)), objects, pairs)
        for index in range(first, first + count)
    ]


def allowed_pairs(combinations: Combinations) -> tuple[tuple[str, str], ...]:
    """The (shape, colour) pairs of a combination set, in a fixed order."""
    pairs = ((shape, colour) for shape in SHAPES for colour in COLOURS)
    if combinations == "all":
        return tuple(pairs)
    return tuple(pair for pair in pairs if (pair in HELD_OUT) == (combinations == "held_out"))


def _draw(uniforms: _Uniforms, counts: tuple[int, int], pairs: tuple[tuple[str, str], ...]) -> Scene:
    numbers = tuple(range(counts[0], counts[1] + 1))
    wanted = uniforms.choice(numbers, tuple(_COUNT_WEIGHTS[number] for number in numbers))
    camera = Camera(elevation=uniforms.between(28.0, 33.0), distance=uniforms.between(7.6, 8.0))
    light = Light(azimuth=uniforms.between(-55.0, -25.0), elevation=uniforms.between(48.0, 58.0))
    floor, sky = uniforms.choice(tuple(FLOORS)), uniforms.choice(tuple(SKIES))
    items: list[Object] = []
    for _ in range(wanted):
        items.append(_draw_object(uniforms, items, pairs))
    return Scene(objects=tuple(items), floor=floor, sky=sky, light=light, camera=camera)


def _draw_object(uniforms: _Uniforms, others: list[Object], pairs: tuple[tuple[str, str], ...]) -> Object:
    shape, colour = uniforms.choice(pairs)
    size = uniforms.choice(tuple(SIZES))
    material = uniforms.choice(MATERIALS)
    pattern = uniforms.choice(PATTERNS, (0.7, 0.1, 0.1, 0.1))
    rotation = uniforms.between(0.0, 360.0)
    x, z = _draw_place(uniforms, others, SIZES[size])
    return Object(shape, colour, size, material, pattern, x, z, rotation)  # type: ignore[arg-type]


def _draw_place(uniforms: _Uniforms, others: list[Object], radius: float) -> tuple[float, float]:
    """The first of some random places that overlaps no other object on the screen, else the one with the widest gap."""
    reach = _X_REACH - radius
    places = []
    for _ in range(_TRIES):
        place = uniforms.between(-reach, reach), uniforms.between(*_Z_RANGE)
        gap = min((_screen_gap(place, radius, other) for other in others), default=math.inf)
        if gap >= _GAP:
            return place
        places.append((gap, place))
    return max(places)[1]


def _screen_gap(place: tuple[float, float], radius: float, other: Object) -> float:
    """Free distance between two objects as the camera sees them: depth is foreshortened by the camera's elevation."""
    foreshortening = 0.5
    dx, dz = place[0] - other.x, (place[1] - other.z) * foreshortening
    return math.hypot(dx, dz) - 0.95 * (radius + other.radius)
