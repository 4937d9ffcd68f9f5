"""EPViT: does a picture show the objects of a graph, each with its own attributes?

After arXiv 2404.13766, which gives the idea and does not publish the network: its form and sizes are ours.

A vision transformer encodes the picture, the nodes of the graph (objects and attributes, by their words) ask it
through decoder layers, and a small network says of each edge attribute -> object whether it is true:

    z_i = decoder(embedding(word_i), patches)        node logit = w . z_i
    edge logit(a, o) = MLP([z_o ; z_a ; z_o * z_a])

A graph is one of words: several objects with the same noun are one node, and an edge is true if any of them has the
attribute.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from mezzotint.files import read_safetensors
from mezzotint.loading import zoo_path
from mezzotint.metrics.parser import ATTRIBUTES
from mezzotint.metrics.scene_accuracy import WantedObject

__all__ = ["NOUNS", "WORDS", "EPViT", "Graph", "Graphs", "binding_score", "image_score"]

NOUNS: tuple[str, ...] = ATTRIBUTES["shape"]
WORDS: tuple[str, ...] = tuple(word for words in ATTRIBUTES.values() for word in words)
"""Labels of nodes: the nouns, then the attribute words of the scenes world."""
_NONE = -1


@dataclass(frozen=True)
class Graph:
    """Objects, attributes and which attribute belongs to which object.

    Attributes:
        objects: nouns, each of `NOUNS`.
        attributes: the other words of `WORDS`.
        edges: (place in `attributes`, place in `objects`), one for each statement.
    """

    objects: tuple[str, ...]
    attributes: tuple[str, ...]
    edges: tuple[tuple[int, int], ...]

    def __post_init__(self) -> None:
        """Refuse words that the world does not have, and edges to nowhere."""
        if strange := [word for word in self.objects if word not in NOUNS]:
            raise ValueError(f"objects must be among {', '.join(NOUNS)}; got {strange[0]!r}")
        allowed = WORDS[len(NOUNS) :]
        if strange := [word for word in self.attributes if word not in allowed]:
            raise ValueError(f"attributes must be among {', '.join(allowed)}; got {strange[0]!r}")
        sizes = len(self.attributes), len(self.objects)
        if bad := [e for e in self.edges if not (0 <= e[0] < sizes[0] and 0 <= e[1] < sizes[1])]:
            raise ValueError(f"an edge is (attribute 0..{sizes[0] - 1}, object 0..{sizes[1] - 1}), got {bad[0]}")

    @staticmethod
    def of(wanted: Sequence[WantedObject]) -> Graph:
        """The graph of objects that were asked for, with those of their attributes that were.

        Args:
            wanted: at least one object; objects of one noun become one node.

        Raises:
            ValueError: there is no object, or a word that the world does not have.
        """
        if not wanted:
            raise ValueError("a graph needs at least one object, got none")
        objects = tuple(dict.fromkeys(item.shape for item in wanted))
        attributes = tuple(dict.fromkeys(word for item in wanted for word in item.attributes.values()))
        stated = [(word, item.shape) for item in wanted for word in item.attributes.values()]
        edges = dict.fromkeys((attributes.index(word), objects.index(noun)) for word, noun in stated)
        return Graph(objects, attributes, tuple(edges))

    def swapped(self) -> Graph:
        """The same nodes with the wrong edges: every stated attribute on every object that was not to have it."""
        stated = sorted({attribute for attribute, _ in self.edges})
        wrong = [(a, o) for a in stated for o in range(len(self.objects)) if (a, o) not in self.edges]
        return Graph(self.objects, self.attributes, tuple(wrong))


@dataclass(frozen=True, eq=False)
class Graphs:
    """A batch of graphs, padded with -1.

    Attributes:
        labels: place in `WORDS` of each node.
        edges: (attribute, object) of each edge, as places among the nodes of its graph.
    """

    labels: Int[Tensor, "batch nodes"]
    edges: Int[Tensor, "batch edges 2"]

    @staticmethod
    def of(graphs: Sequence[Graph], device: str | torch.device = "cpu") -> Graphs:
        """Pad graphs to one size; the objects of a graph come first.

        Raises:
            ValueError: there is no graph.
        """
        if not graphs:
            raise ValueError("a batch needs at least one graph, got none")
        labels = [[WORDS.index(word) for word in (*graph.objects, *graph.attributes)] for graph in graphs]
        edges = [[(len(graph.objects) + a, o) for a, o in graph.edges] for graph in graphs]
        return Graphs(_padded(labels, _NONE, device), _padded(edges, (_NONE, _NONE), device).view(len(graphs), -1, 2))

    @property
    def nodes(self) -> Bool[Tensor, "batch nodes"]:
        """Which nodes are there."""
        return self.labels >= 0

    @property
    def objects(self) -> Bool[Tensor, "batch nodes"]:
        """Which nodes are objects."""
        return self.nodes & (self.labels < len(NOUNS))

    @property
    def stated(self) -> Bool[Tensor, "batch edges"]:
        """Which edges are there."""
        return self.edges[..., 0] >= 0

    def __getitem__(self, index: slice) -> Graphs:
        return Graphs(self.labels[index], self.edges[index])

    def to(self, device: str | torch.device) -> Graphs:
        """The same graphs on a device."""
        return Graphs(self.labels.to(device), self.edges.to(device))


class EPViT(nn.Module):
    """The edge prediction network.

    Args:
        config: a `ViTConfig` of the encoder, with `decoder_layers`, the number of layers through which nodes look.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        from transformers import ViTModel

        width, heads = config.hidden_size, config.num_attention_heads
        self.config = config
        self.vit = ViTModel(config, add_pooling_layer=False)
        self.embedding = nn.Embedding(len(WORDS), width)
        layer = nn.TransformerDecoderLayer(
            width, heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.decoder = nn.TransformerDecoder(layer, config.decoder_layers, nn.LayerNorm(width))
        self.node = nn.Linear(width, 1)
        self.edge = nn.Sequential(nn.Linear(3 * width, 2 * width), nn.GELU(), nn.Linear(2 * width, 1))

    @staticmethod
    def load(folder: str | Path | None = None, *, device: str | torch.device = "cpu") -> EPViT:
        """Load a trained network from its folder, by default the embedded one.

        Raises:
            FileError: the folder's files are not sound.
            ValueError: the network's words are not those of this world.
        """
        from transformers import ViTConfig

        place = Path(folder) if folder is not None else zoo_path("epvit")
        config = ViTConfig.from_pretrained(place, local_files_only=True)
        found = tuple(config.id2label[index] for index in range(len(config.id2label)))
        if found != WORDS:
            raise ValueError(f"{place} is no EPViT of this world: its words are {found[:3]}... and not {WORDS[:3]}...")
        network = EPViT(config)
        network.load_state_dict({name: v.float() for name, v in read_safetensors(place / "model.safetensors").items()})
        return network.to(device).eval()

    def forward(
        self, pictures: Float[Tensor, "batch 3 height width"], graphs: Graphs
    ) -> tuple[Float[Tensor, "batch nodes"], Float[Tensor, "batch edges"]]:
        """Logits of nodes ("this is in the picture") and of edges; those of padding mean nothing.

        Args:
            pictures: sRGB in 0..1, of the side the network was made for.
            graphs: one a picture.
        """
        return self.read(self.encode(pictures), graphs)

    def encode(self, pictures: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch tokens features"]:
        """What the encoder makes of pictures in 0..1: a token for the whole, then one a patch, row by row."""
        return self.vit(pictures * 2 - 1).last_hidden_state

    def read(
        self, patches: Float[Tensor, "batch tokens features"], graphs: Graphs
    ) -> tuple[Float[Tensor, "batch nodes"], Float[Tensor, "batch edges"]]:
        """Logits of nodes and edges from encoded pictures."""
        queries = self.embedding(graphs.labels.clamp_min(0))
        z = self.decoder(queries, patches, tgt_key_padding_mask=~graphs.nodes)
        rows = torch.arange(len(z), device=z.device)[:, None]
        attribute, item = z[rows, graphs.edges[..., 0].clamp_min(0)], z[rows, graphs.edges[..., 1].clamp_min(0)]
        return self.node(z)[..., 0], self.edge(torch.cat([item, attribute, item * attribute], -1))[..., 0]

    @torch.no_grad()
    def probabilities(
        self, pictures: Float[Tensor, "batch 3 height width"], graphs: Graphs, *, batch_size: int = 128
    ) -> tuple[Float[Tensor, "batch nodes"], Float[Tensor, "batch edges"]]:
        """Probabilities of nodes and edges, 0 where there is none.

        Args:
            pictures: sRGB in 0..1.
            graphs: one a picture.
            batch_size: pictures at a time.

        Raises:
            ValueError: the numbers of pictures and graphs differ.
        """
        if len(pictures) != len(graphs.labels):
            raise ValueError(f"one graph a picture, got {len(pictures)} pictures and {len(graphs.labels)} graphs")
        parts = [slice(first, first + batch_size) for first in range(0, len(pictures), batch_size)]
        logits = [self(pictures[part], graphs[part].to(pictures.device)) for part in parts]
        nodes, edges = (torch.cat(found).sigmoid() for found in zip(*logits, strict=True))
        return nodes * graphs.nodes.to(nodes.device), edges * graphs.stated.to(edges.device)

    def binding(
        self, pictures: Float[Tensor, "batch 3 height width"], graphs: Sequence[Graph]
    ) -> Float[Tensor, " batch"]:
        """Mean probability of the edges of each graph, 0..1; raises as `binding_score`."""
        batch = Graphs.of(graphs)
        _refuse_empty(batch.stated)
        return binding_score(self.probabilities(pictures, batch)[1], batch.stated.to(pictures.device))

    def leakage(
        self, pictures: Float[Tensor, "batch 3 height width"], graphs: Sequence[Graph]
    ) -> Float[Tensor, " batch"]:
        """Mean probability of the swapped edges (`Graph.swapped`), 0..1; graphs without any are refused."""
        return self.binding(pictures, [graph.swapped() for graph in graphs])

    def image(
        self, pictures: Float[Tensor, "batch 3 height width"], graphs: Sequence[Graph]
    ) -> Float[Tensor, " batch"]:
        """The product of `image_score` for each picture; raises as `binding_score`."""
        batch = Graphs.of(graphs)
        _refuse_empty(batch.stated)
        nodes, edges = self.probabilities(pictures, batch)
        place = pictures.device
        return image_score(edges, batch.stated.to(place), nodes=nodes, objects=batch.objects.to(place))


def binding_score(edges: Float[Tensor, "batch edges"], stated: Bool[Tensor, "batch edges"]) -> Float[Tensor, " batch"]:
    """Mean probability over the edges of each graph.

    Args:
        edges: probabilities.
        stated: which edges count.

    Raises:
        ValueError: a graph has no edge: nothing was said that could be true or false.
    """
    _refuse_empty(stated)
    return (edges * stated).sum(1) / stated.sum(1)


def image_score(
    edges: Float[Tensor, "batch edges"],
    stated: Bool[Tensor, "batch edges"],
    *,
    nodes: Float[Tensor, "batch nodes"],
    objects: Bool[Tensor, "batch nodes"],
) -> Float[Tensor, " batch"]:
    """Mean over the edges times mean over the object nodes: bound rightly, and there at all.

    Args:
        edges: probabilities of the edges.
        stated: which edges count.
        nodes: probabilities of the nodes.
        objects: which nodes are objects.

    Raises:
        ValueError: a graph has no edge.
    """
    return binding_score(edges, stated) * (nodes * objects).sum(1) / objects.sum(1)


def _refuse_empty(stated: Tensor) -> None:
    if empty := torch.nonzero(~stated.any(1)).flatten().tolist():
        raise ValueError(
            f"graph {empty[0]} has no edge to score: every graph needs an attribute (for leakage, on one of several "
            "objects); leave the picture out"
        )


def _padded(rows: Sequence[Sequence[Any]], blank: Any, device: str | torch.device) -> Tensor:
    width = max(1, *map(len, rows))
    return torch.tensor([[*row, *[blank] * (width - len(row))] for row in rows], dtype=torch.long, device=device)
