"""Temporary changes of modules that leave no trace: replaced methods, converted weights, thread counts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

__all__ = ["casting", "convert", "converted", "limited_threads", "networks", "replaced"]

Method: TypeAlias = Callable[..., Any]


def networks(pipe_or_network: Any) -> list[nn.Module]:
    """The networks of a diffusers pipeline, or the one network given."""
    if isinstance(pipe_or_network, nn.Module):
        return [pipe_or_network]
    return [part for part in pipe_or_network.components.values() if isinstance(part, nn.Module)]


@contextmanager
def replaced(owner: Any, name: str, wrap: Callable[[Any], Any]) -> Iterator[None]:
    """Replace the method or attribute `owner.name` by `wrap(owner.name)`; leaving restores what stood there."""
    was_set = name in vars(owner)
    before = getattr(owner, name)
    setattr(owner, name, wrap(before))
    try:
        yield
    finally:
        if was_set:
            setattr(owner, name, before)
        else:
            delattr(owner, name)


def convert(module: nn.Module, dtype: torch.dtype, *, channels_last: bool) -> None:
    """Convert weights and buffers for good, one after the other; see `converted`."""
    for tensor in _inexact(module):
        tensor.data = _converted(tensor.data, dtype, channels_last)


@contextmanager
def converted(module: nn.Module, dtype: torch.dtype, *, channels_last: bool) -> Iterator[None]:
    """Convert weights and buffers; the original tensors are kept and put back, so nothing is lost to rounding.

    Buffers that a layer names in `exact_buffers` (integers' scales, for instance) stay as they are.
    """
    tensors = _inexact(module)
    originals = [tensor.data for tensor in tensors]
    try:
        convert(module, dtype, channels_last=channels_last)
        yield
    finally:
        for tensor, original in zip(tensors, originals, strict=True):
            tensor.data = original


def casting(module: nn.Module, name: str = "forward") -> AbstractContextManager[None]:
    """Cast the floating arguments of a method to the module's present dtype, and its results back to what came in."""
    weight = next(parameter for parameter in module.parameters() if parameter.is_floating_point())

    def wrap(method: Method) -> Method:
        def call(*args: Any, **kwargs: Any) -> Any:
            came = next(leaf.dtype for leaf in tree_leaves((args, kwargs)) if _floating(leaf))
            args, kwargs = tree_map(lambda leaf: _cast(leaf, weight.dtype), (args, kwargs))
            return tree_map(lambda leaf: _cast(leaf, came), method(*args, **kwargs))

        # Callers that would cast themselves leave it to this, so that a compiled network meets one dtype only.
        call.casts = True  # type: ignore[attr-defined]
        return call

    return replaced(module, name, wrap)


@contextmanager
def limited_threads(count: int) -> Iterator[None]:
    """Compute with `count` threads inside."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _inexact(module: nn.Module) -> list[Tensor]:
    exact = {id(getattr(part, name)) for part in module.modules() for name in getattr(part, "exact_buffers", ())}
    return [tensor for tensor in (*module.parameters(), *module.buffers()) if id(tensor) not in exact]


def _floating(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.ndim > 0


def _cast(leaf: Any, dtype: torch.dtype) -> Any:
    return leaf.to(dtype) if _floating(leaf) else leaf


def _converted(data: Tensor, dtype: torch.dtype, channels_last: bool) -> Tensor:
    data = data.to(dtype) if data.is_floating_point() else data
    return data.contiguous(memory_format=torch.channels_last) if channels_last and data.ndim == 4 else data
