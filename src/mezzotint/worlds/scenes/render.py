"""The ray tracer: scenes to pictures with exact depth, normals, instances, object coordinates and cameras.

Everything is batched in torch. A ray is first tested against the bounding sphere of each object; exact intersections
are computed for the few pairs that pass. Light is one distant source with a shadow ray, sky light, and a soft contact
term: the analytic occlusion of a surface point by the bounding sphere of each object. Pictures are supersampled and
stored as sRGB.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mezzotint.worlds.scenes import shading
from mezzotint.worlds.scenes.camera import intrinsics, pixel_rays, world_to_camera
from mezzotint.worlds.scenes.geometry import dot
from mezzotint.worlds.scenes.packing import Packed, pack
from mezzotint.worlds.scenes.scene import Scene
from mezzotint.worlds.scenes.trace import trace

SKY, FLOOR = -1, 0
_RAYS_AT_ONCE = 1 << 17
_CENTRE = ((0.5, 0.5),)


@dataclass(frozen=True)
class Frame:
    """Pictures and ground truth. All but `rgb` are those of the ray through the pixel's centre.

    rgb: sRGB in 0..1. depth: distance along the optical axis in world units, inf for the sky. normal: world frame, zero
    for the sky. instance: -1 sky, 0 floor, k for the k-th object of the scene (from 1). coordinates: the hit point in
    the object's own unit frame (x / radius - 1..1, zero off the objects). world_to_camera and intrinsics: camera x
    right, y down, z forward; pixel (u, v) has its centre at (u + 0.5, v + 0.5).
    """

    rgb: Float[Tensor, "batch 3 height width"]
    depth: Float[Tensor, "batch 1 height width"]
    normal: Float[Tensor, "batch 3 height width"]
    instance: Int[Tensor, "batch 1 height width"]
    coordinates: Float[Tensor, "batch 3 height width"]
    world_to_camera: Float[Tensor, "batch 4 4"]
    intrinsics: Float[Tensor, "batch 3 3"]

    def __getitem__(self, index: slice) -> Frame:
        return Frame(**{item.name: getattr(self, item.name)[index] for item in fields(self)})


@torch.inference_mode()
def render(scenes: list[Scene], size: int = 64, *, supersample: int = 2, device: str | torch.device = "cpu") -> Frame:
    """Render scenes to square frames.

    Args:
        scenes: one or more scenes.
        size: side of the pictures in pixels, at least 8.
        supersample: rays per pixel side for the colours (2 means four rays a pixel).
        device: where to compute.

    Raises:
        ValueError: for no scenes, a size under 8, or a supersample under 1.
    """
    _check(scenes, size, supersample)
    at_once = max(1, _RAYS_AT_ONCE // (size * size * supersample**2))
    parts = [_render_some(scenes[k : k + at_once], size, supersample, device) for k in range(0, len(scenes), at_once)]
    return Frame(**{item.name: torch.cat([getattr(part, item.name) for part in parts]) for item in fields(Frame)})


def picture(
    scenes: list[Scene], size: int = 64, *, supersample: int = 2, device: str | torch.device = "cpu"
) -> Float[Tensor, "batch 3 height width"]:
    """Only the colours of `render`, for training: no ground-truth rays are traced; raises as `render`."""
    _check(scenes, size, supersample)
    with torch.inference_mode():
        at_once = max(1, _RAYS_AT_ONCE // (size * size * supersample**2))
        groups = [scenes[k : k + at_once] for k in range(0, len(scenes), at_once)]
        return torch.cat([_colours(group, pack(group, device), size, supersample) for group in groups])


def _check(scenes: list[Scene], size: int, supersample: int) -> None:
    if not scenes:
        raise ValueError("nothing to render: the list of scenes is empty")
    if size < 8 or supersample < 1:
        raise ValueError(f"size must be at least 8 and supersample at least 1, got {size} and {supersample}")


def _render_some(scenes: list[Scene], size: int, supersample: int, device: str | torch.device) -> Frame:
    packed = pack(scenes, device)
    rays, forward = pixel_rays(scenes, size, _CENTRE, device)
    direction, hits = rays.direction, trace(packed, rays)
    met = torch.isfinite(hits.distance)
    normal = torch.zeros_like(direction)
    normal[1] = met.to(normal.dtype)
    normal.flatten(1)[:, hits.ray] = hits.normal
    coordinates = torch.zeros_like(direction)
    coordinates.flatten(1)[:, hits.ray] = hits.local
    kind = torch.where(hits.instance >= 0, hits.instance + 1, torch.where(met, FLOOR, SKY))
    return Frame(
        rgb=_colours(scenes, packed, size, supersample),
        depth=(hits.distance * dot(direction, forward)).view(-1, 1, size, size),
        normal=_image(normal, size),
        instance=kind.view(-1, 1, size, size),
        coordinates=_image(coordinates, size),
        world_to_camera=world_to_camera(scenes, device),
        intrinsics=intrinsics(scenes, size, device),
    )


def _colours(scenes: list[Scene], packed: Packed, size: int, supersample: int) -> Tensor:
    steps = [(k + 0.5) / supersample for k in range(supersample)]
    offsets = tuple((u, v) for v in steps for u in steps)
    lights = _light_directions(scenes, len(offsets), packed.frames.device)
    together = max(1, _RAYS_AT_ONCE // (size * size * len(scenes)))
    total = torch.zeros(3, len(scenes), size * size, device=packed.frames.device)
    for first in range(0, len(offsets), together):
        some = slice(first, first + together)
        rays, _ = pixel_rays(scenes, size, offsets[some], packed.frames.device)
        for sample in shading.shade(packed, trace(packed, rays), rays, lights[:, :, some]).unbind(2):
            total += sample
    return _image(shading.to_srgb(total / len(offsets)), size)


def _light_directions(scenes: list[Scene], samples: int, device: torch.device) -> Float[Tensor, "3 batch samples 1"]:
    """Direction to the light: each subsample looks at another part of the light's disc, which softens shadows."""
    turn = torch.arange(samples, dtype=torch.float64) * (2 * math.pi / max(samples, 1)) + 0.6
    spread = torch.tensor([scene.light.softness / 2 for scene in scenes], dtype=torch.float64)[:, None] * (samples > 1)
    azimuth = (
        torch.tensor([scene.light.azimuth for scene in scenes], dtype=torch.float64)[:, None] + spread * turn.cos()
    )
    elevation = (
        torch.tensor([scene.light.elevation for scene in scenes], dtype=torch.float64)[:, None] + spread * turn.sin()
    )
    azimuth, elevation = torch.deg2rad(azimuth), torch.deg2rad(elevation)
    flat = elevation.cos()
    direction = torch.stack([flat * azimuth.sin(), elevation.sin(), flat * azimuth.cos()])
    return direction[..., None].to(device, torch.float32)


def _image(planes: Float[Tensor, "channels batch *pixels"], size: int) -> Tensor:
    return planes.movedim(0, 1).reshape(planes.shape[1], -1, size, size).contiguous()
