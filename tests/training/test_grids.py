"""Sample grids: layout and file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mezzotint import files
from mezzotint.training import grid, grids


def test_places_beyond_the_last_picture_and_gaps_are_white() -> None:
    sheet = grid(torch.zeros(3, 3, 2, 2), columns=2, gap=1)
    assert sheet.shape == (7, 7, 3)
    expected = torch.full((7, 7, 3), 255, dtype=torch.uint8)
    for top, left in ((1, 1), (1, 4), (4, 1)):
        expected[top : top + 2, left : left + 2] = 0
    assert torch.equal(sheet, expected)


def test_values_out_of_range_are_clipped() -> None:
    assert torch.equal(grid(torch.full((1, 3, 2, 2), 9.0)), grid(torch.ones(1, 3, 2, 2)))


def test_the_file_holds_the_sheet(tmp_path: Path) -> None:
    pictures = torch.rand(4, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    grids.write(tmp_path / "new" / "x.png", pictures)
    image = files.read_image(tmp_path / "new" / "x.png")
    assert list(image.tobytes()) == grid(pictures).flatten().tolist()


def test_refusals_name_the_cause() -> None:
    with pytest.raises(ValueError, match="at least one picture"):
        grid(torch.zeros(0, 3, 2, 2))
    with pytest.raises(ValueError, match="columns must be at least 1, got 0"):
        grid(torch.zeros(1, 3, 2, 2), columns=0)
