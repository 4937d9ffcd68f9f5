"""Laws of quantised folders: what is loaded is what was saved, bit for bit, in the bytes stated; nothing is trusted."""

import copy
import json
import shutil

import pytest
import torch
from diffusers import DDIMScheduler, DiTPipeline, DiTTransformer2DModel
from torch import nn

import mezzotint
from mezzotint.files import FileError, read_safetensors, write_safetensors
from mezzotint.loading import COMPONENT, model_hash
from mezzotint.methods.q_dit.groups import largest_group
from mezzotint.methods.q_dit.linear import QuantLinear
from mezzotint.methods.q_dit.packing import stored_bytes
from mezzotint.methods.q_dit.quantiser import LayerSpec, Precision, quantise, ranges_to_grid
from mezzotint.methods.q_dit.saving import TENSORS, read_component, save_quantised
from mezzotint.methods.q_dit.size import disk_bytes, quantised_layers, size_report
from tests.methods.conftest import tiny_vae

LEAVES = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2")


def spec_of(layer, bits, symmetric, **options):
    return LayerSpec(
        Precision(bits, symmetric), Precision(8, symmetric), largest_group(layer.in_features, 16), **options
    )


def quantised(network, *, bits=4, symmetric=False, executor="auto"):
    """A copy with its attention and feed-forward layers quantised, adaLN weight-only, one static, one divided."""
    network = copy.deepcopy(network)
    for name, layer in list(network.named_modules()):
        if isinstance(layer, nn.Linear) and name.endswith((*LEAVES, "norm1.linear")):
            spec = spec_of(layer, bits, symmetric)
            options = {}
            if name.endswith("norm1.linear"):
                spec = LayerSpec(spec.weight, Precision(16), spec.group)
            elif name.endswith("0.attn1.to_out.0"):
                spec = spec_of(layer, bits, symmetric, act_range="static")
                groups = layer.in_features // spec.group
                options["static_grid"] = ranges_to_grid(-torch.ones(groups), torch.ones(groups), spec.activation)
            elif name.endswith("0.ff.net.2"):
                options["input_scale"] = torch.linspace(0.5, 2, layer.in_features)
            codes = quantise(layer.weight.detach(), spec.weight, spec.group)
            network.set_submodule(name, QuantLinear.from_codes(codes, layer.bias, spec, executor=executor, **options))
    return network


@pytest.fixture(scope="module")
def network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        found = DiTTransformer2DModel(
            num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=8, num_layers=2, sample_size=8,
            patch_size=2, num_embeds_ada_norm=1000, norm_num_groups=4,
        ).eval()  # fmt: skip
    for parameter in found.transformer_blocks[0].parameters():
        parameter.data.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    return found


def call(network, dtype=torch.float32):
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(2)).to(dtype)
    with torch.no_grad():
        return network(x, timestep=torch.tensor([7, 900]), class_labels=torch.tensor([1, 5]))[0]


def pipeline(transformer):
    pipe = DiTPipeline(transformer, tiny_vae(), DDIMScheduler(clip_sample=False))
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def saved(network, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "pipe"
    save_quantised(pipeline(quantised(network)), folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    """A copy that a test may spoil."""
    return shutil.copytree(saved, tmp_path / "pipe")


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_what_is_loaded_gives_the_same_bits(network, bits, symmetric, tmp_path):
    made = quantised(network, bits=bits, symmetric=symmetric)
    save_quantised(pipeline(made), tmp_path / "pipe")
    pipe = mezzotint.load(tmp_path / "pipe")
    assert type(pipe) is DiTPipeline
    assert not pipe.transformer.training
    assert torch.equal(call(pipe.transformer), call(made))
    theirs = made.state_dict()
    for name, tensor in pipe.transformer.state_dict().items():
        assert torch.equal(tensor, theirs[name]), name
    for name, layer in quantised_layers(made).items():
        assert quantised_layers(pipe.transformer)[name].spec == layer.spec, name


def test_a_loaded_pipeline_makes_pictures(network, saved):
    ours, theirs = mezzotint.load(saved), pipeline(quantised(network))
    ours.set_progress_bar_config(disable=True)
    pictures = [
        pipe([3], num_inference_steps=2, generator=torch.Generator().manual_seed(0), output_type="np").images
        for pipe in (ours, theirs)
    ]
    assert (pictures[0] == pictures[1]).all()


@pytest.mark.parametrize("executor", ["simulate", "integer", "fused", "fast"])
def test_the_executor_is_kept(network, executor, tmp_path):
    made = quantised(network, executor=executor)
    save_quantised(made, tmp_path / "network")
    back = read_component(tmp_path / "network")
    assert {layer.executor for layer in quantised_layers(back).values()} == {executor}
    assert torch.equal(call(back), call(made))


def test_loading_for_another_dtype_casts_what_is_not_quantised(saved):
    pipe = mezzotint.load(saved, dtype="bfloat16")
    exact = mezzotint.load(saved).transformer
    assert {parameter.dtype for parameter in pipe.transformer.parameters()} == {torch.bfloat16}
    for name, layer in quantised_layers(pipe.transformer).items():
        assert torch.equal(layer.dequantised_weight(), quantised_layers(exact)[name].dequantised_weight())
    out = call(pipe.transformer, torch.bfloat16)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), call(exact), rtol=0.1, atol=0.1)


def test_the_query_layers_share_their_input_after_loading(saved):
    attention = mezzotint.load(saved).transformer.transformer_blocks[1].attn1
    assert attention.to_q._shared[0] is attention.to_k._shared[0] is attention.to_v._shared[0]


class TestSizes:
    @pytest.mark.parametrize("symmetric", [False, True])
    @pytest.mark.parametrize("bits", [4, 6, 8])
    def test_the_file_holds_the_bytes_of_the_formula(self, network, bits, symmetric, tmp_path):
        made = quantised(network, bits=bits, symmetric=symmetric)
        report = save_quantised(made, tmp_path / "network")[""]
        layers = quantised_layers(made).values()
        wanted = sum(
            stored_bytes(layer.out_features, layer.in_features, layer.spec.group, layer.spec.weight) for layer in layers
        )
        assert report.formula == report.weights == wanted
        path = tmp_path / "network" / TENSORS
        header = 8 + int.from_bytes(path.read_bytes()[:8], "little")
        assert path.stat().st_size - header == report.weights + report.others
        assert report.disk == disk_bytes(tmp_path / "network") > path.stat().st_size

    def test_half_precision_halves_the_rest(self, network, tmp_path):
        made = quantised(network)
        whole, half = (
            save_quantised(made, tmp_path / name, dtype=dtype)[""]
            for name, dtype in (("a", None), ("b", torch.float16))
        )
        exact = sum(
            t.numel() * t.element_size() for n, t in made.state_dict().items() if "static" in n or "input_" in n
        )
        assert whole.disk - half.disk == pytest.approx((whole.others - exact) / 2, abs=2000)
        assert torch.equal(
            quantised_layers(read_component(tmp_path / "b"))["transformer_blocks.0.attn1.to_q"].dequantised_weight(),
            quantised_layers(made)["transformer_blocks.0.attn1.to_q"].dequantised_weight(),
        )

    def test_what_blocks_repeat_is_stored_and_held_once(self, network, tmp_path):
        repeating = quantised(network)
        repeating.transformer_blocks[1].norm1.emb.load_state_dict(
            repeating.transformer_blocks[0].norm1.emb.state_dict()
        )
        table = repeating.transformer_blocks[0].norm1.emb.class_embedder.embedding_table.weight
        different = save_quantised(quantised(network), tmp_path / "different")[""]
        save_quantised(repeating, tmp_path / "same")
        assert different.disk - disk_bytes(tmp_path / "same") > 3.9 * table.numel()
        back = read_component(tmp_path / "same").to(torch.bfloat16)
        assert back.transformer_blocks[0].norm1.emb.class_embedder.embedding_table.weight is (
            back.transformer_blocks[1].norm1.emb.class_embedder.embedding_table.weight
        )
        assert torch.equal(call(read_component(tmp_path / "same")), call(repeating))
        ours, theirs = size_report(back), size_report(repeating)
        assert ours.half == theirs.half == theirs.half_once
        assert ours.half - ours.half_once == 2 * table.numel()

    def test_residence_grows_by_what_executors_make(self, network):
        made = quantised(network, executor="simulate")
        before = size_report(made)
        assert before.resident == before.weights + before.others
        call(made)
        dense = sum(layer.in_features * layer.out_features for layer in quantised_layers(made).values())
        assert size_report(made).resident == before.resident + 4 * dense


class TestTheFolder:
    def test_it_names_no_folder_of_this_machine(self, network, tmp_path):
        pipe = pipeline(quantised(network))
        pipe.save_config(tmp_path / "source")
        pipe.register_to_config(_name_or_path=str(tmp_path / "source"))
        pipe.transformer.register_to_config(_name_or_path=str(tmp_path / "source"))
        (tmp_path / "source" / "metrics.json").write_text('{"recommended": {"guidance_scale": 2.5}, "machine": "mine"}')
        save_quantised(pipe, tmp_path / "pipe")
        for path in (tmp_path / "pipe").rglob("*.json"):
            assert str(tmp_path) not in path.read_text(), path
        sidecar = json.loads((tmp_path / "pipe" / "transformer" / COMPONENT).read_text())
        assert sidecar["source"] == model_hash(tmp_path / "source")
        assert mezzotint.loading.recommended(mezzotint.load(tmp_path / "pipe"), "guidance_scale") == 2.5

    def test_nothing_is_written_where_nothing_is_quantised(self, network, tmp_path):
        with pytest.raises(ValueError, match="nothing in this DiTPipeline is quantised"):
            save_quantised(pipeline(network), tmp_path / "pipe")
        assert list(tmp_path.iterdir()) == []

    def test_a_folder_that_stands_there_is_left_alone(self, network, folder):
        before = disk_bytes(folder)
        with pytest.raises(FileExistsError):
            save_quantised(pipeline(quantised(network)), folder)
        assert disk_bytes(folder) == before
        save_quantised(pipeline(quantised(network, bits=8)), folder, replace=True)
        assert disk_bytes(folder) > before


def edit(folder, change):
    path = folder / "transformer" / COMPONENT
    sidecar = json.loads(path.read_text())
    change(sidecar)
    path.write_text(json.dumps(sidecar))


NAME = "transformer_blocks.1.attn1.to_q"


def on_layer(**entries):
    return lambda sidecar: sidecar["layers"][NAME].update(entries)


class TestUnsoundFolders:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda s: s.update(format=2), "of format 1"),
            (lambda s: s.update(extra=1), "of format 1"),
            (lambda s: s.update(method="os"), "needs the method 'os', which is not installed"),
            (lambda s: s.update(method=["q_dit"]), "which is not installed"),
            (lambda s: s.update({"class": "DiTPipeline"}), "no model class of diffusers"),
            (lambda s: s.update({"class": "__builtins__"}), "no model class of diffusers"),
            (lambda s: s.update(layers=[]), "unsound entry 'layers'"),
            (lambda s: s["layers"].update({"pos_embed.proj": s["layers"][NAME]}), "which is no linear layer"),
            (lambda s: s["layers"].update({"nowhere": s["layers"][NAME]}), "which is no linear layer"),
            (lambda s: s["layers"].pop(NAME), "lacks 'transformer_blocks.1.attn1.to_q.weight'|unknown tensor"),
            (lambda s: s["same"].update(a="b"), "which cannot be"),
            (on_layer(in_features=64), "gives layer 'transformer_blocks.1.attn1.to_q' the shape"),
            (on_layer(out_features=2**40), "gives layer 'transformer_blocks.1.attn1.to_q' the shape"),
            (on_layer(bias=False), "the shape"),
            (on_layer(bias=1), "in a form that is not known"),
            (on_layer(executor="rm"), "in a form that is not known"),
            (on_layer(group=7), "group must divide the 32 input channels"),
            (on_layer(group=0), "group must be at least 1"),
            (on_layer(weight={"bits": 7, "symmetric": False}), "bits must be one of"),
            (on_layer(weight={"bits": 16, "symmetric": False}), "16 bits"),
            (on_layer(weight={"bits": 8, "symmetric": False}), "the shape"),
            (on_layer(weight={"bits": 4, "symmetric": False, "x": 1}), "describes layer"),
            (on_layer(act_scope="row"), "act_scope"),
            (on_layer(input_scale=True), "lacks 'transformer_blocks.1.attn1.to_q.input_scale'"),
        ],
    )
    def test_a_sidecar_that_does_not_fit_is_refused(self, folder, change, message):
        edit(folder, change)
        with pytest.raises(FileError, match=message):
            mezzotint.load(folder)

    @pytest.mark.parametrize(
        ("name", "value", "message"),
        [
            (f"{NAME}.packed", torch.zeros(3, 3, dtype=torch.uint8), "the shape"),
            (f"{NAME}.packed", torch.zeros(32, 16, dtype=torch.int8), "the type torch.int8"),
            (f"{NAME}.scale", torch.ones(32, 2, dtype=torch.float16), "the type torch.float16"),
            (f"{NAME}.scale", torch.full((32, 2), torch.nan), "not finite"),
            (f"{NAME}.bias", torch.zeros(32, dtype=torch.int32), "the type torch.int32"),
            ("other", torch.zeros(1), "unknown tensor 'other'"),
            (f"{NAME}.zero", None, f"lacks '{NAME}.zero'"),
        ],
    )
    def test_tensors_that_do_not_fit_are_refused(self, folder, name, value, message):
        path = folder / "transformer" / TENSORS
        tensors = read_safetensors(path)
        tensors.pop(name, None)
        write_safetensors(path, tensors if value is None else tensors | {name: value})
        with pytest.raises(FileError, match=message):
            mezzotint.load(folder)

    @pytest.mark.parametrize("name", [TENSORS, COMPONENT, "config.json"])
    def test_a_file_that_is_cut_off_or_missing_is_refused(self, folder, name):
        path = folder / "transformer" / name
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(FileError):
            mezzotint.load(folder)
        path.unlink()
        with pytest.raises((FileError, OSError)):
            mezzotint.load(folder)
