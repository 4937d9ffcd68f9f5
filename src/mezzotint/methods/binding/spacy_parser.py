"""A dependency parser that the user has installed: spaCy. Optional; nothing is ever downloaded.

Bindings come from four relations: (i) `amod`, of an adjective that is one itself ("navy blue suit") the noun of that;
(ii) an adjective behind a copula (`acomp`, `attr`) describes the verb's subjects, for a relative pronoun what it stands
for; (iii) an adjective joined to an attribute (`conj`) describes the same noun; (iv) a `compound` or `nmod`
that is a colour or a material describes what it is put before.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .constituents import constituents
from .lexicon import lexicon
from .phrases import Phrase
from .words import Binding, Syntax, Word

__all__ = ["SpacyParser", "syntax_of_doc"]

_ALTERNATIVES = (
    "Alternatives: give bindings=[(attribute, noun), ...]; use the built-in RuleParser(); or install spaCy and the "
    "wheel of a model, such as en_core_web_sm, from spaCy's own release page on GitHub (explosion/spacy-models)"
)


class SpacyParser:
    """Parses with a trained pipeline of spaCy.

    Args:
        model: the name of an installed model, or its folder.

    Raises:
        ImportError: spaCy is not installed.
        ValueError: the model is not.
    """

    def __init__(self, model: str | Path) -> None:
        try:
            spacy = importlib.import_module("spacy")
        except ImportError as error:
            raise ImportError(f"SpacyParser needs spaCy, which is not installed. {_ALTERNATIVES}") from error
        try:
            self._parse = spacy.load(model)
        except OSError as error:
            raise ValueError(f"spaCy has no model {str(model)!r}. {_ALTERNATIVES}") from error

    def __call__(self, prompt: str) -> Syntax:
        """Parse one prompt."""
        return syntax_of_doc(prompt, self._parse(prompt))


def syntax_of_doc(prompt: str, doc: Any) -> Syntax:
    """The structure that a `spacy.tokens.Doc` with dependencies has.

    Args:
        prompt: the text it was made from.
        doc: the parsed text.
    """
    kept = [token for token in doc if not token.is_space]
    places = {token.i: index for index, token in enumerate(kept)}
    words = tuple(Word(token.text, token.idx, token.idx + len(token.text)) for token in kept)
    pairs = {(places[attribute.i], places[head.i]) for token in kept for attribute, head in _bound(token)}
    bindings = tuple(Binding(attribute, head) for attribute, head in sorted(pairs) if attribute != head)
    phrases = [
        Phrase(places[chunk.start], places[chunk.end - 1] + 1, places[chunk.root.i], (), whole=places[chunk.start])
        for chunk in doc.noun_chunks
    ]
    linking = [token.pos_ in {"ADP", "CCONJ"} for token in kept]
    return Syntax(prompt, words, bindings, constituents(prompt, words, phrases, linking))


def _bound(token: Any) -> Iterator[tuple[Any, Any]]:
    """The token with each noun it describes."""
    for head in _heads(token):
        yield token, head


def _heads(token: Any) -> tuple[Any, ...]:
    head = token.head
    if token.dep_ == "amod":
        return _heads(head) if head.pos_ == "ADJ" and head.dep_ == "amod" else (head,)
    if token.dep_ in {"acomp", "attr"} and token.pos_ == "ADJ" and head.lemma_ == "be":
        return tuple(noun for child in head.children if child.dep_ == "nsubj" for noun in _meant(child))
    if token.dep_ == "conj" and token.pos_ == "ADJ" and head is not token:
        return _heads(head)
    if token.dep_ in {"compound", "nmod"} and token.lemma_.lower() in lexicon().substances:
        return (head,)
    return ()


def _meant(subject: Any) -> tuple[Any, ...]:
    """The nouns that a subject names: itself and those joined to it, or what its relative pronoun stands for."""
    verb = subject.head
    if subject.pos_ == "PRON" and verb.dep_ in {"relcl", "acl:relcl"}:
        return (verb.head,)
    if subject.pos_ not in {"NOUN", "PROPN"}:
        return ()
    return (subject, *(noun for child in subject.children if child.dep_ == "conj" for noun in _meant(child)))
