"""Properties of grids, schedules and the objective of Align Your Steps over random ranges, sizes and noise levels."""

import json
import math
from itertools import pairwise

import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from mezzotint.methods.align_your_steps import chain, gaussian, grids, klub, search
from mezzotint.methods.align_your_steps.schedule import Schedule

few = settings(deadline=None, max_examples=40)
steps = st.integers(1, 60)
low = st.floats(1e-4, 0.5)
ratio = st.floats(2.0, 1e5)
scale = st.floats(0.05, 5.0)
makers = st.sampled_from(sorted({**grids.CONTINUOUS, **grids.SCALED}))
levels = st.lists(st.floats(-6.0, 5.0), min_size=2, max_size=30, unique_by=lambda x: round(x, 3)).map(
    lambda logs: tuple(math.exp(x) for x in sorted(logs))
)


@few
@given(makers, steps, low, ratio)
def test_every_named_grid_ascends_between_exact_ends(name, n, s_min, factor):
    s_max = s_min * factor
    maker = {**grids.CONTINUOUS, **grids.SCALED}[name]
    grid = maker(n, s_min, s_max)
    grids.check_grid(grid)
    assert len(grid) == n + 1
    assert (grid[0], grid[-1]) == (s_min, s_max)


@few
@given(levels, steps, st.integers(1, 4))
def test_resampling_is_the_identity_at_the_same_number_and_keeps_shared_levels(grid, n, factor):
    assert grids.resample(grid, len(grid) - 1) == grid
    finer = grids.resample(grid, factor * (len(grid) - 1))
    assert finer[::factor] == grid
    other = grids.resample(grid, n)
    assert (other[0], other[-1]) == (grid[0], grid[-1])
    assert all(a < b for a, b in pairwise(other))


@few
@given(st.lists(st.integers(0, 999), min_size=2, max_size=40).map(sorted))
def test_distinct_indices_keep_their_ends_and_order(indices):
    assume(indices[-1] - indices[0] + 1 >= len(indices))
    moved = grids.distinct(indices, 1000)
    assert (moved[0], moved[-1]) == (indices[0], indices[-1])
    assert all(a < b for a, b in pairwise(moved))
    if len(set(indices)) == len(indices):
        assert list(moved) == indices


@few
@given(st.integers(2, 200), st.integers(2, 30), low, ratio)
def test_snapped_grids_are_training_levels(count, n, s_min, factor):
    training = grids.log_snr(count - 1, s_min, s_max := s_min * factor)
    assume(n < count)
    indices = grids.snap(grids.edm(n, s_min, s_max), training)
    assert len(set(indices)) == n + 1
    assert (indices[0], indices[-1]) == (0, count - 1)


@few
@given(levels, st.sampled_from(["t_min", "zero", "append_zero"]))
def test_json_keeps_every_bit_and_the_calls_are_counted(grid, final):
    schedule = Schedule.from_grid(grid, final=final)
    assert Schedule.from_json(json.loads(json.dumps(schedule.to_json()))) == schedule
    assert len(schedule.sampler_sigmas) == schedule.calls + 1
    assert schedule.calls == len(grid) - 1 + (final == "append_zero")
    assert (schedule.sampler_sigmas[-1] == 0) == (final != "t_min")


@few
@given(st.floats(1e-3, 5.0), st.floats(1.001, 1e4), scale)
def test_normaliser_is_the_gaussian_cost_and_additive_bounds_hold(a, factor, c):
    b = a * factor
    assert_close(klub.normaliser(a, b, c) * c**4, gaussian.interval(a, b, c=c), rtol=1e-6, atol=1e-12)
    middle = math.sqrt(a * b)
    split = klub.normaliser(a, middle, c) + klub.normaliser(middle, b, c)
    assert split <= klub.normaliser(a, b, c) * (1 + 1e-9)


@few
@given(st.floats(1e-3, 5.0), st.floats(1.01, 1e3), scale, st.integers(0, 10))
def test_drawn_levels_invert_their_distribution(a, factor, c, seed):
    b = a * factor
    u = torch.rand(64, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    t = klub.draw_levels(u, a, b, c)
    assert bool(((t >= a * (1 - 1e-9)) & (t <= b * (1 + 1e-9))).all())
    share = klub.cumulative(t, a, b, c) / klub.normaliser(a, b, c)
    assert_close(share, u, rtol=1e-4, atol=1e-6)


@few
@given(st.floats(0.01, 0.5), st.floats(2.0, 1e3), scale, st.integers(1, 12))
def test_the_equal_term_grid_has_the_least_bound_for_gaussian_data(s_min, factor, c, n):
    s_max = s_min * factor
    best = gaussian.klub(grids.klub_gaussian(n, s_min, s_max, c=c), c=c)
    for other in (grids.edm(n, s_min, s_max), grids.log_snr(n, s_min, s_max), grids.arctan(n, s_min, s_max, c=c)):
        assert best <= gaussian.klub(other, c=c) * (1 + 1e-6) + 1e-9


@few
@given(st.floats(0.01, 0.5), st.floats(2.0, 1e3), scale, st.integers(1, 12))
def test_the_arctan_grid_is_the_best_sampler_for_gaussian_data(s_min, factor, c, n):
    s_max = s_min * factor
    best = gaussian.std_ratio(grids.arctan(n, s_min, s_max, c=c), c=c)
    for other in (
        grids.edm(n, s_min, s_max),
        grids.log_snr(n, s_min, s_max),
        grids.klub_gaussian(n, s_min, s_max, c=c),
    ):
        assert gaussian.std_ratio(other, c=c) <= best * (1 + 1e-9)


def random_table(size, seed):
    """A table of random, not negative costs: the search may rely on nothing else."""
    levels = grids.log_snr(size - 1, 0.01, 10.0)
    cost = torch.rand(size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).triu(1)
    return chain.ChainTable(levels, cost, cost, torch.zeros_like(cost), torch.zeros(size, dtype=torch.float64), 1)


@few
@given(st.integers(12, 30), st.integers(2, 10), st.integers(0, 10_000), st.sampled_from([2, 5, 11, None]))
def test_any_search_lies_between_the_optimum_and_its_start(size, n, seed, count):
    table = random_table(size, seed)
    objective = search.TableObjective(table, count)
    start = table.nearest(grids.log_snr(n, 0.01, 10.0))
    passes = search.coordinate_search(start, objective)
    assert all(b.objective <= a.objective for a, b in pairwise(passes))
    assert chain.optimum(table, n)[1] <= passes[-1].objective + 1e-12
    assert all((p.grid[0], p.grid[-1]) == (0.01, 10.0) for p in passes)


@few
@given(st.integers(12, 40), st.integers(0, 10_000), st.integers(1, 45))
def test_the_whole_procedure_gives_the_wanted_number_of_levels(size, seed, n):
    table = random_table(size, seed)
    start = table.nearest(grids.log_snr(10, 0.01, 10.0))
    grid, history = search.hierarchical(start, search.TableObjective(table), n, max_updates=30)
    grids.check_grid(grid)
    assert len(grid) == n + 1
    assert (grid[0], grid[-1]) == (start[0], start[-1])
    assert {p.stage for p in history} <= {10, 20, 40}
