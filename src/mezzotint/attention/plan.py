"""What all attention layers of one model know while edits are installed: which edits act now, on which rows.

Before each pass a hook reads the latent's size and the timestep from the model's arguments, so neither pipelines nor
schedulers need to know of edits.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mezzotint.attention.edits import Edit, Moment, divided
from mezzotint.attention.sites import Grid, Site, located_sites
from mezzotint.diffusion.branches import running

Branches = tuple[str, ...]


@dataclass(eq=False)
class Installation:
    """A handle on installed edits, given by `install`.

    Attributes:
        edits: the edits, in order.
        branches: names of the guidance branches in the order of the batch; None: as described at `install`.
        pipe: the pipeline they were installed on, if it was one.
        plan: the state shared by all installations on the model.
    """

    edits: tuple[Edit, ...]
    branches: Branches | None
    pipe: Any
    plan: Plan

    @property
    def moment(self) -> Moment:
        """Step and timestep of the last pass."""
        return self.plan.moment

    @contextmanager
    def passing(self, *branches: str) -> Iterator[None]:
        """Says which guidance branches the passes inside consist of, e.g. `passing("cond")` for a gradient pass."""
        before, self.branches = self.branches, checked_branches(branches)
        try:
            yield
        finally:
            self.branches = before

    def reset(self) -> None:
        """Starts a new trajectory: the next pass is step 0."""
        self.plan.clock = Clock()


class Clock:
    """Counts steps from timesteps."""

    def __init__(self) -> None:
        self.moment = Moment()
        self._direction = 0

    def advance(self, timestep: float | None) -> Moment:
        """The moment of a pass with this timestep."""
        last = self.moment.timestep
        if last is None or timestep is None:
            self.moment = Moment(self.moment.step, timestep)
        elif timestep != last:
            direction = 1 if timestep > last else -1
            turned = self._direction not in (0, direction)
            self._direction = 0 if turned else direction
            self.moment = Moment(0 if turned else self.moment.step + 1, timestep)
        return self.moment


class Plan:
    """All edits on one model, and what they know about the pass that runs."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.located = located_sites(model)
        self.clock = Clock()
        self.installations: list[Installation] = []
        self.latent: Grid | None = None
        self.hook: Any = None
        self.compiled: list[tuple[nn.Module, Any]] = []
        self._by_site: dict[str, list[Edit]] = {}
        self._now: dict[str, list[Edit]] = {}
        self._signature = inspect.signature(model.forward)

    @property
    def moment(self) -> Moment:
        """Step and timestep of the pass that runs, or of the last one."""
        return self.clock.moment

    def active(self, site: Site) -> list[Edit]:
        """Edits that act on a site in this pass."""
        return self._now.get(site.name, [])

    def grid(self, site: Site, queries: int) -> Grid | None:
        """Grid of a site's queries in this pass; None if they are not one."""
        if self.latent is None:
            return None
        grid = site.grid(*self.latent)
        return grid if grid[0] * grid[1] == queries else None

    def rows(self, edit: Edit, batch: int) -> slice | None:
        """Rows of an edit's branch; None if this pass does not contain the branch."""
        if edit.branch is None:
            return slice(0, batch)
        branches = self.branches()
        if edit.branch not in branches:
            return None
        return dict(divided(batch, branches))[edit.branch]

    def branches(self) -> Branches:
        """Names of the guidance branches of a pass: what was said last, else what the caller or the pipeline does."""
        for installation in reversed(self.installations):
            if installation.branches is not None:
                return installation.branches
        if (names := running()) is not None:
            return names
        guided = [getattr(each.pipe, "do_classifier_free_guidance", None) for each in self.installations]
        if guided.count(False) > 0:
            return ("cond",)
        if any("InstructPix2Pix" in type(each.pipe).__name__ for each in self.installations):
            return ("cond", "image", "uncond")
        return ("cond", "uncond") if type(self.model).__name__ == "DiTTransformer2DModel" else ("uncond", "cond")

    def check(self, edits: tuple[Edit, ...], branches: Branches | None) -> None:
        """Refuses edits that could never act (ValueError)."""
        known = {"uncond", "cond", *(branches or ())}.union(*(each.branches or () for each in self.installations))
        for edit in edits:
            if edit.branch is not None and edit.branch not in known:
                raise ValueError(f"no guidance branch is called {edit.branch!r}; there are {sorted(known)}")
            if not any(edit.applies_to(site) for site, _ in self.located):
                raise ValueError(f"{type(edit).__name__} applies to none of the {len(self.located)} attention layers")

    def add(self, installation: Installation) -> None:
        """Lets an installation's edits act, after those that are there."""
        self.installations.append(installation)
        self._replan()

    def remove(self, installation: Installation) -> None:
        """Takes an installation's edits away."""
        self.installations.remove(installation)
        self._replan()

    @torch.compiler.disable
    def begin(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Hook before a pass of the model: reads timestep and latent size, and decides which edits act."""
        if not self._by_site:
            return
        given = self._signature.bind_partial(*args, **kwargs).arguments
        latent = given.get("sample", given.get("hidden_states"))
        self.latent = (int(latent.shape[-2]), int(latent.shape[-1])) if isinstance(latent, Tensor) else None
        moment = self.clock.advance(_first(given.get("timestep")))
        for edit in self._edits():
            edit.begin(moment)
        self._choose(moment)

    def _edits(self) -> list[Edit]:
        return [edit for installation in self.installations for edit in installation.edits]

    def _replan(self) -> None:
        edits = self._edits()
        plan = {site.name: [edit for edit in edits if edit.applies_to(site)] for site, _ in self.located}
        self._by_site = {name: chosen for name, chosen in plan.items() if chosen}
        self._choose(self.moment)

    def _choose(self, moment: Moment) -> None:
        resting = {id(edit) for edit in self._edits() if edit.when is not None and not edit.when(moment)}
        self._now = {
            name: [edit for edit in chosen if id(edit) not in resting] for name, chosen in self._by_site.items()
        }


def checked_branches(branches: Branches | None) -> Branches | None:
    """The same names; ValueError if they cannot name the branches of a batch."""
    if branches is not None and (not branches or len(set(branches)) != len(branches)):
        raise ValueError(f"guidance branches must have different names, at least one; got {branches}")
    return branches


def _first(timestep: Any) -> float | None:
    if isinstance(timestep, Tensor):
        return float(timestep.flatten()[0]) if timestep.numel() else None
    return None if timestep is None else float(timestep)
