"""What a parse of a prompt is: its words, which word describes which, and its phrases (arXiv 2404.13766, section 3).

Everything is told in characters of the prompt, so that no tokenizer has to be known here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

__all__ = ["Binding", "Constituent", "Parser", "Syntax", "Word"]


@dataclass(frozen=True)
class Word:
    """A word or a punctuation mark of a prompt.

    Attributes:
        text: as it stands in the prompt.
        start: its first character.
        end: the character after its last.
    """

    text: str
    start: int
    end: int


@dataclass(frozen=True)
class Binding:
    """An attribute and the noun it describes.

    Attributes:
        attribute: number of the attribute among the words, from 0.
        head: number of the noun.
    """

    attribute: int
    head: int


@dataclass(frozen=True)
class Constituent:
    """A noun phrase, or a larger phrase in which noun phrases are abstracted to their nouns.

    Attributes:
        text: the phrase as it is encoded by itself, such as "a green bench" or "bench and car".
        heads: numbers of its nouns among the words.
        start: first character of the part of the prompt that it covers.
        end: the character after the last.
    """

    text: str
    heads: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True)
class Syntax:
    """A prompt and what is known of its structure.

    Attributes:
        prompt: the text.
        words: its words and punctuation marks, from left to right.
        bindings: who describes whom, in the order of the attributes.
        constituents: noun phrases from left to right, then the larger phrases.
    """

    prompt: str
    words: tuple[Word, ...]
    bindings: tuple[Binding, ...] = ()
    constituents: tuple[Constituent, ...] = ()


@runtime_checkable
class Parser(Protocol):
    """Anything that finds the structure of a prompt."""

    def __call__(self, prompt: str) -> Syntax:
        """Parse one prompt."""
        ...
