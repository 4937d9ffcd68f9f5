"""Attention maps averaged over heads, layers and steps of a run (arXiv 2404.13766, the two-pass form of FCA).

Every layer's map counts alike, resized bicubically to the size of the latent. Resizing is linear, so the sums are kept
by grid and resized once, at the end.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from mezzotint.attention import Call, Moment, Output, Site, States, resize_maps
from mezzotint.attention.heads import probabilities
from mezzotint.attention.sites import Grid

__all__ = ["MapRecorder"]


class MapRecorder:
    """Sums up cross-attention probabilities while a model runs, and changes no bit of what it computes.

    Args:
        tokens: text tokens whose maps are kept; None for all.
        grid: record only layers of this grid; None for all.
        detach: drop the graph; False to take gradients through the maps.
    """

    def __init__(self, tokens: Tensor | None = None, *, grid: Grid | None = None, detach: bool = True) -> None:
        self.tokens, self.grid, self.detach = tokens, grid, detach
        self._sums: dict[Grid, Tensor] = {}
        self._count = 0

    def edit(
        self, *, where: Callable[[Site], bool] | None = None, when: Callable[[Moment], bool] | None = None
    ) -> Output:
        """The edit that records; install it on a pipeline. It sees the conditional rows, masks of other edits included.

        Args:
            where: choice of layers.
            when: choice of moments.
        """
        return Output(self._record, kind="cross", branch="cond", where=where, when=when)

    def reset(self) -> None:
        """Forget everything."""
        self._sums, self._count = {}, 0

    def average(self, size: Grid | None = None) -> Float[Tensor, "rows tokens height width"]:
        """Mean over heads, layers and passes of what was recorded.

        Args:
            size: of the maps; None where only one grid was recorded, for that.

        Raises:
            ValueError: nothing was recorded, or there is no one grid.
        """
        if not self._sums:
            raise ValueError("no cross-attention was recorded: the model was not called, or not with a text")
        if size is None and len(self._sums) > 1:
            raise ValueError(f"maps of the grids {sorted(self._sums)} were recorded: say which size is wanted")
        resized = [
            total if size in (None, grid) else resize_maps(total, size, mode="bicubic")
            for grid, total in self._sums.items()
        ]
        return torch.stack(resized).sum(0) / self._count

    def _record(self, call: Call, output: Tensor, states: States) -> Tensor:
        grid = call.require_grid()
        if self.grid in (None, grid):
            shares = probabilities(states.query, states.key, states.bias, scale=states.scale)
            shares = shares.detach() if self.detach else shares
            chosen = shares if self.tokens is None else shares[..., self.tokens.to(shares.device)]
            seen = chosen.mean(1).transpose(1, 2).unflatten(-1, grid)
            self._sums[grid] = self._sums[grid] + seen if grid in self._sums else seen
            self._count += 1
        return output
