"""Properties of attention edits over shapes, masks and branches that nobody picked by hand."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from mezzotint.attention import (
    Context,
    LogitMask,
    Moment,
    Output,
    Probabilities,
    Region,
    Regions,
    Site,
    during,
    install,
    resize_maps,
)
from mezzotint.attention.heads import as_bias, fused, merge_heads, probabilities, split_heads
from mezzotint.attention.plan import Clock

few = settings(deadline=None, max_examples=25)
sizes = st.integers(1, 5)
seeds = st.integers(0, 2**31)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@cache
def backbone() -> nn.Module:
    """A PixArt of one block: one self- and one cross-attention over a 2 x 3 grid."""
    from diffusers import PixArtTransformer2DModel

    torch.manual_seed(0)
    model = PixArtTransformer2DModel(
        num_attention_heads=2, attention_head_dim=4, in_channels=2, out_channels=2, num_layers=1, norm_num_groups=1,
        cross_attention_dim=8, sample_size=4, patch_size=2, caption_channels=6,
    )  # fmt: skip
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            parameter.copy_(normal(*parameter.shape, seed=number) / 2)
    return model.eval().requires_grad_(False)


def run(batch: int = 4, tokens: int = 5, **changes: Any) -> Tensor:
    times = torch.full((batch,), 300)
    added = {"resolution": None, "aspect_ratio": None}
    text = normal(batch, tokens, 6, seed=1)
    given = {"encoder_hidden_states": text, "timestep": times, "added_cond_kwargs": added, **changes}
    return backbone()(normal(batch, 2, 4, 6), **given).sample


def states(rows: int, heads: int, queries: int, keys: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    return (
        normal(rows, heads, queries, 4, seed=seed),
        normal(rows, heads, keys, 4, seed=seed + 1),
        normal(rows, heads, keys, 4, seed=seed + 2),
    )


@given(sizes, sizes, sizes, seeds)
@few
def test_splitting_heads_is_undone_by_merging(batch: int, heads: int, tokens: int, seed: int) -> None:
    hidden = normal(batch, tokens, 3 * heads, seed=seed)
    assert torch.equal(merge_heads(split_heads(hidden, heads)), hidden)
    assert torch.equal(split_heads(hidden, heads)[:, 0], hidden[..., :3])


@given(sizes, sizes, sizes, sizes, st.lists(st.booleans(), min_size=4, max_size=4), st.integers(1, 4), seeds)
@few
def test_a_mask_is_its_broadcast(
    rows: int, heads: int, queries: int, keys: int, kept: list[bool], dimensions: int, seed: int
) -> None:
    query, key, value = states(rows, heads, queries, keys, seed)
    whole = (rows, heads, queries, keys)
    shape = [size if keep else 1 for size, keep in zip(whole, kept, strict=True)][-dimensions:]
    mask = normal(*shape, seed=seed + 3)
    wanted = (query @ key.transpose(-1, -2) / 2 + mask).softmax(-1)
    torch.testing.assert_close(probabilities(query, key, as_bias(mask, query, keys)), wanted)
    torch.testing.assert_close(fused(query, key, value, as_bias(mask, query, keys)), wanted @ value)


@given(sizes, sizes, st.integers(2, 6), seeds, st.data())
@few
def test_boolean_and_infinite_masks_remove_the_same_keys(
    rows: int, queries: int, keys: int, seed: int, data: st.DataObject
) -> None:
    kept = data.draw(st.lists(st.booleans(), min_size=keys, max_size=keys).filter(any))
    query, key, value = states(rows, 2, queries, keys, seed)
    mask = torch.tensor(kept)
    infinite = torch.zeros(keys).masked_fill(~mask, -math.inf)
    without = fused(query, key[:, :, mask], value[:, :, mask])
    torch.testing.assert_close(fused(query, key, value, as_bias(mask, query, keys)), without)
    torch.testing.assert_close(fused(query, key, value, as_bias(infinite, query, keys)), without)


@given(st.integers(2, 6), st.integers(0, 4), seeds)
@few
def test_a_mask_for_the_first_keys_leaves_the_appended_alone(keys: int, more: int, seed: int) -> None:
    query = normal(2, 2, 3, 4, seed=seed)
    mask = normal(keys, seed=seed)
    padded = torch.cat([mask, torch.zeros(more)])
    assert torch.equal(as_bias(mask, query, keys + more), as_bias(padded, query, keys + more))


@given(st.permutations(range(5)), seeds)
@few
def test_the_order_of_keys_does_not_matter(order: list[int], seed: int) -> None:
    plain, text = run(), normal(4, 5, 6, seed=1)
    mask = normal(5, seed=seed)
    with install(backbone(), LogitMask(mask, kind="cross")):
        wanted = run()
    with install(backbone(), LogitMask(mask[list(order)], kind="cross")):
        torch.testing.assert_close(run(encoder_hidden_states=text[:, list(order)]), wanted, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(run(encoder_hidden_states=text[:, list(order)]), plain, rtol=1e-4, atol=1e-5)


@given(st.lists(st.sampled_from("abcdef"), min_size=1, max_size=4, unique=True), st.integers(1, 3), st.data())
@few
def test_only_the_rows_of_the_branch_change(names: list[str], images: int, data: st.DataObject) -> None:
    batch, chosen = images * len(names), data.draw(st.sampled_from(names))
    plain = run(batch)
    shift = Output(lambda call, output, states: output + 1, branch=chosen)
    with install(backbone(), shift, branches=tuple(names)):
        edited = run(batch)
    changed = [not torch.equal(edited[row], plain[row]) for row in range(batch)]
    assert changed == [names[row // images] == chosen for row in range(batch)]


@given(st.lists(st.sampled_from(["mask", "share", "output", "context"]), max_size=5), st.integers(0, 5), seeds)
@few
def test_nesting_anywhere_is_flat(kinds: list[str], border: int, seed: int) -> None:
    make = {
        "mask": lambda k: LogitMask(normal(5, seed=seed + k), kind="cross"),
        "share": lambda k: Probabilities(lambda call, p: p * (1 + k), branch="cond"),
        "output": lambda k: Output(lambda call, output, states: output + k),
        "context": lambda k: Context(lambda call, keys, values: (keys + k, values), kind="cross", branch="uncond"),
    }
    edits = [make[kind](number) for number, kind in enumerate(kinds)]
    with install(backbone(), *edits):
        flat = run()
    with install(backbone(), *edits[:border]), install(backbone(), *edits[border:]):
        assert torch.equal(run(), flat)


@given(st.integers(1, 9), st.booleans(), seeds)
@few
def test_a_context_of_any_length_for_one_branch_is_its_own_pass(length: int, conditional: bool, seed: int) -> None:
    project = backbone().caption_projection
    text, rows = normal(2, length, 6, seed=seed), slice(2, 4) if conditional else slice(0, 2)
    own = Context(
        lambda call, keys, values: (project(text), project(text)),
        kind="cross",
        branch="cond" if conditional else "uncond",
    )
    with install(backbone(), own):
        edited = run()[rows]
    wanted = run(encoder_hidden_states=text.repeat(2, 1, 1))[rows]
    torch.testing.assert_close(edited, wanted, rtol=1e-4, atol=1e-5)


@given(st.integers(1, 4), seeds)
@few
def test_regions_of_one_text_share_out_one_attention(count: int, seed: int) -> None:
    text = normal(1, 4, 8, seed=seed)
    shares = torch.rand(count, 2, 3, generator=torch.Generator().manual_seed(seed))
    shares = shares / shares.sum(0)
    with install(backbone(), Regions((Region(torch.ones(2, 3), text),))):
        wanted = run()
    with install(backbone(), Regions(tuple(Region(share, text) for share in shares))):
        torch.testing.assert_close(run(), wanted, rtol=1e-4, atol=1e-5)


@given(st.integers(1, 200), st.integers(1, 200), st.integers(0, 4))
@few
def test_a_grid_is_what_strided_convolutions_leave(height: int, width: int, level: int) -> None:
    site = Site("x", "self", 1, 1, 1, 1, place="down", level=level)
    picture = torch.zeros(1, 1, height, width)
    for _ in range(level):
        picture = nn.functional.conv2d(picture, torch.zeros(1, 1, 3, 3), stride=2, padding=1)
    assert site.grid(height, width) == tuple(picture.shape[-2:])


@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 4), st.integers(1, 4), seeds)
@few
def test_area_keeps_the_mean_and_max_the_maximum(height: int, width: int, rows: int, columns: int, seed: int) -> None:
    assume(height % rows == 0 and width % columns == 0)
    maps = normal(2, height, width, seed=seed)
    torch.testing.assert_close(resize_maps(maps, (rows, columns)).mean((1, 2)), maps.mean((1, 2)))
    assert torch.equal(resize_maps(maps, (rows, columns), mode="max").amax((1, 2)), maps.amax((1, 2)))


@given(st.lists(st.integers(1, 999), min_size=2, max_size=12, unique=True), st.booleans(), st.integers(1, 3))
@few
def test_every_trajectory_is_counted_from_zero(times: list[int], ascending: bool, passes: int) -> None:
    assume(len(times) > 1)
    clock, trajectory = Clock(), sorted(times, reverse=not ascending)
    for _ in range(2):
        counted = [clock.advance(time).step for time in trajectory for _ in range(passes)]
        assert counted == [step for step in range(len(trajectory)) for _ in range(passes)]


@given(st.integers(0, 20), st.integers(0, 20), st.integers(0, 20))
@few
def test_during_is_a_half_open_interval(start: int, length: int, step: int) -> None:
    assert during(start, start + length)(Moment(step)) == (step in range(start, start + length))
    assert during(start)(Moment(step)) == (step >= start)
