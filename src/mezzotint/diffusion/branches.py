"""Which guidance branches the rows of a model call are: said by who stacks them, for who edits attention by branch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

__all__ = ["running", "stacked"]

_running: ContextVar[tuple[str, ...] | None] = ContextVar("branches", default=None)


def running() -> tuple[str, ...] | None:
    """Names of the branches in the order of the rows; None where nobody has said."""
    return _running.get()


@contextmanager
def stacked(*names: str) -> Iterator[None]:
    """Model calls inside consist of these branches, in equal runs of rows; of nobody knows which, if none is named."""
    token = _running.set(names or None)
    try:
        yield
    finally:
        _running.reset(token)
