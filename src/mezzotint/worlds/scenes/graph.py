"""Scene graphs: objects with their attributes and who stands where, as the camera sees it.

A graph is what a caption promises and what a picture is judged by: `wanted` gives the objects in the form that
`metrics.scene_accuracy` asks for, `parsed` what a parser without errors would read from the rendered picture.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from itertools import permutations
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mezzotint.metrics.scene_accuracy import ParsedObject, Relation, WantedObject
from mezzotint.worlds.scenes.camera import intrinsics, world_to_camera
from mezzotint.worlds.scenes.captions import Caption
from mezzotint.worlds.scenes.geometry import HALF_HEIGHT
from mezzotint.worlds.scenes.scene import Scene
from mezzotint.worlds.scenes.views import project


@dataclass(frozen=True)
class Node:
    """An object of a scene graph.

    Attributes:
        shape: the noun.
        colour: name of its colour.
        size: small or large.
        material: matte or shiny.
        pattern: plain, striped, checkered or dotted.
        x: where its centre is across the picture, 0 (left edge) to 1 (right edge); outside 0..1 it is out of view.
        y: where it touches the floor, 0 (top edge, far) to 1 (bottom edge, near).
        depth: distance of its centre along the optical axis, world units.
    """

    shape: str
    colour: str
    size: str
    material: str
    pattern: str
    x: float
    y: float
    depth: float


@dataclass(frozen=True)
class SceneGraph:
    """Objects (in the order of the scene), relations between them, and what is around them."""

    nodes: tuple[Node, ...]
    edges: tuple[Relation, ...]
    floor: str
    sky: str

    def wanted(self, caption: Caption | None = None) -> list[WantedObject]:
        """The objects as a prompt asks for them, in the order of the scene.

        Args:
            caption: of the same scene; then only the attributes that it names are asked for, and only the objects.
                Without it, everything is.
        """
        if caption is None:
            return [
                WantedObject(item.shape, item.colour, item.size, item.material, item.pattern) for item in self.nodes
            ]
        said: dict[int, dict[str, str]] = {index: {} for index, _ in sorted(caption.nouns, key=lambda item: item[0])}
        for binding in caption.bindings:
            said[binding.index][binding.attribute] = getattr(self.nodes[binding.index], binding.attribute)
        return [WantedObject(self.nodes[index].shape, **words) for index, words in said.items()]

    def parsed(self) -> list[ParsedObject]:
        """What a parser without errors would read from the picture, in the order of the scene."""
        return [
            ParsedObject(node.shape, node.colour, node.size, node.material, node.pattern, x=node.x, y=node.y)
            for node in self.nodes
        ]

    def to_json(self) -> str:
        """The graph as one line of JSON; `from_json` gives back an equal graph."""
        return json.dumps(dataclasses.asdict(self))

    @staticmethod
    def from_json(text: str) -> SceneGraph:
        """Read a graph written by `to_json`.

        Raises:
            ValueError: when the text is no JSON or no graph.
        """
        try:
            data: Any = json.loads(text)
            nodes = tuple(Node(**item) for item in data.pop("nodes"))
            edges = tuple(Relation(**item) for item in data.pop("edges"))
            return SceneGraph(nodes=nodes, edges=edges, **data)
        except (TypeError, KeyError, AttributeError, RecursionError, json.JSONDecodeError) as error:
            raise ValueError(f"not a scene graph: {type(error).__name__}: {error}") from error


def graph(scene: Scene, *, margin: float = 0.04) -> SceneGraph:
    """Describe what stands where in a picture of the scene.

    Args:
        scene: the scene; places are those that its camera sees.
        margin: an edge says left or right (in front or behind) only where the two are at least this share of the
            picture's width (height) apart, so that a parser can tell.

    Raises:
        ValueError: for a negative margin.
    """
    if margin < 0:
        raise ValueError(f"margin must not be negative, got {margin}")
    places = _places(scene).tolist()
    nodes = tuple(
        Node(item.shape, item.colour, item.size, item.material, item.pattern, *place)
        for item, place in zip(scene.objects, places, strict=True)
    )
    edges = [
        Relation(one, kind, other)
        for one, other in permutations(range(len(nodes)), 2)
        for kind in _kinds(nodes[one], nodes[other], margin)
    ]
    return SceneGraph(nodes, tuple(edges), scene.floor, scene.sky)


def _kinds(one: Node, other: Node, margin: float) -> list[str]:
    across, down = one.x - other.x, one.y - other.y
    kinds = ["left of" if across < 0 else "right of"] if abs(across) > margin else []
    return kinds + (["in front of" if down > 0 else "behind"] if abs(down) > margin else [])


def _places(scene: Scene) -> Float[Tensor, "objects 3"]:
    """Across, down (both as shares of the picture) and depth of every object."""
    feet = [(item.x, 0.0, item.z) for item in scene.objects]
    middles = [(item.x, item.radius * HALF_HEIGHT[item.shape], item.z) for item in scene.objects]
    points = torch.tensor(feet + middles, dtype=torch.float32).view(1, len(feet + middles), 3)
    pixels, depth = project(points, world_to_camera([scene]), intrinsics([scene], 1))
    count = len(feet)
    return torch.stack([pixels[0, count:, 0], pixels[0, :count, 1], depth[0, count:]], -1)
