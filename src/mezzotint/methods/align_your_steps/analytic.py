"""Part A of the experiment: two-dimensional mixtures with an exact denoiser (arXiv 2404.14507, Table 4).

Seconds, no network. The negative log-likelihood alone rewards samples that collapse onto the centres of the
components, so the energy distance to held-out data stands beside it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mezzotint.diffusion import rng
from mezzotint.metrics.distances import energy_distance

from . import gaussian, grids
from .chain import ChainTable, chain_table, optimum
from .grids import Grid
from .klub import Density, MonteCarlo, unconditional
from .mixtures import Mixture
from .schedule import Schedule
from .search import MonteCarloObjective, Quality, TableObjective, best_pass, coordinate_search, hierarchical
from .solvers import batch_noise, sample

LOW, HIGH = 0.002, 80.0
NLL, ENERGY, SPREAD = "negative log-likelihood", "energy distance", "spread of one value over its mean"


@dataclass(frozen=True)
class Size:
    """How much is drawn: chains and levels of the table, samples of the stop metric, blocks of the measurement."""

    chains: int
    levels: int
    stop: int
    blocks: int
    block: int


QUICK, FULL = Size(256, 96, 2000, 10, 500), Size(1024, 128, 10_000, 20, 1000)


@dataclass(frozen=True)
class Case:
    """A mixture, a solver and a number of steps."""

    name: str
    columns: int
    rows: int
    std: float
    solver: str
    steps: int

    @property
    def mixture(self) -> Mixture:
        """The data."""
        return Mixture.lattice(self.columns, self.rows, self.std)


CASES = (
    Case("8x8 lattice, SDE-2M", 8, 8, 0.02, "sde-2m", 10),
    Case("8x4 lattice, DDIM", 8, 4, 0.02, "ddim", 8),
    Case("6x6 lattice, S-DDIM", 6, 6, 0.03, "s-ddim", 8),
)
POINTS = ((0.03, 0.15, 0.4), (0.1, 0.2, 0.5))
DENSITIES: dict[str, Density] = {
    "AYS": "importance",
    "log-uniform levels": "log-uniform",
    "uniform levels": "uniform",
}


def measure_lattices(trial: Any, seeds: Sequence[int], size: Size) -> None:
    """Add the rows of every case to an evidence.Experiment whose arms exist."""
    for case in CASES:
        found = [_lattice(case, seed, size) for seed in seeds]
        for metric, unit in ((NLL, "nat"), (ENERGY, "")):
            values = {arm: [one[metric][arm] for one in found] for arm in found[0][metric]}
            trial.measure(metric, values, unit=unit, direction="lower", group=case.name, at=case.steps, axis="steps",
                          counted="blocks of samples")  # fmt: skip


def measure_spread(trial: Any, seeds: Sequence[int]) -> None:
    """Ablation (a): the spread of one Monte-Carlo value for three densities of the noise level."""
    for points in POINTS:
        values = {arm: [spread(points, density, seed) for seed in seeds] for arm, density in DENSITIES.items()}
        trial.measure(
            SPREAD,
            values,
            direction="lower",
            group=f"points {points}",
            note="Gaussian data, d = 64, c = 0.5; all three densities are unbiased",
        )


def spread(points: tuple[float, float, float], density: Density, seed: int) -> float:
    """Standard deviation over mean of one value of Algorithm 2 on Gaussian data with d = 64 and std 0.5."""
    clean = 0.5 * rng.normal((64,), seed=seed, purpose="gaussian data", count=1024).double()
    denoise = unconditional(lambda x, sigma: x * (0.25 / (0.25 + sigma**2)))
    return MonteCarlo(denoise, clean, samples=4096, seed=seed, density=density).pair(*points).relative_std


def lattice_table(mixture: Mixture, seed: int, size: Size) -> ChainTable:
    """The chain table of a mixture's exact denoiser."""
    levels = grids.log_snr(size.levels - 1, LOW, HIGH)
    clean = mixture.draw(size.chains, seed=seed)
    return chain_table(unconditional(mixture.denoise), clean, levels, seed=seed, batch_size=256)


def lattice_grids(case: Case, seed: int, size: Size) -> dict[str, Grid]:
    """Every grid that is compared on a lattice: baselines, ours, and ours with one idea taken away."""
    table = lattice_table(case.mixture, seed, size)
    start = table.nearest(grids.edm(case.steps, LOW, HIGH))
    objective = TableObjective(table)
    passes = coordinate_search(start, objective, quality=stop_metric(case, seed, size))
    scale = math.sqrt(case.mixture.means.var(0, correction=0).mean().item() + case.std**2)
    return {
        "AYS": best_pass(passes).grid,
        "EDM": grids.edm(case.steps, LOW, HIGH),
        "LogSNR": grids.log_snr(case.steps, LOW, HIGH),
        "arctan": grids.arctan(case.steps, LOW, HIGH, c=scale),
        "no early stopping": passes[-1].grid,
        "KLUB optimum": optimum(table, case.steps)[0],
        "wrong joint law": wrong_joint(case, seed, size),
    }


def wrong_joint(case: Case, seed: int, size: Size) -> Grid:
    """Ablation (d): the search with x_b = x0 + b eps drawn from the noise of x_t, stopped as ours is."""
    estimator = MonteCarlo(
        unconditional(case.mixture.denoise),
        case.mixture.draw(256, seed=seed),
        samples=512,
        c=0.5,
        seed=seed,
        joint="shared",
    )
    objective = MonteCarloObjective(estimator)
    start = grids.edm(case.steps, LOW, HIGH)
    quality = stop_metric(case, seed, size)
    return best_pass(coordinate_search(start, objective, quality=quality, max_updates=6 * case.steps)).grid


def measure_direct(trial: Any, seeds: Sequence[int], size: Size) -> None:
    """Ablation (c): 40 steps searched at once against 10 steps doubled twice, on one table."""
    case = Case("8x8 lattice, SDE-2M", 8, 8, 0.02, "sde-2m", 40)
    found: dict[str, list[list[float]]] = {"AYS": [], "40 steps at once": []}
    for seed in seeds:
        table = lattice_table(case.mixture, seed, size)
        objective = TableObjective(table)
        ten = Case(case.name, 8, 8, 0.02, case.solver, 10)
        quality = stop_metric(ten, seed, size)
        doubled, _ = hierarchical(table.nearest(grids.edm(10, LOW, HIGH)), objective, 40, quality=quality)
        direct = coordinate_search(table.nearest(grids.edm(40, LOW, HIGH)), objective)[-1].grid
        for arm, grid in (("AYS", doubled), ("40 steps at once", direct)):
            found[arm].append(_nll_blocks(case, run_lattice(case, grid, size.blocks * size.block, seed), size))
    trial.measure(NLL, found, unit="nat", direction="lower", group=case.name, at=40, axis="steps",
                  counted="blocks of samples")  # fmt: skip


def stop_metric(case: Case, seed: int, size: Size) -> Quality:
    """Mean negative log-likelihood of samples from start noise that is used for nothing else."""

    def quality(grid: Grid) -> float:
        x = run_lattice(case, grid, size.stop, seed, purpose="stop noise")
        return case.mixture.negative_log_likelihood(x, sigma=LOW).mean().item()

    return quality


def run_lattice(
    case: Case, grid: Grid, count: int, seed: int, *, purpose: str = "start noise"
) -> Float[Tensor, "count 2"]:
    """Samples of a case's solver on a grid, with the exact denoiser."""
    noise = torch.randn(count, 2, generator=rng.stream(seed, purpose), dtype=torch.float64)
    added = batch_noise(noise, seed=seed)
    return sample(case.mixture.denoise, noise, Schedule.from_grid(grid), solver=case.solver, added=added)


def _lattice(case: Case, seed: int, size: Size) -> dict[str, dict[str, list[float]]]:
    count = size.blocks * size.block
    samples = {arm: run_lattice(case, grid, count, seed) for arm, grid in lattice_grids(case, seed, size).items()}
    samples["true data"] = case.mixture.draw(count, seed=seed + 1, sigma=LOW)
    held_out = case.mixture.draw(count, seed=seed + 2, sigma=LOW).split(size.block)
    likelihoods = {arm: _nll_blocks(case, x, size) for arm, x in samples.items()}
    distances = {arm: _energies(x.split(size.block), held_out) for arm, x in samples.items()}
    return {NLL: likelihoods, ENERGY: distances}


def _nll_blocks(case: Case, x: Tensor, size: Size) -> list[float]:
    values = case.mixture.negative_log_likelihood(x, sigma=LOW)
    return values.reshape(size.blocks, size.block).mean(1).tolist()


def _energies(blocks: Sequence[Tensor], others: Sequence[Tensor]) -> list[float]:
    return [energy_distance(a, b, unbiased=True) for a, b in zip(blocks, others, strict=True)]


def gaussian_facts() -> Mapping[str, tuple[float, float]]:
    """Why early stopping exists: for Gaussian data, the spread of samples (1 is perfect) and KLUB of two optima."""
    both = {"arctan": grids.arctan(10, LOW, HIGH, c=0.5), "KLUB optimum": grids.klub_gaussian(10, LOW, HIGH, c=0.5)}
    return {name: (gaussian.std_ratio(g, c=0.5), gaussian.klub(g, c=0.5)) for name, g in both.items()}
