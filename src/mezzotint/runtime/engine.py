"""Make a pipeline's network fast for one run: measure eager engines, compile where that is predicted to pay back.

Nothing is changed silently: the report names the dtype, the measured seconds and the difference of the output, and
leaving the context restores every weight bit for bit, unless the originals were given up to save their memory.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from mezzotint.runtime import compiling
from mezzotint.runtime.environment import environment
from mezzotint.runtime.examples import example_inputs, network_of
from mezzotint.runtime.patching import casting, convert, converted, limited_threads, networks
from mezzotint.runtime.plan import WORTH, Choice, Plan, Report, plan

__all__ = ["accelerate"]

Precision = Literal["auto", "keep", "float32", "bfloat16", "float16"]

# Measuring takes a handful of calls; a shorter run than this would not earn them back.
CALLS_WORTH_MEASURING = 20
# The part of a run that an engine is timed for, and seconds at most.
MEASURING, TIMED = 0.01, 1.0
# Of compiling bfloat16 for matrix units, rounded down: 1.8 to 2.3 for SD 1.5's U-Net, 1.7 for DiT-XL/2.
SPEEDUP_AMX = 1.6
# Of compiling networks whose eager calls take less than `SMALL` seconds, in which copies and elementwise operations
# weigh more, rounded down: 1.4 for the embedded U-Net with 16 rows.
SPEEDUP_SMALL, SMALL = 1.3, 1.0
# Side of the latents that the decoder is measured with: larger ones take their time in the same proportion.
DECODED_SIDE = 32
# Seconds of an eager call below which Python's share of a compiled one shows.
LAUNCHES_COUNT = 0.1


@contextmanager
def accelerate(
    pipe: Any,
    *,
    calls: int,
    precision: Precision = "auto",
    compiled: bool | None = None,
    threads: int | None = None,
    batch: int = 2,
    example: Mapping[str, Any] | None = None,
    restore: bool = True,
) -> Iterator[Report]:
    """Run a pipeline's network in the engine that this machine does best; yields a report of what was done and why.

    Samplers keep their latents in the pipeline's own dtype; only the network (and the decoder) compute in another one.
    A compiled network has its weights frozen in: attach adapters before, not inside.

    Args:
        pipe: a diffusers pipeline, or a network.
        calls: how often the network will be called (images x steps / images a call).
        precision: "auto" chooses between the present dtype and the fast native one, "keep" changes no dtype, or a name.
        compiled: True or False to insist, None to decide by predicted payback.
        threads: number of CPU threads, None to choose by measurement.
        batch: rows a call: images at once, twice that with guidance. A compiled network is compiled for it.
        example: arguments of one call to measure with, by name, the sample first; by default made from the network's
            configuration.
        restore: put the original weights back in the end, which keeps them in memory meanwhile: half as much again as
            the pipeline needs. False converts the whole pipeline for good, as its `to` does; "auto" then takes the
            fast native dtype without timing it against the present one.

    Raises:
        ValueError: if calls, threads or batch are below 1, the precision is unknown, or compiling is impossible.
    """
    _check(calls=calls, batch=batch, threads=1 if threads is None else threads)
    network = network_of(pipe)
    inputs = dict(example) if example is not None else example_inputs(network, batch)
    with ExitStack() as stack:
        settled = None if restore else _settle(stack, pipe, network, inputs=inputs, precision=precision)
        with torch.no_grad():
            asked: Precision = precision if settled is None else "keep"
            decision, seconds = _decide(
                network, inputs, calls=calls, precision=asked, compiled=compiled, threads=threads
            )
            report = Report(decision.dtype, decision.threads, seconds=seconds, reasons=list(decision.reasons))
            reference = _call(network, inputs)[0] if settled is None and _changes(network, decision) else settled
        _enter(stack, pipe, network, decision=decision, report=report)
        if precision == "auto" and seconds and decision.dtype == "float32":
            _quicken_decoder(stack, pipe, next(iter(inputs.values())), report)
        if settled is not None:
            report.channels_last = True
            report.reasons.append(f"the whole pipeline is {decision.dtype} for good, to save the originals' memory")
        if reference is not None:
            with torch.no_grad():
                _verify(network, inputs, report, reference, demanded=bool(compiled))
        yield report


def _settle(
    stack: ExitStack, pipe: Any, network: nn.Module, *, inputs: Mapping[str, Any], precision: Precision
) -> Tensor:
    """Convert the whole pipeline for good; the network's output before."""
    (dtype, _), *others = _candidates(network, (_dtype_name(network), 1), precision, threads=1)
    dtype = others[-1][0] if others else dtype
    with torch.no_grad():
        reference: Tensor = _call(network, inputs)[0]
    for part in networks(pipe):
        convert(part, getattr(torch, dtype), channels_last=True)
    for part in filter(None, (network, _decoder(pipe))):
        stack.enter_context(casting(part))
    return reference


def _check(**counts: int) -> None:
    for name, value in counts.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")


def _decide(
    network: nn.Module,
    inputs: Mapping[str, Any],
    *,
    calls: int,
    precision: Precision,
    compiled: bool | None,
    threads: int | None,
) -> tuple[Plan, dict[str, float]]:
    facts = environment()
    present = (_dtype_name(network), torch.get_num_threads())
    candidates = _candidates(network, present, precision, threads)
    # A demanded engine is compared with itself: there is nothing to choose.
    asked = present not in candidates
    present = candidates[0] if asked else present
    if calls < CALLS_WORTH_MEASURING and not compiled:
        reason = f"{calls} calls are too few to earn back measuring: {'as asked' if asked else 'nothing changed'}"
        return Plan(*present, False, 0.0, (reason,)), {}
    timed = min(TIMED, MEASURING * calls * _once(network, inputs))
    measured = {choice: _seconds(network, inputs, choice, timed) for choice in candidates}
    short = [choice for choice, value in measured.items() if value < LAUNCHES_COUNT]
    asking: dict[str, Any] = {
        "calls": calls,
        "modules": sum(1 for _ in network.modules()),
        "compiler": facts.compiler is not None,
    }
    predicted: dict[Choice, float] = dict.fromkeys(short, 1e-9)
    # Worth a closer look where compiling would pay if it left calls no time at all.
    if plan(measured, present=present, compiled=compiled, predicted=predicted, **asking).compiled:
        predicted = {choice: _marginal(network, inputs, choice, timed) for choice in short}
    else:
        predicted = {}
    small = {choice: value for choice, value in measured.items() if LAUNCHES_COUNT <= value < SMALL}
    predicted |= {choice: value / SPEEDUP_SMALL for choice, value in small.items()}
    if "amx_bf16" in facts.isa:
        long = [choice for choice in measured if choice[0] == "bfloat16" and choice not in short]
        predicted |= {choice: measured[choice] / SPEEDUP_AMX for choice in long}
    decision = plan(measured, present=present, compiled=compiled, predicted=predicted, **asking)
    return decision, {f"eager {dtype}, {count} thread(s)": value for (dtype, count), value in measured.items()}


def _marginal(network: nn.Module, inputs: Mapping[str, Any], choice: Choice, timed: float) -> float:
    """Seconds that a call's rows take in a batch of four times as many: what is left without launching kernels.

    That is what compiling removes from short calls, and it may hide how much faster another dtype computes.
    """
    _, sample = next(iter(inputs.items()))
    more = {k: _fourfold(value, len(sample)) for k, value in inputs.items()}
    many, one = (_seconds(network, given, choice, timed) for given in (more, inputs))
    return min(max((many - one) / 3, 0.1 * one), one)


def _fourfold(value: Any, rows: int) -> Any:
    def repeat(leaf: Any) -> Any:
        return torch.cat([leaf] * 4) if isinstance(leaf, Tensor) and leaf.ndim and len(leaf) == rows else leaf

    return tree_map(repeat, value)


def _candidates(network: nn.Module, present: Choice, precision: Precision, threads: int | None) -> list[Choice]:
    """Engines to measure; the present state is among them unless the caller asked for another one."""
    if precision in ("float32", "bfloat16", "float16"):
        dtypes = [str(precision)]
    elif precision == "keep" or (precision == "auto" and not _fast_bfloat16(network)):
        dtypes = [present[0]]
    elif precision == "auto":
        dtypes = list(dict.fromkeys([present[0], "bfloat16"]))
    else:
        raise ValueError(f"precision must be auto, keep, float32, bfloat16 or float16, got {precision!r}")
    # Matrix units can be shared between logical cores, so half the threads may be faster.
    counts = sorted({present[1], max(1, present[1] // 2)} if threads is None else {threads}, reverse=True)
    if _device(network).type != "cpu":
        counts = counts[:1]
    return [(dtype, count) for dtype in dtypes for count in counts]


def _fast_bfloat16(network: nn.Module) -> bool:
    if _device(network).type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return environment().native_bfloat16


def _seconds(network: nn.Module, inputs: Mapping[str, Any], choice: Choice, timed: float = 0.3) -> float:
    with ExitStack() as stack:
        _use(stack, network, *choice)
        return _time(network, inputs, timed)


def _time(network: nn.Module, inputs: Mapping[str, Any], timed: float) -> float:
    """Seconds of a call after one to warm up: the least of some, for other work on the machine only ever adds.

    One call is enough of a slow network; of a fast one there are many, for others' work comes in waves.
    """
    first = _once(network, inputs)
    return min(_once(network, inputs) for _ in range(min(40, max(1, int(timed / first)))))


def _once(network: nn.Module, inputs: Mapping[str, Any]) -> float:
    on_cuda = _device(network).type == "cuda"
    start = time.perf_counter()
    _call(network, inputs)
    if on_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _call(network: nn.Module, inputs: Mapping[str, Any]) -> Any:
    """Call with the sample by position, as samplers do: a network is compiled for the form of its call, too."""
    (_, sample), *rest = inputs.items()
    return network(sample, **dict(rest))


def _use(stack: ExitStack, network: nn.Module, dtype: str, threads: int) -> None:
    stack.enter_context(limited_threads(threads))
    if dtype != _dtype_name(network):
        stack.enter_context(converted(network, getattr(torch, dtype), channels_last=True))
        stack.enter_context(casting(network))


def _enter(stack: ExitStack, pipe: Any, network: nn.Module, *, decision: Plan, report: Report) -> None:
    changed = decision.dtype != _dtype_name(network)
    _use(stack, network, decision.dtype, decision.threads)
    report.channels_last = changed
    decoder = _decoder(pipe)
    if changed and decoder is not None:
        stack.enter_context(converted(decoder, getattr(torch, decision.dtype), channels_last=True))
        stack.enter_context(casting(decoder))
        report.reasons.append(f"the decoder computes in {decision.dtype}, channels last, too")
    if decision.compiled:
        eager = report.seconds.get(_engine("eager", report), 1.0)
        stack.enter_context(compiling.compiled(network, launches=eager < LAUNCHES_COUNT))
        report.compiled = True


def _quicken_decoder(stack: ExitStack, pipe: Any, latents: Tensor, report: Report) -> None:
    """The decoder in bfloat16 where that is worth it for it alone: in few steps it takes as long as the network."""
    decoder = _decoder(pipe)
    if decoder is None or latents.ndim != 4 or _dtype_name(decoder) != "float32" or not _fast_bfloat16(decoder):
        return
    height, width = (min(side, DECODED_SIDE) for side in latents.shape[2:])
    example = {"sample": latents.new_zeros(1, pipe.vae.config.latent_channels, height, width)}
    with torch.no_grad():
        present, fast = (
            _seconds(decoder, example, (dtype, report.threads)) for dtype in (_dtype_name(decoder), "bfloat16")
        )
    if fast * WORTH < present:
        stack.enter_context(converted(decoder, torch.bfloat16, channels_last=True))
        stack.enter_context(casting(decoder))
        report.reasons.append(f"the decoder alone computes in bfloat16, {present / fast:.2f} times as fast")


def _decoder(pipe: Any) -> nn.Module | None:
    """Only the decoder: what an encoder returns is a distribution, whose dtype callers rely on."""
    return getattr(getattr(pipe, "vae", None), "decoder", None)


def _engine(kind: str, report: Report) -> str:
    return f"{kind} {report.dtype}, {report.threads} thread(s)"


def _verify(
    network: nn.Module, inputs: Mapping[str, Any], report: Report, reference: Tensor, *, demanded: bool
) -> None:
    """Fill in the measured difference; a compilation that fails or is slower than the eager self is given up."""
    if report.compiled:
        eager, start = report.seconds[_engine("eager", report)], time.perf_counter()
        try:
            _call(network, inputs)
        except Exception as error:
            # Of any type: the compiler's own, or that of a kernel it calls. Without it the run only takes longer.
            if demanded:
                raise
            _uncompile(network, report, f"compiling failed ({_first_line(error)})")
        else:
            took, fast = time.perf_counter() - start, _time(network, inputs, 0.3)
            report.seconds[_engine("compiled", report)] = fast
            report.reasons.append(f"compiling took {took:.0f} s; a call is {eager / fast:.2f} times as fast as eager")
            if fast > eager:
                _uncompile(network, report, "compiled was slower")
    output = _call(network, inputs)[0]
    difference = (output.float() - reference.float()).norm() / reference.float().norm().clamp(min=1e-30)
    report.relative_error = float(difference)


def _first_line(error: Exception) -> str:
    return next(iter(f"{type(error).__name__}: {error}".splitlines()))


def _uncompile(network: nn.Module, report: Report, reason: str) -> None:
    network._compiled_call_impl = None
    report.compiled = False
    report.reasons.append(f"{reason}: back to eager")


def _changes(network: nn.Module, decision: Plan) -> bool:
    present = (_dtype_name(network), torch.get_num_threads())
    return decision.compiled or present != (decision.dtype, decision.threads)


def _dtype_name(network: nn.Module) -> str:
    dtype = next((p.dtype for p in network.parameters() if p.is_floating_point()), torch.float32)
    return str(dtype).removeprefix("torch.")


def _device(network: nn.Module) -> torch.device:
    return next((p.device for p in network.parameters()), torch.device("cpu"))
