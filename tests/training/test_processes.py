"""Several processes (gloo, on the CPU): the same run as one process makes, and failures that all of them hear of."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from torch.testing import assert_close

from mezzotint import files

ROOT = Path(__file__).parents[2]


def together(folder: Path, count: int, what: str = "good") -> None:
    """Run `count` processes to their end."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    started = []
    for rank in range(count):
        shared = {
            "RANK": rank,
            "LOCAL_RANK": rank,
            "WORLD_SIZE": count,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
        }
        environment = os.environ | {key: str(value) for key, value in shared.items() if count > 1}
        command = [sys.executable, "-m", "tests.training.pair", str(folder), json.dumps(what)]
        started.append(subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True))
    for process in started:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors[-3000:]


def rows(folder: Path, rank: int) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = files.read_json(folder / f"rows-{rank}.json")
    return found


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    folders = {count: tmp_path_factory.mktemp(f"processes{count}") for count in (1, 2)}
    for count, folder in folders.items():
        together(folder, count)
    return folders


def test_two_processes_give_the_loss_curve_of_one(runs: dict[int, Path]) -> None:
    one, two = (rows(runs[count], 0) for count in (1, 2))
    assert [row["step"] for row in one] == [row["step"] for row in two]
    for first, second in zip(one, two, strict=True):
        assert second["loss"] == pytest.approx(first["loss"], rel=1e-3)
        assert second.get("held_out", 0.0) == pytest.approx(first.get("held_out", 0.0), rel=1e-3)


def test_both_processes_end_with_the_weights_of_one(runs: dict[int, Path]) -> None:
    alone = files.read_safetensors(runs[1] / "state-0.safetensors")
    for rank in (0, 1):
        shared = files.read_safetensors(runs[2] / f"state-{rank}.safetensors")
        for name, value in alone.items():
            assert_close(shared[name], value, rtol=1e-3, atol=1e-4)


def test_one_checkpoint_is_written_and_continues_alone(runs: dict[int, Path]) -> None:
    """A run of two processes is finished by one: what is on disk does not depend on how many wrote it."""
    newest = max((runs[2] / "run" / "checkpoints").glob("step-*"))
    saved = files.read_safetensors(newest / "model.safetensors")
    state = files.read_safetensors(runs[2] / "state-0.safetensors")
    for name, value in saved.items():
        assert_close(value, state[f"model/{name}"], rtol=0, atol=0)


def test_a_loss_that_fails_in_one_process_stops_both_and_names_the_layer(tmp_path: Path) -> None:
    together(tmp_path, 2, "bad")
    assert [(tmp_path / f"error-{rank}.txt").read_text() for rank in (0, 1)] == ["0 1", "0 1"]
