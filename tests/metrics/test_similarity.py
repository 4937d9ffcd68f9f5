"""Laws of the item-by-item similarities."""

from __future__ import annotations

import math

import pytest
import torch
from jaxtyping import TypeCheckError

from mezzotint.diffusion.rng import stream
from mezzotint.metrics.similarity import cosine, psnr, rmse, ssim


def _images(count: int = 3, *, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 3, 24, 24, generator=stream(seed, "test-images"))


def test_rmse_of_a_constant_offset_is_the_offset() -> None:
    x = _images().double()
    torch.testing.assert_close(rmse(x + 0.25, x), torch.full((3,), 0.25, dtype=torch.float64))


def test_psnr_is_twenty_decibels_for_a_tenth_of_the_peak() -> None:
    x = _images().double()
    torch.testing.assert_close(psnr(x + 0.1, x), torch.full((3,), 20.0, dtype=torch.float64))
    torch.testing.assert_close(psnr(255 * (x + 0.1), 255 * x, peak=255.0), psnr(x + 0.1, x))


def test_psnr_of_equal_pictures_is_infinite() -> None:
    assert psnr(_images(), _images()).tolist() == [math.inf] * 3


def test_every_item_is_judged_alone() -> None:
    x, y = _images(), _images(seed=1)
    for measure in (rmse, psnr, cosine, ssim):
        whole = measure(x, y)
        torch.testing.assert_close(whole, torch.cat([measure(x[k : k + 1], y[k : k + 1]) for k in range(3)]))


def test_ssim_is_one_for_equal_pictures_and_falls_with_noise() -> None:
    x = _images()
    noise = torch.randn(x.shape, generator=stream(0, "test-noise"))
    scores = [ssim((x + s * noise).clamp(0, 1), x).mean().item() for s in (0.0, 0.05, 0.2)]
    assert scores[0] == pytest.approx(1, abs=1e-5)
    assert scores[0] > scores[1] > scores[2]


def test_cosine_ignores_length_and_sees_sign() -> None:
    x = _images().double()
    torch.testing.assert_close(cosine(3 * x, x), torch.ones(3, dtype=torch.float64))
    torch.testing.assert_close(cosine(-x, x), -torch.ones(3, dtype=torch.float64))


def test_refuses_what_has_no_similarity() -> None:
    x = _images()
    with pytest.raises((ValueError, TypeCheckError)):
        rmse(x, x[:2])
    with pytest.raises(ValueError, match="all zeros"):
        cosine(torch.zeros_like(x), x)
    with pytest.raises(ValueError, match="peak"):
        psnr(x, x, peak=0.0)
    with pytest.raises(ValueError, match="odd"):
        ssim(x, x, window=4)
