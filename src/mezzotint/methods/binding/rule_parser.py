"""The built-in parser of English prompts: rules and a lexicon, no model (arXiv 2404.13766 uses a trained one).

Two products, as there: attributes with the noun that each describes (its `amod` dependencies, and predicates besides),
and constituents (`constituents.py`).
"""

from __future__ import annotations

from collections.abc import Sequence

from .constituents import constituents
from .lexicon import lexicon
from .phrases import noun_phrases
from .predicates import predicates, subjects
from .tagging import tag_words, tokenise
from .words import Binding, Syntax, Word

__all__ = ["RuleParser", "is_english"]


class RuleParser:
    """Finds what describes what in an English prompt. It accepts every string.

    Words that it does not know are nouns, which is right more often than not; a text that is not English gets no
    bindings. Ellipsis is not undone: of "two green and one grey parrot" only (grey, parrot) is found.
    """

    def __call__(self, prompt: str) -> Syntax:
        """Parse one prompt."""
        words = tokenise(prompt)
        if not is_english(words):
            return Syntax(prompt, words)
        tagged = tag_words(words)
        said = predicates(tagged)
        taken = {index for predicate in said for index in predicate.adjectives}
        phrases = noun_phrases(tagged, taken)
        pairs = {(attribute, phrase.head) for phrase in phrases for attribute in phrase.attributes}
        for predicate in said:
            heads = () if predicate.denied else subjects(tagged, phrases, predicate)
            pairs |= {(attribute, head) for attribute in predicate.adjectives for head in heads}
        bindings = tuple(Binding(attribute, head) for attribute, head in sorted(pairs))
        return Syntax(prompt, words, bindings, constituents(prompt, words, phrases, tagged.linking))


def is_english(words: Sequence[Word]) -> bool:
    """Whether a text may be English: it has English words, and not more of another language; or but a few words."""
    known = lexicon()
    texts = [word.text.lower() for word in words if any(letter.isalpha() for letter in word.text)]
    english = sum(known.is_known(text) for text in texts)
    foreign = sum(text in known.foreign and text not in known.pronouns for text in texts)
    strange = sum(not text.isascii() for text in texts)
    if 2 * strange > len(texts) or foreign > english:
        return False
    return english > 0 or (foreign + strange == 0 and len(texts) < 6)
