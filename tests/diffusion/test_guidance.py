"""Guidance: the sum that diffusers takes, its limits and its symmetries (arXiv 2207.12598, 2206.01714)."""

import pytest
import torch

from mezzotint.diffusion import Condition, Denoiser, composed, guided
from tests.diffusion.conftest import scheduler, tiny_unet


def text(seed, batch=2):
    return Condition(torch.randn(batch, 5, 16, generator=torch.Generator().manual_seed(seed)))


@pytest.fixture(scope="module")
def denoiser():
    return Denoiser(tiny_unet(), scheduler())


@pytest.fixture(autouse=True)
def without_gradients():
    with torch.no_grad():
        yield


def test_one_term_is_classifier_free_guidance_bit_for_bit(denoiser, x):
    cond, uncond = text(1), text(2)
    rows = denoiser.model(torch.cat([x, x]), 300, **uncond.concat(cond).arguments()).sample
    base, conditional = rows.chunk(2)
    expected = base + 7.5 * (conditional - base)
    assert torch.equal(guided(denoiser, cond, uncond, 7.5).eps(x, 300), expected)


def test_a_whole_pipeline_run_is_reproduced(sd):
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    prompts = ["a red cube", "a ball"]
    stock = sd(prompts, latents=latents, height=16, width=16, num_inference_steps=4, guidance_scale=5.0,
               negative_prompt=["blue"] * 2, output_type="latent").images  # fmt: skip
    cond, uncond = Condition.from_prompt(sd, prompts, "blue")
    view = guided(Denoiser(sd), cond, uncond, 5.0)
    sd.scheduler.set_timesteps(4)
    x = latents
    for t in sd.scheduler.timesteps:
        x = sd.scheduler.step(view.eps(x, t), t, x).prev_sample
    torch.testing.assert_close(x, stock, atol=1e-5, rtol=1e-5)


def test_limits_of_the_scale(denoiser, x):
    cond, uncond = text(1), text(2)
    rows = lambda scale: guided(denoiser, cond, uncond, scale).eps(x, 300)  # noqa: E731
    torch.testing.assert_close(rows(0.0), denoiser.eps(x, 300, uncond), atol=1e-6, rtol=1e-5)
    assert torch.equal(rows(1.0), denoiser.eps(x, 300, cond))
    torch.testing.assert_close(rows(3.0) - rows(2.0), rows(2.0) - rows(1.0), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_guiding_noise_and_clean_sample_is_one_operation(x, prediction):
    denoiser = Denoiser(tiny_unet(), scheduler(prediction_type=prediction))
    cond, uncond = text(1), text(2)
    view = guided(denoiser, cond, uncond, 4.0)
    sigma = denoiser.levels.sigma(600)
    x_ve = denoiser.levels.to_ve(x, 600)
    for name, arguments in {"eps": (x, 600), "x0": (x, 600), "v": (x, 600), "denoise": (x_ve, sigma)}.items():
        plain = getattr(denoiser, name)
        base, conditional = plain(*arguments, uncond), plain(*arguments, cond)
        expected = base + 4.0 * (conditional - base)
        torch.testing.assert_close(getattr(view, name)(*arguments), expected, atol=1e-4, rtol=1e-4)


def test_order_of_terms_does_not_matter_and_opposites_cancel(denoiser, x):
    a, b, c, uncond = text(1), text(2), text(3), text(4)
    first = composed(denoiser, [(a, 7.5), (b, 7.5), (c, -7.5)], uncond).eps(x, 500)
    second = composed(denoiser, [(c, -7.5), (a, 7.5), (b, 7.5)], uncond).eps(x, 500)
    torch.testing.assert_close(first, second, atol=1e-5, rtol=1e-5)
    cancelled = composed(denoiser, [(a, 7.5), (b, 2.0), (b, -2.0)], uncond).eps(x, 500)
    torch.testing.assert_close(cancelled, guided(denoiser, a, uncond, 7.5).eps(x, 500), atol=1e-5, rtol=1e-5)
    split = composed(denoiser, [(a, 5.0), (a, 2.5)], uncond).eps(x, 500)
    torch.testing.assert_close(split, guided(denoiser, a, uncond, 7.5).eps(x, 500), atol=1e-5, rtol=1e-5)


def test_a_weight_an_item(denoiser, x):
    cond, uncond = text(1), text(2)
    mixed = guided(denoiser, cond, uncond, torch.tensor([2.0, 6.0])).eps(x, 400)
    for k, scale in enumerate((2.0, 6.0)):
        assert torch.equal(mixed[k], guided(denoiser, cond, uncond, scale).eps(x, 400)[k])


def test_one_condition_serves_every_sample_and_any_batch(denoiser, x):
    cond, uncond = text(1, batch=1), text(2, batch=1)
    view = guided(denoiser, cond, uncond, 3.0)
    both = view.eps(x, torch.tensor([100, 700]))
    torch.testing.assert_close(view.eps(x[:1], 100), both[:1], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(view.eps(x[1:], 700), both[1:], atol=1e-5, rtol=1e-5)


def test_one_call_of_the_network_a_step(x):
    unet = tiny_unet()
    sizes = []
    unet.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    denoiser = Denoiser(unet, scheduler())
    composed(denoiser, [(text(1), 2.0), (text(2), -1.0)], text(3)).eps(x, 1)
    guided(denoiser, text(1), text(3), 1.0).eps(x, 1)
    assert sizes == [6, 2]


def test_nested_guidance_is_the_sum(denoiser, x):
    """A guided view is a denoiser itself: guiding the conditional model with scale 1 changes nothing."""
    inner = guided(denoiser, text(1), text(2), 1.0)
    assert inner.prediction_type == denoiser.prediction_type
    assert torch.equal(inner.x0(x, 9), denoiser.x0(x, 9, text(1)))


def test_misuse_is_explained(denoiser, x):
    with pytest.raises(ValueError, match="at least one term"):
        composed(denoiser, [], text(1))
    with pytest.raises(ValueError, match="needs an unconditional condition"):
        guided(denoiser, text(1), None, 2.0)
    with pytest.raises(ValueError, match="already bound"):
        guided(denoiser, text(1), text(2), 2.0).eps(x, 1, text(3))
    with pytest.raises(ValueError, match="3 items does not fit a batch of 2"):
        guided(denoiser, text(1, batch=3), text(2, batch=3), 2.0).eps(x, 1)
