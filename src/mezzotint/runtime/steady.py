"""Steady evaluation: pictures that do not depend on how many are made at once, at the speed of a batch.

What differs between a batch and its items is which kernel multiplies matrices of few rows: in a denoiser these are the
embedded timesteps, one row an item, and sampling amplifies the last bits that they lose. Convolutions, attention and
products with many rows come out alike. So products of few rows are filled up with zeros to a fixed number of rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from mezzotint.runtime.patching import networks, replaced

__all__ = ["ROWS", "steady"]

ROWS = 16
"""Rows of a product come in multiples of this."""


@contextmanager
def steady(pipe_or_network: Any) -> Iterator[None]:
    """Fill up the two-dimensional inputs of linear layers to a multiple of 16 rows.

    A batch of the embedded pipeline then equals its pictures made alone, bit for bit where it was measured (x86-64,
    float32); `strict` promises that everywhere, and takes the time of single pictures. Networks that `accelerate` has
    compiled are not to be changed: enter this for plain evaluation.

    Args:
        pipe_or_network: a diffusers pipeline, or one network. On leaving, everything is as before.
    """
    parts = (part for network in networks(pipe_or_network) for part in network.modules())
    with ExitStack() as stack:
        for layer in (part for part in parts if isinstance(part, nn.Linear)):
            stack.enter_context(replaced(layer, "forward", _filled))
        yield


def _filled(method: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def call(rows: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        missing = -len(rows) % ROWS if rows.ndim == 2 else 0
        if not missing:
            return method(rows, *args, **kwargs)
        return method(F.pad(rows, (0, 0, 0, missing)), *args, **kwargs)[: len(rows)]

    return call
