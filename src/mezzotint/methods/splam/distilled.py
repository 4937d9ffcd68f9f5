"""What a distillation gives: the student, its average, and how to hand them to stock diffusers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .options import Options

__all__ = ["Distilled"]


@dataclass(frozen=True, eq=False)
class Distilled:
    """A distilled model.

    Attributes:
        pipe: the teacher's pipeline, unchanged.
        student: the trained network; it holds the online weights.
        average: the moving average of its trained weights, which is the one to use; None for LCM-LoRA, which has none.
        options: what it was trained with.
        facts: data, form, steps done, last row of the log.
    """

    pipe: Any
    student: Any
    average: Mapping[str, Any] | None
    options: Options
    facts: Mapping[str, Any]

    def pipeline(self, *, online: bool = False) -> Any:
        """A stock diffusers pipeline with the student and an LCM scheduler; it shares the other parts with the teacher.

        Args:
            online: take the weights of the last step instead of their average (noisier; warns).
        """
        from .export import assembled

        return assembled(self, online=online)

    def save(self, path: str | Path, *, online: bool = False) -> Path:
        """Write what stock diffusers reads: a pipeline folder, or a LoRA with its scheduler.

        Args:
            path: a new or empty folder.
            online: as for `pipeline`.

        Raises:
            FileExistsError: there is something already.
        """
        from .export import write

        return write(self, Path(path), online=online)

    def to_json(self) -> dict[str, Any]:
        """Options and facts as plain values."""
        return {"options": self.options.to_json(), **self.facts}
