"""Steady evaluation: pictures that do not depend on how many are made at once, at the speed of a batch.

What differs between a batch and its items is which kernel multiplies matrices of few rows: in a denoiser these are the
embedded timesteps, one row an item, and sampling amplifies the last bits that they lose. Convolutions, attention and
products with many rows come out alike. So products of few rows are made as they are for one picture.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from mezzotint.runtime.patching import networks, replaced

__all__ = ["steady"]


@contextmanager
def steady(pipe_or_network: Any, rows: int = 2) -> Iterator[None]:
    """Multiply the two-dimensional inputs of linear layers a few rows at a time.

    A guided batch of the embedded pipeline then equals its pictures made alone, bit for bit where it was measured
    (x86-64, float32), and these are the pictures of the pipeline left alone. Without guidance a single picture is one
    row, which convolutions compute by another kernel: equal to 1e-5. `strict` promises the bits everywhere, and takes
    the time of single pictures. Networks that `accelerate` has compiled are not to be changed: this is for plain
    evaluation.

    Args:
        pipe_or_network: a diffusers pipeline, or one network. On leaving, everything is as before.
        rows: of a network call for one picture: 2 with guidance, 1 without.

    Raises:
        ValueError: no rows.
    """
    if rows < 1:
        raise ValueError(f"rows must be at least 1, got {rows}")
    parts = (part for network in networks(pipe_or_network) for part in network.modules())
    with ExitStack() as stack:
        for layer in (part for part in parts if isinstance(part, nn.Linear)):
            stack.enter_context(replaced(layer, "forward", lambda method: _in_parts(method, rows)))
        yield


def _in_parts(method: Callable[..., Tensor], rows: int) -> Callable[..., Tensor]:
    def call(given: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if given.ndim != 2 or len(given) <= rows:
            return method(given, *args, **kwargs)
        return torch.cat([method(part, *args, **kwargs) for part in given.split(rows)])

    return call
