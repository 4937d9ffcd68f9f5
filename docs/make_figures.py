"""Compose the pictures of the methods' pages from the results: ``python docs/make_figures.py [SLUG ...]``.

Every picture is one that `mezzotint bench` put into docs/results/SLUG.json: the first prompts, the arms named below.
"""

from __future__ import annotations

import io
import sys
import textwrap
from pathlib import Path

from PIL import Image, ImageDraw

from mezzotint import files
from mezzotint.evidence import Evidence

DOCS = Path(__file__).parent
SIDE, GAP, LEFT, TOP, FONT = 128, 6, 150, 62, 15
ARMS: dict[str, tuple[str, ...]] = {
    "align_your_steps": ("AYS", "EDM", "LogSNR", "time-uniform", "many steps"),
    "splam": (
        "SPLAM-LoRA improved, mild guidance", "SPLAM-LoRA improved", "SPLAM improved", "LCM-fixed-w", "teacher DDIM",
        "teacher, 50 steps",
    ),
    "q_dit": ("full precision", "Q-DiT", "RTN-g", "GPTQ-row", "RTN-D", "RTN-T"),
    "binding": ("stock", "FCA", "DisCLIP", "FCA + DisCLIP", "Attend-and-Excite", "SynGen"),
    "multibooth": (
        "MultiBooth", "texts averaged", "no regions", "Textual Inversion", "DreamBooth", "Custom Diffusion",
    ),
}  # fmt: skip
ROWS = 4


def sheet(evidence: Evidence, arms: tuple[str, ...]) -> Image.Image:
    """Prompts down, arms across, pixels enlarged as they are."""
    made = {(sample.prompt, sample.arm): sample.png for sample in evidence.samples}
    prompts = [p for p in dict.fromkeys(p for p, _ in made) if all((p, arm) in made for arm in arms)][:ROWS]
    page = Image.new("RGB", (LEFT + len(arms) * (SIDE + GAP), TOP + len(prompts) * (SIDE + GAP)), "white")
    pen = ImageDraw.Draw(page)
    for column, arm in enumerate(arms):
        x = LEFT + column * (SIDE + GAP)
        place = (x + SIDE // 2, TOP // 2)
        pen.text(place, textwrap.fill(arm, 15), "black", anchor="mm", align="center", font_size=FONT)
        for row, prompt in enumerate(prompts):
            picture = Image.open(io.BytesIO(made[prompt, arm])).convert("RGB")
            page.paste(picture.resize((SIDE, SIDE), Image.Resampling.NEAREST), (x, TOP + row * (SIDE + GAP)))
    for row, prompt in enumerate(prompts):
        place = (LEFT - 8, TOP + row * (SIDE + GAP) + SIDE // 2)
        pen.text(place, textwrap.fill(prompt, 18), "black", anchor="rm", align="right", font_size=FONT)
    return page


def main(*slugs: str) -> None:
    for slug in slugs or ARMS:
        path = DOCS / "images" / f"{slug}.png"
        files.write_image(path, sheet(Evidence.load(DOCS / "results" / f"{slug}.json"), ARMS[slug]))
        print(f"{path}: {path.stat().st_size // 1024} KiB", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
