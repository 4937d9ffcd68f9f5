"""Part B of the experiment: the embedded text-to-image pipeline, four solvers, six grids.

For the solvers of the ordinary differential equation the distance to many-step latents from the same start noise is
paired and has little noise; the stochastic ones have no such reference and the Frechet distance takes its place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Float
from torch import Tensor

from mezzotint.diffusion import decode
from mezzotint.metrics.similarity import rmse

from . import grids
from .chain import optimum
from .data import Clean, clean_data
from .frozen import Frozen, freeze, run, start_noise
from .named import named_schedule
from .optimiser import Settings, first_grid, make_objective, trajectory_error
from .schedule import Schedule
from .search import Pass, TableObjective, best_pass, hierarchical
from .solvers import training_sigmas

DISTANCE, RIGHT, FRECHET = "RMSE to many steps", "pictures right", "Frechet distance"
ODE = {"ddim": "DDIM", "2m": "DPM-Solver++(2M)"}
SDE = {"s-ddim": "Stochastic-DDIM", "sde-2m": "SDE-DPM-Solver++(2M)"}


@dataclass(frozen=True)
class Size:
    """How much is run: prompts, numbers of steps, reference steps, and what the optimisation may use."""

    prompts: int
    steps: tuple[int, ...]
    reference: int
    samples: int
    levels: int
    stop: int
    stop_reference: int
    pictures: int
    frechet: int


QUICK = Size(16, (5, 10), 100, 32, 40, 12, 40, 4, 0)
# About an hour for three seeds on two cores. The reference is of second order: at 100 steps its error is a twentieth of
# that of 20.
FULL = Size(48, (5, 10, 20), 100, 128, 48, 24, 60, 8, 128)


@dataclass(frozen=True)
class Found:
    """What one seed's optimisation found: schedules by arm and number of steps, and the passes of the search."""

    schedules: Mapping[tuple[str, int], Schedule]
    history: tuple[Pass, ...]
    martingale_defect: float


def optimise_all(pipe: Any, seed: int, size: Size, guidance: float | None) -> Found:
    """All schedules that are compared, from one chain table."""
    sigmas = training_sigmas(pipe.scheduler)
    settings = Settings(
        samples=size.samples,
        levels=size.levels,
        stop_samples=size.stop,
        reference_steps=size.stop_reference,
        guidance=guidance,
        seed=seed,
    )
    clean = clean_data(pipe, "auto", size.samples, guidance=guidance, seed=seed)
    frozen = freeze(pipe, clean.prompts, guidance)
    objective = make_objective(frozen, clean, sigmas, settings)
    assert isinstance(objective, TableObjective)
    quality = trajectory_error(pipe, frozen, sigmas, settings)
    start = first_grid(objective, sigmas)
    _, history = hierarchical(start, objective, 40, quality=quality)
    _, unstopped = hierarchical(start, objective, 40)
    schedules: dict[tuple[str, int], Schedule] = {}
    for steps in size.steps:
        schedules |= _baselines(pipe, steps, clean)
        schedules["AYS", steps] = _read(history, steps, sigmas)
        schedules["no early stopping", steps] = _read(unstopped, steps, sigmas)
        schedules["KLUB optimum", steps] = Schedule.from_grid(optimum(objective.table, steps)[0], sigmas, clamp=True)
    return Found(schedules, history, objective.table.martingale_defect())


def _baselines(pipe: Any, steps: int, clean: Clean) -> dict[tuple[str, int], Schedule]:
    scale = clean.latents.std().item()
    found = {
        "EDM": named_schedule("edm", steps, pipe=pipe),
        "LogSNR": named_schedule("log-snr", steps, pipe=pipe),
        "time-uniform": named_schedule("time-uniform", steps, pipe=pipe),
        "arctan": named_schedule("arctan", steps, pipe=pipe, c=scale),
    }
    if len(training_sigmas(pipe.scheduler)) == 1000:
        found["printed for SD 1.5"] = named_schedule("sd15", steps, pipe=pipe, clamp=True)
    return {(name, steps): schedule for name, schedule in found.items()}


def _read(history: Sequence[Pass], steps: int, sigmas: Sequence[float]) -> Schedule:
    """The schedule of `steps` steps that a hierarchical run contains: the smallest stage that it divides."""
    stages = {p.stage: p.grid for p in history if p.stage > 10}
    stages[10] = best_pass([p for p in history if p.stage == 10]).grid
    stage = min((s for s in stages if s % steps == 0), default=max(stages))
    return Schedule.from_grid(grids.resample(stages[stage], steps), sigmas, clamp=True, name="align-your-steps")


@dataclass(frozen=True)
class Bench:
    """One seed's start noise and prompts, and latents of many steps of the ordinary differential equation."""

    frozen: Frozen
    prompts: tuple[str, ...]
    noise: Float[Tensor, "count channels height width"]
    reference: Float[Tensor, "count channels height width"]
    _made: dict[tuple[tuple[float, ...], str, int], Tensor] = field(default_factory=dict, repr=False)

    @classmethod
    def make(cls, pipe: Any, prompts: Sequence[str], *, seed: int, steps: int, guidance: float | None) -> Bench:
        """Run the reference: the second-order solver at time-uniform steps."""
        sigmas = training_sigmas(pipe.scheduler)
        frozen = freeze(pipe, prompts, guidance)
        noise = start_noise(pipe, len(prompts), seed=seed)
        many = Schedule.from_grid(grids.time_uniform(min(steps, len(sigmas) - 1), sigmas), sigmas)
        return cls(frozen, tuple(prompts), noise, run(frozen, noise, many, solver="2m"))

    def latents(self, schedule: Schedule, solver: str, seed: int = 0) -> Float[Tensor, "count channels height width"]:
        """Latents of a solver on a schedule, from this bench's noise; made once."""
        key = (tuple(schedule.sigmas), solver, seed)
        if key not in self._made:
            self._made[key] = run(self.frozen, self.noise, schedule, solver=solver, seed=seed)
        return self._made[key]


def measure_distance(trial: Any, benches: Sequence[Bench], found: Sequence[Found], size: Size) -> None:
    """RMSE to the many-step latents: one value for each seed, prompt, grid, solver and number of steps."""
    for solver, title in ODE.items():
        for steps in size.steps:
            pairs = zip(benches, found, strict=True)
            values = _by_arm([_distances(bench, one, solver, steps) for bench, one in pairs])
            trial.measure(
                DISTANCE,
                values,
                direction="lower",
                group=title,
                at=steps,
                axis="steps",
                note="in units of the latents, from the same start noise",
            )


def _distances(bench: Bench, found: Found, solver: str, steps: int) -> dict[str, list[float]]:
    chosen = {arm: schedule for (arm, n), schedule in found.schedules.items() if n == steps}
    return {arm: rmse(bench.latents(s, solver), bench.reference).tolist() for arm, s in chosen.items()}


def _by_arm(seeds: Sequence[Mapping[str, list[float]]]) -> dict[str, list[list[float]]]:
    return {arm: [one[arm] for one in seeds] for arm in seeds[0]}


def measure_pictures(trial: Any, pipe: Any, benches: Sequence[Bench], found: Sequence[Found], *, judge: Judge) -> None:
    """Share of pictures that show every object of their prompt, at each number of steps, and pictures to look at."""
    numbers = sorted({steps for _, steps in found[0].schedules})
    for steps in numbers:
        pairs = zip(benches, found, strict=True)
        made = [_pictures(pipe, bench, one, steps) for bench, one in pairs]
        right = [{arm: judge.right(k, shown) for arm, shown in one.items()} for k, one in enumerate(made)]
        trial.measure(
            RIGHT,
            _by_arm(right),
            unit="rate",
            direction="higher",
            group=ODE["2m"],
            at=steps,
            axis="steps",
            note=judge.note,
        )
        if steps == numbers[0]:
            _show(trial, benches[0].prompts[: judge.pictures], made[0], right[0])


def _pictures(pipe: Any, bench: Bench, found: Found, steps: int) -> dict[str, Tensor]:
    arms = ("AYS", "EDM", "LogSNR", "time-uniform", "printed for SD 1.5")
    chosen = {arm: found.schedules[arm, steps] for arm in arms if (arm, steps) in found.schedules}
    made = {arm: decode(pipe, bench.latents(schedule, "2m")) for arm, schedule in chosen.items()}
    return made | {"many steps": decode(pipe, bench.reference)}


def _show(trial: Any, prompts: Sequence[str], made: Mapping[str, Tensor], right: Mapping[str, Sequence[float]]) -> None:
    for k, prompt in enumerate(prompts):
        for arm, pictures in made.items():
            trial.sample(arm, prompt, pictures[k], right=bool(right[arm][k]))


class Judge:
    """Reads pictures back with the scene parser and compares them with the scenes that were asked for.

    Args:
        scenes: the scenes of each seed's prompts.
        pictures: how many pictures to put on the page.
    """

    note = "every object of the prompt found in shape and colour by the scene parser"

    def __init__(self, scenes: Sequence[Sequence[Any]], pictures: int) -> None:
        from mezzotint.metrics.parser import SceneParser

        self.parser = SceneParser.load()
        self.scenes = scenes
        self.pictures = pictures

    def right(self, index: int, pictures: Float[Tensor, "count 3 height width"]) -> list[float]:
        """1 for every picture that shows what was asked for, else 0."""
        from mezzotint.zoo.measure import scene_accuracy

        return scene_accuracy(self.parser, list(self.scenes[index]), pictures)["right"]


def measure_frechet(
    trial: Any,
    pipe: Any,
    found: Sequence[Found],
    drawn: Sequence[Sequence[Any]],
    *,
    seeds: Sequence[int],
    guidance: float | None,
) -> None:
    """Frechet distance of the stochastic solvers at 10 steps to renders of the same scenes."""
    from mezzotint.metrics.frechet import frechet_distance
    from mezzotint.metrics.parser import SceneParser
    from mezzotint.worlds.scenes.captions import caption
    from mezzotint.worlds.scenes.render import picture

    parser = SceneParser.load()
    for solver, title in SDE.items():
        rows: dict[str, list[float]] = {}
        for seed, one, scenes in zip(seeds, found, drawn, strict=True):
            prompts = [caption(s, "plain", seed=k).text for k, s in enumerate(scenes)]
            frozen, noise = freeze(pipe, prompts, guidance), start_noise(pipe, len(prompts), seed=seed)
            real = parser.features(picture(list(scenes)))
            for arm, schedule in _ten(one).items():
                pictures = decode(pipe, run(frozen, noise, schedule, solver=solver, seed=seed))
                rows.setdefault(arm, []).append(frechet_distance(parser.features(pictures), real))
        trial.measure(FRECHET, rows, direction="lower", group=title, at=10, axis="steps")


def _ten(found: Found) -> dict[str, Schedule]:
    return {arm: schedule for (arm, steps), schedule in found.schedules.items() if steps == 10}
