"""Writes the card of an embedded model: what it is, how it was trained, what was measured, what it cannot do."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxtyping import Float
from PIL import Image
from torch import Tensor

from mezzotint.files import atomic_folder


def card_text(facts: Mapping[str, Any], samples: str | None) -> str:
    """The card in Markdown, with the metadata block that model hubs read."""
    picture = f"\n![samples]({samples})\n\n*{facts['samples_caption']}*\n" if samples else ""
    limits = "\n".join(f"- {limit}" for limit in facts["limits"])
    return (
        f"---\nlicense: apache-2.0\nlibrary_name: {facts['library']}\ntags: [mezzotint, procedural, tiny]\n---\n\n"
        f"# {facts['name']}\n\n{facts['what']}\n{picture}\n## Data\n\n{facts['data']}\n\n"
        f"## Training\n\n{_table(facts['training'])}\n## Measured\n\n{_table(facts['measured'])}\n{facts['how']}\n\n"
        f"## Limits\n\n{limits}\n"
    )


def _table(rows: Mapping[str, Any]) -> str:
    return "| | |\n|---|---|\n" + "".join(f"| {key} | {value} |\n" for key, value in rows.items())


def write_card(
    folder: Path,
    facts: Mapping[str, Any],
    *,
    metrics: Mapping[str, Any],
    samples: Float[Tensor, "count 3 height width"] | None = None,
    columns: int = 8,
) -> None:
    """Put `README.md`, `metrics.json` and a grid of samples beside the weights of a model, atomically.

    Args:
        folder: the model's folder, which is replaced by one with the card.
        facts: values of the card's headings: name, library, what, data, training, measured, how,
            limits, samples_caption.
        metrics: the measured numbers, for programs.
        samples: pictures in 0..1 for the grid.
        columns: pictures in a row of the grid.
    """
    with atomic_folder(folder, replace=True) as fresh:
        for item in folder.iterdir():
            if item.name not in ("manifest.json", "README.md", "metrics.json", "samples.png"):
                (shutil.copytree if item.is_dir() else shutil.copy2)(item, fresh / item.name)
        if samples is not None:
            sheet(samples, columns).save(fresh / "samples.png", optimize=True)
        (fresh / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n", encoding="utf-8")
        text = card_text(facts, "samples.png" if samples is not None else None)
        (fresh / "README.md").write_text(text, encoding="utf-8")


def sheet(pictures: Float[Tensor, "count 3 height width"], columns: int, *, zoom: int = 2) -> Image.Image:
    """Pictures side by side in rows, each pixel drawn `zoom` times as large."""
    count, _, height, width = pictures.shape
    rows = -(-count // columns)
    whole = Image.new("RGB", (columns * width * zoom, rows * height * zoom), "white")
    for index, picture in enumerate(pictures):
        pixels = (picture.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
        tile = Image.fromarray(pixels).resize((width * zoom, height * zoom), Image.Resampling.NEAREST)
        whole.paste(tile, (index % columns * width * zoom, index // columns * height * zoom))
    return whole
