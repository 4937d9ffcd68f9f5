"""How recipes begin and end: networks initialised from a seed, and written in half precision, whole or not at all."""

from __future__ import annotations

import copy
import json
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
        load_as_float32(folder)


def load_as_float32(folder: Path) -> None:
    """Let weights that are stored in half precision load as float32 where nothing else is asked.

    transformers takes the dtype from the configuration, diffusers takes float32: a pipeline of both would mix them.
    """
    for path in folder.rglob("config.json"):
        config = json.loads(path.read_text(encoding="utf-8"))
        # Where a part was loaded from is a path of the machine that trained.
        config.pop("_name_or_path", None)
        config.update({name: "float32" for name in ("dtype", "torch_dtype") if name in config})
        path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
