"""Adapters: what a new one does (nothing), what is trained (it alone), and that files carry what was trained."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor, nn
from torch.testing import assert_close

from mezzotint import files
from mezzotint.training import lora
from tests.training import models
from tests.training.models import perturb, unet_output


def dit_output(model: nn.Module) -> Tensor:
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model(latents, timestep=torch.tensor([10, 700]), class_labels=torch.tensor([1, 2])).sample


def text_output(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(torch.tensor([[0, 5, 7, 1]])).last_hidden_state


KINDS = {
    "unet": (models.unet, unet_output, lora.ATTENTION),
    "transformer": (models.dit, dit_output, lora.ATTENTION),
    "text_encoder": (models.text_encoder, text_output, ("q_proj", "v_proj")),
}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


def test_a_new_adapter_changes_nothing_and_is_all_that_is_trained(kind: str) -> None:
    make, output, targets = KINDS[kind]
    model = make()
    before = output(model)
    added = lora.add(model, rank=3, targets=targets)
    assert torch.equal(output(model), before)
    trained = {id(value) for value in model.parameters() if value.requires_grad}
    assert trained == {id(value) for value in added.values()}
    assert {value.dtype for value in added.values()} == {torch.float32}


def test_the_first_gradient_reaches_b_and_not_a() -> None:
    """With B = 0 the output depends on A not at all, and on B through A x."""
    model = models.unet()
    added = lora.add(model, rank=2)
    model(torch.ones(1, 4, 8, 8), 5, torch.ones(1, 3, 8)).sample.square().mean().backward()
    for name, value in added.items():
        assert value.grad is not None
        assert (".lora_B." in name) == bool(value.grad.abs().max() > 0)


def test_removing_puts_the_plain_layers_back(kind: str) -> None:
    make, output, targets = KINDS[kind]
    model, plain = make(), make()
    perturb(lora.add(model, rank=2, targets=targets))
    assert not torch.equal(output(model), output(plain))
    lora.remove(model)
    assert torch.equal(output(model), output(plain))
    assert list(model.state_dict()) == list(plain.state_dict())
    lora.add(model, rank=2, targets=targets)


def test_disabled_is_the_base_model_and_leaves_training_as_it_was() -> None:
    model, plain = models.unet(), models.unet()
    perturb(lora.add(model, rank=2))
    trained = [name for name, value in model.named_parameters() if value.requires_grad]
    adapted = unet_output(model)

    def fail() -> None:
        with lora.disabled(model):
            assert torch.equal(unet_output(model), unet_output(plain))
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert torch.equal(unet_output(model), adapted)
    assert [name for name, value in model.named_parameters() if value.requires_grad] == trained


def test_scale_is_alpha_over_rank() -> None:
    model = models.unet()
    perturb(lora.add(model, rank=4, alpha=2.0))
    key, layer = next(iter(lora.layers(model).items()))
    x = torch.randn(5, layer.base_layer.in_features, generator=torch.Generator().manual_seed(3))
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    assert_close(model.get_submodule(key)(x), layer.base_layer(x) + 2.0 / 4 * x @ a.T @ b.T)


def test_saved_and_loaded_adapters_act_alike(kind: str, tmp_path: Path) -> None:
    make, output, targets = KINDS[kind]
    model, other = make(), make()
    perturb(lora.add(model, rank=3, alpha=1.5, targets=targets))
    lora.save(tmp_path, {kind: model})
    lora.load(tmp_path, {kind: other}, name="again")
    assert torch.equal(output(other), output(model))


def test_stock_diffusers_reads_the_file_with_its_alpha(tmp_path: Path) -> None:
    model, other = models.unet(), models.unet()
    perturb(lora.add(model, rank=3, alpha=1.5))
    lora.save(tmp_path, {"unet": model})
    state, alphas, metadata = StableDiffusionPipeline.lora_state_dict(
        str(tmp_path), return_lora_metadata=True, weight_name=lora.FILE, local_files_only=True
    )
    StableDiffusionPipeline.load_lora_into_unet(state, alphas, other, adapter_name="x", metadata=metadata)
    assert_close(unet_output(other), unet_output(model))


def test_stock_diffusers_reads_text_encoders_too(tmp_path: Path) -> None:
    model, other = models.text_encoder(), models.text_encoder()
    perturb(lora.add(model, rank=3, alpha=1.5, targets=("q_proj", "v_proj")))
    lora.save(tmp_path, {"text_encoder": model})
    state, alphas, metadata = StableDiffusionPipeline.lora_state_dict(
        str(tmp_path), return_lora_metadata=True, weight_name=lora.FILE, local_files_only=True
    )
    assert all(key.startswith("text_encoder.text_model.encoder.layers.") for key in state)
    StableDiffusionPipeline.load_lora_into_text_encoder(state, alphas, other, adapter_name="x", metadata=metadata)
    assert_close(text_output(other), text_output(model))


def test_two_adapters_live_side_by_side(tmp_path: Path) -> None:
    model = models.unet()
    perturb(lora.add(model, rank=2, name="one"))
    one = unet_output(model)
    lora.save(tmp_path, {"unet": model}, name="one")
    lora.load(tmp_path, {"unet": model}, name="two")
    lora.activate(model, "one")
    assert torch.equal(unet_output(model), one)
    lora.activate(model, "one", "two")
    assert not torch.allclose(unet_output(model), one)
    lora.activate(model)
    assert torch.equal(unet_output(model), unet_output(models.unet()))


def test_a_seed_gives_one_adapter_and_leaves_the_global_generator_alone() -> None:
    state = torch.get_rng_state()
    first, again, other = (lora.add(models.unet(), rank=2, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    name = next(name for name in first if ".lora_A." in name)
    assert torch.equal(first[name], again[name])
    assert not torch.equal(first[name], other[name])


def test_a_file_without_metadata_is_read_with_scale_one(tmp_path: Path) -> None:
    model, other = models.unet(), models.unet()
    perturb(lora.add(model, rank=3))
    files.write_safetensors(tmp_path / lora.FILE, {f"unet.{k}": v.contiguous() for k, v in lora.tensors(model).items()})
    lora.load(tmp_path / lora.FILE, {"unet": other})
    assert torch.equal(unet_output(other), unet_output(model))


def test_refusals_name_the_cause(tmp_path: Path) -> None:
    model = models.unet()
    with pytest.raises(ValueError, match="rank must be at least 1, got 0"):
        lora.add(model, rank=0)
    with pytest.raises(ValueError, match="nowhere"):
        lora.add(model, targets=("nowhere",))
    lora.add(model, rank=2)
    with pytest.raises(ValueError, match="already has an adapter"):
        lora.add(model, rank=2)
    with pytest.raises(ValueError, match="no adapter called 'other'"):
        lora.save(tmp_path, {"unet": model}, name="other")
    lora.save(tmp_path, {"unet": model})
    with pytest.raises(ValueError, match="holds no LoRA for 'transformer'"):
        lora.load(tmp_path, {"transformer": models.dit()})
    wider = models.unet(block_out_channels=(16, 16))
    with pytest.raises((ValueError, RuntimeError), match=r"size mismatch|does not fit"):
        lora.load(tmp_path, {"unet": wider})
