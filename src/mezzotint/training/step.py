"""What a loss is told about the items in its hands, and the random draws it may make for them.

Every draw comes from a stream derived from (seed, purpose, step, item), so a resumed run repeats what the uninterrupted
one would have drawn, and item k of a batch gets the same draw however the batch is spread over processes.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mezzotint.diffusion import rng
from mezzotint.training.ema import EMA

# Items from this size on are drawn from one stream each. Smaller ones are drawn for the whole batch at once and cut
# out: the set-up of a stream costs as much as about a thousand normal numbers.
LARGE = 1024


@dataclasses.dataclass(frozen=True)
class Step:
    """One part of one training (or held-out) batch.

    Attributes:
        seed: the seed of the run.
        step: optimiser steps finished before this one.
        first: place of the part's first item in the batch.
        count: items of the part.
        batch_size: items of the batch, over all processes.
        device: where draws are put.
        part: "train" or "held-out"; the two never share a stream.
        ema: the moving average of the weights, where the run keeps one.
    """

    seed: int
    step: int
    first: int
    count: int
    batch_size: int
    device: torch.device
    part: str = "train"
    ema: EMA | None = None

    def generator(self, purpose: str) -> torch.Generator:
        """A CPU generator that is the same for every part and process of this step."""
        return rng.stream(self.seed, f"{self.part}/{purpose}", self.step)

    def normal(self, purpose: str, *shape: int, dtype: torch.dtype = torch.float32) -> Float[Tensor, "count *shape"]:
        """Standard normal numbers, one tensor of `shape` for each item."""
        if math.prod(shape) >= LARGE:
            return rng.normal(
                shape, seed=self.seed, purpose=f"{self.part}/{purpose}", step=self.step, first=self.first,
                count=self.count, device=self.device, dtype=dtype,
            )  # fmt: skip
        return self._cut(torch.randn((self.batch_size, *shape), generator=self.generator(purpose))).to(dtype)

    def uniform(self, purpose: str, low: float = 0.0, high: float = 1.0) -> Float[Tensor, " count"]:
        """One number in [low, high) for each item."""
        return self._cut(torch.rand(self.batch_size, generator=self.generator(purpose)) * (high - low) + low)

    def integers(self, purpose: str, low: int, high: int) -> Int[Tensor, " count"]:
        """One integer in low..high-1 for each item.

        Raises:
            ValueError: if the range is empty.
        """
        if high <= low:
            raise ValueError(f"high must be above low ({low}), got {high}")
        return self._cut(torch.randint(low, high, (self.batch_size,), generator=self.generator(purpose)))

    def _cut(self, whole: Tensor) -> Tensor:
        return whole[self.first : self.first + self.count].to(self.device)

    @contextmanager
    def ambient(self) -> Iterator[None]:
        """Torch's own generators derived from this part (dropout draws from them), and put back afterwards."""
        cuda = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=cuda):
            torch.set_rng_state(rng.stream(self.seed, f"{self.part}/ambient", self.step, self.first).get_state())
            for device in cuda:
                source = rng.stream(self.seed, f"{self.part}/ambient", self.step, self.first, device=device)
                torch.cuda.set_rng_state(source.get_state(), device)
            yield
