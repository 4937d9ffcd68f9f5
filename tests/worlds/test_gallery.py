"""Sheets hold their tiles unchanged; colours of depth, normals and instances say what they should."""

import numpy as np
import pytest
import torch

from mezzotint.worlds import scenes


def test_a_sheet_holds_every_picture_where_it_belongs(some_scenes):
    pictures = scenes.picture(some_scenes[:5], 16)
    made = torch.from_numpy(np.array(scenes.sheet(pictures, columns=3, gap=2))).permute(2, 0, 1)
    tiles = (pictures * 255).round().to(torch.uint8)
    for place, tile in enumerate(tiles):
        top, left = place // 3 * 18, place % 3 * 18
        assert torch.equal(made[:, top : top + 16, left : left + 16], tile)
    assert (made[:, 18:, 36:] == 255).all()
    assert (made[:, 16:18] == 255).all()


def test_a_gallery_is_the_sheet_of_its_renders(some_scenes):
    made = scenes.gallery(some_scenes[:2], size=16, columns=2, supersample=2)
    expected = scenes.sheet(scenes.picture(some_scenes[:2], 16), columns=2)
    assert np.array_equal(np.array(made), np.array(expected))


def test_colours_of_ground_truth(trio):
    frame = scenes.render([trio], 48)
    depth = scenes.depth_colours(frame)
    order = frame.depth.flatten().argsort()
    assert (depth[0, 0].flatten()[order].diff() <= 1e-6).all()
    assert (depth.min(), depth.max()) == (0.0, 1.0)
    torch.testing.assert_close(scenes.normal_colours(frame) * 2 - 1, frame.normal)
    instances = scenes.instance_colours(frame)
    colours = {tuple(colour) for colour in instances[0].flatten(1).T.tolist()}
    assert len(colours) == len(frame.instance.unique())


def test_wrong_requests_are_refused():
    with pytest.raises(ValueError, match="a sheet needs a picture"):
        scenes.sheet(torch.zeros(0, 3, 8, 8))
