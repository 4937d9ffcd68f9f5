"""Real pipelines at tiny size, with random weights and a tokenizer made on the spot."""

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

LETTERS = "abcdefghijklmnopqrstuvwxyz"
CROSS_DIM = 16


def scheduler(**changes):
    settings = {
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "clip_sample": False,
        "set_alpha_to_one": False,
        "steps_offset": 1,
    }
    return DDIMScheduler(**(settings | changes))


def tiny_unet(**changes):
    torch.manual_seed(0)
    settings = {
        "sample_size": 8,
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": (16, 32),
        "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": CROSS_DIM,
        "attention_head_dim": 8,
        "norm_num_groups": 8,
    }
    return UNet2DConditionModel(**(settings | changes)).eval()


def tiny_dit():
    torch.manual_seed(0)
    model = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=2, sample_size=8,
        patch_size=2, num_embeds_ada_norm=10,
    )  # fmt: skip
    return _randomised(model)


def tiny_pixart(**changes):
    torch.manual_seed(0)
    model = PixArtTransformer2DModel(
        **{
            "num_attention_heads": 2, "attention_head_dim": 8, "in_channels": 4, "out_channels": 8, "num_layers": 2,
            "cross_attention_dim": 16, "sample_size": 8, "patch_size": 2, "caption_channels": CROSS_DIM,
            "use_additional_conditions": False, **changes,
        }
    )  # fmt: skip
    return _randomised(model)


def _randomised(model):
    # Transformers start with zero output layers; a constant network would prove nothing.
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def tiny_vae():
    torch.manual_seed(2)
    return AutoencoderKL(
        block_out_channels=(8, 16), norm_num_groups=4, latent_channels=4, sample_size=16,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    ).eval()  # fmt: skip


def clip_tokenizer():
    words = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[], model_max_length=24)


def clip_text_config(tokenizer, width=CROSS_DIM):
    return CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=24, projection_dim=width, eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip


def tiny_sd():
    tokenizer = clip_tokenizer()
    torch.manual_seed(3)
    encoder = CLIPTextModel(clip_text_config(tokenizer)).eval()
    pipe = StableDiffusionPipeline(
        vae=tiny_vae(), text_encoder=encoder, tokenizer=tokenizer, unet=tiny_unet(), scheduler=scheduler(),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


def tiny_sdxl():
    tokenizer = clip_tokenizer()
    torch.manual_seed(4)
    first = CLIPTextModel(clip_text_config(tokenizer)).eval()
    second = CLIPTextModelWithProjection(clip_text_config(tokenizer)).eval()
    unet = tiny_unet(
        addition_embed_type="text_time", addition_time_embed_dim=8, cross_attention_dim=2 * CROSS_DIM,
        projection_class_embeddings_input_dim=6 * 8 + CROSS_DIM,
    )  # fmt: skip
    pipe = StableDiffusionXLPipeline(
        vae=tiny_vae(), text_encoder=first, text_encoder_2=second, tokenizer=tokenizer, tokenizer_2=tokenizer,
        unet=unet, scheduler=scheduler(), add_watermarker=False,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


def tiny_pixart_pipe():
    specials = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    tokenizer = T5Tokenizer(vocab=[*specials, *((letter, -3.0) for letter in LETTERS)], extra_ids=0)
    torch.manual_seed(5)
    config = T5Config(vocab_size=len(tokenizer), d_model=CROSS_DIM, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    pipe = PixArtSigmaPipeline(
        tokenizer=tokenizer, text_encoder=T5EncoderModel(config).eval(), vae=tiny_vae(), transformer=tiny_pixart(),
        scheduler=scheduler(),
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


def tiny_dit_pipe():
    pipe = DiTPipeline(tiny_dit(), tiny_vae(), scheduler(), id2label={i: f"name{i}, other{i}" for i in range(10)})
    pipe.set_progress_bar_config(disable=True)
    return pipe


BUILDERS = {"sd": tiny_sd, "sdxl": tiny_sdxl, "pixart": tiny_pixart_pipe, "dit": tiny_dit_pipe}


@pytest.fixture(scope="session")
def pipes():
    return {name: build() for name, build in BUILDERS.items()}


@pytest.fixture(scope="session")
def sd(pipes):
    return pipes["sd"]


@pytest.fixture(scope="session", params=sorted(BUILDERS))
def any_pipe(request, pipes):
    """Each supported layout, with prompts it understands: (pipe, prompts)."""
    return pipes[request.param], [3, 7] if request.param == "dit" else ["a red cube", "two blue balls"]


@pytest.fixture
def x():
    return torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(11))
