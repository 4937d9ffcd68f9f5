"""Regions: contexts, and updates of the projections, that hold for a part of the picture only.

    output = (1 - sum_i w_i) * base + sum_i w_i * softmax(Q K_i^T * scale) V_i,   K_i = (W_k + B_i A_i) c_i

Cross-attention treats every query by itself, so a region is computed for the cells of its own alone: what N regions
cost is their area, not N passes. Their keys and values do not depend on the picture; they are worked out once a run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from mezzotint.attention.edits import Call, Edit, Keys, Moment, Queries, States
from mezzotint.attention.heads import Projection, as_bias, fused, low_rank, padded, project_keys_values
from mezzotint.attention.sites import Grid, Kind, resize_maps

__all__ = ["LowRank", "Region", "Regions"]

LowRank: TypeAlias = Mapping[str, tuple[Tensor, Tensor]]
"""Full name of a linear layer ("<site>.to_k") -> A [rank, in] and B [out, rank] of an update B A."""

Weight: TypeAlias = Float[Tensor, "height width"] | Callable[[Grid], Float[Tensor, "height width"]]
Text: TypeAlias = Float[Tensor, "rows tokens context_dim"]


@dataclass(frozen=True, eq=False)
class Region:
    """A context of its own for a part of the picture.

    Attributes:
        weight: share of this region in every cell, [height, width] in 0..1, resized to each site by area; or a function
            from a site's grid to its weights, for those who round in their own way.
        context: [rows or 1, tokens, context_dim] of the layers edited; None for the tokens that the model gives; or
            one of these by the name of the guidance branch (a branch without a name here gets the model's tokens).
        bias: additive mask of the given contexts' tokens, [rows or 1, tokens]. The model's tokens keep the model's.
        project: (linear, context) -> projected context, in place of `linear(context)` for `to_k` and `to_v`.
        low_rank: updates of `to_k` and `to_v` that hold in this region, added to the projection.
    """

    weight: Weight
    context: Text | Mapping[str, Text | None] | None
    bias: Float[Tensor, "rows tokens"] | None = None
    project: Projection | None = None
    low_rank: LowRank = field(default_factory=dict)

    def weights(self, grid: Grid) -> Float[Tensor, " cells"]:
        """Weights of the cells of a site, row by row of the picture."""
        weight = resize_maps(self.weight, grid) if isinstance(self.weight, Tensor) else self.weight(grid)
        if tuple(weight.shape) != grid or bool((weight < 0).any()):
            raise ValueError(f"region weights on a grid {grid} are its cells' shares, at least 0; got {weight}")
        return weight.flatten()

    def parts(self, call: Call) -> Iterator[tuple[Tensor | None, slice]]:
        """Its contexts with the rows of a call that read them."""
        if not isinstance(self.context, Mapping):
            yield self.context, slice(0, len(call.hidden))
            return
        for branch, rows in call.by_branch():
            yield self.context.get(branch), rows

    def projection(self, call: Call) -> Projection:
        """How keys and values are computed from a context inside the region."""
        plain = self.project or (lambda linear, context: linear(context))

        def projected(linear: Any, context: Tensor) -> Tensor:
            part = "to_k" if linear is call.attention.to_k else "to_v"
            update = self.low_rank.get(f"{call.site.name}.{part}")
            known = plain(linear, context)
            return known if update is None else known + low_rank(context, *update).to(known.dtype)

        return projected


@dataclass(frozen=True, eq=False)
class _Held:
    """Keys and values of one region at one site, and what they were made of."""

    stamp: tuple[object, ...]
    alive: tuple[Tensor, ...]
    key: Keys
    value: Keys
    lengths: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Regions(Edit):
    """Several contexts mixed by spatial weights: output = (1 - sum_i w_i) * base + sum_i w_i * attention(Q, K_i, V_i).

    Masks of other edits and of the model concern the base context, whose tokens they name. Weights are worked out once
    per grid. Keys and values are worked out once per run and site: anew at step 0, and when the context or a weight of
    the layer has changed since; they are not kept while gradients of any of these are wanted.

    Attributes:
        regions: at least one; in no cell may their weights sum to more than 1.
    """

    regions: tuple[Region, ...]
    kind: Kind | None = field(default="cross", kw_only=True)
    _cells: dict[Any, Any] = field(default_factory=dict, init=False, repr=False)
    _held: dict[tuple[str, int], _Held] = field(default_factory=dict, init=False, repr=False)

    def begin(self, moment: Moment) -> None:
        """A run begins at step 0: forget the last one's keys and values."""
        if moment.step == 0:
            self._held.clear()

    def mix(self, call: Call, output: Queries, states: States) -> Queries:
        """Stage 5."""
        base, cells = self._on_grid(call.require_grid(), output.device)
        mixed = output * base.to(output.dtype)[:, None]
        layer, query = _weights_of(call), states.query
        made_of = (query.dtype, torch.is_inference_mode_enabled(), call.branches, *map(_stamp, (*layer, call.context)))
        trained = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (*layer, call.context))
        for index, (chosen, weights) in enumerate(cells):
            if len(chosen):
                key, value, bias = self._keys_values(index, call, states, None if trained else made_of)
                part = fused(query[:, :, chosen], key, value, bias, scale=states.scale)
                part = part if weights is None else part * weights.to(part.dtype)[:, None]
                mixed.index_add_(2, chosen, part.to(mixed.dtype))
        return mixed

    def _on_grid(self, grid: Grid, device: torch.device) -> tuple[Tensor, list[tuple[Tensor, Tensor | None]]]:
        """Weights of the base, and the cells and weights of each region (None where all are 1)."""
        if (grid, device) not in self._cells:
            shares = torch.stack([region.weights(grid).to(device, torch.float32) for region in self.regions])
            total = shares.sum(0)
            if total.max() > 1 + 1e-4:
                raise ValueError(f"weights of the regions sum to {total.max():.4g} in a cell; at most 1 is allowed")
            cells = []
            for share in shares:
                chosen = share.nonzero().flatten()
                cells.append((chosen, None if bool((share[chosen] == 1).all()) else share[chosen]))
            self._cells[grid, device] = (1 - total).clamp(0, 1), cells
        return self._cells[grid, device]

    def _keys_values(
        self, index: int, call: Call, states: States, made_of: tuple[object, ...] | None
    ) -> tuple[Keys, Keys, Tensor | None]:
        """Keys, values and mask of a region; kept while what they are made of is the same (None: never)."""
        region = self.regions[index]
        parts = list(region.parts(call))
        texts = [text for text, _ in parts if text is not None]
        own = (*texts, *(matrix for pair in region.low_rank.values() for matrix in pair))
        keep = made_of is not None and not (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in own))
        stamp = (*(made_of or ()), *map(_stamp, texts))
        held = self._held.get((call.site.name, index))
        if held is None or not keep or held.stamp != stamp:
            held = _project(region, call, parts, stamp)
            if keep:
                self._held[call.site.name, index] = held
        return held.key, held.value, _bias(region, states, parts, held.lengths)


def _weights_of(call: Call) -> list[Tensor]:
    """What keys and values are computed with: parameters, and buffers, where quantised layers keep theirs."""
    layers = (call.attention.to_k, call.attention.to_v)
    return [tensor for layer in layers for tensor in (*layer.parameters(), *layer.buffers())]


def _stamp(tensor: Tensor) -> tuple[object, ...]:
    """Tells a tensor that is alive from every other one, and from itself before a change in place."""
    version = None if tensor.is_inference() else tensor._version
    return tensor.data_ptr(), tensor.shape, tensor.dtype, version


def _project(
    region: Region, call: Call, parts: Sequence[tuple[Tensor | None, slice]], stamp: tuple[object, ...]
) -> _Held:
    """Keys and values of a region; those of guidance branches with fewer tokens are filled up with zeros."""
    keys, values = [], []
    for given, rows in parts:
        context = call.context[rows] if given is None else given.to(call.context)
        count = rows.stop - rows.start
        if context.shape[0] not in (1, count):
            raise ValueError(f"a region's context has {context.shape[0]} rows; 1 or {count} are needed here")
        cross = call.site.kind == "cross"
        key, value = project_keys_values(call.attention, context, context, cross=cross, project=region.projection(call))
        keys.append(key.expand(count, -1, -1, -1))
        values.append(value.expand(count, -1, -1, -1))
    lengths = tuple(key.shape[2] for key in keys)
    alive = (call.context, *(text for text, _ in parts if text is not None))
    return _Held(stamp, alive, _joined(keys), _joined(values), lengths)


def _bias(
    region: Region, states: States, parts: Sequence[tuple[Tensor | None, slice]], lengths: Sequence[int]
) -> Float[Tensor, "rows heads 1 keys"] | None:
    """Masks of the contexts: the region's own, the model's for the model's tokens, -inf for what is filled up."""
    own = states.own.bias if states.own is not None else None
    given = [(own if text is None else region.bias) for text, _ in parts]
    if all(mask is None for mask in given) and len(set(lengths)) == 1:
        return None
    heads, longest = states.query.shape[1], max(lengths)
    biases = []
    for (text, rows), mask, length in zip(parts, given, lengths, strict=True):
        like = states.query[rows]
        if mask is None:
            mask = like.new_zeros(1, 1, 1, length)
        elif text is None:
            mask = (mask if len(mask) == 1 else mask[rows])[..., :length]
        else:
            mask = mask[:, None, None]
        bias = as_bias(mask, like, length).expand(len(like), heads, -1, length)
        biases.append(padded(bias, longest, 3, -math.inf))
    return torch.cat(biases)


def _joined(several: Sequence[Tensor]) -> Tensor:
    """Rows below each other, the shorter filled up with zeros."""
    longest = max(each.shape[2] for each in several)
    return several[0] if len(several) == 1 else torch.cat([padded(each, longest, 2) for each in several])
