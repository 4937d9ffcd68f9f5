"""Nearest hits of rays with the objects and the floor of a batch of scenes.

Vectors are kept in planes: the first axis is x, y, z, the others say which ray. A ray is first tested against the
bounding sphere of each object; the few pairs that pass are gathered, and exact intersections are computed for them
alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mezzotint.worlds.scenes.geometry import ENTRY, NORMAL, Rays, dot, gather, unit
from mezzotint.worlds.scenes.packing import Packed
from mezzotint.worlds.scenes.vocabulary import SHAPES

_INF = float("inf")
_FARTHEST = 60.0


@dataclass(frozen=True)
class Hits:
    """What each ray meets first.

    distance: inf where nothing is met. instance: row of the object in its scene, -1 where none is hit. The others are
    given only for the rays that hit an object: which rays these are (`ray`, a flat index), of which scene (`scene`),
    with the unit normal in the world's frame and the place in the object's own frame.
    """

    distance: Float[Tensor, "batch samples pixels"]
    instance: Int[Tensor, "batch samples pixels"]
    ray: Int[Tensor, " hits"]
    scene: Int[Tensor, " hits"]
    normal: Float[Tensor, "3 hits"]
    local: Float[Tensor, "3 hits"]


def trace(packed: Packed, rays: Rays) -> Hits:
    """Nearest hit of every camera ray with the objects or the floor.

    Args:
        packed: the scenes.
        rays: one origin a scene, directions `[3, batch, samples, pixels]`.
    """
    origin, direction = rays.origin, rays.direction
    nearest, instance = _nearest_object(packed, rays)
    drop = direction[1].clamp_max(-1e-6)
    floor = torch.where(direction[1] < -1e-6, -origin[1] / drop, _INF)
    floor = torch.where(floor < _FARTHEST, floor, _INF)
    on_object = nearest < floor
    distance, instance = torch.where(on_object, nearest, floor), torch.where(on_object, instance, -1)
    ray = torch.nonzero(on_object.view(-1)).squeeze(1)
    of_ray = rays.scene.expand_as(distance).reshape(-1)[ray]
    item = of_ray * packed.width + instance.view(-1)[ray]
    reached = distance.view(-1)[ray] * gather(direction, ray)
    local, normal = _surface(packed, item, gather(origin, of_ray) + reached)
    return Hits(distance, instance, ray, of_ray, normal, local)


def blocked(packed: Packed, rays: Rays, wanted: Bool[Tensor, "*points"]) -> Bool[Tensor, "*points"]:
    """Whether any object stands on the way of each wanted ray; false for the others.

    Args:
        packed: the scenes.
        rays: one origin a ray; scenes and directions broadcast.
        wanted: which rays matter.
    """
    item, ray, _ = _candidates(packed, rays, wanted)
    start, heading = gather(rays.origin, ray), gather(rays.direction.expand_as(rays.origin), ray)
    met = torch.isfinite(_distances(packed, item, start, heading))
    found = torch.zeros(wanted.numel(), dtype=torch.bool, device=wanted.device)
    found[ray[met]] = True
    return found.view(wanted.shape)


def _nearest_object(packed: Packed, rays: Rays) -> tuple[Tensor, Tensor]:
    """Distance to the nearest object (inf: none) and its place in the scene."""
    origin, direction = rays.origin, rays.direction
    item, ray, row = _candidates(packed, rays, None)
    start, heading = gather(origin, item // packed.width), gather(direction, ray)
    count = direction[0].numel()
    distances = torch.full((packed.width, *direction.shape[1:]), _INF, dtype=direction.dtype, device=direction.device)
    distances.view(-1)[row * count + ray] = _distances(packed, item, start, heading)
    nearest, instance = distances[0], torch.zeros_like(distances[0], dtype=torch.long)
    for k in range(1, packed.width):
        instance.masked_fill_(distances[k] < nearest, k)
        nearest = torch.minimum(nearest, distances[k])
    return nearest, instance


def _candidates(packed: Packed, rays: Rays, wanted: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Pairs of a ray and an object whose bounding sphere it passes: indices of object and ray, the object's place."""
    masks = []
    for k in range(packed.width):
        passes = _passes_bound(packed, k, rays)
        masks.append(passes if wanted is None else passes & wanted)
    row, ray = torch.nonzero(torch.stack(masks).flatten(1), as_tuple=True)
    of_ray = rays.scene.expand(masks[0].shape).reshape(-1)[ray]
    return of_ray * packed.width + row, ray, row


def _passes_bound(packed: Packed, k: int, rays: Rays) -> Bool[Tensor, "..."]:
    """Whether each ray passes the bounding sphere of the k-th object of its scene, in front of its origin."""
    away = packed.centre[:, k][:, rays.scene] - rays.origin
    along, square = dot(away, rays.direction), dot(away, away)
    bound = packed.bound[k][rays.scene]
    bound = bound * bound
    return (square - along * along <= bound) & ((along > 0) | (square <= bound)) & packed.present[k][rays.scene]


def _distances(packed: Packed, item: Tensor, origin: Tensor, direction: Tensor) -> Float[Tensor, " pairs"]:
    """Distance along each ray to its object; inf where it misses."""
    distance = torch.empty_like(origin[0])
    kind = packed.shape[item]
    for code in packed.shapes:
        some = torch.nonzero(kind == code).squeeze(1)
        frame = gather(packed.frames, item[some])
        entry = ENTRY[SHAPES[code]](_to_local(frame, gather(origin, some)), _turn(frame, gather(direction, some)))
        distance[some] = entry * frame[3]
    return distance


def _surface(packed: Packed, item: Tensor, point: Tensor) -> tuple[Tensor, Tensor]:
    """Places in the objects' own frames and world normals of points on their surfaces."""
    frame, kind = gather(packed.frames, item), packed.shape[item]
    local, normal = _to_local(frame, point), torch.empty_like(point)
    for code in packed.shapes:
        some = torch.nonzero(kind == code).squeeze(1)
        normal[:, some] = unit(NORMAL[SHAPES[code]](gather(local, some)))
    return local, _turn_back(frame, normal)


def _to_local(frame: Tensor, point: Tensor) -> Tensor:
    return _turn(frame, point - frame[:3]) / frame[3]


def _turn(frame: Tensor, vector: Tensor) -> Tensor:
    cosine, sine = frame[4], frame[5]
    x, y, z = vector
    return torch.stack([cosine * x - sine * z, y, sine * x + cosine * z])


def _turn_back(frame: Tensor, vector: Tensor) -> Tensor:
    cosine, sine = frame[4], frame[5]
    x, y, z = vector
    return torch.stack([cosine * x + sine * z, y, cosine * z - sine * x])
