"""A progress bar on standard error, shown only where that is a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


@contextmanager
def watched(text: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show a bar while the block runs; yields the function that moves it by a number of items.

    Args:
        text: what is being done.
        total: expected number of items.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task(text, total=total)
        yield lambda items: bar.advance(task, items)
