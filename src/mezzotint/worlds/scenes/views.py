"""From pixels to points of the world and back, and from one view of a scene into another.

Conventions are those of `Frame`: depth is measured along the optical axis, camera axes are x right, y down, z forward,
and the pixel in column u and row v has its centre at (u + 0.5, v + 0.5).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import max_pool2d

from mezzotint.worlds.scenes.render import Frame

_NEAREST = 1e-6


@dataclass(frozen=True)
class Reprojection:
    """Where the pixels of one view lie in another.

    Attributes:
        pixels: column and row position in the target view, in pixels (centres at + 0.5); meaningless for the sky.
        depth: depth of the point in the target view, world units.
        visible: the target view sees the point, by its own depth.
    """

    pixels: Float[Tensor, "batch 2 height width"]
    depth: Float[Tensor, "batch 1 height width"]
    visible: Bool[Tensor, "batch 1 height width"]

    def gather(
        self, values: Float[Tensor, "batch channels rows columns"]
    ) -> Float[Tensor, "batch channels height width"]:
        """Bring values of the target view to the pixels of the source view; those of the nearest pixel, 0 if unseen."""
        index = _flat_index(self.pixels, values.shape[-2], values.shape[-1])
        found = values.flatten(2).gather(2, index.flatten(1)[:, None].expand(-1, values.shape[1], -1))
        return found.unflatten(2, index.shape[1:]) * self.visible


def project(
    points: Float[Tensor, "batch points 3"],
    world_to_camera: Float[Tensor, "batch 4 4"],
    intrinsics: Float[Tensor, "batch 3 3"],
) -> tuple[Float[Tensor, "batch points 2"], Float[Tensor, "batch points"]]:
    """Project world points into pictures.

    Args:
        points: in world units.
        world_to_camera: rigid transforms, as a `Frame` has them.
        intrinsics: pinhole matrices in pixels.

    Returns:
        Pixel positions (u, v) and depths; a point with depth <= 0 is behind the camera and has no pixel.
    """
    local = points @ world_to_camera[:, :3, :3].transpose(1, 2) + world_to_camera[:, None, :3, 3]
    depth = local[..., 2]
    scaled = local / depth.abs().clamp_min(_NEAREST)[..., None]
    return (scaled @ intrinsics.transpose(1, 2))[..., :2], depth


def unproject(frame: Frame) -> Float[Tensor, "batch 3 height width"]:
    """World point that each pixel's centre shows, by the frame's depth and camera; NaN for the sky."""
    batch, _, height, width = frame.depth.shape
    device = frame.depth.device
    rows, columns = torch.meshgrid(
        torch.arange(height, device=device), torch.arange(width, device=device), indexing="ij"
    )
    pixels = torch.stack([columns + 0.5, rows + 0.5, torch.ones_like(rows)]).view(1, 3, -1).to(frame.depth.dtype)
    depth = frame.depth.view(batch, 1, -1)
    local = torch.linalg.solve(frame.intrinsics, pixels.expand(batch, -1, -1)) * depth
    rotation, shift = frame.world_to_camera[:, :3, :3], frame.world_to_camera[:, :3, 3:]
    world = rotation.transpose(1, 2) @ (torch.where(torch.isfinite(depth), local, torch.nan) - shift)
    return world.view(batch, 3, height, width)


def reproject(source: Frame, target: Frame, *, tolerance: float = 0.02) -> Reprojection:
    """Find each pixel of one view in another view of the same scenes.

    A pixel is visible in the target when it shows something (no sky), its point falls into the target's picture in
    front of the camera, and the target's depth at the nearest pixel centre differs from the point's own by less than
    `tolerance`. Where surfaces are seen at a grazing angle or end within a pixel, that test errs; leave out
    `silhouettes` of both views where it matters.

    Args:
        source: views whose pixels are looked for.
        target: as many views, of the same scenes, to look in.
        tolerance: allowed difference of depth, as a share of the depth.

    Raises:
        ValueError: for different numbers of views or a tolerance that is not positive.
    """
    if len(source.depth) != len(target.depth):
        raise ValueError(f"one target view a source view is needed, got {len(source.depth)} and {len(target.depth)}")
    if tolerance <= 0:
        raise ValueError(f"tolerance must be positive, got {tolerance}")
    shape = source.depth.shape
    points = unproject(source).flatten(2).transpose(1, 2)
    pixels, depth = project(points, target.world_to_camera, target.intrinsics)
    pixels, depth = pixels.transpose(1, 2).unflatten(2, shape[2:]), depth.view(shape)
    height, width = target.depth.shape[-2:]
    limits = pixels.new_tensor([width, height])[:, None, None]
    inside = ((pixels >= 0) & (pixels < limits)).all(1, keepdim=True) & (depth > _NEAREST)
    seen = target.depth.flatten(1).gather(1, _flat_index(pixels, height, width).flatten(1)).view(shape)
    return Reprojection(pixels, depth, inside & ((seen - depth).abs() <= tolerance * depth))


def silhouettes(frame: Frame) -> Bool[Tensor, "batch 1 height width"]:
    """Pixels with another instance among their eight neighbours."""
    instance = frame.instance.to(torch.float32)
    return max_pool2d(instance, 3, stride=1, padding=1) != -max_pool2d(-instance, 3, stride=1, padding=1)


def _flat_index(pixels: Tensor, height: int, width: int) -> Tensor:
    """Row-major index of the pixel at each position; positions outside (or NaN) are moved to the edge."""
    column = pixels[:, 0].nan_to_num().floor().clamp(0, width - 1)
    row = pixels[:, 1].nan_to_num().floor().clamp(0, height - 1)
    return (row * width + column).long()
