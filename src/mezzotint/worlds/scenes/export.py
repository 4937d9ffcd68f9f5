"""A data set on disk: pictures, captions and ground truth as a Hugging Face image folder."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor

from mezzotint import files
from mezzotint.worlds.scenes.captions import Caption, Span, Style, caption
from mezzotint.worlds.scenes.gallery import to_bytes
from mezzotint.worlds.scenes.render import SKY, Frame, render
from mezzotint.worlds.scenes.sampling import Split, sample

DEPTH_SCALE = 1000
SKY_MASK = 255
_AT_ONCE = 16
_SILENT_SECONDS = 2.0
_CARD = """# Scenes

{count} pictures of {size} x {size} pixels: scenes {first}..{last} of the split `{split}`, seed {seed}, captions in the
style `{style}`. Made by mezzotint {version}; the same arguments give the same bytes.

`datasets.load_dataset("imagefolder", data_dir=...)` reads the folder. `metadata.jsonl` has one row a picture:

- `file_name` (column `image`): RGB, 8 bit, sRGB.
- `depth_file_name` (column `depth`): 16 bit gray; value / {scale} is the distance along the optical axis in world
  units; 0 is the sky.
- `mask_file_name` (column `mask`): 8 bit gray; 0 is the floor, k the k-th object of the scene (from 1), {sky} the sky.
- `text`: the caption.
- `bindings`: for each attribute word: `index` of its object in the scene (from 0), the kind of `attribute`, `word` and
  `noun`, and the characters of the text where they stand (`word_start` up to and without `word_end`; as for the noun).
- `scene`: the whole scene as JSON (`mezzotint.worlds.scenes.Scene.from_json` reads it). Axes: x right, y up, z towards
  the camera's side; the floor is y = 0; angles are degrees.
- `world_to_camera` (4 x 4) and `intrinsics` (3 x 3, in pixels): camera axes x right, y down, z forward.
"""


class Advance(Protocol):
    """Reports how many more pictures are done."""

    def __call__(self, done: int) -> None:
        """Advance the bar."""


def export(
    count: int,
    out: str | Path,
    *,
    seed: int = 0,
    split: Split = "train",
    size: int = 64,
    style: Style = "plain",
    first: int = 0,
    depth: bool = True,
    masks: bool = True,
) -> Path:
    """Write rendered scenes with captions, depth and masks as a Hugging Face image folder.

    Args:
        count: number of scenes, at least 1.
        out: folder to make; it must not exist yet, or be empty. It appears when it is complete.
        seed: which scenes.
        split: train, validation, test or held_out; no scene is in two of them.
        size: side of the pictures in pixels, at least 8.
        style: of the captions: plain, short, detailed, relations, paraphrased or tags.
        first: number of the first scene, to make a data set in parts.
        depth: write depth, as 16-bit PNG.
        masks: write instance masks, as 8-bit PNG.

    Returns:
        the folder.

    Raises:
        ValueError: a count, size or name that is not allowed; nothing is written.
        OSError: the folder exists or cannot be written; nothing is left behind.
    """
    if count < 1 or size < 8:
        raise ValueError(f"count must be at least 1 and size at least 8, got {count} and {size}")
    scenes = sample(count, seed=seed, split=split, first=first)
    captions = [caption(scene, style, seed=first + k) for k, scene in enumerate(scenes)]
    said = {"split": split, "seed": seed, "style": style, "size": size, "count": count, "first": first}
    folders = {"depth": "depth"} if depth else {}
    folders |= {"mask": "masks"} if masks else {}
    with files.atomic_folder(out) as folder, _progress(f"{count} scenes", count) as advance:
        for name in ("images", *folders.values()):
            (folder / name).mkdir()
        rows: list[dict[str, Any]] = []
        for start in range(0, count, _AT_ONCE):
            some = slice(start, start + _AT_ONCE)
            frames = render(scenes[some], size)
            for k, (scene, text) in enumerate(zip(scenes[some], captions[some], strict=True)):
                named = _write(folder, f"{first + start + k:06d}.png", frames[k : k + 1], folders)
                rows.append(named | {"text": text.text, "bindings": _bindings(text), "scene": scene.to_json()})
            advance(len(frames.rgb))
        _write_text(folder / "metadata.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
        _write_text(folder / "README.md", _card(said))
    return Path(out)


def depth_image(depth: Float[Tensor, "1 height width"]) -> Image.Image:
    """Depth as a 16-bit picture: `DEPTH_SCALE` steps a world unit, rounded; 0 for the sky, at most 65535."""
    steps = torch.where(torch.isfinite(depth), depth * DEPTH_SCALE, 0.0).round().clamp(0, 65535)
    return Image.fromarray(steps[0].cpu().to(torch.int32).numpy().astype("uint16"))


def mask_image(instance: Int[Tensor, "1 height width"]) -> Image.Image:
    """Instances as an 8-bit picture: 0 the floor, k the k-th object, `SKY_MASK` the sky."""
    return Image.fromarray(torch.where(instance == SKY, SKY_MASK, instance)[0].cpu().to(torch.uint8).numpy())


def _write(folder: Path, name: str, frame: Frame, folders: dict[str, str]) -> dict[str, Any]:
    """Write the pictures of one scene; returns the columns of the table that name them and their camera."""
    images = {"depth": depth_image(frame.depth[0]), "mask": mask_image(frame.instance[0])}
    _save(folder / "images" / name, Image.fromarray(to_bytes(frame.rgb[0]).permute(1, 2, 0).cpu().numpy()))
    row: dict[str, Any] = {"file_name": f"images/{name}"}
    for column, place in folders.items():
        _save(folder / place / name, images[column])
        row[f"{column}_file_name"] = f"{place}/{name}"
    camera = {"world_to_camera": frame.world_to_camera[0].tolist(), "intrinsics": frame.intrinsics[0].tolist()}
    return row | camera


def _bindings(text: Caption) -> list[dict[str, Any]]:
    def spelled(name: str, span: Span) -> dict[str, Any]:
        return {name: text.text[span.start : span.end], f"{name}_start": span.start, f"{name}_end": span.end}

    return [
        {"index": item.index, "attribute": item.attribute} | spelled("word", item.word) | spelled("noun", item.noun)
        for item in text.bindings
    ]


def _card(said: dict[str, Any]) -> str:
    import mezzotint

    last = said["first"] + said["count"] - 1
    return _CARD.format(**said, last=last, scale=DEPTH_SCALE, sky=SKY_MASK, version=mezzotint.__version__)


# The folder as a whole is atomic and is flushed to the disk at its end; flushing each file would take most of the time.
def _save(path: Path, image: Image.Image) -> None:
    image.save(path, format="PNG", compress_level=6)


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="\n")


@contextmanager
def _progress(title: str, total: int) -> Iterator[Advance]:
    """A bar on stderr that shows itself when the work takes longer than two seconds; on a pipe it stays silent."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty())
    task, began = bar.add_task(title, total=total), time.monotonic()

    def advance(done: int) -> None:
        bar.advance(task, done)
        if not bar.live.is_started and time.monotonic() - began > _SILENT_SECONDS:
            bar.start()

    try:
        yield advance
    finally:
        bar.stop()
