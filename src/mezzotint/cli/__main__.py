"""``python -m mezzotint.cli`` is the same as ``mezzotint``."""

from __future__ import annotations

import sys

from mezzotint.cli.entry import main

if __name__ == "__main__":
    sys.exit(main())
