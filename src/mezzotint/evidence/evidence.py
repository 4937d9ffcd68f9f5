"""Evidence: everything an experiment found, with the verdicts that follow from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

from mezzotint import files
from mezzotint.evidence.figures import Figure
from mezzotint.evidence.records import Arm, Claim, Facts, Row, Sample
from mezzotint.evidence.serialise import from_plain, to_plain
from mezzotint.evidence.verdict import Outcome, Verdict, judge, overall

__all__ = ["FORMAT", "Budget", "Evidence"]

FORMAT = "mezzotint-evidence-1"
Budget = Literal["quick", "full"]


@dataclass(frozen=True)
class Evidence:
    """What an experiment found.

    Attributes:
        facts: what the method is.
        arms: what was compared, the method first.
        rows: measurements.
        claims: what the measurements decide; the first is the headline.
        figures: plots and pictures beyond those that pages make of the rows.
        samples: pictures to look at.
        seeds: seeds of the experiment.
        budget: ``"quick"`` (demo) or ``"full"`` (bench).
        settings: what one needs to know to repeat it, printed as a table.
        notes: remarks on the outcome: what surprised, what was left out, limits.
        seconds: wall time.
        versions: library -> version, and facts of the machine.
        made: when, ISO 8601; empty if unknown.
    """

    facts: Facts
    arms: tuple[Arm, ...]
    rows: tuple[Row, ...]
    claims: tuple[Claim, ...] = ()
    figures: tuple[Figure, ...] = ()
    samples: tuple[Sample, ...] = ()
    seeds: tuple[int, ...] = ()
    budget: Budget = "quick"
    settings: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    seconds: float = 0.0
    versions: Mapping[str, str] = field(default_factory=dict)
    made: str = ""

    def __post_init__(self) -> None:
        """Refuse evidence that contradicts itself: unknown arms, double names, claims without numbers."""
        names = [arm.name for arm in self.arms]
        rows = [f"{row.metric} [{row.condition}]" for row in self.rows]
        titles = [figure.title for figure in self.figures]
        for kind, items in (("arms", names), ("rows", rows), ("figures", titles)):
            if double := sorted({item for item in items if items.count(item) > 1}):
                raise ValueError(f"{kind} must be unique, got twice: {', '.join(double)}")
        measured = {name for row in self.rows for name in row.values}
        if unknown := sorted(measured - set(names)):
            raise ValueError(f"rows name arms that the experiment does not have: {', '.join(unknown)}")
        for claim in self.claims:
            self.row(claim.metric, claim.condition)

    def row(self, metric: str, condition: str = "") -> Row:
        """Find a row.

        Args:
            metric: its metric.
            condition: its condition.

        Raises:
            ValueError: there is none.
        """
        for row in self.rows:
            if (row.metric, row.condition) == (metric, condition):
                return row
        known = "; ".join(f"{row.metric} [{row.condition}]" for row in self.rows)
        raise ValueError(f"no row {metric!r} with condition {condition!r}; rows: {known or 'none'}")

    def arm(self, name: str) -> Arm | None:
        """Find an arm.

        Args:
            name: its name.
        """
        return next((arm for arm in self.arms if arm.name == name), None)

    @cached_property
    def verdicts(self) -> tuple[Verdict, ...]:
        """The outcome of every claim, in order."""
        return tuple(judge(claim, self.row(claim.metric, claim.condition)) for claim in self.claims)

    @property
    def outcome(self) -> Outcome:
        """Outcome of the headline claim; inconclusive if nothing is claimed."""
        return overall([self.verdicts[0].outcome]) if self.verdicts else "inconclusive"

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics, in order of first measurement."""
        return tuple(dict.fromkeys(row.metric for row in self.rows))

    def rows_of(self, metric: str) -> tuple[Row, ...]:
        """All rows of a metric, in order.

        Args:
            metric: its name.
        """
        return tuple(row for row in self.rows if row.metric == metric)

    def to_json(self, *, pictures: bool = True) -> dict[str, object]:
        """Plain values for JSON; pictures become base64.

        Args:
            pictures: keep samples and picture figures; without them the file holds numbers only.
        """
        kept = self if pictures else self.without_pictures()
        outcomes = [verdict.outcome for verdict in self.verdicts]
        return {"format": FORMAT, "outcomes": outcomes, **to_plain(kept)}

    def without_pictures(self) -> Evidence:
        """The same evidence, numbers only."""
        from dataclasses import replace

        return replace(self, samples=(), figures=tuple(figure for figure in self.figures if not figure.png))

    @classmethod
    def from_json(cls, plain: object) -> Evidence:
        """Read plain values again. Verdicts are computed anew, not believed.

        Args:
            plain: what `to_json` made.

        Raises:
            ValueError: it is not evidence, or of another format.
        """
        if not isinstance(plain, dict) or plain.get("format") != FORMAT:
            raise ValueError(f"not evidence: the format must be {FORMAT!r}")
        body = {key: value for key, value in plain.items() if key not in {"format", "outcomes"}}
        return from_plain(cls, body)

    def save(self, path: str | Path, *, pictures: bool = True) -> Path:
        """Write as JSON, complete or not at all.

        Args:
            path: the file.
            pictures: see `to_json`.
        """
        files.write_json(Path(path), self.to_json(pictures=pictures))
        return Path(path)

    @classmethod
    def load(cls, path: str | Path) -> Evidence:
        """Read what `save` wrote.

        Args:
            path: the file.

        Raises:
            ValueError: the file is no evidence.
        """
        return cls.from_json(files.read_json(Path(path), max_bytes=256 * 2**20))
