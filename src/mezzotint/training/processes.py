"""The processes of a run, through accelerate: shares of a batch, one collective a step, and failures that all hear of.

Gradients are averaged here, in one flat buffer, and not by wrapping modules: a loss may then call any module, any
number of times, train parameters that no module holds, and use functional calls.
"""

from __future__ import annotations

import atexit
import gc
from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
import torch.distributed as dist
from accelerate import PartialState
from accelerate.utils import broadcast, broadcast_object_list, gather_object, reduce
from torch import Tensor

T = TypeVar("T")


def _leave() -> None:
    """Close the group of processes, also where the frames of a failure still hold on to it."""
    if dist.is_initialized():
        dist.destroy_process_group()
        gc.collect()


class Processes:
    """A view of accelerate's process state.

    Args:
        device: where the trained tensors are; a run on the CPU of a machine with an accelerator stays there.
    """

    def __init__(self, device: torch.device) -> None:
        self.state = PartialState(cpu=device.type == "cpu")
        if self.state.num_processes > 1:
            # Threads of a group that is still open when the interpreter ends may abort the process.
            atexit.unregister(_leave)
            atexit.register(_leave)
        self.count: int = self.state.num_processes
        self.rank: int = self.state.process_index
        self.main: bool = self.state.is_main_process

    def shares(self, batch_size: int, accumulation: int) -> list[tuple[int, int]]:
        """This process's (first, count) parts of a batch.

        Raises:
            ValueError: if the batch cannot be divided evenly.
        """
        parts = self.count * accumulation
        if batch_size % parts:
            raise ValueError(
                f"batch_size must be a multiple of processes x accumulation ({self.count} x {accumulation}), "
                f"got {batch_size}"
            )
        each = batch_size // parts
        return [((self.rank * accumulation + index) * each, each) for index in range(accumulation)]

    def average(self, named: Mapping[str, Tensor], numbers: dict[str, float]) -> dict[str, float]:
        """Average the gradients of `named` over processes in place, and return the averaged numbers.

        A gradient that no process has stays None, as in a run of one process.
        """
        if self.count == 1:
            return numbers
        live, names = list(named.values()), sorted(numbers)
        facts = [numbers[name] for name in names] + [float(value.grad is not None) for value in live]
        sums = self._sum(torch.tensor(facts, dtype=torch.float64, device=live[0].device)).tolist()
        trained = [value for value, used in zip(live, sums[len(names) :], strict=True) if used]
        if not trained:
            raise ValueError("no process has a gradient: the loss does not depend on what is trained")
        flat = torch.cat([_gradient(value).reshape(-1).to(torch.float32) for value in trained])
        flat = self._sum(flat) / self.count
        for value, piece in zip(trained, flat.split([value.numel() for value in trained]), strict=True):
            value.grad = torch.empty_like(value).copy_(piece.view(value.shape))
        return {name: total / self.count for name, total in zip(names, sums, strict=False)}

    def first_of(self, text: str) -> str:
        """The first text that is not empty, over all processes."""
        texts: list[str] = [text] if self.count == 1 else gather_object([text])
        return next(filter(None, texts), "")

    def same_start(self, named: Mapping[str, Tensor]) -> None:
        """Give every process the main process's values."""
        if self.count > 1:
            for value in named.values():
                value.data.copy_(broadcast(value.data.contiguous(), from_process=0))

    def on_main(self, work: Callable[[], T]) -> T:
        """Do `work` in the main process and give its result to all; if it fails, all fail."""
        if self.count == 1:
            return work()
        outcome: list[object] = [None, None]
        error: Exception | None = None
        if self.main:
            try:
                outcome[0] = work()
            except Exception as caught:  # noqa: BLE001 (raised again below, once every process knows)
                error = caught
                outcome[1] = f"{type(caught).__name__}: {caught}"
        broadcast_object_list(outcome, from_process=0)
        if error is not None:
            raise error
        if outcome[1] is not None:
            raise RuntimeError(f"the main process failed: {outcome[1]}")
        return outcome[0]  # type: ignore[return-value]

    def mean(self, value: float) -> float:
        """Average of a number over the processes."""
        if self.count == 1:
            return value
        return float(
            self._sum(torch.tensor([value], dtype=torch.float64, device=self.state.device)).item() / self.count
        )

    def _sum(self, value: Tensor) -> Tensor:
        total: Tensor = reduce(value, reduction="sum")
        return total


def _gradient(value: Tensor) -> Tensor:
    return torch.zeros_like(value) if value.grad is None else value.grad
