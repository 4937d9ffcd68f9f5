"""Where a backbone attends: names, kinds, heads and grids of its attention layers.

A site is one diffusers `Attention` module, named as in the model's state dict ("down_blocks.0.attentions.0.
transformer_blocks.0.attn2"). U-Nets halve their grid from level to level (ceil(n / 2), as a stride-2 convolution with
padding 1 does: `diffusers.models.downsampling.Downsample2D`); transformers divide it once by their patch size
(DiT, arXiv 2212.09748; PixArt, arXiv 2310.00426). Grids are always computed from the latent of the running pass, never
guessed from the number of tokens, so pictures need not be square.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from jaxtyping import Float
from torch import Tensor, nn

Kind = Literal["self", "cross"]
Place = Literal["down", "mid", "up", "stack"]
Grid = tuple[int, int]

_PLACES: tuple[Place, ...] = ("down", "mid", "up", "stack")
_BLOCK = re.compile(r"^(?P<prefix>.*?)(?P<place>down|mid|up)_blocks?(?:\.(?P<index>\d+))?\.")


@dataclass(frozen=True)
class Site:
    """One attention layer of a backbone.

    Attributes:
        name: path of the layer in the model, without a trailing ".processor".
        kind: "self" (keys from the picture itself) or "cross" (keys from a text or other context).
        heads: number of attention heads.
        head_dim: channels of one head.
        query_dim: channels of the tokens that ask.
        context_dim: channels of the tokens that answer; equal to `query_dim` at self-attention.
        place: "down", "mid" or "up" in a U-Net, "stack" in a transformer.
        level: how often the grid has been halved before this layer (0 in a transformer).
        patch: side of a patch in latent cells (1 in a U-Net).
        native_grid: height and width of the grid at the size the model was configured for, if it says one.
    """

    name: str
    kind: Kind
    heads: int
    head_dim: int
    query_dim: int
    context_dim: int
    place: Place = "stack"
    level: int = 0
    patch: int = 1
    native_grid: Grid | None = None

    def grid(self, height: int, width: int) -> Grid:
        """Height and width of this layer's token grid for a latent of `height` x `width` cells."""
        return _side(height, self.level, self.patch), _side(width, self.level, self.patch)


def sites(model_or_pipe: Any) -> list[Site]:
    """All attention layers of a backbone, in the order in which a forward pass meets them.

    Args:
        model_or_pipe: a diffusers pipeline, or its U-Net or transformer.

    Raises:
        ValueError: the model has no layer of diffusers' class `Attention`.
    """
    return [site for site, _ in located_sites(backbone(model_or_pipe))]


def backbone(model_or_pipe: Any) -> nn.Module:
    """The denoising network of a pipeline, or the given network itself (unwrapped from `torch.compile`).

    Raises:
        ValueError: the object is neither a network nor a pipeline with a `unet` or a `transformer`.
    """
    for name in ("unet", "transformer"):
        if not isinstance(model_or_pipe, nn.Module) and getattr(model_or_pipe, name, None) is not None:
            model_or_pipe = getattr(model_or_pipe, name)
    model = getattr(model_or_pipe, "_orig_mod", model_or_pipe)
    if not isinstance(model, nn.Module):
        raise ValueError(
            f"expected a network or a pipeline with a unet or a transformer, got {type(model_or_pipe).__name__}"
        )
    return model


def located_sites(model: nn.Module) -> list[tuple[Site, Any]]:
    """Each site of a backbone together with its `Attention` module, in forward order."""
    found = [(_describe(model, name, module), module) for name, module in model.named_modules() if _attends(module)]
    if not found:
        raise ValueError(
            f"{type(model).__name__} has no attention layer of diffusers' class Attention; "
            "UNet2DConditionModel, DiTTransformer2DModel and PixArtTransformer2DModel have"
        )
    return sorted(found, key=lambda pair: _forward_order(pair[0]))


def resize_maps(
    maps: Float[Tensor, "*batch height width"], grid: Grid, *, mode: str = "area"
) -> Float[Tensor, "*batch rows columns"]:
    """Brings maps to the grid of a site.

    Args:
        maps: any number of maps, any range.
        grid: height and width wanted.
        mode: "area" (mean; shrinks without aliasing), "max" (a cell is as high as anything in it: no small thing is
            lost; enlarges by repetition), "nearest", "bilinear" or "bicubic" (half-pixel centres, no antialiasing).

    Raises:
        ValueError: the mode is unknown.
    """
    flat = maps.reshape(-1, 1, *maps.shape[-2:])
    if mode == "max":
        resized = F.adaptive_max_pool2d(flat, grid)
    elif mode in ("area", "nearest"):
        resized = F.interpolate(flat, size=grid, mode=mode)
    elif mode in ("bilinear", "bicubic"):
        resized = F.interpolate(flat, size=grid, mode=mode, align_corners=False)
    else:
        raise ValueError(f"mode must be area, max, nearest, bilinear or bicubic, got {mode!r}")
    return resized.reshape(*maps.shape[:-2], *grid)


def _attends(module: nn.Module) -> bool:
    return isinstance(module, Attention)


def _describe(model: nn.Module, name: str, attention: Any) -> Site:
    place, level = _locate(model, name)
    patch = 1 if place != "stack" else int(_config(model, "patch_size", 1))
    return Site(
        name=name,
        kind="cross" if attention.is_cross_attention else "self",
        heads=attention.heads,
        head_dim=attention.inner_dim // attention.heads,
        query_dim=attention.query_dim,
        context_dim=attention.cross_attention_dim,
        place=place,
        level=level,
        patch=patch,
        native_grid=_native_grid(_config(model, "sample_size", None), level, patch),
    )


def _locate(model: nn.Module, name: str) -> tuple[Place, int]:
    """Place and level: the samplers of the blocks that a pass crosses before this one are counted, not assumed."""
    match = _BLOCK.match(name)
    if match is None:
        return "stack", 0
    root = model.get_submodule(match["prefix"].rstrip("."))
    index = int(match["index"] or 0)
    down = [getattr(block, "downsamplers", None) is not None for block in root.get_submodule("down_blocks").children()]
    if match["place"] == "down":
        return "down", sum(down[:index])
    if match["place"] == "mid":
        return "mid", sum(down)
    up = [getattr(block, "upsamplers", None) is not None for block in root.get_submodule("up_blocks").children()]
    return "up", sum(down) - sum(up[:index])


def _config(model: nn.Module, key: str, default: Any) -> Any:
    value = getattr(getattr(model, "config", None), key, None)
    return default if value is None else value


def _native_grid(sample_size: Any, level: int, patch: int) -> Grid | None:
    if sample_size is None:
        return None
    height, width = (sample_size, sample_size) if isinstance(sample_size, int) else sample_size
    return _side(height, level, patch), _side(width, level, patch)


def _side(cells: int, level: int, patch: int) -> int:
    for _ in range(level):
        cells = (cells + 1) // 2
    return cells // patch


def _forward_order(site: Site) -> tuple[int, list[int]]:
    numbers = [int(number) for number in re.findall(r"\d+", site.name)]
    return _PLACES.index(site.place), numbers
