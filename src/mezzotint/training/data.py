"""Where batches come from: tensors in memory, a map-style dataset, a function, or any object with `draw`.

The order is derived from (seed, epoch): the items of step s are positions s*batch_size .. (s+1)*batch_size - 1 of the
endless row of shuffled epochs, so continuing at a step needs no saved position and every item is seen once an epoch.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Int
from torch import Tensor
from torch.utils.data import DataLoader

from mezzotint.diffusion import rng

Batch = Any


@runtime_checkable
class Source(Protocol):
    """Data made on the fly, item by item."""

    def draw(self, *, step: int, first: int, count: int) -> Batch:
        """Items first..first+count-1 of the batch of `step`; must depend on nothing else."""


@runtime_checkable
class Dataset(Protocol):
    """A map-style dataset, as torch's and Hugging Face's are."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


Data = Mapping[str, Tensor] | Source | Dataset | Callable[[int, torch.Generator], Batch]
Share = tuple[int, int]


class Order:
    """The endless row of item numbers: one permutation of the data after the other.

    Args:
        length: number of items, at least 1.
        seed: seed of the permutations.
        shuffle: False for 0, 1, 2, ... over and over.
        split: name that keeps the streams of different uses apart.
    """

    def __init__(self, length: int, seed: int, *, shuffle: bool = True, split: str = "train") -> None:
        if length < 1:
            raise ValueError("the data hold no item")
        self.length = length
        self.seed = seed
        self.shuffle = shuffle
        self.split = split
        self._kept: dict[int, Tensor] = {}

    def indices(self, start: int, count: int) -> Int[Tensor, " count"]:
        """Item numbers at positions start..start+count-1 of the row."""
        pieces = []
        while count > 0:
            epoch, offset = divmod(start, self.length)
            pieces.append(self._epoch(epoch)[offset : offset + count])
            start, count = start + len(pieces[-1]), count - len(pieces[-1])
        return torch.cat(pieces) if len(pieces) != 1 else pieces[0]

    def _epoch(self, epoch: int) -> Tensor:
        if not self.shuffle:
            epoch = 0
        if epoch not in self._kept:
            self._kept = {key: value for key, value in self._kept.items() if key == epoch - 1}
            generator = rng.stream(self.seed, f"{self.split}/order", epoch)
            shuffled = torch.randperm(self.length, generator=generator) if self.shuffle else torch.arange(self.length)
            self._kept[epoch] = shuffled
        return self._kept[epoch]


def size(data: Data) -> int | None:
    """Number of items, or None where data are made on the fly.

    Raises:
        ValueError: if tensors in memory do not have the same number of rows.
    """
    if isinstance(data, Mapping):
        rows = {name: len(value) for name, value in data.items()}
        if len(set(rows.values())) != 1:
            raise ValueError(
                f"the tensors of the data must have the same number of rows, at least one tensor; got {rows}"
            )
        return next(iter(rows.values()))
    return len(data) if isinstance(data, Dataset) else None


def batches(
    data: Data,
    *,
    seed: int,
    batch_size: int,
    shares: Sequence[Share],
    start: int = 0,
    shuffle: bool = True,
    workers: int = 0,
    split: str = "train",
) -> Iterator[Batch]:
    """Endless parts of batches, from step `start` on: for each step one part for each (first, count) of `shares`.

    Args:
        data: tensors with the items along their first dimension; a map-style dataset; a `Source`; or a function
            (step, generator) that returns the whole batch of a step.
        seed: seed of the order, and of the function's generators.
        batch_size: items of a step, over all processes.
        shares: what this process takes of every batch.
        start: first step.
        shuffle: whether tensors and datasets are shuffled.
        workers: processes that load a map-style dataset.
        split: "train" or "held-out"; keeps their streams apart.

    Raises:
        TypeError: if the data are of none of these kinds.
    """
    plan = ((step, first, count) for step in itertools.count(start) for first, count in shares)
    if isinstance(data, Mapping):
        order = Order(size(data) or 0, seed, shuffle=shuffle, split=split)
        rows = (order.indices(step * batch_size + first, count) for step, first, count in plan)
        return (gather(data, indices) for indices in rows)
    if isinstance(data, Source):
        return (data.draw(step=step, first=first, count=count) for step, first, count in plan)
    if isinstance(data, Dataset):
        order = Order(len(data), seed, shuffle=shuffle, split=split)
        lists = _Lists(order, batch_size, list(shares), start)
        loading: Any = data  # torch's annotation asks for a subclass; map-style is all it needs
        return iter(
            DataLoader(loading, batch_sampler=lists, num_workers=workers, generator=rng.stream(seed, "workers"))
        )
    if callable(data):
        return _made(data, functools.partial(rng.stream, seed, f"{split}/batch"), plan)
    raise TypeError(f"data must be a mapping of tensors, a dataset, a Source or a function, got {type(data).__name__}")


def gather(data: Mapping[str, Tensor], indices: Int[Tensor, " count"]) -> dict[str, Tensor]:
    """Rows `indices` of every tensor; one copy per tensor."""
    return {name: value.index_select(0, indices.to(value.device)) for name, value in data.items()}


def move(batch: Batch, device: torch.device) -> Batch:
    """The batch with its tensors on `device`; containers are kept, other values passed through."""
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, Mapping):
        return {key: move(value, device) for key, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(move(value, device) for value in batch))
    if isinstance(batch, (list, tuple)):
        return type(batch)(move(value, device) for value in batch)
    return batch


def part(batch: Batch, first: int, count: int) -> Batch:
    """Items first..first+count-1 of a batch of tensors and lists."""
    if isinstance(batch, Mapping):
        return {key: part(value, first, count) for key, value in batch.items()}
    if isinstance(batch, tuple):
        return tuple(part(value, first, count) for value in batch)
    if len(batch) < first + count:
        raise ValueError(
            f"the function made a batch of {len(batch)} items, but batch_size needs at least {first + count}"
        )
    return batch[first : first + count]


class _Lists:
    """The row of item numbers of this process, in the form DataLoader wants: a list for each part."""

    def __init__(self, order: Order, batch_size: int, shares: list[Share], start: int) -> None:
        self.order, self.batch_size, self.shares, self.start = order, batch_size, shares, start

    def __iter__(self) -> Iterator[list[int]]:
        for step in itertools.count(self.start):
            for first, count in self.shares:
                yield self.order.indices(step * self.batch_size + first, count).tolist()


def _made(
    make: Callable[[int, torch.Generator], Batch],
    stream: Callable[[int], torch.Generator],
    plan: Iterator[tuple[int, int, int]],
) -> Iterator[Batch]:
    made: tuple[int, Batch] = (-1, None)
    for step, first, count in plan:
        if made[0] != step:
            made = (step, make(step, stream(step)))
        yield part(made[1], first, count)
