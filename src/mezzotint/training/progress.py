"""What a run tells while it trains: a bar or lines on the terminal, rows in `log.jsonl`, and tensorboard."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate.tracking import TensorBoardTracker
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mezzotint import files

Row = dict[str, float]
QUIET_SECONDS = 30.0


class Log:
    """The measured rows of a run, in memory and in `folder/log.jsonl`.

    Args:
        folder: the run's folder, or None to keep the rows in memory only.
        step: the step the run begins at; rows beyond it, left by a killed run, are dropped.
        tensorboard: also write event files to `folder/tensorboard`.
    """

    def __init__(self, folder: Path | None, step: int, *, tensorboard: bool = False) -> None:
        self.path = folder / "log.jsonl" if folder else None
        self.rows = [row for row in read_log(self.path) if row["step"] <= step] if self.path else []
        if self.path:
            files.write_text(self.path, "".join(json.dumps(row) + "\n" for row in self.rows))
        self.board: Any = None
        if folder and tensorboard:
            # Events of steps that a killed run had taken beyond its checkpoint are hidden by purge_step.
            self.board = TensorBoardTracker("tensorboard", folder, purge_step=step + 1)
            self.board.start()

    def add(self, row: Mapping[str, float]) -> None:
        """Keep one row; it has a "step"."""
        self.rows.append(dict(row))
        if self.path:
            with self.path.open("a", encoding="utf-8") as handle:
                handle.write(json.dumps(dict(row)) + "\n")
        if self.board is not None:
            self.board.log({key: value for key, value in row.items() if key != "step"}, step=int(row["step"]))

    def close(self) -> None:
        """Finish the event files."""
        if self.board is not None:
            self.board.finish()


def read_log(path: Path) -> list[Row]:
    """The rows of a log; a last line torn by a kill is left out."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows


class Display:
    """A bar with loss and rate where standard error is a terminal, a line every half minute where it is not.

    Args:
        total: steps of the whole run.
        batch_size: items of a step, for the rate.
        show: False to be silent.
    """

    def __init__(self, total: int, batch_size: int, *, show: bool) -> None:
        self.total, self.batch_size, self.show = total, batch_size, show
        self.console = Console(stderr=True)
        self.loss: float | None = None
        self.bar: Progress | None = None
        self.start(0)

    def start(self, step: int) -> None:
        """Begin to show, at the step the run begins at."""
        self.first = step
        self.began = self.told = time.monotonic()

    def update(self, step: int, loss: float) -> None:
        """Show the state after `step` steps; the loss shown is a moving average."""
        self.loss = loss if self.loss is None else 0.98 * self.loss + 0.02 * loss
        if not self.show:
            return
        if self.console.is_terminal:
            self._advance(step)
        elif time.monotonic() - self.told >= QUIET_SECONDS:
            self.told = time.monotonic()
            self.say(f"step {step}/{self.total}  {self.facts(step)}")

    def facts(self, step: int) -> str:
        """Loss and rate in words."""
        rate = (step - self.first) * self.batch_size / max(1e-9, time.monotonic() - self.began)
        return f"loss {self.loss:.4f}  {rate:.1f} items/s"

    def say(self, line: str) -> None:
        """Print a line to standard error, above the bar."""
        if self.show:
            self.console.print(line, highlight=False, markup=False, soft_wrap=True)

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self.bar is not None:
            self.bar.stop()

    def _advance(self, step: int) -> None:
        if self.bar is None:
            columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[facts]}"))
            self.bar = Progress(*columns, TimeRemainingColumn(), console=self.console)
            self.task = self.bar.add_task("training", total=self.total, completed=self.first, facts="")
            self.bar.start()
        self.bar.update(self.task, completed=step, facts=self.facts(step))
