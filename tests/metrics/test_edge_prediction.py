"""EPViT: graphs, scores, and what must hold of the network whatever its weights are (spec: invariant 19)."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mezzotint.loading import embedded
from mezzotint.metrics.edge_prediction import NOUNS, WORDS, EPViT, Graph, Graphs, binding_score, image_score
from mezzotint.metrics.ranking import auc, auc_interval
from mezzotint.metrics.scene_accuracy import WantedObject

RED_CUBE, BLUE_SPHERE = WantedObject("cube", colour="red"), WantedObject("sphere", colour="blue")


@pytest.fixture(scope="module")
def judge() -> EPViT:
    from transformers import ViTConfig

    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=16, patch_size=8,
        decoder_layers=2,
    )  # fmt: skip
    return EPViT(config).eval()


@pytest.fixture(scope="module")
def pictures() -> torch.Tensor:
    return torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def test_a_graph_states_what_was_asked_for_and_swapping_states_the_rest() -> None:
    graph = Graph.of([RED_CUBE, BLUE_SPHERE])
    assert graph == Graph(("cube", "sphere"), ("red", "blue"), ((0, 0), (1, 1)))
    assert graph.swapped().edges == ((0, 1), (1, 0))
    assert graph.swapped().swapped() == graph


def test_objects_of_one_noun_are_one_node_with_all_their_attributes() -> None:
    graph = Graph.of([RED_CUBE, WantedObject("cube", colour="blue"), BLUE_SPHERE])
    assert graph.objects == ("cube", "sphere")
    assert set(graph.edges) == {(0, 0), (1, 0), (1, 1)}
    assert graph.swapped().edges == ((0, 1),)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ((("dog",), ("red",), ()), "objects must be among"),
        ((("cube",), ("sphere",), ()), "attributes must be among"),
        ((("cube",), ("red",), ((1, 0),)), r"an edge is \(attribute 0..0, object 0..0\)"),
        ((("cube",), ("red",), ((0, -1),)), "an edge is"),
    ],
)
def test_words_and_edges_that_are_none_are_refused(parts, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Graph(*parts)


def test_empty_things_are_refused(judge: EPViT, pictures: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="at least one object"):
        Graph.of([])
    with pytest.raises(ValueError, match="at least one graph"):
        Graphs.of([])
    bare = Graph.of([WantedObject("cube")])
    with pytest.raises(ValueError, match="graph 1 has no edge to score"):
        judge.binding(pictures[:2], [Graph.of([RED_CUBE]), bare])
    with pytest.raises(ValueError, match="no edge to score"):
        judge.leakage(pictures[:1], [Graph.of([RED_CUBE])])
    with pytest.raises(ValueError, match="one graph a picture"):
        judge.binding(pictures, [Graph.of([RED_CUBE])])


@given(st.data())
def test_edges_do_not_depend_on_the_order_of_nodes(judge: EPViT, pictures: torch.Tensor, data: st.DataObject) -> None:
    objects = data.draw(st.lists(st.sampled_from(NOUNS), min_size=1, max_size=3, unique=True))
    attributes = data.draw(st.lists(st.sampled_from(WORDS[len(NOUNS) :]), min_size=1, max_size=4, unique=True))
    edges = [(a, o) for a in range(len(attributes)) for o in range(len(objects))]
    graph = Graph(tuple(objects), tuple(attributes), tuple(edges))
    first, second = data.draw(st.permutations(range(len(objects)))), data.draw(st.permutations(range(len(attributes))))
    other = Graph(
        tuple(objects[k] for k in first),
        tuple(attributes[k] for k in second),
        tuple((second.index(a), first.index(o)) for a, o in edges),
    )
    one, two = (judge(pictures[:1], Graphs.of([g])) for g in (graph, other))
    torch.testing.assert_close(one[1], two[1], rtol=1e-4, atol=1e-6)
    order = [*first, *(len(objects) + k for k in second)]
    torch.testing.assert_close(one[0][:, order], two[0], rtol=1e-4, atol=1e-6)


def test_edges_know_their_direction_and_their_nodes(judge: EPViT, pictures: torch.Tensor) -> None:
    graph = Graph(("cube", "sphere"), ("red", "blue"), ((0, 0), (1, 0), (0, 1), (1, 1)))
    logits = judge(pictures[:1], Graphs.of([graph]))[1][0].tolist()
    assert len({round(value, 6) for value in logits}) == 4


def test_padding_and_company_change_nothing(judge: EPViT, pictures: torch.Tensor) -> None:
    small, large = Graph.of([RED_CUBE]), Graph.of([RED_CUBE, BLUE_SPHERE, WantedObject("cone", "pink", "small")])
    together = judge.binding(pictures, [small, large, small])
    alone = torch.cat([judge.binding(pictures[k : k + 1], [g]) for k, g in enumerate((small, large, small))])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-6)
    nodes, edges = judge.probabilities(pictures, Graphs.of([small, large, small]))
    assert torch.equal(nodes[0, 2:], torch.zeros(5))
    assert torch.equal(edges[0, 1:], torch.zeros(3))
    parts = judge.probabilities(pictures, Graphs.of([small, large, small]), batch_size=1)
    torch.testing.assert_close(parts[1], edges, rtol=1e-5, atol=1e-6)


def test_other_nodes_of_a_graph_are_seen(judge: EPViT, pictures: torch.Tensor) -> None:
    with_sphere = Graph(("cube", "sphere"), ("red",), ((0, 0),))
    without = Graph(("cube",), ("red",), ((0, 0),))
    seen = judge.binding(pictures[:1], [with_sphere]) - judge.binding(pictures[:1], [without])
    assert float(seen.abs()) > 1e-6


def test_scores_are_means_over_what_is_there() -> None:
    edges = torch.tensor([[0.2, 0.4, 0.9], [0.5, 0.0, 0.0]])
    stated = torch.tensor([[True, True, False], [True, False, False]])
    torch.testing.assert_close(binding_score(edges, stated), torch.tensor([0.3, 0.5]))
    nodes, objects = torch.tensor([[1.0, 0.5, 0.1], [0.8, 0.3, 0.0]]), torch.tensor([[True, True, False]] * 2)
    found = image_score(edges, stated, nodes=nodes, objects=objects)
    torch.testing.assert_close(found, torch.tensor([0.3 * 0.75, 0.5 * 0.55]))


def test_a_folder_with_other_words_is_no_judge(tmp_path) -> None:
    from transformers import ViTConfig

    ViTConfig(id2label={0: "dog", 1: "cat"}, label2id={"dog": 0, "cat": 1}).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="no EPViT of this world"):
        EPViT.load(tmp_path)


def test_the_area_under_the_curve_counts_pairs() -> None:
    true, false = torch.tensor([3.0, 2.0, 1.0]), torch.tensor([2.0, 0.0, -1.0])
    wins = sum(1.0 if t > f else 0.5 if t == f else 0.0 for t in true for f in false) / 9
    assert auc(true, false) == pytest.approx(wins)
    assert auc(false, true) == pytest.approx(1 - wins)
    assert auc(true, true) == pytest.approx(0.5)
    with pytest.raises(ValueError, match="both needed"):
        auc(true, false[:0])


def test_the_interval_of_the_area_holds_it() -> None:
    generator = torch.Generator().manual_seed(0)
    true, false = torch.randn(200, generator=generator) + 1, torch.randn(200, generator=generator)
    found = auc_interval(true, false)
    assert found.low < found.estimate < found.high
    assert found.low < 0.7602 < found.high  # P(N(1, 2) > 0)
    with pytest.raises(ValueError, match="in pairs"):
        auc_interval(true, false[:3])


@pytest.mark.skipif("epvit" not in embedded(), reason="the weights are not there yet")
def test_the_embedded_judge_tells_true_from_swapped() -> None:
    from mezzotint.zoo.swaps import graph_scores, swaps

    true, false = graph_scores(EPViT.load(), swaps(96))
    assert auc(true, false) > 0.95
