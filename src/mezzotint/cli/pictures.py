"""``mezzotint sample``: from prompts to PNG files that know how they were made."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from mezzotint.cli.effects import Asked
from mezzotint.cli.pipelines import Solver
from mezzotint.cli.request import Request
from mezzotint.cli.terminal import Answer, UsageError, folder, progress

__all__ = ["sample"]

_MODEL_DEFAULTS = {"steps": ("num_inference_steps", 50), "guidance": ("guidance_scale", 7.5)}

_MOST_IN_SHEET = 1024


def sample(
    *prompts: str,
    model: str = "scenes",
    out: Path = Path("mezzotint.png"),
    seed: int = 0,
    steps: int | None = None,
    guidance: float | None = None,
    negative: str = "",
    schedule: Path | None = None,
    solver: Solver = "model",
    count: int = 1,
    first: int = 0,
    batch_size: int = 4,
    height: int | None = None,
    width: int | None = None,
    grid: bool = False,
    strict: bool = False,
    device: str = "cpu",
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    effects: Asked | None = None,
) -> Answer:
    """Make pictures from prompts.

    Picture k draws its noise from the stream (seed, "sample", 0, k), so it is the same picture made alone
    (``--first k``) or among others. Several pictures are written as OUT-000.png, OUT-001.png and so on.

    Args:
        prompts: what to draw, one or several; for a class-conditional model, class names or numbers.
        model: embedded pipeline, folder in diffusers layout, or hub id.
        out: the PNG file to write.
        seed: which noise to begin from.
        steps: number of denoising steps; the model's default when not given.
        guidance: classifier-free guidance scale; the model's default when not given.
        negative: what the pictures should not show.
        schedule: JSON file with timesteps, as mezzotint schedule writes it.
        solver: the sampler to use instead of the model's own.
        count: number of pictures for each prompt.
        first: index of the first picture.
        batch_size: pictures computed together.
        height: of the pictures in pixels; the model's own when not given.
        width: of the pictures in pixels; the model's own when not given.
        grid: write one contact sheet instead of single files.
        strict: compute one picture at a time with deterministic kernels, for the same bits in any company.
        device: where to compute, such as cpu or cuda.
        dtype: arithmetic of the model.
        effects: what methods do to the pipeline while it draws: method -> its options.

    Raises:
        UsageError: the arguments contradict each other.
    """
    asked = dict(locals())
    _refuse_contradictions(asked)
    timesteps, final, methods = _read_schedule(schedule, steps)
    asked["steps"] = len(timesteps) or steps
    return _run(_request(asked, timesteps, final), asked, methods=[*methods, *(effects or {})])


def _refuse_contradictions(asked: Mapping[str, Any]) -> None:
    out, total = asked["out"], asked["count"] * len(asked["prompts"])
    if not asked["prompts"]:
        raise UsageError('a prompt is needed, such as: mezzotint sample "a red cube and a blue sphere"')
    if asked["count"] < 1:
        raise UsageError(f"count must be at least 1, got {asked['count']}")
    if out.suffix.lower() != ".png":
        raise UsageError(f"--out must end in .png, since only PNG keeps the settings, got {str(out)!r}")
    if asked["grid"] and total > _MOST_IN_SHEET:
        raise UsageError(f"a contact sheet holds at most {_MOST_IN_SHEET} pictures, got {total}")


def _request(asked: Mapping[str, Any], timesteps: tuple[int, ...], final: str) -> Request:
    """Put the arguments together; what was not given gets a stand-in until the model's defaults are known."""
    import torch

    names = (
        "model",
        "first",
        "seed",
        "negative",
        "solver",
        "batch_size",
        "height",
        "width",
        "strict",
        "device",
        "dtype",
    )
    return Request(
        prompts=tuple(prompt for prompt in asked["prompts"] for _ in range(asked["count"])),
        timesteps=timesteps,
        final=final,
        steps=1 if asked["steps"] is None else asked["steps"],
        guidance=1.0 if asked["guidance"] is None else asked["guidance"],
        threads=torch.get_num_threads(),
        effects={method: dict(given) for method, given in (asked["effects"] or {}).items()},
        **{name: asked[name] for name in names},
    )


def _read_schedule(path: Path | None, steps: int | None) -> tuple[tuple[int, ...], str, list[str]]:
    """Read timesteps from a schedule file, where they end, and the name of the grid or method they come from."""
    if path is None:
        return (), "zero", []
    from mezzotint.files import read_json

    data = read_json(path)
    timesteps = data.get("timesteps") if isinstance(data, dict) else None
    if not isinstance(timesteps, list) or not timesteps or not all(type(step) is int for step in timesteps):
        raise UsageError(f"{path} must hold an object with a list of whole numbers under 'timesteps'")
    if any(later >= earlier for earlier, later in pairwise(timesteps)):
        raise UsageError(f"the timesteps of {path} must be strictly decreasing, got {timesteps}")
    if steps not in (None, len(timesteps)):
        raise UsageError(f"{path} has {len(timesteps)} steps, but --steps {steps} was given: leave --steps away")
    name = data.get("method") or data.get("name")
    final = "t_min" if data.get("final") == "t_min" else "zero"
    return tuple(timesteps), final, [name if isinstance(name, str) else "schedule"]


def _completed(request: Request, asked: Mapping[str, Any], pipe: Any) -> Request:
    """Put in the model's own defaults where nothing was asked."""
    import dataclasses

    from mezzotint.cli.pipelines import default

    chosen: dict[str, Any] = {}
    for name, (parameter, fallback) in _MODEL_DEFAULTS.items():
        own = default(pipe, parameter)
        chosen[name] = asked[name] if asked[name] is not None else (fallback if own is None else own)
    return dataclasses.replace(request, **chosen)


def _run(request: Request, asked: Mapping[str, Any], *, methods: list[str]) -> Answer:
    from mezzotint.cli.drawing import contact_sheet, draw, numbered, prepare, settings_of
    from mezzotint.cli.pipelines import hash_of
    from mezzotint.files import write_image
    from mezzotint.methods.splam.sampling import refuse

    out, grid = folder(asked["out"]), asked["grid"]
    pipe = prepare(request)
    request = _completed(request, asked, pipe)
    refuse(pipe, request.guidance, request.negative)
    sampler = type(pipe.scheduler).__name__
    told: dict[str, Any] = {"sampler": sampler, "model_hash": hash_of(request.model), "methods": methods}
    written: list[str] = []
    pictures: list[Any] = []
    with progress("sampling", request.steps * len(request.batches())) as advance:
        for batch in request.batches():
            images = draw(pipe, batch, advance)
            pictures += images if grid else []
            for index, image in zip(batch.indices, images, strict=True) if not grid else ():
                path = numbered(out, index, len(request.prompts))
                write_image(path, image, settings_of(batch, size=image.size, index=index, **told))
                written.append(str(path))
    if grid:
        sheet = contact_sheet(pictures)
        write_image(out, sheet, settings_of(request, size=sheet.size, index=None, **told))
        written.append(str(out))
    return Answer({"files": written, **request.to_data(), **told}, "\n".join(written))
