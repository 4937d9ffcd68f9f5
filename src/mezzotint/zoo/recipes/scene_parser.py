"""Trains the scene parser: renders with exact labels, a small SegFormer, focal loss and cross-entropy.

The heat map's target and loss are CenterNet's (arXiv 1904.07850, equation 1): a Gaussian around each visible
object's projected centre, penalty-reduced focal loss. Words are learned in the cells nearest to a centre.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from mezzotint.metrics.parser import ATTRIBUTES, BACKGROUND, LABELS, split_logits
from mezzotint.training import Config, Step, fit
from mezzotint.worlds.scenes.geometry import HALF_HEIGHT
from mezzotint.worlds.scenes.render import render
from mezzotint.worlds.scenes.sampling import sample
from mezzotint.worlds.scenes.scene import Scene
from mezzotint.zoo.saving import save_module, seeded

SIZE, GRID, MOST = 64, 32, 3
VISIBLE_PIXELS = 12
_RARE = -4.6
_SPREAD = 1.0
_WORD_REACH = 1.6
_AT_ONCE = 512

CONFIG = Config(
    steps=2600,
    batch_size=32,
    optimiser="muon",
    learning_rate=1.5e-3,
    weight_decay=0.01,
    schedule="cosine",
    warmup=100,
    final=0.02,
    precision="bfloat16",
    ema=0.998,
    checkpoint_every=250,
    held_out_every=250,
    log_every=100,
)


def build() -> nn.Module:
    """The untrained network."""
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    config = SegformerConfig(
        num_encoder_blocks=3,
        depths=[1, 2, 3],
        sr_ratios=[8, 2, 1],
        hidden_sizes=[32, 96, 192],
        patch_sizes=[5, 3, 3],
        strides=[2, 2, 2],
        num_attention_heads=[1, 3, 6],
        mlp_ratios=[4, 4, 4],
        decoder_hidden_size=96,
        classifier_dropout_prob=0.0,
        drop_path_rate=0.0,
        hidden_dropout_prob=0.0,
        num_labels=len(LABELS),
        id2label=dict(enumerate(LABELS)),
        label2id={label: index for index, label in enumerate(LABELS)},
    )
    network = SegformerForSemanticSegmentation(config)
    torch.nn.init.zeros_(network.decode_head.classifier.weight)
    network.decode_head.classifier.bias.data[0] = _RARE
    return network


def train(
    out: Path, *, pictures: int = 20480, steps: int = CONFIG.steps, seed: int = 0, run: Path | None = None
) -> Path:
    """Train the parser from scratch and write it in transformers' layout.

    Args:
        out: the folder to write.
        pictures: number of training renders.
        steps: optimiser steps of 32 pictures.
        seed: seed of the weights and of every draw.
        run: folder for checkpoints, to be able to continue; none by default.
    """
    network = seeded(build, seed)
    config = dataclasses.replace(CONFIG, steps=steps, seed=seed, warmup=min(CONFIG.warmup, steps))
    result = fit(loss(network), network, data(pictures), config, folder=run, held_out=data(512, split="validation"))
    assert result.ema is not None
    with result.ema.applied():
        save_module(network, out)
    return out


def data(count: int, *, seed: int = 0, split: str = "train", first: int = 0) -> dict[str, Tensor]:
    """Pictures (uint8) and their labels, of scenes with every combination of shape and colour."""
    parts = [
        _labelled(sample(min(_AT_ONCE, count - k), seed=seed, split=split, first=first + k, combinations="all"))  # type: ignore[arg-type]
        for k in range(0, count, _AT_ONCE)
    ]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def loss(network: nn.Module) -> Any:
    """The loss of one batch, for `mezzotint.training.fit`."""

    def of_batch(batch: dict[str, Tensor], step: Step) -> tuple[Tensor, dict[str, Tensor]]:
        # Below 1024 tokens the plain product-softmax-product is faster to differentiate on a CPU than the fused kernel.
        with sdpa_kernel([SDPBackend.MATH]):
            logits = network(_augmented(batch["picture"], step)).logits.float()
        maps = split_logits(logits)
        distance = distances(batch["centre"], batch["visible"])
        heat = focal(maps["object"][:, 0], distance)
        words = word_loss(maps, batch["words"], distance)
        background = sum(F.cross_entropy(maps[name].mean((-1, -2)), batch[name]) for name in BACKGROUND)
        return heat + words + 0.2 * background, {"heat": heat.detach(), "words": words.detach()}

    return of_batch


def focal(
    logit: Float[Tensor, "batch rows columns"], distance: Float[Tensor, "batch objects rows columns"]
) -> Float[Tensor, ""]:
    """Penalty-reduced focal loss against Gaussians around the centres (CenterNet, equation 1: alpha 2, beta 4)."""
    nearest = distance.amin(1)
    target = torch.exp(-0.5 * (nearest / _SPREAD) ** 2)
    positive = (distance == distance.flatten(2).amin(-1)[..., None, None]).logical_and(torch.isfinite(distance)).any(1)
    share = logit.sigmoid()
    hit = -F.logsigmoid(logit) * (1 - share) ** 2
    miss = -F.logsigmoid(-logit) * share**2 * (1 - target) ** 4
    return torch.where(positive, hit, miss).sum() / positive.sum().clamp_min(1)


def word_loss(
    maps: dict[str, Tensor],
    words: Int[Tensor, "batch objects attributes"],
    distance: Float[Tensor, "batch objects rows columns"],
    *,
    reach: float = _WORD_REACH,
) -> Float[Tensor, ""]:
    """Mean cross-entropy of the attribute words in the cells that are no farther than `reach` from a centre."""
    nearest, owner = distance.min(1)
    b, row, column = torch.nonzero(nearest <= reach, as_tuple=True)
    label = words[b, owner[b, row, column]]
    losses = [F.cross_entropy(maps[name][b, :, row, column], label[:, k]) for k, name in enumerate(ATTRIBUTES)]
    return torch.stack(losses).sum()


def distances(
    centre: Float[Tensor, "batch objects 2"], visible: Tensor, *, grid: int = GRID
) -> Float[Tensor, "batch objects rows columns"]:
    """Distance in cells from every cell's middle to every visible centre (inf for the others).

    Args:
        centre: shares of the picture's sides.
        visible: which objects show.
        grid: cells along a side.
    """
    middle = torch.arange(grid, device=centre.device) + 0.5
    dx = centre[..., 0, None, None] * grid - middle
    dy = centre[..., 1, None, None] * grid - middle[:, None]
    return torch.where(visible[..., None, None], (dx * dx + dy * dy).sqrt(), float("inf"))


def _augmented(picture: Tensor, step: Step) -> Tensor:
    """Pictures in -1..1 with a little noise, so that the soft pictures of a decoder are read as well."""
    x = picture.float() / 127.5 - 1
    return x + 0.03 * step.normal("noise", *x.shape[1:])


def _labelled(scenes: list[Scene]) -> dict[str, Tensor]:
    frame = render(scenes, SIZE)
    numbers = torch.arange(1, MOST + 1)[:, None, None]
    pixels = (frame.instance == numbers).sum((-1, -2))
    background = {name: [BACKGROUND[name].index(getattr(scene, name)) for scene in scenes] for name in BACKGROUND}
    return {
        "picture": (frame.rgb * 255).round().to(torch.uint8),
        "centre": _centres(scenes, frame.world_to_camera, frame.intrinsics),
        "visible": pixels >= VISIBLE_PIXELS,
        "words": torch.tensor([_words(scene) for scene in scenes]),
        **{name: torch.tensor(values) for name, values in background.items()},
    }


def _words(scene: Scene) -> list[list[int]]:
    rows = [[ATTRIBUTES[name].index(getattr(item, name)) for name in ATTRIBUTES] for item in scene.objects]
    return rows + [[0] * len(ATTRIBUTES)] * (MOST - len(rows))


def _centres(scenes: list[Scene], pose: Tensor, intrinsics: Tensor) -> Float[Tensor, "batch objects 2"]:
    """Projected centres of the objects as shares of the picture's sides; zero for absent ones."""
    rows = [[(o.x, o.radius * HALF_HEIGHT[o.shape], o.z, 1.0) for o in scene.objects] for scene in scenes]
    points = torch.tensor([row + [(0.0, 0.0, 0.0, 1.0)] * (MOST - len(row)) for row in rows])
    local = torch.einsum("bij,bkj->bki", pose, points)[..., :3]
    pixel = torch.einsum("bij,bkj->bki", intrinsics, local / local[..., 2:])[..., :2]
    return pixel / SIZE
