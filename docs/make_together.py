"""Make the README's picture of five methods in one image: ``python docs/make_together.py [FOLDER]``.

Learns two concepts from four renders each (four minutes; kept in FOLDER if given), then draws one prompt with both of
them in boxes and a bound attribute around: in 50 steps, on an Align-Your-Steps schedule, and by the distilled model in
four calls with 8-bit weights and activations. The start noise is the same; its number was chosen among 20.
"""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw

import mezzotint as mz
from mezzotint import files
from mezzotint.diffusion import decode, latent_shape, rng
from mezzotint.methods.align_your_steps import make
from mezzotint.methods.multibooth import Concept
from mezzotint.methods.multibooth.learning import learn_concept
from mezzotint.methods.multibooth.options import Options
from mezzotint.methods.multibooth.single_experiment import TEMPLATES
from mezzotint.methods.multibooth.world import pictures_of, thing

PROMPT = "a <a> sphere and a <b> cone on a brown floor"
BOXES = {"<a>": (0.0, 0.1, 0.5, 0.8), "<b>": (0.5, 0.1, 1.0, 0.8)}
NOUNS = {"<a>": "sphere", "<b>": "cone"}
NUMBER = 19
"""Of the start noise and of the noise between calls."""
SIDE, GAP, TOP = 192, 8, 48


def learnt(pipe: Any, word: str, shown: torch.Tensor, folder: Path | None) -> Concept:
    """A concept, from its folder if it is there."""
    place = None if folder is None else folder / NOUNS[word]
    if place is not None and place.is_dir():
        return Concept.load(place)
    options = Options(
        class_word=NOUNS[word], placeholder=word, steps=200, rank=8, learning_rate=3e-3, encoder_rate=0.5,
        batch_size=4, queries=8, templates=TEMPLATES, precision="bfloat16",
    )  # fmt: skip
    concept = learn_concept(pipe, shown, options)
    if place is not None:
        concept.save(place)
    return concept


def drawn(
    pipe: Any, concepts: dict[str, Concept], *, number: int = NUMBER, schedule: Any = None, **settings: Any
) -> torch.Tensor:
    """The picture."""
    noise = rng.normal(latent_shape(pipe), seed=0, purpose="together", first=number, count=1)
    placed = {word: (concept, BOXES[word]) for word, concept in concepts.items()}
    with (
        schedule.apply(pipe) if schedule is not None else nullcontext(),
        mz.multibooth.place(pipe, PROMPT, placed),
        mz.binding.focus(pipe, PROMPT, bindings=[("brown", "floor")]),
        torch.no_grad(),
    ):
        draws = torch.Generator().manual_seed(number)
        made = pipe(PROMPT, latents=noise, generator=draws, output_type="latent", **settings)
        return decode(pipe, made.images)[0]


def enlarged(picture: torch.Tensor, side: int) -> Image.Image:
    """Pixels as they are."""
    values = (picture.movedim(0, -1) * 255).round().byte().numpy()
    return Image.fromarray(values).resize((side, side), Image.Resampling.NEAREST)


def main(folder: str | None = None) -> None:
    pipe, four = mz.load("scenes"), mz.load("scenes-splam")
    small = mz.q_dit.quantise(four, weights=8, activations=8, group="auto", rounding="rtn").pipe
    for each in (pipe, four, small):
        each.set_progress_bar_config(disable=True)
    shown = {word: pictures_of(thing(noun), 4, seed=0) for word, noun in NOUNS.items()}
    concepts = {word: learnt(pipe, word, shown[word], None if folder is None else Path(folder)) for word in shown}
    guided: dict[str, Any] = {"guidance_scale": 4.5}
    few: dict[str, Any] = {"guidance_scale": 1.0, "num_inference_steps": 4}
    ays = make("sd15", pipe=pipe, steps=10)
    panels = {
        "50 steps": drawn(pipe, concepts, num_inference_steps=50, **guided),
        "10 steps of an\nAlign-Your-Steps schedule": drawn(pipe, concepts, schedule=ays, **guided),
        "4 calls: SPLAM,\n8-bit weights, activations": drawn(small, concepts, **few),
    }
    page = Image.new("RGB", (5 * (SIDE + GAP) - GAP, TOP + SIDE), "white")
    pen = ImageDraw.Draw(page)
    half = SIDE // 2
    for column, (word, pictures) in enumerate(shown.items()):
        x = column * (SIDE + GAP)
        pen.text((x + half, TOP // 2), f"{word} {NOUNS[word]}: four pictures", "black", anchor="mm", font_size=14)
        for k, picture in enumerate(pictures):
            page.paste(enlarged(picture, half - 1), (x + k % 2 * (half + 1), TOP + k // 2 * (half + 1)))
    for column, (title, picture) in enumerate(panels.items(), 2):
        x = column * (SIDE + GAP)
        pen.text((x + half, TOP // 2), title, "black", anchor="mm", align="center", font_size=14)
        page.paste(enlarged(picture, SIDE), (x, TOP))
    path = Path(__file__).parent / "images" / "together.png"
    files.write_image(path, page)
    print(f"{path}: {path.stat().st_size // 1024} KiB")


if __name__ == "__main__":
    main(*sys.argv[1:])
