"""Settings: the course of the learning rate, refusals, and what may change between a run and its continuation."""

from __future__ import annotations

from typing import Any

import pytest

from mezzotint.training import Config


@pytest.mark.parametrize("schedule", ["constant", "cosine", "linear"])
def test_the_rate_climbs_linearly_to_one_and_ends_where_it_should(schedule: str) -> None:
    config = Config(steps=100, batch_size=1, schedule=schedule, warmup=10, final=0.1)  # type: ignore[arg-type]
    assert [config.rate(step) for step in range(10)] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert config.rate(10) == 1.0
    assert config.rate(100) == pytest.approx(1.0 if schedule == "constant" else 0.1)
    assert config.rate(1000) == config.rate(100)


def test_half_way_the_cosine_is_half() -> None:
    """0.5 (1 + cos(pi / 2)) = 0.5; with final 0.2: 0.2 + 0.8 * 0.5 = 0.6."""
    assert Config(steps=110, batch_size=1, schedule="cosine", warmup=10, final=0.2).rate(60) == pytest.approx(0.6)


def test_the_longest_name_decides_the_rate() -> None:
    config = Config(steps=1, batch_size=1, rates={"unet": 0.5, "unet.mid": 3.0})
    assert [config.rate_of(name) for name in ("unet.mid.a", "unet.up", "text")] == [3.0, 0.5, 1.0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"batch_size": 6, "accumulation": 4}, r"batch_size \(6\) must be a multiple of accumulation \(4\)"),
        ({"learning_rate": 0.0}, "learning_rate must be a finite number above 0"),
        ({"learning_rate": float("nan")}, "learning_rate must be a finite number above 0, got nan"),
        ({"weight_decay": -1.0}, "weight_decay must be at least 0"),
        ({"ema": 1.0}, r"ema must be in \[0, 1\), got 1.0"),
        ({"betas": (0.9, 1.0)}, r"betas\[1\] must be in \[0, 1\)"),
        ({"warmup": 11}, r"warmup must be at most steps \(10\), got 11"),
        ({"optimiser": "sgd"}, "sgd"),
        ({"final": 1.5}, "final must be in 0..1"),
        ({"rates": {"unet": -1.0}}, r"rates\['unet'\] must be at least 0"),
        ({"clip": -1.0}, "clip must be a finite number above 0"),
    ],
)
def test_refusals_say_what_is_allowed(changes: dict[str, Any], message: str) -> None:
    usual: dict[str, Any] = {"steps": 10, "batch_size": 2}
    with pytest.raises((ValueError, TypeError), match=message):
        Config(**(usual | changes))


def test_only_settings_that_change_a_step_count_as_differences() -> None:
    saved = Config(steps=10, batch_size=2).to_json()
    assert not Config(steps=20, batch_size=2, keep=5, log_every=1, checkpoint_every=3).differences(saved)
    assert Config(steps=10, batch_size=2, seed=1).differences(saved) == {"seed": "0 -> 1"}
