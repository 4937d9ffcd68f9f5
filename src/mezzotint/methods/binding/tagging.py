"""Words of a prompt and their classes: the first half of the rule parser.

Tags: P punctuation, C conjunction, V verb, I preposition or pronoun, D determiner or number, G possessive ("girl's"),
A adjective, R adverb, N noun. What the lexicon and the endings leave open is settled by the neighbours: a determiner
before, an object after, the number of the subject.
"""

from __future__ import annotations

import re

from .lexicon import Lexicon, lexicon
from .words import Word

__all__ = ["QUOTES", "Tagger", "tokenise"]

_TOKEN = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*|[^\s\w]|_")
_CONTRACTED = frozenset(["that", "who", "which", "it", "he", "she", "there", "here", "what", "where"])
_SINGULAR = frozenset(["a", "an", "one", "this", "each", "every", "another", "that"])
_STANDING_ALONE = frozenset(
    [
        "one",
        "two",
        "three",
        "another",
        "each",
        "other",
        "others",
        "both",
        "some",
        "many",
        "several",
        "either",
        "neither",
    ]
)
QUOTES = frozenset('"“”„«»')
_BEFORE_GERUND = frozenset(["by", "after", "before", "for", "while", "without", "about", "when", "until", "since"])


def tokenise(prompt: str) -> tuple[Word, ...]:
    """Words, with apostrophes and hyphens inside, and single punctuation marks; everything but white space."""
    return tuple(Word(found.group(), found.start(), found.end()) for found in _TOKEN.finditer(prompt))


def contracted(word: str) -> str | None:
    """The pronoun of "that's", "who's"..."""
    pronoun, _, rest = word.partition("'")
    return pronoun if rest == "s" and pronoun in _CONTRACTED else None


class Tagger:
    """Tags the words of one prompt from left to right.

    Args:
        words: what `tokenise` gave.

    Attributes:
        texts: the words, lower-case, with plain apostrophes.
        tags: their tags.
        linking: whether a word is a preposition, a part of one, or joins equals.
    """

    def __init__(self, words: tuple[Word, ...]) -> None:
        self.lexicon: Lexicon = lexicon()
        self.texts = [word.text.lower().replace("’", "'") for word in words]
        self.linking = [False] * len(words)
        self.tags: list[str] = []
        self._fixed: dict[int, str] = {}
        self._fix(self.lexicon.prepositional, "I")
        self._fix(self.lexicon.adjectival, "A")
        self._fix(self.lexicon.compounds, "N")
        for index, text in enumerate(self.texts):
            self.tags.append(self._fixed.get(index) or self._tag(index, text))

    def text(self, index: int) -> str:
        """The word at a place, empty outside the prompt."""
        return self.texts[index] if 0 <= index < len(self.texts) else ""

    def tag(self, index: int) -> str:
        """The tag at a place, empty outside the prompt."""
        return self.tags[index] if 0 <= index < len(self.tags) else ""

    def is_pronoun(self, index: int) -> bool:
        """Whether a word stands for a noun phrase."""
        return self.text(index) in self.lexicon.pronouns or contracted(self.text(index)) is not None

    def is_be(self, index: int) -> bool:
        """Whether a word is a form of "to be", contracted ones included."""
        return self.tag(index) == "V" and (
            self.text(index) in self.lexicon.be or contracted(self.text(index)) is not None
        )

    def is_finite(self, index: int) -> bool:
        """Whether a verb makes a clause of its own, rather than describe the noun before it."""
        text, after = self.text(index), index + 1
        if self.tag(index) != "V" or text.endswith("ing") or text in {"be", "been"}:
            return False
        if text in self.lexicon.irregular:
            return self.text(after) not in {"by", "of", "from"}
        return not text.endswith("ed") or self._starts_object(after)

    def phrase_start(self, index: int) -> int:
        """Where the run of words that ends before `index` begins: its determiner, if it has one."""
        start = index
        while start and self.tags[start - 1] in {"A", "N", "R"}:
            start -= 1
        while start and self.tags[start - 1] == "D":
            start -= 1
        return start

    def _fix(self, phrases: frozenset[tuple[str, ...]], tag: str) -> None:
        """Tags fixed expressions, the longest first."""
        for size in range(max(map(len, phrases)), 1, -1):
            for start in range(len(self.texts) - size + 1):
                if tuple(self.texts[start : start + size]) in phrases and start not in self._fixed:
                    self._fixed.update(dict.fromkeys(range(start, start + size), tag))
                    self.linking[start : start + size] = [tag == "I"] * size

    def _tag(self, index: int, text: str) -> str:
        words = self.lexicon
        if text == "can" and not self._is_modal(index):
            return "N"
        closed = self._closed(index, text)
        if closed is not None:
            return closed
        if text in {"one", "ones"} and self.tag(index - 1) == "A":
            return "N"
        if text in words.determiners or text.isdecimal():
            return "D"
        return self._open(index, text)

    def _is_modal(self, index: int) -> bool:
        """Whether "can" is the verb, and not the vessel."""
        words, after = self.lexicon, self.text(index + 1)
        acts = after in words.strong_base or after in words.weak_base or after in {"be", "have", "not"}
        return acts and self.tag(index - 1) not in {"D", "A"}

    def _closed(self, index: int, text: str) -> str | None:
        """Tags of the classes to which no word is ever added; None for the others."""
        words = self.lexicon
        if text in words.conjunctions:
            self.linking[index] = text in {"and", "or", "&"}
            return "C"
        if not text[0].isalnum():
            return "R" if text in QUOTES else "P"
        if text in words.auxiliaries or contracted(text):
            return "V"
        if text.endswith("'s") or (text.endswith("s") and self.text(index + 1) == "'" and self._is_followed(index + 1)):
            return "G"
        if text in words.prepositions:
            self.linking[index] = text not in words.clause_words
            return "I"
        return "I" if text in words.pronouns else None

    def _open(self, index: int, text: str) -> str:
        words = self.lexicon
        simple = "-" not in text
        if text.endswith("ing") and simple and text not in words.ing_adjectives:
            return self._ing(index, text)
        if text.endswith("ed") and simple and len(text) > 4 and text not in words.ed_nouns:
            return self._ed(index, text)
        verb = self._verb(index, text)
        if verb is not None:
            return verb
        if self._is_adverb(index, text):
            return "R"
        adjective = words.is_adjective(text) or self._is_tint(index, text) or self._is_measure(index, text)
        return "A" if adjective else "N"

    def _is_adverb(self, index: int, text: str) -> bool:
        words = self.lexicon
        if words.is_adjective(text):
            return text == "pretty" and self.is_be(index - 1) and words.is_adjective(self.text(index + 1))
        return text in words.adverbs or (text.endswith("ly") and len(text) > 3 and text not in words.ly_other)

    def _ing(self, index: int, text: str) -> str:
        """Participle, adjective or noun in -ing."""
        words, before = self.lexicon, self._before(index)
        if len(text) <= 5 and text not in words.transitive_ing and text not in {"lying", "dying", "tying"}:
            return "N"
        if text in words.ing_nouns:
            return "V" if self._is_gerund_at_work(index, text, before) else "N"
        if self._is_determined(index + 1) or (text in words.transitive_ing and before not in {"D", "G"}):
            return "V"
        if self._goes_on(index + 1):
            return "A" if before in {"D", "G"} or self._may_describe(index, text, before) else "V"
        return "N" if self._may_be_named(index, before) else "V"

    def _is_gerund_at_work(self, index: int, text: str, before: str) -> bool:
        """Whether a word that is a noun elsewhere acts here: "a man painting a fence"."""
        if before == "":
            return self._is_determined(index + 1)
        sport = text.endswith(("skiing", "surfing", "boarding"))
        return before == "V" or (before == "N" and (sport or self._starts_object(index + 1)))

    def _may_be_named(self, index: int, before: str) -> bool:
        """Whether a word in -ing at the end of a phrase is its noun: "a large gathering"."""
        previous = self.text(index - 1)
        if before in {"D", "G"}:
            return previous not in _STANDING_ALONE
        modified = self.tag(self.phrase_start(index)) == "D" or previous not in self.lexicon.noun_heads
        return before == "A" and modified

    def _may_describe(self, index: int, text: str, before: str) -> bool:
        """Whether a participle with a noun after it and no article before it describes that noun."""
        listed = text in self.lexicon.adjectives
        if before == "":
            return listed and not self.lexicon.is_plural(self.text(index + 1))
        if before == "A":
            return listed or self.tag(self.phrase_start(index)) == "D"
        if before in {"C", "P"}:
            return self.tag(index - 2) == "A" or (listed and "V" not in self.tags[:index])
        if before == "I":
            return self.text(index - 1) not in _BEFORE_GERUND and not self.is_pronoun(index - 1)
        return before == "V" and self.text(index - 1) not in self.lexicon.auxiliaries

    def _ed(self, index: int, text: str) -> str:
        """Participle, past or adjective in -ed."""
        words, before, after = self.lexicon, self._before(index), self.text(index + 1)
        goes_on, listed = self._goes_on(index + 1), words.is_adjective(text)
        if text in words.painting and words.is_adjective(after) and before in {"N", "V"}:
            return "V"
        if before == "N":
            joined = text in words.ed_after_noun and not words.is_plural(self.text(index - 1))
            return "A" if goes_on and joined else "V"
        if before == "V" and self.text(index - 1) in words.be:
            return "A" if listed and after not in words.prepositions else "V"
        closing = before in {"C", "P"} and listed and self.tag(index - 2) == "A"
        return "A" if closing or (goes_on and self._may_be_participle(index, before, listed=listed)) else "V"

    def _may_be_participle(self, index: int, before: str, *, listed: bool) -> bool:
        """Whether a word in -ed may describe the noun after it, as far as what stands before goes."""
        if before == "A":
            return listed or self.tag(self.phrase_start(index)) == "D"
        if before == "I":
            return self.text(index - 1) not in _BEFORE_GERUND and not self.is_pronoun(index - 1)
        return True

    def _verb(self, index: int, text: str) -> str | None:
        """V for a finite verb, A for an irregular participle before its noun, N for a noun that could be a verb."""
        words = self.lexicon
        before = self._before(index)
        if text in words.copulas and before == "N" and self._leads_to_adjective(index + 1):
            return "V"
        if text in words.irregular:
            return self._irregular(index, text, before)
        if text in words.strong or text in words.weak:
            return "V" if self._is_third_person(index, text, before) else "N"
        if (text in words.strong_base or text in words.weak_base) and self._is_base_form(index, text, before):
            return "V"
        return None

    def _irregular(self, index: int, text: str, before: str) -> str | None:
        listed = self.lexicon.is_adjective(text)
        if before in {"D", "G", "A", "R"} or listed:
            acts = before == "N" and self._is_determined(index + 1)
            return "V" if acts else "A" if listed or self._goes_on(index + 1) else "N"
        participle = text.endswith(("en", "wn", "rn")) and before != "N" and self._goes_on(index + 1)
        return "A" if participle and not (before == "V" and self.text(index - 1) in self.lexicon.auxiliaries) else "V"

    def _is_third_person(self, index: int, text: str, before: str) -> bool:
        strong = text in self.lexicon.strong
        if self.is_pronoun(index - 1):
            return True
        if before in {"D", "G"}:
            return strong and self.text(index - 1) in _STANDING_ALONE
        if before == "A":
            return self._after_adjective(index, strong=strong)
        if before in {"N", "R"}:
            return strong or self._has_singular_subject(index)
        if before in {"C", "P"}:
            chained = "V" in self.tags and (self.tag(index - 2) == "V" or self._starts_object(index + 1))
            return strong or chained
        return before == "" and strong

    def _after_adjective(self, index: int, *, strong: bool) -> bool:
        """A verb after an adjective that is a predicate ("is red") or stands for a noun ("an orange")."""
        start = self.phrase_start(index)
        if self._ends_predicate(start):
            return True
        determined = self.tag(start) == "D" or self.text(start - 1) in {"in", "of"}
        noun = determined and self.text(index - 1) in self.lexicon.noun_heads
        return noun and (strong or self.text(start) in _SINGULAR)

    def _ends_predicate(self, start: int) -> bool:
        """Whether the adjectives at `start` are, or go on, a predicate: "is red and shiny", "painted blue"."""
        while self.tag(start - 1) in {"C", "P"} and self.tag(start - 2) == "A":
            start = self.phrase_start(start - 1)
        text = self.text(start - 1)
        resulting = text in self.lexicon.painting or text in self.lexicon.copulas
        return self.is_be(start - 1) or (self.tag(start - 1) == "V" and resulting)

    def _has_singular_subject(self, index: int) -> bool:
        """Whether the words before can be the subject of a verb that may as well be the plural of a noun."""
        last = index - 1
        while self.tag(last) == "R":
            last -= 1
        noun, determiner = self.text(last), self.text(self.phrase_start(last + 1))
        after = self.text(index + 1)
        open_end = after in self.lexicon.prepositions or not self._goes_on(index + 1)
        if self.tag(last) != "N":
            return False
        if determiner in _SINGULAR or self._is_determined(index + 1) or after in {"is", "was"}:
            return True
        if self.lexicon.is_plural(noun):
            # The subject stands farther off ("a bird with black wings lands"): a plural is seldom part of a compound.
            return open_end
        return noun in self.lexicon.animate and (open_end or self.lexicon.is_adjective(after))

    def _is_base_form(self, index: int, text: str, before: str) -> bool:
        words, previous = self.lexicon, self.text(index - 1)
        strong = text in words.strong_base
        if previous == "to" and index - 1 not in self._fixed:
            return strong or not self._goes_on(index + 1)
        if self.is_pronoun(index - 1):
            return previous not in {"it", "he", "she"}
        if before == "A":
            return self._is_said_of_plural(index)
        if before in {"N", "R"}:
            return self._has_plural_subject(index, strong=strong)
        if before == "V":
            return previous in words.auxiliaries and previous not in words.be
        return self.tag(index - 2) == "V" if before in {"C", "P"} else before == "" and self._is_determined(index + 1)

    def _is_said_of_plural(self, index: int) -> bool:
        """A base form after adjectives: "cats that are black play", "people in black stand around"."""
        start = self.phrase_start(index)
        dressed = self.tag(start) != "D" and self.text(start - 1) == "in"
        plural = dressed and self.lexicon.is_plural(self.text(start - 2))
        return self._ends_predicate(start) or (plural and not self._goes_on(index + 1))

    def _has_plural_subject(self, index: int, *, strong: bool) -> bool:
        last = index - 1
        while self.tag(last) == "R":
            last -= 1
        noun = self.text(last)
        several = self.lexicon.is_plural(noun) or self.tag(self.phrase_start(last + 1) - 1) == "C"
        if self.tag(last) != "N" or not several:
            return False
        if strong or self._is_determined(index + 1):
            return True
        if self.lexicon.is_plural(noun) and self.text(index + 1) in self.lexicon.prepositions:
            return True
        return noun in self.lexicon.animate and not self.lexicon.is_plural(self.text(index + 1))

    def _is_tint(self, index: int, text: str) -> bool:
        """A noun that is a colour here: "a salmon shirt", "the dress is peach"."""
        words, after = self.lexicon, self.text(index + 1)
        if text not in words.noun_colours:
            return False
        if self.is_be(index - 1) and not self._goes_on(index + 1):
            return True
        nearest = self.text(index + 2) if words.is_adjective(after) else after
        return nearest in words.tinted_things

    def _is_measure(self, index: int, text: str) -> bool:
        """A hyphenated measure before its noun: "two-story house", "red-brick wall", "eye-catching sign"."""
        first, _, last = text.partition("-")
        if not last or not self._goes_on(index + 1):
            return False
        return first in self.lexicon.determiners or self.lexicon.is_adjective(first) or last.endswith("ing")

    def _before(self, index: int) -> str:
        """The tag before; an adverb is looked through to the determiner before it."""
        if self.tag(index - 1) == "R" and self.tag(index - 2) in {"D", "A", "V", "I"}:
            return self.tag(index - 2)
        return self.tag(index - 1)

    def _goes_on(self, index: int) -> bool:
        """Whether a noun phrase can go on at a word that is not tagged yet."""
        text, words = self.text(index), self.lexicon
        if not text or index in self._fixed:
            return self._fixed.get(index, "I") != "I"
        if text in words.conjunctions or text == ",":
            after = self.text(index + 1)
            similar = words.is_adjective(after) or (after.endswith(("ed", "ing")) and len(after) > 5)
            return similar and self._goes_on(index + 2)
        if text in {"one", "ones"}:
            return True
        if text in QUOTES:
            return self._goes_on(index + 1)
        closed = text in words.determiners or text in words.prepositions or text in words.pronouns
        return not (closed or text in words.auxiliaries or text in words.strong or not text[0].isalnum())

    def _is_determined(self, index: int) -> bool:
        """Whether a noun phrase with an article, or a pronoun, begins here."""
        text = self.text(index)
        return bool(text) and (text in self.lexicon.determiners or text in {"it", "him", "them", "himself", "herself"})

    def _starts_object(self, index: int) -> bool:
        return self._is_determined(index) or self._goes_on(index)

    def _leads_to_adjective(self, index: int) -> bool:
        while self.text(index) in self.lexicon.adverbs or self.text(index).endswith("ly"):
            index += 1
        return self.lexicon.is_adjective(self.text(index)) and not self._goes_on(index + 1)

    def _is_followed(self, index: int) -> bool:
        """Whether the apostrophe of a plural possessive is one, not a closing quotation mark."""
        return self._goes_on(index + 1) and "'" not in self.texts[:index]
