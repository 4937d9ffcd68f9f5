"""Region prompts: what each box is told, made from the base prompt where the user says nothing.

The template is ours (the paper's users write them): what stands before the first concept's phrase and after the last
one's is shared, what stands between is left out.

    a photo of a <S> dog and a fluffy <V> cat on the beach
    -> <S>: a photo of a <S> dog on the beach        <V>: a photo of a fluffy <V> cat on the beach

A concept's phrase is the placeholder with the class noun behind it, and the words before it back to an article. Where
another word than the class noun stands behind it ("<S> cubes", "<V> toy ball"), the phrase goes on to the next border.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

__all__ = ["phrases", "region_prompts"]

_DETERMINERS = {
    "a", "an", "the", "one", "this", "that", "some", "another", "each", "every", "my", "your", "his", "her", "its",
    "our", "their", "two", "three", "four", "five",
}  # fmt: skip
_BORDERS = {
    "and", "or", "with", "without", "in", "on", "at", "of", "to", "by", "from", "under", "over", "above", "below",
    "behind", "beside", "between", "near", "next", "left", "right", "inside", "outside", "against", "holding",
    "wearing", "is", "are",
}  # fmt: skip


def phrases(prompt: str, nouns: Mapping[str, str]) -> dict[str, tuple[int, int]]:
    """Where each concept's phrase stands in a prompt: placeholder -> first character and one past the last.

    Args:
        prompt: the base prompt.
        nouns: placeholder -> class noun.

    Raises:
        ValueError: a placeholder is absent, or named more than once.
    """
    named = {placeholder: _named(prompt, placeholder, noun) for placeholder, noun in nouns.items()}
    found = {}
    for placeholder, (place, stop) in named.items():
        others = [end for _, end in named.values() if end <= place]
        found[placeholder] = (max(_start(prompt, place), *others, 0), stop)
    return found


def _named(prompt: str, placeholder: str, noun: str) -> tuple[int, int]:
    """Where a placeholder and the noun behind it, if it is there, begin and end."""
    places = [match.start() for match in re.finditer(re.escape(placeholder), prompt)]
    if len(places) != 1:
        raise ValueError(
            f"the prompt {prompt!r} names {placeholder!r} {len(places)} times; it must do so once, or region_prompts "
            "must say what each box shows"
        )
    stop = places[0] + len(placeholder)
    behind = re.match(rf"\s+{re.escape(noun)}\b", prompt[stop:], re.IGNORECASE)
    return places[0], stop + behind.end() if behind else _end(prompt, stop)


def _end(prompt: str, place: int) -> int:
    """Where a phrase ends whose noun is another word, "<V> toy ball": before the first word that cannot be in it."""
    stop = place
    for match in re.finditer(r"[^\s,;:.]+|[,;:.]", prompt[place:]):
        word = match.group().lower()
        if word in _BORDERS or word in _DETERMINERS or not word[0].isalnum():
            break
        stop = place + match.end()
    return stop


def _start(prompt: str, place: int) -> int:
    """Where the phrase around a placeholder begins: at its article, else behind the last word that cannot be in it."""
    start = place
    for match in reversed(list(re.finditer(r"[^\s,;:.]+|[,;:.]", prompt[:place]))):
        word = match.group().lower()
        if word in _BORDERS or word in ",;:.":
            break
        start = match.start()
        if word in _DETERMINERS:
            break
    return start


def region_prompts(prompt: str, nouns: Mapping[str, str]) -> list[str]:
    """One prompt for each concept: its phrase in the context that all concepts share.

    Args:
        prompt: the base prompt, which names every placeholder once.
        nouns: placeholder -> class noun, in any order; the result has the same.

    Raises:
        ValueError: a placeholder is absent, or named more than once.
    """
    if not nouns:
        return []
    spans = phrases(prompt, nouns)
    head, tail = min(start for start, _ in spans.values()), max(stop for _, stop in spans.values())
    return [_tidy(prompt[:head] + prompt[slice(*spans[each])] + prompt[tail:]) for each in nouns]


def _tidy(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()
