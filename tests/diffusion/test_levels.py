"""Noise levels against diffusers' own arithmetic and against closed forms."""

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler

from mezzotint.diffusion.levels import Levels
from tests.diffusion.conftest import scheduler


@pytest.fixture
def levels():
    return Levels.from_scheduler(scheduler())


def pair(count=3):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, 4, 8, 8, generator=generator), torch.randn(count, 4, 8, 8, generator=generator)


def test_known_values_of_the_stable_diffusion_schedule(levels):
    # The ends of the published SD 1.5 schedule (arXiv 2404.14507): sigma_0 = 0.0292, sigma_999 = 14.615.
    torch.testing.assert_close(levels.sigma(999).item(), 14.6146, atol=1e-3, rtol=0)
    torch.testing.assert_close(levels.sigma(0).item(), 0.0292, atol=1e-4, rtol=0)
    torch.testing.assert_close(levels.sigma(torch.tensor([736, 545])), torch.tensor([3.864, 1.884]), atol=1e-3, rtol=0)


def test_whole_timesteps_read_the_table_exactly(levels):
    table = scheduler().alphas_cumprod
    t = torch.arange(1000)
    torch.testing.assert_close(levels.alpha(t) ** 2, table, rtol=1e-6, atol=0)
    torch.testing.assert_close(levels.sigma(t), levels.sigmas, rtol=1e-6, atol=0)
    euler = EulerDiscreteScheduler.from_config(scheduler().config, timestep_spacing="leading")
    assert torch.all((levels.sigmas - ((1 - euler.alphas_cumprod) / euler.alphas_cumprod) ** 0.5).abs() <= 2e-6 * 14.7)


def test_the_level_beyond_the_first_is_where_ddim_ends():
    assert Levels.from_scheduler(scheduler(set_alpha_to_one=True)).sigma(-1) == 0
    kept = Levels.from_scheduler(scheduler(set_alpha_to_one=False))
    torch.testing.assert_close(kept.sigma(-1), kept.sigma(0))


def test_add_noise_and_velocity_are_those_of_diffusers(levels):
    x0, noise = pair()
    t = torch.tensor([0, 501, 999])
    reference = DDPMScheduler.from_config(scheduler().config)
    x = reference.add_noise(x0, noise, t)
    torch.testing.assert_close(levels.add_noise(x0, noise, t), x, atol=1e-6, rtol=1e-6)
    v = reference.get_velocity(x0, noise, t)
    torch.testing.assert_close(levels.v_from_eps(x, t, noise), v, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(levels.v_from_x0(x, torch.tensor([501, 501, 999]), x0)[2], v[2], atol=1e-5, rtol=1e-5)


def test_ddim_step_is_the_scheduler_step(levels):
    x, eps = pair()
    reference = scheduler()
    reference.set_timesteps(10)
    for t, to in ((901, 801), (101, 1), (1, -1)):
        expected = reference.step(eps, t, x).prev_sample
        torch.testing.assert_close(levels.ddim_step(x, eps, t, to), expected, atol=1e-5, rtol=1e-5)


def test_fractional_timesteps_interpolate_log_sigma(levels):
    middle = levels.sigma(torch.tensor([400.5, 10.25], dtype=torch.float64))
    ends = levels.sigma(torch.tensor([[400, 401], [10, 11]])).double().log()
    expected = torch.stack([ends[0].mean(), 0.75 * ends[1, 0] + 0.25 * ends[1, 1]]).exp()
    torch.testing.assert_close(middle.double(), expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(levels.alpha(7.0), levels.alpha(7))


def test_vp_and_ve_scales_belong_together(levels):
    t = torch.tensor([0.0, 0.5, 333.3, 999.0])
    torch.testing.assert_close(levels.alpha(t) ** 2 + levels.std(t) ** 2, torch.ones(4))
    torch.testing.assert_close(levels.std(t) / levels.alpha(t), levels.sigma(t), rtol=1e-5, atol=0)
    torch.testing.assert_close(levels.log_snr(t), -2 * levels.sigma(t).log(), rtol=1e-5, atol=1e-6)


def test_timestep_is_nearest_in_log_sigma_and_clamps(levels):
    assert torch.equal(levels.timestep(levels.sigmas), torch.arange(1000))
    between = (levels.sigmas[:-1].double().log() * 0.4 + levels.sigmas[1:].double().log() * 0.6).exp()
    assert torch.equal(levels.timestep(between), torch.arange(1, 1000))
    # The published schedules print 14.615 and 0.029, a hair outside the table.
    assert levels.timestep(14.615).item() == 999
    assert levels.timestep(0.029).item() == 0
    assert levels.timestep(1e9, fractional=True).item() == 999.0


def test_double_tables_stay_double():
    table = torch.linspace(0.999, 0.01, 50, dtype=torch.float64)
    levels = Levels.from_alphas_cumprod(table)
    torch.testing.assert_close(levels.sigma(torch.arange(50)), ((1 - table) / table).sqrt(), rtol=1e-13, atol=0)


def test_half_precision_samples_are_computed_in_single_precision(levels):
    x, eps = (tensor.bfloat16() for tensor in pair())
    t = torch.tensor([10, 500, 990])
    wide = levels.x0_from_eps(x.float(), t, eps.float())
    assert torch.equal(levels.x0_from_eps(x, t, eps), wide.bfloat16())
    step = levels.ddim_step(x.float(), eps.float(), 700, 300)
    assert torch.equal(levels.ddim_step(x, eps, 700, 300), step.bfloat16())


def test_zero_terminal_signal_is_kept_finite():
    levels = Levels.from_scheduler(scheduler(rescale_betas_zero_snr=True))
    torch.testing.assert_close(levels.sigma(999).item(), 2.0**12, rtol=1e-3, atol=0)


@pytest.mark.parametrize("t", [1000, -2, 999.5, -0.5, torch.tensor([3, 1000])])
def test_timesteps_outside_the_table_are_refused(levels, t):
    with pytest.raises(ValueError, match=r"timestep must lie in 0\.\.999"):
        levels.alpha(t)


@pytest.mark.parametrize("sigma", [0.0, -1.0, float("nan")])
def test_sigmas_must_be_positive(levels, sigma):
    with pytest.raises(ValueError, match="sigma must be greater than 0"):
        levels.timestep(sigma)


@pytest.mark.parametrize("table", [[0.5], [0.5, 0.6], [1.2, 0.5], [0.5, 0.5], [0.5, 0.0], [0.5, float("nan")]])
def test_impossible_tables_are_refused(table):
    with pytest.raises(ValueError, match="alphas_cumprod"):
        Levels.from_alphas_cumprod(torch.tensor(table))


def test_schedulers_without_levels_are_refused():
    with pytest.raises(ValueError, match="FlowMatchEulerDiscreteScheduler has no alphas_cumprod"):
        Levels.from_scheduler(FlowMatchEulerDiscreteScheduler())
    assert len(Levels.from_scheduler(DDIMScheduler(num_train_timesteps=20))) == 20
