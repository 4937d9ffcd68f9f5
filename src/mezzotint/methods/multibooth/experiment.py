"""The claim, measured: concepts alone (E1), the lengths of their embeddings (E4)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mezzotint.evidence import Budget, Evidence, Experiment

from . import CARD, single_experiment


def experiment(
    seeds: Sequence[int] = (0,), budget: Budget = "quick", *, pipe: Any = None, guidance: float | None = None
) -> Evidence:
    """Measure the claim.

    Args:
        seeds: of pictures, weights and noise; one row of every table belongs to each.
        budget: "quick" for the demo: one concept, a few dozen steps; "full" for the results.
        pipe: a Stable-Diffusion-like pipeline trained on the scenes world; the embedded one when None.
        guidance: scale; what the model recommends when None.
    """
    import mezzotint
    from mezzotint.loading import recommended

    pipe = mezzotint.load("scenes") if pipe is None else pipe
    pipe.set_progress_bar_config(disable=True)
    scale = float(guidance or recommended(pipe, "guidance_scale") or 7.5)
    size = single_experiment.FULL if budget == "full" else single_experiment.QUICK
    trial = Experiment(CARD, seeds=seeds, budget=budget, settings=_settings(size, scale))
    for name, kind, note in single_experiment.ARMS:
        trial.arm(name, kind, note)
    single_experiment.measure_single(trial, pipe, seeds, size, guidance=scale)
    single_experiment.claims(trial)
    if budget != "full":
        trial.note(f"{size.steps} steps on one concept show that everything runs; they are too few to learn it.")
    return trial.finish()


def _settings(size: single_experiment.Size, guidance: float) -> dict[str, object]:
    return {
        "concepts x pictures of each": f"{size.concepts} x {size.shown}",
        "steps x batch of every arm": f"{size.steps} x {size.batch}",
        "pictures an arm and concept": size.pictures,
        "sampler": f"the pipeline's own, {size.sampling} steps, guidance {guidance:g}",
    }
