"""The decision, as a pure function of measurements: which dtype, how many threads, whether compiling pays back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

__all__ = ["Choice", "Plan", "Report", "plan"]

Choice: TypeAlias = tuple[str, int]
"""An eager engine: (dtype name, threads)."""

# Speed-up of torch.compile with frozen weights over the same engine eager where nothing better is known, rounded down:
# 1.2 (bfloat16) and 1.2 (float32) for SD 1.5's U-Net, 1.2 and 1.1 for half of DiT-XL/2, without matrix units.
SPEEDUP = 1.15
# Compiling such a network takes 45 to 90 seconds of a free core; they have 700 to 1100 modules.
SECONDS_A_MODULE = 0.08
SECONDS_TO_START = 10.0
# Predictions are rough: compile only if they promise this multiple of the cost.
MARGIN = 1.5
# A different dtype must be worth its rounding, another thread count its disturbance.
WORTH = 1.1


@dataclass(frozen=True)
class Plan:
    """What to do and why.

    Args:
        dtype: name of the dtype the network computes in.
        threads: CPU threads.
        compiled: whether to compile with frozen weights.
        saving: predicted seconds saved over the whole run against the present state, compile time deducted.
        reasons: one sentence a decision.
    """

    dtype: str
    threads: int
    compiled: bool
    saving: float
    reasons: tuple[str, ...]


@dataclass
class Report:
    """What `accelerate` did.

    Args:
        dtype: dtype the network computes in now.
        threads: CPU threads now.
        channels_last: whether convolution weights are stored channels last.
        compiled: whether the network is compiled with frozen weights.
        seconds: measured seconds a call by engine, the present state first.
        relative_error: of the chosen engine's output against the pipeline as it was, on random input; 0 if unchanged.
        reasons: one sentence a decision.
    """

    dtype: str
    threads: int
    channels_last: bool = False
    compiled: bool = False
    seconds: dict[str, float] = field(default_factory=dict)
    relative_error: float = 0.0
    reasons: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        """Say it in lines for a terminal."""
        engine = f"{'compiled' if self.compiled else 'eager'} {self.dtype}, {self.threads} thread(s)"
        times = [f"  {name}: {1000 * value:.1f} ms a call" for name, value in self.seconds.items()]
        error = f"  relative difference to the pipeline as it was: {self.relative_error:.1e}"
        return "\n".join([f"runtime: {engine}", *times, error, *(f"  {reason}" for reason in self.reasons)])


def plan(
    seconds: Mapping[Choice, float],
    *,
    present: Choice,
    calls: int,
    modules: int,
    compiler: bool,
    compiled: bool | None,
    predicted: Mapping[Choice, float] | None = None,
) -> Plan:
    """Choose an engine.

    Args:
        seconds: measured seconds a call of every eager candidate, the present state among them.
        present: the present state.
        calls: how often the network will be called.
        modules: number of modules of the network, which predicts the time to compile it.
        compiler: whether torch.compile can work here.
        compiled: True or False to insist, None to decide by predicted payback.
        predicted: seconds a call of candidates once compiled, where they are known better than by `SPEEDUP`.

    Raises:
        ValueError: if the present state was not measured, or compiling is demanded without a compiler.
    """
    if present not in seconds:
        raise ValueError(f"the present state {present} must be among the measured {list(seconds)}")
    if compiled and not compiler:
        raise ValueError("compiling needs a C++ compiler and Python's headers; install them or leave compiled=None")
    fast = {k: value / SPEEDUP for k, value in seconds.items()} | dict(predicted or {})
    # What is saved by compiling, and what it costs, both in seconds.
    cost = SECONDS_TO_START + SECONDS_A_MODULE * modules
    gains = {k: calls * (value - fast[k]) for k, value in seconds.items()}
    use = {k: compiler and gain > MARGIN * cost if compiled is None else compiled for k, gain in gains.items()}
    call = {k: fast[k] if use[k] else value for k, value in seconds.items()}
    fastest = min(call, key=lambda choice: call[choice])
    # Other work on the machine disturbs threads that wait for each other: fewer of them must be worth it.
    if call.get(same := (fastest[0], present[1]), math.inf) <= call[fastest] * WORTH:
        fastest = same
    best = fastest if call[fastest] * WORTH < call[present] else present
    asked = compiled is not None
    whether = _why_compile(use=use[best], demanded=asked, compiler=compiler, gain=gains[best], cost=cost)
    reasons = (_why(best, fastest, present, call), whether)
    saving = calls * (seconds[present] - call[best]) - (cost if use[best] else 0.0)
    return Plan(best[0], best[1], use[best], saving, reasons)


def _why(best: Choice, fastest: Choice, present: Choice, seconds: Mapping[Choice, float]) -> str:
    ratio = seconds[present] / seconds[best]
    if best != present:
        return f"{best[0]} on {best[1]} thread(s) is {ratio:.2f} times as fast as {present[0]} on {present[1]}"
    if fastest == present:
        return f"{present[0]} on {present[1]} thread(s) is the fastest of {len(seconds)} measured: kept"
    gained = seconds[present] / seconds[fastest]
    return f"{fastest[0]} on {fastest[1]} thread(s) would gain a factor of {gained:.2f} only: kept {present[0]}"


def _why_compile(*, use: bool, demanded: bool, compiler: bool, gain: float, cost: float) -> str:
    balance = f"predicted to save {gain:.0f} s for {cost:.0f} s of compiling"
    if demanded:
        return f"{'compiled' if use else 'not compiled'} as asked ({balance})"
    if not compiler:
        return "not compiled: no C++ compiler with Python headers"
    return f"{'compiled' if use else 'not compiled'}: {balance}"
