"""What a scene is: frozen dataclasses with an exact JSON round trip.

World axes: x to the right, y up, z towards the camera's side; the floor is y = 0. Lengths are world units, angles are degrees.
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

    @property
    def radius(self) -> float:
        """Scale of the object in world units."""
        return SIZES[self.size]


@dataclass(frozen=True)
class Light:
    """A distant light: where it stands, how wide it is (`softness`, degrees; 0 gives hard shadows) and the share of sky light."""

    azimuth: float = -40.0
    elevation: float = 52.0
    softness: float = 5.0
    ambient: float = 0.38


@dataclass(frozen=True)
class Camera:
    """A pinhole camera on a sphere around `target_height` above the origin, looking at it; `fov` is the full vertical angle."""

    azimuth: float = 0.0
    elevation: float = 30.0
    distance: float = 7.8
    fov: float = 36.0
    target_height: float = 0.4


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
            data = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"not a scene: invalid JSON at character {error.pos}") from error
        return _scene_from_dict(data)


_OBJECT_WORDS: dict[str, Any] = {"shape": Shape, "colour": Colour, "size": Size, "material": Material, "pattern": Pattern}


def _check_word(name: str, word: str, allowed: tuple[str, ...]) -> None:
    if word not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}; got {word!r}")


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
