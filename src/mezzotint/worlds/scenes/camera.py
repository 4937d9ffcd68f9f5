"""Pinhole cameras: rays through pixels, and the matrices that project world points into pixels."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from mezzotint.worlds.scenes.geometry import Rays
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
) -> tuple[Rays, Float[Tensor, "3 batch 1 1"]]:
    """Rays through every pixel at the given offsets `[batch, samples, pixels]`, and the optical axes.

    Samples follow the offsets, pixels go row by row. Directions are computed in double precision, so that the same ray
    has the same bits in every batch.
    """
    pose = torch.stack([_world_to_camera(scene.camera) for scene in scenes])
    rotation = pose[:, :3, :3]
    centre = -(rotation.transpose(1, 2) @ pose[:, :3, 3:]).squeeze(-1)
    focal = [_focal(scene.camera, size) for scene in scenes]
    shared = focal[:1] if len(set(focal)) == 1 else focal
    right, down, ahead = _pixel_directions(torch.tensor(shared, dtype=torch.float64), size, offsets)
    turns = rotation.permute(2, 1, 0)[..., None, None]
    world = torch.stack([(right * turn[0] + down * turn[1] + ahead * turn[2]).to(torch.float32) for turn in turns])
    scene = torch.arange(len(scenes), device=device)[:, None, None]
    origin, forward = (each.T[..., None, None].to(device, torch.float32) for each in (centre, rotation[:, 2]))
    return Rays(scene, origin, world.to(device)), forward


def _pixel_directions(
    focal: Float[Tensor, " cameras"], size: int, offsets: tuple[tuple[float, float], ...]
) -> tuple[Tensor, Tensor, Tensor]:
    """Unit directions in the camera's own frame: right, down and ahead, each `[cameras, samples, pixels]`."""
    grid = torch.arange(size, dtype=torch.float64)
    across = torch.stack([(grid + u).expand(size, size).flatten() for u, _ in offsets]) - size / 2
    down = torch.stack([(grid + v)[:, None].expand(size, size).flatten() for _, v in offsets]) - size / 2
    across, down = across / focal[:, None, None], down / focal[:, None, None]
    length = (across * across + down * down + 1.0).sqrt()
    return across / length, down / length, 1.0 / length


def _focal(camera: Camera, size: int) -> float:
    return size / (2 * math.tan(math.radians(camera.fov) / 2))


def _world_to_camera(camera: Camera) -> Float[Tensor, "4 4"]:
    azimuth, elevation = math.radians(camera.azimuth), math.radians(camera.elevation)
    flat = math.cos(elevation)
    towards = torch.tensor(
        [flat * math.sin(azimuth), math.sin(elevation), flat * math.cos(azimuth)], dtype=torch.float64
    )
    centre = towards * camera.distance + torch.tensor([0.0, camera.target_height, 0.0], dtype=torch.float64)
    right = torch.tensor([math.cos(azimuth), 0.0, -math.sin(azimuth)], dtype=torch.float64)
    rotation = torch.stack([right, torch.linalg.cross(-towards, right), -towards])
    pose = torch.eye(4, dtype=torch.float64)
    pose[:3, :3] = rotation
    pose[:3, 3] = -(rotation @ centre)
    return pose
