"""How recipes begin and end: networks initialised from a seed, and written in half precision, whole or not at all."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from mezzotint.files import atomic_folder


def seeded(build: Callable[[], Any], seed: int) -> Any:
    """What `build` makes when torch's own initialisation draws from `seed`; the global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()


def save_module(module: Any, out: Path) -> None:
    """Write a diffusers or transformers model in float16 safetensors to a folder, atomically."""
    half = copy.deepcopy(module).to(torch.float16)
    with atomic_folder(out) as folder:
        half.save_pretrained(folder, safe_serialization=True)
