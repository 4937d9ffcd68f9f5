"""Evidence: claims are measured, verdicts are computed, and everything is written down.

`Experiment` collects arms, measurements, pictures and claims and gives `Evidence`; `write_report` makes the page of
many methods, `write_results` the table for the documentation.
"""

from __future__ import annotations

from mezzotint.evidence.evidence import Budget, Evidence
from mezzotint.evidence.experiment import Experiment
from mezzotint.evidence.figures import Figure, Series
from mezzotint.evidence.html import write_report
from mezzotint.evidence.markdown import to_markdown, write_results
from mezzotint.evidence.records import Arm, Claim, Facts, Row, Sample
from mezzotint.evidence.verdict import Comparison, Verdict, judge

__all__ = [
    "Arm",
    "Budget",
    "Claim",
    "Comparison",
    "Evidence",
    "Experiment",
    "Facts",
    "Figure",
    "Row",
    "Sample",
    "Series",
    "Verdict",
    "judge",
    "to_markdown",
    "write_report",
    "write_results",
]
