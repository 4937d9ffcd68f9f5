"""Noun phrases of tagged words: runs of determiners, adjectives and nouns, each with its head."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from .reading import QUOTES, Reading

__all__ = ["Phrase", "noun_phrases"]

_TONES = frozenset(["dark", "light", "pale", "bright", "deep"])
_OWN = frozenset(["its", "his", "her", "their"])


@dataclass(frozen=True)
class Phrase:
    """A noun phrase.

    Attributes:
        start: number of its first word.
        end: the word after its last.
        head: number of its noun.
        attributes: numbers of the adjectives that describe the noun.
        owner: whether it is the possessor of the next ("the girl's" pink dress).
        whole: number of the first word with its possessors.
    """

    start: int
    end: int
    head: int
    attributes: tuple[int, ...]
    owner: bool = False
    whole: int = 0


def noun_phrases(tagged: Reading, taken: set[int]) -> tuple[Phrase, ...]:
    """All noun phrases, from left to right.

    Args:
        tagged: the tagged words.
        taken: words that are predicates ("is red") and belong to no phrase.
    """
    found: list[Phrase] = []
    owned: int | None = None
    index = 0
    while index < len(tagged.tags):
        end = _run_end(tagged, taken, index)
        owner = tagged.tag(end) == "G"
        for start, stop in _parts(tagged, index, end + owner):
            phrase = _phrase(tagged, start, stop, owner=owner and stop == end + 1)
            if phrase is not None:
                whole = start if owned is None else owned
                found.append(Phrase(start, phrase.end, phrase.head, phrase.attributes, phrase.owner, whole))
            owned = None
        owned = (found[-1].whole if found and found[-1].owner else end) if owner else None
        index = max(end + owner, index + 1)
    return tuple(found)


def _run_end(tagged: Reading, taken: set[int], start: int) -> int:
    """End of the run that begins at `start`: determiners, then adjectives, adverbs and nouns."""
    index = start
    while tagged.tag(index) == "D" and index not in taken:
        index += 1
    nouns = False
    while index not in taken:
        tag = tagged.tag(index)
        if tag in {"A", "N"} or (tag == "R" and not nouns):
            nouns = nouns or tag == "N"
            index += 1
            continue
        joined = _after_joint(tagged, taken, index) if index > start and tagged.tag(index - 1) == "A" else index
        if joined == index:
            break
        index = joined
    return index


def _after_joint(tagged: Reading, taken: set[int], index: int) -> int:
    """Where a coordination of adjectives goes on behind its comma or conjunction; `index` if it does not."""
    after = index
    while (tagged.tag(after) == "C" or tagged.text(after) in {",", "/"}) and after - index < 2:
        after += 1
    following = after
    while tagged.tag(following) == "R":
        following += 1
    return after if after > index and tagged.tag(following) == "A" and following not in taken else index


def _parts(tagged: Reading, start: int, end: int) -> Iterator[tuple[int, int]]:
    """A run, cut at its conjunctions where what they join has no noun in common."""
    joints = [k for k in range(start, end) if tagged.tag(k) in {"C", "P"}]
    nouns = [k for k in range(start, end) if tagged.tag(k) in {"N", "G"}]
    if joints and not nouns and not _ends_in_thing(tagged, start, end):
        for stop in (*joints, end):
            yield start, stop
            start = stop + 1
        return
    if joints and nouns and tagged.text(start) in {"a", "an"} and tagged.lexicon.is_plural(tagged.text(nouns[-1])):
        yield start, joints[0]
        start = joints[-1] + 1
    yield start, end


def _ends_in_thing(tagged: Reading, start: int, end: int) -> bool:
    """Whether the last of joined adjectives is the noun of all: "the rough and warm brick", "a red and white glass"."""
    words, last = tagged.lexicon, tagged.text(end - 1)
    return tagged.tag(start) == "D" and last in words.noun_after_noun - words.basic_colours


def _phrase(tagged: Reading, start: int, end: int, *, owner: bool) -> Phrase | None:
    """The phrase of a run; None if nothing in it can be a head."""
    while start < end and tagged.text(start) in QUOTES:
        start += 1
    head = _head(tagged, start, end)
    if head is None:
        return None
    attributes = tuple(k for k in range(start, head) if tagged.tag(k) == "A") + _behind(tagged, start, head, end)
    return Phrase(start, head + 1, head, attributes, owner, start)


def _behind(tagged: Reading, start: int, head: int, end: int) -> tuple[int, ...]:
    """Adjectives that follow their noun: "its paws tiny and white", "the sea dark green", but not "the sky blue of"."""
    behind = tuple(k for k in range(head + 1, end) if tagged.tag(k) == "A")
    words = tagged.lexicon
    toned = len(behind) > 1 and tagged.text(behind[0]) in _TONES and tagged.text(behind[1]) in words.basic_colours
    coloured = toned or (bool(behind) and tagged.text(behind[0]) in words.basic_colours)
    shade = tagged.text(head) in words.shade_nouns and not toned
    owned = tagged.text(start) in _OWN
    return behind if (coloured or owned) and not shade and tagged.tag(start) == "D" else ()


def _head(tagged: Reading, start: int, end: int) -> int | None:
    """The last noun; without one, the last adjective where it may stand for a noun ("an orange", "in white")."""
    nouns = [k for k in range(start, end) if tagged.tag(k) in {"N", "G"}]
    adjectives = [k for k in range(start, end) if tagged.tag(k) == "A"]
    if nouns:
        last = adjectives[-1] if adjectives else -1
        compound = last == nouns[-1] + 1 and tagged.text(last) in tagged.lexicon.noun_after_noun
        return last if compound else nouns[-1]
    if not adjectives:
        return None
    named = tagged.text(adjectives[-1]) in tagged.lexicon.noun_heads
    return adjectives[-1] if named or tagged.tag(start) == "D" else None
