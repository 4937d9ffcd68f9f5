"""Pinhole cameras: rays through pixels, and the matrices that project world points into pixels."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from mezzotint.worlds.scenes.scene import Camera, Scene


def world_to_camera(scenes: list[Scene], device: str | torch.device = "cpu") -> Float[Tensor, "batch 4 4"]:
    """Rigid transforms from world to camera coordinates (x right, y down, z forward)."""
    return torch.stack([_world_to_camera(scene.camera) for scene in scenes]).to(device, torch.float32)


def intrinsics(scenes: list[Scene], size: int, device: str | torch.device = "cpu") -> Float[Tensor, "batch 3 3"]:
    """Pinhole matrices in pixels; the principal point is the picture's middle."""
    matrices = []
    for scene in scenes:
        focal, middle = _focal(scene.camera, size), size / 2
        matrices.append(torch.tensor([[focal, 0.0, middle], [0.0, focal, middle], [0.0, 0.0, 1.0]]))
    return torch.stack(matrices).to(device)


def pixel_rays(
    scenes: list[Scene], size: int, offsets: tuple[tuple[float, float], ...], device: str | torch.device
) -> tuple[Float[Tensor, "batch 1 3"], Float[Tensor, "batch rays 3"], Float[Tensor, "batch 1 3"]]:
    """Camera centres, unit directions of the rays through every pixel at the given offsets, and the optical axes.

    Rays are ordered by offset, then row, then column.
    """
    pose = torch.stack([_world_to_camera(scene.camera) for scene in scenes])
    rotation = pose[:, :3, :3]
    centre = -(rotation.transpose(1, 2) @ pose[:, :3, 3:]).squeeze(-1)
    grid = torch.arange(size, dtype=torch.float64)
    rows = [torch.stack(torch.meshgrid(grid + v, grid + u, indexing="ij")[::-1], -1) for u, v in offsets]
    pixels = torch.stack(rows).view(1, -1, 2) - size / 2
    focal = torch.tensor([_focal(scene.camera, size) for scene in scenes], dtype=torch.float64)[:, None, None]
    local = torch.cat([pixels / focal, torch.ones(len(scenes), pixels.shape[1], 1, dtype=torch.float64)], -1)
    local = local / local.pow(2).sum(-1, keepdim=True).sqrt()
    world = (local[..., None] * rotation[:, None]).sum(-2)
    forward = rotation[:, None, 2]
    return centre[:, None].to(device, torch.float32), world.to(device, torch.float32), forward.to(device, torch.float32)


def _focal(camera: Camera, size: int) -> float:
    return size / (2 * math.tan(math.radians(camera.fov) / 2))


def _world_to_camera(camera: Camera) -> Float[Tensor, "4 4"]:
    azimuth, elevation = math.radians(camera.azimuth), math.radians(camera.elevation)
    flat = math.cos(elevation)
    towards = torch.tensor([flat * math.sin(azimuth), math.sin(elevation), flat * math.cos(azimuth)], dtype=torch.float64)
    centre = towards * camera.distance + torch.tensor([0.0, camera.target_height, 0.0], dtype=torch.float64)
    right = torch.tensor([math.cos(azimuth), 0.0, -math.sin(azimuth)], dtype=torch.float64)
    rotation = torch.stack([right, torch.linalg.cross(-towards, right), -towards])
    pose = torch.eye(4, dtype=torch.float64)
    pose[:3, :3] = rotation
    pose[:3, 3] = -(rotation @ centre)
    return pose
