"""What to draw, as data: enough to draw it again, bit for bit, on the same machine.

A picture's settings hold the request that made it: its own batch, since the last bits of a picture depend on what
was computed beside it. Settings read from a file are foreign, so every field is checked.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, get_args

from mezzotint.cli import effects
from mezzotint.cli.pipelines import Solver

__all__ = ["Request"]

_LIMITS = {"seed": (0, 2**63 - 1), "first": (0, 2**31), "steps": (1, 10_000), "batch_size": (1, 4096),
           "height": (8, 8192), "width": (8, 8192), "threads": (1, 1024)}  # fmt: skip
_WORDS = {"dtype": ("float32", "bfloat16", "float16"), "final": ("zero", "t_min"), "solver": get_args(Solver)}
_MOST_PICTURES = 100_000


@dataclass(frozen=True)
class Request:
    """A run of ``mezzotint sample``.

    Attributes:
        model: the word that names the pipeline.
        prompts: one for each picture.
        first: index of the first picture; picture k draws its noise from the stream (seed, "sample", 0, k).
        seed: not negative.
        steps: number of denoising steps.
        guidance: classifier-free guidance scale.
        negative: what the pictures should not show.
        timesteps: strictly decreasing training indices to run instead of the sampler's own; empty for its own.
        final: with timesteps, where the last step ends: ``"zero"`` noise or ``"t_min"``, the model's lowest level.
        solver: name of the sampler, ``"model"`` for the pipeline's own.
        batch_size: pictures computed together.
        height: pixels; ``None`` for the model's own size.
        width: pixels; ``None`` for the model's own size.
        strict: one picture at a time with deterministic kernels: the same bits whatever is asked beside it.
        device: where to compute.
        dtype: arithmetic of the model.
        threads: number of threads of the processor.
        effects: what methods do to the pipeline: method -> its options.
    """

    model: str
    prompts: tuple[str, ...]
    seed: int
    steps: int
    guidance: float
    first: int = 0
    negative: str = ""
    timesteps: tuple[int, ...] = ()
    final: str = "zero"
    solver: str = "model"
    batch_size: int = 1
    height: int | None = None
    width: int | None = None
    strict: bool = False
    device: str = "cpu"
    dtype: str = "float32"
    threads: int = 1
    effects: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse what could not be drawn."""
        if not 1 <= len(self.prompts) <= _MOST_PICTURES:
            raise ValueError(f"between 1 and {_MOST_PICTURES} pictures can be asked for, got {len(self.prompts)}")
        for name, (low, high) in _LIMITS.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise ValueError(f"{name.replace('_', '-')} must be between {low} and {high}, got {value}")
        if not abs(self.guidance) <= 1e4:
            raise ValueError(f"guidance must be a finite number up to 10000, got {self.guidance}")
        if any(later >= earlier for earlier, later in pairwise(self.timesteps)):
            raise ValueError(f"timesteps must be strictly decreasing, got {list(self.timesteps)}")
        if self.strict and self.effects:
            raise ValueError(
                f"strict pictures are computed row by row, where {', '.join(self.effects)} cannot tell the halves of "
                "guidance apart: leave --strict away"
            )
        for name, allowed in _WORDS.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")

    @property
    def indices(self) -> range:
        """Indices of the pictures."""
        return range(self.first, self.first + len(self.prompts))

    def batches(self) -> list[Request]:
        """Split into the requests that are computed at once, each of at most ``batch_size`` pictures (strict: one)."""
        size = 1 if self.strict else self.batch_size
        starts = range(0, len(self.prompts), size)
        return [
            dataclasses.replace(
                self, prompts=self.prompts[start : start + size], first=self.first + start, batch_size=size
            )
            for start in starts
        ]

    def to_data(self) -> dict[str, Any]:
        """Return plain data, from which `from_data` makes an equal request."""
        data = dataclasses.asdict(self)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in data.items()}

    @classmethod
    def from_data(cls, data: Any) -> Request:
        """Read a request from foreign data.

        Args:
            data: what `to_data` gave, perhaps tampered with.

        Raises:
            ValueError: a field is missing, unknown, of the wrong type or out of range.
        """
        if not isinstance(data, Mapping):
            raise ValueError(f"the request must be an object, got {type(data).__name__}")
        kinds = typing.get_type_hints(cls)
        required = {item.name for item in dataclasses.fields(cls) if _required(item)}
        if wrong := sorted((data.keys() - kinds.keys()) | (required - data.keys())):
            raise ValueError(f"the request has missing or unknown fields: {', '.join(map(str, wrong))}")
        return cls(**{name: _checked(name, value, kinds[name]) for name, value in data.items()})


def _required(item: dataclasses.Field[Any]) -> bool:
    return item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING


def _checked(name: str, value: Any, kind: Any) -> Any:
    """Check a foreign value against a field's type; lists become tuples, whole numbers may stand for floats."""
    if name == "effects":
        return effects.checked(value)
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is types.UnionType:
        return None if value is None else _checked(name, value, inner[0])
    if origin is tuple and isinstance(value, list | tuple):
        return tuple(_checked(name, item, inner[0]) for item in value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool) and abs(value) <= 2**53:
        return float(value)
    if origin is None and isinstance(value, kind) and (kind is bool or not isinstance(value, bool)):
        return value
    raise ValueError(f"{name} of the request must be {kind}, got {value!r}")
