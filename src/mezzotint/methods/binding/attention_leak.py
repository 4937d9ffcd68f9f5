"""E1 of the experiment: where attribute tokens are looked at, in noised renders whose instance masks are exact.

A render is encoded, noised to a timestep and shown to the network once with its true caption. Of the attention that an
attribute token gets inside any object, the share inside its own object is what binding needs; the rest leaks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mezzotint.attention import Call, Edit, Observe, install, resize_maps
from mezzotint.attention.sites import Grid
from mezzotint.diffusion import Condition, Denoiser
from mezzotint.diffusion.latents import latent_shape, pixels, posterior
from mezzotint.diffusion.rng import normal
from mezzotint.worlds.scenes.captions import Caption, caption
from mezzotint.worlds.scenes.render import render
from mezzotint.worlds.scenes.sampling import sample
from mezzotint.worlds.scenes.scene import Scene

from .fca import FocusedAttention
from .focusing import bound
from .masks import Links, focus_of_maps, link, stacked
from .options import Mode, Options
from .report import BindingReport
from .resolve import syntax_of_caption
from .words import Binding

__all__ = ["ARMS", "TIMESTEPS", "Leak", "NoisedScenes", "measure_leak", "own_share"]

TIMESTEPS = (200, 500, 800)
ARMS: dict[str, Mode | None] = {"stock": None, "FCA": "averaged", "FCA online": "online", "FCA oracle": "oracle"}
_SMALLEST = 8
_VISIBLE = 12
_NOTHING = 1e-12
_MEASURED = ("share", "inside", "mass")


@dataclass(frozen=True, eq=False)
class NoisedScenes:
    """Renders with their captions, latents, and the mask of the object that each binding is about.

    Attributes:
        prompts: captions; every row has as many bindings.
        links: tokens of attributes and nouns.
        masks: where the object of each binding shows, 0 or 1.
        latents: of the renders, clean.
        noise: that is added to them.
        cond: the captions, encoded.
    """

    prompts: tuple[str, ...]
    links: Links
    masks: Float[Tensor, "rows bindings height width"]
    latents: Float[Tensor, "rows channels h w"]
    noise: Float[Tensor, "rows channels h w"]
    cond: Condition

    @staticmethod
    def make(pipe: Any, count: int, *, seed: int) -> NoisedScenes:
        """The first scenes of the test split with two objects of different shape and colour that both show.

        Args:
            pipe: a latent text-to-image pipeline.
            count: how many, at least 1.
            seed: of scenes and noise.
        """
        scenes, shown, masks = _two_objects(count, pixels(pipe), seed=seed)
        told = [caption(scene, "plain", seed=k) for k, scene in enumerate(scenes)]
        each = [bound(pipe, syntax_of_caption(one)) for one in told]
        links = [link(one.tokens, [Binding(*one.bindings[k]) for k in one.acting]) for one in each]
        owners = [_owners(one) for one in told]
        chosen = torch.stack([mask[list(places)] for mask, places in zip(masks, owners, strict=True)])
        noise = normal(latent_shape(pipe), seed=seed, purpose="binding-leak", count=count, device=pipe.device)
        mean, _ = posterior(pipe, shown.to(pipe.device))
        prompts = tuple(one.text for one in told)
        cond, _ = Condition.from_prompt(pipe, list(prompts))
        return NoisedScenes(prompts, stacked(links), chosen.to(pipe.device), mean, noise, cond)

    def part(self, rows: slice) -> NoisedScenes:
        """Some of the rows."""
        links = Links(self.links.owners[rows], self.links.heads[rows], self.links.groups[rows])
        tensors = (self.masks[rows], self.latents[rows], self.noise[rows])
        return NoisedScenes(self.prompts[rows], links, *tensors, self.cond[rows])


def own_share(
    mass: Float[Tensor, "rows bindings cells"], masks: Float[Tensor, "rows bindings cells"]
) -> Float[Tensor, "rows bindings"]:
    """Share of the attention inside any object that is inside the binding's own; 1/2 where there is none at all.

    Args:
        mass: attention that each binding's attribute gets from each cell.
        masks: share of each cell that the binding's object covers.
    """
    own = (mass * masks).sum(-1)
    total = (mass * masks.sum(1, keepdim=True)).sum(-1)
    return torch.where(total > _NOTHING, own / total.clamp_min(_NOTHING), 0.5)


@dataclass(frozen=True, eq=False)
class Leak:
    """What one arm did.

    Attributes:
        share: `own_share` by timestep and scene, mean over bindings and layers of at least 8x8 cells.
        inside: share of all attention to an attribute that is inside its own object, the background counted.
        mass: share of all attention that an attribute token gets, mean over cells, bindings and the same layers.
        overlap: intersection over union of the nouns' focus with their objects, of the arm that records maps.
    """

    share: Float[Tensor, "timesteps rows"]
    inside: Float[Tensor, "timesteps rows"]
    mass: Float[Tensor, "timesteps rows"]
    overlap: Float[Tensor, " rows"] | None = None


def measure_leak(pipe: Any, noised: NoisedScenes, *, batch_size: int = 50, tau: float = 0.6) -> dict[str, Leak]:
    """Every arm of `ARMS` on the same noised renders.

    Args:
        pipe: the pipeline.
        noised: of that pipeline.
        batch_size: rows at a time.
        tau: threshold of the focus maps.
    """
    starts = range(0, len(noised.prompts), batch_size)
    parts = [_of_part(pipe, noised.part(slice(first, first + batch_size)), tau) for first in starts]
    return {arm: _joined([part[arm] for part in parts]) for arm in ARMS}


def _of_part(pipe: Any, noised: NoisedScenes, tau: float) -> dict[str, Leak]:
    averaged = _attention(noised, "averaged", tau)
    with averaged.recorded():
        stock = _watched(pipe, noised, averaged.edits())
    latent = (noised.latents.shape[-2], noised.latents.shape[-1])
    maps = averaged.recorder.average(latent)
    averaged.use(maps)
    found = {"stock": replace(stock, overlap=_overlap(maps, averaged, noised, tau=tau))}
    found["FCA"] = _watched(pipe, noised, averaged.edits())
    for arm, mode in (("FCA online", "online"), ("FCA oracle", "oracle")):
        found[arm] = _watched(pipe, noised, _attention(noised, mode, tau).edits())  # type: ignore[arg-type]
    return found


def _attention(noised: NoisedScenes, mode: Mode, tau: float) -> FocusedAttention:
    options, report = Options(mode=mode, tau=tau), BindingReport(mode, tau, ())
    return FocusedAttention(noised.links, options, report, maps=noised.masks if mode == "oracle" else None)


@torch.no_grad()
def _watched(pipe: Any, noised: NoisedScenes, edits: Sequence[Edit]) -> Leak:
    """One call of the network a timestep, watched."""
    denoiser = Denoiser(pipe)
    seen: list[Tensor] = []

    def look(call: Call, shares: Tensor) -> None:
        grid = call.require_grid()
        if min(grid) >= _SMALLEST:
            owners = noised.links.owners.to(shares)
            mass = torch.einsum("rqk,rbk->rbq", shares.mean(1)[..., : owners.shape[2]], owners)
            masks = _on_grid(noised.masks, grid)
            share = own_share(mass, masks).mean(1)
            inside = ((mass * masks).sum(-1) / mass.sum(-1).clamp_min(_NOTHING)).mean(1)
            seen.append(torch.stack([share, inside, mass.mean((1, 2))]))

    found = []
    with install(pipe, *edits, Observe(look, kind="cross", branch="cond"), branches=("cond",)):
        for timestep in TIMESTEPS:
            seen.clear()
            noisy = denoiser.levels.add_noise(noised.latents, noised.noise, timestep)
            denoiser.model_output(noisy, timestep, noised.cond)
            found.append(torch.stack(seen).mean(0))
    share, inside, mass = torch.stack(found, 1).cpu()
    return Leak(share, inside, mass)


def _overlap(maps: Tensor, attention: FocusedAttention, noised: NoisedScenes, *, tau: float) -> Float[Tensor, " rows"]:
    grid = (maps.shape[-2], maps.shape[-1])
    weights = noised.links.heads[..., attention.heads].to(maps.device)
    focus = focus_of_maps(maps, weights, grid)[:, 0] > tau
    objects = _on_grid(noised.masks, grid) > 0.5
    return ((focus & objects).sum(-1) / (focus | objects).sum(-1).clamp_min(1)).mean(1).cpu()


def _on_grid(masks: Float[Tensor, "rows bindings height width"], grid: Grid) -> Float[Tensor, "rows bindings cells"]:
    return resize_maps(masks, grid, mode="area").flatten(2)


def _joined(parts: Sequence[Leak]) -> Leak:
    overlaps = [part.overlap for part in parts if part.overlap is not None]
    share, inside, mass = (torch.cat([getattr(part, name) for part in parts], 1) for name in _MEASURED)
    return Leak(share, inside, mass, torch.cat(overlaps) if overlaps else None)


def _owners(told: Caption) -> tuple[int, ...]:
    """Which object each binding of a caption is about, in the order of the bindings."""
    return tuple(binding.index for binding in told.bindings)


def _two_objects(count: int, size: int, *, seed: int) -> tuple[list[Scene], Tensor, list[Tensor]]:
    """Scenes, their renders, and the instance masks of their objects."""
    scenes: list[Scene] = []
    pictures: list[Tensor] = []
    masks: list[Tensor] = []
    first = 0
    while len(scenes) < count:
        some = sample(count, seed=seed, split="test", first=first, objects=(2, 2))
        different = [scene for scene in some if _differ(*scene.objects)]
        frame = render(different or some, size)
        shown = (frame.instance == torch.arange(1, 3)[:, None, None]).float()
        for k, scene in enumerate(different):
            if bool((shown[k].sum((-1, -2)) >= _VISIBLE).all()):
                scenes, pictures, masks = [*scenes, scene], [*pictures, frame.rgb[k]], [*masks, shown[k]]
        first += count
    return scenes[:count], torch.stack(pictures[:count]), masks[:count]


def _differ(one: Any, other: Any) -> bool:
    return one.shape != other.shape and one.colour != other.colour
