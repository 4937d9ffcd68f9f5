"""What a choice of group sizes costs, and the constraints of the search (arXiv 2406.17343, section 3.3).

The paper speaks of bit operations, the public code demands a mean group size of 128. What costs time on an integer unit
is one rescaling of the output tile for every group, which the harmonic mean counts: a quite different budget.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from .groups import DEFAULT, SPACE, legal_groups

__all__ = ["Constraint", "Gene", "Genome", "constraint", "fixed", "mean_group", "scale_ops", "storage_bytes"]

Genome: TypeAlias = tuple[int, ...]
"""One group size for every gene."""
Kind: TypeAlias = Literal["mean_group", "scale_ops", "bytes"]


@dataclass(frozen=True)
class Gene:
    """Layers that share an input and therefore a group size.

    Attributes:
        name: block and role, such as "transformer_blocks.0.attn1.to_qkv".
        layers: names of the linear layers.
        width: input channels K.
        rows: output channels N of all its layers together.
        tokens: rows M of the input in one model call.
        choices: legal group sizes.
    """

    name: str
    layers: tuple[str, ...]
    width: int
    rows: int
    tokens: int = 1
    choices: tuple[int, ...] = SPACE

    def __post_init__(self) -> None:
        """Refuse a gene that has no legal value."""
        if not self.choices or self.choices != legal_groups(self.width, self.choices):
            raise ValueError(
                f"no legal choice for {self.name!r}: choices must divide its width {self.width} and ascend, "
                f"got {self.choices}"
            )


def fixed(genes: Sequence[Gene], group: int = DEFAULT) -> Genome:
    """The genome with one size everywhere; where it is not among a gene's choices, the largest one below it."""
    return tuple(max((g for g in gene.choices if g <= group), default=gene.choices[0]) for gene in genes)


def mean_group(genome: Genome, genes: Sequence[Gene]) -> float:
    """Arithmetic mean of the group sizes: the public code's budget, to be at least that of all-128."""
    _same_length(genome, genes)
    return sum(genome) / len(genome)


def scale_ops(genome: Genome, genes: Sequence[Gene]) -> float:
    """Number of rescaled output entries of one model call, sum over layers of M N K / g."""
    _same_length(genome, genes)
    return sum(gene.tokens * gene.rows * gene.width / g for g, gene in zip(genome, genes, strict=True))


def storage_bytes(genome: Genome, genes: Sequence[Gene], *, bits: int = 4, symmetric: bool = False) -> float:
    """Bytes of packed weights with half-precision scales and, unless symmetric, packed zero points.

    N K b / 8 + N (K / g) (2 + b / 8).
    """
    _same_length(genome, genes)
    each = 2 + (0 if symmetric else bits / 8)
    pairs = zip(genome, genes, strict=True)
    return sum(gene.rows * gene.width * bits / 8 + gene.rows * (gene.width // g) * each for g, gene in pairs)


@dataclass(frozen=True)
class Constraint:
    """A budget that a genome must keep; every cost falls, or stays, when a group size grows.

    Attributes:
        kind: which cost.
        cost: of a genome, lower is cheaper.
        budget: largest legal cost.
    """

    kind: Kind
    cost: Callable[[Genome], float]
    budget: float

    def legal(self, genome: Genome) -> bool:
        """Whether a genome keeps the budget, up to rounding."""
        return self.cost(genome) <= self.budget + 1e-9 * abs(self.budget)


def constraint(
    kind: Kind,
    genes: Sequence[Gene],
    *,
    reference: Genome | None = None,
    bits: int = 4,
    symmetric: bool = False,
) -> Constraint:
    """The budget of a reference genome.

    Args:
        kind: "mean_group" (public code), "scale_ops" (time) or "bytes" (storage).
        genes: what is searched.
        reference: genome that spends exactly the budget; all-128 when not given.
        bits: of the weights, for bytes.
        symmetric: whether the weights are, for bytes.

    Raises:
        ValueError: an unknown kind, a genome of another length, or no legal genome at all.
    """
    costs: Mapping[str, Callable[[Genome], float]] = {
        "mean_group": lambda genome: -mean_group(genome, genes),
        "scale_ops": lambda genome: scale_ops(genome, genes),
        "bytes": lambda genome: storage_bytes(genome, genes, bits=bits, symmetric=symmetric),
    }
    if kind not in costs:
        raise ValueError(f"constraint must be one of {', '.join(costs)}, got {kind!r}")
    found = Constraint(kind, costs[kind], costs[kind](reference if reference is not None else fixed(genes)))
    if not found.legal(tuple(gene.choices[-1] for gene in genes)):
        raise ValueError(f"no legal genome: even the largest groups exceed the {kind} budget {found.budget:g}")
    return found


def _same_length(genome: Genome, genes: Sequence[Gene]) -> None:
    if len(genome) != len(genes):
        raise ValueError(f"a genome must have one group size for each of {len(genes)} genes, got {len(genome)}")
