"""From measurements of `speed.py` to ratios, a Pareto front, verdicts on the targets, a page and a plot."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any

Point = tuple[float, float]
TARGETS = (("newcomer", 25.0), ("tuned", 6.0))
"""How many times as many pictures a second as which arm."""
WITHIN = 0.02
"""How far accuracy may fall behind the teacher's."""


def pareto_front(points: Mapping[str, Point]) -> list[str]:
    """Names of the points that no other is at least as good as in both and better in one; cheapest first.

    Args:
        points: name -> (cost, quality); less cost and more quality are better.
    """

    def beaten(name: str) -> bool:
        cost, quality = points[name]
        others = (other for key, other in points.items() if key != name)
        return any(c <= cost and q >= quality and (c, q) != (cost, quality) for c, q in others)

    return sorted((name for name in points if not beaten(name)), key=lambda name: points[name])


def speed_up(base: Sequence[float], ours: Sequence[float]) -> dict[str, float]:
    """How many times as fast: the median over rounds of base / ours with quartiles; rounds are pairs.

    Args:
        base: seconds of the slower arm, one a round.
        ours: seconds of the other one in the same rounds.

    Raises:
        ValueError: there are no rounds, or not as many of each.
    """
    if not base or len(base) != len(ours):
        raise ValueError(f"speed-ups need as many rounds of both arms, got {len(base)} and {len(ours)}")
    ratios = [a / b for a, b in zip(base, ours, strict=True)]
    return {"median": statistics.median(ratios), **_ends(ratios)}


def summary(seconds: Sequence[float]) -> dict[str, float]:
    """Median, quartiles and number of measurements.

    Args:
        seconds: one a round.
    """
    return {"median": statistics.median(seconds), **_ends(seconds), "rounds": len(seconds)}


def _ends(values: Sequence[float]) -> dict[str, float]:
    low, high = (values[0], values[0]) if len(values) == 1 else statistics.quantiles(values, n=4)[::2]
    return {"low": low, "high": high}


def per_step(short: Point, long: Point) -> Point:
    """Seconds that every run costs, and seconds of a step, from two runs (steps, seconds) of different length.

    Raises:
        ValueError: the runs have as many steps.
    """
    if short[0] == long[0]:
        raise ValueError(f"two runs of {short[0]:g} steps do not tell what a step costs")
    step = (long[1] - short[1]) / (long[0] - short[0])
    return short[1] - step * short[0], step


def verdicts(arms: Mapping[str, Mapping[str, Any]], batch: str) -> list[dict[str, Any]]:
    """The targets, each with the fastest arm of ours that is within reach of the teacher; none when none is.

    Args:
        arms: name -> {"ours", "accuracy", "seconds": {batch: one a round}}, and "many": {"behind": {"mean"}} where
            accuracy over the teacher's is known from more prompts.
        batch: which batch size.
    """
    found = []
    for base, wanted in TARGETS:
        row: dict[str, Any] = {"over": base, "wanted": wanted, "batch": batch, "arm": None, "met": None}
        able = _within_reach(arms, batch)
        theirs = arms.get(base, {}).get("seconds", {}).get(batch)
        if theirs and able:
            ratios = {name: speed_up(theirs, arms[name]["seconds"][batch]) for name in able}
            best = max(ratios, key=lambda name: ratios[name]["median"])
            row |= {"arm": best, "speed_up": ratios[best], "met": ratios[best]["median"] >= wanted}
        found.append(row)
    return found


def _within_reach(arms: Mapping[str, Mapping[str, Any]], batch: str) -> list[str]:
    teacher = arms.get("teacher", {}).get("accuracy")
    return [
        name
        for name, arm in arms.items()
        if arm.get("ours") and batch in arm.get("seconds", {}) and _points_over(arm, teacher) >= -WITHIN
    ]


def _points_over(arm: Mapping[str, Any], teacher: float | None) -> float:
    """Accuracy over the teacher's: on many prompts where they were drawn, else on the captions of the timing."""
    if "behind" in arm.get("many", {}):
        return float(arm["many"]["behind"]["mean"])
    if teacher is None or "accuracy" not in arm:
        return -math.inf
    # A hair more, since 0.80 is not less than 0.82 - 0.02.
    return float(arm["accuracy"] - teacher) + 1e-9


def qualities(arms: Mapping[str, Mapping[str, Any]], batch: str) -> tuple[dict[str, Point], bool]:
    """Seconds a picture and accuracy of every arm that has both; whether accuracy is that on many prompts.

    On many prompts if all arms were drawn on them, else on the captions of the timing: never some so and some so.

    Args:
        arms: as for `verdicts`.
        batch: which batch size.
    """
    timed = {name: arm for name, arm in arms.items() if "accuracy" in arm and batch in arm.get("seconds", {})}
    many = all("many" in arm for arm in timed.values())
    source = {name: arm["many"] if many else arm for name, arm in timed.items()}
    return {
        name: (summary(arm["seconds"][batch])["median"], source[name]["accuracy"]) for name, arm in timed.items()
    }, many


def spread(values: Mapping[str, float], scale: float = 1.0) -> str:
    """Median with quartiles, three digits."""
    return f"{values['median'] * scale:.3g} ({values['low'] * scale:.3g} to {values['high'] * scale:.3g})"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, the first column to the left."""
    marks = ["---"] + ["---:"] * (len(header) - 1)
    return "\n".join("| " + " | ".join(row) + " |" for row in (header, marks, *rows))


def page(results: Mapping[str, Any], picture: str) -> str:
    """The documentation's page.

    Args:
        results: what `speed.py` writes as JSON.
        picture: path of the plot, from the page.
    """
    parts = ["# Speed", _head(results), *_targets(results), f"![Seconds a picture against accuracy]({picture})"]
    parts += [*_quality(results), *_costs(results), *_sweeps(results), *_large(results)]
    return "\n\n".join(parts) + "\n"


def _head(results: Mapping[str, Any]) -> str:
    machine, versions = results["machine"], results["versions"]
    before, after = results["load"]
    return (
        "Written by `make bench-speed`. Time to quality on the embedded pipeline `scenes`: each arm runs in a process "
        "of its own and they take turns, so that other work on the machine meets all of them. Medians with quartiles."
        f"\n\n{machine['processor']}, {machine['cores']} cores, {' '.join(machine['isa'])}; {results['threads']} "
        f"thread(s); torch {versions['torch']}, diffusers {versions['diffusers']}; load average {before:.1f} before "
        f"and {after:.1f} after. Engines are chosen for a run of {results['run']:,} pictures."
        + (f" AYS: the schedule {results['schedule']!r}." if "schedule" in results else "")
    )


def _targets(results: Mapping[str, Any]) -> list[str]:
    lines = []
    for row in results["targets"]:
        found = (
            "no arm near enough to the teacher was measured"
            if row["arm"] is None
            else f"{results['arms'][row['arm']]['title']}: "
        )
        if row["arm"] is not None:
            found += f"{spread(row['speed_up'])} times, **{'met' if row['met'] else 'missed'}**"
        base = results["arms"].get(row["over"], {}).get("title", row["over"])
        lines.append([f"at least {row['wanted']:g} times {base}, batch {row['batch']}", found])
    if not lines:
        return []
    prompts = results.get("prompts")
    drawn = (
        f"on {prompts:,} held-out prompts of one and two objects, drawn from the same noise (speed_accuracy.py)"
        if prompts
        else f"on the {results['pictures']} captions below: the intervals are wide"
    )
    note = f"Only arms whose accuracy is at most {100 * WITHIN:g} points behind the 50-step teacher's count, {drawn}."
    if any("frozen" in cost["engine"] for cost in results["arms"].get("tuned", {}).get("costs", {}).values()):
        note += (
            " The tuned pipeline is compiled with its weights frozen, as ours: by inductor's global configuration, for "
            "as an option of `torch.compile` freezing has no effect (torch 2.13)."
        )
    return ["## Targets", table(["target", "found"], lines), note, *_speed_ups(results)]


def _speed_ups(results: Mapping[str, Any]) -> list[str]:
    """Every arm of ours, near enough to the teacher or not."""
    arms = results["arms"]
    places = [(base, batch) for batch in results["batches"] for base, _ in TARGETS if "seconds" in arms.get(base, {})]
    rows = [
        [arm["title"], *(_ratio(arms[base], arm, batch) for base, batch in places), _behind(arm.get("many", arm))]
        for arm in arms.values()
        if arm.get("ours") and "seconds" in arm
    ]
    header = ["times as fast as", *(f"{base}, batch {batch}" for base, batch in places), "points over teacher"]
    return [table(header, rows)] if rows and places else []


def _ratio(base: Mapping[str, Any], arm: Mapping[str, Any], batch: str) -> str:
    theirs, ours = base["seconds"].get(batch), arm["seconds"].get(batch)
    return spread(speed_up(theirs, ours)) if theirs and ours else ""


def _quality(results: Mapping[str, Any]) -> list[str]:
    rows, prompts = [], results.get("prompts")
    for name, arm in results["arms"].items():
        if "skipped" in arm:
            rows.append([arm["title"], arm["skipped"], *[""] * (2 + 2 * bool(prompts) + len(results["batches"]))])
            continue
        times = [_time(arm, batch) for batch in results["batches"]]
        cells = [_points(arm), _behind(arm), f"{arm['frechet']:.3f}" if "frechet" in arm else ""]
        cells += [_points(arm.get("many", {})), _points(arm.get("many", {}), "exact")] if prompts else []
        title = f"**{arm['title']}**" if name in results["front"] else arm["title"]
        rows.append([title, *times, *cells])
    columns = [f"s a picture, batch {batch}" for batch in results["batches"]]
    header = ["arm", *columns, "pictures right", "points over teacher", "Frechet distance"]
    header += [f"pictures right of {prompts:,}", "and nothing uninvited"] if prompts else []
    note = (
        f"{results['pictures']} held-out captions of one and two objects; right: every object found in shape and "
        "colour by the scene parser. Frechet distance of the parser's features to those of renders (renders among "
        f"themselves: {results['floor']:.3f}). Bold: on the Pareto front of accuracy and time at batch "
        f"{results['batches'][-1]}."
    )
    if prompts and qualities(results["arms"], results["batches"][-1])[1]:
        note += f" Front and plot go by the {prompts:,} prompts, drawn from the same noise (speed_accuracy.py)."
    if any("exact" in arm.get("many", {}) for arm in results["arms"].values()):
        note += (
            " Uninvited: an object that the prompt does not name; the parser miscounts some renders, too (its card)."
        )
    return ["## Time to quality", table(header, rows), note]


def _points(arm: Mapping[str, Any], key: str = "accuracy") -> str:
    return f"{100 * arm[key]:.1f} %" if key in arm else ""


def _behind(arm: Mapping[str, Any]) -> str:
    gap = arm.get("behind")
    return f"{100 * gap['mean']:+.1f} ({100 * gap['low']:+.1f} to {100 * gap['high']:+.1f})" if gap else ""


def _time(arm: Mapping[str, Any], batch: str) -> str:
    return spread(summary(arm["seconds"][batch])) if batch in arm.get("seconds", {}) else ""


def _costs(results: Mapping[str, Any]) -> list[str]:
    rows = []
    for arm in results["arms"].values():
        for batch, facts in arm.get("costs", {}).items():
            cpu = arm.get("cpu", {}).get(batch)
            rows.append([
                arm["title"], batch, f"{facts['ready']:.1f}", f"{facts['first']:.1f}", f"{facts['peak'] / 2**20:,.0f}",
                spread(summary(cpu)) if cpu else "", facts["engine"],
            ])  # fmt: skip
    header = ["arm", "batch", "s to load", "s more to the first picture", "peak MB", "CPU s a picture", "engine"]
    note = "Loading counts from the start of the process; the first picture includes choosing and compiling the engine."
    return ["## Start-up and memory", table(header, rows), note] if rows else []


def _sweeps(results: Mapping[str, Any]) -> list[str]:
    parts = []
    for axis, lines in results.get("sweeps", {}).items():
        places = list(dict.fromkeys(place for line in lines.values() for place in line))
        rows = [[name, *(f"{line[p]:.3g}" if p in line else "" for p in places)] for name, line in lines.items()]
        parts.append(f"Seconds a picture by {axis}\n\n{table(['arm', *places], rows)}")
    return ["## Cost by batch, resolution and steps", *parts] if parts else []


def _large(results: Mapping[str, Any]) -> list[str]:
    if "sd15" not in results:
        return []
    rows = []
    for arm in results["sd15"].values():
        if "skipped" in arm:
            rows.append([arm["title"], arm["skipped"], *[""] * 4])
            continue
        cells = [f"{arm[key]:.3g}" for key in ("fixed", "step")]
        rows.append([arm["title"], *cells, str(arm["steps"]), f"{arm['picture']:,.0f}", f"{arm['peak'] / 2**20:,.0f}"])
    header = ["arm", "s besides steps", "s a step", "steps", "s a picture (computed)", "peak MB"]
    lengths = " and ".join(str(n) for n in results["sd15_steps"])
    note = f"Random weights: nothing is said of quality. Nothing is compiled. Runs of {lengths} steps, batch 1"
    kept = "make their bfloat16 engine beside it: that is their peak"
    given_up = "give its weights up for their bfloat16 engine (`restore=False`)"
    peak = given_up if results.get("sd15_lean") else kept
    told = f"{note}; longer ones are computed. Our arms are given a float32 pipeline and {peak}."
    return ["## SD 1.5-shaped", table(header, rows), told]


def plot(results: Mapping[str, Any]) -> bytes:
    """Accuracy over seconds a picture at the largest batch, the Pareto front joined, as SVG."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    from mezzotint.evidence.charts import COLOURS

    batch = results["batches"][-1]
    arms = results["arms"]
    points, many = qualities(arms, batch)
    figure = Figure(figsize=(7.6, 3.8), layout="constrained")
    axes = figure.add_subplot()
    axes.set_xscale("log")
    front = [(x, 100 * y) for x, y in (points[name] for name in results["front"] if name in points)]
    if front:
        axes.plot(*zip(*front, strict=True), "--", color=COLOURS[-1], lw=1)
    for mark, name in zip("osD^vPX*", sorted(points, key=lambda name: points[name]), strict=False):
        paint, (x, y) = COLOURS[0] if arms[name]["ours"] else COLOURS[1], points[name]
        axes.plot([x], [100 * y], mark, color=paint, ms=7, label=arms[name]["title"])
    # Beside the points: arms as good as each other lie on one line, where words would cover each other.
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, fontsize=8)
    axes.set_xlabel(f"seconds a picture, batch {batch}")
    axes.set_ylabel(f"pictures right of {results['prompts'] if many else results['pictures']:,}, %")
    axes.grid(visible=True, lw=0.4)
    buffer = BytesIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "speed"}):
        FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None})
    return buffer.getvalue()
