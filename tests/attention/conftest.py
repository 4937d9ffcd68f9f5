"""The real backbones at tiny size, with the arguments of a guided pass of each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from diffusers import DiTTransformer2DModel, PixArtTransformer2DModel, UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from mezzotint.attention import Edit, install


@dataclass(frozen=True)
class Case:
    """A model and the arguments of one pass; `branches` in the order in which its pipeline stacks them."""

    model: nn.Module
    latent: Tensor
    arguments: dict[str, Any] = field(default_factory=dict)
    context: str | None = None

    def run(self, timestep: float = 401, **changes: Any) -> Tensor:
        return self.model(self.latent, timestep=self.times(timestep), **{**self.arguments, **changes}).sample

    def times(self, timestep: float) -> Tensor:
        return torch.full((len(self.latent),), int(timestep))


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def frozen(model: nn.Module) -> nn.Module:
    """Fresh models begin at zero output projections; random ones make every layer count."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / parameter[0].numel() ** 0.5)
    return model.eval().requires_grad_(False)


def processors(model: nn.Module) -> dict[str, Any]:
    """The processors of a model, by layer name; a DiT has no property of its own for it."""
    return {name: layer.processor for name, layer in model.named_modules() if isinstance(layer, Attention)}


def set_processors(model: nn.Module, processor: Any) -> None:
    for layer in model.modules():
        if isinstance(layer, Attention):
            layer.set_processor(processor)


def text_mask(call: Any, query: Tensor, key: Tensor) -> Tensor:
    return normal(query.shape[2], key.shape[2])


def refuses(case: Case, edit: Edit, message: str) -> None:
    with pytest.raises(ValueError, match=message), install(case.model, edit):
        case.run()


UNET = {
    "sample_size": 8,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "attention_head_dim": 2,
    "cross_attention_dim": 12,
}


def sd(height: int = 8, width: int = 8, batch: int = 4) -> Case:
    model = frozen(UNet2DConditionModel(**UNET))
    return Case(
        model, normal(batch, 4, height, width), {"encoder_hidden_states": normal(batch, 7, 12)}, "encoder_hidden_states"
    )


def sdxl() -> Case:
    settings = {
        **UNET,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2),
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 4,
        "projection_class_embeddings_input_dim": 6 * 4 + 10,
    }
    added = {"text_embeds": normal(4, 10, seed=5), "time_ids": torch.arange(24.0).reshape(4, 6)}
    arguments = {"encoder_hidden_states": normal(4, 7, 12), "added_cond_kwargs": added}
    return Case(frozen(UNet2DConditionModel(**settings)), normal(4, 4, 8, 8), arguments, "encoder_hidden_states")


def dit() -> Case:
    model = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, num_layers=2, sample_size=8, patch_size=2,
        norm_num_groups=4, num_embeds_ada_norm=11,
    )  # fmt: skip
    return Case(frozen(model), normal(4, 4, 8, 8), {"class_labels": torch.tensor([1, 2, 10, 10])})


def pixart() -> Case:
    model = PixArtTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=2, norm_num_groups=4,
        cross_attention_dim=16, sample_size=8, patch_size=2, caption_channels=12,
    )  # fmt: skip
    mask = torch.ones(4, 7)
    mask[:2, 3:] = 0
    arguments = {
        "encoder_hidden_states": normal(4, 7, 12),
        "encoder_attention_mask": mask,
        "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
    }
    return Case(frozen(model), normal(4, 4, 8, 8), arguments, "encoder_hidden_states")


CASES: dict[str, Callable[[], Case]] = {"sd": sd, "sdxl": sdxl, "dit": dit, "pixart": pixart}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    """Each of the four backbones."""
    return CASES[request.param]()


@pytest.fixture(params=["sd", "sdxl", "pixart"])
def text_case(request: pytest.FixtureRequest) -> Case:
    """Each backbone that attends to a text."""
    return CASES[request.param]()


@pytest.fixture
def unet() -> Case:
    """The smallest Stable Diffusion."""
    return sd()
