"""Laws of placing learnt concepts in boxes (invariants 9-19 and 23), on real pipelines of tiny size."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mezzotint.attention import LogitMask, Observe, Record, Region, Regions, install, sites
from mezzotint.attention import regions as attention_regions
from mezzotint.attention.heads import fused, project_keys_values
from mezzotint.diffusion import Condition, Denoiser, guided
from mezzotint.methods import multibooth, q_dit
from mezzotint.methods.multibooth import Concept, base, boxes, placeholder, regions
from mezzotint.methods.multibooth import regional_experiment as experiment
from mezzotint.methods.multibooth.boxes import Box, auto_boxes, coverage, position_weights
from mezzotint.methods.multibooth.finetuned import summed
from mezzotint.methods.multibooth.learning import learn_concept
from mezzotint.methods.multibooth.options import Options
from mezzotint.methods.multibooth.placement import arranged, customised
from mezzotint.methods.multibooth.region_prompts import region_prompts
from mezzotint.methods.multibooth.world import CONCEPTS
from tests.methods.test_binding import pixart

PROMPT = "a <S> cube and a <V> ball"
LEFT, RIGHT, ALL = (0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0), (0.0, 0.0, 1.0, 1.0)
CLOSE = {"rtol": 1e-4, "atol": 1e-5}
WIDE = {"rtol": 1e-3, "atol": 1e-4}
"""After two steps of a guided pipeline, whose scale of 7.5 magnifies rounding."""
nested = pytest.mark.filterwarnings("ignore:the box of:UserWarning")


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def concept(pipe, word="<S>", noun="cube", *, seed=1, layers="all", size=0.3, rank=2) -> Concept:
    """A concept nobody had to learn: random numbers of the true shapes."""
    lora = {
        name: (size * normal(rank, inputs, seed=seed + k), size * normal(outputs, rank, seed=-seed - k))
        for k, (name, (inputs, outputs)) in enumerate(base.projections(pipe, layers).items())
    }
    vectors = tuple(0.1 * normal(part.width, seed=seed) for part in base.text_parts(pipe))
    return Concept(word, noun, vectors, lora, rank, base.fingerprint(pipe))


def without_lora(one: Concept) -> Concept:
    return replace(one, lora={name: (A, torch.zeros_like(B)) for name, (A, B) in one.lora.items()})


def latents(pipe, prompt=PROMPT, *, size=(8, 8), images=1, seed=0, **options) -> torch.Tensor:
    count = images * (len(prompt) if isinstance(prompt, list) else 1)
    noise = torch.cat([normal(1, 4, *size, seed=seed + k) for k in range(count)])
    given = {"num_inference_steps": 2, "guidance_scale": 7.5, "negative_prompt": "bad", **options}
    return pipe(
        prompt, latents=noise, output_type="latent", num_images_per_prompt=images, height=2 * size[0],
        width=2 * size[1], **given,
    ).images  # fmt: skip


@pytest.fixture(params=["sd15", "sdxl"])
def pipe(request):
    return request.getfixturevalue(request.param)


@pytest.fixture
def pair(sd15):
    return [concept(sd15), concept(sd15, "<V>", "ball", seed=50)]


def cross_output(pipe, concepts, **options) -> torch.Tensor:
    """What the first layer that reads the text gives in one pass: [rows, heads, 8, 8, head_dim]."""
    first = next(site.name for site in sites(pipe) if site.kind == "cross")
    record = Record()
    with multibooth.place(pipe, PROMPT, concepts, **{"self_lora": "off", "boxes": [LEFT, RIGHT], **options}):
        watch = Observe(record, of="output", where=lambda site: site.name == first)
        with install(pipe, watch):
            latents(pipe, num_inference_steps=1)
    return record.at()[first][0].unflatten(2, (8, 8))


def test_without_concepts_no_bit_changes(pipe):
    plain = latents(pipe, "a cube")
    with multibooth.place(pipe, "a cube", []) as placement:
        assert torch.equal(latents(pipe, "a cube"), plain)
    assert placement.placed == ()


@pytest.mark.parametrize("guidance", [1.0, 7.5])
@pytest.mark.parametrize("layers", ["all", "cross"])
@pytest.mark.parametrize("how", ["mean", "concat"])
def test_one_box_over_everything_is_ordinary_lora_inference(pipe, guidance, layers, how):
    """Invariant 10: in both halves, so with guidance and without."""
    one, prompt = concept(pipe, layers=layers), "a <S> cube"
    once = {"guidance_scale": guidance, "num_inference_steps": 1}
    with summed(pipe, [one]).applied(pipe):
        wanted = latents(pipe, prompt, **once)
    with placeholder.spoken(pipe, [one]):
        plain = latents(pipe, prompt, **once)
    with multibooth.place(pipe, prompt, [one], boxes=[ALL], text_mix=how):
        found = latents(pipe, prompt, **once)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    assert (wanted - plain).abs().max() > 2e-4


@pytest.mark.parametrize("guidance", [1.0, 7.5])
def test_samplers_that_guide_by_themselves_are_understood(sd15, guidance):
    """SPLAM's sampler calls the network without unconditional rows, whatever the pipeline did last."""
    one, prompt, x = concept(sd15), "a <S> cube", normal(2, 4, 8, 8)

    def noise() -> torch.Tensor:
        conditions = Condition.from_prompt(sd15, prompt)
        with torch.no_grad():
            return guided(Denoiser(sd15), *conditions, guidance).eps(x, 401)

    with summed(sd15, [one]).applied(sd15):
        wanted = noise()
    for last in (1.0, 7.5):
        with multibooth.place(sd15, prompt, [one], boxes=[ALL]):
            latents(sd15, prompt, guidance_scale=last, num_inference_steps=1)
            torch.testing.assert_close(noise(), wanted, **WIDE)


def test_that_law_needs_the_lora_in_the_unconditional_half_and_in_self_attention(sd15):
    one, prompt = concept(sd15), "a <S> cube"
    with summed(sd15, [one]).applied(sd15):
        wanted = latents(sd15, prompt)
    with placeholder.spoken(sd15, [one]):
        found = customised(sd15, arranged(prompt, [one], boxes=[ALL]))
        half = Regions(found.cross_attention().regions, branch="cond")
        with install(sd15, half, regions.edits(sd15, found)[1]):
            conditional_only = latents(sd15, prompt)
    with multibooth.place(sd15, prompt, [one], boxes=[ALL], self_lora="off"):
        cross_only = latents(sd15, prompt)
    for broken in (conditional_only, cross_only):
        assert (broken - wanted).abs().max() > 0.01


@pytest.mark.parametrize("guidance", [1.0, 7.5])
@pytest.mark.parametrize("layout", [[LEFT, RIGHT], [(0.1, 0.2, 0.7, 0.6), (0.4, 0.1, 0.45, 1.0)]])
@pytest.mark.parametrize("how", ["concat", "mean"])
def test_without_lora_and_with_the_base_prompt_everywhere_it_is_the_base_pipeline(pipe, guidance, layout, how):
    two = [without_lora(concept(pipe)), without_lora(concept(pipe, "<V>", "ball", seed=50))]
    with placeholder.spoken(pipe, two):
        wanted = latents(pipe, guidance_scale=guidance)
    with multibooth.place(pipe, PROMPT, two, boxes=layout, region_prompts=[PROMPT, PROMPT], text_mix=how):
        torch.testing.assert_close(latents(pipe, guidance_scale=guidance), wanted, **WIDE)
    if guidance > 1:
        with multibooth.place(pipe, PROMPT, two, boxes=layout, region_prompts=[PROMPT, PROMPT], text_mix="sum"):
            assert (latents(pipe) - wanted).abs().max() > 0.01


def test_every_box_can_read_its_own_prompt_as_it_was_encoded(sd15, pair):
    """Side by side no text is spoilt by the other; token by token the second concept's word meets the first's."""
    found = arranged(PROMPT, pair)
    with placeholder.spoken(sd15, pair):
        own, _ = Condition.from_prompt(sd15, [each.prompt for each in found.placed])
        beside, added = (customised(sd15, found, how).texts for how in ("concat", "mean"))
    for text, alone, mixed in zip(own.encoder_hidden_states, beside, added, strict=True):
        assert torch.equal(alone[0, : len(text)], text)
        assert mixed.shape == (1, *text.shape)
    places = [(mixed[0] - text).abs().amax(-1) for text, mixed in zip(own.encoder_hidden_states, added, strict=True)]
    first = 2  # after "<|startoftext|> a"
    assert places[0][first] < 1e-5 < places[1][first]


def test_the_printed_sum_doubles_keys_and_values(sd15):
    """Invariant 12: equation 5 taken literally, with the base prompt in the box."""
    text = normal(1, 77, 768)
    layer = sd15.unet.get_submodule(next(site.name for site in sites(sd15) if site.kind == "cross"))
    double, mean = (regions.mixed_text(text, text, how) for how in ("sum", "mean"))
    assert torch.equal(mean, text)
    for once, twice in zip(
        project_keys_values(layer, text, text, cross=True),
        project_keys_values(layer, double, double, cross=True),
        strict=True,
    ):
        assert torch.equal(twice, 2 * once)


def test_cropped_queries_give_the_rows_of_full_attention():
    """Invariant 13: cropping and masking are the same function."""
    query, key, value = normal(2, 2, 64, 4), normal(2, 2, 77, 4, seed=1), normal(2, 2, 77, 4, seed=2)
    chosen = coverage([Box(0.2, 0.1, 0.6, 0.9)], (8, 8))[0].flatten().nonzero().flatten()
    assert torch.equal(fused(query[:, :, chosen], key, value), fused(query, key, value)[:, :, chosen])


@pytest.mark.parametrize("layout", [[LEFT, RIGHT], [(0, 0, 0.7, 1), (0.3, 0, 1, 0.8)]])
def test_the_order_of_concepts_does_not_matter(sd15, pair, layout):
    both = [{"boxes": layout, "weights": [1, 3]}, {"boxes": layout[::-1], "weights": [3, 1]}]
    made = []
    for concepts, options in zip((pair, pair[::-1]), both, strict=True):
        with multibooth.place(sd15, PROMPT, concepts, **options):
            made.append(latents(sd15))
    torch.testing.assert_close(*made, **WIDE)


def test_disjoint_boxes_do_not_see_each_other(sd15, pair):
    """Invariant 15: another module on the right leaves the layer's output on the left as it is, bit for bit.

    Its word stays, since the base prompt, which all regions read, names it.
    """
    other = replace(pair[1], lora=concept(sd15, seed=90).lora)
    first, second = (cross_output(sd15, [pair[0], each]) for each in (pair[1], other))
    assert torch.equal(first[..., :, :4, :], second[..., :, :4, :])
    assert not torch.isclose(first[..., :, 4:, :], second[..., :, 4:, :]).all(-1).any()


def test_where_no_box_is_no_concept_is_seen(sd15, pair):
    """Invariant 18, and the same for a cell's own attention without any concept."""
    layout = {"boxes": [(0, 0, 0.5, 0.5), (0.5, 0, 1, 0.5)]}
    with_lora = cross_output(sd15, pair, **layout)
    bare = cross_output(sd15, [without_lora(each) for each in pair], **layout)
    assert torch.equal(with_lora[..., 4:, :, :], bare[..., 4:, :, :])
    assert not torch.equal(with_lora[..., :4, :, :], bare[..., :4, :, :])


@nested
def test_two_identical_concepts_in_one_box_are_one(sd15, monkeypatch):
    """Invariant 16, which equation 9 as printed breaks: it divides by the number of boxes twice."""
    one, prompt = concept(sd15), "a <S> cube"

    def twice():
        both = {"<S>": (one, LEFT), "<V>": (one, LEFT)}
        with multibooth.place(sd15, prompt, both, region_prompts=[prompt, "a <V> cube"]):
            return latents(sd15, prompt)

    with multibooth.place(sd15, prompt, [one], boxes=[LEFT]):
        wanted = latents(sd15, prompt)
    torch.testing.assert_close(twice(), wanted, **WIDE)

    def printed(*given):
        shares = position_weights(*given)
        eta = (shares[:-1] > 0).sum(0).clamp_min(1)
        return torch.cat([shares[:-1] / eta, shares[-1:]])

    monkeypatch.setattr(regions, "position_weights", printed)
    assert (twice() - wanted).abs().max() > 0.01


def test_a_third_concept_without_weight_changes_nothing(sd15, pair):
    """Invariant 23."""
    layout, prompts = [(0, 0, 0.6, 1), (0.4, 0, 1, 1)], ["a <S> cube", "a <V> ball"]
    with multibooth.place(sd15, PROMPT, pair, boxes=layout, region_prompts=prompts):
        wanted = latents(sd15)
    more = {"boxes": [*layout, (0.2, 0.1, 1, 0.7)], "region_prompts": [*prompts, "a <W> cone"], "weights": [1, 1, 0]}
    with multibooth.place(sd15, PROMPT, [*pair, concept(sd15, "<W>", "cone", seed=7)], **more):
        torch.testing.assert_close(latents(sd15), wanted, **WIDE)


sides = st.floats(0, 1, allow_nan=False)
spans = st.tuples(sides, sides).map(sorted).filter(lambda span: span[0] < span[1])
found_boxes = st.tuples(spans, spans).map(lambda both: Box(both[0][0], both[1][0], both[0][1], both[1][1]))
grids = st.tuples(st.integers(1, 40), st.integers(1, 40))


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(found_boxes, st.floats(0, 10)), max_size=4), grids)
@example([(Box(0.0, 0.0, 1.0, 1.0), 5e-324)], (1, 1))
def test_weights_of_every_position_sum_to_one(placed, grid):
    """Invariant 17, background included."""
    shares = position_weights([box for box, _ in placed], [weight for _, weight in placed], grid)
    torch.testing.assert_close(shares.sum(0), torch.ones(grid))
    assert (shares >= 0).all()


@settings(deadline=None, max_examples=50)
@given(found_boxes, grids)
def test_cells_contain_the_box_and_are_never_none(box, grid):
    """Invariant 19, at every resolution."""
    for _ in range(4):
        (rows, columns), (height, width) = box.cells(grid), grid
        assert rows.start < rows.stop <= height
        assert columns.start < columns.stop <= width
        for low, high, found, cells in ((box.y0, box.y1, rows, height), (box.x0, box.x1, columns, width)):
            assert found.start / cells <= low + 1e-6
            assert found.stop / cells >= high - 1e-6
            assert found.stop - found.start <= (high - low) * cells + 2
        grid = ((height + 1) // 2, (width + 1) // 2)


def test_a_pixel_is_a_cell_and_a_border_is_no_neighbour():
    assert coverage([Box(0.5, 0.5, 0.5 + 1 / 512, 0.5 + 1 / 512)], (8, 8)).sum() == 1
    assert coverage([Box(1 - 1e-9, 0.0, 1.0, 1.0)], (8, 8)).sum() == 8
    assert Box(0.1, 0.7, 1.0, 1.0).cells((10, 30)) == (slice(7, 10), slice(3, 30))  # 0.1 * 30 > 3 in floating point
    assert coverage(auto_boxes(4), (8, 8)).sum(0).max() == 1


def test_user_weights_count_where_boxes_overlap():
    shares = position_weights([Box.of((0, 0, 0.75, 1)), Box.of((0.25, 0, 1, 1))], [1, 3], (1, 4))
    wanted = torch.tensor([[1, 0.25, 0.25, 0], [0, 0.75, 0.75, 1], [0, 0, 0, 0]])
    torch.testing.assert_close(shares[:, 0], wanted)


def test_what_regions_cost_is_their_area_and_their_keys_are_made_once_a_run(sd15, pair, monkeypatch):
    seen, runs = [], []

    def counted(query, *rest, **options):
        seen.append(query.shape[2])
        return fused(query, *rest, **options)

    monkeypatch.setattr(attention_regions, "fused", counted)
    layers = [sd15.unet.get_submodule(site.name) for site in sites(sd15) if site.kind == "cross"]
    hooks = [layer.to_k.register_forward_hook(lambda *_: runs.append(1)) for layer in layers]
    with multibooth.place(sd15, PROMPT, pair, boxes=[(0, 0, 0.25, 0.5), (0.5, 0.5, 1, 1)]):
        latents(sd15, num_inference_steps=3)
        steps = len(seen) // (2 * len(layers))
        latents(sd15, num_inference_steps=3)
    for hook in hooks:
        hook.remove()
    area = {8: 2 * 4 + 4 * 4, 4: 1 * 2 + 2 * 2, 2: 1 + 1, 1: 1 + 1}
    grids = [site.grid(8, 8)[0] for site in sites(sd15) if site.kind == "cross"]
    assert sum(seen) == 2 * steps * sum(area[grid] for grid in grids)
    own, once_a_run = 2 * steps, 2 * 2 * 2  # two runs of two concepts in two halves
    assert len(runs) == (own + once_a_run) * len(layers)


@pytest.mark.parametrize("size", [(12, 20), (28, 4)])
def test_pictures_need_not_be_square_nor_their_grids_even(sd15, pair, size):
    two = [without_lora(each) for each in pair]
    with placeholder.spoken(sd15, two):
        wanted = latents(sd15, size=size)
    with multibooth.place(sd15, PROMPT, two, region_prompts=[PROMPT] * 2):
        torch.testing.assert_close(latents(sd15, size=size), wanted, **WIDE)
    with multibooth.place(sd15, PROMPT, pair):
        assert (latents(sd15, size=size) - wanted).abs().max() > 0.01


def test_pictures_of_a_batch_are_those_made_alone(sd15, pair):
    with multibooth.place(sd15, PROMPT, pair):
        alone = torch.cat([latents(sd15, seed=k) for k in range(2)])
        torch.testing.assert_close(latents(sd15, images=2), alone, **WIDE)
        torch.testing.assert_close(latents(sd15, [PROMPT, PROMPT], negative_prompt=["bad"] * 2), alone, **WIDE)


def test_other_edits_and_other_placements_live_beside_it(sd15, pair):
    with multibooth.place(sd15, PROMPT, pair):
        wanted = latents(sd15)
        with install(sd15, LogitMask(torch.zeros(1), kind="cross", branch="cond")):
            torch.testing.assert_close(latents(sd15), wanted, **WIDE)
        with multibooth.place(sd15, "a <W> cone", [concept(sd15, "<W>", "cone", seed=7)], boxes=[(0, 0, 0.1, 0.1)]):
            assert (latents(sd15) - wanted).abs().max() > 0.001
        assert torch.equal(latents(sd15), wanted)


def test_quantised_layers_are_called_as_they_are(sd15):
    """The base's projection is the module's own, so packed integers take part.

    The mean keeps the text's tokens: other shapes round differently, which quantised activations magnify.
    """
    small = q_dit.quantise(sd15, weights=8, group="auto", rounding="rtn").pipe
    small.set_progress_bar_config(disable=True)
    one = concept(small)
    with placeholder.spoken(small, [one]):
        plain = latents(small, "a <S> cube")
    with multibooth.place(small, "a <S> cube", [without_lora(one)], boxes=[ALL], text_mix="mean"):
        torch.testing.assert_close(latents(small, "a <S> cube"), plain, **WIDE)
    with multibooth.place(small, "a <S> cube", [one], boxes=[ALL]):
        assert (latents(small, "a <S> cube") - plain).abs().max() > 0.01


def traces(pipe) -> tuple[object, ...]:
    sums = [hashlib.sha256(value.numpy().tobytes()).hexdigest() for value in pipe.unet.state_dict().values()]
    hooks = [len(part._forward_pre_hooks) + len(part._forward_hooks) for part in pipe.text_encoder.modules()]
    layers = [id(pipe.unet.get_submodule(site.name).processor) for site in sites(pipe)]
    return sums, hooks, layers, id(pipe.tokenizer), len(pipe.unet._forward_pre_hooks), len(pipe.tokenizer)


def test_nothing_is_left_behind_after_an_exception_either(sd15, pair):
    before, plain = traces(sd15), latents(sd15, "a cube")

    def fail(*_) -> None:
        raise ArithmeticError("on purpose")

    with pytest.raises(ArithmeticError, match="on purpose"), multibooth.place(sd15, PROMPT, pair):
        latents(sd15, callback_on_step_end=fail)
    assert traces(sd15) == before
    assert torch.equal(latents(sd15, "a cube"), plain)


def test_concepts_of_one_placeholder_meet_under_new_ones(sd15, pair, tmp_path):
    """A folder will do, a box may come with the concept, and the names are those of the mapping."""
    same = pair[1].renamed("<S>")
    same.save(tmp_path / "ball")
    with multibooth.place(sd15, PROMPT, pair, boxes=[RIGHT, LEFT]):
        wanted = latents(sd15)
    given = {"<V>": (str(tmp_path / "ball"), LEFT), "<S>": (pair[0], RIGHT)}
    with multibooth.place(sd15, PROMPT, given) as placement:
        torch.testing.assert_close(latents(sd15), wanted, **WIDE)
    assert [each.prompt for each in placement.placed] == ["a <V> ball", "a <S> cube"]
    with pytest.raises(ValueError, match="a placeholder of its own"):
        arranged(PROMPT, [pair[0], same])


def test_a_base_prompt_that_is_too_long_for_a_concept_is_an_error(sd15, pair):
    long = f"a <S> cube beside {'abcdefgh ' * 12}and a <V> ball"
    with (
        pytest.raises(ValueError, match="'<V>' is cut off"),
        multibooth.place(sd15, long, pair, region_prompts=["a <S> cube", "a <V> ball"]),
    ):
        pytest.fail("it was taken")


def test_one_name_for_two_concepts_is_refused_on_the_command_line(sd15, pair, tmp_path):
    for number, one in enumerate(pair):
        one.save(tmp_path / str(number))
    asked = tuple(f"a={tmp_path}/{number}" for number in range(2))
    with (
        pytest.raises(ValueError, match="--concept names <a> more than once"),
        multibooth.EFFECT.attach(sd15, ["a <a> cube"], concept=asked),
    ):
        pytest.fail("one of them was dropped")


def test_image_prompt_adapters_leave_the_text_alone(sd15, pair, monkeypatch):
    with multibooth.place(sd15, PROMPT, pair):
        wanted = latents(sd15)
    monkeypatch.setattr(sd15.unet, "encoder_hid_proj", torch.nn.Identity(), raising=False)
    with (
        pytest.raises(ValueError, match="encoder_hid_proj, which is not supported"),
        multibooth.place(sd15, PROMPT, pair),
    ):
        pytest.fail("the text is projected")
    sd15.unet.register_to_config(encoder_hid_dim_type="ip_image_proj")
    try:
        with multibooth.place(sd15, PROMPT, pair):
            sd15.unet.encoder_hid_proj = None
            sd15.unet.register_to_config(encoder_hid_dim_type=None)
            assert torch.equal(latents(sd15), wanted)
    finally:
        sd15.unet.register_to_config(encoder_hid_dim_type=None)


@pytest.fixture(scope="module")
def pixart_pipe():
    made = pixart()
    for value in made.transformer.parameters():
        if value.ndim > 1:
            value.data = normal(*value.shape, seed=1) / value[0].numel() ** 0.5
    return made


class TestTextEncodersThatLookElsewhere:
    """T5 names one token table and reads another module of the same weight; PixArt turns prompts into lower case."""

    @staticmethod
    def drawn(pipe, prompt, *, images=1, guidance=4.5):
        noise = torch.cat([normal(1, 4, 8, 8, seed=k) for k in range(images)])
        options = {"use_resolution_binning": False, "clean_caption": False, "num_inference_steps": 2}
        return pipe(
            prompt, latents=noise, num_images_per_prompt=images, output_type="latent", height=16, width=16,
            guidance_scale=guidance, **options,
        ).images  # fmt: skip

    @pytest.mark.parametrize("guidance", [1.0, 4.5])
    @pytest.mark.parametrize("images", [1, 2])
    def test_a_box_over_everything_is_ordinary_lora_inference(self, pixart_pipe, guidance, images):
        one, prompt = concept(pixart_pipe, "<s>", layers="cross"), "a <s> cube"
        branches = ("cond",) if guidance == 1 else None
        with summed(pixart_pipe, [one]).applied(pixart_pipe):
            wanted = self.drawn(pixart_pipe, prompt, images=images, guidance=guidance)
        with multibooth.place(pixart_pipe, prompt, [one], boxes=[ALL], branches=branches):
            torch.testing.assert_close(
                self.drawn(pixart_pipe, prompt, images=images, guidance=guidance), wanted, **WIDE
            )
        other = replace(one, embeddings=tuple(-5 * vector for vector in one.embeddings))
        with multibooth.place(pixart_pipe, prompt, [other], boxes=[ALL], branches=branches):
            assert not torch.allclose(self.drawn(pixart_pipe, prompt, images=images, guidance=guidance), wanted, **WIDE)

    def test_a_word_that_is_never_read_is_refused(self, pixart_pipe):
        one = concept(pixart_pipe, "<S>", layers="cross")
        with (
            pytest.raises(ValueError, match=r"T5EncoderModel never read '<S>'.*lower case"),
            multibooth.place(pixart_pipe, "a <S> cube", [one]),
        ):
            pytest.fail("its vector would not matter")

    def test_learning_moves_the_word_or_is_refused(self, pixart_pipe):
        options = Options(
            class_word="cube", steps=3, rank=1, batch_size=1, encoder="free", templates=("a {}",), learning_rate=1e-2,
            regulariser=0.0, weight_decay=0.0, layers="cross",
        )  # fmt: skip
        pictures = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
        learnt = learn_concept(pixart_pipe, pictures, replace(options, placeholder="<s>"), progress=False)
        noun = pixart_pipe.tokenizer("cube", add_special_tokens=False).input_ids[0]
        start = pixart_pipe.text_encoder.get_input_embeddings().weight[noun]
        cosine = torch.nn.functional.cosine_similarity(learnt.embeddings[0], start.detach(), dim=0)
        assert cosine < 1 - 1e-6
        with pytest.raises(ValueError, match="never read '<S>'"):
            learn_concept(pixart_pipe, pictures, options, progress=False)


def test_strips_follow_the_order_of_the_prompt(pair):
    found = arranged("a <V> ball beside a <S> cube", pair)
    assert {each.concept.placeholder: each.box.x0 for each in found.placed} == {"<V>": 0.0, "<S>": 0.5}


@pytest.mark.parametrize(
    ("prompt", "wanted"),
    [
        ("a <S> dog and a <V> cat on the beach", ["a <S> dog on the beach", "a <V> cat on the beach"]),
        (
            "A photo of a fluffy <V> cat next to my old <S> dog, in Paris",
            ["A photo of my old <S> dog, in Paris", "A photo of a fluffy <V> cat, in Paris"],
        ),
        ("<S> and <V>", ["<S>", "<V>"]),
        ("a <S> doggy and a <V> sleepy cat on a mat", ["a <S> doggy on a mat", "a <V> sleepy cat on a mat"]),
        ("two <S> dogs and a <V> kitten", ["two <S> dogs", "a <V> kitten"]),
        ("big <S> dog <V> cat", ["big <S> dog", "<V> cat"]),
        ("in a room with <S> dogs, a tree and <V> cat", ["in a room with <S> dogs", "in a room with <V> cat"]),
    ],
)
def test_region_prompts_keep_one_phrase_and_the_shared_context(prompt, wanted):
    nouns = {"<S>": "dogs" if "dogs" in prompt else "dog", "<V>": "cat"}
    assert region_prompts(prompt, nouns) == wanted


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"boxes": [LEFT]}, "one a concept"),
        ({"boxes": [LEFT, (0.5, 0, 0.5, 1)]}, "x0 < x1"),
        ({"boxes": [LEFT, (0.5, 0, 1.1, 1)]}, r"in 0\.\.1"),
        ({"boxes": [LEFT, (0.5, 0, float("nan"), 1)]}, r"in 0\.\.1"),
        ({"boxes": [LEFT, (0, 1)]}, "four numbers"),
        ({"boxes": {"<S>": LEFT, "<W>": RIGHT}}, "must name <S>, <V>"),
        ({"boxes": lambda count: []}, "gave 0 boxes"),
        ({"weights": [1, -1]}, "at least 0"),
        ({"weights": [0, 0]}, "above 0"),
        ({"weights": [1]}, "one a concept"),
        ({"region_prompts": "a <S> cube"}, "one a concept"),
        ({"region_prompts": ["a <S> cube", "a ball"]}, "does not name '<V>'"),
        ({"region_prompts": ["a <S> cube", "b " * 80 + "<V>"]}, "cut off"),
        ({"prompt": "a <S> cube and a ball"}, "names '<V>' 0 times"),
    ],
)
def test_what_makes_no_sense_is_refused_and_leaves_nothing(sd15, pair, change, message):
    before = traces(sd15)
    given = {"prompt": PROMPT, **change}
    with pytest.raises(ValueError, match=message), multibooth.place(sd15, given.pop("prompt"), pair, **given):
        pass
    assert traces(sd15) == before


def test_a_concept_of_another_base_is_refused(sd15, sdxl, pair):
    with pytest.raises(ValueError, match="another base model"), multibooth.place(sdxl, PROMPT, pair):
        pass


def test_boxes_within_boxes_are_legal_with_a_warning(pair):
    with pytest.warns(UserWarning, match="box of '<V>' lies entirely in that of '<S>'"):
        arranged(PROMPT, pair, boxes=[ALL, RIGHT])


def test_a_module_of_another_rank_or_precision_takes_part(sd15):
    one, other = concept(sd15, rank=3), concept(sd15, "<V>", "ball", seed=50).to(dtype=torch.float16)
    with multibooth.place(sd15, PROMPT, [one, other]):
        found = latents(sd15)
    with multibooth.place(sd15, PROMPT, [one, other.to(dtype=torch.float32)]):
        torch.testing.assert_close(latents(sd15), found, **WIDE)


def test_regions_of_several_weights_mix_as_the_maps_say(sd15, pair):
    """The module's shares reach attention as they are: one map for each concept, in their order."""
    with placeholder.spoken(sd15, pair):
        found = customised(sd15, arranged(PROMPT, pair, boxes=[(0, 0, 0.75, 1), (0.25, 0, 1, 1)], weights=[1, 3]))
    shares = position_weights(found.boxes, [1, 3], (4, 4))
    for region, wanted in zip(found.cross_attention().regions, shares, strict=False):
        assert isinstance(region, Region)
        torch.testing.assert_close(region.weights((4, 4)).unflatten(0, (4, 4)), wanted)
    assert boxes.TOLERANCE < 1 / 1024


def test_concepts_are_counted_in_their_boxes():
    """Side by side, swapped, one missing, and both in the part that two boxes share."""
    cube, ball = CONCEPTS[:2]
    at = {"left": (0.25, 0.5), "right": (0.75, 0.5), "middle": (0.5, 0.5)}
    pictures = [
        [(cube, at["left"]), (ball, at["right"])],
        [(cube, at["right"]), (ball, at["left"])],
        [(cube, at["left"]), (cube, at["right"])],
        [],
    ]
    found = experiment.scores(pictures, [cube, ball], [LEFT, RIGHT])
    assert found[experiment.BOTH] == [1, 0, 0, 0]
    assert found[experiment.THERE] == [1, 1, 0, 0]
    assert found[experiment.IN_BOX] == [1, 0, 0.5, 0]
    assert found[experiment.CONFUSED] == [0, 1, 0.5, 0]
    assert found[experiment.KEPT] == [1, 0, 1, 0]
    shared = [[(cube, at["middle"]), (ball, at["middle"])]]
    both = experiment.scores(shared, [cube, ball], [(0, 0, 0.6, 1), (0.4, 0, 1, 1)])
    assert (both[experiment.BOTH], both[experiment.CONFUSED]) == ([1], [0])
