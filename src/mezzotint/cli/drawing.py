"""From a request to pictures: one batch at a time, each picture's noise from its own derived stream."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mezzotint.cli import effects, pipelines
from mezzotint.cli.request import Request
from mezzotint.cli.terminal import Advance, UsageError

__all__ = ["contact_sheet", "draw", "prepare", "settings_of"]

FORMAT = 1
_GAP = 4


def prepare(request: Request) -> Any:
    """Load the pipeline of a request, with its sampler and its timesteps.

    Raises:
        ValueError: the model cannot run what is asked.
    """
    import torch

    torch.set_num_threads(request.threads)
    pipe = pipelines.load(request.model, device=request.device, dtype=request.dtype)
    pipelines.set_solver(pipe, request.solver, custom=bool(request.timesteps), final=request.final)
    if request.timesteps:
        pipelines.set_timesteps(pipe, request.timesteps)
    return pipe


def _class_labels(pipe: Any, prompts: tuple[str, ...]) -> list[int]:
    """Read prompts as the classes of a class-conditional pipeline: their names, or their numbers."""
    names = dict(getattr(pipe, "labels", {}) or {})
    labels = []
    for prompt in prompts:
        if prompt.strip().isdecimal():
            labels.append(int(prompt))
        elif prompt in names:
            labels.append(int(names[prompt]))
        else:
            allowed = f"; some of its names: {', '.join(sorted(names)[:8])}" if names else ""
            raise UsageError(f"this model draws classes, and {prompt!r} is neither a number nor a name of one{allowed}")
    return labels


def _arguments(pipe: Any, request: Request) -> dict[str, Any]:
    """Spell a request as the arguments of this pipeline's call."""
    chosen: dict[str, Any] = {"num_inference_steps": request.steps, "guidance_scale": request.guidance}
    if pipelines.takes(pipe, "prompt"):
        chosen["prompt"] = list(request.prompts)
    else:
        chosen["class_labels"] = _class_labels(pipe, request.prompts)
    optional = {"height": request.height, "width": request.width}
    if request.negative:
        optional["negative_prompt"] = [request.negative] * len(request.prompts)  # type: ignore[assignment]
    for name, value in optional.items():
        if value is not None and not pipelines.takes(pipe, name):
            raise UsageError(f"{type(pipe).__name__} takes no {name.replace('_prompt', '')}: leave it away")
    return chosen | {name: value for name, value in optional.items() if value is not None}


def draw(pipe: Any, batch: Request, advance: Advance) -> list[Any]:
    """Draw one batch.

    Args:
        pipe: as `prepare` gave it.
        batch: one of `Request.batches`.
        advance: called for each denoising step done.

    Returns:
        a PIL image for each prompt.
    """
    import torch

    from mezzotint.diffusion.rng import stream
    from mezzotint.runtime import steady, strict

    extra: dict[str, Any] = {}
    if reports := pipelines.takes(pipe, "callback_on_step_end"):

        def after_step(_pipe: Any, _step: int, _timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            advance()
            return tensors

        extra["callback_on_step_end"] = after_step
    generators = [stream(batch.seed, "sample", 0, index) for index in batch.indices]
    attached = effects.attached(pipe, batch.prompts, batch.effects)
    alike = strict(pipe) if batch.strict else steady(pipe, rows=2 if batch.guidance and batch.guidance > 1 else 1)
    with torch.inference_mode(), alike, attached:
        images = pipe(**_arguments(pipe, batch), generator=generators, **extra).images
    if not reports:
        advance(batch.steps)
    return list(images)


def contact_sheet(images: list[Any]) -> Any:
    """Lay pictures of one size out on a white sheet, row by row, as nearly square as they allow."""
    from PIL import Image

    columns = max(1, round(len(images) ** 0.5))
    rows = -(-len(images) // columns)
    width, height = images[0].size
    sheet = Image.new("RGB", (columns * (width + _GAP) + _GAP, rows * (height + _GAP) + _GAP), "white")
    for number, image in enumerate(images):
        row, column = divmod(number, columns)
        sheet.paste(image, (_GAP + column * (width + _GAP), _GAP + row * (height + _GAP)))
    return sheet


def settings_of(
    request: Request, *, sampler: str, model_hash: str, methods: list[str], size: tuple[int, int], index: int | None
) -> dict[str, Any]:
    """Write down everything that made a picture.

    Args:
        request: what was computed at once (for a contact sheet: the whole run).
        sampler: name of the pipeline's sampler.
        model_hash: of the model's content.
        methods: names of the methods that took part, in order.
        size: width and height in pixels.
        index: which picture this is; ``None`` for the contact sheet of all.

    Returns:
        plain data for the text chunks of a PNG. It holds no time and no place, so equal runs give equal bytes.
    """
    prompts = list(dict.fromkeys(request.prompts)) if index is None else [request.prompts[index - request.first]]
    return {
        "format": FORMAT,
        "kind": "sheet" if index is None else "picture",
        "prompt": "; ".join(prompts),
        "negative_prompt": request.negative,
        "steps": request.steps,
        "guidance": request.guidance,
        "seed": request.seed,
        "index": request.first if index is None else index,
        "sampler": sampler,
        "width": size[0],
        "height": size[1],
        "model": request.model,
        "model_hash": model_hash,
        "methods": methods,
        "version": f"mezzotint {pipelines.versions()['mezzotint']}",
        "versions": pipelines.versions(),
        "request": request.to_data(),
    }


def numbered(out: Path, index: int, total: int) -> Path:
    """Name the file of picture ``index``: ``out`` itself when there is only one, else ``out`` with the index added."""
    return out if total == 1 else out.with_name(f"{out.stem}-{index:03d}{out.suffix}")
