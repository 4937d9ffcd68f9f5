"""Derived random streams: the only place of the library that seeds a generator.

Every draw of training and sampling comes from a stream that is a pure function of (seed, purpose, step, index). Hence
nothing about randomness has to be saved, a resumed run draws what the uninterrupted one would have drawn, and item k
of a batch equals the same item made alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["normal", "stream", "uniform"]


def stream(
    seed: int, purpose: str, step: int = 0, index: int = 0, *, device: torch.device | str = "cpu"
) -> torch.Generator:
    """Return the generator that belongs to one purpose, step and item of a seeded run.

    The arguments are hashed (SHA-256), so neighbouring steps, indices or seeds give unrelated streams. PyTorch's CPU
    generator uses 32 bits of a seed: among n streams about n^2 / 2^33 pairs coincide by chance.

    Args:
        seed: the run's seed, any integer.
        purpose: what is drawn, for example "latents" or "timesteps"; different purposes never share draws.
        step: training or sampling step.
        index: position of the item in the whole run (not in its batch).
        device: where the generator lives; streams of different device kinds draw different values.
    """
    # The purpose goes last: it alone may contain the separator, so no two argument lists share a text.
    text = f"{int(seed)}/{int(step)}/{int(index)}/{purpose}"
    derived = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")
    return torch.Generator(device=device).manual_seed(derived & (2**63 - 1))


def normal(
    shape: Sequence[int],
    *,
    seed: int,
    purpose: str,
    step: int = 0,
    first: int = 0,
    count: int,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "count ..."]:
    """Draw `count` standard normal items; item k comes from `stream(seed, purpose, step, first + k)`.

    Values are drawn in float32 by a CPU generator and then moved, so that every device and dtype sees the same noise.

    Args:
        shape: shape of one item.
        seed: the run's seed.
        purpose: what the noise is for.
        step: training or sampling step.
        first: index of the first item.
        count: number of items, 0 or more.
        device: device of the result.
        dtype: floating dtype of the result.

    Raises:
        ValueError: if count is negative.
    """
    return _items(torch.randn, shape, (seed, purpose, step), range(first, first + _counted(count))).to(device, dtype)


def uniform(
    shape: Sequence[int],
    *,
    seed: int,
    purpose: str,
    step: int = 0,
    first: int = 0,
    count: int,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "count ..."]:
    """Draw `count` items uniform on [0, 1); the arguments are those of `normal`.

    Raises:
        ValueError: if count is negative.
    """
    return _items(torch.rand, shape, (seed, purpose, step), range(first, first + _counted(count))).to(device, dtype)


def _counted(count: int) -> int:
    if count < 0:
        raise ValueError(f"count must be at least 0, got {count}")
    return count


def _items(draw: Callable[..., Tensor], shape: Sequence[int], key: tuple[int, str, int], indices: range) -> Tensor:
    items = [draw(tuple(shape), generator=stream(*key, index)) for index in indices]
    return torch.stack(items) if items else torch.empty(0, *shape)
