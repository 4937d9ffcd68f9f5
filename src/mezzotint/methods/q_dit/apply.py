"""Replaces the linear layers of a network by quantised ones (arXiv 2406.17343, section 4.1).

The network given stays as it is. Without calibration data every layer is rounded at once; with them the blocks follow
one another, and each collects its statistics in one pass, its own weights still unquantised and its inputs made by the
blocks before it, which are quantised.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from .adapters import accept_adapters
from .blocks import Chain, observed
from .calibration import Calibration
from .folds import smooth
from .gptq import Hessian, gptq
from .layers import Target, check_weights, find_targets
from .quantised import LayerReport
from .quantiser import Codes, Grid, LayerSpec, fake_quantise, quantise
from .ranges import ErrorRange, RunningRange, StaticRange, weight_grid
from .recipe import Recipe, layer_specs

__all__ = ["Statistics", "channel_maxima", "clone", "make_layer", "quantise_network", "replace_layer", "round_weight"]

_KEPT = 8


def clone(network: nn.Module, shared: Sequence[str] = ()) -> Any:
    """A copy of a network; the weights of the layers named are not copied (they are about to be replaced)."""
    weights = [network.get_submodule(name).weight for name in shared]
    return copy.deepcopy(network, {id(weight): weight for weight in weights})


class Statistics:
    """What one layer's calibration inputs are reduced to.

    Args:
        target: the layer.
        spec: how it will be quantised.
        recipe: what is needed.
        divisor: SmoothQuant's c, where the input is divided at run time.
    """

    def __init__(self, target: Target, spec: LayerSpec, recipe: Recipe, divisor: Tensor | None = None) -> None:
        self.target, self.spec, self.divisor = target, spec, divisor
        self.hessian: Hessian | None = None
        self._wants_hessian = recipe.method == "gptq"
        self.range: StaticRange | None = None
        self._tensor_wide = recipe.per_tensor
        if spec.act_range == "static":
            group = target.width if recipe.per_tensor else spec.group
            self.range = RunningRange(group) if recipe.static == "average" else ErrorRange(group)
        self.kept: Tensor | None = None

    def __call__(self, x: Float[Tensor, "*batch width"]) -> Tensor:
        """Take in an input; what the layer is to read: divided and, with dynamic ranges, quantised."""
        if self.kept is None:
            self.kept = x.detach()[:_KEPT].clone()
        if self.divisor is not None:
            x = x / self.divisor.to(x)
        if self.range is not None:
            self.range.update(x)
        else:
            x = fake_quantise(x, self.spec.activation, self.spec.group, scope=self.spec.act_scope)
        if self._wants_hessian:
            self.hessian = self.hessian or Hessian(self.target.width, x.device)
            self.hessian.add(x)
        return x

    def static_grid(self) -> Grid | None:
        """Static scales, one a group; None for dynamic ranges.

        Raises:
            ValueError: no input was seen.
        """
        if self.range is None:
            return None
        scale, zero = self.range.grid(self.spec.activation)
        groups = self.target.width // self.spec.group
        return scale.expand(groups).contiguous(), zero.expand(groups).contiguous()


def round_weight(
    layer: nn.Linear, spec: LayerSpec, recipe: Recipe, *, statistics: Statistics | None = None, name: str = ""
) -> Codes:
    """Codes of a layer's weight.

    Args:
        layer: the layer.
        spec: how it is quantised.
        recipe: method and ranges.
        statistics: of its inputs, for GPTQ.
        name: for messages.

    Raises:
        ValueError: GPTQ without inputs; see also `check_weights`.
    """
    weight = layer.weight.detach()
    if recipe.method == "gptq":
        if statistics is None or statistics.hessian is None:
            raise ValueError(f"GPTQ needs calibration data, and layer {name!r} saw none")
        statistics.hessian.warn_if_few(name)
        options: dict[str, Any] = {"ranges": recipe.ranges, "official_stale_params": recipe.official_stale_params}
        matrix = statistics.hessian.matrix
        return gptq(weight, matrix, spec.weight, spec.group, damping=recipe.damping, **options)
    grid = weight_grid(weight.float(), spec.weight, spec.group, ranges=recipe.ranges, clip_ratio=recipe.clip_ratio)
    return quantise(weight, spec.weight, spec.group, grid=grid)


def make_layer(
    old: nn.Linear, codes: Codes, spec: LayerSpec, *, statistics: Statistics | None = None, executor: str = "auto"
) -> nn.Module:
    """The quantised layer that stands in for a linear one.

    Args:
        old: gives the bias.
        codes: its rounded weight.
        spec: how it is quantised.
        statistics: of its inputs, for static ranges and a divisor at run time.
        executor: see QuantLinear.
    """
    from .linear import QuantLinear

    grid = statistics.static_grid() if statistics else None
    divisor = statistics.divisor if statistics else None
    options: dict[str, Any] = {"static_grid": grid, "input_scale": divisor, "executor": executor}
    return QuantLinear.from_codes(codes, old.bias, spec, **options)


@torch.no_grad()
def replace_layer(
    network: nn.Module,
    name: str,
    codes: Codes,
    spec: LayerSpec,
    *,
    statistics: Statistics | None = None,
    executor: str = "auto",
) -> LayerReport:
    """Put a quantised layer in a linear one's place and say what that costs.

    Args:
        network: changed in place.
        name: of the linear layer.
        codes: its rounded weight.
        spec: how it is quantised.
        statistics: of its inputs; also what the error is measured on.
        executor: see QuantLinear.
    """
    old = network.get_submodule(name)
    assert isinstance(old, nn.Linear)
    new = make_layer(old, codes, spec, statistics=statistics, executor=executor)
    error = None
    if statistics is not None and statistics.kept is not None:
        kept, divisor = statistics.kept, statistics.divisor
        wanted = F.linear(kept if divisor is None else kept / divisor.to(kept), old.weight, old.bias)
        error = _relative(new(kept), wanted)
    network.set_submodule(name, new)
    return LayerReport(
        name=name,
        weight_bits=spec.weight.bits,
        activation_bits=spec.activation.bits,
        group=spec.group,
        weight_error=_relative(codes.dequantised(), old.weight),
        output_error=error,
        bytes=_bytes(new),
        bytes_before=_bytes(old),
    )


def quantise_network(
    network: nn.Module,
    recipe: Recipe,
    *,
    calibration: Calibration | None = None,
    layers: Sequence[str] = (),
    batch_size: int = 32,
    executor: str = "auto",
) -> tuple[Any, tuple[LayerReport, ...]]:
    """A quantised copy of a network, and what each layer lost.

    Args:
        network: in evaluation mode; unchanged.
        recipe: how.
        calibration: inputs of the network; needed by GPTQ, static ranges and smoothing.
        layers: these alone; see `layers.find_targets`.
        batch_size: calibration items of one call.
        executor: see QuantLinear.

    Raises:
        ValueError: training mode, calibration that is needed and missing, a group that does not divide a width, weights
            or inputs that are not finite; see also `find_targets`.
    """
    if network.training:
        raise ValueError("the network is in training mode: call .eval() first")
    if recipe.needs_calibration and calibration is None:
        raise ValueError("this recipe needs calibration data (GPTQ, static ranges, smoothing): give some, or use rtn")
    targets = {target.name: target for target in find_targets(network, names=layers, modulation=recipe.modulation)}
    specs = layer_specs(targets.values(), recipe)
    check_weights(network, targets.values())
    copied = clone(network, () if recipe.smoothing is not None else tuple(targets))
    divisors: dict[str, Tensor] = {}
    if recipe.smoothing is not None:
        assert calibration is not None
        readers = [name for name, target in targets.items() if not target.modulation]
        maxima = channel_maxima(network, readers, calibration, batch_size=batch_size)
        divisors = smooth(copied, maxima, alpha=recipe.smoothing)
    made = _Job(copied, targets, recipe, specs=specs, divisors=divisors, executor=executor)
    reports = made.at_once() if calibration is None else made.by_blocks(calibration, batch_size)
    copied.requires_grad_(False)
    accept_adapters()
    return copied, tuple(reports[name] for name in targets)


@torch.no_grad()
def channel_maxima(
    network: nn.Module, layers: Sequence[str], calibration: Calibration, *, batch_size: int = 32
) -> dict[str, Float[Tensor, " _"]]:
    """Largest |x| of every input channel of layers over calibration data."""
    maxima: dict[str, Tensor] = {}

    def keep(name: str, x: Tensor) -> None:
        largest = x.detach().abs().flatten(0, -2).amax(0)
        maxima[name] = torch.maximum(maxima[name], largest) if name in maxima else largest

    hooks = {name: lambda x, name=name: keep(name, x) for name in layers}
    with observed(dict(network.named_modules()), hooks):  # type: ignore[arg-type]
        for arguments in calibration.batches(batch_size):
            network(**arguments)
    return maxima


class _Job:
    """Quantises one copied network."""

    def __init__(
        self,
        network: nn.Module,
        targets: Mapping[str, Target],
        recipe: Recipe,
        *,
        specs: Mapping[str, LayerSpec],
        divisors: Mapping[str, Tensor],
        executor: str,
    ) -> None:
        self.network, self.targets, self.specs = network, targets, specs
        self.recipe, self.divisors, self.executor = recipe, divisors, executor

    def at_once(self) -> dict[str, LayerReport]:
        """Every layer, without calibration data."""
        return {name: self._layer(name, None) for name in self.targets}

    def by_blocks(self, calibration: Calibration, batch_size: int) -> dict[str, LayerReport]:
        """Block by block over calibration data."""
        reports: dict[str, LayerReport] = {}
        blocks = [target.block for target in self.targets.values()]
        modules = dict(self.network.named_modules())
        for block, run in Chain(self.network, blocks, calibration, batch_size=batch_size):
            names = [name for name, target in self.targets.items() if target.block == block]
            seen = {name: self._statistics(name) for name in names}
            with observed(modules, dict(seen)):
                run()
            reports |= {name: self._layer(name, seen[name]) for name in names}
        if missing := self.targets.keys() - reports.keys():
            raise ValueError(f"layer {min(missing)!r} is never reached by the calibration inputs: leave it out")
        return reports

    def _statistics(self, name: str) -> Statistics:
        return Statistics(self.targets[name], self.specs[name], self.recipe, self.divisors.get(name))

    def _layer(self, name: str, statistics: Statistics | None) -> LayerReport:
        layer = self.network.get_submodule(name)
        assert isinstance(layer, nn.Linear)
        codes = round_weight(layer, self.specs[name], self.recipe, statistics=statistics, name=name)
        options: dict[str, Any] = {"statistics": statistics, "executor": self.executor}
        return replace_layer(self.network, name, codes, self.specs[name], **options)


def _relative(made: Tensor, wanted: Tensor) -> float:
    wanted = wanted.float()
    return float((made.float() - wanted).norm() / wanted.norm().clamp(min=1e-30))


def _bytes(module: nn.Module) -> int:
    return sum(t.numel() * t.element_size() for t in module.state_dict(keep_vars=True).values())
