"""DDIM inversion (arXiv 2010.02502, sec. 4.3) and its exact replay.

Inversion walks from clean to noisy with the noise predicted at the target timestep on the sample of the level before,
x_i = step(x_{i-1}, eps(x_{i-1}, t_i)), as diffusers' DDIMInverseScheduler does. Sampling back evaluates the model on
x_i instead, so it drifts. The drift of every step, r_i = x_{i-1} - step(x_i, eps(x_i, t_i)), is stored and added on
replay (arXiv 2310.01506); no null-text optimisation is needed. A residual is a float64 difference of two samples and
therefore gives the earlier sample back to the last bit (float64 latents: to rounding).

Differences from DDIMInverseScheduler: any set of timesteps is allowed, and every step starts from the level the sample
really has (the scheduler assumes t - T/S, which is another level for trailing or irregular timesteps); predicted clean
samples are never clipped; the level before the first is the sampler's `final_alpha_cumprod`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from mezzotint.diffusion.condition import Condition
from mezzotint.diffusion.denoiser import Predictor

__all__ = ["Trajectory", "invert", "replay"]

OnStep = Callable[[int, Tensor], Tensor]
"""Called with (timestep of the level reached, latents there); returns the latents to go on with."""


@dataclass(frozen=True, eq=False)
class Trajectory:
    """The latents of an inversion at every level, clean first.

    Args:
        levels: training timesteps of the latents, ascending; the first is -1, the level where sampling ends.
        latents: one set of latents a level.
        residuals: float64, one a step: what a DDIM step from level i + 1 misses level i by; None if not recorded.
    """

    levels: tuple[int, ...]
    latents: Float[Tensor, "levels batch channels height width"]
    residuals: Float[Tensor, "steps batch channels height width"] | None = None

    def __len__(self) -> int:
        return len(self.levels)

    def __getitem__(self, level: int) -> Float[Tensor, "batch channels height width"]:
        """Latents at a level: 0 is clean, -1 (or the number of steps) the noisiest."""
        return self.latents[level]

    @property
    def clean(self) -> Float[Tensor, "batch channels height width"]:
        """The latents that were inverted."""
        return self.latents[0]

    @property
    def noise(self) -> Float[Tensor, "batch channels height width"]:
        """The latents at the noisiest level."""
        return self.latents[-1]


@torch.no_grad()
def invert(
    denoiser: Predictor,
    latents: Float[Tensor, "batch channels height width"],
    cond: Condition | None,
    timesteps: Iterable[int] | Tensor,
    *,
    exact: bool = True,
) -> Trajectory:
    """Find the trajectory of noisy latents that DDIM sampling would take to the given clean ones.

    Args:
        denoiser: the model, or a guided view of it (then cond is None).
        latents: clean latents, scaled as the model expects.
        cond: the condition under which to invert.
        timesteps: training timesteps of the sampler, in either order, for example `scheduler.timesteps`.
        exact: record the residuals for `replay`; costs one more model call a step.

    Raises:
        ValueError: for no, duplicated, fractional or out-of-range timesteps.
    """
    levels = (-1, *_ascending(timesteps, len(denoiser.levels)))
    path = [latents]
    for before, t in pairwise(levels):
        path.append(denoiser.levels.ddim_step(path[-1], denoiser.eps(path[-1], t, cond), before, t))
    trajectory = Trajectory(levels, torch.stack(path))
    return replace(trajectory, residuals=_residuals(trajectory, denoiser, cond)) if exact else trajectory


@torch.no_grad()
def replay(
    trajectory: Trajectory,
    denoiser: Predictor | None = None,
    cond: Condition | None = None,
    *,
    on_step: OnStep | None = None,
) -> Float[Tensor, "batch channels height width"]:
    """Sample back along a trajectory, from its noise to clean latents.

    With the denoiser and condition of the inversion this gives the inverted latents back bit for bit (the model being
    deterministic for the same batch). With another condition or an edited model it is an edit that keeps what the
    residuals know. Without denoiser the recorded latents are returned.

    Args:
        trajectory: the result of `invert`.
        denoiser: the model to sample with, or None.
        cond: its condition; None for a guided view.
        on_step: called after every step, may change the latents.

    Raises:
        ValueError: if the trajectory has no residuals, or on_step is given without denoiser.
    """
    if denoiser is None:
        if on_step is not None:
            raise ValueError("on_step needs a denoiser: without one the recorded latents are returned as they are")
        return trajectory.clean
    if trajectory.residuals is None:
        raise ValueError("the trajectory has no residuals to replay; record it with invert(..., exact=True)")
    x = trajectory.noise
    for step in reversed(range(len(trajectory) - 1)):
        t, to = trajectory.levels[step + 1], trajectory.levels[step]
        reached = denoiser.levels.ddim_step(x, denoiser.eps(x, t, cond), t, to)
        x = (reached.double() + trajectory.residuals[step]).to(x.dtype)
        x = x if on_step is None else on_step(to, x)
    return x


def _residuals(trajectory: Trajectory, denoiser: Predictor, cond: Condition | None) -> Tensor:
    residuals = []
    for step, (to, t) in enumerate(pairwise(trajectory.levels)):
        x = trajectory.latents[step + 1]
        reached = denoiser.levels.ddim_step(x, denoiser.eps(x, t, cond), t, to)
        residuals.append(trajectory.latents[step].double() - reached.double())
    return torch.stack(residuals)


def _ascending(timesteps: Iterable[int] | Tensor, count: int) -> tuple[int, ...]:
    listed = timesteps.tolist() if isinstance(timesteps, Tensor) else list(timesteps)
    ordered = tuple(sorted(int(t) for t in listed))
    if not ordered or len(set(ordered)) != len(ordered) or sorted(listed) != list(ordered):
        raise ValueError(f"timesteps must be distinct whole numbers, at least one, got {listed}")
    if ordered[0] < 0 or ordered[-1] >= count:
        raise ValueError(f"timesteps must lie in 0..{count - 1}, got {ordered[0]}..{ordered[-1]}")
    return ordered
