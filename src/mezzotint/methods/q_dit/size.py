"""What a quantised network takes, on disk and in memory, in bytes that are counted, beside the formula's."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from .linear import QuantLinear
from .packing import stored_bytes

__all__ = ["SizeReport", "disk_bytes", "quantised_layers", "resident_bytes", "size_report"]

_HALF = 2


@dataclass(frozen=True)
class SizeReport:
    """Sizes in bytes.

    Attributes:
        layers: quantised layers.
        weights: their codes, scales and zero points, counted.
        formula: the same by `packing.stored_bytes`.
        others: every other tensor once: biases, layers that are not quantised.
        resident: memory of the network now, with what executors have made from the packed weights.
        half: what the network took in 16-bit floating point, every tensor counted, as diffusers stores it.
        half_once: the same with tensors that blocks share counted once, as the paper counts.
        disk: files of the folder, if one was given.
    """

    layers: int
    weights: int
    formula: int
    others: int
    resident: int
    half: int
    half_once: int
    disk: int | None = None

    @property
    def ratio(self) -> float:
        """Stored bytes as a share of 16-bit floating point, shared tensors counted once in both."""
        return (self.weights + self.others) / self.half_once if self.half_once else 1.0


def size_report(network: nn.Module, folder: str | Path | None = None) -> SizeReport:
    """Count a network.

    Args:
        network: with quantised layers.
        folder: where it was saved, to report the bytes on disk.
    """
    layers = list(quantised_layers(network).values())
    stored = [layer.stored_weight() for layer in layers]
    weights = sum(_bytes(part) for weight in stored for part in (weight.packed, weight.scale, weight.zero))
    formula = sum(stored_bytes(weight.rows, weight.width, weight.group, weight.precision) for weight in stored)
    others = sum(_bytes(tensor) for tensor in _others(network))
    executors = sum(layer.resident_bytes() - layer.held_bytes() for layer in layers)
    dense = sum(layer.in_features * layer.out_features for layer in layers)
    every, once = (sum(t.numel() for t in _others(network, shared=shared)) for shared in (False, True))
    return SizeReport(
        layers=len(layers),
        weights=weights,
        formula=formula,
        others=others,
        resident=weights + others + executors,
        half=_HALF * (dense + every),
        half_once=_HALF * (dense + once),
        disk=None if folder is None else disk_bytes(folder),
    )


def resident_bytes(network: nn.Module) -> int:
    """Bytes of the quantised layers in memory when they have run where they are now.

    Args:
        network: its layers need not have run; nothing is kept that they have not made themselves.
    """
    return sum(layer.held_bytes() + layer.executor_bytes() for layer in quantised_layers(network).values())


def quantised_layers(network: nn.Module) -> dict[str, QuantLinear]:
    """Quantised layers by name."""
    return {name: module for name, module in network.named_modules() if isinstance(module, QuantLinear)}


def disk_bytes(folder: str | Path) -> int:
    """Bytes of all files below a folder."""
    return sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())


def _others(network: nn.Module, *, shared: bool = True) -> Iterator[Tensor]:
    """Tensors that are no part of a quantised weight; with `shared`, each memory once."""
    layers = quantised_layers(network).values()
    packed = {id(part) for layer in layers for part in (layer.packed, layer.scale, layer.zero) if part is not None}
    seen: set[tuple[int, int]] = set()
    for tensor in network.state_dict(keep_vars=True).values():
        key = (tensor.data_ptr(), tensor.numel())
        if id(tensor) in packed or (shared and key in seen):
            continue
        seen.add(key)
        yield tensor


def _bytes(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.numel() * tensor.element_size()
