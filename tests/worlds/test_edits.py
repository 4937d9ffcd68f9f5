"""Edits change what they say and nothing else, in the scene and in the picture."""

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import max_pool2d

from mezzotint.worlds import scenes
from mezzotint.worlds.scenes import Camera, Light, Object, Scene, render


def around(frame, number):
    """Pixels in which a ray near the pixel's centre may meet the object."""
    return max_pool2d((frame.instance == number).float(), 3, stride=1, padding=1) > 0


def changed(one, other):
    return (one.rgb != other.rgb).any(1, keepdim=True)


@pytest.mark.parametrize("change", [{"colour": "green"}, {"material": "shiny"}, {"pattern": "checkered"}])
def test_a_new_surface_changes_only_the_object_s_own_pixels(trio, change):
    before, after = render([trio], 64), render([scenes.edit(trio, 0, **change)], 64)
    for name in ("depth", "normal", "instance", "coordinates", "world_to_camera", "intrinsics"):
        assert torch.equal(getattr(before, name), getattr(after, name))
    assert changed(before, after).sum() > 20
    assert not (changed(before, after) & ~around(before, 1)).any()


def test_a_move_changes_geometry_only_where_the_object_was_or_is(trio):
    before, after = render([trio], 64), render([scenes.move(trio, 1, x=-0.4, z=0.5)], 64)
    own = around(before, 2) | around(after, 2)
    assert (before.instance != after.instance).any()
    for name in ("depth", "normal", "instance"):
        assert not ((getattr(before, name) != getattr(after, name)).any(1, keepdim=True) & ~own).any()


def test_taking_away_shows_what_was_behind(trio):
    crowded = scenes.add(trio, Object("cylinder", "green", x=0.3, z=0.4))
    before, after = render([crowded], 64), render([scenes.remove(crowded, 3)], 64)
    gone = before.instance == 4
    assert gone.any()
    assert torch.equal(before.instance[~gone], after.instance[~gone])
    assert (after.depth >= before.depth)[gone].all()
    assert scenes.remove(crowded, 3) == trio


def test_other_light_changes_no_geometry(trio):
    before, after = render([trio], 48), render([scenes.relight(trio, azimuth=120.0)], 48)
    assert torch.equal(before.depth, after.depth)
    assert torch.equal(before.instance, after.instance)
    assert changed(before, after).double().mean() > 0.2


@pytest.mark.parametrize("attribute", ["shape", "colour", "size", "material", "pattern", "place"])
def test_a_swap_exchanges_one_attribute_and_undoes_itself(trio, attribute):
    swapped = scenes.swap(trio, 0, 1, attribute)
    names = ("x", "z") if attribute == "place" else (attribute,)
    for name in ("shape", "colour", "size", "material", "pattern", "x", "z", "rotation"):
        one, other = (0, 1) if name not in names else (1, 0)
        assert getattr(swapped.objects[0], name) == getattr(trio.objects[one], name)
        assert getattr(swapped.objects[1], name) == getattr(trio.objects[other], name)
    assert swapped.objects[2] == trio.objects[2]
    assert scenes.swap(swapped, 0, 1, attribute) == trio


def test_edits_leave_the_scene_they_were_given_alone(trio):
    before = trio.to_json()
    scenes.recolour(trio, 0, "pink")
    scenes.orbit(trio, 3)
    assert trio.to_json() == before
    assert scenes.recolour(trio, 2, "pink") == scenes.edit(trio, 2, colour="pink")


def test_a_full_turn_gives_the_same_bits(trio):
    turned = scenes.orbit(replace(trio, camera=Camera(azimuth=-40.0)), [0.0, 360.0, -720.0])
    frames = render(turned, 32)
    assert torch.equal(frames.rgb[0], frames.rgb[1])
    assert torch.equal(frames.rgb[0], frames.rgb[2])


def test_an_orbit_moves_the_camera_and_nothing_else(trio):
    views = scenes.orbit(trio, 4)
    assert [view.camera.azimuth for view in views] == [0.0, 90.0, 180.0, 270.0]
    assert all(replace(view, camera=trio.camera) == trio for view in views)
    assert scenes.orbit(trio, [Camera(fov=50.0)])[0].camera == Camera(fov=50.0)


def test_turning_the_camera_equals_turning_the_world():
    scene = Scene((Object("cube", "red", x=1.0, z=0.5, rotation=10.0),), light=Light(azimuth=-40.0))
    # A right angle takes x to z: the camera from +x sees what the first camera sees of the turned world.
    world = Scene((Object("cube", "red", x=-0.5, z=1.0, rotation=-80.0),), light=Light(azimuth=-130.0))
    one, other = render(scenes.orbit(scene, [90.0]), 32), render([world], 32)
    assert torch.equal(one.instance, other.instance)
    torch.testing.assert_close(one.depth, other.depth, atol=1e-4, rtol=1e-5)
    assert (one.rgb - other.rgb).abs().mean() < 1e-3


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda scene: scenes.edit(scene, 3, colour="red"), r"index must be the place of an object, 0\.\.2; got 3"),
        (lambda scene: scenes.remove(scene, -1), "index must be"),
        (lambda scene: scenes.remove(Scene(), 0), "the scene is empty"),
        (lambda scene: scenes.edit(scene, 0, weight=1.0), "Object has no 'weight'; its fields are shape"),
        (lambda scene: scenes.relight(scene, colour=1.0), "Light has no 'colour'"),
        (lambda scene: scenes.relight(scene, ambient=2.0), "ambient must be within"),
        (lambda scene: scenes.orbit(scene, 0), "views must be at least 1"),
    ],
)
def test_wrong_edits_are_refused(trio, wrong, message):
    with pytest.raises(ValueError, match=message):
        wrong(trio)
