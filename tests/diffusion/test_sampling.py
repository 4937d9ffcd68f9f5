"""The fast path makes the pipeline's pictures, from fewer encodings, and batches change nothing."""

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, LCMScheduler, PNDMScheduler
from torch.testing import assert_close

from mezzotint.diffusion import Condition, Sampler, fast_sampler, stream

PROMPTS = ["a red cube", "two blue balls", "a red cube"]
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture
def solver(sd):
    """Give the pipeline another scheduler for one test."""
    before = sd.scheduler
    sd.set_progress_bar_config(disable=True)

    def use(kind, **settings):
        sd.scheduler = kind.from_config(before.config, **settings)
        return sd

    yield use
    sd.scheduler = before


def of_the_pipeline(pipe, *, steps, scale, seed=5, negative=None):
    generators = [stream(seed, "sample", 0, k) for k in range(len(PROMPTS))]
    settings = {"num_inference_steps": steps, "guidance_scale": scale, "height": 16, "width": 16}
    with torch.no_grad():
        made = pipe(PROMPTS, generator=generators, output_type="pt", negative_prompt=negative, **settings)
    return made.images


@pytest.mark.parametrize("scale", [1.0, 6.0])
@pytest.mark.parametrize("kind", [PNDMScheduler, DPMSolverMultistepScheduler, LCMScheduler])
def test_pictures_are_those_of_the_pipelines_own_call(solver, kind, scale):
    pipe = solver(kind)
    ours = Sampler(pipe, steps=4, guidance_scale=scale)(PROMPTS, seed=5)
    assert_close(ours, of_the_pipeline(pipe, steps=4, scale=scale), rtol=1e-4, atol=1e-4)


def test_a_negative_prompt_is_the_pipelines(solver):
    pipe = solver(DPMSolverMultistepScheduler)
    sampler = Sampler(pipe, steps=3, guidance_scale=4.0, negative_prompt="green")
    ours = [sampler(PROMPTS, seed=5) for _ in range(2)]
    theirs = of_the_pipeline(pipe, steps=3, scale=4.0, negative=["green"] * 3)
    assert_close(ours[0], theirs, rtol=1e-4, atol=1e-4)
    assert torch.equal(*ours), "the second run, with the encoding kept, is the first"
    assert not torch.allclose(theirs, of_the_pipeline(pipe, steps=3, scale=4.0), atol=1e-3)


def test_a_picture_of_a_batch_is_the_picture_alone(solver):
    sampler = Sampler(solver(LCMScheduler), steps=3)
    together = sampler(PROMPTS, seed=2)
    for k, prompt in enumerate(PROMPTS):
        assert_close(sampler([prompt], seed=2, first=k)[0], together[k], rtol=1e-4, atol=1e-4)


def test_the_pipelines_scheduler_is_left_as_it_was(solver):
    pipe = solver(DPMSolverMultistepScheduler)
    pipe.scheduler.set_timesteps(7)
    before = pipe.scheduler.timesteps.clone()
    Sampler(pipe, timesteps=[900, 500, 100])(PROMPTS)
    assert torch.equal(pipe.scheduler.timesteps, before)


def encoded_rows(pipe, run):
    rows = []
    hook = pipe.text_encoder.register_forward_pre_hook(
        lambda module, args, kwargs: rows.append(len((args or tuple(kwargs.values()))[0])), with_kwargs=True
    )
    try:
        run()
    finally:
        hook.remove()
    return sum(rows)


def test_each_text_is_encoded_once(solver):
    pipe = solver(DPMSolverMultistepScheduler)
    plain, guided = Sampler(pipe, steps=2), Sampler(pipe, steps=2, guidance_scale=3.0)
    assert encoded_rows(pipe, lambda: plain(PROMPTS)) == 2
    assert encoded_rows(pipe, lambda: guided(PROMPTS)) == 3
    assert encoded_rows(pipe, lambda: guided(PROMPTS)) == 2, "the negative prompt is kept"


def test_prompts_alone_are_the_conditional_half(any_pipe):
    pipe, prompts = any_pipe
    repeated = [*prompts, prompts[0]]
    ours, theirs = Condition.alone(pipe, repeated).arguments(), Condition.from_prompt(pipe, repeated)[0].arguments()
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        if isinstance(value, torch.Tensor):
            assert_close(ours[name], value, rtol=1e-5, atol=1e-5)


def test_the_engine_casts_and_the_network_meets_one_dtype(solver):
    pipe = solver(LCMScheduler)
    exact = Sampler(pipe, steps=2)(PROMPTS)
    weight = pipe.unet.conv_in.weight.clone()
    seen = []
    settings = {"pictures": 100, "batch_size": 3, "precision": "bfloat16", "compiled": False, "threads": 1}
    with fast_sampler(pipe, steps=2, **settings) as sampler:
        assert sampler.report.dtype == "bfloat16"
        hook = pipe.unet.register_forward_pre_hook(lambda module, args: seen.append(args[0].dtype))
        made = sampler(PROMPTS)
        hook.remove()
    assert set(seen) == {torch.float32}, "compiled for what was measured, not anew at the first picture"
    assert made.dtype == torch.float32
    assert 0 < (made - exact).abs().mean() < 0.05
    assert torch.equal(pipe.unet.conv_in.weight, weight)
    assert torch.equal(Sampler(pipe, steps=2)(PROMPTS), exact)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "give either steps or timesteps, got neither"),
        ({"steps": 2, "timesteps": [1]}, "got both"),
        ({"steps": 2, "negative_prompt": "x"}, "would have no effect"),
    ],
)
def test_settings_that_contradict_are_refused(sd, settings, message):
    with pytest.raises(ValueError, match=message):
        Sampler(sd, **settings)


def test_a_run_has_pictures(sd):
    with pytest.raises(ValueError, match="at least 1, got 0"), fast_sampler(sd, pictures=0, steps=2):
        pass
