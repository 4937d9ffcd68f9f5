"""From words to the tokens of a text encoder, by character offsets (arXiv 2404.13766, the matrix D).

A word owns every token whose characters meet its own, so a rare word split in four is constrained in all four.
Position 0 is the begin token of CLIP.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from .words import Binding, Syntax, Word

__all__ = ["end_index", "focus_matrix", "token_indices", "window"]

Spans = tuple[tuple[int, ...], ...]


def token_indices(tokenizer: Any, syntax: Syntax, *, length: int | None = None) -> Spans:
    """Positions of the tokens of each word, in the sequence that the text encoder is given.

    Words beyond the window own no tokens; a warning names them. A tokenizer that tells no offsets is aligned by
    comparing strings, with a warning.

    Args:
        tokenizer: a tokenizer of transformers.
        syntax: the prompt and its words.
        length: tokens of the window, special ones included; default the tokenizer's own.

    Returns:
        One tuple a word, rising; empty for a word that was dropped.
    """
    if getattr(tokenizer, "is_fast", False):
        found = _by_offsets(tokenizer, syntax)
    else:
        warnings.warn(
            f"{type(tokenizer).__name__} tells no character offsets: words are aligned by comparing strings, which "
            "may miss some; use a fast tokenizer if there is one",
            stacklevel=2,
        )
        found = _by_strings(tokenizer, syntax)
    limit = window(tokenizer, length) - _trailing(tokenizer)
    kept = tuple(tuple(index for index in span if index < limit) for span in found)
    names = [repr(word.text) for word in syntax.words]
    outside = [name for name, span, whole in zip(names, kept, found, strict=True) if span != whole]
    if outside:
        warnings.warn(
            f"beyond the {limit} tokens that the text encoder reads are {', '.join(outside)}: "
            "no attribute can be bound there, shorten the prompt",
            stacklevel=2,
        )
    absent = [name for name, whole in zip(names, found, strict=True) if not whole]
    if absent:
        warnings.warn(f"the tokenizer has no token for {', '.join(absent)}", stacklevel=2)
    return kept


def focus_matrix(
    spans: Sequence[Sequence[int]], bindings: Sequence[Binding], length: int
) -> Bool[Tensor, "length length"]:
    """D of the paper: D[a, h] is true iff token a belongs to an attribute whose noun owns token h.

    Args:
        spans: tokens of each word, as from `token_indices`.
        bindings: pairs of words.
        length: tokens of the text.

    Raises:
        ValueError: a binding names no word, or a token lies outside the text.
    """
    matrix = torch.zeros(length, length, dtype=torch.bool)
    for binding in bindings:
        for index in (binding.attribute, binding.head):
            if not 0 <= index < len(spans):
                raise ValueError(f"a binding names word {index}; the prompt has words 0..{len(spans) - 1}")
        rows, columns = list(spans[binding.attribute]), list(spans[binding.head])
        if any(not 0 <= token < length for token in rows + columns):
            raise ValueError(f"tokens {rows + columns} of a binding must lie in 0..{length - 1}")
        matrix[torch.tensor(rows, dtype=torch.long)[:, None], torch.tensor(columns, dtype=torch.long)[None]] = True
    return matrix


def end_index(tokenizer: Any, text: str, *, length: int | None = None) -> int:
    """Position of the first end token of a text, which is the last of the window for a text that is cut."""
    count = len(_ids(tokenizer, text))
    return min(count, window(tokenizer, length)) - _trailing(tokenizer)


def window(tokenizer: Any, length: int | None = None) -> int:
    """Tokens of a text, special ones included.

    Raises:
        ValueError: neither the tokenizer nor the caller says how many.
    """
    size = int(tokenizer.model_max_length) if length is None else length
    if not 2 <= size < 1_000_000:
        raise ValueError(f"length must say how many tokens the text encoder takes; the tokenizer says {size}")
    return size


def _by_offsets(tokenizer: Any, syntax: Syntax) -> Spans:
    offsets = tokenizer(syntax.prompt, return_offsets_mapping=True, truncation=False, verbose=False)["offset_mapping"]
    return tuple(
        tuple(index for index, (start, end) in enumerate(offsets) if start < word.end and end > word.start)
        for word in syntax.words
    )


def _by_strings(tokenizer: Any, syntax: Syntax) -> Spans:
    """Walks along the tokens of the prompt, looking for those of one word after the other."""
    pieces = tokenizer.convert_ids_to_tokens(_ids(tokenizer, syntax.prompt))
    spans, place = [], 0
    for word in syntax.words:
        wanted = _pieces(tokenizer, word)
        found = _find(pieces, wanted, place) if wanted else None
        spans.append(() if found is None else tuple(range(found, found + len(wanted))))
        place = place if found is None else found + len(wanted)
    return tuple(spans)


def _pieces(tokenizer: Any, word: Word) -> list[str]:
    return list(tokenizer.tokenize(word.text))


def _find(pieces: Sequence[str], wanted: Sequence[str], start: int) -> int | None:
    places = range(start, len(pieces) - len(wanted) + 1)
    return next((place for place in places if list(pieces[place : place + len(wanted)]) == list(wanted)), None)


def _ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, truncation=False, verbose=False)["input_ids"])


def _trailing(tokenizer: Any) -> int:
    """Special tokens at the end of every text."""
    special, count = set(tokenizer.all_special_ids), 0
    for token in reversed(_ids(tokenizer, "a")):
        if token not in special:
            break
        count += 1
    return count
