"""Laws of Align Your Steps: closed forms on Gaussian data, and what must hold for every denoiser (arXiv 2404.14507)."""

import copy
import hashlib
import json
import math
from itertools import pairwise

import pytest
import torch
from diffusers import DiTPipeline, DiTTransformer2DModel, DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler
from diffusers.schedulers import AysSchedules
from torch.testing import assert_close

import mezzotint
from mezzotint.methods import align_your_steps as ays
from mezzotint.methods.align_your_steps import (
    analytic,
    chain,
    data,
    embedded,
    frozen,
    gaussian,
    grids,
    klub,
    mixtures,
    published,
    search,
)
from mezzotint.methods.align_your_steps import solvers as solvers_module
from mezzotint.methods.align_your_steps.fingerprint import fingerprint
from mezzotint.methods.align_your_steps.optimiser import optimise_pipeline
from mezzotint.methods.align_your_steps.schedule import Schedule
from tests.methods.conftest import sd_scheduler, tiny_vae

# diffusers' DPM-Solver converts a tensor by np.array(tensor), of which numpy 2 disapproves.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

LOW, HIGH, C = 0.002, 80.0, 0.5
GRIDS = {
    "arctan": grids.arctan(10, LOW, HIGH, c=C),
    "edm": grids.edm(10, LOW, HIGH),
    "log-snr": grids.log_snr(10, LOW, HIGH),
}
SIGMAS = solvers_module.training_sigmas(sd_scheduler())


def gaussian_denoise(c=C):
    return klub.unconditional(lambda x, sigma: x * (c**2 / (c**2 + sigma**2)))


def gaussian_data(count, d, c=C, seed=0):
    return c * torch.randn(count, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def mixture():
    return mixtures.Mixture.lattice(4, 4, 0.1)


@pytest.fixture(scope="module")
def mixture_table(mixture):
    levels = grids.log_snr(95, 0.02, 20.0)
    return chain.chain_table(klub.unconditional(mixture.denoise), mixture.draw(768, seed=1), levels, batch_size=256)


class TestGaussianClosedForms:
    @pytest.mark.parametrize("name", GRIDS)
    def test_1_ddim_reaches_the_product_of_cosines(self, name):
        schedule = Schedule.from_grid(GRIDS[name])
        start = torch.full((1, 1), math.sqrt((C**2 + HIGH**2) / (1 + HIGH**2)), dtype=torch.float64)
        out = solvers_module.sample(lambda x, s: gaussian.denoise(x, s, c=C), start, schedule, solver="ddim")
        assert_close(out.item(), gaussian.output_std(GRIDS[name], c=C), rtol=2e-5, atol=0.0)

    def test_2_arctan_grid_is_the_optimum_and_the_printed_ratios_hold(self):
        ratios = {name: gaussian.std_ratio(grid, c=C) for name, grid in GRIDS.items()}
        spread = math.atan(HIGH / C) - math.atan(LOW / C)
        assert_close(ratios["arctan"], math.cos(spread / 10) ** 10, rtol=1e-12, atol=0.0)
        assert [round(ratios[n], d) for n, d in (("arctan", 8), ("edm", 5), ("log-snr", 5))] == [
            0.88491586,
            0.75278,
            0.76735,
        ]
        divergences = [round(gaussian.sample_kl(ratios[n]), 6) for n in ("arctan", "edm", "log-snr")]
        assert divergences == [0.016245, 0.098357, 0.084336]

    def test_2_moving_any_level_of_the_arctan_grid_is_worse(self):
        best = gaussian.std_ratio(GRIDS["arctan"], c=C)
        for i in range(1, 10):
            for factor in (0.95, 1.05):
                moved = list(GRIDS["arctan"])
                moved[i] *= factor
                assert gaussian.std_ratio(moved, c=C) < best

    def test_3_mean_squared_gap(self):
        table = chain.chain_table(gaussian_denoise(), gaussian_data(4096, 8), (0.1, 0.3, 0.9), batch_size=1024)
        for a, b in ((0, 1), (0, 2), (1, 2)):
            expected = gaussian.gap(table.levels[a], table.levels[b], c=C, d=8)
            assert_close(table.gaps[a, b].item(), expected, rtol=0.05, atol=0.0)

    def test_4_klub_of_whole_grids(self):
        values = {name: gaussian.klub(grid, c=C) for name, grid in GRIDS.items()}
        assert [round(values["arctan"], 3), round(values["edm"], 3), round(values["log-snr"], 4)] == [
            790.638,
            46.605,
            11.7342,
        ]

    @pytest.mark.parametrize("name", GRIDS)
    def test_5_sum_of_intervals_is_the_whole(self, name):
        total = sum(gaussian.interval(a, b, c=C) for a, b in pairwise(GRIDS[name]))
        assert_close(total, gaussian.klub(GRIDS[name], c=C), rtol=1e-10, atol=0.0)

    def test_5_optimum_has_equal_terms_and_differs_from_the_arctan_grid(self):
        grid = grids.klub_gaussian(10, LOW, HIGH, c=C)
        terms = [gaussian.interval(a, b, c=C) for a, b in pairwise(grid)]
        assert_close(terms, [terms[0]] * 10, rtol=1e-9, atol=0.0)
        assert round(sum(terms), 8) == 4.56395666
        assert gaussian.std_ratio(grid, c=C) < gaussian.std_ratio(GRIDS["edm"], c=C)

    @pytest.mark.parametrize("substeps", [1, 2, 7, 100])
    def test_6_path_divergence_of_the_chains(self, substeps):
        assert round(gaussian.path_kl(0.2, 0.7, c=C, substeps=substeps), 8) == 1.11595950
        assert_close(gaussian.path_kl(0.2, 0.7, c=C, substeps=substeps), gaussian.interval(0.2, 0.7, c=C))

    @pytest.mark.parametrize("middle", [0.05, 0.15, 0.3])
    def test_7_every_candidate_has_the_same_weighted_mean_and_z_brings_back_the_value(self, middle):
        estimator = klub.MonteCarlo(gaussian_denoise(), gaussian_data(512, 64), samples=2048, c=C)
        pair = estimator.pair(0.03, middle, 0.4)
        z = klub.normaliser(0.03, middle, C) + klub.normaliser(middle, 0.4, C)
        assert abs(pair.mean / z - 64 * C**4) < 4 * pair.error / z
        exact = gaussian.interval(0.03, middle, c=C, d=64) + gaussian.interval(middle, 0.4, c=C, d=64)
        assert abs(pair.mean - exact) < 4 * pair.error
        # sqrt(2 / 64) is the spread of a mean of 64 squares: nothing is left from the draw of t.
        assert pair.relative_std < 1.1 * math.sqrt(2 / 64)

    def test_7_breaks_without_the_normaliser(self, monkeypatch):
        monkeypatch.setattr(klub, "normaliser", lambda a, b, c: 1.0)
        t, weights = klub.levels_and_weights(torch.rand(64), 0.1, 0.4, c=C, density="importance")
        gaps = torch.tensor([gaussian.gap(x, 0.4, c=C) for x in t.tolist()], dtype=torch.float64)
        assert abs((gaps * weights).mean().item() - gaussian.interval(0.1, 0.4, c=C)) > 0.1

    def test_7_shared_noise_is_the_wrong_joint_law(self):
        exact = gaussian.interval(0.1, 0.4, c=C, d=64)
        settings = {"denoise": gaussian_denoise(), "clean": gaussian_data(512, 64), "samples": 2048, "c": C}
        right = klub.MonteCarlo(**settings).interval(0.1, 0.4)
        wrong = klub.MonteCarlo(**settings, joint="shared").interval(0.1, 0.4)
        assert abs(right.mean - exact) < 4 * right.error < 0.2 * exact < abs(wrong.mean - exact)

    @pytest.mark.parametrize("density", ["importance", "log-uniform", "uniform"])
    def test_7_every_density_is_unbiased_and_importance_has_the_least_spread(self, density):
        estimator = klub.MonteCarlo(gaussian_denoise(), gaussian_data(512, 64), samples=4096, c=C, density=density)
        pair = estimator.pair(0.03, 0.15, 0.4)
        exact = gaussian.interval(0.03, 0.15, c=C, d=64) + gaussian.interval(0.15, 0.4, c=C, d=64)
        assert abs(pair.mean - exact) < 4 * pair.error
        low, high = {"importance": (0.15, 0.22), "log-uniform": (1.1, 1.5), "uniform": (2.7, 3.4)}[density]
        assert low < pair.relative_std < high


class TestAnyDenoiser:
    def test_8_martingale_identity_of_the_exact_posterior_mean(self, mixture_table):
        assert mixture_table.martingale_defect() < 0.05

    def test_8_breaks_for_a_denoiser_that_is_not_the_posterior_mean(self, mixture):
        levels = grids.log_snr(15, 0.02, 20.0)
        wrong = klub.unconditional(lambda x, sigma: mixture.denoise(x, sigma * 3))
        table = chain.chain_table(wrong, mixture.draw(256, seed=1), levels, batch_size=256)
        assert table.martingale_defect() > 0.2

    def test_9_costs_are_not_negative_and_splitting_does_not_raise_them(self, mixture_table):
        cost = mixture_table.cost
        assert (cost >= 0).all()
        assert_close(cost.diagonal(), torch.zeros(96, dtype=torch.float64), rtol=0.0, atol=0.0)
        for a, m, b in ((0, 10, 40), (5, 30, 90), (20, 21, 60), (40, 80, 95)):
            slack = 3 * (mixture_table.error[a, b] + mixture_table.error[a, m] + mixture_table.error[m, b])
            assert cost[a, m] + cost[m, b] <= cost[a, b] + slack

    def test_10_passes_never_raise_the_objective_and_keep_the_ends(self, mixture_table):
        start = mixture_table.nearest(grids.edm(10, 0.02, 20.0))
        passes = search.coordinate_search(start, search.TableObjective(mixture_table))
        objectives = [p.objective for p in passes]
        assert all(after <= before for before, after in pairwise(objectives))
        assert objectives[-1] < 0.5 * objectives[0]
        for p in passes:
            grids.check_grid(p.grid)
            assert (p.grid[0], p.grid[-1]) == (start[0], start[-1])

    def test_10_monte_carlo_passes_never_raise_it_either(self, mixture):
        denoise = klub.unconditional(mixture.denoise)
        objective = search.MonteCarloObjective(klub.MonteCarlo(denoise, mixture.draw(64, seed=2), samples=128))
        start = grids.edm(6, 0.02, 20.0)
        passes = search.coordinate_search(start, objective, max_updates=10)
        assert all(b.objective <= a.objective for a, b in pairwise(passes))
        assert passes[-1].objective < passes[0].objective
        assert (passes[-1].grid[0], passes[-1].grid[-1]) == (0.02, 20.0)

    def test_10_breaks_when_candidates_see_different_noise(self, mixture, monkeypatch):
        # Without common random numbers the same interval has two values and "never raised" means nothing.
        estimator = klub.MonteCarlo(klub.unconditional(mixture.denoise), mixture.draw(64, seed=2), samples=128)
        assert estimator.interval(0.1, 0.4) == estimator.interval(0.1, 0.4)
        draws = iter(range(10_000))
        monkeypatch.setattr(klub.rng, "normal", lambda shape, *, count, dtype, **_: torch.randn(
            count, *shape, dtype=dtype, generator=torch.Generator().manual_seed(next(draws))))  # fmt: skip
        assert estimator.interval(0.1, 0.4).mean != estimator.interval(0.1, 0.4).mean

    @pytest.mark.parametrize("batch_size", [1, 7, 64])
    def test_10_batch_size_changes_nothing(self, mixture, batch_size):
        denoise, clean = klub.unconditional(mixture.denoise), mixture.draw(30, seed=3)
        whole = klub.MonteCarlo(denoise, clean, samples=64, batch_size=1000).interval(0.1, 0.5)
        parts = klub.MonteCarlo(denoise, clean, samples=64, batch_size=batch_size).interval(0.1, 0.5)
        assert_close(parts.mean, whole.mean, rtol=1e-12, atol=0.0)
        levels = grids.log_snr(11, 0.02, 20.0)
        tables = [chain.chain_table(denoise, clean, levels, batch_size=size) for size in (1000, batch_size)]
        assert_close(tables[0].cost, tables[1].cost, rtol=1e-10, atol=1e-12)

    def test_11_subdivision_keeps_old_levels_and_interpolation_returns_them(self):
        forty = grids.subdivide(grids.subdivide(GRIDS["edm"]))
        assert forty[::4] == GRIDS["edm"]
        assert grids.resample(forty, 40) == forty
        assert grids.resample(forty, 20) == forty[::2]
        for low, middle, high in zip(forty[::2], forty[1::2], forty[2::2], strict=False):
            assert low < middle < high

    def test_11_hierarchy_moves_only_new_levels(self, mixture_table):
        objective = search.TableObjective(mixture_table)
        start = mixture_table.nearest(grids.edm(10, 0.02, 20.0))
        grid, history = search.hierarchical(start, objective, 40)
        ten, twenty = history[-3].grid, history[-2].grid
        assert twenty[::2] == ten
        assert grid[::2] == twenty
        grids.check_grid(grid)
        assert search.hierarchical(start, objective, 5)[0] == ten[::2]

    def test_12_scale_equivariance_and_constant_denoiser(self, mixture):
        scale = 3.0
        levels = grids.log_snr(31, 0.02, 20.0)
        larger = klub.unconditional(lambda x, sigma: scale * mixture.denoise(x / scale, sigma / scale))
        clean = mixture.draw(128, seed=4)
        table = chain.chain_table(klub.unconditional(mixture.denoise), clean, levels)
        scaled = chain.chain_table(larger, scale * clean, [scale * s for s in levels])
        first, value = chain.optimum(table, 6)
        second, same = chain.optimum(scaled, 6)
        assert_close([scale * s for s in first], list(second))
        assert_close(value, same)
        assert_close(list(grids.arctan(7, 0.06, 60.0, c=1.5)), [3 * t for t in grids.arctan(7, 0.02, 20.0, c=0.5)])
        still = chain.chain_table(klub.unconditional(lambda x, sigma: torch.ones_like(x)), clean, levels)
        assert_close(still.cost, torch.zeros_like(still.cost), rtol=0.0, atol=0.0)

    def test_13_monte_carlo_agrees_with_the_chain_table(self):
        levels = grids.log_snr(400, 0.1, 1.0)
        denoise, clean = gaussian_denoise(), gaussian_data(256, 16)
        table = chain.chain_table(denoise, clean, levels, batch_size=64)
        for a, b in ((0, 200), (100, 400), (0, 400)):
            estimate = klub.MonteCarlo(denoise, clean, samples=2048, c=C).interval(levels[a], levels[b])
            error = math.hypot(estimate.error, table.error[a, b].item())
            assert abs(estimate.mean - table.cost[a, b].item()) < 3 * error

    def test_13_optimum_is_below_the_search_which_is_below_the_start(self, mixture_table):
        objective = search.TableObjective(mixture_table)
        for steps in (3, 5, 10, 20):
            start = mixture_table.nearest(grids.edm(steps, 0.02, 20.0))
            found = search.coordinate_search(start, objective)[-1]
            best, value = chain.optimum(mixture_table, steps)
            assert value <= found.objective * (1 + 1e-12)
            assert found.objective <= search.total(start, objective)
            assert_close(search.total(best, objective), value)

    def test_13_optimum_beats_every_grid_of_a_small_table(self, mixture):
        from itertools import combinations

        levels = grids.log_snr(8, 0.02, 20.0)
        table = chain.chain_table(klub.unconditional(mixture.denoise), mixture.draw(64, seed=5), levels)
        objective = search.TableObjective(table)
        inner = combinations(levels[1:-1], 3)
        cheapest = min(search.total((levels[0], *chosen, levels[-1]), objective) for chosen in inner)
        assert_close(chain.optimum(table, 4)[1], cheapest)

    def test_early_stopping_keeps_the_best_pass_and_breaks_without_it(self, mixture_table):
        # The arctan grid is the best sampler for Gaussian data; the objective walks away from such grids.
        distance = lambda grid: abs(math.log(grid[5] / grids.edm(10, 0.02, 20.0)[5]) + 0.4)  # noqa: E731
        start = mixture_table.nearest(grids.edm(10, 0.02, 20.0))
        passes = search.coordinate_search(start, search.TableObjective(mixture_table), quality=distance)
        kept = search.best_pass(passes)
        assert kept.quality == min(p.quality for p in passes)
        assert kept.number != passes[-1].number
        unstopped = search.coordinate_search(start, search.TableObjective(mixture_table))
        assert search.best_pass(unstopped).grid == passes[-1].grid


class TestSchedules:
    def test_published_timesteps_bit_for_bit(self, sd15, sdxl):
        ours, stock = ays.make("sd15", pipe=sd15), AysSchedules["StableDiffusionTimesteps"]
        assert ours.timesteps == stock
        assert ours.levels == (999, 850, 736, 645, 545, 455, 343, 233, 124, 24, 0)
        assert ays.make("sdxl", pipe=sdxl).timesteps == AysSchedules["StableDiffusionXLTimesteps"]
        assert ays.make("svd").sampler_sigmas[:-1] == AysSchedules["StableDiffusionVideoSigmas"][:-1]
        assert ays.make("svd", final="zero").sampler_sigmas == AysSchedules["StableDiffusionVideoSigmas"]
        printed = AysSchedules["StableDiffusionSigmas"]
        assert ays.make("sd15", final="zero").sampler_sigmas == printed
        floyd = sd_scheduler(beta_schedule="squaredcos_cap_v2")
        levels = published.published_indices("deepfloyd-if", 10, solvers_module.training_sigmas(floyd))
        assert levels[::-1] == (995, 920, 811, 686, 555, 418, 315, 174, 109, 12, 0)
        sigmas = solvers_module.training_sigmas(floyd)
        printed = published.PUBLISHED["deepfloyd-if"].sigmas
        assert_close([sigmas[i] for i in reversed(levels)], list(printed), rtol=1e-4, atol=6e-4)

    def test_published_sigmas_are_near_those_of_their_timesteps(self):
        for name in ("sd15", "sdxl"):
            entry = published.PUBLISHED[name]
            exact = [SIGMAS[t] for t in entry.timesteps]
            assert_close(list(entry.sigmas), exact, rtol=1.5e-2, atol=0.0)

    @pytest.mark.parametrize("name", ["sd15", "sdxl"])
    @pytest.mark.parametrize("steps", [5, 8, 20, 40])
    def test_published_schedules_interpolate(self, sd15, name, steps):
        schedule = ays.make(name, steps=steps, pipe=sd15)
        assert schedule.steps == steps
        ten = ays.make(name, pipe=sd15)
        for i in range(steps + 1):
            if (i * 10) % steps == 0:
                assert schedule.levels[i] == ten.levels[i * 10 // steps]

    @pytest.mark.parametrize("final", ["t_min", "zero", "append_zero"])
    @pytest.mark.parametrize("solver", sorted(solvers_module.SOLVERS))
    def test_14_the_network_is_called_n_times_at_the_schedules_levels(self, sd15, final, solver):
        schedule = ays.make("sd15", pipe=sd15, final=final)
        seen = []
        hook = sd15.unet.register_forward_hook(lambda module, args, kwargs, out: seen.append(int(args[1])),
                                               with_kwargs=True)  # fmt: skip
        before = sd15.scheduler
        with schedule.apply(sd15, solver=solver):
            sd15("a b", output_type="latent", num_inference_steps=3)
            assert sd15.scheduler.sigmas.tolist() == torch.tensor(schedule.sampler_sigmas).tolist()
        hook.remove()
        assert sd15.scheduler is before
        assert seen == schedule.timesteps
        assert len(seen) == schedule.calls == (11 if final == "append_zero" else 10)

    def test_14_a_stock_scheduler_has_the_same_sigmas_bit_for_bit(self, sd15, tmp_path):
        schedule = ays.make("edm", steps=9, pipe=sd15)
        document = json.loads(schedule.save(tmp_path / "s.json").read_text())
        for final in ("sigma_min", "zero"):
            stock = DPMSolverMultistepScheduler.from_config(sd15.scheduler.config, final_sigmas_type=final)
            stock.set_timesteps(timesteps=document["timesteps"])
            expected = [*schedule.sigmas[:-1], schedule.sigmas[-1] if final == "sigma_min" else 0.0]
            assert stock.sigmas.tolist() == expected

    def test_14_stock_pipeline_with_the_json_makes_the_same_latents(self, sd15, tmp_path):
        schedule = ays.make("sd15", steps=6, pipe=sd15, final="zero")
        document = json.loads(schedule.save(tmp_path / "s.json").read_text())
        noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
        with schedule.apply(sd15, solver="2m"):
            ours = sd15("a b", latents=noise, output_type="latent").images
        before = sd15.scheduler
        sd15.scheduler = DPMSolverMultistepScheduler.from_config(before.config)
        stock = sd15("a b", latents=noise, output_type="latent", timesteps=document["timesteps"]).images
        sd15.scheduler = before
        assert torch.equal(ours, stock)

    def test_14_apply_restores_after_an_exception(self, sd15):
        before = sd15.scheduler
        with pytest.raises(RuntimeError, match="on purpose"), ays.make("sd15", pipe=sd15).apply(sd15):
            raise RuntimeError("on purpose")
        assert sd15.scheduler is before

    def test_14_pipelines_without_a_timesteps_argument_follow_the_schedule_too(self):
        torch.manual_seed(0)
        network = DiTTransformer2DModel(
            num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=1, sample_size=8,
            patch_size=2, num_embeds_ada_norm=10,
        ).eval()  # fmt: skip
        pipe = DiTPipeline(network, tiny_vae(), sd_scheduler())
        pipe.set_progress_bar_config(disable=True)
        seen = []
        network.register_forward_hook(lambda module, args, kwargs, out: seen.append(int(kwargs["timestep"][0])),
                                      with_kwargs=True)  # fmt: skip
        schedule = ays.make("log-snr", steps=4, pipe=pipe)
        with schedule.apply(pipe):
            pipe([1], num_inference_steps=50, guidance_scale=1.0)
        assert seen == schedule.timesteps

    def test_sampler_of_the_search_equals_the_pipeline(self, sd15):
        schedule = ays.make("sd15", steps=5, pipe=sd15)
        noise = frozen.start_noise(sd15, 1, seed=3)
        ours = frozen.run(frozen.freeze(sd15, ["a b"], 7.5), noise, schedule, solver="2m")
        with schedule.apply(sd15, solver="2m"):
            stock = sd15("a b", latents=noise, output_type="latent", guidance_scale=7.5).images
        assert_close(ours / math.sqrt(1 + schedule.sigmas[-1] ** 2), stock, rtol=1e-4, atol=1e-3)

    def test_json_round_trip_keeps_every_bit(self, mixture_table, tmp_path):
        passes = search.coordinate_search(grids_start(mixture_table), search.TableObjective(mixture_table))
        schedule = Schedule.from_grid(passes[-1].grid, name="x", facts={"guidance": 2.5}, history=tuple(passes))
        assert Schedule.load(schedule.save(tmp_path / "s.json")) == schedule

    def test_img2img_cuts_the_grid(self):
        schedule = ays.make("sd15")
        assert schedule.tail(0.5).sigmas == schedule.sigmas[5:]
        assert schedule.tail(1.0) == schedule


def grids_start(table):
    return table.nearest(grids.edm(10, table.levels[0], table.levels[-1]))


def digest(module):
    found = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        found.update(name.encode() + value.numpy().tobytes())
    return found.hexdigest()


QUICK = {"samples": 4, "levels": 24, "stop_samples": 2, "data": "self", "batch_size": 4}


class TestPipelines:
    @pytest.mark.parametrize("layout", ["sd15", "sdxl"])
    def test_15_optimising_leaves_the_model_alone(self, layout, request):
        pipe = request.getfixturevalue(layout)
        clean = data.Clean(torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(0)), ("a b",) * 4, "noise")
        flags, before = [p.requires_grad for p in pipe.unet.parameters()], digest(pipe.unet)
        schedule = ays.optimise(pipe, steps=10, clean=clean, **QUICK)
        assert digest(pipe.unet) == before
        assert [p.requires_grad for p in pipe.unet.parameters()] == flags
        assert all(p.grad is None for p in pipe.unet.parameters())
        assert (schedule.levels[0], schedule.levels[-1]) == (999, 0)
        assert schedule.history[-1].objective <= schedule.history[0].objective
        seen = []
        hook = pipe.unet.register_forward_hook(lambda module, args, out: seen.append(int(args[1])))
        with schedule.apply(pipe, guidance=schedule.facts["guidance"]):
            pipe("a b", output_type="latent")
        hook.remove()
        assert seen == schedule.timesteps

    def test_more_steps_are_distinct_training_levels(self, sd15):
        clean = data.Clean(torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0)), ("a",) * 3, "noise")
        pipe_options = {**QUICK, "early_stopping": False}
        grids_of = {n: ays.optimise(sd15, steps=n, clean=clean, **pipe_options) for n in (5, 10, 20, 37)}
        assert [s.steps for s in grids_of.values()] == [5, 10, 20, 37]
        assert grids_of[20].levels[::2] == grids_of[10].levels
        assert grids_of[10].levels[::2] == grids_of[5].levels
        one = ays.optimise(sd15, steps=1, clean=clean, **pipe_options)
        assert one.levels == (999, 0)

    def test_monte_carlo_mode_and_own_samples(self, sd15):
        schedule = optimise_pipeline(
            sd15, mode="monte_carlo", samples=4, data="self", prompts=("a", "b c"), max_updates=2, candidates=2,
            early_stopping=False, guidance=1.0,
        )  # fmt: skip
        assert schedule.facts["data"] == "the model's own samples, 200 steps"
        assert schedule.history[-1].objective <= schedule.history[0].objective

    def test_pictures_from_a_folder_become_latents_with_captions(self, sd15, tmp_path):
        from PIL import Image

        for k, name in enumerate(("one.png", "two.png")):
            Image.new("RGB", (20, 16), (60 * k, 120, 200)).save(tmp_path / name)
        rows = [{"file_name": "one.png", "text": "a red cube"}, {"file_name": "two.png", "text": "b"}]
        (tmp_path / "metadata.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
        clean = data.clean_data(sd15, str(tmp_path), 8)
        assert clean.prompts == ("a red cube", "b")
        pictures = torch.stack([data.read_square(tmp_path / name, 16) for name in ("one.png", "two.png")])
        expected = sd15.vae.encode(pictures * 2 - 1).latent_dist.mode() * sd15.vae.config.scaling_factor
        assert_close(clean.latents, expected.detach())

    def test_fingerprint_belongs_to_the_weights_and_not_to_their_precision(self):
        torch.manual_seed(0)
        network = torch.nn.Linear(300, 7)
        name = fingerprint(network)
        assert fingerprint(copy.deepcopy(network).half()) == name
        with torch.no_grad():
            network.weight[0, 0] += 1.0
        assert fingerprint(network) != name

    def test_warnings_name_what_does_not_fit(self, sd15):
        schedule = Schedule.from_levels(
            range(0, 1000, 333), SIGMAS, name="align-your-steps", facts={"guidance": 7.5, "model": "another"}
        )
        texts = solvers_module.doubts(schedule, sd15, 1.0)
        assert [t for t in texts if "outside 5..60" in t]
        assert [t for t in texts if "guidance 7.5, not 1.0" in t]
        assert [t for t in texts if "another checkpoint" in t]
        assert solvers_module.doubts(ays.make("sd15", pipe=sd15), sd15, 7.5) == []


def refuse(match):
    return pytest.raises(ValueError, match=match)


class TestBadInput:
    @pytest.mark.parametrize("ends", [(0.0, 1.0), (2.0, 1.0), (1.0, 1.0), (-1.0, 1.0), (0.1, math.inf)])
    def test_ends(self, ends):
        with refuse("0 < s_min < s_max"):
            ays.make("edm", s_min=ends[0], s_max=ends[1])

    @pytest.mark.parametrize("steps", [0, -3])
    def test_steps(self, sd15, steps):
        with refuse("steps must be at least 1"):
            ays.make("edm", steps=steps, pipe=sd15)
        with refuse("steps must be at least 1"):
            ays.optimise(sd15, steps=steps)

    @pytest.mark.parametrize(
        "sigmas", [(1.0, 2.0, 0.5), (2.0, 1.0, 1.0), (2.0, math.nan, 1.0), (2.0, 1.0, 0.0), (1.0,)]
    )
    def test_grids(self, sigmas):
        with refuse("grid|noise levels"):
            Schedule.custom(sigmas=sigmas)

    def test_levels_outside_the_training_range(self):
        with refuse("leave the training range"):
            Schedule.custom(sigmas=(80.0, 1.0, 0.1), training_sigmas=SIGMAS)
        clamped = Schedule.custom(sigmas=(80.0, 1.0, 0.1), training_sigmas=SIGMAS, clamp=True)
        assert clamped.levels[0] == 999

    def test_more_steps_than_levels(self, sd15):
        with refuse("distinct training levels"):
            ays.make("time-uniform", steps=1000, pipe=sd15)
        with refuse("below the 1000 training levels"):
            ays.optimise(sd15, steps=1000)

    def test_both_timesteps_and_sigmas(self):
        with refuse("got both"):
            Schedule.custom(timesteps=(1, 0), sigmas=(2.0, 1.0), training_sigmas=SIGMAS)
        with refuse("duplicates"):
            Schedule.custom(timesteps=(9, 5, 5, 0), training_sigmas=SIGMAS)

    def test_flags_that_rewrite_sigmas(self, sd15):
        config = {**sd15.scheduler.config, "use_karras_sigmas": True}
        with refuse("use_karras_sigmas"):
            solvers_module.scheduler_for(ays.make("sd15", pipe=sd15), "2m", config)

    def test_other_timesteps_inside_apply(self, sd15):
        with ays.make("sd15", pipe=sd15).apply(sd15), refuse("runs a schedule with timesteps"):
            sd15("a", timesteps=[500, 100], output_type="latent")

    def test_guidance_of_an_unconditional_model(self):
        from diffusers import DDPMPipeline, UNet2DModel

        torch.manual_seed(0)
        network = UNet2DModel(
            sample_size=8, in_channels=3, out_channels=3, block_out_channels=(8, 8), norm_num_groups=4,
            layers_per_block=1, down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2,
        ).eval()  # fmt: skip
        pipe = DDPMPipeline(network, sd_scheduler())
        with refuse("takes no guidance"):
            frozen.freeze(pipe, (), 7.5)
        clean = data.Clean(torch.zeros(2, 3, 8, 8), ("", ""), "zeros")
        assert ays.optimise(pipe, steps=5, clean=clean, **QUICK).facts["guidance"] == 1.0

    def test_empty_data_and_too_few_candidates(self, sd15, tmp_path):
        with refuse("no pictures found"):
            data.clean_data(sd15, str(tmp_path), 4)
        with refuse("empty"):
            data.Clean(torch.zeros(0, 4, 8, 8), (), "nothing")
        with refuse("empty data set"):
            klub.MonteCarlo(gaussian_denoise(), torch.zeros(0, 2))
        clean = data.Clean(torch.zeros(2, 4, 8, 8), ("", ""), "zeros")
        with refuse("candidates must be at least 2"):
            ays.optimise(sd15, clean=clean, **{**QUICK, "candidates": 1})

    def test_continuous_or_flow_models_have_no_timesteps(self, sd15):
        with refuse("no alphas_cumprod"):
            solvers_module.training_sigmas(FlowMatchEulerDiscreteScheduler())
        with refuse("no timesteps"):
            ays.make("svd").timesteps  # noqa: B018
        with refuse("leave the training range"):
            ays.make("svd", pipe=sd15)

    def test_unknown_names(self, sd15):
        with refuse("schedule must be one of"):
            # A plain string where the annotation lists the names: bypass the annotation check of the tests.
            from mezzotint.methods.align_your_steps.named import named_grid

            named_grid("karras", 5, ends=(0.1, 1.0))
        with refuse("solver must be one of"):
            solvers_module.scheduler_for(ays.make("sd15", pipe=sd15), "euler", sd15.scheduler.config)
        with refuse("not a schedule"):
            Schedule.from_json({"format": "something else"})

    def test_one_step_of_a_kl_optimal_grid_is_finite(self):
        assert ays.make("arctan", steps=1, s_min=0.1, s_max=10.0).sigmas == (10.0, 0.1)


def test_door_is_reachable_without_torch():
    import subprocess
    import sys

    code = "import sys, mezzotint; mezzotint.align_your_steps.make; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert mezzotint.align_your_steps.VERBS["schedule"] is ays.optimise


class TestExperiment:
    def test_every_number_of_steps_is_read_from_one_search_and_the_reference_is_at_distance_zero(self, sd15):
        size = embedded.Size(2, (5, 10), 12, 6, 24, 2, 12, 0, 0)
        found = embedded.optimise_all(sd15, 0, size, 2.0)
        arms = {arm for arm, _ in found.schedules}
        assert {"AYS", "EDM", "LogSNR", "time-uniform", "arctan", "no early stopping", "KLUB optimum"} <= arms
        assert found.schedules["AYS", 10].levels[::2] == found.schedules["AYS", 5].levels
        bench = embedded.Bench.make(sd15, ["a", "b"], seed=0, steps=12, guidance=2.0)
        same = ays.make("time-uniform", steps=12, pipe=sd15)
        assert torch.equal(bench.latents(same, "2m"), bench.reference)
        assert embedded._distances(bench, found, "2m", 5)["AYS"] > [0.0, 0.0]

    def test_quality_of_the_true_data_is_the_best_of_all_arms(self):
        size = analytic.Size(48, 48, 200, 2, 300)
        values = analytic._lattice(analytic.CASES[1], 0, size)
        means = {arm: sum(v) / len(v) for arm, v in values[analytic.NLL].items()}
        assert min(means, key=means.get) == "true data"
        assert means["AYS"] < min(means["EDM"], means["LogSNR"])
