"""Layers that read the same tensor quantise it once: to_q, to_k and to_v of an attention layer.

What the first of them prepared is kept until each of the others has taken it. It is handed out only for the very
tensor it was made from (the object, not an equal one, and not changed since by torch's own count of changes), only to
a layer that has not taken it yet, and never longer than the tensor lives. So a second call, another tensor, or a change
in place all prepare anew.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

__all__ = ["SharedInput"]


@dataclass
class _Entry:
    tensor: weakref.ref[Tensor]
    version: int
    kind: Any
    prepared: Any
    waiting: set[int] = field(default_factory=set)


class SharedInput:
    """The prepared input of a group of layers.

    Args:
        members: how many layers share it.
    """

    def __init__(self, members: int) -> None:
        self.members = members
        self._entry: _Entry | None = None

    def get(self, x: Tensor, member: int, prepare: Callable[[], Any], *, kind: Any = None) -> Any:
        """What `prepare` gives for x, prepared by whichever member comes first.

        Args:
            x: the input.
            member: number of the asking layer, from 0.
            prepare: quantises x.
            kind: how; an entry serves its own kind alone.
        """
        entry = self._entry
        if entry is not None and member in entry.waiting and entry.kind == kind and _unchanged(entry, x):
            entry.waiting.discard(member)
            self._entry = entry if entry.waiting else None
            return entry.prepared
        prepared = prepare()
        waiting = set(range(self.members)) - {member}
        # Tensors of inference mode do not count their changes.
        sound = not x.is_inference() and bool(waiting)
        self._entry = _Entry(weakref.ref(x), x._version, kind, prepared, waiting) if sound else None
        return prepared

    def __getstate__(self) -> dict[str, Any]:
        """A copy starts with nothing kept."""
        return {"members": self.members, "_entry": None}


def _unchanged(entry: _Entry, x: Tensor) -> bool:
    return entry.tensor() is x and not x.is_inference() and entry.version == x._version
