"""The regional customisation module as edits of attention (RCM; arXiv 2404.14239, section 3.3, equations 5-9).

    f_i = F[b_i],  Q_i = W_q f_i,  K_i = (W_k + B_i A_i) c_i,  V_i = (W_v + B_i A_i) c_i
    fhat_i = softmax(Q_i K_i^T / sqrt(d')) V_i

In the unconditional half every region reads the null text and keeps its LoRA, so that one box over the whole picture is
ordinary LoRA inference in both halves. Self-attention, for which the paper defines nothing, gets the LoRA position by
position: k_p = W_k f_p + sum_{i: p in b_i} w_i(p) B_i A_i f_p, and all positions attend to all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from mezzotint.attention import (
    Call,
    Edit,
    KeysValues,
    LowRank,
    Region,
    Regions,
    Site,
    backbone,
    low_rank,
    merge_heads,
    split_heads,
)
from mezzotint.attention.sites import Grid, located_sites

from .boxes import Box, position_weights

__all__ = ["Customised", "SelfLora", "TextMix", "edits", "mixed_text"]

TextMix: TypeAlias = Literal["concat", "mean", "sum"]
SelfLora: TypeAlias = Literal["regional", "off"]


def mixed_text(
    region: Float[Tensor, "*batch tokens width"], base: Float[Tensor, "*batch tokens width"], how: TextMix = "concat"
) -> Float[Tensor, "*batch mixed width"]:
    """c_i from t_i and t_base (equation 5).

    Adding them token by token pairs words that do not belong together: in "a <S> cone and a <V> cube" the first concept
    stands where the second one's region prompt, "a <V> cube", has its own. The second one is then mostly missing.
    Attention does not ask for the place of a token, so side by side is a mean without that fault: with the same text
    twice every softmax is over doubled keys, which is the softmax over the keys.

    Args:
        region: the text encoder's output for the region prompt.
        base: for the base prompt.
        how: "concat", the tokens of both side by side; "sum" as printed, which besides doubles keys and values against
            what the network knows; or their "mean".

    Raises:
        ValueError: `how` is none of these.
    """
    if how == "concat":
        return torch.cat([region, base], dim=-2)
    if how not in ("mean", "sum"):
        raise ValueError(f"text_mix must be 'concat', 'mean' or 'sum', got {how!r}")
    return region + base if how == "sum" else 0.5 * (region + base)


@dataclass(frozen=True, eq=False)
class Customised:
    """Concepts in their boxes: all that the edits of attention need.

    Attributes:
        boxes: one for each concept.
        weights: the concepts' weights where boxes overlap.
        texts: c_i of each concept, [1, tokens of c_i, width], as the attention layers read it.
        loras: the LoRA of each concept, scale 1: full name of a layer -> (A, B).
        biases: additive masks of the texts, [1, tokens]; None where the base has none.
        branch: the guidance branch that reads the texts; all others read the null text.
    """

    boxes: tuple[Box, ...]
    weights: tuple[float, ...]
    texts: tuple[Float[Tensor, "1 tokens width"], ...]
    loras: tuple[LowRank, ...]
    biases: tuple[Tensor | None, ...] = ()
    branch: str = "cond"
    _cells: dict[Any, list[tuple[Tensor, Tensor]]] = field(default_factory=dict, init=False, repr=False)

    def share(self, index: int, grid: Grid) -> Float[Tensor, "height width"]:
        """w_i(p) of one concept on a grid."""
        return position_weights(self.boxes, self.weights, grid)[index]

    def cells(self, grid: Grid, device: torch.device) -> list[tuple[Tensor, Tensor]]:
        """Cells of each concept, and its weights there; worked out once a grid."""
        if (grid, device) not in self._cells:
            shares = position_weights(self.boxes, self.weights, grid)[:-1].flatten(1).to(device)
            chosen = [share.nonzero().flatten() for share in shares]
            self._cells[grid, device] = [(where, share[where]) for where, share in zip(chosen, shares, strict=True)]
        return self._cells[grid, device]

    def cross_attention(self) -> Regions:
        """Equations 6-9 in every layer that reads the text."""
        biases = self.biases or (None,) * len(self.boxes)
        return Regions(
            tuple(
                Region(partial(self.share, index), {self.branch: text}, bias, low_rank=lora)
                for index, (text, bias, lora) in enumerate(zip(self.texts, biases, self.loras, strict=True))
            )
        )

    def self_attention(self, where: Callable[[Site], bool]) -> KeysValues:
        """The position-wise LoRA of those self-attention layers."""
        return KeysValues(self._updated, kind="self", where=where)

    def _updated(self, call: Call, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        places = self.cells(call.require_grid(), key.device)
        added = {"to_k": merge_heads(key).clone(), "to_v": merge_heads(value).clone()}
        for (chosen, weights), lora in zip(places, self.loras, strict=True):
            # B A (w x) = w B A x: weighted once for keys and values.
            tokens = call.hidden[:, chosen] * weights.to(call.hidden.dtype)[:, None]
            for part, tensor in added.items() if len(chosen) else ():
                if (pair := lora.get(f"{call.site.name}.{part}")) is not None:
                    tensor.index_add_(1, chosen, low_rank(tokens, *pair).to(tensor.dtype))
        return query, split_heads(added["to_k"], call.site.heads), split_heads(added["to_v"], call.site.heads)


def edits(model_or_pipe: Any, concepts: Customised, self_lora: SelfLora = "regional") -> tuple[Edit, ...]:
    """What to install on a backbone so that it makes these concepts in their boxes; nothing for no concept.

    Args:
        model_or_pipe: a diffusers pipeline, or its U-Net or transformer.
        concepts: with their boxes.
        self_lora: "regional", or "off" to leave self-attention as it is.

    Raises:
        ValueError: `self_lora` is neither, the backbone has no cross-attention, or its self-attention normalises keys
            (the update must come before that).
    """
    if self_lora not in ("regional", "off"):
        raise ValueError(f"self_lora must be 'regional' or 'off', got {self_lora!r}")
    network = backbone(model_or_pipe)
    located = located_sites(network)
    if not any(site.kind == "cross" for site, _ in located):
        raise ValueError(f"{type(network).__name__} has no cross-attention: no prompt can place a concept in it")
    if not concepts.boxes:
        return ()
    named = {name.rpartition(".")[0] for lora in concepts.loras for name in lora}
    adapted = {site.name: layer for site, layer in located if site.kind == "self" and site.name in named}
    if self_lora == "off" or not adapted:
        return (concepts.cross_attention(),)
    if normalised := [name for name, layer in adapted.items() if layer.norm_k is not None]:
        raise ValueError(f"{normalised[0]} normalises its keys, which regional LoRA cannot follow: use self_lora='off'")
    return concepts.cross_attention(), concepts.self_attention(lambda site: site.name in adapted)
