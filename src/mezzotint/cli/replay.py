"""``mezzotint show`` and ``mezzotint rerun``: what made a picture, and the same bytes again."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from mezzotint.cli.request import Request
from mezzotint.cli.terminal import Answer, UsageError, folder, note, progress

__all__ = ["rerun", "show"]


def _settings(path: Path) -> dict[str, Any]:
    from mezzotint.files import read_settings

    settings = read_settings(path)
    if not isinstance(settings, dict) or not settings:
        raise UsageError(f"{path} carries no settings of mezzotint; only PNG files that it wrote do")
    return settings


def show(image: Path, /) -> Answer:
    """Print how a picture was made.

    Args:
        image: a PNG file that mezzotint wrote.

    Raises:
        UsageError: it carries no settings.
    """
    settings = _settings(image)
    lines = []
    for key, value in settings.items():
        if isinstance(value, dict):
            lines += [f"{key}:", *(f"  {name}: {_short(item)}" for name, item in value.items())]
        elif value not in ("", []):
            lines.append(f"{key}: {_short(value)}")
    return Answer(settings, "\n".join(lines))


def _short(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def rerun(image: Path, /, *, out: Path | None = None, model: str | None = None, force: bool = False) -> Answer:
    """Make a picture again from its own settings and compare the bytes.

    The model's hash must be the one that made the picture; other versions of the libraries are named on stderr.
    The exit code is 0 when the bytes are the same and 1 when they are not.

    Args:
        image: a PNG file that mezzotint wrote.
        out: where to write it; next to the picture, as NAME.rerun.png, when not given.
        model: where the model is now, when it has moved.
        force: go on with a model whose hash is another.

    Raises:
        UsageError: the picture has no complete settings, or its model is not here or is another one.
    """
    settings = _settings(image)
    try:
        request = Request.from_data(settings["request"])
        kind, index, methods = settings["kind"], int(settings["index"]), list(map(str, settings["methods"]))
    except (KeyError, TypeError, ValueError) as cause:
        raise UsageError(f"the settings of {image} are incomplete, so it cannot be made again: {cause}") from cause
    if kind not in ("picture", "sheet") or (kind == "picture" and index not in request.indices):
        raise UsageError(f"the settings of {image} contradict themselves: kind {kind!r}, index {index}")
    found = _verify_model(settings, model or request.model, given=model is not None, force=force)
    different = _different_versions(settings)
    placed = dataclasses.replace(request, model=model or request.model)
    before = image.read_bytes()
    target = folder(out or image.with_name(f"{image.stem}.rerun.png"))
    _make(request, placed, target, index=None if kind == "sheet" else index, model_hash=found, methods=methods)
    same = target.read_bytes() == before
    data = {"out": str(target), "same_bytes": same, "model_hash": found, "different_versions": different}
    verdict = "same bytes" if same else "other bytes"
    return Answer(data, f"{target}: {verdict}", code=0 if same else 1)


def _verify_model(settings: dict[str, Any], model: str, *, given: bool, force: bool) -> str:
    """Return the hash of the model that is here, after comparing it with the picture's.

    A picture may come from anywhere, so the model that it names is never fetched: only ``--model`` can name a hub id.
    """
    from mezzotint.cli.pipelines import hash_of, is_here

    if not given and not is_here(model):
        raise UsageError(f"the picture's model {model!r} is not on this machine: say where it is with --model")
    if not is_here(model):
        from mezzotint.cli.pipelines import load

        load(model, device="cpu", dtype="float32")
    found, wanted = hash_of(model), settings.get("model_hash")
    if found == wanted:
        note(f"model: the same ({found[:12]})")
    elif force:
        note(f"model: ANOTHER ({found[:12]}, the picture was made by {str(wanted)[:12]})")
    else:
        raise UsageError(
            f"the model {model!r} has hash {found[:12]}, but the picture was made by {str(wanted)[:12]}: "
            "give the right one with --model, or --force to go on"
        )
    return found


def _different_versions(settings: dict[str, Any]) -> dict[str, list[str]]:
    from mezzotint.cli.pipelines import versions

    before = settings.get("versions")
    before = before if isinstance(before, dict) else {}
    here = versions()
    names = sorted(before.keys() | here.keys())
    different = {
        name: [str(before.get(name)), str(here.get(name))] for name in names if before.get(name) != here.get(name)
    }
    note("versions: the same" if not different else "versions: " + "; ".join(
        f"{name} was {was}, is {now}" for name, (was, now) in different.items()))  # fmt: skip
    return different


def _make(request: Request, placed: Request, target: Path, *, index: int | None, **told: Any) -> None:
    """Draw again: the batch of one picture, or all of a contact sheet."""
    from mezzotint.cli.drawing import contact_sheet, draw, prepare, settings_of
    from mezzotint.files import write_image

    pipe = prepare(placed)
    sampler, batches = type(pipe.scheduler).__name__, placed.batches()
    images: list[Any] = []
    with progress("drawing again", placed.steps * len(batches)) as advance:
        for batch in batches:
            images += draw(pipe, batch, advance)
    picture = contact_sheet(images) if index is None else images[index - request.first]
    write_image(target, picture, settings_of(request, sampler=sampler, size=picture.size, index=index, **told))
