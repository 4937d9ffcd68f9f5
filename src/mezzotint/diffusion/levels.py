"""Noise levels as functions of alphas_cumprod, and the conversions between noise, clean sample and velocity.

Variance preserving (VP) coordinates: x_t = alpha_t x0 + std_t eps with alpha_t^2 = abar_t, std_t^2 = 1 - abar_t (DDPM,
arXiv 2006.11239, eq. 4). Velocity: v = alpha_t eps - std_t x0 (arXiv 2202.00512, appendix D). Variance exploding (VE)
coordinates, in which samplers and schedules are written: x_ve = x_t / alpha_t = x0 + sigma_t eps with
sigma_t = std_t / alpha_t (EDM, arXiv 2206.00364, table 1). log_snr_t = ln(alpha_t^2 / std_t^2) = -2 ln sigma_t.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["Levels", "Timestep", "per_item"]

Timestep: TypeAlias = int | float | Tensor
"""A training index: one number for the whole batch, or a tensor [batch]. Whole numbers look the table up, fractions
interpolate ln sigma. The whole number -1 is the level beyond the first one, at which a DDIM sampler ends."""

# A schedule rescaled to zero terminal signal has abar = 0 and an infinite sigma; diffusers' solvers use this instead.
SMALLEST_ALPHA_CUMPROD = 2.0**-24


@dataclass(frozen=True, eq=False)
class Levels:
    """The noise levels of a discrete-time diffusion model.

    Args:
        alphas_cumprod: abar_t for t = 0..steps-1, strictly decreasing, in (0, 1]. Results of `alpha`, `std`, `sigma`
            and `log_snr` have its dtype and device; the arithmetic is done in float64.
        final_alpha_cumprod: abar at t = -1: 1 (clean) or abar_0, as `set_alpha_to_one` of diffusers' DDIM decides.

    Raises:
        ValueError: if the table is not one-dimensional, shorter than 2, outside (0, 1] or not strictly decreasing.
    """

    alphas_cumprod: Float[Tensor, " steps"]
    final_alpha_cumprod: float = 1.0

    def __post_init__(self) -> None:
        table = self.alphas_cumprod
        if table.ndim != 1 or len(table) < 2:
            raise ValueError(f"alphas_cumprod must be a list of at least 2 levels, got shape {tuple(table.shape)}")
        if not bool(((table > 0) & (table <= 1)).all()) or not bool((table.diff() < 0).all()):
            raise ValueError("alphas_cumprod must decrease strictly within (0, 1]; check the scheduler's betas")

    @classmethod
    def from_scheduler(cls, scheduler: Any) -> Levels:
        """Read the levels of a diffusers scheduler; a zero terminal level is raised to 2^-24 as diffusers' solvers do.

        Raises:
            ValueError: if the scheduler has no `alphas_cumprod` (flow matching, Karras-only schedulers).
        """
        table = getattr(scheduler, "alphas_cumprod", None)
        if table is None:
            name = type(scheduler).__name__
            raise ValueError(f"{name} has no alphas_cumprod; use a discrete DDPM-like scheduler such as DDIMScheduler")
        final = float(getattr(scheduler, "final_alpha_cumprod", 1.0))
        return cls.from_alphas_cumprod(torch.as_tensor(table).clamp(min=SMALLEST_ALPHA_CUMPROD), final)

    @classmethod
    def from_alphas_cumprod(cls, alphas_cumprod: Float[Tensor, " steps"], final_alpha_cumprod: float = 1.0) -> Levels:
        """Build the levels from a table of abar_t."""
        return cls(alphas_cumprod, final_alpha_cumprod)

    def __len__(self) -> int:
        return len(self.alphas_cumprod)

    def to(self, device: torch.device | str) -> Levels:
        """Return the same levels with their table on `device`."""
        return Levels(self.alphas_cumprod.to(device), self.final_alpha_cumprod)

    @cached_property
    def sigmas(self) -> Float[Tensor, " steps"]:
        """VE noise levels sqrt((1 - abar_t) / abar_t) of all training steps, increasing."""
        return self._log_sigmas.exp().to(self.alphas_cumprod.dtype)

    def alpha(self, t: Timestep) -> Float[Tensor, "..."]:
        """Signal scale sqrt(abar_t), shaped as t."""
        return self._abar(t).sqrt().to(self.alphas_cumprod.dtype)

    def std(self, t: Timestep) -> Float[Tensor, "..."]:
        """Noise scale sqrt(1 - abar_t) in VP coordinates, shaped as t."""
        return (1 - self._abar(t)).sqrt().to(self.alphas_cumprod.dtype)

    def sigma(self, t: Timestep) -> Float[Tensor, "..."]:
        """Noise scale in VE coordinates, sqrt((1 - abar_t) / abar_t), shaped as t."""
        abar = self._abar(t)
        return ((1 - abar) / abar).sqrt().to(self.alphas_cumprod.dtype)

    def log_snr(self, t: Timestep) -> Float[Tensor, "..."]:
        """Natural logarithm of the signal-to-noise ratio abar_t / (1 - abar_t): twice DPM-Solver's lambda."""
        abar = self._abar(t)
        return (abar.log() - torch.log1p(-abar)).to(self.alphas_cumprod.dtype)

    def timestep(self, sigma: float | Tensor, *, fractional: bool = False) -> Int[Tensor, "..."] | Float[Tensor, "..."]:
        """Return the training index whose VE noise level is nearest to sigma in ln sigma (the ends clamp).

        Args:
            sigma: VE noise level, greater than 0; a number or a tensor of any shape.
            fractional: interpolate in ln sigma instead of rounding (the inverse of `sigma` within the table).

        Raises:
            ValueError: if a sigma is not positive (checked for numbers and CPU tensors).
        """
        values = torch.as_tensor(sigma, dtype=torch.float64)
        if values.device.type == "cpu" and not bool((values > 0).all()):
            raise ValueError(f"sigma must be greater than 0, got {_extremes(values)}")
        table = self._log_sigmas.to(values.device)
        wanted = values.log()
        low = torch.searchsorted(table, wanted).clamp(1, len(table) - 1) - 1
        share = ((wanted - table[low]) / (table[low + 1] - table[low])).clamp(0, 1)
        return low + share if fractional else low + (share > 0.5)

    def add_noise(
        self, x0: Float[Tensor, "batch ..."], noise: Float[Tensor, "batch ..."], t: Timestep
    ) -> Float[Tensor, "batch ..."]:
        """Return alpha_t x0 + std_t noise."""
        alpha, std = self._scales(t, x0)
        return (alpha * _wide(x0) + std * _wide(noise)).to(x0.dtype)

    def x0_from_eps(
        self, x: Float[Tensor, "batch ..."], t: Timestep, eps: Float[Tensor, "batch ..."]
    ) -> Float[Tensor, "batch ..."]:
        """Clean sample of the noisy x (VP) and its noise: (x - std_t eps) / alpha_t."""
        alpha, std = self._scales(t, x)
        return ((_wide(x) - std * _wide(eps)) / alpha).to(x.dtype)

    def eps_from_x0(
        self, x: Float[Tensor, "batch ..."], t: Timestep, x0: Float[Tensor, "batch ..."]
    ) -> Float[Tensor, "batch ..."]:
        """Noise of the noisy x (VP) and its clean sample: (x - alpha_t x0) / std_t."""
        alpha, std = self._scales(t, x)
        return ((_wide(x) - alpha * _wide(x0)) / std).to(x.dtype)

    def x0_from_v(
        self, x: Float[Tensor, "batch ..."], t: Timestep, v: Float[Tensor, "batch ..."]
    ) -> Float[Tensor, "batch ..."]:
        """Clean sample of the noisy x (VP) and its velocity: alpha_t x - std_t v."""
        alpha, std = self._scales(t, x)
        return (alpha * _wide(x) - std * _wide(v)).to(x.dtype)

    def eps_from_v(
        self, x: Float[Tensor, "batch ..."], t: Timestep, v: Float[Tensor, "batch ..."]
    ) -> Float[Tensor, "batch ..."]:
        """Noise of the noisy x (VP) and its velocity: alpha_t v + std_t x."""
        alpha, std = self._scales(t, x)
        return (alpha * _wide(v) + std * _wide(x)).to(x.dtype)

    def v_from_eps(
        self, x: Float[Tensor, "batch ..."], t: Timestep, eps: Float[Tensor, "batch ..."]
    ) -> Float[Tensor, "batch ..."]:
        """Velocity of the noisy x (VP) and its noise: (eps - std_t x) / alpha_t."""
        alpha, std = self._scales(t, x)
        return ((_wide(eps) - std * _wide(x)) / alpha).to(x.dtype)

    def v_from_x0(
        self, x: Float[Tensor, "batch ..."], t: Timestep, x0: Float[Tensor, "batch ..."]
    ) -> Float[Tensor, "batch ..."]:
        """Velocity of the noisy x (VP) and its clean sample: (alpha_t x - x0) / std_t."""
        alpha, std = self._scales(t, x)
        return ((alpha * _wide(x) - _wide(x0)) / std).to(x.dtype)

    def to_ve(self, x: Float[Tensor, "batch ..."], t: Timestep) -> Float[Tensor, "batch ..."]:
        """VP to VE coordinates: x / alpha_t."""
        return (_wide(x) / self._scales(t, x)[0]).to(x.dtype)

    def from_ve(self, x_ve: Float[Tensor, "batch ..."], t: Timestep) -> Float[Tensor, "batch ..."]:
        """VE to VP coordinates: x_ve alpha_t."""
        return (_wide(x_ve) * self._scales(t, x_ve)[0]).to(x_ve.dtype)

    def ddim_step(
        self, x: Float[Tensor, "batch ..."], eps: Float[Tensor, "batch ..."], t: Timestep, to: Timestep
    ) -> Float[Tensor, "batch ..."]:
        """Move x (VP) from level t to level `to` along its noise (DDIM, arXiv 2010.02502, eq. 12 with sigma = 0).

        Either direction: to lower noise it samples, to higher noise it inverts.
        """
        x0 = self.x0_from_eps(_wide(x), t, _wide(eps))
        return self.add_noise(x0, _wide(eps), to).to(x.dtype)

    @cached_property
    def _log_sigmas(self) -> Tensor:
        abar = self.alphas_cumprod.double()
        return 0.5 * (torch.log1p(-abar) - abar.log())

    @cached_property
    def _table(self) -> Tensor:
        # Shifted by one, so that index 0 is t = -1.
        abar = self.alphas_cumprod.double()
        return torch.cat([abar.new_tensor([self.final_alpha_cumprod]), abar])

    def _abar(self, t: Timestep) -> Tensor:
        index = torch.as_tensor(t)
        self._check(index)
        if not index.is_floating_point():
            return self._table[index.to(self._table.device) + 1]
        index = index.to(self._table.device, torch.float64)
        low = index.floor().clamp(0, len(self) - 2).long()
        log_sigma = torch.lerp(self._log_sigmas[low], self._log_sigmas[low + 1], index - low)
        return torch.sigmoid(-2 * log_sigma)

    def _check(self, index: Tensor) -> None:
        # Only where looking costs nothing: reading a value of an accelerator tensor would stall its queue.
        if index.device.type != "cpu":
            return
        lowest = 0 if index.is_floating_point() else -1
        if not bool(((index >= lowest) & (index <= len(self) - 1)).all()):
            raise ValueError(f"timestep must lie in 0..{len(self) - 1} (or be -1), got {_extremes(index)}")

    def _scales(self, t: Timestep, like: Tensor) -> tuple[Tensor, Tensor]:
        levels = self if self.alphas_cumprod.device == like.device else self.to(like.device)
        abar = levels._abar(t)
        return per_item(abar.sqrt(), like), per_item((1 - abar).sqrt(), like)


def per_item(values: float | Tensor, like: Float[Tensor, "batch ..."]) -> Float[Tensor, "..."]:
    """Shape one value, or one value an item, so that it multiplies `like`; at least float32, on its device."""
    values = torch.as_tensor(values).to(like.device, torch.promote_types(like.dtype, torch.float32))
    return values.reshape(-1, *[1] * (like.ndim - 1)) if values.ndim else values


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _extremes(values: Tensor) -> str:
    return f"{values.min().item():g}..{values.max().item():g}" if values.ndim else f"{values.item():g}"
