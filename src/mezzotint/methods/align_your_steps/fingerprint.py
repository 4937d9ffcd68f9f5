"""A short name for a checkpoint, to notice that a schedule was optimised on another one."""

from __future__ import annotations

import hashlib

import torch


@torch.no_grad()
def fingerprint(module: torch.nn.Module, *, values: int = 256) -> str:
    """Sixteen hexadecimal digits from the names, shapes and up to `values` evenly spaced entries of every parameter.

    Entries are compared as float16, so a checkpoint has one fingerprint whether it was loaded in float16 or float32.
    """
    digest = hashlib.sha256()
    for name, parameter in module.state_dict().items():
        flat = parameter.detach().reshape(-1)
        chosen = flat[:: max(1, flat.numel() // values)].half().cpu().contiguous()
        digest.update(f"{name}{tuple(parameter.shape)}".encode())
        digest.update(chosen.numpy().tobytes())
    return digest.hexdigest()[:16]
