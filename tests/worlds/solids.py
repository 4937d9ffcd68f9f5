"""The world's shapes as implicit functions of their own frame (negative inside), written apart from the tracer."""

import torch

from mezzotint.worlds.scenes import geometry


def _disc_solid(across, up, radius, half):
    return torch.maximum(across - radius, up.abs() - half)


def implicit(shape, point):
    """Negative inside, zero on the surface; `point` is [3, ...]."""
    x, y, z = point
    across = (x * x + z * z).sqrt()
    half = geometry.HALF_HEIGHT[shape]
    match shape:
        case "sphere":
            return point.pow(2).sum(0).sqrt() - 1
        case "cube":
            return point.abs().amax(0) - geometry.CUBE_HALF
        case "cylinder":
            return _disc_solid(across, y, geometry.CYLINDER_RADIUS, half)
        case "cone":
            slope = geometry.CONE_RADIUS / (2 * half)
            return torch.maximum(across - slope * (half - y), y.abs() - half)
        case "torus":
            return ((across - geometry.TORUS_MAJOR) ** 2 + y * y).sqrt() - geometry.TORUS_MINOR
        case "capsule":
            middle = half - geometry.CAPSULE_RADIUS
            return (across**2 + (y - y.clamp(-middle, middle)) ** 2).sqrt() - geometry.CAPSULE_RADIUS
    raise AssertionError(shape)


def rays(count, seed):
    """Rays from outside the shapes, aimed near them: origins and unit directions [3, count]."""
    generator = torch.Generator().manual_seed(seed)
    origin = torch.nn.functional.normalize(torch.randn(3, count, generator=generator), dim=0) * 4
    aim = torch.rand(3, count, generator=generator) * 2.4 - 1.2
    return origin, torch.nn.functional.normalize(aim - origin, dim=0)
