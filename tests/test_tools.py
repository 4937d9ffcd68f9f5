"""The checks of the house rules find what they must and nothing else."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tools import check_size, check_text

NESTED = """
def f(x):
    for a in x:
        if a:
            with a:
                pass
        elif b:
            try:
                pass
            finally:
                pass
        else:
            pass
"""


def _function(text: str) -> ast.FunctionDef:
    return check_size.functions(ast.parse(text))[0]


def test_nesting_counts_statements_and_not_elif() -> None:
    assert check_size.depth(_function(NESTED)) == 3
    assert check_size.depth(_function(NESTED.replace("pass\n        elif", "while a: pass\n        elif"))) == 4
    assert check_size.depth(_function("def f():\n    if a: pass\n    elif b: pass\n    elif c: pass")) == 1
    assert check_size.depth(_function("def f():\n    if a:\n        def g():\n            if b: pass")) == 1


@pytest.mark.parametrize(
    ("signature", "count"),
    [
        ("a, b, /, c, d", 4),
        ("self, a, b, c, d", 4),
        ("a, *, b, c, d, e", 1),
        ("*args, **kwargs", 0),
        ("a, b, c, d, e", 5),
    ],
)
def test_positional_arguments(signature: str, count: int) -> None:
    assert check_size.positional(_function(f"def f({signature}): pass")) == count


def test_a_length_has_its_docstring_and_not_its_decorators() -> None:
    assert check_size.length(_function('@d\n@e\ndef f():\n    """One.\n\n    Two.\n    """\n    return 1')) == 6


def test_broken_rules_are_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "long.py").write_text("def f(a, b, c, d, e):\n" + "    a\n" * 70 + "\n" * 400)
    assert check_size.main(str(tmp_path)) == 1
    printed = capsys.readouterr().out
    for words in ("lines, at most 400", "has 71 lines", "takes 5 positional", "median 71"):
        assert words in printed
    (tmp_path / "long.py").write_text("def f(a):\n    return a\n")
    assert check_size.main(str(tmp_path)) == 0


@pytest.mark.parametrize("text", ["/{}/main", "open('/{}/x')", "a\n/{}/", "see:/{}/y", b"\0\xff /{}/"])
@pytest.mark.parametrize("folder", ["work", "root", "home/jane", "Users/Jane", "mnt/data"])
def test_paths_of_a_machine_are_found(text: str | bytes, folder: str) -> None:
    content = text if isinstance(text, bytes) else text.encode()
    assert check_text.findings("x", content.replace(b"{}", folder.encode()))


@pytest.mark.parametrize("text", ["network/work/x", "../work/x", "https://host/home/", "a/root/b", "/etc/hosts"])
def test_other_paths_pass(text: str) -> None:
    assert check_text.findings("x", text.encode()) == []


def test_registries_are_found_with_their_line() -> None:
    host = "py" + "pi.org"
    assert check_text.findings("x", f"a\nb\nhttps://{host}/simple".encode()) == [f"x:3: package registry: {host}"]
