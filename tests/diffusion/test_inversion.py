"""Inversion follows diffusers' inverse scheduler, and its replay is exact to the last bit."""

import pytest
import torch
from diffusers import DDIMInverseScheduler

from mezzotint.diffusion import Condition, Denoiser, guided, invert, replay
from mezzotint.diffusion.inversion import Trajectory
from tests.diffusion.conftest import scheduler, tiny_unet


def text(seed, batch=2):
    return Condition(torch.randn(batch, 5, 16, generator=torch.Generator().manual_seed(seed)))


def steps(count=6, **changes):
    reference = scheduler(**changes)
    reference.set_timesteps(count)
    return reference.timesteps


@pytest.fixture(scope="module")
def denoiser():
    return Denoiser(tiny_unet(), scheduler())


class Constant(torch.nn.Module):
    def forward(self, x, timestep):
        return torch.linspace(-2, 2, x[0].numel()).reshape(x[0].shape).expand_as(x)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("to_one", [False, True])
def test_every_level_is_that_of_the_inverse_scheduler(x, prediction, to_one):
    unet = tiny_unet()
    settings = {"prediction_type": prediction, "set_alpha_to_one": to_one}
    inverse = DDIMInverseScheduler.from_config(scheduler(**settings).config)
    inverse.set_timesteps(6)
    expected = [x]
    with torch.no_grad():
        for t in inverse.timesteps:
            output = unet(expected[-1], t, **text(1).arguments()).sample
            if prediction == "v_prediction":
                # The scheduler reads a velocity at the level the sample has, we at the level the network was asked
                # about; hand it the noise so that only the walk is compared.
                output = Denoiser(unet, scheduler(**settings)).eps(expected[-1], t, text(1))
                inverse.register_to_config(prediction_type="epsilon")
            expected.append(inverse.step(output, t, expected[-1]).prev_sample)
    trajectory = invert(Denoiser(unet, scheduler(**settings)), x, text(1), inverse.timesteps, exact=False)
    torch.testing.assert_close(trajectory.latents, torch.stack(expected), atol=1e-5, rtol=1e-5)
    assert trajectory.levels == (-1, *inverse.timesteps.tolist())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_replay_gives_the_latents_back_bit_for_bit(denoiser, x, dtype):
    trajectory = invert(denoiser, x.to(dtype), text(1), steps())
    assert torch.equal(replay(trajectory, denoiser, text(1)), x.to(dtype))


def test_double_latents_come_back_to_rounding(denoiser, x):
    trajectory = invert(denoiser, x.double(), text(1), steps())
    torch.testing.assert_close(replay(trajectory, denoiser, text(1)), x.double(), atol=1e-13, rtol=0)


def test_every_level_of_the_replay_is_exact(denoiser, x):
    trajectory = invert(denoiser, x, text(1), steps())
    reached = {}

    def keep(t, latents):
        reached[t] = latents
        return latents

    replay(trajectory, denoiser, text(1), on_step=keep)
    assert list(reached) == list(reversed(trajectory.levels[:-1]))
    for level, t in enumerate(trajectory.levels[:-1]):
        assert torch.equal(reached[t], trajectory[level])


def test_replay_under_guidance_is_exact(denoiser, x):
    view = guided(denoiser, text(1), text(2), 7.5)
    trajectory = invert(view, x, None, steps())
    assert torch.equal(replay(trajectory, view), x)


def test_without_residuals_sampling_drifts(denoiser, x):
    """The law above is not empty: plain DDIM from the same noise misses the latents."""
    trajectory = invert(denoiser, x, text(1), steps())
    silenced = Trajectory(trajectory.levels, trajectory.latents, torch.zeros_like(trajectory.residuals))
    assert (replay(silenced, denoiser, text(1)) - x).abs().max() > 1e-3


def test_constant_noise_round_trips_without_help(x):
    denoiser = Denoiser(Constant(), scheduler())
    trajectory = invert(denoiser, x, None, steps(50))
    assert trajectory.residuals.abs().max() < 1e-5


def test_another_condition_edits_and_the_difference_grows_with_it(denoiser, x):
    trajectory = invert(denoiser, x, text(1), steps())
    changes = []
    for share in (0.0, 0.1, 1.0):
        embeds = torch.lerp(text(1).encoder_hidden_states, text(9).encoder_hidden_states, share)
        changes.append((replay(trajectory, denoiser, Condition(embeds)) - x).abs().mean().item())
    assert changes[0] == 0
    assert 0 < changes[1] < changes[2]


def test_edits_between_steps_take_effect(denoiser, x):
    trajectory = invert(denoiser, x, text(1), steps())
    shifted = replay(trajectory, denoiser, text(1), on_step=lambda t, z: z + 1 if t == -1 else z)
    assert torch.equal(shifted, x + 1)


def test_timesteps_in_any_order_and_irregular(denoiser, x):
    irregular = [3, 40, 41, 700, 999]
    forward = invert(denoiser, x, text(1), irregular)
    backward = invert(denoiser, x, text(1), torch.tensor(irregular[::-1]))
    assert torch.equal(forward.latents, backward.latents)
    assert torch.equal(replay(forward, denoiser, text(1)), x)


def test_a_finer_walk_drifts_less(denoiser, x):
    drifts = [invert(denoiser, x, text(1), steps(n)).residuals.abs().sum(0).mean().item() for n in (5, 20)]
    assert drifts[1] < drifts[0]


def test_noise_and_clean_are_the_ends(denoiser, x):
    trajectory = invert(denoiser, x, text(1), steps(), exact=False)
    assert torch.equal(trajectory.clean, x)
    assert torch.equal(trajectory.noise, trajectory[-1])
    assert torch.equal(replay(trajectory), x)
    assert len(trajectory) == 7


@pytest.mark.parametrize("timesteps", [[], [5, 5], [-1, 3], [1000], [1.5, 3.0]])
def test_bad_timesteps_are_refused(denoiser, x, timesteps):
    with pytest.raises(ValueError, match="timesteps must"):
        invert(denoiser, x, text(1), torch.tensor(timesteps))


def test_replay_says_what_it_needs(denoiser, x):
    trajectory = invert(denoiser, x, text(1), [500], exact=False)
    with pytest.raises(ValueError, match="no residuals"):
        replay(trajectory, denoiser, text(1))
    with pytest.raises(ValueError, match="on_step needs a denoiser"):
        replay(trajectory, on_step=lambda t, z: z)
