"""Phrases to be encoded by themselves (arXiv 2404.13766, DisCLIP): noun phrases, and what the text is above them.

"a green bench and a red car" has "a green bench", "a red car" and, each noun phrase abstracted to its noun, "bench and
car". That is a constituency tree folded from its leaves, as far as rows of noun phrases show it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from .phrases import Phrase
from .words import Constituent, Word

__all__ = ["constituents"]


def constituents(
    prompt: str, words: Sequence[Word], phrases: Sequence[Phrase], linking: Sequence[bool]
) -> tuple[Constituent, ...]:
    """Noun phrases from left to right, then for every row of linked ones their nouns joined by the linking words.

    Args:
        prompt: the text.
        words: its words.
        phrases: its noun phrases, from left to right.
        linking: which words are prepositions or conjunctions.
    """
    alone = (phrase for phrase in phrases if phrase.attributes or not phrase.owner)
    smallest = [_constituent(prompt, words, phrase) for phrase in alone]
    rows = _rows([phrase for phrase in phrases if not phrase.owner], linking)
    return tuple(smallest + [_abstracted(words, row) for row in rows])


def _constituent(prompt: str, words: Sequence[Word], phrase: Phrase) -> Constituent:
    start, end = words[phrase.whole].start, words[phrase.end - 1].end
    return Constituent(prompt[start:end], (phrase.head,), start, end)


def _abstracted(words: Sequence[Word], row: Sequence[Phrase]) -> Constituent:
    kept = [row[0].head]
    for first, second in itertools.pairwise(row):
        kept += [*range(first.end, second.whole), second.head]
    text = " ".join(words[index].text for index in kept)
    heads = tuple(phrase.head for phrase in row)
    return Constituent(text, heads, words[row[0].whole].start, words[row[-1].end - 1].end)


def _rows(phrases: Sequence[Phrase], linking: Sequence[bool]) -> Iterator[list[Phrase]]:
    """Maximal rows of at least two phrases with nothing but linking words between them."""
    row: list[Phrase] = []
    for phrase in phrases:
        between = range(row[-1].end, phrase.whole) if row else range(0)
        if row and not (between and all(linking[index] for index in between)):
            if len(row) > 1:
                yield row
            row = []
        row.append(phrase)
    if len(row) > 1:
        yield row
