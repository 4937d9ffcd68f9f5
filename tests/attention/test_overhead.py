"""What an installed processor costs. Slow, because only many repetitions make times comparable."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import pytest
import torch
from torch import nn

from benchmarks.attention_overhead import Layer, whole_unet
from mezzotint.attention import LogitMask, install

Installed = Callable[[], AbstractContextManager[object]]


def seconds(
    model: nn.Module, given: tuple[torch.Tensor, ...], arms: dict[str, Installed], repeats: int
) -> dict[str, float]:
    """Least processor time of one call for each arm; the arms take turns."""
    least = dict.fromkeys(arms, float("inf"))
    for _ in range(30):
        for name, arm in arms.items():
            with arm(), torch.inference_mode():
                model(*given)
                start = time.process_time()
                for _ in range(repeats):
                    model(*given)
                least[name] = min(least[name], (time.process_time() - start) / repeats)
    return least


@pytest.mark.slow
def test_overhead_stays_within_its_budget() -> None:
    layer = Layer(640, cross=True).requires_grad_(False)
    given = torch.randn(2, 1024, 640), torch.randn(2, 77, 768)
    mask = LogitMask(torch.randn(1, 1, 1024, 77))
    arms = {
        "stock": nullcontext,
        "installed": lambda: install(layer),
        "mask": lambda: install(layer, mask),
    }
    real = seconds(layer, given, arms, 1)
    assert real["mask"] < 1.10 * real["stock"]
    del arms["mask"]
    tiny = seconds(layer, (given[0][:1, :1], given[1][:1, :1]), arms, 50)
    assert tiny["installed"] - tiny["stock"] < 0.03 * real["stock"]


@pytest.mark.slow
def test_a_mask_on_every_layer_of_a_network_stays_within_its_budget() -> None:
    with torch.inference_mode():
        found = {row.arm: row.ratio for row in whole_unet(torch.bfloat16, 3)}
    assert found["installed"] < 1.03
    assert found["mask"] < 1.10
    assert found["FCA online"] < 1.10
