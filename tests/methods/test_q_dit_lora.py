"""Laws of adapters on quantised layers: Q(x) + (alpha / rank) B A x exactly, by stock diffusers, gone without trace."""

import pytest
import torch
from peft.tuners.lora import LoraLayer

import mezzotint
from mezzotint.methods import q_dit
from mezzotint.methods.q_dit.linear import QuantLinear
from mezzotint.methods.q_dit.quantiser import Precision
from mezzotint.methods.q_dit.size import quantised_layers
from mezzotint.runtime import accelerate
from mezzotint.training import lora
from tests.methods.conftest import sd15_shaped

TARGETS = ("attn1.to_q", "attn1.to_v", "attn2.to_k", "ff.net.2", "conv_in")
NEAR = 0.06
"""What 8 bits of layers that are 8 wide may cost; the adapter itself moves the output by more than 0.3."""


def call(pipe):
    generator = torch.Generator().manual_seed(0)
    x, text = torch.randn(3, 4, 8, 8, generator=generator), torch.randn(3, 77, 768, generator=generator)
    with torch.no_grad():
        return pipe.unet(x, torch.tensor([3, 500, 999]), encoder_hidden_states=text)[0]


def apart(one, other):
    return float((one - other).norm() / other.norm())


def strong_adapter(unet, name="default", seed=0):
    """An adapter that visibly changes the network: a new one is zero."""
    made = lora.add(unet, rank=2, alpha=3.0, targets=TARGETS, name=name, seed=seed)
    for key, value in made.items():
        if "lora_B" in key:
            value.data = 0.2 * torch.randn(value.shape, generator=torch.Generator().manual_seed(len(key) + seed))
    return made


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A quantised pipeline's folder, two LoRA files, and the float model's output without and with the first."""
    folder = tmp_path_factory.mktemp("adapters")
    with torch.random.fork_rng():
        pipe = sd15_shaped()
    pipe.set_progress_bar_config(disable=True)
    q_dit.quantise(pipe, weights=8, group="auto", rounding="rtn").save(folder / "small")
    plain = call(pipe)
    strong_adapter(pipe.unet)
    adapted = call(pipe)
    lora.save(folder / "lora", {"unet": pipe.unet})
    lora.remove(pipe.unet)
    strong_adapter(pipe.unet, seed=7)
    lora.save(folder / "other", {"unet": pipe.unet})
    return folder, plain, adapted


@pytest.fixture
def pipe(files):
    return mezzotint.load(files[0] / "small")


def wrapped(pipe):
    layers = {name: part for name, part in pipe.unet.named_modules() if isinstance(part, LoraLayer)}
    return {name: part for name, part in layers.items() if isinstance(part.get_base_layer(), QuantLinear)}


def test_stock_diffusers_puts_a_lora_on_a_quantised_folder(files, pipe):
    folder, plain, adapted = files
    small = call(pipe)
    pipe.load_lora_weights(folder / "lora")
    made = call(pipe)
    assert len(wrapped(pipe)) > 20
    assert apart(adapted, plain) > 5 * NEAR
    assert apart(made, adapted) < NEAR
    assert apart(made, small) > 5 * apart(made, adapted), "the adapter is on, not only near"


def test_every_layer_adds_exactly_its_low_rank_product(files, pipe):
    pipe.load_lora_weights(files[0] / "lora", adapter_name="one")
    for name, layer in wrapped(pipe).items():
        x = torch.randn(2, 5, layer.in_features, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            low_rank = layer.lora_B["one"](layer.lora_A["one"](x)) * layer.scaling["one"]
            assert torch.equal(layer(x), layer.get_base_layer()(x) + low_rank), name
            assert layer.scaling["one"] == 1.5
            assert low_rank.abs().max() > 0


@pytest.mark.parametrize("executor", ["simulate", "integer", "fused"])
def test_every_executor_takes_adapters(files, executor):
    pipe = mezzotint.load(files[0] / "small")
    for layer in quantised_layers(pipe.unet).values():
        layer.executor = executor
    pipe.load_lora_weights(files[0] / "lora")
    assert apart(call(pipe), files[2]) < NEAR
    assert {layer.get_base_layer().running() for layer in wrapped(pipe).values()} == {executor}


def test_unloading_leaves_no_trace(files, pipe):
    before, state = call(pipe), pipe.unet.state_dict()
    pipe.load_lora_weights(files[0] / "lora")
    assert not torch.equal(call(pipe), before)
    pipe.unload_lora_weights()
    assert not wrapped(pipe)
    assert torch.equal(call(pipe), before)
    after = pipe.unet.state_dict()
    assert after.keys() == state.keys()
    assert all(torch.equal(after[name], state[name]) for name in state)
    pipe.load_lora_weights(files[0] / "lora")
    assert apart(call(pipe), files[2]) < NEAR, "and a second time"


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`:UserWarning")
def test_adapters_are_weighted_and_switched(files, pipe):
    plain = call(pipe)
    pipe.load_lora_weights(files[0] / "lora", adapter_name="one")
    alone = call(pipe)
    pipe.load_lora_weights(files[0] / "other", adapter_name="two")
    pipe.set_adapters(["one", "two"], [1.0, 0.0])
    assert torch.equal(call(pipe), alone)
    pipe.set_adapters(["one", "two"], [0.0, 1.0])
    assert apart(call(pipe), alone) > 0.05
    pipe.disable_lora()
    assert torch.equal(call(pipe), plain)


def test_our_own_loader_does_the_same(files, pipe):
    lora.load(files[0] / "lora", {"unet": pipe.unet})
    ours = call(pipe)
    lora.remove(pipe.unet)
    pipe.load_lora_weights(files[0] / "lora")
    assert torch.equal(ours, call(pipe))


def test_four_bits_stay_packed_under_an_adapter(files):
    with torch.random.fork_rng():
        pipe = sd15_shaped()
    pipe = q_dit.quantise(pipe, weights=4, group="auto", rounding="rtn").pipe
    without = call(pipe)
    pipe.load_lora_weights(files[0] / "lora")
    for layer in wrapped(pipe).values():
        base = layer.get_base_layer()
        assert base.spec.weight == Precision(4)
        assert base.packed.dtype == torch.uint8
        assert not any(key.endswith("base_layer.weight") for key in layer.state_dict())
    assert 0.001 < apart(call(pipe), files[2]) < 0.5 * apart(without, files[2])


def test_a_faster_engine_leaves_scales_and_integers_exact(files, pipe):
    before, scales = call(pipe), {name: layer.scale.clone() for name, layer in quantised_layers(pipe.unet).items()}
    with accelerate(pipe, calls=1, precision="bfloat16", threads=1):
        assert pipe.unet.conv_in.weight.dtype == torch.bfloat16
        for name, layer in quantised_layers(pipe.unet).items():
            assert torch.equal(layer.scale, scales[name]), name
        assert 0 < apart(call(pipe), before) < 0.05
    assert torch.equal(call(pipe), before)


class TestRefused:
    def test_fusing_into_integers(self, files, pipe):
        pipe.load_lora_weights(files[0] / "lora")
        with pytest.raises(ValueError, match="cannot be fused into quantised weights"):
            pipe.fuse_lora(components=["unet"])

    def test_saving_with_an_adapter_on(self, files, pipe, tmp_path):
        pipe.load_lora_weights(files[0] / "lora")
        with pytest.raises(ValueError, match="belongs to a LoRA: unload it first"):
            q_dit.Quantised(pipe, ()).save(tmp_path / "again")
        assert not (tmp_path / "again").exists()
