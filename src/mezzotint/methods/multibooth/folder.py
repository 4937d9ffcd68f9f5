"""Concepts as folders: config.json, model.safetensors and a card.

`model.safetensors` names the LoRA as peft does ("<layer>.lora_A.weight") and the embeddings "embedding.0", ... Nothing
of a folder is trusted: shapes must fit each other, numbers must be finite.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mezzotint import files
from mezzotint.files import FileError

from .concept import Concept

__all__ = ["CONFIG", "TENSORS", "read", "write"]

CONFIG, TENSORS = "config.json", "model.safetensors"
_FORMAT = "mezzotint.concept/1"
_SIDES = (".lora_A.weight", ".lora_B.weight")
_KINDS = {"placeholder": str, "class_word": str, "rank": int, "base": str, "facts": dict}


def write(concept: Concept, path: Path, *, half: bool, replace: bool) -> Path:
    """See `Concept.save`."""
    dtype = torch.float16 if half else torch.float32
    tensors = {name: value.to(dtype) for name, value in _named(concept).items()}
    if not all(bool(value.isfinite().all()) for value in tensors.values()):
        raise ValueError(f"concept {concept.placeholder!r} has numbers that {dtype} cannot hold; nothing was written")
    config = {"format": _FORMAT, **{key: getattr(concept, key) for key in _KINDS}, "facts": dict(concept.facts)}
    with files.atomic_folder(path, replace=replace) as work:
        files.write_json(work / CONFIG, config)
        files.write_safetensors(work / TENSORS, tensors)
        files.write_text(work / "README.md", _card(concept))
    return path


def read(path: Path) -> Concept:
    """See `Concept.load`."""
    if not (path / CONFIG).is_file():
        raise FileError(path, "is not the folder of a learnt concept, as `mezzotint learn --out` writes it")
    config = files.read_json(path / CONFIG)
    if not isinstance(config, dict) or config.get("format") != _FORMAT or config.keys() != {"format", *_KINDS}:
        raise FileError(path / CONFIG, f"is no description of a concept ({_FORMAT})")
    if wrong := [key for key, kind in _KINDS.items() if type(config[key]) is not kind]:
        raise FileError(path / CONFIG, f"has an unsound entry {wrong[0]!r}")
    tensors = {name: value.float() for name, value in files.read_safetensors(path / TENSORS).items()}
    if bad := [name for name, value in tensors.items() if not value.isfinite().all()]:
        raise FileError(path / TENSORS, f"has numbers that are not finite in {bad[0][:80]!r}")
    try:
        embeddings, lora = _sorted(tensors)
        return Concept(embeddings=embeddings, lora=lora, **{key: config[key] for key in _KINDS})
    except (ValueError, KeyError) as error:
        raise FileError(path / TENSORS, f"does not hold a concept: {error}") from error


def _named(concept: Concept) -> dict[str, Tensor]:
    pairs = [zip(_SIDES, pair, strict=True) for pair in concept.lora.values()]
    lora = {f"{layer}{side}": value for layer, pair in zip(concept.lora, pairs, strict=True) for side, value in pair}
    return lora | {f"embedding.{place}": vector for place, vector in enumerate(concept.embeddings)}


def _sorted(tensors: dict[str, Tensor]) -> tuple[tuple[Tensor, ...], dict[str, tuple[Any, Any]]]:
    """Embeddings and pairs by their names; a name that is none of these is an error."""
    left = dict(tensors)
    count = sum(name.startswith("embedding.") for name in left)
    embeddings = tuple(left.pop(f"embedding.{place}") for place in range(count))
    layers = sorted(name.removesuffix(_SIDES[0]) for name in left if name.endswith(_SIDES[0]))
    lora = {layer: (left.pop(layer + _SIDES[0]), left.pop(layer + _SIDES[1])) for layer in layers}
    if left:
        raise ValueError(f"unknown tensor {min(left)[:80]!r}")
    return embeddings, lora


def _card(concept: Concept) -> str:
    facts = "".join(f"| {key} | {value} |\n" for key, value in concept.facts.items())
    return (
        "---\nlibrary_name: mezzotint\ntags: [mezzotint, multibooth, lora]\n---\n\n"
        f"# {concept.phrase}\n\n"
        f"A concept learnt with mezzotint's MultiBooth (arXiv 2404.14239): {len(concept.embeddings)} embedding(s) and "
        f"a LoRA of rank {concept.rank} on {len(concept.lora)} layers, for base models of architecture "
        f"`{concept.base}`.\n\n```python\nimport mezzotint as mz\n\n"
        "concept = mz.multibooth.Concept.load(THIS_FOLDER)\n"
        f'with mz.multibooth.place(pipe, "a {concept.phrase}", [concept]):\n'
        f'    image = pipe("a {concept.phrase}").images[0]\n```\n\n| | |\n|---|---|\n{facts}'
    )
