"""Adjectives that are said of a noun: "the ball is red", "a vase, which is blue", "a house painted white"."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .phrases import Phrase
from .reading import Reading, contracted

__all__ = ["Predicate", "predicates", "subjects"]

_PLURAL_BE = frozenset(["are", "were", "aren't", "weren't"])
_SINGULAR_BE = frozenset(["is", "was", "isn't", "wasn't", "has", "'s"])
_LEADING = frozenset(["both", "all", "being", "been", "as", "more", "less"])
_COLOUR = frozenset(["color", "colour", "colors", "colours", "hue", "hues", "tint"])
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


def predicates(tagged: Reading) -> tuple[Predicate, ...]:
    """All predicates, from left to right."""
    places = range(len(tagged.tags))
    found = [_predicate(tagged, index) for index in places if _takes_adjective(tagged, index)]
    found += [_apposition(tagged, index) for index in places if tagged.text(index) == ","]
    found += [_distribution(tagged, index) for index in places if tagged.text(index) in {",", ":", "("}]
    found += [_comparison(tagged, index) for index in places if tagged.text(index) in {"as", "than"}]
    found += [_shade(tagged, index) for index in places if tagged.tag(index) in {"V", "I"}]
    return tuple(each for each in found if each is not None)


def subjects(tagged: Reading, phrases: Sequence[Phrase], predicate: Predicate) -> tuple[int, ...]:
    """Heads of the noun phrases that a predicate is said of; none where the subject is a pronoun or unclear."""
    before = [phrase for phrase in phrases if phrase.end <= predicate.verb and not phrase.owner]
    if predicate.resultative:
        end = _left(tagged, predicate.verb) + 1
        end -= tagged.text(end - 1) == ","
        return tuple(phrase.head for phrase in before[-1:] if phrase.end == end)
    plural = _number(tagged, predicate.verb)
    relative = _relative(tagged, predicate.verb)
    if relative is not None:
        return _antecedent(tagged, [phrase for phrase in before if phrase.end <= relative], plural=plural)
    subject = _left(tagged, predicate.verb)
    if tagged.tag(subject) == "C":
        # "the house is old and is painted white": the subject of the verb before.
        earlier = next((k for k in range(subject - 1, -1, -1) if tagged.is_finite(k)), None)
        return () if earlier is None else subjects(tagged, phrases, Predicate(_carrier(tagged, earlier), ()))
    # "the frame behind it is golden": the pronoun belongs to the preposition, the subject stands further left.
    governed = tagged.tag(subject - 1) == "I" and bool(before)
    if (tagged.is_pronoun(subject) and not governed) or tagged.tag(subject) in {"D", ""}:
        return ()
    start, stop = _clause(tagged, predicate.verb, plural=plural)
    inside = [phrase for phrase in before if phrase.start >= start and phrase.end <= stop]
    if inside and tagged.text(inside[0].head) in _COLOUR and tagged.text(start - 1) == "whose":
        # "a vase whose colour is purple": it is the vase that is.
        return _antecedent(tagged, [phrase for phrase in before if phrase.end < start], plural=None)
    return _subject(tagged, inside, plural=plural)


def _takes_adjective(tagged: Reading, index: int) -> bool:
    text = tagged.text(index)
    verb = tagged.tag(index) == "V"
    return tagged.is_be(index) or (verb and (text in tagged.lexicon.copulas or text in tagged.lexicon.painting))


def _apposition(tagged: Reading, comma: int) -> Predicate | None:
    """Adjectives behind their noun: "a dog, black and fluffy, sits", "a car, red, parked by", "a scarf, red with"."""
    start = _after_quantifier(tagged, comma + 1)
    first = _adjectives_end(tagged, start)
    parted = tagged.text(first + 1).endswith("ed") and tagged.tag(first + 2) == "I"
    acts = tagged.text(first) == "," and (tagged.tag(first + 1) in {"V", "I"} or parted or start > comma + 1)
    if tagged.tag(comma - 1) == "N" and first > start and (acts or tagged.text(first) in {"with", "in"}):
        return Predicate(comma, tuple(k for k in range(start, first) if tagged.tag(k) == "A"), resultative=True)
    last = _adjectives_end(tagged, first + 1)
    joined = first > comma + 1 and tagged.tag(first) == "C" and last > first + 1
    if tagged.tag(comma - 1) != "N" or not joined or tagged.text(last) != ",":
        return None
    return Predicate(comma, tuple(k for k in range(comma, last) if tagged.tag(k) == "A"), resultative=True)


def _after_quantifier(tagged: Reading, index: int) -> int:
    """Behind "all", "both", "all of them": "three kittens, all of them grey, sleep"."""
    if tagged.text(index) not in {"all", "both"}:
        return index
    return index + 3 if (tagged.text(index + 1), tagged.text(index + 2)) == ("of", "them") else index + 1


def _distribution(tagged: Reading, mark: int) -> Predicate | None:
    """Adjectives of one member after the other: "two dogs, one white and one brown"."""
    found: list[int] = []
    members, index = 0, mark + 1
    while (start := _member(tagged, index)) and (end := _adjectives_end(tagged, start)) > start:
        if tagged.tag(end) in {"N", "G"}:
            return None
        found += [k for k in range(start, end) if tagged.tag(k) == "A"]
        members, index = members + 1, end
        while tagged.tag(index) == "C" or tagged.text(index) == ",":
            index += 1
    plural = tagged.tag(mark - 1) == "N" and tagged.lexicon.is_plural(tagged.text(mark - 1))
    return Predicate(mark, tuple(found), resultative=True) if plural and members > 1 else None


def _member(tagged: Reading, index: int) -> int:
    """Where the description of "one", "the other", "another" begins; 0 where none of them stands."""
    if tagged.text(index) in {"one", "another", "two", "three"}:
        return index + 1
    return index + 2 if (tagged.text(index), tagged.text(index + 1)) in {("the", "other"), ("the", "others")} else 0


def _comparison(tagged: Reading, end: int) -> Predicate | None:
    """Adjectives behind their noun that are compared: "a cat (, as) black as night", "a giraffe taller than trees"."""
    start = end
    while tagged.tag(start - 1) in {"A", "R"}:
        start -= 1
    before = start - 1
    if tagged.text(before) == "as":
        before -= 1
    noun = before - 1 if tagged.text(before) == "," else before
    adjectives = tuple(k for k in range(start, end) if tagged.tag(k) == "A")
    thing = tagged.tag(noun) == "N" or (tagged.tag(noun) == "A" and tagged.text(noun) in tagged.lexicon.noun_heads)
    return Predicate(noun + 1, adjectives, resultative=True) if adjectives and thing else None


def _shade(tagged: Reading, start: int) -> Predicate | None:
    """A colour by its name: "the wall is a deep shade of green", "a dress in a shade of red"."""
    stands_behind = tagged.text(start) == "in" and tagged.tag(start - 1) == "N"
    if not (_takes_adjective(tagged, start) or stands_behind) or tagged.tag(start + 1) != "D":
        return None
    noun = start + 2
    while tagged.tag(noun) in {"A", "R"}:
        noun += 1
    end = _adjectives_end(tagged, noun + 2)
    named = tagged.text(noun) in tagged.lexicon.colour_words and tagged.text(noun + 1) == "of" and end > noun + 2
    if not named or tagged.tag(end) in {"N", "G"}:
        return None
    adjectives = tuple(k for k in (*range(start + 2, noun), *range(noun + 2, end)) if tagged.tag(k) == "A")
    return Predicate(start, adjectives, tagged.text(start).endswith("n't"), resultative=stands_behind)


def _predicate(tagged: Reading, verb: int) -> Predicate | None:
    index, denied = verb + 1, tagged.text(verb).endswith("n't")
    while tagged.tag(index) == "R" or tagged.text(index) in _LEADING:
        denied = denied or tagged.text(index) in {"not", "never"}
        index += 1
    found: list[int] = []
    while True:
        end = _adjectives_end(tagged, index)
        if end == index or tagged.tag(end) in {"N", "G"}:
            break
        found += [k for k in range(index, end) if tagged.tag(k) == "A"]
        index = _next_segment(tagged, end)
        if index == end:
            break
    result = tagged.text(verb) in tagged.lexicon.painting or tagged.text(verb).endswith("ing")
    follows = result and not tagged.is_be(verb) and not tagged.is_be(_left(tagged, verb))
    return Predicate(_carrier(tagged, verb), tuple(found), denied, follows) if found else None


def _carrier(tagged: Reading, verb: int) -> int:
    """The verb that the subject stands before: "is" of "is painted", "has" of "has been"."""
    while tagged.tag(_left(tagged, verb)) == "V" and (
        tagged.text(verb) in tagged.lexicon.painting
        or tagged.text(verb) in {"be", "been", "being"}
        or tagged.text(_left(tagged, verb)) in tagged.lexicon.auxiliaries
    ):
        verb = _left(tagged, verb)
    return verb


def _adjectives_end(tagged: Reading, index: int) -> int:
    end = index
    while tagged.tag(end) in {"A", "R"}:
        end += 1
    return end if any(tagged.tag(k) == "A" for k in range(index, end)) else index


def _next_segment(tagged: Reading, end: int) -> int:
    """Where the next of "red, shiny and small" begins; `end` if there is none."""
    index = end
    while (tagged.tag(index) == "C" or tagged.text(index) == ",") and index - end < 2:
        index += 1
    # "painted black, parked beside": a participle with a complement begins anew.
    listed = tagged.text(index - 1) == ","
    carries_on = listed and tagged.text(index).endswith("ed") and tagged.tag(index + 1) == "I"
    return index if tagged.tag(index) in {"A", "R"} and not carries_on else end


def _left(tagged: Reading, index: int) -> int:
    """The word before, adverbs left out."""
    index -= 1
    while tagged.tag(index) == "R":
        index -= 1
    return index


def _number(tagged: Reading, verb: int) -> bool | None:
    """Whether a verb asks for a plural; None where it does not say."""
    text = tagged.text(verb)
    if text in _PLURAL_BE or text in {"have", "look", "seem", "appear", "turn", "become", "remain", "do"}:
        return True
    return False if text in _SINGULAR_BE or text.endswith("s") else None


def _relative(tagged: Reading, verb: int) -> int | None:
    """Number of the relative pronoun right before a verb."""
    pronoun = contracted(tagged.text(verb))
    index = verb if pronoun is not None else _left(tagged, verb)
    text = pronoun or tagged.text(index)
    return index if text in {"that", "which", "who"} else None


def _antecedent(tagged: Reading, before: Sequence[Phrase], *, plural: bool | None) -> tuple[int, ...]:
    """The nearest phrase whose number fits, among those in a row with it; all that are joined for a plural."""
    if not before:
        return ()
    nearest, chain = before[-1], [before[-1]]
    for phrase in reversed(before[:-1]):
        if not _linked(tagged, phrase, chain[-1]):
            break
        chain.append(phrase)
    if plural is None or _is_plural(tagged, nearest) == plural:
        return (nearest.head,)
    if plural and len(chain) > 1 and _joined(tagged, chain[1], nearest):
        return tuple(phrase.head for phrase in reversed(_coordination(tagged, chain)))
    fitting = [phrase for phrase in chain if _is_plural(tagged, phrase) == plural]
    return ((fitting[0] if fitting else nearest).head,)


def _subject(tagged: Reading, inside: Sequence[Phrase], *, plural: bool | None) -> tuple[int, ...]:
    """The first phrase of a clause that no preposition governs, with those that are joined to it for a plural."""
    free = [k for k, phrase in enumerate(inside) if not _is_governed(tagged, phrase)]
    if not free:
        return ()
    first = inside[free[0]]
    if (
        tagged.text(first.head) in tagged.lexicon.colour_words
        and tagged.text(first.end) == "of"
        and inside[-1] is not first
    ):
        # "the colour of the car is red": it is the car that is.
        first = inside[free[0] + 1]
        return (first.head,)
    if plural is False:
        return (first.head,)
    joined = [
        phrase for k, phrase in enumerate(inside) if k in free and (phrase is first or _is_joined(tagged, phrase))
    ]
    return tuple(phrase.head for phrase in joined)


def _clause(tagged: Reading, verb: int, *, plural: bool | None) -> tuple[int, int]:
    """The words that may hold the subject of a verb: back to the last clause, over relative clauses."""
    stop = verb
    if tagged.text(verb - 1) == ",":
        opening = next((k for k in range(verb - 2, -1, -1) if tagged.text(k) == ","), None)
        stop = verb if opening is None else opening
    index = stop
    while index > 0:
        text = tagged.text(index - 1)
        if tagged.is_finite(index - 1):
            relative = _relative_of(tagged, index - 1)
            if relative is None and all(tagged.tag(k) in {"V", "R"} for k in range(index, verb)):
                relative = _contact(tagged, index - 1)
            if relative is None:
                break
            index = stop = relative
            continue
        ends = text in _STOPS or text in {"where", "when", "while", "whose", "because", "as", "although", "but"}
        if ends or (text == "," and plural is False and index < stop):
            break
        index -= 1
    return index, stop


def _relative_of(tagged: Reading, verb: int) -> int | None:
    """Number of the relative pronoun that opens the clause of a finite verb: "that (the man) wears"."""
    index = _left(tagged, verb)
    while tagged.tag(index) in {"D", "A", "N", "G", "R"} or (tagged.is_pronoun(index) and not _opens(tagged, index)):
        index -= 1
    if not _opens(tagged, index):
        return None
    return index - 1 if tagged.text(index - 1) == "," else index


def _contact(tagged: Reading, verb: int) -> int | None:
    """Where a relative clause without a pronoun begins: "the shirt (he wears) is striped"."""
    subject = _left(tagged, verb)
    start = subject if tagged.is_pronoun(subject) else tagged.phrase_start(subject + 1)
    return start if start < verb and tagged.tag(start - 1) == "N" else None


def _opens(tagged: Reading, index: int) -> bool:
    """Whether a pronoun opens a relative clause."""
    text = tagged.text(index)
    return text in {"which", "who", "whom"} or (text == "that" and tagged.tag(index - 1) in {"N", "A", "P"})


def _is_governed(tagged: Reading, phrase: Phrase) -> bool:
    """Whether a phrase is the object of a preposition or a verb."""
    before = phrase.whole - 1
    return tagged.tag(before) == "V" or (tagged.tag(before) == "I" and tagged.linking[before])


def _linked(tagged: Reading, first: Phrase, second: Phrase) -> bool:
    between = range(first.end, second.whole)
    return bool(between) and all(tagged.linking[k] or tagged.tag(k) == "C" for k in between)


def _joined(tagged: Reading, first: Phrase, second: Phrase) -> bool:
    between = range(first.end, second.whole)
    return bool(between) and all(tagged.tag(k) == "C" or tagged.text(k) == "," for k in between)


def _is_joined(tagged: Reading, phrase: Phrase) -> bool:
    return tagged.tag(phrase.whole - 1) == "C" or tagged.text(phrase.whole - 1) == ","


def _coordination(tagged: Reading, chain: Sequence[Phrase]) -> list[Phrase]:
    members = [chain[0]]
    for phrase in chain[1:]:
        if not _joined(tagged, phrase, members[-1]):
            break
        members.append(phrase)
    return members


def _is_plural(tagged: Reading, phrase: Phrase) -> bool:
    return tagged.lexicon.is_plural(tagged.text(phrase.head))
