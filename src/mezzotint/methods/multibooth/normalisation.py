"""Adaptive concept normalisation and the regulariser that it makes necessary (arXiv 2404.14239, equations 2 to 4).

    vhat = v ||c_l|| / ||v||,    penalty = lambda ||v||^2

c_l is the row of the class noun in the text encoder's token table. The loss depends on v through vhat alone, so its
gradient is orthogonal to v and every plain gradient step lengthens v: the penalty is the only force along v.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["class_embedding", "class_norm", "normalise", "squared_norm"]


def normalise(v: Float[Tensor, "*batch width"], length: float) -> Float[Tensor, "*batch width"]:
    """Give vectors the length of an ordinary word, keeping their direction (equation 3).

    Args:
        v: vectors; none may be zero.
        length: ||c_l||, above 0.

    Raises:
        ValueError: the length is not above 0.
    """
    if not length > 0:
        raise ValueError(f"length must be above 0, got {length}: the class noun has no embedding to be as long as")
    return v * (length / v.norm(dim=-1, keepdim=True))


def squared_norm(v: Float[Tensor, "batch width"]) -> Float[Tensor, ""]:
    """||v||^2, a sum over the width, averaged over the batch: the regulariser without its factor (equation 4).

    It has to be given v before normalisation; of vhat it is a constant.
    """
    return v.square().sum(-1).mean()


def class_norm(table: Float[Tensor, "words width"], ids: Sequence[int]) -> float:
    """||c_l||: the length of the class noun's row; of a noun of several tokens the mean of their lengths.

    Args:
        table: token table of a text encoder.
        ids: the noun's tokens, at least one.

    Raises:
        ValueError: there are no tokens, or their rows are zero or not finite.
    """
    rows = _rows(table, ids)
    length = float(rows.norm(dim=-1).mean())
    if not 0 < length < float("inf"):
        raise ValueError(f"the class noun's embedding has the length {length}: choose another noun")
    return length


def class_embedding(table: Float[Tensor, "words width"], ids: Sequence[int]) -> Float[Tensor, " width"]:
    """c_l itself; of a noun of several tokens their mean. What a free embedding starts from."""
    return _rows(table, ids).mean(0)


def _rows(table: Tensor, ids: Sequence[int]) -> Tensor:
    if not ids:
        raise ValueError("the class noun has no tokens")
    return table.detach()[torch.tensor(list(ids), device=table.device)].float()
