"""Low-rank adapters (arXiv 2106.09685) on quantised layers: y = Q(x) + (alpha / rank) B A x, Q kept in integers.

peft wraps layers of classes that it knows, and others by a table that each `LoraConfig` holds. diffusers makes that
config itself inside `load_lora_weights`, out of a caller's reach; so the table is filled in where peft reads it, for
quantised layers only. Adapters are never merged: what they add is finer than the integers' steps.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from peft.tuners.lora import LoraConfig, LoraModel
from peft.tuners.lora.layer import Linear
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from .linear import QuantLinear

__all__ = ["AdaptedQuantLinear", "accept_adapters"]


class AdaptedQuantLinear(Linear):
    """peft's LoRA layer around a quantised one; it has no floating weight that an adapter could be merged into."""

    def merge(self, *_: Any, **__: Any) -> None:
        """Refuse, whatever is asked.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            "an adapter cannot be fused into quantised weights: keep it loaded beside them, or fuse it into the "
            "original model and quantise that"
        )

    @property
    def lora_variants(self) -> dict[tuple[str, ...], Any]:
        """Plain LoRA alone: the variants (DoRA and others) read or change the floating weight."""
        return {(): None}

    def _get_in_out_features(self, module: nn.Module) -> tuple[int, int]:
        assert isinstance(module, QuantLinear)
        return module.in_features, module.out_features


@functools.cache
def accept_adapters() -> None:
    """Let peft, and so `pipe.load_lora_weights` of diffusers, put adapters on quantised layers; once a process."""
    LoraModel._create_new_module = staticmethod(_knowing_integers(LoraModel._create_new_module))


def _knowing_integers(create: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    @functools.wraps(create)
    def create_new_module(lora_config: LoraConfig, adapter_name: str, target: nn.Module, **options: Any) -> nn.Module:
        base = target.get_base_layer() if isinstance(target, BaseTunerLayer) else target
        if isinstance(base, QuantLinear):
            lora_config._register_custom_module({QuantLinear: AdaptedQuantLinear})
        return create(lora_config, adapter_name, target, **options)

    return create_new_module
