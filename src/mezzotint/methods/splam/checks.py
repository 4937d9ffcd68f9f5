"""What is refused, and what is warned of, before a distillation starts or a picture is made."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import nn

from mezzotint import files
from mezzotint.diffusion import Denoiser
from mezzotint.loading import MEASURED

from .options import Options
from .points import skip

__all__ = ["check_guidance", "check_start", "check_student", "check_teacher", "evaluating", "known"]

FEW_STEPS = 500


def check_teacher(pipe: Any, options: Options, *, allow_distilled: bool) -> Denoiser:
    """The teacher's view, if it can be distilled with these options.

    Raises:
        ValueError: an unknown prediction type, points that do not divide its timesteps, more teacher steps than there
            are timesteps between them, an adapter that is still
            attached, half-precision weights where weights are trained, or a teacher that is distilled already.
    """
    teacher = Denoiser(pipe)
    if options.teacher_steps > (most := skip(options.points, len(teacher.levels))):
        raise ValueError(
            f"teacher_steps must be at most {most}, the timesteps from one of {options.points} points to the next, got "
            f"{options.teacher_steps}"
        )
    network: Any = teacher.model
    if getattr(network, "peft_config", None):
        raise ValueError("the teacher carries a LoRA: fuse it (pipe.fuse_lora) or unload it first")
    own = getattr(network.config, "time_cond_proj_dim", None) is not None
    if own and not allow_distilled:
        raise ValueError("the teacher takes a guidance embedding, so it is distilled; allow_distilled permits it")
    if not allow_distilled and (known(pipe) or type(pipe.scheduler).__name__ == "LCMScheduler"):
        raise ValueError("the teacher is a distilled model, or has an LCMScheduler; allow_distilled permits it")
    if own and options.lora:
        raise ValueError(
            f"the teacher keeps its guidance embedding beside a LoRA, which cannot take it away: {options.mode} is for "
            "teachers without one; use a mode of whole networks"
        )
    if options.mode == "lcm" and not isinstance(network, UNet2DConditionModel):
        raise ValueError(
            f"mode lcm keeps an embedding of the guidance weight, for which diffusers' {type(network).__name__} has no "
            "place: use lcm_fixed_w, splam or their LoRA forms"
        )
    half = network.dtype in (torch.float16, torch.bfloat16)
    if half and (options.embedded or not options.lora):
        raise ValueError(
            f"trained weights must be float32, got {network.dtype}: load the pipeline in float32; "
            "precision='bfloat16' and teacher_precision='bfloat16' make the networks fast"
        )
    if any(part.training for part in network.modules()):
        warnings.warn("the teacher is not in eval mode; it is put there while it teaches", stacklevel=4)
    if options.steps < FEW_STEPS:
        warnings.warn(f"{options.steps} steps are few: below {FEW_STEPS} a student hardly moves", stacklevel=4)
    return teacher


def check_student(student: nn.Module, teacher: nn.Module, options: Options) -> None:
    """See that a network given by the user can learn from the teacher.

    Raises:
        ValueError: other latent channels or text width, half-precision weights, no layer for the embedding, or a LoRA
            mode.
    """
    if options.lora:
        raise ValueError(
            f"a LoRA belongs to the teacher's own network; a student of yours needs another mode than {options.mode}"
        )
    mine, theirs = student.config, teacher.config
    for name in ("in_channels", "cross_attention_dim", "num_embeds_ada_norm", "caption_channels"):
        one, other = getattr(mine, name, None), getattr(theirs, name, None)
        if one != other:
            raise ValueError(f"student and teacher must have the same {name}, got {one} and {other}")
    if next(student.parameters()).dtype in (torch.float16, torch.bfloat16):
        raise ValueError(f"trained weights must be float32, got {next(student.parameters()).dtype}")
    has = getattr(mine, "time_cond_proj_dim", None) is not None or hasattr(student, "cond_proj")
    if options.embedded and not has:
        raise ValueError("the student has no layer for the embedding (time_cond_proj_dim); use effective_time")


def check_start(options: Options) -> None:
    """Refuse a LoRA to begin from where none is trained, or where a file cannot say everything that is.

    Raises:
        ValueError: such a mode.
    """
    if not options.lora:
        raise ValueError(f"start is a LoRA, and mode {options.mode!r} trains none: use splam_lora or lcm_lora")
    if options.embedded:
        raise ValueError(
            "a LoRA file has the layer for gamma folded in: start goes with effective_time, or mode lcm_lora"
        )


def check_guidance(scale: float, allowed: tuple[float, float], negative_prompt: str | None) -> None:
    """Refuse what a distilled model cannot do at sampling time.

    Raises:
        ValueError: a guidance scale outside what it was trained for, or a negative prompt that would be ignored.
    """
    low, high = allowed
    if not low <= scale <= high:
        wanted = f"{low:g}" if low == high else f"{low:g}..{high:g}"
        raise ValueError(
            f"guidance_scale must be {wanted} for this model, got {scale:g}: it was distilled with its guidance, and "
            "another scale would guide it a second time, or tell it a weight that it never saw"
        )
    if negative_prompt and not (scale > 1 and allowed == (1.0, 2.0)):
        raise ValueError("a negative prompt needs an unconditional call, which a distilled model never makes; drop it")


def known(pipe: Any) -> dict[str, Any] | None:
    """The facts beside a saved pipeline, if it is distilled by these methods; a base model's say nothing of it."""
    folder = getattr(getattr(pipe, "config", None), "_name_or_path", None)
    if not folder or not (path := Path(str(folder)) / MEASURED).is_file():
        return None
    facts = files.read_json(path)
    return facts if isinstance(facts, dict) and "distillation" in facts else None


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """The network in eval mode and frozen; modes and flags are put back."""
    modes = [(part, part.training) for part in network.modules()]
    flags = [(value, value.requires_grad) for value in network.parameters()]
    network.eval().requires_grad_(False)
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode
        for value, flag in flags:
            value.requires_grad_(flag)
