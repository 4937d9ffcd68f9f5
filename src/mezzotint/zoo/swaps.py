"""Pictures with a true statement, and one in which two objects have exchanged an attribute: which one scores higher?

The statement is a graph for EPViT and a caption for a text similarity; both say the same about the same render.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from mezzotint.metrics.edge_prediction import EPViT, Graph, Graphs
from mezzotint.metrics.scene_accuracy import WantedObject
from mezzotint.metrics.text_similarity import TextSimilarity
from mezzotint.worlds.scenes.captions import caption
from mezzotint.worlds.scenes.edits import swap
from mezzotint.worlds.scenes.render import picture
from mezzotint.worlds.scenes.sampling import Combinations, Split, sample
from mezzotint.worlds.scenes.scene import Scene

__all__ = ["KINDS", "Swaps", "edge_accuracy", "graph_scores", "similarity_scores", "swaps", "text_pairs"]

Kind = Literal["colour", "size", "material", "pattern"]
KINDS: tuple[Kind, ...] = ("colour", "size", "material", "pattern")


@dataclass(frozen=True, eq=False)
class Swaps:
    """Scenes of different nouns, their pictures, and the scenes after an exchange.

    Attributes:
        kind: the attribute that was exchanged.
        scenes: as rendered.
        exchanged: the same scenes with the attribute of two objects exchanged; not rendered.
        pictures: of `scenes`, in 0..1.
    """

    kind: Kind
    scenes: tuple[Scene, ...]
    exchanged: tuple[Scene, ...]
    pictures: Float[Tensor, "count 3 height width"]

    def graphs(self) -> tuple[list[Graph], list[Graph]]:
        """True and false graphs: the nouns with the one attribute."""
        return [_graph(scene, self.kind) for scene in self.scenes], [_graph(s, self.kind) for s in self.exchanged]


def swaps(
    count: int, kind: Kind = "colour", *, seed: int = 0, split: Split = "test", combined: Combinations = "all"
) -> Swaps:
    """The first `count` scenes of a split in which two objects can exchange an attribute and every noun occurs once.

    Args:
        count: number of scenes, at least 1.
        kind: the attribute to exchange.
        seed: of the scenes.
        split: of the scenes.
        combined: which pairs of shape and colour occur in the rendered scenes.
    """
    found: list[tuple[Scene, Scene]] = []
    first = 0
    while len(found) < count:
        some = sample(count, seed=seed, split=split, first=first, objects=(2, 3), combinations=combined)
        found += [(scene, other) for scene in some if (other := _exchanged(scene, kind)) is not None]
        first += count
    scenes, others = zip(*found[:count], strict=True)
    return Swaps(kind, scenes, others, picture(list(scenes)))


def graph_scores(judge: EPViT, pairs: Swaps) -> tuple[Float[Tensor, " count"], Float[Tensor, " count"]]:
    """EPViT's binding score of the true and of the false graph of each picture."""
    true, false = pairs.graphs()
    return judge.binding(pairs.pictures, true), judge.binding(pairs.pictures, false)


def text_pairs(pairs: Swaps) -> tuple[list[str], list[str]]:
    """A true and a false caption of each picture, of the same wording."""
    style: Literal["short", "detailed"] = "short" if pairs.kind == "colour" else "detailed"

    def said(scenes: tuple[Scene, ...]) -> list[str]:
        return [caption(scene, style, seed=k).text for k, scene in enumerate(scenes)]

    return said(pairs.scenes), said(pairs.exchanged)


def similarity_scores(model: TextSimilarity, pairs: Swaps) -> tuple[Float[Tensor, " count"], Float[Tensor, " count"]]:
    """Cosine of each picture with its true and with its false caption."""
    true, false = text_pairs(pairs)
    return model.cosine(pairs.pictures, true), model.cosine(pairs.pictures, false)


def edge_accuracy(judge: EPViT, pairs: Swaps) -> Float[Tensor, " count"]:
    """Share of the edges of each picture, true and swapped ones, that are judged rightly at probability 1/2."""
    true, _ = pairs.graphs()
    batch = Graphs.of([Graph(one.objects, one.attributes, one.edges + one.swapped().edges) for one in true])
    holds = torch.arange(batch.edges.shape[1]) < torch.tensor([[len(one.edges)] for one in true])
    said = judge.probabilities(pairs.pictures, batch)[1] > 0.5
    return ((said == holds) & batch.stated).sum(1) / batch.stated.sum(1)


def _graph(scene: Scene, kind: Kind) -> Graph:
    return Graph.of([WantedObject(item.shape, **{kind: getattr(item, kind)}) for item in scene.objects])


def _exchanged(scene: Scene, kind: Kind) -> Scene | None:
    items = scene.objects
    if len({item.shape for item in items}) < len(items):
        return None
    pairs = combinations(range(len(items)), 2)
    differ = ((i, j) for i, j in pairs if getattr(items[i], kind) != getattr(items[j], kind))
    chosen = next(differ, None)
    return None if chosen is None else swap(scene, *chosen, kind)
