"""Rays against the world's shapes, all batched: where a ray enters a shape, and the shape's normal at a point.

Every shape lives in its own unit frame, centred on the object; HALF_HEIGHT is where it touches the floor and BOUND is
the radius of a sphere around it. Vectors are kept in planes `[3, ...]` (x, y, z first). Entry functions take local
origins and directions and give the distance along the ray (inf = no hit); normal functions take local points on the
surface.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

Points = Float[Tensor, "3 rays"]
Distances = Float[Tensor, " rays"]

HALF_HEIGHT = {"sphere": 1.0, "cube": 0.82, "cylinder": 0.92, "cone": 0.95, "torus": 0.30, "capsule": 1.12}
BOUND = {"sphere": 1.0, "cube": 1.43, "cylinder": 1.22, "cone": 1.36, "torus": 1.14, "capsule": 1.12}

CUBE_HALF = 0.82
CYLINDER_RADIUS = 0.78
CONE_RADIUS = 0.95
TORUS_MAJOR, TORUS_MINOR = 0.82, 0.30
CAPSULE_RADIUS = 0.55

_NEAR = 1e-3
_INF = float("inf")
_TORUS_STEPS, _TORUS_LATE_STEPS, _TORUS_NEAR = 28, 100, 4e-3


@dataclass(frozen=True)
class Rays:
    """Rays of a batch of scenes: whose scene, from where, where to (unit length); axes of size one stand for all."""

    scene: Int[Tensor, "..."]
    origin: Float[Tensor, "3 ..."]
    direction: Float[Tensor, "3 ..."]


def dot(a: Float[Tensor, "3 *one"], b: Float[Tensor, "3 *other"]) -> Tensor:
    """Scalar product of vectors in planes; the other axes broadcast."""
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def unit(vector: Points) -> Points:
    """Vectors of length one."""
    return vector / torch.linalg.vector_norm(vector.T.contiguous(), dim=-1).clamp_min(1e-12)


def gather(planes: Tensor, index: Int[Tensor, " some"]) -> Tensor:
    """Some columns of planes `[channels, ...]`; the index counts through all axes but the first."""
    return planes.flatten(1).index_select(1, index)


def sphere_entry(origin: Points, direction: Points, radius: float = 1.0) -> Distances:
    """Nearest crossing of a sphere about the local origin."""
    b = dot(origin, direction)
    discriminant = b * b - dot(origin, origin) + radius * radius
    return _nearest(-b, discriminant)


def cube_entry(origin: Points, direction: Points) -> Distances:
    """Nearest crossing of an axis-aligned cube (slab method)."""
    inverse = 1.0 / _away_from_zero(direction)
    a, b = (-CUBE_HALF - origin) * inverse, (CUBE_HALF - origin) * inverse
    enter, leave = torch.minimum(a, b).amax(0), torch.maximum(a, b).amin(0)
    return torch.where((leave > enter) & (enter > _NEAR), enter, _INF)


def cylinder_entry(origin: Points, direction: Points) -> Distances:
    """Nearest crossing of an upright capped cylinder."""
    height = HALF_HEIGHT["cylinder"]
    side = _tube_entry(origin, direction, CYLINDER_RADIUS, height)
    top = _disc_entry(origin, direction, height, CYLINDER_RADIUS)
    return torch.minimum(side, torch.minimum(top, _disc_entry(origin, direction, -height, CYLINDER_RADIUS)))


def cone_entry(origin: Points, direction: Points) -> Distances:
    """Nearest crossing of an upright cone standing on its disc."""
    height = HALF_HEIGHT["cone"]
    slope = (CONE_RADIUS / (2 * height)) ** 2
    from_apex = origin[1] - height
    a = _flat_dot(direction, direction) - slope * direction[1] ** 2
    b = _flat_dot(origin, direction) - slope * from_apex * direction[1]
    c = _flat_dot(origin, origin) - slope * from_apex**2
    a = _away_from_zero(a)
    root = (b * b - a * c).clamp_min(0).sqrt()
    roots = torch.stack([(-b - root) / a, (-b + root) / a]).sort(0).values
    y = origin[1] + roots * direction[1]
    good = (roots > _NEAR) & (y.abs() <= height) & (b * b > a * c)
    side = torch.where(good, roots, _INF).amin(0)
    return torch.minimum(side, _disc_entry(origin, direction, -height, CONE_RADIUS))


def capsule_entry(origin: Points, direction: Points) -> Distances:
    """Nearest crossing of an upright capsule: a tube between two spheres."""
    half = HALF_HEIGHT["capsule"] - CAPSULE_RADIUS
    lift = origin.new_tensor([[0.0], [half], [0.0]])
    upper = sphere_entry(origin - lift, direction, CAPSULE_RADIUS)
    lower = sphere_entry(origin + lift, direction, CAPSULE_RADIUS)
    return torch.minimum(_tube_entry(origin, direction, CAPSULE_RADIUS, half), torch.minimum(upper, lower))


def torus_entry(origin: Points, direction: Points) -> Distances:
    """Nearest crossing of a lying torus, by sphere tracing from its bounding sphere: no step passes the surface."""
    bound = BOUND["torus"]
    start = sphere_entry(origin, direction, bound)
    distance = _march(origin, direction, torch.where(torch.isfinite(start), start, 0.0), _TORUS_STEPS)
    point = origin + distance * direction
    # Rays that graze the near rim advance slowly; the few that are still under way go on.
    late = (_torus_distance(point) >= _TORUS_NEAR) & (dot(point, point) < bound * bound) & torch.isfinite(start)
    if len(some := torch.nonzero(late).squeeze(1)):
        distance[some] = _march(gather(origin, some), gather(direction, some), distance[some], _TORUS_LATE_STEPS)
        point = origin + distance * direction
    hit = (_torus_distance(point).abs() < _TORUS_NEAR) & (distance > _NEAR) & torch.isfinite(start)
    return torch.where(hit, distance, _INF)


def sphere_normal(point: Points) -> Points:
    """Outward normal of the unit sphere."""
    return point


def cube_normal(point: Points) -> Points:
    """Outward normal of the cube: the axis of the largest coordinate."""
    axis = point.abs().argmax(0, keepdim=True)
    return torch.zeros_like(point).scatter(0, axis, torch.gather(point, 0, axis).sign())


def cylinder_normal(point: Points) -> Points:
    """Outward normal of the cylinder: up or down on the caps, radial on the side."""
    cap = point[1].abs() > HALF_HEIGHT["cylinder"] - 2e-3
    return torch.where(cap, _vertical(point), _radial(point))


def cone_normal(point: Points) -> Points:
    """Outward normal of the cone: down on its disc, radial and tilted up elsewhere."""
    tilt = CONE_RADIUS / (2 * HALF_HEIGHT["cone"])
    radial = unit(_radial(point)) + point.new_tensor([[0.0], [tilt], [0.0]])
    base = point[1] < -HALF_HEIGHT["cone"] + 2e-3
    return torch.where(base, _vertical(point), radial)


def capsule_normal(point: Points) -> Points:
    """Outward normal of the capsule: away from the nearest point of its axis."""
    half = HALF_HEIGHT["capsule"] - CAPSULE_RADIUS
    y = point[1] - point[1].clamp(-half, half)
    return torch.stack([point[0], y, point[2]])


def torus_normal(point: Points) -> Points:
    """Outward normal of the torus: away from the nearest point of its core circle."""
    return point - unit(_radial(point)) * TORUS_MAJOR


ENTRY = {
    "sphere": sphere_entry,
    "cube": cube_entry,
    "cylinder": cylinder_entry,
    "cone": cone_entry,
    "torus": torus_entry,
    "capsule": capsule_entry,
}
NORMAL = {
    "sphere": sphere_normal,
    "cube": cube_normal,
    "cylinder": cylinder_normal,
    "cone": cone_normal,
    "torus": torus_normal,
    "capsule": capsule_normal,
}


def _nearest(middle: Tensor, discriminant: Tensor) -> Tensor:
    """The smaller positive one of the roots middle -+ sqrt(discriminant)."""
    root = discriminant.clamp_min(0).sqrt()
    near, far = middle - root, middle + root
    distance = torch.where(near > _NEAR, near, far)
    return torch.where((discriminant > 0) & (distance > _NEAR), distance, _INF)


def _tube_entry(origin: Tensor, direction: Tensor, radius: float, height: float) -> Tensor:
    a = _away_from_zero(_flat_dot(direction, direction))
    b = _flat_dot(origin, direction)
    discriminant = b * b - a * (_flat_dot(origin, origin) - radius * radius)
    distance = (-b - discriminant.clamp_min(0).sqrt()) / a
    y = origin[1] + distance * direction[1]
    return torch.where((discriminant > 0) & (distance > _NEAR) & (y.abs() <= height), distance, _INF)


def _disc_entry(origin: Tensor, direction: Tensor, height: float, radius: float) -> Tensor:
    distance = (height - origin[1]) / _away_from_zero(direction[1])
    x, z = origin[0] + distance * direction[0], origin[2] + distance * direction[2]
    return torch.where((x * x + z * z <= radius * radius) & (distance > _NEAR), distance, _INF)


def _march(origin: Tensor, direction: Tensor, distance: Tensor, steps: int) -> Tensor:
    for _ in range(steps):
        distance = distance + _torus_distance(origin + distance * direction)
    return distance


def _torus_distance(point: Tensor) -> Tensor:
    ring = (point[0] ** 2 + point[2] ** 2).sqrt() - TORUS_MAJOR
    return (ring * ring + point[1] ** 2).sqrt() - TORUS_MINOR


def _flat_dot(a: Tensor, b: Tensor) -> Tensor:
    return a[0] * b[0] + a[2] * b[2]


def _radial(point: Tensor) -> Tensor:
    return torch.stack([point[0], torch.zeros_like(point[1]), point[2]])


def _vertical(point: Tensor) -> Tensor:
    zero = torch.zeros_like(point[1])
    return torch.stack([zero, point[1].sign(), zero])


def _away_from_zero(x: Tensor) -> Tensor:
    return torch.where(x.abs() < 1e-9, 1e-9, x)
