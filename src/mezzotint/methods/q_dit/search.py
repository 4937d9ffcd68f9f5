"""Search of one group size for every layer (arXiv 2406.17343, algorithm 1), and what it is compared with.

The evolutionary search keeps the ten best genomes seen so far and breeds from them. Random search spends the same
number of evaluations without breeding; the knapsack minimises the sum of the errors that each layer makes alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from scipy.optimize import LinearConstraint, milp

from mezzotint.diffusion.rng import stream

from .costs import Constraint, Gene, Genome, fixed

__all__ = ["Evaluation", "Found", "Settings", "evolve", "knapsack", "random_search"]

T = TypeVar("T")
Fitness = Callable[[Genome], float]
_TRIES = 10


@dataclass(frozen=True)
class Settings:
    """How long and how wide the search is; defaults are those of the paper.

    Attributes:
        generations: after the first population.
        population: genomes of a generation.
        top: parents.
        mutations: children of one parent in a generation.
        crossovers: children of two parents in a generation.
        probability: that mutation replaces a gene.
    """

    generations: int = 10
    population: int = 50
    top: int = 10
    mutations: int = 25
    crossovers: int = 25
    probability: float = 0.1

    def __post_init__(self) -> None:
        """Refuse settings that make no search."""
        if min(self.generations, self.mutations, self.crossovers) < 0 or min(self.population, self.top) < 1:
            raise ValueError(f"counts must not be negative, population and top at least 1, got {self}")
        if not 0 <= self.probability <= 1:
            raise ValueError(f"probability must lie in 0..1, got {self.probability}")


@dataclass(frozen=True)
class Evaluation:
    """A genome, its fitness (lower is better) and the generation that brought it."""

    genome: Genome
    fitness: float
    generation: int


@dataclass(frozen=True)
class Found:
    """The outcome of a search.

    Attributes:
        history: every evaluation, in order; no genome twice.
    """

    history: tuple[Evaluation, ...]

    @property
    def best(self) -> Evaluation:
        """The best evaluation; the first of equals."""
        return min(self.history, key=lambda one: one.fitness)

    @property
    def best_so_far(self) -> tuple[float, ...]:
        """Least fitness after every evaluation; never rises."""
        lowest, course = math.inf, []
        for one in self.history:
            lowest = min(lowest, one.fitness)
            course.append(lowest)
        return tuple(course)


class _Draw:
    """Legal genomes that were not seen before, from derived random streams."""

    def __init__(self, genes: Sequence[Gene], legal: Constraint, *, probability: float, seed: int) -> None:
        self.genes, self.legal, self.probability, self.seed = genes, legal, probability, seed
        self.seen: set[Genome] = set()
        self._count = 0

    def _stream(self, purpose: str) -> torch.Generator:
        self._count += 1
        return stream(self.seed, f"group search {purpose}", self._count)

    def random(self) -> Genome:
        """Every gene uniform among its choices."""
        generator = self._stream("random")
        return tuple(_pick(gene.choices, generator) for gene in self.genes)

    def repaired(self) -> Genome:
        """A random genome whose groups are made coarser, one at a time, until it keeps the budget.

        Under a tight budget hardly any uniform genome is legal, and the more layers the fewer.
        """
        generator = self._stream("repair")
        genome = [_pick(gene.choices, generator) for gene in self.genes]
        order = torch.randperm(len(genome), generator=generator).tolist()
        while not self.legal.legal(tuple(genome)):
            index = next(k for k in order if genome[k] != self.genes[k].choices[-1])
            choices = self.genes[index].choices
            genome[index] = choices[choices.index(genome[index]) + 1]
            order = [*order[order.index(index) + 1 :], *order[: order.index(index) + 1]]
        return tuple(genome)

    def mutant(self, parents: Sequence[Genome]) -> Genome:
        """One parent, some genes replaced by random choices."""
        generator = self._stream("mutation")
        parent = _pick(parents, generator)
        change = torch.rand(len(parent), generator=generator) < self.probability
        pairs = zip(parent, self.genes, change.tolist(), strict=True)
        return tuple(_pick(gene.choices, generator) if new else old for old, gene, new in pairs)

    def child(self, parents: Sequence[Genome]) -> Genome:
        """Every gene from one of two parents."""
        generator = self._stream("crossover")
        first, second = _pick(parents, generator), _pick(parents, generator)
        take = torch.rand(len(first), generator=generator) < 0.5
        return tuple(a if one else b for a, b, one in zip(first, second, take.tolist(), strict=True))

    def fresh(self, count: int, draw: Callable[[], Genome]) -> list[Genome]:
        """Up to `count` new legal genomes, from at most ten times as many draws."""
        found: list[Genome] = []
        for _ in range(_TRIES * count):
            if len(found) == count:
                break
            genome = draw()
            if genome in self.seen or not self.legal.legal(genome):
                continue
            self.seen.add(genome)
            found.append(genome)
        return found

    def fill(self, count: int) -> list[Genome]:
        """New random genomes: uniform ones that happen to be legal first, then repaired ones."""
        found = self.fresh(count, self.random)
        return found + self.fresh(count - len(found), self.repaired)


def evolve(
    fitness: Fitness, genes: Sequence[Gene], legal: Constraint, *, settings: Settings | None = None, seed: int = 0
) -> Found:
    """Evolutionary search; the all-128 genome is in the first population.

    Args:
        fitness: of a genome, lower is better; called once for each.
        genes: what is searched.
        legal: the budget.
        settings: default: the paper's.
        seed: of every draw.
    """
    settings = settings or Settings()
    draw = _Draw(genes, legal, probability=settings.probability, seed=seed)
    population = _first(draw, genes, settings.population)
    history: list[Evaluation] = []
    for generation in range(settings.generations + 1):
        history += [Evaluation(genome, float(fitness(genome)), generation) for genome in population]
        best = sorted(history, key=lambda one: one.fitness)[: settings.top]
        parents = [one.genome for one in best]
        population = draw.fresh(settings.mutations, lambda parents=parents: draw.mutant(parents))  # type: ignore[misc]
        population += draw.fresh(settings.crossovers, lambda parents=parents: draw.child(parents))  # type: ignore[misc]
        population += draw.fill(settings.population - len(population))
    return Found(tuple(history))


def random_search(
    fitness: Fitness, genes: Sequence[Gene], legal: Constraint, *, evaluations: int, seed: int = 0
) -> Found:
    """The all-128 genome and random legal ones.

    Args:
        fitness: of a genome, lower is better.
        genes: what is searched.
        legal: the budget.
        evaluations: how many genomes, fewer only where so many cannot be drawn.
        seed: of every draw.
    """
    draw = _Draw(genes, legal, probability=0.0, seed=seed)
    return Found(tuple(Evaluation(one, float(fitness(one)), 0) for one in _first(draw, genes, evaluations)))


def knapsack(errors: Sequence[Mapping[int, float]], genes: Sequence[Gene], legal: Constraint) -> Genome:
    """The legal genome with the least sum of errors, exactly (integer programming).

    Args:
        errors: for every gene: choice -> error of its layers with that group size, alone.
        genes: what is chosen.
        legal: the budget; its cost must be a sum over genes.

    Raises:
        ValueError: the lists differ in length, or the solver finds nothing.
    """
    if len(errors) != len(genes):
        raise ValueError(f"errors must be given for each of {len(genes)} genes, got {len(errors)}")
    base = tuple(gene.choices[-1] for gene in genes)
    floor = legal.cost(base)
    places = [(index, choice) for index, gene in enumerate(genes) for choice in gene.choices]
    costs = np.array([legal.cost((*base[:i], g, *base[i + 1 :])) - floor for i, g in places])
    worth = np.array([errors[i][g] for i, g in places])
    one_each = np.array([[float(i == index) for i, _ in places] for index in range(len(genes))])
    unit = max(float(np.abs(costs).max()), 1e-300)
    room = (legal.budget - floor) / unit
    solved = milp(
        worth / max(float(np.abs(worth).max()), 1e-300),
        integrality=np.ones(len(places)),
        bounds=(0, 1),
        constraints=[LinearConstraint(one_each, 1, 1), LinearConstraint(costs[None] / unit, -np.inf, room + 1e-9)],
    )
    if solved.x is None:
        raise ValueError(f"the knapsack has no solution: {solved.message}")
    chosen = [places[k] for k in np.flatnonzero(solved.x > 0.5)]
    return tuple(choice for _, choice in sorted(chosen))


def _first(draw: _Draw, genes: Sequence[Gene], count: int) -> list[Genome]:
    """The all-128 genome, if it keeps the budget, and random ones."""
    start = fixed(genes)
    known = [start] if draw.legal.legal(start) else []
    draw.seen.update(known)
    return (known + draw.fill(count - len(known)))[:count]


def _pick(choices: Sequence[T], generator: torch.Generator) -> T:
    return choices[int(torch.randint(len(choices), (), generator=generator))]
