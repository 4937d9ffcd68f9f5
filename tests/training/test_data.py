"""Data: every item once an epoch, the same items wherever the run begins and however it is spread."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from mezzotint.training import data

WHOLE = [(0, 6)]
HALVES = [(0, 3), (3, 3)]


class Squares:
    """A map-style dataset."""

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int, /) -> dict[str, Any]:
        return {"n": torch.tensor(index), "square": index * index}


class Counter:
    """Data made item by item."""

    def draw(self, *, step: int, first: int, count: int) -> Tensor:
        return torch.arange(first, first + count) + 100 * step


def made(step: int, generator: torch.Generator) -> dict[str, Tensor]:
    return {"n": torch.randint(0, 1000, (6,), generator=generator), "step": torch.full((6,), step)}


def take(source: data.Data, parts: int, **options: Any) -> list[Any]:
    usual: dict[str, Any] = {"seed": 3, "batch_size": 6, "shares": WHOLE}
    return list(itertools.islice(data.batches(source, **(usual | options)), parts))


def numbers(batches: list[Any]) -> list[int]:
    return torch.cat([batch["n"] if isinstance(batch, dict) else batch for batch in batches]).tolist()


SOURCES = {
    "tensors": {"n": torch.arange(10)},
    "dataset": Squares(),
    "source": Counter(),
    "function": made,
}


@pytest.fixture(params=SOURCES)
def source(request: pytest.FixtureRequest) -> data.Data:
    return SOURCES[request.param]


@pytest.mark.parametrize("kind", ["tensors", "dataset"])
def test_each_epoch_holds_every_item_once_in_a_new_order(kind: str) -> None:
    """Five batches of six are three epochs of ten."""
    row = numbers(take(SOURCES[kind], 5))
    epochs = [row[:10], row[10:20], row[20:]]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_tensors_and_datasets_are_drawn_in_the_same_order() -> None:
    assert numbers(take(SOURCES["tensors"], 5)) == numbers(take(SOURCES["dataset"], 5))


def test_beginning_late_draws_what_the_whole_run_draws(source: data.Data) -> None:
    assert numbers(take(source, 7))[3 * 6 :] == numbers(take(source, 4, start=3))


def test_parts_make_up_the_whole(source: data.Data) -> None:
    assert numbers(take(source, 8, shares=HALVES)) == numbers(take(source, 4))
    left, right = (take(source, 4, shares=[share]) for share in HALVES)
    assert numbers([part for pair in zip(left, right, strict=True) for part in pair]) == numbers(take(source, 4))


def test_a_worker_process_changes_nothing() -> None:
    assert numbers(take(Squares(), 3, workers=1)) == numbers(take(Squares(), 3))


def test_another_seed_is_another_order() -> None:
    assert numbers(take(SOURCES["tensors"], 5)) != numbers(take(SOURCES["tensors"], 5, seed=4))


def test_without_shuffling_items_come_in_their_own_order() -> None:
    assert numbers(take(SOURCES["tensors"], 3, shuffle=False)) == [*range(10), *range(8)]


def test_all_tensors_of_a_batch_hold_the_same_items() -> None:
    rows = torch.randn(10, 3, generator=torch.Generator().manual_seed(0))
    for batch in take({"n": torch.arange(10), "row": rows.half()}, 5):
        assert torch.equal(batch["row"], rows.half()[batch["n"]])


def test_held_out_functions_draw_other_numbers() -> None:
    assert numbers(take(made, 2)) != numbers(take(made, 2, split="held-out"))


def test_move_keeps_containers() -> None:
    batch = {"a": torch.ones(2), "b": [torch.zeros(1), "text"], "c": (torch.ones(1), 3)}
    moved = data.move(batch, torch.device("cpu"))
    assert moved["b"][1] == "text"
    assert moved["c"][1] == 3
    assert_close(moved["a"], batch["a"])


def test_refusals_name_the_cause() -> None:
    with pytest.raises(ValueError, match="same number of rows"):
        data.size({"a": torch.ones(2), "b": torch.ones(3)})
    with pytest.raises(ValueError, match="hold no item"):
        take({"n": torch.ones(0)}, 1)
    with pytest.raises(ValueError, match="a batch of 6 items, but batch_size needs at least 8"):
        take(made, 1, batch_size=8, shares=[(0, 8)])
