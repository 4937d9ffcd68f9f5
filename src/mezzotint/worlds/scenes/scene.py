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
        _check_fields(vars(self))

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
        _check_fields(vars(self))


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
        _check_fields(vars(self))


@dataclass(frozen=True)
class Scene:
    """Objects on a floor under a sky, a light and a camera."""

    objects: tuple[Object, ...] = ()
    floor: Floor = "gray"
    sky: Sky = "day"
    light: Light = field(default_factory=Light)
    camera: Camera = field(default_factory=Camera)

    def __post_init__(self) -> None:
        _check_fields(vars(self))

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


_WORDS: dict[str, Any] = {
    "shape": Shape,
    "colour": Colour,
    "size": Size,
    "material": Material,
    "pattern": Pattern,
    "floor": Floor,
    "sky": Sky,
}
_FAR = 1e6
_RANGES = {
    "x": (-_FAR, _FAR),
    "z": (-_FAR, _FAR),
    "rotation": (-_FAR, _FAR),
    "azimuth": (-_FAR, _FAR),
    "target_height": (-_FAR, _FAR),
    "elevation": (-90.0, 90.0),
    "softness": (0.0, 90.0),
    "ambient": (0.0, 1.0),
    "distance": (1e-3, _FAR),
    "fov": (1.0, 170.0),
}


def _check_fields(values: dict[str, Any]) -> None:
    for name in values.keys() & _WORDS.keys():
        value, allowed = values[name], get_args(_WORDS[name])
        if not isinstance(value, str) or value not in allowed:
            raise ValueError(f"{name} must be one of {', '.join(allowed)}; got {value!r}")
    for name in values.keys() & _RANGES.keys():
        value, (low, high) = values[name], _RANGES[name]
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"{name} must be a number, got {value!r}")
        if not low <= value <= high:
            raise ValueError(f"{name} must be within {low:g}..{high:g}, got {value}")


def _read(kind: type[Any], values: Any) -> Any:
    """One of the dataclasses, from a decoded JSON object."""
    if not isinstance(values, dict):
        raise ValueError(f"not a scene: expected a JSON object, got {type(values).__name__}")
    if unknown := sorted(values.keys() - {field.name for field in dataclasses.fields(kind)}):
        raise ValueError(f"not a scene: {kind.__name__} has no {unknown[0]!r}")
    # Checked before the dataclass is made, so that what is wrong is named in the same words with type checks on.
    _check_fields(values)
    try:
        return kind(**values)
    except TypeError as error:
        raise ValueError(f"not a scene: {error}") from error


def _scene_from_dict(data: Any) -> Scene:
    if not isinstance(data, dict):
        raise ValueError(f"not a scene: expected a JSON object, got {type(data).__name__}")
    items = data.get("objects", [])
    if not isinstance(items, list):
        raise ValueError(f"not a scene: objects must be a list, got {type(items).__name__}")
    parts = {"light": _read(Light, data.get("light", {})), "camera": _read(Camera, data.get("camera", {}))}
    return _read(Scene, data | parts | {"objects": tuple(_read(Object, item) for item in items)})
