"""One arm of `speed.py` in a process of its own: its compiled code, threads, start-up and memory are its alone.

The parent asks in lines of JSON and waits for each answer, so that one arm computes at a time.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


class Worker:
    """The parent's side.

    Args:
        arm: its name.
        options: of the run.
    """

    def __init__(self, arm: str, options: Mapping[str, Any]) -> None:
        environment = os.environ | {"OMP_NUM_THREADS": str(options["threads"])}
        start = time.perf_counter()
        self._process = subprocess.Popen(
            [sys.executable, __file__, arm, json.dumps(dict(options))],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip
        self._answer()
        self.ready = time.perf_counter() - start

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Let it do something.

        Raises:
            RuntimeError: it failed; with its own words.
        """
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        # One that has failed reads no more.
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        answer = json.loads(line) if line else {"error": f"the process ended with code {self._process.wait()}"}
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer


class _Job:
    """The child's side."""

    def __init__(self, name: str, options: Mapping[str, Any]) -> None:
        import torch
        from speed_arms import make

        torch.set_num_threads(options["threads"])
        self.arm = make(name, options)
        self.kept: list[Any] = []

    def prepare(self, *, batch: int, side: int | None = None, steps: int | None = None) -> dict[str, Any]:
        """Get ready, with another number of steps if given, and draw the first pictures."""
        self.arm.steps = self.arm.steps if steps is None else steps
        start = time.perf_counter()
        self.arm.prepare(batch, side=side)
        self.arm.draw(["a red cube"] * batch)
        return {"first": time.perf_counter() - start, "engine": self.arm.engine, **self.memory()}

    def draw(self, *, prompts: Sequence[str], first: int = 0, keep: bool = False) -> dict[str, Any]:
        """Draw, and say how long that took."""
        wall, cpu = time.perf_counter(), time.process_time()
        made = self.arm.draw(prompts, first=first)
        times = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
        if keep:
            self.kept.append(made.cpu())
        return times

    def set_steps(self, *, steps: int) -> dict[str, Any]:
        """Another number of steps from here on."""
        self.arm.set_steps(steps)
        return {}

    def store(self, *, path: str) -> dict[str, Any]:
        """Write the pictures kept."""
        import torch

        from mezzotint.files import write_safetensors

        write_safetensors(Path(path), {"pictures": torch.cat(self.kept).contiguous()})
        self.kept = []
        return {}

    def memory(self) -> dict[str, Any]:
        """Peak of resident memory in bytes until now."""
        # Linux counts in kilobytes, macOS in bytes.
        unit = 1 if sys.platform == "darwin" else 1024
        return {"peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}


def serve() -> None:
    """Answer requests until there are no more."""
    # Whatever libraries print must not come between the answers.
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def reply(answer: Mapping[str, Any]) -> None:
        replies.write(json.dumps(answer) + "\n")
        replies.flush()

    try:
        job = _Job(sys.argv[1], json.loads(sys.argv[2]))
        reply({})
        for line in sys.stdin:
            request = json.loads(line)
            reply(getattr(job, request.pop("do"))(**request))
    except Exception as error:  # noqa: BLE001 - the parent reports it as this arm's result
        reply({"error": f"{type(error).__name__}: {error}"[:500]})


if __name__ == "__main__":
    serve()
