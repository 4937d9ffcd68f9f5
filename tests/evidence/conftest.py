"""A small experiment whose outcome is known beforehand."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from mezzotint.diffusion.rng import stream
from mezzotint.evidence import Evidence, Experiment, Facts, Figure, Series

FACTS = Facts(
    slug="burnishing",
    title="Burnishing <& polishing>",
    claim="Burnished plates print more evenly.",
    paper="A. Printer: On plates, 1642",
    arxiv="0000.00000",
    bibtex="@article{printer1642plates,\n  title = {On plates}\n}",
    family="sampling",
    departures=("The plate is made of numbers.", "No ink is used."),
)


def table(mean: float, *, seeds: int = 3, units: int = 12, name: str = "") -> torch.Tensor:
    """Rates around a mean: what the arms share is large, what is an arm's own is small."""
    shared, own = (
        torch.randn(seeds, units, generator=stream(0, f"test-evidence-{part}"), dtype=torch.float64)
        for part in ("shared", name)
    )
    return (mean + 0.05 * shared + 0.01 * own).clamp(0, 1)


def build(*, better: float = 0.2, facts: Facts = FACTS, pictures: bool = True) -> Evidence:
    """Make evidence in which the method beats the baseline by ``better``."""
    trial = Experiment(facts, seeds=(0, 1, 2), budget="quick", settings={"steps": 10})
    trial.arm("ours", "method", "all ideas")
    trial.arm("plain", "baseline", "nothing done")
    trial.arm("half", "ablation", "one idea less")
    trial.arm("truth", "oracle", "knows the answer")
    rates = {"ours": 0.5 + better, "plain": 0.5, "half": 0.5 + better / 2, "truth": 0.95}
    trial.measure(
        "right", {n: table(m, name=n) for n, m in rates.items()}, unit="rate", direction="higher", note="By eye."
    )
    for steps in (5, 10, 20):
        values = {n: 4 * table(1 - m, name=n) / steps for n, m in rates.items() if n != "truth"}
        trial.measure("error", values, unit="mm", direction="lower", group="DDIM", at=steps, axis="steps")
    trial.claim("prints more evenly", "right", "ours", over=("plain",))
    trial.claim("errs less", "error", "ours", over=("plain", "half"), condition="DDIM, 10 steps", relative=True)
    trial.figure(Figure.lines("Depth", [Series.of("ours", [0, 1, 2], [3, 2, 1]), Series.of("bound", [0, 2], [1, 1])]))
    if pictures:
        for k, prompt in enumerate(("a red cube", "a <script>alert(1)</script> sphere")):
            for arm in ("ours", "plain"):
                picture = torch.rand(3, 8, 8, generator=stream(k, f"test-picture-{arm}"))
                trial.sample(arm, prompt, picture, right=k == 0)
    trial.note("Nothing surprised us.")
    return trial.finish()


@pytest.fixture(scope="session")
def evidence() -> Evidence:
    """Evidence with everything in it."""
    return build()


@pytest.fixture(scope="session")
def make() -> Callable[..., Evidence]:
    """The builder itself."""
    return build
