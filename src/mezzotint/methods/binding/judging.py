"""E3 of the experiment, and the judges of E2: what tells a right binding from a swapped one?

Real renders against a statement in which two objects have exchanged an attribute: EPViT reads graphs, the CLIP-like
similarity reads captions. EPViT judges generated pictures only where it gets more than 95 % of the edges right here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mezzotint.evidence import Experiment
from mezzotint.metrics.bootstrap import resampled_statistic
from mezzotint.metrics.edge_prediction import EPViT, Graph
from mezzotint.metrics.parser import SceneParser
from mezzotint.metrics.ranking import auc
from mezzotint.metrics.scene_accuracy import WantedObject, score_scenes
from mezzotint.metrics.text_similarity import TextSimilarity
from mezzotint.zoo.swaps import KINDS, Swaps, edge_accuracy, graph_scores, similarity_scores, swaps

__all__ = ["AUC", "HIGHER", "TRUSTED", "Judges", "measure_metrics"]

AUC, HIGHER, RIGHT = "AUC, true over swapped", "true statement scores higher", "edges judged rightly"
ARMS = ("EPViT", "similarity")
TRUSTED = 0.95


@dataclass(frozen=True)
class Judges:
    """The instruments: a parser of scenes, EPViT, and a similarity of pictures and captions."""

    parser: SceneParser
    edges: EPViT
    similarity: TextSimilarity

    @staticmethod
    def load() -> Judges:
        """The embedded ones."""
        return Judges(SceneParser.load(), EPViT.load(), TextSimilarity.load())

    def of(
        self,
        pictures: Float[Tensor, "count 3 height width"],
        wanted: Sequence[Sequence[WantedObject]],
        prompts: Sequence[str],
    ) -> dict[str, list[float]]:
        """What all of them say of pictures: the fields of `SceneScore`, and `epvit`, `leakage`, `clip_score`.

        Args:
            pictures: in 0..1.
            wanted: what each picture should show, at least two objects of different nouns.
            prompts: the same in words.
        """
        graphs = [Graph.of(objects) for objects in wanted]
        judged = {
            "epvit": self.edges.binding(pictures, graphs),
            "leakage": self.edges.leakage(pictures, graphs),
            "clip_score": self.similarity.score(pictures, prompts),
        }
        parsed = score_scenes(wanted, self.parser.parse(pictures))
        return parsed | {name: values.tolist() for name, values in judged.items()}


def measure_metrics(trial: Experiment, judges: Judges, seeds: Sequence[int], count: int, *, draws: int = 200) -> bool:
    """Add the rows of E3; returns whether EPViT may judge pictures.

    Args:
        trial: the experiment, with the arms EPViT and similarity.
        judges: what is compared.
        seeds: of the renders.
        count: renders a seed and kind of attribute.
        draws: resamples of an area under the curve.
    """
    share = 1.0
    for kind in KINDS:
        found = [_told_apart(judges, swaps(count, kind, seed=seed)) for seed in seeds]
        where: dict[str, Any] = {"direction": "higher", "group": f"{kind} swapped"}
        higher = {arm: [(one.true[arm] > one.false[arm]).float().tolist() for one in found] for arm in ARMS}
        trial.measure(HIGHER, higher, unit="rate", counted="renders", **where)
        areas = {arm: [auc(one.true[arm], one.false[arm]) for one in found] for arm in ARMS}
        resampled = {arm: torch.stack([one.resampled(arm, draws) for one in found]).mean(0).tolist() for arm in ARMS}
        trial.measure(AUC, areas, draws=resampled, **where)
        right = torch.stack([one.edges for one in found])
        trial.measure(RIGHT, {"EPViT": right}, unit="rate", counted="renders", **where)
        share = float(right.mean()) if kind == "colour" else share
    trial.note(
        f"EPViT gets {100 * share:.1f} % of the edges of colours right on held-out renders; {100 * TRUSTED:.0f} % are "
        f"asked of a judge, so claims {'rest' if share > TRUSTED else 'do not rest'} on it."
    )
    return share > TRUSTED


@dataclass(frozen=True, eq=False)
class _Apart:
    """Scores of the true and the false statement about each render, by arm, and the share of edges that are right."""

    true: dict[str, Tensor]
    false: dict[str, Tensor]
    edges: Tensor

    def resampled(self, arm: str, draws: int) -> Tensor:
        true, false = self.true[arm], self.false[arm]
        return resampled_statistic(lambda chosen: auc(true[chosen], false[chosen]), len(true), draws=draws)


def _told_apart(judges: Judges, pairs: Swaps) -> _Apart:
    found = (graph_scores(judges.edges, pairs), similarity_scores(judges.similarity, pairs))
    true, false = (dict(zip(ARMS, side, strict=True)) for side in zip(*found, strict=True))
    return _Apart(true, false, edge_accuracy(judges.edges, pairs))
