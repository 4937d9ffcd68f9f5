"""How many pictures are right, on far more prompts than a timing draws: what `speed.py` counts as near the teacher.

All arms draw the same held-out prompts from the same start noise, in the dtype that `fast_sampler` chooses (OpenVINO in
its own). Half of the prompts name one object, half two; each half is drawn by a process of its own, of one thread.
Writes benchmarks/results/speed_accuracy.json, and keeps arms there that were drawn before from the same prompts,
noise and weights.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from speed import schedule
from speed_arms import (
    NEWCOMER_GUIDANCE,
    STEPS,
    STUDENTS,
    guidance,
    make,
    missing,
    pipeline,
    stock_scheduler,
    student_folder,
)
from speed_arms import student as distilled

from mezzotint.diffusion import fast_sampler
from mezzotint.files import read_json, write_json
from mezzotint.loading import find, model_hash
from mezzotint.methods.align_your_steps.schedule import Schedule
from mezzotint.metrics.bootstrap import paired_difference
from mezzotint.metrics.parser import SceneParser
from mezzotint.zoo import measure

RESULTS = Path(__file__).parent / "results" / "speed_accuracy.json"
ARMS = ("teacher", "ays", *STUDENTS, "newcomer", "tuned", "openvino")


def half(objects: int, options: dict[str, Any]) -> dict[str, dict[str, str]]:
    """For each arm, which prompts of so many objects are drawn rightly, and which with nothing uninvited: 1, else 0."""
    torch.set_num_threads(1)
    parser, found = SceneParser.load(), {}
    scenes, texts = measure.prompts(options["prompts"] // 2, objects, seed=options["seed"])
    for name in options["arms"]:
        with sampling(name, options, pictures=len(texts)) as draw:
            marks = {"right": "", "exact": ""}
            for first in range(0, len(texts), options["batch"]):
                part = slice(first, first + options["batch"])
                scores = measure.scene_accuracy(parser, scenes[part], draw(texts[part], first=first))
                for mark in marks:
                    marks[mark] += "".join("01"[bool(value)] for value in scores[mark])
                print(
                    f"{objects} object(s), {name}: {len(marks['right'])} of {len(texts)}", file=sys.stderr, flush=True
                )
        found[name] = marks
    return found


@contextmanager
def sampling(name: str, options: dict[str, Any], *, pictures: int) -> Iterator[Callable[..., torch.Tensor]]:
    """How an arm draws texts: a function of them and the number of the first."""
    if name == "openvino":
        arm = make(name, {**options, "threads": 1})
        arm.prepare(options["batch"])
        yield arm.draw
        return
    pipe = distilled(options) if name in STUDENTS else pipeline(options)
    pipe.scheduler = stock_scheduler(name, pipe)
    scale = {"newcomer": NEWCOMER_GUIDANCE} | dict.fromkeys(STUDENTS, 1.0)
    settings = {"steps": STEPS[name], "guidance_scale": scale.get(name) or guidance(pipe)}
    engine = {"pictures": pictures, "batch_size": options["batch"], "compiled": False, "threads": 1}
    times = Schedule.load(options["schedule"]).apply(pipe) if name == "ays" else nullcontext()
    with times, fast_sampler(pipe, **engine, **settings) as sampler:
        yield partial(sampler, seed=options["seed"])


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw, count, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="scenes")
    parser.add_argument("--student", help="folder of the distilled model (LoRA or pipeline); the zoo's when not given")
    parser.add_argument("--prompts", type=int, default=1500)
    parser.add_argument("--batch", type=int, default=50, help="pictures of a call")
    parser.add_argument("--seed", type=int, default=11, help="of prompts and start noise")
    parser.add_argument("--out", default=str(RESULTS))
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=ARMS, help="to draw now; with the teacher, compared")
    options = vars(parser.parse_args(arguments))
    options["arms"] = [name for name in options["arms"] if missing(name, options) is None]
    with tempfile.TemporaryDirectory() as folder:
        options["schedule"] = schedule({**options, "schedule": None, "out": str(Path(folder) / "out")})
        with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
            halves = list(pool.map(partial(half, options=options), (1, 2)))
    drawn = {"prompts": 2 * (options["prompts"] // 2), "seed": options["seed"]}
    arms = _kept(Path(options["out"]), drawn, options)
    for name in options["arms"]:
        marks = {mark: halves[0][name][mark] + halves[1][name][mark] for mark in ("right", "exact")}
        arms[name] = {"weights": _weights(name, options), "marks": marks}
    for name, arm in ((name, arm) for name, arm in arms.items() if "marks" in arm):
        arm["accuracy"], arm["exact"] = (_values(arm["marks"][mark]).mean().item() for mark in ("right", "exact"))
        print(f"{name}: {100 * arm['accuracy']:.1f} %, nothing else {100 * arm['exact']:.1f} %", flush=True)
        if "marks" in arms.get("teacher", {}):
            gap = paired_difference(*(_values(arms[key]["marks"]["right"]) for key in (name, "teacher")))
            arm["behind"] = {"mean": gap.estimate, "low": gap.low, "high": gap.high}
            print(f"{name}: {100 * gap.estimate:+.1f} points", flush=True)
    write_json(options["out"], {**drawn, "arms": {name: arms[name] for name in ARMS if name in arms}})


def _kept(out: Path, drawn: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    """Arms that were drawn before from the same prompts, noise and weights."""
    known = read_json(out) if out.is_file() else {}
    if {key: known.get(key) for key in drawn} != drawn:
        return {}
    return {name: arm for name, arm in known["arms"].items() if arm.get("weights") == _weights(name, options)}


def _weights(name: str, options: dict[str, Any]) -> str:
    """The content of the model that an arm draws with."""
    place = student_folder(options) if name in STUDENTS else find(options["model"])
    return model_hash(place) if place is not None else ""


def _values(marks: str) -> torch.Tensor:
    return torch.tensor([[float(mark) for mark in marks]], dtype=torch.float64)


if __name__ == "__main__":
    main()
