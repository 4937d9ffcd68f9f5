"""Which layers of a network are quantised (arXiv 2406.17343, section 4.1), and which of them share an input.

Inside the blocks of a transformer all linear layers: query, key, value, output and the two of the feed-forward part,
with weights and activations; the modulation (adaLN) with weights alone. Embedders, the final layer, normalisation and
the products of attention stay as they are. The blocks of a U-Net's attention levels are treated alike.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from .costs import Gene
from .groups import SPACE, legal_groups

__all__ = ["Target", "check_adapters", "check_network", "check_weights", "find_targets", "genes", "network_of"]

_BLOCK = re.compile(r"^(.*?\b(?:\w*transformer_blocks)\.\d+)\.(.+)$")
_QUERY = re.compile(r"\bto_([qkv])$")
_ADDED = re.compile(r"\badd_[qkv]_proj$")
LORA = "lora_"
_FUSED = {
    "to_qkv": ("to_q", "to_k", "to_v"),
    "to_kv": ("to_k", "to_v"),
    "to_added_qkv": ("add_q_proj", "add_k_proj", "add_v_proj"),
}


@dataclass(frozen=True)
class Target:
    """A linear layer to quantise.

    Attributes:
        name: of the module in its network.
        block: name of the block it belongs to.
        modulation: it makes scale and shift from the condition (adaLN): its input is one vector a sample, and only its
            weight is quantised.
        shared: name of what it shares an input with; layers of equal name have one group size.
        width: input channels K.
        rows: output channels N.
    """

    name: str
    block: str
    modulation: bool
    shared: str
    width: int
    rows: int


def network_of(pipe: Any) -> nn.Module:
    """The network that a pipeline denoises with, or the network itself.

    Raises:
        ValueError: neither a pipeline with a transformer or U-Net nor a module.
    """
    for name in ("transformer", "unet"):
        if isinstance(found := getattr(pipe, name, None), nn.Module):
            return found
    if isinstance(pipe, nn.Module):
        return pipe
    raise ValueError(f"need a pipeline with a transformer or a U-Net, or such a network, got {type(pipe).__name__}")


def find_targets(network: nn.Module, *, names: Sequence[str] = (), modulation: bool = True) -> tuple[Target, ...]:
    """The layers to quantise, in the order of the network's modules.

    Args:
        network: any diffusers transformer or U-Net.
        names: these layers alone; those inside transformer blocks when empty.
        modulation: whether adaLN layers are among them.

    Raises:
        ValueError: a name that is no linear layer, nothing to quantise, LoRA layers, or a network that is quantised
            already.
    """
    check_network(network)
    modules = dict(network.named_modules())
    if unknown := [name for name in names if name not in modules]:
        raise ValueError(f"there is no layer {unknown[0]!r}; layers: {', '.join(_linear(modules)[:6])} ...")
    for name in names:
        if not isinstance(modules[name], nn.Linear):
            kind = type(modules[name]).__name__
            raise ValueError(f"only nn.Linear can be quantised, but {name!r} is a {kind}: leave it out")
    idle = _idle(modules)
    chosen = names or [n for n in _linear(modules) if _BLOCK.match(n) and not _embedder(n) and n not in idle]
    found = [_target(name, modules[name]) for name in chosen]
    kept = tuple(target for target in found if modulation or not target.modulation)
    if not kept:
        raise ValueError(
            f"{type(network).__name__} has no linear layer inside transformer blocks: name layers yourself"
        )
    return kept


def check_network(network: nn.Module) -> None:
    """Refuse a network that cannot be quantised as it is.

    Raises:
        ValueError: it holds LoRA layers or is quantised already.
    """
    check_adapters(network, "fuse it into the weights or unload it first")
    for name, module in network.named_modules():
        if type(module).__name__ == "QuantLinear":
            raise ValueError(f"the network is quantised already (layer {name!r}): start from the original")


def check_adapters(network: nn.Module, advice: str) -> None:
    """Refuse a network that adapters are on.

    Args:
        network: any.
        advice: what to do about it.

    Raises:
        ValueError: it holds LoRA layers.
    """
    for name, _ in network.named_modules():
        if LORA in name:
            raise ValueError(f"layer {name!r} belongs to a LoRA: {advice}")


def check_weights(network: nn.Module, targets: Iterable[Target]) -> None:
    """Refuse weights that no integer stands for.

    Raises:
        ValueError: a weight is not finite; names the layer.
    """
    for target in targets:
        weight = network.get_submodule(target.name).weight
        if not torch.isfinite(cast("Tensor", weight)).all():
            raise ValueError(f"the weight of layer {target.name!r} must be finite, got NaN or infinity")


def genes(
    targets: Iterable[Target], *, space: Sequence[int] = SPACE, tokens: Mapping[str, int] | None = None
) -> tuple[Gene, ...]:
    """One gene for every input that quantised layers share; modulation is not searched.

    Args:
        targets: layers.
        space: group sizes to choose from; each gene keeps those that divide its width.
        tokens: rows of a layer's input in one model call, by layer name; 1 where not given.

    Raises:
        ValueError: no size of the space divides a width.
    """
    members: dict[str, list[Target]] = {}
    for target in targets:
        if not target.modulation:
            members.setdefault(target.shared, []).append(target)
    return tuple(
        Gene(
            name,
            tuple(target.name for target in layers),
            layers[0].width,
            sum(target.rows for target in layers),
            (tokens or {}).get(layers[0].name, 1),
            legal_groups(layers[0].width, space),
        )
        for name, layers in members.items()
    )


def _linear(modules: Mapping[str, nn.Module]) -> list[str]:
    return [name for name, module in modules.items() if isinstance(module, nn.Linear)]


def _idle(modules: Mapping[str, nn.Module]) -> set[str]:
    """Layers that a fused one stands for (`fuse_qkv_projections`): they are there, but nothing calls them."""
    return {
        f"{parent}.{name}"
        for parent, module in modules.items()
        for fused, names in _FUSED.items()
        if getattr(module, "fused_projections", False) and hasattr(module, fused)
        for name in names
    }


def _embedder(name: str) -> bool:
    return any(part in {"emb", "time_embedder", "class_embedder", "embedder"} for part in name.split("."))


def _target(name: str, module: nn.Module) -> Target:
    assert isinstance(module, nn.Linear)
    matched = _BLOCK.match(name)
    block, role = (matched[1], matched[2]) if matched else (name.rpartition(".")[0], name.rpartition(".")[2])
    return Target(
        name=name,
        block=block,
        modulation=role.startswith("norm") and role.endswith("linear"),
        shared=_shared(name),
        width=module.in_features,
        rows=module.out_features,
    )


def _shared(name: str) -> str:
    """What the layers that read the same tensor have in common: self-attention's q, k, v; cross-attention's k, v."""
    if _ADDED.search(name):
        return _ADDED.sub("add_qkv_proj", name)
    cross = ".attn2." in f".{name}"
    if cross and name.endswith("to_q"):
        return name
    return _QUERY.sub("to_kv" if cross else "to_qkv", name)
