"""The compiled kernels (`kernels.cpp`): built on first use, kept in the user's cache folder, called through ctypes.

A build goes to a folder of its own and is renamed into the cache when it is whole, so that two processes, or one that
is killed, never leave half a library. Without a compiler, one warning says so and the other executors are used.
"""

from __future__ import annotations

import ctypes
import hashlib
import platform
import shutil
import stat
import subprocess
import tempfile
import warnings
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mezzotint.methods.q_dit.packing import StoredWeight
from mezzotint.methods.q_dit.quantiser import LayerSpec

from .operands import IntegerInput, centred_zero

__all__ = ["LEVELS", "Library", "build", "cache_folder", "library"]

LEVELS: tuple[str, ...] = ("portable", "avx2", "vnni", "amx")
"""Instruction sets of the kernels, from the plainest; "vnni" is AVX512-VNNI."""

_SOURCE = Path(__file__).with_name("kernels.cpp")
_FLAGS = ("-O3", "-std=c++17", "-fopenmp", "-w")
_NAME = "mezzotint_kernels"
_P, _N, _I = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
_SIGNATURES: dict[str, tuple[type | None, tuple[type, ...]]] = {
    "mz_level": (_I, ()),
    "mz_quantise": (_I, (_I, _P, _N, _N, _N, _I, _I, _P, _P, _P, _P)),
    "mz_linear": (_I, (_I, _P, _P, _P, _P, _N, _P, _N, _I, _P, _P, _N, _N, _N, _P, _P)),
    "mz_weight_only": (None, (_I, _P, _N, _P, _N, _I, _P, _P, _N, _N, _N, _P, _P)),
    "mz_dequantise": (None, (_I, _P, _N, _I, _P, _P, _N, _N, _N, _P)),
}


class Library:
    """The kernels of one shared library.

    Args:
        path: the library.

    Attributes:
        best: position in LEVELS of the best instruction set that this processor and its system can run.
    """

    def __init__(self, path: Path) -> None:
        self._c = ctypes.CDLL(str(path))
        for name, (result, arguments) in _SIGNATURES.items():
            function = getattr(self._c, name)
            function.restype, function.argtypes = result, arguments
        self.best: int = self._c.mz_level()

    def level(self, wanted: str = "best") -> int:
        """Position in LEVELS of what will run; a level that the processor lacks is replaced, with one warning."""
        if wanted == "best":
            return self.best
        if wanted not in LEVELS:
            raise ValueError(f"level must be best, {', '.join(LEVELS)}, got {wanted!r}")
        if LEVELS.index(wanted) > self.best:
            _say(f"this machine cannot run {wanted} kernels: {LEVELS[self.best]} ones are used")
        return min(LEVELS.index(wanted), self.best)

    def quantise(self, x: Float[Tensor, "*batch width"], spec: LayerSpec, level: str = "best") -> IntegerInput:
        """Codes of activations with ranges of every token and group, bit-identical to the quantiser's.

        Args:
            x: float32, on the processor.
            spec: gives group and activation precision.
            level: instruction set.

        Raises:
            ValueError: numbers that are not finite.
        """
        flat = x.reshape(-1, x.shape[-1]).contiguous()
        tokens, width = flat.shape
        codes = torch.empty((tokens, width), dtype=torch.uint8)
        scale = torch.empty((tokens, width // spec.group))
        zero, total = (torch.empty(scale.shape, dtype=torch.int32) for _ in range(2))
        asked = (spec.group, spec.activation.bits, spec.activation.symmetric)
        outputs = _pointers(codes, scale, zero, total)
        if not self._c.mz_quantise(self.level(level), flat.data_ptr(), tokens, width, *asked, *outputs):
            raise ValueError(
                "numbers to quantise must be finite, got NaN or infinity: look at the layer they came from"
            )
        return IntegerInput(codes, scale, zero, total, spec.group)

    def linear(
        self,
        x: IntegerInput,
        weight: KernelWeight,
        bias: Float[Tensor, " rows"] | None,
        level: str = "best",
    ) -> Float[Tensor, "tokens rows"]:
        """The integer linear layer."""
        out = torch.empty((x.codes.shape[0], weight.rows))
        inputs = (*_pointers(x.codes, x.scale, x.zero, x.total), x.codes.shape[0])
        self._c.mz_linear(self.level(level), *inputs, *weight.arguments(), *_pointers(bias, out))
        return out

    def weight_only(
        self,
        x: Float[Tensor, "tokens width"],
        weight: KernelWeight,
        bias: Float[Tensor, " rows"] | None,
        level: str = "best",
    ) -> Float[Tensor, "tokens rows"]:
        """A linear layer in float32 whose weight is expanded row by row."""
        flat, out = x.contiguous(), torch.empty((x.shape[0], weight.rows))
        self._c.mz_weight_only(
            self.level(level), flat.data_ptr(), x.shape[0], *weight.arguments(), *_pointers(bias, out)
        )
        return out

    def dequantise(self, weight: KernelWeight, level: str = "best") -> Float[Tensor, "rows width"]:
        """The whole weight in float32."""
        out = torch.empty((weight.rows, weight.stored.width))
        self._c.mz_dequantise(self.level(level), *weight.arguments(), out.data_ptr())
        return out


class KernelWeight:
    """A stored weight as the kernels take it; keeps its tensors alive.

    Args:
        stored: the packed weight, on the processor.
    """

    def __init__(self, stored: StoredWeight) -> None:
        self.stored = stored
        self.rows = stored.rows
        self.packed, self.scale = stored.packed.contiguous(), stored.scale.contiguous()
        zero = centred_zero(stored)
        self.zero = None if zero is None else zero.contiguous()

    def arguments(self) -> tuple[int | None, ...]:
        """In the order of the C interface."""
        numbers = _pointers(self.scale, self.zero)
        bits, sizes = self.stored.precision.bits, (self.rows, self.stored.width, self.stored.group)
        return (self.packed.data_ptr(), self.packed.shape[1], bits, *numbers, *sizes)

    def extra_bytes(self) -> int:
        """Memory beside the packed weight: the zero points, unpacked."""
        return 0 if self.zero is None else 4 * self.zero.numel()


def _pointers(*tensors: Tensor | None) -> tuple[int | None, ...]:
    return tuple(None if tensor is None else tensor.data_ptr() for tensor in tensors)


@lru_cache(maxsize=1)
def library() -> Library | None:
    """The kernels, built if they are not there yet; None, with one warning, where they cannot be."""
    try:
        return Library(build(cache_folder()))
    except (OSError, RuntimeError, subprocess.SubprocessError) as cause:
        reason = str(cause).strip().splitlines()[0] if str(cause).strip() else type(cause).__name__
        _say(f"the fused kernels could not be built ({reason}); integer layers use stock operators instead")
        return None


def build(folder: Path, *, extra: Sequence[str] = ()) -> Path:
    """The shared library below a folder, compiled unless it stands there.

    Args:
        folder: of the cache; must belong to this user alone.
        extra: further compiler flags.

    Raises:
        RuntimeError: there is no compiler, or it failed.
        OSError: the folder cannot be written, or others may write to it.
    """
    from torch.utils import cpp_extension

    compiler = shutil.which("g++") or shutil.which("clang++") or shutil.which("c++")
    if compiler is None or not cpp_extension.is_ninja_available():
        missing = "no C++ compiler" if compiler is None else "no ninja"
        raise RuntimeError(f"{missing} was found")
    home = folder / _key(compiler, extra)
    target = home / f"{_NAME}.so"
    _private(folder)
    if not target.is_file():
        with tempfile.TemporaryDirectory(dir=folder, prefix=".build-") as work:
            built = Path(work, "built")
            built.mkdir()
            settings: dict[str, Any] = {
                "extra_cflags": [*_FLAGS, *extra],
                "extra_ldflags": ["-fopenmp"],
                "is_python_module": False,
            }
            cpp_extension.load(_NAME, [str(_SOURCE)], build_directory=str(built), **settings)
            # torch numbers the libraries that one process builds under one name: the second is called ..._v1.
            next(built.glob("*.so")).rename(built / target.name)
            _install(built, home)
    return target


def cache_folder() -> Path:
    """Where compiled kernels are kept: the user's cache, or a temporary folder where there is none."""
    folder = Path.home() / ".cache" / "mezzotint" / "kernels"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError:
        return Path(tempfile.mkdtemp(prefix="mezzotint-kernels-"))
    return folder


def _install(built: Path, home: Path) -> None:
    try:
        built.rename(home)
    except OSError:
        # Another process was quicker; what it built is the same.
        if not home.is_dir():
            raise


def _private(folder: Path) -> None:
    """Refuse to load code from where another user could have put it."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    mode = folder.stat().st_mode
    if mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise PermissionError(f"{folder} may be written by other users: remove their permission, chmod go-w")


def _key(compiler: str, extra: Sequence[str]) -> str:
    """Everything that the compiled bytes depend on."""
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True, timeout=30).stdout  # noqa: S603 - found on the path
    parts = (_SOURCE.read_text(encoding="utf-8"), version, *_FLAGS, *extra, platform.machine(), torch.__version__)
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


@lru_cache(maxsize=64)
def _say(message: str) -> None:
    """One warning for each message and process."""
    warnings.warn(message, RuntimeWarning, stacklevel=3)
