"""What was bound, and how much of the picture each focus mask kept. Importing it imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from mezzotint.files import write_json

__all__ = ["Account", "BindingReport", "Bound", "Kept"]

Account: TypeAlias = Callable[[], tuple[Any, Any]]
"""Gives the kept fractions and the unmasked shares of one layer in one pass, tensors [pictures, bindings]."""


@dataclass(frozen=True)
class Bound:
    """A prompt's words, and what was bound in it.

    Attributes:
        prompt: the text.
        words: its words.
        tokens: indices of the text tokens of every word.
        bindings: attribute and head of every binding, as word indices.
        acting: which of the bindings act: those whose words are inside the text the model sees.
        constituents: texts of its constituents.
    """

    prompt: str
    words: tuple[str, ...]
    tokens: tuple[tuple[int, ...], ...]
    bindings: tuple[tuple[int, int], ...]
    acting: tuple[int, ...]
    constituents: tuple[str, ...]

    def names(self, number: int) -> tuple[str, str]:
        """Attribute and head of the acting binding `number`."""
        attribute, head = self.bindings[self.acting[number]]
        return self.words[attribute], self.words[head]


@dataclass(frozen=True)
class Kept:
    """One focus mask at work.

    Attributes:
        layer: name of the attention layer.
        grid: height and width of its grid.
        step: of the trajectory; None for a mask that holds for all steps.
        picture: number in the batch.
        attribute: the attribute's word.
        head: its noun.
        fraction: share of positions on which the noun's focus is above tau, mean over attention heads, 0..1.
        unmasked: share of attention heads in which less than `min_keep` remained, so that nothing was masked, 0..1.
    """

    layer: str
    grid: tuple[int, int]
    step: int | None
    picture: int
    attribute: str
    head: str
    fraction: float
    unmasked: float


@dataclass
class BindingReport:
    """What focused cross-attention did, filled while the pipeline runs; it tells of the last call.

    Attributes:
        mode: how focus maps were made.
        tau: their threshold.
        prompts: what was bound.
        left_out: of each prompt, the constituents that DisCLIP has no place for behind the end token.
    """

    mode: str
    tau: float
    prompts: tuple[Bound, ...]
    left_out: tuple[tuple[str, ...], ...] = ()
    _seen: dict[tuple[str, tuple[int, int], int | None], Account] = field(default_factory=dict, repr=False)

    @property
    def kept(self) -> tuple[Kept, ...]:
        """Kept fractions by layer, step, picture and binding. Empty in mode online_strict, which keeps no account."""
        return tuple(self._entries())

    @property
    def unmasked(self) -> int:
        """How often an attribute was left unmasked in some attention head, since less than `min_keep` remained."""
        return sum(entry.unmasked > 0 for entry in self.kept)

    @property
    def bindings(self) -> int:
        """Number of bindings that act; with 0 of them no mask is made."""
        return sum(len(bound.acting) for bound in self.prompts)

    def note(self, layer: str, grid: tuple[int, int], step: int | None, account: Account) -> None:
        """Keep an account; it is asked for only when the report is read, so that a device need not wait."""
        self._seen[layer, grid, step] = account

    def clear(self) -> None:
        """Forget the last call."""
        self._seen.clear()

    def to_json(self) -> dict[str, Any]:
        """Everything as plain JSON values."""
        return {
            "mode": self.mode,
            "tau": self.tau,
            "prompts": [
                asdict(bound) | {"pairs": [bound.names(i) for i in range(len(bound.acting))]} for bound in self.prompts
            ],
            "left_out": self.left_out,
            "unmasked": self.unmasked,
            "kept": [asdict(entry) for entry in self.kept],
        }

    def save(self, path: str | Path) -> Path:
        """Write the JSON file (complete or not at all)."""
        write_json(path, self.to_json())
        return Path(path)

    def __str__(self) -> str:
        """A short account: each prompt, its bindings, and their kept fractions over layers and steps."""
        kept = self.kept
        lines = [f"focused cross-attention, mode {self.mode}, tau {self.tau}"]
        for bound in self.prompts:
            lines.append(f'"{bound.prompt}"')
            pairs = [bound.names(number) for number in range(len(bound.acting))]
            lines += [f"  {attribute} -> {head}{_spread(kept, attribute, head)}" for attribute, head in pairs]
            outside = len(bound.bindings) - len(pairs)
            lines += [f"  {outside} more outside the text that the model sees"] if outside else []
            lines += [] if bound.bindings else ["  nothing to bind"]
        lines += [f'  no place to embed "{phrase}" alone' for phrases in self.left_out for phrase in phrases]
        return "\n".join([*lines, f"left unmasked {self.unmasked} times"])

    def _entries(self) -> Iterator[Kept]:
        for (layer, grid, step), account in self._seen.items():
            fractions, unmasked = account()
            rows = fractions.tolist()
            for picture, (row, lost) in enumerate(zip(rows, unmasked.tolist(), strict=True)):
                bound = self.prompts[picture * len(self.prompts) // len(rows)]
                for number in range(len(bound.acting)):
                    yield Kept(layer, grid, step, picture, *bound.names(number), row[number], lost[number])


def _spread(kept: tuple[Kept, ...], attribute: str, head: str) -> str:
    found = [entry.fraction for entry in kept if (entry.attribute, entry.head) == (attribute, head)]
    if not found:
        return ""
    return f": kept {sum(found) / len(found):.2f} of the picture ({min(found):.2f} to {max(found):.2f})"
