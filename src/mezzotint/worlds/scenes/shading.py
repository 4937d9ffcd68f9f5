"""Light on surfaces: patterns, sun with shadows, sky light with soft contact, highlights, and the backdrop.

All colours are linear RGB until `to_srgb`.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mezzotint.worlds.scenes.packing import Packed, linear
from mezzotint.worlds.scenes.trace import Hits, object_distances
from mezzotint.worlds.scenes.vocabulary import PATTERN_COLOUR, PATTERNS

_SUN = 0.95
_HAZE_NEAR, _HAZE_FAR = 10.5, 26.0
_LIFT = 2e-3


def shade(
    packed: Packed,
    hits: Hits,
    origin: Float[Tensor, "batch one 3"],
    direction: Float[Tensor, "batch rays 3"],
    to_light: Float[Tensor, "batch rays 3"],
) -> Float[Tensor, "batch rays 3"]:
    """Linear colour that each ray brings to the camera."""
    met = torch.isfinite(hits.distance)
    distance = torch.where(met, hits.distance, 0.0)
    point = origin + distance[..., None] * direction + hits.normal * _LIFT
    facing = (hits.normal * to_light).sum(-1).clamp_min(0)
    lit = facing * ~_shadowed(packed, point, to_light, met & (facing > 0))
    sky_share = packed.ambient[:, None] * _openness(packed, hits, point) * (0.72 + 0.28 * hits.normal[..., 1])
    light = _SUN * (1 - packed.ambient[:, None]) * lit / 0.62 + sky_share
    colour = _albedo(packed, hits) * light[..., None]
    colour = colour + _gloss(packed, hits, direction, to_light, lit)
    return _behind_haze(packed, colour, distance, direction, met)


def to_srgb(colour: Tensor) -> Tensor:
    """Linear light to sRGB in 0..1 (power 1/2.2)."""
    return colour.clamp(0, 1).pow(1 / 2.2)


def _shadowed(packed: Packed, point: Tensor, to_light: Tensor, wanted: Bool[Tensor, "batch rays"]) -> Tensor:
    return torch.isfinite(object_distances(packed, point, to_light, wanted).amin(1))


def _openness(packed: Packed, hits: Hits, point: Tensor) -> Float[Tensor, "batch rays"]:
    """Share of the sky that a point sees: each object's ball takes away cos(angle) r^2 / d^2; an object does not shade itself."""
    open_share = torch.ones_like(hits.distance)
    for k in range(packed.centre.shape[1]):
        away = packed.centre[:, k, None] - point
        square = (away * away).sum(-1).clamp_min(1e-6)
        cosine = ((away * hits.normal).sum(-1) * square.rsqrt()).clamp_min(0)
        ball = (packed.bound[:, k] * 0.72).square()[:, None]
        taken = (cosine * ball / square).clamp(max=0.9) * (packed.present[:, k, None] & (hits.instance != k))
        open_share = open_share * (1 - taken)
    return open_share


def _albedo(packed: Packed, hits: Hits) -> Float[Tensor, "batch rays 3"]:
    on_object = hits.instance >= 0
    index = hits.instance.clamp_min(0)
    rows = torch.arange(index.shape[0], device=index.device)[:, None]
    own = packed.colour[rows, index]
    second = own.new_tensor(linear(PATTERN_COLOUR))
    painted = torch.where(_pattern(packed.pattern[rows, index], hits.local)[..., None], second, own)
    return torch.where(on_object[..., None], painted, packed.floor[:, None])


def _pattern(pattern: Tensor, local: Tensor) -> Bool[Tensor, "batch rays"]:
    """Where the second colour of a pattern shows, in the object's own coordinates."""
    x, y, z = local.unbind(-1)
    striped = torch.sin(y * (2 * math.pi * 1.9) + 0.8) > 0.25
    cells = torch.floor(x * 1.7 + 0.35) + torch.floor(y * 1.7 + 0.35) + torch.floor(z * 1.7 + 0.35)
    checkered = torch.remainder(cells, 2) > 0.5
    spot = (torch.remainder(local * 1.55 + 0.25, 1.0) - 0.5).square().sum(-1)
    dotted = spot < 0.155
    chosen = torch.zeros_like(striped)
    for name, where in (("striped", striped), ("checkered", checkered), ("dotted", dotted)):
        chosen = torch.where(pattern == PATTERNS.index(name), where, chosen)
    return chosen


def _gloss(packed: Packed, hits: Hits, direction: Tensor, to_light: Tensor, lit: Tensor) -> Tensor:
    """Highlight of the sun and a reflection of the sky that grows towards the rim (Schlick), on shiny objects."""
    rows = torch.arange(direction.shape[0], device=direction.device)[:, None]
    shiny = (hits.instance >= 0) & packed.shiny[rows, hits.instance.clamp_min(0)]
    cosine = -(hits.normal * direction).sum(-1, keepdim=True)
    mirrored = direction + 2 * cosine * hits.normal
    highlight = (mirrored * to_light).sum(-1).clamp_min(0).pow(36) * (lit > 0)
    rim = 0.05 + 0.65 * (1 - cosine.clamp(0, 1)).pow(4)
    upward = (0.5 + 0.5 * mirrored[..., 1:2]).clamp(0, 1)
    return shiny[..., None] * (1.1 * highlight[..., None] + rim * upward * packed.sky[:, None])


def _behind_haze(packed: Packed, colour: Tensor, distance: Tensor, direction: Tensor, met: Tensor) -> Tensor:
    """Fade the floor into the sky with distance, so that the horizon is soft."""
    haze = ((distance - _HAZE_NEAR) / (_HAZE_FAR - _HAZE_NEAR)).clamp(0, 1)
    haze = torch.where(met, haze * haze * (3 - 2 * haze), 1.0)[..., None]
    return colour * (1 - haze) + packed.sky[:, None] * haze
