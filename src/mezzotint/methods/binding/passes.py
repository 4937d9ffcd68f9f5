"""Calls of a pipeline, seen from outside: run again with the same noise, or with other arguments.

Python looks `__call__` up on the class, so while a context lasts the pipeline's class is a subclass of its own, which
is gone afterwards. Contexts nest: the inner one is asked first.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial, wraps
from typing import Any

import torch

__all__ = ["Call", "calling", "position", "rehearsal", "same_noise", "unguided"]

Call = Callable[..., Any]

_CALLBACKS = ("callback_on_step_end", "callback")


@contextmanager
def calling(pipe: Any, run: Callable[[Call, dict[str, Any]], Any]) -> Iterator[None]:
    """Calls of the pipeline go through `run(call, arguments)`; `call(**arguments)` is what they would have done.

    Args:
        pipe: any pipeline of diffusers.
        run: gets the arguments by name, positional ones included.
    """
    stock = type(pipe)
    signature = inspect.signature(stock.__call__)

    @wraps(stock.__call__)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        given = dict(signature.bind(self, *args, **kwargs).arguments)
        given.pop(next(iter(signature.parameters)))
        given |= given.pop("kwargs", {})
        return run(partial(stock.__call__, self), given)

    names = {
        "__call__": call,
        "__module__": stock.__module__,
        "__qualname__": stock.__qualname__,
        "__doc__": stock.__doc__,
    }
    pipe.__class__ = type(stock.__name__, (stock,), names)
    try:
        yield
    finally:
        pipe.__class__ = stock


def rehearsal(call: Call, arguments: dict[str, Any], device: torch.device) -> None:
    """Runs a call up to the latents, without its callbacks, and leaves every random state as it was.

    Args:
        call: of the pipeline.
        arguments: of the call.
        device: where the pipeline runs.
    """
    kept = {name: value for name, value in arguments.items() if name not in _CALLBACKS}
    with same_noise(arguments.get("generator"), device):
        call(**kept | {"output_type": "latent", "return_dict": False})


@contextmanager
def same_noise(generator: Any, device: torch.device) -> Iterator[None]:
    """Afterwards, the given generators and the global ones are in the state in which they were before.

    Args:
        generator: a generator, several, or None.
        device: whose global generator counts, beside that of the CPU.
    """
    generators = [generator] if isinstance(generator, torch.Generator) else list(generator or ())
    devices = [device] if device.type in ("cuda", "xpu") else []
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=devices, device_type=device.type if devices else "cuda"))
        for each in generators:
            stack.callback(each.set_state, each.get_state())
        yield


def position(scheduler: Any, timestep: float) -> tuple[int, int] | None:
    """Which step of the scheduler's trajectory a timestep is, and how many steps that has; None if it is none of them.

    Repeated timesteps (second-order solvers) are one step; img2img starts later than at 0.

    Args:
        scheduler: with its timesteps set.
        timestep: of a model call.
    """
    distinct: Sequence[float] = list(dict.fromkeys(scheduler.timesteps.tolist()))
    return (distinct.index(timestep), len(distinct)) if timestep in distinct else None


def unguided(pipe: Any, arguments: dict[str, Any]) -> bool:
    """Whether a call has no unconditional half, where the pipeline has no property that says so itself (PixArt).

    Args:
        pipe: about to be called.
        arguments: of the call.
    """
    scale = arguments.get("guidance_scale")
    return not hasattr(type(pipe), "do_classifier_free_guidance") and scale is not None and scale <= 1
