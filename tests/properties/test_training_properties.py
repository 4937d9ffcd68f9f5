"""Training, whatever the numbers: orders, shares, schedules, averages, checkpoints and streams keep their laws."""

from __future__ import annotations

import itertools
import json
import tempfile
from pathlib import Path

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from mezzotint.training import EMA, Config, Step, grid
from mezzotint.training.checkpoints import Checkpoints, State
from mezzotint.training.data import Order
from mezzotint.training.optimisers import orthogonalise

SEEDS = st.integers(0, 2**31 - 1)


@given(length=st.integers(1, 40), seed=SEEDS, start=st.integers(0, 200), count=st.integers(1, 100))
def test_any_stretch_of_the_row_is_the_same_however_it_is_reached(
    length: int, seed: int, start: int, count: int
) -> None:
    whole = Order(length, seed).indices(0, start + count)
    assert torch.equal(Order(length, seed).indices(start, count), whole[start:])


@given(length=st.integers(1, 40), seed=SEEDS, epoch=st.integers(0, 5))
def test_every_epoch_is_a_permutation(length: int, seed: int, epoch: int) -> None:
    assert sorted(Order(length, seed).indices(epoch * length, length).tolist()) == list(range(length))


@given(
    steps=st.integers(1, 300),
    warmup=st.integers(0, 300),
    final=st.floats(0, 1),
    schedule=st.sampled_from(["constant", "cosine", "linear"]),
)
def test_the_rate_climbs_then_falls_within_its_bounds(steps: int, warmup: int, final: float, schedule: str) -> None:
    warmup = min(warmup, steps)
    config = Config(steps=steps, batch_size=1, warmup=warmup, final=final, schedule=schedule)  # type: ignore[arg-type]
    rates = [config.rate(step) for step in range(steps)]
    assert all(0.0 <= rate <= 1.0 for rate in rates)
    climb, fall = rates[:warmup], rates[warmup:]
    assert climb == sorted(climb)
    assert all(first >= second - 1e-12 for first, second in itertools.pairwise(fall))
    assert all(rate >= final - 1e-12 for rate in fall)


@given(
    learning_rate=st.floats(1e-8, 1.0),
    ema=st.none() | st.floats(0, 0.9999),
    seed=SEEDS,
    rates=st.dictionaries(st.text(max_size=5), st.floats(0, 10), max_size=3),
)
def test_settings_survive_json_without_a_difference(
    learning_rate: float, ema: float | None, seed: int, rates: dict[str, float]
) -> None:
    config = Config(steps=3, batch_size=2, learning_rate=learning_rate, ema=ema, seed=seed, rates=rates)
    assert not config.differences(json.loads(json.dumps(config.to_json())))


@given(
    seed=SEEDS,
    step=st.integers(0, 10_000),
    sizes=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    shape=st.sampled_from([(), (3,), (2, 3), (4, 16, 16)]),
)
def test_draws_belong_to_items_not_to_parts(seed: int, step: int, sizes: list[int], shape: tuple[int, ...]) -> None:
    total, device, first, parts = sum(sizes), torch.device("cpu"), 0, []
    for count in sizes:
        part = Step(seed, step, first, count, total, device)
        parts.append((part.normal("a", *shape), part.uniform("b"), part.integers("c", 0, 9)))
        first += count
    whole = Step(seed, step, 0, total, total, device)
    for index, expected in enumerate((whole.normal("a", *shape), whole.uniform("b"), whole.integers("c", 0, 9))):
        assert torch.equal(torch.cat([part[index] for part in parts]), expected)


@given(seed=SEEDS, decay=st.floats(0, 0.999), steps=st.integers(1, 10))
def test_an_average_stays_between_the_smallest_and_the_largest_weight(seed: int, decay: float, steps: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = nn.Parameter(torch.randn(4, generator=generator))
    ema, seen = EMA({"w": weight}, decay), [weight.detach().clone()]
    for _ in range(steps):
        weight.data = torch.randn(4, generator=generator)
        seen.append(weight.detach().clone())
        ema.update()
    low, high = torch.stack(seen).amin(0), torch.stack(seen).amax(0)
    assert bool(((ema.average["w"] >= low - 1e-5) & (ema.average["w"] <= high + 1e-5)).all())


@given(seed=SEEDS, rows=st.integers(1, 12), columns=st.integers(1, 12), scale=st.floats(1e-3, 1e3))
def test_orthogonalised_matrices_turn_with_their_input(seed: int, rows: int, columns: int, scale: float) -> None:
    """f(Q X) = Q f(X) for orthogonal Q, f(X') = f(X)', and no singular value leaves 0..1.3."""
    generator = torch.Generator().manual_seed(seed)
    matrix = scale * torch.randn(1, rows, columns, generator=generator)
    turn = torch.linalg.qr(torch.randn(rows, rows, generator=generator))[0]
    plain = orthogonalise(matrix, dtype=torch.float32)
    torch.testing.assert_close(orthogonalise(turn @ matrix, dtype=torch.float32), turn @ plain, atol=5e-3, rtol=1e-2)
    torch.testing.assert_close(orthogonalise(matrix.mT, dtype=torch.float32), plain.mT, atol=1e-4, rtol=1e-3)
    assert float(torch.linalg.svdvals(plain).max()) < 1.3


@given(
    values=st.lists(st.floats(width=32, allow_nan=True), min_size=1, max_size=9),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    step=st.integers(0, 10**9),
    window=st.dictionaries(st.text(max_size=4), st.floats(allow_nan=False, allow_infinity=False), max_size=3),
)
def test_checkpoints_give_back_every_bit(
    values: list[float], dtype: torch.dtype, step: int, window: dict[str, float]
) -> None:
    tensor = torch.tensor(values).to(dtype)
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = Checkpoints(Path(folder), say=lambda _: None)
        read = checkpoints.read(checkpoints.write(State(step, {"model": {"w": tensor}}, {"window": window})))
    bits = torch.int32 if dtype == torch.float32 else torch.int16
    assert torch.equal(read.tensors["model"]["w"].view(bits), tensor.view(bits))
    assert (read.step, read.facts["window"]) == (step, window)


@given(count=st.integers(1, 7), columns=st.none() | st.integers(1, 9), gap=st.integers(0, 3))
def test_every_picture_of_a_grid_is_found_in_its_place(count: int, columns: int | None, gap: int) -> None:
    levels = torch.arange(count) / 7
    sheet = grid(levels.view(-1, 1, 1, 1).expand(-1, 3, 4, 5), columns=columns, gap=gap)
    wide = (sheet.shape[1] - gap) // (5 + gap)
    for index in range(count):
        top, left = (index // wide) * (4 + gap) + gap, (index % wide) * (5 + gap) + gap
        expected = torch.full((4, 5, 3), round(float(levels[index]) * 255), dtype=torch.uint8)
        assert torch.equal(sheet[top : top + 4, left : left + 5], expected)
