"""The student's network: the teacher's, with one new layer for the embedding of gamma, and that layer folded away.

A U-Net of diffusers takes the embedding as `timestep_cond` through time_embedding.cond_proj, a linear layer without
bias. Transformers have no such slot; `GammaTransformer` adds one before their timestep embedders. At g = 1 the added
vector is a constant, v = cond_proj(e(1)), and b1 <- b1 + W1 v in the first layer of the time MLP replaces it exactly.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.embeddings import TimestepEmbedding
from jaxtyping import Float
from torch import Tensor, nn

from mezzotint.diffusion import rng

from .embedding import WIDTH

__all__ = ["Averaged", "GammaTransformer", "Init", "embedders", "folded", "make_student", "projection", "replica"]

Init = Literal["zero", "torch"]
KEY = "time_embedding.cond_proj.weight"


class Averaged(nn.Module):
    """A network run with other values of its trained parameters: theta^- beside theta, without a second copy."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.values: Mapping[str, Tensor] = {}

    def forward(self, *args: Any, **named: Any) -> Any:
        """The network's own output under `values`."""
        return torch.func.functional_call(self.network, dict(self.values), args, named)


class GammaTransformer(nn.Module):
    """A diffusion transformer that takes `timestep_cond`: its projection is added to the sinusoidal timestep features.

    Args:
        network: a diffusers transformer with layers called `timestep_embedder` (DiT, PixArt).
        width: features of the embedding.
    """

    def __init__(self, network: nn.Module, width: int = WIDTH) -> None:
        super().__init__()
        self.network = network
        first = next(iter(embedders(network).values()))
        weight = first.linear_1.weight
        self.cond_proj = nn.Linear(width, weight.shape[1], bias=False, device=weight.device, dtype=weight.dtype)
        self._added: Tensor | None = None
        for embedder in embedders(network).values():
            embedder.register_forward_pre_hook(self._add)

    @property
    def config(self) -> Any:
        """The transformer's configuration."""
        return self.network.config

    def forward(self, *args: Any, timestep_cond: Float[Tensor, "batch width"] | None = None, **named: Any) -> Any:
        """The transformer's own output."""
        self._added = None if timestep_cond is None else self.cond_proj(timestep_cond)
        try:
            return self.network(*args, **named)
        finally:
            self._added = None

    def _add(self, _: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
        return given if self._added is None else (given[0] + self._added.to(given[0].dtype), *given[1:])


def embedders(network: nn.Module) -> dict[str, TimestepEmbedding]:
    """The layers of a network that turn timestep features into its time embedding, by name.

    Raises:
        ValueError: it has none.
    """
    wanted = ("time_embedding", "timestep_embedder")
    found = {
        name: part
        for name, part in network.named_modules()
        if isinstance(part, TimestepEmbedding) and name.rpartition(".")[2] in wanted
    }
    if not found:
        raise ValueError(f"{type(network).__name__} has no timestep embedder that is known here; use effective_time")
    return found


def projection(network: nn.Module) -> nn.Linear:
    """The layer that takes the embedding.

    Raises:
        ValueError: the network has none.
    """
    holder: Any = network if isinstance(network, GammaTransformer) else getattr(network, "time_embedding", None)
    layer = getattr(holder, "cond_proj", None)
    if not isinstance(layer, nn.Linear):
        raise ValueError(f"this {type(network).__name__} takes no embedding of gamma or guidance")
    return layer


def make_student(teacher: Any, *, embedded: bool, init: Init = "zero", width: int = WIDTH, seed: int = 0) -> nn.Module:
    """A network that starts as the teacher.

    Args:
        teacher: a diffusers U-Net or transformer.
        embedded: give it the layer for the embedding.
        init: "zero" makes student and teacher equal at every gamma; "torch" is the default of torch's linear layer.
        width: features of the embedding.
        seed: of "torch".

    Raises:
        ValueError: the teacher's weights do not fit the new network, or it has no place for the embedding.
    """
    if not embedded:
        student: nn.Module = replica(teacher)
    elif isinstance(teacher, UNet2DConditionModel):
        if teacher.config.time_cond_proj_dim is not None:
            return replica(teacher).eval()
        student = replica(teacher, missing=(KEY,), time_cond_proj_dim=width)
    else:
        student = GammaTransformer(replica(teacher), width)
    if embedded:
        _initialise(projection(student).weight, init, seed)
    return student.eval()


def replica(network: Any, *, missing: tuple[str, ...] = (), **changes: Any) -> Any:
    """A second network of the same weights, with changes of its configuration.

    Args:
        network: a diffusers model.
        missing: names of the parameters that only the new one has.
        changes: to the configuration.

    Raises:
        ValueError: the weights of the one are not those of the other.
    """
    with torch.random.fork_rng(devices=[]):
        made = type(network).from_config(network.config, **changes)
    found = made.load_state_dict(network.state_dict(), strict=False)
    if sorted(found.missing_keys) != sorted(missing) or found.unexpected_keys:
        names = [*found.missing_keys, *found.unexpected_keys][:3]
        raise ValueError(f"the weights do not fit a {type(network).__name__} of this configuration: {names}")
    first = next(network.parameters())
    return nn.Module.to(made, first.device, first.dtype).eval()


@torch.no_grad()
def folded(network: Any, embedding: Float[Tensor, "1 width"] | None) -> Any:
    """A plain network of the teacher's architecture that does what this one does under one fixed embedding.

    Args:
        network: from `make_student` with an embedding.
        embedding: e(1), or of one guidance weight; None drops the layer, for a network trained without one.
    """
    if isinstance(network, GammaTransformer):
        plain = replica(network.network)
    else:
        with torch.random.fork_rng(devices=[]):
            plain = type(network).from_config(network.config, time_cond_proj_dim=None)
        state = {name: value for name, value in network.state_dict().items() if name != KEY}
        plain.load_state_dict(state)
        first = next(network.parameters())
        plain = nn.Module.to(plain, first.device, first.dtype).eval()
    if embedding is None:
        return plain
    added = added_features(network, embedding)
    for embedder in embedders(plain).values():
        embedder.linear_1.bias += embedder.linear_1.weight @ added
    return plain


@torch.no_grad()
def added_features(network: nn.Module, embedding: Float[Tensor, "1 width"]) -> Float[Tensor, " features"]:
    """V = cond_proj(e), what is added to the timestep features."""
    layer = projection(network)
    result: Tensor = layer(embedding.to(layer.weight))[0]
    return result


def timestep_features(network: nn.Module, timesteps: Tensor) -> Iterator[tuple[str, Float[Tensor, "steps features"]]]:
    """Name and input features of every timestep embedder at given timesteps."""
    for name in embedders(network):
        parent = network.get_submodule(name.rpartition(".")[0])
        project: Any = parent.time_proj
        yield name, project(timesteps)


def _initialise(weight: Tensor, init: Init, seed: int) -> None:
    if init == "zero":
        nn.init.zeros_(weight)
        return
    drawn = torch.empty(weight.shape)
    nn.init.kaiming_uniform_(drawn, a=math.sqrt(5), generator=rng.stream(seed, "splam/cond_proj"))
    with torch.no_grad():
        weight.copy_(drawn)
