"""Captions say what is there, and their spans cover exactly the words they name."""

import re

import pytest

from mezzotint.worlds import scenes
from mezzotint.worlds.scenes import STYLES, Object, Scene, caption

DRAWN = [*scenes.sample(60, seed=12), *scenes.sample(20, seed=12, split="held_out")]
GLUE = {
    "a", "an", "and", "on", "in", "front", "of", "behind", "next", "to", "the", "left", "right", "floor", "sky",
    "under", "picture", "scene", "with", "there", "is", "standing",
}  # fmt: skip
WORDS = {*scenes.SHAPES, *scenes.COLOURS, *scenes.MATERIALS, *scenes.PATTERNS, *scenes.SIZES}
PLACES = {*scenes.FLOORS, *scenes.SKIES}


def covered(text, span):
    return text[span.start : span.end]


@pytest.mark.parametrize("style", STYLES)
def test_spans_cover_the_words_of_the_scene(style):
    for number, scene in enumerate(DRAWN):
        found = caption(scene, style, seed=number)
        assert str(found) == found.text
        assert sorted(index for index, _ in found.nouns) == list(range(len(scene.objects)))
        for index, noun in found.nouns:
            assert covered(found.text, noun) == scene.objects[index].shape
        for item in found.bindings:
            assert covered(found.text, item.word) == getattr(scene.objects[item.index], item.attribute)
            assert (item.index, item.noun) in found.nouns
            assert item.word.end < item.noun.start


@pytest.mark.parametrize("style", STYLES)
def test_every_descriptive_word_is_bound_once(style):
    for number, scene in enumerate(DRAWN):
        found = caption(scene, style, seed=number)
        spans = [item.word for item in found.bindings] + [noun for _, noun in found.nouns]
        assert len(spans) == len(set(spans))
        rest = list(found.text)
        for span in spans:
            rest[span.start : span.end] = " " * (span.end - span.start)
        left = set(re.findall(r"[a-z]+", "".join(rest)))
        assert left <= GLUE | {scene.floor, scene.sky}
        assert not left & (WORDS - PLACES)


@pytest.mark.parametrize("style", [style for style in STYLES if style != "short"])
def test_every_object_is_named_with_its_colour(style):
    for number, scene in enumerate(DRAWN):
        if style == "paraphrased" and len(scene.objects) == 0:
            continue
        bound = {item.index for item in caption(scene, style, seed=number).bindings if item.attribute == "colour"}
        assert bound == set(range(len(scene.objects)))


def test_the_detailed_style_says_all_but_what_is_ordinary():
    scene = Scene((Object("cone", "orange", "small", "shiny", "striped"),), floor="brown", sky="dusk")
    assert caption(scene, "detailed").text == "a small shiny orange striped cone on a brown floor under a dusk sky"
    plain = Scene((Object("cone", "orange"),))
    assert caption(plain, "detailed").text == "a large orange cone on a gray floor under a day sky"
    assert caption(plain).text == "an orange cone on a gray floor"
    assert caption(Scene()).text == "nothing on a gray floor"


def test_the_seed_decides_order_and_wording():
    scene = Scene((Object("cube", "red", x=-1.0), Object("sphere", "blue", x=1.0)))
    for style in STYLES:
        texts = [caption(scene, style, seed=seed).text for seed in range(24)]
        assert texts == [caption(scene, style, seed=seed).text for seed in range(24)]
        assert len(set(texts)) >= 2


@pytest.mark.parametrize(
    ("azimuth", "words"),
    [(0.0, "to the left of"), (180.0, "to the right of"), (90.0, "in front of"), (-90.0, "behind")],
)
def test_relations_are_those_that_the_camera_sees(azimuth, words):
    # From the +x side, what stands at smaller x is farther: hence the turn decides.
    pair = (Object("cube", "red", x=-1.0), Object("sphere", "blue", x=1.0))
    scene = Scene(pair, camera=scenes.Camera(azimuth=azimuth))
    opposite = {
        "to the left of": "to the right of",
        "to the right of": "to the left of",
        "in front of": "behind",
        "behind": "in front of",
    }
    texts = {caption(scene, "relations", seed=seed).text for seed in range(16)}
    expected = {"in front of": "behind", "behind": "in front of"}.get(words, words)
    assert texts == {
        f"a red cube {expected} a blue sphere on a gray floor",
        f"a blue sphere {opposite[expected]} a red cube on a gray floor",
    }


def test_an_unknown_style_is_refused():
    with pytest.raises((ValueError, TypeError)):
        caption(Scene(), "rhymed")
