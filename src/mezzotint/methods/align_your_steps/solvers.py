"""The four solvers of the paper as settings of diffusers' DPM-Solver++ scheduler, fixed to one schedule.

Stochastic-DDIM is the first-order SDE-DPM-Solver++ and DDIM the first-order DPM-Solver++ (arXiv 2404.14507, A.2, and
2211.01095).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import DPMSolverMultistepScheduler
from jaxtyping import Float
from torch import Tensor

from mezzotint.diffusion import rng

from .fingerprint import fingerprint
from .schedule import Schedule

SOLVERS: dict[str, dict[str, Any]] = {
    "ddim": {"solver_order": 1, "algorithm_type": "dpmsolver++"},
    "2m": {"solver_order": 2, "algorithm_type": "dpmsolver++"},
    "s-ddim": {"solver_order": 1, "algorithm_type": "sde-dpmsolver++"},
    "sde-2m": {"solver_order": 2, "algorithm_type": "sde-dpmsolver++"},
}
STOCHASTIC = frozenset({"s-ddim", "sde-2m"})
REWRITES_SIGMAS = (
    "use_karras_sigmas",
    "use_exponential_sigmas",
    "use_beta_sigmas",
    "use_lu_lambdas",
    "use_flow_sigmas",
)


class GridScheduler(DPMSolverMultistepScheduler):
    """DPM-Solver++ of diffusers on a fixed schedule, whatever number of steps the pipeline asks for."""

    schedule: Schedule

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,  # noqa: ARG002 - diffusers' signature
        device: str | torch.device | None = None,
        mu: float | None = None,  # noqa: ARG002 - diffusers' signature
        timesteps: Sequence[int] | None = None,
    ) -> None:
        """Set the schedule's timesteps and sigmas; `num_inference_steps` is ignored.

        Raises:
            ValueError: other timesteps are asked for than the schedule's.
        """
        wanted = model_timesteps(self.schedule)
        if timesteps is not None and [int(t) for t in timesteps] != wanted:
            raise ValueError(f"this pipeline runs a schedule with timesteps {wanted}, got {list(timesteps)}")
        super().set_timesteps(timesteps=wanted, device=device)
        self.sigmas = torch.tensor(self.schedule.sampler_sigmas, dtype=torch.float32)


def model_timesteps(schedule: Schedule) -> list[int]:
    """Timesteps of the model calls; a continuous-time schedule counts its calls down."""
    return list(range(schedule.calls))[::-1] if schedule.levels is None else schedule.timesteps


def scheduler_for(schedule: Schedule, solver: str, config: Mapping[str, Any]) -> GridScheduler:
    """The scheduler that runs `solver` on `schedule` for a model with this scheduler config.

    Raises:
        ValueError: unknown solver, or a config that rewrites the sigmas or is not variance-preserving.
    """
    if solver not in SOLVERS:
        raise ValueError(f"solver must be one of {sorted(SOLVERS)}, got {solver!r}")
    flags = [name for name in REWRITES_SIGMAS if config.get(name)]
    if flags:
        raise ValueError(f"the pipeline's scheduler rewrites the noise levels ({', '.join(flags)}); switch that off")
    scheduler: GridScheduler = GridScheduler.from_config(
        config,
        **SOLVERS[solver],
        solver_type="midpoint",
        lower_order_final=True,
        final_sigmas_type="sigma_min" if schedule.final == "t_min" else "zero",
    )
    scheduler.schedule = schedule
    scheduler.set_timesteps()
    return scheduler


def training_sigmas(scheduler: Any) -> tuple[float, ...]:
    """Noise level of every training timestep, ascending, as diffusers itself computes it (float32).

    Raises:
        ValueError: the scheduler has no alphas_cumprod (flow matching, continuous-time EDM).
    """
    if getattr(scheduler, "alphas_cumprod", None) is None:
        raise ValueError(f"{type(scheduler).__name__} has no alphas_cumprod: only discrete-time models have timesteps")
    # The solver's own table: it also raises a zero terminal level to 2^-24.
    products = DPMSolverMultistepScheduler.from_config(scheduler.config).alphas_cumprod
    return tuple(((1 - products) / products).pow(0.5).tolist())


@contextmanager
def applied(schedule: Schedule, pipe: Any, *, solver: str, guidance: float | None) -> Iterator[Any]:
    """See `Schedule.apply`."""
    for text in doubts(schedule, pipe, guidance):
        warnings.warn(text, stacklevel=4)
    before = pipe.scheduler
    pipe.scheduler = scheduler_for(schedule, solver, before.config)
    try:
        yield pipe
    finally:
        pipe.scheduler = before


def doubts(schedule: Schedule, pipe: Any, guidance: float | None) -> list[str]:
    """Reasons why a schedule may not suit a pipeline, in words; empty when there are none."""
    found = []
    if is_distilled(pipe):
        found.append("the model looks like a distilled few-step one; optimised schedules do not transfer to those")
    if not 5 <= schedule.steps <= 60 and schedule.name == "align-your-steps":
        found.append(f"{schedule.steps} steps lie outside 5..60, where schedules were optimised")
    made_for = schedule.facts.get("guidance")
    if guidance is not None and isinstance(made_for, float | int) and not _within(guidance, made_for, 2.0):
        found.append(f"the schedule was optimised for guidance {made_for}, not {guidance}")
    model = schedule.facts.get("model")
    if model is not None and model != fingerprint(backbone(pipe)):
        found.append("the schedule was optimised on another checkpoint")
    return found


def backbone(pipe: Any) -> torch.nn.Module:
    """The network that a pipeline denoises with: its U-Net or its transformer.

    Raises:
        ValueError: the pipeline has neither.
    """
    network = getattr(pipe, "unet", None) or getattr(pipe, "transformer", None)
    if network is None:
        raise ValueError(f"{type(pipe).__name__} has neither a unet nor a transformer")
    module: torch.nn.Module = network
    return module


def is_distilled(pipe: Any) -> bool:
    """Whether a pipeline carries the marks of a few-step distillation (LCM, TCD, Turbo, Lightning)."""
    if getattr(backbone(pipe).config, "time_cond_proj_dim", None) is not None:
        return True
    if type(pipe.scheduler).__name__ in {"LCMScheduler", "TCDScheduler"}:
        return True
    name = str(getattr(pipe, "name_or_path", "") or "").lower()
    return any(mark in name for mark in ("turbo", "lightning", "lcm", "hyper-sd"))


def _within(a: float, b: float, factor: float) -> bool:
    low, high = sorted((max(a, 1e-9), max(b, 1e-9)))
    return high <= factor * low


@torch.no_grad()
def sample(
    denoise: Callable[[Tensor, float], Tensor],
    noise: Float[Tensor, "batch *item"],
    schedule: Schedule,
    *,
    solver: str,
    added: Callable[[int], Tensor] | None = None,
) -> Float[Tensor, "batch *item"]:
    """Run a solver of diffusers with a denoiser D(x, sigma) in variance-exploding coordinates.

    Args:
        denoise: of x = x0 + sigma eps at one noise level.
        noise: start in variance-preserving coordinates, x / sqrt(1 + sigma^2): standard normal, as diffusers has it.
        schedule: with its final treatment.
        solver: one of SOLVERS.
        added: standard normal noise of each step, for the stochastic solvers (`item_noise`, `batch_noise`).

    Returns:
        Samples at the schedule's last noise level (0 or t_0), as x0 + sigma eps.

    Raises:
        ValueError: a stochastic solver without noise.
    """
    if solver in STOCHASTIC and added is None:
        raise ValueError(f"the stochastic solver {solver!r} needs noise: pass added=item_noise(...)")
    scheduler = scheduler_for(schedule, solver, {"num_train_timesteps": 1000, "prediction_type": "sample"})
    x, visited = noise, schedule.sampler_sigmas
    for step, t in enumerate(scheduler.timesteps):
        x0 = denoise(x / _alpha(visited[step]), visited[step])
        fresh = added(step) if added is not None and solver in STOCHASTIC else None
        x = scheduler.step(x0, t, x, variance_noise=fresh, return_dict=False)[0]
    return x / _alpha(visited[-1])


def item_noise(like: Float[Tensor, "batch *item"], *, seed: int, first: int = 0) -> Callable[[int], Tensor]:
    """Noise of each step, drawn item by item: item k is the same in every batch."""

    def draw(step: int) -> Tensor:
        return rng.normal(
            tuple(like.shape[1:]),
            seed=seed,
            purpose="solver noise",
            step=step,
            first=first,
            count=len(like),
            device=like.device,
            dtype=like.dtype,
        )

    return draw


def batch_noise(like: Float[Tensor, "batch *item"], *, seed: int) -> Callable[[int], Tensor]:
    """Noise of each step, drawn at once for the whole batch: for many small items."""

    def draw(step: int) -> Tensor:
        generator = rng.stream(seed, "solver noise", step)
        return torch.randn(like.shape, generator=generator, dtype=like.dtype).to(like.device)

    return draw


def _alpha(sigma: float) -> float:
    return float((1 + sigma**2) ** -0.5)
