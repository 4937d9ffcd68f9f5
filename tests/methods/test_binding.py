"""Focused cross-attention on diffusers' own pipelines at tiny size: what it masks, and what it leaves alone."""

import json
from contextlib import ExitStack, nullcontext

import pytest
import torch
from diffusers import (
    EulerDiscreteScheduler,
    PixArtAlphaPipeline,
    PixArtTransformer2DModel,
    StableDiffusionPipeline,
    UNet2DConditionModel,
    UNet2DModel,
)
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch.testing import assert_close
from transformers import CLIPTextModel, PreTrainedTokenizerFast, T5Config, T5EncoderModel

from mezzotint.attention import LogitMask, Observe, install, sites
from mezzotint.attention.heads import probabilities
from mezzotint.methods import binding
from mezzotint.methods.binding import maps as averages
from mezzotint.methods.binding import masks, oracle, passes
from mezzotint.methods.binding.disclip import conditioning
from mezzotint.methods.binding.fca import FocusedAttention
from mezzotint.methods.binding.options import Options
from mezzotint.methods.binding.report import BindingReport
from mezzotint.methods.binding.resolve import syntax_of
from mezzotint.methods.binding.words import Binding
from tests.attention.conftest import CLOSE, frozen, normal
from tests.attention.conftest import processors as processors_of
from tests.cli.conftest import class_conditional
from tests.methods.conftest import sd_scheduler, sdxl_shaped, text_config, tiny_vae, tokenizer

# A scheduler of diffusers hands tensors to NumPy in the old way.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
PROMPT = "red cube blue orb"
PAIRS = [("red", "cube"), ("blue", "orb")]
PLAIN = "cube and an orb"
PLAIN_MASKS = {"averaged": None, "online": None, "online_signed": None, "oracle": {}}
FREE = tuple(PLAIN_MASKS)


def quiet(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe


def sd():
    words = tokenizer()
    torch.manual_seed(1)
    unet = UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 16), norm_num_groups=4, layers_per_block=1, attention_head_dim=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=16,
    )  # fmt: skip
    return quiet(
        StableDiffusionPipeline(
            vae=tiny_vae(),
            text_encoder=frozen(CLIPTextModel(text_config(words, 16))),
            tokenizer=words,
            unet=frozen(unet),
            scheduler=sd_scheduler(),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    )


def sdxl():
    pipe = sdxl_shaped()
    for part in (pipe.unet, pipe.text_encoder, pipe.text_encoder_2):
        frozen(part)
    for part in (pipe.text_encoder, pipe.text_encoder_2):  # so wide that its tokens would all look alike
        part.get_input_embeddings().weight.data *= 30
    return pipe


def pixart():
    vocabulary = ["<pad>", "</s>", "<unk>", *PROMPT.split(), "and", "an"]
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=120
    )
    torch.manual_seed(2)
    text = T5EncoderModel(T5Config(vocab_size=len(vocabulary), d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2))
    network = PixArtTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=2, norm_num_groups=4,
        cross_attention_dim=16, sample_size=8, patch_size=2, caption_channels=16, use_additional_conditions=False,
    )  # fmt: skip
    return quiet(
        PixArtAlphaPipeline(
            tokenizer=fast,
            text_encoder=frozen(text),
            vae=tiny_vae(),
            transformer=frozen(network),
            scheduler=sd_scheduler(),
        )
    )


PIPES = {"sd": sd, "sdxl": sdxl, "pixart": pixart}


@pytest.fixture(scope="module", params=PIPES)
def pipe(request):
    return PIPES[request.param]()


@pytest.fixture(scope="module")
def tiny():
    return sd()


def draw(pipe, prompt=PROMPT, *, steps=3, seed=5, **more):
    """Latents of a call; the PixArt of these tests has no aspect-ratio bins for its size, and no caption cleaning."""
    if isinstance(pipe, PixArtAlphaPipeline):
        more |= {"use_resolution_binning": False, "clean_caption": False}
    generator = torch.Generator().manual_seed(seed)
    chosen = {"num_inference_steps": steps, "generator": generator, "output_type": "latent", "guidance_scale": 4.0}
    return pipe(prompt, **chosen | more).images


def focus(pipe, prompt=PROMPT, pairs=PAIRS, **more):
    return binding.focus(pipe, prompt, bindings=pairs, **more)


def backbone(pipe):
    return pipe.transformer if isinstance(pipe, PixArtAlphaPipeline) else pipe.unet


@pytest.fixture
def pair():
    """Two bindings, 3 -> 5 and 6 -> 8: spans of sub-tokens, and their links."""
    spans = [(1,), (2, 3), (4, 5), (6,), (7, 8)]
    return spans, masks.link(spans, [Binding(1, 2), Binding(3, 4)])


def attention_of(seed=0, rows=2, positions=16, tokens=10):
    """Queries and keys with logits of order 10."""
    return 4 * normal(rows, 2, positions, 8, seed=seed), 4 * normal(rows, 2, tokens, 8, seed=seed + 1), 8**-0.5


# ---- formulas -------------------------------------------------------------------------------------------------------


def test_nothing_is_masked_below_every_focus(pair):
    links = pair[1].repeat(2).spread(10, 2)
    open_, lost = masks.opened(torch.zeros(2, 1, 2, 16), links.owners, -0.1)
    assert open_.all()
    assert not lost.any()
    assert (masks.additive(open_, -50, torch.float32) == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("min_keep", [0, 1, 5])
def test_the_mask_of_attributes_with_one_head_is_the_general_one(pair, min_keep, dtype):
    links = pair[1].repeat(3).spread(10, 3)
    assert masks.single(links.owners)
    focus = torch.rand(3, 2, 3, 16, generator=torch.Generator().manual_seed(min_keep)) ** 4
    focus[0, :, 0] = 0
    open_, lost = masks.opened(focus, links.owners, 0.3, min_keep=min_keep)
    values = (-50 * links.owners).to(dtype)
    bias, kept = masks.additive_single(focus, values, 0.3, min_keep=min_keep)
    assert bias.dtype == dtype
    assert torch.equal(bias, masks.additive(open_, -50, dtype))
    told = masks.account_single(kept, links.owners, 16, min_keep=min_keep)
    for mine, general in zip(told, masks.account(focus, lost, links.owners, 0.3), strict=True):
        assert_close(mine, general)
    assert 0 < (bias < 0).float().mean() < 1
    assert lost.any() == (min_keep > 0)
    assert not masks.single(links.owners.roll(1, 1) + links.owners)


def test_a_closed_column_falls_by_e_to_the_minus_50_before_the_rows_are_renormalised(pair):
    query, key, scale = attention_of()
    query = query / 8
    links = pair[1].repeat(2).spread(10, 2)
    focus = masks.focus_of_maps(torch.zeros(2, 2, 4, 4), links.groups, (4, 4))
    open_, _ = masks.opened(focus, links.owners, 0.6, min_keep=0)
    query, key = query.double(), key.double()
    plain = probabilities(query, key, scale=scale)
    shut = probabilities(query, key, masks.additive(open_, -50, torch.float64), scale=scale)
    odds = (shut[..., 2] / shut[..., 0]) / (plain[..., 2] / plain[..., 0])
    assert_close(odds, torch.full_like(odds, 50).neg().exp())


def test_masked_rows_sum_to_one_and_other_columns_keep_their_ratios(pair):
    query, key, scale = attention_of()
    links = pair[1].repeat(2).spread(10, 2)
    focus = masks.focus_of_logits(query, key, links.heads, scale=scale)
    open_, _ = masks.opened(focus, links.owners, 0.6)
    plain = probabilities(query, key, scale=scale)
    shut = probabilities(query, key, masks.additive(open_, -50, torch.float32), scale=scale)
    assert not open_.all()
    assert_close(shut.sum(-1), torch.ones_like(shut[..., 0]))
    others = [0, 1, 4, 5, 7, 8, 9]
    assert open_[..., others].all()
    assert_close(
        shut[..., others].log() - shut[..., :1].log(), plain[..., others].log() - plain[..., :1].log(), **CLOSE
    )
    assert (shut[..., [2, 3, 6]][~open_[..., [2, 3, 6]]] < 1e-15).all()


def test_online_keeps_exactly_where_the_nouns_logit_is_above_tau(pair):
    query, key, scale = attention_of()
    spans = [(1,), (2,), (4,)]
    links = masks.link(spans, [Binding(1, 2)]).repeat(2).spread(10, 1)
    noun = (query @ key.transpose(-1, -2) * scale)[..., 4]
    assert (noun.abs().amax(-1) >= 1).all()
    kept = masks.focus_of_logits(query, key, links.heads, scale=scale)[:, :, 0] > 0.6
    assert torch.equal(kept, noun.abs() > 0.6)
    signed = masks.focus_of_logits(query, key, links.heads, scale=scale, signed=True)[:, :, 0] > 0.6
    assert torch.equal(signed, noun > 0.6)
    assert not torch.equal(signed, kept), "the absolute value keeps what the noun repels"


def test_a_head_of_several_tokens_is_their_mean(pair):
    query, key, scale = attention_of()
    links = pair[1].repeat(2).spread(10, 2)
    logits = query @ key.transpose(-1, -2) * scale
    means = torch.stack([logits[..., [4, 5]].mean(-1), logits[..., [7, 8]].mean(-1)], 2)
    expected = masks.scaled(means.abs().clamp(max=1))
    assert_close(masks.focus_of_logits(query, key, links.heads, scale=scale), expected, **CLOSE)


def test_averaged_focus_does_not_know_the_scale_of_its_maps(pair):
    links = pair[1].repeat(2).spread(10, 2)
    maps = normal(2, 10, 8, 8).exp()
    for grid in ((4, 4), (3, 5), (8, 8)):
        one, other = (masks.focus_of_maps(c * maps, links.heads, grid) > 0.6 for c in (1, 37.5))
        assert torch.equal(one, other)
        assert not one.all()


def test_averaged_focus_pools_by_the_maximum_and_drops_undershoot():
    maps = torch.full((1, 1, 4, 4), -0.1)
    maps[0, 0, 0, 1] = 0.02
    focus = masks.focus_of_maps(maps, torch.ones(1, 1, 1), (2, 2))
    assert_close(focus[0, 0, 0], torch.tensor([0.02 / (0.02 + 1e-6), 0, 0, 0]))


def test_swapped_bindings_swap_the_masks():
    query, key, scale = attention_of()
    spans = [(1,), (2,), (3,), (4,), (5,)]
    kept = []
    for pairs in ([(1, 2), (3, 4)], [(1, 4), (3, 2)]):
        links = masks.link(spans, [Binding(*each) for each in pairs]).repeat(2).spread(10, 2)
        focus = masks.focus_of_logits(query, key, links.heads, scale=scale)
        kept.append(masks.opened(focus, links.owners, 0.6)[0])
    assert torch.equal(kept[0][..., 2], kept[1][..., 4])
    assert torch.equal(kept[0][..., 4], kept[1][..., 2])
    assert not torch.equal(kept[0][..., 2], kept[1][..., 2])


def test_two_heads_are_a_union_or_as_released_a_sum():
    spans = [(1,), (2,), (3,)]
    pairs = [Binding(0, 1), Binding(0, 2)]
    maps = torch.zeros(1, 4, 1, 4)
    maps[0, 2, 0] = torch.tensor([1.0, 0.1, 0.0, 0.0])
    maps[0, 3, 0] = torch.tensor([0.0, 0.0, 0.1, 0.0])
    kept = {}
    for several in ("union", "sum"):
        links = masks.link(spans, pairs, several=several)
        focus = masks.focus_of_maps(maps, links.groups @ links.heads, (1, 4))
        kept[several] = masks.opened(focus, links.owners, 0.6)[0][0, 0, :, 1].tolist()
    assert kept["union"] == [True, False, True, False], "a weak head has its place too"
    assert kept["sum"] == [True, False, False, False]


def test_an_attribute_with_too_little_left_stays_open_and_is_counted(pair):
    links = pair[1].spread(10, 2)
    focus = torch.zeros(1, 1, 2, 16)
    focus[0, 0, 1, :3] = 1
    open_, lost = masks.opened(focus, links.owners, 0.6, min_keep=3)
    assert lost[0, 0].nonzero().flatten().tolist() == [2, 3]
    assert open_[0, 0, :, [2, 3]].all()
    assert open_[0, 0, :, 6].sum() == 3
    assert masks.opened(focus, links.owners, 0.6, min_keep=4)[0].all()
    assert masks.opened(focus, links.owners, 0.6, min_keep=0)[0][0, 0, :, [2, 3]].sum() == 0


def test_strict_masks_are_the_released_ones():
    """The released scripts' arithmetic, token by token."""
    query, key, scale = attention_of(rows=1)
    matrix = torch.zeros(1, 10, 10, dtype=torch.bool)
    matrix[0, 2, 4] = matrix[0, 2, 5] = matrix[0, 6, 8] = True
    found = masks.strict_bias(query, key, matrix, scale=scale)
    logits = query @ key.transpose(-1, -2) * scale
    for token in range(10):
        heads = {2: logits[..., 4] + logits[..., 5], 6: logits[..., 8]}
        strength = heads.get(token, 10 * logits[..., 0]).abs().clamp(max=1)
        kept = strength / (strength.amax(-1, keepdim=True) + 1e-6) > 0.6
        assert torch.equal(found[..., token], (kept.float() - 1) * 50)
    closed = (found[..., 1] < 0).any(-1)
    assert torch.equal(closed, (logits[..., 0].abs() <= 0.06).any(-1)), "where BOS is weak, others are closed too"


def test_strict_knows_the_papers_matrix(pair):
    links = pair[1]
    expected = torch.zeros(9, 9, dtype=torch.bool)
    expected[2:4, 4:6] = True
    expected[6, 7:9] = True
    assert torch.equal(links.matrix[0], expected)


def test_links_of_a_batch_keep_to_their_rows():
    one = masks.link([(1,), (2,)], [Binding(0, 1)])
    two = masks.link([(1,), (2, 3), (4,), (5,)], [Binding(0, 1), Binding(2, 3)])
    both = masks.stacked([one, two]).repeat(2)
    for row, alone in enumerate((one, one, two, two)):
        assert torch.equal(both.owners[row], alone.spread(6, 2).owners[0])
        assert torch.equal(both.heads[row], alone.spread(6, 2).heads[0])
    with pytest.raises(ValueError, match=r"use 6 text tokens, but the layer attends to 5"):
        both.spread(5, 2)


# ---- pipelines ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", FREE)
def test_without_bindings_not_a_bit_changes(pipe, mode):
    plain = draw(pipe, PLAIN)
    with focus(pipe, PLAIN, [], mode=mode, masks=PLAIN_MASKS[mode]) as report:
        assert torch.equal(draw(pipe, PLAIN), plain)
    assert report.bindings == 0
    assert report.kept == ()


@pytest.mark.parametrize("mode", ["averaged", "online", "online_signed", "online_strict", "oracle"])
def test_bindings_change_the_picture_and_leaving_restores_it(pipe, mode):
    plain = draw(pipe)
    given = {"cube": (0, 0, 0.5, 1), "orb": (0.5, 0, 1, 1)} if mode == "oracle" else None
    before = processors_of(backbone(pipe)), type(pipe)
    with focus(pipe, mode=mode, masks=given, tau=0.97):
        found = draw(pipe)
    assert torch.isfinite(found).all()
    assert (found - plain).abs().max() > 1e-3
    assert torch.equal(draw(pipe), plain)
    assert (processors_of(backbone(pipe)), type(pipe)) == before


def test_nothing_remains_after_an_exception(tiny):
    before = processors_of(tiny.unet), type(tiny), dict(tiny.unet._forward_pre_hooks)

    def stop(*_):
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"), focus(tiny):
        draw(tiny, callback_on_step_end=stop)
    assert (processors_of(tiny.unet), type(tiny), dict(tiny.unet._forward_pre_hooks)) == before


def test_a_whole_mask_is_the_plain_pipeline_bit_for_bit(pipe):
    plain = draw(pipe)
    with focus(pipe, mode="oracle", masks=torch.ones(2, 4, 4)) as report:
        assert torch.equal(draw(pipe), plain)
    assert {entry.fraction for entry in report.kept} == {1.0}


def spied(pipe, seen):
    """Notes the latents that come out of every call below it."""

    def run(call, arguments):
        seen.append(call(**arguments))
        return seen[-1]

    return passes.calling(pipe, run)


def test_the_first_pass_is_the_plain_run_exactly(pipe):
    plain, seen = draw(pipe), []
    with spied(pipe, seen), focus(pipe):
        masked = draw(pipe)
    assert torch.equal(seen[0][0], plain)
    assert torch.equal(seen[1].images, masked)
    assert len(seen) == 2


@pytest.mark.parametrize("noise", ["generator", "generators", "global", "latents"])
def test_both_passes_start_from_the_same_noise_and_the_generators_run_once(tiny, noise, monkeypatch):
    """A stochastic solver draws at every step as well; broken on purpose, the second pass starts elsewhere."""

    def run():
        torch.manual_seed(11)
        generators = [torch.Generator().manual_seed(k) for k in (3, 4)]
        more = {"generator": generators if noise == "generators" else generators[0], "eta": 1.0}
        if noise in ("global", "latents"):
            more["generator"] = None
        if noise == "latents":
            more["latents"] = normal(2, 4, 8, 8)
        found = draw(tiny, [PROMPT] * 2, **more)
        return found, torch.rand(3), [torch.rand(3, generator=each) for each in generators]

    plain = run()
    inputs = []

    def note(module, args):
        inputs.append(args[0].clone())

    hook = tiny.unet.register_forward_pre_hook(note)
    try:
        with focus(tiny, [PROMPT] * 2, [PAIRS] * 2):
            masked = run()
        monkeypatch.setattr(passes, "same_noise", lambda *_: nullcontext())
        with focus(tiny, [PROMPT] * 2, [PAIRS] * 2):
            run()
    finally:
        hook.remove()
    assert torch.equal(inputs[0], inputs[3])
    assert not torch.equal(masked[0], plain[0])
    assert torch.equal(masked[1], plain[1])
    assert all(torch.equal(one, other) for one, other in zip(masked[2], plain[2], strict=True))
    assert torch.equal(inputs[6], inputs[9]) == (noise == "latents")


def test_callbacks_are_called_in_one_pass_only(tiny):
    seen = []

    def after(_pipe, step, _timestep, tensors):
        seen.append(step)
        return tensors

    with focus(tiny):
        draw(tiny, callback_on_step_end=after)
    assert seen == [0, 1, 2]


def test_masks_of_a_run_are_made_once_a_grid(tiny, monkeypatch):
    made = []
    whole = masks.focus_of_maps

    def counted(maps, weights, grid):
        made.append(grid)
        return whole(maps, weights, grid)

    monkeypatch.setattr("mezzotint.methods.binding.fca.focus_of_maps", counted)
    with focus(tiny):
        draw(tiny, steps=4)
    assert made == [(8, 8), (4, 4)]


def test_a_batch_with_different_bindings_is_its_pictures_made_alone(pipe):
    prompts, pairs = [PROMPT, "orb red cube", PLAIN], [PAIRS, [("red", "cube")], []]
    noise = normal(6, 4, 8, 8)
    with focus(pipe, prompts, pairs) as report:
        whole = draw(pipe, prompts, latents=noise, num_images_per_prompt=2, steps=2)
    assert {entry.picture for entry in report.kept} == {0, 1, 2, 3}
    for number, (prompt, own) in enumerate(zip(prompts, pairs, strict=True)):
        rows = slice(2 * number, 2 * number + 2)
        with focus(pipe, prompt, own):
            alone = draw(pipe, prompt, latents=noise[rows], num_images_per_prompt=2, steps=2)
        assert_close(whole[rows], alone, rtol=1e-3, atol=1e-4)


def shares(pipe, branch, **more):
    """Attention probabilities of the first step's layers, on the rows of a guidance branch."""
    found = []
    look = Observe(lambda call, seen: found.append((call.moment.step, seen)), kind="cross", branch=branch)
    with focus(pipe, **more), install(pipe, look):
        draw(pipe, steps=2)
    return [seen for step, seen in found if step == 0]


def test_only_the_conditional_half_is_masked_unless_both_are_wanted(tiny):
    given = {"mode": "oracle", "masks": {"cube": (0, 0, 0.5, 1), "orb": (0.5, 0, 1, 1)}}
    red = [1, 2, 3]  # r, e, d

    def leaks(branch, **more):
        return max(float(_right_half(seen)[..., red].amax()) for seen in shares(tiny, branch, **given, **more))

    assert leaks("cond") < 1e-15
    assert leaks("uncond") > 1e-4
    assert leaks("uncond", mask_uncond=True) < 1e-15


def _right_half(seen):
    side = round(seen.shape[2] ** 0.5)
    return seen.unflatten(2, (side, side))[:, :, :, side // 2 :]


def test_masks_do_not_depend_on_autocast_or_on_the_precision_of_their_maps(tiny):
    maps = (0.3 + 2e-3 * normal(2, 16, 16)).half()  # as near to tau as bfloat16 would round
    maps[:, 0, 0], maps[:, -1, -1] = 1, 0

    def kept(masks, *, autocast):
        with focus(tiny, mode="oracle", masks=masks, tau=0.3) as report:
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
                draw(tiny, steps=1)
            return [(entry.layer, entry.fraction) for entry in report.kept]

    whole = kept(maps.float(), autocast=False)
    assert len({fraction for _, fraction in whole}) > 2
    assert kept(maps.float(), autocast=True) == whole
    assert kept(maps, autocast=False) == whole


def test_masks_act_in_their_part_of_the_trajectory(tiny):
    with focus(tiny, mode="online", steps=(0.25, 0.75)) as report:
        draw(tiny, steps=4)
    assert {entry.step for entry in report.kept} == {1, 2}
    plain = draw(tiny, steps=1)
    with focus(tiny, mode="online", steps=(0.5, 1.0)):
        assert torch.equal(draw(tiny, steps=1), plain)
        with pytest.raises(ValueError, match=r"timestep 777\.0, which the scheduler has not set"), torch.no_grad():
            tiny.unet(normal(2, 4, 8, 8), 777, encoder_hidden_states=normal(2, 77, 16))


def test_without_guidance_all_rows_are_conditional(pipe):
    plain = draw(pipe, guidance_scale=1.0)
    for mode in ("averaged", "online"):
        with focus(pipe, mode=mode, tau=0.97) as report:
            found = draw(pipe, guidance_scale=1.0)
        assert {entry.picture for entry in report.kept} == {0}
        assert (found - plain).abs().max() > 1e-3


def test_other_edits_and_schedulers_work_in_the_same_picture(tiny):
    extra = LogitMask(normal(1, 1, 1, 77), kind="cross")
    for scheduler in (tiny.scheduler, EulerDiscreteScheduler.from_config(tiny.scheduler.config)):
        before, tiny.scheduler = tiny.scheduler, scheduler
        try:
            with install(tiny, extra):
                edited = draw(tiny)
                with focus(tiny, mode="oracle", masks=torch.ones(2, 4, 4)):
                    assert torch.equal(draw(tiny), edited)
                with focus(tiny):
                    assert not torch.equal(draw(tiny), edited)
                assert torch.equal(draw(tiny), edited)
        finally:
            tiny.scheduler = before


def test_focus_works_under_inference_mode_and_twice_in_a_row(tiny):
    with focus(tiny):
        one, two = draw(tiny), draw(tiny)
        with torch.inference_mode():
            three = draw(tiny)
    assert torch.equal(one, two)
    assert torch.equal(one, three)
    assert callable(binding.focus), "no submodule may take the function's name"


def test_not_square_pictures_have_their_own_grids(tiny):
    with focus(tiny) as report:
        found = draw(tiny, height=24, width=16)
    assert found.shape == (1, 4, 12, 8)
    assert {entry.grid for entry in report.kept} == {(12, 8), (6, 4)}


def test_disclip_swaps_the_embeddings_and_keeps_the_rest(pipe):
    if isinstance(pipe, PixArtAlphaPipeline):
        with pytest.raises(ValueError, match="no CLIP text encoder"), focus(pipe, disclip=True):
            pass
        return
    syntax = syntax_of(PROMPT, PAIRS)
    given = conditioning(pipe, PROMPT, syntax, variant="disclip-leaf")
    own = draw(pipe, None, **given)
    with focus(pipe, disclip="disclip-leaf", mode="oracle", masks=torch.ones(2, 4, 4)):
        assert torch.equal(draw(pipe), own)
    with focus(pipe, disclip=True, mode="online"):
        assert not torch.equal(draw(pipe), own)
        with pytest.raises(ValueError, match="leave clip_skip away"):
            draw(pipe, clip_skip=1)


def test_the_report_says_what_was_bound_and_saves_it(tiny, tmp_path):
    with focus(tiny) as report:
        draw(tiny)
    names = {site.name for site in sites(tiny) if site.kind == "cross"}
    assert {entry.layer for entry in report.kept} == names
    assert {(entry.attribute, entry.head) for entry in report.kept} == set(PAIRS)
    assert all(0 < entry.fraction <= 1 for entry in report.kept)
    assert any(entry.fraction < 1 for entry in report.kept)
    assert report.prompts[0].tokens == ((1, 2, 3), (4, 5, 6, 7), (8, 9, 10, 11), (12, 13, 14))
    mean = sum(entry.fraction for entry in report.kept if entry.head == "cube") / len(names)
    assert f"red -> cube: kept {mean:.2f} of the picture" in str(report)
    kept = json.loads(report.save(tmp_path / "report.json").read_text(encoding="utf-8"))
    assert kept["prompts"][0]["pairs"] == [list(pair) for pair in PAIRS]
    assert len(kept["kept"]) == len(report.kept) == 2 * len(names)
    with focus(tiny, mode="oracle", masks={"cube": torch.zeros(4, 4), "orb": (0, 0, 1, 1)}) as empty:
        draw(tiny)
    assert empty.unmasked == len(names)


def test_maps_averaged_by_hand_are_those_of_the_recorder(tiny):
    recorder = averages.MapRecorder()
    seen = []

    def look(call, probabilities_):
        maps = probabilities_.mean(1).transpose(1, 2).unflatten(-1, call.require_grid())
        seen.append(torch.nn.functional.interpolate(maps, size=(8, 8), mode="bicubic", align_corners=False))

    plain = draw(tiny)
    with install(tiny, recorder.edit()):
        assert torch.equal(draw(tiny), plain), "recording changes nothing"
    with install(tiny, Observe(look, kind="cross", branch="cond")):
        draw(tiny)
    assert_close(recorder.average((8, 8)), torch.stack(seen).mean(0), **CLOSE)
    recorder.reset()
    with pytest.raises(ValueError, match="no cross-attention was recorded"):
        recorder.average((8, 8))


def test_given_maps_serve_without_a_pipeline_call(tiny):
    """What an evaluation does: maps of its own, and single calls of the network."""
    links = masks.link([(1,), (2,)], [Binding(0, 1)])
    report = BindingReport("averaged", 0.6, ())
    focused = FocusedAttention(links, Options(), report)
    arguments = {"encoder_hidden_states": normal(1, 77, 16)}
    latents = normal(1, 4, 8, 8)

    def run():
        return tiny.unet(latents, 500, **arguments).sample

    plain = run()
    with torch.no_grad(), install(tiny.unet, *focused.edits(), branches=("cond",)):
        assert torch.equal(run(), plain), "before there are maps nothing is masked"
        maps = torch.zeros(1, 1, 8, 8)
        maps[..., :2] = 1
        focused.use(maps)
        assert not torch.equal(run(), plain)
        focused.use(torch.ones(1, 1, 8, 8))
        assert torch.equal(run(), plain)


# ---- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tau": 1.0}, r"tau must lie in \[0, 1\), got 1.0"),
        ({"tau": -0.1}, r"tau must lie in \[0, 1\)"),
        ({"min_keep": -1}, "min_keep must be at least 0"),
        ({"steps": (0.5, 0.5)}, "steps must be an interval"),
        ({"mask_value": 1.0}, "mask_value must be negative"),
        ({"mode": "online_strict", "mask_value": float("-inf")}, "mask_value must be finite"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Options(**settings)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (None, "needs masks"),
        ({"cube": (0, 0, 1, 1)}, "masks have nothing for 'orb'"),
        (torch.ones(4, 4), r"masks must be \[bindings, height, width\]"),
        (torch.ones(3, 4, 4), r"masks must be \[bindings, height, width\]"),
        (torch.full((2, 4, 4), float("nan")), "masks must be finite everywhere"),
        (torch.full((2, 4, 4), -1.0), "at least 0"),
        ({"cube": torch.ones(4), "orb": (0, 0, 1, 1)}, "two dimensions"),
        ({"cube": torch.ones(4, 4), "orb": torch.ones(5, 5)}, "one size"),
        ({"cube": (0.5, 0, 0.5, 1), "orb": (0, 0, 1, 1)}, "a box is"),
        ({"cube": (0, 1), "orb": (0, 0, 1, 1)}, "a box of four numbers"),
    ],
)
def test_masks_that_do_not_fit_are_refused(tiny, given, message):
    with pytest.raises(ValueError, match=message), focus(tiny, mode="oracle", masks=given):
        pass


def test_boxes_cover_every_cell_they_touch():
    assert oracle.box(0.3, 0.0, 0.5, 1.0, size=(1, 4)).tolist() == [[0, 1, 0, 0]]
    assert oracle.box(0.3, 0.0, 0.6, 1.0, size=(1, 4)).tolist() == [[0, 1, 1, 0]]


def test_a_call_with_another_prompt_is_refused(tiny):
    with focus(tiny):
        with pytest.raises(ValueError, match=r"focus was given \['red cube blue orb'\]"):
            draw(tiny, "a dog")
        with pytest.raises(ValueError, match="2 embeddings"):
            draw(tiny, None, prompt_embeds=normal(2, 77, 16))


def test_embeddings_of_the_callers_own_are_taken_for_the_prompts(tiny):
    embeds = tiny.encode_prompt(PROMPT, "cpu", 1, True)[0]
    with focus(tiny):
        assert torch.equal(draw(tiny), draw(tiny, None, prompt_embeds=embeds))


def test_a_second_prompt_of_sdxl_is_refused():
    pipe = sdxl()
    with focus(pipe), pytest.raises(ValueError, match="prompt_2 must be the prompt itself"):
        draw(pipe, prompt_2="another")


def test_models_without_words_are_refused(tiny):
    with pytest.raises(ValueError, match="DiTPipeline has no tokenizer"), binding.focus(class_conditional(), "a"):
        pass
    blind = StableDiffusionPipeline(**tiny.components | {"unet": UNet2DModel(
        sample_size=8, block_out_channels=(8, 8), norm_num_groups=4, layers_per_block=1, in_channels=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )}, requires_safety_checker=False)  # fmt: skip
    with pytest.raises(ValueError, match="UNet2DModel has no cross-attention"), binding.focus(blind, "a"):
        pass


def test_lists_must_fit_the_prompts(tiny):
    refusals = [
        ({"prompt": []}, "prompt must not be empty"),
        ({"prompt": ["a", "b"], "bindings": [[]]}, "one list a prompt, 2; got 1"),
        ({"prompt": "a", "masks": {}}, "masks are for mode oracle"),
    ]
    for given, message in refusals:
        with ExitStack() as stack, pytest.raises(ValueError, match=message):
            stack.enter_context(binding.focus(tiny, **given))
