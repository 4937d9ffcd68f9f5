"""Storage of quantised weights in exactly their number of bits (arXiv 2406.17343; layout is ours).

Codes of b bits stand one behind another, little-endian: code k of a row takes the bits k b ... k b + b - 1 of that row,
and every row begins at a byte. So 4 bits put two codes into a byte, low half first, and 6 bits put four into three
bytes. Symmetric codes are stored with 2^(b-1) added. A layer of N rows, K columns and groups of g takes

    N ceil(K b / 8)  +  4 N K / g  +  [asymmetric] ceil(N (K / g) b / 8)      bytes: codes, scales, zero points.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int16, UInt8
from torch import Tensor

from .quantiser import Codes, Precision

__all__ = ["PACKED_BITS", "StoredWeight", "pack", "packed_bytes", "stored_bytes", "unpack"]

PACKED_BITS = (2, 3, 4, 5, 6, 8)
_SCALE_BYTES = 4


def pack(codes: UInt8[Tensor, "*batch width"], bits: int) -> UInt8[Tensor, "*batch bytes"]:
    """Pack unsigned codes along the last axis.

    Args:
        codes: numbers from 0 to 2^bits - 1.
        bits: one of PACKED_BITS.

    Raises:
        ValueError: other bits, or a code that does not fit in them.
    """
    count, size = _unit(bits)
    if codes.numel() and int(codes.max()) >= 2**bits:
        raise ValueError(f"codes of {bits} bits must be below {2**bits}, got {int(codes.max())}")
    if bits == 8:
        return codes.clone()
    width = codes.shape[-1]
    padded = torch.nn.functional.pad(codes, (0, -width % count)).unflatten(-1, (-1, count))
    words = (padded.long() << torch.arange(0, bits * count, bits, device=codes.device)).sum(-1)
    octets = (words[..., None] >> torch.arange(0, 8 * size, 8, device=codes.device)) & 255
    return octets.to(torch.uint8).flatten(-2)[..., : packed_bytes(width, bits)].contiguous()


def unpack(packed: UInt8[Tensor, "*batch bytes"], bits: int, width: int) -> UInt8[Tensor, "*batch width"]:
    """Codes of a packed tensor; the inverse of `pack`.

    Args:
        packed: what `pack` made.
        bits: one of PACKED_BITS.
        width: number of codes in a row.

    Raises:
        ValueError: other bits, or a width that the bytes do not hold.
    """
    count, size = _unit(bits)
    if packed.shape[-1] != packed_bytes(width, bits):
        raise ValueError(f"{width} codes of {bits} bits take {packed_bytes(width, bits)} bytes, got {packed.shape[-1]}")
    if bits == 8:
        return packed.clone()
    if 8 % bits == 0:
        shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=packed.device)
        return ((packed[..., None] >> shifts) & (2**bits - 1)).flatten(-2)[..., :width].contiguous()
    octets = torch.nn.functional.pad(packed, (0, -packed.shape[-1] % size)).unflatten(-1, (-1, size))
    words = (octets.long() << torch.arange(0, 8 * size, 8, device=packed.device)).sum(-1)
    codes = (words[..., None] >> torch.arange(0, bits * count, bits, device=packed.device)) & (2**bits - 1)
    return codes.to(torch.uint8).flatten(-2)[..., :width].contiguous()


def packed_bytes(width: int, bits: int) -> int:
    """Bytes of one packed row."""
    return -(-width * bits // 8)


def stored_bytes(rows: int, width: int, group: int, precision: Precision) -> int:
    """Bytes of a stored weight: codes, scales and zero points (formula at the top of this file).

    Args:
        rows: output channels N.
        width: input channels K.
        group: group size g, divides the width.
        precision: of the weight.
    """
    scales = rows * (width // group)
    zeros = 0 if precision.symmetric else packed_bytes(scales, precision.bits)
    return rows * packed_bytes(width, precision.bits) + _SCALE_BYTES * scales + zeros


@dataclass(frozen=True, eq=False)
class StoredWeight:
    """A quantised weight as it lies in memory and on disk.

    Attributes:
        packed: unsigned codes, packed row by row.
        scale: float32, one for each row and group.
        zero: packed zero points, all rows behind one another; None when symmetric.
        precision: bits and symmetry.
        width: input channels K.
    """

    packed: UInt8[Tensor, "rows bytes"]
    scale: Float[Tensor, "rows groups"]
    zero: UInt8[Tensor, " zero_bytes"] | None
    precision: Precision
    width: int

    @classmethod
    def of(cls, codes: Codes, precision: Precision) -> StoredWeight:
        """Pack a weight.

        Args:
            codes: of shape [rows, width].
            precision: that of the codes.

        Raises:
            ValueError: 16 bits, codes that are not two-dimensional or do not fit, scales that are not finite.
        """
        if not precision.quantised or codes.codes.ndim != 2:
            raise ValueError(f"codes [rows, width] of 2 to 8 bits are packed, got {codes.codes.ndim} axes, {precision}")
        if not torch.isfinite(codes.scale).all():
            raise ValueError("scales must be finite, got NaN or infinity: look at the weight they came from")
        _check_range("codes", codes.codes, precision.lowest, precision.highest)
        packed = pack((codes.codes - precision.lowest).to(torch.uint8), precision.bits)
        scale = codes.scale.to(torch.float32, memory_format=torch.contiguous_format, copy=True)
        if precision.symmetric:
            _check_range("zero points of symmetric codes", codes.zero, 0, 0)
            return cls(packed, scale, None, precision, codes.codes.shape[1])
        _check_range("zero points", codes.zero, 0, precision.highest)
        zero = pack(codes.zero.to(torch.uint8).flatten(), precision.bits)
        return cls(packed, scale, zero, precision, codes.codes.shape[1])

    @property
    def rows(self) -> int:
        """Output channels N."""
        return self.packed.shape[0]

    @property
    def group(self) -> int:
        """Group size g."""
        return self.width // max(self.scale.shape[1], 1)

    def zero_points(self) -> Int16[Tensor, "rows groups"]:
        """Zero points as integers; all 0 when symmetric."""
        if self.zero is None:
            return torch.zeros(self.scale.shape, dtype=torch.int16, device=self.scale.device)
        flat = unpack(self.zero, self.precision.bits, math.prod(self.scale.shape))
        return flat.view(self.scale.shape).to(torch.int16)

    def codes(self) -> Codes:
        """The weight as it was before packing."""
        logical = unpack(self.packed, self.precision.bits, self.width).to(torch.int16) + self.precision.lowest
        return Codes(logical, self.scale, self.zero_points(), self.group)


def _unit(bits: int) -> tuple[int, int]:
    """Fewest codes that fill whole bytes, and those bytes."""
    if bits not in PACKED_BITS:
        raise ValueError(f"bits must be one of {', '.join(map(str, PACKED_BITS))} to be packed, got {bits}")
    common = math.gcd(8, bits)
    return 8 // common, bits // common


def _check_range(what: str, numbers: Tensor, low: int, high: int) -> None:
    if numbers.numel() and (int(numbers.min()) < low or int(numbers.max()) > high):
        raise ValueError(f"{what} must be in {low}..{high}, got {int(numbers.min())}..{int(numbers.max())}")
