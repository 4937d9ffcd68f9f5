"""Strict evaluation: an item of a batch has the bits of the item alone."""

import pytest
import torch

from mezzotint.diffusion import Condition, Denoiser, normal
from mezzotint.runtime import strict
from tests.diffusion.conftest import BUILDERS, clip_tokenizer, tiny_sd


@pytest.fixture(scope="module")
def pipe():
    return tiny_sd()


PROMPTS = ["a red cube", "two blue balls", "a cone", "a green torus and a box"]
RUN = {"num_inference_steps": 3, "height": 16, "width": 16, "guidance_scale": 5.0}


def noise(first=0, count=4):
    return normal((4, 8, 8), seed=1, purpose="latents", first=first, count=count)


def test_a_batch_of_four_is_four_singles_bit_for_bit(pipe):
    with strict(pipe):
        batch = pipe(PROMPTS, latents=noise(), output_type="latent", **RUN).images
        singles = [
            pipe(prompt, latents=noise(k, 1), output_type="latent", **RUN).images for k, prompt in enumerate(PROMPTS)
        ]
    assert torch.equal(batch, torch.cat(singles))


def test_pictures_too(pipe):
    with strict(pipe):
        batch = pipe(PROMPTS, latents=noise(), output_type="np", **RUN).images
        single = pipe(PROMPTS[2], latents=noise(2, 1), output_type="np", **RUN).images
    assert (batch[2:3] == single).all()


def test_plain_evaluation_is_close_to_strict(pipe):
    plain = pipe(PROMPTS, latents=noise(), output_type="latent", **RUN).images
    with strict(pipe):
        careful = pipe(PROMPTS, latents=noise(), output_type="latent", **RUN).images
    torch.testing.assert_close(plain, careful, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", sorted(BUILDERS))
def test_every_layout_and_the_order_of_a_batch(name):
    pipe = BUILDERS[name]()
    prompts = [1, 5, 9] if name == "dit" else PROMPTS[:3]
    x, t = noise(count=3), torch.tensor([10, 400, 900])
    order = torch.tensor([2, 0, 1])
    with torch.no_grad(), strict(pipe):
        cond, _ = Condition.from_prompt(pipe, prompts)
        denoiser = Denoiser(pipe)
        batch = denoiser.eps(x, t, cond)
        assert torch.equal(denoiser.eps(x[order], t[order], cond[order]), batch[order])
        assert torch.equal(denoiser.eps(x[1:2], t[1:2], cond[1]), batch[1:2])


def test_text_encoders_return_their_own_kind_of_output(pipe):
    ids = clip_tokenizer()(PROMPTS, padding="max_length", return_tensors="pt").input_ids
    with torch.no_grad():
        plain = pipe.text_encoder(ids, output_hidden_states=True)
        with strict(pipe):
            careful = pipe.text_encoder(ids, output_hidden_states=True)
    assert type(careful) is type(plain)
    assert len(careful.hidden_states) == len(plain.hidden_states)
    for one, other in zip(careful.hidden_states, plain.hidden_states, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_nothing_is_left_behind_even_after_an_exception(pipe):
    slicing = pipe.vae.use_slicing
    with pytest.raises(AssertionError, match="inside"), strict(pipe):
        assert "forward" not in vars(pipe.unet), "inside"
    assert "forward" not in vars(pipe.unet)
    assert "forward" not in vars(pipe.text_encoder)
    assert pipe.vae.use_slicing == slicing


def test_one_network_alone(pipe):
    x, text = noise(count=2), torch.randn(2, 5, 16)
    with torch.no_grad(), strict(pipe.unet):
        batch = pipe.unet(x, 7, text).sample
        assert torch.equal(batch[1:], pipe.unet(x[1:], 7, text[1:]).sample)
    assert "forward" not in vars(pipe.unet)
