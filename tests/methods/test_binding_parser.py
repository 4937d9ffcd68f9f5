"""Laws of the parser: who describes whom in a prompt, and the phrases that are encoded by themselves.

`binding_golden.json` has sentences with their bindings, "attribute>noun", with "#2" for the second word of a spelling.
The held-out parts were written before the parser was first run on them.
"""

import json
import warnings
from collections import Counter
from pathlib import Path

import pytest

from mezzotint.files import FileError
from mezzotint.methods.binding.lexicon import lexicon
from mezzotint.methods.binding.prompts import load_binding_prompts, load_released_syntax
from mezzotint.methods.binding.resolve import syntax_of, syntax_of_caption
from mezzotint.methods.binding.rule_parser import RuleParser, is_english
from mezzotint.methods.binding.spacy_parser import SpacyParser
from mezzotint.methods.binding.tagging import tag_words, tokenise
from mezzotint.methods.binding.words import Binding
from mezzotint.worlds.scenes.captions import STYLES, caption
from mezzotint.worlds.scenes.sampling import sample

GOLDEN = json.loads(Path(__file__).with_name("binding_golden.json").read_text(encoding="utf-8"))


def named(syntax):
    seen, names = Counter(), []
    for word in syntax.words:
        text = word.text.lower()
        seen[text] += 1
        names.append(text if seen[text] == 1 else f"{text}#{seen[text]}")
    return {f"{names[binding.attribute]}>{names[binding.head]}" for binding in syntax.bindings}


def phrases(prompt):
    return [phrase.text for phrase in RuleParser()(prompt).constituents]


@pytest.mark.parametrize("part", list(GOLDEN))
def test_golden_sentences(part):
    found = {prompt: named(RuleParser()(prompt)) for prompt in GOLDEN[part]}
    wanted = {prompt: set(bindings.split()) for prompt, bindings in GOLDEN[part].items()}
    assert {prompt: pairs for prompt, pairs in found.items() if pairs != wanted[prompt]} == {}


def test_the_golden_set_is_as_large_as_promised():
    assert len(GOLDEN["golden"]) >= 150
    assert len(GOLDEN["held_out"]) >= 60
    assert not set(GOLDEN["golden"]) & set(GOLDEN["held_out"])


@pytest.mark.parametrize("change", [str.upper, str.title, lambda text: f"  {text} ", lambda text: f"{text}."])
@pytest.mark.parametrize("prompt", ["a red cube and a blue sphere", "the ball is red and the cube is blue"])
def test_bindings_do_not_depend_on_case_or_surroundings(prompt, change):
    assert named(RuleParser()(change(prompt))) == named(RuleParser()(prompt))


def test_words_are_all_of_the_prompt_but_white_space():
    prompt = "A  girl’s pink-and-white dress, (red:1.2) — café\n\ttwo_three"
    words = RuleParser()(prompt).words
    assert [word.text for word in words] == [prompt[word.start : word.end] for word in words]
    assert "".join(word.text for word in words) == "".join(prompt.split())


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a green bench and a red car", ["a green bench", "a red car", "bench and car"]),
        ("a red cube", ["a red cube"]),
        ("a dog and a cat", ["a dog", "a cat", "dog and cat"]),
        ("the girl's pink dress", ["the girl's pink dress"]),
        ("the blond girl's pink dress", ["the blond girl's", "the blond girl's pink dress"]),
        ("the ball is red", ["the ball"]),
        (
            "a red ball in front of a blue box and a man wearing a hat",
            ["a red ball", "a blue box", "a man", "a hat", "ball in front of box and man"],
        ),
        ("a very large balloon next to an orange", ["a very large balloon", "an orange", "balloon next to orange"]),
    ],
)
def test_constituents_are_noun_phrases_and_rows_of_their_heads(prompt, expected):
    assert phrases(prompt) == expected


def test_constituents_say_where_they_stand():
    syntax = RuleParser()("a green bench and a red car")
    first, _, top = syntax.constituents
    assert syntax.prompt[first.start : first.end] == "a green bench"
    assert (top.start, top.end, top.heads) == (0, len(syntax.prompt), (2, 6))


@pytest.mark.parametrize("scenes", [40, pytest.param(334, marks=pytest.mark.slow, id="2004 captions")])
def test_world_captions_have_the_bindings_of_their_scenes(scenes):
    """The objects' attributes exactly, and beside them the floor's and the sky's, which are no objects."""
    parser, wrong = RuleParser(), []
    for index, scene in enumerate(sample(scenes, seed=20_240, combinations="all")):
        for style in STYLES:
            said = caption(scene, style, seed=index)
            words, bindings = (syntax := parser(said.text)).words, syntax.bindings
            objects = [pair for pair in bindings if words[pair.head].text not in {"floor", "sky"}]
            found = {(words[pair.attribute].start, words[pair.head].start) for pair in objects}
            if found != {(binding.word.start, binding.noun.start) for binding in said.bindings}:
                wrong.append(said.text)
    assert wrong == []


def test_a_caption_is_bound_by_its_scene_and_not_by_its_words():
    said = caption(sample(1, seed=3, combinations="all")[0], "detailed", seed=0)
    syntax = syntax_of_caption(said)
    spans = {(syntax.words[each.attribute].start, syntax.words[each.head].end) for each in syntax.bindings}
    assert spans == {(binding.word.start, binding.noun.end) for binding in said.bindings}
    assert len(syntax.bindings) == len(said.bindings) > 0


@pytest.mark.parametrize(
    "prompt",
    [
        "ein roter Würfel und eine blaue Kugel auf dem Tisch",
        "un cubo rojo y una esfera azul sobre la mesa",
        "красный куб и синяя сфера",
        "赤い立方体と青い球",
        "qwrt zxcv plmk brtz wvks xqzt",
    ],
)
def test_other_languages_are_warned_of_and_bind_nothing(prompt):
    with pytest.warns(UserWarning, match="no English"):
        syntax = syntax_of(prompt)
    assert syntax.bindings == syntax.constituents == ()


def test_other_languages_can_be_bound_by_hand():
    syntax = syntax_of("ein roter Würfel und eine blaue Kugel", [("roter", "Würfel"), ("blaue", "Kugel")])
    assert named(syntax) == {"roter>würfel", "blaue>kugel"}
    assert [phrase.text for phrase in syntax.constituents] == ["roter Würfel", "blaue Kugel"]


@pytest.mark.parametrize(
    "prompt", ["", "   ", "cat", "red cube, blue sphere", "portrait of a woman", "sunset mountain river", "?!"]
)
def test_short_and_plain_prompts_are_not_taken_for_another_language(prompt):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        syntax_of(prompt)
    assert is_english(tokenise(prompt))


def test_given_bindings_are_used_as_they_are():
    prompt = "a red cube and a red teddy bear"
    by_words = syntax_of(prompt, [("red#1", "cube"), ("red#2", "teddy bear")])
    by_number = syntax_of(prompt, [(1, 2), (5, 7)])
    by_characters = syntax_of(prompt, [((2, 5), (6, 10)), ((17, 20), (21, 31))])
    assert by_words == by_number == by_characters
    assert by_words.bindings == (Binding(1, 2), Binding(5, 7))
    assert syntax_of(prompt, []).bindings == ()


def test_every_word_of_a_given_attribute_is_bound():
    assert named(syntax_of("a Dark Blue car", [("dark blue", "CAR")])) == {"dark>car", "blue>car"}


@pytest.mark.parametrize(
    ("bindings", "message"),
    [
        ([("rad", "sphere")], "'rad' is not in the prompt; did you mean 'red'"),
        (
            [("cube", "sphere")],
            r"'cube' is in the prompt 2 times; say which: cube#1 \(word 2, characters 6-10\), cube#2",
        ),
        ([("red", "cube#3")], "2 times, so there is no 'cube#3'"),
        ([("red", "red")], "cannot be its own attribute"),
        ([("red", "sphere"), ("sphere", "red")], "form no circle"),
        ([("red", "sphere"), ("sphere", "cube#1"), ("cube#1", "red")], "form no circle"),
        ([(-1, 2)], "must lie in 0..8"),
        ([(1, 99)], "must lie in 0..8"),
        ([((90, 95), 2)], "hold no word"),
        ([((5, 5), 2)], "hold no word"),
        ([("", "sphere")], "not in the prompt"),
    ],
)
def test_bindings_that_mean_nothing_are_refused(bindings, message):
    with pytest.raises(ValueError, match=message):
        syntax_of("a red cube and a sphere beside a cube", bindings)


def test_a_parser_of_the_users_is_asked():
    def one_word(prompt):
        return RuleParser()("a blue box")

    assert named(syntax_of("whatever", parser=one_word)) == {"blue>box"}


def test_without_spacy_the_error_names_what_else_there_is():
    try:
        import spacy  # noqa: F401
    except ImportError:
        with pytest.raises(ImportError, match=r"bindings=.*RuleParser.*release page"):
            SpacyParser("en_core_web_sm")
    else:
        with pytest.raises(ValueError, match=r"bindings=.*RuleParser.*release page"):
            SpacyParser("no_such_model")


def test_the_lexicon_is_lower_case_and_knows_the_worlds_words():
    known = lexicon()
    words = set().union(
        *(getattr(known, name) for name in ("adjectives", "determiners", "strong", "weak", "prepositions"))
    )
    assert all(word == word.lower() for word in words)
    assert {"red", "cyan", "matte", "shiny", "striped", "checkered", "dotted", "small", "large"} <= known.adjectives


def test_a_verb_is_told_from_a_noun_by_its_neighbours():
    def tags(prompt):
        return tag_words(tokenise(prompt)).tags

    assert tags("a man watches a bird")[2] == "V"
    assert tags("two black watches on a table")[2] == "N"
    assert tags("a green plant stands here")[2:4] == ["N", "V"]


def test_prompt_lists_keep_their_line_numbers(tmp_path):
    (tmp_path / "CC-500.txt").write_text("a red car\n\n  a blue bus \n" + "x\n" * 500, encoding="utf-8")
    found = load_binding_prompts(tmp_path, "cc")
    assert [(prompt.id, prompt.text) for prompt in found[:2]] == [(1, "a red car"), (3, "a blue bus")]
    assert found[-1].id == 446
    with pytest.raises(ValueError, match="one of ae, cc"):
        load_binding_prompts(tmp_path, "cc-500")
    with pytest.raises(FileError, match="cannot be opened"):
        load_binding_prompts(tmp_path, "coco")
    (tmp_path / "COCO-10K.txt").write_bytes(b"caf\xe9\n")
    with pytest.raises(FileError, match="not UTF-8"):
        load_binding_prompts(tmp_path, "coco")


def test_released_parses_are_read(tmp_path):
    path = tmp_path / "parser_ae.json"
    entry = ["[(4, 5)]", [["a horse", ["horse"]], ["a blue bench", ["bench"]], ["horse and bench", ["horse", "bench"]]],
             ["a", "horse", "and", "a", "blue", "bench"]]  # fmt: skip
    path.write_text(json.dumps({"a horse and a blue bench": entry}), encoding="utf-8")
    read = load_released_syntax(path)["a horse and a blue bench"]
    assert read == RuleParser()("a horse and a blue bench")
    for wrong in ([1], {"a": ["[(0, 9)]", [], ["a"]]}, {"a": ["import os", [], ["a"]]}, {"a": []}):
        path.write_text(json.dumps(wrong), encoding="utf-8")
        with pytest.raises(FileError):
            load_released_syntax(path)


def test_a_learnt_word_is_one_noun():
    parsed = RuleParser()("a red <S> cube beside a shiny <toy-1>, 2 < 3 and <>")
    texts = [word.text for word in parsed.words]
    assert "<S>" in texts
    assert {(texts[each.attribute], texts[each.head]) for each in parsed.bindings} == {
        ("red", "cube"),
        ("shiny", "<toy-1>"),
    }
    assert texts[-2:] == ["<", ">"]
