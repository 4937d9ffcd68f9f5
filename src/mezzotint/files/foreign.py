"""Opening a file that somebody else made, and strict JSON.

Only regular files are opened (a pipe would block, a device would never end), and only up to a stated size. JSON is
RFC 8259 without its loose ends: no NaN or infinity, no repeated keys, UTF-8 only.
"""

from __future__ import annotations

import io
import json
import math
import os
import stat
from pathlib import Path
from typing import Any, NoReturn

MEBIBYTE = 2**20
JSON_BYTES = 8 * MEBIBYTE

_SIGNATURES = (
    (b"PK\x03\x04", "a zip archive, as torch.save writes it"),
    (b"\x80\x02", "a pickle"),
    (b"\x80\x03", "a pickle"),
    (b"\x80\x04", "a pickle"),
    (b"\x80\x05", "a pickle"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"\x89HDF", "an HDF5 file"),
    (b"version https://git-lfs", "a Git LFS pointer: run `git lfs pull`"),
    (b"<!DOCTYPE", "a web page"),
    (b"<html", "a web page"),
)


class FileError(ValueError):
    """A file was refused: the message names it, says what is wrong and what is allowed.

    Attributes:
        path: the file.
        reason: what is wrong, without the path.
    """

    def __init__(self, path: str | Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = Path(path)
        self.reason = reason


def open_foreign(path: str | Path, *, max_bytes: int) -> io.BufferedReader:
    """Open a regular file of bounded size for reading.

    Args:
        path: the file; a symbolic link that the caller names is followed.
        max_bytes: the largest size that is accepted.

    Raises:
        FileError: it is missing, unreadable, no regular file, or larger than ``max_bytes``.
    """
    try:
        # Opening a named pipe without O_NONBLOCK waits for a writer, possibly for ever.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        raise FileError(path, f"cannot be opened: {getattr(error, 'strerror', None) or error}") from error
    file = os.fdopen(descriptor, "rb") if stat.S_ISREG(os.fstat(descriptor).st_mode) else None
    if file is None:
        os.close(descriptor)
        raise FileError(path, "is not a regular file")
    size = os.fstat(file.fileno()).st_size
    if size > max_bytes:
        file.close()
        raise FileError(path, f"has {size:,} bytes, at most {max_bytes:,} are accepted")
    return file


def read_bytes(path: str | Path, *, max_bytes: int) -> bytes:
    """Read a whole file of bounded size.

    Raises:
        FileError: as :func:`open_foreign`, or it grew while it was read.
    """
    with open_foreign(path, max_bytes=max_bytes) as file:
        try:
            content = file.read(max_bytes + 1)
        except OSError as error:
            raise FileError(path, f"cannot be read: {error.strerror}") from error
    if len(content) > max_bytes:
        raise FileError(path, f"has more than the accepted {max_bytes:,} bytes")
    return content


def read_json(path: str | Path, *, max_bytes: int = JSON_BYTES) -> Any:
    """Read strict JSON of bounded size.

    Args:
        path: the file.
        max_bytes: the largest size that is accepted.

    Raises:
        FileError: as :func:`read_bytes`, or it is not strict JSON.
    """
    return parse_json(read_bytes(path, max_bytes=max_bytes), path)


def parse_json(content: bytes, path: str | Path) -> Any:
    """Decode strict JSON.

    Args:
        content: UTF-8 bytes.
        path: where they come from, for the message.

    Raises:
        FileError: not UTF-8, not JSON, NaN or infinity, a repeated key, or nested too deeply.
    """
    try:
        return json.loads(content.decode(), object_pairs_hook=_unique, parse_constant=_no_constant, parse_float=_finite)
    except UnicodeDecodeError as error:
        raise FileError(path, f"is {guess(content) or 'not UTF-8 text'}, JSON is needed") from error
    except RecursionError as error:
        raise FileError(path, "is nested too deeply for JSON of ours") from error
    except ValueError as error:
        raise FileError(path, f"is not valid JSON: {error}") from error


def guess(content: bytes) -> str:
    """Name a well-known wrong kind of file by its first bytes; empty when it is none of them."""
    return next((name for signature, name in _SIGNATURES if content.startswith(signature)), "")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        repeated = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {repeated[:80]!r} occurs twice in one object")
    return found


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:40]} is too large for a number")
    return value
