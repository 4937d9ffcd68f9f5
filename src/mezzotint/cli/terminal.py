"""What the command line says and where: data to stdout, progress and messages to stderr."""

from __future__ import annotations

import dataclasses
import difflib
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mezzotint import files

__all__ = ["Advance", "Answer", "UsageError", "choose", "emit", "error", "folder", "note", "plain", "progress", "quiet"]

_LONGEST = 400


class UsageError(ValueError):
    """Wrong usage: the message says what was given, what is allowed and what to do."""


@dataclass(frozen=True)
class Answer:
    """What a verb found: ``data`` is printed by ``--json``, ``text`` otherwise, and ``code`` is the exit code."""

    data: Any
    text: str
    code: int = 0


Advance = Callable[..., None]
"""Reports that so many more steps (one, when nothing is said) of a progress bar are done."""


def plain(value: Any) -> Any:
    """Turn a result into what JSON can hold: dataclasses to objects, tensors to lists, anything else to text."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if callable(described := getattr(value, "to_json", None)) and not isinstance(value, type):
        document = described()
        return json.loads(document) if isinstance(document, str) else plain(document)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    return plain(value.tolist()) if hasattr(value, "tolist") else str(value)


def _lines(data: Any) -> Iterator[str]:
    if isinstance(data, dict):
        for key, item in data.items():
            text = item if isinstance(item, str) else json.dumps(item, ensure_ascii=False)
            yield f"{key}: {text if len(text) <= _LONGEST else f'{len(item)} entries, which --json prints'}"
    elif data is not None:
        yield data if isinstance(data, str) else json.dumps(data, ensure_ascii=False)


def emit(result: Any, *, as_json: bool) -> int:
    """Print the result of a verb to stdout.

    Args:
        result: an `Answer`, or anything that `plain` can turn into data.
        as_json: print JSON, for programs, instead of text.

    Returns:
        the exit code.
    """
    answer = result if isinstance(result, Answer) else Answer(data := plain(result), "\n".join(_lines(data)))
    if as_json:
        print(json.dumps(plain(answer.data), indent=2))
    elif answer.text:
        print(answer.text)
    return answer.code


def note(message: str) -> None:
    """Say something to the person, on stderr."""
    print(message, file=sys.stderr)


def error(verb: str, message: str) -> None:
    """Say in one line, on stderr, why a verb stopped."""
    note(" ".join(f"mezzotint {verb}".split()) + ": " + " ".join(message.split()))


def choose(given: str, allowed: Iterable[str], what: str) -> str:
    """Return ``given`` where it is allowed.

    Raises:
        UsageError: it is not; the message names the nearest allowed word and all of them.
    """
    words = sorted(allowed)
    if given in words:
        return given
    near = difflib.get_close_matches(given, words, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise UsageError(f"there is no {what} {given!r}; {hint}allowed: {', '.join(words) or 'none'}")


@contextmanager
def progress(title: str, total: int) -> Iterator[Advance]:
    """Show a progress bar on stderr while the block runs; on a pipe or in a log it stays silent.

    Args:
        title: what is being done.
        total: number of steps.
    """
    if not sys.stderr.isatty():
        yield lambda _steps=1: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=total)
        yield lambda steps=1: bar.advance(task, steps)


def quiet() -> None:
    """Keep the libraries' own start-up remarks off the person's terminal; their errors still show."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def check_free(path: Path | None) -> None:
    """Refuse a folder with something in it as a place for results, before any work is done.

    Raises:
        UsageError: it holds files.
    """
    if path is None or not path.is_dir():
        return
    try:
        files.free_folder(path)
    except FileExistsError as cause:
        raise UsageError(f"{path} already exists: give another --out, or remove it first") from cause


def folder(path: Path) -> Path:
    """Create the folder that will hold ``path``.

    Raises:
        UsageError: something that is no folder stands in the way.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as cause:
        raise UsageError(f"{path.parent} is a file, not a folder: choose another --out") from cause
    return path
