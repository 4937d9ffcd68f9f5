"""Refuse text that belongs to one machine: absolute paths of a developer's disk, and hosts of package registries.

Every tracked file is searched as bytes, since weights and pictures carry text too. The patterns are put together
from pieces so that this file does not find itself.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

FOLDERS = ("work", "farm", "root", r"home/[a-z][\w-]*", r"Users/[A-Za-z][\w-]*", r"private/var", r"mnt/[a-z][\w-]*")
HOSTS = (
    ("py", "pi.org"),
    ("python", "hosted"),
    ("npm", "js."),
    ("anaconda", ".org"),
    ("registry.", "npm"),
    ("deb.", "debian"),
)
PATHS = re.compile(rb"(?:^|[^A-Za-z0-9_./~-])/(?:" + "|".join(FOLDERS).encode() + rb")/", re.MULTILINE)
REGISTRIES = re.compile("|".join(re.escape(start + end) for start, end in HOSTS).encode())


def findings(name: str, content: bytes) -> list[str]:
    """One line for each place of one file."""
    found = []
    for what, pattern in (("path of a machine", PATHS), ("package registry", REGISTRIES)):
        for match in pattern.finditer(content):
            line = content.count(b"\n", 0, match.start()) + 1
            found.append(f"{name}:{line}: {what}: {match.group().strip().decode(errors='replace')}")
    return found


def tracked() -> list[str]:
    """Names of the files that git tracks."""
    done = subprocess.run(["git", "ls-files", "-z"], check=True, capture_output=True)
    return [name for name in done.stdout.decode().split("\0") if name]


def main() -> int:
    """Print what was found; 1 when something was."""
    files = [name for name in tracked() if Path(name).is_file()]
    found = [line for name in files for line in findings(name, Path(name).read_bytes())]
    print(*found, sep="\n", end="\n" if found else "")
    print(f"{len(files)} files, {len(found)} findings")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
