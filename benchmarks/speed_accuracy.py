"""How many pictures are right, on far more prompts than a timing draws: what `speed.py` counts as near the teacher.

The teacher and our arms draw the same held-out prompts from the same start noise, in the dtype that `fast_sampler`
chooses. Half of the prompts name one object, half two; each half is drawn by a process of its own, of one thread.
Writes benchmarks/results/speed_accuracy.json.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from speed import schedule
from speed_arms import STEPS, STUDENTS, guidance, pipeline
from speed_arms import student as distilled

from mezzotint.diffusion import fast_sampler
from mezzotint.files import write_json
from mezzotint.methods.align_your_steps.schedule import Schedule
from mezzotint.metrics.bootstrap import paired_difference
from mezzotint.metrics.parser import SceneParser
from mezzotint.zoo import measure

RESULTS = Path(__file__).parent / "results" / "speed_accuracy.json"
ARMS = ("teacher", "ays", *STUDENTS)


def half(objects: int, options: dict[str, Any]) -> dict[str, list[float]]:
    """For each arm, which prompts of so many objects are drawn rightly: 1, else 0."""
    torch.set_num_threads(1)
    parser, found = SceneParser.load(), {}
    scenes, texts = measure.prompts(options["prompts"] // 2, objects, seed=options["seed"])
    for name in ARMS:
        pipe = distilled(options) if name in STUDENTS else pipeline(options)
        settings = {"steps": STEPS[name], "guidance_scale": 1.0 if name in STUDENTS else guidance(pipe)}
        engine = {"pictures": len(texts), "batch_size": options["batch"], "compiled": False, "threads": 1}
        times = Schedule.load(options["schedule"]).apply(pipe) if name == "ays" else nullcontext()
        with times, fast_sampler(pipe, **engine, **settings) as sampler:
            right: list[bool] = []
            for first in range(0, len(texts), options["batch"]):
                part = slice(first, first + options["batch"])
                made = sampler(texts[part], seed=options["seed"], first=first)
                right += measure.scene_accuracy(parser, scenes[part], made)["right"]
                print(f"{objects} object(s), {name}: {len(right)} of {len(texts)}", file=sys.stderr, flush=True)
        found[name] = [float(value) for value in right]
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw, count, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="scenes")
    parser.add_argument("--student", help="folder of the distilled model (LoRA or pipeline); the zoo's when not given")
    parser.add_argument("--prompts", type=int, default=1500)
    parser.add_argument("--batch", type=int, default=50, help="pictures of a call")
    parser.add_argument("--seed", type=int, default=11, help="of prompts and start noise")
    parser.add_argument("--out", default=str(RESULTS))
    options = vars(parser.parse_args(arguments))
    with tempfile.TemporaryDirectory() as folder:
        options["schedule"] = schedule({**options, "schedule": None, "out": str(Path(folder) / "out")})
        with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
            halves = list(pool.map(partial(half, options=options), (1, 2)))
    right = {name: torch.tensor([part[name] for part in halves]).flatten()[None] for name in ARMS}
    results: dict[str, Any] = {"prompts": right["teacher"].numel(), "seed": options["seed"], "arms": {}}
    for name, table in right.items():
        gap = paired_difference(table.double(), right["teacher"].double())
        behind = {"mean": gap.estimate, "low": gap.low, "high": gap.high}
        results["arms"][name] = {"accuracy": float(table.mean()), "behind": behind}
        print(f"{name}: {100 * table.mean():.1f} %, {100 * gap.estimate:+.1f} points", flush=True)
    write_json(options["out"], results)


if __name__ == "__main__":
    main()
