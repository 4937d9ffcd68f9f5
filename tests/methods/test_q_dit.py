"""The method as a whole: what is quantised, what stays, what is refused, on real architectures at tiny size."""

import hashlib

import pytest
import torch
from diffusers import FluxTransformer2DModel, SD3Transformer2DModel

import mezzotint
from mezzotint import q_dit
from mezzotint.methods.q_dit.apply import clone, quantise_network
from mezzotint.methods.q_dit.blocks import Chain
from mezzotint.methods.q_dit.calibration import Calibration
from mezzotint.methods.q_dit.layers import find_targets
from mezzotint.methods.q_dit.linear import QuantLinear
from mezzotint.methods.q_dit.quantiser import Precision
from mezzotint.methods.q_dit.recipe import Recipe, named_recipes
from tests.diffusion.conftest import tiny_dit, tiny_dit_pipe, tiny_pixart, tiny_sd, tiny_unet

RTN = Recipe(Precision(4), Precision(8), group=8, method="rtn")
GPTQ = Recipe(Precision(4), Precision(8), group=8, method="gptq")
SIMULATE = {"executor": "simulate"}
QUICK = {"samples": 4, "steps": 3, "guidance": 1.0, "batch_size": 2, "group": 8, **SIMULATE}


def digest(module):
    content = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        content.update(name.encode() + tensor.numpy().tobytes())
    return content.hexdigest()


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def dit_inputs(count=8):
    return Calibration.of(
        hidden_states=noise(count, 4, 8, 8),
        timestep=torch.linspace(1, 990, count).long(),
        class_labels=torch.arange(count) % 10,
    )


def sd3():
    torch.manual_seed(0)
    model = SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=16, caption_projection_dim=16, pooled_projection_dim=16, out_channels=4,
        pos_embed_max_size=8,
    ).eval()  # fmt: skip
    return model, Calibration.of(
        hidden_states=noise(3, 4, 8, 8), encoder_hidden_states=noise(3, 5, 16), pooled_projections=noise(3, 16),
        timestep=torch.tensor([10.0, 500, 900]),
    )  # fmt: skip


def flux():
    torch.manual_seed(0)
    model = FluxTransformer2DModel(
        patch_size=1, in_channels=8, num_layers=1, num_single_layers=1, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=16, pooled_projection_dim=16, axes_dims_rope=(2, 2, 4),
    ).eval()  # fmt: skip
    ids = {"img_ids": torch.zeros(6, 3), "txt_ids": torch.zeros(5, 3)}
    return model, Calibration.of(
        ids, hidden_states=noise(3, 6, 8), encoder_hidden_states=noise(3, 5, 16), pooled_projections=noise(3, 16),
        timestep=torch.tensor([0.1, 0.5, 0.9]),
    )  # fmt: skip


def unet():
    return tiny_unet(), Calibration.of(
        sample=noise(3, 4, 8, 8), timestep=torch.tensor([10, 500, 900]), encoder_hidden_states=noise(3, 5, 16)
    )


def pixart():
    return tiny_pixart(), Calibration.of(
        {"added_cond_kwargs": {"resolution": None, "aspect_ratio": None}},
        hidden_states=noise(3, 4, 8, 8), timestep=torch.tensor([10, 500, 900]), encoder_hidden_states=noise(3, 5, 16),
    )  # fmt: skip


ARCHITECTURES = {"dit": lambda: (tiny_dit(), dit_inputs()), "pixart": pixart, "sd3": sd3, "flux": flux, "unet": unet}


@torch.no_grad()
def outputs(network, inputs):
    return network(**inputs.arguments())[0]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_is_quantised_block_by_block_and_stays_near(name):
    network, inputs = ARCHITECTURES[name]()
    before, exact = digest(network), outputs(network, inputs)
    errors = {}
    for bits in (8, 3):
        recipe = Recipe(Precision(bits), Precision(8), group=8, method="gptq")
        made, report = quantise_network(network, recipe, calibration=inputs, **SIMULATE)
        errors[bits] = (outputs(made, inputs) - exact).norm() / exact.norm()
        assert len(report) == sum(isinstance(m, QuantLinear) for m in made.modules()) == len(find_targets(network))
        assert all(layer.output_error is not None for layer in report)
    assert 0 < errors[8] < 0.03
    assert errors[8] < errors[3]
    assert digest(network) == before
    assert not any(parameter.requires_grad for parameter in made.parameters())


def test_which_layers_of_a_dit_are_quantised_and_how():
    network, roles = tiny_dit(), {}
    made, _ = quantise_network(network, RTN, **SIMULATE)
    for name, module in made.named_modules():
        if isinstance(module, QuantLinear):
            roles[name.split(".", 2)[2]] = module.spec.activation.bits
    inputs = {"attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0", "ff.net.0.proj", "ff.net.2"}
    assert roles == {**dict.fromkeys(inputs, 8), "norm1.linear": 16}
    kept = [n for n, m in made.named_modules() if isinstance(m, torch.nn.Linear)]
    assert all(".emb." in name or name.startswith("proj_out") for name in kept)
    plain, _ = quantise_network(network, Recipe(RTN.weights, group=8, method="rtn", modulation=False), **SIMULATE)
    assert isinstance(plain.transformer_blocks[0].norm1.linear, torch.nn.Linear)


def test_flux_and_sd3_have_their_modulation_weight_only():
    for network, _ in (sd3(), flux()):
        found = find_targets(network)
        assert {t.name.rpartition(".")[2] for t in found if t.modulation} == {"linear"}
        assert not any("embed" in t.name for t in found)
        assert {t.name.split(".")[0] for t in found} <= {"transformer_blocks", "single_transformer_blocks"}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_walking_the_blocks_gives_each_what_the_network_gives_it(name):
    """The short cut through the blocks sees bit-identical inputs; only networks that allow it take it."""
    network, inputs = ARCHITECTURES[name]()
    blocks = [target.block for target in find_targets(network)]
    chain = Chain(network, blocks, inputs, batch_size=len(inputs))
    assert bool(chain._linked) == (name in {"dit", "pixart"})
    assert set(chain.order) == set(blocks)
    walked, whole = {}, {}
    for block, run in chain:
        module = network.get_submodule(block)
        handle = module.register_forward_pre_hook(lambda _, a, k, b=block: walked.update({b: a or k}), with_kwargs=True)
        run()
        handle.remove()
    for block in chain.order:
        module = network.get_submodule(block)
        module.register_forward_pre_hook(lambda _, a, k, b=block: whole.update({b: a or k}), with_kwargs=True)
    outputs(network, inputs)
    for block in chain.order:
        first, second = (
            next(iter(seen[block].values())) if isinstance(seen[block], dict) else seen[block][0]
            for seen in (walked, whole)
        )
        assert torch.equal(first, second)


def test_blocks_are_calibrated_behind_quantised_blocks():
    """The second block's weights depend on what the first one was rounded to, and the first one's on nothing else."""
    network, inputs = tiny_dit(), dit_inputs()
    first = [t.name for t in find_targets(network) if t.block.endswith(".0")]
    last = [t.name for t in find_targets(network) if t.block.endswith(".1")]
    both, _ = quantise_network(network, GPTQ, calibration=inputs, **SIMULATE)
    alone, _ = quantise_network(network, GPTQ, calibration=inputs, layers=last, **SIMULATE)

    def codes(made, names):
        return torch.cat([made.get_submodule(name).dequantised_weight().flatten() for name in names])

    only_first, _ = quantise_network(network, GPTQ, calibration=inputs, layers=first, **SIMULATE)
    assert torch.equal(codes(both, first), codes(only_first, first))
    assert not torch.equal(codes(both, last), codes(alone, last))


def test_gptq_and_smaller_groups_lower_the_error_of_layers():
    network, inputs = tiny_dit(), dit_inputs(32)

    def error(recipe):
        _, report = quantise_network(network, recipe, calibration=inputs, **SIMULATE)
        return sum(layer.output_error for layer in report)

    assert error(GPTQ) < error(RTN)
    assert error(RTN) < error(Recipe(Precision(4), Precision(8), group=16, method="rtn"))


def test_smoothing_and_every_named_baseline_run_and_smoothing_is_divided_at_run_time():
    network, inputs = tiny_dit(), dit_inputs()
    exact = outputs(network, inputs)
    for name, recipe in named_recipes(8, 8, group=8).items():
        made, _ = quantise_network(network, recipe, calibration=inputs, **SIMULATE)
        assert (outputs(made, inputs) - exact).norm() / exact.norm() < 0.05, name
        assert (made.transformer_blocks[0].ff.net[2].input_scale is not None) == (name == "SmoothQuant")


def test_the_door_gives_a_pipeline_and_leaves_the_given_one_alone():
    pipe = tiny_dit_pipe()
    before = digest(pipe.transformer)
    made = q_dit.quantise(pipe, prompts=(1, 2), **QUICK)
    assert digest(pipe.transformer) == before
    assert made.pipe is not pipe
    assert made.pipe.vae is pipe.vae
    assert made.pipe.scheduler is not pipe.scheduler
    assert isinstance(made.pipe.transformer.transformer_blocks[0].ff.net[2], QuantLinear)
    assert not any(isinstance(m, QuantLinear) for m in pipe.transformer.modules())
    assert made.bytes < made.bytes_before
    facts = made.to_json()
    assert facts["layers"] == len(facts["report"]) == 14
    assert all(layer["output_error"] < 0.5 for layer in facts["report"])


def test_a_saved_pipeline_comes_back_and_computes_the_same(tmp_path):
    made = q_dit.quantise(tiny_dit_pipe(), rounding="rtn", group=8, **SIMULATE)
    assert made.save(tmp_path / "small") == tmp_path / "small"
    again = mezzotint.load(tmp_path / "small")
    assert torch.equal(outputs(again.transformer, dit_inputs()), outputs(made.pipe.transformer, dit_inputs()))


def test_a_quantised_network_is_deterministic_without_gradients_and_in_evaluation_mode():
    made = q_dit.quantise(tiny_dit_pipe(), rounding="rtn", group=8, **SIMULATE).pipe.transformer
    inputs = dit_inputs()
    assert not made.training
    assert torch.equal(outputs(made, inputs), outputs(made, inputs))
    assert not made(**inputs.arguments())[0].requires_grad


def test_the_same_seed_gives_the_same_codes():
    made = [q_dit.quantise(tiny_dit_pipe(), prompts=(1, 2), seed=s, **QUICK).pipe.transformer for s in (0, 0, 1)]
    states = [digest(network) for network in made]
    assert states[0] == states[1] != states[2]


def test_search_gives_every_shared_input_a_size_and_reports_it():
    search = {"group": "search", "space": (4, 8, 16), "generations": 1, "population": 4, "pictures": 2}
    search["budget_group"] = 8
    made = q_dit.quantise(tiny_dit_pipe(), prompts=(1, 2), **{**QUICK, **search})
    sizes = {layer.name: layer.group for layer in made.report}
    assert len({sizes[f"transformer_blocks.0.attn1.to_{part}"] for part in "qkv"}) == 1
    assert made.facts["evaluations"] == 8


def test_a_text_pipeline_with_a_unet_is_quantised_too():
    pipe = tiny_sd()
    made = q_dit.quantise(pipe, prompts=("a red cube",), **{**QUICK, "samples": 2, "guidance": 2.0})
    assert made.pipe.unet is not pipe.unet
    assert any(isinstance(m, QuantLinear) for m in made.pipe.unet.modules())


def test_bytes_on_disk_and_in_memory_are_told_apart():
    pipe = tiny_dit_pipe()
    for executor, more in (("fused", 0.3), ("integer", 1.0), ("simulate", 4.0)):
        made = q_dit.quantise(pipe, rounding="rtn", **QUICK | {"executor": executor})
        layers = [module for module in made.pipe.transformer.modules() if isinstance(module, QuantLinear)]
        told = made.resident_bytes
        weights = sum(layer.in_features * layer.out_features for layer in layers)
        assert made.bytes == sum(layer.held_bytes() for layer in layers)
        assert made.to_json()["resident_bytes"] == told >= made.bytes + more * weights * (executor != "fused")
        outputs(made.pipe.transformer, dit_inputs(2))
        assert sum(layer.resident_bytes() for layer in layers) == told


@pytest.mark.parametrize("make", [sd3, flux, unet])
def test_fused_projections_are_quantised_in_the_place_of_what_they_stand_for(make):
    network, inputs = make()
    before = outputs(network, inputs)
    network.fuse_qkv_projections()
    names = {target.name.rpartition(".")[2] for target in find_targets(network)}
    assert "to_qkv" in names
    recipe = Recipe(Precision(8), Precision(8), group=8, method="gptq")
    made, _ = quantise_network(network, recipe, calibration=inputs, **SIMULATE)
    assert (outputs(made, inputs) - before).norm() < 0.1 * before.norm()


def test_a_text_pipeline_without_prompts_is_warned_of():
    with pytest.warns(UserWarning, match="calibrating on the empty prompt"):
        q_dit.quantise(tiny_sd(), **QUICK)


def test_what_cannot_be_quantised_is_refused_before_any_work():
    pipe = tiny_dit_pipe()
    network = pipe.transformer
    with pytest.raises(ValueError, match=r"layer 'transformer_blocks.0.attn1.to_q', got 5; legal values: 16"):
        q_dit.quantise(pipe, group=5)
    with pytest.raises(ValueError, match="samples must be at least 1, got 0"):
        q_dit.quantise(pipe, samples=0)
    with pytest.raises(ValueError, match=r"only nn.Linear can be quantised, but 'pos_embed.proj' is a Conv2d"):
        q_dit.quantise(pipe, layers=("pos_embed.proj",), **QUICK)
    with pytest.raises(ValueError, match="there is no layer 'nothing'"):
        q_dit.quantise(pipe, layers=("nothing",), **QUICK)
    done = q_dit.quantise(pipe, rounding="rtn", group=8, **SIMULATE).pipe
    with pytest.raises(ValueError, match="is quantised already"):
        q_dit.quantise(done, group=8)
    with pytest.raises(ValueError, match="a bare network cannot be sampled from"):
        q_dit.quantise(network, group=8)
    with pytest.raises(ValueError, match="needs calibration data"):
        quantise_network(network, GPTQ)
    with pytest.raises(ValueError, match="training mode"):
        quantise_network(clone(network).train(), RTN)
    with pytest.raises(ValueError, match="need a pipeline"):
        q_dit.quantise(object())


def test_weights_and_inputs_that_are_not_finite_are_refused():
    network = tiny_dit()
    broken = clone(network)
    with torch.no_grad():
        broken.transformer_blocks[1].attn1.to_k.weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"weight of layer 'transformer_blocks.1.attn1.to_k' must be finite"):
        quantise_network(broken, RTN, **SIMULATE)
    inputs = dit_inputs(2)
    inputs.items.extra["hidden_states"][0] = float("inf")
    with pytest.raises(ValueError, match="must be finite"):
        quantise_network(network, GPTQ, calibration=inputs, **SIMULATE)


def test_contradictory_recipes_are_refused():
    with pytest.raises(ValueError, match="fewer than 16 bits"):
        Recipe(Precision(16))
    with pytest.raises(ValueError, match="per_tensor ranges are static"):
        Recipe(per_tensor=True)
    with pytest.raises(ValueError, match="group sizes must be given for every layer"):
        quantise_network(tiny_dit(), Recipe(group={}, method="rtn"))
