"""Crash-safe checkpoints of a run: complete or absent, checked before they are used, never overwritten in place.

A checkpoint is a folder `checkpoints/step-00000100` of safetensors and JSON files. It is written under a temporary
name, synced, given a manifest of sizes and SHA-256 last, renamed; then the file `latest` names it; then older ones are
removed. A process killed anywhere in between leaves at least one complete checkpoint and no half one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from mezzotint import files

NAME = re.compile(r"step-(\d{8,})")


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be written, read or found, or a folder that may not be used."""


@dataclasses.dataclass(frozen=True)
class State:
    """Contents of a checkpoint: groups of named tensors, and facts that are plain JSON."""

    step: int
    tensors: Mapping[str, Mapping[str, Tensor]]
    facts: Mapping[str, Any]


class Checkpoints:
    """The checkpoints of the run in `folder`.

    Args:
        folder: the run's folder; checkpoints go to `folder/checkpoints`.
        keep: complete checkpoints to keep, at least 1.
        say: receives one line for everything out of the ordinary.
    """

    def __init__(self, folder: Path, *, keep: int = 2, say: Callable[[str], None]) -> None:
        if keep < 1:
            raise ValueError(f"keep must be at least 1, got {keep}")
        self.folder = folder
        self.home = folder / "checkpoints"
        self.keep = keep
        self.say = say

    def paths(self) -> list[Path]:
        """Checkpoint folders by name, newest first; not yet checked."""
        if not self.home.is_dir():
            return []
        found = [path for path in self.home.iterdir() if NAME.fullmatch(path.name)]
        return sorted(found, key=step_of, reverse=True)

    def newest(self) -> Path | None:
        """The newest checkpoint whose files match its manifest; broken ones are reported and passed over."""
        for path in self.paths():
            try:
                files.verify_folder(path)
            except (files.FileError, OSError) as error:
                self.say(f"checkpoint {path.name} is broken and is skipped: {error}")
            else:
                return path
        return None

    def write(self, state: State, *, prune: bool = True) -> Path:
        """Write a checkpoint, point to it, remove the ones beyond `keep`.

        Raises:
            CheckpointError: if the folder is full or cannot be written; earlier checkpoints are untouched.
        """
        path = self.home / f"step-{state.step:08d}"
        if path.exists():
            self._discard(path)
        try:
            self.home.mkdir(parents=True, exist_ok=True)
            with files.atomic_folder(path) as temporary:
                for group, tensors in state.tensors.items():
                    plain = {name: value.detach().to("cpu").contiguous() for name, value in tensors.items()}
                    files.write_safetensors(temporary / f"{group}.safetensors", plain)
                files.write_json(temporary / "state.json", {**state.facts, "step": state.step})
            files.write_text(self.folder / "latest", f"checkpoints/{path.name}\n")
        except (OSError, files.FileError) as error:
            raise CheckpointError(self._failure(state.step, error)) from error
        if prune:
            older = [other for other in self.paths() if step_of(other) < state.step]
            for other in older[self.keep - 1 :]:
                self._discard(other)
        return path

    def read(self, path: Path) -> State:
        """A checkpoint's contents, on the CPU.

        Raises:
            CheckpointError: if a file is missing or damaged.
        """
        try:
            facts = files.read_json(path / "state.json")
            parts = sorted(path.glob("*.safetensors"))
            return State(int(facts["step"]), {part.stem: files.read_safetensors(part) for part in parts}, facts)
        except (OSError, KeyError, files.FileError) as error:
            raise CheckpointError(f"checkpoint {path} cannot be read: {error}") from error

    def begin_after(self, chosen: Path | None) -> None:
        """Make the folder ready for writing on from `chosen`.

        What killed writers left behind is removed; checkpoints newer than the chosen one (they are broken, or it would
        not have been chosen) are set aside under a name that no later run takes for a checkpoint.
        """
        for path in self.home.iterdir() if self.home.is_dir() else ():
            if not NAME.fullmatch(path.name) and not path.name.startswith("broken-") and path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
        for path in self.paths():
            if chosen is None or step_of(path) > step_of(chosen):
                aside = path.with_name(f"broken-{path.name}")
                shutil.rmtree(aside, ignore_errors=True)
                path.rename(aside)

    def _discard(self, path: Path) -> None:
        # Renamed first, so that a kill in the middle of the removal leaves no half checkpoint under a checkpoint's
        # name.
        doomed = path.with_name(f"old-{path.name}")
        with contextlib.suppress(OSError):
            shutil.rmtree(doomed, ignore_errors=True)
            path.rename(doomed)
            shutil.rmtree(doomed, ignore_errors=True)

    def _failure(self, step: int, error: Exception) -> str:
        last = next(iter(self.paths()), None)
        kept = f"the last complete checkpoint is {last.name}" if last else "there is no earlier checkpoint"
        return (
            f"could not write the checkpoint of step {step} in {self.home}: {error}; {kept}. "
            "Free space or make the folder writable, then run again to continue"
        )


def step_of(path: Path) -> int:
    """The step in a checkpoint's name."""
    found = NAME.fullmatch(path.name)
    if found is None:
        raise ValueError(f"a checkpoint is called step-NNNNNNNN, got {path.name!r}")
    return int(found[1])


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the run folder for one process; the system gives it back when the process ends, however it ends.

    Raises:
        CheckpointError: if another process trains there, or the folder cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = (folder / ".lock").open("a")
    except OSError as error:
        raise CheckpointError(f"the run folder {folder} cannot be written: {error}") from error
    with handle:
        _lock(handle.fileno(), folder)
        yield


def _lock(descriptor: int, folder: Path) -> None:
    try:
        import fcntl
    except ImportError:  # not a POSIX system: there the user has to see to it
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise CheckpointError(
            f"another process is training in {folder}; wait for it or choose another folder"
        ) from error
