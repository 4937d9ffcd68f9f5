"""Two-dimensional Gaussian mixtures with exact denoiser, density and samples (the toy of arXiv 2404.14507, Table 4).

The paper does not print the width of its components; ours are stated with every result.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mezzotint.diffusion import rng


@dataclass(frozen=True)
class Mixture:
    """Equal-weight mixture of round Gaussians of standard deviation `std` around `means`; float64."""

    means: Float[Tensor, "components dims"]
    std: float

    @classmethod
    def lattice(cls, columns: int, rows: int, std: float) -> Mixture:
        """Components on a columns x rows grid over [-1, 1]^2."""
        x, y = torch.linspace(-1, 1, columns, dtype=torch.float64), torch.linspace(-1, 1, rows, dtype=torch.float64)
        return cls(torch.cartesian_prod(x, y), std)

    def draw(self, count: int, *, seed: int, sigma: float = 0.0) -> Float[Tensor, "count dims"]:
        """Samples of the data with noise of standard deviation `sigma` added."""
        generator = rng.stream(seed, "mixture")
        component = torch.randint(len(self.means), (count,), generator=generator)
        noise = torch.randn(count, self.means.shape[1], generator=generator, dtype=torch.float64)
        return self.means[component] + math.hypot(self.std, sigma) * noise

    def denoise(self, x: Float[Tensor, "batch dims"], sigma: Tensor | float) -> Float[Tensor, "batch dims"]:
        """E[x0 | x0 + sigma eps = x]; sigma is a number or has one column."""
        spread = self.std**2 + torch.as_tensor(sigma, dtype=torch.float64) ** 2
        nearness = torch.softmax(-(torch.cdist(x.double(), self.means) ** 2) / (2 * spread), dim=1)
        centre = nearness @ self.means
        return centre + (self.std**2 / spread) * (x.double() - centre)

    def negative_log_likelihood(self, x: Float[Tensor, "count dims"], *, sigma: float = 0.0) -> Float[Tensor, " count"]:
        """-ln density of each sample under the data with noise `sigma` added, in nats."""
        variance = self.std**2 + sigma**2
        logs = -(torch.cdist(x.double(), self.means) ** 2) / (2 * variance)
        constant = x.shape[1] / 2 * math.log(2 * math.pi * variance) + math.log(len(self.means))
        return constant - torch.logsumexp(logs, dim=1)
