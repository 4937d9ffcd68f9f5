"""SPLAM: distillation to few steps along sub-paths, with the consistency models it extends (arXiv 2404.13903)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from mezzotint.methods import Card

from .distilled import Distilled
from .options import Mode

__all__ = ["CARD", "VERBS", "Distilled", "distil", "sample"]

CARD = Card(
    slug="splam",
    title="SPLAM",
    claim="In four network calls a model distilled along sub-paths makes better pictures than its teacher's solvers "
    "make in four steps of two calls each.",
    paper="Xu, Song, Feng, Li, Ge, Zheng and Wang. Accelerating Image Generation with Sub-path Linear Approximation "
    "Model. ECCV 2024.",
    arxiv="2404.13903",
    bibtex="""@inproceedings{xu2024accelerating,
  title     = {Accelerating Image Generation with Sub-path Linear Approximation Model},
  author    = {Xu, Chen and Song, Tianhui and Feng, Weixin and Li, Xubin and Ge, Tiezheng and Zheng, Bo and
               Wang, Limin},
  booktitle = {European Conference on Computer Vision},
  year      = {2024}
}""",
    family="distillation",
    inputs=("any text- or class-conditional latent diffusion pipeline of diffusers", "captioned pictures"),
    outputs=("pipeline folder with a folded network, or LoRA, and an LCM scheduler",),
    composes_with=("LoRA", "attention edits", "quantised weights"),
    departures=(
        "The layer for gamma starts at zero, so the student begins as the teacher; init='torch' is official.",
        "effective_time and gamma_one_prob are ours, off by default, and reported under a name of their own.",
        "teacher_steps and jumps (several steps of the teacher between far points, made once) are ours, too.",
        "sigma_mode='linear' is the noise that DDIM pairs really have; the official quadrature is the default.",
        "Teachers and students that predict v or x0 are converted; the official script knows noise only.",
        "Transformers get the embedding through a layer before their timestep embedders.",
        "At g = 1 the embedding is folded into a bias (in a LoRA, a rank-one update): a plain network remains.",
        "Another guidance_scale than the model's own and negative prompts are refused, not silently misread.",
        "The autoencoder's noise is redrawn from cached means and deviations; the random cut is drawn once a picture.",
        "Networks stay in eval mode: neither dropout nor the label dropout of DiT is active.",
        "Weight decay reaches matrices and convolutions only where it is set; it is 0 here as in the official script.",
        "SPLAM-LoRA follows LCM-LoRA's layers with an averaged target: no recipe is published.",
    ),
)


def distil(
    pipe: Any,
    *,
    data: str,
    mode: Mode = "splam",
    steps: int = 1000,
    batch_size: int = 12,
    learning_rate: float = 8e-6,
    guidance: float | None = None,
    guidance_range: tuple[float, float] = (6.0, 16.0),
    points: int = 50,
    teacher_steps: int = 1,
    jumps: int = 0,
    ema: float = 0.95,
    effective_time: bool = False,
    gamma_one_prob: float = 0.0,
    init: Literal["zero", "torch"] = "zero",
    sigma_mode: Literal["quadrature", "linear"] | None = None,
    rank: int = 64,
    targets: tuple[str, ...] = (),
    precision: Literal["float32", "bfloat16"] = "float32",
    teacher_precision: Literal["float32", "bfloat16"] = "float32",
    pictures: int = 4096,
    resolution: int | None = None,
    seed: int = 0,
    run: str | None = None,
    out: str | None = None,
    allow_distilled: bool = False,
    start: str | None = None,
) -> Distilled:
    """Distil a pipeline into a student that samples in one to eight steps without classifier-free guidance.

    Args:
        pipe: a latent diffusion pipeline of diffusers (Stable Diffusion, SDXL, DiT, PixArt ...); it stays as it is.
        data: scenes (the procedural world), a folder of captioned pictures, or webdataset tar files.
        mode: splam, splam_lora, lcm (guidance stays a setting), lcm_fixed_w, lcm_lora.
        steps: optimiser steps.
        batch_size: pictures of a step.
        learning_rate: of AdamW; 8e-6 suits Stable Diffusion, 1e-4 small networks and LoRA.
        guidance: guidance scale (w + 1) to bake in; what the model recommends, else 9 (lcm_lora 8.5).
        guidance_range: smallest and largest guidance scale of mode lcm.
        points: solver points N; a divisor of the training timesteps.
        teacher_steps: equal DDIM steps of the teacher from one point to the next; few points are far apart (ours).
        jumps: how many jumps of the teacher to make first and then draw from; 0 makes new ones at every step (ours).
        ema: decay mu of the target network's average.
        effective_time: tell the network gamma by the timestep of the same noise level instead of an embedding (ours).
        gamma_one_prob: probability of gamma = 1 beside the uniform draw (ours).
        init: start of the embedding's layer; zero, or torch as in the official script.
        sigma_mode: noise on the sub-path; quadrature is official, linear goes with effective_time.
        rank: of a LoRA; its scale alpha / rank is 1.
        targets: endings of the names of layers that get a LoRA; those of LCM-LoRA when not given.
        precision: bfloat16 trains the student under autocast; its weights and their average stay in float32.
        teacher_precision: bfloat16 runs the teacher under autocast.
        pictures: how many pictures of the data are used, at most.
        resolution: side of the pictures in pixels; the model's own when not given.
        seed: of every draw.
        run: folder for checkpoints and cached latents, so that a killed run can be continued; none when not given.
        out: folder to write the result to; refused before the training where it is not empty.
        allow_distilled: accept a teacher that takes a guidance embedding, so is distilled already.
        start: a LoRA to begin from: a folder that was written for this base in a mode with LoRA, or the file in it.

    Raises:
        ValueError: a value outside its range, data without captions, or a pipeline that cannot be distilled.
        FileExistsError: there is something in the folder to write to.
        NonFiniteError: the loss stopped being finite; the run's folder keeps the last good average.
    """
    given = dict(locals())
    from .trainer import distil_given

    return distil_given(given.pop("pipe"), **given)


def sample(
    model: Any,
    prompts: Sequence[Any],
    *,
    steps: int = 4,
    timesteps: tuple[int, ...] | None = None,
    guidance_scale: float | None = None,
    negative_prompt: str | None = None,
    seed: int = 0,
    online: bool = False,
    batch_size: int = 16,
) -> list[Any]:
    """Make pictures with a distilled model.

    Args:
        model: a pipeline: what `distil` gave, by its `pipeline()` or from its folder; or that result itself, whose
            pipeline is then put together at every call.
        prompts: texts, or classes of class-conditional models.
        steps: network calls, 1 to N.
        timesteps: strictly decreasing timesteps instead of the usual ones.
        guidance_scale: 1 for SPLAM, whose guidance is baked in; mode lcm takes its range, lcm_lora 1 to 2.
        negative_prompt: refused where it would have no effect.
        seed: picture k depends on (seed, k) alone.
        online: the weights of the last step instead of their average (warns).
        batch_size: pictures at a time.

    Returns:
        PIL pictures.

    Raises:
        ValueError: a guidance scale or negative prompt that the model cannot follow, or steps out of range.
    """
    from .sampling import pictures

    return pictures(
        model,
        prompts,
        steps=steps,
        timesteps=timesteps,
        guidance_scale=guidance_scale,
        negative_prompt=negative_prompt,
        seed=seed,
        online=online,
        batch_size=batch_size,
    )


VERBS = {"distill": distil}
