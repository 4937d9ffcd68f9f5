"""Focused cross-attention as formulas: softmax(s + M) v, from a focus map F to the additive mask M (arXiv 2404.13766).

An attribute's token may be looked at only from positions on which its head noun is looked at:

    M[p, a] = 0 if F[p, a] > tau, else -50, for the tokens a of attributes;  M[p, j] = 0 for all others.

The paper's matrix D (D[a, h] = 1 iff token h belongs to the head of the attribute that owns token a) is kept as its two
factors, `Links`: which tokens a binding's attribute owns, and which tokens its head. A focus map is one row of
positions for each binding; positions are the cells of a layer's grid, row by row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mezzotint.attention import resize_maps
from mezzotint.attention.sites import Grid

from .words import Binding

__all__ = [
    "BOS_WEIGHT",
    "Links",
    "Several",
    "account",
    "account_single",
    "additive",
    "additive_single",
    "focus_of_logits",
    "focus_of_maps",
    "link",
    "opened",
    "scaled",
    "single",
    "stacked",
    "strict_bias",
]

Several = Literal["union", "sum"]
EPSILON = 1e-6
BOS_WEIGHT = 10.0
"""D[j, 0] of every token j that belongs to no attribute, in the released code."""


@dataclass(frozen=True, eq=False)
class Links:
    """Bindings of the rows of a batch, as matrices; rows with fewer bindings than others are filled up with zeros.

    Attributes:
        owners: 1 where a token belongs to the binding's attribute.
        heads: weights of the tokens of the binding's head, which sum to 1.
        groups: which bindings' heads make up a binding's focus map: itself alone, or, where several heads of an
            attribute are summed, all bindings of that attribute.
    """

    owners: Float[Tensor, "rows bindings tokens"]
    heads: Float[Tensor, "rows bindings tokens"]
    groups: Float[Tensor, "rows bindings bindings"]

    @property
    def matrix(self) -> Bool[Tensor, "rows tokens tokens"]:
        """The paper's D."""
        return self.owners.transpose(1, 2) @ (self.heads != 0).to(self.owners) > 0

    @property
    def bindings(self) -> int:
        """Number of bindings, fillings included."""
        return self.owners.shape[1]

    def repeat(self, count: int) -> Links:
        """Every row `count` times in a row, as `num_images_per_prompt` does."""
        parts = (self.owners, self.heads, self.groups)
        return Links(*(part.repeat_interleave(count, dim=0) for part in parts))

    def on(self, device: torch.device) -> Links:
        """The same on a device."""
        return Links(self.owners.to(device), self.heads.to(device), self.groups.to(device))

    def spread(self, tokens: int, bindings: int) -> Links:
        """The same for more tokens and bindings: what is added is zero."""
        more = tokens - self.owners.shape[2], bindings - self.bindings
        if min(more) < 0:
            raise ValueError(
                f"the bindings use {self.owners.shape[2]} text tokens, but the layer attends to {tokens}: "
                "the prompt is longer than the text the model is given"
            )
        owners, heads = (F.pad(part, (0, more[0], 0, more[1])) for part in (self.owners, self.heads))
        return Links(owners, heads, F.pad(self.groups, (0, more[1], 0, more[1])))


def link(spans: Sequence[Sequence[int]], bindings: Sequence[Binding], *, several: Several = "union") -> Links:
    """The matrices of one prompt.

    Args:
        spans: token indices of every word.
        bindings: attribute and head as word indices; each once, and both with tokens.
        several: what an attribute with several heads ("red cars and bikes") may be looked at from: the union of their
            maps, each scaled by itself, or the map of their sum, as released.
    """
    length = 1 + max((token for pair in bindings for word in _words(pair) for token in spans[word]), default=0)
    owners, heads = torch.zeros(2, 1, len(bindings), length)
    groups = torch.eye(len(bindings))[None]
    for number, binding in enumerate(bindings):
        owners[0, number, list(spans[binding.attribute])] = 1
        heads[0, number, list(spans[binding.head])] = 1 / len(spans[binding.head])
        if several == "sum":
            groups[0, number] = torch.tensor([float(other.attribute == binding.attribute) for other in bindings])
    return Links(owners, heads, groups)


def stacked(links: Sequence[Links]) -> Links:
    """Links of several prompts as rows of one batch."""
    tokens = max(each.owners.shape[2] for each in links)
    bindings = max(each.bindings for each in links)
    even = [each.spread(tokens, bindings) for each in links]
    return Links(
        torch.cat([each.owners for each in even]),
        torch.cat([each.heads for each in even]),
        torch.cat([each.groups for each in even]),
    )


def scaled(strength: Float[Tensor, "*batch positions"]) -> Float[Tensor, "*batch positions"]:
    """A focus map: non-negative strengths divided by their maximum over positions (plus 1e-6)."""
    return strength / (strength.amax(-1, keepdim=True) + EPSILON)


def focus_of_maps(
    maps: Float[Tensor, "rows tokens height width"], weights: Float[Tensor, "rows bindings tokens"], grid: Grid
) -> Float[Tensor, "rows 1 bindings positions"]:
    """Focus from attention maps averaged over a run, or given: max-pooled to the layer's grid, then combined.

    Args:
        maps: one map a token, any scale; negative values (bicubic undershoot) count as 0.
        weights: which maps make up a binding's focus, `groups @ heads`.
        grid: height and width of the layer's grid; adaptive pooling where it does not divide the maps' size.
    """
    pooled = resize_maps(maps, grid, mode="max").flatten(2)
    return scaled((weights.to(pooled) @ pooled).clamp(min=0))[:, None]


def focus_of_logits(
    query: Float[Tensor, "rows heads positions head_dim"],
    key: Float[Tensor, "rows heads tokens head_dim"],
    weights: Float[Tensor, "rows bindings tokens"],
    *,
    scale: float,
    signed: bool = False,
) -> Float[Tensor, "rows heads bindings positions"]:
    """Focus from the raw logits s = q k^T * scale of the running layer, head and step: |s|, clipped at 1, then scaled.

    Where some |s| >= 1, F > tau is |s| > tau: positions that the noun repels strongly are kept as well.

    Args:
        query: queries of the layer.
        key: keys of the layer.
        weights: which tokens make up a binding's focus, `groups @ heads`.
        scale: factor of the logits.
        signed: take max(s, 0) instead of |s|, so that only attraction counts.
    """
    # Logits are linear in keys: the mean of a head's sub-token columns is the column of its mean key.
    mean_key = (weights.to(key) * scale)[:, None] @ key
    logits = mean_key @ query.transpose(-1, -2)
    strength = logits.clamp(min=0) if signed else logits.abs()
    return scaled(strength.clamp(max=1))


def opened(
    focus: Float[Tensor, "rows heads bindings positions"],
    owners: Float[Tensor, "rows bindings tokens"],
    tau: float,
    *,
    min_keep: int = 1,
) -> tuple[Bool[Tensor, "rows heads positions tokens"], Bool[Tensor, "rows heads tokens"]]:
    """Which tokens may be looked at from where, and which attributes were left alone since too little of them remained.

    A token of an attribute with several heads is open where any of its focus maps is above `tau`.

    Args:
        focus: one map a binding, at most 1.
        owners: tokens of each binding's attribute.
        tau: a position is kept where the focus is above it.
        min_keep: an attribute's tokens of which fewer positions are kept stay open everywhere.
    """
    kept = (focus > tau).to(owners).transpose(-1, -2) @ owners[:, None] > 0
    attribute = (owners.sum(1) > 0)[:, None]
    lost = attribute & (kept.sum(-2) < min_keep)
    return kept | (lost | ~attribute)[..., None, :], lost


def additive(
    open_: Bool[Tensor, "rows heads positions tokens"], value: float, dtype: torch.dtype
) -> Float[Tensor, "rows heads positions tokens"]:
    """The mask M: 0 where a token is open, `value` (-50 as released, or -inf) where it is not."""
    return torch.zeros(open_.shape, dtype=dtype, device=open_.device).masked_fill(~open_, value)


def single(owners: Float[Tensor, "rows bindings tokens"]) -> bool:
    """Whether no attribute has several heads; waits for the device."""
    return bool((owners.sum(1) <= 1).all())


def additive_single(
    focus: Float[Tensor, "rows heads bindings positions"],
    values: Float[Tensor, "rows bindings tokens"],
    tau: float,
    *,
    min_keep: int = 1,
) -> tuple[Float[Tensor, "rows heads positions tokens"], Int[Tensor, "rows heads bindings"]]:
    """`additive(*opened(...))` where no attribute has several heads: one product; and how many positions were kept.

    A token is closed by the one binding that owns it, so nothing is computed a token but the mask itself.

    Args:
        focus: one map a binding, at most 1.
        values: the value of closed tokens, finite, where a binding's attribute owns a token, else 0; a token has one
            owner at most. The mask has this dtype.
        tau: a position is kept where the focus is above it.
        min_keep: an attribute's tokens of which fewer positions are kept stay open everywhere.
    """
    closed = focus <= tau
    kept = focus.shape[-1] - closed.sum(-1)
    acting = values[:, None] * (kept >= min_keep)[..., None]
    return closed.to(values).transpose(-1, -2) @ acting, kept


def account(
    focus: Float[Tensor, "rows heads bindings positions"],
    lost: Bool[Tensor, "rows heads tokens"],
    owners: Float[Tensor, "rows bindings tokens"],
    tau: float,
) -> tuple[Float[Tensor, "rows bindings"], Float[Tensor, "rows bindings"]]:
    """Kept fraction of every focus mask, and share of heads in which its attribute was left alone, both 0..1.

    Args:
        focus: one map a binding, at most 1.
        lost: attributes' tokens that were left alone, from `opened`.
        owners: tokens of each binding's attribute.
        tau: a position is kept where the focus is above it.
    """
    kept = (focus > tau).float().mean((1, 3))
    return kept, (owners[:, None] * lost[:, :, None].to(owners)).amax(-1).mean(1)


def account_single(
    kept: Int[Tensor, "rows heads bindings"],
    owners: Float[Tensor, "rows bindings tokens"],
    positions: int,
    *,
    min_keep: int = 1,
) -> tuple[Float[Tensor, "rows bindings"], Float[Tensor, "rows bindings"]]:
    """`account` from what `additive_single` returns.

    Args:
        kept: number of positions that each binding kept.
        owners: tokens of each binding's attribute, which have one owner at most.
        positions: how many there are.
        min_keep: an attribute's tokens of which fewer positions were kept stayed open everywhere.
    """
    lost = (kept < min_keep) & owners.any(-1)[:, None]
    return (kept / positions).mean(1), lost.float().mean(1)


def strict_bias(
    query: Float[Tensor, "rows heads positions head_dim"],
    key: Float[Tensor, "rows heads tokens head_dim"],
    matrix: Bool[Tensor, "rows tokens tokens"],
    *,
    scale: float,
    tau: float = 0.6,
    value: float = -50.0,
) -> Float[Tensor, "rows heads positions tokens"]:
    """The released scripts' mask, of all tokens: (F - 1) * 50 with F = scaled(min(|s D^T|, 1)) > tau.

    Heads are summed. Tokens of no attribute have D[j, 0] = 10, so they are closed where |s of BOS| < tau / 10.

    Args:
        query: queries of the layer.
        key: keys of the layer.
        matrix: D of each row.
        scale: factor of the logits.
        tau: threshold.
        value: mask value.
    """
    weights = matrix.to(query)
    weights[..., 0] = torch.where(matrix.any(-1), weights[..., 0], BOS_WEIGHT)
    logits = query @ key.transpose(-1, -2) * scale
    strength = (logits @ weights.transpose(-1, -2)[:, None]).abs().clamp(max=1)
    kept = strength / (strength.amax(-2, keepdim=True) + EPSILON) > tau
    return (1 - kept.to(query)) * value


def _words(binding: Binding) -> tuple[int, int]:
    return binding.attribute, binding.head
