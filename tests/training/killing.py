"""Runs that are killed again and again, and continued; started by test_kill as a process of its own.

The process imports everything once and forks for every attempt, so that an attempt costs what its training costs. It is
killed either by the parent after a random time, or by itself at a random file-system call: inside a checkpoint write.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mezzotint import files
from mezzotint.training.checkpoints import Checkpoints, step_of
from tests.training import small

CALLS = ("fsync", "replace", "rename", "unlink", "rmdir", "mkdir")
KILLS_PER_RUN = 5


def fork(work: Callable[[], None]) -> int:
    """Do `work` in a child process."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        work()
        code = 0
    finally:
        os._exit(code)


def armed(at: int) -> None:
    """Kill this process at the at-th file-system call, before or after it happens."""
    left = [at]

    def wrap(call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            left[0] -= 1
            if left[0] == 0 and at % 2:
                os.kill(os.getpid(), signal.SIGKILL)
            result = call(*args, **kwargs)
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return counted

    for name in CALLS:
        setattr(os, name, wrap(getattr(os, name)))


def train(folder: Path, settings: dict[str, Any], fuse: int | None) -> None:
    """One attempt at the run; its result is written when it comes to the end."""
    if fuse is not None:
        armed(fuse)
    state, _ = small.train(folder / "run", **settings)
    files.write_safetensors(folder / "final.safetensors", state)


def progress(folder: Path) -> int:
    """Step of the newest complete checkpoint, which must be readable; -1 if there is none."""
    said: list[str] = []
    checkpoints = Checkpoints(folder / "run", say=said.append)
    newest = checkpoints.newest()
    if said:
        raise AssertionError(f"an unreadable state was left: {said}")
    if newest is None:
        return -1
    return checkpoints.read(newest).step if checkpoints.read(newest).step == step_of(newest) else -2


def uninterrupted(settings: dict[str, Any]) -> float:
    """Seconds of a run that nobody kills."""
    with tempfile.TemporaryDirectory() as whole:
        began = time.monotonic()
        os.waitpid(fork(lambda: train(Path(whole), settings, None)), 0)
        return time.monotonic() - began


def killed_run(folder: Path, settings: dict[str, Any], chance: random.Random, seconds: float) -> tuple[int, int]:
    """Train with kills until the run is finished; how many kills hit, and how many of them inside a write."""
    reached, kills, inside = -1, 0, 0
    while True:
        fuse = chance.randint(1, 60) if kills < KILLS_PER_RUN and chance.random() < 0.5 else None
        child = fork(lambda fuse=fuse: train(folder, settings, fuse))  # type: ignore[misc]
        if fuse is None and kills < KILLS_PER_RUN:
            time.sleep(chance.random() * seconds)
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        now = progress(folder)
        if now < reached:
            raise AssertionError(f"the run went back from step {reached} to {now}: a silent restart")
        reached = now
        if os.WIFEXITED(status):
            if os.WEXITSTATUS(status):
                raise AssertionError("a continued run failed")
            return kills, inside
        kills, inside = kills + 1, inside + (fuse is not None)


def main(runs: int, settings: dict[str, Any], seed: int) -> dict[str, Any]:
    """Kill `runs` runs at random and compare each with an uninterrupted one."""
    torch.set_num_threads(1)
    chance = random.Random(seed)
    reference, _ = small.train(None, **settings)
    # The shortest of some: kills that are timed for a slow moment of the machine would come after the end.
    seconds = min(uninterrupted(settings) for _ in range(3))
    identical, kills, inside = 0, 0, 0
    for _ in range(runs):
        with tempfile.TemporaryDirectory() as folder:
            hit, within = killed_run(Path(folder), settings, chance, seconds)
            final: dict[str, Tensor] = files.read_safetensors(Path(folder) / "final.safetensors")
            identical, kills, inside = identical + small.same(final, reference), kills + hit, inside + within
    return {"runs": runs, "identical": identical, "kills": kills, "inside_a_write": inside}


if __name__ == "__main__":
    print(json.dumps(main(int(sys.argv[1]), json.loads(sys.argv[2]), int(sys.argv[3]))))
