"""Multi-step consistency sampling (arXiv 2303.01469, algorithm 1; 2310.04378, algorithm 3), shared by all modes.

x ~ N(0, I); at every timestep x0 = f(x, 1, t), and unless it is the last one x = alpha_next x0 + s_next z with fresh z.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from mezzotint.diffusion import Levels

__all__ = ["Draw", "multistep"]

Draw = Callable[[int], Tensor]
"""Standard normal noise z that is added after step j."""


@torch.no_grad()
def multistep(
    f: Callable[[Tensor, Tensor], Tensor],
    noise: Float[Tensor, "batch *item"],
    timesteps: Sequence[int],
    *,
    levels: Levels,
    draw: Draw,
) -> Float[Tensor, "batch *item"]:
    """Clean samples after one call of f for each timestep.

    Args:
        f: consistency function of x and timesteps [batch], at g = 1.
        noise: the start, x at the first timestep.
        timesteps: strictly decreasing training timesteps.
        levels: of the model.
        draw: called once between two steps; n steps draw n - 1 times.
    """
    x = x0 = noise
    for j, t in enumerate(timesteps):
        x0 = f(x, torch.full((len(x),), t, device=x.device))
        if j + 1 < len(timesteps):
            x = levels.add_noise(x0, draw(j), timesteps[j + 1])
    return x0
