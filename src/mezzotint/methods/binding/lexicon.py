"""The words that the rule parser knows (`lexicon.json`), and the little morphology that stretches them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from mezzotint.files import read_json

__all__ = ["Lexicon", "lexicon"]

Words = frozenset[str]
Phrases = frozenset[tuple[str, ...]]

_SUFFIXES = (
    *("ous", "ful", "less", "ish", "ive", "able", "ible", "ical", "esque", "istic"),
    *("shaped", "sized", "colored", "coloured"),
)
_LAST_PARTS = frozenset(["style", "like", "free", "size", "looking", "old", "proof", "tone", "toned", "friendly"])


@dataclass(frozen=True)
class Lexicon:
    """Classes of words, lower-case.

    Attributes:
        determiners: articles, possessives, quantifiers and numbers.
        pronouns: words that stand for a noun phrase, relative ones included.
        relatives: pronouns that open a relative clause.
        prepositions: prepositions and particles.
        clause_words: those of them that open a clause and so end a phrase.
        conjunctions: words that join equals.
        be: forms of "to be".
        copulas: forms of other verbs that take an adjective, such as "look".
        auxiliaries: forms of auxiliary verbs, "be" included.
        painting: participles that take the colour which results, as in "painted blue".
        adverbs: adverbs without -ly.
        ly_other: words in -ly that are nouns.
        adjectives: adjectives, colours and materials.
        substances: the colours and materials among them.
        ing_adjectives: words in -ing that are adjectives wherever they stand.
        basic_colours: colours which may follow their noun ("his shirt red").
        shade_nouns: nouns that make a shade with the colour behind them ("sky blue").
        colour_words: words for colour itself.
        noun_colours: nouns which are colours before a thing that has one ("a rose dress").
        tinted_things: such things.
        noun_heads: adjectives which may stand for a noun without an article ("in white").
        noun_after_noun: adjectives which after a noun are its compound ("traffic light").
        animate: nouns of people and animals.
        strong: verbs, 3rd person, which are rarely nouns.
        weak: verbs, 3rd person, which are as often nouns.
        strong_base: the former in their base form.
        weak_base: the latter.
        irregular: irregular pasts and participles.
        transitive_ing: participles that describe no noun after them.
        ing_nouns: nouns in -ing.
        ed_nouns: nouns in -ed.
        ed_after_noun: participles that form an adjective with the noun before ("snow covered").
        suffix_nouns: nouns with the ending of an adjective.
        plurals: irregular plurals.
        singulars: words in -s that are no plurals.
        flowing: nouns without an article that act ("smoke rises").
        foreign: frequent words of other languages.
        compounds: fixed names whose first word only looks like an adjective.
        prepositional: prepositions of several words.
        adjectival: adjectives of several words.
    """

    determiners: Words
    pronouns: Words
    relatives: Words
    prepositions: Words
    clause_words: Words
    conjunctions: Words
    be: Words
    copulas: Words
    auxiliaries: Words
    painting: Words
    adverbs: Words
    ly_other: Words
    adjectives: Words
    substances: Words
    ing_adjectives: Words
    basic_colours: Words
    shade_nouns: Words
    colour_words: Words
    noun_colours: Words
    tinted_things: Words
    noun_heads: Words
    noun_after_noun: Words
    animate: Words
    strong: Words
    weak: Words
    strong_base: Words
    weak_base: Words
    irregular: Words
    transitive_ing: Words
    ing_nouns: Words
    ed_nouns: Words
    ed_after_noun: Words
    suffix_nouns: Words
    plurals: Words
    singulars: Words
    flowing: Words
    foreign: Words
    compounds: Phrases
    prepositional: Phrases
    adjectival: Phrases

    def is_adjective(self, word: str) -> bool:
        """Whether a word is one wherever it stands: listed, compared, or by its ending."""
        if word in self.adjectives:
            return True
        if word in self.suffix_nouns:
            return False
        by_ending = len(word) > 5 and word.endswith(_SUFFIXES)
        return by_ending or self._is_compared(word) or ("-" in word and self._is_hyphenated(word))

    def is_plural(self, word: str) -> bool:
        """Whether a noun is a plural."""
        ending = word.endswith("s") and not word.endswith(("ss", "us", "is"))
        return word in self.plurals or (len(word) > 3 and ending and word not in self.singulars)

    def is_known(self, word: str) -> bool:
        """Whether a word is one that only English has, as far as this lexicon goes."""
        classes = (self.determiners, self.prepositions, self.conjunctions, self.auxiliaries, self.pronouns)
        if any(word in each for each in classes):
            return True
        return self.is_adjective(word) or word in self.animate or word in self.tinted_things or word in self.strong

    def _is_compared(self, word: str) -> bool:
        ending = next((each for each in ("est", "er") if word.endswith(each) and len(word) > len(each) + 2), None)
        if ending is None:
            return False
        stem = word[: -len(ending)]
        stems = {stem, f"{stem}e", re.sub(r"i$", "y", stem), re.sub(r"(.)\1$", r"\1", stem)}
        return any(each in self.adjectives for each in stems)

    def _is_hyphenated(self, word: str) -> bool:
        last = word.rsplit("-", 1)[1]
        return (len(last) > 3 and last.endswith("ed")) or last in _LAST_PARTS or last in self.adjectives


@lru_cache(maxsize=1)
def lexicon() -> Lexicon:
    """The built-in lexicon."""
    data: dict[str, Any] = read_json(Path(__file__).with_name("lexicon.json"))
    verbs = data["verbs"]
    listed = {kind: _words(rows) for kind, rows in data["adjectives"].items()}
    weak = _words(verbs["weak"])
    strong = _words(verbs["strong"]) - weak
    given = {name: _words(data[name]) for name in Lexicon.__dataclass_fields__ if name in data and name not in _OTHERS}
    return Lexicon(
        **given,
        adjectives=frozenset().union(*(words for kind, words in listed.items() if kind != "noun_colours")),
        substances=listed["colours"] | listed["noun_colours"] | listed["materials"],
        ing_adjectives=frozenset(
            word for kind in ("colours", "qualities") for word in listed[kind] if word[-3:] == "ing"
        ),
        noun_colours=listed["noun_colours"],
        strong=frozenset(map(_third_person, strong)),
        weak=frozenset(map(_third_person, weak)),
        strong_base=strong,
        weak_base=weak,
        irregular=_words(verbs["irregular"]),
        transitive_ing=_words(verbs["transitive_ing"]),
        compounds=_phrases(data["compounds"]),
        prepositional=_phrases(data["multiword_prepositions"]),
        adjectival=_phrases(data["multiword_adjectives"]),
    )


_OTHERS = ("adjectives", "compounds")


def _words(rows: list[str]) -> Words:
    return frozenset(word for row in rows for word in row.split())


def _phrases(rows: list[str]) -> Phrases:
    return frozenset(tuple(phrase.split()) for row in rows for phrase in row.split(";"))


def _third_person(verb: str) -> str:
    if verb.endswith("y") and verb[-2] not in "aeiou":
        return f"{verb[:-1]}ies"
    return f"{verb}es" if verb.endswith(("s", "x", "z", "ch", "sh", "o")) else f"{verb}s"
