"""Where a calculation stopped being finite: found by doing the failed step again and watching every layer.

A step can be repeated exactly, because all its draws are derived from its number; so nothing is watched while all is
well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class NonFiniteError(RuntimeError):
    """A loss or gradient was infinite or not a number; the weights are those before the failed step.

    Attributes:
        step: optimiser steps that were finished.
        layer: name of the layer or tensor where it began.
    """

    def __init__(self, message: str, *, step: int, layer: str) -> None:
        super().__init__(message)
        self.step = step
        self.layer = layer


def first_bad_layer(modules: Mapping[str, nn.Module], again: Callable[[], Any]) -> str:
    """The first layer whose output is not finite while `again` runs; "the loss itself" if all are fine."""
    found: list[str] = []
    with _watched(modules, found), torch.no_grad():
        again()
    return found[0] if found else "the loss itself (or its data: every layer's output is finite)"


def bad_gradient(named: Mapping[str, Tensor]) -> str | None:
    """The trained tensor nearest to the loss whose gradient is not finite: the last in the order of the modules."""
    bad = [name for name, value in named.items() if value.grad is not None and not torch.isfinite(value.grad).all()]
    return bad[-1] if bad else None


@contextmanager
def _watched(modules: Mapping[str, nn.Module], found: list[str]) -> Iterator[None]:
    handles = []
    for name, module in modules.items():
        for key, layer in module.named_modules():
            label = ".".join(filter(None, (name, key))) or type(layer).__name__
            handles.append(layer.register_forward_hook(_watcher(label, found)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _watcher(label: str, found: list[str]) -> Callable[[nn.Module, Any, Any], None]:
    def watch(_: nn.Module, __: Any, output: Any) -> None:
        if any(not torch.isfinite(value).all() for value in _tensors(output)):
            found.append(label)

    return watch


def _tensors(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        if output.is_floating_point():
            yield output
    elif isinstance(output, Mapping):
        for value in output.values():
            yield from _tensors(value)
    elif isinstance(output, (list, tuple)):
        for value in output:
            yield from _tensors(value)
