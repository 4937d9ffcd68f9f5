"""One block after the other: each sees calibration inputs that earlier, already quantised blocks have made.

Where a network hands nothing but its hidden states from block to block (DiT, PixArt), the inputs of the next block are
the outputs of this one, and every block runs twice in all. Elsewhere (U-Net, two streams) the network is run again up
to the block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from .calibration import Calibration

__all__ = ["Call", "Chain", "LayerHook", "observed"]

LayerHook: TypeAlias = Callable[[Tensor], Tensor | None]
"""Sees a layer's input; may return what the layer is to read instead."""


class _ReachedError(Exception):
    """Ends a forward pass at the block whose inputs were wanted."""


@dataclass(frozen=True)
class Call:
    """Arguments of one call of a block."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def hidden(self, states: Tensor) -> Call:
        """The same call with other hidden states, the first argument."""
        return Call((states, *self.args[1:]), self.kwargs)


@contextmanager
def observed(modules: dict[str, nn.Module], hooks: dict[str, LayerHook]) -> Iterator[None]:
    """Let hooks see (and change) the inputs of layers while the block runs.

    Args:
        modules: of the network, by name.
        hooks: layer name -> hook.
    """

    def adapter(hook: LayerHook) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...] | None]:
        def seen(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
            changed = hook(args[0])
            return None if changed is None else (changed, *args[1:])

        return seen

    handles = [modules[name].register_forward_pre_hook(adapter(hook)) for name, hook in hooks.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class Chain:
    """Runs a network's blocks over calibration data, in the order in which the network calls them.

    Args:
        network: in evaluation mode; its layers may be replaced between steps.
        blocks: names of the blocks.
        calibration: inputs of the network.
        batch_size: items of one call.
    """

    def __init__(
        self, network: nn.Module, blocks: Sequence[str], calibration: Calibration, *, batch_size: int = 32
    ) -> None:
        self.network, self.calibration, self.batch_size = network, calibration, batch_size
        self.order, self._linked = _order(network, blocks, calibration)
        self._calls: list[Call] = []

    def __iter__(self) -> Iterator[tuple[str, Callable[[], None]]]:
        """Yield every block and a function that runs it once over all calibration data.

        Replace the block's layers before asking for the next one.
        """
        for index, name in enumerate(self.order):
            if name in self._linked:
                self._calls = [call.hidden(self._run(self.order[index - 1], call)) for call in self._calls]
                yield name, partial(self._over_calls, name)
            elif self._linked.intersection(self.order[index + 1 : index + 2]):
                self._calls = self._reach(name)
                yield name, partial(self._over_calls, name)
            else:
                # No block goes on from here, so nothing is kept: inputs of all batches can be larger than the model.
                self._calls = []
                yield name, partial(self._through, name)

    def _over_calls(self, name: str) -> None:
        for call in self._calls:
            self._run(name, call)

    @torch.no_grad()
    def _run(self, name: str, call: Call) -> Any:
        return self.network.get_submodule(name)(*call.args, **call.kwargs)

    @torch.no_grad()
    def _reach(self, name: str) -> list[Call]:
        """Inputs of a block on every batch."""
        calls: list[Call] = []

        def stop(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            calls.append(Call(args, kwargs))
            raise _ReachedError

        self._until(self.network.get_submodule(name).register_forward_pre_hook(stop, with_kwargs=True))
        return calls

    @torch.no_grad()
    def _through(self, name: str) -> None:
        """Run the network up to the end of a block on every batch."""

        def stop(*_: Any) -> None:
            raise _ReachedError

        self._until(self.network.get_submodule(name).register_forward_hook(stop))

    def _until(self, handle: RemovableHandle) -> None:
        """Run the network on every batch until a hook stops it; the hook is removed."""
        try:
            for arguments in self.calibration.batches(self.batch_size):
                with suppress(_ReachedError):
                    self.network(**arguments)
        finally:
            handle.remove()


@torch.no_grad()
def _order(network: nn.Module, blocks: Sequence[str], calibration: Calibration) -> tuple[list[str], set[str]]:
    """Names of the blocks as the network calls them, and those that continue the one before unchanged."""
    calls: dict[str, Call] = {}
    outputs: dict[str, Any] = {}

    def before(name: str) -> Callable[..., None]:
        return lambda _, args, kwargs: calls.update({name: Call(args, kwargs)})

    def after(name: str) -> Callable[..., None]:
        return lambda _, __, output: outputs.update({name: output})

    modules = {name: network.get_submodule(name) for name in dict.fromkeys(blocks)}
    handles = [m.register_forward_pre_hook(before(name), with_kwargs=True) for name, m in modules.items()]
    handles += [m.register_forward_hook(after(name)) for name, m in modules.items()]
    try:
        network(**calibration[:1].arguments())
    finally:
        for handle in handles:
            handle.remove()
    order = list(calls)
    return order, {then for now, then in pairwise(order) if _continues(calls[now], outputs[now], calls[then])}


def _continues(call: Call, output: Any, following: Call) -> bool:
    """Whether a block's only news is the hidden states that the block before has returned."""
    if not (call.args and following.args) or following.args[0] is not output:
        return False
    same = len(call.args) == len(following.args) and call.kwargs.keys() == following.kwargs.keys()
    pairs = [*zip(call.args[1:], following.args[1:], strict=False)] if same else []
    pairs += [(call.kwargs[key], following.kwargs[key]) for key in call.kwargs] if same else []
    return same and all(a is b or (not isinstance(a, Tensor) and a == b) for a, b in pairs)
