"""All speed tables (`make bench-speed`): writes benchmarks/results/*.json and *.md."""

from __future__ import annotations

import runtime_table

if __name__ == "__main__":
    runtime_table.main()
