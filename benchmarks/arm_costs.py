"""What the arms of two experiments cost a picture: attribute binding, and MultiBooth with 0 to 5 concepts.

The arms of a table take turns in every round, after one that warms up, so that other work on the machine meets all of
them. Everything else is as in the experiments (`mezzotint bench binding`, `mezzotint bench multibooth`), but concepts
are hardly trained, which changes no time. Writes benchmarks/results/arm_costs.md.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

import mezzotint
from mezzotint.files import write_text
from mezzotint.loading import recommended
from mezzotint.methods.binding import experiment as binding
from mezzotint.methods.binding import generation
from mezzotint.methods.multibooth import place, regional_experiment, single_experiment
from mezzotint.methods.multibooth.finetuned import summed
from mezzotint.methods.multibooth.world import CONCEPTS
from mezzotint.runtime import environment

RESULTS = Path(__file__).parent / "results"
COUNTS = (0, 1, 2, 3, 4, 5)


def binding_arms(pipe: Any, guidance: float) -> tuple[int, dict[str, Callable[[], Any]]]:
    """One batch of the experiment by each arm."""
    size = replace(binding.FULL.pictures, guidance=guidance)
    prompts = generation.prompts_of(size.batch, (3, 3), seed=0)
    named = {"stock": generation.ARMS["stock"], **generation.ARMS}
    named["FCA online"] = generation.ABLATIONS["FCA online"]
    return size.batch, {name: partial(generation.made, pipe, arm, prompts, size, seed=0) for name, arm in named.items()}


def concept_arms(pipe: Any, guidance: float) -> tuple[int, dict[str, Callable[[], Any]]]:
    """One picture with so many concepts in disjoint boxes, and by the same LoRAs without regions."""
    size = replace(single_experiment.FULL, steps=1)
    options = single_experiment.options_of(CONCEPTS[0], size, 0)
    concept = single_experiment.learn_concept_once(pipe, CONCEPTS[0], size, options, known={}).concept
    assert concept is not None
    easel = regional_experiment.Easel(pipe, size, guidance)

    def paint(count: int, *, regions: bool) -> Any:
        many = [concept.renamed(word) for word in regional_experiment.WORDS[:count]]
        prompt = " and ".join(f"a {one.phrase}" for one in many) or "a cube"
        bare = summed(pipe, many).applied(pipe) if many else nullcontext()
        return easel.paint(place(pipe, prompt, many) if regions else bare, prompt, 1, 0)

    arms = {f"{count} in boxes": partial(paint, count, regions=True) for count in COUNTS}
    return 1, arms | {f"{count} without regions": partial(paint, count, regions=False) for count in COUNTS}


def alternate(arms: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of every arm in every round."""
    taken: dict[str, list[float]] = {name: [] for name in arms}
    for turn in range(rounds + 1):
        for name, run in arms.items():
            begun = time.perf_counter()
            run()
            taken[name] += [time.perf_counter() - begun] if turn else []
        print(f"round {turn} of {rounds}", flush=True)
    return taken


def table(title: str, pictures: int, taken: Mapping[str, list[float]]) -> str:
    """Median seconds a picture, and the median ratio of a round to the first arm's, with its range."""
    first = next(iter(taken.values()))
    lines = [f"## {title}", "", "| arm | s a picture | of the first arm |", "|---|---:|---:|"]
    for name, values in taken.items():
        ratios = sorted(value / base for value, base in zip(values, first, strict=True))
        middle, spread = statistics.median(ratios), f"{ratios[0]:.2f} to {ratios[-1]:.2f}"
        lines.append(f"| {name} | {statistics.median(values) / pictures:.3f} | {middle:.2f} ({spread}) |")
    return "\n".join(lines)


def main() -> None:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="rounds of the first table; the other gets twice as many")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="threads of torch")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    pipe = mezzotint.load("scenes")
    pipe.set_progress_bar_config(disable=True)
    guidance = float(recommended(pipe, "guidance_scale"))
    batch, arms = binding_arms(pipe, guidance)
    parts = [table(f"Binding, {batch} pictures at once, 20 steps", batch, alternate(arms, options.rounds))]
    batch, arms = concept_arms(pipe, guidance)
    parts.append(table("MultiBooth, one picture, 20 steps", batch, alternate(arms, 2 * options.rounds)))
    machine = environment()
    told = f"{machine.processor}, {options.threads} thread(s) of {machine.cores} cores; torch {torch.__version__}."
    text = "\n\n".join(["# Cost of the arms", told, *parts]) + "\n"
    write_text(RESULTS / "arm_costs.md", text)
    print(text)


if __name__ == "__main__":
    main()
