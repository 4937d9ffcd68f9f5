"""A learnt concept: one embedding for each text encoder and a LoRA of keys and values (arXiv 2404.14239, section 3.2).

It is what learning gives and what regional inference takes, and it is small: for the shapes of Stable Diffusion 1.5 at
rank 16 under 7 MB. Importing this module does not import torch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["Concept"]


@dataclass(frozen=True, eq=False)
class Concept:
    """One concept of the user's, learnt for one base model.

    Attributes:
        placeholder: the word that stands for it in prompts, such as "<S>"; it precedes the class noun.
        class_word: the class noun, such as "cube".
        embeddings: a tensor [width] for each text encoder of the base, in its order: what the placeholder's token
            looks up, before position embeddings are added.
        lora: name of a layer in the backbone ("down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k") ->
            (A [rank, in], B [out, rank]); the layer gives W x + B A x, the scale is 1.
        rank: of the LoRA.
        base: fingerprint of the architecture it was learnt for; see `base.fingerprint`.
        facts: how it was learnt; strings, numbers and None.
    """

    placeholder: str
    class_word: str
    embeddings: tuple[Any, ...]
    lora: Mapping[str, tuple[Any, Any]]
    rank: int
    base: str
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse what no prompt could spell and no layer could take."""
        if not self.placeholder or any(letter.isspace() for letter in self.placeholder):
            raise ValueError(f"placeholder must be one word without spaces, such as '<S>', got {self.placeholder!r}")
        if not self.class_word.strip():
            raise ValueError("class_word must name the kind of thing, such as 'cube', got an empty text")
        if not self.embeddings or any(vector.ndim != 1 for vector in self.embeddings):
            raise ValueError("a concept needs one embedding [width] for each text encoder")
        for name, (A, B) in self.lora.items():
            if A.ndim != 2 or B.ndim != 2 or len(A) != self.rank or B.shape[1] != self.rank:
                shapes = f"{tuple(A.shape)} and {tuple(B.shape)}"
                raise ValueError(f"A and B of {name} must be [{self.rank}, in] and [out, {self.rank}], got {shapes}")

    @property
    def phrase(self) -> str:
        """How prompts mention it: the placeholder followed by the class noun."""
        return f"{self.placeholder} {self.class_word}"

    @property
    def numbers(self) -> int:
        """How many numbers it consists of."""
        lora = sum(A.numel() + B.numel() for A, B in self.lora.values())
        return int(lora + sum(vector.numel() for vector in self.embeddings))

    def renamed(self, placeholder: str) -> Concept:
        """The same concept under another placeholder.

        Args:
            placeholder: the new one.
        """
        return dataclasses.replace(self, placeholder=placeholder)

    def to(self, device: Any = None, dtype: Any = None) -> Concept:
        """The same concept with its tensors on another device or of another floating dtype."""
        moved = {name: (A.to(device, dtype), B.to(device, dtype)) for name, (A, B) in self.lora.items()}
        embeddings = tuple(vector.to(device, dtype) for vector in self.embeddings)
        return dataclasses.replace(self, embeddings=embeddings, lora=moved)

    def check(self, pipe: Any) -> None:
        """See that the concept fits a pipeline.

        Args:
            pipe: a diffusers pipeline.

        Raises:
            ValueError: it was learnt for another base: other text encoders, layers or shapes.
        """
        from .base import check

        check(self, pipe)

    def save(self, path: str | Path, *, half: bool = False, replace: bool = False) -> Path:
        """Write config.json, model.safetensors and a card as one folder that is complete or absent.

        Args:
            path: folder to write.
            half: store float16 instead of float32.
            replace: whether a folder that stands there may be replaced.

        Raises:
            FileExistsError: there is something already.
        """
        from .folder import write

        return write(self, Path(path), half=half, replace=replace)

    @classmethod
    def load(cls, path: str | Path) -> Concept:
        """Read a folder that `save` wrote; the tensors are float32 on the CPU.

        Args:
            path: the folder.

        Raises:
            FileError: it is no sound concept.
        """
        from .folder import read

        return read(Path(path))

    def to_json(self) -> dict[str, Any]:
        """Everything but the tensors, as plain values."""
        return {
            "placeholder": self.placeholder,
            "class_word": self.class_word,
            "rank": self.rank,
            "layers": len(self.lora),
            "numbers": self.numbers,
            "base": self.base,
            "facts": dict(self.facts),
        }
