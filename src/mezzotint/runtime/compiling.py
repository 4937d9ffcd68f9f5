"""`torch.compile` with the weights frozen in, so that oneDNN gets them packed once.

Whether parameters are constants is settled while a call is traced, from inductor's global configuration: `freezing` as
an option of `compile` reaches inductor only after that, where there is nothing left to freeze, and says nothing. So the
configuration is set around every call, for any of them may be traced anew.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

__all__ = ["compiled"]


@contextmanager
def compiled(network: nn.Module, *, launches: bool = False) -> Iterator[None]:
    """Compile a network's calls; on leaving, it is called as before. Compiling itself happens in the first call.

    Args:
        network: on a processor its weights are frozen in; do not change them inside.
        launches: also generate C++ for what calls the kernels: worth its time where a call takes milliseconds.
    """
    if next(network.parameters()).device.type == "cpu":
        from torch._inductor import config

        network.compile(options={"freezing": True, "cpp.enable_concat_linear": True, "cpp_wrapper": launches})
        call: Any = network._compiled_call_impl

        def frozen(*args: Any, **kwargs: Any) -> Any:
            with config.patch(freezing=True):
                return call(*args, **kwargs)

        network._compiled_call_impl = frozen  # type: ignore[assignment]
    else:
        network.compile()
    try:
        yield
    finally:
        network._compiled_call_impl = None
