"""Parsed pictures against the scenes that were asked for.

A parsed picture is a list of `ParsedObject`, plain data that any parser can give. Wanted objects are matched to parsed
ones by the Hungarian method; a noun (the shape) must agree for a match, attributes decide among matches. What is
counted follows the usual failures of text-to-image binding (arXiv:2404.13766): an attribute on the wrong object
(*swap*), an attribute nobody asked for, an object that is missing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from scipy.optimize import linear_sum_assignment

__all__ = ["ATTRIBUTES", "ParsedObject", "Relation", "SceneScore", "WantedObject", "score_scene", "score_scenes"]

ATTRIBUTES = ("colour", "size", "material", "pattern")
_RELATIONS = ("left of", "right of", "in front of", "behind")


@dataclass(frozen=True)
class ParsedObject:
    """An object that a parser saw in a picture.

    Attributes:
        shape: noun, such as ``"cube"``.
        colour: as in the world's vocabulary.
        size: ``"small"`` or ``"large"``.
        material: such as ``"shiny"``.
        pattern: such as ``"striped"``.
        x: centre across the picture, 0 (left) to 1 (right).
        y: where it stands, 0 (top, far) to 1 (bottom, near).
        score: the parser's confidence that there is an object, 0..1.
    """

    shape: str
    colour: str = ""
    size: str = ""
    material: str = ""
    pattern: str = ""
    x: float = 0.5
    y: float = 0.5
    score: float = 1.0


@dataclass(frozen=True)
class WantedObject:
    """An object that the prompt names; an attribute of ``None`` was not asked for and is not judged.

    Attributes:
        shape: noun.
        colour: wanted colour.
        size: wanted size.
        material: wanted material.
        pattern: wanted pattern.
    """

    shape: str
    colour: str | None = None
    size: str | None = None
    material: str | None = None
    pattern: str | None = None

    @property
    def attributes(self) -> dict[str, str]:
        """The attributes that were asked for, by name."""
        return {name: value for name in ATTRIBUTES if (value := getattr(self, name)) is not None}


@dataclass(frozen=True)
class Relation:
    """``wanted[subject]`` stands in this relation to ``wanted[target]``, as the camera sees it.

    Attributes:
        subject: index of a wanted object.
        kind: ``"left of"``, ``"right of"``, ``"in front of"`` or ``"behind"``.
        target: index of another wanted object.
    """

    subject: int
    kind: str
    target: int

    def __post_init__(self) -> None:
        """Refuse a relation that no picture can be judged by."""
        if self.kind not in _RELATIONS:
            raise ValueError(f"kind must be one of {', '.join(_RELATIONS)}, got {self.kind!r}")
        if self.subject == self.target:
            raise ValueError(f"subject and target of a relation must differ, both are object {self.subject}")

    def holds(self, subject: ParsedObject, target: ParsedObject) -> bool:
        """Say whether two parsed objects stand in this relation.

        Args:
            subject: what was matched to the subject.
            target: what was matched to the target.
        """
        return {
            "left of": subject.x < target.x,
            "right of": subject.x > target.x,
            "in front of": subject.y > target.y,
            "behind": subject.y < target.y,
        }[self.kind]


@dataclass(frozen=True)
class SceneScore:
    """How one picture answers its prompt. Every field is a number that can be averaged over pictures.

    Attributes:
        right: 1 if every wanted object is there with all its attributes and every relation holds; further objects are
            allowed.
        exact: 1 if also nothing else is there.
        objects: share of wanted objects that are there with all attributes.
        presence: share of wanted objects whose noun is there.
        binding: share of wanted attributes that sit on their object (a missing object binds none); 1 if none was
            wanted.
        swap: 1 if an object carries an attribute that was wanted on another object and not on it.
        missing: 1 if the noun of a wanted object is not there.
        extra: number of parsed objects that nobody asked for.
        count: 1 if there are as many objects as were asked for.
        relations: share of wanted relations that hold; 1 if none was wanted.
    """

    right: float
    exact: float
    objects: float
    presence: float
    binding: float
    swap: float
    missing: float
    extra: float
    count: float
    relations: float


def _matches(wanted: Sequence[WantedObject], parsed: Sequence[ParsedObject]) -> dict[int, ParsedObject]:
    """Best one-to-one matching: most nouns first, then most objects entirely right, then most attributes right."""
    if not wanted or not parsed:
        return {}
    cost = np.zeros((len(wanted), len(parsed)))
    unit = len(ATTRIBUTES) * len(wanted) + 1
    for i, want in enumerate(wanted):
        for j, seen in enumerate(parsed):
            wrong = sum(getattr(seen, name) != value for name, value in want.attributes.items())
            # The confidence only breaks ties: its weight is below one attribute even summed over all objects.
            cost[i, j] = (
                unit * unit * (want.shape != seen.shape) + unit * (wrong > 0) + wrong - 0.5 * seen.score / len(wanted)
            )
    pairs = zip(*linear_sum_assignment(cost), strict=True)
    return {int(i): parsed[j] for i, j in pairs if wanted[i].shape == parsed[j].shape}


def _swapped(index: int, seen: ParsedObject, wanted: Sequence[WantedObject]) -> bool:
    own = wanted[index].attributes
    others = [other.attributes for k, other in enumerate(wanted) if k != index]
    wrong = {name: getattr(seen, name) for name, value in own.items() if getattr(seen, name) != value}
    return any(other.get(name) == value for name, value in wrong.items() for other in others)


def score_scene(
    wanted: Sequence[WantedObject],
    parsed: Sequence[ParsedObject],
    *,
    relations: Sequence[Relation] = (),
    threshold: float = 0.5,
) -> SceneScore:
    """Judge one parsed picture by what its prompt asked for.

    Args:
        wanted: objects of the prompt, at least one.
        parsed: objects that the parser saw.
        relations: spatial relations of the prompt.
        threshold: parsed objects of lower confidence are ignored.

    Raises:
        ValueError: nothing is wanted, or a relation names an object that does not exist.
    """
    if not wanted:
        raise ValueError("wanted must name at least one object: an empty prompt cannot be judged")
    if bad := [r for r in relations if not (0 <= r.subject < len(wanted) and 0 <= r.target < len(wanted))]:
        raise ValueError(f"relations must name objects 0..{len(wanted) - 1}, got {bad[0]}")
    seen = [item for item in parsed if item.score >= threshold]
    match = _matches(wanted, seen)
    bound = {i: sum(getattr(item, n) == v for n, v in wanted[i].attributes.items()) for i, item in match.items()}
    complete = [i for i in match if bound[i] == len(wanted[i].attributes)]
    asked = sum(len(want.attributes) for want in wanted)
    held = [
        r for r in relations if r.subject in match and r.target in match and r.holds(match[r.subject], match[r.target])
    ]
    right = len(complete) == len(wanted) and len(held) == len(relations)
    return SceneScore(
        right=float(right),
        exact=float(right and len(seen) == len(wanted)),
        objects=len(complete) / len(wanted),
        presence=len(match) / len(wanted),
        binding=sum(bound.values()) / asked if asked else 1.0,
        swap=float(any(_swapped(i, item, wanted) for i, item in match.items())),
        missing=float(len(match) < len(wanted)),
        extra=float(len(seen) - len(match)),
        count=float(len(seen) == len(wanted)),
        relations=len(held) / len(relations) if relations else 1.0,
    )


def score_scenes(
    wanted: Sequence[Sequence[WantedObject]],
    parsed: Sequence[Sequence[ParsedObject]],
    *,
    relations: Sequence[Sequence[Relation]] | None = None,
    threshold: float = 0.5,
) -> dict[str, list[float]]:
    """Judge many pictures: name of each `SceneScore` field -> one value a picture, ready for a row of evidence.

    Args:
        wanted: one list of objects a prompt.
        parsed: one list of parsed objects a picture, in the same order.
        relations: one list a prompt.
        threshold: parsed objects of lower confidence are ignored.

    Raises:
        ValueError: the numbers of prompts and pictures differ; see also `score_scene`.
    """
    asked = relations if relations is not None else [()] * len(wanted)
    if not len(wanted) == len(parsed) == len(asked):
        raise ValueError(f"one picture a prompt is judged, got {len(wanted)} prompts and {len(parsed)} pictures")
    scores = [
        score_scene(want, seen, relations=rel, threshold=threshold)
        for want, seen, rel in zip(wanted, parsed, asked, strict=True)
    ]
    return {field.name: [getattr(score, field.name) for score in scores] for field in fields(SceneScore)}
