"""Clean latents with their prompts: what the expectation over the data is taken on.

Four sources: a picture folder with captions, the procedural world of the embedded checkpoints, the model's own samples
where there are no data, and latents that the caller brings.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mezzotint import files
from mezzotint.diffusion import pixels, posterior

from . import grids
from .frozen import freeze, is_conditional, run, start_noise
from .schedule import Schedule
from .solvers import training_sigmas

PICTURES = frozenset({".png", ".jpg", ".jpeg", ".webp"})


@dataclass(frozen=True)
class Clean:
    """Clean latents x0 with the scaling factor applied, a prompt for each, and where they came from."""

    latents: Float[Tensor, "count channels height width"]
    prompts: tuple[Any, ...]
    source: str

    def __post_init__(self) -> None:
        """Refuse an empty data set and unequal lengths."""
        if len(self.latents) == 0:
            raise ValueError(f"the data set {self.source!r} is empty: at least 2 clean items are needed")
        if len(self.prompts) != len(self.latents):
            raise ValueError(f"{len(self.latents)} latents need as many prompts, got {len(self.prompts)}")


def clean_data(
    pipe: Any,
    source: str,
    count: int,
    *,
    prompts: Sequence[Any] = (),
    guidance: float | None = None,
    seed: int = 0,
    batch_size: int = 64,
    own_steps: int = 200,
) -> Clean:
    """Gather `count` clean items for a pipeline.

    Args:
        pipe: a diffusers pipeline.
        source: "auto" (the world for an embedded checkpoint, else "self"), "scenes", "self", or a folder of pictures
            with captions in metadata.jsonl or annotations/captions_*.json, or named by their sub-folders.
        count: number of items; a folder may give fewer.
        prompts: for "self"; cycled. Empty prompts (or all classes in turn) when there are none.
        guidance: of the model's own samples.
        seed: of the scenes or of the start noise.
        batch_size: pictures at a time.
        own_steps: steps for the model's own samples; the paper has none, and fewer than 200 would show.

    Raises:
        ValueError: unknown source, no pictures, or count below 2.
    """
    if count < 2:
        raise ValueError(f"samples must be at least 2, got {count}")
    kind = _automatic(pipe) if source == "auto" else source
    if kind == "self":
        return _own(pipe, count, prompts, guidance=guidance, seed=seed, batch_size=batch_size, steps=own_steps)
    if kind == "scenes":
        return _scenes(pipe, count, seed=seed, batch_size=batch_size)
    if Path(kind).is_dir():
        return _folder(pipe, Path(kind), count, batch_size=batch_size)
    raise ValueError(f"data must be 'auto', 'scenes', 'self' or a folder of pictures, got {source!r}")


def _automatic(pipe: Any) -> str:
    from mezzotint.loading import embedded, zoo_path

    where = str(getattr(pipe, "name_or_path", "") or "")
    own = "scenes" in embedded() and where and Path(where).resolve() == zoo_path("scenes").resolve()
    return "scenes" if own else "self"


def _scenes(pipe: Any, count: int, *, seed: int, batch_size: int) -> Clean:
    from mezzotint.worlds.scenes.captions import caption
    from mezzotint.worlds.scenes.render import picture
    from mezzotint.worlds.scenes.sampling import sample

    drawn, side = sample(count, seed=seed, split="train"), pixels(pipe)
    latents = _encoded(pipe, count, batch_size, lambda a, b: picture(drawn[a:b], size=side))
    prompts = tuple(caption(scene, "plain", seed=k).text for k, scene in enumerate(drawn))
    return Clean(latents, prompts, "worlds.scenes, training split")


def _encoded(pipe: Any, count: int, batch_size: int, read: Callable[[int, int], Tensor]) -> Tensor:
    return torch.cat([posterior(pipe, read(a, min(a + batch_size, count)))[0] for a in range(0, count, batch_size)])


def _own(
    pipe: Any, count: int, prompts: Sequence[Any], *, guidance: float | None, seed: int, batch_size: int, steps: int
) -> Clean:
    named = tuple(prompts) or _default_prompts(pipe)
    chosen = tuple(named[k % len(named)] for k in range(count))
    levels = training_sigmas(pipe.scheduler)
    grid = grids.time_uniform(min(steps, len(levels) - 1), levels)
    noise = start_noise(pipe, count, seed=seed)
    schedule = Schedule.from_grid(grid, levels, final="zero")
    latents = run(freeze(pipe, chosen, guidance), noise, schedule, solver="2m", batch_size=batch_size)
    return Clean(latents, chosen, f"the model's own samples, {len(grid) - 1} steps")


def _default_prompts(pipe: Any) -> tuple[Any, ...]:
    if is_conditional(pipe) and getattr(pipe, "text_encoder", None) is None:
        return tuple(range(int(pipe.transformer.config.num_embeds_ada_norm)))
    return ("",)


def _folder(pipe: Any, folder: Path, count: int, *, batch_size: int) -> Clean:
    captions = read_captions(folder)
    names = sorted(captions)[:count]
    if not names:
        raise ValueError(f"no pictures found under {folder}: expected {', '.join(sorted(PICTURES))}")
    side = pixels(pipe)
    latents = _encoded(
        pipe, len(names), batch_size, lambda a, b: torch.stack([read_square(folder / n, side) for n in names[a:b]])
    )
    return Clean(latents, tuple(captions[n] for n in names), f"folder {folder.name}")


def read_captions(folder: Path) -> dict[str, str]:
    """Relative picture path -> caption: metadata.jsonl, else annotations/captions_*.json, else sub-folder names."""
    if (folder / "metadata.jsonl").is_file():
        lines = files.read_bytes(folder / "metadata.jsonl", max_bytes=2**28).decode().splitlines()
        rows = [json.loads(line) for line in lines if line.strip()]
        return {row["file_name"]: str(row.get("text", "")) for row in rows}
    pictures = {p.name: p.relative_to(folder) for p in folder.rglob("*") if p.suffix.lower() in PICTURES}
    annotations = sorted(folder.glob("annotations/captions_*.json"))
    if annotations:
        return {str(pictures[n]): text for n, text in _coco(annotations).items() if n in pictures}
    found = (p.relative_to(folder) for p in folder.rglob("*") if p.suffix.lower() in PICTURES)
    return {str(p): p.parent.name.replace("_", " ") for p in found}


def _coco(paths: Sequence[Path]) -> dict[str, str]:
    captions: dict[str, str] = {}
    for path in paths:
        document = files.read_json(path, max_bytes=2**30)
        names = {image["id"]: image["file_name"] for image in document["images"]}
        for row in document["annotations"]:
            captions.setdefault(names[row["image_id"]], str(row["caption"]))
    return captions


def read_square(path: Path, side: int) -> Float[Tensor, "3 side side"]:
    """A picture in 0..1: the centre square, resized to side x side."""
    import numpy as np
    from PIL import ImageOps

    picture = ImageOps.fit(files.read_image(path).convert("RGB"), (side, side))
    return torch.from_numpy(np.array(picture)).movedim(-1, 0).float() / 255
