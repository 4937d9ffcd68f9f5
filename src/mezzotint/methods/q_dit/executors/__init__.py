"""How a quantised layer is computed: simulated, in integers by stock operators, by compiled kernels, or in fast mode.

All but "fast" give the same numbers up to the order of float32 sums; "fast" rounds once more, and says so by its name.
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from mezzotint.methods.q_dit.packing import StoredWeight
from mezzotint.methods.q_dit.quantiser import Grid, LayerSpec

from . import native
from .fast import Fast
from .fused import Fused
from .integer import Integer, has_onednn
from .native import LEVELS
from .simulate import Simulate

__all__ = ["EXECUTORS", "Executor", "executor_for"]

_LONGEST_SUM = 2**15
"""Channels whose products of bytes, and what is taken from them, surely fit into 32 bits."""
EXECUTORS: tuple[str, ...] = ("simulate", "integer", "fused", "fast", "auto")


@runtime_checkable
class Executor(Protocol):
    """What computes one layer."""

    name: str

    def prepare(self, x: Float[Tensor, "*batch width"], grid: Grid | None) -> Any:
        """What of the input can be shared by layers that are quantised alike."""

    def multiply(self, prepared: Any, bias: Float[Tensor, " rows"] | None) -> Float[Tensor, "tokens rows"]:
        """The output, from what `prepare` gave."""

    def resident_bytes(self) -> int:
        """Memory that this executor keeps beside the packed weight."""


def executor_for(name: str, weight: StoredWeight, spec: LayerSpec, *, level: str = "best") -> Executor:
    """Make the executor of one layer.

    Args:
        name: "auto" takes the fused kernels where this processor has an integer unit for them, else oneDNN where it
            has one, else the simulation, which then makes the float32 weight anew at every call (without a compiler,
            on the processor, it is kept). "fused" falls back in that order too, with one warning.
        weight: of the layer, where it will be computed.
        spec: of the layer.
        level: instruction set of the fused kernels; "best" asks the processor.

    Raises:
        ValueError: an unknown name.
    """
    if name not in EXECUTORS:
        raise ValueError(f"executor must be one of {', '.join(EXECUTORS)}, got {name!r}")
    if name == "fast" and spec.activation.quantised:
        return Fast(weight, spec)
    # Fast mode is about activations: weight-only layers are computed as "auto" computes them.
    name = "auto" if name == "fast" else name
    on_processor = weight.packed.device.type == "cpu"
    if name in {"fused", "auto"} and (library := _library(weight, spec, forced=name == "fused")) is not None:
        return Fused(weight, spec, library, level)
    exact = has_onednn(weight.packed.device) if name in {"fused", "auto"} else name == "integer"
    if exact and spec.activation.quantised:
        return Integer(weight, spec)
    library = native.library() if on_processor and name in {"fused", "auto"} else None
    asked = name == "simulate" or (on_processor and library is None)
    return Simulate(weight, spec, dense=asked, library=library)


def _library(weight: StoredWeight, spec: LayerSpec, *, forced: bool) -> native.Library | None:
    """The kernels, if they are worth using."""
    if weight.packed.device.type != "cpu" or spec.group > _LONGEST_SUM:
        return None
    library = native.library()
    fast_enough = library is not None and (library.best >= LEVELS.index("vnni") or not spec.activation.quantised)
    return library if forced or fast_enough else None
