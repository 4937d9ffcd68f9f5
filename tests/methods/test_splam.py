"""Laws of SPLAM and of the consistency models that it contains (arXiv 2404.13903, 2310.04378)."""

import copy
import math

import pytest
import torch
from diffusers import DDPMScheduler, LCMScheduler, StableDiffusionPipeline
from jaxtyping import TypeCheckError
from torch import nn
from torch.testing import assert_close

from mezzotint.diffusion import Condition, Denoiser, Predictor, guided
from mezzotint.methods.splam import analytic
from mezzotint.methods.splam.checks import check_guidance
from mezzotint.methods.splam.embedding import gamma_embedding, guidance_embedding
from mezzotint.methods.splam.huber import huber
from mezzotint.methods.splam.objective import STUDENT, Objective, Settings
from mezzotint.methods.splam.options import Options
from mezzotint.methods.splam.points import check_timesteps, sampling_timesteps, skip, solver_points
from mezzotint.methods.splam.sampler import multistep
from mezzotint.methods.splam.scalings import boundary_scalings
from mezzotint.methods.splam.student import Point, Student, clean, consistency
from mezzotint.methods.splam.sub_path import Jump, effective_time, line, sigma
from mezzotint.methods.splam.teacher import exact, teacher_step
from mezzotint.training import Config, NonFiniteError, Step, fit

SCHEDULER = DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
LEVELS = exact(Denoiser(nn.Linear(1, 1), SCHEDULER).levels)
TAUS = torch.tensor(solver_points())
TO = (TAUS - 20).clamp(min=0)
JUMPS = Jump.between(LEVELS, TAUS, TO)
TIMESTEPS = {1: [999], 2: [999, 499], 4: [999, 759, 499, 259], 8: [999, 879, 759, 639, 499, 379, 259, 139]}


def gammas(value):
    return torch.full((50,), value)


def random(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


class Guided(Predictor):
    """A teacher whose noise depends on the condition."""

    prediction_type = "epsilon"

    def __init__(self):
        self.levels = LEVELS

    def model_output(self, x, t, cond=None):
        shift = cond.encoder_hidden_states.mean((1, 2))[:, None]
        return torch.tanh(x) + shift * torch.cos(x)


def conditions(count=50):
    return Condition(random(count, 2, 3, seed=5)), Condition(random(count, 2, 3, seed=6))


def small(seed=0):
    torch.manual_seed(seed)
    network = analytic.Small()
    nn.init.normal_(network.cond_proj.weight, std=0.1)
    return network


def objective(network, settings, teacher=None):
    teacher = teacher or analytic.ExactTeacher()
    return Objective(teacher, network, SCHEDULER, prepare=lambda b, _: (b["x"], None, None), settings=settings)


def points(step, generator):
    return {"x": analytic.data(32, generator)}


def config(steps, **changes):
    settings = {"batch_size": 32, "learning_rate": 1e-3, "weight_decay": 0.0, "ema": 0.95, "ema_warmup": False}
    return Config(steps=steps, seed=3, **(settings | changes))


def trained(settings, steps=3, *, network=None, **options):
    network = network or small()
    done = fit(objective(network, settings), {STUDENT: network}, points, config(steps), progress=False, **options)
    return network, done


class TestSubPath:
    def test_1_at_gamma_one_the_line_ends_at_x_t_with_its_noise(self):
        x_t, x_to = random(50, 4), random(50, 4, seed=1)
        assert torch.equal(line(x_t, x_to, JUMPS.ratio, gammas(1.0)), x_t)
        for mode in ("quadrature", "linear"):
            assert torch.equal(sigma(JUMPS, gammas(1.0), mode), LEVELS.std(TAUS))
        g = torch.full((50,), 0.37, dtype=torch.float64)
        official = ((JUMPS.ratio * JUMPS.std_to) ** 2 + g**2 * (1 - JUMPS.ratio**2)).sqrt()
        assert_close(sigma(JUMPS, g, "quadrature"), official, rtol=1e-12, atol=0.0)

    def test_1_splam_at_gamma_one_is_lcm_bit_for_bit(self):
        splam, _ = trained(Settings(gamma_one_prob=1.0))
        lcm, _ = trained(Settings(gamma="one"))
        for name, value in splam.state_dict().items():
            assert torch.equal(value, lcm.state_dict()[name]), name
        other, _ = trained(Settings())
        assert not torch.equal(other.leave.weight, lcm.leave.weight)

    def test_1_the_loss_at_gamma_one_is_that_of_latent_consistency_models(self):
        network, x = small(), analytic.data(16, torch.Generator().manual_seed(0))
        step = Step(3, 0, 0, 16, 16, torch.device("cpu"))
        teacher = analytic.ExactTeacher()
        ours = objective(network, Settings(gamma_one_prob=1.0, averaged=False))({"x": x}, step)
        t = TAUS[step.integers("point", 0, 50)]
        to = (t - 20).clamp(min=0)
        x_t = LEVELS.add_noise(x, step.normal("noise", 2), t)
        x_to = LEVELS.ddim_step(x_t, teacher.eps(x_t, t), t, to)

        def f(x, t):
            e = gamma_embedding(torch.ones(len(x)))
            return consistency(x, LEVELS.x0_from_eps(x, t, network(x, t, e)), t)

        gap = f(x_t, t) - f(x_to, to).detach()
        by_hand = ((gap**2 + 1e-6).sqrt() - 1e-3).mean()
        assert_close(ours, by_hand, rtol=1e-4, atol=1e-7)

    def test_2_at_gamma_zero_the_sample_is_x_t_prime_rescaled(self):
        x_t, x_to, e = random(50, 4), random(50, 4, seed=1), random(50, 4, seed=2)
        x_g = line(x_t, x_to, JUMPS.ratio, gammas(0.0))
        assert torch.equal(x_g, JUMPS.ratio[:, None] * x_to)
        low = JUMPS.ratio * JUMPS.std_to
        for mode in ("quadrature", "linear"):
            assert_close(sigma(JUMPS, gammas(0.0), mode), low, rtol=1e-14, atol=0.0)
        point = Point.on_path(JUMPS, gammas(0.0))
        there = LEVELS.x0_from_eps(x_to, TO, e)
        assert_close(clean(x_g, e, point), there, rtol=1e-11, atol=1e-11)

    def test_3_a_ddim_pair_has_linear_noise(self):
        x0, e = random(50, 4), random(50, 4, seed=1)
        x_t = LEVELS.add_noise(x0, e, TAUS)
        x_to = LEVELS.ddim_step(x_t, e, TAUS, TO)
        for value in (0.0, 0.3, 0.5, 0.99, 1.0):
            made = line(x_t, x_to, JUMPS.ratio, gammas(value))
            for mode, holds in (("linear", True), ("quadrature", value in {0.0, 1.0})):
                noise = sigma(JUMPS, gammas(value), mode)
                wanted = JUMPS.alpha[:, None] * x0 + noise[:, None] * e
                assert torch.allclose(made, wanted, rtol=0, atol=1e-9) is holds

    def test_3_linear_noise_is_above_the_quadrature_inside_and_both_increase(self):
        steps = [gammas(value / 20) for value in range(21)]
        linear, quadrature = (torch.stack([sigma(JUMPS, g, mode) for g in steps]) for mode in ("linear", "quadrature"))
        # A jump that ends where it starts in noise has nothing between its ends; all of these have.
        assert (linear[1:-1] > quadrature[1:-1]).all()
        for end in (0, -1):
            assert_close(linear[end], quadrature[end], rtol=1e-14, atol=0.0)
        for noise in (linear, quadrature):
            assert (noise.diff(dim=0) > 0).all()

    def test_3_printed_noise_at_half_of_the_last_jump(self):
        half = gammas(0.5)
        last = [round(sigma(JUMPS, half, mode)[-1].item(), 5) for mode in ("quadrature", "linear")]
        assert last == [0.91457, 0.94141]

    def test_4_guidance_on_noise_and_on_the_clean_sample_are_one(self):
        cond, uncond = conditions()
        x = random(50, 4)
        for weight in (0.0, 2.5, 8.0):
            view = guided(Guided(), cond, uncond, 1 + weight)
            e, x0 = view.eps(x, TAUS), view.x0(x, TAUS)
            assert_close(LEVELS.add_noise(x0, e, TAUS), x, rtol=0, atol=1e-12)
            parts = [Guided().x0(x, TAUS, c) for c in (cond, uncond)]
            assert_close(x0, parts[0] + weight * (parts[0] - parts[1]), rtol=1e-9, atol=1e-9)

    def test_13_the_teachers_step_is_linear_in_the_weight(self):
        cond, uncond = conditions()
        x = random(50, 4)
        step = {w: teacher_step(guided(Guided(), cond, uncond, 1 + w), x, TAUS, TO) for w in (0.0, 3.0, 6.0)}
        plain = LEVELS.ddim_step(x, Guided().eps(x, TAUS, cond), TAUS, TO)
        assert_close(step[0.0], plain, rtol=0, atol=0)
        assert_close(step[6.0] - plain, 2 * (step[3.0] - plain), rtol=1e-9, atol=1e-10)

    def test_14_effective_time_is_exact_at_both_ends(self):
        for value, where in ((1.0, TAUS), (0.0, TO)):
            t, norm = effective_time(LEVELS, JUMPS.alpha, sigma(JUMPS, gammas(value), "linear"))
            assert_close(t, where.float(), rtol=0, atol=1e-4)
            if value:
                assert_close(norm, torch.ones(50).double(), rtol=0, atol=1e-12)

    def test_14_the_effective_point_at_gamma_one_is_the_plain_one(self):
        """Network, timestep and sample are the same as without any telling of gamma, so the loss is LCM's."""
        network, x = small(), random(50, 2, dtype=torch.float32)
        point = Point.on_path(JUMPS, gammas(1.0), "linear")
        told, plain = (Student(Denoiser(network, SCHEDULER), how)(x, point) for how in ("effective_time", "none"))
        assert_close(told, plain, rtol=0, atol=2e-6)

    def test_14_with_effective_time_a_perfect_teacher_is_right_at_gamma_zero(self):
        teacher = analytic.ExactTeacher()

        class Same(nn.Module):
            def forward(self, x, timestep):
                return teacher.model_output(x, timestep)

        x_to = random(50, 2, dtype=torch.float32)
        student = Student(Denoiser(Same(), SCHEDULER), "effective_time")
        x_g = line(x_to, x_to, JUMPS.ratio, gammas(0.0))
        point = Point.on_path(JUMPS, gammas(0.0), "linear")
        x0 = LEVELS.x0_from_eps(x_to, TO, teacher.eps(x_to, TO))
        assert_close(student(x_g, point), consistency(x_g, x0, TAUS), rtol=1e-4, atol=1e-4)


class TestFunctions:
    def test_5_boundary(self):
        t = torch.arange(1000)
        c_skip, c_out = boundary_scalings(t)
        assert_close(c_skip + c_out**2, torch.ones(1000).double(), rtol=0, atol=1e-15)
        assert (c_skip[0].item(), c_out[0].item()) == (1.0, 0.0)
        assert_close(c_skip[19].item(), 6.925e-6, rtol=1e-4, atol=0.0)
        scheduler = LCMScheduler()
        assert_close(
            (c_skip[259].item(), c_out[259].item()),
            scheduler.get_scalings_for_boundary_condition_discrete(259),
            rtol=1e-12,
            atol=0.0,
        )
        x = random(3, 2)
        assert torch.equal(consistency(x, random(3, 2, seed=1), torch.zeros(3, dtype=torch.long)), x)

    def test_6_embedding(self):
        gamma = torch.linspace(0, 1, 41)
        assert_close(gamma_embedding(gamma).square().sum(1), torch.full((41,), 128.0), rtol=1e-5, atol=0.0)
        assert torch.equal(gamma_embedding(torch.ones(1))[0], torch.cat([torch.zeros(128), torch.ones(128)]))
        theirs = StableDiffusionPipeline.get_guidance_scale_embedding
        for scale in (1.0, 1.5, 7.5):
            w = torch.tensor([scale - 1])
            assert_close(guidance_embedding(w), theirs(None, w, 256), rtol=0, atol=2e-3 * scale)
        assert torch.equal(gamma_embedding(torch.ones(1)), theirs(None, torch.zeros(1), 256))
        # What a wrong guidance scale would silently mean: 7.5 is gamma = 0.35.
        assert_close(gamma_embedding(torch.tensor([0.35])), guidance_embedding(torch.tensor([6.5])), rtol=0, atol=0.02)

    def test_11_huber(self):
        zero = torch.zeros(4)
        assert huber(zero, zero).item() == 0.0
        far, near = torch.full((4,), 30.0), torch.full((4,), 1e-5)
        assert_close(huber(far, zero).item(), 30.0 - 0.001, rtol=1e-6, atol=0.0)
        assert_close(huber(near, zero).item(), 1e-10 / 0.002, rtol=1e-3, atol=0.0)
        x = random(64, dtype=torch.float32).requires_grad_()
        huber(x, torch.zeros(64)).backward()
        assert x.grad.abs().max() <= 1 / 64 + 1e-9

    @pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
    def test_every_prediction_type_means_the_same_clean_sample(self, kind):
        x0, e = random(50, 4), random(50, 4, seed=1)
        noise = sigma(JUMPS, gammas(0.4), "linear")
        point = Point.on_path(JUMPS, gammas(0.4), "linear")
        x = point.alpha[:, None] * x0 + noise[:, None] * e
        norm = torch.hypot(point.alpha, noise)[:, None]
        outputs = {
            "epsilon": e,
            "v_prediction": (point.alpha[:, None] * e - noise[:, None] * x0) / norm,
            "sample": x0,
        }
        assert_close(clean(x, outputs[kind], point, kind), x0, rtol=1e-8, atol=1e-8)

    @pytest.mark.parametrize("steps", TIMESTEPS)
    def test_9_timesteps_are_those_of_diffusers(self, steps):
        assert list(sampling_timesteps(steps)) == TIMESTEPS[steps]
        scheduler = LCMScheduler(original_inference_steps=50)
        scheduler.set_timesteps(steps)
        assert scheduler.timesteps.tolist() == TIMESTEPS[steps]

    def test_9_calls_and_draws(self):
        calls, draws = [], []

        def f(x, t):
            calls.append(int(t[0]))
            return 0.5 * x

        def draw(step):
            draws.append(step)
            return random(3, 2, seed=step)

        multistep(f, random(3, 2), sampling_timesteps(4), levels=LEVELS, draw=draw)
        assert (calls, draws) == (TIMESTEPS[4], [0, 1, 2])
        one = multistep(f, random(3, 2), [999], levels=LEVELS, draw=lambda _: pytest.fail("no noise in one step"))
        assert torch.equal(one, 0.5 * random(3, 2))


@pytest.mark.parametrize(
    ("arm", "expected"), [("10 points", (999, 799, 499, 299)), ("100 points", (999, 749, 499, 249))]
)
def test_students_on_the_plane_are_sampled_at_points_that_they_were_distilled_on(arm, expected, monkeypatch):
    asked = []
    monkeypatch.setattr(Student, "__call__", lambda self, x, at, *_: asked.append(int(at.t[0])) or x)
    settings = analytic.ARMS[arm]
    size = analytic.Size(1, 1, (arm,), samples=8, data=8, paired=2)
    analytic._values({arm: objective(small(), settings).student}, 4, size, 0)
    assert tuple(asked) == expected
    assert set(expected) <= set(solver_points(settings.points))


class Scalars(nn.Module):
    """Predicted noise is one number for each timestep, times x."""

    def __init__(self, values):
        super().__init__()
        self.values = nn.Parameter(values)

    def forward(self, x, timestep):
        return self.values[timestep][:, None].to(x.dtype) * x


class Gaussian(Predictor):
    """The exact teacher of N(0, c^2)."""

    prediction_type = "epsilon"
    c = 0.5

    def __init__(self):
        self.levels = LEVELS

    def model_output(self, x, t, cond=None):
        alpha, std = LEVELS.alpha(t)[:, None], LEVELS.std(t)[:, None]
        return (std / (alpha**2 * self.c**2 + std**2)).to(x.dtype) * x


class TestGaussian:
    def chain(self, count):
        """x_0 / x_t of the DDIM chain of the exact teacher, at every solver point."""
        c2, ends, product = Gaussian.c**2, {0: 1.0}, 1.0
        for t in solver_points(count):
            to = max(t - 1000 // count, 0)
            a, s, b, r = (v.item() for v in (LEVELS.alpha(t), LEVELS.std(t), LEVELS.alpha(to), LEVELS.std(to)))
            product *= (a * b * c2 + s * r) / (a * a * c2 + s * s)
            ends[t] = product
        return ends

    def table(self, ends):
        """The noise that makes f(x, t) = k_t x."""
        values = torch.zeros(1000, dtype=torch.float64)
        for t, k in ends.items():
            c_skip, c_out = (v.item() for v in boundary_scalings(torch.tensor(t)))
            if t:
                values[t] = (1 - LEVELS.alpha(t).item() * (k - c_skip) / c_out) / LEVELS.std(t).item()
        return values

    def test_8_the_teachers_step_is_the_known_factor(self):
        x = random(50, 1)
        made = teacher_step(Gaussian(), x, TAUS, TO) / x
        c2 = Gaussian.c**2
        known = (JUMPS.alpha * JUMPS.alpha_to * c2 + JUMPS.std * JUMPS.std_to) / (JUMPS.alpha**2 * c2 + JUMPS.std**2)
        assert_close(made[:, 0], known, rtol=1e-12, atol=0.0)

    def test_8_many_jumps_approach_the_exact_consistency_map(self):
        a, s = LEVELS.alpha(999).item(), LEVELS.std(999).item()
        end = LEVELS.alpha(0).item() ** 2 * Gaussian.c**2 + LEVELS.std(0).item() ** 2
        true = math.sqrt(end / (a * a * Gaussian.c**2 + s * s))
        errors = [abs(self.chain(count)[999] / true - 1) for count in (10, 50, 250)]
        assert errors[0] > 4 * errors[1] > 16 * errors[2]
        assert errors[2] < 0.02

    def test_8_the_chain_of_the_teacher_is_where_the_loss_is_zero(self):
        step = Step(0, 0, 0, 64, 64, torch.device("cpu"))
        x = {"x": Gaussian.c * random(64, 1, dtype=torch.float32)}
        settings = Settings(gamma="one", conditioning="none", averaged=False)
        values = self.table(self.chain(50))
        assert objective(Scalars(values), settings, Gaussian())(x, step).item() < 1e-5
        wrong = objective(Scalars(values * 1.02), settings, Gaussian())(x, step).item()
        assert wrong > 1e-3

    def test_several_teacher_steps_to_a_point_are_the_chain_of_as_many_points(self):
        t, to = torch.tensor([249, 499, 749, 999]), torch.tensor([0, 249, 499, 749])
        jump, x, fine = Jump.between(LEVELS, t, to), random(4, 1), self.chain(100)
        known = torch.tensor([[fine[int(a)] / fine[int(b)]] for a, b in zip(t, to, strict=True)]).double()

        def made(parts):
            loss = objective(Scalars(torch.zeros(1000)), Settings(points=4, teacher_steps=parts), Gaussian())
            return loss._teacher_step(x, jump, (None, None), torch.zeros(4)) / x

        assert torch.equal(made(1), teacher_step(Gaussian(), x, t, to) / x)
        assert_close(made(25), known, rtol=1e-3, atol=0.0)
        coarse, better = ((made(parts) / known - 1).abs() for parts in (1, 5))
        assert (coarse > 3 * better).all()

    def test_8_one_learned_scalar_a_timestep_finds_it(self):
        network = Scalars(self.table(dict.fromkeys(solver_points(2), 0.7)))
        loss = objective(network, Settings(points=2, gamma="one", conditioning="none", distance="squares"), Gaussian())

        def data(_, generator):
            return {"x": Gaussian.c * torch.randn(64, 1, generator=generator)}

        settings = config(200, batch_size=64, learning_rate=0.04, schedule="linear", clip=None)
        done = fit(loss, {STUDENT: network}, data, settings, progress=False)
        with done.ema.applied():
            x = torch.ones(2, 1)
            t = torch.tensor(solver_points(2))
            found = loss.student(x, Point.end(LEVELS, t))[:, 0]
        known = torch.tensor([self.chain(2)[int(t)] for t in t], dtype=torch.float32)
        assert_close(found, known, rtol=0.05, atol=0.01)


class TestTraining:
    def test_10_the_target_is_the_exponential_average(self):
        seen = []
        network = small()
        loss = objective(network, Settings())

        def watched(batch, step):
            seen.append(network.leave.weight.detach().clone())
            return loss(batch, step)

        done = fit(watched, {STUDENT: network}, points, config(5), progress=False)
        thetas = [*seen, network.leave.weight.detach()]
        wanted = 0.95**5 * thetas[0]
        for j in range(5):
            wanted = wanted + 0.05 * 0.95 ** (4 - j) * thetas[j + 1]
        assert_close(done.ema.of(STUDENT)["leave.weight"], wanted, rtol=1e-5, atol=1e-7)

    def test_10_no_gradient_reaches_the_target(self):
        network = small()
        loss = objective(network, Settings(averaged=False))
        step = Step(0, 0, 0, 32, 32, torch.device("cpu"))
        batch = {"x": analytic.data(32, torch.Generator().manual_seed(1))}
        loss(batch, step).backward()
        gradient = network.leave.weight.grad.clone()
        # The same with a target that is another network of the same weights: then surely only the student is moved.
        network.zero_grad()
        twin = copy.deepcopy(network)
        loss._target = lambda x, jump, cond, **_: (
            objective(twin, Settings()).student(x, Point.end(LEVELS, jump.to)).detach()
        )
        loss(batch, step).backward()
        assert torch.equal(network.leave.weight.grad, gradient)

    def test_10_the_target_survives_a_stop_bit_for_bit(self, tmp_path):
        whole, done = trained(Settings(gamma_one_prob=0.5), 6)
        first = small()
        trained(Settings(gamma_one_prob=0.5), 3, network=first, folder=tmp_path)
        again, resumed = trained(Settings(gamma_one_prob=0.5), 6, network=small(seed=9), folder=tmp_path)
        for name, value in whole.state_dict().items():
            assert torch.equal(again.state_dict()[name], value), name
        for name, value in done.ema.of(STUDENT).items():
            assert torch.equal(resumed.ema.of(STUDENT)[name], value), name
        # The law is worth something only if the target differs from the weights.
        assert not torch.equal(done.ema.of(STUDENT)["leave.weight"], whole.leave.weight)

    def test_a_loss_that_is_not_finite_stops_with_its_step_and_the_last_average(self):
        network = small()
        loss = objective(network, Settings())

        def broken(batch, step):
            return loss(batch, step) * (float("nan") if step.step == 3 else 1.0)

        good = small()
        kept = fit(objective(good, Settings()), {STUDENT: good}, points, config(3), progress=False)
        with pytest.raises(NonFiniteError, match="step 4 is not finite"):
            fit(broken, {STUDENT: network}, points, config(6), progress=False)
        assert torch.equal(network.leave.weight, good.leave.weight)
        assert kept.step == 3

    def test_without_an_average_the_target_is_refused(self):
        network = small()
        with pytest.raises(ValueError, match="give fit a Config with ema"):
            fit(objective(network, Settings()), {STUDENT: network}, points, config(1, ema=None), progress=False)


class TestRefusals:
    @pytest.mark.parametrize("count", [3, 0, 2000, 49])
    def test_points_must_divide_the_training_timesteps(self, count):
        with pytest.raises(ValueError, match="points must"):
            skip(count)

    @pytest.mark.parametrize("steps", [0, 51])
    def test_sampling_steps(self, steps):
        with pytest.raises(ValueError, match=r"steps must be in 1\.\.50"):
            sampling_timesteps(steps)

    @pytest.mark.parametrize("given", [(), (499, 999), (999, 999), (1000,), (5, -1)])
    def test_custom_timesteps(self, given):
        with pytest.raises(ValueError, match="timesteps must"):
            check_timesteps(given)

    def test_custom_timesteps_outside_the_points_warn(self):
        assert check_timesteps((999, 259)) == (999, 259)
        with pytest.warns(UserWarning, match=r"\[500\] are none of the 50 points"):
            check_timesteps((999, 500))

    @pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
    def test_gamma_outside_the_path(self, value):
        x = random(50, 2)
        for refused in (
            lambda g: sigma(JUMPS, g),
            lambda g: line(x, x, JUMPS.ratio, g),
            gamma_embedding,
        ):
            with pytest.raises(ValueError, match=r"gamma must lie in \[0, 1\]"):
                refused(gammas(value))

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"mode": "lcm2"}, "mode"),
            ({"guidance": 0.5}, "guidance must be at least 1"),
            ({"guidance_range": (6.0, 6.0)}, "low end first"),
            ({"gamma_one_prob": 1.5}, "gamma_one_prob must lie"),
            ({"ema": 1.0}, "ema must lie"),
            ({"rank": 0}, "rank must be"),
            ({"teacher_steps": 0}, "teacher_steps must be"),
            ({"jumps": -1}, "jumps must be 0"),
            ({"effective_time": True}, "needs sigma_mode 'linear'"),
            ({"effective_time": True, "mode": "lcm", "sigma_mode": "linear"}, "effective_time goes with"),
            ({"gamma_one_prob": 0.5, "mode": "lcm"}, "gamma_one_prob goes with"),
        ],
    )
    def test_options(self, changes, message):
        # Under the tests' type checks a wrong word is a type error already.
        with pytest.raises((ValueError, TypeCheckError), match=message):
            Options(**changes)

    def test_guidance_is_baked_in(self):
        check_guidance(1.0, (1.0, 1.0), None)
        check_guidance(1.5, (1.0, 2.0), "blurry")
        with pytest.raises(ValueError, match=r"must be 1 for this model, got 7\.5: .*guide it a second time"):
            check_guidance(7.5, (1.0, 1.0), None)
        with pytest.raises(ValueError, match="negative prompt"):
            check_guidance(1.0, (1.0, 1.0), "blurry")

    def test_forms_have_their_own_names(self):
        names = {Options().form, Options(init="torch").form, Options(gamma_one_prob=0.5).form, Options(mode="lcm").form}
        assert names == {"SPLAM official, zero start", "SPLAM official", "SPLAM improved", "LCM"}
        assert {Options(teacher_steps=2).form, Options(jumps=64).form} == {"SPLAM improved"}
        assert Options(mode="lcm_fixed_w", teacher_steps=2).form == "LCM-fixed-w, 2 teacher steps a jump"
        assert Options(mode="lcm", jumps=64).form == "LCM, stored jumps"
