"""A run killed with SIGKILL at random moments, inside checkpoint writes too, ends as an uninterrupted one does."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


def kill_many(runs: int, settings: dict[str, Any], seed: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.training.killing", str(runs), json.dumps(settings), str(seed)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1800, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(("precision", "optimiser"), [("float32", "adamw"), ("bfloat16", "muon")])
def test_three_killed_runs(precision: str, optimiser: str) -> None:
    result = kill_many(3, {"precision": precision, "optimiser": optimiser, "steps": 8}, seed=1)
    assert result["identical"] == 3
    assert result["kills"] >= 3


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("optimiser", ["adamw", "muon"])
def test_twenty_killed_runs(precision: str, optimiser: str) -> None:
    result = kill_many(20, {"precision": precision, "optimiser": optimiser}, seed=2)
    assert result["identical"] == 20
    assert result["kills"] >= 40
    assert result["inside_a_write"] >= 10
