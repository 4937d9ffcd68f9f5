"""The autoencoder of `scenes`: factor 4, 4 channels, trained on crops around the busy parts of renders.

Loss: mean absolute error, the same on image gradients (sharp edges), mean square error, and a Kullback-Leibler
term of weight 1e-6. The network is convolutional, so 32-pixel crops teach it whole pictures at a quarter of the
cost. A second stage tunes the decoder alone against a frozen encoder, so that latents that were already cached
stay valid.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from mezzotint.training import Config, Step, fit
from mezzotint.zoo.saving import seeded

CROP, SIZE = 32, 64
_STRIDE = 4
_PLACES = (SIZE - CROP) // _STRIDE + 1
_EVENNESS = 0.3
_KL = 1e-6

CONFIG = Config(
    steps=1600,
    batch_size=64,
    optimiser="muon",
    learning_rate=1.5e-3,
    weight_decay=0.0,
    betas=(0.9, 0.99),
    schedule="cosine",
    warmup=100,
    final=0.02,
    precision="bfloat16",
    ema=0.998,
    checkpoint_every=200,
    log_every=50,
)
DECODER_CONFIG = dataclasses.replace(CONFIG, steps=3000, seed=1)


def build() -> Any:
    """The untrained autoencoder (1.6 M parameters)."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(32, 64, 96),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=16,
        sample_size=SIZE,
        mid_block_add_attention=False,
    )


def train(pictures: UInt8[Tensor, "count 3 64 64"], *, steps: int = CONFIG.steps, seed: int = 0) -> Any:
    """Train encoder and decoder together; returns the averaged autoencoder."""
    network = seeded(build, seed)
    return _fitted(network, network, pictures, dataclasses.replace(CONFIG, steps=steps, seed=seed))


def tune_decoder(network: Any, pictures: UInt8[Tensor, "count 3 64 64"], *, steps: int = DECODER_CONFIG.steps) -> Any:
    """Train the decoder on, with the encoder frozen."""
    network.encoder.requires_grad_(False)
    network.quant_conv.requires_grad_(False)
    parts = {"decoder": network.decoder, "post_quant_conv": network.post_quant_conv}
    return _fitted(network, parts, pictures, dataclasses.replace(DECODER_CONFIG, steps=steps))


def latents(
    network: Any, pictures: UInt8[Tensor, "count 3 64 64"], *, batch_size: int = 64
) -> Float[Tensor, "count 4 16 16"]:
    """Posterior means of pictures, not yet multiplied by the scaling factor, as float16."""
    with torch.inference_mode():
        parts = [network.encode(_signed(part)).latent_dist.mean.half() for part in pictures.split(batch_size)]
    return torch.cat(parts)


def psnr(network: Any, pictures: UInt8[Tensor, "count 3 64 64"], *, batch_size: int = 64) -> Float[Tensor, " count"]:
    """Peak signal-to-noise ratio of each picture's reconstruction, in dB."""
    values = []
    with torch.inference_mode():
        for part in pictures.split(batch_size):
            wanted = _signed(part)
            made = network.decode(network.encode(wanted).latent_dist.mode()).sample.clamp(-1, 1)
            values.append(10 * torch.log10(4 / (made - wanted).square().flatten(1).mean(1)))
    return torch.cat(values)


def crop_loss(network: Any, pictures: UInt8[Tensor, "count 3 64 64"]) -> Any:
    """The loss of a batch of picture numbers: busy crops, encoded, sampled, decoded and compared."""
    weights = busyness(pictures)

    def of_batch(batch: dict[str, Tensor], step: Step) -> tuple[Tensor, dict[str, Tensor]]:
        place = torch.multinomial(weights[batch["index"]], 1, generator=step.generator("place"))[:, 0]
        jitter = torch.randint(-2, 3, (2, len(place)), generator=step.generator("jitter"))
        top = ((place // _PLACES) * _STRIDE + jitter[0]).clamp(0, SIZE - CROP)
        left = ((place % _PLACES) * _STRIDE + jitter[1]).clamp(0, SIZE - CROP)
        wanted = _signed(crops(pictures[batch["index"]], top, left)).to(step.device)
        posterior = network.encode(wanted).latent_dist
        latent = posterior.mean + posterior.std * step.normal("latent", *posterior.mean.shape[1:])
        made = network.decode(latent).sample.float()
        error = distance(made, wanted)
        return error + _KL * posterior.kl().float().mean(), {"error": error.detach()}

    return of_batch


def distance(made: Float[Tensor, "batch 3 h w"], wanted: Float[Tensor, "batch 3 h w"]) -> Float[Tensor, ""]:
    """Absolute error, absolute error of the image gradients (weight 1/2) and square error (weight 2)."""
    rows = (made.diff(dim=-2) - wanted.diff(dim=-2)).abs().mean()
    columns = (made.diff(dim=-1) - wanted.diff(dim=-1)).abs().mean()
    return (made - wanted).abs().mean() + 0.5 * (rows + columns) + 2 * (made - wanted).square().mean()


def busyness(pictures: UInt8[Tensor, "count 3 64 64"]) -> Float[Tensor, "count places"]:
    """Weight of each crop position: the mean image gradient inside, plus a floor so that plain parts are seen too."""
    parts = []
    for part in pictures.split(512):
        gray = part.float().mean(1, keepdim=True)
        corner = gray[:, :, :-1, :-1]
        slope = (gray[:, :, 1:, :-1] - corner).abs() + (gray[:, :, :-1, 1:] - corner).abs()
        parts.append(F.avg_pool2d(F.pad(slope, (0, 1, 0, 1)), CROP, _STRIDE).flatten(1) + _EVENNESS)
    return torch.cat(parts)


def crops(
    pictures: UInt8[Tensor, "batch 3 64 64"], top: Int[Tensor, " batch"], left: Int[Tensor, " batch"]
) -> UInt8[Tensor, "batch 3 32 32"]:
    """Cut one square out of every picture."""
    span = torch.arange(CROP)
    rows, columns = (top[:, None] + span)[:, :, None], (left[:, None] + span)[:, None, :]
    return pictures[torch.arange(len(pictures))[:, None, None], :, rows, columns].permute(0, 3, 1, 2)


def _fitted(network: Any, trained: Any, pictures: Tensor, config: Config) -> Any:
    run = fit(crop_loss(network, pictures), trained, {"index": torch.arange(len(pictures))}, config)
    assert run.ema is not None
    run.ema.copy_to_live()
    return network


def _signed(pictures: Tensor) -> Tensor:
    return pictures.float() / 127.5 - 1
