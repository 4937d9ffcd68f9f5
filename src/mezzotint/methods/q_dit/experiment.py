"""The claim, measured: a random transformer, the embedded trained one, and the search of its group sizes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from mezzotint.evidence import Budget, Evidence, Experiment
from mezzotint.evidence.records import Kind

from . import CARD, numerics, trained
from .search import Settings

ARMS: tuple[tuple[str, Kind, str], ...] = (
    ("Q-DiT", "method", "GPTQ weights and run-time activations in groups of 128"),
    ("RTN-T", "baseline", "rounded to nearest: a scale a weight row, one static activation range a layer"),
    ("RTN-D", "baseline", "rounded to nearest: a scale a weight row, a run-time range a token"),
    ("RTN-g static", "baseline", "rounded to nearest in groups of 128, static activation ranges"),
    ("RTN-g", "ablation", "rounded to nearest in groups of 128, run-time ranges: Q-DiT without GPTQ"),
    ("GPTQ-row", "ablation", "GPTQ with a scale a row: Q-DiT without groups"),
    ("SmoothQuant", "baseline", "RTN-D after moving outliers into the weights, alpha 0.5"),
    ("PTQ4DM", "baseline", "a scale a weight row, one static activation range of least squared error a layer"),
    ("G4W+P4A", "baseline", "GPTQ weights in groups of 128, activations as PTQ4DM"),
    ("TFMQ-DM", "baseline", "a scale a weight row, one static activation range a layer and timestep"),
    ("RTN-g + PTQD", "baseline", "RTN-g with PTQD's correction of the predicted noise"),
    ("RTN-g64", "ablation", "rounded to nearest in groups of 64, run-time ranges"),
    ("RTN-g32", "ablation", "rounded to nearest in groups of 32, run-time ranges"),
    ("searched", "method", "group sizes found by evolution, rounded to nearest"),
    ("all-128", "baseline", "groups of 128 everywhere, rounded to nearest"),
    ("random search", "baseline", "the best of as many random group sizes as evolution tried"),
    ("knapsack", "baseline", "the least sum of the errors of layers quantised alone"),
    ("full precision", "oracle", "the model itself"),
)
COMPARED = tuple(name for name, _, _ in ARMS[:11])
QUICK = trained.Size(
    pictures=4,
    steps=6,
    calibration=16,
    judged=0,
    shown=2,
    precisions=((4, 8),),
    search=Settings(generations=1, population=4, top=2, mutations=2, crossovers=2),
    search_pictures=2,
    search_steps=4,
)
FULL = trained.Size(
    pictures=20,
    steps=20,
    calibration=128,
    judged=20,
    shown=4,
    precisions=((4, 8), (8, 8)),
    search=Settings(generations=6, population=12, top=6, mutations=6, crossovers=6),
    search_pictures=8,
    search_steps=10,
    batch=20,
    fewer=("Q-DiT", "RTN-T", "RTN-D", "RTN-g"),
)
"""About an hour of one core for three seeds."""


def experiment(seeds: Sequence[int] = (0,), budget: Budget = "quick", *, pipe: Any = None) -> Evidence:
    """Measure the claim.

    Args:
        seeds: of weights, noise, calibration and search; one value of every table belongs to each.
        budget: "quick" for the demo, "full" for the results.
        pipe: a class-conditional DiTPipeline trained on the scenes world; the embedded one when None.
    """
    import mezzotint

    pipe = mezzotint.load("scenes-dit") if pipe is None else pipe
    full = budget == "full"
    size = FULL if full else QUICK
    inputs = numerics.Size(64, 64) if full else numerics.Size(4, 4)
    trial = Experiment(CARD, seeds=seeds, budget=budget, settings=_settings(size, inputs))
    for name, kind, note in ARMS:
        trial.arm(name, kind, note)
    trained.measure_arms(trial, pipe, seeds, size, names=COMPARED)
    trained.measure_search(trial, pipe, seeds, size)
    numerics.measure_numerics(trial, seeds, inputs)
    _claims(trial)
    trial.note(
        "Everything is computed by simulation, rounded numbers in float32. The integer kernels give the same numbers "
        "up to the order of sums; what they save in time is measured by benchmarks/quantised_speed.py."
    )
    return trial.finish()


def _claims(trial: Experiment) -> None:
    place = "W4A8, natural"
    nearer = "its latents are nearer to full precision than those of"
    for other in ("RTN-T", "RTN-D", "G4W+P4A", "TFMQ-DM"):
        trial.claim(f"{nearer} {other} ({place})", trained.RMSE, "Q-DiT", over=(other,), condition=place)
    place = "W4A8, injected outliers"
    order = ("RTN-T", "RTN-D", "RTN-g static", "RTN-g", "Q-DiT")
    for worse, better in pairwise(order):
        trial.claim(f"{better} beats {worse} ({place})", trained.RMSE, better, over=(worse,), condition=place)
    trial.claim(f"groups beat smoothing ({place})", trained.RMSE, "Q-DiT", over=("SmoothQuant",), condition=place)
    for other in ("all-128", "random search", "knapsack"):
        trial.claim(f"evolution beats {other}", trained.SEARCH, "searched", over=(other,), condition=place)
    for kind in ("natural", "injected outliers"):
        condition = f"W8A8, {kind}"
        text = f"smaller groups err less on a random transformer ({condition})"
        trial.claim(text, numerics.ERROR, "RTN-g32", over=("RTN-D",), condition=condition)


def _settings(size: trained.Size, inputs: numerics.Size) -> dict[str, object]:
    return {
        "sampler": f"DDIM, {size.steps} steps, guidance {size.guidance}",
        "pictures a seed": size.pictures,
        "calibration inputs": size.calibration,
        "search": f"{size.search.population} x {size.search.generations + 1} genomes, {size.search_pictures} pictures, "
        f"{size.search_steps} steps, no guidance, groups {', '.join(map(str, trained.SPACE))}",
        "random transformer": f"width 384, 4 blocks, {inputs.inputs} inputs, {inputs.calibration} for calibration",
        "outliers": "8 channels of every input times 5 to 50",
    }
