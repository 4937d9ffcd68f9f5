"""TFMQ-DM baseline (arXiv 2311.16503): static activation ranges of their own for every timestep.

In a DiT the temporal features are the block's condition, so what is left of the method is one set of ranges for each
layer and step: a table that grows with the number of steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float, Int16
from torch import Tensor, nn

from mezzotint.diffusion.condition import Prompt

from .apply import quantise_network
from .blocks import observed
from .calibration import Calibration
from .layers import find_targets, network_of
from .quantised import LayerReport
from .quantiser import Grid, Precision, fake_quantise
from .ranges import RunningRange
from .recipe import Recipe, layer_specs
from .sampling import ddim_timesteps, trajectory

__all__ = ["Clock", "TimestepLinear", "quantise_by_timestep", "timestep_ranges"]


class Clock:
    """Tells the layers of one network which row of their tables is in force.

    Args:
        timesteps: of the rows.
    """

    def __init__(self, timesteps: Sequence[int]) -> None:
        self.timesteps = tuple(timesteps)
        self.row = 0

    def __call__(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Read the timestep of a call of the network.

        Raises:
            ValueError: the call mixes timesteps, which one table row cannot serve.
        """
        given = kwargs["timestep"] if "timestep" in kwargs else args[1]
        times = torch.as_tensor(given).flatten()
        if not bool((times == times[0]).all()):
            raise ValueError("ranges by timestep need one timestep a call: do not mix timesteps in a batch")
        now = float(times[0])
        self.row = min(range(len(self.timesteps)), key=lambda k: abs(self.timesteps[k] - now))


class TimestepLinear(nn.Module):
    """A weight-only quantised layer behind an activation quantiser with one static range a timestep and group.

    Args:
        layer: weight-only.
        precision: of the input.
        group: of the input.
        tables: scale and zero point, one row a timestep.
        clock: says which row.
    """

    scale: Float[Tensor, "steps groups"]
    zero: Int16[Tensor, "steps groups"]

    def __init__(self, layer: nn.Module, precision: Precision, group: int, *, tables: Grid, clock: Clock) -> None:
        super().__init__()
        self.layer, self.precision, self.group, self.clock = layer, precision, group, clock
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.register_buffer("scale", tables[0])
        self.register_buffer("zero", tables[1])

    def forward(self, x: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch rows"]:
        """Quantise the input with the range of the present timestep."""
        grid = (self.scale[self.clock.row], self.zero[self.clock.row])
        return self.layer(fake_quantise(x, self.precision, self.group, grid=grid))

    @property
    def table_bytes(self) -> int:
        """What the table costs."""
        return self.scale.numel() * self.scale.element_size() + self.zero.numel() * self.zero.element_size()


def timestep_ranges(
    pipe: Any,
    groups: Mapping[str, int],
    prompts: Prompt,
    noise: Float[Tensor, "batch channels height width"],
    *,
    steps: int,
    guidance: float = 1.5,
) -> dict[str, list[RunningRange]]:
    """Ranges of layer inputs at every step of full-precision sampling.

    Args:
        pipe: full precision.
        groups: layer name -> group size.
        prompts: one, or one for each item.
        noise: start.
        steps: DDIM steps.
        guidance: scale.

    Returns:
        Layer name -> one range a step.
    """
    ranges = {name: [RunningRange(group) for _ in range(steps)] for name, group in groups.items()}
    step = 0
    hooks = {name: lambda x, each=each: each[step].update(x) for name, each in ranges.items()}
    with observed(dict(network_of(pipe).named_modules()), hooks):  # type: ignore[arg-type]
        for _ in trajectory(pipe, prompts, noise, steps=steps, guidance=guidance):
            step += 1
    return ranges


def quantise_by_timestep(
    pipe: Any,
    recipe: Recipe,
    prompts: Prompt,
    noise: Float[Tensor, "batch channels height width"],
    *,
    steps: int,
    guidance: float = 1.5,
    calibration: Calibration | None = None,
) -> tuple[Any, tuple[LayerReport, ...]]:
    """A quantised copy of a pipeline's network with activation ranges by timestep.

    Args:
        pipe: full precision.
        recipe: its activation ranges are replaced.
        prompts: of the runs that give the ranges.
        noise: their start.
        steps: DDIM steps, which the quantised network must be run with.
        guidance: scale.
        calibration: for GPTQ.

    Returns:
        The network; a forward hook that belongs to it reads the timestep. And the report of its weights.
    """
    weight_only = replace(recipe, activations=Precision(16), act_range="dynamic", per_tensor=False)
    network = network_of(pipe)
    targets = find_targets(network, modulation=False)
    groups = {name: spec.group for name, spec in layer_specs(targets, recipe).items()}
    ranges = timestep_ranges(pipe, groups, prompts, noise, steps=steps, guidance=guidance)
    made, report = quantise_network(network, weight_only, calibration=calibration)
    clock = Clock(ddim_timesteps(pipe, steps))
    for name, each in ranges.items():
        grids = [one.grid(recipe.activations) for one in each]
        tables = torch.stack([scale for scale, _ in grids]), torch.stack([zero for _, zero in grids])
        layer = TimestepLinear(made.get_submodule(name), recipe.activations, groups[name], tables=tables, clock=clock)
        made.set_submodule(name, layer)
    made.register_forward_pre_hook(clock, with_kwargs=True)
    return made, report
