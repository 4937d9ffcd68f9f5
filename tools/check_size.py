"""Count what the style rules promise: function and file lengths, nesting, positional arguments.

A function's length is everything from its ``def`` to its last line, docstring included. Nesting counts compound
statements inside a function; an ``elif`` is as deep as its ``if``.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import median

MEDIAN, NINETIETH, LONGEST, FILE, NESTING, POSITIONAL = 10, 35, 70, 400, 3, 4
Function = ast.FunctionDef | ast.AsyncFunctionDef
COMPOUND = (ast.If, ast.For, ast.AsyncFor, ast.While, ast.With, ast.AsyncWith, ast.Try, ast.TryStar, ast.Match)


def length(function: Function) -> int:
    """Lines from ``def`` to the last one."""
    return (function.end_lineno or function.lineno) - function.lineno + 1


def depth(node: ast.AST) -> int:
    """Deepest nesting of compound statements below a node; nested functions count for themselves."""
    deepest = 0
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda):
            continue
        is_elif = isinstance(node, ast.If) and node.orelse == [child] and isinstance(child, ast.If)
        deepest = max(deepest, depth(child) + (isinstance(child, COMPOUND) and not is_elif))
    return deepest


def positional(function: Function) -> int:
    """Arguments that a caller may give by position, without ``self`` and ``cls``."""
    arguments = [*function.args.posonlyargs, *function.args.args]
    return len(arguments) - bool(arguments and arguments[0].arg in {"self", "cls"})


def findings(path: Path, tree: ast.Module, lines: int) -> Iterator[str]:
    """What one file breaks."""
    if lines > FILE:
        yield f"{path}: {lines} lines, at most {FILE}: split it"
    for function in functions(tree):
        where = f"{path}:{function.lineno}: {function.name}"
        if length(function) > LONGEST:
            yield f"{where} has {length(function)} lines, at most {LONGEST}"
        if depth(function) > NESTING:
            yield f"{where} nests {depth(function)} deep, at most {NESTING}"
        if positional(function) > POSITIONAL:
            yield f"{where} takes {positional(function)} positional arguments, at most {POSITIONAL}: put * before some"


def functions(tree: ast.Module) -> list[Function]:
    """All functions and methods of a file."""
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


def main(root: str = "src") -> int:
    """Print what breaks a rule; 1 when something does."""
    problems: list[str] = []
    sizes: list[int] = []
    for path in sorted(Path(root).rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        tree = ast.parse(text)
        problems += findings(path, tree, text.count("\n"))
        sizes += [length(function) for function in functions(tree)]
    sizes.sort()
    middle, ninetieth = median(sizes), sizes[max(0, int(0.9 * len(sizes)) - 1)]
    if middle > MEDIAN or ninetieth > NINETIETH:
        problems.append(f"{root}: median {middle:g} and 90th percentile {ninetieth}, at most {MEDIAN} and {NINETIETH}")
    print(*problems, sep="\n", end="\n" if problems else "")
    print(f"{len(sizes)} functions: median {middle:g}, 90th percentile {ninetieth}, longest {sizes[-1]} lines")
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
