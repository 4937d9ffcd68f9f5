"""The ray tracer: scenes to pictures with exact depth, normals, instances, object coordinates and cameras, batched in torch.

A ray is first tested against the bounding sphere of each object; exact intersections are computed for the few pairs that pass. Light is
one distant source with a shadow ray, sky light, and a soft contact term: the analytic occlusion of a surface point by the bounding
sphere of each object. Pictures are supersampled and stored as sRGB.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mezzotint.worlds.scenes import shading
from mezzotint.worlds.scenes.camera import intrinsics, pixel_rays, world_to_camera
from mezzotint.worlds.scenes.packing import Packed, pack
from mezzotint.worlds.scenes.scene import Scene
from mezzotint.worlds.scenes.trace import Hits, trace

SKY, FLOOR = -1, 0
_RAYS_AT_ONCE = 1 << 16
_CENTRE = ((0.5, 0.5),)


@dataclass(frozen=True)
class Frame:
    """Pictures and ground truth. All but `rgb` are those of the ray through the pixel's centre.

    rgb: sRGB in 0..1. depth: distance along the optical axis in world units, inf for the sky. normal: world frame, zero for the sky.
    instance: -1 sky, 0 floor, k for the k-th object of the scene (from 1). coordinates: the hit point in the object's own unit frame
    (x / radius - 1..1, zero off the objects). world_to_camera and intrinsics: camera x right, y down, z forward; pixel (u, v) has its
    centre at (u + 0.5, v + 0.5).
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
def render(
    scenes: list[Scene], size: int = 64, *, supersample: int = 2, device: str | torch.device = "cpu"
) -> Frame:
    """Render scenes to square frames.

    Args:
        scenes: one or more scenes.
        size: side of the pictures in pixels, at least 8.
        supersample: rays per pixel side for the colours (2 means four rays a pixel).
        device: where to compute.

    Raises:
        ValueError: for no scenes, a size under 8, or a supersample under 1.
    """
    if not scenes:
        raise ValueError("nothing to render: the list of scenes is empty")
    if size < 8 or supersample < 1:
        raise ValueError(f"size must be at least 8 and supersample at least 1, got {size} and {supersample}")
    at_once = max(1, _RAYS_AT_ONCE // (size * size * supersample**2))
    parts = [_render_some(scenes[k : k + at_once], size, supersample, device) for k in range(0, len(scenes), at_once)]
    return Frame(**{item.name: torch.cat([getattr(part, item.name) for part in parts]) for item in fields(Frame)})


def picture(
    scenes: list[Scene], size: int = 64, *, supersample: int = 2, device: str | torch.device = "cpu"
) -> Float[Tensor, "batch 3 height width"]:
    """Only the colours of `render`, for training: no ground-truth rays are traced."""
    with torch.inference_mode():
        at_once = max(1, _RAYS_AT_ONCE // (size * size * supersample**2))
        groups = [scenes[k : k + at_once] for k in range(0, len(scenes), at_once)]
        return torch.cat([_colours(group, pack(group, device), size, supersample) for group in groups])


def _render_some(scenes: list[Scene], size: int, supersample: int, device: str | torch.device) -> Frame:
    packed = pack(scenes, device)
    origin, direction, forward = pixel_rays(scenes, size, _CENTRE, device)
    hits = trace(packed, origin, direction)
    batch = len(scenes)
    depth = (hits.distance * (direction * forward).sum(-1)).view(batch, 1, size, size)
    kind = torch.where(hits.instance >= 0, hits.instance + 1, torch.where(torch.isfinite(hits.distance), FLOOR, SKY))
    return Frame(
        rgb=_colours(scenes, packed, size, supersample),
        depth=depth,
        normal=_image(hits.normal, size),
        instance=kind.view(batch, 1, size, size),
        coordinates=_image(hits.local, size),
        world_to_camera=world_to_camera(scenes, device),
        intrinsics=intrinsics(scenes, size, device),
    )


def _colours(scenes: list[Scene], packed: Packed, size: int, supersample: int) -> Tensor:
    steps = [(k + 0.5) / supersample for k in range(supersample)]
    offsets = tuple((u, v) for v in steps for u in steps)
    origin, direction, _ = pixel_rays(scenes, size, offsets, packed.centre.device)
    hits = trace(packed, origin, direction)
    colour = shading.shade(packed, hits, origin, direction, _light_directions(scenes, len(offsets), size, origin.device))
    per_ray = colour.view(len(scenes), len(offsets), size, size, 3)
    total = per_ray[:, 0].clone()
    for index in range(1, len(offsets)):
        total += per_ray[:, index]
    return shading.to_srgb(total / len(offsets)).permute(0, 3, 1, 2).contiguous()


def _light_directions(scenes: list[Scene], samples: int, size: int, device: torch.device) -> Float[Tensor, "batch rays 3"]:
    """Direction to the light for every ray: each subsample looks at another part of the light's disc, which softens shadows."""
    turn = torch.arange(samples, dtype=torch.float64) * (2 * math.pi / max(samples, 1)) + 0.6
    spread = torch.tensor([scene.light.softness / 2 for scene in scenes], dtype=torch.float64)[:, None] * (samples > 1)
    azimuth = torch.tensor([scene.light.azimuth for scene in scenes], dtype=torch.float64)[:, None] + spread * turn.cos()
    elevation = torch.tensor([scene.light.elevation for scene in scenes], dtype=torch.float64)[:, None] + spread * turn.sin()
    azimuth, elevation = torch.deg2rad(azimuth), torch.deg2rad(elevation)
    flat = elevation.cos()
    direction = torch.stack([flat * azimuth.sin(), elevation.sin(), flat * azimuth.cos()], -1)
    return direction.to(device, torch.float32).repeat_interleave(size * size, 1)


def _image(values: Float[Tensor, "batch rays channels"], size: int) -> Tensor:
    return values.view(values.shape[0], size, size, -1).permute(0, 3, 1, 2).contiguous()


__all__ = ["FLOOR", "SKY", "Frame", "Hits", "picture", "render"]
