"""What this machine offers for inference: processor features, accelerators, compiler, optional packages."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import torch

__all__ = ["Environment", "environment"]

# Instruction sets that decide which arithmetic is native, with the name the processor gives them.
FEATURES = (
    "avx2",
    "avx512f",
    "avx512_vnni",
    "avx_vnni",
    "avx512_bf16",
    "amx_tile",
    "amx_bf16",
    "amx_int8",
    "bf16",
    "sve",
)
OPTIONAL = ("gradio", "gsplat", "openvino", "spacy", "torchao", "trimesh")


@dataclass(frozen=True)
class Environment:
    """Facts about the machine and the installation.

    Args:
        processor: the processor's own name.
        architecture: for example "x86_64".
        cores: logical cores this process may use.
        threads: threads PyTorch computes with now.
        isa: the instruction sets present that matter here.
        native_bfloat16: whether the processor multiplies bfloat16 itself (otherwise it is slower than float32).
        cuda: names of the CUDA devices.
        compiler: C++ compiler with version, if torch.compile can use it (Python headers included), else None.
        packages: optional packages with their versions, None where missing.
    """

    processor: str
    architecture: str
    cores: int
    threads: int
    isa: tuple[str, ...]
    native_bfloat16: bool
    cuda: tuple[str, ...]
    compiler: str | None
    packages: dict[str, str | None]


def environment() -> Environment:
    """Collect the facts; takes milliseconds and changes nothing."""
    described = _processor_description()
    present = set(described.get("flags", described.get("Features", "")).split())
    isa = tuple(name for name in FEATURES if name in present)
    return Environment(
        processor=described.get("model name") or platform.processor() or "unknown",
        architecture=platform.machine(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        threads=torch.get_num_threads(),
        isa=isa,
        native_bfloat16=bool({"avx512_bf16", "amx_bf16", "bf16"} & set(isa)),
        cuda=tuple(torch.cuda.get_device_name(k) for k in range(torch.cuda.device_count())),
        compiler=_compiler(),
        packages={name: _version(name) for name in OPTIONAL},
    )


def _processor_description() -> dict[str, str]:
    listing = Path("/proc/cpuinfo")
    if not listing.is_file():
        return {}
    first, _, _ = listing.read_text(errors="replace").partition("\n\n")
    pairs = (line.partition(":") for line in first.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def _compiler() -> str | None:
    found = next((path for path in map(shutil.which, ("g++", "clang++")) if path), None)
    if found is None or not Path(sysconfig.get_path("include"), "Python.h").is_file():
        return None
    answer = subprocess.run([found, "-dumpversion"], capture_output=True, text=True, check=False, timeout=10)  # noqa: S603 - found on the path
    return f"{Path(found).name} {answer.stdout.strip()}"


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
