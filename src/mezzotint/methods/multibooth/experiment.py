"""The claim, measured: concepts alone (E1) and their lengths (E4), several in one picture (E2, E3), and cost (E5)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mezzotint.evidence import Budget, Evidence, Experiment

from . import CARD, regional_experiment, single_experiment
from .judge import Judge
from .world import CONCEPTS, appearances


def experiment(
    seeds: Sequence[int] = (0,), budget: Budget = "quick", *, pipe: Any = None, guidance: float | None = None
) -> Evidence:
    """Measure the claim.

    Args:
        seeds: of pictures, weights and noise; one row of every table belongs to each.
        budget: "quick" for the demo: one and two concepts, few arms; "full" for the results.
        pipe: a Stable-Diffusion-like pipeline trained on the scenes world; the embedded one when None.
        guidance: scale; what the model recommends when None.
    """
    import mezzotint
    from mezzotint.loading import recommended

    pipe = mezzotint.load("scenes") if pipe is None else pipe
    pipe.set_progress_bar_config(disable=True)
    scale = float(guidance or recommended(pipe, "guidance_scale") or 7.5)
    full = budget == "full"
    alone = single_experiment.FULL if full else single_experiment.QUICK
    together = regional_experiment.FULL if full else regional_experiment.QUICK
    trial = Experiment(CARD, seeds=seeds, budget=budget, settings=_settings(alone, together, scale))
    for name, kind, note in (*single_experiment.ARMS, *regional_experiment.ARMS):
        trial.arm(name, kind, note)
    judge = _judge(trial, max(alone.concepts, together.learning.concepts), alone)
    known: single_experiment.Known = {}
    regional_experiment.measure_regional(trial, pipe, seeds, together, guidance=scale, judge=judge, known=known)
    regional_experiment.claims(trial, together)
    single_experiment.measure_single(trial, pipe, seeds, alone, guidance=scale, judge=judge, known=known)
    single_experiment.claims(trial, alone)
    trial.note(
        "Learning rates were chosen on the cone, which is in none of the tables, with another seed: the better of two "
        "(for Custom Diffusion the first of two, with which every picture was recognised)."
    )
    return trial.finish()


def _judge(trial: Any, concepts: int, size: single_experiment.Size) -> Judge:
    """One judge for all parts; what it gets right of held-out views is said in the report."""
    kinds = CONCEPTS[:concepts]
    judge = Judge.train(appearances(kinds), views=size.judge_views, steps=size.judge_steps, progress=False)
    trial.note(f"The identity judge names {judge.accuracy:.1%} of held-out views of {len(judge.things)} appearances.")
    return judge


def _settings(alone: single_experiment.Size, together: regional_experiment.Size, guidance: float) -> dict[str, object]:
    return {
        "alone: concepts x pictures of each": f"{alone.concepts} x {alone.shown}",
        "alone: steps x batch of every arm": f"{alone.steps} x {alone.batch}",
        "alone: pictures an arm and concept": alone.pictures,
        "together: concepts x steps x batch": f"{together.learning.concepts} x {together.learning.steps} x "
        f"{together.learning.batch}",
        "together: pictures of a combination": together.pictures,
        "sampling steps": f"{alone.sampling} alone, {together.learning.sampling} together",
        "guidance": f"{guidance:g}",
    }
