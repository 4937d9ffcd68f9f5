"""The claim, measured: a mixture with an exact teacher, the embedded pipeline, and what each idea is worth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mezzotint.evidence import Budget, Evidence, Experiment
from mezzotint.evidence.records import Kind

from . import CARD, analytic, embedded

FAR_LCM = "LCM, 4 points of 5 teacher steps"
ARMS: tuple[tuple[str, Kind, str], ...] = (
    (
        "SPLAM improved",
        "method",
        "effective timestep instead of an embedding, linear noise, half of the draws at gamma 1",
    ),
    ("SPLAM official", "method", "as the authors' script: embedding, quadrature, gamma uniform"),
    (embedded.ADAPTER, "method", "as SPLAM improved, but a LoRA by the recipe of the zoo's, 500 steps"),
    (embedded.MILD[embedded.ADAPTER], "method", "the same with guidance 3 instead of 4.5 baked in, 1,000 steps"),
    (embedded.SHIPPED, "method", "the LoRA of the zoo, 1,000 steps; in the quick budget alone"),
    ("LCM-fixed-w", "baseline", "gamma = 1 throughout, everything else equal: the ablation of the idea"),
    ("teacher DDIM", "baseline", "the teacher's ODE in as many steps, with guidance: two network calls a step"),
    ("teacher DPM-Solver++", "baseline", "second-order multistep solver, with guidance: two network calls a step"),
    (embedded.MILD["teacher DDIM"], "baseline", "the same with guidance 3"),
    (embedded.MILD["teacher DPM-Solver++"], "baseline", "the same with guidance 3"),
    ("linear noise, gamma one", "ablation", "embedding, with the linear noise and half of the draws at gamma 1"),
    ("gamma zero", "ablation", "gamma = 0 throughout: the jump itself is never learnt"),
    ("no drift factor", "ablation", "r = 1 on the sub-path"),
    ("no average", "ablation", "the target is the student itself"),
    ("squares", "ablation", "squared error instead of Huber"),
    ("10 points", "ablation", "jumps of 100 training timesteps"),
    ("100 points", "ablation", "jumps of 10 training timesteps"),
    ("4 points of 5 teacher steps", "ablation", "far points, between which the teacher takes five steps"),
    (FAR_LCM, "ablation", "the same with gamma = 1 throughout"),
    ("teacher, 50 steps", "oracle", "what is distilled"),
    (embedded.MILD["teacher, 50 steps"], "oracle", "what the LoRA of guidance 3 is distilled from"),
)


def experiment(
    seeds: Sequence[int] = (0,), budget: Budget = "quick", *, pipe: Any = None, guidance: float | None = None
) -> Evidence:
    """Measure the claim.

    Args:
        seeds: of data, networks and noise; one value of every table belongs to each.
        budget: "quick" for the demo: the plane, which distils in seconds, and the LoRA of the zoo; "full" for the
            results.
        pipe: a Stable-Diffusion-like pipeline trained on the scenes world; the embedded one when None, for which alone
            the zoo has a LoRA.
        guidance: scale that is baked in; what the model recommends when None.
    """
    full = budget == "full"
    plane = analytic.FULL if full else analytic.QUICK
    settings = _settings(plane) | (_pipeline_settings(embedded.FULL) if full else {})
    trial = Experiment(CARD, seeds=seeds, budget=budget, settings=settings)
    for name, kind, note in ARMS:
        trial.arm(name, kind, note)
    if full:
        _pipeline(trial, pipe, seeds, guidance=guidance)
    elif pipe is None:
        _shipped(trial, seeds, embedded.QUICK)
    analytic.measure_plane(trial, seeds, plane)
    _plane_claims(trial, plane)
    if not full:
        trial.note("Arms are distilled on the pipeline by the full budget alone, which takes hours.")
    return trial.finish()


def _pipeline(trial: Experiment, pipe: Any, seeds: Sequence[int], *, guidance: float | None) -> None:
    import mezzotint

    from .trainer import default_guidance

    pipe = mezzotint.load("scenes") if pipe is None else pipe
    pipe.set_progress_bar_config(disable=True)
    scale = default_guidance(pipe, "splam") if guidance is None else guidance
    size = embedded.FULL
    trial.note(f"The guidance scale that is baked in is {scale}.")
    benches = [embedded.Bench.make(pipe, size, seed, guidance=scale) for seed in seeds]
    arms = [embedded.distil_arms(pipe, size, seed, guidance=scale) for seed in seeds]
    embedded.measure_pipeline(trial, benches, arms, size)
    if (recipe := size.mild) and recipe.guidance is not None:
        trial.note(f"Mild guidance is {recipe.guidance}.")
        given: dict[str, Any] = {"guidance": recipe.guidance}
        own = [embedded.distil_mild(pipe, recipe, seed, precision=size.precision, **given) for seed in seeds]
        mild = [embedded.Bench.make(pipe, size, seed, names=embedded.MILD, **given) for seed in seeds]
        embedded.measure_pipeline(trial, mild, own, size)
    _pipeline_claims(trial, size)


def _shipped(trial: Experiment, seeds: Sequence[int], size: embedded.Size) -> None:
    """The LoRA of the zoo on its base."""
    import mezzotint

    from .trainer import default_guidance

    teacher, student = mezzotint.load("scenes"), mezzotint.load("scenes-splam")
    teacher.set_progress_bar_config(disable=True)
    scale = default_guidance(teacher, "splam")
    benches = [embedded.Bench.make(teacher, size, seed, guidance=scale) for seed in seeds]
    embedded.measure_pipeline(trial, benches, [{embedded.SHIPPED: student}] * len(seeds), size)
    text = "four calls of the shipped LoRA give more right pictures than four teacher steps of two calls"
    solvers = ("teacher DDIM", "teacher DPM-Solver++")
    trial.claim(text, embedded.RIGHT, embedded.SHIPPED, over=solvers, condition="4 steps")


def _pipeline_claims(trial: Experiment, size: embedded.Size) -> None:
    place = "4 steps"
    for arm in _learnt(size):
        for rivals, whose in _solvers(arm):
            text = f"{arm}: four calls give more right pictures than four {whose} steps of two calls"
            trial.claim(text, embedded.RIGHT, arm, over=rivals, condition=place)
            text = f"{arm}: four calls are nearer to real pictures than four {whose} steps of two calls"
            trial.claim(text, embedded.FRECHET, arm, over=rivals, condition=place)
        rivals, whose = _solvers(arm)[-1]
        text = f"{arm}: four calls are nearer to the teacher's 50 steps than four {whose} steps of two calls"
        trial.claim(text, embedded.TO_TEACHER, arm, over=rivals, condition=place)
    for arm in ("SPLAM improved", "SPLAM official"):
        for steps in (n for n in size.steps if n in (2, 4)):
            text = f"{arm} is nearer to real pictures than LCM at equal cost ({steps} steps)"
            trial.claim(text, embedded.FRECHET, arm, over=("LCM-fixed-w",), condition=f"{steps} steps")
        trial.claim(
            f"{arm} is ten times as fast as 50 guided steps",
            embedded.SECONDS,
            arm,
            over=("teacher, 50 steps",),
            condition=embedded.SPEED,
            margin=0.9,
            relative=True,
        )


def _solvers(arm: str) -> list[tuple[tuple[str, ...], str]]:
    """What an arm is compared with: the teacher's solvers as it recommends them, then with the arm's own guidance."""
    found = [(tuple(embedded.SOLVERS), "teacher")]
    if arm == embedded.MILD[embedded.ADAPTER]:
        found.append((tuple(embedded.MILD[name] for name in embedded.SOLVERS), "equally mild teacher"))
    return found


def _learnt(size: embedded.Size) -> tuple[str, ...]:
    adapter = (embedded.ADAPTER,) if size.adapter else ()
    mild = (embedded.MILD[embedded.ADAPTER],) if size.mild else ()
    return ("SPLAM improved", "SPLAM official", "LCM-fixed-w", *adapter, *mild)


def _plane_claims(trial: Experiment, plane: analytic.Size) -> None:
    for steps in (1, 2, 4):
        text = f"on the plane, SPLAM improved is nearer to the data than LCM ({steps} steps)"
        condition = f"{analytic.PLACE}, {steps} steps"
        trial.claim(text, analytic.ENERGY, "SPLAM improved", over=("LCM-fixed-w",), condition=condition)
    for arm, base in (("4 points of 5 teacher steps", "SPLAM improved"), (FAR_LCM, "LCM-fixed-w")):
        if arm in plane.arms:
            text = f"on the plane, far points of five teacher steps make one call nearer to the data ({base})"
            trial.claim(text, analytic.ENERGY, arm, over=(base,), condition=f"{analytic.PLACE}, 1 steps")
    text = "on the plane, learning the jump is what makes one step work (gamma zero does not)"
    where = f"{analytic.PLACE}, 1 steps"
    trial.claim(text, analytic.END, "SPLAM improved", over=("gamma zero",), condition=where)


def _settings(plane: analytic.Size) -> dict[str, object]:
    return {
        "plane: steps on noise, then of distillation, x batch": f"{plane.pretrain}, {plane.steps} x {plane.batch}",
        "plane: learning rate": plane.learning_rate,
    }


def _pipeline_settings(size: embedded.Size) -> dict[str, object]:
    return {
        "pipeline: distillation steps x batch": f"{size.train_steps} x {size.batch}",
        "pipeline: pictures": size.pictures,
        "pipeline: LoRA": _told(size.adapter),
        "pipeline: LoRA, mild guidance": _told(size.mild),
        "pipeline: held-out prompts a seed": size.prompts,
        "pipeline: learning rate": size.learning_rate,
        "pipeline: precision of training and sampling": size.precision,
    }


def _told(one: embedded.Adapter | None) -> str:
    if one is None:
        return "none"
    guided = "" if one.guidance is None else f", guidance {one.guidance:g}"
    return (
        f"rank {one.rank}, {one.train_steps} x {one.batch} of {one.pictures} pictures, rate {one.learning_rate}{guided}"
    )
