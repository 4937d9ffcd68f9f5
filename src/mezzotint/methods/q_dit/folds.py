"""Moving scale between a layer and the one before it, without changing the network's function.

A channel scale c is taken out of a linear layer's input (x / c) and put into its columns (W c). In a DiT block the
division folds into the modulation, x = LN(h) (1 + scale) + shift: the rows of shift and scale are divided by c and the
bias b of scale becomes (b + 1) / c - 1, which is exact. For the output projection it folds into the rows of the values.
SmoothQuant (arXiv 2211.10438, equation 4) chooses c to share outliers between activations and weights; taking 1 / c for
a few channels injects outliers instead: the test bench.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mezzotint.diffusion.rng import stream

__all__ = [
    "fold_modulation",
    "fold_values",
    "inject_outliers",
    "modulated_blocks",
    "smooth",
    "smoothing_scale",
    "timestep_weighted_maximum",
]

ATTENTION, FEED_FORWARD = 0, 3
"""First chunk (shift, scale, gate) of the modulation that belongs to each half of a block."""


def smoothing_scale(
    activation_maximum: Float[Tensor, " width"], weight_maximum: Float[Tensor, " width"], *, alpha: float = 0.5
) -> Float[Tensor, " width"]:
    """c_j = max|X_j|^alpha / max|W_j|^(1 - alpha); 1 where either maximum is zero.

    Args:
        activation_maximum: of every input channel over calibration data.
        weight_maximum: of every column, over all layers that read the input.
        alpha: 0 leaves outliers in the activations, 1 moves them all into the weights; 0.5 makes the maxima equal.

    Raises:
        ValueError: alpha outside 0..1.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must lie in 0..1, got {alpha}")
    scale = activation_maximum.pow(alpha) / weight_maximum.pow(1 - alpha)
    return torch.where((activation_maximum > 0) & (weight_maximum > 0), scale, torch.ones_like(scale))


def timestep_weighted_maximum(
    maxima: Float[Tensor, "steps width"], weight_maximum: Float[Tensor, " width"]
) -> Float[Tensor, " width"]:
    """Channel maxima averaged over timesteps with weights ~ exp(-rho_t) (PTQ4DiT, arXiv 2405.16005, section 3.2).

    rho_t is Spearman's correlation of activation and weight maxima at t: steps whose outliers complement those of the
    weights count more.
    """
    ranks = maxima.argsort(-1).argsort(-1).double()
    other = weight_maximum.argsort().argsort().double()
    centred, reference = ranks - ranks.mean(-1, keepdim=True), other - other.mean()
    rho = (centred @ reference) / (centred.norm(dim=-1) * reference.norm())
    return (torch.softmax(-rho, 0).to(maxima) @ maxima).to(maxima)


@torch.no_grad()
def fold_modulation(
    modulation: nn.Linear, followers: Sequence[nn.Linear], scale: Float[Tensor, " width"], *, chunk: int
) -> None:
    """Divide a modulated input by `scale` inside the adaLN layer and multiply the columns that read it; in place.

    Args:
        modulation: adaLN linear of six chunks: shift, scale, gate of attention, then of the feed-forward part.
        followers: layers that read the modulated input.
        scale: c, positive.
        chunk: index of the shift; the scale is the next one.
    """
    width = len(scale)
    shift, factor = (slice((chunk + k) * width, (chunk + k + 1) * width) for k in (0, 1))
    for rows in (shift, factor):
        modulation.weight[rows] /= scale[:, None].to(modulation.weight)
    bias = modulation.bias
    bias[shift] /= scale.to(bias)
    bias[factor] = (bias[factor] + 1) / scale.to(bias) - 1
    _into_columns(followers, scale)


@torch.no_grad()
def fold_values(values: nn.Linear, output: nn.Linear, scale: Float[Tensor, " width"]) -> None:
    """Divide the input of attention's output projection by `scale` inside the values; in place."""
    values.weight /= scale[:, None].to(values.weight)
    if values.bias is not None:
        values.bias.div_(scale.to(values.bias))
    _into_columns([output], scale)


def modulated_blocks(network: nn.Module) -> dict[str, Any]:
    """Blocks of a DiT, each with an adaLN layer of six chunks, by name; empty for other networks."""
    blocks: dict[str, Any] = {}
    for name, module in network.named_modules():
        linear = getattr(getattr(module, "norm1", None), "linear", None)
        attention = getattr(module, "attn1", None)
        if isinstance(linear, nn.Linear) and attention is not None and linear.out_features == 6 * _width(attention):
            blocks[name] = module
    return blocks


def smooth(
    network: nn.Module, maxima: Mapping[str, Float[Tensor, " _"]], *, alpha: float = 0.5
) -> dict[str, Float[Tensor, " _"]]:
    """Apply SmoothQuant to a network, in place.

    Folds what a DiT's modulation and values can take. What is left divides its input at run time, and so do all layers
    of other networks: its columns are multiplied here, and the caller must divide.

    Args:
        network: its own copy of the weights is changed.
        maxima: largest |x| of every input channel, by layer name; layers of one input have equal ones.
        alpha: see `smoothing_scale`.

    Returns:
        Layer name -> c, for the layers whose input must be divided by c at run time.
    """
    modules = cast("dict[str, Any]", dict(network.named_modules()))
    left = dict(maxima)
    for name, block in modulated_blocks(network).items():
        attention, feed = [f"{name}.attn1.to_{part}" for part in "qkv"], f"{name}.ff.net.0.proj"
        values, output = f"{name}.attn1.to_v", f"{name}.attn1.to_out.0"
        # The values' rows change first: their columns are compared with the activations afterwards.
        if output in left:
            fold_values(modules[values], modules[output], _between(left, [output], modules, alpha))
        for layers, chunk in ((attention, ATTENTION), ([feed], FEED_FORWARD)):
            if all(layer in left for layer in layers):
                scale = _between(left, layers, modules, alpha)
                fold_modulation(block.norm1.linear, [modules[layer] for layer in layers], scale, chunk=chunk)
        for layer in (*attention, feed, output):
            left.pop(layer, None)
    divided = {}
    for name in left:
        divided[name] = _between(left, [name], modules, alpha)
        with torch.no_grad():
            _into_columns([modules[name]], divided[name])
    return divided


def inject_outliers(
    network: nn.Module, *, channels: int = 8, factors: tuple[float, float] = (5.0, 50.0), seed: int = 0
) -> None:
    """Give a DiT outlier channels without changing its function, in place.

    In every block `channels` inputs of attention, of the feed-forward part and of the output projection are multiplied
    by log-uniform factors, and the columns that read them are divided.

    Args:
        network: a DiT; its own copy of the weights is changed.
        channels: how many of every input.
        factors: smallest and largest factor.
        seed: of channels and factors.

    Raises:
        ValueError: a network without modulated blocks, or more channels than there are.
    """
    blocks = modulated_blocks(network)
    if not blocks:
        raise ValueError(f"outliers are injected through adaLN blocks, and {type(network).__name__} has none")
    for index, block in enumerate(blocks.values()):
        attention = block.attn1
        readers = [attention.to_q, attention.to_k, attention.to_v]
        width = _width(attention)
        if not 0 <= channels <= width:
            raise ValueError(f"channels must lie in 0..{width}, got {channels}")
        scales = [_outliers(width, channels, factors, seed=seed, index=3 * index + k) for k in range(3)]
        fold_modulation(block.norm1.linear, readers, 1 / scales[0], chunk=ATTENTION)
        fold_modulation(block.norm1.linear, [block.ff.net[0].proj], 1 / scales[1], chunk=FEED_FORWARD)
        fold_values(attention.to_v, attention.to_out[0], 1 / scales[2])


def _outliers(width: int, channels: int, factors: tuple[float, float], *, seed: int, index: int) -> Tensor:
    generator = stream(seed, "outlier channels", index=index)
    low, high = torch.tensor(factors).log()
    scale = torch.ones(width)
    chosen = torch.randperm(width, generator=generator)[:channels]
    scale[chosen] = (low + (high - low) * torch.rand(channels, generator=generator)).exp()
    return scale


def _between(maxima: Mapping[str, Tensor], layers: Sequence[str], modules: Mapping[str, Any], alpha: float) -> Tensor:
    weights = torch.stack([modules[layer].weight.detach().abs().amax(0) for layer in layers]).amax(0)
    return smoothing_scale(maxima[layers[0]].to(weights).float(), weights.float(), alpha=alpha)


def _into_columns(layers: Sequence[nn.Linear], scale: Tensor) -> None:
    for layer in layers:
        layer.weight *= scale.to(layer.weight)


def _width(attention: Any) -> int:
    linear = getattr(attention, "to_q", None)
    return int(linear.in_features) if isinstance(linear, nn.Linear) else -1
