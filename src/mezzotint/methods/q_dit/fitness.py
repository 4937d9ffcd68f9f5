"""How good a choice of group sizes is: the loop inside the search (arXiv 2406.17343, section 3.3).

A genome changes weights and activations of exactly the layers whose gene changed. Candidates are rounded to nearest,
and compared with full precision from the same noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mezzotint.diffusion.condition import Prompt
from mezzotint.metrics.similarity import rmse

from .apply import make_layer, quantise_network, round_weight
from .blocks import observed
from .calibration import Calibration
from .costs import Gene, Genome
from .groups import SPACE
from .layers import Target, find_targets, genes, network_of
from .quantiser import LayerSpec, fake_quantise
from .ranges import weight_grid
from .recipe import Recipe, layer_specs
from .sampling import sample_latents, start_noise

__all__ = ["LatentFitness", "OutputFitness", "Regrouped", "find_genes", "layer_errors"]


def find_genes(
    network: nn.Module, calibration: Calibration, *, space: Sequence[int] = SPACE, modulation: bool = True
) -> tuple[Gene, ...]:
    """The genes of a network, with the number of tokens each reads in one call for one item.

    Args:
        network: to be searched.
        calibration: any input of it.
        space: group sizes to choose from.
        modulation: see `find_targets`; it never is a gene.
    """
    targets = find_targets(network, modulation=modulation)
    counts = {name: len(x) for name, x in _inputs(network, targets, calibration[:1]).items()}
    return genes(targets, space=space, tokens=counts)


class Regrouped:
    """A quantised copy of a network whose group sizes can be changed.

    Args:
        network: full precision, unchanged; kept, for its weights.
        recipe: round-to-nearest with dynamic ranges; its group is the start value of layers outside the genes.
        searched: the genes.
        executor: of the candidates; simulation costs least where every layer is used a few times only.
    """

    def __init__(
        self, network: nn.Module, recipe: Recipe, searched: Sequence[Gene], *, executor: str = "simulate"
    ) -> None:
        if recipe.needs_calibration:
            raise ValueError("candidates of the search are rounded to nearest with dynamic ranges")
        self.original, self.recipe, self.genes, self.executor = network, recipe, tuple(searched), executor
        first = tuple(gene.choices[-1] for gene in searched)
        self.specs = layer_specs(find_targets(network, modulation=recipe.modulation), self.at(first))
        self.network, _ = quantise_network(network, self.at(first), executor=executor)

    def at(self, genome: Genome) -> Recipe:
        """The recipe with a genome's group sizes.

        Raises:
            ValueError: a genome of another length.
        """
        if len(genome) != len(self.genes):
            raise ValueError(f"a genome must have {len(self.genes)} group sizes, got {len(genome)}")
        pairs = zip(self.genes, genome, strict=True)
        return replace(self.recipe, group={name: size for gene, size in pairs for name in gene.layers})

    @torch.no_grad()
    def apply(self, genome: Genome) -> Any:
        """The network with these group sizes; only layers whose size changes are made anew."""
        sizes = self.at(genome).group
        assert isinstance(sizes, dict)
        for name, size in sizes.items():
            if self.specs[name].group != size:
                self._change(name, replace(self.specs[name], group=size))
        return self.network

    def _change(self, name: str, spec: LayerSpec) -> None:
        layer = self.original.get_submodule(name)
        assert isinstance(layer, nn.Linear)
        codes = round_weight(layer, spec, self.recipe, name=name)
        self.network.set_submodule(name, make_layer(layer, codes, spec, executor=self.executor))
        self.specs[name] = spec


class LatentFitness:
    """Mean RMSE of final latents to those of full precision, from the same noise.

    Args:
        pipe: full precision.
        candidates: to judge.
        prompts: one for each picture.
        steps: DDIM steps.
        guidance: scale; the public code searches without guidance.
        seed: of the noise.
        batch_size: pictures of one call.
    """

    def __init__(
        self,
        pipe: Any,
        candidates: Regrouped,
        prompts: Sequence[Any],
        *,
        steps: int = 50,
        guidance: float = 1.0,
        seed: int = 0,
        batch_size: int = 64,
    ) -> None:
        self.pipe, self.candidates, self.prompts = pipe, candidates, list(prompts)
        self.steps, self.guidance, self.batch_size = steps, guidance, batch_size
        self.noise = start_noise(pipe, len(prompts), seed=seed)
        self.reference = self.latents(network_of(pipe))

    def latents(self, network: nn.Module) -> Tensor:
        """Final latents of a network."""
        parts = []
        for first in range(0, len(self.prompts), self.batch_size):
            rows = slice(first, first + self.batch_size)
            prompts: Prompt = self.prompts[rows]
            settings: dict[str, Any] = {"steps": self.steps, "guidance": self.guidance, "network": network}
            parts.append(sample_latents(self.pipe, prompts, self.noise[rows], **settings))
        return torch.cat(parts)

    def each(self, genome: Genome) -> Tensor:
        """RMSE of every picture."""
        return rmse(self.latents(self.candidates.apply(genome)), self.reference)

    def __call__(self, genome: Genome) -> float:
        """Mean RMSE; lower is better."""
        return float(self.each(genome).mean())


class OutputFitness:
    """Relative error of the network's output on calibration inputs: for models that DDIM cannot sample.

    Args:
        candidates: to judge.
        calibration: inputs.
        batch_size: items of one call.
    """

    def __init__(self, candidates: Regrouped, calibration: Calibration, *, batch_size: int = 32) -> None:
        self.candidates, self.calibration, self.batch_size = candidates, calibration, batch_size
        self.reference = self._outputs(candidates.original)

    @torch.no_grad()
    def _outputs(self, network: nn.Module) -> Tensor:
        made = [network(**arguments) for arguments in self.calibration.batches(self.batch_size)]
        return torch.cat([one if isinstance(one, Tensor) else one[0] for one in made]).float()

    def __call__(self, genome: Genome) -> float:
        """||out - reference|| / ||reference||; lower is better."""
        gap = self._outputs(self.candidates.apply(genome)) - self.reference
        return float(gap.norm() / self.reference.norm())


@torch.no_grad()
def layer_errors(
    network: nn.Module, recipe: Recipe, searched: Sequence[Gene], calibration: Calibration
) -> list[dict[int, float]]:
    """For every gene: group size -> squared relative output error of its layers, each quantised alone.

    Args:
        network: full precision.
        recipe: precisions.
        searched: the genes.
        calibration: inputs.
    """
    targets = find_targets(network, modulation=False)
    inputs = _inputs(network, targets, calibration)
    errors = []
    for gene in searched:
        layers = [(inputs[name], network.get_submodule(name)) for name in gene.layers]
        errors.append({size: sum(_error(x, layer, recipe, size) for x, layer in layers) for size in gene.choices})
    return errors


def _error(x: Tensor, layer: Any, recipe: Recipe, size: int) -> float:
    weight = layer.weight.float()
    grid = weight_grid(weight, recipe.weights, size, ranges=recipe.ranges)
    rounded = fake_quantise(weight, recipe.weights, size, grid=grid)
    wanted = F.linear(x, weight)
    made = F.linear(fake_quantise(x, recipe.activations, size), rounded)
    return float((made - wanted).square().sum() / wanted.square().sum())


@torch.no_grad()
def _inputs(network: nn.Module, targets: Sequence[Target], calibration: Calibration) -> dict[str, Tensor]:
    """Rows that each layer reads, of one call with all of the calibration."""
    seen: dict[str, Tensor] = {}
    hooks = {t.name: lambda x, name=t.name: seen.update({name: x.detach().float().flatten(0, -2)}) for t in targets}
    with observed(dict(network.named_modules()), hooks):  # type: ignore[arg-type]
        network(**calibration.arguments())
    return seen
