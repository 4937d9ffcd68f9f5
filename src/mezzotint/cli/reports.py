"""``mezzotint demo`` and ``mezzotint bench``: the methods' claims, measured on this machine."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from mezzotint.cli.terminal import Answer, UsageError, choose, note, progress, quiet

__all__ = ["bench", "demo"]


def _chosen(given: tuple[str, ...]) -> list[Any]:
    from mezzotint.methods import discover

    doors = {door.name: door for door in discover()}
    names = [choose(name.replace("-", "_"), doors, "method") for name in given] if given else list(doors)
    if not names:
        raise UsageError("there are no methods to measure")
    return [doors[name] for name in names]


def _measure(doors: list[Any], seeds: tuple[int, ...], budget: str) -> list[Any]:
    quiet()
    found = []
    with progress("methods", len(doors)) as advance:
        for door in doors:
            started = time.perf_counter()
            note(f"{door.name}: measuring ({budget} budget, {len(seeds)} seeds)")
            found.append(door.experiment.experiment(seeds=seeds, budget=budget))
            note(f"{door.name}: {found[-1].outcome} after {time.perf_counter() - started:.0f} s")
            advance()
    return found


def _answer(doors: list[Any], found: list[Any], page: Path) -> Answer:
    outcomes = {door.name: evidence.outcome for door, evidence in zip(doors, found, strict=True)}
    data = {"page": str(page), "outcomes": outcomes, "seconds": {
        door.name: round(evidence.seconds, 1) for door, evidence in zip(doors, found, strict=True)}}  # fmt: skip
    return Answer(data, "\n".join([*(f"{name}: {outcome}" for name, outcome in outcomes.items()), str(page)]))


def demo(*methods: str, out: Path = Path("report"), seed: int = 0) -> Answer:
    """Measure the methods' claims on the quick budget and write a page of pictures and numbers.

    Args:
        methods: which; without any, all of them.
        out: the folder in which index.html is written.
        seed: of the experiments.
    """
    from mezzotint.evidence import write_report

    doors = _chosen(methods)
    found = _measure(doors, (seed,), "quick")
    out.mkdir(parents=True, exist_ok=True)
    page = out / "index.html"
    write_report(found, page)
    return _answer(doors, found, page)


def bench(*methods: str, out: Path = Path("docs/results.md"), seeds: tuple[int, ...] = (0, 1, 2)) -> Answer:
    """Measure the methods' claims on the full budget and refresh the table of results.

    Beside the table, the folder ``results`` receives every method's evidence as JSON. The table shows all methods
    whose evidence is there, so that measuring one does not drop the others.

    Args:
        methods: which; without any, all of them.
        out: the Markdown file to write.
        seeds: of the experiments.
    """
    from mezzotint.evidence import Evidence, write_results

    doors = _chosen(methods)
    found = _measure(doors, seeds, "full")
    store = out.parent / "results"
    store.mkdir(parents=True, exist_ok=True)
    for door, evidence in zip(doors, found, strict=True):
        evidence.save(store / f"{door.name}.json")
    write_results([Evidence.load(path) for path in sorted(store.glob("*.json"))], out)
    return _answer(doors, found, out)
