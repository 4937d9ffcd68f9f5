"""Words that may be verbs: what they are where they stand, as their neighbours tell.

Participles in -ing and -ed describe the noun behind them, or carry on a clause; "watches" and "stand" are nouns or
verbs.
"""

from __future__ import annotations

from .reading import Reading

__all__ = ["tag_ed", "tag_ing", "tag_verb"]

_SINGULAR = frozenset(["a", "an", "one", "this", "each", "every", "another", "that"])
_STANDING_ALONE = frozenset(
    [
        "all",
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
_BEFORE_GERUND = frozenset(["by", "after", "before", "for", "while", "without", "about", "when", "until", "since"])


def tag_ing(tagged: Reading, index: int, text: str) -> str:
    """Participle, adjective or noun in -ing."""
    words, before = tagged.lexicon, tagged.before(index)
    if len(text) <= 5 and text not in words.transitive_ing and text not in {"lying", "dying", "tying"}:
        return "N"
    if text in words.ing_nouns:
        return "V" if _is_gerund_at_work(tagged, index, text, before) else "N"
    if text == "looking" and before == "A" and tagged.goes_on(index + 1):
        return "A"
    alone = before == "D" and tagged.text(index - 1) in _STANDING_ALONE
    acts = text in words.transitive_ing and (alone or before not in {"D", "G"})
    if tagged.is_determined(index + 1) or acts:
        return "V"
    if tagged.goes_on(index + 1):
        return "A" if before in {"D", "G"} or _may_describe(tagged, index, text, before) else "V"
    return "N" if _may_be_named(tagged, index, before) else "V"


def _is_gerund_at_work(tagged: Reading, index: int, text: str, before: str) -> bool:
    """Whether a word that is a noun elsewhere acts here: "a man painting a fence"."""
    if before == "":
        return tagged.is_determined(index + 1)
    sport = text.endswith(("skiing", "surfing", "boarding"))
    return before == "V" or (before == "N" and (sport or tagged.starts_object(index + 1)))


def _may_be_named(tagged: Reading, index: int, before: str) -> bool:
    """Whether a word in -ing at the end of a phrase is its noun: "a large gathering"."""
    previous = tagged.text(index - 1)
    if before in {"D", "G"}:
        return previous not in _STANDING_ALONE
    modified = tagged.tag(tagged.phrase_start(index)) == "D" or previous not in tagged.lexicon.noun_heads
    return before == "A" and modified


def _may_describe(tagged: Reading, index: int, text: str, before: str) -> bool:
    """Whether a participle with a noun after it and no article before it describes that noun."""
    listed = text in tagged.lexicon.adjectives
    if before == "":
        return listed and not tagged.lexicon.is_plural(tagged.text(index + 1))
    if before == "A":
        return listed or tagged.tag(tagged.phrase_start(index)) == "D"
    if before in {"C", "P"}:
        return tagged.tag(index - 2) == "A" or (listed and "V" not in tagged.tags[:index])
    if before == "I":
        return tagged.text(index - 1) not in _BEFORE_GERUND and not tagged.is_pronoun(index - 1)
    return before == "V" and tagged.text(index - 1) not in tagged.lexicon.auxiliaries


def tag_ed(tagged: Reading, index: int, text: str) -> str:
    """Participle, past or adjective in -ed."""
    words, before, after = tagged.lexicon, tagged.before(index), tagged.text(index + 1)
    goes_on, listed = tagged.goes_on(index + 1), words.is_adjective(text)
    follows = before in {"N", "V"} or (tagged.text(index - 1) == "," and _ends_in_adjectives(tagged, index + 1))
    if text in words.painting and words.is_adjective(after) and follows:
        return "V"
    if before == "N":
        joined = text in words.ed_after_noun and not words.is_plural(tagged.text(index - 1))
        return "A" if goes_on and joined else "V"
    verb = index - 2 if tagged.tag(index - 1) == "R" else index - 1
    if before == "V" and tagged.text(verb) in words.copulas:
        return "A"
    if before == "V" and tagged.is_be(index - 1):
        return "A" if listed and after not in words.prepositions else "V"
    closing = before in {"C", "P"} and listed and tagged.tag(index - 2) == "A"
    return "A" if closing or (goes_on and _may_be_participle(tagged, index, before, listed=listed)) else "V"


def _ends_in_adjectives(tagged: Reading, index: int) -> bool:
    """Whether nothing but adjectives stands before the next mark: "a car, painted matte black, and"."""
    while tagged.lexicon.is_adjective(tagged.text(index)) or tagged.text(index) == "and":
        index += 1
    return tagged.text(index) in {"", ",", "."}


def _may_be_participle(tagged: Reading, index: int, before: str, *, listed: bool) -> bool:
    """Whether a word in -ed may describe the noun after it, as far as what stands before goes."""
    if before == "A":
        return listed or tagged.tag(tagged.phrase_start(index)) == "D"
    if before == "I":
        return tagged.text(index - 1) not in _BEFORE_GERUND and not tagged.is_pronoun(index - 1)
    if before in {"C", "P"} and not listed:
        determined = tagged.tag(tagged.phrase_start(index - 1)) == "D"
        return determined if tagged.tag(index - 2) == "A" else tagged.tag(index - 2) != "V"
    return True


def tag_verb(tagged: Reading, index: int, text: str) -> str | None:
    """V for a finite verb, A for an irregular participle before its noun, N for a noun that could be a verb."""
    words = tagged.lexicon
    before = tagged.before(index)
    if text in words.copulas and before in {"N", "V"} and tagged.leads_to_adjective(index + 1):
        return "V"
    if text in words.irregular:
        return _irregular(tagged, index, text, before)
    if text in words.strong or text in words.weak:
        return "V" if _is_third_person(tagged, index, text, before) else "N"
    if (text in words.strong_base or text in words.weak_base) and _is_base_form(tagged, index, text, before):
        return "V"
    thing = before == "N" or (before == "A" and tagged.text(index - 1) in words.noun_after_noun)
    return "V" if thing and _must_be_verb(tagged, index, text) else None


def _must_be_verb(tagged: Reading, index: int, text: str) -> bool:
    """Whether a word that the lexicon does not know can only be a verb: "a dog nuzzles a", "two dogs nuzzle a"."""
    if tagged.lexicon.is_adjective(text) or text in tagged.lexicon.adverbs or text.endswith("ly"):
        return False
    determined, previous = tagged.is_determined(index + 1), tagged.text(index - 1)
    if not (tagged.lexicon.is_plural(text) and text.endswith("s")):
        return determined and tagged.lexicon.is_plural(previous) and text.isalpha()
    alone = tagged.text(tagged.phrase_start(index)) in _SINGULAR
    acts = determined or tagged.text(index + 1) in tagged.lexicon.prepositions
    several = tagged.lexicon.is_plural(previous)
    subject = previous in tagged.lexicon.animate or _lacks_verb(tagged, index)
    return ((alone or several) and acts) or (determined and subject)


def _irregular(tagged: Reading, index: int, text: str, before: str) -> str | None:
    listed = tagged.lexicon.is_adjective(text)
    if before in {"D", "G", "A", "R"} or listed:
        acts = before == "N" and tagged.is_determined(index + 1)
        # "the warm light fell on": what stands before may be a noun.
        thing = before == "A" and tagged.text(index - 1) in tagged.lexicon.noun_heads and not listed
        acts = acts or (thing and tagged.text(index + 1) in tagged.lexicon.prepositions)
        return "V" if acts else "A" if listed or tagged.goes_on(index + 1) else "N"
    participle = text.endswith(("en", "wn", "rn")) and before != "N" and tagged.goes_on(index + 1)
    return "A" if participle and not (before == "V" and tagged.text(index - 1) in tagged.lexicon.auxiliaries) else "V"


def _is_third_person(tagged: Reading, index: int, text: str, before: str) -> bool:
    strong = text in tagged.lexicon.strong
    if tagged.is_pronoun(index - 1) or tagged.text(index + 1) in tagged.lexicon.strong:
        # "who walks", but not the scrubs of "a surgeon in green scrubs holds"
        return tagged.is_pronoun(index - 1)
    if before in {"D", "G"}:
        return strong and tagged.text(index - 1) in _STANDING_ALONE
    if before == "A":
        return _after_adjective(tagged, index, strong=strong)
    if before in {"N", "R"}:
        return strong or _has_singular_subject(tagged, index)
    if before in {"C", "P"}:
        chained = "V" in tagged.tags and (tagged.tag(index - 2) == "V" or tagged.starts_object(index + 1))
        # "a fence, red, surrounds a"
        described = tagged.text(index - 1) == "," and tagged.tag(index - 2) == "A" and tagged.is_determined(index + 1)
        return strong or chained or described
    return before == "" and strong


def _after_adjective(tagged: Reading, index: int, *, strong: bool) -> bool:
    """A verb after an adjective that is a predicate ("is red") or stands for a noun ("an orange")."""
    start = tagged.phrase_start(index)
    if _ends_predicate(tagged, start):
        return True
    determined = tagged.tag(start) == "D" or tagged.text(start - 1) in {"in", "of"}
    noun = determined and tagged.text(index - 1) in tagged.lexicon.noun_heads
    after = tagged.is_determined(index + 1) or tagged.text(index + 1) in tagged.lexicon.prepositions
    governed = tagged.tag(start) != "D" and after
    return noun and (strong or governed or tagged.text(start) in _SINGULAR)


def _ends_predicate(tagged: Reading, start: int) -> bool:
    """Whether the adjectives at `start` are, or go on, a predicate: "is red and shiny", "painted blue"."""
    if tagged.tag(start) == "D":
        return False
    while tagged.tag(start - 1) in {"C", "P"} and tagged.tag(start - 2) == "A":
        start = tagged.phrase_start(start - 1)
    text = tagged.text(start - 1)
    resulting = text in tagged.lexicon.painting or text in tagged.lexicon.copulas
    return tagged.is_be(start - 1) or (tagged.tag(start - 1) == "V" and resulting)


def _has_singular_subject(tagged: Reading, index: int) -> bool:
    """Whether the words before can be the subject of a verb that may as well be the plural of a noun."""
    last = index - 1
    while tagged.tag(last) == "R":
        last -= 1
    noun, determiner = tagged.text(last), tagged.text(tagged.phrase_start(last + 1))
    after = tagged.text(index + 1)
    open_end = after in tagged.lexicon.prepositions or not tagged.goes_on(index + 1)
    if tagged.tag(last) != "N":
        return False
    if determiner in _SINGULAR or tagged.is_determined(index + 1) or after in {"is", "was"}:
        return True
    if tagged.lexicon.is_plural(noun):
        # The subject stands farther off ("a bird with black wings lands"): a plural is seldom part of a compound.
        return open_end
    alive = noun in tagged.lexicon.animate and (open_end or tagged.lexicon.is_adjective(after))
    acting = determiner == "the" or noun in tagged.lexicon.flowing
    return alive or (after in tagged.lexicon.prepositions and acting and _lacks_verb(tagged, index))


def _lacks_verb(tagged: Reading, index: int) -> bool:
    """Whether no other word could be the verb of the sentence: "the orange basketball rolls under the bench"."""
    words = tagged.lexicon
    later = (text in words.auxiliaries or text in words.strong for text in tagged.texts[index + 1 :])
    return not any(later) and not any(tagged.is_finite(place) for place in range(index))


def _is_base_form(tagged: Reading, index: int, text: str, before: str) -> bool:
    words, previous = tagged.lexicon, tagged.text(index - 1)
    strong = text in words.strong_base
    if previous == "to" and index - 1 not in tagged.fixed:
        return strong or not tagged.goes_on(index + 1)
    if tagged.is_pronoun(index - 1):
        return previous not in {"it", "he", "she"}
    if before == "A":
        return _is_said_of_plural(tagged, index) and not words.is_adjective(text)
    if before in {"N", "R"}:
        return _has_plural_subject(tagged, index, strong=strong)
    if before == "V":
        return previous in words.auxiliaries and previous not in words.be
    return tagged.tag(index - 2) == "V" if before in {"C", "P"} else before == "" and tagged.is_determined(index + 1)


def _is_said_of_plural(tagged: Reading, index: int) -> bool:
    """A base form after adjectives: "cats that are black play", "people in black stand around"."""
    start = tagged.phrase_start(index)
    dressed = tagged.tag(start) != "D" and tagged.text(start - 1) == "in"
    plural = dressed and tagged.lexicon.is_plural(tagged.text(start - 2))
    return _ends_predicate(tagged, start) or (plural and not tagged.goes_on(index + 1))


def _has_plural_subject(tagged: Reading, index: int, *, strong: bool) -> bool:
    last = index - 1
    while tagged.tag(last) == "R":
        last -= 1
    noun = tagged.text(last)
    several = tagged.lexicon.is_plural(noun) or tagged.tag(tagged.phrase_start(last + 1) - 1) == "C"
    joined = "C" in tagged.tags and sum(each in tagged.lexicon.animate for each in tagged.texts[:index]) > 1
    onward = tagged.text(index + 1) in tagged.lexicon.prepositions and noun in tagged.lexicon.tinted_things and joined
    if (tagged.is_determined(index + 1) and "C" in tagged.tags) or onward:
        # "a boy in a blue cap and a girl in a red one share a bench", "a man in a white suit dance in"
        several = several or not any(tagged.is_finite(place) for place in range(index))
    if tagged.tag(last) != "N" or not several:
        return False
    if strong or onward or tagged.is_determined(index + 1):
        return True
    stands_for_noun = noun == "one" or tagged.lexicon.is_plural(noun)
    if stands_for_noun and tagged.text(index + 1) in tagged.lexicon.prepositions:
        return True
    return noun in tagged.lexicon.animate and not tagged.lexicon.is_plural(tagged.text(index + 1))
