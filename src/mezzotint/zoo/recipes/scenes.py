"""Trains `scenes`, the embedded text-to-image pipeline, from scratch.

Parts: tokenizer and text encoder, autoencoder, denoiser. The result is a stock StableDiffusionPipeline. Every part
can be continued from a checkpoint folder.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor

from mezzotint.files import atomic_folder
from mezzotint.training import fit
from mezzotint.worlds.scenes.captions import caption
from mezzotint.worlds.scenes.render import picture
from mezzotint.worlds.scenes.sampling import sample
from mezzotint.worlds.scenes.scene import Scene
from mezzotint.zoo.recipes import _autoencoder, _denoiser, _words
from mezzotint.zoo.saving import load_as_float32, seeded

_AT_ONCE = 512
_HELD_OUT = 512


def train(
    out: Path,
    *,
    pictures: int = 20480,
    steps: int = _denoiser.CONFIG.steps,
    autoencoder_steps: int = _autoencoder.CONFIG.steps,
    decoder_steps: int = _autoencoder.DECODER_CONFIG.steps,
    seed: int = 0,
    run: Path | None = None,
) -> Path:
    """Train the whole pipeline and write it in Stable Diffusion's layout.

    Args:
        out: the folder to write.
        pictures: number of training renders.
        steps: optimiser steps of the denoiser, 64 pictures each.
        autoencoder_steps: optimiser steps of the autoencoder, 64 crops each.
        decoder_steps: further steps of the decoder alone.
        seed: seed of the weights and of every draw.
        run: folder for the denoiser's checkpoints, to be able to continue; none by default.
    """
    scenes = sample(pictures, seed=seed)
    renders = rendered(scenes)
    tokenizer = _words.build_tokenizer(out.parent / f"{out.name}-tokenizer")
    text = _words.train(tokenizer, seed=seed)
    vae = _autoencoder.train(renders, steps=autoencoder_steps, seed=seed)
    cached = cache(vae, tokenizer, scenes, renders)
    scale = round(1 / float(cached["latents"].float().std()), 4)
    unet = _train_denoiser(text, cached, scale, steps=steps, seed=seed, run=run)
    vae = _autoencoder.tune_decoder(vae, renders, steps=decoder_steps)
    vae.register_to_config(scaling_factor=scale)
    save(assemble(tokenizer, text, vae, unet), out)
    return out


def rendered(scenes: list[Scene]) -> UInt8[Tensor, "count 3 64 64"]:
    """Renders of scenes as bytes."""
    groups = [scenes[k : k + _AT_ONCE] for k in range(0, len(scenes), _AT_ONCE)]
    return torch.cat([(picture(group) * 255).round().to(torch.uint8) for group in groups])


def cache(vae: Any, tokenizer: Any, scenes: list[Scene], renders: Tensor) -> dict[str, Tensor]:
    """What the denoiser trains on: latents, and the tokens of one caption for each entry of the style mix."""
    texts = [
        caption(scene, style, seed=k * len(_words.MIX) + j).text
        for k, scene in enumerate(scenes)
        for j, style in enumerate(_words.MIX)
    ]
    ids = _words.encode(tokenizer, texts).to(torch.int16).view(len(scenes), len(_words.MIX), -1)
    return {"latents": _autoencoder.latents(vae, renders), "ids": ids}


def assemble(tokenizer: Any, text: Any, vae: Any, unet: Any) -> Any:
    """The parts as a StableDiffusionPipeline with a DDIM scheduler."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    scheduler = DDIMScheduler(**_denoiser.SCHEDULE, clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=text,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def save(pipe: Any, out: Path) -> None:
    """Write a pipeline in float16 safetensors, atomically."""
    with atomic_folder(out, replace=True) as folder:
        pipe.to(torch.float16).save_pretrained(folder, safe_serialization=True)
        load_as_float32(folder)
        # transformers before version 5 reads a CLIP tokenizer from these two files.
        _words.write_vocabulary(pipe.tokenizer, folder / "tokenizer")


def _train_denoiser(
    text: Any, cached: dict[str, Tensor], scale: float, *, steps: int, seed: int, run: Path | None
) -> Any:
    unet = seeded(_denoiser.build, seed)
    config = dataclasses.replace(_denoiser.CONFIG, steps=steps, seed=seed, warmup=min(_denoiser.CONFIG.warmup, steps))
    held_out = {name: value[-_HELD_OUT:] for name, value in cached.items()}
    shown = {name: value[:-_HELD_OUT] for name, value in cached.items()}
    parts = {"unet": unet, "text": text}
    done = fit(_denoiser.loss(unet, text, scale), parts, shown, config, folder=run, held_out=held_out)
    assert done.ema is not None
    done.ema.copy_to_live()
    return unet
