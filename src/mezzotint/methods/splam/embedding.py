"""The embeddings of gamma (arXiv 2404.13903) and of the guidance weight (LCM, arXiv 2310.04378).

Both are diffusers' guidance-scale embedding, sin and cos of 1000 w at geometric frequencies: of w itself for LCM, of
10 - 10 g for SPLAM. Hence a stock pipeline called with guidance_scale = 1 feeds exactly g = 1.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from .sub_path import check_gamma

__all__ = ["WIDTH", "gamma_embedding", "guidance_embedding"]

WIDTH = 256


def guidance_embedding(weight: Float[Tensor, " batch"], width: int = WIDTH) -> Float[Tensor, "batch width"]:
    """e_w(w) = [sin(1000 w f_j)] ++ [cos(1000 w f_j)], f_j = 10000^(-j / (width/2 - 1)), float32 as in diffusers.

    Args:
        weight: w = guidance scale - 1.
        width: even number of features.
    """
    half = width // 2
    places = torch.arange(half, dtype=torch.float32, device=weight.device)
    frequencies = (places * -(math.log(10_000) / (half - 1))).exp()
    angles = (weight.float() * 1000.0)[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def gamma_embedding(gamma: Float[Tensor, " batch"], width: int = WIDTH) -> Float[Tensor, "batch width"]:
    """e(g); zeros then ones at g = 1. Its squared norm is width / 2.

    Args:
        gamma: g in [0, 1].
        width: even number of features.

    Raises:
        ValueError: g outside [0, 1].
    """
    check_gamma(gamma)
    return guidance_embedding(10.0 - 10.0 * gamma.float(), width)
