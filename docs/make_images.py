"""Render the pictures of the world for the documentation: ``python docs/make_images.py [FOLDER [NAME ...]]``."""

from __future__ import annotations

import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image, ImageDraw

from mezzotint import files
from mezzotint.worlds import scenes
from mezzotint.worlds.scenes import COLOURS, MATERIALS, PATTERNS, SHAPES, SIZES, Camera, Object, Scene

FINE = 5


def family() -> Scene:
    places = ((-1.75, -0.9), (-0.1, -1.7), (1.75, -1.0), (-1.1, 0.9), (0.35, 0.55), (1.55, 1.0))
    colours = ("blue", "red", "green", "yellow", "purple", "orange")
    patterns = ("plain", "plain", "striped", "dotted", "checkered", "plain")
    objects = tuple(
        Object(shape, colour, "large" if z < 0 else "small", MATERIALS[k % 2], pattern, x, z, 25.0 * k)
        for k, (shape, colour, pattern, (x, z)) in enumerate(zip(SHAPES, colours, patterns, places, strict=True))
    )
    return Scene(objects, camera=Camera(azimuth=12.0, fov=38.0))


def portrait() -> Image.Image:
    """All shapes together."""
    return scenes.gallery([replace(family(), sky="dusk")], size=512, supersample=FINE)


def shapes() -> Image.Image:
    """The shapes, the colours, and the patterns in both materials and sizes."""
    near = Camera(elevation=28.0, distance=4.4, target_height=0.62)
    rows = [
        Scene((Object(shape, colour, rotation=30.0),), camera=near)
        for shape, colour in zip(SHAPES, COLOURS, strict=False)
    ]
    rows += [
        Scene((Object("sphere", "purple", material=material, pattern=pattern, rotation=15.0),), camera=near)
        for material in MATERIALS
        for pattern in PATTERNS
    ][:5]
    rows += [Scene((Object("cube", "pink", size, rotation=30.0),), camera=near) for size in SIZES][:1]
    return scenes.gallery(rows, size=256, columns=6, supersample=FINE)


def truth() -> Image.Image:
    """One scene and what is known about it."""
    frame = scenes.render([family()], 512, supersample=FINE)
    known = (scenes.depth_colours(frame), scenes.normal_colours(frame), scenes.instance_colours(frame))
    return scenes.sheet(torch.cat([frame.rgb, *known]), columns=4)


def samples() -> Image.Image:
    """Drawn scenes at the size that the models are trained on, enlarged without smoothing."""
    small = scenes.sheet(scenes.picture(scenes.sample(16, seed=3)), columns=8, gap=2)
    return small.resize((small.width * 2, small.height * 2), Image.Resampling.NEAREST)


def edits() -> Image.Image:
    """A scene, its colours swapped, an object moved, an object taken away, other light."""
    scene = Scene((Object("cube", "red", x=-0.9, z=0.5, rotation=30.0), Object("sphere", "blue", x=1.0, z=0.2)))
    changed = [
        scene,
        scenes.swap(scene, 0, 1, "colour"),
        scenes.move(scene, 0, x=0.4, z=-2.2, rotation=20.0),
        scenes.remove(scene, 0),
        scenes.relight(scene, azimuth=60.0, elevation=25.0),
    ]
    return scenes.gallery(changed, size=320, columns=5, supersample=FINE)


def views() -> Image.Image:
    """A scene from six sides."""
    return scenes.gallery(
        scenes.orbit(replace(family(), camera=Camera(fov=48.0)), 6), size=320, columns=6, supersample=FINE
    )


def captions() -> Image.Image:
    """Three drawn scenes with their captions."""
    drawn = scenes.sample(3, seed=11, split="test", objects=(2, 3))
    tiles = scenes.gallery(drawn, size=512, columns=3, supersample=FINE)
    page = Image.new("RGB", (tiles.width, tiles.height + 64), "white")
    page.paste(tiles)
    for k, scene in enumerate(drawn):
        text = textwrap.fill(scenes.caption(scene, "relations").text, 44)
        place = (k * 516 + 256, tiles.height + 32)
        ImageDraw.Draw(page).text(place, text, "black", anchor="mm", align="center", font_size=20)
    return page


def main(folder: str = "docs/images", *names: str) -> None:
    made = {
        "family": portrait,
        "shapes": shapes,
        "truth": truth,
        "samples": samples,
        "edits": edits,
        "views": views,
        "captions": captions,
    }
    for name in names or made:
        path = Path(folder) / f"world-{name}.png"
        files.write_image(path, made[name]())
        print(f"{path}: {path.stat().st_size // 1024} KiB", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
