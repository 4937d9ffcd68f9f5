"""Nearest hits of rays with the objects and the floor of a batch of scenes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mezzotint.worlds.scenes.geometry import ENTRY, NORMAL
from mezzotint.worlds.scenes.packing import Packed
from mezzotint.worlds.scenes.vocabulary import SHAPES

_INF = float("inf")
_FARTHEST = 60.0


@dataclass(frozen=True)
class Hits:
    """What each ray meets first. instance: -1 where no object is hit; distance: inf where nothing is."""

    distance: Float[Tensor, "batch rays"]
    instance: Int[Tensor, "batch rays"]
    normal: Float[Tensor, "batch rays 3"]
    local: Float[Tensor, "batch rays 3"]


def trace(packed: Packed, origin: Float[Tensor, "batch one 3"], direction: Float[Tensor, "batch rays 3"]) -> Hits:
    """Nearest hit of every ray with the objects or the floor."""
    distances = object_distances(packed, origin.expand_as(direction), direction)
    nearest, instance = distances.min(1)
    drop = direction[..., 1].clamp_max(-1e-6)
    floor = torch.where(direction[..., 1] < -1e-6, -origin[..., 1] / drop, _INF)
    floor = torch.where(floor < _FARTHEST, floor, _INF)
    on_object = nearest < floor
    distance = torch.where(on_object, nearest, floor)
    normal = torch.zeros_like(direction)
    normal[..., 1] = torch.isfinite(distance).to(normal.dtype)
    hits = Hits(distance, torch.where(on_object, instance, -1), normal, torch.zeros_like(direction))
    _fill_objects(packed, hits, origin.expand_as(direction), direction)
    return hits


def object_distances(
    packed: Packed,
    origin: Float[Tensor, "batch rays 3"],
    direction: Float[Tensor, "batch rays 3"],
    wanted: Bool[Tensor, "batch rays"] | None = None,
) -> Float[Tensor, "batch objects rays"]:
    """Distance of every ray to every object (inf = miss); rays that are not `wanted` are left at inf."""
    candidates = _near_bound(packed, origin, direction)
    if wanted is not None:
        candidates &= wanted[:, None]
    distances = torch.full(candidates.shape, _INF, dtype=direction.dtype, device=direction.device)
    for code, name in enumerate(SHAPES):
        of_shape = packed.present & (packed.shape == code)
        if not bool(of_shape.any()):
            continue
        b, k, r = torch.nonzero(candidates & of_shape[..., None], as_tuple=True)
        local_origin, local_direction = _to_local(packed, b, k, origin[b, r]), _turn(packed, b, k, direction[b, r])
        distances[b, k, r] = ENTRY[name](local_origin, local_direction) * packed.radius[b, k]
    return distances


def _near_bound(packed: Packed, origin: Tensor, direction: Tensor) -> Bool[Tensor, "batch objects rays"]:
    """Whether the ray passes through the bounding sphere of each object, in front of its origin."""
    dx, dy, dz = (direction[:, None, :, axis] for axis in range(3))
    ox, oy, oz = (packed.centre[:, :, None, axis] - origin[:, None, :, axis] for axis in range(3))
    along = ox * dx + oy * dy + oz * dz
    square = ox * ox + oy * oy + oz * oz
    bound = (packed.bound * packed.bound)[..., None]
    return (square - along * along <= bound) & ((along > 0) | (square <= bound))


def _fill_objects(packed: Packed, hits: Hits, origin: Tensor, direction: Tensor) -> None:
    """Write normals and local coordinates of the rays that hit an object."""
    for code, name in enumerate(SHAPES):
        b, r = torch.nonzero(_shape_of(packed, hits.instance) == code, as_tuple=True)
        if len(b) == 0:
            continue
        k = hits.instance[b, r]
        point = _to_local(packed, b, k, origin[b, r] + hits.distance[b, r, None] * direction[b, r])
        normal = torch.nn.functional.normalize(NORMAL[name](point), dim=-1)
        hits.local[b, r] = point
        hits.normal[b, r] = _turn_back(packed, b, k, normal)


def _shape_of(packed: Packed, instance: Int[Tensor, "batch rays"]) -> Int[Tensor, "batch rays"]:
    return torch.where(instance >= 0, torch.gather(packed.shape, 1, instance.clamp_min(0)), -1)


def _to_local(packed: Packed, b: Tensor, k: Tensor, point: Tensor) -> Tensor:
    return _turn(packed, b, k, point - packed.centre[b, k]) / packed.radius[b, k, None]


def _turn(packed: Packed, b: Tensor, k: Tensor, vector: Tensor) -> Tensor:
    cosine, sine = packed.cosine[b, k], packed.sine[b, k]
    x, y, z = vector.unbind(-1)
    return torch.stack([cosine * x - sine * z, y, sine * x + cosine * z], -1)


def _turn_back(packed: Packed, b: Tensor, k: Tensor, vector: Tensor) -> Tensor:
    cosine, sine = packed.cosine[b, k], packed.sine[b, k]
    x, y, z = vector.unbind(-1)
    return torch.stack([cosine * x + sine * z, y, cosine * z - sine * x], -1)
