"""A pipeline of the shape of Stable Diffusion 1.5 with random weights: time and memory can be measured with it."""

from __future__ import annotations

import string
from collections.abc import Callable
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

UNET = {"sample_size": 64, "cross_attention_dim": 768}
VAE = {
    "block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "latent_channels": 4, "sample_size": 512,
    "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4,
}  # fmt: skip
TEXT = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
TINY = {
    "unet": {"sample_size": 8, "block_out_channels": (8, 8, 8, 8), "norm_num_groups": 4, "layers_per_block": 1},
    "vae": {"block_out_channels": (8, 8, 8, 8), "norm_num_groups": 4, "layers_per_block": 1, "sample_size": 64},
    "text": {"intermediate_size": 16, "num_hidden_layers": 1},
}


def sd15_shaped(*, dtype: torch.dtype = torch.float32, tiny: bool = False) -> Any:
    """Build it without the minutes that initialising the layers one by one takes.

    Args:
        dtype: of the weights.
        tiny: few channels, to try the benchmark itself.
    """
    small: dict[str, Any] = TINY if tiny else {"unet": {}, "vae": {}, "text": {}}
    words = [*string.ascii_lowercase, *(f"{c}</w>" for c in string.ascii_lowercase), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(vocab={word: k for k, word in enumerate(words)}, merges=[], model_max_length=77)
    config = CLIPTextConfig(vocab_size=49408, max_position_embeddings=77, **(TEXT | small["text"]))
    return StableDiffusionPipeline(
        vae=_filled(lambda: AutoencoderKL(**(VAE | small["vae"])), dtype),
        text_encoder=_filled(lambda: CLIPTextModel(config), dtype),
        tokenizer=tokenizer,
        unet=_filled(lambda: UNet2DConditionModel(**(UNET | small["unet"])), dtype),
        scheduler=DDIMScheduler(
            beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False,
            set_alpha_to_one=False, steps_offset=1,
        ),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


@torch.no_grad()
def _filled(build: Callable[[], nn.Module], dtype: torch.dtype) -> nn.Module:
    """Small random parameters; buffers, such as the numbers of positions, as their module counts them."""
    with torch.device("meta"):
        module = build()
    generator = torch.Generator().manual_seed(0)
    for owner in module.modules():
        for name, value in list(owner._parameters.items()):
            if value is not None:
                filled = torch.empty(value.shape, dtype=dtype).uniform_(-0.03, 0.03, generator=generator)
                owner._parameters[name] = nn.Parameter(filled, requires_grad=False)
        for name, value in list(owner._buffers.items()):
            if value is not None:
                owner._buffers[name] = torch.arange(value.numel()).reshape(value.shape)
    return module.eval()
