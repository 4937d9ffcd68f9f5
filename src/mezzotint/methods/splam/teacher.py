"""The teacher's part: one DDIM step with classifier-free guidance from t to t' (LCM, arXiv 2310.04378, sec. 4.3).

    e = e_c + w (e_c - e_u),   x0 = (x_t - s_t e) / alpha_t,   x_t' = alpha_t' x0 + s_t' e

w is diffusers' guidance scale minus 1. Identical in LCM and SPLAM.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from mezzotint.diffusion import Condition, Levels, Predictor, guided
from mezzotint.runtime.arithmetic import Arithmetic, autocast

__all__ = ["bound", "exact", "teacher_step"]


def exact(levels: Levels) -> Levels:
    """The same levels with a float64 table, whose scales come out in float64."""
    return Levels(levels.alphas_cumprod.double(), levels.final_alpha_cumprod)


def bound(
    teacher: Predictor, cond: Condition | None, uncond: Condition | None, weight: float | Tensor
) -> Predictor | None:
    """The guided teacher with its conditions bound; None for a teacher without conditions.

    Args:
        teacher: the network.
        cond: one condition for each item.
        uncond: one for all, or one for each item.
        weight: w, 0 or more; one number or one an item.
    """
    return None if cond is None else guided(teacher, cond, uncond, 1.0 + weight)


@torch.no_grad()
def teacher_step(
    teacher: Predictor,
    x: Float[Tensor, "batch *item"],
    t: Tensor,
    to: Tensor,
    *,
    levels: Levels | None = None,
    precision: Arithmetic = "float32",
) -> Float[Tensor, "batch *item"]:
    """x_t' from x_t by one DDIM step along the teacher's noise, derived from v or x0 where those are predicted.

    Args:
        teacher: unconditional, or with its conditions bound.
        x: x_t.
        t: timesteps.
        to: timesteps t'.
        levels: the teacher's own when None.
        precision: "bfloat16" for autocast around the network.
    """
    with autocast(x.device, precision):
        noise = teacher.eps(x, t).to(x.dtype)
    return (levels or teacher.levels).ddim_step(x, noise, t, to)
