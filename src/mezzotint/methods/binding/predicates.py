"""Adjectives that are said of a noun: "the ball is red", "a vase, which is blue", "a house painted white"."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .phrases import Phrase
from .tagging import Tagger, contracted

__all__ = ["Predicate", "predicates", "subjects"]

_PLURAL_BE = frozenset(["are", "were", "aren't", "weren't"])
_SINGULAR_BE = frozenset(["is", "was", "isn't", "wasn't", "has", "'s"])
_STOPS = frozenset('.;:!?()[]{}|"')


@dataclass(frozen=True)
class Predicate:
    """Adjectives behind a verb.

    Attributes:
        verb: number of the verb.
        adjectives: numbers of the adjectives.
        denied: whether the text says that it is not so.
        resultative: whether the verb is a participle that follows its noun ("painted blue").
    """

    verb: int
    adjectives: tuple[int, ...]
    denied: bool = False
    resultative: bool = False


def predicates(tagger: Tagger) -> tuple[Predicate, ...]:
    """All predicates, from left to right."""
    places = range(len(tagger.tags))
    found = [_predicate(tagger, index) for index in places if _takes_adjective(tagger, index)]
    found += [_apposition(tagger, index) for index in places if tagger.text(index) == ","]
    return tuple(each for each in found if each is not None)


def subjects(tagger: Tagger, phrases: Sequence[Phrase], predicate: Predicate) -> tuple[int, ...]:
    """Heads of the noun phrases that a predicate is said of; none where the subject is a pronoun or unclear."""
    before = [phrase for phrase in phrases if phrase.end <= predicate.verb and not phrase.owner]
    if predicate.resultative:
        return tuple(phrase.head for phrase in before[-1:] if phrase.end == _left(tagger, predicate.verb) + 1)
    plural = _number(tagger, predicate.verb)
    relative = _relative(tagger, predicate.verb)
    if relative is not None:
        return _antecedent(tagger, [phrase for phrase in before if phrase.end <= relative], plural=plural)
    subject = _left(tagger, predicate.verb)
    if tagger.is_pronoun(subject) or tagger.tag(subject) in {"D", "C", ""}:
        return ()
    start, stop = _clause(tagger, predicate.verb, plural=plural)
    inside = [phrase for phrase in before if phrase.start >= start and phrase.end <= stop]
    return _subject(tagger, inside, plural=plural)


def _takes_adjective(tagger: Tagger, index: int) -> bool:
    text = tagger.text(index)
    verb = tagger.tag(index) == "V"
    return tagger.is_be(index) or (verb and (text in tagger.lexicon.copulas or text in tagger.lexicon.painting))


def _apposition(tagger: Tagger, comma: int) -> Predicate | None:
    """Joined adjectives between commas behind their noun: "a dog, black and fluffy, sits"."""
    first = _adjectives_end(tagger, comma + 1)
    last = _adjectives_end(tagger, first + 1)
    joined = first > comma + 1 and tagger.tag(first) == "C" and last > first + 1
    if tagger.tag(comma - 1) != "N" or not joined or tagger.text(last) != ",":
        return None
    return Predicate(comma, tuple(k for k in range(comma, last) if tagger.tag(k) == "A"), resultative=True)


def _predicate(tagger: Tagger, verb: int) -> Predicate | None:
    index, denied = verb + 1, tagger.text(verb).endswith("n't")
    while tagger.tag(index) == "R" or tagger.text(index) in {"both", "all", "being", "been"}:
        denied = denied or tagger.text(index) in {"not", "never"}
        index += 1
    found: list[int] = []
    while True:
        end = _adjectives_end(tagger, index)
        if end == index or tagger.tag(end) in {"N", "G"}:
            break
        found += [k for k in range(index, end) if tagger.tag(k) == "A"]
        index = _next_segment(tagger, end)
        if index == end:
            break
    result = tagger.text(verb) in tagger.lexicon.painting or tagger.text(verb).endswith("ing")
    follows = result and not tagger.is_be(verb) and not tagger.is_be(_left(tagger, verb))
    return Predicate(_carrier(tagger, verb), tuple(found), denied, follows) if found else None


def _carrier(tagger: Tagger, verb: int) -> int:
    """The verb that the subject stands before: "is" of "is painted", "has" of "has been"."""
    while tagger.tag(_left(tagger, verb)) == "V" and (
        tagger.text(verb) in tagger.lexicon.painting
        or tagger.text(verb) in {"be", "been", "being"}
        or tagger.text(_left(tagger, verb)) in tagger.lexicon.auxiliaries
    ):
        verb = _left(tagger, verb)
    return verb


def _adjectives_end(tagger: Tagger, index: int) -> int:
    end = index
    while tagger.tag(end) in {"A", "R"}:
        end += 1
    return end if any(tagger.tag(k) == "A" for k in range(index, end)) else index


def _next_segment(tagger: Tagger, end: int) -> int:
    """Where the next of "red, shiny and small" begins; `end` if there is none."""
    index = end
    while (tagger.tag(index) == "C" or tagger.text(index) == ",") and index - end < 2:
        index += 1
    return index if tagger.tag(index) in {"A", "R"} else end


def _left(tagger: Tagger, index: int) -> int:
    """The word before, adverbs left out."""
    index -= 1
    while tagger.tag(index) == "R":
        index -= 1
    return index


def _number(tagger: Tagger, verb: int) -> bool | None:
    """Whether a verb asks for a plural; None where it does not say."""
    text = tagger.text(verb)
    if text in _PLURAL_BE or text in {"have", "look", "seem", "appear", "turn", "become", "remain", "do"}:
        return True
    return False if text in _SINGULAR_BE or text.endswith("s") else None


def _relative(tagger: Tagger, verb: int) -> int | None:
    """Number of the relative pronoun right before a verb."""
    pronoun = contracted(tagger.text(verb))
    index = verb if pronoun is not None else _left(tagger, verb)
    text = pronoun or tagger.text(index)
    return index if text in {"that", "which", "who"} else None


def _antecedent(tagger: Tagger, before: Sequence[Phrase], *, plural: bool | None) -> tuple[int, ...]:
    """The nearest phrase whose number fits, among those in a row with it; all that are joined for a plural."""
    if not before:
        return ()
    nearest, chain = before[-1], [before[-1]]
    for phrase in reversed(before[:-1]):
        if not _linked(tagger, phrase, chain[-1]):
            break
        chain.append(phrase)
    if plural is None or _is_plural(tagger, nearest) == plural:
        return (nearest.head,)
    if plural and len(chain) > 1 and _joined(tagger, chain[1], nearest):
        return tuple(phrase.head for phrase in reversed(_coordination(tagger, chain)))
    fitting = [phrase for phrase in chain if _is_plural(tagger, phrase) == plural]
    return ((fitting[0] if fitting else nearest).head,)


def _subject(tagger: Tagger, inside: Sequence[Phrase], *, plural: bool | None) -> tuple[int, ...]:
    """The first phrase of a clause that no preposition governs, with those that are joined to it for a plural."""
    free = [k for k, phrase in enumerate(inside) if not _is_governed(tagger, phrase)]
    if not free:
        return ()
    first = inside[free[0]]
    if plural is False:
        return (first.head,)
    joined = [
        phrase for k, phrase in enumerate(inside) if k in free and (phrase is first or _is_joined(tagger, phrase))
    ]
    return tuple(phrase.head for phrase in joined)


def _clause(tagger: Tagger, verb: int, *, plural: bool | None) -> tuple[int, int]:
    """The words that may hold the subject of a verb: back to the last clause, over relative clauses."""
    stop = verb
    if tagger.text(verb - 1) == ",":
        opening = next((k for k in range(verb - 2, -1, -1) if tagger.text(k) == ","), None)
        stop = verb if opening is None else opening
    index = stop
    while index > 0:
        text = tagger.text(index - 1)
        if tagger.is_finite(index - 1):
            relative = _relative_of(tagger, index - 1)
            if relative is None:
                break
            index = stop = relative
            continue
        ends = text in _STOPS or text in {"where", "when", "while", "whose", "because", "as", "although", "but"}
        if ends or (text == "," and plural is False and index < stop):
            break
        index -= 1
    return index, stop


def _relative_of(tagger: Tagger, verb: int) -> int | None:
    """Number of the relative pronoun that opens the clause of a finite verb: "that (the man) wears"."""
    index = _left(tagger, verb)
    while tagger.tag(index) in {"D", "A", "N", "G", "R"} or (tagger.is_pronoun(index) and not _opens(tagger, index)):
        index -= 1
    if not _opens(tagger, index):
        return None
    return index - 1 if tagger.text(index - 1) == "," else index


def _opens(tagger: Tagger, index: int) -> bool:
    """Whether a pronoun opens a relative clause."""
    text = tagger.text(index)
    return text in {"which", "who", "whom"} or (text == "that" and tagger.tag(index - 1) in {"N", "A", "P"})


def _is_governed(tagger: Tagger, phrase: Phrase) -> bool:
    """Whether a phrase is the object of a preposition or a verb."""
    before = phrase.whole - 1
    return tagger.tag(before) == "V" or (tagger.tag(before) == "I" and tagger.linking[before])


def _linked(tagger: Tagger, first: Phrase, second: Phrase) -> bool:
    between = range(first.end, second.whole)
    return bool(between) and all(tagger.linking[k] or tagger.tag(k) == "C" for k in between)


def _joined(tagger: Tagger, first: Phrase, second: Phrase) -> bool:
    between = range(first.end, second.whole)
    return bool(between) and all(tagger.tag(k) == "C" or tagger.text(k) == "," for k in between)


def _is_joined(tagger: Tagger, phrase: Phrase) -> bool:
    return tagger.tag(phrase.whole - 1) == "C" or tagger.text(phrase.whole - 1) == ","


def _coordination(tagger: Tagger, chain: Sequence[Phrase]) -> list[Phrase]:
    members = [chain[0]]
    for phrase in chain[1:]:
        if not _joined(tagger, phrase, members[-1]):
            break
        members.append(phrase)
    return members


def _is_plural(tagger: Tagger, phrase: Phrase) -> bool:
    return tagger.lexicon.is_plural(tagger.text(phrase.head))
