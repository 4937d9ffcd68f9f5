"""Laws of masks and of guidance branches."""

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
    LogitMask,
    Observe,
    Output,
    Probabilities,
    Record,
    install,
    sites,
)
from tests.attention.conftest import CLOSE, Case, normal, refuses, text_mask


class Count(TorchFunctionMode):
    """Counts fused attention and explicit softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.fused = self.explicit = 0

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.fused += function is F.scaled_dot_product_attention
        self.explicit += function is Tensor.softmax
        return function(*args, **(kwargs or {}))


def only_row(row: int, entry: Any) -> Any:
    return entry[row : row + 1] if isinstance(entry, Tensor) else entry


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
    assert count.explicit == 0
    assert count.fused == 2 * len(sites(case.model))  # the branches apart: only one of them carries a mask
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
