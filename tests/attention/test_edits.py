"""The laws of each kind of edit, on the real backbones."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from mezzotint.attention import (
    Context,
    Edit,
    KeysValues,
    LogitMask,
    Observe,
    Output,
    Probabilities,
    Record,
    Region,
    Regions,
    during,
    install,
)
from tests.attention.conftest import Case, dit, normal, pixart, sd

CLOSE = {"rtol": 1e-4, "atol": 1e-5}


class Count(TorchFunctionMode):
    """Counts fused attention and explicit softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.fused = self.explicit = 0

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.fused += function is F.scaled_dot_product_attention
        self.explicit += function is Tensor.softmax
        return function(*args, **(kwargs or {}))


def text_mask(call: Any, query: Tensor, key: Tensor) -> Tensor:
    return normal(query.shape[2], key.shape[2])


def is_float(entry: Any) -> bool:
    return isinstance(entry, Tensor) and entry.is_floating_point()


def only_row(row: int, entry: Any) -> Any:
    return entry[row : row + 1] if isinstance(entry, Tensor) else entry


def refuses(case: Case, edit: Edit, message: str) -> None:
    with pytest.raises(ValueError, match=message), install(case.model, edit):
        case.run()


# Logit masks


def test_a_mask_of_zeros_is_the_identity(case: Case) -> None:
    plain = case.run()
    for mask in (torch.zeros(1), torch.zeros(4, 2, 1, 1), torch.ones(1, 1, dtype=torch.bool)):
        with install(case.model, LogitMask(mask)):
            torch.testing.assert_close(case.run(), plain, **CLOSE)


@pytest.mark.parametrize("token", [0, 3, 6])
def test_minus_infinity_on_a_token_removes_it(text_case: Case, token: int) -> None:
    kept = [index for index in range(7) if index != token]
    bias = torch.zeros(7)
    bias[token] = -math.inf
    shorter = {"encoder_hidden_states": text_case.arguments["encoder_hidden_states"][:, kept]}
    if "encoder_attention_mask" in text_case.arguments:
        shorter["encoder_attention_mask"] = text_case.arguments["encoder_attention_mask"][:, kept]
    wanted = text_case.run(**shorter)
    with install(text_case.model, LogitMask(bias, kind="cross")):
        torch.testing.assert_close(text_case.run(), wanted, **CLOSE)
    with install(text_case.model, LogitMask(bias.isfinite(), kind="cross")):
        torch.testing.assert_close(text_case.run(), wanted, **CLOSE)


def test_masks_add_up(text_case: Case) -> None:
    first, second = normal(7, seed=1), normal(7, seed=2)
    with install(text_case.model, LogitMask(first + second, kind="cross")):
        wanted = text_case.run()
    with install(text_case.model, LogitMask(first, kind="cross"), LogitMask(second, kind="cross")):
        torch.testing.assert_close(text_case.run(), wanted, **CLOSE)


def test_a_mask_on_every_key_alike_is_the_identity(case: Case) -> None:
    plain = case.run()
    with install(case.model, LogitMask(lambda call, query, key: normal(query.shape[2], 1))):
        torch.testing.assert_close(case.run(), plain, **CLOSE)


def test_masks_keep_the_fused_kernel(case: Case) -> None:
    with install(case.model, LogitMask(text_mask, branch="cond")), Count() as count:
        case.run()
    layers = len(list(case.model.named_modules())) and sum(
        name.endswith("to_q") for name, _ in case.model.named_modules()
    )
    assert count.explicit == 0
    assert count.fused == 2 * layers  # the two branches apart: only one of them carries a mask
    with install(case.model, LogitMask(text_mask)), sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        case.run()  # raises when the flash kernel cannot take such a mask


def test_explicit_probabilities_only_where_they_are_asked_for(unet: Case) -> None:
    deep = Observe(lambda *_: None, kind="cross", where=lambda site: site.place == "mid")
    with install(unet.model, deep, LogitMask(torch.zeros(1))), Count() as count:
        unet.run()
    assert (count.explicit, count.fused) == (1, 7)


def test_a_mask_that_does_not_fit_is_refused(unet: Case) -> None:
    for mask in (torch.zeros(8), torch.zeros(3, 1, 1, 1), torch.zeros(1, 1, 1, 1, 7)):
        refuses(unet, LogitMask(mask, kind="cross"), "mask")


# Guidance branches


def test_branches_are_rows_of_the_batch(case: Case) -> None:
    plain = case.run()
    order = ("cond", "uncond") if case.arguments.keys() == {"class_labels"} else ("uncond", "cond")
    for branch in ("uncond", "cond"):
        with install(case.model, Output(lambda call, output, states: output + 1, branch=branch)):
            edited = case.run()
        mine = slice(2 * order.index(branch), 2 * order.index(branch) + 2)
        other = slice(2 - mine.start, 4 - mine.start)
        assert torch.equal(edited[other], plain[other])
        assert not torch.isclose(edited[mine], plain[mine]).all(-1).all(-1).any()


def test_the_number_of_branches_is_free(unet: Case) -> None:
    rows: dict[str, tuple[int, int]] = {}
    looks = [
        Observe(lambda call, _: rows.update({call.branch: (call.rows.start, call.rows.stop)}), branch=name)
        for name in ("image", "cond", "uncond")
    ]
    with install(unet.model, *looks, branches=("cond", "image", "uncond", "other")) as installed:
        unet.run()
        assert rows == {"cond": (0, 1), "image": (1, 2), "uncond": (2, 3)}
        rows.clear()
        with installed.passing("cond"):
            unet.run()
        assert rows == {"cond": (0, 4)}
        with pytest.raises(ValueError, match="4 cannot be divided into"), installed.passing("a", "cond", "c"):
            unet.run()
        rows.clear()
        unet.run()
        assert rows["image"] == (1, 2)


def test_an_edit_sees_the_same_alone_and_beside_edits_of_other_branches(unet: Case) -> None:
    first = {"kind": "cross", "where": lambda site: site.name.startswith("down_blocks.0")}
    mask = LogitMask(text_mask, branch="uncond", **first)
    turn = Probabilities(lambda call, p: p.flip(-1), branch="uncond", **first)
    shares = {}
    for beside in ((), (mask,), (mask, turn)):
        with install(unet.model, *beside, Observe(record := Record(), branch="cond", **first)):
            unet.run()
        shares[beside] = next(iter(record.at().values()))[0]
    assert all(torch.equal(share, shares[()]) for share in shares.values())


def test_rows_do_not_see_each_other(case: Case) -> None:
    edits = [
        LogitMask(text_mask),
        Probabilities(lambda call, p: p.square()),
        Output(lambda call, output, states: output + states.attend(query=states.query.flip(2))),
    ]
    with install(case.model, *edits):
        together = case.run()
        for row in range(4):
            alone = tree_map(partial(only_row, row), case.arguments)
            single = Case(case.model, case.latent[row : row + 1], alone).run()
            torch.testing.assert_close(single[0], together[row], **CLOSE)


# Contexts, keys and values


def test_own_keys_and_values_are_the_identity(case: Case) -> None:
    plain = case.run()
    with install(case.model, Context(lambda call, k, v: (k, v)), KeysValues(lambda call, q, k, v: (q, k, v))):
        torch.testing.assert_close(case.run(), plain, **CLOSE)


def test_own_keys_and_values_given_twice_are_the_identity(case: Case) -> None:
    plain = case.run()
    twice = KeysValues(lambda call, q, k, v: (q, torch.cat([k, k], 2), torch.cat([v, v], 2)))
    if "encoder_attention_mask" not in case.arguments:  # the appended keys are not masked
        with install(case.model, twice):
            torch.testing.assert_close(case.run(), plain, **CLOSE)
    with install(case.model, KeysValues(twice.function, kind="self")):
        torch.testing.assert_close(case.run(), plain, **CLOSE)


def test_another_context_is_the_other_prompt(text_case: Case) -> None:
    other = normal(4, 7, 12, seed=9)
    wanted = text_case.run(encoder_hidden_states=other)
    if hasattr(text_case.model, "caption_projection"):
        with torch.no_grad():
            other = text_case.model.caption_projection(other)
    with install(text_case.model, Context(lambda call, k, v: (other, other), kind="cross")):
        torch.testing.assert_close(text_case.run(), wanted, **CLOSE)


@pytest.mark.parametrize("branch", ["cond", "uncond"])
@pytest.mark.parametrize("length", [3, 12])
def test_a_context_of_other_length_for_one_branch(unet: Case, branch: str, length: int) -> None:
    other, rows = normal(2, length, 12, seed=9), slice(0, 2) if branch == "uncond" else slice(2, 4)
    plain = unet.run()
    half = Case(unet.model, unet.latent[rows], {"encoder_hidden_states": other})
    with install(unet.model, Context(lambda call, k, v: (other, other), kind="cross", branch=branch)):
        edited = unet.run()
    torch.testing.assert_close(edited[rows], half.run(), **CLOSE)
    torch.testing.assert_close(edited[2 - rows.start : 4 - rows.start], plain[2 - rows.start : 4 - rows.start], **CLOSE)


def test_filled_up_rows_are_not_taken_for_keys(unet: Case) -> None:
    longer = Context(lambda call, k, v: (torch.cat([k, k], 1), torch.cat([v, v], 1)), kind="cross", branch="cond")
    late = KeysValues(lambda call, q, k, v: (q, k, v), kind="cross")
    with pytest.raises(ValueError, match="filled up"), install(unet.model, longer, late):
        unet.run()
    with install(unet.model, longer, KeysValues(late.function, kind="cross", branch="cond")):
        unet.run()


def test_keys_and_values_from_different_texts(unet: Case) -> None:
    """StructureDiffusion: probabilities of one prompt, values of another."""
    other = normal(4, 7, 12, seed=9)
    shares, values = Record(), Record()
    mixed = Record()
    first = {"kind": "cross", "where": lambda site: site.name.startswith("down_blocks.0")}
    with install(unet.model, Observe(shares, **first)):
        unet.run()
    with install(unet.model, Observe(values, of="query_key_value", **first)):
        unet.run(encoder_hidden_states=other)
    with install(unet.model, Context(lambda call, k, v: (k, other), **first), Observe(mixed, of="output", **first)):
        unet.run()
    (name,) = mixed.at()
    torch.testing.assert_close(mixed.at()[name][0], shares.at()[name][0] @ values.at()[name][2], **CLOSE)


def test_features_of_another_pass_replay_it(case: Case) -> None:
    """With queries, keys and values of a stored pass, every layer's output is that of the stored pass."""
    store, kept, replayed = Record(keep="run"), Record(), Record()
    with install(case.model, Observe(store, of="query_key_value"), Observe(kept, of="output")):
        case.run(900)
        case.run(600)
    replay = KeysValues(lambda call, q, k, v: store.at(call.moment.step)[call.site.name])
    other = Case(case.model, normal(*case.latent.shape, seed=8), case.arguments)
    with install(case.model, replay, Observe(replayed, of="output")):
        other.run(900)
        other.run(600)
    for name, (output,) in kept.at().items():
        torch.testing.assert_close(replayed.at()[name][0], output, **CLOSE)


def test_a_row_may_read_the_keys_of_another(unet: Case) -> None:
    """Shared attention: row 1 of each branch reads keys and values of row 0 (GeoDiffuser, arXiv 2404.14403)."""
    same = unet.latent[:1].expand(4, -1, -1, -1), unet.arguments["encoder_hidden_states"][:1].expand(4, -1, -1)
    share = KeysValues(lambda call, q, k, v: (q, k[[0, 0]], v[[0, 0]]), branch="cond")
    equal = Case(unet.model, same[0], {"encoder_hidden_states": same[1]})
    plain = equal.run()
    with install(unet.model, share):
        torch.testing.assert_close(equal.run(), plain, **CLOSE)
        edited = unet.run()
    before = unet.run()
    assert torch.equal(edited[:2], before[:2])
    torch.testing.assert_close(edited[2], before[2], **CLOSE)
    assert not torch.allclose(edited[3], before[3])


def test_the_models_own_mask_holds_unless_replaced() -> None:
    case = pixart()
    wanted = case.run()
    with install(case.model, Context(lambda call, k, v: (k, v), kind="cross")):
        torch.testing.assert_close(case.run(), wanted, **CLOSE)
    unmasked = {"encoder_attention_mask": torch.ones(4, 7)}
    with install(case.model, Context(lambda call, k, v: (k, v), bias=torch.zeros(1, 7), kind="cross")):
        torch.testing.assert_close(case.run(), case.run(**unmasked), **CLOSE)
    half = Context(lambda call, k, v: (k[:, :3], v[:, :3]), bias=torch.zeros(1, 3), kind="cross", branch="uncond")
    with install(case.model, half):
        torch.testing.assert_close(case.run(), wanted, **CLOSE)


@pytest.mark.parametrize("change", [lambda k, v: (k[:, :, :3], v), lambda k, v: (k[:1], v[:1])])
def test_keys_and_values_that_do_not_match_are_refused(unet: Case, change: Any) -> None:
    refuses(unet, KeysValues(lambda call, q, k, v: (q, *change(k, v))), "same number of tokens")
    refuses(unet, KeysValues(lambda call, q, k, v: (q[:, :, :1], k, v)), "gave queries")


# Probabilities and observers


def test_probabilities_sum_to_one_and_give_the_fused_output(case: Case) -> None:
    shares, states, outputs = Record(), Record(), Record()
    looks = [Observe(shares), Observe(states, of="query_key_value"), Observe(outputs, of="output")]
    with install(case.model, Observe(outputs, of="output")):
        plain = case.run()
        fused = dict(outputs.at())
    with install(case.model, *looks):
        torch.testing.assert_close(case.run(), plain, **CLOSE)
    for name, (seen,) in shares.at().items():
        torch.testing.assert_close(seen.sum(-1), torch.ones_like(seen[..., 0]))
        torch.testing.assert_close(seen @ states.at()[name][2], fused[name][0], **CLOSE)


def test_a_function_of_probabilities_acts_on_the_output(case: Case) -> None:
    outputs = Record()
    scale = Probabilities(lambda call, p: 3 * p, branch="cond")
    tripled = Output(lambda call, output, states: 3 * output, branch="cond")
    with install(case.model, tripled, Observe(outputs, of="output")):
        wanted = case.run()
    with install(case.model, scale):
        torch.testing.assert_close(case.run(), wanted, **CLOSE)
    refuses(case, Probabilities(lambda call, p: p[..., :1]), "gave probabilities")


def test_masked_columns_keep_the_ratios_of_the_others(text_case: Case) -> None:
    """The focus of bound attributes (arXiv 2404.13766): only the masked token's share changes hands."""
    before, after = Record(), Record()
    conditional = {"kind": "cross", "branch": "cond"}
    bias = torch.zeros(7)
    bias[2] = -50.0
    with install(text_case.model, Observe(before, **conditional)):
        text_case.run()
    with install(text_case.model, LogitMask(bias, **conditional), Observe(after, **conditional)):
        text_case.run()
    name = next(iter(before.at()))
    (old,), (new,) = before.at()[name], after.at()[name]
    kept = [0, 1, 3, 4, 5, 6]
    torch.testing.assert_close(new[..., kept], old[..., kept] / old[..., kept].sum(-1, keepdim=True))
    assert new[..., 2].max() < 1e-15


def test_gradients_flow_through_observed_probabilities(text_case: Case) -> None:
    """Attend-and-Excite moves the latent by the gradient of a loss on attention maps."""
    maps = Record()
    latent = text_case.latent.clone().requires_grad_()
    moving = Case(text_case.model, latent, text_case.arguments)
    edits = [Observe(maps, kind="cross", branch="cond"), LogitMask(text_mask, kind="cross")]
    with install(text_case.model, *edits):
        moving.run()
        loss = maps.average((4, 4))[:, 3].amax((1, 2)).sum()
        (gradient,) = torch.autograd.grad(loss, latent)
        assert gradient[2:].abs().amax((1, 2, 3)).min() > 0
        assert torch.equal(gradient[:2], torch.zeros_like(gradient[:2]))
        step = 1e-3
        nudged = latent.detach() + step * gradient / gradient.norm()
        Case(text_case.model, nudged, text_case.arguments).run()
        change = maps.average((4, 4))[:, 3].amax((1, 2)).sum() - loss
        torch.testing.assert_close(change, step * gradient.norm(), rtol=0.1, atol=1e-6)


def test_gradients_flow_through_every_stage(unet: Case) -> None:
    weights = {name: torch.ones((), requires_grad=True) for name in ("context", "states", "mask", "share", "output")}
    edits = [
        Context(lambda call, k, v: (k * weights["context"], v), kind="cross"),
        KeysValues(lambda call, q, k, v: (q, k * weights["states"], v)),
        LogitMask(lambda call, q, k: weights["mask"] * normal(k.shape[2])),
        Probabilities(lambda call, p: p * weights["share"]),
        Output(lambda call, output, states: output * weights["output"]),
    ]
    with install(unet.model, *edits):
        unet.run().square().sum().backward()
    assert all(weight.grad is not None and weight.grad.abs() > 0 for weight in weights.values())


def test_a_record_forgets_the_last_pass_or_keeps_the_run(unet: Case) -> None:
    short, long = Record(detach=True), Record(keep="run", detach=True)
    with install(unet.model, Observe(short, kind="cross"), Observe(long, kind="cross", when=during(0, 2))):
        for timestep in (900, 600, 300):
            unet.run(timestep)
        assert (short.steps, long.steps) == ([2], [0, 1])
        old = long.at(0)
        unet.run(900)
        assert (short.steps, long.steps) == ([0], [0])
        assert long.at(0).keys() == old.keys()
    with pytest.raises(ValueError, match="nothing is kept of step 5"):
        short.at(5)


def test_average_maps_share_out_the_attention(unet: Case) -> None:
    maps = Record()
    with install(unet.model, Observe(maps, kind="cross", where=lambda site: site.level == 1)):
        unet.run()
    average = maps.average((4, 4))
    torch.testing.assert_close(average.sum(1), torch.ones(4, 4, 4))
    wanted = torch.stack([seen.mean(1) for (seen,) in maps.at().values()]).mean(0)
    torch.testing.assert_close(average.flatten(2), wanted.transpose(1, 2))


# Regions and outputs


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


def test_own_states_undo_an_edit_of_keys(unet: Case) -> None:
    plain = unet.run()
    undo = Output(lambda call, output, states: states.own.attend())
    with install(unet.model, KeysValues(lambda call, q, k, v: (q.flip(2), k * 2, v + 1)), undo):
        torch.testing.assert_close(unet.run(), plain, **CLOSE)


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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_precisions(case: Case, dtype: torch.dtype) -> None:
    model = case.model.to(dtype)
    arguments = tree_map(lambda entry: entry.to(dtype) if is_float(entry) else entry, case.arguments)
    typed, shares = Case(model, case.latent.to(dtype), arguments), Record()
    plain = typed.run()
    loose = {"rtol": 0.05, "atol": 0.05} if dtype == torch.bfloat16 else {"rtol": 1e-10, "atol": 1e-10}
    with install(model, Observe(shares), LogitMask(torch.zeros(1))):
        torch.testing.assert_close(typed.run(), plain, **loose)
    assert all(seen.dtype == torch.promote_types(dtype, torch.float32) for (seen,) in shares.at().values())


def test_autocast_keeps_probabilities_in_single_precision(unet: Case) -> None:
    shares = Record()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        plain = unet.run()
        with install(unet.model, Observe(shares, branch="cond")):
            torch.testing.assert_close(unet.run(), plain, rtol=0.1, atol=0.1)
    for (seen,) in shares.at().values():
        assert seen.dtype == torch.float32
        torch.testing.assert_close(seen.sum(-1), torch.ones_like(seen[..., 0]))
