"""Coming and going: nothing is changed without edits, and nothing remains afterwards."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import (
    AttnProcessor,
    AttnProcessor2_0,
    CustomDiffusionAttnProcessor,
    IPAdapterAttnProcessor,
    IPAdapterAttnProcessor2_0,
    SlicedAttnProcessor,
)
from peft import LoraConfig
from torch import Tensor, nn

from mezzotint.attention import (
    Context,
    Edit,
    KeysValues,
    LogitMask,
    Observe,
    Output,
    Probabilities,
    backbone,
    during,
    install,
)
from mezzotint.diffusion import Condition, Denoiser, guided
from tests.attention.conftest import UNET, Case, dit, frozen, normal, processors, sd, set_processors

ZERO_MASK = LogitMask(torch.zeros(1))


def test_no_edits_change_no_bit(case: Case) -> None:
    plain = case.run()
    with install(case.model):
        assert torch.equal(case.run(), plain)


def test_layers_without_an_active_edit_change_no_bit(case: Case) -> None:
    plain = case.run()
    off = LogitMask(torch.full((1,), torch.nan), when=lambda moment: False)
    with install(case.model, off):
        assert torch.equal(case.run(), plain)


@pytest.mark.parametrize("processor", [AttnProcessor(), AttnProcessor2_0(), SlicedAttnProcessor(1)])
def test_edited_layers_compute_what_the_stock_processor_does(case: Case, processor: object) -> None:
    set_processors(case.model, processor)
    plain = case.run()
    with install(case.model, ZERO_MASK):
        torch.testing.assert_close(case.run(), plain, rtol=1e-4, atol=1e-5)


def test_the_very_processors_are_put_back(case: Case) -> None:
    before = processors(case.model)
    plain = case.run()
    with install(case.model, LogitMask(lambda call, query, key: normal(key.shape[2]))):
        assert not torch.equal(case.run(), plain)
    assert all(processors(case.model)[name] is processor for name, processor in before.items())
    assert not case.model._forward_pre_hooks
    assert torch.equal(case.run(), plain)


def test_restored_after_an_exception_inside_the_pass(case: Case) -> None:
    before, plain = processors(case.model), case.run()

    def fail(*_: object) -> None:
        raise ArithmeticError("on purpose")

    with pytest.raises(ArithmeticError, match="on purpose"), install(case.model, Observe(fail)):
        case.run()
    assert all(processors(case.model)[name] is processor for name, processor in before.items())
    assert torch.equal(case.run(), plain)


def test_nested_is_flat(case: Case) -> None:
    mask = LogitMask(lambda call, query, key: normal(key.shape[2]))
    twice = Output(lambda call, output, states: output * 2)
    with install(case.model, mask, twice):
        flat = case.run()
    with install(case.model, mask), install(case.model, twice):
        assert torch.equal(case.run(), flat)
        with install(case.model, Output(lambda call, output, states: output / 2)):
            inner = case.run()
        assert torch.equal(case.run(), flat)
    with install(case.model, mask):
        assert torch.equal(case.run(), inner)


def test_installations_may_leave_in_any_order(unet: Case) -> None:
    plain = unet.run()
    first, second = ExitStack(), ExitStack()
    shift = Output(lambda call, output, states: output + 1)
    first.enter_context(install(unet.model, shift))
    second.enter_context(install(unet.model, ZERO_MASK))
    first.close()
    torch.testing.assert_close(unet.run(), plain, rtol=1e-4, atol=1e-5)
    second.close()
    assert torch.equal(unet.run(), plain)


def test_within_a_stage_outer_edits_act_first(unet: Case) -> None:
    double = Output(lambda call, output, states: output * 2)
    shift = Output(lambda call, output, states: output + 1)
    both = Output(lambda call, output, states: output * 2 + 1)
    with install(unet.model, both):
        wanted = unet.run()
    with install(unet.model, double, shift):
        assert torch.equal(unet.run(), wanted)
    with install(unet.model, shift, double):
        assert not torch.allclose(unet.run(), wanted)


def test_stages_follow_their_own_order_whatever_the_installation(unet: Case) -> None:
    order: list[str] = []

    def note(name: str):
        def see(call: object, *tensors: Tensor) -> object:
            order.append(name)
            return tensors[0] if len(tensors) == 1 else tensors

        return see

    edits = [
        Observe(note("see output"), of="output"),
        Output(lambda call, output, states: note("output")(call, output)),
        Probabilities(note("probabilities")),
        LogitMask(lambda call, query, key: order.append("mask")),
        Observe(note("see states"), of="query_key_value"),
        KeysValues(note("states")),
        Observe(note("see probabilities"), of="probabilities"),
        Context(note("context")),
    ]
    with install(unet.model, *edits):
        unet.run()
    wanted = ["context", "states", "see states", "mask", "probabilities", "see probabilities", "output", "see output"]
    assert order[: len(wanted)] == wanted
    assert order == wanted * 8


def test_a_processor_set_inside_is_left_alone(unet: Case) -> None:
    with install(unet.model, ZERO_MASK):
        unet.model.set_attn_processor(own := AttnProcessor())
    assert all(processor is own for processor in unet.model.attn_processors.values())


def test_lora_underneath_takes_part(unet: Case) -> None:
    plain = unet.run()
    unet.model.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=["to_q", "to_k", "to_v", "to_out.0"]))
    for name, parameter in unet.model.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter, generator=torch.Generator().manual_seed(len(name)))
    with torch.no_grad():
        adapted = unet.run()
        assert not torch.allclose(adapted, plain)
        with install(unet.model, ZERO_MASK):
            torch.testing.assert_close(unet.run(), adapted, rtol=1e-4, atol=1e-5)
        unet.model.set_adapters(["default"], [0.5])
        scaled = unet.run()
        with install(unet.model, ZERO_MASK):
            torch.testing.assert_close(unet.run(), scaled, rtol=1e-4, atol=1e-5)


def with_image_keys(kind: type[nn.Module]) -> tuple[UNet2DConditionModel, dict[str, object]]:
    """A U-Net with an IP-Adapter of two pictures; the arguments of a pass."""
    model = frozen(UNet2DConditionModel(**UNET))
    processors = {}
    for name, stock in model.attn_processors.items():
        width = 8 if name.startswith(("down_blocks.0", "up_blocks.1")) else 16
        image = kind(width, cross_attention_dim=12, num_tokens=(3, 2), scale=[0.7, 0.4])
        processors[name] = image if "attn2" in name else stock
    model.set_attn_processor(processors)
    model.encoder_hid_proj = nn.Identity()
    return frozen(model), {"encoder_hidden_states": (normal(4, 7, 12), [normal(4, 3, 12, seed=1), normal(4, 2, 12)])}


@pytest.mark.parametrize("kind", [IPAdapterAttnProcessor, IPAdapterAttnProcessor2_0])
def test_image_keys_underneath_contribute(kind: type[nn.Module]) -> None:
    model, arguments = with_image_keys(kind)
    case = Case(model, normal(4, 4, 8, 8))

    def run() -> Tensor:
        # the U-Net takes the tuple itself: encoder_hid_dim_type is None, so it passes it on unchanged
        return case.run(**arguments)

    before, plain = processors(model), run()
    weights = {name for name, _ in model.named_parameters()}
    with install(model):
        assert torch.equal(run(), plain)
    with install(model, ZERO_MASK):
        torch.testing.assert_close(run(), plain, rtol=1e-4, atol=1e-5)
        assert len(dict(model.named_parameters())) == len(weights)
    with install(model, Output(lambda call, output, states: output * 0, kind="cross")):
        only_image = run()
    assert all(processors(model)[name] is processor for name, processor in before.items())
    assert {name for name, _ in model.named_parameters()} == weights
    for processor in before.values():
        if isinstance(processor, kind):
            processor.scale = [0.0, 0.0]
    with install(model, Output(lambda call, output, states: output * 0, kind="cross")):
        assert not torch.allclose(run(), only_image)


def test_keyword_arguments_reach_the_processor_underneath(unet: Case) -> None:
    class Takes(AttnProcessor2_0):
        def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, temb=None, gain=1.0):
            return gain * super().__call__(attn, hidden_states, encoder_hidden_states, attention_mask, temb)

    unet.model.set_attn_processor(Takes())
    plain = unet.run(cross_attention_kwargs={"gain": 3.0})
    with install(unet.model):
        assert torch.equal(unet.run(cross_attention_kwargs={"gain": 3.0}), plain)


def test_an_unknown_processor_is_refused_only_where_an_edit_wants_it(unet: Case) -> None:
    odd = CustomDiffusionAttnProcessor(train_kv=False, train_q_out=False)
    unet.model.down_blocks[0].attentions[0].transformer_blocks[0].attn2.set_processor(odd)
    refuses(unet, "CustomDiffusionAttnProcessor, which cannot be edited", ZERO_MASK)
    assert not unet.model._forward_pre_hooks
    with install(unet.model, LogitMask(torch.zeros(1), kind="self")):
        unet.run()


def refuses(case: Case, message: str, *edits: Edit, **options: Any) -> None:
    with pytest.raises(ValueError, match=message), install(case.model, *edits, **options):
        raise AssertionError("installed")


def test_edits_that_could_never_act_are_refused(unet: Case) -> None:
    refuses(unet, "applies to none", LogitMask(torch.zeros(1), where=lambda site: site.level > 5))
    refuses(unet, "no guidance branch is called 'conditional'", LogitMask(torch.zeros(1), branch="conditional"))
    refuses(unet, "different names", branches=("cond", "cond"))
    assert not unet.model._forward_pre_hooks


def test_steps_are_counted_from_timesteps(unet: Case) -> None:
    seen: list[tuple[int, float | None]] = []

    def look(call: Call, *_: Tensor) -> None:
        seen.append((call.moment.step, call.moment.timestep))

    once = Observe(look, where=lambda site: site.place == "mid", kind="self", of="output")
    with install(unet.model, once) as installed:
        for timestep in (900, 900, 600, 300, 900, 600):
            unet.run(timestep)
        assert seen == [(0, 900), (0, 900), (1, 600), (2, 300), (0, 900), (1, 600)]
        installed.reset()
        unet.run(100)
        assert seen[-1] == (0, 100)


def test_when_limits_an_edit_to_steps(unet: Case) -> None:
    plain = {timestep: unet.run(timestep) for timestep in (900, 600, 300)}
    shift = Output(lambda call, output, states: output + 1, when=during(1, 2))
    with install(unet.model, shift):
        same = [torch.equal(unet.run(timestep), plain[timestep]) for timestep in (900, 600, 300)]
    assert same == [True, False, True]


@pytest.mark.slow
def test_a_compiled_wrapper_takes_edits_too() -> None:
    case = dit()
    compiled = Case(torch.compile(case.model, backend="eager"), case.latent, case.arguments)
    assert backbone(compiled.model) is case.model
    plain = compiled.run()
    for shift in (1, 5):
        edit = Output(lambda call, output, states, shift=shift: output + shift + call.moment.step)
        with install(case.model, edit) as installed:
            for timestep in (900, 500):
                wanted = case.run(timestep)
                assert torch.equal(compiled.run(timestep), wanted)
            assert installed.moment.step == 1
    assert torch.equal(compiled.run(), plain)


def test_compiled_code_is_set_aside_while_edits_are_installed(unet: Case) -> None:
    plain, calls = unet.run(), []

    def backend(graph: torch.fx.GraphModule, inputs: object) -> torch.fx.GraphModule:
        calls.append(graph)
        return graph

    unet.model.compile(backend=backend)
    before = unet.model._compiled_call_impl
    with install(unet.model, Output(lambda call, output, states: output + 1)):
        assert not torch.equal(unet.run(), plain)
    assert not calls
    assert unet.model._compiled_call_impl is before


def pipeline() -> StableDiffusionPipeline:
    vae = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=4, sample_size=8)
    scheduler = DDIMScheduler(clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    pipe = StableDiffusionPipeline(
        vae=vae, text_encoder=None, tokenizer=None, unet=sd().model, scheduler=scheduler,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize(("guidance", "rows"), [(7.5, slice(2, 4)), (1.0, slice(0, 2))])
def test_a_pipeline_says_itself_whether_it_is_guided(guidance: float, rows: slice) -> None:
    pipe, seen = pipeline(), set()
    look = Observe(lambda call, *_: seen.add((call.rows.start, call.rows.stop, call.moment.step)), branch="cond")
    given = {"prompt_embeds": normal(2, 7, 12), "negative_prompt_embeds": normal(2, 7, 12, seed=1)}
    with install(pipe, look):
        pipe(**given, height=8, width=8, num_inference_steps=3, guidance_scale=guidance, output_type="latent")
    assert seen == {(rows.start, rows.stop, step) for step in range(3)}


@pytest.mark.parametrize(("make", "name"), [(sd, "encoder_hidden_states"), (dit, "class_labels")])
def test_guided_denoisers_say_which_rows_are_which(make: Any, name: str) -> None:
    """Also where they do not stack as the model's own pipeline does (DiT), or have no unconditional rows at all."""
    case, rows = make(), []
    cond, uncond = (Condition(**{name: case.arguments[name][part]}) for part in (slice(0, 2), slice(2, 4)))
    watch = Observe(lambda call, _: rows.append(call.rows), of="output", branch="cond")
    other = Observe(lambda call, _: rows.append(-1), of="output", branch="uncond")
    denoiser = Denoiser(case.model, DDIMScheduler())
    with install(case.model, watch):
        for scale, wanted in ((1.0, slice(0, 2)), (3.0, slice(2, 4))):
            guided(denoiser, cond, uncond, scale).eps(case.latent[:2], 401)
            assert set(map(str, rows)) == {str(wanted)}
            rows.clear()
        with install(case.model, other):
            guided(denoiser, cond, None, 1.0).eps(case.latent[:2], 401)
            assert -1 not in rows
        with install(case.model, branches=("cond", "uncond")):
            rows.clear()
            guided(denoiser, cond, uncond, 3.0).eps(case.latent[:2], 401)
            assert set(map(str, rows)) == {str(slice(0, 2))}, "what was said at installation counts more"
