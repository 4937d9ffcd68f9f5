"""Focused cross-attention as edits of a model's attention layers (arXiv 2404.13766).

Masks that do not depend on the pass (averaged, oracle) are made once for each grid and kept; at every layer of every
step they cost one look-up and the fused kernel stays. Online masks follow the running layer, head and step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mezzotint.attention import Call, Edit, LogitMask, Moment

from .maps import MapRecorder
from .masks import (
    Links,
    account,
    account_single,
    additive,
    additive_single,
    focus_of_logits,
    focus_of_maps,
    opened,
    single,
    strict_bias,
)
from .options import Options
from .report import Account, BindingReport

__all__ = ["FocusedAttention"]


class FocusedAttention:
    """The state that all layers share: links, focus maps, cached masks.

    Args:
        links: one row a prompt.
        options: how to mask.
        report: is told what was kept.
        schedule: position of a timestep in the trajectory, (index, length), None for a timestep that is not in it;
            needed where `options.steps` is a part.
        maps: focus maps of mode oracle, one a binding, [prompts or pictures, bindings, height, width].
    """

    def __init__(
        self,
        links: Links,
        options: Options,
        report: BindingReport,
        *,
        schedule: Callable[[float], tuple[int, int] | None] | None = None,
        maps: Float[Tensor, "pictures bindings height width"] | None = None,
    ) -> None:
        self.links, self.options, self.report, self.schedule = links, options, report, schedule
        self.heads = links.heads.sum((0, 1)).nonzero().flatten()
        self.recorder = MapRecorder(self.heads)
        self.recording, self.masking = False, options.mode != "averaged"
        self._maps = maps
        self._unknown: float | None = None
        self.pictures: int | None = None
        self._cache: dict[Hashable, Any] = {}

    def edits(self) -> tuple[Edit, ...]:
        """What to install: a mask for each masked guidance branch, after the recorder where maps are recorded."""
        masks = tuple(
            LogitMask(self._bias, kind="cross", branch=branch, when=self._masks)
            for branch in self.options.masked_branches
        )
        return (self.recorder.edit(when=lambda _: self.recording), *masks) if self.options.mode == "averaged" else masks

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """Passes inside are recorded and not masked."""
        self.recorder.reset()
        self.recording, masking = True, self.masking
        self.masking = False
        try:
            yield
        finally:
            self.recording, self.masking = False, masking

    def use(self, maps: Float[Tensor, "pictures tokens height width"]) -> None:
        """Mask by these maps from now on.

        Args:
            maps: averaged attention maps of `heads`, one row a prompt or picture; in mode oracle of the bindings.
        """
        self._maps, self.masking = maps, True
        self.begin()

    def begin(self) -> None:
        """A new call of the pipeline: nothing was kept yet."""
        self._cache.clear()
        self.report.clear()

    def rest(self) -> None:
        """Drop masks and recorded maps; the report stays."""
        self.pictures = None
        self._cache.clear()
        self.recorder.reset()
        self.masking = self.options.mode != "averaged"

    def _masks(self, moment: Moment) -> bool:
        if not self.masking or self.options.steps == (0.0, 1.0) or self.schedule is None:
            return self.masking
        # Also asked between passes, of the moment of the last one; a pass of an unknown timestep is refused in `_bias`.
        found = None if moment.timestep is None else self.schedule(moment.timestep)
        self._unknown = moment.timestep if found is None else None
        return found is None or self.options.steps[0] <= found[0] / found[1] < self.options.steps[1]

    def _bias(self, call: Call, query: Tensor, key: Tensor) -> Tensor | None:
        """The mask of one layer in one pass."""
        if self._unknown is not None:
            raise ValueError(f"the model was called at timestep {self._unknown}, which the scheduler has not set")
        if self.options.mode.startswith("online"):
            return self._online(call, query.detach(), key.detach())
        place = call.site.name, call.branch, call.grid, len(query), key.shape[2], query.dtype, query.device
        if place not in self._cache:
            # Made outside inference mode, so that passes with gradients can share it; autocast would round the focus.
            whole = torch.autocast(query.device.type, enabled=False)
            with torch.inference_mode(mode=False), torch.no_grad(), whole:
                self._cache[place] = self._of_grid(call, query, key.shape[2])
        return self._cache[place]

    def _of_grid(self, call: Call, query: Tensor, keys: int) -> Tensor | None:
        """The mask of a grid from averaged or given maps; None where everything is kept."""
        grid, rows = call.require_grid(), len(query)
        found = grid, rows, keys, query.dtype, query.device
        if found not in self._cache:
            links = self._links(rows, keys, query.device)
            focus = focus_of_maps(*self._sources(links, rows, query.device), grid)
            open_, lost = opened(focus, links.owners, self.options.tau, min_keep=self.options.min_keep)
            bias = None if open_.all() else additive(open_, self.options.mask_value, query.dtype)
            made = account(focus, lost, links.owners, self.options.tau)
            self._cache[found] = bias, lambda: made
        bias, told = self._cache[found]
        if call.branch == "cond":
            self.report.note(call.site.name, grid, None, told)
        return bias

    def _sources(self, links: Links, rows: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Maps, and the weights with which they make up each binding's focus."""
        if self._maps is None:
            raise ValueError("there are no focus maps: call the pipeline, which records them, or `use` your own")
        precision = torch.promote_types(self._maps.dtype, torch.float32)
        maps = self._maps.to(device, precision).repeat_interleave(self._repeats(rows, len(self._maps)), dim=0)
        if self.options.mode == "oracle":
            return maps, links.groups
        return maps, links.groups @ links.heads[..., self.heads.to(device)]

    @torch.no_grad()
    def _online(self, call: Call, query: Tensor, key: Tensor) -> Tensor:
        links = self._links(len(query), key.shape[2], query.device)
        precision, scale, options = torch.promote_types(query.dtype, torch.float32), call.attention.scale, self.options
        with torch.autocast(query.device.type, enabled=False):
            query_, key_ = query.to(precision), key.to(precision)
            if options.mode == "online_strict":
                return strict_bias(query_, key_, links.matrix, scale=scale, tau=options.tau, value=options.mask_value)
            signed = options.mode == "online_signed"
            weights = self._once("weights", links, lambda: links.groups @ links.heads)
            focus = focus_of_logits(query_, key_, weights, scale=scale, signed=signed)
            bias, told = self._closed(focus, links, query.dtype)
        if call.branch == "cond" and call.grid is not None:
            self.report.note(call.site.name, call.grid, call.moment.step, told)
        return bias

    def _closed(self, focus: Tensor, links: Links, dtype: torch.dtype) -> tuple[Tensor, Account]:
        """The mask and its account."""
        options = self.options
        if math.isfinite(options.mask_value) and self._once("single", links, lambda: single(links.owners)):
            values = self._once("values", links, lambda: (options.mask_value * links.owners).to(dtype))
            bias, kept = additive_single(focus, values, options.tau, min_keep=options.min_keep)
            return bias, partial(account_single, kept, links.owners, focus.shape[-1], min_keep=options.min_keep)
        open_, lost = opened(focus, links.owners, options.tau, min_keep=options.min_keep)
        made = account(focus, lost, links.owners, options.tau)
        return additive(open_, options.mask_value, dtype), lambda: made

    def _once(self, what: str, links: Links, make: Callable[[], Any]) -> Any:
        """Something about links of `_links`, made in their first pass."""
        if (found := (what, id(links))) not in self._cache:
            self._cache[found] = make()
        return self._cache[found]

    def _links(self, rows: int, keys: int, device: torch.device) -> Links:
        found = "links", rows, keys, device
        if found not in self._cache:
            repeated = self.links.repeat(self._repeats(rows, len(self.links.owners)))
            self._cache[found] = repeated.spread(keys, self.links.bindings).on(device)
        return self._cache[found]

    def _repeats(self, rows: int, given: int) -> int:
        count, rest = divmod(rows, given)
        if rest or not count:
            raise ValueError(
                f"{rows} pictures are sampled where {given} are bound: call the pipeline with the same prompts"
            )
        if self.pictures not in (None, rows):
            raise ValueError(
                f"a pass has {rows} rows of this guidance branch where {self.pictures} pictures are drawn: the "
                "pipeline stacks its batch in a way that is not known here, so its rows cannot be told apart"
            )
        return count
