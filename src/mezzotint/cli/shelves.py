"""``mezzotint world`` and ``mezzotint zoo``: data with exact ground truth, and the models that the library brings."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mezzotint.cli.terminal import Answer, UsageError, choose, note

__all__ = ["WORLDS", "ZOO", "Later", "recipe", "zoo_train"]


@dataclass(frozen=True)
class Later:
    """A typed function that is imported when it is chosen, since its module imports torch."""

    module: str
    name: str
    summary: str

    def resolve(self) -> Callable[..., Any]:
        """Import it."""
        found: Callable[..., Any] = getattr(importlib.import_module(self.module), self.name)
        return found


WORLDS: Mapping[str, Later] = {
    "scenes": Later(
        "mezzotint.worlds.scenes", "export", "Write rendered scenes with captions, depth and masks as an image folder"
    )
}


def _recipes() -> list[str]:
    import mezzotint

    found = (path.stem for path in (Path(str(mezzotint.__file__)).parent / "zoo" / "recipes").glob("*.py"))
    return sorted(name.replace("_", "-") for name in found if not name.startswith("_"))


def _models() -> tuple[str, ...]:
    from mezzotint.loading import embedded

    return embedded()


def _place(name: str) -> Path:
    from mezzotint.loading import zoo_path as folder_of

    return folder_of(choose(name, _models(), "embedded model"))


def recipe(name: str) -> Callable[..., Any]:
    """Return the typed ``train`` function of a recipe, from which its command line is generated.

    Raises:
        UsageError: there is no such recipe.
    """
    chosen = choose(name, _recipes(), "recipe")
    return importlib.import_module(f"mezzotint.zoo.recipes.{chosen.replace('-', '_')}").train


def _entry(name: str) -> dict[str, Any]:
    folder = _place(name)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    card = folder / "README.md"
    return {
        "name": name,
        "path": str(folder),
        "megabytes": round(size / 1e6, 1),
        "recipe": name in _recipes(),
        "card": card.is_file(),
    }


def zoo_list() -> Answer:
    """List the embedded models."""
    entries = [_entry(name) for name in _models()]
    width = max((len(entry["name"]) for entry in entries), default=0)
    lines = [f"{entry['name']:<{width}}  {entry['megabytes']:>6} MB" for entry in entries]
    return Answer(entries, "\n".join(lines))


def zoo_path(name: str, /) -> Answer:
    """Print the folder of an embedded model, which stock diffusers and transformers load.

    Args:
        name: of the model.
    """
    folder = _place(name)
    return Answer({"name": name, "path": str(folder)}, str(folder))


def zoo_card(name: str, /) -> Answer:
    """Print the card of an embedded model: data, training, metrics, limits.

    Args:
        name: of the model.

    Raises:
        UsageError: it has none.
    """
    path = _place(name) / "README.md"
    if not path.is_file():
        raise UsageError(f"the model {name!r} has no card (README.md in its folder)")
    text = path.read_text(encoding="utf-8")
    return Answer({"name": name, "card": text}, text.rstrip())


def zoo_train(*names: str) -> Answer:
    """Train an embedded model from scratch; each recipe has its own options, which zoo train NAME --help lists.

    Args:
        names: the recipe.

    Raises:
        UsageError: none was named.
    """
    given = f", got {', '.join(names)}" if names else ""
    allowed = ", ".join(_recipes()) or "none"
    raise UsageError(f"one recipe is needed first: mezzotint zoo train NAME, with NAME one of {allowed}{given}")


def zoo_verify(*names: str) -> Answer:
    """Check every file of the embedded models against the manifest.

    Args:
        names: models; without any, all of them.
    """
    from mezzotint.files import FileError, verify_folder

    found: dict[str, str] = {}
    for name in names or _models():
        try:
            verify_folder(_place(name))
            found[name] = "complete"
        except FileError as cause:
            note(f"{name}: {cause}")
            found[name] = "broken"
    text = "\n".join(f"{name}: {state}" for name, state in found.items())
    return Answer(found, text, code=1 if "broken" in found.values() else 0)


ZOO: Mapping[str, Callable[..., Any]] = {
    "list": zoo_list,
    "path": zoo_path,
    "card": zoo_card,
    "train": zoo_train,
    "verify": zoo_verify,
}
