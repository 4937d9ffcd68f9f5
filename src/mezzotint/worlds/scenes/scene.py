"""What a scene is: frozen dataclasses with an exact JSON round trip.

World axes: x to the right, y up, z towards the camera's side; the floor is y = 0. Lengths are world units,
angles are degrees.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any, get_args

from mezzotint.worlds.scenes.vocabulary import SIZES, Colour, Floor, Material, Pattern, Shape, Size, Sky


@dataclass(frozen=True)
class Object:
    """One object standing on the floor at (x, z), turned by `rotation` degrees about the vertical."""

    shape: Shape
    colour: Colour
    size: Size = "large"
    material: Material = "matte"
    pattern: Pattern = "plain"
    x: float = 0.0
    z: float = 0.0
    rotation: float = 0.0

    def __post_init__(self) -> None:
        for name, kind in _OBJECT_WORDS.items():
            _check_word(name, getattr(self, name), get_args(kind))
        _check_numbers(self, "x", "z", "rotation")

    @property
    def radius(self) -> float:
        """Scale of the object in world units."""
        return SIZES[self.size]


@dataclass(frozen=True)
class Light:
    """A distant light.

    Attributes:
        azimuth: where it stands, degrees about the vertical; 0 is over the +z side, 90 over +x.
        elevation: degrees above the horizon.
        softness: how wide it is, degrees; 0 gives hard shadows.
        ambient: share of the light that comes from the sky, 0..1.
    """

    azimuth: float = -40.0
    elevation: float = 52.0
    softness: float = 5.0
    ambient: float = 0.38

    def __post_init__(self) -> None:
        _check_numbers(self, "azimuth", "elevation")
        _check_numbers(self, "softness", low=0.0, high=90.0)
        _check_numbers(self, "ambient", low=0.0, high=1.0)


@dataclass(frozen=True)
class Camera:
    """A pinhole camera that looks at the point `target_height` above the origin.

    Attributes:
        azimuth: where it stands, degrees about the vertical; 0 is on the +z side, 90 on the +x side.
        elevation: degrees above the horizon, within -90..90.
        distance: from the point it looks at, world units.
        fov: full vertical (and horizontal) angle, degrees, within 1..170.
        target_height: height of the point it looks at, world units.
    """

    azimuth: float = 0.0
    elevation: float = 30.0
    distance: float = 7.8
    fov: float = 36.0
    target_height: float = 0.4

    def __post_init__(self) -> None:
        _check_numbers(self, "azimuth", "target_height")
        _check_numbers(self, "elevation", low=-90.0, high=90.0)
        _check_numbers(self, "distance", low=1e-3)
        _check_numbers(self, "fov", low=1.0, high=170.0)


@dataclass(frozen=True)
class Scene:
    """Objects on a floor under a sky, a light and a camera."""

    objects: tuple[Object, ...] = ()
    floor: Floor = "gray"
    sky: Sky = "day"
    light: Light = field(default_factory=Light)
    camera: Camera = field(default_factory=Camera)

    def __post_init__(self) -> None:
        _check_word("floor", self.floor, get_args(Floor))
        _check_word("sky", self.sky, get_args(Sky))

    def to_json(self) -> str:
        """The scene as one line of JSON; `from_json` gives back an equal scene."""
        return json.dumps(dataclasses.asdict(self))

    @staticmethod
    def from_json(text: str) -> Scene:
        """Read a scene written by `to_json`.

        Raises:
            ValueError: when the text is no JSON, or a field or a word is not one of the world's.
        """
        try:
            data = json.loads(text, parse_int=float)
        except json.JSONDecodeError as error:
            raise ValueError(f"not a scene: invalid JSON at character {error.pos}") from error
        except RecursionError as error:
            raise ValueError("not a scene: nested too deeply") from error
        return _scene_from_dict(data)


_OBJECT_WORDS: dict[str, Any] = {
    "shape": Shape,
    "colour": Colour,
    "size": Size,
    "material": Material,
    "pattern": Pattern,
}


def _check_word(name: str, word: Any, allowed: tuple[str, ...]) -> None:
    if not isinstance(word, str) or word not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}; got {word!r}")


def _check_numbers(owner: Any, *names: str, low: float = -1e6, high: float = 1e6) -> None:
    for name in names:
        value = getattr(owner, name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"{name} must be a number, got {value!r}")
        if not low <= value <= high:
            raise ValueError(f"{name} must be within {low:g}..{high:g}, got {value}")


def _scene_from_dict(data: Any) -> Scene:
    if not isinstance(data, dict):
        raise ValueError(f"not a scene: expected a JSON object, got {type(data).__name__}")
    try:
        objects = tuple(Object(**item) for item in data.get("objects", ()))
        light, camera = Light(**data.get("light", {})), Camera(**data.get("camera", {}))
        rest = {key: value for key, value in data.items() if key not in ("objects", "light", "camera")}
        return Scene(objects=objects, light=light, camera=camera, **rest)
    except TypeError as error:
        raise ValueError(f"not a scene: {error}") from error
