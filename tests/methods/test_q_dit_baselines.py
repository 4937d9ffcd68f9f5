"""Laws of what stands beside the method: PTQD's correction, ranges by timestep, calibration draws."""

import pytest
import torch

from mezzotint.diffusion.condition import Condition
from mezzotint.methods.q_dit import trained
from mezzotint.methods.q_dit.calibration import Calibration, collect, draw_visits
from mezzotint.methods.q_dit.layers import network_of
from mezzotint.methods.q_dit.ptqd import Affine, Correction, fit_affine, fit_correction, reduced_variance
from mezzotint.methods.q_dit.quantiser import Precision
from mezzotint.methods.q_dit.recipe import Recipe, named_recipes
from mezzotint.methods.q_dit.sampling import ddim_timesteps, sample_latents, start_noise, trajectory
from mezzotint.methods.q_dit.search import Settings
from mezzotint.methods.q_dit.tfmq import Clock, TimestepLinear, quantise_by_timestep
from mezzotint.metrics.similarity import rmse
from tests.diffusion.conftest import BUILDERS, tiny_dit_pipe, tiny_sd


@pytest.fixture(scope="module")
def pipe():
    return tiny_dit_pipe()


def test_an_affine_error_is_undone_exactly():
    eps = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(0)).double()
    error = fit_affine(1.1 * eps + 0.03, eps)
    assert error.slope == pytest.approx(0.1, abs=1e-9)
    assert error.bias == pytest.approx(0.03, abs=1e-9)
    assert error.variance == pytest.approx(0, abs=1e-12)
    torch.testing.assert_close(error.undo(1.1 * eps + 0.03), eps, rtol=1e-9, atol=1e-9)


def test_what_is_not_affine_is_left_as_variance_and_taken_off_the_sampler():
    generator = torch.Generator().manual_seed(1)
    eps = torch.randn(8, 4, 8, 8, generator=generator)
    rest = 0.2 * torch.randn(eps.shape, generator=generator)
    error = fit_affine(0.9 * eps + rest, eps)
    assert error.slope == pytest.approx(-0.1, abs=0.02)
    assert error.variance == pytest.approx(0.04, rel=0.1)
    assert reduced_variance(1.0, 0.5, Affine(-0.5, 0.0, 0.04)) == pytest.approx(1 - 0.25 * 0.04 / 0.25)
    assert reduced_variance(0.001, 5.0, error) == 0
    with pytest.raises(ValueError, match="must have one shape"):
        fit_affine(eps, eps[:2])
    with pytest.raises(ValueError, match="must not be constant"):
        fit_affine(eps, torch.ones_like(eps))


def test_the_correction_takes_a_scaled_network_back_to_the_exact_latents(pipe):
    """A network whose noise is off by a factor and a shift is the affine model exactly."""

    class Off(torch.nn.Module):
        def __init__(self, network):
            super().__init__()
            self.network, self.config = network, network.config

        def forward(self, *args, **kwargs):
            return (1.05 * self.network(*args, **kwargs)[0] + 0.02,)

    off = Off(pipe.transformer)
    noise = start_noise(pipe, 2, seed=1)
    correction = fit_correction(pipe, off, [1, 2], start_noise(pipe, 2, seed=9), steps=3)
    exact = sample_latents(pipe, [1, 2], noise, steps=3)
    corrected, plain = (
        sample_latents(pipe, [1, 2], noise, steps=3, network=off, correct=c) for c in (correction, None)
    )
    torch.testing.assert_close(corrected, exact, rtol=1e-3, atol=1e-4)
    assert rmse(plain, exact).min() > 10 * rmse(corrected, exact).max()
    assert set(correction.errors) == set(ddim_timesteps(pipe, 3))


def test_the_nearest_timestep_corrects():
    correction = Correction({0: Affine(0.0, 1.0, 0.0), 100: Affine(0.0, 2.0, 0.0)})
    assert correction(torch.zeros(1), 40) == -1
    assert correction(torch.zeros(1), 60) == -2


def test_latents_do_not_depend_on_the_batch_and_end_clean(pipe):
    noise = start_noise(pipe, 3, seed=0)
    together = sample_latents(pipe, [1, 2, 3], noise, steps=4)
    alone = sample_latents(pipe, [2], start_noise(pipe, 1, seed=0, first=1), steps=4)
    torch.testing.assert_close(together[1:2], alone, rtol=1e-4, atol=1e-5)
    visited = [t for t, _, _ in trajectory(pipe, [1], noise[:1], steps=4)]
    assert visited == [*ddim_timesteps(pipe, 4), -1]


def test_ranges_by_timestep_are_those_of_the_step_and_grow_with_the_steps(pipe):
    recipe = Recipe(Precision(8), Precision(8), group="row", method="rtn")
    noise = start_noise(pipe, 2, seed=2)
    made = {}
    for steps in (2, 4):
        made[steps], _ = quantise_by_timestep(pipe, recipe, [1, 2], noise, steps=steps)
    sizes = {s: sum(m.table_bytes for m in net.modules() if isinstance(m, TimestepLinear)) for s, net in made.items()}
    assert sizes[4] == 2 * sizes[2] > 0
    layer = made[4].transformer_blocks[0].ff.net[2]
    assert isinstance(layer, TimestepLinear)
    assert not torch.equal(layer.scale[0], layer.scale[-1])
    exact = sample_latents(pipe, [1, 2], noise, steps=4)
    assert rmse(sample_latents(pipe, [1, 2], noise, steps=4, network=made[4]), exact).max() < 0.05


def test_one_clock_row_serves_one_timestep():
    clock = Clock([900, 500, 100])
    clock(torch.nn.Identity(), (), {"timestep": torch.tensor([480, 480])})
    assert clock.row == 1
    with pytest.raises(ValueError, match="do not mix timesteps"):
        clock(torch.nn.Identity(), (), {"timestep": torch.tensor([480, 100])})


def test_calibration_looks_at_each_picture_once_at_steps_without_replacement():
    uniform = draw_visits(16, 50, seed=0)
    assert len(set(uniform.tolist())) == 16
    assert not torch.equal(uniform, draw_visits(16, 50, seed=0, batch=1))
    assert torch.equal(draw_visits(12, 5, seed=3).bincount(minlength=5).sort().values, torch.tensor([2, 2, 2, 3, 3]))
    normal = torch.cat([draw_visits(16, 50, seed=0, batch=k, visits="normal") for k in range(100)])
    assert 0 <= normal.min() <= normal.max() < 50
    # Centred beyond the middle of the run, hence below T / 2.
    assert normal.double().mean() > 25.5


def test_calibration_keeps_what_the_network_was_given(pipe):
    found = collect(pipe, [3, 7], samples=5, steps=4, guidance=1.0, seed=2, batch_size=3)
    assert len(found) == 5
    arguments = found.arguments()
    assert arguments["class_labels"].tolist() == [3, 7, 3, 7, 3]
    assert set(arguments["timestep"].tolist()) <= set(ddim_timesteps(pipe, 4))
    again = collect(pipe, [3, 7], samples=5, steps=4, guidance=1.0, seed=2, batch_size=3).arguments()
    assert torch.equal(arguments["hidden_states"], again["hidden_states"])
    assert [len(batch["timestep"]) for batch in found.batches(2)] == [2, 2, 1]


def test_of_guided_halves_the_conditional_one_is_kept():
    pipe = tiny_sd()
    found = collect(pipe, ["a red cube", "a ball"], samples=2, steps=3, guidance=3.0, seed=1).arguments()
    cond, uncond = Condition.from_prompt(pipe, ["a red cube", "a ball"])
    torch.testing.assert_close(found["encoder_hidden_states"], cond.encoder_hidden_states)
    assert not torch.equal(found["encoder_hidden_states"], uncond.encoder_hidden_states)


@pytest.mark.parametrize("name", ["sd", "sdxl"])
def test_calibration_inputs_are_a_call_of_the_network_item_by_item(name):
    pipe = BUILDERS[name]()
    found = collect(pipe, ["a red cube", "a ball"], samples=2, steps=2, guidance=2.0)
    network = network_of(pipe)
    with torch.no_grad():
        together, second = (network(**part.arguments())[0] for part in (found, found[1:]))
    torch.testing.assert_close(together[1:], second, rtol=1e-4, atol=1e-5)


def test_a_pipeline_is_left_as_it_was_and_empty_calibration_is_refused(pipe):
    scheduler = pipe.scheduler
    collect(pipe, [1], samples=1, steps=2, guidance=1.0)
    assert pipe.scheduler is scheduler
    assert not pipe.transformer._forward_pre_hooks
    with pytest.raises(ValueError, match="calibration must not be empty"):
        Calibration.of(timestep=torch.zeros(0))
    with pytest.raises(ValueError, match="must be at least 1, got 0"):
        collect(pipe, [1], samples=0)


def test_the_named_baselines_are_what_their_definitions_say():
    named = named_recipes(4, 8, group=64)
    assert named["RTN-T"].group == "row"
    assert named["RTN-T"].per_tensor
    assert not named["RTN-D"].needs_calibration
    assert named["RTN-g static"].act_range == "static"
    assert not named["RTN-g static"].per_tensor
    assert named["GPTQ-g"] == Recipe(Precision(4), Precision(8), group=64, method="gptq")
    assert (named["G4W+P4A"].method, named["G4W+P4A"].group, named["G4W+P4A"].static) == ("gptq", 64, "error")
    assert named["SmoothQuant"].smoothing == 0.5


def test_ptq4dm_is_calibrated_on_its_own_draw_of_timesteps(pipe, monkeypatch):
    """Arms with least-squares ranges see the normal draw, all others the uniform one, of the same runs."""
    seen = {}

    def quantise(network, recipe, *, calibration, **_):
        seen[recipe] = calibration
        return network, None

    monkeypatch.setattr(trained, "quantise_network", quantise)
    size = trained.Size(2, 6, 4, 0, 0, ((4, 8),), Settings(), 2, 2, guidance=1.0)
    bench = trained.Bench(pipe, 0, size)
    names = ("RTN-T", "RTN-D", "SmoothQuant", "PTQ4DM", "G4W+P4A", "Q-DiT")
    for name in names:
        bench.made(name, 4, 8)
    named = named_recipes(4, 8)
    given = {name: seen[named["GPTQ-g" if name == "Q-DiT" else name]] for name in names}
    assert given["RTN-D"] is None
    assert given["PTQ4DM"] is given["G4W+P4A"] is bench.normal_calibration
    assert given["RTN-T"] is given["SmoothQuant"] is given["Q-DiT"] is bench.calibration
    settings = {"samples": 4, "steps": 6, "guidance": 1.0, "seed": 0}
    own = collect(pipe, bench.classes, visits="normal", **settings)
    assert torch.equal(bench.normal_calibration.items.extra["timestep"], own.items.extra["timestep"])
    assert not torch.equal(bench.calibration.items.extra["timestep"], own.items.extra["timestep"])
