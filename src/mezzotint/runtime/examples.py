"""Random inputs of the right shape for the networks of pipelines, made from their configuration, to measure with."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["example_inputs", "network_of"]

TEXT_TOKENS = 77


def network_of(pipe_or_network: Any) -> nn.Module:
    """Return the denoising network of a pipeline.

    Raises:
        ValueError: if there is none.
    """
    candidates = [getattr(pipe_or_network, name, None) for name in ("unet", "transformer")]
    found = next((part for part in (*candidates, pipe_or_network) if isinstance(part, nn.Module)), None)
    if found is None:
        raise ValueError(f"{type(pipe_or_network).__name__} has neither a `unet` nor a `transformer`")
    return found


def example_inputs(network: nn.Module, batch: int) -> dict[str, Any]:
    """Make the keyword arguments of one call of a diffusers U-Net, DiT or PixArt.

    Raises:
        ValueError: if the network's configuration does not say what it needs.
    """
    config = getattr(network, "config", None)
    if config is None or getattr(config, "sample_size", None) is None:
        raise ValueError(f"cannot make inputs for {type(network).__name__}; pass `example`, the arguments of one call")
    size = config.sample_size if isinstance(config.sample_size, (tuple, list)) else (config.sample_size,) * 2
    sample = _random(network, batch, config.in_channels, *size)
    timestep = torch.full((batch,), 500, device=sample.device)
    # A U-Net calls its first argument `sample`, a transformer `hidden_states`.
    name = "hidden_states" if hasattr(config, "patch_size") else "sample"
    return {name: sample, "timestep": timestep} | _conditions(network, config, batch)


def _conditions(network: nn.Module, config: Any, batch: int) -> dict[str, Any]:
    caption = getattr(config, "caption_channels", None)
    if caption is not None:
        mask = torch.ones(batch, TEXT_TOKENS, dtype=torch.long, device=next(network.parameters()).device)
        text = _random(network, batch, TEXT_TOKENS, caption)
        added: dict[str, Tensor | None] = {"resolution": None, "aspect_ratio": None}
        if getattr(network, "use_additional_conditions", False):
            added = {"resolution": _random(network, batch, 2), "aspect_ratio": _random(network, batch, 1)}
        return {"encoder_hidden_states": text, "encoder_attention_mask": mask, "added_cond_kwargs": added}
    if getattr(config, "num_embeds_ada_norm", None):
        return {"class_labels": torch.zeros(batch, dtype=torch.long, device=next(network.parameters()).device)}
    width = getattr(config, "cross_attention_dim", None)
    if width is None:
        return {}
    width = width if isinstance(width, int) else width[0]
    return {"encoder_hidden_states": _random(network, batch, TEXT_TOKENS, width)} | _added(network, config, batch)


def _added(network: nn.Module, config: Any, batch: int) -> dict[str, Any]:
    if getattr(config, "addition_embed_type", None) != "text_time":
        return {}
    pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
    return {
        "added_cond_kwargs": {
            "text_embeds": _random(network, batch, pooled),
            "time_ids": _random(network, batch, 6),
        }
    }


def _random(network: nn.Module, *shape: int) -> Tensor:
    # A fixed generator: measuring must not disturb anybody's random numbers.
    like = next(network.parameters())
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(like.device, like.dtype)
