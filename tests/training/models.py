"""Tiny networks of the real classes, made with a fixed seed without touching the global one for the caller."""

from __future__ import annotations

import torch
from diffusers import DiTTransformer2DModel, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from tests.training.small import seeded


def unet(**changes: object) -> UNet2DConditionModel:
    settings = {
        "sample_size": 8,
        "in_channels": 4,
        "out_channels": 4,
        "layers_per_block": 1,
        "block_out_channels": (8, 16),
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": 8,
        "attention_head_dim": 4,
        "norm_num_groups": 4,
    }
    return seeded(lambda: UNet2DConditionModel(**(settings | changes)).eval())


def dit() -> DiTTransformer2DModel:
    return seeded(
        lambda: DiTTransformer2DModel(
            num_attention_heads=2,
            attention_head_dim=4,
            in_channels=4,
            out_channels=8,
            num_layers=2,
            sample_size=8,
            num_embeds_ada_norm=11,
            norm_num_groups=1,
        ).eval()
    )


def text_encoder() -> CLIPTextModel:
    config = CLIPTextConfig(
        vocab_size=32,
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=8,
        bos_token_id=0,
        eos_token_id=1,
    )
    return seeded(lambda: CLIPTextModel(config).eval())


def unet_output(model: nn.Module) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    latents, words = torch.randn(2, 4, 8, 8, generator=generator), torch.randn(2, 3, 8, generator=generator)
    with torch.no_grad():
        return model(latents, torch.tensor([10, 700]), words).sample


def perturb(parameters: dict[str, nn.Parameter]) -> None:
    """Stand-in for training: random weights on both sides."""
    generator = torch.Generator().manual_seed(2)
    for value in parameters.values():
        value.data = torch.randn(value.shape, generator=generator)
