"""Properties of prompts, words and bindings over any text."""

import string

from hypothesis import given
from hypothesis import strategies as st

from mezzotint.methods.binding.resolve import syntax_of
from mezzotint.methods.binding.rule_parser import RuleParser
from mezzotint.methods.binding.tokens import focus_matrix
from mezzotint.methods.binding.words import Binding

ANY = st.text(max_size=60)
SPOKEN = st.lists(
    st.sampled_from(
        [
            "a",
            "the",
            "two",
            "red",
            "blue",
            "glass",
            "light",
            "can",
            "one",
            "that",
            "which",
            "is",
            "are",
            "not",
            "and",
            ",",
            "'",
            '"',
            "orange",
            "watches",
            "standing",
            "painted",
            "very",
            "girl's",
            "girls'",
            "cube",
            "spheres",
            "man",
            "beside",
            "in",
            "of",
            "there",
            "who",
            "covered",
            "turning",
            "its",
            "who's",
            "-",
            "’",
            ".",
            "both",
        ]
    ),
    max_size=14,
).map(" ".join)
COLOURS = st.sampled_from(["red", "blue", "green", "striped", "wooden", "old", "tiny"])
NOUNS = st.sampled_from(["cube", "dog", "car", "house", "lamp", "umbrella", "bear"])
SPANS = st.lists(st.lists(st.integers(0, 15), max_size=3, unique=True), min_size=2, max_size=8)


@given(st.one_of(ANY, SPOKEN, st.text(string.printable, max_size=80)))
def test_the_parser_is_total_and_consistent(prompt):
    syntax = RuleParser()(prompt)
    count = len(syntax.words)
    assert [prompt[word.start : word.end] for word in syntax.words] == [word.text for word in syntax.words]
    assert "".join(word.text for word in syntax.words) == "".join(prompt.split())
    for binding in syntax.bindings:
        assert 0 <= binding.attribute < count
        assert 0 <= binding.head < count
        assert binding.attribute != binding.head
    for phrase in syntax.constituents:
        assert 0 <= phrase.start < phrase.end <= len(prompt)
        assert all(phrase.start <= syntax.words[head].start < phrase.end for head in phrase.heads)


@given(SPOKEN)
def test_no_attribute_is_described_by_what_it_describes(prompt):
    syntax = RuleParser()(prompt)
    pairs = {(binding.attribute, binding.head) for binding in syntax.bindings}
    assert not any((head, attribute) in pairs for attribute, head in pairs)


@given(st.lists(st.tuples(st.lists(COLOURS, max_size=3), NOUNS), min_size=1, max_size=4))
def test_noun_phrases_are_read_as_they_were_written(things):
    """Any adjectives before any nouns, joined by "and": every adjective describes the noun of its own phrase."""
    words, expected = [], set()
    for adjectives, noun in things:
        start = len(words) + 1
        head = start + len(adjectives)
        expected |= {(start + k, head) for k in range(len(adjectives))}
        words += ["the", *adjectives, noun, "and"]
    syntax = RuleParser()(" ".join(words[:-1]))
    assert {(binding.attribute, binding.head) for binding in syntax.bindings} == expected


@given(st.lists(st.tuples(COLOURS, NOUNS), min_size=1, max_size=3))
def test_predicates_say_what_attributes_say(things):
    before = RuleParser()(" and ".join(f"the {adjective} {noun}" for adjective, noun in things))
    behind = RuleParser()(" and ".join(f"the {noun} is {adjective}" for adjective, noun in things))

    def texts(syntax):
        return [(syntax.words[each.attribute].text, syntax.words[each.head].text) for each in syntax.bindings]

    assert sorted(texts(before)) == sorted(texts(behind))


@given(SPANS, st.data())
def test_the_focus_matrix_is_the_sum_of_its_bindings(spans, data):
    words = st.integers(0, len(spans) - 1)
    pairs = data.draw(st.lists(st.tuples(words, words), max_size=5))
    bindings = [Binding(*pair) for pair in pairs]
    matrix = focus_matrix(spans, bindings, 16)
    expected = {(a, h) for one, other in pairs for a in spans[one] for h in spans[other]}
    assert {tuple(place) for place in matrix.nonzero().tolist()} == expected
    swapped = focus_matrix(spans, [Binding(each.head, each.attribute) for each in bindings], 16)
    assert swapped.equal(matrix.T)


@given(SPOKEN.filter(str.strip), st.data())
def test_bindings_by_number_and_by_characters_are_the_same(prompt, data):
    words = RuleParser()(prompt).words
    one, other = data.draw(st.tuples(*[st.integers(0, len(words) - 1)] * 2).filter(lambda pair: pair[0] != pair[1]))
    spans = [(words[k].start, words[k].end) for k in (one, other)]
    by_number, by_characters = syntax_of(prompt, [(one, other)]), syntax_of(prompt, [tuple(spans)])
    assert by_number == by_characters
    assert by_number.bindings == (Binding(one, other),)
