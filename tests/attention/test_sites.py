"""Names, kinds and grids of attention layers."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from mezzotint.attention import Call, Observe, backbone, install, resize_maps, sites
from tests.attention.conftest import CASES, Case, processors, sd


def test_sites_are_the_attention_layers_of_the_model(case: Case) -> None:
    assert {site.name for site in sites(case.model)} == set(processors(case.model))


def test_sites_come_in_the_order_of_the_pass(case: Case) -> None:
    met: list[str] = []
    with install(case.model, Observe(lambda call, *_: met.append(call.site.name), of="output")):
        case.run()
    assert met == [site.name for site in sites(case.model)]


def test_kind_heads_and_widths_are_what_the_pass_shows(case: Case) -> None:
    seen: list[Call] = []
    with install(case.model, Observe(lambda call, q, k, v: seen.append((call, q, k)), of="query_key_value")):
        case.run()
    for call, query, key in seen:
        site = call.site
        assert query.shape[1] == key.shape[1] == site.heads
        assert query.shape[3] == key.shape[3] == site.head_dim
        assert call.hidden.shape[2] == site.query_dim
        assert call.context.shape[2] == site.context_dim
        assert (site.kind == "self") == (call.context is call.hidden or torch.equal(call.context[0], call.hidden[0]))


@pytest.mark.parametrize(("height", "width"), [(8, 8), (8, 12), (7, 9), (5, 16)])
def test_unet_grids_follow_any_latent(height: int, width: int) -> None:
    case, grids = sd(height, width, batch=2), {}
    with install(case.model, Observe(lambda call, *_: grids.update({call.site.name: (call.grid, call.hidden)}))):
        case.run()
    for grid, hidden in grids.values():
        assert grid is not None
        assert grid[0] * grid[1] == hidden.shape[1]
    halved = ((height + 1) // 2, (width + 1) // 2)
    assert grids["mid_block.attentions.0.transformer_blocks.0.attn1"][0] == halved


def test_transformer_grid_is_divided_by_the_patch() -> None:
    assert {site.grid(8, 12) for site in sites(CASES["dit"]().model)} == {(4, 6)}


def test_native_grid_is_that_of_the_configured_size(case: Case) -> None:
    assert all(site.native_grid == site.grid(8, 8) for site in sites(case.model))


def test_backbone_is_found_in_pipelines_and_wrappers() -> None:
    unet = sd().model
    assert backbone(unet) is unet
    assert backbone(SimpleNamespace(unet=None, transformer=unet)) is unet
    with pytest.raises(ValueError, match="a unet or a transformer"):
        backbone(SimpleNamespace(vae=unet))


def test_a_model_without_attention_is_refused() -> None:
    with pytest.raises(ValueError, match="no attention layer"):
        sites(nn.Linear(2, 2))


def test_max_keeps_what_area_dilutes() -> None:
    point = torch.zeros(8, 8)
    point[3, 5] = 1
    assert resize_maps(point, (2, 2), mode="max").tolist() == [[0, 1], [0, 0]]
    torch.testing.assert_close(resize_maps(point, (2, 2)), torch.tensor([[0, 1 / 16], [0, 0]]))
    with pytest.raises(ValueError, match="mode must be"):
        resize_maps(point, (2, 2), mode="lanczos")
