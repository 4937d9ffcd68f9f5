"""Start-up budgets, in fresh processes: the best of several runs, in processor time where the machine may be busy.

``import mezzotint`` imports no torch and takes under 0.3 s; ``mezzotint --help`` answers in under 0.5 s.
"""

from __future__ import annotations

import importlib.util
import json
import resource
import subprocess
import sys

import pytest

HEAVY = ("torch", "diffusers", "transformers", "numpy", "scipy", "matplotlib", "gradio", "kornia", "PIL")
RUNS = 5

IMPORT = """
import json, sys, time
before = time.process_time()
import mezzotint
seconds = time.process_time() - before
print(json.dumps([seconds, [name for name in sys.argv[1:] if name in sys.modules], dir(mezzotint)]))
"""


def _seconds(*command: str) -> float:
    """Processor time of one child."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_importing_the_package_is_light() -> None:
    outputs = [
        subprocess.run([sys.executable, "-c", IMPORT, *HEAVY], check=True, capture_output=True, text=True).stdout
        for _ in range(RUNS)
    ]
    reports = [json.loads(output) for output in outputs]
    assert min(seconds for seconds, _, _ in reports) < 0.3
    assert reports[0][1] == [], "heavy libraries that an import pulls in"
    assert {"load", "methods", "__version__"} <= set(reports[0][2])


def test_finding_the_methods_imports_no_torch() -> None:
    program = (
        "import sys, mezzotint\n"
        "doors = mezzotint.methods.discover()\n"
        "assert all(getattr(mezzotint, door.name) is door.module for door in doors)\n"
        "print([name for name in sys.argv[1:] if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program, *HEAVY[:3]], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


def test_loading_a_name_is_found_without_torch() -> None:
    program = (
        "import sys\nfrom mezzotint.loading import embedded, zoo_path\n"
        "[zoo_path(name) for name in embedded()]\nprint('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "False"


@pytest.mark.skipif(importlib.util.find_spec("mezzotint.cli") is None, reason="there is no command line yet")
def test_help_answers_at_once() -> None:
    command = (sys.executable, "-c", "from mezzotint.cli import main; main(['--help'])")
    assert min(_seconds(*command) for _ in range(RUNS)) < 0.5
    program = (
        "import sys\nfrom mezzotint.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "print([name for name in sys.argv[1:] if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program, *HEAVY[:3]], check=True, capture_output=True, text=True)
    assert done.stderr.strip().endswith("[]")
