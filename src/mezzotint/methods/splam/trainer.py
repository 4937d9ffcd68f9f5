"""From a pipeline and captioned pictures to a distilled student: all five modes through one loop."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

from torch import nn

from mezzotint import files
from mezzotint.diffusion import Denoiser
from mezzotint.loading import recommended
from mezzotint.training import Config, Run, Step, fit

from . import checks
from .adapters import TARGETS, add_adapter, begin
from .cache import Cached, gathered
from .distilled import Distilled
from .embedding import WIDTH
from .jumps import stored
from .networks import make_student, projection
from .objective import STUDENT, Objective, Prepare, Settings
from .options import Options

SETTINGS = "distillation.json"

__all__ = ["configured", "distil_given", "distil_pipeline", "prepared", "settings_of", "train"]


def distil_given(pipe: Any, **given: Any) -> Distilled:
    """Sort the arguments of `mezzotint.methods.splam.distil` into options and places, and distil."""
    named = {field.name: given.pop(field.name) for field in fields(Options) if field.name in given}
    if named["guidance"] is None:
        named["guidance"] = default_guidance(pipe, named["mode"])
        if named["mode"] == "lcm":
            low, high = named["guidance_range"]
            named["guidance"] = min(max(named["guidance"], low), high)
    if named["sigma_mode"] is None:
        named["sigma_mode"] = "linear" if named["effective_time"] else "quadrature"
    return distil_pipeline(pipe, Options(**named), **given)


def distil_pipeline(
    pipe: Any,
    options: Options,
    *,
    data: str | Path = "",
    pictures: int = 4096,
    resolution: int | None = None,
    run: str | Path | None = None,
    out: str | Path | None = None,
    cached: Any = None,
    student: Any = None,
    start: str | Path | None = None,
    allow_distilled: bool = False,
    progress: bool = True,
) -> Distilled:
    """See `mezzotint.methods.splam.distil`; for callers with latents, or with a network to train, of their own.

    Args:
        pipe: the teacher's.
        options: the settings.
        data: see `distil`, as all that is not named here.
        pictures: likewise.
        resolution: likewise.
        run: likewise.
        out: likewise.
        cached: latents of the caller's own, instead of data.
        student: a network of the caller's to train, instead of a copy of the teacher's.
        start: see `distil`.
        allow_distilled: likewise.
        progress: show a bar.
    """
    target = None if out is None else files.free_folder(out)
    if start is not None:
        checks.check_start(options)
    teacher = checks.check_teacher(pipe, options, allow_distilled=allow_distilled)
    folder = None if run is None else Path(run)
    facts = {"data": cached.source if cached else str(data), "pictures": pictures, "resolution": resolution}
    facts["start"] = None if start is None else str(start)
    settings = {"options": options.to_json(), **facts}
    _refuse_others(folder, settings)
    with checks.evaluating(teacher.model):
        network = _student(teacher.model, options, student)
        if start is not None:
            begin(network, start, options.rank)
        if cached is None:
            cached = gathered(pipe, data, count=pictures, side=resolution, seed=options.seed, folder=folder)
        if folder is not None:
            files.write_json(folder / SETTINGS, settings)
        done = train(teacher, network, cached, options, scheduler=pipe.scheduler, folder=folder, progress=progress)
    averages = done.ema.of(STUDENT) if done.ema is not None else None
    facts |= {"form": options.form, "steps_done": done.step, "pictures": len(cached.mean), "rows": done.rows[-1:]}
    made = Distilled(pipe, network, averages, options, facts)
    if target is not None:
        made.save(target)
    return made


def default_guidance(pipe: Any, mode: str) -> float:
    """The guidance scale to bake in: what the model recommends, else w = 8 (SPLAM) or w = 7.5 (LCM-LoRA)."""
    best = recommended(pipe, "guidance_scale")
    return float(best) if best is not None else (8.5 if mode == "lcm_lora" else 9.0)


def train(
    teacher: Denoiser,
    network: nn.Module,
    data: Cached,
    options: Options,
    *,
    scheduler: Any,
    folder: Path | None = None,
    progress: bool = True,
) -> Run:
    """Run the loop; the network holds the online weights afterwards, the run their moving average.

    Raises:
        NonFiniteError: the loss stopped being finite; the average is that before the step that is named.
    """
    objective = Objective(teacher, network, scheduler, prepare=prepared(data), settings=settings_of(options, network))
    place = None if folder is None else folder / "training"
    items = stored(objective, data, options, folder=folder) if options.jumps else data.tensors()
    return fit(objective, {STUDENT: network}, items, configured(options), folder=place, progress=progress)


def configured(options: Options, *, checkpoint_every: int = 200) -> Config:
    """The loop's settings: AdamW without decay, constant rate, clipping at 1, and the target's average."""
    return Config(
        steps=options.steps,
        batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        weight_decay=0.0,
        ema=None if options.mode == "lcm_lora" else options.ema,
        ema_warmup=False,
        precision=options.precision,
        seed=options.seed,
        checkpoint_every=checkpoint_every,
    )


def settings_of(options: Options, network: nn.Module) -> Settings:
    """The loss's settings of a mode."""
    conditioning: Any = "embedding" if options.embedded else "none"
    return Settings(
        points=options.points,
        teacher_steps=options.teacher_steps,
        weights=options.weights,
        embed_weight=options.mode == "lcm",
        conditioning="effective_time" if options.effective_time else conditioning,
        gamma="uniform" if options.sub_path else "one",
        gamma_one_prob=options.gamma_one_prob,
        sigma_mode=options.sigma_mode,
        averaged=options.mode != "lcm_lora",
        width=projection(network).in_features if options.embedded else WIDTH,
        teacher_precision=options.teacher_precision,
    )


def prepared(data: Cached) -> Prepare:
    """Draw the autoencoder's noise anew, and look up the conditions of a batch."""

    def prepare(batch: Any, step: Step) -> Any:
        if "x_to" in batch:
            latents = batch["x_t"]
        else:
            latents = batch["mean"] + batch["std"] * step.normal("autoencoder", *batch["mean"].shape[1:])
        cond = data.conditions[batch["caption"].cpu()].to(step.device, latents.dtype)
        return latents, cond, data.uncond.to(step.device, latents.dtype)

    return prepare


def _student(teacher: Any, options: Options, given: Any) -> nn.Module:
    if given is not None:
        checks.check_student(given, teacher, options)
        student: nn.Module = given.eval()
    else:
        student = make_student(teacher, embedded=options.embedded, init=options.init, seed=options.seed)
    student.requires_grad_(True)
    if options.lora:
        add_adapter(
            student,
            rank=options.rank,
            alpha=options.alpha,
            targets=options.targets or TARGETS,
            embedded=options.embedded,
            seed=options.seed,
        )
    return student


def _refuse_others(folder: Path | None, facts: dict[str, Any]) -> None:
    """Refuse to continue a run with other settings than those in its folder.

    Raises:
        ValueError: the folder holds a run with other settings.
    """
    if folder is not None and (folder / SETTINGS).is_file():
        known = files.read_json(folder / SETTINGS)
        now, then = ({**f, **f["options"], "options": None, "steps": None} for f in (facts, known))
        if changed := sorted(name for name in now if now[name] != then.get(name)):
            raise ValueError(f"{folder} holds a run with other settings of {', '.join(changed)}; choose another folder")
