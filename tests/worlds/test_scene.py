"""Scenes: exact JSON, and nothing that is not of this world."""

import dataclasses
import json

import pytest

from mezzotint.worlds.scenes import Camera, Light, Object, Scene, sample


def test_json_gives_back_an_equal_scene():
    for scene in (Scene(), *sample(20, seed=9), *sample(5, seed=9, split="held_out")):
        assert Scene.from_json(scene.to_json()) == scene
        assert Scene.from_json(scene.to_json()).to_json() == scene.to_json()


def test_json_leaves_out_what_is_default_and_reads_whole_numbers():
    text = '{"objects": [{"shape": "cube", "colour": "red", "x": 1}], "camera": {"azimuth": 90}}'
    assert Scene.from_json(text) == Scene((Object("cube", "red", x=1.0),), camera=Camera(azimuth=90.0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shape": "pyramid"}, "shape must be one of sphere"),
        ({"colour": ["red"]}, "colour must be one of red"),
        ({"x": "1"}, "x must be a number"),
        ({"x": True}, "x must be a number"),
        ({"x": float("inf")}, "x must be within"),
        ({"x": float("nan")}, "x must be within"),
        ({"weight": 3}, "not a scene"),
    ],
)
def test_a_foreign_object_is_refused_and_named(change, message):
    data = {"objects": [{"shape": "cube", "colour": "red"} | change]}
    with pytest.raises(ValueError, match=message):
        Scene.from_json(json.dumps(data))


@pytest.mark.parametrize(
    "text", ["", "[]", "null", "{", '{"objects": 3}', '{"lamp": 1}', '{"light": []}', "[" * 100_000]
)
def test_text_that_is_no_scene_is_refused(text):
    with pytest.raises(ValueError, match="not a scene"):
        Scene.from_json(text)


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [(Camera, "fov", 0.5), (Camera, "distance", 0.0), (Camera, "elevation", 91.0), (Light, "ambient", 1.5)],
)
def test_numbers_out_of_range_are_refused(kind, field, value):
    with pytest.raises(ValueError, match=f"{field} must be within"):
        dataclasses.replace(kind(), **{field: value})
