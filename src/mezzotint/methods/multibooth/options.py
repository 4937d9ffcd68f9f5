"""The settings of learning, checked before any work is done. Importing this module does not import torch."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

__all__ = ["Layers", "Options"]

Layers = Literal["all", "cross"]


@dataclass(frozen=True, kw_only=True)
class Options:
    """See `mezzotint.methods.multibooth.learn`.

    Raises:
        ValueError: a setting is out of its range.
    """

    class_word: str
    placeholder: str = "<S>"
    steps: int = 900
    rank: int = 16
    layers: Layers = "all"
    encoder: Literal["qformer", "free"] = "qformer"
    acn: bool = True
    regulariser: float = 0.01
    learning_rate: float = 8e-5
    encoder_rate: float = 1.0
    batch_size: int = 1
    weight_decay: float = 1e-2
    queries: int = 16
    encoder_layers: int | None = None
    templates: tuple[str, ...] = ()
    flip: bool = False
    precision: Literal["float32", "bfloat16"] = "float32"
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "rank", "batch_size", "queries", "encoder_layers"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not (math.isfinite(self.regulariser) and self.regulariser >= 0):
            raise ValueError(f"regulariser must be 0 or above, got {self.regulariser}")
        for name in ("learning_rate", "encoder_rate"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        if self.layers not in ("all", "cross"):
            raise ValueError(f"layers must be 'all' or 'cross', got {self.layers!r}")
        if self.precision not in ("float32", "bfloat16"):
            raise ValueError(f"precision must be 'float32' or 'bfloat16', got {self.precision!r}")
        if self.encoder not in ("qformer", "free"):
            raise ValueError(f"encoder must be 'qformer' or 'free', got {self.encoder!r}")
        if not self.class_word.strip():
            raise ValueError("class_word must name the kind of thing, such as 'cube', got an empty text")

    def to_json(self) -> dict[str, Any]:
        """The settings as plain JSON values."""
        return {**asdict(self), "templates": list(self.templates)}
