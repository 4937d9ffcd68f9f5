"""Boxes: which cells of an attention layer's grid belong to which concept, in what shares (arXiv 2404.14239, eq. 9).

    fhat = sum_i w_i fhat_i   with   sum_i w_i = 1   over the boxes that cover a position

The printed equation divides by the number eta of these boxes once more, so that two equal features would give half of
themselves; the text's "weighted average" is meant and is what is computed here. Positions in no box belong to the base
prompt. Grids are worked out at every level of the network, never at one and resized.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import astuple, dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mezzotint.attention.sites import Grid

__all__ = ["Box", "auto_boxes", "checked_boxes", "checked_weights", "coverage", "position_weights"]

TOLERANCE = 1e-6
"""What a side may miss a border by: 0.1 * 30 is a little more than 3."""


@dataclass(frozen=True)
class Box:
    """A rectangle of the picture in shares of its width and height; (0, 0) is the upper left corner.

    Attributes:
        x0: left side, 0..1.
        y0: upper side, 0..1.
        x1: right side, beyond x0.
        y1: lower side, below y0.
    """

    x0: float
    y0: float
    x1: float
    y1: float

    def __post_init__(self) -> None:
        """Refuse what is no rectangle of the picture."""
        sides = astuple(self)
        if not all(math.isfinite(side) and -TOLERANCE <= side <= 1 + TOLERANCE for side in sides):
            raise ValueError(f"a box lies inside the picture, x0, y0, x1, y1 in 0..1, got {sides}")
        if self.x1 <= self.x0 or self.y1 <= self.y0:
            raise ValueError(f"a box needs x0 < x1 and y0 < y1, got {sides}")

    @classmethod
    def of(cls, sides: Box | Sequence[float]) -> Box:
        """A box from x0, y0, x1, y1.

        Raises:
            ValueError: these are not four numbers, or no rectangle of the picture.
        """
        if isinstance(sides, Box):
            return sides
        if len(sides) != 4:
            raise ValueError(f"a box is four numbers x0, y0, x1, y1 in 0..1, got {sides!r}")
        return cls(*(float(side) for side in sides))

    def cells(self, grid: Grid) -> tuple[slice, slice]:
        """Rows and columns of a grid that it touches, at least one of each.

        Args:
            grid: height and width in cells.
        """
        height, width = grid
        return _touched(self.y0, self.y1, height), _touched(self.x0, self.x1, width)

    def inside(self, other: Box) -> bool:
        """Whether the other box covers all of this one."""
        return other.x0 <= self.x0 and other.y0 <= self.y0 and self.x1 <= other.x1 and self.y1 <= other.y1


def _touched(low: float, high: float, cells: int) -> slice:
    first = min(max(math.floor(low * cells + TOLERANCE), 0), cells - 1)
    return slice(first, min(max(math.ceil(high * cells - TOLERANCE), first + 1), cells))


def coverage(boxes: Sequence[Box], grid: Grid) -> Bool[Tensor, "boxes height width"]:
    """Which cells of a grid each box touches.

    Args:
        boxes: any number.
        grid: height and width in cells.
    """
    covered = torch.zeros(len(boxes), *grid, dtype=torch.bool)
    for index, box in enumerate(boxes):
        covered[(index, *box.cells(grid))] = True
    return covered


def position_weights(boxes: Sequence[Box], weights: Sequence[float], grid: Grid) -> Float[Tensor, "maps height width"]:
    """Shares of the concepts, and of the background as the last map; they sum to 1 in every cell.

    Args:
        boxes: one for each concept.
        weights: the concepts' own, at least 0; they are divided by their sum over the boxes that cover a cell. A cell
            whose boxes have no weight is background.
        grid: height and width in cells.
    """
    given = torch.tensor(tuple(weights), dtype=torch.float64)[:, None, None] * coverage(boxes, grid)
    total = given.sum(0)
    shares = given / torch.where(total > 0, total, 1.0)
    return torch.cat([shares, (total == 0).double()[None]]).float()


def auto_boxes(count: int) -> list[Box]:
    """Equal vertical strips from left to right, for concepts in the order of the prompt.

    Args:
        count: number of concepts.

    Raises:
        ValueError: the count is negative.
    """
    if count < 0:
        raise ValueError(f"the number of boxes must be at least 0, got {count}")
    return [Box(index / count, 0.0, (index + 1) / count, 1.0) for index in range(count)]


def checked_boxes(names: Sequence[str], boxes: Sequence[Box | Sequence[float]]) -> list[Box]:
    """One sound box for each concept; a warning where one lies in another.

    Args:
        names: placeholders, for the messages.
        boxes: as many.

    Raises:
        ValueError: another number of boxes than of concepts, or an unsound one.
    """
    if len(names) != len(boxes):
        raise ValueError(f"every concept needs a box: got {len(names)} concepts and {len(boxes)} boxes")
    found = [Box.of(box) for box in boxes]
    for index, inner in enumerate(found):
        for other, outer in enumerate(found):
            if index != other and inner.inside(outer) and (inner != outer or index < other):
                warnings.warn(
                    f"the box of {names[index]!r} lies entirely in that of {names[other]!r}: everywhere in it the two "
                    "are mixed; give it the larger weight to see it",
                    UserWarning,
                    stacklevel=2,
                )
    return found


def checked_weights(names: Sequence[str], weights: Sequence[float] | None) -> list[float]:
    """One weight for each concept; 1 where none are given.

    Raises:
        ValueError: another number of them, a negative or endless one, or nothing but zeros.
    """
    given = [1.0] * len(names) if weights is None else [float(weight) for weight in weights]
    if len(given) != len(names):
        raise ValueError(f"weights must be one a concept: got {len(names)} concepts and {len(given)} weights")
    if not all(math.isfinite(weight) and weight >= 0 for weight in given):
        raise ValueError(f"weights must be at least 0, got {given}")
    if given and not any(given):
        raise ValueError(f"at least one weight must be above 0, got {given}")
    return given
