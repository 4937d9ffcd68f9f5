"""How many pictures a second the world renders: ``python benchmarks/world_speed.py [--processes N] [--baseline SRC]``.

Rates are pictures per second of wall time and, since other work on the machine distorts that, per second of processor
time of one core. With ``--baseline``, another ``src`` folder (say, of a worktree of an earlier commit) is measured in
turns with this one, so that both meet the same disturbance.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "src"
PROGRAM = """
import json, sys, time
source, size, count, repeats, threads = sys.argv[1], *map(int, sys.argv[2:])
sys.path.insert(0, source)
import torch
torch.set_num_threads(threads)
from mezzotint.worlds.scenes.render import picture, render
from mezzotint.worlds.scenes.sampling import sample
drawn = sample(count, seed=1)
rates = {}
for function in (picture, render):
    function(drawn[:16], size)
    for _ in range(repeats):
        wall, core = time.perf_counter(), time.process_time()
        function(drawn, size)
        wall, core = time.perf_counter() - wall, time.process_time() - core
        rates.setdefault(f"{function.__name__}/wall", []).append(count / wall)
        rates.setdefault(f"{function.__name__}/core", []).append(count / core)
print(json.dumps(rates))
"""


def measure(source: Path, options: argparse.Namespace) -> list[dict[str, list[float]]]:
    """The rates of as many processes as asked for, run at the same time."""
    numbers = (options.size, options.count, options.repeats, options.threads)
    command = [sys.executable, "-c", PROGRAM, str(source), *map(str, numbers)]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(options.processes)]
    return [json.loads(process.communicate()[0]) for process in started]


def summary(runs: list[list[dict[str, list[float]]]]) -> dict[str, dict[str, float]]:
    """Median and spread over the runs; wall rates are summed over the processes that ran together."""
    found = {}
    for key in runs[0][0]:
        combine = sum if key.endswith("wall") else statistics.fmean
        values = sorted(combine(each) for run in runs for each in zip(*(process[key] for process in run), strict=True))
        found[key] = {"median": statistics.median(values), "low": values[0], "high": values[-1]}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--count", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--baseline", type=Path)
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    sources = {"this": SOURCE} | ({"baseline": options.baseline} if options.baseline else {})
    runs: dict[str, list[list[dict[str, list[float]]]]] = {name: [] for name in sources}
    for _ in range(options.rounds):
        for name, source in sources.items():
            runs[name].append(measure(source, options))
    figures = {name: summary(of_source) for name, of_source in runs.items()}
    for name, rates in figures.items():
        for key, rate in rates.items():
            print(f"{name:<9} {key:<13} {rate['median']:7.1f} images/s  ({rate['low']:.1f} .. {rate['high']:.1f})")
    if options.json:
        settings = {key: value for key, value in vars(options).items() if not isinstance(value, Path)}
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps({"settings": settings, "figures": figures}, indent=2) + "\n")


if __name__ == "__main__":
    main()
