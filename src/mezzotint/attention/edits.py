"""The kinds of edit that one attention layer can carry, and what their functions are shown.

An edit is a small frozen value: what it does, and to which sites, guidance branch and steps it applies. Its function
sees only the rows of its branch, already cut out of the batch, with heads already split; what it returns is put back.
Stages follow each other in this order, whatever the order of installation (`processor.py` runs them):

1. `Context`        tokens from which keys and values are computed
2. `KeysValues`     queries, keys and values themselves
3. `LogitMask`      additive biases on the logits; several add up; the fused kernel is kept
4. `Probabilities`  functions of the explicit softmax; only these rows of these sites leave the fused kernel
5. `Regions`        several contexts, mixed by spatial weights (`regions.py`)
6. `Output`         the result of attention, before the layer's output projection
7. the image keys of an IP-Adapter underneath, if there is one, are added unedited

`Observe` looks at the result of stages 2, 4 or 6. Within a stage, edits act in order of installation, outer first.
Gradients flow through every stage.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from mezzotint.attention.heads import as_bias, fused
from mezzotint.attention.sites import Grid, Kind, Site, resize_maps

Queries = Float[Tensor, "rows heads queries head_dim"]
Keys = Float[Tensor, "rows heads keys head_dim"]
Shares = Float[Tensor, "rows heads queries keys"]
Tokens = Float[Tensor, "rows keys width"]
Observed = Literal["query_key_value", "probabilities", "output"]


@dataclass(frozen=True)
class Moment:
    """When a pass of the model happens.

    Attributes:
        step: 0 for the first timestep of a trajectory; grows by one whenever the timestep changes.
        timestep: the timestep the model was called with (its first row), None outside a model call.
    """

    step: int = 0
    timestep: float | None = None


def divided(batch: int, branches: tuple[str, ...]) -> list[tuple[str, slice]]:
    """Each guidance branch with its equal share of a batch, in order.

    Raises:
        ValueError: the batch has no such shares.
    """
    size, rest = divmod(batch, len(branches))
    if rest:
        raise ValueError(
            f"a batch of {batch} cannot be divided into the guidance branches {branches}; "
            'name those it has, e.g. branches=("cond",)'
        )
    return [(name, slice(index * size, (index + 1) * size)) for index, name in enumerate(branches)]


def during(start: int = 0, stop: int | None = None) -> Callable[[Moment], bool]:
    """A `when` that is true for steps `start` <= step < `stop` (None: to the end)."""
    return lambda moment: start <= moment.step and (stop is None or moment.step < stop)


@dataclass(frozen=True, eq=False)
class Call:
    """One attention layer at work on the rows of one edit.

    Attributes:
        site: the layer's name, kind, heads and level.
        attention: the diffusers `Attention` module (its `to_k` ... may be LoRA layers).
        moment: step and timestep of the pass.
        grid: height and width of the query grid; None when the queries are no grid of the current latent.
        branch: guidance branch these rows belong to, None for all of them.
        rows: where these rows stand in the batch.
        batch: rows in the whole batch.
        hidden: tokens the queries are computed from, [rows, queries, query_dim].
        context: tokens the model gave for keys and values, [rows, keys, context_dim]; `hidden` at self-attention.
        branches: names of the guidance branches that these rows are, in order.
    """

    site: Site
    attention: Any
    moment: Moment
    grid: Grid | None
    branch: str | None
    rows: slice
    batch: int
    hidden: Float[Tensor, "rows queries query_dim"]
    context: Float[Tensor, "rows keys context_dim"]
    branches: tuple[str, ...] = ()

    def by_branch(self) -> list[tuple[str, slice]]:
        """The guidance branches of these rows, each with its rows among them."""
        return divided(len(self.hidden), self.branches)

    def require_grid(self) -> Grid:
        """The query grid; ValueError where there is none."""
        if self.grid is None:
            raise ValueError(
                f"{self.site.name} has {self.hidden.shape[1]} queries, which are no grid of the current latent; "
                "spatial edits cannot act there: exclude it with `where`"
            )
        return self.grid


@dataclass(frozen=True, eq=False)
class States:
    """Queries, keys and values of a layer, heads split.

    Attributes:
        query: queries after stage 2.
        key: keys after stage 2.
        value: values after stage 2.
        scale: factor of the logits.
        bias: sum of all masks of these rows, the model's own included.
        own: the same before stage 2, where only the model's own mask hides keys.
    """

    query: Queries
    key: Keys
    value: Keys
    scale: float
    bias: Tensor | None = None
    own: States | None = None

    def attend(
        self,
        query: Queries | None = None,
        key: Keys | None = None,
        value: Keys | None = None,
        bias: Tensor | None = None,
    ) -> Queries:
        """Fused attention with these states, any of them replaced.

        `bias` is a mask as in `LogitMask`; left out, these states' own bias holds while the keys are these states'.
        """
        bias = self.bias if bias is None and key is None else bias
        query, key = self.query if query is None else query, self.key if key is None else key
        bias = None if bias is None else as_bias(bias, query, key.shape[2])
        return fused(query, key, self.value if value is None else value, bias, scale=self.scale)


@dataclass(frozen=True, eq=False, kw_only=True)
class Edit:
    """What all edits share: where and when they act.

    Attributes:
        kind: only "self" or only "cross" sites; None for both.
        where: further choice of sites.
        branch: name of the guidance branch whose rows are edited ("cond", "uncond", ...); None for the whole batch.
        when: choice of moments, evaluated once per pass of the model.
    """

    kind: Kind | None = None
    where: Callable[[Site], bool] | None = None
    branch: str | None = None
    when: Callable[[Moment], bool] | None = None

    def applies_to(self, site: Site) -> bool:
        """Whether the site is one of this edit's."""
        return self.kind in (None, site.kind) and (self.where is None or self.where(site))

    def begin(self, moment: Moment) -> None:
        """Called before every pass of the model; edits with state forget what belongs to the last one."""


@dataclass(frozen=True, eq=False)
class Context(Edit):
    """Other tokens for keys and values: replaced, appended to, or different for keys and for values.

    Attributes:
        function: (call, key_context, value_context) -> (key_context, value_context), each [rows, keys, context_dim].
            The number of keys may change; at a self-attention site the tokens are the picture's.
        bias: replaces the model's own text mask on these rows, additive, [rows or 1, keys]. Without it that mask stays
            (PixArt masks padding), and appended keys are not masked.
    """

    function: Callable[[Call, Tokens, Tokens], tuple[Tokens, Tokens]]
    bias: Float[Tensor, "rows keys"] | None = None


@dataclass(frozen=True, eq=False)
class KeysValues(Edit):
    """Other queries, keys or values: shared between rows, appended, or kept from another pass (see `Record`).

    Attributes:
        function: (call, query, key, value) -> (query, key, value), each [rows, heads, tokens, head_dim]. The number of
            keys may change (keys and values together); the number of queries may not.
    """

    function: Callable[[Call, Queries, Keys, Keys], tuple[Queries, Keys, Keys]]


@dataclass(frozen=True, eq=False)
class LogitMask(Edit):
    """An additive bias on the logits, or a boolean mask (True lets attend). Keeps the fused kernel.

    Attributes:
        bias: a tensor that broadcasts from the right to [rows, heads, queries, keys], or a function
            (call, query, key) -> tensor, or None for no bias here. A bias for fewer keys than there are leaves the last
            keys alone. -inf removes a key; a query must keep at least one.
    """

    bias: Tensor | Callable[[Call, Queries, Keys], Tensor | None]

    def resolve(self, call: Call, query: Queries, key: Keys) -> Float[Tensor, "b h q k"] | None:
        """The bias of this layer in four dimensions."""
        bias = self.bias if isinstance(self.bias, Tensor) else self.bias(call, query, key)
        return None if bias is None else as_bias(bias, query, key.shape[2])


@dataclass(frozen=True, eq=False)
class Probabilities(Edit):
    """A function of the explicit attention probabilities.

    Attributes:
        function: (call, probabilities) -> probabilities, [rows, heads, queries, keys], at least single precision. Rows
            need not sum to 1 afterwards.
    """

    function: Callable[[Call, Shares], Shares]


@dataclass(frozen=True, eq=False)
class Output(Edit):
    """A function of what attention gave, before the layer's output projection.

    Attributes:
        function: (call, output, states) -> output, [rows, heads, queries, head_dim]. `states.attend(...)` gives what
            other queries or keys would have given, `states.own` the layer's unedited states.
    """

    function: Callable[[Call, Queries, States], Queries]

    def mix(self, call: Call, output: Queries, states: States) -> Tensor:
        """Stage 6; the processor compares the shape, naming the site."""
        return self.function(call, output, states)


@dataclass(frozen=True, eq=False)
class Observe(Edit):
    """Looks, and changes nothing.

    Attributes:
        function: (call, *tensors) -> None; one tensor, or three for "query_key_value". They carry gradients.
        of: "query_key_value" (after `KeysValues`), "probabilities" (after `Probabilities`) or "output" (after
            `Output`).
    """

    function: Callable[..., object]
    of: Observed = "probabilities"

    def begin(self, moment: Moment) -> None:
        """Lets a `Record` forget the last pass."""
        if isinstance(self.function, Record):
            self.function.begin(moment)


class Record:
    """Keeps what an `Observe` saw, by site name.

    Args:
        keep: "pass" forgets when the model is called again; "run" keeps every step of a trajectory (the last pass of a
            step wins) until a new one starts.
        detach: drop the graph. Leave False to take gradients through what was seen.
    """

    def __init__(self, keep: Literal["pass", "run"] = "pass", *, detach: bool = False) -> None:
        self.keep, self.detach = keep, detach
        self._steps: dict[int, dict[str, tuple[Tensor, ...]]] = {}
        self._grids: dict[str, Grid | None] = {}
        self._step = 0

    def __call__(self, call: Call, *tensors: Tensor) -> None:
        """Keeps what one site shows."""
        kept = tuple(tensor.detach() for tensor in tensors) if self.detach else tensors
        self._step = call.moment.step
        self._steps.setdefault(self._step, {})[call.site.name] = kept
        self._grids[call.site.name] = call.grid

    def begin(self, moment: Moment) -> None:
        """A pass of the model begins."""
        if self.keep == "pass" or moment.step < self._step:
            self._steps.clear()
        self._step = moment.step

    @property
    def steps(self) -> list[int]:
        """Steps of which something is kept."""
        return sorted(self._steps)

    def at(self, step: int | None = None) -> dict[str, tuple[Tensor, ...]]:
        """What was seen at a step (None: the last one), by site name, in the order of the pass."""
        chosen = self._step if step is None else step
        if chosen not in self._steps:
            raise ValueError(f"nothing is kept of step {chosen}; steps kept: {self.steps}")
        return self._steps[chosen]

    def average(self, size: Grid, *, step: int | None = None) -> Float[Tensor, "rows keys height width"]:
        """Attention maps of cross-attention probabilities: mean over heads and recorded sites, at one size.

        Sites of another grid are resized bicubically, as in Attend-and-Excite's descendants (arXiv 2404.13766).
        """
        maps = []
        for name, (seen, *_) in self.at(step).items():
            grid = self._grids[name]
            if grid is None:
                raise ValueError(f"{name} has no spatial grid; exclude it with `where`")
            per_key = seen.mean(1).transpose(1, 2).unflatten(-1, grid)
            maps.append(per_key if grid == size else resize_maps(per_key, size, mode="bicubic"))
        return torch.stack(maps).mean(0)
