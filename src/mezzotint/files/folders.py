"""Writing a whole folder so that it is complete or absent, and proving later that it is.

The folder is filled under a temporary name. Its ``manifest.json`` (size and SHA-256 of every file) is written last;
then the folder is renamed into place. Where a folder is replaced, the two are exchanged in one step on Linux; elsewhere
the old one is moved aside first and removed last.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hashlib
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any

from mezzotint.files.atomic import explained, sync_folder, temporary_name, write_json
from mezzotint.files.foreign import MEBIBYTE, FileError, open_foreign, read_json

MANIFEST = "manifest.json"
_FORMAT = 1
_ABANDONED_SECONDS = 60.0
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


@contextmanager
def atomic_folder(path: str | Path, *, replace: bool = False) -> Iterator[Path]:
    """Fill a folder that appears at ``path``, with its manifest, when the block ends without an exception.

    Args:
        path: the target; missing parents are made.
        replace: whether a folder that stands there may be replaced; an empty one always may.

    Yields:
        The temporary folder to write into.

    Raises:
        FileExistsError: something stands at ``path`` and ``replace`` is false.
        ValueError: the block left something that is neither a file nor a folder, such as a symbolic link.
        OSError: it could not be written; the message says why, and what stood at ``path`` is untouched.
    """
    target = Path(path)
    if not (replace and target.is_dir()):
        free_folder(target)
    temporary = temporary_name(target)
    with explained(target):
        temporary.mkdir(parents=True)
        try:
            with _opened(temporary) as descriptor:
                # The lock dies with the process, so a folder that can be locked is one that nobody is filling.
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                _sweep(target)
                yield temporary
                _seal(temporary)
                _move(temporary, target)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def verify_folder(path: str | Path) -> dict[str, str]:
    """Check a folder against its manifest.

    Args:
        path: a folder that :func:`atomic_folder` made.

    Returns:
        The SHA-256 of every file, by its relative name.

    Raises:
        FileError: it has no manifest (it is incomplete), or a file is missing, changed, unlisted, or a link.
    """
    root = Path(path)
    if not root.is_dir():
        raise FileError(root, "is not a folder")
    if not (root / MANIFEST).exists():
        raise FileError(root, f"is incomplete or not ours: it has no {MANIFEST}")
    entries = _entries(root)
    if unlisted := sorted(_names(root) - entries.keys()):
        raise FileError(root, f"holds {unlisted[0]!r}, which its manifest does not list")
    return {name: _verify_file(root, name, **entry) for name, entry in entries.items()}


def free_folder(path: str | Path) -> Path:
    """A place that a folder can be written to; ask before long work, not after it.

    Args:
        path: nothing may stand there but an empty folder.

    Raises:
        FileExistsError: something does.
    """
    target = Path(path)
    if not os.path.lexists(target) or (target.is_dir() and not target.is_symlink() and not any(target.iterdir())):
        return target
    raise FileExistsError(errno.EEXIST, "already exists: give another name, or remove it first", str(target))


@contextmanager
def _opened(folder: Path) -> Iterator[int]:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _sweep(target: Path) -> None:
    """Remove what writers of this folder left when they were killed."""
    for leftover in target.parent.glob(f".{target.name[:200]}.*.tmp"):
        with suppress(OSError), _opened(leftover) as descriptor:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # A writer makes its folder a moment before it locks it: leave young ones alone.
            if time.time() - os.fstat(descriptor).st_mtime > _ABANDONED_SECONDS:
                shutil.rmtree(leftover)


def _seal(folder: Path) -> None:
    """Flush every file to the disk and write the manifest, last."""
    files = {}
    for name in sorted(_names(folder)):
        with open_foreign(folder / name, max_bytes=2**63 - 1) as file:
            os.fsync(file.fileno())
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            files[name] = {"bytes": os.fstat(file.fileno()).st_size, "sha256": digest}
    for inner, _, _ in os.walk(folder, topdown=False):
        sync_folder(Path(inner))
    write_json(folder / MANIFEST, {"format": _FORMAT, "files": files})


def _names(root: Path) -> set[str]:
    """Relative names of all files but the manifest.

    Raises:
        FileError: something is neither a file nor a folder.
    """
    names = set()
    for folder, folders, files in os.walk(root):
        for name in (*folders, *files):
            path = Path(folder, name)
            if path.is_symlink() or not (path.is_file() or path.is_dir()):
                raise FileError(path, "is a link or a special file; only plain files and folders are allowed here")
        names |= {Path(folder, name).relative_to(root).as_posix() for name in files}
    return names - {MANIFEST}


def _entries(root: Path) -> dict[str, dict[str, Any]]:
    """The manifest's table, its form checked."""
    path = root / MANIFEST
    manifest = read_json(path, max_bytes=64 * MEBIBYTE)
    files = manifest.get("files") if isinstance(manifest, dict) else None
    if not isinstance(files, dict) or manifest.get("format") != _FORMAT:
        raise FileError(path, f"is not a manifest of format {_FORMAT}")
    for name, entry in files.items():
        pure = PurePosixPath(name)
        if pure.is_absolute() or ".." in pure.parts or pure.as_posix() != name or "\0" in name or name == ".":
            raise FileError(path, f"lists {name[:80]!r}, which is not a plain name within the folder")
        if not isinstance(entry, dict) or {key: type(value) for key, value in entry.items()} != {
            "bytes": int,
            "sha256": str,
        }:
            raise FileError(path, f"must give bytes and sha256 for {name[:80]!r}, and nothing else")
    return files


def _verify_file(root: Path, name: str, *, bytes: int, sha256: str) -> str:  # noqa: A002 - the manifest's own keys
    path = root / name
    with open_foreign(path, max_bytes=2**63 - 1) as file:
        size = os.fstat(file.fileno()).st_size
        if size != bytes:
            raise FileError(path, f"has {size:,} bytes, its manifest says {bytes:,}: it is incomplete or changed")
        if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
            raise FileError(path, "has another SHA-256 than its manifest says: it is damaged or changed")
    return sha256


def _move(temporary: Path, target: Path) -> None:
    """Rename into place; a folder that stands there ends under the temporary name, from where it is removed."""
    if target.is_dir() and not target.is_symlink() and any(target.iterdir()):
        if not _exchange(temporary, target):
            aside = temporary_name(target)
            target.rename(aside)
            temporary.rename(target)
            aside.rename(temporary)
    else:
        temporary.rename(target)
    sync_folder(target.parent)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two names in one step; false where the system cannot."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    if rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return True
    if (code := ctypes.get_errno()) in {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP}:
        return False
    raise OSError(code, os.strerror(code), str(other))
