"""The loss of one batch: LCM (arXiv 2310.04378, algorithm 1) and SPLAM (2404.13903), which is LCM at g = 1.

    target = f_{theta-}(x_t', 1, t'),   loss = Huber(f_theta(x_g, g, t), target)

theta- is the moving average that `training.fit` keeps; it is part of its checkpoints, so a resumed run is exact.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mezzotint.diffusion import Condition, Denoiser, Predictor
from mezzotint.runtime.arithmetic import Arithmetic
from mezzotint.training import Step

from .embedding import WIDTH
from .huber import huber, squares
from .networks import Averaged
from .points import POINTS, skip, solver_points
from .student import Conditioning, Point, Student
from .sub_path import Jump, SigmaMode, line
from .teacher import bound, exact, teacher_step

__all__ = ["Batched", "Objective", "Prepare", "Settings"]

STUDENT = "student"
Batched = tuple[Tensor, Condition | None, Condition | None]
Prepare = Callable[[Any, Step], Batched]
"""Clean latents with their conditions and unconditional conditions, from a batch of the data."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the loss depends on.

    Attributes:
        points: N.
        teacher_steps: equal DDIM steps of the teacher in one jump; the papers make one (more is ours).
        weights: range of the guidance weight w.
        embed_weight: tell the network w instead of gamma (LCM).
        conditioning: how the network is told gamma.
        gamma: uniform on [0, 1), always 1 (LCM) or always 0 (ablation).
        gamma_one_prob: probability of g = 1 beside the uniform draw.
        sigma_mode: noise of the sub-path.
        drift: the factor r on the sub-path; without it r = 1 (ablation).
        averaged: the target is the moving average; else the student itself without gradient (LCM-LoRA).
        distance: Huber, or squares (ablation).
        width: features of the embedding.
        teacher_precision: "bfloat16" for autocast around the teacher.
    """

    points: int = POINTS
    teacher_steps: int = 1
    weights: tuple[float, float] = (8.0, 8.0)
    embed_weight: bool = False
    conditioning: Conditioning = "embedding"
    gamma: Literal["uniform", "one", "zero"] = "uniform"
    gamma_one_prob: float = 0.0
    sigma_mode: SigmaMode = "quadrature"
    drift: bool = True
    averaged: bool = True
    distance: Literal["huber", "squares"] = "huber"
    width: int = WIDTH
    teacher_precision: Arithmetic = "float32"


class Objective:
    """The loss as `training.fit` wants it: a function of batch and step.

    Args:
        teacher: the frozen network.
        network: the student's, trained under the name "student".
        scheduler: where levels and prediction type are read.
        prepare: gives latents and conditions.
        settings: see `Settings`.

    Raises:
        ValueError: N does not divide the training timesteps.
    """

    def __init__(
        self, teacher: Predictor, network: nn.Module, scheduler: Any, *, prepare: Prepare, settings: Settings
    ) -> None:
        self.teacher, self.prepare, self.settings = teacher, prepare, settings
        self.levels = exact(teacher.levels)
        self.skip = skip(settings.points, len(self.levels))
        self.taus = torch.tensor(solver_points(settings.points, len(self.levels)))
        self.average = Averaged(network)
        how: dict[str, Any] = {"conditioning": settings.conditioning, "width": settings.width}
        self.student = Student(Denoiser(network, scheduler), **how)
        self.target = Student(Denoiser(self.average, scheduler), **how)

    def __call__(self, batch: Any, step: Step) -> Tensor:
        """The mean loss of a part of a batch."""
        latents, cond, uncond = self.prepare(batch, step)
        made = batch if "x_to" in batch else self.jumps(latents, (cond, uncond), step)
        x_t, x_to, t, weight = (made[name] for name in ("x_t", "x_to", "t", "weight"))
        jump = self._jump(t)
        told = weight if self.settings.embed_weight else None
        goal = self._target(x_to, jump, cond, weight=told, step=step)
        gamma = self._gamma(step)
        ratio = jump.ratio if self.settings.drift else torch.ones_like(jump.ratio)
        x_g = line(x_t, x_to, ratio, gamma)
        output = self.student(x_g, Point.on_path(jump, gamma, self.settings.sigma_mode), cond, weight=told)
        return (huber if self.settings.distance == "huber" else squares)(output, goal)

    @torch.no_grad()
    def jumps(self, latents: Tensor, conds: tuple[Condition | None, Condition | None], step: Step) -> dict[str, Tensor]:
        """Noised latents x_t, where the teacher takes them, x_to, their timesteps and guidance weights."""
        t = self.taus.to(step.device)[step.integers("point", 0, self.settings.points)]
        weight = self._weight(step)
        x_t = self.levels.add_noise(latents, step.normal("noise", *latents.shape[1:]), t)
        return {"x_t": x_t, "x_to": self._teacher_step(x_t, self._jump(t), conds, weight), "t": t, "weight": weight}

    def _jump(self, t: Tensor) -> Jump:
        return Jump.between(self.levels, t, (t - self.skip).clamp(min=0))

    def _teacher_step(
        self, x_t: Tensor, jump: Jump, conds: tuple[Condition | None, Condition | None], weight: Tensor
    ) -> Tensor:
        low, high = self.settings.weights
        found = bound(self.teacher, *conds, low if low == high else weight)
        model, precision = found or self.teacher, self.settings.teacher_precision
        parts = self.settings.teacher_steps
        for left in range(parts, 0, -1):
            t, to = (jump.to + (jump.t - jump.to) * n // parts for n in (left, left - 1))
            x_t = teacher_step(model, x_t, t, to, levels=self.levels, precision=precision)
        return x_t

    @torch.no_grad()
    def _target(self, x_to: Tensor, jump: Jump, cond: Condition | None, *, weight: Tensor | None, step: Step) -> Tensor:
        student = self.student
        if self.settings.averaged:
            if step.ema is None:
                raise ValueError("the target is a moving average: give fit a Config with ema, and ema_warmup=False")
            self.average.values, student = step.ema.of(STUDENT), self.target
        return student(x_to, Point.end(self.levels, jump.to), cond, weight=weight)

    def _gamma(self, step: Step) -> Float[Tensor, " batch"]:
        drawn = step.uniform("gamma")
        if self.settings.gamma != "uniform":
            return torch.full_like(drawn, float(self.settings.gamma == "one"))
        return torch.where(step.uniform("gamma one") < self.settings.gamma_one_prob, 1.0, drawn)

    def _weight(self, step: Step) -> Float[Tensor, " batch"]:
        return step.uniform("guidance", *self.settings.weights)
