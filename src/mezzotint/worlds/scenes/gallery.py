"""Frames as pictures to look at: sheets of tiles, and depth, normals and instances in colours."""

from __future__ import annotations

import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from mezzotint.worlds.scenes.render import Frame, picture
from mezzotint.worlds.scenes.scene import Scene

_INSTANCE_COLOURS = (
    (0.80, 0.88, 0.96),
    (0.93, 0.92, 0.90),
    (0.89, 0.29, 0.20),
    (0.20, 0.54, 0.74),
    (0.30, 0.69, 0.29),
    (0.60, 0.31, 0.64),
    (0.98, 0.69, 0.19),
    (0.65, 0.34, 0.16),
)


def gallery(scenes: list[Scene], *, size: int = 512, columns: int = 4, supersample: int = 3) -> Image.Image:
    """Render scenes and lay them out in a sheet.

    Args:
        scenes: at least one.
        size: side of a tile, pixels.
        columns: tiles in a row.
        supersample: rays per pixel side; each looks at another part of the light, so more give smoother shadows.

    Raises:
        ValueError: as `render` and `sheet`.
    """
    return sheet(picture(scenes, size, supersample=supersample), columns=columns)


def sheet(pictures: Float[Tensor, "batch 3 height width"], *, columns: int = 4, gap: int = 4) -> Image.Image:
    """Lay pictures out in rows on white.

    Args:
        pictures: sRGB in 0..1.
        columns: tiles in a row; fewer pictures make a narrower sheet.
        gap: pixels between tiles.

    Raises:
        ValueError: for no picture or fewer than one column.
    """
    if len(pictures) == 0 or columns < 1:
        raise ValueError(f"a sheet needs a picture and a column, got {len(pictures)} and {columns}")
    count, _, height, width = pictures.shape
    columns = min(columns, count)
    rows = -(-count // columns)
    canvas = pictures.new_ones(3, rows * (height + gap) - gap, columns * (width + gap) - gap)
    for place, tile in enumerate(pictures):
        top, left = place // columns * (height + gap), place % columns * (width + gap)
        canvas[:, top : top + height, left : left + width] = tile
    return Image.fromarray(to_bytes(canvas).permute(1, 2, 0).cpu().numpy())


def to_bytes(pictures: Float[Tensor, "..."]) -> UInt8[Tensor, "..."]:
    """Values in 0..1 as whole numbers in 0..255."""
    return (pictures.clamp(0, 1) * 255).round().to(torch.uint8)


def depth_colours(frame: Frame) -> Float[Tensor, "batch 3 height width"]:
    """Depth in gray: white is the nearest pixel of each picture, black the farthest and the sky; inverse in between."""
    near = 1 / frame.depth
    low, high = near.amin((1, 2, 3), keepdim=True), near.amax((1, 2, 3), keepdim=True)
    return ((near - low) / (high - low).clamp_min(1e-6)).expand(-1, 3, -1, -1)


def normal_colours(frame: Frame) -> Float[Tensor, "batch 3 height width"]:
    """Normals as colours: x, y and z from -1..1 to red, green and blue in 0..1."""
    return frame.normal * 0.5 + 0.5


def instance_colours(frame: Frame) -> Float[Tensor, "batch 3 height width"]:
    """Another colour for the sky, the floor and each object."""
    table = frame.depth.new_tensor(_INSTANCE_COLOURS)
    place = torch.where(frame.instance < 1, frame.instance + 1, (frame.instance - 1) % (len(table) - 2) + 2)
    return table[place.squeeze(1)].movedim(-1, 1)
