"""LoRA students (LCM-LoRA, arXiv 2311.05556) and their export in diffusers' layout.

The new layer for gamma is folded into the adapter, too. A LoRA file holds no biases, but the constant 1 is a linear
function of the sinusoidal timestep features to about 1e-8 at every timestep: u . phi(t) = 1 by least squares. Hence
b1 + W1 v equals the rank-one update (W1 v) u^T of the first layer of the time MLP (ours).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mezzotint import files
from mezzotint.training import lora

from .networks import GammaTransformer, added_features, embedders, projection, replica, timestep_features

__all__ = ["TARGETS", "add_adapter", "begin", "constant", "core", "exported"]

TARGETS = (
    "to_q",
    "to_k",
    "to_v",
    "to_out.0",
    "proj_in",
    "proj_out",
    "ff.net.0.proj",
    "ff.net.2",
    "conv1",
    "conv2",
    "conv_shortcut",
    "downsamplers.0.conv",
    "upsamplers.0.conv",
    "time_emb_proj",
)
NAME = "default"
TOLERANCE = 1e-5


def core(network: nn.Module) -> Any:
    """The diffusers model itself."""
    return network.network if isinstance(network, GammaTransformer) else network


def add_adapter(
    network: nn.Module, *, rank: int, alpha: float | None, targets: Sequence[str], embedded: bool, seed: int
) -> None:
    """Freeze a student and give it an adapter; its layer for the embedding stays trainable.

    Args:
        network: from `make_student`.
        rank: inner dimension.
        alpha: numerator of the scale alpha / rank; None for rank.
        targets: endings of layer names.
        embedded: the network has a layer for the embedding.
        seed: of the adapter's first matrices.

    Raises:
        ValueError: no layer of the network has such a name, or it is one that the embedding is folded into.
    """
    network.requires_grad_(False)
    lora.add(core(network), rank=rank, alpha=alpha, targets=targets, name=NAME, seed=seed)
    if embedded:
        taken = set(folds_of(list(embedders(core(network))))) & set(lora.layers(core(network), NAME))
        if taken:
            raise ValueError(
                f"the layers {', '.join(sorted(taken))} carry the folded embedding, so they cannot be targets of the "
                "LoRA as well: leave them out, or use effective_time"
            )
        projection(network).requires_grad_(True)


def begin(network: nn.Module, start: str | Path, rank: int) -> None:
    """Put the weights of a LoRA file into a student's adapter, which stays the one that is trained.

    Args:
        network: a student with its adapter.
        start: the file, or its folder.
        rank: of the adapter.

    Raises:
        ValueError: a file for other layers or of another rank.
    """
    path = Path(start)
    stored = files.read_safetensors(path / lora.FILE if path.is_dir() else path)
    found = {name.partition(".")[2]: value for name, value in stored.items()}
    live = lora.tensors(core(network), NAME)
    different = sorted(name for name in found.keys() | live.keys() if _shape(found, name) != _shape(live, name))
    if different:
        raise ValueError(
            f"{start} does not fit a LoRA of rank {rank} on the layers that are trained: {len(different)} tensors "
            f"differ, such as {different[0]}"
        )
    with torch.no_grad():
        for name, value in found.items():
            live[name].copy_(value)


def _shape(tensors: Mapping[str, Tensor], name: str) -> Any:
    return tensors[name].shape if name in tensors else None


def constant(features: Float[Tensor, "steps features"]) -> Float[Tensor, " features"]:
    """U with u . phi(t) = 1 at all given timesteps.

    Raises:
        ValueError: the features cannot hold a constant to 1e-5 (fewer than about 16 of them).
    """
    table = features.double().cpu()
    ones = torch.ones(len(table), 1, dtype=torch.float64)
    found = torch.linalg.lstsq(table, ones, rcond=1e-8, driver="gelsd").solution
    worst = (table @ found - ones).abs().max().item()
    if worst > TOLERANCE:
        raise ValueError(
            f"{table.shape[1]} timestep features hold a constant only to {worst:.1e}, so the embedding cannot be "
            "folded into a LoRA; use effective_time, or the mode without LoRA"
        )
    return found[:, 0].to(features)


@torch.no_grad()
def exported(base: Any, student: nn.Module, embedding: Float[Tensor, "1 width"] | None, trained: int) -> Any:
    """A copy of the base network with the student's adapter, its layer for gamma folded in: what a LoRA file holds.

    Args:
        base: the teacher's network.
        student: the trained one.
        embedding: e(1); None for a student without embedding.
        trained: T, timesteps at which the folded constant is exact.
    """
    tuned, copy = core(student), replica(base)
    config = tuned.peft_config[NAME]
    adapted = list(lora.layers(tuned, NAME))
    folds = list(embedders(copy)) if embedding is not None else []
    lora.add(copy, rank=config.r, alpha=config.lora_alpha, targets=[*adapted, *folds_of(folds)], name=NAME)
    live = lora.parameters(copy, NAME)
    for name, value in lora.parameters(tuned, NAME).items():
        live[name].copy_(value)
    if embedding is not None:
        _fold(copy, added_features(student, embedding), scale=config.lora_alpha / config.r, trained=trained)
    return copy


def folds_of(names: Sequence[str]) -> list[str]:
    """The layers that carry the folded constant."""
    return [f"{name}.linear_1" for name in names]


def _fold(copy: Any, added: Tensor, *, scale: float, trained: int) -> None:
    steps = torch.arange(trained, device=added.device)
    for name, features in timestep_features(copy, steps):
        layer: Any = copy.get_submodule(f"{name}.linear_1")
        down, up = layer.lora_A[NAME].weight, layer.lora_B[NAME].weight
        down.zero_()
        up.zero_()
        down[0] = constant(features)
        up[:, 0] = (layer.get_base_layer().weight @ added) / scale
