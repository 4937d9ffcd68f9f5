"""The prompt lists of the paper's repository (arXiv 2404.13766), from a folder that the user has.

COCO captions are under CC-BY 4.0; the other lists carry no licence, so none is shipped.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mezzotint.files import FileError, read_bytes, read_json

from .words import Binding, Constituent, Syntax, Word

__all__ = ["LISTS", "BindingPrompt", "load_binding_prompts", "load_released_syntax"]

LISTS = {
    "ae": ("a.e_prompts.txt", None),
    "cc": ("CC-500.txt", 446),
    "daa-og": ("DAA-200_og.txt", None),
    "daa-adv": ("DAA-200_adv.txt", None),
    "coco": ("COCO-10K.txt", None),
}
"""Name of a list -> its file, and how many of its lines the paper uses (None: all)."""
_BYTES = 16 * 2**20


@dataclass(frozen=True)
class BindingPrompt:
    """A prompt of a list.

    Attributes:
        id: number of its line, from 1.
        text: the prompt, without white space around it.
    """

    id: int
    text: str


def load_binding_prompts(root: str | Path, name: str) -> tuple[BindingPrompt, ...]:
    """Read a list of prompts; blank lines are dropped and keep their numbers.

    Line i of `daa-adv` is line i of `daa-og` with its attributes swapped.

    Args:
        root: the folder with the files.
        name: one of `ae`, `cc`, `daa-og`, `daa-adv`, `coco`.

    Raises:
        ValueError: for another name.
        FileError: the file is missing, too large or not UTF-8.
    """
    if name not in LISTS:
        raise ValueError(f"name must be one of {', '.join(LISTS)}; got {name!r}")
    file, used = LISTS[name]
    path = Path(root) / file
    try:
        lines = read_bytes(path, max_bytes=_BYTES).decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise FileError(path, f"is not UTF-8: {error}") from error
    numbered = ((number, line.strip()) for number, line in enumerate(lines[:used], 1))
    return tuple(BindingPrompt(number, text) for number, text in numbered if text)


def load_released_syntax(path: str | Path) -> dict[str, Syntax]:
    """Read `parser_ae.json` and its like: what the paper's parser found for each prompt.

    Its nouns are named by their text only; the first such word of the prompt that is left is taken.

    Raises:
        FileError: the file has another form.
    """
    data = read_json(path, max_bytes=_BYTES)
    if not isinstance(data, dict):
        raise FileError(path, "must be a JSON object of prompts")
    try:
        return {prompt: _released(prompt, *entry) for prompt, entry in data.items()}
    except (TypeError, ValueError, SyntaxError, IndexError) as error:
        raise FileError(path, f"must hold [bindings, constituents, words] for each prompt: {error}") from error


def _released(prompt: str, pairs: str, phrases: list[Any], texts: list[str]) -> Syntax:
    words = _aligned(prompt, texts)
    bindings = tuple(Binding(int(attribute), int(head)) for attribute, head in ast.literal_eval(pairs))
    if any(not 0 <= index < len(words) for each in bindings for index in (each.attribute, each.head)):
        raise IndexError(f"a binding of {prompt!r} names a word that it does not have")
    return Syntax(prompt, words, bindings, tuple(_constituent(prompt, words, text, nouns) for text, nouns in phrases))


def _aligned(prompt: str, texts: list[str]) -> tuple[Word, ...]:
    """Words with their characters; one that the paper's tokeniser rewrote (a quotation mark) gets none."""
    words, place = [], 0
    for text in texts:
        found = prompt.find(text, place)
        start = place if found < 0 else found
        place = start if found < 0 else start + len(text)
        words.append(Word(text, start, place))
    return tuple(words)


def _constituent(prompt: str, words: tuple[Word, ...], text: str, nouns: list[str]) -> Constituent:
    found = prompt.find(text)
    start, end = (0, len(prompt)) if found < 0 else (found, found + len(text))
    heads: list[int] = []
    for noun in nouns:
        left = (k for k, word in enumerate(words) if word.text == noun and word.start >= start and k not in heads)
        heads += [*left][:1]
    return Constituent(text, tuple(heads), start, end)
