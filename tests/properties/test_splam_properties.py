"""Properties of the sub-path, for every schedule, jump and place."""

from itertools import pairwise

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from mezzotint.diffusion import Levels
from mezzotint.methods.splam.huber import huber
from mezzotint.methods.splam.points import sampling_timesteps, solver_points
from mezzotint.methods.splam.sub_path import Jump, effective_time, line, sigma

divisors = st.sampled_from([n for n in range(1, 1001) if 1000 % n == 0])
unit = st.floats(0, 1)


def levels(first, last):
    betas = torch.linspace(first, last, 1000, dtype=torch.float64)
    return Levels((1 - betas).cumprod(0))


schedules = st.builds(levels, st.floats(1e-4, 1e-3), st.floats(5e-3, 3e-2))


@given(schedules, divisors.filter(lambda n: n <= 500), unit, unit)
def test_noise_lies_between_the_ends_rises_and_linear_is_above(table, count, one, other):
    t = torch.tensor(solver_points(count))
    jump = Jump.between(table, t, (t - 1000 // count).clamp(min=0))
    low, high = sorted((one, other))
    found = {}
    for mode in ("quadrature", "linear"):
        at = [sigma(jump, torch.full((count,), g, dtype=torch.float64), mode) for g in (0.0, low, high, 1.0)]
        found[mode] = at
        for before, after in pairwise(at):
            assert bool((after >= before - 1e-12).all())
    assert bool((found["linear"][1] >= found["quadrature"][1] - 1e-12).all())


@given(schedules, divisors.filter(lambda n: 2 <= n <= 500), unit)
def test_a_sample_of_the_path_is_one_of_its_effective_time(table, count, place):
    t = torch.tensor(solver_points(count))
    jump = Jump.between(table, t, (t - 1000 // count).clamp(min=0))
    noise = sigma(jump, torch.full((count,), place, dtype=torch.float64), "linear")
    when, norm = effective_time(table, jump.alpha, noise)
    assert_close(table.alpha(when.double().clamp(0, 999)), jump.alpha / norm, rtol=1e-3, atol=1e-5)
    assert bool(((when >= jump.to - 1e-3) & (when <= jump.t + 1e-3)).all())


@given(schedules, unit, st.integers(0, 2**31))
def test_a_ddim_pair_keeps_signal_and_noise_along_the_line(table, place, seed):
    t = torch.tensor(solver_points(50))
    jump = Jump.between(table, t, (t - 20).clamp(min=0))
    generator = torch.Generator().manual_seed(seed)
    x0, e = (torch.randn(50, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    x_t = table.add_noise(x0, e, t)
    gamma = torch.full((50,), place, dtype=torch.float64)
    x_g = line(x_t, table.ddim_step(x_t, e, t, jump.to), jump.ratio, gamma)
    wanted = jump.alpha[:, None] * x0 + sigma(jump, gamma, "linear")[:, None] * e
    assert_close(x_g, wanted, rtol=0, atol=1e-9)


@given(divisors, st.data())
def test_sampling_takes_solver_points_downwards_from_the_last(count, data):
    steps = data.draw(st.integers(1, count))
    taken = sampling_timesteps(steps, count)
    assert len(taken) == steps
    assert taken[0] == 999
    assert set(taken) <= set(solver_points(count))
    assert list(taken) == sorted(set(taken), reverse=True)


@given(st.floats(-100, 100), st.floats(1e-4, 1.0))
def test_huber_lies_below_the_distance_and_below_the_parabola(gap, c):
    value = huber(torch.tensor([gap]), torch.zeros(1), c).item()
    assert 0 <= value <= abs(gap) * (1 + 1e-6)
    assert value <= gap**2 / (2 * c) * (1 + 1e-5) + 1e-12
