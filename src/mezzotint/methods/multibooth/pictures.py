"""The user's pictures of one concept: read from a folder, cut to the square in the middle, resized, and encoded."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mezzotint import files
from mezzotint.diffusion import pixels, posterior

from .encoder import image_features

__all__ = ["Subject", "read_pictures"]

_KINDS = (".png", ".jpg", ".jpeg", ".webp")
_MANY = 10


@dataclass(frozen=True, eq=False)
class Subject:
    """One concept as a training loop sees it.

    Attributes:
        word: the placeholder, or a rare word of the vocabulary (DreamBooth).
        class_word: the class noun.
        mean: of the pictures' latents, in the denoiser's units.
        std: of the latents; the autoencoder's noise is drawn anew at every step.
        features: what an encoder sees of each picture.
    """

    word: str
    class_word: str
    mean: Float[Tensor, "count channels h w"]
    std: Float[Tensor, "count channels h w"]
    features: Float[Tensor, "count patches width"]

    @classmethod
    def of(
        cls,
        pipe: Any,
        pictures: Float[Tensor, "count 3 height width"],
        *,
        word: str,
        class_word: str,
        vision: Any = None,
    ) -> Subject:
        """Encode pictures in 0..1, once.

        Raises:
            ValueError: there are none.
        """
        if not len(pictures):
            raise ValueError("a concept needs at least one picture")
        given = pictures.to(pipe.device)
        mean, std = posterior(pipe, given)
        return cls(word, class_word, mean, std, image_features(given, mean, vision))

    @property
    def phrase(self) -> str:
        """How prompts name it."""
        return f"{self.word} {self.class_word}"


def read_pictures(folder: str | Path, pipe: Any) -> Float[Tensor, "count 3 side side"]:
    """The pictures of a folder in the order of their names, at the size that the pipeline is made for, in 0..1.

    Args:
        folder: with PNG, JPEG or WebP files; of each the square in the middle is taken.
        pipe: a latent diffusion pipeline.

    Raises:
        ValueError: there is no such folder, or no picture in it.
        FileError: a picture cannot be read.
    """
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise ValueError(f"images must be a folder with pictures of one concept, got {str(folder)!r}")
    paths = sorted(path for path in root.iterdir() if path.suffix.lower() in _KINDS)
    if not paths:
        raise ValueError(
            f"there are no pictures in {root}: put three to five of the concept there ({', '.join(_KINDS)})"
        )
    if len(paths) > _MANY:
        warnings.warn(
            f"{len(paths)} pictures of one concept: three to five are what the method is made for", stacklevel=2
        )
    return torch.stack([_square(files.read_image(path), pixels(pipe)) for path in paths])


def _square(picture: Any, side: int) -> Float[Tensor, "3 side side"]:
    import numpy as np
    from PIL import Image

    width, height = picture.size
    cut = min(width, height)
    left, top = (width - cut) // 2, (height - cut) // 2
    box = (left, top, left + cut, top + cut)
    return (
        torch.from_numpy(np.array(picture.resize((side, side), Image.Resampling.BICUBIC, box=box))).movedim(-1, 0) / 255
    )
