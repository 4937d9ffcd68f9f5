"""Light on surfaces: patterns, sun with shadows, sky light with soft contact, highlights, and the backdrop.

All colours are linear RGB until `to_srgb`; vectors and colours are kept in planes (first axis x, y, z or red, green,
blue). The floor is lit for every ray at once; what lies on objects, a smaller part, replaces it; patterns and
highlights are computed only where they show.

Powers are taken in double precision: in single precision the vectorised loop and its scalar remainder differ in the
last bit, and a pixel would depend on its place in the batch and on the number of threads.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mezzotint.worlds.scenes.geometry import Rays, dot, gather
from mezzotint.worlds.scenes.packing import Packed, linear
from mezzotint.worlds.scenes.trace import Hits, blocked
from mezzotint.worlds.scenes.vocabulary import PATTERN_COLOUR, PATTERNS

_SUN = 0.95
_HAZE_NEAR, _HAZE_FAR = 10.5, 26.0
_LIFT = 2e-3


@dataclass(frozen=True)
class _Spots:
    """Points to be lit: whose scene, where, facing where, towards which light, on which object (-1: the floor).

    All axes but the first broadcast against those of the points.
    """

    scene: Int[Tensor, "..."]
    point: Float[Tensor, "3 ..."]
    normal: Float[Tensor, "3 ..."]
    to_light: Float[Tensor, "3 ..."]
    instance: Int[Tensor, "..."]


def shade(
    packed: Packed, hits: Hits, rays: Rays, to_light: Float[Tensor, "3 batch samples 1"]
) -> Float[Tensor, "3 batch samples pixels"]:
    """Linear colour that each ray brings to the camera.

    Args:
        packed: the scenes.
        hits: what the rays meet.
        rays: the camera's.
        to_light: unit directions to the light, for each subsample.
    """
    origin, direction = rays.origin, rays.direction
    met = torch.isfinite(hits.distance)
    distance = torch.where(met, hits.distance, 0.0)
    colour = _floor(packed, met, origin + distance * direction, to_light)
    heading = gather(direction, hits.ray)
    place = gather(origin, hits.scene) + distance.view(-1)[hits.ray] * heading
    spots = _Spots(
        scene=hits.scene,
        point=place + hits.normal * _LIFT,
        normal=hits.normal,
        to_light=gather(to_light.expand_as(direction), hits.ray),
        instance=hits.instance.view(-1)[hits.ray],
    )
    colour.flatten(1)[:, hits.ray] = _objects(packed, spots, hits.local, heading)
    return _behind_haze(packed, colour, distance, met)


def to_srgb(colour: Tensor) -> Tensor:
    """Linear light to sRGB in 0..1 (power 1/2.2)."""
    return _power(colour.clamp(0, 1), 1 / 2.2)


def _power(base: Tensor, exponent: float) -> Tensor:
    return base.double().pow(exponent).to(base.dtype)


def _floor(packed: Packed, met: Tensor, point: Tensor, to_light: Tensor) -> Float[Tensor, "3 batch samples pixels"]:
    """Colour of the floor at every point, those under objects included."""
    scene = torch.arange(packed.batch, device=point.device)[:, None, None]
    up = point.new_tensor([0.0, 1.0, 0.0]).view(3, 1, 1, 1)
    spots = _Spots(scene, point + up * _LIFT, up, to_light, torch.full_like(scene, -1))
    light, _ = _light(packed, spots, met)
    return packed.floor[:, scene] * light


def _objects(packed: Packed, spots: _Spots, local: Tensor, heading: Tensor) -> Float[Tensor, "3 points"]:
    """Colour of points on objects."""
    light, lit = _light(packed, spots, torch.ones_like(spots.scene, dtype=torch.bool))
    item = spots.scene * packed.width + spots.instance
    colour = gather(packed.colour, item)
    pattern = packed.pattern[item]
    painted = torch.nonzero(pattern > 0).squeeze(1)
    second = colour.new_tensor(linear(PATTERN_COLOUR))[:, None]
    shows = _pattern(pattern[painted], gather(local, painted))
    colour[:, painted] = torch.where(shows, second, gather(colour, painted))
    colour *= light
    shiny = torch.nonzero(packed.shiny[item]).squeeze(1)
    if len(shiny):
        colour[:, shiny] += _gloss(packed, spots, gather(heading, shiny), some=shiny, lit=lit[shiny])
    return colour


def _light(packed: Packed, spots: _Spots, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Light that arrives at each spot from sun and sky, and the share of it that comes straight from the sun."""
    facing = dot(spots.normal, spots.to_light).clamp_min(0)
    dark = blocked(packed, Rays(spots.scene, spots.point, spots.to_light), wanted & (facing > 0))
    lit = facing * ~dark
    ambient = packed.ambient[spots.scene]
    sky_share = ambient * _openness(packed, spots) * (0.72 + 0.28 * spots.normal[1])
    return _SUN * (1 - ambient) * lit / 0.62 + sky_share, lit


def _openness(packed: Packed, spots: _Spots) -> Tensor:
    """Share of the sky that a point sees: each other object's ball takes away cos(angle) r^2 / d^2."""
    open_share = torch.ones_like(spots.point[0])
    for k in range(packed.width):
        away = packed.centre[:, k][:, spots.scene] - spots.point
        square = dot(away, away).clamp_min(1e-6)
        cosine = (dot(away, spots.normal) * square.rsqrt()).clamp_min(0)
        ball = (packed.bound[k] * 0.72).square()[spots.scene]
        taken = (cosine * ball / square).clamp(max=0.9) * (packed.present[k][spots.scene] & (spots.instance != k))
        open_share *= 1 - taken
    return open_share


def _pattern(pattern: Int[Tensor, " points"], local: Float[Tensor, "3 points"]) -> Bool[Tensor, " points"]:
    """Where the second colour of a pattern shows, in the object's own coordinates."""
    x, y, z = local
    striped = torch.sin(y * (2 * math.pi * 1.9) + 0.8) > 0.25
    cells = torch.floor(x * 1.7 + 0.35) + torch.floor(y * 1.7 + 0.35) + torch.floor(z * 1.7 + 0.35)
    checkered = torch.remainder(cells, 2) > 0.5
    spot = torch.remainder(local * 1.55 + 0.25, 1.0) - 0.5
    dotted = dot(spot, spot) < 0.155
    chosen = torch.zeros_like(striped)
    for name, where in (("striped", striped), ("checkered", checkered), ("dotted", dotted)):
        chosen = torch.where(pattern == PATTERNS.index(name), where, chosen)
    return chosen


def _gloss(packed: Packed, spots: _Spots, heading: Tensor, *, some: Tensor, lit: Tensor) -> Float[Tensor, "3 some"]:
    """Highlight of the sun and a reflection of the sky that grows towards the rim (Schlick), for some of the spots."""
    normal = gather(spots.normal, some)
    cosine = -dot(normal, heading)
    mirrored = heading + 2 * cosine * normal
    highlight = _power(dot(mirrored, gather(spots.to_light, some)).clamp_min(0), 36) * (lit > 0)
    rim = 0.05 + 0.65 * _power(1 - cosine.clamp(0, 1), 4)
    upward = (0.5 + 0.5 * mirrored[1]).clamp(0, 1)
    return 1.1 * highlight + rim * upward * packed.sky[:, spots.scene[some]]


def _behind_haze(packed: Packed, colour: Tensor, distance: Tensor, met: Tensor) -> Tensor:
    """Fade the floor into the sky with distance, so that the horizon is soft."""
    haze = ((distance - _HAZE_NEAR) / (_HAZE_FAR - _HAZE_NEAR)).clamp(0, 1)
    haze = torch.where(met, haze * haze * (3 - 2 * haze), 1.0)
    return colour * (1 - haze) + packed.sky[:, :, None, None] * haze
