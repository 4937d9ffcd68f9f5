"""Laws of scene accuracy: each failure of binding is called by its name."""

from __future__ import annotations

import itertools

import pytest

from mezzotint.metrics.scene_accuracy import (
    ParsedObject,
    Relation,
    SceneScore,
    WantedObject,
    score_scene,
    score_scenes,
)

RED_CUBE, BLUE_SPHERE = WantedObject("cube", "red"), WantedObject("sphere", "blue")
WANTED = (RED_CUBE, BLUE_SPHERE)


def _seen(*words: str) -> list[ParsedObject]:
    return [ParsedObject(shape, colour) for colour, shape in (word.split() for word in words)]


def test_the_scene_that_was_asked_for_is_right() -> None:
    found = score_scene(WANTED, _seen("red cube", "blue sphere"))
    assert found == SceneScore(
        right=1, exact=1, objects=1, presence=1, binding=1, swap=0, missing=0, extra=0, count=1, relations=1
    )


def test_swapped_colours_are_a_swap_and_nothing_is_missing() -> None:
    found = score_scene(WANTED, _seen("blue cube", "red sphere"))
    assert (found.right, found.swap, found.missing, found.presence, found.binding) == (0, 1, 0, 1, 0)


def test_a_leak_is_a_swap_too() -> None:
    found = score_scene(WANTED, _seen("red cube", "red sphere"))
    assert (found.right, found.swap, found.binding, found.objects) == (0, 1, 0.5, 0.5)


def test_a_colour_nobody_asked_for_is_no_swap() -> None:
    found = score_scene(WANTED, _seen("red cube", "green sphere"))
    assert (found.right, found.swap, found.missing) == (0, 0, 0)


def test_a_missing_object_binds_nothing() -> None:
    found = score_scene(WANTED, _seen("red cube"))
    assert (found.right, found.missing, found.presence, found.binding, found.count) == (0, 1, 0.5, 0.5, 0)


def test_two_cubes_instead_of_a_cube_and_a_sphere() -> None:
    found = score_scene(WANTED, _seen("red cube", "blue cube"))
    assert (found.missing, found.extra, found.count, found.swap) == (1, 1, 1, 0)


def test_something_extra_is_right_but_not_exact() -> None:
    found = score_scene(WANTED, _seen("red cube", "blue sphere", "pink cone"))
    assert (found.right, found.exact, found.extra, found.count) == (1, 0, 1, 0)


def test_nothing_seen() -> None:
    found = score_scene(WANTED, [])
    assert (found.right, found.presence, found.missing, found.extra, found.binding) == (0, 0, 1, 0, 0)


def test_attributes_that_were_not_asked_for_are_not_judged() -> None:
    wanted = [WantedObject("cube")]
    assert score_scene(wanted, [ParsedObject("cube", "red", "small", "shiny", "striped")]).exact == 1


def test_every_attribute_counts() -> None:
    wanted = [WantedObject("cube", "red", "small", "shiny", "striped")]
    found = score_scene(wanted, [ParsedObject("cube", "red", "large", "shiny", "plain")])
    assert (found.binding, found.right) == (0.5, 0)


def test_objects_of_one_shape_are_matched_by_their_attributes_in_any_order() -> None:
    wanted = [WantedObject("cube", colour) for colour in ("red", "green", "blue")]
    for order in itertools.permutations(_seen("red cube", "green cube", "blue cube")):
        assert score_scene(wanted, list(order)).exact == 1


def test_two_equal_wanted_objects_need_two() -> None:
    assert score_scene([RED_CUBE, RED_CUBE], _seen("red cube")).objects == 0.5


def test_the_surer_of_two_equal_objects_is_taken() -> None:
    sure, unsure = ParsedObject("cube", "red", x=0.2, score=0.9), ParsedObject("cube", "red", x=0.8, score=0.6)
    relation = Relation(0, "left of", 1)
    ball = ParsedObject("sphere", "blue", x=0.5)
    for seen in ([sure, unsure, ball], [unsure, sure, ball]):
        assert score_scene(WANTED, seen, relations=[relation]).relations == 1


def test_confidence_never_outweighs_an_attribute() -> None:
    seen = [ParsedObject("cube", "green", score=1.0), ParsedObject("cube", "red", score=0.5)]
    assert score_scene([RED_CUBE], seen).right == 1


def test_unsure_objects_are_ignored() -> None:
    seen = [ParsedObject("cube", "red"), ParsedObject("sphere", "blue", score=0.4)]
    assert score_scene(WANTED, seen).missing == 1
    assert score_scene(WANTED, seen, threshold=0.3).exact == 1


@pytest.mark.parametrize(
    ("kind", "place"),
    [("left of", (0.1, 0.5)), ("right of", (0.9, 0.5)), ("in front of", (0.5, 0.9)), ("behind", (0.5, 0.1))],
)
def test_relations_hold_where_they_say_and_not_elsewhere(kind: str, place: tuple[float, float]) -> None:
    cube = ParsedObject("cube", "red", x=place[0], y=place[1])
    ball = ParsedObject("sphere", "blue")
    right = score_scene(WANTED, [cube, ball], relations=[Relation(0, kind, 1)])
    wrong = score_scene(WANTED, [cube, ball], relations=[Relation(1, kind, 0)])
    assert (right.relations, right.right) == (1, 1)
    assert (wrong.relations, wrong.right, wrong.objects) == (0, 0, 1)


def test_many_pictures_are_judged_one_by_one() -> None:
    pictures = [_seen("red cube", "blue sphere"), _seen("blue cube", "red sphere"), []]
    table = score_scenes([WANTED] * 3, pictures)
    assert table["right"] == [1, 0, 0]
    assert table["swap"] == [0, 1, 0]
    assert table["missing"] == [0, 0, 1]


def test_refuses_what_cannot_be_judged() -> None:
    with pytest.raises(ValueError, match="at least one object"):
        score_scene([], [])
    with pytest.raises(ValueError, match=r"objects 0\.\.1"):
        score_scene(WANTED, [], relations=[Relation(0, "behind", 2)])
    with pytest.raises(ValueError, match="one picture a prompt"):
        score_scenes([WANTED], [])
    with pytest.raises(ValueError, match="kind must be one of"):
        Relation(0, "above", 1)
    with pytest.raises(ValueError, match="must differ"):
        Relation(1, "behind", 1)
