"""Trains `scenes-dit`: a class-conditional diffusion transformer; a class is a shape with a colour.

DiT (arXiv 2212.09748): adaLN-zero blocks, learned variance between the posterior's bounds, trained by the simple
loss with min-SNR weights plus 0.001 of the variational bound with the mean's gradient stopped (arXiv 2102.09672,
equations 15 and 16). The schedule, weights and timesteps are those of `scenes`.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from mezzotint.files import atomic_folder, read_json, write_json
from mezzotint.loading import load, zoo_path
from mezzotint.training import Config, Step, fit
from mezzotint.training.processes import Processes
from mezzotint.worlds.scenes.sampling import sample
from mezzotint.worlds.scenes.vocabulary import COLOURS, SHAPES
from mezzotint.zoo.recipes import _autoencoder, _denoiser
from mezzotint.zoo.recipes.scenes import once, rendered
from mezzotint.zoo.saving import load_as_float32, seeded

CLASSES: tuple[str, ...] = tuple(f"{colour} {shape}" for shape in SHAPES for colour in COLOURS)
# DiTPipeline takes class 1000 for "no class", whatever the model; classes 48..999 are never used.
NULL_CLASS = 1000
_BOUND_WEIGHT = 1e-3
_EMPTY_SHARE = 0.1

CONFIG = Config(
    steps=3000,
    batch_size=48,
    optimiser="muon",
    learning_rate=1e-3,
    weight_decay=0.01,
    betas=(0.9, 0.99),
    schedule="cosine",
    warmup=100,
    final=0.03,
    precision="bfloat16",
    ema=0.998,
    checkpoint_every=200,
    held_out_every=200,
    log_every=50,
)


def build() -> Any:
    """The untrained transformer: 6 blocks of width 256 on 8x8 patches of 2x2 latents."""
    from diffusers import DiTTransformer2DModel

    return _undropped(
        DiTTransformer2DModel(
            num_attention_heads=4,
            attention_head_dim=64,
            in_channels=4,
            out_channels=8,
            num_layers=6,
            sample_size=16,
            patch_size=2,
            num_embeds_ada_norm=NULL_CLASS,
        )
    )


def _undropped(network: Any) -> Any:
    from diffusers.models.embeddings import LabelEmbedding

    # Every block has a label embedding of its own, which would drop labels by itself in training: the loss does it.
    for module in network.modules():
        if isinstance(module, LabelEmbedding):
            module.dropout_prob = 0.0
    return network


def train(
    out: Path,
    *,
    start: Path | None = None,
    pictures: int = 12288,
    steps: int = CONFIG.steps,
    batch_size: int = CONFIG.batch_size,
    compiled: bool = False,
    seed: int = 0,
    run: Path | None = None,
) -> Path:
    """Train the transformer and write it, with the autoencoder of `scenes`, as a DiTPipeline.

    Run it under `torchrun` or `accelerate launch` for several processes.

    Args:
        out: the folder to write.
        start: a pipeline of this recipe, such as the embedded one, to train on from; from scratch by default.
        pictures: number of training renders, one object each.
        steps: optimiser steps.
        batch_size: pictures of one such step, over all processes.
        compiled: train through torch.compile: some minutes of compilation, then steps are faster.
        seed: seed of the weights and of every draw.
        run: folder for checkpoints and data, to be able to continue; none by default.
    """
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(zoo_path("scenes"), subfolder="vae", use_safetensors=True)
    shown = once(run, lambda: data(vae, pictures, seed=seed))
    held_out = data(vae, 384, seed=seed, split="validation")
    network = seeded(build, seed) if start is None else _undropped(load(start).transformer)
    config = dataclasses.replace(
        CONFIG, steps=steps, batch_size=batch_size, seed=seed, warmup=min(CONFIG.warmup, steps)
    )
    of_batch = loss(network, vae.config.scaling_factor, fast=torch.compile(network) if compiled else None)
    done = fit(of_batch, network, shown, config, folder=run, held_out=held_out)
    assert done.ema is not None
    done.ema.copy_to_live()
    Processes(network.device).on_main(lambda: save(network, vae, out))
    return out


def data(vae: Any, count: int, *, seed: int = 0, split: str = "train") -> dict[str, Tensor]:
    """Latents of single-object scenes and their classes, every combination of shape and colour included."""
    scenes = sample(count, seed=seed + 1, split=split, objects=(1, 1), combinations="all")  # type: ignore[arg-type]
    names = [f"{scene.objects[0].colour} {scene.objects[0].shape}" for scene in scenes]
    classes = torch.tensor([CLASSES.index(name) for name in names])
    return {"latents": _autoencoder.latents(vae, rendered(scenes)), "class": classes}


def loss(network: Any, scale: float, *, fast: Any = None) -> Any:
    """Epsilon error with min-SNR weights plus the variational bound's share for the learned variance.

    `fast` is the same network, compiled, for the calls that are differentiated.
    """
    alphas_cumprod = _denoiser.levels().alphas_cumprod.double()
    posterior, share = Posterior.of(alphas_cumprod), _denoiser.middle(alphas_cumprod)
    weights = _denoiser.min_snr(alphas_cumprod.float())

    def of_batch(batch: dict[str, Tensor], step: Step) -> tuple[Tensor, dict[str, Tensor]]:
        clean = batch["latents"].float() * scale
        label = torch.where(step.uniform("empty") < _EMPTY_SHARE, NULL_CLASS, batch["class"])
        timestep = _denoiser.stratified(step, share)
        noise = step.normal("noise", *clean.shape[1:])
        signal = posterior.signal.to(clean)[timestep][:, None, None, None]
        noisy = signal.sqrt() * clean + (1 - signal).sqrt() * noise
        with sdpa_kernel([SDPBackend.MATH]):
            called = fast if fast is not None and torch.is_grad_enabled() else network
            made = called(noisy, timestep=timestep, class_labels=label).sample.float()
        made_noise, variance = made.chunk(2, 1)
        error = (made_noise - noise).square().mean((1, 2, 3))
        simple = (error * weights.to(error.device)[timestep]).mean()
        bound = posterior.bound(clean, noisy, made_noise.detach(), fraction=variance, timestep=timestep)
        return simple + _BOUND_WEIGHT * len(posterior.signal) * bound, {
            "simple": simple.detach(),
            "bound": bound.detach(),
        }

    return of_batch


@dataclasses.dataclass(frozen=True)
class Posterior:
    """q(x_{t-1} | x_t, x_0) of every timestep (arXiv 2006.11239, equation 7) and the bounds of its learned variance."""

    signal: Float[Tensor, " steps"]
    clean_weight: Float[Tensor, " steps"]
    noisy_weight: Float[Tensor, " steps"]
    log_smallest: Float[Tensor, " steps"]
    log_largest: Float[Tensor, " steps"]

    @staticmethod
    def of(signal: Float[Tensor, " steps"]) -> Posterior:
        """From the cumulative products of alpha."""
        before = torch.cat([signal.new_ones(1), signal[:-1]])
        beta = 1 - signal / before
        variance = beta * (1 - before) / (1 - signal)
        variance[0] = variance[1]
        clean = before.sqrt() * beta / (1 - signal)
        noisy = (1 - beta).sqrt() * (1 - before) / (1 - signal)
        return Posterior(signal, clean, noisy, variance.log(), beta.log())

    def bound(
        self,
        clean: Float[Tensor, "batch c h w"],
        noisy: Float[Tensor, "batch c h w"],
        noise: Float[Tensor, "batch c h w"],
        *,
        fraction: Float[Tensor, "batch c h w"],
        timestep: Int[Tensor, " batch"],
    ) -> Float[Tensor, ""]:
        """KL from the true posterior to the model's, in bits per dimension.

        `fraction` in -1..1 interpolates between the bounds of the log variance.
        """

        def at(table: Tensor) -> Tensor:
            return table.to(clean)[timestep][:, None, None, None]

        share = (fraction + 1) / 2
        log_variance = share * at(self.log_largest) + (1 - share) * at(self.log_smallest)
        signal = at(self.signal)
        guessed = (noisy - (1 - signal).sqrt() * noise) / signal.sqrt()
        gap = (at(self.clean_weight) * (clean - guessed)).square()
        true = at(self.log_smallest)
        kl = 0.5 * (log_variance - true + (true - log_variance).exp() + gap * (-log_variance).exp() - 1)
        return kl.mean() / math.log(2)


def save(network: Any, vae: Any, out: Path) -> None:
    """Write a DiTPipeline in float16 safetensors, atomically; `id2label` names the classes."""
    from diffusers import DDIMScheduler, DiTPipeline

    scheduler = DDIMScheduler(**_denoiser.SCHEDULE, clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    pipe = DiTPipeline(network, vae, scheduler, id2label=dict(enumerate(CLASSES)))
    with atomic_folder(out, replace=True) as folder:
        pipe.to(torch.float16).save_pretrained(folder, safe_serialization=True)
        load_as_float32(folder)
        # DiTPipeline reads the names from its index and does not write them there.
        index = read_json(folder / "model_index.json")
        write_json(folder / "model_index.json", {**index, "id2label": dict(enumerate(CLASSES))})
