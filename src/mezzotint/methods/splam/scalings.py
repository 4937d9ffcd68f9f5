"""The boundary scalings of a consistency function (arXiv 2303.01469, eq. 5; with time scaled by S in 2310.04378).

c_skip(t) = sd^2 / ((S t)^2 + sd^2) and c_out(t) = S t / sqrt((S t)^2 + sd^2), so f(x, 0) = x. c_skip + c_out^2 = 1.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["SCALING", "SIGMA_DATA", "boundary_scalings"]

# The latter is fixed in diffusers' LCMScheduler; the former is its timestep_scaling.
SCALING, SIGMA_DATA = 10.0, 0.5


def boundary_scalings(
    t: Tensor, scaling: float = SCALING, sigma_data: float = SIGMA_DATA
) -> tuple[Float[Tensor, "*batch"], Float[Tensor, "*batch"]]:
    """(c_skip, c_out) at training timesteps t, in float64.

    Args:
        t: timesteps of any shape, 0 or more.
        scaling: S.
        sigma_data: sd.
    """
    scaled = torch.as_tensor(t).double() * scaling
    total = scaled**2 + sigma_data**2
    return sigma_data**2 / total, scaled / total.sqrt()
