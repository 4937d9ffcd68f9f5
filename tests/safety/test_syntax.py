"""A walk over the syntax trees of ``src``: what the design forbids does not occur, and the walk would notice it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "mezzotint"

MODULES = {
    "pickle", "dill", "cloudpickle", "marshal", "shelve", "joblib", "torchvision", "requests", "urllib.request",
    "ftplib",
}  # fmt: skip
BUILTINS = {"eval", "exec", "compile", "__import__", "breakpoint"}
CALLS = {
    "torch.load", "torch.save", "torch.hub.load", "yaml.load", "yaml.unsafe_load", "numpy.load", "os.system",
    "os.popen", "os.getenv", "os.putenv", "tempfile.mktemp", "torch.manual_seed", "torch.seed",
    "torch.cuda.manual_seed", "torch.cuda.manual_seed_all", "torch.random.manual_seed", "numpy.random.seed",
    "random.seed", "accelerate.utils.set_seed",
}  # fmt: skip
ATTRIBUTES = {"os.environ"}
# Libraries initialise weights from the global generator; inside fork_rng its state is put back.
FORKED = {"torch.manual_seed", "torch.random.manual_seed"}
KEYWORDS = {
    "shell": True,
    "trust_remote_code": True,
    "allow_pickle": True,
    "weights_only": False,
    "use_safetensors": False,
}
# Foreign bytes are read in one place; loading checks a folder and hands it to diffusers.
READERS = {
    "PIL.Image.open", "json.load", "safetensors.safe_open", "safetensors.torch.load_file", "safetensors.torch.load",
    "zipfile.ZipFile", "tarfile.open", "shutil.unpack_archive",
}  # fmt: skip
HOME = ("files", "loading.py")


def _names(tree: ast.Module) -> dict[str, str]:
    """What each imported local name stands for."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                root = alias.name.split(".")[0]
                found[alias.asname or root] = alias.name if alias.asname else root
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return found


def _dotted(node: ast.AST, names: dict[str, str]) -> str:
    parts = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([names.get(node.id, node.id), *reversed(parts)]) if isinstance(node, ast.Name) else ""


def findings(text: str, *, home: bool = False) -> Iterator[str]:
    """One line for each forbidden thing of a file."""
    tree = ast.parse(text)
    names = _names(tree)
    forked = {id(call) for call in _within_fork(tree, names)}
    for node in ast.walk(tree):
        line = getattr(node, "lineno", 0)
        for module in _imported(node):
            if any(module == bad or module.startswith(f"{bad}.") for bad in MODULES):
                yield f"{line}: imports {module}"
        if isinstance(node, ast.ExceptHandler) and node.type is None:
            yield f"{line}: bare except"
        if isinstance(node, ast.Attribute) and _dotted(node, names) in ATTRIBUTES:
            yield f"{line}: reads {_dotted(node, names)}"
        if isinstance(node, ast.Call) and id(node) not in forked:
            yield from (f"{line}: {problem}" for problem in _call(node, names, home))


def _within_fork(tree: ast.Module, names: dict[str, str]) -> Iterator[ast.Call]:
    """The seedings whose effect ends with a ``with torch.random.fork_rng()``."""
    for block in ast.walk(tree):
        items = block.items if isinstance(block, ast.With) else []
        if any(
            isinstance(i.context_expr, ast.Call) and _dotted(i.context_expr.func, names) == "torch.random.fork_rng"
            for i in items
        ):
            calls = [node for node in ast.walk(block) if isinstance(node, ast.Call)]
            yield from (call for call in calls if _dotted(call.func, names) in FORKED)


def _imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.module:
        return [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return []


def _call(node: ast.Call, names: dict[str, str], home: bool) -> Iterator[str]:
    called = _dotted(node.func, names)
    if called in BUILTINS or called in CALLS or (called in READERS and not home):
        yield f"calls {called}"
    for keyword in node.keywords:
        value = keyword.value.value if isinstance(keyword.value, ast.Constant) else None
        if keyword.arg in KEYWORDS and value is KEYWORDS[keyword.arg]:
            yield f"passes {keyword.arg}={value}"


FILES = sorted(SOURCE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=[path.relative_to(SOURCE).as_posix() for path in FILES])
def test_nothing_forbidden_occurs(path: Path) -> None:
    home = path.relative_to(SOURCE).parts[0] in HOME
    assert list(findings(path.read_text(encoding="utf-8"), home=home)) == []


@pytest.mark.parametrize(
    ("text", "finding"),
    [
        ("import pickle", "imports pickle"),
        ("from torchvision import transforms", "imports torchvision"),
        ("import torchvision.transforms as T", "imports torchvision.transforms"),
        ("def f():\n    from dill import loads", "imports dill"),
        ("import torch\ntorch.load(p)", "calls torch.load"),
        ("import torch as t\nt.load(p)", "calls torch.load"),
        ("from torch import load as l\nl(p)", "calls torch.load"),
        ("eval('1')", "calls eval"),
        ("exec('1')", "calls exec"),
        ("import yaml\nyaml.load(f)", "calls yaml.load"),
        ("import subprocess\nsubprocess.run('x', shell=True)", "passes shell=True"),
        ("load(x, trust_remote_code=True)", "passes trust_remote_code=True"),
        ("import numpy as np\nnp.load('x')", "calls numpy.load"),
        ("import numpy as np\nnp.random.seed(0)", "calls numpy.random.seed"),
        ("import torch\ntorch.manual_seed(0)", "calls torch.manual_seed"),
        ("import os\nx = os.environ['X']", "reads os.environ"),
        ("from os import environ as e, getenv\ngetenv('X')", "calls os.getenv"),
        ("from PIL import Image\nImage.open(p)", "calls PIL.Image.open"),
        ("import json\njson.load(f)", "calls json.load"),
        ("from safetensors.torch import load_file\nload_file(p)", "calls safetensors.torch.load_file"),
        ("try:\n    f()\nexcept:\n    pass", "bare except"),
    ],
)
def test_the_walk_notices(text: str, finding: str) -> None:
    assert any(finding in line for line in findings(text))


@pytest.mark.parametrize(
    "text",
    [
        "import torch\nwith torch.random.fork_rng(devices=[]):\n    torch.manual_seed(0)",
        "import re\nre.compile('x')",
        "import torch\ntorch.compile(m)",
        "import json\njson.loads('1')",
        "torch.Generator().manual_seed(1)",
        "run(shell=False)",
        "model.eval()",
    ],
)
def test_the_walk_lets_pass(text: str) -> None:
    assert list(findings(text)) == []


def test_one_place_may_read() -> None:
    assert list(findings("from PIL import Image\nImage.open(p)", home=True)) == []
