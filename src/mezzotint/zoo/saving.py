"""Writes trained networks the way the zoo keeps them: half precision, safetensors, whole folders or nothing."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch

from mezzotint.files import atomic_folder


def save_module(module: Any, out: Path) -> None:
    """Write a diffusers or transformers model in float16 safetensors to a folder, atomically."""
    half = copy.deepcopy(module).to(torch.float16)
    with atomic_folder(out) as folder:
        half.save_pretrained(folder, safe_serialization=True)
