"""The tracer: closed forms, exact ground truth, and the same bits however the work is cut."""

import math
from dataclasses import fields, replace

import pytest
import torch

from mezzotint.worlds import scenes
from mezzotint.worlds.scenes import FLOOR, SKY, Camera, Light, Object, Scene, picture, render


def assert_same_bits(one, other):
    for field in fields(one):
        assert torch.equal(getattr(one, field.name), getattr(other, field.name)), field.name


@pytest.mark.parametrize("size", [64, 45])
def test_one_and_two_threads_give_the_same_bits(some_scenes, one_thread_after, size):
    # An odd size leaves remainders in vectorised loops, which the number of threads moves.
    frames = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        frames.append(render(some_scenes, size))
    assert_same_bits(*frames)


def test_a_batch_gives_the_bits_of_its_scenes_made_alone(some_scenes):
    together = render(some_scenes, 21)
    for k, scene in enumerate(some_scenes):
        assert_same_bits(together[k : k + 1], render([scene], 21))


def test_groups_of_any_size_give_the_same_bits(some_scenes, monkeypatch):
    whole = picture(some_scenes, 23)
    module = __import__("sys").modules["mezzotint.worlds.scenes.render"]
    monkeypatch.setattr(module, "_RAYS_AT_ONCE", 1)
    assert torch.equal(picture(some_scenes, 23), whole)


def test_picture_is_the_rgb_of_render(some_scenes):
    assert torch.equal(picture(some_scenes, 32, supersample=3), render(some_scenes, 32, supersample=3).rgb)


def test_every_pixel_belongs_to_one_thing(some_scenes):
    scene = scenes.edit(some_scenes[0], 0, x=0.0)
    frame = render([*some_scenes, replace(scene, camera=Camera(elevation=2.0))], 48)
    assert int(frame.instance.max()) <= 3
    parts = [frame.instance == k for k in range(SKY, 4)]
    assert torch.equal(sum(part.long() for part in parts), torch.ones_like(frame.instance))
    sky = frame.instance == SKY
    assert bool(sky.any())
    assert torch.equal(sky, torch.isinf(frame.depth))
    assert torch.equal(frame.normal.norm(dim=1, keepdim=True) == 0, sky)
    on_floor = (frame.instance == FLOOR).expand_as(frame.normal)
    up = torch.tensor([0.0, 1.0, 0.0])[None, :, None, None].expand_as(frame.normal)
    assert torch.equal(frame.normal[on_floor], up[on_floor])


def test_the_pieces_of_a_picture_put_together_are_the_picture(trio):
    frame = render([trio], 64)
    total = torch.zeros_like(frame.rgb)
    for k in range(4):
        total += frame.rgb * (frame.instance == k)
    assert torch.equal(total, frame.rgb)
    assert all((frame.instance == k).sum() > 30 for k in range(4))


def ball(size="large", **camera):
    item = Object("sphere", "red", size)
    return Scene((item,), camera=replace(Camera(target_height=item.radius), **camera))


@pytest.mark.parametrize("camera", [{}, {"azimuth": 130.0, "elevation": 65.0}, {"distance": 3.0, "fov": 60.0}])
def test_the_depth_and_the_size_of_a_ball_are_the_closed_forms(camera):
    scene, size = ball(**camera), 257
    frame, item, eye = render([scene], size, supersample=1), scene.objects[0], scene.camera
    middle = size // 2
    torch.testing.assert_close(
        frame.depth[0, 0, middle, middle], torch.tensor(eye.distance - item.radius), atol=1e-4, rtol=0
    )
    focal = size / (2 * math.tan(math.radians(eye.fov) / 2))
    area = math.pi * (focal * math.tan(math.asin(item.radius / eye.distance))) ** 2
    assert (frame.instance == 1).sum().item() == pytest.approx(area, rel=0.005)


def test_the_centre_of_a_ball_is_where_the_camera_projects_it():
    scene = Scene((Object("sphere", "red", "small", x=0.7, z=-0.9),), camera=Camera(azimuth=25.0))
    frame = render([scene], 256, supersample=1)
    centre = torch.tensor([[[0.7, 0.54, -0.9]]])
    pixel, _ = scenes.project(centre, frame.world_to_camera, frame.intrinsics)
    rows, columns = torch.nonzero(frame.instance[0, 0] == 1, as_tuple=True)
    found = torch.stack([columns.double().mean() + 0.5, rows.double().mean() + 0.5])
    torch.testing.assert_close(found, pixel[0, 0].double(), atol=0.3, rtol=0)


@pytest.mark.parametrize("shape", scenes.SHAPES)
def test_normals_are_those_of_the_surface_that_depth_describes(shape):
    frame = render([Scene((Object(shape, "red", rotation=20.0),))], 256, supersample=1)
    points = scenes.unproject(frame)
    across = points[:, :, 1:-1, 2:] - points[:, :, 1:-1, :-2]
    down = points[:, :, 2:, 1:-1] - points[:, :, :-2, 1:-1]
    from_depth = torch.nn.functional.normalize(torch.linalg.cross(down, across, dim=1), dim=1)
    agreement = (from_depth * frame.normal[:, :, 1:-1, 1:-1]).sum(1)
    inner = ((frame.instance == 1) & ~scenes.silhouettes(frame))[:, 0, 1:-1, 1:-1]
    torch.testing.assert_close(frame.normal.norm(dim=1), torch.ones(1, 256, 256))
    # A few pixels lie across an edge, where the surface has two normals.
    assert (agreement[inner] > 0.998).double().mean() > 0.94


def test_object_coordinates_lie_on_the_unit_shape_and_turn_with_the_object():
    turned = Scene((Object("cube", "red", rotation=35.0),))
    frame = render([turned, scenes.edit(turned, 0, rotation=125.0)], 64, supersample=1)
    on = (frame.instance == 1)[:, 0]
    place = frame.coordinates.abs().amax(1)
    torch.testing.assert_close(place[on], torch.full_like(place[on], 0.82), atol=1e-4, rtol=0)
    assert not frame.coordinates.movedim(1, -1)[~on].any()
    # A cube turned by a right angle looks the same and shows another of its sides.
    assert torch.equal(on[0], on[1])
    assert not torch.allclose(frame.coordinates[0], frame.coordinates[1])


def test_shadows_darken_the_floor_and_lie_where_the_light_throws_them():
    light = Light(azimuth=-90.0, elevation=45.0, softness=0.0)
    scene = Scene((Object("sphere", "red"),), light=light, camera=Camera(elevation=50.0))
    bare, full = render([scenes.remove(scene, 0)], 128), render([scene], 128)
    floor = ((full.instance == FLOOR) & ~scenes.silhouettes(full)).expand(-1, 3, -1, -1)
    assert (full.rgb <= bare.rgb + 1e-6)[floor].all()
    shadow = torch.tensor([[[0.86, 0.0, 0.0]]])  # 0.86 high, light from the left at 45 degrees
    pixel, _ = scenes.project(shadow, full.world_to_camera, full.intrinsics)
    column, row = (int(value) for value in pixel[0, 0])
    assert full.instance[0, 0, row, column] == FLOOR
    there, before = full.rgb[0, :, row, column], bare.rgb[0, :, row, column]
    ambient = light.ambient / (light.ambient + 0.95 * (1 - light.ambient) / 0.62 * math.sin(math.radians(45)))
    assert (there / before < ambient ** (1 / 2.2) + 0.02).all()


def test_a_wider_light_gives_softer_shadows(trio):
    hard, soft = (render([scenes.relight(trio, softness=softness)], 64, supersample=4) for softness in (0.0, 20.0))
    floor = (hard.instance == FLOOR) & ~scenes.silhouettes(hard)

    def steepest(frame):
        rgb = frame.rgb.masked_fill(~floor, torch.nan)
        return (rgb[..., 1:] - rgb[..., :-1]).abs().nan_to_num().amax()

    assert steepest(soft) < 0.8 * steepest(hard)


def test_contact_darkens_the_floor_beside_an_object(trio):
    scene = scenes.relight(trio, ambient=1.0)
    bare, full = render([replace(scene, objects=())], 96), render([scene], 96)
    change = (full.rgb - bare.rgb)[:, :1].masked_fill(full.instance != FLOOR, 0.0)
    points = scenes.unproject(full)
    first = scene.objects[0]
    distance = ((points[:, :1] - first.x) ** 2 + (points[:, 2:] - first.z) ** 2).sqrt()
    near, far = change[(distance < 1.2) & (full.instance == FLOOR)], change[(distance > 2.5) & (full.instance == FLOOR)]
    assert near.mean() < 2 * far.mean() < 0


def test_shiny_things_are_brighter_where_they_mirror_and_never_darker():
    matte = Scene((Object("sphere", "blue"),))
    shiny = scenes.edit(matte, 0, material="shiny")
    one, other = picture([matte, shiny], 64)
    assert (other >= one - 1e-6).all()
    assert (other - one).max() > 0.3


def test_supersampling_converges(trio):
    scene = [scenes.relight(trio, softness=0.0)]
    truth = picture(scene, 32, supersample=16)
    errors = [(picture(scene, 32, supersample=k) - truth).abs().mean().item() for k in (1, 2, 4, 8)]
    assert errors[0] > 1.5 * errors[1] > 2.2 * errors[2] > 3.3 * errors[3]


def test_an_empty_world_is_floor_and_haze():
    frame = render([Scene()], 32)
    assert set(frame.instance.unique().tolist()) <= {SKY, FLOOR}
    assert not frame.coordinates.any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(([],), "nothing to render"), (([Scene()], 4), "size must be at least 8"), (([], 8), "nothing")],
)
def test_wrong_requests_are_refused(arguments, message):
    for function in (render, picture):
        with pytest.raises(ValueError, match=message):
            function(*arguments)
