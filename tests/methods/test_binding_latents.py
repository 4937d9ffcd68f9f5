"""Attend-and-Excite and SynGen: their losses, and steps of the latents inside a pipeline's own loop."""

import importlib
import math

import pytest
import torch
from diffusers import EulerDiscreteScheduler, UNet2DConditionModel
from torch.testing import assert_close

import mezzotint
from mezzotint.methods import binding
from mezzotint.methods.binding.attend_and_excite import attend_and_excite, excitation, excite, smoothed
from mezzotint.methods.binding.latent_steps import Progress, descend, grid_like_16, stepping
from mezzotint.methods.binding.report import Bound
from mezzotint.methods.binding.syngen import Pair, divergence, pair_loss, pairs_of, separate, syngen
from tests.attention.conftest import normal, processors
from tests.methods.test_binding import PAIRS, PROMPT, draw, pixart, sd

# A scheduler of diffusers hands tensors to NumPy in the old way.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
BOTH = {"attend": attend_and_excite, "syngen": syngen}


@pytest.fixture(scope="module")
def tiny():
    return sd()


def test_smoothing_keeps_constants_and_the_mass_of_a_point_inside():
    assert_close(smoothed(torch.full((1, 2, 4, 5), 3.0)), torch.full((1, 2, 4, 5), 3.0))
    point = torch.zeros(1, 1, 7, 7)
    point[..., 3, 3] = 1
    spread = smoothed(point)[0, 0]
    assert_close(spread.sum(), torch.tensor(1.0))
    side = math.exp(-1 / (2 * 0.25)) / (1 + 2 * math.exp(-1 / (2 * 0.25)))
    assert_close(spread[3, 2], torch.tensor(side * (1 - 2 * side)))


def test_a_token_that_owns_a_cell_is_excited_and_bos_does_not_count():
    maps = torch.zeros(1, 4, 8, 8)
    maps[:, 0] = 1
    maps[:, 1, :4] = 0.5
    maps[:, 2, 4:] = 0.5
    (found,) = excitation(maps, [[(1,), (2,), (3,)]])
    assert_close(found, torch.tensor([1.0, 1.0, 0.0]), rtol=0, atol=1e-6)
    assert float(excitation(maps, [[(1,)]], first=0)[0]) < 1e-6


def maps_of(latents):
    """A toy network: token k looks where channel k of the latents is large."""
    return latents.softmax(1)


def test_a_row_without_nouns_is_left_alone():
    latents = normal(2, 4, 6, 6)
    moved = excite([[], [(2,)]])(latents, Progress(1, 10), maps_of)
    assert torch.equal(moved[0], latents[0])
    assert not torch.equal(moved[1], latents[1])


def test_latents_descend_the_loss_and_only_in_the_first_half():
    latents, subjects = normal(2, 4, 6, 6), [[(1,), (2,)], [(3,)]]

    def worst(z):
        return torch.stack([1 - each.min() for each in excitation(maps_of(z), subjects)])

    rule = excite(subjects, scale=0.02)
    assert (worst(rule(latents, Progress(1, 10), maps_of)) < worst(latents)).all()
    assert torch.equal(rule(latents, Progress(5, 10), maps_of), latents)


def test_alpha_falls_with_the_square_root_of_a_line_from_1_to_a_half():
    latents = normal(1, 4, 6, 6)
    moves = [latents - excite([[(1,)]])(latents, Progress(index, 11), maps_of) for index in (1, 5)]
    assert_close(moves[1], moves[0] * math.sqrt(0.75 / 0.95), rtol=1e-3, atol=1e-5)


def test_refinement_stops_at_the_threshold_and_after_its_last_try():
    latents, calls = normal(2, 4, 6, 6), []

    def counted(z):
        calls.append(len(z))
        return maps_of(z)

    for threshold, expected in ((0.0, 1), (2.0, 1 + 5)):
        calls.clear()
        rule = excite([[(1,)], [(2,)]], thresholds={0.4: threshold}, refinements=5, scale=0.01)
        rule(latents, Progress(4, 10), counted)
        assert len(calls) == expected
        calls.clear()
        rule(latents, Progress(3, 10), counted)
        assert len(calls) == 1, "only at the step that has a threshold"


@pytest.mark.parametrize("rule", [excite([[(1,), (2,)], [(3,)]]), separate([[Pair((1,), (2,), (3,))], []])])
def test_rows_do_not_influence_each_other(rule):
    latents = normal(2, 4, 6, 6)
    other = torch.cat([latents[:1], normal(1, 4, 6, 6, seed=9)])
    assert torch.equal(rule(latents, Progress(1, 10), maps_of)[0], rule(other, Progress(1, 10), maps_of)[0])


def test_gradients_are_those_of_finite_differences():
    latents = normal(1, 4, 4, 4).double()

    def losses(maps):
        return torch.stack([pair_loss(row, Pair((1,), (2,), (3,))) for row in maps])

    loss, gradient = descend(latents, maps_of, losses)
    direction = normal(1, 4, 4, 4, seed=3).double()
    ahead, behind = (losses(maps_of(latents + h * direction)) for h in (1e-5, -1e-5))
    assert_close((ahead - behind) / 2e-5, (gradient * direction).sum((1, 2, 3)), rtol=1e-6, atol=1e-9)
    assert_close(loss, losses(maps_of(latents)))


def test_divergence_is_symmetric_zero_for_equal_maps_and_known_for_two_cells():
    one, other = torch.tensor([3.0, 1.0]), torch.tensor([1.0, 1.0])
    exact = 0.5 * (0.75 * math.log(1.5) + 0.25 * math.log(0.5) + 0.5 * math.log(2 / 3) + 0.5 * math.log(2))
    assert_close(divergence(one, other), torch.tensor(exact))
    assert_close(divergence(other, one), torch.tensor(exact))
    assert divergence(one, 5 * one) == 0


def test_a_pair_is_pulled_together_and_away_from_the_others():
    maps = normal(5, 4, 4).exp()
    n, m, u, w = (maps[k].flatten() for k in (1, 2, 3, 4))
    away = (divergence(n, u) + divergence(n, w) + divergence(m, u) + divergence(m, w)) / 4
    assert_close(pair_loss(maps, Pair((1,), (2,), (3, 4))), divergence(n, m) - away)
    assert_close(pair_loss(maps, Pair((1,), (2,), ())), divergence(n, m))


def test_pairs_of_a_phrase_share_what_is_outside():
    words = ("big", "red", "cube", ",", "orb")
    bound = Bound("", words, ((1,), (2, 3), (4,), (5,), (6,)), ((0, 2), (1, 2)), (0, 1), ())
    assert pairs_of(bound) == (Pair((4,), (1,), (6,)), Pair((4,), (2, 3), (6,)))


# ---- in a pipeline --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("guidance", [1.0, 4.0])
@pytest.mark.parametrize("euler", [False, True])
def test_a_step_of_the_latents_reaches_the_network_and_the_solver(euler, guidance):
    """Moving z by 1 before the only step is starting from noise whose scaled form is higher by 1."""
    pipe = sd()
    if euler:
        pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    pipe.scheduler.set_timesteps(1)
    sigma = float(pipe.scheduler.init_noise_sigma)
    noise = normal(2, 4, 8, 8)
    given = {"steps": 1, "guidance_scale": guidance}
    with stepping(pipe, [PROMPT] * 2, lambda latents, progress, maps: latents + 1):
        moved = draw(pipe, [PROMPT] * 2, latents=noise, **given)
    assert_close(moved, draw(pipe, [PROMPT] * 2, latents=noise + 1 / sigma, **given), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(moved, draw(pipe, [PROMPT] * 2, latents=noise, **given), atol=1e-3)


@pytest.mark.parametrize("make", [sd, pixart])
@pytest.mark.parametrize("method", BOTH)
def test_steps_of_length_0_change_nothing_and_leaving_restores_all(make, method):
    pipe = make()
    plain = draw(pipe)
    model = pipe.unet if isinstance(getattr(pipe, "unet", None), UNet2DConditionModel) else pipe.transformer
    before = processors(model), type(pipe), dict(vars(pipe.scheduler)).keys(), len(model._forward_pre_hooks)
    with BOTH[method](pipe, PROMPT, bindings=PAIRS, scale=0.0):
        assert torch.equal(draw(pipe), plain)
    with BOTH[method](pipe, PROMPT, bindings=PAIRS):
        assert not torch.equal(draw(pipe), plain)
        assert not torch.equal(draw(pipe, guidance_scale=1.0), draw(pipe))
    assert torch.equal(draw(pipe), plain)
    assert (processors(model), type(pipe), dict(vars(pipe.scheduler)).keys(), len(model._forward_pre_hooks)) == before


@pytest.mark.parametrize("method", BOTH)
@pytest.mark.parametrize("mode", ["averaged", "online"])
def test_focus_and_latent_steps_work_in_one_picture_in_either_order(tiny, method, mode):
    def make():
        return BOTH[method](tiny, PROMPT, bindings=PAIRS)

    def focus():
        return binding.focus(tiny, PROMPT, bindings=PAIRS, mode=mode)

    with make():
        alone = draw(tiny)
    with focus(), make():
        one = draw(tiny)
    with make(), focus():
        other = draw(tiny)
    assert torch.equal(one, other)
    assert not torch.equal(one, alone)


def test_focus_acts_in_the_gradient_passes(tiny):
    """Closed attributes leave more to the others, so the maps of the first gradient pass differ."""
    seen = []

    def look(latents, progress, maps):
        seen.append(maps(latents).detach())
        return latents

    masks = {"cube": (0, 0, 0.5, 1), "orb": (0.5, 0, 1, 1)}
    for given in (None, {"bindings": PAIRS, "mode": "oracle", "masks": masks}):
        with stepping(tiny, [PROMPT], look):
            if given is None:
                draw(tiny, steps=1)
                continue
            with binding.focus(tiny, PROMPT, **given):
                draw(tiny, steps=1)
    plain, masked = seen
    assert float(plain[0, 1, :, 4:].min()) > 1e-6
    assert float(masked[0, 1, :, 4:].max()) < 1e-15


def test_several_images_and_prompts_have_their_own_nouns(tiny):
    prompts, pairs, noise = [PROMPT, "orb red cube"], [PAIRS, [("red", "cube")]], normal(4, 4, 8, 8)
    with attend_and_excite(tiny, prompts, bindings=pairs):
        whole = draw(tiny, prompts, latents=noise, num_images_per_prompt=2, steps=2)
    with attend_and_excite(tiny, prompts[1], bindings=pairs[1]):
        alone = draw(tiny, prompts[1], latents=noise[3:], steps=2)
    assert_close(whole[3:], alone, rtol=1e-2, atol=1e-2)


def test_subjects_are_those_named_else_all_nouns(tiny, monkeypatch):
    module = importlib.import_module("mezzotint.methods.binding.attend_and_excite")
    prompts, found = ["a red cube on a gray floor", "a cube and a sphere"], []
    monkeypatch.setattr(module, "excite", lambda tokens, **_: found.append(tokens) or (lambda latents, *_: latents))
    with attend_and_excite(tiny, prompts):
        pass
    with attend_and_excite(tiny, prompts, subjects=[["cube"], [(2, 6), "sphere"]]):
        pass
    with attend_and_excite(tiny, prompts[0], subjects=["red cube"]):
        pass
    every, named, whole = found
    assert [len(each) for each in every] == [2, 2], "the floor, too, is a noun"
    assert named == [every[0][:1], every[1]]
    assert len(whole[0]) == 1
    assert set(every[0][0]) < set(whole[0][0]), "a subject of several words has the tokens of all"
    with (
        pytest.raises(ValueError, match="'dog' is not in the prompt"),
        attend_and_excite(tiny, "cat", subjects=["dog"]),
    ):
        pass
    for wrong, message in (([["cube"]], "one list a prompt: 2 prompts, 1 lists"), ("cube", "must be a list of words")):
        with pytest.raises(ValueError, match=message), attend_and_excite(tiny, prompts, subjects=wrong):
            pass


def test_what_cannot_be_done_is_refused(tiny):
    with attend_and_excite(tiny, PROMPT, bindings=PAIRS):
        with pytest.raises(ValueError, match="the pipeline is called with"):
            draw(tiny, "a dog")
        with torch.inference_mode(), pytest.raises(ValueError, match="gradients of the latents are needed"):
            draw(tiny)


def test_the_embedded_model_has_its_16_by_16_grid():
    assert grid_like_16(mezzotint.load("scenes").unet, (16, 16)) == (16, 16)
    stable_diffusion_sized = UNet2DConditionModel(
        sample_size=64, block_out_channels=(4, 4, 4, 4), norm_num_groups=2, layers_per_block=1, attention_head_dim=2,
        cross_attention_dim=8,
    )  # fmt: skip
    assert grid_like_16(stable_diffusion_sized, (64, 64)) == (16, 16)
