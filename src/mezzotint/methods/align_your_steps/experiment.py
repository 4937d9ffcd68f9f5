"""The claim, measured: mixtures with exact denoisers, the embedded pipeline, and what each idea is worth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mezzotint.evidence import Budget, Evidence, Experiment, Figure, Series
from mezzotint.evidence.records import Kind

from . import CARD, analytic, embedded
from .embedded import DISTANCE, ODE, Bench, Found, Judge, optimise_all

ARMS: tuple[tuple[str, Kind, str], ...] = (
    ("AYS", "method", "optimised schedule: coordinate search on the bound with early stopping, then doubled"),
    ("EDM", "baseline", "equal steps of sigma^(1/7)"),
    ("LogSNR", "baseline", "equal steps of ln sigma"),
    ("time-uniform", "baseline", "equal steps of the training index"),
    ("arctan", "baseline", "the optimum of DDIM for Gaussian data of the same standard deviation"),
    ("printed for SD 1.5", "baseline", "the authors' schedule for another model with the same noise levels"),
    ("no early stopping", "ablation", "the search run until no level moves"),
    ("KLUB optimum", "ablation", "global minimum of the bound, by dynamic programming"),
    ("wrong joint law", "ablation", "x_b = x0 + b eps with the noise of x_t"),
    ("log-uniform levels", "ablation", "Monte Carlo without importance sampling"),
    ("uniform levels", "ablation", "Monte Carlo without importance sampling"),
    ("40 steps at once", "ablation", "40 levels searched directly instead of 10 doubled twice"),
    ("many steps", "oracle", "the reference itself"),
    ("true data", "oracle", "fresh samples of the data"),
)


def experiment(
    seeds: Sequence[int] = (0,), budget: Budget = "quick", *, pipe: Any = None, guidance: float | None = None
) -> Evidence:
    """Measure the claim.

    Args:
        seeds: of data, noise and search; one value of every table belongs to each.
        budget: "quick" for the demo, "full" for the results.
        pipe: a Stable-Diffusion-like pipeline trained on the scenes world; the embedded one when None.
        guidance: scale; the pipeline's default when None.
    """
    import mezzotint

    pipe = mezzotint.load("scenes") if pipe is None else pipe
    size = embedded.FULL if budget == "full" else embedded.QUICK
    toy = analytic.FULL if budget == "full" else analytic.QUICK
    trial = Experiment(CARD, seeds=seeds, budget=budget, settings=_settings(size, toy))
    for name, kind, note in ARMS:
        trial.arm(name, kind, note)
    _pipeline(trial, pipe, seeds, size=size, guidance=guidance)
    analytic.measure_lattices(trial, seeds, toy)
    analytic.measure_spread(trial, seeds)
    if budget == "full":
        analytic.measure_direct(trial, seeds, toy)
    _claims(trial, size)
    return trial.finish()


def _pipeline(
    trial: Experiment, pipe: Any, seeds: Sequence[int], *, size: embedded.Size, guidance: float | None
) -> None:
    from mezzotint.worlds.scenes.captions import caption
    from mezzotint.worlds.scenes.sampling import sample

    drawn = [sample(size.prompts, seed=seed, split="test", objects=(1, 2)) for seed in seeds]
    prompts = [[caption(s, "plain", seed=k).text for k, s in enumerate(scenes)] for scenes in drawn]
    found = [optimise_all(pipe, seed, size, guidance) for seed in seeds]
    benches = [
        Bench.make(pipe, texts, seed=seed, steps=size.reference, guidance=guidance)
        for seed, texts in zip(seeds, prompts, strict=True)
    ]
    embedded.measure_distance(trial, benches, found, size)
    embedded.measure_pictures(trial, pipe, benches, found, judge=Judge(drawn, size.pictures))
    if size.frechet:
        more = [sample(size.frechet, seed=seed + 1, split="test", objects=(1, 2)) for seed in seeds]
        embedded.measure_frechet(trial, pipe, found, more, seeds=seeds, guidance=guidance)
    _figures(trial, found[0])


def _claims(trial: Experiment, size: embedded.Size) -> None:
    ours = "the optimised schedule is nearer to the many-step result than"
    by_hand = ("EDM", "LogSNR", "time-uniform")
    for solver in ("2m", "ddim"):
        for steps in (10, *(n for n in size.steps if n != 10)):
            place = f"{ODE[solver]}, {steps} steps"
            trial.claim(f"{ours} hand-made grids ({place})", DISTANCE, "AYS", over=by_hand, condition=place)
    for case in analytic.CASES:
        place = f"{case.name}, {case.steps} steps"
        text = f"fits a mixture better than hand-made grids ({place})"
        trial.claim(text, analytic.NLL, "AYS", over=("EDM", "LogSNR"), condition=place)
        text = f"keeps the shares of the components as well as EDM does ({place})"
        trial.claim(text, analytic.ENERGY, "AYS", over=("EDM",), condition=place)
    first = analytic.CASES[1]
    trial.claim(
        "early stopping beats the full optimum of the bound",
        analytic.NLL,
        "AYS",
        over=("KLUB optimum",),
        condition=f"{first.name}, {first.steps} steps",
    )


def _figures(trial: Experiment, found: Found) -> None:
    first = [p for p in found.history if p.stage == 10]
    number, passes = [p.number for p in first], [p.objective for p in first]
    quality = [p.quality for p in first if p.quality is not None]
    trial.figure(
        Figure(
            "The bound falls, the samples do not follow",
            "KLUB and the stop metric after every pass of the first stage, each over its first value.",
            (
                Series.of("KLUB", number, [v / passes[0] for v in passes]),
                Series.of("RMSE of samples", number, [v / quality[0] for v in quality]),
            ),
            x_label="pass",
            y_label="relative to the initial grid",
        )
    )
    shown = [(arm, s) for (arm, n), s in found.schedules.items() if n == 10]
    trial.figure(
        Figure(
            "Ten steps",
            "Noise level after each step; the ends are the same for all.",
            tuple(Series.of(arm, range(11), s.sigmas) for arm, s in shown),
            x_label="step",
            y_label="sigma",
            y_log=True,
        )
    )
    trial.note(
        f"The martingale identity of an ideal denoiser is violated by {100 * found.martingale_defect:.1f} % of the "
        "largest gap: the learned denoiser is no exact posterior mean, and guidance adds to that."
    )
    for name, (ratio, bound) in analytic.gaussian_facts().items():
        trial.note(
            f"Gaussian data, 10 steps, {name} grid: standard deviation of DDIM samples {ratio:.4f} of the data's, "
            f"KLUB {bound:.2f}. The bound prefers the worse sampler, which is why the search stops early."
        )


def _settings(size: embedded.Size, toy: analytic.Size) -> dict[str, object]:
    return {
        "prompts a seed": size.prompts,
        "reference steps": size.reference,
        "chains x levels (pipeline)": f"{size.samples} x {size.levels}",
        "chains x levels (mixtures)": f"{toy.chains} x {toy.levels}",
        "stop metric": f"RMSE to {size.stop_reference} steps, {size.stop} start noises, DPM-Solver++(2M)",
    }
