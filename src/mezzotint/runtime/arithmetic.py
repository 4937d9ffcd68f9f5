"""The arithmetic of a computation whose weights stay in float32: theirs, or bfloat16 under autocast."""

from __future__ import annotations

from typing import Literal

import torch

__all__ = ["Arithmetic", "autocast"]

Arithmetic = Literal["float32", "bfloat16"]


def autocast(device: str | torch.device, precision: Arithmetic) -> torch.autocast:
    """A context in which products are computed in a precision.

    Args:
        device: where the tensors are.
        precision: "bfloat16" for torch's autocast, "float32" to leave everything as it is.
    """
    return torch.autocast(torch.device(device).type, torch.bfloat16, enabled=precision == "bfloat16")
