"""Whether a call begins a run or continues one: never silently the wrong of the two."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from mezzotint.training.checkpoints import CheckpointError, Checkpoints, State
from mezzotint.training.config import Config

Resume = Literal["auto", "must", "never"]


def choose(checkpoints: Checkpoints, resume: Resume, *, overwrite: bool = False) -> str | None:
    """The checkpoint folder to continue from, or None to begin; the run's folder is made ready for writing.

    Args:
        checkpoints: those of the run's folder.
        resume: "auto", "must" or "never", as in `fit`.
        overwrite: with "never", remove the run that the folder holds.

    Raises:
        CheckpointError: if a run would have to be continued that cannot be, or begun over one that exists.
        ValueError: if the arguments contradict each other.
    """
    _check(resume, overwrite=overwrite)
    folder = checkpoints.folder
    started = bool(checkpoints.paths()) or (folder / "log.jsonl").exists()
    if resume == "never":
        if started and not overwrite:
            raise CheckpointError(
                f"{folder} already holds a run; continue it with resume='auto', or remove it with overwrite=True"
            )
        _remove_run(folder)
        return None
    chosen = checkpoints.newest()
    if chosen is None and resume == "must":
        raise CheckpointError(f"{folder} holds no readable checkpoint to continue from; see that the path is right")
    if chosen is None and started:
        raise CheckpointError(
            f"{folder} holds a run without a readable checkpoint, and a new one is not begun over it silently; choose "
            "another folder, or say resume='never', overwrite=True"
        )
    checkpoints.begin_after(chosen)
    return str(chosen) if chosen else None


def refuse_changes(state: State, facts: Mapping[str, Any], config: Config, *, accept: tuple[str, ...] = ()) -> None:
    """See that a saved run is continued with the settings it was begun with.

    Args:
        state: the saved run.
        facts: "config" and "items" of the present call.
        config: the present settings.
        accept: names of settings that may differ.

    Raises:
        ValueError: if another setting differs.
    """
    changed = config.differences(state.facts["config"])
    if state.facts["items"] != facts["items"]:
        changed["items"] = f"{state.facts['items']} -> {facts['items']}"
    listed = [f"{name}: {change}" for name, change in changed.items() if name not in accept]
    if listed:
        names = ", ".join(repr(name) for name in changed)
        raise ValueError(
            f"the run was begun with other settings ({'; '.join(listed)}); use those, or say accept=({names},)"
        )


def _check(resume: str, *, overwrite: bool) -> None:
    if resume not in ("auto", "must", "never"):
        raise ValueError(f"resume must be 'auto', 'must' or 'never', got {resume!r}")
    if overwrite and resume != "never":
        raise ValueError(f"overwrite=True goes with resume='never' only, got resume={resume!r}")


def _remove_run(folder: Path) -> None:
    for name in ("checkpoints", "samples", "tensorboard"):
        shutil.rmtree(folder / name, ignore_errors=True)
    for name in ("log.jsonl", "latest"):
        (folder / name).unlink(missing_ok=True)
