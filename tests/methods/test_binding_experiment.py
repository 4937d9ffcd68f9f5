"""The experiment of attribute binding at a tiny size: what it measures must mean what its rows say."""

from __future__ import annotations

import pytest
import torch

import mezzotint
from mezzotint.evidence import Evidence
from mezzotint.methods.binding import attention_leak, experiment, generation
from mezzotint.methods.binding.judging import Judges
from mezzotint.metrics.parser import SceneParser
from mezzotint.metrics.text_similarity import TextSimilarity
from mezzotint.worlds.scenes.vocabulary import COLOURS, HELD_OUT
from mezzotint.zoo.recipes import epvit

SMALL = generation.Size(prompts=2, ablated=0, steps=2, batch=2, shown=1, pilot=2)


@pytest.fixture(scope="module")
def pipe():
    found = mezzotint.load("scenes")
    found.set_progress_bar_config(disable=True)
    return found


@pytest.fixture(scope="module")
def noised(pipe) -> attention_leak.NoisedScenes:
    return attention_leak.NoisedScenes.make(pipe, 3, seed=5)


def test_shares_count_attention_inside_objects_alone() -> None:
    masks = torch.tensor([[[1.0, 1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0, 1.0]]])
    mass = torch.tensor([[[0.3, 0.1, 9.0, 0.1, 0.0], [0.2, 0.2, 0.0, 0.0, 0.0]]])
    torch.testing.assert_close(attention_leak.own_share(mass, masks), torch.tensor([[0.8, 0.0]]))
    torch.testing.assert_close(attention_leak.own_share(7 * mass, masks), torch.tensor([[0.8, 0.0]]))
    torch.testing.assert_close(attention_leak.own_share(mass, masks.flip(1)), torch.tensor([[0.2, 1.0]]))
    torch.testing.assert_close(attention_leak.own_share(0 * mass, masks), torch.tensor([[0.5, 0.5]]))


def test_each_mask_is_that_of_the_object_its_binding_names(pipe, noised) -> None:
    from mezzotint.diffusion.latents import decode

    pictures = decode(pipe, noised.latents)
    table = torch.tensor(list(COLOURS.values()))
    for row, prompt in enumerate(noised.prompts):
        words = [word for word in prompt.split() if word in COLOURS]
        for mask, word in zip(noised.masks[row], words, strict=True):
            inside = pictures[row][:, mask > 0]
            hue = inside / inside.amax(0).clamp_min(1e-3)
            others = table / table.amax(1, keepdim=True)
            nearest = (hue.T[:, None] - others).square().sum(-1).argmin(1)
            shares = torch.bincount(nearest, minlength=len(table)) / len(nearest)
            rival = next(other for other in words if other != word)
            assert shares[list(COLOURS).index(word)] > shares[list(COLOURS).index(rival)]


def test_true_masks_keep_attention_inside_and_wrong_ones_outside(pipe, noised) -> None:
    found = attention_leak.measure_leak(pipe, noised, batch_size=2)
    assert set(found) == set(attention_leak.ARMS)
    assert all(bool(((one.share >= 0) & (one.share <= 1)).all()) for one in found.values())
    oracle, stock = found["FCA oracle"].share, found["stock"].share
    assert float(oracle.mean()) > max(0.9, float(stock.mean()))
    assert not torch.equal(found["FCA"].share, stock)
    turned = attention_leak.NoisedScenes(**{**vars(noised), "masks": noised.masks.flip(1)})
    edits = attention_leak._attention(turned, "oracle", 0.6).edits()
    assert float(attention_leak._watched(pipe, noised, edits).share.mean()) < 0.1
    assert bool((found["FCA oracle"].mass < found["stock"].mass).all())
    overlap = found["stock"].overlap
    assert overlap is not None
    assert overlap.shape == (3,)


def test_prompts_have_several_different_objects_and_half_are_held_out() -> None:
    found = generation.prompts_of(8, (2, 3), seed=1)
    for said, wanted in zip(found.told, found.wanted, strict=True):
        assert len({item.shape for item in wanted}) == len({item.colour for item in wanted}) == len(wanted) >= 2
        assert all(set(item.attributes) == {"colour"} for item in wanted)
        assert all(f"{item.colour} {item.shape}" in said.text for item in wanted)
    held = [{(item.shape, item.colour) for item in wanted} <= HELD_OUT for wanted in found.wanted]
    assert held == [False, True] * 4
    assert generation.prompts_of(5, (2, 3), seed=1).texts == found.texts[:5]
    assert found.texts != generation.prompts_of(8, (2, 3), seed=2).texts


def test_without_abstraction_the_top_phrase_keeps_its_attributes() -> None:
    texts = [part.text for part in generation.whole_top("a red cube and a blue sphere").constituents]
    assert texts == ["a red cube", "a blue sphere", "a red cube and a blue sphere"]


def test_pictures_do_not_depend_on_the_batch(pipe) -> None:
    prompts = generation.prompts_of(2, (2, 2), seed=0, splits=("validation",))
    together, alone = (
        generation.made(pipe, generation.ARMS["stock"], prompts, generation.Size(2, 0, 2, batch=batch), seed=3)
        for batch in (2, 1)
    )
    torch.testing.assert_close(together.pictures, alone.pictures, rtol=0, atol=1e-4)
    assert len(alone.seconds) == 2


def test_every_ablation_draws_something_of_its_own_and_leaves_no_trace(pipe) -> None:
    prompts = generation.prompts_of(1, (2, 2), seed=0, splits=("validation",))
    size = generation.Size(1, 1, 2)

    def drawn(arm: generation.Arm) -> torch.Tensor:
        return generation.made(pipe, arm, prompts, size, seed=0).pictures

    plain = drawn(generation.ARMS["stock"])
    assert [name for name, arm in generation.ABLATIONS.items() if torch.equal(drawn(arm), plain)] == []
    assert torch.equal(drawn(generation.ARMS["stock"]), plain)


def test_the_whole_experiment_runs_and_its_verdicts_are_computed(pipe, tmp_path) -> None:
    torch.manual_seed(0)
    judges = Judges(
        SceneParser.load(),
        epvit.build().eval(),
        TextSimilarity(epvit.build_similarity(len(pipe.tokenizer)), pipe.tokenizer),
    )
    size = experiment.Size(2, 4, SMALL)
    found = experiment.experiment((0,), "quick", pipe=pipe, size=size, judges=judges)
    made = set(generation.ARMS)
    assert set(found.row("attributes bound", experiment.MAIN).values) == made
    assert found.row("pictures with a swap", experiment.MAIN).shape == (1, 2)
    assert set(found.row("EPViT leakage", experiment.MAIN).values) == made
    assert any("do not rest on it" in note for note in found.notes), "an untrained judge is not believed"
    assert not any("EPViT" in claim.metric for claim in found.claims)
    assert {claim.metric for claim in found.claims} >= {"attributes bound", experiment.LEAK, "objects present"}
    again = Evidence.load(found.save(tmp_path / "evidence.json"))
    assert [v.outcome for v in again.verdicts] == [v.outcome for v in found.verdicts]
    assert {sample.arm for sample in found.samples} == made
