"""How alike two tensors are, item by item: one number for each picture or latent of a batch.

PSNR and SSIM take pictures in 0..1. SSIM is kornia's (Wang et al., "Image quality assessment: from error visibility to
structural similarity", IEEE TIP 2004), averaged over the picture.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["cosine", "psnr", "rmse", "ssim"]


def _alike(first: Tensor, second: Tensor) -> None:
    if first.shape != second.shape:
        raise ValueError(f"both batches must have one shape, got {tuple(first.shape)} and {tuple(second.shape)}")


def rmse(values: Float[Tensor, "batch *item"], reference: Float[Tensor, "batch *item"]) -> Float[Tensor, " batch"]:
    """Root mean square difference of each item, in the unit of the values.

    Args:
        values: a batch.
        reference: what each item should have been.

    Raises:
        ValueError: the shapes differ.
    """
    _alike(values, reference)
    return (values.double() - reference.double()).flatten(1).square().mean(1).sqrt()


def psnr(
    images: Float[Tensor, "batch *item"], reference: Float[Tensor, "batch *item"], *, peak: float = 1.0
) -> Float[Tensor, " batch"]:
    """Peak signal-to-noise ratio of each picture in dB; infinite for equal pictures.

    Args:
        images: a batch.
        reference: what each picture should have been.
        peak: largest possible value.

    Raises:
        ValueError: the shapes differ, or ``peak`` is not positive.
    """
    if peak <= 0:
        raise ValueError(f"peak must be above 0, got {peak}")
    return 20 * (peak / rmse(images, reference)).log10()


def ssim(
    images: Float[Tensor, "batch channel height width"],
    reference: Float[Tensor, "batch channel height width"],
    *,
    window: int = 11,
) -> Float[Tensor, " batch"]:
    """Structural similarity of each picture, at most 1, which only equal pictures reach.

    Args:
        images: a batch in 0..1.
        reference: what each picture should have been.
        window: odd side of the Gaussian window in pixels.

    Raises:
        ValueError: the shapes differ, or the window is even or below 3.
    """
    from kornia.metrics import ssim as ssim_map

    _alike(images, reference)
    if window < 3 or window % 2 == 0:
        raise ValueError(f"window must be odd and at least 3, got {window}")
    scores: Tensor = ssim_map(images, reference, window_size=window)
    return scores.flatten(1).mean(1)


def cosine(values: Float[Tensor, "batch *item"], reference: Float[Tensor, "batch *item"]) -> Float[Tensor, " batch"]:
    """Cosine of the angle between each item and its reference, -1..1.

    Args:
        values: a batch.
        reference: the other side of each pair.

    Raises:
        ValueError: the shapes differ, or an item is all zeros: it has no direction.
    """
    _alike(values, reference)
    a, b = values.double().flatten(1), reference.double().flatten(1)
    norms = a.norm(dim=1) * b.norm(dim=1)
    if not (norms > 0).all():
        raise ValueError("an item of all zeros has no direction, so no cosine: leave it out")
    return torch.linalg.vecdot(a, b) / norms
