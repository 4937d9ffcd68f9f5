"""Measures the embedded models on the test split and writes their cards: python benchmarks/zoo_cards.py [NAME ...]."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler
from jaxtyping import Float
from torch import Tensor

from mezzotint.diffusion import Sampler
from mezzotint.files import read_json, write_json
from mezzotint.loading import load, recommended, zoo_path
from mezzotint.metrics.bootstrap import mean_interval
from mezzotint.metrics.edge_prediction import EPViT
from mezzotint.metrics.parser import SceneParser
from mezzotint.metrics.ranking import auc_interval
from mezzotint.metrics.text_similarity import TextSimilarity
from mezzotint.zoo import measure, swaps
from mezzotint.zoo.cards import write_card
from mezzotint.zoo.recipes import _autoencoder, scenes_dit
from mezzotint.zoo.recipes.scenes import rendered

MACHINE = "2 cores of a shared x86-64 processor without a GPU"
GUIDANCE = (2.0, 3.0, 4.5, 6.0)


def share(values: list[float]) -> dict[str, float]:
    """Mean and 95 % bootstrap interval."""
    found = mean_interval(torch.tensor(values, dtype=torch.float64)[None])
    return {"mean": found.estimate, "low": found.low, "high": found.high, "count": len(values)}


def told(entry: dict[str, float], *, percent: bool = True) -> str:
    """An entry of `share` in words."""
    if percent:
        return (
            f"{100 * entry['mean']:.1f} % ({100 * entry['low']:.1f} to {100 * entry['high']:.1f}; n = {entry['count']})"
        )
    return f"{entry['mean']:.2f} ({entry['low']:.2f} to {entry['high']:.2f}; n = {entry['count']})"


def facts_of(name: str, training: dict[str, str], measured: dict[str, Any], **values: Any) -> dict[str, Any]:
    """The texts of a card with their numbers put in."""
    texts = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))[name]
    filled = {key: text.format(**values) if isinstance(text, str) else text for key, text in texts.items()}
    return {**filled, "training": training, "measured": measured}


def parser_card(training: dict[str, str], *, count: int) -> None:
    """Card of `scene-parser`."""
    error = measure.parser_error(SceneParser.load(), count)
    metrics = dataclasses.asdict(error)
    names = ("found", "shape", "colour", "size", "material", "pattern", "count")
    measured = {f"{name} right": f"{100 * metrics[name]:.2f} %" for name in names}
    facts = facts_of("scene-parser", training, measured, pictures=error.pictures, objects=error.objects)
    write_card(zoo_path("scene-parser"), facts, metrics=metrics)


def epvit_card(training: dict[str, str], *, count: int) -> None:
    """Card of `epvit`: true against swapped statements about renders of the test split."""
    judge, similarity = EPViT.load(), TextSimilarity.load()
    metrics: dict[str, Any] = {}
    for name, pairs in {
        **{kind: swaps.swaps(count, kind) for kind in swaps.KINDS},
        "colour, held-out combinations": swaps.swaps(count // 2, split="held_out", combined="held_out"),
    }.items():
        scores = {"epvit": swaps.graph_scores(judge, pairs), "similarity": swaps.similarity_scores(similarity, pairs)}
        areas = {f"{key}_auc": dataclasses.asdict(auc_interval(*found)) for key, found in scores.items()}
        metrics[name] = {**areas, "edges_right": share(swaps.edge_accuracy(judge, pairs).tolist())}
    area = "{estimate:.3f} ({low:.3f} to {high:.3f})"
    measured = {
        f"{what}, {name} swapped": text
        for name, row in metrics.items()
        for what, text in (
            ("AUC of EPViT", area.format(**row["epvit_auc"])),
            ("AUC of the similarity", area.format(**row["similarity_auc"])),
            ("edges right", told(row["edges_right"])),
        )
    }
    write_card(zoo_path("epvit"), facts_of("epvit", training, measured, pictures=count), metrics=metrics)


def scenes_card(training: dict[str, str], *, count: int, renders: int) -> None:
    """Card of `scenes`: guidance from validation prompts, everything else on the test split."""
    pipe, parser = load("scenes"), SceneParser.load()
    pipe.set_progress_bar_config(disable=True)
    guidance = chosen_guidance(pipe, parser)
    metrics: dict[str, Any] = {"recommended": {"guidance_scale": guidance}}
    held_out = [scene for objects in (1, 2) for scene in measure.prompts(renders // 2, objects, seed=7)[0]]
    psnr = _autoencoder.psnr(pipe.vae, rendered(held_out))
    metrics["vae_psnr_db"] = share(psnr.tolist())
    shown = []
    for objects, name in ((1, "single"), (2, "pair")):
        scenes, texts = measure.prompts(count // 2, objects)
        pictures = measure.generate(pipe, texts, guidance=guidance)
        scores = measure.scene_accuracy(parser, scenes, pictures)
        metrics[name] = {key: share(scores[key]) for key in ("right", "swap", "missing", "count")}
        made, floor = measure.frechet(parser, scenes, pictures)
        metrics[name]["frechet"] = {"distance": made, "floor": floor}
        shown.append(pictures[:32])
    single, pair = metrics["single"], metrics["pair"]
    distances = {name: metrics[name]["frechet"] for name in ("single", "pair")}
    measured = {
        "one object, shape and colour right": told(single["right"]),
        "two objects, both right": told(pair["right"]),
        "two objects, an attribute swapped": told(pair["swap"]),
        "two objects, one missing": told(pair["missing"]),
        "Frechet distance, one object (floor)": "{distance:.2f} ({floor:.2f})".format(**distances["single"]),
        "Frechet distance, two objects (floor)": "{distance:.2f} ({floor:.2f})".format(**distances["pair"]),
        "autoencoder, PSNR in dB": told(metrics["vae_psnr_db"], percent=False),
        "recommended guidance": guidance,
    }
    scales = ", ".join(map(str, GUIDANCE))
    facts = facts_of("scenes", training, measured, guidance=guidance, scales=scales)
    write_card(zoo_path("scenes"), facts, metrics=metrics, samples=torch.cat(shown))


def chosen_guidance(pipe: Any, parser: SceneParser, *, count: int = 48) -> float:
    """The scale with most right answers on validation prompts."""
    asked = [measure.prompts(count, objects, split="validation") for objects in (1, 2)]

    def right(scale: float) -> float:
        found: list[float] = []
        for scenes, texts in asked:
            pictures = measure.generate(pipe, texts, guidance=scale, steps=25, seed=1)
            found += measure.scene_accuracy(parser, scenes, pictures)["objects"]
        return sum(found) / len(found)

    results = {scale: right(scale) for scale in GUIDANCE}
    print(json.dumps({"guidance on validation": results}))
    return max(results, key=lambda scale: results[scale])


def splam_card(training: dict[str, str], *, count: int) -> None:
    """Card of `scenes-splam`: the student beside its teacher's solvers in as many steps, from the same start noise."""
    place, parser = zoo_path("scenes-splam"), SceneParser.load()
    metrics: dict[str, Any] = {**read_json(place / "metrics.json"), "base": "scenes"}
    write_json(place / "metrics.json", metrics)
    teacher, student = load("scenes"), load("scenes-splam")
    scale = float(recommended(teacher, "guidance_scale"))
    asked = [measure.prompts(count // 2, objects) for objects in (1, 2)]
    measured: dict[str, str] = {}
    shown = []
    for name, sampler in _few_steps(teacher, student, scale):
        for (scenes, texts), which in zip(asked, ("one object", "two objects"), strict=True):
            parts = [sampler(texts[k : k + 50], first=k) for k in range(0, len(texts), 50)]
            pictures = torch.cat(parts)
            right = share(measure.scene_accuracy(parser, scenes, pictures)["right"])
            distance, floor = measure.frechet(parser, scenes, pictures)
            metrics[f"{name}, {which}"] = {"right": right, "frechet": {"distance": distance, "floor": floor}}
            measured[f"{which}, {name}"] = f"{told(right)}; Frechet {distance:.2f} (floor {floor:.2f})"
            if name == "4 steps":
                shown.append(pictures[:32])
    facts = facts_of("scenes-splam", training, measured, guidance=scale)
    write_card(place, facts, metrics=metrics, samples=torch.cat(shown))


def _few_steps(teacher: Any, student: Any, scale: float) -> Iterator[tuple[str, Sampler]]:
    for steps in (1, 2, 4):
        yield f"{steps} step{'s' * (steps > 1)}", Sampler(student, steps=steps)
    for title, kind in (("DDIM", DDIMScheduler), ("DPM-Solver++", DPMSolverMultistepScheduler)):
        teacher.scheduler = kind.from_config(teacher.scheduler.config, timestep_spacing="trailing")
        yield f"the teacher's {title}, 4 steps", Sampler(teacher, steps=4, guidance_scale=scale)


def dit_card(training: dict[str, str], *, count: int, tries: int) -> None:
    """Card of `scenes-dit`: guidance from other noise than the measured pictures'."""
    pipe, parser = load("scenes-dit"), SceneParser.load()
    pipe.set_progress_bar_config(disable=True)

    def rights(pictures: Tensor) -> list[float]:
        classes = [scenes_dit.CLASSES[k % len(scenes_dit.CLASSES)] for k in range(len(pictures))]
        parsed = zip(parser.parse(pictures), classes, strict=True)
        return [float(len(seen) > 0 and f"{seen[0].colour} {seen[0].shape}" == wanted) for seen, wanted in parsed]

    found = {scale: sum(rights(dit_pictures(pipe, tries, scale, seed=_TRIED))) / tries for scale in GUIDANCE}
    print(json.dumps({"guidance on other noise": found}))
    guidance = max(found, key=lambda scale: found[scale])
    pictures = dit_pictures(pipe, count, guidance)
    metrics = {"recommended": {"guidance_scale": guidance}, "class_right": share(rights(pictures))}
    measured = {"class right": told(metrics["class_right"]), "recommended guidance": str(guidance)}
    facts = facts_of("scenes-dit", training, measured, guidance=guidance, scales=", ".join(map(str, GUIDANCE)))
    write_card(zoo_path("scenes-dit"), facts, metrics=metrics, samples=pictures[:48])


@torch.inference_mode()
def dit_pictures(
    pipe: Any, count: int, guidance: float, *, seed: int = 0, batch_size: int = 48
) -> Float[Tensor, "count 3 height width"]:
    """Pictures of the classes in turn by the stock pipeline; picture k has the generator seed + k."""
    made = []
    for first in range(0, count, batch_size):
        part = range(first, min(first + batch_size, count))
        generators = [torch.Generator().manual_seed(seed + k) for k in part]
        labels = [k % len(scenes_dit.CLASSES) for k in part]
        images = pipe(
            labels, guidance_scale=guidance, num_inference_steps=50, generator=generators, output_type="np"
        ).images
        made.append(torch.from_numpy(images).permute(0, 3, 1, 2).float())
    return torch.cat(made)


_TRIED = 1_000_000

CARDS: dict[str, Callable[..., None]] = {
    "scene-parser": parser_card,
    "epvit": epvit_card,
    "scenes": scenes_card,
    "scenes-dit": dit_card,
    "scenes-splam": splam_card,
}
SIZES: dict[str, dict[str, int]] = {
    "scene-parser": {"count": 2000},
    "epvit": {"count": 1000},
    "scenes": {"count": 500, "renders": 500},
    "scenes-dit": {"count": 480, "tries": 96},
    "scenes-splam": {"count": 500},
}


def main() -> None:
    """Measure the models named on the command line, or all."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("names", nargs="*", default=list(CARDS))
    arguments.add_argument("--training", default="{}", help="JSON object: model name -> rows of its table of training")
    arguments.add_argument("--share", type=float, default=1.0, help="fraction of the pictures to measure on")
    given = arguments.parse_args()
    training = json.loads(given.training)
    for name in given.names:
        sizes = {key: max(48, int(value * given.share)) for key, value in SIZES[name].items()}
        CARDS[name]({**training.get(name, {}), "machine": MACHINE}, **sizes)
        print(json.dumps({name: read_json(zoo_path(name) / "metrics.json")}, indent=1))


if __name__ == "__main__":
    main()
