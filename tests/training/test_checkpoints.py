"""Checkpoints: complete or absent, the last good one always found, and clear words when a disk gives out."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from mezzotint.training import CheckpointError
from mezzotint.training.checkpoints import Checkpoints, State, locked
from tests.training import small


def state(step: int, size: int = 4) -> State:
    return State(step, {"model": {"w": torch.full((size,), float(step))}}, {"note": "x"})


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def kept(tmp_path: Path, said: list[str]) -> Checkpoints:
    return Checkpoints(tmp_path, keep=2, say=said.append)


def steps(checkpoints: Checkpoints) -> list[str]:
    return sorted(path.name for path in checkpoints.home.iterdir())


def test_what_is_written_is_read(kept: Checkpoints) -> None:
    read = kept.read(kept.write(state(7)))
    assert (read.step, read.facts["note"]) == (7, "x")
    assert torch.equal(read.tensors["model"]["w"], torch.full((4,), 7.0))
    assert (kept.folder / "latest").read_text() == "checkpoints/step-00000007\n"


def test_the_newest_are_kept(kept: Checkpoints) -> None:
    for step in (1, 5, 3, 9):
        kept.write(state(step))
    assert steps(kept) == ["step-00000005", "step-00000009"]
    kept.write(state(11), prune=False)
    assert len(steps(kept)) == 3


def cut(path: Path) -> None:
    data = (path / "model.safetensors").read_bytes()
    (path / "model.safetensors").write_bytes(data[:-3])


def flip(path: Path) -> None:
    data = bytearray((path / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (path / "model.safetensors").write_bytes(bytes(data))


def lose_manifest(path: Path) -> None:
    (path / "manifest.json").unlink()


def lose_file(path: Path) -> None:
    (path / "state.json").unlink()


@pytest.mark.parametrize("damage", [cut, flip, lose_manifest, lose_file])
def test_a_broken_checkpoint_is_passed_over_with_a_message(
    kept: Checkpoints, said: list[str], damage: Callable[[Path], None]
) -> None:
    good, broken = kept.write(state(1)), kept.write(state(2))
    damage(broken)
    assert kept.newest() == good
    assert len(said) == 1
    assert said[0].startswith("checkpoint step-00000002 is broken and is skipped: ")


def test_broken_newer_ones_never_push_the_good_one_out(kept: Checkpoints) -> None:
    good, broken = kept.write(state(1)), kept.write(state(5))
    cut(broken)
    kept.begin_after(kept.newest())
    assert kept.paths() == [good]
    for step in (2, 3):
        kept.write(state(step))
    assert kept.newest() == kept.home / "step-00000003"
    assert "broken-step-00000005" in steps(kept)


def test_leftovers_of_killed_writers_are_removed_at_the_next_beginning(kept: Checkpoints) -> None:
    good = kept.write(state(1))
    for name in (".step-00000002.abc.tmp", "old-step-00000000"):
        (kept.home / name).mkdir()
    kept.begin_after(good)
    assert steps(kept) == [good.name]


def test_a_full_disk_is_reported_and_the_last_checkpoint_kept(
    kept: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = kept.write(state(1))

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(CheckpointError, match=r"step 2 .* space .* last complete checkpoint is step-00000001"):
            kept.write(state(2))
    assert steps(kept) == [good.name]
    assert kept.newest() == good


@pytest.mark.parametrize("at", range(1, 16))
def test_an_error_at_any_call_leaves_a_good_checkpoint(
    kept: Checkpoints, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """Input/output errors at the at-th file-system call of writing the third checkpoint (two are kept)."""
    for step in (1, 2):
        kept.write(state(step))
    left = [at]

    def failing(call: Callable[..., object]) -> Callable[..., object]:
        def counted(*args: object, **options: object) -> object:
            left[0] -= 1
            if left[0] == 0:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return call(*args, **options)

        return counted

    with monkeypatch.context() as patch:
        for name in ("fsync", "replace", "rename", "mkdir", "rmdir", "unlink"):
            patch.setattr(os, name, failing(getattr(os, name)))
        with suppress(CheckpointError):
            kept.write(state(3))
    newest = kept.newest()
    assert newest is not None
    assert kept.read(newest).step in (2, 3)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 400 kB."""
    place = tmp_path / "disk"
    place.mkdir()
    try:
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", place], capture_output=True, check=False
        )
    except FileNotFoundError:
        pytest.skip("there is no mount command")
    if mounted.returncode:
        pytest.skip("mounting a small file system needs root")
    yield place
    subprocess.run(["umount", place], check=True)


def test_a_really_full_disk(disk: Path, said: list[str]) -> None:
    checkpoints = Checkpoints(disk, keep=2, say=said.append)
    good = checkpoints.write(state(1, 30_000))
    with pytest.raises(
        CheckpointError, match=r"no space is left on the disk.*last complete checkpoint is step-00000001"
    ):
        checkpoints.write(state(2, 90_000))
    assert checkpoints.newest() == good
    assert steps(checkpoints) == [good.name]
    assert checkpoints.write(state(3, 30_000)) == checkpoints.newest()


def test_a_disk_that_becomes_read_only_stops_a_run_which_can_be_continued(disk: Path) -> None:
    small.train(disk / "run", steps=4)
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    with pytest.raises(CheckpointError, match=r"read-only|Read-only"):
        small.train(disk / "run", steps=8)
    subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
    state_after, run = small.train(disk / "run", steps=8, schedule="constant", accept=("schedule",))
    assert run.complete
    assert state_after


def test_a_folder_that_cannot_be_made_is_reported_before_training(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot be written"):
        small.train(tmp_path / "file" / "run")


def test_two_processes_cannot_train_in_one_folder(tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(CheckpointError, match="another process is training"):
        small.train(tmp_path)
    small.train(tmp_path, steps=2, warmup=0)
