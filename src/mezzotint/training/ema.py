"""Exponential moving average of weights: average <- decay * average + (1 - decay) * weights, after every step.

The warm-up of the decay, min(decay, (1 + n) / (10 + n)), is the usual one that keeps the first weights from lingering.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from mezzotint.training.trainables import load_into


class EMA:
    """The moving average of live tensors, kept in float32 at least, whatever the precision of the weights.

    Args:
        live: the trained tensors by name; they are referred to, not copied.
        decay: weight of the old average at each update, in [0, 1).
        warmup: shorten the average at the start of training.

    Raises:
        ValueError: if decay is out of range.
    """

    def __init__(self, live: Mapping[str, Tensor], decay: float, *, warmup: bool = True) -> None:
        if not 0.0 <= decay < 1.0:
            raise ValueError(f"decay must be in [0, 1), got {decay}")
        self.decay = decay
        self.warmup = warmup
        self.updates = 0
        self._live = dict(live)
        self.average = {name: _wide(value.detach()) for name, value in self._live.items()}

    def current_decay(self) -> float:
        """Decay of the next update."""
        return min(self.decay, (1 + self.updates) / (10 + self.updates)) if self.warmup else self.decay

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the live tensors by one step."""
        weights = [value.detach().to(self.average[name].dtype) for name, value in self._live.items()]
        torch._foreach_lerp_(list(self.average.values()), weights, 1.0 - self.current_decay())
        self.updates += 1

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The average in place of the live weights; leaving puts the live weights back, bit for bit."""
        kept = {name: value.detach().clone() for name, value in self._live.items()}
        try:
            self.copy_to_live()
            yield
        finally:
            with torch.no_grad():
                for name, value in self._live.items():
                    value.copy_(kept[name])

    @torch.no_grad()
    def copy_to_live(self) -> None:
        """Overwrite the live weights with the average, for good."""
        for name, value in self._live.items():
            value.copy_(self.average[name])

    def load(self, average: Mapping[str, Tensor], updates: int) -> None:
        """Put a saved average back.

        Raises:
            ValueError: if it is not the average of these tensors.
        """
        load_into(self.average, average, "the averaged weights")
        self.updates = updates

    def of(self, module: str) -> dict[str, Tensor]:
        """The averaged tensors of one module of the run, named as inside it, for `torch.func.functional_call`.

        Raises:
            ValueError: if the run has no module of that name.
        """
        prefix = f"{module}." if module else ""
        found = {name.removeprefix(prefix): value for name, value in self.average.items() if name.startswith(prefix)}
        if not found:
            raise ValueError(
                f"the average holds no module called {module!r}; names start with {sorted(self.average)[:3]}"
            )
        return found


def _wide(value: Tensor) -> Tensor:
    dtype = torch.float32 if value.dtype in (torch.float16, torch.bfloat16) else value.dtype
    return torch.empty_like(value, dtype=dtype, memory_format=torch.preserve_format).copy_(value)
