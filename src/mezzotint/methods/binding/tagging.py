"""Words of a prompt and their classes: the first half of the rule parser.

Tags: P punctuation, C conjunction, V verb, I preposition or pronoun, D determiner or number, G possessive ("girl's"),
A adjective, R adverb, N noun. The first class that matches wins; what the lexicon and the endings leave open is settled
by the neighbours.
"""

from __future__ import annotations

import re

from .reading import QUOTES, Reading, contracted
from .verbs import tag_ed, tag_ing, tag_verb
from .words import Word

__all__ = ["tag_words", "tokenise"]

_POINTING = frozenset(["the", "this", "that", "other", "another", "first", "second", "third", "last", "each"])
_TOKEN = re.compile(r"<[^<>\s]+>|[^\W_]+(?:['’-][^\W_]+)*|[^\s\w]|_")


def tokenise(prompt: str) -> tuple[Word, ...]:
    """Words, with apostrophes and hyphens inside, and single punctuation marks; everything but white space.

    A learnt word such as "<S>" is one word: the name of a thing, and so a noun.
    """
    return tuple(Word(found.group(), found.start(), found.end()) for found in _TOKEN.finditer(prompt))


def tag_words(words: tuple[Word, ...]) -> Reading:
    """Tag the words of one prompt."""
    tagged = Reading(words)
    _fix(tagged, tagged.lexicon.prepositional, "I")
    _fix(tagged, tagged.lexicon.adjectival, "A")
    _fix(tagged, tagged.lexicon.compounds, "N")
    for index, text in enumerate(tagged.texts):
        tagged.tags.append(tagged.fixed.get(index) or _tag(tagged, index, text))
    return tagged


def _fix(tagged: Reading, phrases: frozenset[tuple[str, ...]], tag: str) -> None:
    """Tags fixed expressions, the longest first."""
    for size in range(max(map(len, phrases)), 1, -1):
        for start in range(len(tagged.texts) - size + 1):
            if tuple(tagged.texts[start : start + size]) in phrases and start not in tagged.fixed:
                tagged.fixed.update(dict.fromkeys(range(start, start + size), tag))
                tagged.linking[start : start + size] = [tag == "I"] * size


def _tag(tagged: Reading, index: int, text: str) -> str:
    words = tagged.lexicon
    if text == "can" and not _is_modal(tagged, index):
        return "N"
    closed = _closed(tagged, index, text)
    if closed is not None:
        return closed
    if text in {"one", "ones"} and (tagged.tag(index - 1) == "A" or _is_meant(tagged, index)):
        return "N"
    if text in words.determiners or text.isdecimal():
        return "D"
    return _open(tagged, index, text)


def _is_meant(tagged: Reading, index: int) -> bool:
    """Whether "one" stands for a noun: "the one on the left", "the second one is pale"."""
    before, after = tagged.text(index - 1), tagged.text(index + 1)
    return before in _POINTING and bool(after) and not tagged.goes_on(index + 1) and after not in {"of", ","}


def _is_modal(tagged: Reading, index: int) -> bool:
    """Whether "can" is the verb, and not the vessel."""
    words, after = tagged.lexicon, tagged.text(index + 1)
    acts = after in words.strong_base or after in words.weak_base or after in {"be", "have", "not"}
    return acts and tagged.tag(index - 1) not in {"D", "A"}


def _closed(tagged: Reading, index: int, text: str) -> str | None:
    """Tags of the classes to which no word is ever added; None for the others."""
    words = tagged.lexicon
    if text in words.conjunctions:
        tagged.linking[index] = text in {"and", "or", "&"}
        return "C"
    if not text[0].isalnum():
        return "N" if len(text) > 1 else "R" if text in QUOTES else "P"
    if text in words.auxiliaries or contracted(text) or text.endswith(("'re", "'ve", "'ll", "'m")):
        return "V"
    if text.endswith("'s") or (
        text.endswith("s") and tagged.text(index + 1) == "'" and _is_followed(tagged, index + 1)
    ):
        return "G"
    if text in words.prepositions:
        tagged.linking[index] = text not in words.clause_words
        return "I"
    return "I" if text in words.pronouns else None


def _open(tagged: Reading, index: int, text: str) -> str:
    words = tagged.lexicon
    simple = "-" not in text
    if text.endswith("ing") and simple and text not in words.ing_adjectives:
        return tag_ing(tagged, index, text)
    long = len(text) > 4 or (len(text) == 4 and (text in words.painting or words.is_adjective(text)))
    if text.endswith("ed") and simple and long and text not in words.ed_nouns:
        return tag_ed(tagged, index, text)
    if _is_shade(tagged, index, text):
        return "A"
    verb = tag_verb(tagged, index, text)
    if verb is not None:
        return verb
    if _is_adverb(tagged, index, text):
        return "R"
    adjective = words.is_adjective(text) or _is_tint(tagged, index, text) or _is_measure(tagged, index, text)
    adjective = adjective or _is_listed(tagged, index)
    return "A" if adjective else "N"


def _is_adverb(tagged: Reading, index: int, text: str) -> bool:
    words = tagged.lexicon
    if words.is_adjective(text):
        return text in {"pretty", "still"} and tagged.is_be(index - 1) and words.is_adjective(tagged.text(index + 1))
    return text in words.adverbs or (text.endswith("ly") and len(text) > 3 and text not in words.ly_other)


def _is_listed(tagged: Reading, index: int) -> bool:
    """An unknown word in a list of adjectives: "long, gladsome ears"."""
    lists = tagged.text(index - 1) == "," and tagged.tag(index - 2) == "A"
    return lists and tagged.goes_on(index + 1) and tagged.text(index + 1) not in {",", "and", "or"}


def _is_shade(tagged: Reading, index: int, text: str) -> bool:
    """A noun that names a kind of a colour: "is jet black", "a lime green scooter", "is crocodile green"."""
    words = tagged.lexicon
    if not text.isalpha() or tagged.text(index + 1) not in words.basic_colours:
        return False
    if text in words.shade_nouns:
        begins = tagged.tag(index - 1) in {"D", "A", "C", "G", "I", ""}
        stands_before = begins and tagged.goes_on(index + 2) and tagged.text(index + 2) != "as"
        return stands_before or tagged.is_be(index - 1)
    named = not (text in words.adverbs or text.endswith("ly") or words.is_adjective(text))
    return named and tagged.is_be(index - 1)


def _is_tint(tagged: Reading, index: int, text: str) -> bool:
    """A noun that is a colour here: "a salmon shirt", "the dress is peach"."""
    words, after = tagged.lexicon, tagged.text(index + 1)
    if text not in words.noun_colours:
        return False
    if tagged.is_be(index - 1) and not tagged.goes_on(index + 1):
        return True
    nearest = tagged.text(index + 2) if words.is_adjective(after) else after
    return nearest in words.tinted_things


def _is_measure(tagged: Reading, index: int, text: str) -> bool:
    """A hyphenated measure before its noun: "two-story house", "red-brick wall", "eye-catching sign"."""
    first, _, last = text.partition("-")
    if not last or not tagged.goes_on(index + 1):
        return False
    return first in tagged.lexicon.determiners or tagged.lexicon.is_adjective(first) or last.endswith("ing")


def _is_followed(tagged: Reading, index: int) -> bool:
    """Whether the apostrophe of a plural possessive is one, not a closing quotation mark."""
    return tagged.goes_on(index + 1) and "'" not in tagged.texts[:index]
