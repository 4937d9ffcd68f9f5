"""Strict evaluation: every item of a batch is computed alone, so its bits do not depend on its neighbours.

Matrix products and convolutions choose their blocking by the batch, which changes the last bits. Inside `strict`, the
networks of a pipeline run item by item: an image of a batch is the image made alone, bit for bit (given its own noise,
for example one generator an image). The price is the speed that batching gains.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from mezzotint.runtime.patching import networks, replaced

__all__ = ["strict"]


@contextmanager
def strict(pipe_or_network: Any) -> Iterator[None]:
    """Evaluate every network of a pipeline (or one network) item by item, deterministically.

    Every tensor argument whose first axis is as long as that of the first argument counts as batched. On leaving,
    everything is as before, also after an exception.
    """
    with ExitStack() as stack:
        for network in networks(pipe_or_network):
            # Autoencoders are reached by `encode` and `decode`, and can take items one by one themselves.
            slices = hasattr(network, "use_slicing")
            name, change = ("use_slicing", _always) if slices else ("forward", _item_by_item)
            stack.enter_context(replaced(network, name, change))
        stack.enter_context(torch.backends.cudnn.flags(deterministic=True, benchmark=False))
        yield


def _always(_: Any) -> bool:
    return True


def _item_by_item(method: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        leaves, layout = tree_flatten((args, kwargs))
        batch = next((len(leaf) for leaf in leaves if _batched(leaf)), 1)
        results = []
        for k in range(batch):
            # A copy, for the place of an item in the batch must not decide its alignment in memory.
            item = [leaf[k : k + 1].clone() if _batched(leaf, batch) else leaf for leaf in leaves]
            own_args, own_kwargs = tree_unflatten(item, layout)
            results.append(method(*own_args, **own_kwargs))
        return _joined(results)

    return call


def _batched(leaf: Any, size: int | None = None) -> bool:
    return isinstance(leaf, Tensor) and leaf.ndim > 0 and size in (None, len(leaf))


def _joined(results: list[Any]) -> Any:
    first, layout = tree_flatten(results[0])
    if len(results) == 1:
        return results[0]
    rows = zip(*(tree_flatten(result)[0] for result in results), strict=True)
    leaves = [torch.cat(row) if isinstance(one, Tensor) else one for one, row in zip(first, rows, strict=True)]
    return tree_unflatten(leaves, layout)
