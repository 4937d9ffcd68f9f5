"""Speed of the shipped engine choice: eager float32 against what `mezzotint.runtime` chooses, and our own overhead.

Rows: a picture from the embedded pipeline, a few steps of it by our sampler beside the bare calls, one call of an SD
1.5-shaped U-Net with random weights, and one call through the denoiser view beside the bare call. The arms alternate,
so that other work on the machine meets both; wall and CPU seconds are given, since on a busy machine only the latter
mean much. Medians with quartiles.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel

import mezzotint
from mezzotint.diffusion import Condition, Denoiser, Sampler, decode, latent_shape
from mezzotint.files import write_json, write_text
from mezzotint.runtime import accelerate, environment
from mezzotint.runtime.examples import example_inputs

RESULTS = Path(__file__).parent / "results"
SCENES_SHAPE = {
    "sample_size": 16,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (64, 128, 192),
    "layers_per_block": 2,
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "cross_attention_dim": 128,
    "attention_head_dim": 4,
}
SD15_SHAPE = {"sample_size": 64, "cross_attention_dim": 768}


def random_unet(**shape: Any) -> UNet2DConditionModel:
    """Build a U-Net with small random weights without the minutes that initialising a large one takes."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(**shape)
    unet = unet.to_empty(device="cpu").eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in unet.parameters():
        parameter.data.uniform_(-0.03, 0.03, generator=generator)
    return unet


def alternate(arms: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, dict[str, Any]]:
    """Time the arms in turn, after one call of each to warm up."""
    samples: dict[str, list[tuple[float, float]]] = {name: [] for name in arms}
    with torch.no_grad():
        for run in arms.values():
            run()
        for _ in range(rounds):
            for name, run in arms.items():
                wall, cpu = time.perf_counter(), time.process_time()
                run()
                samples[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    return {name: summary(pairs) for name, pairs in samples.items()}


def summary(pairs: list[tuple[float, float]]) -> dict[str, Any]:
    """Median and quartiles of wall and CPU seconds."""
    columns = {"wall": [wall for wall, _ in pairs], "cpu": [cpu for _, cpu in pairs]}
    return {
        name: {"median": statistics.median(values), "quartiles": statistics.quantiles(values, n=4)[::2]}
        for name, values in columns.items()
    } | {"rounds": len(pairs)}


def engines(network: Any, inputs: Mapping[str, Any], *, calls: int, rounds: int) -> dict[str, Any]:
    """One call of a network: eager float32 beside the engine that runtime chooses for a run of `calls`."""
    fast = copy.deepcopy(network)
    with ExitStack() as stack:
        report = stack.enter_context(accelerate(fast, calls=calls, example=inputs))
        arms = {"eager float32": lambda: network(**inputs), "chosen": lambda: fast(**inputs)}
        timings = alternate(arms, rounds)
    return {"calls": calls, "timings": timings, "report": dataclasses.asdict(report)}


def overhead(network: Any, rounds: int) -> dict[str, Any]:
    """One call through the denoiser view beside the bare call."""
    inputs = example_inputs(network, 2)
    x, t, text = inputs["sample"], inputs["timestep"], inputs["encoder_hidden_states"]
    scheduler = DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    denoiser, cond = Denoiser(network, scheduler), Condition(text)
    arms = {
        "bare call": lambda: network(x, t, encoder_hidden_states=text)[0],
        "denoiser.eps": lambda: denoiser.eps(x, t, cond),
        "denoiser.x0": lambda: denoiser.x0(x, 500, cond),
    }
    return {"timings": alternate(arms, rounds)}


def pictures(*, steps: int, rounds: int) -> dict[str, Any] | None:
    """A picture from the embedded pipeline, if its weights are there."""
    if not (Path(mezzotint.__file__).parent / "zoo" / "weights" / "scenes").is_dir():
        return None
    plain, fast = mezzotint.load("scenes"), mezzotint.load("scenes")
    for pipe in (plain, fast):
        pipe.set_progress_bar_config(disable=True)

    def sample(pipe: Any) -> Any:
        generator = torch.Generator().manual_seed(0)
        return pipe("a red cube and a blue sphere", num_inference_steps=steps, generator=generator, output_type="np")

    with ExitStack() as stack:
        report = stack.enter_context(accelerate(fast, calls=1000))
        timings = alternate({"eager float32": lambda: sample(plain), "chosen": lambda: sample(fast)}, rounds)
    return {"calls": 1000, "steps": steps, "timings": timings, "report": dataclasses.asdict(report)}


def sampling(*, steps: int, rounds: int) -> dict[str, Any] | None:
    """A few guidance-free steps: the bare calls and the decoding, our sampler around them, the pipeline's own call."""
    if not (Path(mezzotint.__file__).parent / "zoo" / "weights" / "scenes").is_dir():
        return None
    pipe, prompts = mezzotint.load("scenes"), ["a red cube and a blue sphere"]
    pipe.set_progress_bar_config(disable=True)
    text = Condition.alone(pipe, prompts).encoder_hidden_states
    x, t = torch.randn(1, *latent_shape(pipe), generator=torch.Generator().manual_seed(0)), torch.tensor([500])

    def bare() -> Any:
        for _ in range(steps):
            pipe.unet(x, t, encoder_hidden_states=text)
        return decode(pipe, x)

    sampler, settings = Sampler(pipe, steps=steps), {"guidance_scale": 1.0, "output_type": "pt"}
    arms = {
        "bare calls and decoding": bare,
        "Sampler": lambda: sampler(prompts),
        "the pipeline's own call": lambda: pipe(prompts, num_inference_steps=steps, **settings),
    }
    return {"timings": alternate(arms, rounds)}


def main() -> None:
    """Measure, write the results and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=100, help="length of the run that runtime plans for")
    parser.add_argument(
        "--rounds", type=int, default=5, help="rounds of the large network; the small ones get 10 times"
    )
    parser.add_argument("--skip-large", action="store_true", help="leave out the SD 1.5-shaped network")
    options = parser.parse_args()
    rows: dict[str, Any] = {"embedded pipeline, one picture": pictures(steps=25, rounds=2 * options.rounds)}
    rows["embedded pipeline, 4 steps without guidance"] = sampling(steps=4, rounds=4 * options.rounds)
    small = random_unet(**SCENES_SHAPE)
    rows["embedded-shaped U-Net, one call"] = engines(
        small, example_inputs(small, 2), calls=options.calls, rounds=10 * options.rounds
    )
    rows["denoiser view, one call"] = overhead(small, 20 * options.rounds)
    if not options.skip_large:
        large = random_unet(**SD15_SHAPE)
        rows["SD 1.5-shaped U-Net, one call"] = engines(
            large, example_inputs(large, 1), calls=options.calls, rounds=options.rounds
        )
    save({name: row for name, row in rows.items() if row is not None})


def save(rows: Mapping[str, Any]) -> None:
    """Write JSON and Markdown; rows that were not measured this time keep their earlier figures out."""
    machine = dataclasses.asdict(environment())
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    versions = {"torch": torch.__version__, "python": platform.python_version()}
    write_json(RESULTS / "runtime.json", {"machine": machine, "load": load, "versions": versions, "rows": dict(rows)})
    write_text(RESULTS / "runtime.md", markdown(rows, machine, load))
    print((RESULTS / "runtime.md").read_text())


def markdown(rows: Mapping[str, Any], machine: Mapping[str, Any], load: float | None) -> str:
    """Lay the results out as a table with what was decided below it."""
    head = (
        f"# Runtime\n\n{machine['processor']}, {machine['threads']} thread(s) of {machine['cores']} cores, "
        f"{' '.join(machine['isa'])}; torch {torch.__version__}; load average {load:.1f} at the end.\n\n"
        "Medians with quartiles, arms alternating. CPU seconds are those of all threads together.\n\n"
        "| what | engine | wall s | CPU s | rounds |\n|---|---|---|---|---|\n"
    )
    lines = [
        f"| {what} | {label(engine, row)} | {spread(times['wall'])} | {spread(times['cpu'])} | {times['rounds']} |"
        for what, row in rows.items()
        for engine, times in row["timings"].items()
    ]
    notes = [
        f"- {what}, planned for {row['calls']} calls: {'; '.join(row['report']['reasons'])}. "
        f"Relative difference of the output: {row['report']['relative_error']:.1e}."
        for what, row in rows.items()
        if "report" in row
    ]
    return head + "\n".join(lines) + "\n\n" + "\n".join(notes) + "\n"


def label(engine: str, row: Mapping[str, Any]) -> str:
    """Name the chosen engine."""
    if engine != "chosen":
        return engine
    report = row["report"]
    return f"chosen: {'compiled' if report['compiled'] else 'eager'} {report['dtype']}"


def spread(values: Mapping[str, Any]) -> str:
    """Median and quartiles in three digits."""
    low, high = values["quartiles"]
    return f"{values['median']:.3g} ({low:.3g}-{high:.3g})"


if __name__ == "__main__":
    main()
