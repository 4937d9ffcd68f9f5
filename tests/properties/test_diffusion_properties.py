"""Properties of streams, levels, conditions, guidance and inversion over random inputs."""

import torch
from diffusers import DDIMScheduler
from hypothesis import given, settings
from hypothesis import strategies as st

from mezzotint.diffusion import Condition, Denoiser, Levels, composed, invert, normal, replay, stream

SIZES = st.integers(1, 4)
SEEDS = st.integers(-(2**40), 2**40)
LEVELS = Levels.from_scheduler(DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012))
TIMESTEPS = st.integers(0, 999)
examples = settings(deadline=None, max_examples=40)


@st.composite
def tables(draw):
    """Strictly decreasing abar tables in (0, 1], in float64, with steps of very different size."""
    drops = draw(st.lists(st.floats(1e-4, 1.0), min_size=2, max_size=30))
    return torch.exp(-torch.tensor(drops, dtype=torch.float64).cumsum(0))


def samples(seed, count, *shape):
    return normal(shape or (2, 3, 3), seed=seed, purpose="test", count=count, dtype=torch.float64)


@examples
@given(seed=SEEDS, purpose=st.text(max_size=20), step=st.integers(0, 2**40), index=st.integers(0, 2**40))
def test_streams_repeat_and_neighbours_differ(seed, purpose, step, index):
    first = torch.rand(8, generator=stream(seed, purpose, step, index))
    assert torch.equal(first, torch.rand(8, generator=stream(seed, purpose, step, index)))
    for other in ((seed + 1, purpose, step, index), (seed, purpose, step + 1, index), (seed, purpose, step, index + 1)):
        assert not torch.equal(first, torch.rand(8, generator=stream(*other)))


@examples
@given(seed=SEEDS, first=st.integers(0, 10**6), sizes=st.lists(SIZES, min_size=1, max_size=4))
def test_noise_does_not_depend_on_how_a_batch_is_cut(seed, first, sizes):
    key = {"seed": seed, "purpose": "noise"}
    whole = normal((3, 2), first=first, count=sum(sizes), **key)
    starts = [first + sum(sizes[:k]) for k in range(len(sizes))]
    parts = [normal((3, 2), first=start, count=size, **key) for start, size in zip(starts, sizes, strict=True)]
    assert torch.equal(whole, torch.cat(parts))


@examples
@given(table=tables(), data=st.data())
def test_conversions_have_inverses_on_any_schedule(table, data):
    levels = Levels.from_alphas_cumprod(table)
    count = data.draw(SIZES)
    t = torch.tensor(data.draw(st.lists(st.integers(0, len(table) - 1), min_size=count, max_size=count)))
    x0, eps = samples(1, count), samples(2, count)
    x = levels.add_noise(x0, eps, t)
    # Low signal amplifies rounding by 1 / alpha <= e^15, low noise by 1 / std <= 100.
    close = {"atol": 1e-8, "rtol": 1e-8}
    torch.testing.assert_close(levels.x0_from_eps(x, t, eps), x0, **close)
    torch.testing.assert_close(levels.eps_from_x0(x, t, x0), eps, **close)
    v = levels.v_from_eps(x, t, eps)
    torch.testing.assert_close(levels.v_from_x0(x, t, x0), v, **close)
    torch.testing.assert_close(levels.x0_from_v(x, t, v), x0, **close)
    torch.testing.assert_close(levels.eps_from_v(x, t, v), eps, **close)
    torch.testing.assert_close(levels.from_ve(levels.to_ve(x, t), t), x, **close)


@examples
@given(table=tables())
def test_levels_are_ordered_and_timestep_inverts_sigma(table):
    levels = Levels.from_alphas_cumprod(table)
    t = torch.arange(len(table))
    assert bool((levels.sigma(t).diff() > 0).all())
    assert bool((levels.log_snr(t).diff() < 0).all())
    assert torch.equal(levels.timestep(levels.sigma(t)), t)


@examples
@given(table=tables(), share=st.floats(0, 1))
def test_fractional_timesteps_round_trip(table, share):
    levels = Levels.from_alphas_cumprod(table)
    t = torch.tensor(share * (len(table) - 1), dtype=torch.float64)
    torch.testing.assert_close(levels.timestep(levels.sigma(t), fractional=True), t, atol=1e-6, rtol=0)


@examples
@given(t=TIMESTEPS, u=TIMESTEPS, w=TIMESTEPS)
def test_ddim_steps_along_fixed_noise_compose_and_reverse(t, u, w):
    x, eps = samples(3, 2), samples(4, 2)
    direct = LEVELS.ddim_step(x, eps, t, w)
    torch.testing.assert_close(LEVELS.ddim_step(LEVELS.ddim_step(x, eps, t, u), eps, u, w), direct)
    torch.testing.assert_close(LEVELS.ddim_step(direct, eps, w, t), x)


@examples
@given(counts=st.lists(SIZES, min_size=1, max_size=4), repeats=SIZES)
def test_conditions_join_and_cut_without_loss(counts, repeats):
    parts = [
        Condition(samples(k, n, 2, 3), class_labels=torch.arange(n), extra={"pair": (samples(k + 9, n, 1), None)})
        for k, n in enumerate(counts)
    ]
    whole = Condition.concat(*parts)
    start = 0
    for part, count in zip(parts, counts, strict=True):
        cut = whole[start : start + count]
        assert torch.equal(cut.encoder_hidden_states, part.encoder_hidden_states)
        assert torch.equal(cut.extra["pair"][0], part.extra["pair"][0])
        start += count
    again = whole.repeat(repeats)[torch.arange(whole.batch) * repeats]
    assert torch.equal(again.class_labels, whole.class_labels)


class Linear(torch.nn.Module):
    """Noise that depends on the sample, the level and the condition in a plain way."""

    def forward(self, x, timestep, encoder_hidden_states):
        pushed = encoder_hidden_states.mean((1, 2)).reshape(-1, 1, 1, 1)
        return 0.3 * x + pushed + 1e-3 * timestep.reshape(-1, 1, 1, 1)


def linear(prediction):
    return Denoiser(Linear(), DDIMScheduler(prediction_type=prediction))


@examples
@given(weights=st.lists(st.floats(-8, 8), min_size=1, max_size=4), t=TIMESTEPS, batch=SIZES)
def test_guidance_is_linear_in_its_weights(weights, t, batch):
    denoiser = linear("epsilon")
    conditions = [Condition(samples(k, batch, 2, 3)) for k in range(len(weights))]
    uncond, x = Condition(samples(50, batch, 2, 3)), samples(51, batch)
    base = denoiser.eps(x, t, uncond)
    terms = zip(conditions, weights, strict=True)
    expected = base + sum(w * (denoiser.eps(x, t, cond) - base) for cond, w in terms)
    result = composed(denoiser, list(zip(conditions, weights, strict=True)), uncond).eps(x, t)
    torch.testing.assert_close(result, expected, atol=1e-9, rtol=1e-9)


@examples
@given(prediction=st.sampled_from(["epsilon", "v_prediction", "sample"]), t=TIMESTEPS, batch=SIZES)
def test_views_of_one_prediction_are_consistent(prediction, t, batch):
    denoiser, cond, x = linear(prediction), Condition(samples(7, batch, 2, 3)), samples(8, batch)
    alpha, std = denoiser.levels.alpha(t).double(), denoiser.levels.std(t).double()
    eps, x0, v = (view(x, t, cond) for view in (denoiser.eps, denoiser.x0, denoiser.v))
    torch.testing.assert_close(alpha * x0 + std * eps, x, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(alpha * eps - std * x0, v, atol=1e-4, rtol=1e-4)
    edm = denoiser.denoise(denoiser.levels.to_ve(x, t), denoiser.levels.sigma(t), cond)
    torch.testing.assert_close(edm, x0, atol=1e-3, rtol=1e-3)


@examples
@given(
    timesteps=st.sets(TIMESTEPS, min_size=1, max_size=12),
    prediction=st.sampled_from(["epsilon", "v_prediction"]),
    seed=SEEDS,
)
def test_replay_is_exact_for_any_timesteps(timesteps, prediction, seed):
    denoiser, cond = linear(prediction), Condition(samples(7, 2, 2, 3).float())
    x = samples(seed, 2).float()
    assert torch.equal(replay(invert(denoiser, x, cond, timesteps), denoiser, cond), x)
