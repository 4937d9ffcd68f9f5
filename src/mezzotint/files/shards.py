"""Tar shards of training data, as webdataset writes them: `key.jpg` and `key.txt` beside each other, sample by sample.

Nothing is unpacked to the disk. Only plain members are read; their number and size, and the size of the archive's own
headers, are bounded before anything is allocated.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mezzotint.files.foreign import MEBIBYTE, FileError, guess, open_foreign

MAX_BYTES = 2**36
MAX_MEMBERS = 1_000_000


def read_shard(
    path: str | Path, *, max_bytes: int = MAX_BYTES, max_member: int = 64 * MEBIBYTE
) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Read the samples of an uncompressed tar file in order.

    Args:
        path: the file.
        max_bytes: largest archive that is accepted.
        max_member: largest member (and largest header) that is accepted.

    Yields:
        Key and parts of every sample: members with one name up to the first dot of its last part, by what follows it.

    Raises:
        FileError: it is no such archive, is damaged, or a member is too large or no plain file.
    """
    with open_foreign(path, max_bytes=max_bytes) as file:
        wrong = guess(file.read(64))
        file.seek(0)
        try:
            with tarfile.open(fileobj=_Bounded(file, max_member), mode="r:") as archive:
                yield from _samples(_members(archive, path, max_member))
        except (tarfile.TarError, EOFError, OSError, OverflowError) as error:
            raise FileError(path, f"is {wrong or f'damaged or no tar archive: {error}'}") from error


class _Bounded(io.RawIOBase):
    """A file that refuses to be read in pieces larger than a limit: headers of an archive name their own size."""

    def __init__(self, file: Any, limit: int) -> None:
        self._file, self._limit = file, limit

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= self._limit + tarfile.RECORDSIZE:
            raise tarfile.ReadError(f"a piece of {size:,} bytes; at most {self._limit:,} are accepted")
        content: bytes = self._file.read(size)
        return content

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        place: int = self._file.seek(offset, whence)
        return place

    def tell(self) -> int:
        place: int = self._file.tell()
        return place


def _members(archive: tarfile.TarFile, path: str | Path, limit: int) -> Iterator[tuple[str, bytes]]:
    for number, member in enumerate(archive):
        if number >= MAX_MEMBERS:
            raise FileError(path, f"holds more than {MAX_MEMBERS:,} members")
        if member.isdir():
            continue
        if not member.isreg() or member.issparse():
            raise FileError(path, f"holds {member.name[:80]!r}, which is no plain file")
        if member.size > limit:
            raise FileError(
                path, f"holds {member.name[:80]!r} of {member.size:,} bytes, at most {limit:,} are accepted"
            )
        content = archive.extractfile(member)
        data = b"" if content is None else content.read()
        if len(data) != member.size:
            raise FileError(path, f"is truncated within {member.name[:80]!r}")
        archive.members.clear()  # type: ignore[attr-defined]
        yield member.name, data


def _samples(members: Iterator[tuple[str, bytes]]) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Group neighbours of one key."""
    current: tuple[str, dict[str, bytes]] | None = None
    for name, data in members:
        folder, slash, last = name.rpartition("/")
        stem, _, suffix = last.partition(".")
        key = f"{folder}{slash}{stem}"
        if current is not None and current[0] != key:
            yield current
            current = None
        current = current or (key, {})
        current[1][suffix.lower()] = data
    if current is not None:
        yield current
