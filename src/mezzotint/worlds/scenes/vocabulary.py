"""The words of the scenes world and what each of them looks like.

Colours are sRGB in 0..1. Sizes are world units (the radius scale of an object). A held-out combination is a pair of
shape and colour that the `seen` combinations never contain, so that composition and binding can be tested on pairs a
model was never shown.
"""

from __future__ import annotations

from typing import Literal

Shape = Literal["sphere", "cube", "cylinder", "cone", "torus", "capsule"]
Colour = Literal["red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink"]
Material = Literal["matte", "shiny"]
Pattern = Literal["plain", "striped", "checkered", "dotted"]
Size = Literal["small", "large"]
Floor = Literal["gray", "white", "brown", "black"]
Sky = Literal["day", "dusk", "overcast"]

SHAPES: tuple[Shape, ...] = ("sphere", "cube", "cylinder", "cone", "torus", "capsule")
COLOURS: dict[Colour, tuple[float, float, float]] = {
    "red": (0.85, 0.10, 0.10),
    "orange": (0.99, 0.50, 0.05),
    "yellow": (0.99, 0.88, 0.10),
    "green": (0.12, 0.62, 0.18),
    "cyan": (0.12, 0.82, 0.85),
    "blue": (0.10, 0.25, 0.88),
    "purple": (0.50, 0.14, 0.72),
    "pink": (0.99, 0.52, 0.74),
}
MATERIALS: tuple[Material, ...] = ("matte", "shiny")
PATTERNS: tuple[Pattern, ...] = ("plain", "striped", "checkered", "dotted")
SIZES: dict[Size, float] = {"small": 0.54, "large": 0.86}
FLOORS: dict[Floor, tuple[float, float, float]] = {
    "gray": (0.58, 0.58, 0.60),
    "white": (0.90, 0.89, 0.87),
    "brown": (0.52, 0.36, 0.24),
    "black": (0.17, 0.17, 0.19),
}
SKIES: dict[Sky, tuple[float, float, float]] = {
    "day": (0.62, 0.80, 0.97),
    "dusk": (0.96, 0.73, 0.60),
    "overcast": (0.80, 0.83, 0.86),
}
PATTERN_COLOUR = (0.95, 0.94, 0.90)

HELD_OUT: frozenset[tuple[Shape, Colour]] = frozenset(
    (shape, tuple(COLOURS)[(3 * index + 1) % len(COLOURS)]) for index, shape in enumerate(SHAPES)
)
