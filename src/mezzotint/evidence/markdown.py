"""Evidence as Markdown: for the documentation and the terminal."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from pathlib import Path

from mezzotint import files
from mezzotint.evidence.charts import row_panels, slots
from mezzotint.evidence.evidence import Evidence
from mezzotint.evidence.html import columns, gallery, table
from mezzotint.evidence.numbers import print_duration, print_effect, print_interval
from mezzotint.evidence.records import Row
from mezzotint.evidence.verdict import Verdict

__all__ = ["to_markdown", "write_results"]

_PROMPTS = 4


def _escape(text: str) -> str:
    return re.sub(r"([\\|*_<>`\[\]])", r"\\\1", text).replace("\n", " ")


def _prose(text: str) -> str:
    return html.escape(text, quote=False)


def _grid(header: Sequence[str], lines: Sequence[Sequence[str]]) -> list[str]:
    marks = ["---"] + ["---:"] * (len(header) - 1)
    return ["| " + " | ".join(line) + " |" for line in (header, marks, *lines)]


def _verdict_lines(verdict: Verdict) -> list[list[str]]:
    claim = verdict.claim
    unit = verdict.row.unit
    where = ", ".join(part for part in (claim.metric, claim.condition) if part)
    return [
        [
            _escape(f"{claim.text} ({where}; over {item.baseline})"),
            str(print_interval(item.ours, unit)),
            str(print_interval(item.theirs, unit)),
            str(print_effect(item.effect, unit, relative=claim.relative)),
            f"**{item.outcome}**" + (f" ({item.reason})" if item.reason else ""),
        ]
        for item in verdict.comparisons
    ]


def _metric(rows: Sequence[Row], evidence: Evidence) -> list[str]:
    better = {"higher": ", higher is better", "lower": ", lower is better", "neither": ""}[rows[0].direction]
    lines = []
    for condition, cells in table(rows, evidence):
        shown = [
            "" if c is None else f"**{c.printed.value}** [{c.printed.span}]" if c.best else str(c.printed)
            for c in cells
        ]
        lines.append([_escape(condition or rows[0].metric), *shown])
    head = ["", *(_escape(name) for name in columns(rows, evidence))]
    notes = dict.fromkeys(row.note for row in rows if row.note)
    return [
        f"**{_escape(rows[0].metric)}**{better} ({rows[0].size})",
        "",
        *_grid(head, lines),
        "",
        *(f"{_prose(note)}\n" for note in notes),
    ]


def to_markdown(evidence: Evidence, *, level: int = 2) -> str:
    """Write one method's evidence: verdicts, tables, what was compared, differences from the paper.

    Args:
        evidence: of one method.
        level: of its heading, 1 or more.
    """
    facts, hashes = evidence.facts, "#" * level
    lines = [f"{hashes} {_prose(facts.title)}: {evidence.outcome}", "", _prose(facts.claim), ""]
    if evidence.verdicts:
        body = [line for verdict in evidence.verdicts for line in _verdict_lines(verdict)]
        lines += [*_grid(["claim", "method", "baseline", "difference", "verdict"], body), ""]
    for metric in evidence.metrics:
        lines += _metric(evidence.rows_of(metric), evidence)
    lines += [
        f"- **{_escape(arm.name)}** ({arm.kind}){': ' + _prose(arm.note) if arm.note else ''}" for arm in evidence.arms
    ]
    if facts.departures:
        lines += ["", "Differences from the paper:", "", *(f"- {_prose(line)}" for line in facts.departures)]
    lines += ["", *(f"{_prose(note)}\n" for note in evidence.notes), "", _provenance(evidence), ""]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines))


def _provenance(evidence: Evidence) -> str:
    parts = [
        f"{evidence.budget} budget",
        f"seeds {', '.join(map(str, evidence.seeds)) or 'none'}",
        print_duration(evidence.seconds),
    ]
    parts += [f"{name} {version}" for name, version in evidence.versions.items()]
    return f"<small>{', '.join(parts)}</small>"


def _summary(evidences: Sequence[Evidence]) -> list[str]:
    lines = []
    for evidence in evidences:
        found = "no claim"
        if evidence.verdicts:
            verdict = evidence.verdicts[0]
            effects = (
                print_effect(c.effect, verdict.row.unit, relative=verdict.claim.relative) for c in verdict.comparisons
            )
            found = "; ".join(
                f"{effect} over {_escape(c.baseline)}" for effect, c in zip(effects, verdict.comparisons, strict=True)
            )
        title = f"[{_escape(evidence.facts.title)}](#{evidence.facts.slug})"
        lines.append([title, _escape(evidence.facts.claim), f"**{evidence.outcome}**", found])
    return [
        "| method | claim | verdict | found |",
        "| --- | --- | --- | --- |",
        *("| " + " | ".join(line) + " |" for line in lines),
    ]


def _pictures(evidence: Evidence, folder: Path) -> list[str]:
    """Write pictures and plots beside the page; return the Markdown that shows them."""
    slug, lines = evidence.facts.slug, []
    target = folder / slug
    target.mkdir(parents=True, exist_ok=True)
    place = f"{folder.name}/{slug}"
    arms, prompts = gallery(evidence.samples)
    shown = []
    for number, (prompt, samples) in enumerate(prompts[:_PROMPTS]):
        cells = []
        for column, sample in enumerate(samples):
            name = f"sample-{number}-{column}.png"
            if sample is not None:
                files.write_bytes(target / name, sample.png)
            cells.append("" if sample is None else f'![{_escape(sample.arm)}]({place}/{name}){{ width="128" }}')
        shown.append([_escape(prompt), *cells])
    lines += [*_grid(["", *map(_escape, arms)], shown), ""] if shown else []
    colours = slots(evidence)
    for m, metric in enumerate(evidence.metrics):
        for p, panel in enumerate(row_panels(evidence.rows_of(metric), colours, salt=slug)):
            name = f"metric-{m}-{p}.svg"
            files.write_text(target / name, panel.file)
            lines.append(f'![{_escape(f"{metric} {panel.title}".strip())}]({place}/{name}){{ width="360" }}')
    return [*lines, ""]


def _further(target: Path) -> list[str]:
    """A link to each page that another measurement keeps in the folder beside; this file is written anew each time."""
    pages = sorted(target.with_suffix("").glob("*.md"))
    titles = [page.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ") for page in pages]
    links = [f"[{title}]({target.stem}/{page.name})" for title, page in zip(titles, pages, strict=True)]
    return [f"Measured beside the claims: {', '.join(links)}.", ""] if links else []


def write_results(evidences: Sequence[Evidence], path: str | Path) -> Path:
    """Write the results page of the documentation, with its pictures in a folder beside it.

    Args:
        evidences: one for each method, in the order in which they appear.
        path: the Markdown file, such as ``docs/results.md``; pictures go to ``docs/results/``.

    Returns:
        The file that was written.

    Raises:
        ValueError: there is no evidence.
        OSError: the place cannot be written.
    """
    if not evidences:
        raise ValueError("results need at least one piece of evidence, got none")
    target = Path(path)
    lines = [
        "# Results",
        "",
        "Written by `mezzotint bench`; verdicts are computed: the paired bootstrap 95 % interval over prompts x seeds.",
        "",
    ]
    lines += [*_summary(evidences), "", *_further(target)]
    for evidence in evidences:
        pictures = _pictures(evidence, target.with_suffix(""))
        head, _, body = to_markdown(evidence).partition("\n")
        lines += [f"{head} {{ #{evidence.facts.slug} }}", "", *pictures, body.strip(), ""]
    files.write_text(target, "\n".join(lines))
    return target
