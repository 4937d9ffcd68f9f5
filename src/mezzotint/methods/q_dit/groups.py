"""Group sizes along the input channels of a layer (arXiv 2406.17343, section 3.2): which are legal, which to take."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["DEFAULT", "SPACE", "check_group", "count_groups", "largest_group", "legal_groups"]

DEFAULT = 128
"""Group size of the paper where none is searched."""

SPACE = (32, 64, 128, 192, 288)
"""Search space of the paper; all divide 1152 and 4608, the widths of DiT-XL/2."""


def legal_groups(width: int, space: Sequence[int] | None = None) -> tuple[int, ...]:
    """Group sizes that cut a width into equal parts, ascending.

    Args:
        width: number K of input channels of a layer.
        space: sizes to choose from; every divisor of the width when not given.
    """
    return tuple(sorted({g for g in (space or range(1, width + 1)) if g >= 1 and width % g == 0}))


def largest_group(width: int, at_most: int = DEFAULT) -> int:
    """The largest group size up to `at_most` that divides a width.

    Args:
        width: number K of input channels, at least 1.
        at_most: upper bound, at least 1.
    """
    return max(legal_groups(width, range(1, min(at_most, width) + 1)))


def check_group(width: int, group: int, layer: str = "") -> None:
    """Refuse a group size that does not cut a layer's width into equal parts.

    Args:
        width: number K of input channels.
        group: group size g.
        layer: name of the layer for the message.

    Raises:
        ValueError: the group is below 1 or does not divide the width; names the legal values.
    """
    if group >= 1 and width % group == 0:
        return
    where = f" of layer {layer!r}" if layer else ""
    legal = ", ".join(str(g) for g in legal_groups(width) if g >= min(16, width))
    raise ValueError(f"group must divide the {width} input channels{where}, got {group}; legal values: {legal}")


def count_groups(width: int, group: int) -> int:
    """Number G = K / g of groups; see `check_group` for what is refused."""
    check_group(width, group)
    return width // group
