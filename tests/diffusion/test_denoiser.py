"""The denoiser view against diffusers' own schedulers, for every prediction type and model family."""

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler

from mezzotint.diffusion import Condition, Denoiser
from tests.diffusion.conftest import scheduler, tiny_dit, tiny_unet

PREDICTIONS = ["epsilon", "v_prediction", "sample"]

# diffusers' multistep and Euler schedulers hand tensors to numpy in a way that numpy 2 deprecates.
numpy_copies = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")


@pytest.fixture(scope="module")
def unet():
    return tiny_unet()


@pytest.fixture(scope="module")
def cond():
    return Condition(torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(5)))


@pytest.fixture(autouse=True)
def without_gradients():
    with torch.no_grad():
        yield


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("t", [1, 401, 999])
def test_clean_sample_and_noise_are_those_of_ddim(unet, cond, x, prediction, t):
    reference = scheduler(prediction_type=prediction)
    reference.set_timesteps(10)
    denoiser = Denoiser(unet, reference)
    output = unet(x, t, **cond.arguments()).sample
    step = reference.step(output, t, x)
    torch.testing.assert_close(denoiser.x0(x, t, cond), step.pred_original_sample, atol=1e-5, rtol=1e-5)
    # The DDIM step made of our noise is the scheduler's step.
    ours = denoiser.levels.ddim_step(x, denoiser.eps(x, t, cond), t, max(t - 100, -1))
    torch.testing.assert_close(ours, step.prev_sample, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_velocity_belongs_to_noise_and_clean_sample(unet, cond, x, prediction):
    denoiser = Denoiser(unet, scheduler(prediction_type=prediction))
    eps, x0, v = (view(x, 500, cond) for view in (denoiser.eps, denoiser.x0, denoiser.v))
    alpha, std = denoiser.levels.alpha(500), denoiser.levels.std(500)
    torch.testing.assert_close(alpha * eps - std * x0, v, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(alpha * x0 + std * eps, x, atol=1e-5, rtol=1e-5)


@numpy_copies
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_edm_view_is_that_of_euler(unet, cond, x, prediction):
    reference = EulerDiscreteScheduler.from_config(scheduler().config, prediction_type=prediction)
    reference.set_timesteps(8)
    denoiser = Denoiser(unet, reference)
    for index in (0, 4, 7):
        reference._step_index = None
        t, sigma = reference.timesteps[index], reference.sigmas[index]
        x_ve = x * sigma
        output = unet(reference.scale_model_input(x_ve, t), t, **cond.arguments()).sample
        expected = reference.step(output, t, x_ve).pred_original_sample if prediction != "sample" else output
        scale = expected.abs().max().item()
        torch.testing.assert_close(
            denoiser.denoise(x_ve, sigma, cond, fractional=True), expected, atol=1e-5 * scale, rtol=1e-5
        )


@numpy_copies
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_multistep_solvers_convert_alike(unet, cond, x, prediction):
    reference = DPMSolverMultistepScheduler.from_config(scheduler().config, prediction_type=prediction)
    reference.set_timesteps(10)
    reference._init_step_index(reference.timesteps[3])
    t = int(reference.timesteps[3])
    output = unet(x, t, **cond.arguments()).sample
    expected = reference.convert_model_output(output, sample=x)
    torch.testing.assert_close(Denoiser(unet, reference).x0(x, t, cond), expected, atol=1e-5, rtol=1e-5)


def test_learned_variance_is_dropped(x):
    dit = tiny_dit()
    reference = DDPMScheduler.from_config(scheduler().config, variance_type="learned_range")
    cond = Condition(class_labels=torch.tensor([1, 2]))
    output = dit(x, timestep=torch.tensor([300, 300]), class_labels=cond.class_labels).sample
    assert output.shape[1] == 2 * x.shape[1]
    expected = reference.step(output, 300, x, generator=torch.Generator().manual_seed(0)).pred_original_sample
    torch.testing.assert_close(Denoiser(dit, reference).x0(x, 300, cond), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_both_views_agree_on_training_levels(unet, cond, x, prediction):
    denoiser = Denoiser(unet, scheduler(prediction_type=prediction))
    t = torch.tensor([40, 900])
    x_ve, sigma = denoiser.levels.to_ve(x, t), denoiser.levels.sigma(t)
    torch.testing.assert_close(denoiser.denoise(x_ve, sigma, cond), denoiser.x0(x, t, cond), atol=2e-5, rtol=1e-4)


def test_every_layout_runs_batched_as_it_runs_singly(any_pipe):
    pipe, prompts = any_pipe
    cond, _ = Condition.from_prompt(pipe, prompts * 2)
    x = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    t = torch.tensor([7, 250, 600, 999])
    denoiser = Denoiser(pipe)
    batch = denoiser.eps(x, t, cond)
    singles = torch.cat([denoiser.eps(x[k : k + 1], int(t[k]), cond[k]) for k in range(4)])
    torch.testing.assert_close(batch, singles, atol=1e-5, rtol=1e-5)


def test_timestep_kinds_are_one(unet, cond, x):
    denoiser = Denoiser(unet, scheduler())
    expected = denoiser.eps(x, 250, cond)
    for t in (250.0, torch.tensor(250), torch.tensor([250, 250]), torch.tensor([250.0, 250.0])):
        torch.testing.assert_close(denoiser.eps(x, t, cond), expected, atol=1e-6, rtol=1e-6)


def test_the_networks_dtype_is_served_and_the_samples_kept(cond, x):
    half = tiny_unet().to(torch.bfloat16)
    result = Denoiser(half, scheduler()).eps(x, 500, cond.to(dtype=torch.bfloat16))
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, Denoiser(tiny_unet(), scheduler()).eps(x, 500, cond), atol=0.05, rtol=0.05)


def test_the_network_is_called_once_and_not_changed(cond, x):
    unet = tiny_unet()
    before = {name: value.clone() for name, value in unet.state_dict().items()}
    calls = []
    unet.register_forward_hook(lambda *_: calls.append(1))
    Denoiser(unet, scheduler()).v(x, 3, cond)
    assert len(calls) == 1
    assert all(torch.equal(before[name], value) for name, value in unet.state_dict().items())


def test_plain_modules_and_tuples_are_networks(x):
    class Gaussian(torch.nn.Module):
        """Exact noise of N(0, c^2) data: eps = std x / (alpha^2 c^2 + std^2)."""

        def forward(self, x, timestep):
            alpha, std = levels.alpha(timestep), levels.std(timestep)
            return (x * (std / (0.25 * alpha**2 + std**2)).reshape(-1, 1, 1, 1),)

    denoiser = Denoiser(Gaussian(), scheduler())
    levels = denoiser.levels
    sigma = levels.sigma(torch.tensor([100, 800]))
    shrink = (0.25 / (0.25 + sigma**2)).reshape(-1, 1, 1, 1)
    torch.testing.assert_close(denoiser.denoise(x, sigma), shrink * x, atol=1e-5, rtol=1e-4)


def test_gradients_reach_sample_and_condition(unet, x):
    with torch.enable_grad():
        embeds = torch.randn(2, 5, 16, requires_grad=True)
        sample = x.clone().requires_grad_()
        Denoiser(unet, scheduler()).x0(sample, 300, Condition(embeds)).square().sum().backward()
    assert sample.grad.abs().sum() > 0
    assert embeds.grad.abs().sum() > 0


def test_bad_construction_is_explained(unet):
    with pytest.raises(ValueError, match="needs a scheduler"):
        Denoiser(unet)
    with pytest.raises(ValueError, match="got str"):
        Denoiser("unet", scheduler())
    odd = DDIMScheduler()
    odd.register_to_config(prediction_type="flow_prediction")
    with pytest.raises(ValueError, match="'flow_prediction'"):
        Denoiser(unet, odd)
