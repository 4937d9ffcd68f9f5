"""Part A of the experiment: a random transformer, with and without outlier channels. Seconds, no training, no sampling.

Injected outliers leave the function as it is and give the channels the spread that large trained transformers have.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mezzotint.diffusion import normal, uniform
from mezzotint.diffusion.rng import stream

from .apply import clone, quantise_network
from .calibration import Calibration
from .folds import inject_outliers
from .recipe import Recipe, named_recipes

__all__ = ["ERROR", "Size", "measure_numerics", "random_inputs", "random_transformer", "relative_errors"]

ERROR = "relative error of a random transformer's output"
FINER = (64, 32)


@dataclass(frozen=True)
class Size:
    """Inputs that are judged and inputs that static ranges come from."""

    inputs: int
    calibration: int


def random_transformer(seed: int, *, heads: int = 6, blocks: int = 4) -> Any:
    """A DiT with heads of 64 channels and random weights, all from one stream."""
    from diffusers import DiTTransformer2DModel

    network = DiTTransformer2DModel(
        num_attention_heads=heads,
        attention_head_dim=64,
        in_channels=4,
        out_channels=8,
        num_layers=blocks,
        sample_size=16,
        patch_size=2,
        num_embeds_ada_norm=10,
    )
    generator = stream(seed, "random transformer")
    with torch.no_grad():
        for parameter in network.parameters():
            width = parameter.shape[-1] if parameter.ndim > 1 else 10_000
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * width**-0.5)
    return network.eval().requires_grad_(False)


def random_inputs(count: int, seed: int, purpose: str) -> Calibration:
    """Noise at random timesteps with random classes."""
    levels = uniform((2,), seed=seed, purpose=f"{purpose} levels", count=count)
    return Calibration.of(
        hidden_states=normal((4, 16, 16), seed=seed, purpose=purpose, count=count),
        timestep=(1000 * levels[:, 0]).long(),
        class_labels=(10 * levels[:, 1]).long(),
    )


@torch.no_grad()
def relative_errors(network: nn.Module, exact: nn.Module, inputs: Calibration) -> Float[Tensor, " batch"]:
    """||out - exact|| / ||exact|| of every input."""
    made, wanted = (model(**inputs.arguments())[0].flatten(1) for model in (network, exact))
    return (made - wanted).norm(dim=1) / wanted.norm(dim=1)


def arms(weights: int) -> dict[str, Recipe]:
    """Named recipes that part A compares, by arm."""
    named = named_recipes(weights, 8)
    chosen = {name: named[name] for name in ("RTN-T", "RTN-D", "RTN-g static", "RTN-g", "SmoothQuant")}
    return chosen | {f"RTN-g{size}": replace(named["RTN-g"], group=size) for size in FINER}


def measure_numerics(trial: Any, seeds: Sequence[int], size: Size) -> None:
    """Add the rows of part A to an evidence.Experiment whose arms exist."""
    exact = [random_transformer(seed) for seed in seeds]
    for injected in (False, True):
        for weights in (8, 4):
            pairs = zip(exact, seeds, strict=True)
            found = [_errors(one, seed, size, weights, injected=injected) for one, seed in pairs]
            values = {arm: [one[arm] for one in found] for arm in found[0]}
            kind = "injected outliers" if injected else "natural"
            trial.measure(
                ERROR,
                values,
                direction="lower",
                group=f"W{weights}A8, {kind}",
                counted="inputs",
                note="width 384, 4 blocks, random weights; the reference is the same network in full precision",
            )


def _errors(exact: Any, seed: int, size: Size, weights: int, *, injected: bool) -> dict[str, list[float]]:
    network = clone(exact)
    if injected:
        inject_outliers(network, seed=seed)
    inputs = random_inputs(size.inputs, seed, "judged inputs")
    calibration = random_inputs(size.calibration, seed, "calibration inputs")
    errors = {}
    for arm, recipe in arms(weights).items():
        seen = calibration if recipe.needs_calibration else None
        made, _ = quantise_network(network, recipe, calibration=seen, executor="simulate")
        errors[arm] = relative_errors(made, exact, inputs).tolist()
    return errors
