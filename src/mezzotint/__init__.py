"""mezzotint: diffusion-model methods that run on the pipeline you already have, compose, and come with evidence.

The public surface is imported lazily (PEP 562), so ``import mezzotint`` costs milliseconds and does not import torch:

* ``mezzotint.load(name_or_path)`` gives a diffusers pipeline;
* ``mezzotint.methods`` finds the methods;
* ``mezzotint.<method>`` is the door of one method, for example ``mezzotint.align_your_steps``.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mezzotint import methods
    from mezzotint.loading import load

__version__ = "0.1.0"
__all__ = ["__version__", "load", "methods"]


def __getattr__(name: str) -> Any:
    """Import a public name on first use.

    Raises:
        AttributeError: there is neither a public name nor a method of this name.
    """
    if name.startswith("__"):
        raise AttributeError(f"module 'mezzotint' has no attribute {name!r}")
    doors = importlib.import_module("mezzotint.methods")
    if name == "methods":
        value: Any = doors
    elif name == "load":
        value = importlib.import_module("mezzotint.loading").load
    elif name in doors.names():
        value = doors.door(name)
    else:
        raise AttributeError(f"module 'mezzotint' has no attribute {name!r}; methods: {', '.join(doors.names())}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names and the methods."""
    return sorted([*__all__, *importlib.import_module("mezzotint.methods").names()])
