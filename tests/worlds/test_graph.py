"""Scene graphs agree with pictures and captions, and are what the metric asks for."""

import pytest
import torch

from mezzotint.metrics.scene_accuracy import score_scene
from mezzotint.worlds import scenes
from mezzotint.worlds.scenes import SceneGraph, caption, graph

DRAWN = scenes.sample(40, seed=31)


def test_json_gives_back_an_equal_graph():
    for scene in DRAWN[:10]:
        assert SceneGraph.from_json(graph(scene).to_json()) == graph(scene)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"nodes": [], "edges": [{}]}', '{"nodes": [1], "edges": []}'])
def test_text_that_is_no_graph_is_refused(text):
    with pytest.raises(ValueError, match="not a scene graph"):
        SceneGraph.from_json(text)


def test_nodes_lie_where_the_picture_shows_the_objects(trio):
    size = 128
    frame = scenes.render([trio], size)
    for number, node in enumerate(graph(trio).nodes, start=1):
        rows, columns = torch.nonzero(frame.instance[0, 0] == number, as_tuple=True)
        assert node.x == pytest.approx((columns.double().mean().item() + 0.5) / size, abs=0.02)
        assert rows.min() / size < node.y < (rows.max() + 2) / size
        middle = frame.depth[0, 0, rows, columns]
        assert middle.min() < node.depth < middle.max() + 1.0


def test_an_edge_and_its_opposite_come_together():
    opposite = {"left of": "right of", "right of": "left of", "in front of": "behind", "behind": "in front of"}
    for scene in DRAWN:
        edges = {(edge.subject, edge.kind, edge.target) for edge in graph(scene).edges}
        assert {(target, opposite[kind], subject) for subject, kind, target in edges} == edges


def test_a_turn_by_180_degrees_exchanges_left_and_right(trio):
    front, back = graph(trio), graph(scenes.orbit(trio, [180.0])[0])
    for one, other in zip(front.nodes, back.nodes, strict=True):
        assert (one.x - 0.5) * (other.x - 0.5) < 0


def test_a_perfect_parse_answers_every_caption():
    for number, scene in enumerate(DRAWN):
        truth = graph(scene)
        score = score_scene(truth.wanted(), truth.parsed(), relations=truth.edges)
        assert (score.exact, score.binding, score.swap, score.relations) == (1.0, 1.0, 0.0, 1.0)
        for style in scenes.STYLES:
            said = caption(scene, style, seed=number)
            assert score_scene(truth.wanted(said), truth.parsed(), relations=said.relations).exact == 1.0


def test_a_caption_asks_only_for_what_it_says(trio):
    shapes = [item.shape for item in trio.objects]
    wanted = graph(trio).wanted(caption(trio, "plain"))
    assert [item.shape for item in wanted] == shapes
    assert [item.attributes for item in wanted] == [{"colour": item.colour} for item in trio.objects]
    detailed = graph(trio).wanted(caption(trio, "detailed"))
    assert detailed[1].attributes == {"colour": "blue", "size": "small", "material": "shiny", "pattern": "dotted"}


def test_swapped_colours_are_counted_as_a_swap(trio):
    swapped = graph(scenes.swap(trio, 0, 1, "colour")).parsed()
    score = score_scene(graph(trio).wanted(caption(trio)), swapped)
    assert (score.right, score.swap, score.missing, score.presence) == (0.0, 1.0, 0.0, 1.0)


def test_a_negative_margin_is_refused():
    with pytest.raises(ValueError, match="margin must not be negative"):
        graph(scenes.Scene(), margin=-0.1)
