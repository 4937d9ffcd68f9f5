"""Part A of the experiment: a mixture in the plane whose teacher is exact, so that only the distillation can be wrong.

Nine round Gaussians on a 3 x 3 grid under Stable Diffusion's noise levels; the student is a small network, trained on
the noise first and then distilled with the same loss as pipelines are.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from diffusers import DDPMScheduler
from diffusers.models.embeddings import Timesteps
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from mezzotint.diffusion import Condition, Denoiser, Levels, Predictor, rng
from mezzotint.metrics.distances import energy_distance
from mezzotint.training import Config, Step, fit

from .embedding import WIDTH
from .objective import STUDENT, Objective, Settings
from .points import POINTS, sampling_timesteps
from .sampler import multistep
from .student import Point, Student
from .teacher import exact, teacher_step

__all__ = ["ARMS", "FULL", "QUICK", "ExactTeacher", "Size", "Small", "distilled", "measure_plane", "pretrained"]

ENERGY, END = "energy distance", "distance to the end of the ODE"
PLACE = "3x3 mixture"
SPACING, STD = 1.5, 0.12

IMPROVED = Settings(conditioning="effective_time", sigma_mode="linear", gamma_one_prob=0.5)
ARMS: dict[str, Settings] = {
    "SPLAM improved": IMPROVED,
    "SPLAM official": Settings(),
    "LCM-fixed-w": Settings(gamma="one"),
    "linear noise, gamma one": Settings(sigma_mode="linear", gamma_one_prob=0.5),
    "gamma zero": replace(IMPROVED, gamma="zero", gamma_one_prob=0.0),
    "no drift factor": replace(IMPROVED, drift=False),
    "no average": replace(IMPROVED, averaged=False),
    "squares": replace(IMPROVED, distance="squares"),
    "10 points": replace(IMPROVED, points=10),
    "100 points": replace(IMPROVED, points=100),
    "4 points of 5 teacher steps": replace(IMPROVED, points=4, teacher_steps=5),
    "LCM, 4 points of 5 teacher steps": Settings(gamma="one", points=4, teacher_steps=5),
}


@dataclass(frozen=True)
class Size:
    """How much is run."""

    pretrain: int
    steps: int
    arms: tuple[str, ...]
    samples: int = 2000
    data: int = 3000
    paired: int = 500
    batch: int = 256
    learning_rate: float = 2e-4


CHEAP = ("SPLAM improved", "SPLAM official", "LCM-fixed-w", "gamma zero")
QUICK = Size(2500, 1200, CHEAP, samples=1000, data=1500, paired=200)
FULL = Size(4000, 1200, tuple(ARMS))


def scheduler() -> DDPMScheduler:
    """Stable Diffusion's noise levels."""
    return DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)


def centres() -> Float[Tensor, "9 2"]:
    """Means of the components."""
    places = torch.tensor([-SPACING, 0.0, SPACING])
    return torch.cartesian_prod(places, places)


def data(count: int, generator: torch.Generator) -> Float[Tensor, "count 2"]:
    """Samples of the mixture."""
    chosen = torch.randint(9, (count,), generator=generator)
    return centres()[chosen] + STD * torch.randn(count, 2, generator=generator)


class ExactTeacher(Predictor):
    """The noise that the best denoiser of the mixture predicts."""

    prediction_type = "epsilon"

    def __init__(self) -> None:
        self.levels: Levels = Denoiser(nn.Linear(2, 2), scheduler()).levels

    def model_output(self, x: Tensor, t: Any, cond: Condition | None = None) -> Tensor:
        """E[eps | x_t = x] (float32)."""
        del cond
        alpha, std = (torch.as_tensor(v).float().reshape(-1, 1) for v in (self.levels.alpha(t), self.levels.std(t)))
        gaps = x[:, None] - alpha[..., None] * centres()
        variance = alpha**2 * STD**2 + std**2
        share = torch.softmax(-gaps.square().sum(-1) / (2 * variance), dim=1)
        return std / variance * (share[..., None] * gaps).sum(1)


class Small(nn.Module):
    """Three residual layers of 96 with 64 timestep features, and the layer for the embedding of gamma."""

    def __init__(self, width: int = 96, features: int = 64) -> None:
        super().__init__()
        self.time_proj = Timesteps(features, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.cond_proj = nn.Linear(WIDTH, features, bias=False)
        self.time = nn.Sequential(nn.Linear(features, width), nn.SiLU(), nn.Linear(width, width))
        self.enter = nn.Linear(2, width)
        self.layers = nn.ModuleList(nn.Sequential(nn.SiLU(), nn.Linear(width, width)) for _ in range(3))
        self.leave = nn.Linear(width, 2)
        nn.init.zeros_(self.cond_proj.weight)

    def forward(self, x: Tensor, timestep: Tensor, timestep_cond: Tensor | None = None) -> Tensor:
        """Predict noise."""
        features = self.time_proj(timestep)
        if timestep_cond is not None:
            features = features + self.cond_proj(timestep_cond)
        time = self.time(features)
        hidden = self.enter(x)
        for layer in self.layers:
            hidden = hidden + layer(hidden + time)
        return self.leave(hidden)


def pretrained(size: Size, seed: int) -> Small:
    """A small network that predicts noise."""
    with torch.random.fork_rng(devices=[]):
        torch.set_rng_state(rng.stream(seed, "splam/plane").get_state())
        network = Small()
    levels = ExactTeacher().levels

    def loss(batch: Any, step: Step) -> Tensor:
        noise, t = step.normal("noise", 2), step.integers("t", 0, len(levels))
        return F.mse_loss(network(levels.add_noise(batch["x"], noise, t), t), noise)

    rate = Config(
        steps=size.pretrain, batch_size=size.batch, learning_rate=2e-3, schedule="cosine", weight_decay=0.0, seed=seed
    )
    fit(loss, network, _fresh(size.batch), rate, progress=False)
    return network


def distilled(start: Small, settings: Settings, size: Size, seed: int) -> Student:
    """The student of one arm, with averaged weights."""
    network = copy.deepcopy(start)
    if settings == Settings():
        # The official form leaves torch's default initialisation in place.
        nn.init.kaiming_uniform_(network.cond_proj.weight, a=5**0.5, generator=rng.stream(seed, "splam/plane/cond"))
    objective = Objective(
        ExactTeacher(), network, scheduler(), prepare=lambda batch, _: (batch["x"], None, None), settings=settings
    )
    config = Config(
        steps=size.steps,
        batch_size=size.batch,
        learning_rate=size.learning_rate,
        weight_decay=0.0,
        ema=0.95 if settings.averaged else None,
        ema_warmup=False,
        seed=seed,
    )
    done = fit(objective, {STUDENT: network}, _fresh(size.batch), config, progress=False)
    if done.ema is not None:
        done.ema.copy_to_live()
    return objective.student


def measure_plane(trial: Any, seeds: Sequence[int], size: Size) -> None:
    """Energy distance to data and distance to the ODE's end point, at 1, 2 and 4 steps.

    Args:
        trial: the experiment; its arms are those of `size`, "teacher DDIM" and "teacher, 50 steps".
        seeds: of networks, training and samples.
        size: how much is run.
    """
    students = [_students(size, seed) for seed in seeds]
    for steps in (1, 2, 4):
        energy: dict[str, list[float]] = {}
        ends: dict[str, list[list[float]]] = {}
        for seed, found in zip(seeds, students, strict=True):
            for arm, (value, gaps) in _values(found, steps, size, seed).items():
                energy.setdefault(arm, []).append(value)
                ends.setdefault(arm, []).append(gaps)
        where: dict[str, Any] = {"direction": "lower", "group": PLACE, "at": steps, "axis": "steps"}
        trial.measure(ENERGY, energy, note=f"{size.samples} samples against {size.data} of the data", **where)
        trial.measure(END, ends, counted="start noises", note="from the same start noise", **where)


def _students(size: Size, seed: int) -> dict[str, Student]:
    start = pretrained(size, seed)
    return {arm: distilled(start, ARMS[arm], size, seed) for arm in size.arms}


def _values(found: dict[str, Student], steps: int, size: Size, seed: int) -> dict[str, tuple[float, list[float]]]:
    teacher = ExactTeacher()
    noise = torch.randn(size.samples, 2, generator=rng.stream(seed, "splam/plane/start"))
    truth = data(size.data, rng.stream(seed, "splam/plane/truth"))
    end = ode(teacher, noise, sampling_timesteps(50))
    made = {arm: few_steps(student, noise, steps, seed, points=ARMS[arm].points) for arm, student in found.items()}
    made |= {"teacher DDIM": ode(teacher, noise, sampling_timesteps(steps)), "teacher, 50 steps": end}
    return {arm: (energy_distance(x, truth), (x - end).norm(dim=1)[: size.paired].tolist()) for arm, x in made.items()}


@torch.no_grad()
def ode(teacher: Predictor, noise: Tensor, timesteps: Sequence[int]) -> Tensor:
    """DDIM of the teacher down to t = 0."""
    x = noise
    for t, to in zip(timesteps, [*timesteps[1:], 0], strict=True):
        x = teacher_step(teacher, x, torch.full((len(x),), t), torch.full((len(x),), to))
    return x


def few_steps(student: Student, noise: Tensor, steps: int, seed: int, *, points: int = POINTS) -> Tensor:
    """Samples of a student, at timesteps of the solver points that it was distilled on."""
    levels = exact(student.denoiser.levels)
    timesteps = sampling_timesteps(steps, points)

    def draw(step: int) -> Tensor:
        return torch.randn(noise.shape, generator=rng.stream(seed, "splam/plane/step", step))

    return multistep(lambda x, t: student(x, Point.end(levels, t)), noise, timesteps, levels=levels, draw=draw)


def _fresh(count: int) -> Any:
    return lambda _, generator: {"x": data(count, generator)}
