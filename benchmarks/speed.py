"""Time to quality (`make bench-speed`): stock diffusers as it comes and tuned, OpenVINO, and mezzotint, on `scenes`.

Each arm runs in a process of its own; the arms take turns, chunk by chunk of the same captions, so that other work on
the machine meets all of them and speed-ups are ratios of neighbours. Writes benchmarks/results/speed.json, the page
docs/results/speed.md and its plot. `--sd15` adds time and memory on the shape of Stable Diffusion 1.5.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import itertools
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import diffusers
import torch
from speed_arms import STEPS, TITLES, missing, pipeline
from speed_report import page, pareto_front, per_step, plot, qualities, verdicts
from speed_worker import Worker

from mezzotint.files import read_json, read_safetensors, write_bytes, write_json, write_text
from mezzotint.runtime import environment

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
SWEEPS: dict[str, tuple[int, ...]] = {"batch": (1, 4, 16), "side": (64, 96, 128), "steps": (2, 4, 8, 16)}
SWEPT = ("newcomer", "tuned", "ays")
LARGE = ("newcomer", "tuned", "ays", "splam-4")
LARGE_STEPS = (2, 3)


def say(text: str) -> None:
    """Progress, beside the data."""
    print(text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def workers(names: Sequence[str], options: Mapping[str, Any], arms: dict[str, Any]) -> Iterator[dict[str, Worker]]:
    """A process for each arm; those that cannot run say so in their results."""
    running: dict[str, Worker] = {}
    try:
        for name in names:
            if reason := missing(name, options):
                arms[name]["skipped"] = reason
            elif worker := attempt(arms, name, Worker, name, options):
                running[name] = worker
        yield running
    finally:
        for worker in running.values():
            worker.close()


def attempt(arms: dict[str, Any], name: str, do: Callable[..., Any], *given: Any, **named: Any) -> Any:
    """What `do` returns; None when it or something before it fails, which is then this arm's result."""
    if "skipped" in arms[name]:
        return None
    try:
        return do(*given, **named)
    except RuntimeError as error:
        arms[name]["skipped"] = f"failed: {error}"
        say(f"{name} failed: {error}")
        return None


def time_arms(
    names: Sequence[str], options: Mapping[str, Any], prompts: Sequence[str], arms: dict[str, Any], *, batch: int,
    keep: Path | None = None,
) -> None:  # fmt: skip
    """Draw all prompts by all arms in turns of one batch; fill in seconds, costs and, with `keep`, pictures.

    Args:
        names: of the arms.
        options: of the run.
        prompts: a whole number of batches.
        arms: results by name, filled in.
        batch: pictures of a turn.
        keep: folder for the pictures.
    """
    key = str(batch)
    with workers(names, options, arms) as running:
        for name, worker in running.items():
            if found := attempt(arms, name, worker.ask, "prepare", batch=batch):
                arms[name].setdefault("costs", {})[key] = {"ready": worker.ready, **found}
                say(f"batch {batch}, {name}: {found['engine']}, first picture after {found['first']:.1f} s")
        for first in range(0, len(prompts), batch):
            part = list(prompts[first : first + batch])
            for name, worker in running.items():
                took = attempt(arms, name, worker.ask, "draw", prompts=part, first=first, keep=keep is not None)
                note_times(arms[name], key, took, batch)
            say(f"batch {batch}: {first + len(part)} of {len(prompts)}")
        for name, worker in running.items():
            if memory := attempt(arms, name, worker.ask, "memory"):
                arms[name]["costs"][key] |= memory
            if keep is not None:
                attempt(arms, name, worker.ask, "store", path=str(keep / f"{name}.safetensors"))


def note_times(arm: dict[str, Any], key: str, took: Mapping[str, float] | None, pictures: int) -> None:
    """Add the seconds of a turn, divided by its pictures."""
    for kind, clock in (("seconds", "wall"), ("cpu", "cpu")):
        if took is not None:
            arm.setdefault(kind, {}).setdefault(key, []).append(took[clock] / pictures)


def judge(arms: dict[str, Any], scenes: Sequence[Any], folder: Path) -> float:
    """Fill in accuracy, its distance to the teacher's, and the Frechet distance; return that of renders themselves."""
    from mezzotint.metrics.bootstrap import paired_difference
    from mezzotint.metrics.parser import SceneParser
    from mezzotint.zoo import measure

    parser, floor = SceneParser.load(), float("nan")
    right: dict[str, torch.Tensor] = {}
    for name, arm in arms.items():
        path = folder / f"{name}.safetensors"
        if path.is_file():
            pictures = read_safetensors(path)["pictures"]
            right[name] = torch.tensor([measure.scene_accuracy(parser, list(scenes), pictures)["right"]])
            arm["accuracy"] = float(right[name].float().mean())
            arm["frechet"], floor = measure.frechet(parser, list(scenes), pictures)
    if "teacher" in right:
        for name, table in right.items():
            gap = paired_difference(table.double(), right["teacher"].double())
            arms[name]["behind"] = {"mean": gap.estimate, "low": gap.low, "high": gap.high}
    return floor


def captions(count: int) -> tuple[list[Any], list[str]]:
    """Held-out scenes, half of one object and half of two, alternating so that every chunk has both."""
    from mezzotint.zoo import measure

    halves = [measure.prompts(-(-count // 2), objects) for objects in (1, 2)]
    scenes, texts = ([x for pair in zip(*side, strict=True) for x in pair] for side in zip(*halves, strict=True))
    return scenes[:count], texts[:count]


def schedule(options: Mapping[str, Any]) -> str:
    """A 10-step schedule for the model: as given, else the printed one for SD 1.5, whose noise levels `scenes` has."""
    from mezzotint.methods import align_your_steps

    if options["schedule"]:
        return str(options["schedule"])
    path = Path(options["out"]).parent / "ays10.json"
    align_your_steps.make("sd15", steps=STEPS["ays"], pipe=pipeline(options), clamp=True).save(path)
    return str(path)


def sweeps(options: Mapping[str, Any]) -> dict[str, Any]:
    """Seconds a picture of a few arms by batch, side in pixels and steps; eager, so that nothing is compiled anew."""
    found: dict[str, dict[str, dict[str, float]]] = {axis: {} for axis in SWEEPS}
    scratch: dict[str, Any] = {name: {} for name in SWEPT}
    places = [(axis, place) for axis, all_of_it in SWEEPS.items() for place in all_of_it]
    with workers(SWEPT, {**options, "compile": False, "schedule": None}, scratch) as running:
        for (axis, place), (name, worker) in itertools.product(places, running.items()):
            given = {"batch": 1, "side": None, "steps": STEPS[name]} | {axis: place}
            if seconds := attempt(scratch, name, one_place, worker, **given):
                found[axis].setdefault(f"{TITLES[name]} (eager)", {})[str(place)] = seconds
    return found


def one_place(worker: Worker, *, batch: int, side: int | None, steps: int) -> float:
    """Median of three turns, seconds a picture."""
    worker.ask("prepare", batch=batch, side=side)
    worker.ask("set_steps", steps=steps)
    return statistics.median(worker.ask("draw", prompts=["a red cube"] * batch)["wall"] / batch for _ in range(3))


def large(options: Mapping[str, Any]) -> dict[str, Any]:
    """Time and memory of the arms on the shape of SD 1.5, eager, one after the other: together they would not fit."""
    arms: dict[str, Any] = {name: {"title": TITLES[name]} for name in LARGE}
    for name in LARGE:
        settings = {**options, "sd15": True, "lean": True, "schedule": None, "compile": False}
        with workers([name], settings, arms) as running:
            for worker in running.values():
                arms[name] |= attempt(arms, name, one_large, worker, STEPS[name], options["large_rounds"]) or {}
    return arms


def one_large(worker: Worker, steps: int, rounds: int) -> dict[str, Any]:
    """Seconds of a step and besides, from short runs, and what a picture of all steps takes by them."""
    # Engines are tried on runs as short as those that are timed: whole ones would take many minutes each.
    found = {"ready": worker.ready, **worker.ask("prepare", batch=1, steps=LARGE_STEPS[0])}
    times = []
    for short in LARGE_STEPS:
        worker.ask("set_steps", steps=short)
        taken = [worker.ask("draw", prompts=["a red cube"])["wall"] for _ in range(rounds)]
        times.append((short, statistics.median(taken)))
    fixed, step = per_step(*times)
    say(f"SD 1.5-shaped: {step:.3g} s a step, {fixed:.3g} s besides ({found['engine']})")
    return (
        found | {"fixed": fixed, "step": step, "steps": steps, "picture": fixed + steps * step} | worker.ask("memory")
    )


def measured(options: Mapping[str, Any]) -> dict[str, Any]:
    """All results."""
    load, batches = os.getloadavg()[0], sorted(options["batches"])
    names, largest = list(options["arms"]), batches[-1]
    count = -(-options["pictures"] // largest) * largest
    if "ays" in names:
        options = {**options, "schedule": schedule(options)}
    scenes, texts = captions(count)
    arms: dict[str, Any] = {n: {"title": TITLES[n], "ours": n.startswith(("ays", "splam"))} for n in names}
    with tempfile.TemporaryDirectory() as folder:
        for batch in batches:
            keep = Path(folder) if batch == largest else None
            part = texts if keep else texts[: batch * options["rounds"]]
            time_arms(names, options, part, arms, batch=batch, keep=keep)
        floor = judge(arms, scenes, Path(folder))
    counted = read_json(options["accuracy"]) if Path(options["accuracy"]).is_file() else {"arms": {}, "prompts": None}
    for name in counted["arms"].keys() & arms.keys():
        found = counted["arms"][name]
        arms[name]["many"] = {key: found[key] for key in ("accuracy", "exact", "behind") if key in found}
    key = str(largest)
    points, _ = qualities(arms, key)
    results: dict[str, Any] = {
        "machine": dataclasses.asdict(environment()),
        "versions": {"torch": torch.__version__, "diffusers": diffusers.__version__},
        "batches": [str(batch) for batch in batches],
        "arms": arms,
        "front": pareto_front(points),
        "targets": [row for batch in batches for row in verdicts(arms, str(batch))],
        "floor": floor,
        "load": [load, os.getloadavg()[0]],
        "pictures": count,
        "prompts": counted["prompts"],
    }
    if options["schedule"]:
        results["schedule"] = str(read_json(options["schedule"])["name"])
    return results | {key: options[key] for key in ("threads", "run", "seed")}


def parsed(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="scenes")
    parser.add_argument("--student", help="folder of the distilled model (LoRA or pipeline); the zoo's when not given")
    parser.add_argument("--schedule", help="JSON of a 10-step schedule; the printed one for SD 1.5 when not given")
    parser.add_argument("--arms", nargs="+", choices=tuple(TITLES), default=tuple(TITLES))
    parser.add_argument("--batches", type=int, nargs="+", default=(1, 16))
    parser.add_argument("--pictures", type=int, default=128, help="captions that quality is measured on")
    parser.add_argument("--accuracy", default=str(RESULTS / "speed_accuracy.json"), help="of speed_accuracy.py")
    parser.add_argument("--rounds", type=int, default=7, help="turns at the smaller batches")
    parser.add_argument("--run", type=int, default=10_000, help="length of the run that engines are chosen for")
    parser.add_argument("--threads", type=int, help="CPU threads; else all, and runtime may take fewer")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-compile", dest="compile", action="store_false", help="compile nothing, in any arm")
    parser.add_argument("--no-sweeps", dest="sweeps", action="store_false")
    parser.add_argument("--sd15", action="store_true", help="add the shape of Stable Diffusion 1.5, random weights")
    parser.add_argument("--large-rounds", type=int, default=2, help="runs of each length of the large pipeline")
    parser.add_argument("--tiny", action="store_true", help="few channels in the large pipeline, to try this script")
    parser.add_argument("--out", default=str(RESULTS / "speed.json"))
    parser.add_argument("--page", default=str(ROOT / "docs" / "results" / "speed.md"))
    parser.add_argument("--plot", default=str(ROOT / "docs" / "images" / "speed_pareto.svg"))
    options = vars(parser.parse_args(arguments))
    options |= {"fixed_threads": options["threads"] is not None}
    return options | {"threads": options["threads"] or torch.get_num_threads()}


def main() -> None:
    """Measure, write, print."""
    options = parsed()
    with_large = options.pop("sd15")
    results = measured(options)
    if options["sweeps"]:
        results["sweeps"] = sweeps(options)
    if with_large:
        results |= {"sd15": large(options), "sd15_steps": LARGE_STEPS, "sd15_lean": True}
    Path(options["out"]).parent.mkdir(parents=True, exist_ok=True)
    write_json(options["out"], results)
    write_bytes(options["plot"], plot(results))
    text = page(results, os.path.relpath(options["plot"], Path(options["page"]).parent))
    write_text(options["page"], text)
    print(text)


if __name__ == "__main__":
    main()
