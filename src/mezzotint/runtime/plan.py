"""The decision, as a pure function of measurements: which dtype, how many threads, whether compiling pays back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

__all__ = ["Choice", "Plan", "Report", "plan"]

Choice: TypeAlias = tuple[str, int]
"""An eager engine: (dtype name, threads)."""

# Speed-up of torch.compile with frozen weights over the same dtype eager: the lower ends of what SD 1.5 and DiT-XL/2
# sized networks gave on a processor with AMX (`make bench-speed` measures a machine); not calibrated for each one.
SPEEDUP = {"bfloat16": 1.6, "float16": 1.3, "float32": 1.15}
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
    seconds: Mapping[Choice, float], *, present: Choice, calls: int, modules: int, compiler: bool, compiled: bool | None
) -> Plan:
    """Choose an engine.

    Args:
        seconds: measured seconds a call of every eager candidate, the present state among them.
        present: the present state.
        calls: how often the network will be called.
        modules: number of modules of the network, which predicts the time to compile it.
        compiler: whether torch.compile can work here.
        compiled: True or False to insist, None to decide by predicted payback.

    Raises:
        ValueError: if the present state was not measured, or compiling is demanded without a compiler.
    """
    if present not in seconds:
        raise ValueError(f"the present state {present} must be among the measured {list(seconds)}")
    if compiled and not compiler:
        raise ValueError("compiling needs a C++ compiler and Python's headers; install them or leave compiled=None")
    fastest = min(seconds, key=lambda choice: seconds[choice])
    best = fastest if seconds[fastest] * WORTH < seconds[present] else present
    reasons = [_why(best, fastest, present, seconds)]
    # What is saved by compiling, and what it costs, both in seconds.
    gain = calls * seconds[best] * (1 - 1 / SPEEDUP.get(best[0], 1.0))
    cost = SECONDS_TO_START + SECONDS_A_MODULE * modules
    use = compiler and gain > MARGIN * cost if compiled is None else compiled
    reasons.append(_why_compile(use=use, demanded=compiled is not None, compiler=compiler, gain=gain, cost=cost))
    saving = calls * (seconds[present] - seconds[best]) + (gain - cost if use else 0.0)
    return Plan(best[0], best[1], use, saving, tuple(reasons))


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
