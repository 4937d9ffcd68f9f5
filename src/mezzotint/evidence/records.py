"""The plain records of an experiment: what was compared, measured, drawn and claimed.

Everything here is a frozen dataclass of plain values, so that evidence survives a round trip through JSON unchanged.
Values are tables ``seeds x units`` (a unit is mostly a prompt), the same for all arms of a row: that is what makes
differences paired.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from io import BytesIO
from typing import Any, Literal

from jaxtyping import Float
from PIL import Image
from torch import Tensor

__all__ = ["Arm", "Claim", "Direction", "Facts", "Kind", "Row", "Sample", "Values", "as_png", "as_values"]

Kind = Literal["method", "baseline", "ablation", "oracle"]
Direction = Literal["higher", "lower", "neither"]
Values = tuple[tuple[float, ...], ...]


def as_values(numbers: Any) -> Values:
    """Bring numbers into the form of a row: ``seeds x units``.

    Args:
        numbers: a tensor, an array or nested sequences. A scalar is one seed with one unit; one dimension is one value
            a *seed*, measured on a whole set.

    Raises:
        ValueError: more than two dimensions, empty, ragged, or a number that is not finite.
    """
    plain = numbers.tolist() if hasattr(numbers, "tolist") else numbers
    rows = plain if isinstance(plain, list | tuple) else [plain]
    table = tuple(tuple(map(float, row)) if isinstance(row, list | tuple) else (float(row),) for row in rows)
    if not table or not table[0] or any(len(row) != len(table[0]) for row in table):
        raise ValueError(f"values must be a full table seeds x units, got rows of {[len(row) for row in table]} values")
    if not all(math.isfinite(value) for row in table for value in row):
        raise ValueError(
            "values must be finite: leave out a prompt in all arms, or count its failure as the worst value"
        )
    return table


def as_png(image: Image.Image | Float[Tensor, "channel height width"]) -> bytes:
    """Encode a picture as PNG, the same bytes each time.

    Args:
        image: a PIL image, or a tensor with values in 0..1 (outside values are clipped).
    """
    if isinstance(image, Tensor):
        pixels = (image.detach().float().clamp(0, 1) * 255).round().byte().movedim(0, -1).cpu().numpy()
        image = Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels)
    buffer = BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


@dataclass(frozen=True)
class Facts:
    """What the method is: copied from its card, so that evidence can be read where the method is not installed.

    Attributes:
        slug: name of the method's folder.
        title: its name.
        claim: the claim in one sentence.
        paper: authors, title, venue.
        arxiv: arXiv identifier or empty.
        bibtex: how to cite it.
        family: kind of method.
        inputs: what it takes.
        outputs: what it gives.
        composes_with: other methods or families.
        departures: every difference from the paper.
    """

    slug: str
    title: str
    claim: str = ""
    paper: str = ""
    arxiv: str = ""
    bibtex: str = ""
    family: str = ""
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    composes_with: tuple[str, ...] = ()
    departures: tuple[str, ...] = ()

    @classmethod
    def of(cls, card: Any) -> Facts:
        """Copy a card.

        Args:
            card: a `mezzotint.methods.Card`, or anything with its attributes.
        """
        return cls(**{item.name: getattr(card, item.name) for item in fields(cls)})


@dataclass(frozen=True)
class Arm:
    """One thing that is compared.

    Attributes:
        name: short, unique in the experiment; heads a column.
        kind: the method, a baseline, an ablation of the method, or an oracle (a bound that no method can beat).
        note: what it is, one line.
    """

    name: str
    kind: Kind = "baseline"
    note: str = ""


@dataclass(frozen=True)
class Row:
    """One metric under one condition, for all arms on the same seeds and units.

    Attributes:
        metric: what is measured; rows of one metric make one table and one plot.
        values: arm -> seeds x units. A set-level metric (Frechet distance) has one unit.
        unit: printed behind numbers; ``"rate"`` means values in 0..1, printed as per cent.
        direction: which values are better.
        group: what distinguishes rows of one metric, such as the solver.
        at: where the row stands on the metric's horizontal axis, such as 10 (steps).
        axis: name of that axis, such as ``"steps"``.
        note: how it is measured, one line; printed once under the table.
        draws: arm -> resampled statistics, for a set-level metric: entry r of every arm comes from the same resample.
        counted: what a unit is, in the plural, such as ``"prompts"`` or ``"start noises"``.
    """

    metric: str
    values: Mapping[str, Values]
    unit: str = ""
    direction: Direction = "neither"
    group: str = ""
    at: float | None = None
    axis: str = ""
    note: str = ""
    draws: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    counted: str = "prompts"

    def __post_init__(self) -> None:
        """Refuse a row in which arms could not be compared."""
        shapes = {arm: (len(table), len(table[0])) for arm, table in self.values.items()}
        if len(set(shapes.values())) > 1:
            raise ValueError(f"all arms of {self.metric!r} must be measured on the same seeds and units, got {shapes}")
        if self.unit == "rate" and any(not 0 <= v <= 1 for t in self.values.values() for r in t for v in r):
            raise ValueError(f"values of {self.metric!r} have the unit 'rate' and must lie in 0..1")
        if len({len(draws) for draws in self.draws.values()}) > 1 or self.draws.keys() - self.values.keys():
            raise ValueError(f"draws of {self.metric!r} must be equally many for every arm, each an arm with values")

    @property
    def condition(self) -> str:
        """The row's name among the rows of its metric, such as ``"DDIM, 10 steps"``; empty if there is only one."""
        place = "" if self.at is None else f"{self.at:g} {self.axis}".strip()
        return ", ".join(part for part in (self.group, place) if part)

    @property
    def shape(self) -> tuple[int, int]:
        """Numbers of seeds and of units."""
        table = next(iter(self.values.values()))
        return len(table), len(table[0])

    @property
    def size(self) -> str:
        """How much was measured, in words, such as ``"3 seeds × 40 prompts"``."""
        seeds, units = self.shape
        words = f"{seeds} seed" + "s" * (seeds != 1)
        return words + (f" × {units} {self.counted}" if units > 1 else "")


@dataclass(frozen=True)
class Claim:
    """A comparison whose outcome the numbers decide.

    Attributes:
        text: the claim in words.
        metric: metric of the row that decides.
        arm: the arm that should win.
        over: the arms it should win over, every one of them.
        condition: `Row.condition` of the deciding row.
        margin: how much better it must be, in the metric's unit (share of the baseline if ``relative``); a negative
            margin claims
            that it is not worse by more than that.
        relative: compare the ratio of means instead of their difference.
    """

    text: str
    metric: str
    arm: str
    over: tuple[str, ...]
    condition: str = ""
    margin: float = 0.0
    relative: bool = False

    def __post_init__(self) -> None:
        """Refuse a claim without an opponent."""
        if not self.over or self.arm in self.over:
            raise ValueError(f"a claim compares an arm with others, got {self.arm!r} over {self.over}")


@dataclass(frozen=True)
class Sample:
    """A picture to look at.

    Attributes:
        arm: which arm made it, or a label of its own such as ``"rendered truth"``.
        prompt: what was asked for; pictures of one prompt stand in one line.
        png: the encoded picture.
        right: whether the instrument judged it right; ``None`` if it was not judged.
    """

    arm: str
    prompt: str
    png: bytes
    right: bool | None = None
