"""Write constraints.txt: the exact version of everything that the project's own requirements resolve to here."""

from __future__ import annotations

import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

EXTRAS = ("", "bench", "dev", "docs", "studio")


def _needed(name: str, extras: tuple[str, ...], found: dict[str, str], seen: set[tuple[str, str]]) -> None:
    """Walk the requirements of one installed package; what its markers exclude here is left out."""
    try:
        package = distribution(name)
    except PackageNotFoundError:
        return
    found[canonicalize_name(name)] = package.version.partition("+")[0]
    for extra in extras or ("",):
        if (canonicalize_name(name), extra) in seen:
            continue
        seen.add((canonicalize_name(name), extra))
        for line in package.requires or ():
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                _needed(requirement.name, ("", *sorted(requirement.extras)), found, seen)


def main(path: str) -> int:
    """Write the file and say how many packages it pins."""
    found: dict[str, str] = {}
    _needed("mezzotint", EXTRAS, found, set())
    found.pop("mezzotint", None)
    lines = [f"{name}=={version}" for name, version in sorted(found.items())]
    header = "# Exact versions of everything the extras need; written by `make constraints`.\n"
    Path(path).write_text(header + "\n".join(lines) + "\n", encoding="utf-8")
    print(f"{len(lines)} packages pinned in {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
