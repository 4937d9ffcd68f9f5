"""Several distilled LoRAs of one teacher as one: the mean of their updates, milder or stronger (ours).

Students of other seeds err in other ways, so the mean of their weights is better than each (model soups, Wortsman et
al., arXiv 2203.05482). A LoRA holds the update W' - W = s B A of a layer; what is averaged is the update, not A and B,
and its strength c multiplies it: W + c mean(s B A). Of the product the largest singular values are kept.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from mezzotint import files
from mezzotint.training import lora

from .checks import check_out
from .export import FACTS

__all__ = ["averaged", "truncated"]

SCHEDULER = "scheduler/scheduler_config.json"
DTYPES = ("float32", "float16", "bfloat16")
_UP, _DOWN = ".lora_B.weight", ".lora_A.weight"


class _Student(NamedTuple):
    folder: Path
    weights: Mapping[str, Tensor]
    described: dict[str, Any]
    scheduler: Any
    facts: dict[str, Any]


def averaged(students: Sequence[str], *, out: str, strength: float, rank: int | None, dtype: str) -> Path:
    """See `mezzotint.methods.splam.average`."""
    target = check_out(out)
    assert target is not None
    if not students:
        raise ValueError("name at least one folder with a distilled LoRA")
    if not strength > 0:
        raise ValueError(f"strength must be above 0, got {strength}")
    if rank is not None and rank < 1:
        raise ValueError(f"rank must be at least 1, got {rank}")
    if dtype not in DTYPES:
        raise ValueError(f"the dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    read = [_read(Path(folder)) for folder in students]
    first = read[0]
    for other in read[1:]:
        _check_alike(first, other)
    layers = sorted(key.removesuffix(_UP) for key in first.weights if key.endswith(_UP))
    width = max(len(first.weights[f"{layer}{_DOWN}"]) for layer in layers) if rank is None else rank
    packed: dict[str, Tensor] = {}
    kept = total = 0.0
    for layer in layers:
        up, down = _joined(read, layer, strength)
        up, down, energy = truncated(up, down, width)
        shapes = [first.weights[f"{layer}{end}"].shape for end in (_UP, _DOWN)]
        packed[f"{layer}{_UP}"] = up.reshape(len(up), width, *shapes[0][2:])
        packed[f"{layer}{_DOWN}"] = down.reshape(width, *shapes[1][1:])
        kept, total = kept + energy[0], total + energy[1]
    packed = {key: value.to(getattr(torch, dtype)) for key, value in packed.items()}
    share = kept / total if total else 1.0
    facts = _facts(read, {"strength": strength, "rank": width, "energy_kept": round(share, 6)})
    _write(target, packed, first, facts, width)
    return target


def truncated(
    up: Float[Tensor, "outputs inner"], down: Float[Tensor, "inner inputs"], rank: int
) -> tuple[Float[Tensor, "outputs rank"], Float[Tensor, "rank inputs"], tuple[float, float]]:
    """The nearest product of so small a rank to up @ down, without ever building it; zeros fill a larger rank.

    Returns:
        Both factors with equal shares of the singular values, and the squares of those kept and of all.
    """
    left, lower = torch.linalg.qr(up.double())
    right, upper = torch.linalg.qr(down.double().T)
    inner, values, outer = torch.linalg.svd(lower @ upper.T)
    size = min(rank, len(values))
    root = values[:size].sqrt()
    made = [(left @ inner[:, :size]) * root, ((right @ outer[:size].T) * root).T]
    missing = rank - size
    made[0] = torch.nn.functional.pad(made[0], (0, missing))
    made[1] = torch.nn.functional.pad(made[1], (0, 0, 0, missing))
    energy = values.square()
    return made[0].to(up.dtype), made[1].to(up.dtype).contiguous(), (energy[:size].sum().item(), energy.sum().item())


def _read(folder: Path) -> _Student:
    path = folder / lora.FILE
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} holds no {lora.FILE}: averages are made of what `distill` writes in the modes with a LoRA"
        )
    described = json.loads(files.safetensors_metadata(path).get(lora.METADATA, "{}"))
    facts = files.read_json(folder / FACTS)
    return _Student(folder, files.read_safetensors(path), described, files.read_json(folder / SCHEDULER), facts)


def _check_alike(one: _Student, other: _Student) -> None:
    """One teacher, one layout, one sampler; ranks may differ."""
    pair = f"{one.folder} and {other.folder}"
    if one.weights.keys() != other.weights.keys():
        different = sorted(one.weights.keys() ^ other.weights.keys())
        raise ValueError(f"{pair} adapt different layers, such as {different[0]}: they have no mean")
    for key, value in one.weights.items():
        outer = slice(0, 1) if key.endswith(_UP) else slice(1, None)
        if value.shape[outer] != other.weights[key].shape[outer]:
            raise ValueError(f"{pair} are LoRAs of different networks: {key} has other sizes")
    if one.scheduler != other.scheduler:
        raise ValueError(f"{pair} want different schedulers: they are not students of one teacher and one grid")
    if one.facts.get("recommended") != other.facts.get("recommended"):
        raise ValueError(f"{pair} want different settings: {one.facts.get('recommended')}")


def _joined(read: Sequence[_Student], layer: str, strength: float) -> tuple[Tensor, Tensor]:
    """Factors of the mean update: those of all students side by side."""
    ups, downs = [], []
    for student in read:
        up, down = (student.weights[f"{layer}{end}"].flatten(1).float() for end in (_UP, _DOWN))
        ups.append(up * (strength * _scale(student.described, layer, len(down)) / len(read)))
        downs.append(down)
    return torch.cat(ups, 1), torch.cat(downs)


def _scale(described: Mapping[str, Any], layer: str, rank: int) -> float:
    """Alpha over rank of a layer, from peft's configuration in the file; 1 where it says nothing."""
    component, _, name = layer.partition(".")
    patterns = described.get(f"{component}.alpha_pattern") or {}
    alpha = patterns.get(name, described.get(f"{component}.lora_alpha", rank))
    return float(alpha) / rank


def _facts(read: Sequence[_Student], made: Mapping[str, Any]) -> dict[str, Any]:
    """What the first says, with the options of all."""
    first: dict[str, Any] = {
        key: read[0].facts[key] for key in ("recommended", "timesteps", "base") if key in read[0].facts
    }
    told = [student.facts.get("distillation", {}) for student in read]
    return {**first, "distillation": {**told[0], "average": {**made, "of": [each.get("options") for each in told]}}}


def _write(target: Path, packed: Mapping[str, Tensor], first: _Student, facts: Mapping[str, Any], rank: int) -> None:
    component = next(iter(packed)).partition(".")[0]
    described = {**first.described, f"{component}.r": rank, f"{component}.lora_alpha": rank}
    described |= {f"{component}.rank_pattern": {}, f"{component}.alpha_pattern": {}}
    count = len(facts["distillation"]["average"]["of"])
    with files.atomic_folder(target) as folder:
        metadata = {"format": "pt", lora.METADATA: json.dumps(described, sort_keys=True)}
        files.write_safetensors(folder / lora.FILE, dict(packed), metadata)
        (folder / SCHEDULER).parent.mkdir()
        files.write_json(folder / SCHEDULER, first.scheduler)
        files.write_json(folder / FACTS, dict(facts))
        strength = facts["distillation"]["average"]["strength"]
        text = f"# Average of {count} distilled LoRAs\n\nThe mean of their updates, times {strength:g}.\n"
        files.write_text(folder / "README.md", text)
