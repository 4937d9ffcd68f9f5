"""Depth and cameras agree: points go from one view into another and meet the same object."""

import pytest
import torch

from mezzotint.worlds import scenes
from mezzotint.worlds.scenes.camera import pixel_rays
from mezzotint.worlds.scenes.geometry import Rays
from mezzotint.worlds.scenes.packing import pack
from mezzotint.worlds.scenes.trace import trace

TURNS = (15.0, 40.0, 90.0, 180.0, 300.0)


@pytest.fixture(scope="module")
def views():
    drawn = scenes.sample(8, seed=21, objects=(2, 3))
    source = [scene for scene in drawn for _ in TURNS]
    target = [view for scene in drawn for view in scenes.orbit(scene, TURNS)]
    return source, target, scenes.render(source, 96, supersample=1), scenes.render(target, 96, supersample=1)


def test_points_project_back_to_their_own_pixels(views):
    _, _, source, _ = views
    found = scenes.reproject(source, source, tolerance=1e-4)
    rows, columns = torch.meshgrid(torch.arange(96) + 0.5, torch.arange(96) + 0.5, indexing="ij")
    met = torch.isfinite(source.depth)
    assert torch.equal(found.visible, met)
    expected = torch.stack([columns, rows]).expand_as(found.pixels)
    torch.testing.assert_close(
        found.pixels[met.expand(-1, 2, -1, -1)], expected[met.expand(-1, 2, -1, -1)], atol=1e-3, rtol=0
    )
    torch.testing.assert_close(found.depth[met], source.depth[met], atol=1e-4, rtol=1e-5)


def test_covisible_pixels_show_the_same_object(views):
    """Covisible: seen by the target's own depth within 2 %, and at no silhouette of either view."""
    _, _, source, target = views
    found = scenes.reproject(source, target)
    there = found.gather(target.instance.to(torch.float32)).long()
    at_edge = scenes.silhouettes(source) | (found.gather(scenes.silhouettes(target).float()) > 0)
    same, covisible = there == source.instance, found.visible & ~at_edge
    assert covisible.sum() > 100_000
    assert (covisible & (source.instance > 0)).sum() > 5_000
    assert same[covisible].double().mean() >= 0.995
    assert same[covisible & (source.instance > 0)].double().mean() >= 0.995
    # With the silhouettes, where the nearest pixel may show the neighbour, it is nearly as good.
    assert same[found.visible].double().mean() >= 0.985


def test_rays_to_the_very_points_meet_the_same_object_or_an_occluder(views):
    """No pixel grid on the target's side, hence nothing left out: each point is looked at along its own ray."""
    scenes_from, scenes_to, source, _ = views
    points = scenes.unproject(source).movedim(1, 0).flatten(2)[:, :, None]
    rays, _ = pixel_rays(scenes_to, 96, ((0.5, 0.5),), "cpu")
    offset = points - rays.origin
    distance = offset.norm(dim=0)
    hits = trace(pack(scenes_to), Rays(rays.scene, rays.origin, (offset / distance).nan_to_num()))
    met = torch.isfinite(source.depth.flatten(2))
    instance = source.instance.flatten(2) - 1
    seen = met & (hits.distance > distance - 5e-3)
    assert (hits.distance[met] < distance[met] + 5e-3).double().mean() > 0.9995
    assert (hits.instance == instance)[seen].double().mean() > 0.999
    hidden = met & ~seen
    assert (hits.instance[hidden] >= 0).double().mean() > 0.999
    assert len(scenes_from) == len(scenes_to)


def test_gathering_brings_the_colours_of_flat_lit_floor(views):
    _, _, source, target = views
    found = scenes.reproject(source, target)
    floor = found.visible & (source.instance == 0) & (found.gather(target.instance.float()) == 0)
    change = (found.gather(target.rgb) - source.rgb).abs().amax(1, keepdim=True)[floor]
    # Shadows and floor stay where they are when the camera turns; only haze differs, and pixels at shadow edges.
    assert change.median() < 0.03


def test_points_behind_the_camera_are_not_visible():
    scene = scenes.Scene((scenes.Object("cube", "red"),))
    away = scenes.orbit(scene, [scenes.Camera(elevation=0.0, distance=2.0, target_height=50.0)])
    source, target = scenes.render([scene], 32), scenes.render(away, 32)
    assert not scenes.reproject(source, target).visible.any()


def test_wrong_requests_are_refused(views):
    _, _, source, target = views
    with pytest.raises(ValueError, match="one target view a source view"):
        scenes.reproject(source, target[:1])
    with pytest.raises(ValueError, match="tolerance must be positive"):
        scenes.reproject(source, target, tolerance=0.0)
