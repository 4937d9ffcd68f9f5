"""The command line: ``mezzotint VERB ...``, one verb a task, generated from typed functions.

Nothing here imports torch before a verb that needs it runs, so that ``mezzotint --help`` answers at once.
Exit codes: 0 done, 2 wrong usage or input (one line that says what to do), 1 failure.
"""

from __future__ import annotations

from mezzotint.cli.entry import main

__all__ = ["main"]
