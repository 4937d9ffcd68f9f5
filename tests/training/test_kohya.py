"""Kohya export: read back by stock diffusers it acts as the adapter, and what would do nothing is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from mezzotint import files
from mezzotint.training import kohya, lora
from tests.training import models
from tests.training.models import perturb, unet_output


def test_read_back_by_diffusers_it_acts_as_the_adapter(tmp_path: Path) -> None:
    model, other = models.unet(), models.unet()
    perturb(lora.add(model, rank=3, alpha=1.5))
    adapted = unet_output(model)
    path = kohya.export(tmp_path / "style.safetensors", {"unet": model})
    assert torch.equal(unet_output(model), adapted)
    state, alphas = kohya.StableDiffusionPipeline.lora_state_dict(files.read_safetensors(path))
    kohya.StableDiffusionPipeline.load_lora_into_unet(state, alphas, other, adapter_name="x")
    assert_close(unet_output(other), adapted)
    assert not torch.allclose(adapted, unet_output(models.unet()))


def test_sdxl_shaped_networks_are_probed_with_their_extra_conditions(tmp_path: Path) -> None:
    model = models.unet(
        addition_embed_type="text_time", addition_time_embed_dim=4, projection_class_embeddings_input_dim=32
    )
    perturb(lora.add(model, rank=2))
    assert kohya.export(tmp_path / "x.safetensors", {"unet": model}).exists()


def test_an_untrained_adapter_is_refused_and_leaves_no_file(tmp_path: Path) -> None:
    model = models.unet()
    lora.add(model, rank=2)
    with pytest.raises(ValueError, match="changes nothing"):
        kohya.export(tmp_path / "x.safetensors", {"unet": model})
    assert not list(tmp_path.iterdir())


def test_a_lost_scale_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Break the export on purpose: alpha replaced by the rank doubles this adapter."""
    model = models.unet()
    perturb(lora.add(model, rank=2, alpha=1.0))
    right = kohya.converted

    def wrong(models: dict[str, torch.nn.Module], name: str) -> dict[str, torch.Tensor]:
        tensors = right(models, name)
        return {key: torch.tensor(2.0) if key.endswith(".alpha") else value for key, value in tensors.items()}

    monkeypatch.setattr(kohya, "converted", wrong)
    with pytest.raises(ValueError, match="does not act as the adapter"):
        kohya.export(tmp_path / "x.safetensors", {"unet": model})


def test_text_encoders_get_the_prefix_of_their_family() -> None:
    one, two = models.text_encoder(), models.text_encoder()
    for model in (one, two):
        lora.add(model, rank=2, targets=("q_proj",))
    alone = kohya.converted({"text_encoder": one})
    both = kohya.converted({"text_encoder": one, "text_encoder_2": two})
    assert {key.split("_text_model")[0] for key in alone} == {"lora_te"}
    assert {key.split("_text_model")[0] for key in both} == {"lora_te1", "lora_te2"}


def test_components_without_a_place_in_the_layout_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="got transformer"):
        kohya.export(tmp_path / "x.safetensors", {"transformer": models.dit()})
