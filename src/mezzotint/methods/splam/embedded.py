"""Part B of the experiment: the embedded pipeline, its own solvers at few steps, and what distillation makes of it.

All arms of a seed start from the same noise under the same captions. Distilled whole networks share teacher, data, its
order, number of steps and teacher calls; LoRAs have recipes of their own. The one that is distilled with a milder
guidance is measured beside the teacher with the same guidance.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler
from jaxtyping import Float
from torch import Tensor

from mezzotint.diffusion import Condition, decode
from mezzotint.metrics.frechet import frechet_bootstrap, frechet_distance
from mezzotint.metrics.similarity import rmse
from mezzotint.runtime.arithmetic import Arithmetic, autocast

from .cache import gathered
from .options import Options
from .points import sampling_timesteps
from .sampling import fresh_noise, latents
from .trainer import distil_pipeline

__all__ = [
    "ADAPTER",
    "FULL",
    "MILD",
    "QUICK",
    "SHIPPED",
    "Adapter",
    "Bench",
    "Size",
    "distil_arms",
    "distil_mild",
    "measure_pipeline",
    "options_of",
]

RMSE, FRECHET, TO_TEACHER, RIGHT, SECONDS, CALLS = (
    "RMSE to 50 steps",
    "Frechet distance",
    "Frechet distance to 50 steps",
    "pictures right",
    "seconds per picture",
    "network calls per picture",
)
SPEED = "4 steps, teacher at 50"
IMPROVED: dict[str, Any] = {"effective_time": True, "gamma_one_prob": 0.5, "sigma_mode": "linear"}
REFERENCE, REFERENCE_STEPS = "teacher, 50 steps", 50
SOLVERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "teacher DDIM": (DDIMScheduler, {}),
    "teacher DPM-Solver++": (DPMSolverMultistepScheduler, {"algorithm_type": "dpmsolver++", "solver_order": 2}),
}


@dataclass(frozen=True)
class Adapter:
    """The training of a LoRA, which has its own recipe, that of the zoo's; `guidance` is the model's own when None."""

    train_steps: int
    batch: int
    pictures: int
    rank: int
    learning_rate: float
    guidance: float | None = None

    def options(self, seed: int, guidance: float, precision: Arithmetic) -> Options:
        """What `distil` is given; `guidance` is used where the recipe has none."""
        return Options(
            mode="splam_lora",
            steps=self.train_steps,
            batch_size=self.batch,
            rank=self.rank,
            learning_rate=self.learning_rate,
            guidance=guidance if self.guidance is None else self.guidance,
            precision=precision,
            teacher_precision=precision,
            seed=seed,
            **IMPROVED,
        )


@dataclass(frozen=True)
class Size:
    """How much is run: training, prompts a seed, numbers of sampling steps, prompts with pictures on the page.

    `draws` are those of the bootstrap of the Frechet distance, which is left out when there are none.
    `precision` is that of training and sampling alike, of all arms: "bfloat16" is autocast. `adapter` is the LoRA with
    the guidance of all the other arms, `mild` the one with its own.
    """

    train_steps: int
    batch: int
    pictures: int
    prompts: int
    steps: tuple[int, ...] = (1, 2, 4, 8)
    shown: int = 4
    draws: int = 100
    learning_rate: float = 1e-4
    precision: Arithmetic = "float32"
    adapter: Adapter | None = None
    mild: Adapter | None = None


FULL = Size(
    360,
    16,
    4096,
    200,
    steps=(1, 2, 4),
    draws=200,
    learning_rate=2e-4,
    precision="bfloat16",
    adapter=Adapter(500, 32, 8192, rank=32, learning_rate=3e-4),
    mild=Adapter(1000, 32, 8192, rank=32, learning_rate=3e-4, guidance=3.0),
)
"""Over five hours of one core for three seeds, mostly training; whole networks see 5,760 pictures, LoRAs 16,000 and
32,000."""

QUICK = Size(0, 0, 0, 12, steps=(2, 4), draws=0, precision="bfloat16")
"""What the zoo ships beside its teacher's solvers: nothing is trained."""
ADAPTER, SHIPPED = "SPLAM-LoRA improved", "SPLAM-LoRA, shipped"
MILD = {arm: f"{arm}, mild guidance" for arm in (ADAPTER, *SOLVERS, REFERENCE)}
"""The LoRA of a milder guidance and the teacher's arms with the same: their names."""


def options_of(size: Size, seed: int, guidance: float) -> dict[str, Options]:
    """The distilled arms, under the names that they are reported by."""
    whole: dict[str, Any] = {
        "steps": size.train_steps,
        "batch_size": size.batch,
        "learning_rate": size.learning_rate,
        "guidance": guidance,
        "precision": size.precision,
        "teacher_precision": size.precision,
        "seed": seed,
    }
    found = {
        "SPLAM improved": Options(mode="splam", **IMPROVED, **whole),
        "SPLAM official": Options(mode="splam", init="torch", **whole),
        "LCM-fixed-w": Options(mode="lcm_fixed_w", **whole),
    }
    if size.adapter:
        found[ADAPTER] = size.adapter.options(seed, guidance, size.precision)
    return found


def distil_arms(pipe: Any, size: Size, seed: int, *, guidance: float) -> dict[str, Any]:
    """One pipeline for each distilled arm; whole networks share their data."""
    whole = gathered(pipe, "scenes", count=size.pictures, seed=seed)
    made = {}
    for arm, options in options_of(size, seed, guidance).items():
        lora = size.adapter if options.lora else None
        cached = gathered(pipe, "scenes", count=lora.pictures, seed=seed) if lora else whole
        made[arm] = distil_pipeline(pipe, options, cached=cached).pipeline()
    return made


def distil_mild(pipe: Any, recipe: Adapter, seed: int, *, guidance: float, precision: Arithmetic) -> dict[str, Any]:
    """The pipeline of the LoRA with a guidance of its own, under the name that it has before `Bench.named`."""
    data = gathered(pipe, "scenes", count=recipe.pictures, seed=seed)
    return {ADAPTER: distil_pipeline(pipe, recipe.options(seed, guidance, precision), cached=data).pipeline()}


@dataclass(frozen=True)
class Bench:
    """One seed's captions with their scenes, start noise, and the teacher's latents of 50 steps.

    `names` are those by which arms are reported, where they are not their own.
    """

    pipe: Any
    scenes: tuple[Any, ...]
    prompts: tuple[str, ...]
    guidance: float
    seed: int
    reference: Float[Tensor, "count channels h w"]
    precision: Arithmetic = "float32"
    names: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def make(
        cls, pipe: Any, size: Size, seed: int, *, guidance: float, names: Mapping[str, str] | None = None
    ) -> Bench:
        """Held-out scenes of one and two objects, and the reference."""
        from mezzotint.worlds.scenes.captions import caption
        from mezzotint.worlds.scenes.sampling import sample

        scenes = sample(size.prompts, seed=seed, split="test", objects=(1, 2))
        prompts = tuple(caption(scene, "plain", seed=k).text for k, scene in enumerate(scenes))
        empty = torch.empty(0, *fresh_noise(pipe, 1, seed=seed)[0].shape[1:])
        bench = cls(pipe, tuple(scenes), prompts, guidance, seed, empty, size.precision, names or {})
        return replace(bench, reference=bench.solver("teacher DDIM", REFERENCE_STEPS))

    def named(self, arm: str) -> str:
        """The name by which an arm is reported."""
        return self.names.get(arm, arm)

    def solver(self, name: str, steps: int) -> Float[Tensor, "count channels h w"]:
        """Latents of the teacher with one of its solvers; time steps trail, so that the first one is pure noise."""
        kind, settings = SOLVERS[name]
        before = self.pipe.scheduler
        self.pipe.scheduler = kind.from_config(before.config, timestep_spacing="trailing", **settings)
        try:
            return self._batched(lambda prompts, noise: self._call(prompts, noise, steps))
        finally:
            self.pipe.scheduler = before

    def student(self, pipe: Any, steps: int) -> Float[Tensor, "count channels h w"]:
        """Latents of a distilled pipeline from the same start noise."""
        visited = sampling_timesteps(steps)

        def run(prompts: Sequence[str], noise: Tensor, first: int) -> Tensor:
            cond, _ = Condition.from_prompt(pipe, list(prompts))
            _, draw = fresh_noise(pipe, len(prompts), seed=self.seed, first=first)
            return latents(pipe, noise, visited, cond=cond, draw=draw)

        return self._batched(run, numbered=True)

    def _batched(self, run: Callable[..., Tensor], *, numbered: bool = False, size: int = 50) -> Tensor:
        parts = []
        for first in range(0, len(self.prompts), size):
            prompts = self.prompts[first : first + size]
            noise, _ = fresh_noise(self.pipe, len(prompts), seed=self.seed, first=first)
            with autocast(noise.device, self.precision):
                parts.append(run(prompts, noise, first) if numbered else run(prompts, noise))
        return torch.cat(parts).float()

    @torch.inference_mode()
    def _call(self, prompts: Sequence[str], noise: Tensor, steps: int) -> Tensor:
        done = self.pipe(
            list(prompts),
            latents=noise,
            guidance_scale=self.guidance,
            num_inference_steps=steps,
            output_type="latent",
        )
        return done.images.clone()


def measure_pipeline(trial: Any, benches: Sequence[Bench], arms: Sequence[Mapping[str, Any]], size: Size) -> None:
    """All metrics at every number of steps, and pictures to look at.

    Args:
        trial: the experiment.
        benches: one a seed.
        arms: the distilled pipelines by name, one mapping a seed.
        size: how much is run.

    Benches with names of their own add arms to rows that are there already; their time, the same, is not taken again.
    """
    judge = Judge()
    for steps in size.steps:
        made = [_latents(bench, found, steps) for bench, found in zip(benches, arms, strict=True)]
        where: dict[str, Any] = {"at": steps, "axis": "steps"}
        gaps = [
            {arm: rmse(z, bench.reference).tolist() for arm, z in one.items() if arm != bench.named(REFERENCE)}
            for bench, one in zip(benches, made, strict=True)
        ]
        trial.measure(RMSE, _table(gaps), direction="lower", note=_SAME, **where)
        _judged(trial, judge, benches, made, size=size, where=where)
    if not benches[0].names:
        _measure_speed(trial, benches[0], arms[0])


def _latents(bench: Bench, found: Mapping[str, Any], steps: int) -> dict[str, Tensor]:
    students = {arm: bench.student(pipe, steps) for arm, pipe in found.items()}
    made = students | {name: bench.solver(name, steps) for name in SOLVERS} | {REFERENCE: bench.reference}
    return {bench.named(arm): z for arm, z in made.items()}


class Judge:
    """The scene parser: are the wanted objects there, and how far are the pictures from renders?"""

    def __init__(self) -> None:
        from mezzotint.metrics.parser import SceneParser

        self.parser = SceneParser.load()

    def right(self, bench: Bench, shown: Tensor) -> list[float]:
        """1 for every picture in which each wanted object has its shape and colour."""
        from mezzotint.zoo.measure import scene_accuracy

        return scene_accuracy(self.parser, list(bench.scenes), shown)["right"]

    def real(self, bench: Bench) -> Tensor:
        """Features of renders of the same scenes."""
        from mezzotint.worlds.scenes.render import picture

        return self.parser.features(picture(list(bench.scenes)))


def _judged(
    trial: Any, judge: Judge, benches: Sequence[Bench], made: Sequence[Mapping[str, Tensor]], *, size: Size, where: Any
) -> None:
    right, features = [], []
    for bench, one in zip(benches, made, strict=True):
        shown = {arm: decode(bench.pipe, z) for arm, z in one.items()}
        right.append({arm: judge.right(bench, pictures) for arm, pictures in shown.items()})
        features.append({arm: judge.parser.features(pictures) for arm, pictures in shown.items()} if size.draws else {})
        if bench is benches[0] and where["at"] == 4:
            _show(trial, bench, shown, right[0], count=size.shown)
    trial.measure(RIGHT, _table(right), unit="rate", direction="higher", note=_NOTE, **where)
    if size.draws:
        renders = [judge.real(bench) for bench in benches]
        _distances(trial, FRECHET, features, renders, note="to renders of the scenes", draws=size.draws, where=where)
        taught = [one.pop(bench.named(REFERENCE)) for bench, one in zip(benches, features, strict=True)]
        told = "to the teacher's own pictures of 50 steps with the same guidance: what is learnt"
        _distances(trial, TO_TEACHER, features, taught, note=told, draws=size.draws, where=where)


def _distances(
    trial: Any,
    metric: str,
    found: Sequence[Mapping[str, Tensor]],
    real: Sequence[Tensor],
    *,
    note: str,
    draws: int,
    where: Any,
) -> None:
    """Frechet distances of the arms' features, one mapping a seed, to those of each seed."""
    values = [{arm: frechet_distance(f, to) for arm, f in one.items()} for one, to in zip(found, real, strict=True)]
    tries = [
        {arm: frechet_bootstrap(f, to, draws=draws) for arm, f in one.items()}
        for one, to in zip(found, real, strict=True)
    ]
    pooled = {arm: torch.stack([one[arm] for one in tries]).mean(0).tolist() for arm in tries[0]}
    trial.measure(metric, _table(values), direction="lower", draws=pooled, note=note, **where)


_SAME = "latents from the same start noise, the teacher with the same guidance"
_NOTE = "every object of the prompt found in shape and colour by the scene parser"


def _measure_speed(trial: Any, bench: Bench, arms: Mapping[str, Any]) -> None:
    """Wall time and network calls: distilled at 4 steps against the teacher's 50 with guidance."""
    count = min(4, len(bench.prompts))
    small = replace(bench, prompts=bench.prompts[:count])
    runs: dict[str, Callable[[], Tensor]] = {arm: partial(small.student, pipe, 4) for arm, pipe in arms.items()}
    runs[REFERENCE] = partial(small.solver, "teacher DDIM", REFERENCE_STEPS)
    taken = {arm: [_seconds(run, small.pipe, count) for _ in range(3)] for arm, run in runs.items()}
    counted = {arm: [float(2 * REFERENCE_STEPS if arm == REFERENCE else 4)] for arm in runs}
    trial.measure(
        SECONDS, {arm: [v] for arm, v in taken.items()}, unit="s", direction="lower", group=SPEED, counted="runs"
    )
    trial.measure(CALLS, counted, direction="lower", group=SPEED)


def _seconds(run: Callable[[], Tensor], pipe: Any, items: int) -> float:
    start = time.perf_counter()
    decode(pipe, run())
    return (time.perf_counter() - start) / items


def _show(
    trial: Any, bench: Bench, shown: Mapping[str, Tensor], right: Mapping[str, Sequence[float]], *, count: int
) -> None:
    for k, prompt in enumerate(bench.prompts[:count]):
        for arm, pictures in shown.items():
            trial.sample(arm, prompt, pictures[k], right=bool(right[arm][k]))


def _table(seeds: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    return {arm: [one[arm] for one in seeds] for arm in seeds[0]}
