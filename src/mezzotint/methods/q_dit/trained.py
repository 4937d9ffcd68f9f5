"""Parts B and C of the experiment: the embedded class-conditional transformer, and the search of its group sizes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mezzotint.diffusion import decode
from mezzotint.metrics.similarity import rmse

from .apply import clone, quantise_network
from .calibration import Calibration, Visits, collect
from .costs import Genome, constraint, fixed
from .driver import with_network
from .fitness import LatentFitness, Regrouped, find_genes, layer_errors
from .folds import inject_outliers
from .ptqd import fit_correction
from .recipe import Recipe, named_recipes
from .sampling import Correct, sample_latents, start_noise
from .search import Found, Settings, evolve, knapsack, random_search
from .tfmq import quantise_by_timestep

__all__ = ["ACCURACY", "FRECHET", "RMSE", "SEARCH", "Bench", "Size", "measure_arms", "measure_search"]

RMSE, FRECHET, ACCURACY = "RMSE of latents to full precision", "Frechet distance", "class right"
SEARCH = "RMSE of latents after the search"
SPACE = (32, 64, 128, 256)
ENOUGH = 200
"""Pictures from which on a Frechet distance says more about the model than about their number."""
SIMULATE: dict[str, Any] = {"executor": "simulate"}
Arm = tuple[Any, Correct | None]
"""A network and what corrects its noise."""


@dataclass(frozen=True)
class Size:
    """How much is sampled: pictures, steps, calibration inputs, pictures that the parser judges, and the search.

    `fewer` names the arms that run at all precisions but the first; all of them when empty.
    """

    pictures: int
    steps: int
    calibration: int
    judged: int
    shown: int
    precisions: tuple[tuple[int, int], ...]
    search: Settings
    search_pictures: int
    search_steps: int
    guidance: float = 1.5
    batch: int = 64
    fewer: tuple[str, ...] = ()


def class_names(pipe: Any) -> dict[int, str]:
    """Index -> name of the classes that the model was trained on; the embedded recipe's where the pipeline has none."""
    from mezzotint.zoo.recipes.scenes_dit import CLASSES

    named = {int(index): str(name) for name, index in (pipe.labels or {}).items()}
    return named or dict(enumerate(CLASSES))


class Bench:
    """One seed's calibration, noise and full-precision latents, natural or with injected outliers."""

    def __init__(self, pipe: Any, seed: int, size: Size, *, injected: bool = False) -> None:
        self.seed, self.size, self.injected = seed, size, injected
        self.original = pipe
        network = clone(pipe.transformer)
        if injected:
            inject_outliers(network, seed=seed)
        self.pipe = with_network(pipe, network)

    @cached_property
    def classes(self) -> list[int]:
        """Class of every picture: the model's classes in turn."""
        known = sorted(class_names(self.original))
        count = max(self.size.pictures, self.size.judged)
        return [known[(7 * k + self.seed) % len(known)] for k in range(count)]

    @cached_property
    def calibration(self) -> Calibration:
        """Inputs along full-precision sampling; outliers change none of them."""
        return self._collected("uniform")

    @cached_property
    def normal_calibration(self) -> Calibration:
        """As many inputs of the same runs at PTQ4DM's normal draw of timesteps."""
        return self._collected("normal")

    def _collected(self, visits: Visits) -> Calibration:
        settings: dict[str, Any] = {"steps": self.size.steps, "guidance": self.size.guidance, "seed": self.seed}
        return collect(self.original, self.classes, samples=self.size.calibration, visits=visits, **settings)

    def latents(self, arm: Arm, count: int) -> Float[Tensor, "count channels height width"]:
        """Final latents of the first pictures."""
        parts = []
        for first in range(0, count, self.size.batch):
            rows = self.classes[first : min(count, first + self.size.batch)]
            noise = start_noise(self.pipe, len(rows), seed=self.seed, first=first)
            parts.append(self._sampled(arm, rows, noise))
        return torch.cat(parts)

    def _sampled(self, arm: Arm, classes: list[int], noise: Tensor) -> Tensor:
        settings: dict[str, Any] = {"steps": self.size.steps, "guidance": self.size.guidance}
        return sample_latents(self.pipe, classes, noise, network=arm[0], correct=arm[1], **settings)

    def made(self, name: str, weights: int, activations: int) -> Arm:
        """A baseline's network, by the name of its arm."""
        named = named_recipes(weights, activations)
        if name == "full precision":
            return self.pipe.transformer, None
        if name == "TFMQ-DM":
            return self._by_timestep(named["RTN-D"]), None
        if name == "RTN-g + PTQD":
            network = self._quantised(named["RTN-g"])
            return network, self._correction(network)
        return self._quantised(named["GPTQ-g" if name == "Q-DiT" else name]), None

    def _quantised(self, recipe: Recipe) -> Any:
        seen = None
        if recipe.needs_calibration:
            seen = self.normal_calibration if recipe.static == "error" else self.calibration
        return quantise_network(self.pipe.transformer, recipe, calibration=seen, **SIMULATE)[0]

    def _own(self) -> tuple[list[int], Tensor, dict[str, Any]]:
        """Classes and noise for methods that look at whole runs; not those that are judged."""
        count = min(16, self.size.pictures)
        settings: dict[str, Any] = {"steps": self.size.steps, "guidance": self.size.guidance}
        return self.classes[:count], start_noise(self.pipe, count, seed=self.seed, first=10**6), settings

    def _by_timestep(self, recipe: Recipe) -> Any:
        classes, noise, settings = self._own()
        return quantise_by_timestep(self.pipe, recipe, classes, noise, **settings)[0]

    def _correction(self, network: Any) -> Correct:
        classes, noise, settings = self._own()
        return fit_correction(self.pipe, network, classes, noise, **settings)


def measure_arms(trial: Any, pipe: Any, seeds: Sequence[int], size: Size, *, names: Sequence[str]) -> None:
    """Part B: every arm against full precision, natural and injected."""
    judge = Judge(pipe)
    for injected in (False, True):
        benches = [Bench(pipe, seed, size, injected=injected) for seed in seeds]
        exact = [bench.latents(bench.made("full precision", 8, 8), len(bench.classes)) for bench in benches]
        if not injected:
            judge.show(trial, "full precision", exact[0], benches[0])
            judge.measure(trial, {"full precision": exact}, benches, "natural, not quantised")
        for place, precision in enumerate(size.precisions):
            for name in (place and size.fewer) or names:
                _measure_arm(trial, judge, benches, exact, name=name, precision=precision)


def _measure_arm(
    trial: Any,
    judge: Judge,
    benches: Sequence[Bench],
    exact: Sequence[Tensor],
    *,
    name: str,
    precision: tuple[int, int],
) -> None:
    count = benches[0].size.pictures
    outliers = "injected outliers" if benches[0].injected else "natural"
    group = f"W{precision[0]}A{precision[1]}, {outliers}"
    made = [bench.latents(bench.made(name, *precision), len(bench.classes)) for bench in benches]
    errors = [rmse(a[:count], b[:count]) for a, b in zip(made, exact, strict=True)]
    _rmse_row(trial, RMSE, {name: torch.stack(errors)}, group)
    judge.measure(trial, {name: made}, benches, group)
    if not benches[0].injected and precision == benches[0].size.precisions[0]:
        judge.show(trial, name, made[0], benches[0])


def _rmse_row(trial: Any, metric: str, values: Mapping[str, Tensor], group: str) -> None:
    note = "per picture, from the same noise, in units of the latents"
    trial.measure(metric, values, direction="lower", group=group, note=note, counted="start noises")


class Judge:
    """Decodes latents, and asks the scene parser what the pictures show."""

    def __init__(self, pipe: Any) -> None:
        self.pipe = pipe
        self.names = class_names(pipe)

    @cached_property
    def parser(self) -> Any:
        """The embedded parser."""
        from mezzotint.metrics.parser import SceneParser

        return SceneParser.load()

    def pictures(self, latents: Float[Tensor, "count channels height width"]) -> Float[Tensor, "count 3 side side"]:
        """Pictures in 0..1."""
        return decode(self.pipe, latents)

    def right(self, pictures: Tensor, classes: Sequence[int]) -> list[float]:
        """1 where the surest object has the class's shape and colour."""
        parsed = self.parser.parse(pictures)
        seen = [f"{found[0].colour} {found[0].shape}" if found else "" for found in parsed]
        return [float(name == self.names[label]) for name, label in zip(seen, classes, strict=True)]

    def measure(self, trial: Any, made: Mapping[str, Sequence[Tensor]], benches: Sequence[Bench], group: str) -> None:
        """Class accuracy and Frechet distance, where the budget has pictures for them."""
        judged = benches[0].size.judged
        if not judged:
            return
        right: dict[str, list[list[float]]] = {}
        distances: dict[str, list[float]] = {}
        for arm, seeds in made.items():
            for bench, latents in zip(benches, seeds, strict=True):
                pictures = self.pictures(latents[:judged])
                right.setdefault(arm, []).append(self.right(pictures, bench.classes[:judged]))
                if judged >= ENOUGH:
                    distances.setdefault(arm, []).append(self._distance(pictures))
        trial.measure(ACCURACY, right, unit="rate", direction="higher", group=group, counted="pictures")
        if distances:
            note = f"{judged} pictures, parser's features"
            trial.measure(FRECHET, distances, direction="lower", group=group, note=note)

    def _distance(self, pictures: Tensor) -> float:
        from mezzotint.metrics.frechet import frechet_distance

        return frechet_distance(self.parser.features(pictures), self._real(len(pictures)))

    def _real(self, count: int) -> Tensor:
        if not hasattr(self, "_features"):
            from mezzotint.worlds.scenes.render import picture
            from mezzotint.worlds.scenes.sampling import sample

            scenes = sample(count, seed=0, split="test", objects=(1, 1), combinations="all")
            self._features = self.parser.features(picture(scenes))
        return self._features

    def show(self, trial: Any, name: str, latents: Tensor, bench: Bench) -> None:
        """Put the first pictures of an arm on the page."""
        count = bench.size.shown
        pictures = self.pictures(latents[:count])
        right = self.right(pictures, bench.classes[:count])
        for k in range(count):
            trial.sample(name, self.names[bench.classes[k]], pictures[k], right=bool(right[k]))


def measure_search(trial: Any, pipe: Any, seeds: Sequence[int], size: Size) -> None:
    """Part C: searched sizes against all-128, random search and the knapsack, judged on noise of their own."""
    rows: dict[str, list[Tensor]] = {}
    for seed in seeds:
        bench = Bench(pipe, seed, size, injected=True)
        candidates, chosen = _searched(bench)
        exact = bench.latents((bench.pipe.transformer, None), size.pictures)
        for name, genome in chosen.items():
            made = bench.latents((candidates.apply(genome), None), size.pictures)
            rows.setdefault(name, []).append(rmse(made, exact))
    _rmse_row(trial, SEARCH, {name: torch.stack(errors) for name, errors in rows.items()}, "W4A8, injected outliers")


def _searched(bench: Bench) -> tuple[Regrouped, dict[str, Genome]]:
    size, network = bench.size, bench.pipe.transformer
    recipe = replace(named_recipes(4, 8)["RTN-g"], group="auto")
    genes = find_genes(network, bench.calibration, space=SPACE)
    budget = constraint("mean_group", genes)
    candidates = Regrouped(network, recipe, genes)
    classes = bench.classes[: size.search_pictures]
    # Other noise than that of the final check.
    fitness: Callable[[Genome], float] = LatentFitness(
        bench.pipe, candidates, classes, steps=size.search_steps, seed=bench.seed + 10**6, batch_size=size.batch
    )
    found: Found = evolve(fitness, genes, budget, settings=size.search, seed=bench.seed)
    count = len(found.history)
    drawn = random_search(fitness, genes, budget, evaluations=count, seed=bench.seed)
    errors = layer_errors(network, recipe, genes, bench.calibration[: size.search_pictures])
    return candidates, {
        "searched": found.best.genome,
        "random search": drawn.best.genome,
        "knapsack": knapsack(errors, genes, budget),
        "all-128": fixed(genes),
    }
