"""Laws of regions and of mixed outputs."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor

from mezzotint.attention import (
    KeysValues,
    LogitMask,
    Observe,
    Output,
    Record,
    Region,
    Regions,
    install,
    resize_maps,
    sites,
    split_heads,
)
from tests.attention.conftest import CLOSE, Case, dit, normal, refuses, sd, text_mask


def regional(case: Case, *parts: tuple[Tensor, Tensor], branch: str | None = None) -> Regions:
    """Regions whose contexts are texts, in the width that the layers read."""
    project = getattr(case.model, "caption_projection", None)
    with torch.no_grad():
        texts = [text if project is None else project(text) for _, text in parts]
    return Regions(tuple(Region(part[0], text) for part, text in zip(parts, texts, strict=True)), branch=branch)


@pytest.mark.parametrize("rows", [1, 4])
def test_one_region_everywhere_is_a_plain_run_with_its_text(text_case: Case, rows: int) -> None:
    other = normal(rows, 5, 12, seed=9)
    unmasked = {"encoder_attention_mask": torch.ones(4, 5)} if "encoder_attention_mask" in text_case.arguments else {}
    wanted = text_case.run(encoder_hidden_states=other.expand(4, -1, -1), **unmasked)
    with install(text_case.model, regional(text_case, (torch.ones(8, 8), other))):
        torch.testing.assert_close(text_case.run(), wanted, **CLOSE)


def test_a_one_hot_partition_with_one_text_is_a_plain_run(text_case: Case) -> None:
    other, owner = normal(1, 5, 12, seed=9), torch.randint(3, (8, 8), generator=torch.Generator().manual_seed(1))
    parts = [((owner == index).float(), other) for index in range(3)]
    with install(text_case.model, regional(text_case, (torch.ones(8, 8), other))):
        wanted = text_case.run()
    with install(text_case.model, regional(text_case, *parts)):
        torch.testing.assert_close(text_case.run(), wanted, **CLOSE)


def test_regions_with_the_models_own_text_are_the_identity(unet: Case) -> None:
    plain, text = unet.run(), unet.arguments["encoder_hidden_states"]
    parts = [
        (0.6 * torch.rand(8, 8, generator=torch.Generator().manual_seed(1)), text),
        (torch.full((8, 8), 0.4), text),
    ]
    with install(unet.model, regional(unet, *parts)):
        torch.testing.assert_close(unet.run(), plain, **CLOSE)


def test_a_region_without_weight_changes_nothing(unet: Case) -> None:
    left = torch.zeros(8, 8)
    left[:, :4] = 1
    text, other = normal(1, 5, 12, seed=9), normal(1, 5, 12, seed=10)
    with install(unet.model, regional(unet, (left, text))):
        wanted = unet.run()
    with install(unet.model, regional(unet, (left, text), (torch.zeros(8, 8), other))):
        assert torch.equal(unet.run(), wanted)


def test_outside_its_cells_a_region_is_not_seen(unet: Case) -> None:
    """At the level of one layer: another text on the right leaves the output on the left bit-identical."""
    left = torch.zeros(8, 8)
    left[:, :4] = 1
    outputs = []
    for seed in (9, 10):
        record = Record()
        first = {"kind": "cross", "where": lambda site: site.name.startswith("down_blocks.0")}
        edit = Regions((Region(left, normal(1, 5, 12)), Region(1 - left, normal(1, 5, 12, seed=seed))), **first)
        with install(unet.model, edit, Observe(record, of="output", **first)):
            unet.run()
        outputs.append(next(iter(record.at().values()))[0].unflatten(2, (8, 8)))
    assert torch.equal(outputs[0][..., :4, :], outputs[1][..., :4, :])
    assert not torch.isclose(outputs[0][..., 4:, :], outputs[1][..., 4:, :]).all(-1).any()


def test_a_region_may_project_in_its_own_way_and_mask_its_text(unet: Case) -> None:
    text = normal(1, 5, 12, seed=9)
    everywhere = torch.ones(8, 8)
    doubled = Region(everywhere, text, project=lambda linear, context: linear(2 * context))
    with install(unet.model, Regions((Region(everywhere, 2 * text),))):
        wanted = unet.run()
    with install(unet.model, Regions((doubled,))):
        torch.testing.assert_close(unet.run(), wanted, **CLOSE)
    padded = torch.cat([2 * text, normal(1, 2, 12, seed=4)], 1)
    bias = torch.tensor([[0.0] * 5 + [-math.inf] * 2])
    with install(unet.model, Regions((Region(everywhere, padded, bias=bias),))):
        torch.testing.assert_close(unet.run(), wanted, **CLOSE)


def test_keys_may_get_a_low_rank_update_by_place(unet: Case) -> None:
    """MultiBooth's LoRA of one concept, in its box only, on self-attention (arXiv 2404.14239)."""
    down = {width: normal(2, width, seed=1) for width in (8, 16)}
    up = {width: normal(width, 2, seed=2) for width in (8, 16)}

    def update(share: float) -> KeysValues:
        def change(call: Any, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            width = call.site.query_dim
            weight = resize_maps(share * torch.ones(8, 8), call.require_grid()).flatten()[:, None]
            added = weight * (call.hidden @ down[width].T @ up[width].T)
            return query, key + split_heads(added, call.site.heads), value

        return KeysValues(change, kind="self")

    plain = unet.run()
    with install(unet.model, update(0.0)):
        torch.testing.assert_close(unet.run(), plain, **CLOSE)
    with install(unet.model, update(1.0)):
        local = unet.run()
    with torch.no_grad():
        for layer in unet.model.modules():
            if isinstance(layer, Attention) and not layer.is_cross_attention:
                layer.to_k.weight += up[layer.query_dim] @ down[layer.query_dim]
    torch.testing.assert_close(local, unet.run(), **CLOSE)


def adapted(case: Case, update: dict[str, tuple[Tensor, Tensor]]) -> Tensor:
    """The pass with B A added to the weights of the layers."""
    with torch.no_grad():
        for sign in (1, -1):
            for name, (down, up) in update.items():
                case.model.get_submodule(name).weight += sign * (up @ down)
            if sign == 1:
                output = case.run()
    return output


@pytest.mark.parametrize("branch", [None, "uncond", "cond"])
def test_a_low_rank_update_everywhere_is_one_of_the_weights(text_case: Case, branch: str | None) -> None:
    """With the model's own tokens, and its own mask of them."""
    update = {
        f"{site.name}.{part}": (normal(2, site.context_dim, seed=1), 0.3 * normal(site.query_dim, 2, seed=2))
        for site in sites(text_case.model)
        if site.kind == "cross"
        for part in ("to_k", "to_v")
    }
    plain, wanted = text_case.run(), adapted(text_case, update)
    assert not torch.allclose(plain, wanted, **CLOSE)
    edit = Regions((Region(torch.ones(8, 8), None, low_rank=update),), branch=branch)
    rows = {None: slice(0, 4), "uncond": slice(0, 2), "cond": slice(2, 4)}[branch]
    with install(text_case.model, edit):
        found = text_case.run()
    torch.testing.assert_close(found[rows], wanted[rows], **CLOSE)
    others = [row for row in range(4) if not rows.start <= row < rows.stop]
    torch.testing.assert_close(found[others], plain[others], **CLOSE)
    with install(text_case.model, Regions((Region(torch.ones(8, 8), None),), branch=branch)):
        torch.testing.assert_close(text_case.run(), plain, **CLOSE)


@pytest.mark.parametrize("length", [3, 7, 12])
def test_one_region_may_read_another_text_in_each_branch(unet: Case, length: int) -> None:
    left, other = torch.zeros(8, 8), normal(1, length, 12, seed=9)
    left[:, :4] = 1
    with install(unet.model, Regions((Region(left, other),), branch="cond")):
        wanted = unet.run()
    with install(unet.model, Regions((Region(left, {"cond": other}),))):
        torch.testing.assert_close(unet.run(), wanted, **CLOSE)
    three = Case(unet.model, unet.latent[:3], {"encoder_hidden_states": normal(3, 7, 12)})
    refuses(three, Regions((Region(left, {"cond": other}),)), "cannot be divided into the guidance branches")


def test_keys_of_a_region_are_made_once_a_run_and_anew_when_anything_changed(unet: Case) -> None:
    text, made = normal(1, 5, 12, seed=9), []
    layer = next(layer for layer in unet.model.modules() if isinstance(layer, Attention) and layer.is_cross_attention)
    hook = layer.to_k.register_forward_hook(lambda _, given, __: made.append(given[0].shape[1]))
    regions = Regions((Region(torch.ones(8, 8), text),))

    def fresh() -> Tensor:
        with install(unet.model, Regions((Region(torch.ones(8, 8), text),))):
            return unet.run()

    with install(unet.model, regions):
        for timestep in (900, 600, 300, 900):  # the last begins a new run
            unet.run(timestep)
        assert [made.count(5), made.count(7)] == [2, 4]
        first = unet.run(800)
        with torch.no_grad():
            text += 1
        second = unet.run(700)
        torch.testing.assert_close(unet.run(401), fresh(), **CLOSE)
        with torch.no_grad():
            layer.to_k.weight *= 2
        torch.testing.assert_close(unet.run(401), fresh(), **CLOSE)
    hook.remove()
    assert not torch.allclose(first, second, **CLOSE)


def test_gradients_reach_the_text_of_a_region_in_every_pass(unet: Case) -> None:
    text = normal(1, 5, 12, seed=9)
    edit = Regions((Region(torch.ones(8, 8), text),))
    with install(unet.model, edit):
        unet.run(900)  # kept without gradients, which must not be taken for one with them
        text.requires_grad_(True)
        gradients = [torch.autograd.grad(unet.run(time).square().mean(), text)[0] for time in (600, 300)]
    assert all(gradient.abs().max() > 0 for gradient in gradients)


def test_regions_take_any_shape_and_their_own_rounding() -> None:
    case = sd(6, 10)
    boxes: list[tuple[int, int]] = []

    def box(grid: tuple[int, int]) -> Tensor:
        boxes.append(grid)
        weight = torch.zeros(grid)
        weight[:, : math.ceil(0.3 * grid[1])] = 1
        return weight

    with install(case.model, Regions((Region(box, normal(1, 5, 12)),))):
        case.run()
        case.run()
    assert boxes == [(6, 10), (3, 5)]  # once a grid


def test_regions_that_make_no_sense_are_refused(unet: Case) -> None:
    text = normal(1, 5, 12)
    for regions, message in (
        ((Region(torch.ones(8, 8), text), Region(torch.ones(8, 8), text)), "sum to 2"),
        ((Region(-torch.ones(8, 8), text),), "at least 0"),
        ((Region(torch.ones(8, 8), normal(3, 5, 12)),), "3 rows"),
    ):
        with pytest.raises(ValueError, match=message), install(unet.model, Regions(regions)):
            unet.run()
    with (
        pytest.raises(ValueError, match="applies to none"),
        install(dit().model, Regions((Region(torch.ones(1, 1), text),))),
    ):
        pass


def test_attending_again_is_the_identity(case: Case) -> None:
    """`states.attend()` repeats the layer's own attention, masks of the model and of edits included."""
    for mask in (LogitMask(torch.zeros(1)), LogitMask(text_mask, branch="cond")):
        with install(case.model, mask):
            wanted = case.run()
        with install(case.model, mask, Output(lambda call, output, states: states.attend())):
            torch.testing.assert_close(case.run(), wanted, **CLOSE)


def test_own_states_undo_an_edit_of_keys(case: Case) -> None:
    plain = case.run()
    undo = Output(lambda call, output, states: states.own.attend())
    with install(case.model, KeysValues(lambda call, q, k, v: (q.flip(2), k * 2, v + 1)), undo):
        torch.testing.assert_close(case.run(), plain, **CLOSE)


def test_outputs_mix_by_place(unet: Case) -> None:
    """GeoDiffuser's guidance: inside a mask the result of warped queries, outside the layer's own."""

    def paste(inside: float) -> Output:
        def mix(call: Any, output: Tensor, states: Any) -> Tensor:
            guided = states.attend(query=states.query.flip(2))
            return inside * guided + (1 - inside) * output

        return Output(mix, branch="cond")

    plain = unet.run()
    with install(unet.model, paste(0.0)):
        torch.testing.assert_close(unet.run(), plain, **CLOSE)
    with install(unet.model, KeysValues(lambda call, q, k, v: (q.flip(2), k, v), branch="cond")):
        wanted = unet.run()
    with install(unet.model, paste(1.0)):
        torch.testing.assert_close(unet.run(), wanted, **CLOSE)
    refuses(unet, Output(lambda call, output, states: output[:, :, :1]), "gave an output")
