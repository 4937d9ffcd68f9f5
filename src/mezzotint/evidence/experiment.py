"""The builder of evidence: an experiment adds arms, measurements, pictures and claims, then finishes.

trial = Experiment(CARD, seeds=seeds, budget=budget, settings={"steps": 10})
trial.arm("AYS", "method", "optimised on 512 latents")
trial.arm("EDM", "baseline", "rho = 7")
trial.measure("RMSE to 500 steps", {"AYS": ours, "EDM": edm}, direction="lower", group="DDIM", at=10, axis="steps")
trial.claim("closer to the reference than EDM", "RMSE to 500 steps", "AYS", over=("EDM",), condition="DDIM, 10 steps")
return trial.finish()
"""

from __future__ import annotations

import datetime as dt
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import metadata
from typing import Any

from jaxtyping import Float
from PIL import Image
from torch import Tensor

from mezzotint.evidence.evidence import Budget, Evidence
from mezzotint.evidence.figures import Figure
from mezzotint.evidence.records import Arm, Claim, Direction, Facts, Kind, Row, Sample, as_png, as_values

__all__ = ["Experiment", "versions"]

_LIBRARIES = ("mezzotint", "torch", "diffusers", "transformers")


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on, and the kind of machine (never its name or paths)."""
    found = {"python": platform.python_version(), "machine": f"{platform.system()} {platform.machine()}"}
    for library in _LIBRARIES:
        try:
            found[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            continue
    return found


class Experiment:
    """Collects what an experiment finds.

    Args:
        card: the method's `Card`.
        seeds: seeds of the experiment; row k of every table belongs to seed k.
        budget: ``"quick"`` or ``"full"``.
        settings: what one needs to know to repeat it.
    """

    def __init__(
        self, card: Any, *, seeds: Sequence[int], budget: Budget = "quick", settings: Mapping[str, object] | None = None
    ) -> None:
        self._started = time.perf_counter()
        self._facts = card if isinstance(card, Facts) else Facts.of(card)
        self._seeds = tuple(seeds)
        self._budget: Budget = budget
        self._settings = {key: str(value) for key, value in (settings or {}).items()}
        self._arms: dict[str, Arm] = {}
        self._rows: dict[tuple[str, str], Row] = {}
        self._claims: list[Claim] = []
        self._figures: list[Figure] = []
        self._samples: list[Sample] = []
        self._notes: list[str] = []

    def arm(self, name: str, kind: Kind = "baseline", note: str = "") -> Arm:
        """Add something that is compared.

        Args:
            name: short and unique.
            kind: the method, a baseline, an ablation or an oracle.
            note: what it is, one line.

        Raises:
            ValueError: the name is taken.
        """
        if name in self._arms:
            raise ValueError(f"arm {name!r} exists already: names must be unique")
        self._arms[name] = Arm(name, kind, note)
        return self._arms[name]

    def measure(
        self,
        metric: str,
        values: Mapping[str, Any],
        *,
        unit: str = "",
        direction: Direction = "neither",
        group: str = "",
        at: float | None = None,
        axis: str = "",
        note: str = "",
        draws: Mapping[str, Any] | None = None,
        counted: str = "prompts",
    ) -> Row:
        """Add measurements; a second call for the same metric and condition adds its arms to the row.

        Args:
            metric: what is measured.
            values: arm -> tensor, array or lists, ``seeds x units`` (see `records.as_values`).
            unit: printed behind numbers; ``"rate"`` for shares in 0..1.
            direction: which values are better.
            group: condition in words, such as the solver.
            at: condition as a number, such as the number of steps.
            axis: name of that number.
            note: how it is measured.
            draws: arm -> resampled statistics of a set-level metric.
            counted: what a unit is, in the plural.

        Raises:
            ValueError: an arm is unknown, or its table has another shape than the row's.
        """
        if unknown := sorted(values.keys() - self._arms.keys()):
            raise ValueError(
                f"unknown arms {', '.join(unknown)}; add them first: {', '.join(self._arms) or 'none yet'}"
            )
        tables = {arm: as_values(numbers) for arm, numbers in values.items()}
        resampled = {arm: tuple(map(float, numbers)) for arm, numbers in (draws or {}).items()}
        place = None if at is None else float(at)  # an int would come back from a file as another text
        row = Row(metric, tables, unit, direction, group, place, axis, note, resampled, counted)
        key = (metric, row.condition)
        if (known := self._rows.get(key)) is not None:
            row = replace(known, values={**known.values, **tables}, draws={**known.draws, **resampled})
        self._rows[key] = row
        return row

    def claim(
        self,
        text: str,
        metric: str,
        arm: str,
        *,
        over: Sequence[str],
        condition: str = "",
        margin: float = 0.0,
        relative: bool = False,
    ) -> None:
        """Add a claim; the first is the headline.

        Args:
            text: in words.
            metric: metric of the deciding row.
            arm: should win.
            over: every arm it should win over.
            condition: of the deciding row.
            margin: how much better it must be; negative: how much worse it may be.
            relative: compare the ratio of means.
        """
        self._claims.append(Claim(text, metric, arm, tuple(over), condition, margin, relative))

    def sample(
        self,
        arm: str,
        prompt: str,
        image: Image.Image | Float[Tensor, "channel height width"],
        *,
        right: bool | None = None,
    ) -> None:
        """Add a picture; pictures of one prompt stand in one line of the page.

        Args:
            arm: who made it, or any label.
            prompt: what was asked for.
            image: PIL image, or tensor in 0..1.
            right: the instrument's judgement.
        """
        self._samples.append(Sample(arm, prompt, as_png(image), right))

    def figure(self, figure: Figure) -> None:
        """Add a plot or picture.

        Args:
            figure: its title must be unique.
        """
        self._figures.append(figure)

    def note(self, text: str) -> None:
        """Add a remark on the outcome: what surprised, what was left out, limits.

        Args:
            text: one or two sentences.
        """
        self._notes.append(text)

    def finish(self) -> Evidence:
        """Close the experiment.

        Raises:
            ValueError: a claim has no row, or names repeat.
        """
        return Evidence(
            facts=self._facts,
            arms=tuple(self._arms.values()),
            rows=tuple(self._rows.values()),
            claims=tuple(self._claims),
            figures=tuple(self._figures),
            samples=tuple(self._samples),
            seeds=self._seeds,
            budget=self._budget,
            settings=self._settings,
            notes=tuple(self._notes),
            seconds=time.perf_counter() - self._started,
            versions=versions(),
            made=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        )
