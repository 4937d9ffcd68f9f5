"""KLUB of every pair of levels at once, from forward chains (our efficient alternative to Algorithm 2 of 2404.14507).

A chain x_{s_1} -> x_{s_2} -> ... -> x_{s_G} adds independent noise from level to level, so it has the right joint law
for every pair of levels. N chains over G levels cost N G denoiser calls; from the mean squared gaps
M2[a, b] = E || D_a - D_b ||^2 the trapezoid rule in u = 1 / (2 t^2) (t^-3 dt = -du) gives the whole table K[a, b].
Searching it costs nothing, and dynamic programming finds the global minimum of KLUB for every number of steps.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mezzotint.diffusion import rng

from .grids import Grid, check_grid, log_snr, snap
from .klub import Denoise


@dataclass(frozen=True)
class ChainTable:
    """Gaps and step costs of every pair of levels; the table is an objective that can be searched.

    Attributes:
        levels: the noise levels s_1 < ... < s_G.
        gaps: M2[a, b] = mean squared distance of the denoised estimates at levels a and b.
        cost: K[a, b] for a <= b, zero on and below the diagonal.
        error: standard error of `cost` over the chains.
        energy: m[a] = mean squared norm of the denoised estimate at level a.
        chains: number of chains.
    """

    levels: Grid
    gaps: Float[Tensor, "levels levels"]
    cost: Float[Tensor, "levels levels"]
    error: Float[Tensor, "levels levels"]
    energy: Float[Tensor, " levels"]
    chains: int

    def index(self, sigma: float) -> int:
        """Place of a noise level in the table.

        Raises:
            ValueError: the level is not one of the table's.
        """
        if sigma not in self.levels:
            raise ValueError(f"{sigma} is not a level of the chain table; use ChainTable.nearest first")
        return self.levels.index(sigma)

    def interval(self, low: float, high: float) -> float:
        """K(low, high)."""
        return self.cost[self.index(low), self.index(high)].item()

    def nearest(self, grid: Sequence[float]) -> Grid:
        """The distinct table levels nearest to a grid; the end points must be the table's own."""
        return tuple(self.levels[i] for i in snap(grid, self.levels, clamp=True))

    def between(self, low: float, high: float, count: int | None) -> Grid:
        """Table levels strictly between two levels: all, or those nearest to `count` log-uniform points."""
        logs = [math.log(s) for s in self.levels]
        inside = [i for i, s in enumerate(self.levels) if low < s < high]
        if count is None or len(inside) <= count:
            return tuple(self.levels[i] for i in inside)
        wanted = log_snr(count + 1, low, high)[1:-1]
        chosen = {min(inside, key=lambda i: abs(logs[i] - math.log(w))) for w in wanted}
        return tuple(self.levels[i] for i in sorted(chosen))

    def martingale_defect(self) -> float:
        """Largest | M2[a, b] - (m_a - m_b) | over the largest gap: 0 for the exact posterior mean."""
        ideal = self.energy[:, None] - self.energy[None, :]
        upper = torch.triu(torch.ones_like(self.gaps), 1)
        return (((self.gaps - ideal).abs() * upper).max() / (self.gaps * upper).max()).item()


def chain_table(
    denoise: Denoise,
    clean: Float[Tensor, "count *item"],
    levels: Sequence[float],
    *,
    chains: int | None = None,
    seed: int = 0,
    batch_size: int = 64,
) -> ChainTable:
    """Run the chains and tabulate the gaps and the cost of every step.

    Args:
        denoise: the frozen denoiser D(x, sigma, rows).
        clean: clean items x0; chain k starts at item k modulo their number.
        levels: ascending noise levels.
        chains: number of chains; one for each clean item when None.
        seed: of the noise. Chain k is the same for every batch size.
        batch_size: chains at a time, and items for one call of the denoiser.

    Raises:
        ValueError: no clean items, no chains, or levels that do not ascend.
    """
    check_grid(levels)
    chains = len(clean) if chains is None else chains
    if len(clean) == 0 or chains < 2:
        raise ValueError(f"need clean items and at least 2 chains, got {len(clean)} items and {chains} chains")
    sums = _Sums(levels)
    for first in range(0, chains, batch_size):
        rows = torch.arange(first, min(first + batch_size, chains), device=clean.device) % len(clean)
        sums.add(_denoised(denoise, clean[rows], levels, rows=rows, first=first, seed=seed))
    return sums.table()


@torch.no_grad()
def _denoised(
    denoise: Denoise, x0: Tensor, levels: Sequence[float], *, rows: Tensor, first: int, seed: int
) -> Float[Tensor, "batch levels numbers"]:
    outputs = [
        denoise(x, torch.full((len(x0),), sigma, dtype=x0.dtype, device=x0.device), rows).double().flatten(1)
        for x, sigma in zip(forward_chain(x0, levels, first=first, seed=seed), levels, strict=True)
    ]
    return torch.stack(outputs, dim=1)


def forward_chain(
    x0: Float[Tensor, "batch *item"], levels: Sequence[float], *, first: int = 0, seed: int = 0
) -> Iterator[Float[Tensor, "batch *item"]]:
    """Yield x at each level; every level adds independent noise to the one before."""
    x, before = x0, 0.0
    for step, sigma in enumerate(levels):
        noise = rng.normal(
            tuple(x0.shape[1:]),
            seed=seed,
            purpose="klub chain",
            step=step,
            first=first,
            count=len(x0),
            device=x0.device,
            dtype=x0.dtype,
        )
        x = x + math.sqrt((sigma - before) * (sigma + before)) * noise
        before = sigma
        yield x


def trapezoid(gaps: Float[Tensor, "... levels levels"], levels: Sequence[float]) -> Float[Tensor, "... levels levels"]:
    """K[a, b] from M2[t, b]: the trapezoid rule in u = 1 / (2 t^2), summed from a up to b."""
    u = 0.5 / torch.tensor(levels, dtype=torch.float64, device=gaps.device) ** 2
    panels = (gaps[..., :-1, :] + gaps[..., 1:, :]) / 2 * (u[:-1] - u[1:])[:, None]
    panels = torch.nn.functional.pad(torch.triu(panels, 1), (0, 0, 0, 1))
    return torch.triu(panels.flip(-2).cumsum(-2).flip(-2), 1)


class _Sums:
    """Running sums over the chains, so that nothing grows with their number."""

    def __init__(self, levels: Sequence[float]) -> None:
        self.levels = tuple(float(s) for s in levels)
        size = len(self.levels)
        self.gaps, self.squares = torch.zeros(2, size, size, dtype=torch.float64).unbind()
        self.energy = torch.zeros(size, dtype=torch.float64)
        self.chains = 0

    def add(self, outputs: Float[Tensor, "batch levels numbers"]) -> None:
        outputs = outputs.cpu()
        # One chain at a time: a batched distance would hold batch * levels^2 * numbers values.
        gaps = torch.stack([torch.cdist(d, d, compute_mode="donot_use_mm_for_euclid_dist") ** 2 for d in outputs])
        self.gaps += gaps.sum(0)
        self.squares += trapezoid(gaps, self.levels).square().sum(0)
        self.energy += outputs.square().sum((0, 2))
        self.chains += len(outputs)

    def table(self) -> ChainTable:
        gaps = self.gaps / self.chains
        cost = trapezoid(gaps, self.levels)
        variance = (self.squares / self.chains - cost**2).clamp_min(0)
        error = (variance / (self.chains - 1)).sqrt()
        return ChainTable(self.levels, gaps, cost, error, self.energy / self.chains, self.chains)


def optimum(table: ChainTable, steps: int) -> tuple[Grid, float]:
    """The grid with the least KLUB among all of the table's, by dynamic programming, and its value.

    C[k, b] = min_a C[k-1, a] + K[a, b]. A diagnostic: KLUB bounds the mismatch of paths, not of final samples.

    Raises:
        ValueError: steps is below 1 or above the number of intervals of the table.
    """
    size = len(table.levels)
    if not 1 <= steps < size:
        raise ValueError(f"steps must be in 1..{size - 1} for a table of {size} levels, got {steps}")
    cost = torch.where(torch.triu(torch.ones_like(table.cost), 1).bool(), table.cost, math.inf)
    best, choices = cost[0], []
    for _ in range(steps - 1):
        totals = best[:, None] + cost
        best, before = totals.min(0)
        choices.append(before)
    path = [size - 1]
    for before in reversed(choices):
        path.append(int(before[path[-1]]))
    indices = [0, *reversed(path)]
    return tuple(table.levels[i] for i in indices), best[-1].item()
