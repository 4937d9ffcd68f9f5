"""The shapes against their implicit functions and closed forms."""

import pytest
import torch

from mezzotint.worlds.scenes import SHAPES, geometry
from tests.worlds.solids import implicit, rays


@pytest.mark.parametrize("shape", SHAPES)
def test_the_half_height_and_the_bound_are_those_of_the_solid(shape):
    grid = torch.linspace(-1.5, 1.5, 61)
    points = torch.stack(torch.meshgrid(grid, grid, grid, indexing="ij")).flatten(1)
    inside = points[:, implicit(shape, points) <= 0]
    half = geometry.HALF_HEIGHT[shape]
    assert inside[1].abs().max() <= half + 1e-6
    assert inside[1].abs().max() > half - 0.06
    assert inside.norm(dim=0).max() <= geometry.BOUND[shape] + 1e-6


@pytest.mark.parametrize("shape", SHAPES)
def test_normals_are_the_gradients_of_the_solid(shape):
    origin, direction = rays(4000, seed=1)
    distance = geometry.ENTRY[shape](origin, direction)
    point = (origin + distance * direction)[:, torch.isfinite(distance)].requires_grad_()
    gradient = torch.autograd.grad(implicit(shape, point).sum(), point)[0]
    normal = geometry.unit(geometry.NORMAL[shape](point.detach()))
    agreement = geometry.dot(normal, torch.nn.functional.normalize(gradient, dim=0))
    torch.testing.assert_close(normal.norm(dim=0), torch.ones(normal.shape[1]))
    # Within a hair of an edge either side's normal is right.
    assert (agreement > 0.9999).double().mean() > 0.985


def test_axial_rays_meet_the_shapes_at_known_distances():
    down, start = torch.tensor([[0.0], [-1.0], [0.0]]), torch.tensor([[0.0], [5.0], [0.0]])
    for shape in ("sphere", "cube", "cylinder", "capsule"):
        expected = torch.tensor([5 - geometry.HALF_HEIGHT[shape]])
        torch.testing.assert_close(geometry.ENTRY[shape](start + 1e-6, down), expected, atol=1e-4, rtol=0)
    beside = start + torch.tensor([[0.0], [0.0], [geometry.CONE_RADIUS / 2]])
    torch.testing.assert_close(geometry.cone_entry(beside, down), torch.tensor([5.0]), atol=1e-4, rtol=0)
    assert torch.isinf(geometry.torus_entry(start, down)).all()
    ring = start + torch.tensor([[geometry.TORUS_MAJOR], [0.0], [0.0]])
    torch.testing.assert_close(geometry.torus_entry(ring, down), torch.tensor([4.7]), atol=5e-3, rtol=0)


@pytest.mark.parametrize("shape", SHAPES)
def test_rays_that_point_away_meet_nothing(shape):
    origin, direction = rays(500, seed=2)
    assert torch.isinf(geometry.ENTRY[shape](origin, -direction)).all()
