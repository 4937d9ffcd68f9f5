"""The atomic writer under fire: killed after any number of bytes, out of space, a failing disk, no permission.

The law: whatever happens, the target holds all of the old bytes or all of the new ones.
"""

from __future__ import annotations

import errno
import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mezzotint.files import FileError, atomic, atomic_folder, verify_folder, write_bytes, write_json

OLD, NEW = b"old" * 1000, b"new!" * 1000

KILLED = """
import os, signal, sys
from mezzotint.files import atomic, write_bytes

limit, path = int(sys.argv[1]), sys.argv[2]
create = atomic.create

class Deadly:
    def __init__(self, file): self.file, self.left = file, limit
    def __enter__(self): return self
    def __exit__(self, *error): self.file.close()
    def __getattr__(self, name): return getattr(self.file, name)
    def write(self, data):
        self.file.write(data[:self.left])
        self.left -= len(data)
        if self.left < 0:
            self.file.flush()
            os.kill(os.getpid(), signal.SIGKILL)

atomic.create = lambda path: Deadly(create(path))
steps = iter(range(100))
def deadly_step(name, real):
    def step(*arguments, **options):
        if limit == -1 - next(steps):
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments, **options)
    return step
if limit < 0:
    atomic.create = create
    atomic.os.fsync = deadly_step("fsync", os.fsync)
    atomic.Path.replace = deadly_step("replace", atomic.Path.replace)
write_bytes(path, b"new!" * 1000)
"""


@pytest.mark.parametrize("limit", [0, 1, 1999, 3999, 4000, -1, -2, -3])
def test_a_kill_at_any_moment_leaves_old_or_new(tmp_path: Path, limit: int) -> None:
    path = tmp_path / "x"
    write_bytes(path, OLD)
    done = subprocess.run([sys.executable, "-c", KILLED, str(limit), path], check=False, timeout=120)
    assert done.returncode == (0 if limit == 4000 else -9)
    assert path.read_bytes() == (NEW if limit in {4000, -3} else OLD), "-3 is killed after the rename"


class Failing(io.BytesIO):
    """A file that fails in the middle of a write, as a full disk does."""

    def __init__(self, file: io.BufferedWriter, code: int, moment: str) -> None:
        super().__init__()
        self.file, self.code, self.moment = file, code, moment

    def write(self, data: bytes) -> int:
        self.file.write(data[: len(data) // 2])
        self._fail("write")
        return self.file.write(data[len(data) // 2 :])

    def flush(self) -> None:
        self._fail("flush")
        self.file.flush()

    def fileno(self) -> int:
        return self.file.fileno()

    def close(self) -> None:
        self.file.close()

    def _fail(self, moment: str) -> None:
        if moment == self.moment:
            raise OSError(self.code, os.strerror(self.code))


@pytest.mark.parametrize(
    ("code", "words"), [(errno.ENOSPC, "no space is left"), (errno.EIO, "input/output"), (errno.EDQUOT, "quota")]
)
@pytest.mark.parametrize("moment", ["write", "flush", "fsync"])
def test_a_failing_disk_is_named_and_harms_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, words: str, moment: str
) -> None:
    path = tmp_path / "x"
    write_bytes(path, OLD)

    def fail(descriptor: int) -> None:
        raise OSError(code, os.strerror(code))

    create: Callable = atomic.create
    if moment == "fsync":
        monkeypatch.setattr(atomic.os, "fsync", fail)
    else:
        monkeypatch.setattr(atomic, "create", lambda temporary: Failing(create(temporary), code, moment))
    with pytest.raises(OSError, match=words) as caught:
        write_bytes(path, NEW)
    assert caught.value.errno == code
    assert caught.value.filename == str(path)
    assert path.read_bytes() == OLD
    assert os.listdir(tmp_path) == ["x"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_folder_on_a_failing_disk_is_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    with atomic_folder(tmp_path / "run") as folder:
        write_json(folder / "a.json", "old")

    def replace_it() -> None:
        with atomic_folder(tmp_path / "run", replace=True) as folder:
            write_json(folder / "a.json", "new")
            monkeypatch.setattr(atomic, "create", lambda temporary: Failing(create(temporary), code, "write"))
            write_json(folder / "b.json", "new")

    create: Callable = atomic.create
    with pytest.raises(OSError, match="could not be written") as caught:
        replace_it()
    assert caught.value.errno == code
    assert os.listdir(tmp_path) == ["run"]
    assert verify_folder(tmp_path / "run").keys() == {"a.json"}


@pytest.mark.parametrize("limit", range(1, 9))
def test_a_folder_killed_at_any_sync_is_whole_or_absent(tmp_path: Path, limit: int) -> None:
    program = (
        "import os, signal, sys\nfrom mezzotint.files import atomic_folder, atomic\n"
        "real, calls = os.fsync, []\n"
        "def fsync(descriptor):\n    calls.append(1)\n"
        "    len(calls) == int(sys.argv[1]) and os.kill(os.getpid(), signal.SIGKILL)\n    real(descriptor)\n"
        "os.fsync = fsync\n"
        "with atomic_folder(sys.argv[2]) as folder:\n"
        "    (folder / 'a').write_text('a' * 9999)\n    (folder / 'b').write_text('b' * 9999)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(limit), tmp_path / "run"], check=False, timeout=120)
    if (tmp_path / "run").exists():
        assert verify_folder(tmp_path / "run").keys() == {"a", "b"}
    else:
        assert done.returncode == -9
    assert (done.returncode == 0) == (limit > 6), "two files, the folder, the manifest with its folder, the parent"


def test_a_file_in_the_path_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="could not be written: a part of the path is a file") as caught:
        write_bytes(tmp_path / "file" / "x", NEW)
    assert caught.value.errno in {errno.ENOTDIR, errno.EEXIST}


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write everywhere")
def test_a_folder_without_permission_is_named(tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(PermissionError, match="does not permit writing"):
        write_bytes(tmp_path / "locked" / "x", NEW)


def test_an_error_of_the_callers_block_keeps_its_words(tmp_path: Path) -> None:
    def fail() -> None:
        with atomic_folder(tmp_path / "run"):
            Path("/nonexistent/elsewhere").read_bytes()

    with pytest.raises(FileNotFoundError) as caught:
        fail()
    assert "could not be written" not in str(caught.value)
    with pytest.raises(FileError):
        verify_folder(tmp_path / "run")
