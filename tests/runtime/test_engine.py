"""Accelerating changes the engine, says so, and leaves no trace."""

import copy
import dataclasses
from contextlib import contextmanager

import pytest
import torch
from torch import nn

from mezzotint.diffusion import Sampler, fast_sampler
from mezzotint.runtime import accelerate, engine, environment
from mezzotint.runtime.compiling import Unchanging, compiled
from mezzotint.runtime.examples import example_inputs
from mezzotint.runtime.patching import casting, converted, limited_threads, replaced
from tests.diffusion.conftest import tiny_dit, tiny_pixart, tiny_sd, tiny_sdxl

ALL = {"sd": lambda: tiny_sd().unet, "sdxl": lambda: tiny_sdxl().unet, "dit": tiny_dit, "pixart": tiny_pixart,
       "pixart-micro": lambda: tiny_pixart(use_additional_conditions=True, num_attention_heads=3,
                                           cross_attention_dim=24)}  # fmt: skip


@pytest.fixture(scope="module")
def pipe():
    return tiny_sd()


def bits(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(before, module):
    now = module.state_dict()
    return all(value.dtype == now[k].dtype and torch.equal(value, now[k]) for k, value in before.items())


@pytest.mark.parametrize("name", ALL)
def test_every_network_accepts_its_example_and_depends_on_it(name):
    network = ALL[name]()
    inputs = example_inputs(network, 2)
    with torch.no_grad():
        output = network(**inputs)[0]
    assert torch.isfinite(output).all()
    assert not torch.equal(output[0], output[1])


def test_bfloat16_is_used_stated_and_undone(pipe):
    before, decoder = bits(pipe.unet), bits(pipe.vae)
    inputs = example_inputs(pipe.unet, 2)
    with torch.no_grad():
        reference = pipe.unet(**inputs)[0]
        with accelerate(pipe, calls=1, precision="bfloat16") as report:
            inside = pipe.unet(**inputs)[0]
            assert pipe.unet.conv_in.weight.dtype == torch.bfloat16
            assert pipe.vae.decoder.conv_in.weight.dtype == torch.bfloat16
            assert pipe.vae.encoder.conv_in.weight.dtype == torch.float32
            # The caller's latents stay what they were.
            assert inside.dtype == torch.float32
            torch.testing.assert_close(inside, reference, atol=0.05, rtol=0.05)
            assert not torch.equal(inside, reference)
        assert torch.equal(pipe.unet(**inputs)[0], reference)
    assert report.dtype == "bfloat16"
    assert 0 < report.relative_error < 0.05
    assert "bfloat16" in str(report)
    assert same(before, pipe.unet)
    assert same(decoder, pipe.vae)
    assert "forward" not in vars(pipe.unet)
    assert "forward" not in vars(pipe.vae.decoder)


def test_whole_pipelines_run_inside(pipe):
    run = {"num_inference_steps": 2, "height": 16, "width": 16, "output_type": "np"}
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    stock = pipe("a cube", latents=latents, **run).images
    with accelerate(pipe, calls=2, precision="bfloat16"):
        fast = pipe("a cube", latents=latents, **run).images
    assert abs(stock - fast).max() < 0.1
    assert (pipe("a cube", latents=latents, **run).images == stock).all()


def test_originals_given_up_leave_a_pipeline_of_the_other_dtype(pipe):
    lean = copy.deepcopy(pipe)
    inputs = example_inputs(pipe.unet, 2)
    with torch.no_grad():
        reference = pipe.unet(**inputs)[0]
        with accelerate(pipe, calls=1, precision="bfloat16") as report:
            kept, weights = pipe.unet(**inputs)[0], bits(pipe.unet)
        with accelerate(lean, calls=1, precision="bfloat16", restore=False) as said:
            assert torch.equal(lean.unet(**inputs)[0], kept), "the same arithmetic"
            assert lean.unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
        assert said.relative_error == report.relative_error > 0
        assert "for good" in str(said)
        assert same(weights, lean.unet)
        assert {part.dtype for part in (lean.unet, lean.vae, lean.text_encoder)} == {torch.bfloat16}
        assert "forward" not in vars(lean.unet)
        cast = {name: value.bfloat16() if value.is_floating_point() else value for name, value in inputs.items()}
        torch.testing.assert_close(lean.unet(**cast)[0].float(), reference, atol=0.05, rtol=0.05)


def test_short_runs_change_nothing(pipe):
    inputs = example_inputs(pipe.unet, 2)
    with torch.no_grad():
        reference = pipe.unet(**inputs)[0]
        with accelerate(pipe, calls=5) as report:
            assert torch.equal(pipe.unet(**inputs)[0], reference)
    assert report.reasons == ["5 calls are too few to earn back measuring: nothing changed"]
    assert report.relative_error == 0


def test_long_runs_measure_and_do_what_the_measurement_says(pipe):
    with accelerate(pipe, calls=100, compiled=False) as report:
        inside = str(pipe.unet.conv_in.weight.dtype).removeprefix("torch.")
    assert report.dtype == inside
    assert report.seconds
    assert all(value > 0 for value in report.seconds.values())
    assert len(report.reasons) >= 2


def test_keep_never_touches_the_numbers(pipe):
    inputs = example_inputs(pipe.unet, 2)
    threads = torch.get_num_threads()
    with torch.no_grad():
        reference = pipe.unet(**inputs)[0]
        with accelerate(pipe, calls=100, precision="keep", compiled=False, threads=threads) as report:
            assert torch.equal(pipe.unet(**inputs)[0], reference)
    assert report.dtype == "float32"


def test_restored_after_an_exception(pipe):
    before = bits(pipe.unet)
    threads = torch.get_num_threads()
    with pytest.raises(RuntimeError, match="in the middle"), accelerate(pipe, calls=1, precision="bfloat16", threads=1):
        raise RuntimeError("in the middle")
    assert same(before, pipe.unet)
    assert torch.get_num_threads() == threads
    assert "forward" not in vars(pipe.unet)


def test_measuring_draws_nobodys_random_numbers(pipe):
    state = torch.random.get_rng_state()
    with accelerate(pipe, calls=50, compiled=False):
        pass
    assert torch.equal(state, torch.random.get_rng_state())


@pytest.mark.parametrize("name", ["calls", "batch", "threads"])
def test_counts_below_one_are_refused(pipe, name):
    with (
        pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"),
        accelerate(pipe, **{"calls": 1, name: 0}),
    ):
        pass


def test_unknown_networks_need_an_example():
    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, sample):
            return (self.layer(sample),)

    with pytest.raises(ValueError, match="pass `example`"), accelerate(Plain(), calls=1):
        pass
    with accelerate(Plain(), calls=1, precision="bfloat16", example={"sample": torch.randn(2, 3)}) as report:
        assert report.dtype == "bfloat16"
    with pytest.raises(ValueError, match="neither"), accelerate("text", calls=1):
        pass


def test_engines_nest_like_brackets():
    layer = nn.Linear(4, 4)
    original, x = layer.weight.data, torch.randn(2, 4)
    with converted(layer, torch.bfloat16, channels_last=False), casting(layer):
        with converted(layer, torch.float64, channels_last=False), casting(layer):
            assert layer(x).dtype == torch.float32
            assert layer.weight.dtype == torch.float64
        assert layer.weight.dtype == torch.bfloat16
    # The very same storage, not a rounded copy of it.
    assert layer.weight.data_ptr() == original.data_ptr()


def test_integers_and_scalars_are_not_cast():
    class Embed(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3, dtype=torch.bfloat16))

        def forward(self, x, index, scale):
            assert x.dtype == torch.bfloat16
            assert index.dtype == torch.int64
            assert scale.dtype == torch.float32
            return {"value": x * scale, "index": index}

    module = Embed()
    with casting(module):
        result = module(torch.ones(3), index=torch.tensor([2**40]), scale=torch.tensor(2.0))
    assert result["value"].dtype == torch.float32
    assert result["index"].item() == 2**40


def test_attributes_set_before_are_restored_as_they_were():
    module = nn.Linear(2, 2)
    module.forward = own = lambda x: x
    with replaced(module, "forward", lambda method: lambda x: method(x) + 1):
        assert module(torch.zeros(1)).item() == 1
    assert module.forward is own


def test_threads_are_put_back():
    before = torch.get_num_threads()
    with limited_threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


# The compiler imports deprecated parts of torch, and warns of harmless caches inside diffusers.
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch", "ignore::FutureWarning:torch")
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning", "ignore:\\s*Dynamo detected a call:UserWarning")
@pytest.mark.slow
def test_compiling_keeps_the_results_and_leaves_no_trace(pipe):
    inputs = example_inputs(pipe.unet, 2)
    with torch.no_grad():
        reference = pipe.unet(**inputs)[0]
        with accelerate(pipe, calls=50, precision="bfloat16", threads=1, compiled=True) as report:
            torch.testing.assert_close(pipe.unet(**inputs)[0], reference, atol=0.05, rtol=0.05)
        assert torch.equal(pipe.unet(**inputs)[0], reference)
    assert any("compiling took" in reason for reason in report.reasons)
    assert pipe.unet._compiled_call_impl is None


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch", "ignore::FutureWarning:torch")
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning", "ignore:\\s*Dynamo detected a call:UserWarning")
@pytest.mark.skipif(not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="oneDNN has no bfloat16 here")
@pytest.mark.slow
def test_compiled_weights_are_packed_and_an_earlier_compilation_comes_back():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.convolution, self.linear = nn.Conv2d(4, 8, 3), nn.Linear(32, 8)

        def forward(self, x):
            return self.linear(self.convolution(x).flatten(1))

    network = Two().bfloat16()
    own = network._compiled_call_impl = lambda x: x
    x = torch.randn(2, 4, 4, 4).bfloat16()
    with torch.no_grad():
        reference = network.forward(x)
        with compiled(network):
            network(x)
            with torch.profiler.profile() as profiled:
                inside = network(x)
    used = {event.key for event in profiled.key_averages()}
    # Convolutions and linear layers of weights that are not constants are aten's.
    assert {"mkldnn::_linear_pointwise", "mkldnn::_convolution_pointwise"} <= used
    assert not {"aten::addmm", "aten::convolution"} & used
    torch.testing.assert_close(inside, reference, atol=0.02, rtol=0.02)
    assert network._compiled_call_impl is own


@pytest.mark.parametrize("gain", [2.0, 1.0])
def test_the_decoder_has_a_choice_of_its_own(pipe, monkeypatch, gain):
    monkeypatch.setattr(engine, "_fast_bfloat16", lambda _: True)
    fast = {(True, "bfloat16"): 1 / gain}
    monkeypatch.setattr(
        engine,
        "_seconds",
        lambda module, inputs, choice, timed=0: fast.get((module is pipe.vae.decoder, choice[0]), 1.0),
    )
    before, latents = bits(pipe.vae), torch.randn(1, 4, 8, 8)
    with torch.no_grad():
        reference = pipe.vae.decode(latents).sample
        with accelerate(pipe, calls=100, compiled=False) as report:
            assert report.dtype == "float32"
            assert pipe.unet.conv_in.weight.dtype == torch.float32
            assert pipe.vae.decoder.conv_in.weight.dtype == (torch.bfloat16 if gain > 1 else torch.float32)
            inside = pipe.vae.decode(latents).sample
    assert ("decoder alone computes in bfloat16, 2.00 times" in str(report)) == (gain > 1)
    assert inside.dtype == torch.float32
    torch.testing.assert_close(inside, reference, atol=0.05, rtol=0.05)
    assert torch.equal(inside, reference) == (gain == 1)
    assert same(before, pipe.vae)
    assert "forward" not in vars(pipe.vae.decoder)


def test_a_network_that_something_is_done_to_is_not_called_blindly(pipe):
    network = pipe.unet
    look = Unchanging(network)
    layer = network.mid_block.attentions[0].transformer_blocks[0].attn1
    assert look()
    with accelerate(pipe, calls=1, precision="bfloat16"):
        assert look(), "the network's own forward casts, and nothing else"
    hook = layer.register_forward_pre_hook(lambda *_: None)
    assert not look()
    hook.remove()
    with replaced(layer, "forward", lambda method: method):
        assert not look()

    class Counting:
        pass

    with replaced(layer, "processor", lambda _: Counting()):
        assert not look()
        assert not Unchanging(network)()
    assert look()
    layer.to_q, linear = nn.Sequential(layer.to_q), layer.to_q
    assert Unchanging(network)(), "containers of torch"
    layer.to_q = type("Ours", (nn.Linear,), {"__module__": "ours"})(4, 4)
    assert not Unchanging(network)()
    layer.to_q = linear


class Short(nn.Module):
    """Where a call takes no time, launching it is all."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.rows = []

    def forward(self, sample, text, scale):
        assert len(text) == len(sample)
        assert scale == 2
        self.rows.append(len(sample))
        return (self.layer(sample),)


def test_only_calls_that_could_be_compiled_are_looked_at_closely():
    given = {"sample": torch.randn(2, 3), "text": torch.randn(2, 4), "scale": 2}
    for calls, rows in ((100, {2}), (10**8, {2, 8})):
        network = Short()
        decision, seconds = engine._decide(
            network, given, calls=calls, precision="keep", compiled=None if calls > 100 else False, threads=1
        )
        assert set(network.rows) == rows
        assert list(seconds) == ["eager float32, 1 thread(s)"]
        assert decision.dtype == "float32"


def test_matrix_units_make_compiling_pay_sooner(monkeypatch):
    facts = dataclasses.replace(environment(), native_bfloat16=True, compiler="a compiler", isa=())
    monkeypatch.setattr(engine, "_seconds", lambda *_: 1.0)
    monkeypatch.setattr(engine, "_once", lambda *_: 1.0)
    for isa, calls, compiles in (((), 100, False), (("amx_bf16",), 100, True), (("amx_bf16",), 20, False)):
        monkeypatch.setattr(engine, "environment", lambda isa=isa: dataclasses.replace(facts, isa=isa))
        decision, _ = engine._decide(Short(), {}, calls=calls, precision="bfloat16", compiled=None, threads=1)
        assert decision.compiled == compiles


@pytest.mark.parametrize(("seconds", "calls", "compiles"), [(0.2, 400, True), (0.2, 250, False), (2.0, 50, False)])
def test_compiling_pays_sooner_for_small_networks_than_for_large(monkeypatch, seconds, calls, compiles):
    facts = dataclasses.replace(environment(), compiler="a compiler", isa=())
    monkeypatch.setattr(engine, "environment", lambda: facts)
    monkeypatch.setattr(engine, "_seconds", lambda *_: seconds)
    monkeypatch.setattr(engine, "_once", lambda *_: seconds)
    decision, _ = engine._decide(Short(), {}, calls=calls, precision="keep", compiled=None, threads=1)
    assert decision.compiled == compiles


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch", "ignore::FutureWarning:torch")
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning", "ignore:\\s*Dynamo detected a call:UserWarning")
@pytest.mark.slow
def test_compiled_sampling_meets_other_batches_and_other_networks(pipe):
    other = tiny_sd()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in other.unet.parameters():
            weight += 0.1 * weight.std(correction=0) * torch.randn(weight.shape, generator=generator)
    prompts = ["a red cube", "a blue ball", "a red cube"]
    eager = [Sampler(p, steps=3)(prompts[:count]) for p, count in ((pipe, 2), (pipe, 3), (other, 2), (pipe, 2))]
    engine = {"pictures": 2, "batch_size": 2, "precision": "float32", "threads": 1, "compiled": True}
    with fast_sampler(pipe, steps=3, **engine) as first, fast_sampler(other, steps=3, **engine) as second:
        made = [first(prompts[:2]), first(prompts), second(prompts[:2]), first(prompts[:2])]
    for ours, theirs in zip(made, eager, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-3)
    assert not torch.allclose(made[0], made[2], atol=1e-2)


def test_slow_networks_are_timed_once_however_long_the_run(monkeypatch):
    calls = []
    monkeypatch.setattr(engine, "_once", lambda *_: calls.append(1) or 2.0)
    engine._decide(Short(), {}, calls=10**6, precision="float32", compiled=False, threads=1)
    assert len(calls) == 1 + 2, "one to know how long, one to warm up, one that counts"


def test_a_compilation_that_fails_is_given_up_unless_it_was_demanded(monkeypatch):
    @contextmanager
    def broken(network, **_):
        network._compiled_call_impl = refuse
        try:
            yield
        finally:
            network._compiled_call_impl = None

    def refuse(*_, **__):
        raise RuntimeError("no such header\nand much more")

    facts = dataclasses.replace(environment(), compiler="a compiler")
    monkeypatch.setattr(engine, "environment", lambda: facts)
    monkeypatch.setattr(engine.compiling, "compiled", broken)
    network, given = Short(), {"sample": torch.randn(2, 3), "text": torch.randn(2, 4), "scale": 2}
    chosen = {"calls": 10**9, "precision": "keep", "threads": 1, "example": given}
    with accelerate(network, **chosen) as report:
        assert torch.equal(network(**given)[0], network.layer(given["sample"]))
    assert not report.compiled
    assert report.reasons[-1] == "compiling failed (RuntimeError: no such header): back to eager"
    with pytest.raises(RuntimeError, match="no such header"), accelerate(network, compiled=True, **chosen):
        pass
    assert network._compiled_call_impl is None
