"""Sample grids: a batch of pictures as one sheet."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from mezzotint import files


def grid(
    pictures: Float[Tensor, "count 3 height width"], *, columns: int | None = None, gap: int = 2
) -> UInt8[Tensor, "rows columns 3"]:
    """Lay pictures out in rows on white.

    Args:
        pictures: values in 0..1; what is outside is clipped.
        columns: pictures in a row; None for as square a sheet as possible.
        gap: white pixels between and around the pictures.

    Raises:
        ValueError: if there is no picture, or fewer than one column.
    """
    count, _, height, width = pictures.shape
    if count == 0:
        raise ValueError("a grid needs at least one picture")
    columns = math.ceil(math.sqrt(count)) if columns is None else columns
    if columns < 1:
        raise ValueError(f"columns must be at least 1, got {columns}")
    rows = math.ceil(count / columns)
    sheet = torch.ones(3, rows * (height + gap) + gap, min(columns, count) * (width + gap) + gap)
    for index, picture in enumerate(pictures.detach().float().clamp(0, 1).to("cpu")):
        top, left = (index // columns) * (height + gap) + gap, (index % columns) * (width + gap) + gap
        sheet[:, top : top + height, left : left + width] = picture
    return (sheet * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous()


def write(path: Path, pictures: Float[Tensor, "count 3 height width"], *, columns: int | None = None) -> None:
    """Write a grid as a PNG, making its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_image(path, Image.fromarray(grid(pictures, columns=columns).numpy()))
