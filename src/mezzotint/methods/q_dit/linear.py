"""The quantised linear layer (arXiv 2406.17343, section 4.1): packed integers in place of a weight.

It is called as nn.Linear is, holds no copy of the weight in floating point, and keeps its integers, scales and zero
points as they are when the model is cast to another dtype.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .executors import EXECUTORS, Executor, executor_for
from .groups import check_group
from .packing import StoredWeight, packed_bytes
from .quantiser import Codes, Grid, LayerSpec
from .shared_input import SharedInput

__all__ = ["EXACT", "QuantLinear", "share_inputs"]

EXACT = ("packed", "scale", "zero", "static_scale", "static_zero", "input_scale")
"""Buffers that a change of dtype leaves as they are."""
_SAME_INPUT = (("to_q", "to_k", "to_v"), ("add_q_proj", "add_k_proj", "add_v_proj"))


class QuantLinear(nn.Module):
    """A linear layer of packed integers; use `from_codes` to make one.

    Args:
        in_features: input channels K.
        out_features: output channels N.
        spec: how weight and input are quantised.
        bias: whether it has one.
        static: whether it has fixed activation ranges.
        input_scale: whether the input is divided, channel by channel, before it is quantised (SmoothQuant).
        executor: how it is computed; see `executors`.
        level: instruction set of the fused kernels.

    Raises:
        ValueError: a group that does not divide the input channels, 16-bit weights, or an unknown executor.
    """

    exact_buffers = EXACT
    packed: Tensor
    scale: Tensor
    zero: Tensor | None
    static_scale: Tensor | None
    static_zero: Tensor | None
    input_scale: Tensor | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        spec: LayerSpec,
        *,
        bias: bool = True,
        static: bool = False,
        input_scale: bool = False,
        executor: str = "auto",
        level: str = "best",
    ) -> None:
        super().__init__()
        _check(in_features, spec, executor)
        self.in_features, self.out_features, self.spec = in_features, out_features, spec
        self.executor, self.level = executor, level
        groups = in_features // spec.group
        zeros = None if spec.weight.symmetric else packed_bytes(out_features * groups, spec.weight.bits)
        self._empty("packed", (out_features, packed_bytes(in_features, spec.weight.bits)), torch.uint8)
        self._empty("scale", (out_features, groups), torch.float32)
        self._empty("zero", None if zeros is None else (zeros,), torch.uint8)
        self._empty("static_scale", (groups,) if static else None, torch.float32)
        self._empty("static_zero", (groups,) if static else None, torch.int16)
        self._empty("input_scale", (in_features,) if input_scale else None, torch.float32)
        self.bias = nn.Parameter(torch.zeros(out_features), requires_grad=False) if bias else None
        self._executor: Executor | None = None
        self._shared: tuple[SharedInput, int] | None = None
        self.eval()

    @classmethod
    def from_codes(
        cls,
        weight: Codes,
        bias: Float[Tensor, " rows"] | None,
        spec: LayerSpec,
        *,
        static_grid: Grid | None = None,
        input_scale: Float[Tensor, " width"] | None = None,
        executor: str = "auto",
        level: str = "best",
    ) -> QuantLinear:
        """Make a layer from a rounded weight.

        Args:
            weight: codes [N, K] with their scales and zero points.
            bias: kept as it is, or None.
            spec: how the weight was quantised and the input will be.
            static_grid: scale and zero point of every group [G], for static activation ranges.
            input_scale: divisor of every input channel [K].
            executor: "simulate", "integer", "fused", "fast" or "auto".
            level: instruction set of the fused kernels.

        Raises:
            ValueError: the codes do not fit the spec, or static ranges are missing or not wanted.
        """
        stored = StoredWeight.of(weight, spec.weight)
        if weight.group != spec.group:
            raise ValueError(f"the weight has groups of {weight.group}, its spec says {spec.group}")
        if (spec.act_range == "static") != (static_grid is not None):
            needed = "needs a static grid: calibrate first" if static_grid is None else "takes no static grid"
            raise ValueError(f"a layer with {spec.act_range} activation ranges {needed}")
        options: dict[str, Any] = {
            "bias": bias is not None,
            "static": static_grid is not None,
            "executor": executor,
            "level": level,
        }
        with torch.device("meta"):
            layer = cls(stored.width, stored.rows, spec, input_scale=input_scale is not None, **options)
        layer.packed, layer.scale, layer.zero = stored.packed, stored.scale, stored.zero
        if bias is not None:
            layer.bias = nn.Parameter(bias.detach().clone(), requires_grad=False)
        if static_grid is not None:
            shape = (stored.width // spec.group,)
            layer.static_scale = static_grid[0].to(torch.float32).expand(shape).clone()
            layer.static_zero = static_grid[1].to(torch.int16).expand(shape).clone()
        if input_scale is not None:
            layer.input_scale = input_scale.to(torch.float32, copy=True)
        return layer

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output [*batch, N] in the dtype of x [*batch, K]; computed in float32 and integers.

        Raises:
            ValueError: a wrong width, an input that wants a gradient, training mode, or numbers that are not finite.
        """
        self._check_input(x)
        if x.numel() == 0:
            bias = 0 if self.bias is None or self.out_features == 0 else self.bias.to(x.dtype)
            return x.new_zeros((*x.shape[:-1], self.out_features)) + bias
        executor = self._executor or self._choose()
        prepared = self._prepare(x, executor)
        out = executor.multiply(prepared, None if self.bias is None else self.bias.float())
        return out.reshape(*x.shape[:-1], self.out_features).to(x.dtype)

    def stored_weight(self) -> StoredWeight:
        """The packed weight, sharing this layer's memory."""
        return StoredWeight(self.packed, self.scale, self.zero, self.spec.weight, self.in_features)

    def dequantised_weight(self) -> Float[Tensor, "rows width"]:
        """The weight that the codes stand for, in float32."""
        return self.stored_weight().codes().dequantised()

    def static_grid(self) -> Grid | None:
        """Fixed activation ranges, if it has them."""
        if self.static_scale is None or self.static_zero is None:
            return None
        return self.static_scale, self.static_zero

    @property
    def qweight(self) -> Tensor:
        """The packed integers, under the name where peft looks for the device of a layer that has no `weight`."""
        return self.packed

    def running(self) -> str:
        """Name of the executor that computes this layer here; "auto" is resolved."""
        return (self._executor or self._choose()).name

    def resident_bytes(self) -> int:
        """Bytes in memory: buffers, bias, and what the executor has made from them by now."""
        return self.held_bytes() + (self._executor.resident_bytes() if self._executor else 0)

    def executor_bytes(self) -> int:
        """Bytes that its executor keeps beside the buffers, also before the first call."""
        return (self._executor or self._made()).resident_bytes()

    def held_bytes(self) -> int:
        """Bytes of buffers and bias, which is also what a file stores."""
        return sum(t.numel() * t.element_size() for t in (*self.buffers(), *self.parameters()))

    def extra_repr(self) -> str:
        """What `print(model)` shows."""
        weight, activation = self.spec.weight, self.spec.activation
        kinds = f"W{weight.bits}A{activation.bits}, group={self.spec.group}, executor={self.executor!r}"
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, {kinds}"
        )

    def _empty(self, name: str, shape: tuple[int, ...] | None, dtype: torch.dtype) -> None:
        self.register_buffer(name, None if shape is None else torch.zeros(shape, dtype=dtype))

    def _check_input(self, x: Tensor) -> None:
        if x.shape[-1] != self.in_features:
            raise ValueError(f"the input must have {self.in_features} channels, got {x.shape[-1]}")
        if self.training:
            raise ValueError("a quantised layer cannot be trained: call .eval() on the model first")
        if x.requires_grad and torch.is_grad_enabled():
            raise ValueError("a quantised layer gives no gradient: run it under torch.no_grad() or detach its input")

    def _choose(self) -> Executor:
        self._executor = self._made()
        return self._executor

    def _made(self) -> Executor:
        return executor_for(self.executor, self.stored_weight(), self.spec, level=self.level)

    def _prepare(self, x: Tensor, executor: Executor) -> Any:
        def prepare() -> Any:
            exact = x.detach().float()
            if self.input_scale is not None:
                exact = exact / self.input_scale
            return executor.prepare(exact, self.static_grid())

        if self._shared is None or self.input_scale is not None or self.static_scale is not None:
            return prepare()
        shared, member = self._shared
        return shared.get(x, member, prepare, kind=(executor.name, *_input_kind(self)))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> QuantLinear:
        """Move integers, scales and zero points to another device with the rest, but never to another dtype."""
        before = {name: self._buffers[name] for name in EXACT}
        super()._apply(fn, recurse)
        for name, old in before.items():
            new = self._buffers[name]
            if old is not None and new is not None and new.dtype != old.dtype:
                self._buffers[name] = (
                    old.to(new.device) if not old.is_meta else torch.empty_like(old, device=new.device)
                )
        self._executor = None
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._executor = None

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles make their executor anew: oneDNN's packed weights cannot be copied."""
        return self.__dict__ | {"_executor": None}


def share_inputs(network: nn.Module) -> int:
    """Let the query, key and value layers of every attention quantise their common input once.

    Args:
        network: changed in place; its results are the same.

    Returns:
        How many groups of layers share now.
    """
    found = 0
    for parent in network.modules():
        for names in _SAME_INPUT:
            children = [getattr(parent, name, None) for name in names]
            layers = [layer for layer in children if isinstance(layer, QuantLinear)]
            kinds: dict[Any, list[QuantLinear]] = {}
            for layer in layers:
                kinds.setdefault((layer.in_features, *_input_kind(layer)), []).append(layer)
            found += sum(_share(members) for members in kinds.values())
    return found


def _input_kind(layer: QuantLinear) -> tuple[Any, ...]:
    """What decides how a layer's input is prepared."""
    spec = layer.spec
    return spec.activation, spec.group, spec.act_scope, spec.act_range, layer.executor, layer.level


def _share(layers: list[QuantLinear]) -> bool:
    if len(layers) < 2 or layers[0].spec.act_range == "static":
        return False
    shared = SharedInput(len(layers))
    for member, layer in enumerate(layers):
        layer._shared = (shared, member)
    return True


def _check(width: int, spec: LayerSpec, executor: str) -> None:
    if not spec.weight.quantised:
        raise ValueError("a weight of 16 bits is not stored as integers: keep nn.Linear, or choose 2 to 8 bits")
    if executor not in EXECUTORS:
        raise ValueError(f"executor must be one of {', '.join(EXECUTORS)}, got {executor!r}")
    check_group(width, spec.group)
