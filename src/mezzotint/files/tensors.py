"""Safetensors: checked here before any library sees them, and written so that equal tensors give equal bytes.

Format: eight bytes with the length of the header (little-endian), the header (a JSON object: name -> dtype, shape,
data_offsets), the data. A sound file covers its data exactly once: no overlap, no hole, no tail.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from mezzotint.files.atomic import dump_json, replacing
from mezzotint.files.foreign import MEBIBYTE, FileError, guess, open_foreign, parse_json

if TYPE_CHECKING:
    import torch
    from torch import Tensor

MAX_BYTES = 2**36
_HEADER_BYTES = 8 * MEBIBYTE
_MAX_TENSORS = 20_000
_MAX_DIMENSIONS = 16
_METADATA = "__metadata__"

# Format's name -> (torch's name, bytes of one element).
_DTYPES = {
    "F64": ("float64", 8),
    "I64": ("int64", 8),
    "U64": ("uint64", 8),
    "C64": ("complex64", 8),
    "F32": ("float32", 4),
    "I32": ("int32", 4),
    "U32": ("uint32", 4),
    "F16": ("float16", 2),
    "BF16": ("bfloat16", 2),
    "I16": ("int16", 2),
    "U16": ("uint16", 2),
    "F8_E5M2": ("float8_e5m2", 1),
    "F8_E4M3": ("float8_e4m3fn", 1),
    "I8": ("int8", 1),
    "U8": ("uint8", 1),
    "BOOL": ("bool", 1),
}


def read_safetensors(path: str | Path, *, device: str | torch.device = "cpu") -> dict[str, Tensor]:
    """Read all tensors of a safetensors file.

    Args:
        path: the file.
        device: where the tensors go.

    Raises:
        FileError: it is not a sound safetensors file.
    """
    check_safetensors(path)
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path, device=str(device))
    except SafetensorError as error:
        raise FileError(path, f"was refused by the safetensors library: {error}") from error


def safetensors_metadata(path: str | Path) -> dict[str, str]:
    """Read the metadata of a safetensors file, without its tensors.

    Raises:
        FileError: it is not a sound safetensors file.
    """
    return check_safetensors(path).get(_METADATA, {})


def check_safetensors(path: str | Path) -> dict[str, Any]:
    """Check a safetensors file without reading its data.

    Returns:
        Its header.

    Raises:
        FileError: header or ranges are not sound.
    """
    with open_foreign(path, max_bytes=MAX_BYTES) as file:
        header, start = _read_header(file, path)
        size = os.fstat(file.fileno()).st_size - start
    metadata = header.get(_METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise FileError(path, "has metadata that does not map strings to strings")
    tensors = {name: entry for name, entry in header.items() if name != _METADATA}
    if len(tensors) > _MAX_TENSORS:
        raise FileError(path, f"declares {len(tensors):,} tensors, at most {_MAX_TENSORS:,} are accepted")
    _check_cover([_range(path, name, entry) for name, entry in tensors.items()], path, size)
    return header


def write_safetensors(
    path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors atomically; equal tensors and metadata give equal bytes, whatever their order.

    Args:
        path: the target.
        tensors: dense tensors of any device; a view is written as it looks.
        metadata: strings to strings.

    Raises:
        ValueError: a tensor is sparse, without data, or of a type the format has no name for; nothing is written.
        OSError: it could not be written; what stood there is untouched.
    """
    if sys.byteorder != "little":
        raise ValueError("safetensors are little-endian, and this machine is not")
    kinds = {f"torch.{name}": (kind, size) for kind, (name, size) in _DTYPES.items()}
    for name, tensor in tensors.items():
        _refuse_unwritable(name, tensor, kinds)
    # Wide elements first keeps every tensor aligned, as the library itself orders them.
    order = sorted(tensors, key=lambda name: (-kinds[str(tensors[name].dtype)][1], name))
    header: dict[str, Any] = {_METADATA: dict(sorted(metadata.items()))} if metadata else {}
    end = 0
    for name in order:
        (kind, size), begin = kinds[str(tensors[name].dtype)], end
        end += tensors[name].numel() * size
        header[name] = {"dtype": kind, "shape": list(tensors[name].shape), "data_offsets": [begin, end]}
    text = dump_json(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with replacing(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            _write_tensor(file, tensors[name])


def _refuse_unwritable(name: str, tensor: Tensor, kinds: Mapping[str, tuple[str, int]]) -> None:
    if not name or name == _METADATA:
        raise ValueError(f"a tensor must not be named {name!r}")
    if str(tensor.dtype) not in kinds:
        raise ValueError(f"tensor {name!r} is {tensor.dtype}; safetensors hold {', '.join(sorted(kinds))}")
    if tensor.is_meta or tensor.layout != _strided():
        raise ValueError(f"tensor {name!r} must be dense and hold data")


def _strided() -> torch.layout:
    import torch

    return torch.strided


def _write_tensor(file: BinaryIO, tensor: Tensor) -> None:
    import torch

    if tensor.numel():
        flat = tensor.detach().resolve_conj().resolve_neg().contiguous().reshape(-1)
        file.write(flat.view(torch.uint8).cpu().numpy().data)


def _read_header(file: BinaryIO, path: str | Path) -> tuple[dict[str, Any], int]:
    """The header, and where the data begin."""
    first = file.read(8)
    if wrong := guess(first + file.read(24)):
        raise FileError(path, f"is {wrong}; only safetensors are read")
    length = int.from_bytes(first, "little")
    size = os.fstat(file.fileno()).st_size
    if len(first) < 8 or length + 8 > size:
        raise FileError(path, f"is truncated or no safetensors file: {size:,} bytes, header of {length:,} announced")
    if length > _HEADER_BYTES:
        raise FileError(path, f"has a header of {length:,} bytes, at most {_HEADER_BYTES:,} are accepted")
    file.seek(8)
    content = file.read(length)
    if not content.startswith(b"{"):
        raise FileError(path, "is no safetensors file: its header is not a JSON object")
    return parse_json(content, path), 8 + length


def _range(path: str | Path, name: str, entry: Any) -> tuple[int, int]:
    """Begin and end of one tensor's data, agreeing with its shape and type."""
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise FileError(path, f"tensor {name[:80]!r} must have dtype, shape and data_offsets, and nothing else")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise FileError(path, f"tensor {name[:80]!r} is of unknown type {str(dtype)[:40]!r}")
    if not _naturals(shape) or len(shape) > _MAX_DIMENSIONS or not _naturals(offsets) or len(offsets) != 2:
        raise FileError(path, f"tensor {name[:80]!r} has an unsound shape or range")
    if offsets[1] - offsets[0] != math.prod(shape) * _DTYPES[dtype][1]:
        raise FileError(path, f"tensor {name[:80]!r} has a range that does not fit its shape and type")
    return offsets[0], offsets[1]


def _naturals(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 2**62 for item in value)


def _check_cover(ranges: list[tuple[int, int]], path: str | Path, size: int) -> None:
    """The ranges must cover the data once and wholly."""
    reached = 0
    for begin, end in sorted(ranges):
        if begin != reached:
            raise FileError(
                path, f"has tensors that {'overlap' if begin < reached else 'leave a hole'} at byte {begin:,}"
            )
        reached = end
    if reached != size:
        what = "is truncated" if reached > size else "has a tail"
        raise FileError(path, f"{what}: its header describes {reached:,} bytes of data, it holds {size:,}")
