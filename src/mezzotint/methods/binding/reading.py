"""A prompt that is being tagged: its words, the tags found so far, and the questions that rules ask of them."""

from __future__ import annotations

from .lexicon import Lexicon, lexicon
from .words import Word

__all__ = ["QUOTES", "Reading", "contracted"]

QUOTES = frozenset('"“”„«»')
_CONTRACTED = frozenset(["that", "who", "which", "it", "he", "she", "there", "here", "what", "where"])


def contracted(word: str) -> str | None:
    """The pronoun of "that's", "who's"..."""
    pronoun, _, rest = word.partition("'")
    return pronoun if rest == "s" and pronoun in _CONTRACTED else None


class Reading:
    """Words with their tags, from left to right.

    Args:
        words: words of a prompt.

    Attributes:
        texts: the words, lower-case, with plain apostrophes.
        tags: tags of the words up to the one in hand.
        fixed: tags of words in fixed expressions.
        linking: whether a word is a preposition, a part of one, or joins equals.
    """

    def __init__(self, words: tuple[Word, ...]) -> None:
        self.lexicon: Lexicon = lexicon()
        self.texts = [word.text.lower().replace("’", "'") for word in words]
        self.tags: list[str] = []
        self.fixed: dict[int, str] = {}
        self.linking = [False] * len(words)

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
        return not text.endswith("ed") or self.starts_object(after)

    def phrase_start(self, index: int) -> int:
        """Where the run of words that ends before `index` begins: its determiner, if it has one."""
        start = index
        while start and self.tags[start - 1] in {"A", "N", "R"}:
            start -= 1
        while start and self.tags[start - 1] == "D":
            start -= 1
        return start

    def before(self, index: int) -> str:
        """The tag before; an adverb is looked through to the determiner before it."""
        if self.tag(index - 1) == "R" and self.tag(index - 2) in {"D", "A", "V", "I"}:
            return self.tag(index - 2)
        return self.tag(index - 1)

    def goes_on(self, index: int) -> bool:
        """Whether a noun phrase can go on at a word that is not tagged yet."""
        text, words = self.text(index), self.lexicon
        if not text or index in self.fixed:
            return self.fixed.get(index, "I") != "I"
        if text in words.conjunctions or text == ",":
            after = self.text(index + 1)
            similar = words.is_adjective(after) or (after.endswith(("ed", "ing")) and len(after) > 5)
            return similar and self.goes_on(index + 2)
        if text in {"one", "ones"}:
            return True
        if text in QUOTES:
            return self.goes_on(index + 1)
        closed = text in words.determiners or text in words.prepositions or text in words.pronouns
        return not (closed or text in words.auxiliaries or text in words.strong or not text[0].isalnum())

    def is_determined(self, index: int) -> bool:
        """Whether a noun phrase with an article, or a pronoun, begins here."""
        text = self.text(index)
        return bool(text) and (text in self.lexicon.determiners or text in {"it", "him", "them", "himself", "herself"})

    def starts_object(self, index: int) -> bool:
        """Whether the object of a verb may begin here."""
        return self.is_determined(index) or self.goes_on(index)

    def leads_to_adjective(self, index: int) -> bool:
        """Whether an adjective stands here, after adverbs, that describes no noun behind it."""
        while self.text(index) in self.lexicon.adverbs or self.text(index).endswith("ly"):
            index += 1
        return self.lexicon.is_adjective(self.text(index)) and not self.goes_on(index + 1)
