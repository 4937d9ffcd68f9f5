"""`torch.compile` with the weights frozen in, so that oneDNN gets them packed once.

Whether parameters are constants is settled while a call is traced, from inductor's global configuration: `freezing` as
an option of `compile` reaches inductor only after that, where there is nothing left to freeze, and says nothing. So the
configuration is set around every call, for any of them may be traced anew.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import nn

__all__ = ["Unchanging", "compiled", "unguarded"]

# Libraries whose layers keep no state from call to call.
KNOWN = ("torch", "diffusers", "peft")


@contextmanager
def compiled(network: nn.Module, *, launches: bool = False) -> Iterator[None]:
    """Compile a network's calls; on leaving, it is called as before. Compiling itself happens in the first call.

    Args:
        network: on a processor its weights are frozen in; do not change them inside.
        launches: also generate C++ for what calls the kernels: worth its time where a call takes milliseconds.
    """
    before = network._compiled_call_impl
    if next(network.parameters()).device.type == "cpu":
        from torch._inductor import config

        network.compile(options={"freezing": True, "cpp.enable_concat_linear": True, "cpp_wrapper": launches})
        call: Any = network._compiled_call_impl

        def frozen(*args: Any, **kwargs: Any) -> Any:
            with config.patch(freezing=True):
                return call(*args, **kwargs)

        network._compiled_call_impl = frozen
    else:
        network.compile()
    try:
        yield
    finally:
        network._compiled_call_impl = before


def unguarded() -> AbstractContextManager[None]:
    """Call a compiled network as it was called last, without asking whether that code still applies.

    The question takes as long as a tenth of a call of ten milliseconds. Inputs of other shapes, dtypes or layouts
    raise RuntimeError. Only for networks that are `Unchanging`, right after a call that did ask.
    """
    stance: AbstractContextManager[None] = torch.compiler.set_stance("default", skip_guard_eval_unsafe=True)
    return stance


class Unchanging:
    """Whether nothing but a network's inputs can change from call to call: known layers, no hooks, nothing replaced.

    Args:
        network: as it was compiled.
    """

    def __init__(self, network: nn.Module) -> None:
        parts = list(network.modules())
        self._parts = [part for part in parts if part is not network]
        self._attention = [part for part in parts if hasattr(part, "processor")]
        self._known = all(map(_known, parts))

    def __call__(self) -> bool:
        """Look again; takes a fifth of a millisecond."""
        return (
            self._known
            and not any(p._forward_hooks or p._forward_pre_hooks or "forward" in p.__dict__ for p in self._parts)
            and all(_known(part.processor) for part in self._attention)
        )


def _known(part: object) -> bool:
    return type(part).__module__.partition(".")[0] in KNOWN
