"""Captioned pictures: the procedural world, a folder (`.txt` beside pictures, or metadata.jsonl), or tar shards.

Pictures are resized to the resolution by their shorter side (bilinear), and a square is cut out at random, once.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mezzotint import files
from mezzotint.diffusion import rng

__all__ = ["Pair", "pairs", "square"]

Pair = tuple[Tensor, Any]
"""A picture (3, side, side) in 0..1 and its caption: text, or a class of class-conditional models."""

PICTURES = (".png", ".jpg", ".jpeg", ".webp")
METADATA = "metadata.jsonl"


def pairs(data: str | Path, *, side: int, count: int, seed: int = 0, classes: bool = False) -> Iterator[Pair]:
    """The first `count` captioned pictures of a data set.

    Args:
        data: "scenes", a folder of pictures, a folder of .tar files, or one .tar file.
        side: of the square pictures, in pixels.
        count: at most so many; the world gives exactly that number.
        seed: of the scenes and the cuts.
        classes: captions are classes (DiT): of the world, shape and colour; elsewhere texts are class names or numbers.

    Raises:
        ValueError: there are no such data, or a picture has no caption.
        FileError: a file is damaged or too large.
    """
    if str(data) == "scenes":
        yield from _scenes(count, side=side, seed=seed, classes=classes)
        return
    path = Path(data).expanduser()
    if path.is_file() and path.suffix == ".tar":
        found = _shards([path])
    elif path.is_dir() and (shards := sorted(path.glob("*.tar"))):
        found = _shards(shards)
    elif path.is_dir():
        found = _folder(path)
    else:
        raise ValueError(f"data must be 'scenes', a folder of pictures, or tar files, got {str(data)!r}")
    for index, (picture, caption) in enumerate(islice(found, count)):
        yield square(picture, side, seed=seed, index=index), _label(caption) if classes else caption


def square(picture: Any, side: int, *, seed: int, index: int) -> Float[Tensor, "3 side side"]:
    """A random square of a PIL picture whose shorter side was resized to `side`, in 0..1.

    Args:
        picture: RGB.
        side: in pixels.
        seed: of the cut.
        index: number of the picture.
    """
    import numpy as np
    from PIL import Image

    width, height = picture.size
    scale = side / min(width, height)
    size = (max(side, round(width * scale)), max(side, round(height * scale)))
    resized = picture.resize(size, Image.Resampling.BILINEAR)
    draw = torch.rand(2, generator=rng.stream(seed, "splam/cut", 0, index)).tolist()
    left, top = (int(share * (whole - side + 1)) for share, whole in zip(draw, size, strict=True))
    cut = resized.crop((left, top, left + side, top + side))
    return torch.from_numpy(np.array(cut)).movedim(-1, 0).float() / 255


def _scenes(count: int, *, side: int, seed: int, classes: bool) -> Iterator[Pair]:
    from mezzotint.worlds.scenes.captions import STYLES, caption
    from mezzotint.worlds.scenes.render import picture
    from mezzotint.worlds.scenes.sampling import sample

    for first in range(0, count, 64):
        objects = (1, 1) if classes else (1, 3)
        scenes = sample(min(64, count - first), seed=seed, first=first, objects=objects)
        for k, (scene, image) in enumerate(zip(scenes, picture(scenes, size=side), strict=True)):
            style = STYLES[(first + k) % len(STYLES)]
            yield image, _class_of(scene) if classes else caption(scene, style, seed=first + k).text


def _class_of(scene: Any) -> int:
    from mezzotint.zoo.recipes.scenes_dit import CLASSES

    return CLASSES.index(f"{scene.objects[0].colour} {scene.objects[0].shape}")


def _folder(folder: Path) -> Iterator[tuple[Any, str]]:
    if (folder / METADATA).is_file():
        lines = files.read_bytes(folder / METADATA, max_bytes=2**30).decode().splitlines()
        rows = [files.parse_json(line.encode(), folder / METADATA) for line in lines if line.strip()]
        if any(not isinstance(row, dict) or "file_name" not in row for row in rows):
            raise files.FileError(folder / METADATA, "needs an object with file_name and text in every line")
        named = [(_inside(folder, str(row["file_name"])), str(row.get("text", ""))) for row in rows]
    else:
        found = sorted(p for p in folder.rglob("*") if p.suffix.lower() in PICTURES)
        named = [(path, _beside(path)) for path in found]
    if not named:
        raise ValueError(f"there are no pictures in {folder}: expected {', '.join(PICTURES)}")
    for path, text in named:
        if not text.strip():
            raise ValueError(f"{path} has no caption: give it a .txt file or a text in {METADATA}")
        yield files.read_image(path), text.strip()


def _inside(folder: Path, name: str) -> Path:
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise files.FileError(folder / METADATA, f"names {name[:80]!r}, which lies outside its folder")
    return path


def _beside(picture: Path) -> str:
    text = picture.with_suffix(".txt")
    return files.read_bytes(text, max_bytes=2**16).decode(errors="replace") if text.is_file() else ""


def _shards(paths: list[Path]) -> Iterator[tuple[Any, str]]:
    for path in paths:
        for key, parts in files.read_shard(path):
            content = next((parts[s[1:]] for s in PICTURES if s[1:] in parts), None)
            text = parts.get("txt", b"").decode(errors="replace").strip()
            if content is None or not text:
                raise ValueError(f"{path}: sample {key!r} needs a picture and a .txt, it has {sorted(parts)}")
            yield files.parse_image(content, f"{path}:{key}"), text


def _label(caption: str) -> Any:
    return int(caption) if caption.isdigit() else caption
