"""GPTQ with groups (arXiv 2210.17323, algorithm 1; as used by Q-DiT, arXiv 2406.17343, section 4.1).

Columns of a weight are rounded one after the other, and what rounding did is made up for by the columns that follow,
weighted by the upper Cholesky factor of the inverse of H = (2 / n) sum x x^T. Columns keep their order.
"""

from __future__ import annotations

import warnings
from itertools import pairwise

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from .groups import check_group
from .quantiser import Codes, Precision
from .ranges import Ranges, weight_grid

__all__ = ["BLOCK", "DAMPING", "Hessian", "gptq", "inverse_factor"]

BLOCK = 128
DAMPING = 0.01


class Hessian:
    """H = (2 / n) sum x x^T over calibration inputs of one layer; n counts samples, not tokens.

    Args:
        width: number K of input channels.
        device: where it is summed.
    """

    def __init__(self, width: int, device: torch.device | str = "cpu") -> None:
        self.samples = 0
        self.tokens = 0
        self._sum = torch.zeros(width, width, device=device)

    def add(self, x: Float[Tensor, "*batch width"]) -> None:
        """Take in inputs; the first axis counts samples."""
        rows = x.detach().float().flatten(0, -2)
        self._sum.addmm_(rows.T, rows)
        self.samples += x.shape[0]
        self.tokens += len(rows)

    @property
    def matrix(self) -> Float[Tensor, "width width"]:
        """The matrix.

        Raises:
            ValueError: nothing was taken in.
        """
        if not self.samples:
            raise ValueError("GPTQ needs calibration data: no input was seen")
        return self._sum * (2 / self.samples)

    def warn_if_few(self, layer: str) -> None:
        """Warn when there are fewer tokens than K / 32, of which no useful matrix can be made."""
        if (wanted := len(self._sum) // 32) > self.tokens:
            text = f"layer {layer!r}: {self.tokens} calibration inputs for {len(self._sum)} channels; "
            warnings.warn(f"{text}GPTQ wants at least {wanted}, use more samples", stacklevel=2)


def inverse_factor(
    hessian: Float[Tensor, "width width"], *, damping: float = DAMPING
) -> tuple[Float[Tensor, "width width"], Bool[Tensor, " width"]]:
    """Upper Cholesky factor U of the damped inverse, H^-1 = U^T U, and which columns are dead (H_jj = 0).

    Args:
        hessian: symmetric, positive semidefinite.
        damping: share of the mean diagonal that is added to the diagonal.

    Raises:
        ValueError: numbers that are not finite, or a matrix that is not positive definite even after damping.
    """
    if not torch.isfinite(hessian).all():
        raise ValueError("calibration inputs must be finite, got NaN or infinity: look at the layers before this one")
    matrix = hessian.double().clone()
    diagonal = matrix.diagonal()
    dead = diagonal == 0
    diagonal[dead] = 1
    diagonal += damping * diagonal.mean()
    lower, failed = torch.linalg.cholesky_ex(matrix)
    if failed:
        raise ValueError(f"the calibration matrix is not positive definite: raise damping above {damping}")
    inverse = torch.cholesky_inverse(lower)
    return torch.linalg.cholesky(inverse, upper=True).float(), dead


def gptq(
    weight: Float[Tensor, "rows width"],
    hessian: Float[Tensor, "width width"],
    precision: Precision,
    group: int,
    *,
    damping: float = DAMPING,
    ranges: Ranges = "max",
    official_stale_params: bool = False,
) -> Codes:
    """Round a weight so that its outputs on the calibration inputs change little.

    Args:
        weight: rows are output channels.
        hessian: of the layer's inputs, after activation quantisation.
        precision: below 16 bits.
        group: group size g, divides the width.
        damping: see `inverse_factor`.
        ranges: see `weight_grid`.
        official_stale_params: scales of a group from its columns before the running block's updates, as the public code
            has it; otherwise from the columns as they are when the group begins.

    Raises:
        ValueError: 16 bits, a group that does not divide the width, numbers that are not finite; see `inverse_factor`.
    """
    check_group(weight.shape[1], group)
    if not torch.isfinite(weight).all():
        raise ValueError("the weight must be finite, got NaN or infinity")
    factor, dead = inverse_factor(hessian, damping=damping)
    columns = weight.detach().float().T.contiguous()  # columns as rows: each is read and written as a whole
    columns[dead] = 0
    width = len(columns)
    codes = torch.empty_like(columns)
    scales = columns.new_empty(width // group, weight.shape[0])
    zeros = torch.empty_like(scales)

    def begin(source: Tensor, start: int) -> tuple[Tensor, Tensor]:
        scale, zero = weight_grid(source[start : start + group].T, precision, group, ranges=ranges)
        scales[start // group], zeros[start // group] = scale[:, 0], zero[:, 0].float()
        return scales[start // group], zeros[start // group]

    for first, last in pairwise(_boundaries(width, BLOCK if official_stale_params else group)):
        stale = columns.clone() if official_stale_params else columns
        errors = columns.new_empty(last - first, weight.shape[0])
        for j in range(first, last):
            if j % group == 0:
                scale, zero = begin(stale, j)
            codes[j] = (columns[j] / scale).round_().add_(zero).clamp_(precision.lowest, precision.highest)
            error = (columns[j] - scale * (codes[j] - zero)) / factor[j, j]
            columns[j + 1 : last].addr_(factor[j, j + 1 : last], error, alpha=-1)
            errors[j - first] = error
        columns[last:].addmm_(factor[first:last, last:].T, errors, alpha=-1)
    return Codes(
        codes.T.to(torch.int16).contiguous(), scales.T.contiguous(), zeros.T.to(torch.int16).contiguous(), group
    )


def _boundaries(width: int, group: int) -> list[int]:
    """Column blocks of at most BLOCK in which every group that begins inside a block also ends in it or begins it.

    Updates reach the columns of later blocks when a block ends, so a group's scales are current only where its columns
    lie in the running block or behind one that has ended.
    """
    if group <= BLOCK:
        size = group * (BLOCK // group)
        return [*range(0, width, size), width]
    inside = {start + offset for start in range(0, width, group) for offset in range(0, group, BLOCK)}
    return [*sorted(inside), width]
