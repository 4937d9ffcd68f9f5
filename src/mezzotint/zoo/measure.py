"""Measures the embedded models on the test split, with the scene parser as the instrument.

The parser's own error is measured first, on renders with exact labels.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mezzotint.diffusion.rng import normal
from mezzotint.metrics.frechet import frechet_distance
from mezzotint.metrics.parser import ATTRIBUTES, SceneParser
from mezzotint.metrics.scene_accuracy import ParsedObject, WantedObject, score_scenes
from mezzotint.worlds.scenes.captions import caption
from mezzotint.worlds.scenes.render import picture, render
from mezzotint.worlds.scenes.sampling import Split, sample
from mezzotint.worlds.scenes.scene import Scene

VISIBLE_PIXELS = 12


@dataclass(frozen=True)
class ParserError:
    """Shares of visible objects of held-out renders whose words were read right, and of pictures whose count was."""

    objects: int
    pictures: int
    found: float
    shape: float
    colour: float
    size: float
    material: float
    pattern: float
    count: float


def parser_error(parser: SceneParser, count: int = 2000, *, seed: int = 0, split: Split = "test") -> ParserError:
    """Compare the parser with the truth on renders of a split; an object counts when at least 12 pixels of it show.

    Objects are matched to the nearest parsed centre; one that was not found counts as wrong in every word.
    """
    right = dict.fromkeys(ATTRIBUTES, 0)
    objects = found = counted = 0
    for first in range(0, count, 256):
        scenes = sample(min(256, count - first), seed=seed, split=split, first=first, combinations="all")
        frame = render(scenes)
        parsed = parser.parse(frame.rgb)
        for k, scene in enumerate(scenes):
            places = _visible(frame.instance[k, 0], len(scene.objects))
            pairs = _nearest(places, parsed[k])
            objects, found = objects + len(places), found + len(pairs)
            counted += len(parsed[k]) == len(places)
            for name in ATTRIBUTES:
                right[name] += sum(getattr(scene.objects[i], name) == getattr(seen, name) for i, seen in pairs)
    shares = {name: value / objects for name, value in right.items()}
    return ParserError(objects, count, found / objects, count=counted / count, **shares)


def prompts(count: int, objects: int, *, seed: int = 0, split: Split = "test") -> tuple[list[Scene], list[str]]:
    """Held-out scenes with that many objects and their plain captions."""
    scenes = sample(count, seed=seed, split=split, objects=(objects, objects))
    return scenes, [caption(scene, "plain", seed=k).text for k, scene in enumerate(scenes)]


def wanted(scenes: list[Scene]) -> list[list[WantedObject]]:
    """What a plain caption asks for: shapes and colours."""
    return [[WantedObject(item.shape, colour=item.colour) for item in scene.objects] for scene in scenes]


@torch.inference_mode()
def generate(
    pipe: Any, texts: list[str], *, guidance: float, steps: int = 50, seed: int = 0, batch_size: int = 50
) -> Float[Tensor, "count 3 height width"]:
    """Pictures of prompts by the pipeline's own scheduler; the noise of picture k does not depend on the batch."""
    side = pipe.unet.config.sample_size
    made = []
    for first in range(0, len(texts), batch_size):
        part = texts[first : first + batch_size]
        noise = normal((4, side, side), seed=seed, purpose="measure", first=first, count=len(part), device=pipe.device)
        made.append(_call(pipe, part, noise, guidance=guidance, steps=steps))
    return torch.cat(made)


def scene_accuracy(
    parser: SceneParser, scenes: list[Scene], pictures: Float[Tensor, "count 3 height width"]
) -> dict[str, list[float]]:
    """What the parser says of each picture; the names are those of `SceneScore`."""
    return score_scenes(wanted(scenes), parser.parse(pictures))


def frechet(
    parser: SceneParser, scenes: list[Scene], pictures: Float[Tensor, "count 3 height width"]
) -> tuple[float, float]:
    """Frechet distance of pictures to renders of the same kind of scenes, and that of further renders (the floor)."""
    counts = (min(len(s.objects) for s in scenes), max(len(s.objects) for s in scenes))
    real = [picture(sample(len(pictures), seed=seed, split="test", objects=counts)) for seed in (101, 102)]
    features = [parser.features(images) for images in (pictures, *real)]
    return float(frechet_distance(features[0], features[1])), float(frechet_distance(features[2], features[1]))


def seconds_per_picture(pipe: Any, texts: list[str], **settings: Any) -> float:
    """Wall time of one batch, divided by its size."""
    start = time.perf_counter()
    generate(pipe, texts, batch_size=len(texts), **settings)
    return (time.perf_counter() - start) / len(texts)


def _call(pipe: Any, texts: list[str], noise: Tensor, *, guidance: float, steps: int) -> Tensor:
    made = pipe(
        texts,
        latents=noise.to(pipe.unet.dtype),
        guidance_scale=guidance,
        num_inference_steps=steps,
        output_type="pt",
    )
    return made.images.float().clamp(0, 1)


def _visible(instance: Tensor, objects: int) -> dict[int, tuple[float, float]]:
    """Centre of the visible pixels of each object that shows, as shares of the picture."""
    places = {}
    for index in range(objects):
        rows, columns = torch.nonzero(instance == index + 1, as_tuple=True)
        if len(rows) >= VISIBLE_PIXELS:
            side = instance.shape[-1]
            places[index] = (float(columns.float().mean() + 0.5) / side, float(rows.float().mean() + 0.5) / side)
    return places


def _nearest(places: dict[int, tuple[float, float]], parsed: list[ParsedObject]) -> list[tuple[int, ParsedObject]]:
    """Pairs of true objects and parsed ones, closest pairs first, none farther than a quarter of the picture."""
    gaps = sorted(
        (((seen.x - x) ** 2 + (seen.y - y) ** 2) ** 0.5, i, j)
        for i, (x, y) in places.items()
        for j, seen in enumerate(parsed)
    )
    pairs: dict[int, int] = {}
    for gap, i, j in gaps:
        if gap < 0.25 and i not in pairs and j not in pairs.values():
            pairs[i] = j
    return [(i, parsed[j]) for i, j in pairs.items()]
