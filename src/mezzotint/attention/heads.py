"""The arithmetic of one attention layer: softmax(Q K^T * scale + bias) V over heads (arXiv 1706.03762, section 3.2).

Everything here is a pure function of tensors. The fused kernel is `torch.nn.functional.scaled_dot_product_attention`;
`probabilities` is the explicit form for those who must see or change them. A bias is always four-dimensional and
broadcasts to [rows, heads, queries, keys]; the fused kernels take such a broadcast without expanding it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

Projection = Callable[[nn.Module, Tensor], Tensor]


def split_heads(
    tokens: Float[Tensor, "batch tokens channels"], heads: int
) -> Float[Tensor, "batch heads tokens head_dim"]:
    """Channels are divided among the heads, first head first."""
    return tokens.unflatten(-1, (heads, -1)).transpose(1, 2)


def merge_heads(
    tokens: Float[Tensor, "batch heads tokens head_dim"],
) -> Float[Tensor, "batch tokens channels"]:
    """The inverse of `split_heads`."""
    return tokens.transpose(1, 2).flatten(-2)


def project_query(
    attention: Any, hidden: Float[Tensor, "batch queries width"]
) -> Float[Tensor, "batch heads queries head_dim"]:
    """Queries of a diffusers `Attention` layer, normalised if the layer normalises them."""
    query = split_heads(attention.to_q(hidden), attention.heads)
    return query if attention.norm_q is None else attention.norm_q(query)


def project_keys_values(
    attention: Any,
    key_context: Float[Tensor, "batch keys width"],
    value_context: Float[Tensor, "batch keys width"],
    *,
    cross: bool,
    project: Projection | None = None,
) -> tuple[Float[Tensor, "batch heads keys head_dim"], Float[Tensor, "batch heads keys head_dim"]]:
    """Keys and values of a diffusers `Attention` layer.

    Args:
        attention: the layer; its linear maps are called as modules, so LoRA layers in their place take part.
        key_context: tokens the keys are made of.
        value_context: tokens the values are made of.
        cross: whether the tokens come from outside, and so pass the layer's context norm where it has one.
        project: replaces `linear(context)` for `to_k` and `to_v`, e.g. to add one concept's low-rank update.
    """
    same = value_context is key_context
    if cross and attention.norm_cross is not None:
        key_context = attention.norm_encoder_hidden_states(key_context)
        value_context = key_context if same else attention.norm_encoder_hidden_states(value_context)
    apply = project or (lambda linear, context: linear(context))
    key = split_heads(apply(attention.to_k, key_context), attention.heads)
    value = split_heads(apply(attention.to_v, value_context), attention.heads)
    return (key if attention.norm_k is None else attention.norm_k(key)), value


def low_rank(
    tokens: Float[Tensor, "*batch in"], A: Float[Tensor, "rank in"], B: Float[Tensor, "out rank"]
) -> Float[Tensor, "*batch out"]:
    """B A x, the update of a linear layer (arXiv 2106.09685, equation 3), in the precision of the tokens."""
    return F.linear(F.linear(tokens, A.to(tokens)), B.to(tokens))


def padded(tensor: Float[Tensor, "..."], length: int, dim: int, value: float = 0.0) -> Float[Tensor, "..."]:
    """The tensor with a value appended along a dimension (counted from 0), up to a length."""
    missing = length - tensor.shape[dim]
    return F.pad(tensor, [0, 0] * (tensor.ndim - 1 - dim) + [0, missing], value=value) if missing else tensor


def as_bias(
    mask: Float[Tensor, "..."] | Bool[Tensor, "..."], like: Float[Tensor, "rows heads queries head_dim"], keys: int
) -> Float[Tensor, "b h q k"]:
    """Brings a mask to the four dimensions, dtype and device of an additive bias on logits.

    Args:
        mask: 1 to 4 dimensions that broadcast from the right to [rows, heads, queries, keys]. Boolean: True lets
            attend. Fewer keys than `keys` (but more than one): the missing ones are the last, and are left alone.
        like: the queries.
        keys: number of keys.

    Raises:
        ValueError: the mask does not broadcast.
    """
    rows, heads, queries, _ = like.shape
    if mask.dtype == torch.bool:
        mask = torch.zeros(mask.shape, dtype=like.dtype, device=mask.device).masked_fill(~mask, -math.inf)
    if not 1 <= mask.ndim <= 4:
        raise ValueError(f"a mask has 1 to 4 dimensions (rows, heads, queries, keys), got shape {tuple(mask.shape)}")
    bias = mask.to(dtype=like.dtype, device=like.device).reshape((1,) * (4 - mask.ndim) + tuple(mask.shape))
    if 1 < bias.shape[-1] < keys:
        bias = F.pad(bias, (0, keys - bias.shape[-1]))
    if any(size not in (1, wanted) for size, wanted in zip(bias.shape, (rows, heads, queries, keys), strict=True)):
        raise ValueError(
            f"a mask of shape {tuple(mask.shape)} does not broadcast to (rows, heads, queries, keys) = "
            f"{(rows, heads, queries, keys)}"
        )
    return bias


def fused(
    query: Float[Tensor, "rows heads queries head_dim"],
    key: Float[Tensor, "rows heads keys head_dim"],
    value: Float[Tensor, "rows heads keys head_dim"],
    bias: Float[Tensor, "b h q k"] | None = None,
    *,
    scale: float | None = None,
) -> Float[Tensor, "rows heads queries head_dim"]:
    """softmax(query key^T * scale + bias) value in one kernel; `scale` None means head_dim ** -0.5."""
    return F.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=scale)


def probabilities(
    query: Float[Tensor, "rows heads queries head_dim"],
    key: Float[Tensor, "rows heads keys head_dim"],
    bias: Float[Tensor, "b h q k"] | None = None,
    *,
    scale: float | None = None,
) -> Float[Tensor, "rows heads queries keys"]:
    """softmax(query key^T * scale + bias) over keys, at least in single precision, also under autocast.

    Rows whose every key has bias -inf are NaN, as in the fused kernel's definition.
    """
    precision = torch.promote_types(query.dtype, torch.float32)
    with torch.autocast(query.device.type, enabled=False):
        scaled = query.to(precision) * (query.shape[-1] ** -0.5 if scale is None else scale)
        logits = scaled @ key.to(precision).transpose(-1, -2)
        return (logits if bias is None else logits + bias.to(precision)).softmax(-1)
