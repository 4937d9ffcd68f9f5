"""Edits of scenes: each returns a new scene that differs in exactly what was asked for, ready to be rendered again.

Objects are addressed by their place in `scene.objects`, from 0 (in `Frame.instance` the same object has the number
`place + 1`). Nothing checks that objects do not overlap: an edit does what it says.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal, get_args

from mezzotint.worlds.scenes.scene import Camera, Object, Scene
from mezzotint.worlds.scenes.vocabulary import Colour

Swappable = Literal["shape", "colour", "size", "material", "pattern", "place"]


def edit(scene: Scene, index: int, **changes: Any) -> Scene:
    """Change fields of one object.

    Args:
        scene: the scene.
        index: place of the object, from 0.
        changes: fields of `Object` and their new values, such as `colour="red"` or `x=1.0`.

    Raises:
        ValueError: there is no such object or field, or the value is not allowed.
    """
    items, place = list(scene.objects), _place(scene, index)
    items[place] = _replaced(items[place], changes)
    return dataclasses.replace(scene, objects=tuple(items))


def recolour(scene: Scene, index: int, colour: Colour) -> Scene:
    """Give one object another colour; raises as `edit`."""
    return edit(scene, index, colour=colour)


def move(scene: Scene, index: int, *, x: float = 0.0, z: float = 0.0, rotation: float = 0.0) -> Scene:
    """Shift and turn one object by the given amounts.

    Args:
        scene: the scene.
        index: place of the object, from 0.
        x: shift to the right, world units.
        z: shift to the side of the camera at azimuth 0, world units.
        rotation: turn about the vertical, degrees.

    Raises:
        ValueError: there is no such object.
    """
    item = scene.objects[_place(scene, index)]
    return edit(scene, index, x=item.x + x, z=item.z + z, rotation=item.rotation + rotation)


def add(scene: Scene, item: Object) -> Scene:
    """Put one more object into the scene; it gets the last place."""
    return dataclasses.replace(scene, objects=(*scene.objects, item))


def remove(scene: Scene, index: int) -> Scene:
    """Take one object out; those behind it move up by one place.

    Raises:
        ValueError: there is no such object.
    """
    place = _place(scene, index)
    return dataclasses.replace(scene, objects=scene.objects[:place] + scene.objects[place + 1 :])


def swap(scene: Scene, one: int, other: int, attribute: Swappable = "colour") -> Scene:
    """Exchange an attribute of two objects, such as the colours of the cube and the sphere.

    Args:
        scene: the scene.
        one: place of an object, from 0.
        other: place of another.
        attribute: shape, colour, size, material, pattern, or place (where they stand).

    Raises:
        ValueError: there is no such object or attribute.
    """
    if attribute not in get_args(Swappable):
        raise ValueError(f"attribute must be one of {', '.join(get_args(Swappable))}; got {attribute!r}")
    names = ("x", "z") if attribute == "place" else (attribute,)
    first, second = scene.objects[_place(scene, one)], scene.objects[_place(scene, other)]
    scene = edit(scene, one, **{name: getattr(second, name) for name in names})
    return edit(scene, other, **{name: getattr(first, name) for name in names})


def relight(scene: Scene, **changes: float) -> Scene:
    """Change fields of the light.

    Args:
        scene: the scene.
        changes: fields of `Light` and their new values, such as `azimuth=60.0`.

    Raises:
        ValueError: there is no such field, or the value is not allowed.
    """
    return dataclasses.replace(scene, light=_replaced(scene.light, changes))


def orbit(scene: Scene, views: int | Sequence[float] | Sequence[Camera] = 8) -> list[Scene]:
    """The same scene from other cameras.

    Args:
        scene: the scene; its light stays where it is.
        views: how many views, evenly spaced over a full turn that begins at the scene's own camera; or by how many
            degrees to turn that camera about the vertical, one number a view; or the cameras themselves.

    Raises:
        ValueError: for fewer than one view.
    """
    if isinstance(views, int):
        if views < 1:
            raise ValueError(f"views must be at least 1, got {views}")
        return orbit(scene, [360.0 * k / views for k in range(views)])
    cameras = [view if isinstance(view, Camera) else _turned(scene.camera, view) for view in views]
    return [dataclasses.replace(scene, camera=camera) for camera in cameras]


def _turned(camera: Camera, degrees: float) -> Camera:
    # A full turn must give the same bits, hence the remainder before the sum.
    return dataclasses.replace(camera, azimuth=camera.azimuth + degrees % 360.0)


def _place(scene: Scene, index: int) -> int:
    if not 0 <= index < len(scene.objects):
        allowed = f"0..{len(scene.objects) - 1}" if scene.objects else "nothing, for the scene is empty"
        raise ValueError(f"index must be the place of an object, {allowed}; got {index}")
    return index


def _replaced(item: Any, changes: dict[str, Any]) -> Any:
    allowed = [field.name for field in dataclasses.fields(item)]
    if unknown := sorted(changes.keys() - set(allowed)):
        raise ValueError(f"{type(item).__name__} has no {unknown[0]!r}; its fields are {', '.join(allowed)}")
    return dataclasses.replace(item, **changes)
