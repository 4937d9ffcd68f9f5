"""The whole command line with sockets forbidden: every verb that ``--help`` lists runs without a network.

The interpreter's audit events stop a socket wherever it is made, also below the libraries. The verbs run one after the
other in one child process, since each would import the same libraries.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mezzotint.cli import main
from tests.cli.conftest import stable_diffusion

FORBIDDEN = """
import contextlib, io, json, sys

asked = []
LOCAL = {"127.0.0.1", "::1", "localhost", None}
def forbid(event, arguments):
    # At import, urllib3 binds a socket to the loopback to learn whether there is IPv6; that reaches nobody.
    host = arguments[1][0] if event == "socket.bind" and isinstance(arguments[1], tuple) else ""
    if event.startswith("socket.") and event not in {"socket.__new__", "socket.gethostname"} and host not in LOCAL:
        asked.append(event)
        raise PermissionError(f"the network is forbidden: {event}")
sys.addaudithook(forbid)

from mezzotint.cli import main

report = []
for words in json.loads(sys.argv[1]):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(words)
    report.append([words, code, list(asked), err.getvalue()[-800:]])
print(json.dumps(report), file=sys.__stdout__)
"""

SCHEDULE = (
    "--model {model} --steps 3 --data self --prompts a --samples 4 --levels 11 --candidates 3 --no-early-stopping "
    "--stop-samples 2 --out {out}/steps.json"
)
LEARN = (
    "--model {model} --images {out}/world/images --class-word cube --steps 1 --rank 1 --encoder free --templates {{}} "
    "--out {out}/concept"
)
# One quick command or more for each verb; {model} is a tiny pipeline, {out} a folder of the test's own.
COMMANDS = {
    "sample": ["cube --model {model} --steps 2 --seed 1 --out {out}/x.png"],
    "show": ["{out}/x.png", "{out}/x.png --json"],
    "rerun": ["{out}/x.png"],
    "methods": ["", "--json"],
    "cite": [""],
    "demo": ["--help"],
    "bench": ["--help"],
    "world": ["scenes --count 2 --out {out}/world"],
    "zoo": ["list", "list --json", "verify"],
    "doctor": ["", "--json"],
    "schedule": [SCHEDULE],
    "distill": ["--model {model} --data scenes --pictures 2 --steps 1 --batch-size 2 --out {out}/four"],
    "learn": [LEARN],
    "quantize": ["--model {model} --weights 8 --group auto --rounding rtn --out {out}/small"],
}


def _run(commands: list[list[str]], seconds: int) -> list[tuple[list[str], int, list[str], str]]:
    done = subprocess.run(
        [sys.executable, "-c", FORBIDDEN, json.dumps(commands)],
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def _verbs(capsys: pytest.CaptureFixture[str]) -> list[str]:
    capsys.readouterr()
    assert main(["--help"]) == 0
    return re.findall(r"^  ([a-z]+)  ", capsys.readouterr().out, re.MULTILINE)


def test_every_verb_has_a_command_here(capsys: pytest.CaptureFixture[str]) -> None:
    verbs = _verbs(capsys)
    assert len(verbs) >= 10
    assert set(verbs) - COMMANDS.keys() == set(), "add a quick command for each new verb to COMMANDS"


def test_the_command_line_works_without_a_network(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stable_diffusion().save_pretrained(tmp_path / "model")
    verbs = _verbs(capsys)
    commands = [
        [verb, *(word.format(model=tmp_path / "model", out=tmp_path) for word in words.split())]
        for verb in verbs
        for words in ["--help", *COMMANDS[verb]]
    ]
    report = _run(commands, seconds=400)
    assert [(words, code, err) for words, code, _, err in report if code != 0] == []
    assert [asked for _, _, asked, _ in report if asked] == []


def test_the_ban_holds() -> None:
    report = _run([["sample", "a cube", "--model", "nobody/nothing", "--out", "x.png"]], seconds=200)
    assert report[0][1] in {1, 2}
    assert report[0][2] != [], "a hub id does touch the network, and the ban is what stops it"


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["demo"])
def test_the_demonstration_works_without_a_network(tmp_path: Path, verb: str) -> None:
    report = _run([[verb, "--out", str(tmp_path / "report")]], seconds=1800)
    assert report[0][1:3] == [0, []], report[0][3]
    assert (tmp_path / "report" / "index.html").is_file()
