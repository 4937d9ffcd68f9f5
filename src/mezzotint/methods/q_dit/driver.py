"""From a pipeline and options to a quantised pipeline: calibration, search if asked for, rounding, report."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

from torch import nn

from .apply import quantise_network
from .calibration import Calibration, collect
from .costs import Kind, constraint, fixed, mean_group
from .fitness import LatentFitness, OutputFitness, Regrouped, find_genes
from .layers import check_network, check_weights, find_targets, network_of
from .linear import share_inputs
from .quantised import Quantised
from .quantiser import Precision, Scope
from .ranges import Ranges
from .recipe import GroupChoice, Recipe, layer_specs
from .search import Found, Settings, evolve

__all__ = ["Options", "quantise_pipeline", "search_groups", "with_network"]


@dataclass(frozen=True)
class Options:
    """The options of `quantise`, which documents them."""

    weights: int
    activations: int
    group: int | Literal["search", "auto", "row"]
    rounding: Literal["gptq", "rtn"]
    symmetric: bool
    act_scope: Scope
    act_range: Literal["dynamic", "static"]
    ranges: Ranges
    smoothing: float | None
    modulation: bool
    layers: tuple[str, ...]
    executor: str
    prompts: Sequence[Any]
    samples: int
    steps: int
    guidance: float
    batch_size: int
    space: tuple[int, ...]
    constraint: Kind
    budget_group: int
    generations: int
    population: int
    pictures: int
    official_stale_params: bool
    seed: int

    def __post_init__(self) -> None:
        """Refuse what would fail later, before work is lost."""
        counts = {"samples": self.samples, "steps": self.steps, "batch_size": self.batch_size}
        counts |= {"budget_group": self.budget_group, "population": self.population, "pictures": self.pictures}
        for name, count in counts.items():
            if count < 1:
                raise ValueError(f"{name} must be at least 1, got {count}")
        if isinstance(self.group, str) and self.group not in {"search", "auto", "row"}:
            raise ValueError(f"group must be a number, 'search', 'auto' or 'row', got {self.group!r}")
        if self.group == "search" and self.layers:
            raise ValueError("group='search' searches all layers of the blocks: leave layers empty")

    @property
    def recipe(self) -> Recipe:
        """How to quantise; a searched group starts as "auto"."""
        return Recipe(
            weights=Precision(self.weights, self.symmetric),
            activations=Precision(self.activations, self.symmetric),
            group=cast("GroupChoice", "auto" if self.group == "search" else self.group),
            method=self.rounding,
            ranges=self.ranges,
            act_scope=self.act_scope,
            act_range=self.act_range,
            smoothing=self.smoothing,
            modulation=self.modulation,
            official_stale_params=self.official_stale_params,
        )


def with_network(pipe: Any, network: nn.Module) -> Any:
    """A pipeline like another one, with another network and a scheduler of its own; a bare network is returned."""
    if isinstance(pipe, nn.Module):
        return network
    made = copy.copy(pipe)
    made.scheduler = copy.deepcopy(pipe.scheduler)
    name = "transformer" if isinstance(getattr(pipe, "transformer", None), nn.Module) else "unet"
    setattr(made, name, network)
    return made


def quantise_pipeline(pipe: Any, *, calibration: Calibration | None = None, **options: Any) -> Quantised:
    """See `mezzotint.q_dit.quantise`.

    Args:
        pipe: a pipeline, or, with calibration of one's own or a recipe without, a bare network.
        calibration: instead of sampled inputs.
        options: those of `Options`.
    """
    chosen = Options(**options)
    recipe, network = chosen.recipe, network_of(pipe)
    check_network(network)
    targets = find_targets(network, names=chosen.layers, modulation=chosen.modulation)
    # Refused before anything is sampled: a group that does not fit, a weight that is not finite.
    layer_specs(targets, recipe)
    check_weights(network, targets)
    if calibration is None and (recipe.needs_calibration or chosen.group == "search"):
        calibration = _sampled(pipe, chosen)
    facts: dict[str, Any] = {"rounding": chosen.rounding, "weights": chosen.weights, "activations": chosen.activations}
    if chosen.group == "search":
        assert calibration is not None
        found = search_groups(pipe, calibration, chosen)
        sizes = dict(found.sizes)
        recipe = replace(recipe, group=sizes)
        facts |= {"search": found.outcome.best.fitness, "evaluations": len(found.outcome.history)}
    needed = calibration if recipe.needs_calibration else None
    made, report = quantise_network(
        network,
        recipe,
        calibration=needed,
        layers=chosen.layers,
        batch_size=chosen.batch_size,
        executor=chosen.executor,
    )
    share_inputs(made)
    return Quantised(with_network(pipe, made), report, facts)


@dataclass(frozen=True)
class Searched:
    """A search and the group sizes it chose, by layer name."""

    outcome: Found
    sizes: dict[str, int]
    mean: float


def search_groups(pipe: Any, calibration: Calibration, options: Options) -> Searched:
    """Evolutionary search of one group size for every shared input.

    Args:
        pipe: full precision.
        calibration: any inputs; on models that DDIM cannot sample they are also what candidates are judged on.
        options: those of the search.

    Raises:
        ValueError: no legal genome.
    """
    network = network_of(pipe)
    plain = replace(options.recipe, method="rtn", act_range="dynamic", smoothing=None, official_stale_params=False)
    found = find_genes(network, calibration, space=options.space, modulation=options.modulation)
    spent = fixed(found, options.budget_group)
    precision: dict[str, Any] = {"bits": options.weights, "symmetric": options.symmetric}
    budget = constraint(options.constraint, found, reference=spent, **precision)
    candidates = Regrouped(network, plain, found)
    settings = Settings(
        options.generations,
        options.population,
        min(10, options.population),
        options.population // 2,
        options.population // 2,
    )
    outcome = evolve(
        _fitness(pipe, candidates, calibration, options), found, budget, settings=settings, seed=options.seed
    )
    pairs = zip(found, outcome.best.genome, strict=True)
    sizes = {name: size for gene, size in pairs for name in gene.layers}
    return Searched(outcome, sizes, mean_group(outcome.best.genome, found))


def _fitness(pipe: Any, candidates: Regrouped, calibration: Calibration, options: Options) -> Any:
    classes = calibration.arguments().get("class_labels")
    prompts = list(options.prompts) or ([] if classes is None else classes.tolist())
    discrete = getattr(getattr(pipe, "scheduler", None), "alphas_cumprod", None) is not None
    if not (discrete and prompts):
        return OutputFitness(candidates, calibration[: options.pictures])
    chosen = [prompts[k % len(prompts)] for k in range(options.pictures)]
    return LatentFitness(pipe, candidates, chosen, steps=options.steps, seed=options.seed)


def _sampled(pipe: Any, options: Options) -> Calibration:
    if isinstance(pipe, nn.Module):
        raise ValueError("a bare network cannot be sampled from: give calibration, or a pipeline")
    settings: dict[str, Any] = {"samples": options.samples, "steps": options.steps, "guidance": options.guidance}
    return collect(pipe, options.prompts, seed=options.seed, batch_size=options.batch_size, **settings)
