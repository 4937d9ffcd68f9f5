"""Trains `scenes`, the embedded text-to-image pipeline, from scratch or on from weights that exist.

Parts: tokenizer and text encoder, autoencoder, denoiser. The result is a stock StableDiffusionPipeline.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor

from mezzotint.files import atomic_folder, read_safetensors, write_safetensors
from mezzotint.loading import load
from mezzotint.training import Config, fit
from mezzotint.training.processes import Processes
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
    start: Path | None = None,
    pictures: int = 20480,
    steps: int = _denoiser.CONFIG.steps,
    batch_size: int = _denoiser.CONFIG.batch_size,
    compiled: bool = False,
    autoencoder_steps: int = _autoencoder.CONFIG.steps,
    decoder_steps: int = _autoencoder.DECODER_CONFIG.steps,
    seed: int = 0,
    run: Path | None = None,
) -> Path:
    """Train the whole pipeline and write it in Stable Diffusion's layout.

    Run it under `torchrun` or `accelerate launch` for several processes.

    Args:
        out: the folder to write.
        start: a pipeline of this recipe, such as the embedded one, whose denoiser and text encoder are trained on; its
            tokenizer and autoencoder are kept as they are, so that latents stay valid.
        pictures: number of training renders.
        steps: optimiser steps of the denoiser.
        batch_size: pictures of one such step, over all processes.
        compiled: train the denoiser through torch.compile: some minutes of compilation, then steps are faster.
        autoencoder_steps: optimiser steps of the autoencoder, 64 crops each.
        decoder_steps: further steps of the decoder alone.
        seed: seed of the weights and of every draw.
        run: folder for the denoiser's checkpoints and data, to be able to continue; none by default.
    """
    config = dataclasses.replace(
        _denoiser.CONFIG, steps=steps, batch_size=batch_size, seed=seed, warmup=min(_denoiser.CONFIG.warmup, steps)
    )
    if start is not None:
        pipe = load(start)
        tokenizer, text, vae, unet = pipe.tokenizer, pipe.text_encoder, pipe.vae, pipe.unet
        cached = once(run, lambda: cache(vae, tokenizer, sample(pictures, seed=seed)))
        scale = vae.config.scaling_factor
        _train_denoiser(text, unet, cached, scale, config=config, run=run, compiled=compiled)
    else:
        scenes = sample(pictures, seed=seed)
        renders = rendered(scenes)
        tokenizer = _words.build_tokenizer(out.parent / f"{out.name}-tokenizer")
        text, unet = _words.train(tokenizer, seed=seed), seeded(_denoiser.build, seed)
        vae = _autoencoder.train(renders, steps=autoencoder_steps, seed=seed)
        cached = cache(vae, tokenizer, scenes, renders)
        scale = round(1 / float(cached["latents"].float().std()), 4)
        _train_denoiser(text, unet, cached, scale, config=config, run=run, compiled=compiled)
        vae = _autoencoder.tune_decoder(vae, renders, steps=decoder_steps)
        vae.register_to_config(scaling_factor=scale)
    Processes(unet.device).on_main(lambda: save(assemble(tokenizer, text, vae, unet), out))
    return out


def once(folder: Path | None, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """Tensors that the first process makes and keeps in `folder`, for the others and for a run that is continued."""
    if folder is None:
        return make()
    path = folder / "data.safetensors"

    def kept() -> None:
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            write_safetensors(path, make())

    Processes(torch.device("cpu")).on_main(kept)
    return read_safetensors(path)


def rendered(scenes: list[Scene]) -> UInt8[Tensor, "count 3 64 64"]:
    """Renders of scenes as bytes."""
    groups = [scenes[k : k + _AT_ONCE] for k in range(0, len(scenes), _AT_ONCE)]
    return torch.cat([(picture(group) * 255).round().to(torch.uint8) for group in groups])


def cache(vae: Any, tokenizer: Any, scenes: list[Scene], renders: Tensor | None = None) -> dict[str, Tensor]:
    """What the denoiser trains on: latents, and the tokens of one caption for each entry of the style mix."""
    texts = [
        caption(scene, style, seed=k * len(_words.MIX) + j).text
        for k, scene in enumerate(scenes)
        for j, style in enumerate(_words.MIX)
    ]
    ids = _words.encode(tokenizer, texts).to(torch.int16).view(len(scenes), len(_words.MIX), -1)
    return {"latents": _autoencoder.latents(vae, rendered(scenes) if renders is None else renders), "ids": ids}


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
    text: Any,
    unet: Any,
    cached: dict[str, Tensor],
    scale: float,
    *,
    config: Config,
    run: Path | None,
    compiled: bool,
) -> None:
    held_out = {name: value[-_HELD_OUT:] for name, value in cached.items()}
    shown = {name: value[:-_HELD_OUT] for name, value in cached.items()}
    loss = _denoiser.loss(unet, text, scale, fast=torch.compile(unet) if compiled else None)
    done = fit(loss, {"unet": unet, "text": text}, shown, config, folder=run, held_out=held_out)
    assert done.ema is not None
    done.ema.copy_to_live()
