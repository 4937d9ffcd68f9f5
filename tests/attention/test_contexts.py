"""Laws of other contexts, keys and values."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mezzotint.attention import (
    Context,
    KeysValues,
    Observe,
    Record,
    install,
)
from tests.attention.conftest import CLOSE, Case, normal, pixart, refuses


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
    refuses(case, Context(lambda call, k, v: (k[:, :3], v[:, :3]), kind="cross"), "masks 7 keys and an edit leaves 3")
    half = Context(lambda call, k, v: (k[:, :3], v[:, :3]), bias=torch.zeros(1, 3), kind="cross", branch="uncond")
    with install(case.model, half):
        torch.testing.assert_close(case.run(), wanted, **CLOSE)


@pytest.mark.parametrize("change", [lambda k, v: (k[:, :, :3], v), lambda k, v: (k[:1], v[:1])])
def test_keys_and_values_that_do_not_match_are_refused(unet: Case, change: Any) -> None:
    refuses(unet, KeysValues(lambda call, q, k, v: (q, *change(k, v))), "same number of tokens")
    refuses(unet, KeysValues(lambda call, q, k, v: (q[:, :, :1], k, v)), "gave queries")
