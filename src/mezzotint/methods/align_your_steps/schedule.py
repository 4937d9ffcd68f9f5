"""A sampling schedule: noise levels, the training timesteps they sit on, where they came from, and its JSON file.

The printed recipe of Align Your Steps (arXiv 2404.14507) ends at sigma = t_0, other tools replace that last level by 0
or append a 0 and pay one more model call; `final` says which of the three a schedule does.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from . import grids
from .grids import Grid

if TYPE_CHECKING:
    from .search import Pass

Final = Literal["t_min", "zero", "append_zero"]
FORMAT = "mezzotint.schedule/1"
Facts = Mapping[str, str | float | int | None]


@dataclass(frozen=True)
class Schedule:
    """A decreasing grid of n + 1 noise levels for n steps.

    Attributes:
        sigmas: variance-exploding noise levels t_n > ... > t_0 > 0, sqrt((1 - abar) / abar) for discrete models.
        levels: training timestep of each sigma, decreasing; None for continuous-time models.
        final: "t_min" samples down to t_0 in n model calls; "zero" replaces t_0 by 0 (n calls); "append_zero" appends a
            0 (n + 1 calls).
        name: of the grid ("align-your-steps", "edm", "sd15", ...).
        facts: what the schedule was made for and with: guidance, model fingerprint, solver, seed, calls spent ...
        history: every pass of the search, where there was one.
    """

    sigmas: Grid
    levels: tuple[int, ...] | None = None
    final: Final = "t_min"
    name: str = "custom"
    facts: Facts = field(default_factory=dict)
    history: tuple[Pass, ...] = ()

    def __post_init__(self) -> None:
        """Refuse grids that are not strictly decreasing, and timesteps that do not belong to them."""
        grids.check_grid(self.grid)
        if self.final not in get_args(Final):
            raise ValueError(f"final must be one of {get_args(Final)}, got {self.final!r}")
        if self.levels is None:
            return
        if len(self.levels) != len(self.sigmas):
            raise ValueError(f"{len(self.sigmas)} sigmas need as many timesteps, got {len(self.levels)}")
        if any(a <= b for a, b in zip(self.levels[:-1], self.levels[1:], strict=True)) or self.levels[-1] < 0:
            raise ValueError(f"timesteps must decrease without duplicates to 0 or above, got {list(self.levels)}")

    @classmethod
    def from_levels(cls, levels: Sequence[int], training_sigmas: Sequence[float], **fields: Any) -> Schedule:
        """A schedule from n + 1 training timesteps in any order.

        Args:
            levels: training timesteps; sorted here.
            training_sigmas: noise level of every training timestep, ascending.
            **fields: the other attributes of a schedule.

        Raises:
            ValueError: a timestep is not a training timestep, or occurs twice.
        """
        ordered = tuple(sorted((int(i) for i in levels), reverse=True))
        if not ordered or ordered[-1] < 0 or ordered[0] >= len(training_sigmas):
            raise ValueError(f"timesteps must be in 0..{len(training_sigmas) - 1}, got {list(levels)}")
        return cls(tuple(float(training_sigmas[i]) for i in ordered), ordered, **fields)

    @classmethod
    def from_grid(
        cls,
        grid: Sequence[float],
        training_sigmas: Sequence[float] | None = None,
        *,
        clamp: bool = False,
        **fields: Any,
    ) -> Schedule:
        """A schedule from an ascending grid, snapped to distinct training levels when those are given."""
        if training_sigmas is None:
            return cls(tuple(float(t) for t in reversed(grid)), None, **fields)
        return cls.from_levels(grids.snap(grid, training_sigmas, clamp=clamp), training_sigmas, **fields)

    @classmethod
    def custom(
        cls,
        *,
        timesteps: Sequence[int] | None = None,
        sigmas: Sequence[float] | None = None,
        training_sigmas: Sequence[float] | None = None,
        clamp: bool = False,
        final: Final = "t_min",
    ) -> Schedule:
        """A schedule typed by hand: n + 1 timesteps, or n + 1 decreasing sigmas.

        Raises:
            ValueError: both or neither are given; timesteps come without the training levels they index; sigmas leave
                the training range and `clamp` is off.
        """
        if (timesteps is None) == (sigmas is None):
            raise ValueError("give either timesteps or sigmas, got " + ("both" if timesteps is not None else "neither"))
        if timesteps is None:
            assert sigmas is not None
            return cls.from_grid(tuple(reversed(sigmas)), training_sigmas, clamp=clamp, final=final)
        if training_sigmas is None:
            raise ValueError("timesteps need the model's training_sigmas; give sigmas for a continuous-time model")
        return cls.from_levels(timesteps, training_sigmas, final=final)

    @property
    def grid(self) -> Grid:
        """The noise levels in the paper's order, t_0 < ... < t_n."""
        return tuple(reversed(self.sigmas))

    @property
    def steps(self) -> int:
        """Number of steps n of the grid."""
        return len(self.sigmas) - 1

    @property
    def calls(self) -> int:
        """Number of model calls that sampling makes, counting the one of an appended zero."""
        return self.steps + (self.final == "append_zero")

    @property
    def timesteps(self) -> list[int]:
        """Timesteps at which the model is called: what `pipe(..., timesteps=...)` of diffusers takes.

        Raises:
            ValueError: the schedule is for a continuous-time model.
        """
        if self.levels is None:
            raise ValueError("a schedule of a continuous-time model has no timesteps; use sampler_sigmas")
        return list(self.levels[: self.calls])

    @property
    def sampler_sigmas(self) -> list[float]:
        """Noise levels that the sampler visits, with the declared final treatment."""
        visited = list(self.sigmas[: self.calls])
        return [*visited, self.sigmas[-1] if self.final == "t_min" else 0.0]

    def resample(self, steps: int, training_sigmas: Sequence[float] | None = None) -> Schedule:
        """The same curve i/n -> ln sigma read at another number of steps (log-linear interpolation).

        Args:
            steps: at least 1.
            training_sigmas: of the discrete model; needed when the schedule has timesteps.
        """
        if self.levels is not None and training_sigmas is None:
            raise ValueError("resampling a discrete schedule needs training_sigmas")
        grid = grids.resample(self.grid, steps)
        return Schedule.from_grid(
            grid, training_sigmas, clamp=True, final=self.final, name=self.name, facts=self.facts, history=self.history
        )

    def tail(self, strength: float) -> Schedule:
        """The last part of the schedule for image-to-image: the grid is cut, not rescaled.

        Args:
            strength: share of the steps kept, in (0, 1].
        """
        if not 0 < strength <= 1:
            raise ValueError(f"strength must be in (0, 1], got {strength}")
        first = self.steps - max(1, round(self.steps * strength))
        levels = None if self.levels is None else self.levels[first:]
        return dataclasses.replace(self, sigmas=self.sigmas[first:], levels=levels)

    def apply(self, pipe: Any, *, solver: str = "2m", guidance: float | None = None) -> AbstractContextManager[Any]:
        """Give a diffusers pipeline this schedule and a solver; leaving the context restores its scheduler.

        Args:
            pipe: any diffusers pipeline with a discrete-time variance-preserving scheduler.
            solver: "ddim", "2m", "s-ddim" or "sde-2m".
            guidance: scale you are going to use, to be warned when the schedule was optimised for another one.
        """
        from .solvers import applied

        return applied(self, pipe, solver=solver, guidance=guidance)

    def to_json(self) -> dict[str, Any]:
        """Everything as plain JSON values; `timesteps` is what stock diffusers takes."""
        return {
            "format": FORMAT,
            "name": self.name,
            "steps": self.steps,
            "calls": self.calls,
            "final": self.final,
            "timesteps": None if self.levels is None else self.timesteps,
            "sampler_sigmas": self.sampler_sigmas,
            "levels": None if self.levels is None else list(self.levels),
            "sigmas": list(self.sigmas),
            "facts": dict(self.facts),
            "history": [dataclasses.asdict(p) for p in self.history],
        }

    @classmethod
    def from_json(cls, document: Any) -> Schedule:
        """Read what `to_json` wrote.

        Raises:
            ValueError: the document is not a schedule, or its numbers do not make one.
        """
        from .search import Pass

        if not isinstance(document, Mapping) or document.get("format") != FORMAT:
            raise ValueError(f"not a schedule: expected a JSON object with format {FORMAT!r}")
        try:
            levels = document["levels"]
            return cls(
                tuple(float(s) for s in document["sigmas"]),
                None if levels is None else tuple(int(i) for i in levels),
                document["final"],
                str(document["name"]),
                dict(document.get("facts", {})),
                tuple(Pass(**{**p, "grid": tuple(p["grid"])}) for p in document.get("history", ())),
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a schedule: {error}") from error

    def save(self, path: str | Path) -> Path:
        """Write the JSON file (complete or not at all)."""
        from mezzotint import files

        files.write_json(Path(path), self.to_json())
        return Path(path)

    @classmethod
    def load(cls, path: str | Path) -> Schedule:
        """Read a JSON file written by `save`."""
        from mezzotint import files

        return cls.from_json(files.read_json(Path(path)))
