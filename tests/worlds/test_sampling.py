"""Splits: made from a seed alone, disjoint, and without held-out pairs where they must not occur."""

import itertools

import pytest

from mezzotint.worlds.scenes import COLOURS, HELD_OUT, SHAPES, allowed_pairs, sample

SPLITS = ("train", "validation", "test", "held_out")


def pairs(scenes):
    return {(item.shape, item.colour) for scene in scenes for item in scene.objects}


def test_a_scene_depends_on_its_seed_split_and_number_alone():
    whole = sample(12, seed=4)
    assert sample(5, seed=4, first=7) == whole[7:]
    assert sample(12, seed=5) != whole
    assert sample(0, seed=4) == []


def test_no_scene_is_in_two_splits():
    drawn = [{scene.to_json() for scene in sample(300, seed=0, split=split)} for split in SPLITS]
    assert all(len(scenes) == 300 for scenes in drawn)
    assert all(one.isdisjoint(other) for one, other in itertools.combinations(drawn, 2))


def test_held_out_pairs_occur_only_in_their_own_split():
    for split in ("train", "validation", "test"):
        assert pairs(sample(400, seed=1, split=split)).isdisjoint(HELD_OUT)
    assert pairs(sample(200, seed=1, split="held_out")) == HELD_OUT


def test_training_shows_every_shape_and_every_colour_of_the_held_out_pairs():
    seen = allowed_pairs("seen")
    assert {shape for shape, _ in seen} == set(SHAPES)
    assert {colour for _, colour in seen} == set(COLOURS)
    assert sorted([*seen, *allowed_pairs("held_out")]) == sorted(allowed_pairs("all"))
    assert len(HELD_OUT) == len(SHAPES)


def test_the_number_of_objects_is_as_asked():
    assert {len(scene.objects) for scene in sample(60, seed=2)} == {1, 2, 3}
    assert {len(scene.objects) for scene in sample(20, seed=2, objects=(2, 2))} == {2}


@pytest.mark.parametrize("wrong", [{"objects": (0, 2)}, {"objects": (3, 2)}, {"objects": (1, 4)}, {"first": -1}])
def test_wrong_requests_are_refused(wrong):
    with pytest.raises(ValueError, match=r"must"):
        sample(1, **wrong)
