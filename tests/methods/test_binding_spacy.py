"""What spaCy's relations become; its documents are stood in for, since no model is installed for tests."""

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from mezzotint.methods.binding.spacy_parser import syntax_of_doc


@dataclass(eq=False)
class Token:
    i: int
    text: str
    idx: int
    pos_: str
    dep_: str
    lemma_: str
    is_space: bool = False
    head: Any = None
    children: list[Any] = field(default_factory=list)


class Doc(list):
    """Tokens with noun chunks."""

    noun_chunks: list[SimpleNamespace]


def doc(text: str, told: str, chunks: list[tuple[int, int, int]]) -> Doc:
    """A parsed text; told is one word/POS/relation/head or word/POS/relation/head/lemma a token."""
    made, heads, place = Doc(), [], 0
    for number, each in enumerate(told.split()):
        word, pos, relation, head, *lemma = each.split("/")
        place = text.index(word, place)
        made.append(Token(number, word, place, pos, relation, lemma[0] if lemma else word.lower()))
        heads.append(int(head))
        place += len(word)
    for token, head in zip(made, heads, strict=True):
        token.head = made[head]
        if made[head] is not token:
            made[head].children.append(token)
    made.noun_chunks = [SimpleNamespace(start=start, end=end, root=made[root]) for start, end, root in chunks]
    return made


@pytest.mark.parametrize(
    ("text", "told", "chunks", "wanted"),
    [
        (
            "a red cube is blue and shiny",
            (
                "a/DET/det/2 red/ADJ/amod/2 cube/NOUN/nsubj/3 is/AUX/ROOT/3/be blue/ADJ/acomp/3 and/CCONJ/cc/4 "
                "shiny/ADJ/conj/4"
            ),
            [(0, 3, 2)],
            {("red", "cube"), ("blue", "cube"), ("shiny", "cube")},
        ),
        (
            "a red and white cube",
            "a/DET/det/4 red/ADJ/amod/4 and/CCONJ/cc/1 white/ADJ/conj/1 cube/NOUN/ROOT/4",
            [(0, 5, 4)],
            {("red", "cube"), ("white", "cube")},
        ),
        (
            "a gold ring, a glass cup, a garden chair",
            (
                "a/DET/det/2 gold/NOUN/compound/2 ring/NOUN/ROOT/2 ,/PUNCT/punct/2 a/DET/det/6 glass/NOUN/compound/6 "
                "cup/NOUN/appos/2 ,/PUNCT/punct/2 a/DET/det/10 garden/NOUN/compound/10 chair/NOUN/appos/2"
            ),
            [(0, 3, 2), (4, 7, 6), (8, 11, 10)],
            {("gold", "ring"), ("glass", "cup")},
        ),
        (
            "a ball that is red",
            "a/DET/det/1 ball/NOUN/ROOT/1 that/PRON/nsubj/3 is/AUX/relcl/1/be red/ADJ/acomp/3",
            [(0, 2, 1)],
            {("red", "ball")},
        ),
        (
            "the ball and the cup are red",
            (
                "the/DET/det/1 ball/NOUN/nsubj/5 and/CCONJ/cc/1 the/DET/det/4 cup/NOUN/conj/1 are/AUX/ROOT/5/be "
                "red/ADJ/acomp/5"
            ),
            [(0, 2, 1), (3, 5, 4)],
            {("red", "ball"), ("red", "cup")},
        ),
        (
            "navy blue suit",
            "navy/ADJ/amod/1 blue/ADJ/amod/2 suit/NOUN/ROOT/2",
            [(0, 3, 2)],
            {("navy", "suit"), ("blue", "suit")},
        ),
        (
            "it is red",
            "it/PRON/nsubj/1 is/AUX/ROOT/1/be red/ADJ/acomp/1",
            [(0, 1, 0)],
            set(),
        ),
    ],
)
def test_relations_become_bindings(text, told, chunks, wanted):
    syntax = syntax_of_doc(text, doc(text, told, chunks))
    words = [word.text for word in syntax.words]
    assert {(words[binding.attribute], words[binding.head]) for binding in syntax.bindings} == wanted
    assert [text[word.start : word.end] for word in syntax.words] == words
