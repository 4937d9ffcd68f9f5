"""Optimiser state as named tensors and plain JSON numbers, so that nothing of it is ever pickled."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

Numbers = dict[str, dict[str, float]]


def names(optimiser: torch.optim.Optimizer, named: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The optimiser's tensors under the names of the run.

    Raises:
        ValueError: if the optimiser trains a tensor that the run does not know.
    """
    by_identity = {id(value): name for name, value in named.items()}
    held = [value for group in optimiser.param_groups for value in group["params"]]
    unknown = sum(id(value) not in by_identity for value in held)
    if unknown:
        raise ValueError(f"the optimiser holds {unknown} tensors that are not among the parameters given to fit")
    return {by_identity[id(value)]: value for value in held}


def gather(optimiser: torch.optim.Optimizer, named: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Numbers]:
    """State as tensors called "key/parameter name" and numbers by parameter name and key."""
    tensors: dict[str, Tensor] = {}
    numbers: Numbers = {}
    for name, parameter in names(optimiser, named).items():
        for key, value in optimiser.state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                tensors[f"{key}/{name}"] = value
            elif isinstance(value, (int, float)):
                numbers.setdefault(name, {})[key] = value
            else:
                raise TypeError(
                    f"the optimiser state {key!r} of {name} is a {type(value).__name__}: only tensors and numbers"
                )
    return tensors, numbers


def scatter(
    optimiser: torch.optim.Optimizer, named: Mapping[str, Tensor], tensors: Mapping[str, Tensor], numbers: Numbers
) -> None:
    """Put gathered state back, exactly: no cast, and moments in the memory layout of their weights.

    `Optimizer.load_state_dict` is not used because it casts float32 moments to the dtype of bfloat16 weights.
    """
    parameters = names(optimiser, named)
    state: dict[str, dict[str, Any]] = {name: dict(numbers.get(name, {})) for name in parameters}
    for full, value in tensors.items():
        key, _, name = full.partition("/")
        if name not in state:
            raise ValueError(f"the checkpoint holds optimiser state of {name}, which is not trained in this run")
        state[name][key] = _like(parameters[name], value)
    optimiser.state.clear()
    for name, values in state.items():
        if values:
            optimiser.state[parameters[name]] = values


def _like(parameter: Tensor, value: Tensor) -> Tensor:
    if value.shape != parameter.shape:
        # torch keeps AdamW's step counters beside the weights when its fused form is used.
        return value.to(parameter.device).clone()
    empty = torch.empty_like(parameter, dtype=value.dtype, memory_format=torch.preserve_format)
    return empty.copy_(value).detach()
