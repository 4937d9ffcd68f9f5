"""Conditions are what the pipelines themselves feed their networks."""

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, PixArtAlphaPipeline, UNet2DModel

from mezzotint.diffusion import Condition, Denoiser, guided, text_window
from tests.diffusion.conftest import tiny_pixart


def captured_arguments(pipe, network, call):
    """Keyword arguments with which a pipeline calls its network, first call only."""
    seen = []
    handle = network.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs), with_kwargs=True
    )  # fmt: skip
    try:
        call()
    finally:
        handle.remove()
    return seen[0]


def compare(expected, condition):
    arguments = condition.arguments()
    for name, value in arguments.items():
        reference = expected[name]
        if isinstance(value, dict):
            for key in value:
                torch.testing.assert_close(value[key], reference[key], rtol=0, atol=0)
        else:
            torch.testing.assert_close(value, reference, rtol=0, atol=0)


def run(pipe, prompts, **changes):
    settings = {"guidance_scale": 3.0, "num_inference_steps": 1, "output_type": "latent"}
    if hasattr(pipe, "text_encoder"):
        settings |= {"height": 16, "width": 16}
    if type(pipe).__name__.startswith("PixArt"):
        settings |= {"use_resolution_binning": False, "clean_caption": False}
    if type(pipe).__name__ == "DiTPipeline":
        settings["output_type"] = "pt"
    return pipe(prompts, **(settings | changes))


@pytest.mark.parametrize("name", ["sd", "sdxl", "pixart"])
@pytest.mark.parametrize("negative", ["", "a blue cone"])
def test_the_network_gets_what_the_pipeline_gives_it(pipes, name, negative):
    pipe, prompts = pipes[name], ["a red cube", "two balls"]
    network = pipe.unet if hasattr(pipe, "unet") else pipe.transformer
    options = {"negative_prompt": [negative] * 2} if negative else {}
    expected = captured_arguments(pipe, network, lambda: run(pipe, prompts, **options))
    cond, uncond = Condition.from_prompt(pipe, prompts, negative, height=16, width=16)
    compare(expected, uncond.concat(cond))


def test_class_labels_and_the_null_class_of_the_model(pipes):
    pipe = pipes["dit"]
    cond, uncond = Condition.from_prompt(pipe, ["name3", 7, "other9"])
    assert cond.class_labels.tolist() == [3, 7, 9]
    # The stock pipeline says 1000 whatever the model; this one has 10 classes.
    assert uncond.class_labels.tolist() == [10, 10, 10]
    assert Condition.from_prompt(pipe, 4, negative_prompt=2)[1].class_labels.tolist() == [2]


@pytest.mark.parametrize("name", ["sd", "sdxl", "pixart"])
def test_prompts_are_encoded_with_gradients_where_asked(pipes, name):
    plain, _ = Condition.from_prompt(pipes[name], "a red cube")
    recorded, _ = Condition.from_prompt(pipes[name], "a red cube", gradients=True)
    assert not plain.encoder_hidden_states.requires_grad
    # The kernels of attention differ where a gradient is wanted.
    torch.testing.assert_close(recorded.encoder_hidden_states.detach(), plain.encoder_hidden_states)
    (gradient,) = torch.autograd.grad(
        recorded.encoder_hidden_states.sum(), pipes[name].text_encoder.get_input_embeddings().weight
    )
    assert gradient.abs().sum() > 0


def test_pixart_with_micro_conditions(pipes):
    sigma = pipes["pixart"]
    parts = {name: sigma.components[name] for name in ("tokenizer", "text_encoder", "vae", "scheduler")}
    pipe = PixArtAlphaPipeline(
        **parts, transformer=tiny_pixart(use_additional_conditions=True, num_attention_heads=3, cross_attention_dim=24)
    )
    cond, _ = Condition.from_prompt(pipe, ["a b", "c"], height=16, width=32)
    assert cond.added_cond_kwargs["resolution"].tolist() == [[16, 32]] * 2
    assert cond.added_cond_kwargs["aspect_ratio"].tolist() == [[0.5]] * 2
    x = torch.randn(2, 4, 8, 8)
    changed, _ = Condition.from_prompt(pipe, ["a b", "c"], height=32, width=32)
    denoiser = Denoiser(pipe)
    assert not torch.equal(denoiser.eps(x, 5, cond), denoiser.eps(x, 5, changed))


def test_select_repeat_and_concat_agree(any_pipe, x):
    pipe, prompts = any_pipe
    cond, uncond = Condition.from_prompt(pipe, prompts)
    denoiser = Denoiser(pipe)
    with torch.no_grad():
        whole = denoiser.eps(x.repeat(2, 1, 1, 1), 300, cond.concat(uncond))
        parts = torch.cat([denoiser.eps(x, 300, cond), denoiser.eps(x, 300, uncond)])
        torch.testing.assert_close(whole, parts, atol=1e-5, rtol=1e-5)
        single = denoiser.eps(x[1:], 300, cond[1])
        torch.testing.assert_close(parts[1:2], single, atol=1e-5, rtol=1e-5)
    picked = cond.repeat(3)[torch.tensor([0, 1, 2, 3])]
    order = cond.concat(cond, cond)[torch.tensor([0, 0, 0, 1])] if cond.batch == 2 else None
    compare(picked.arguments(), order)


def test_indices_and_batch(pipes):
    cond, _ = Condition.from_prompt(pipes["sdxl"], ["a", "b", "c"])
    assert cond.batch == 3
    assert cond[-1].batch == 1
    assert torch.equal(cond[-1].encoder_hidden_states, cond[2:].encoder_hidden_states)
    assert torch.equal(cond[1:].added_cond_kwargs["time_ids"], cond.added_cond_kwargs["time_ids"][1:])
    assert Condition().batch is None
    with pytest.raises(IndexError, match="item 3"):
        cond[3]


def test_nested_extra_arguments_follow_the_batch():
    tensors = tuple(torch.arange(3.0).reshape(3, 1) + k for k in range(2))
    cond = Condition(extra={"down_block_additional_residuals": tensors})
    assert cond.batch == 3
    doubled = cond.concat(cond)[torch.tensor([0, 5])]
    assert [item[:, 0].tolist() for item in doubled.extra["down_block_additional_residuals"]] == [[0, 2], [1, 3]]
    assert cond.to(dtype=torch.float64).extra["down_block_additional_residuals"][0].dtype == torch.float64


def test_integer_tensors_keep_their_dtype():
    cond = Condition(class_labels=torch.tensor([1, 2])).to(dtype=torch.bfloat16)
    assert cond.class_labels.dtype == torch.int64


def test_unequal_conditions_do_not_join():
    text = Condition(torch.zeros(1, 3, 4))
    with pytest.raises(ValueError, match="different kinds"):
        text.concat(Condition(class_labels=torch.tensor([1])))
    with pytest.raises(ValueError, match="different arguments"):
        Condition(extra={"a": torch.zeros(1)}).concat(Condition(extra={"b": torch.zeros(1)}))


def test_bad_prompts_are_refused(pipes):
    with pytest.raises(ValueError, match="must not be empty"):
        Condition.from_prompt(pipes["sd"], [])
    with pytest.raises(ValueError, match="one or 3"):
        Condition.from_prompt(pipes["sd"], ["a", "b", "c"], ["d", "e"])
    with pytest.raises(ValueError, match="unknown class 'zebra'"):
        Condition.from_prompt(pipes["dit"], "zebra")
    with pytest.raises(ValueError, match=r"0\.\.9, got 10"):
        Condition.from_prompt(pipes["dit"], 10)


def test_pipelines_without_known_conditioning_are_named():
    unet = UNet2DModel(
        sample_size=8, block_out_channels=(8,), down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",),
        norm_num_groups=4, layers_per_block=1,
    )  # fmt: skip
    pipe = DDPMPipeline(unet, DDPMScheduler())
    with pytest.raises(ValueError, match="DDPMPipeline has no conditioning"):
        Condition.from_prompt(pipe, "a")
    # Unconditional models need none.
    x = torch.randn(2, 3, 8, 8)
    denoiser = Denoiser(pipe)
    assert torch.equal(denoiser.eps(x, 3), guided(denoiser, Condition(), None, 1.0).eps(x, 3))


def test_a_pipeline_tells_how_many_tokens_it_reads_where_its_tokenizer_does_not(pipes):
    assert {name: text_window(pipe) for name, pipe in pipes.items()} == {
        "sd": None, "sdxl": None, "pixart": 300, "dit": None
    }  # fmt: skip
