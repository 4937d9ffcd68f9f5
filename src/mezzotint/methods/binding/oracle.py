"""Focus maps given by the caller: masks of objects, or boxes (for evaluation, and for those who know the layout)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from .report import Bound

__all__ = ["given_maps"]

BOX_SIDE = 64
"""Cells a side on which boxes are drawn when no mask says another size."""


def given_maps(masks: Any, prompts: Sequence[Bound], bindings: int) -> Float[Tensor, "pictures bindings height width"]:
    """One map for each binding of each prompt or picture.

    Args:
        masks: for one prompt, a mapping from a head (its word or its word index) to a mask [height, width], an array or
            a picture too, or a box (left, top, right, bottom) in 0..1, or a tensor [bindings, height, width] in the
            order of the bindings; for several prompts a sequence of these, or a tensor [prompts or pictures, bindings,
            height, width].
        prompts: what is bound.
        bindings: number of bindings of the fullest prompt.

    Raises:
        ValueError: a mask is missing, of another rank or size, negative, or somewhere no number.
    """
    if masks is None:
        raise ValueError("mode oracle needs masks: a mask or a box for each head")
    masks = _tensors(masks)
    if isinstance(masks, Tensor):
        maps = masks if masks.ndim == 4 else masks[None]
        if maps.ndim != 4 or maps.shape[1] != bindings or maps.shape[0] % len(prompts):
            raise ValueError(
                f"masks must be [bindings, height, width] or [pictures, bindings, height, width] with {bindings} "
                f"bindings and a multiple of {len(prompts)} pictures, got {tuple(masks.shape)}"
            )
        return _checked(maps.float())
    each = [masks] if isinstance(masks, Mapping) else list(masks)
    if len(each) != len(prompts):
        raise ValueError(f"masks must be one mapping or tensor a prompt, {len(prompts)}; got {len(each)}")
    size = _size(each)
    rows = [_of_prompt(given, bound, bindings, size) for given, bound in zip(each, prompts, strict=True)]
    return _checked(torch.stack(rows))


def _tensors(masks: Any) -> Any:
    """Arrays and pictures as tensors, wherever they stand; a picture's grey values become 0..1."""
    if isinstance(masks, Mapping):
        return {head: _tensors(mask) for head, mask in masks.items()}
    if isinstance(masks, Image.Image):
        return torch.from_numpy(np.asarray(masks.convert("L"), dtype=np.float32) / 255)
    if isinstance(masks, np.ndarray):
        return torch.from_numpy(np.ascontiguousarray(masks)).float()
    numbers = isinstance(masks, Sequence) and all(isinstance(each, (int, float)) for each in masks)
    return masks if isinstance(masks, Tensor) or numbers else [_tensors(each) for each in masks]


def box(left: float, top: float, right: float, bottom: float, *, size: tuple[int, int]) -> Float[Tensor, "h w"]:
    """A map that is 1 in every cell that a box touches.

    Args:
        left: 0..1.
        top: 0..1.
        right: above `left`, at most 1.
        bottom: above `top`, at most 1.
        size: height and width of the map.
    """
    if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
        raise ValueError(f"a box is (left, top, right, bottom) in 0..1, got {(left, top, right, bottom)}")
    height, width = size
    drawn = torch.zeros(size)
    drawn[
        math.floor(top * height) : math.ceil(bottom * height), math.floor(left * width) : math.ceil(right * width)
    ] = 1
    return drawn


def _of_prompt(given: Any, bound: Bound, bindings: int, size: tuple[int, int]) -> Tensor:
    maps = torch.zeros(bindings, *size)
    heads = [bound.bindings[number][1] for number in bound.acting]
    if isinstance(given, Tensor):
        if given.ndim != 3 or given.shape[0] != len(heads):
            raise ValueError(f"masks of a prompt with {len(heads)} bindings are [{len(heads)}, height, width], "
                             f"got {tuple(given.shape)}")  # fmt: skip
        maps[: len(heads)] = given
        return maps
    for number, head in enumerate(heads):
        maps[number] = _drawn(_of_head(given, head, bound), size)
    return maps


def _of_head(given: Mapping[Any, Any], head: int, bound: Bound) -> Any:
    word = bound.words[head]
    if head in given:
        return given[head]
    if word not in given:
        raise ValueError(f"masks have nothing for {word!r} (word {head}); they have {sorted(map(str, given))}")
    if bound.words.count(word) > 1:
        places = [index for index, each in enumerate(bound.words) if each == word]
        raise ValueError(f"{word!r} occurs as the words {places} of the prompt: give its mask by index")
    return given[word]


def _drawn(mask: Any, size: tuple[int, int]) -> Tensor:
    return mask.float() if isinstance(mask, Tensor) else box(*(float(edge) for edge in mask), size=size)


def _size(each: Sequence[Any]) -> tuple[int, int]:
    """The one size of all masks."""
    found = set()
    for mask, dims in ((mask, dims) for given in each for mask, dims in _entries(given)):
        if isinstance(mask, Tensor) and mask.ndim == dims:
            found.add((int(mask.shape[-2]), int(mask.shape[-1])))
        elif isinstance(mask, Tensor):
            raise ValueError(f"a mask has two dimensions, height and width; got shape {tuple(mask.shape)}")
        elif len(mask) != 4:
            raise ValueError(f"a mask is a tensor or a box of four numbers, got {mask!r}")
    if len(found) > 1:
        raise ValueError(f"masks must have one size, got {sorted(found)}")
    return found.pop() if found else (BOX_SIDE, BOX_SIDE)


def _entries(given: Any) -> list[tuple[Any, int]]:
    """Masks of a prompt, each with the number of dimensions it should have."""
    return [(mask, 2) for mask in given.values()] if isinstance(given, Mapping) else [(given, 3)]


def _checked(maps: Tensor) -> Tensor:
    if not maps.isfinite().all():
        raise ValueError("masks must be finite everywhere, got NaN or infinity")
    if (maps < 0).any():
        raise ValueError("masks must be at least 0 everywhere")
    return maps
