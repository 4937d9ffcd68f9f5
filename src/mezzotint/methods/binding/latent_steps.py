"""Gradient steps on the latents before the network's own calls: what Attend-and-Excite and SynGen share.

z_t is moved before the step that denoises it: z <- z - alpha grad_z L(attention maps of the conditional pass at z).
The pipeline's loop is not rewritten. Its scheduler shows the unscaled latents (`scale_model_input`), a hook before the
network moves them and hands on the moved ones, and the scheduler's step starts from these too. Edits installed on the
attention layers (focused cross-attention) act in the gradient passes as well, and the maps are those after them.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils._pytree import tree_map

from mezzotint.attention import Installation, backbone, install, sites
from mezzotint.attention.sites import Grid
from mezzotint.runtime.patching import replaced

from .maps import MapRecorder
from .passes import Call, calling, position, unguided

__all__ = ["Losses", "Moved", "Progress", "Rule", "descend", "grid_like_16", "repeated", "stepping"]

T = TypeVar("T")

Maps = Float[Tensor, "rows tokens height width"]
Losses = Callable[[Maps], Float[Tensor, " rows"]]
Latents = Float[Tensor, "rows channels height width"]
ROLE = 16 * 16
"""Cells of the grid that the papers take in Stable Diffusion at 512 x 512."""


@dataclass(frozen=True)
class Progress:
    """Where in the trajectory a step is: number `index` of `length`."""

    index: int
    length: int


Rule = Callable[[Latents, Progress, Callable[[Latents], Maps]], Latents]
"""(latents, progress, maps_of) -> moved latents; `maps_of` runs the network, with gradients."""


def descend(
    latents: Latents, maps_of: Callable[[Latents], Maps], losses: Losses
) -> tuple[Float[Tensor, " rows"], Latents]:
    """Losses of the rows at the latents, and their gradients; rows do not influence each other.

    Args:
        latents: unscaled latents, one row a picture.
        maps_of: attention maps of latents.
        losses: one number a row from the maps.
    """
    with torch.enable_grad():
        point = latents.detach().clone().requires_grad_()
        found = losses(maps_of(point))
        if not found.requires_grad:
            return found, torch.zeros_like(point)
        (gradient,) = torch.autograd.grad(found.sum(), point)
    return found.detach(), gradient


def repeated(items: Sequence[T], rows: int) -> list[T]:
    """What belongs to each prompt, for every picture of it: `num_images_per_prompt` times in a row.

    Args:
        items: one a prompt.
        rows: pictures that are drawn.

    Raises:
        ValueError: they are no multiple of the prompts.
    """
    images, rest = divmod(rows, len(items))
    if rest or not images:
        raise ValueError(f"{rows} pictures are drawn where {len(items)} prompts were given: give both the same prompts")
    return [item for item in items for _ in range(images)]


def grid_like_16(model: Any, latent: Grid) -> Grid:
    """The cross-attention grid that plays the role of 16x16 in Stable Diffusion: the one nearest to 256 cells.

    Args:
        model: a network or pipeline.
        latent: height and width of the latents.
    """
    grids = [site.grid(*latent) for site in sites(model) if site.kind == "cross"]
    return min(grids, key=lambda grid: abs(math.log(grid[0] * grid[1] / ROLE)))


@contextmanager
def stepping(pipe: Any, prompts: Sequence[str], rule: Rule, *, grid: Grid | None = None) -> Iterator[None]:
    """Calls of the pipeline move their latents by a rule before every call of the network.

    Args:
        pipe: a pipeline whose scheduler has `scale_model_input` and `step`.
        prompts: with which the pipeline must be called.
        rule: how to move.
        grid: of the attention maps; the one that plays the role of 16x16 when not given.
    """
    mover = Moved(pipe, rule, grid)

    def run(call: Call, arguments: dict[str, Any]) -> Any:
        called = arguments.get("prompt")
        listed = [called] if isinstance(called, str) else list(called or prompts)
        if listed != list(prompts):
            raise ValueError(f"the latents are moved for {list(prompts)}, the pipeline is called with {listed}")
        if torch.is_inference_mode_enabled():
            raise ValueError("gradients of the latents are needed: call the pipeline outside torch.inference_mode()")
        with mover.attached(arguments):
            return call(**arguments)

    with install(pipe, mover.recorder.edit(when=lambda _: mover.probing)) as mover.installation, calling(pipe, run):
        yield


class Moved:
    """The latents of a running call, and the hooks that move them."""

    def __init__(self, pipe: Any, rule: Rule, grid: Grid | None) -> None:
        self.pipe, self.rule, self.grid = pipe, rule, grid
        self.model = backbone(pipe)
        self.recorder = MapRecorder(detach=False)
        self.installation: Installation
        self.probing = False
        self._signature = inspect.signature(self.model.forward)
        self._seen: Tensor | None = None
        self._moved: Tensor | None = None
        self._halves = 1

    @contextmanager
    def attached(self, arguments: dict[str, Any]) -> Iterator[None]:
        """Hooks on the scheduler and the network that the pipeline has now."""
        self._halves = 1 if unguided(self.pipe, arguments) else 2
        with ExitStack() as stack:
            stack.enter_context(replaced(self.pipe.scheduler, "scale_model_input", self._see))
            stack.enter_context(replaced(self.pipe.scheduler, "step", self._start_moved))
            # First, so that edits are chosen for the pass itself after the gradient passes inside this hook.
            hook = self.model.register_forward_pre_hook(self._before, with_kwargs=True, prepend=True)
            stack.callback(hook.remove)
            yield

    def _see(self, stock: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(stock)
        def scale_model_input(sample: Tensor, *args: Any, **kwargs: Any) -> Any:
            self._seen = sample
            return stock(sample, *args, **kwargs)

        self._scale = stock
        return scale_model_input

    def _start_moved(self, stock: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(stock)
        def step(model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **kwargs: Any) -> Any:
            moved = sample if self._moved is None else self._moved.to(sample.dtype)
            return stock(model_output, timestep, moved, *args, **kwargs)

        return step

    def _before(self, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
        if self.probing or self._seen is None:
            return None
        given = self._signature.bind(*args, **kwargs).arguments
        given |= given.pop("kwargs", {})
        first = next(iter(self._signature.parameters))
        halves = self._branches()
        rows = slice((halves - 1) * len(self._seen) // halves, None)
        self._moved = self._move(self._seen[rows].detach(), given, first, rows)
        timestep = given["timestep"]
        given[first] = self._scale(torch.cat([self._moved] * halves), _first(timestep)).to(given[first].dtype)
        return (), given

    def _move(self, latents: Tensor, given: dict[str, Any], first: str, rows: slice) -> Tensor:
        """The rule at work on the conditional rows."""
        batch, timestep = len(given[first]), given["timestep"]
        cond = tree_map(lambda leaf: leaf[rows] if _batched(leaf, batch) else leaf, given)

        def maps_of(point: Tensor) -> Tensor:
            scaled = self._scale(point, _first(timestep)).to(given[first].dtype)
            self.recorder.reset()
            self.model(**cond | {first: scaled})
            return self.recorder.average()

        self.recorder.grid = self.grid or grid_like_16(self.model, (latents.shape[-2], latents.shape[-1]))
        found = position(self.pipe.scheduler, float(_first(timestep)))
        if found is None:
            raise ValueError(f"the model was called at timestep {_first(timestep)}, which the scheduler has not set")
        self.probing = True
        try:
            with self.installation.passing("cond"):
                return self.rule(latents, Progress(*found), maps_of).detach()
        finally:
            self.probing = False
            self.recorder.reset()

    def _branches(self) -> int:
        guided = getattr(self.pipe, "do_classifier_free_guidance", None)
        return self._halves if guided is None else 2 if guided else 1


def _batched(leaf: Any, batch: int) -> bool:
    return isinstance(leaf, Tensor) and leaf.ndim > 0 and len(leaf) == batch


def _first(timestep: Any) -> Any:
    return timestep.flatten()[0] if isinstance(timestep, Tensor) else timestep
