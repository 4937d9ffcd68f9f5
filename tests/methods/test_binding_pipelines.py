"""Attribute binding on pipelines with ways of their own, and with what users hand over in other forms."""

import copy

import numpy as np
import pytest
import torch
from diffusers import (
    StableDiffusionInstructPix2PixPipeline,
    StableDiffusionPAGPipeline,
    StableDiffusionSAGPipeline,
    UNet2DConditionModel,
)
from PIL import Image

from mezzotint.attention import Observe, install
from mezzotint.methods import binding
from mezzotint.methods.binding.attend_and_excite import attend_and_excite
from mezzotint.methods.binding.resolve import syntax_of
from mezzotint.methods.binding.syngen import syngen
from tests.attention.conftest import frozen, normal
from tests.methods.test_binding import PAIRS, PROMPT, draw, quiet, sd, sdxl

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
BOXES = {"cube": (0, 0, 0.5, 1), "orb": (0.5, 0, 1, 1)}


@pytest.fixture(scope="module")
def plain():
    return sd()


def other(kind, plain, **parts):
    return quiet(kind(**plain.components | parts, requires_safety_checker=False))


@pytest.mark.parametrize("images", [1, 2, 4])
def test_the_rows_of_a_pipeline_with_three_branches_are_told_apart(plain, images):
    """InstructPix2Pix stacks rows with text and picture, with the picture alone, and with neither."""
    torch.manual_seed(1)
    wide = UNet2DConditionModel(
        sample_size=8, in_channels=8, out_channels=4, block_out_channels=(8, 16), norm_num_groups=4, layers_per_block=1,
        attention_head_dim=4, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), cross_attention_dim=16,
    )  # fmt: skip
    pipe, seen = other(StableDiffusionInstructPix2PixPipeline, plain, unet=frozen(wide)), []
    look = Observe(lambda _, shares: seen.append(shares), kind="cross")
    with binding.focus(pipe, PROMPT, bindings=PAIRS, mode="oracle", masks=BOXES), install(pipe, look):
        draw(pipe, steps=1, num_images_per_prompt=images, image=torch.rand(images, 3, 16, 16))
    side = round(seen[0].shape[2] ** 0.5)
    red = seen[0].unflatten(2, (side, side))[:, :, :, side // 2 :][..., [1, 2, 3]].amax((1, 2, 3, 4))
    assert [bool(value < 1e-15) for value in red] == [True] * images + [False] * 2 * images


def test_rows_that_cannot_be_told_apart_are_refused(plain, monkeypatch):
    """Whatever stacks three branches unbeknown to us must not be masked in the wrong rows."""
    encode = type(plain).encode_prompt

    def tripled(self, *args, **kwargs):
        cond, uncond = encode(self, *args, **kwargs)
        return torch.cat([cond, cond, cond]), torch.cat([uncond, uncond, uncond])

    class Stacking(type(plain)):
        encode_prompt = tripled

    pipe = copy.copy(plain)
    pipe.__class__ = Stacking
    noise = torch.cat([normal(1, 4, 8, 8, seed=k) for k in range(3)])
    monkeypatch.setattr(Stacking, "prepare_latents", lambda *_, **__: noise)
    with (
        binding.focus(pipe, PROMPT, bindings=PAIRS, mode="oracle", masks=BOXES),
        pytest.raises(ValueError, match="3 rows of this guidance branch where 1 pictures are drawn"),
    ):
        draw(pipe, steps=1)


@pytest.mark.parametrize("kind", [StableDiffusionPAGPipeline, StableDiffusionSAGPipeline])
def test_pipelines_that_exchange_processors_while_they_draw_are_refused(plain, kind):
    pipe = other(kind, plain)
    with pytest.raises(ValueError, match="exchanges attention processors"), binding.focus(pipe, PROMPT, bindings=PAIRS):
        pytest.fail("it was taken")


@pytest.mark.parametrize("method", [attend_and_excite, syngen])
def test_every_picture_of_a_prompt_is_moved(plain, method):
    free = draw(plain, num_images_per_prompt=2)
    with method(plain, PROMPT, bindings=PAIRS):
        moved = draw(plain, num_images_per_prompt=2)
        one = draw(plain)
    assert [bool((free[k] != moved[k]).any()) for k in range(2)] == [True, True]
    assert torch.allclose(one[0], moved[0], rtol=1e-2, atol=1e-2)
    with method(plain, [PROMPT, PROMPT], bindings=[PAIRS, PAIRS]), pytest.raises(ValueError, match="called with"):
        draw(plain)


def test_masks_may_be_arrays_and_pictures(plain):
    left = torch.zeros(8, 8)
    left[:, :4] = 1
    tensors = {"cube": left, "orb": 1 - left}
    arrays = {head: mask.numpy() for head, mask in tensors.items()}
    pictures = {head: Image.fromarray(np.uint8(255 * mask.numpy())) for head, mask in tensors.items()}
    made = []
    for masks in (tensors, arrays, pictures, torch.stack(list(tensors.values())), np.stack(list(arrays.values()))):
        with binding.focus(plain, PROMPT, bindings=PAIRS, mode="oracle", masks=masks):
            made.append(draw(plain))
    assert all(torch.equal(made[0], each) for each in made[1:])
    assert not torch.equal(made[0], draw(plain))


def test_one_bad_cell_of_a_mask_is_refused(plain):
    mask = torch.ones(8, 8)
    mask[3, 3] = torch.nan
    with (
        pytest.raises(ValueError, match="masks must be finite everywhere"),
        binding.focus(plain, PROMPT, bindings=PAIRS, mode="oracle", masks={"cube": mask, "orb": torch.ones(8, 8)}),
    ):
        pytest.fail("it was taken")


@pytest.mark.parametrize("bindings", [("red", "cube"), {"red": "cube"}, [("red", "cube", "orb")], "red:cube"])
def test_bindings_that_are_no_pairs_are_told_so(plain, bindings):
    with pytest.raises(ValueError, match="bindings must be pairs"):
        syntax_of(PROMPT, bindings)
    with pytest.raises(ValueError, match="bindings must be pairs"), binding.focus(plain, [PROMPT], bindings=[bindings]):
        pytest.fail("it was taken")


def test_spans_may_be_lists_as_in_json(plain):
    with binding.focus(plain, PROMPT, bindings=[[[0, 3], [4, 8]]]) as report:
        pass
    assert report.prompts[0].bindings == ((0, 1),)


def test_disclip_takes_the_prompt_for_both_encoders_of_sdxl():
    pipe = sdxl()
    with binding.focus(pipe, PROMPT, bindings=PAIRS, disclip=True):
        assert torch.equal(draw(pipe, steps=1), draw(pipe, steps=1, prompt_2=PROMPT))


def test_two_tokenizers_need_to_agree_on_bound_words_alone(monkeypatch):
    pipe = sdxl()
    focusing = __import__("mezzotint.methods.binding.focusing", fromlist=["focusing"])
    original, calls = focusing.token_indices, []

    def cut(*args, **kwargs):
        found = original(*args, **kwargs)
        calls.append(found)
        return found if len(calls) % 2 else [*found[:-1], (99,)]

    monkeypatch.setattr(focusing, "token_indices", cut)
    for pairs, taken in (([("red", "cube")], True), ([], True), ([("blue", "orb")], False)):
        if taken:
            with binding.focus(pipe, PROMPT, bindings=pairs):
                continue
        with pytest.raises(ValueError, match="cut 'red cube blue orb' differently"):
            binding.focus(pipe, PROMPT, bindings=pairs).__enter__()
