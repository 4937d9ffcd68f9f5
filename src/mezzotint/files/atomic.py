"""Writing one file so that it is complete or absent.

Write to a unique name beside the target, fsync, rename over the target, fsync the folder: after a crash at any
instant the target holds either all of the old bytes or all of the new ones.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

_ADVICE = {
    errno.ENOSPC: "no space is left on the disk",
    errno.EDQUOT: "the disk quota is used up",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "the folder does not permit writing",
    errno.EPERM: "the system does not permit writing",
    errno.ENOTDIR: "a part of the path is a file, not a folder",
    errno.EEXIST: "a part of the path is a file, not a folder",
    errno.EISDIR: "a folder stands there",
    errno.EIO: "the disk reported an input/output error",
    errno.ENAMETOOLONG: "the name is too long for the file system",
}


@contextmanager
def replacing(path: str | Path) -> Iterator[BinaryIO]:
    """Open a new file that takes the place of ``path`` when the block ends without an exception.

    Args:
        path: the target; missing parent folders are made. A symbolic link is replaced, not followed.

    Raises:
        OSError: it could not be written (of the subclass that fits, such as PermissionError); the message says why,
            and what stood at ``path`` is untouched.
    """
    target = Path(path)
    temporary = temporary_name(target)
    with explained(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with create(temporary) as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(target)
            sync_folder(target.parent)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write bytes atomically; see :func:`replacing`."""
    with replacing(path) as file:
        file.write(data)


def write_text(path: str | Path, text: str) -> None:
    r"""Write UTF-8 text atomically, with ``\n`` line ends; see :func:`replacing`."""
    write_bytes(path, text.encode())


def write_json(path: str | Path, obj: Any) -> None:
    """Write strict, indented JSON atomically; see :func:`replacing`.

    Args:
        path: the target.
        obj: dicts with string keys, lists, strings, finite numbers, booleans, None. Keys keep their order.

    Raises:
        ValueError: it holds something else; nothing is written.
        OSError: as :func:`replacing`.
    """
    write_text(path, dump_json(obj, indent=2) + "\n")


def dump_json(obj: Any, **options: Any) -> str:
    """Encode as strict JSON.

    Raises:
        ValueError: it holds NaN, infinity, or what JSON cannot say.
    """
    try:
        return json.dumps(obj, allow_nan=False, ensure_ascii=options.pop("ensure_ascii", False), **options)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"JSON cannot hold this: {error}") from error


def temporary_name(target: Path) -> Path:
    """A hidden unique name beside the target, so that the rename stays within one file system."""
    return target.with_name(f".{target.name[:200]}.{secrets.token_hex(6)}.tmp")


def create(path: Path) -> BinaryIO:
    """Create a file that must not exist yet, readable as the user's umask says."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    return os.fdopen(os.open(path, flags, 0o666), "wb")


def sync_folder(path: Path) -> None:
    """Make renames within a folder survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def explained(target: Path) -> Iterator[None]:
    """Say in one line what could not be written, and why; the exception's class still fits its errno."""
    try:
        yield
    except OSError as error:
        if error.errno is None or getattr(error, "explained", False) or not _concerns(error, target):
            raise
        why = _ADVICE.get(error.errno, (error.strerror or "unknown error").lower())
        clear = OSError(error.errno, f"could not be written: {why}; what stood there before is untouched", str(target))
        clear.explained = True  # type: ignore[attr-defined]
        raise clear from error


def _concerns(error: OSError, target: Path) -> bool:
    """Whether an error is about the target: one of another file, met in the caller's block, keeps its own words."""
    if error.filename is None:
        return True
    return isinstance(error.filename, str | Path) and Path(error.filename).is_relative_to(target.parent)
