"""Align Your Steps: sampling schedules optimised for a model, its data and its guidance (arXiv 2404.14507)."""

from __future__ import annotations

from typing import Any, Literal

from mezzotint.methods import Card

from .schedule import Final, Schedule

__all__ = ["CARD", "VERBS", "Schedule", "make", "optimise"]

CARD = Card(
    slug="align_your_steps",
    title="Align Your Steps",
    claim="With 10 steps or fewer, a schedule optimised for the model brings the same solver nearer to its many-step "
    "result than the hand-made grids do, at no extra cost.",
    paper="Sabour, Fidler and Kreis. Align Your Steps: Optimizing Sampling Schedules in Diffusion Models. ICML 2024.",
    arxiv="2404.14507",
    bibtex="""@inproceedings{sabour2024align,
  title     = {Align Your Steps: Optimizing Sampling Schedules in Diffusion Models},
  author    = {Sabour, Amirmojtaba and Fidler, Sanja and Kreis, Karsten},
  booktitle = {International Conference on Machine Learning},
  series    = {PMLR},
  volume    = {235},
  pages     = {42947--42975},
  year      = {2024}
}""",
    family="sampling",
    inputs=("any diffusers pipeline with a discrete-time model", "clean pictures, or the model's own samples"),
    outputs=("schedule (JSON: timesteps and sigmas)",),
    composes_with=("guidance", "attention edits", "LoRA", "quantised weights"),
    departures=(
        "The bound has the constant 1 and no factor s(t)^2; the paper's extra factors leave the arg-min unchanged.",
        "Every Monte-Carlo mean is multiplied by Z, which Algorithm 2 omits although it depends on the candidate.",
        "In the search both intervals around a level get half of the draws, so that a grid has one objective value.",
        "Default mode: a table of all step costs from forward chains instead of one estimate for each candidate.",
        "Candidates: 10 log-uniform points between the neighbours (training levels, if discrete) and the current one.",
        "Early stopping measures the distance to many-step latents from the same noise instead of FID.",
        "Hundreds of clean items by default, not 8192; the model's own samples where there are no data.",
        "The LogSNR baseline is spaced geometrically; the formula in the paper's appendix is linear in sigma.",
    ),
)

Name = Literal[
    "edm",
    "log-snr",
    "linear-sigma",
    "cosine-log-snr",
    "time-uniform",
    "time-quadratic",
    "arctan",
    "klub-gaussian",
    "sd15",
    "sdxl",
    "deepfloyd-if",
    "svd",
]


def optimise(
    pipe: Any,
    *,
    steps: int = 10,
    guidance: float | None = None,
    data: str = "auto",
    prompts: tuple[str, ...] = (),
    samples: int = 192,
    mode: Literal["chain", "monte_carlo"] = "chain",
    levels: int = 64,
    candidates: int = 11,
    c: float = 0.5,
    early_stopping: bool = True,
    stop_solver: Literal["ddim", "2m"] = "2m",
    stop_samples: int = 32,
    final: Final = "t_min",
    seed: int = 0,
    batch_size: int = 64,
    clean: Any = None,
) -> Schedule:
    """Optimise the sampling schedule of a pipeline; its weights stay as they are.

    The optimum of the bound is not the best grid (it bounds the mismatch of paths, not of final samples), so the search
    of the first ten steps keeps the pass whose samples are best; 20 and 40 steps follow by subdivision.

    Args:
        pipe: a diffusers pipeline with a discrete-time scheduler (Stable Diffusion, SDXL, DiT, PixArt ...).
        steps: number of steps n, from 1 up; the useful range is 5 to 60.
        guidance: classifier-free guidance scale to optimise for; the pipeline's default when not given.
        data: clean pictures: auto, scenes (the procedural world), self (the model's own samples), or a folder.
        prompts: for the model's own samples; used in turn.
        samples: number of clean items; of monte_carlo also the draws of an estimate (the paper takes 8192).
        mode: chain tabulates every step cost at once; monte_carlo estimates each candidate by Algorithm 2.
        levels: noise levels of the chain table, at least 11.
        candidates: places tried for a level, the current one included, at least 2.
        c: parameter of the importance density of monte_carlo.
        early_stopping: keep the pass with the best samples instead of the last one.
        stop_solver: solver whose samples decide when to stop.
        stop_samples: start noises of the stop metric.
        final: t_min ends at the lowest level, zero replaces it by 0, append_zero adds one model call down to 0.
        seed: of clean items and noise.
        batch_size: items for one call of the network.
        clean: a `data.Clean` of the caller's own latents and prompts, instead of `data`.

    Raises:
        ValueError: a value outside its range, guidance for an unconditional model, no data, no training timesteps.
    """
    options = dict(locals())
    from .optimiser import optimise_pipeline

    return optimise_pipeline(options.pop("pipe"), clean=options.pop("clean"), **options)


def make(
    name: Name,
    *,
    steps: int = 10,
    pipe: Any = None,
    s_min: float | None = None,
    s_max: float | None = None,
    c: float = 1.0,
    final: Final = "t_min",
    clamp: bool = False,
) -> Schedule:
    """A named schedule: a closed-form grid or one of the published ones.

    Args:
        name: of the grid.
        steps: number of steps n; published schedules are interpolated log-linearly when it is not 10.
        pipe: pipeline whose training levels the grid is snapped to; without one the grid stays continuous.
        s_min: lowest noise level; the model's own when not given.
        s_max: highest noise level; the model's own when not given.
        c: standard deviation of the data, for arctan and klub-gaussian.
        final: see `optimise`.
        clamp: move levels outside the model's training range to its ends instead of refusing them.

    Raises:
        ValueError: an unknown name, a range that is missing or empty, or levels that the model was not trained on.
    """
    from .named import named_schedule

    return named_schedule(name, steps, pipe=pipe, ends=(s_min, s_max), c=c, final=final, clamp=clamp)


VERBS = {"schedule": optimise}
