"""Captions of scenes in several styles, with the characters that name each object and each of its attributes.

A `Binding` says which attribute word belongs to which noun, by character spans into the caption's text; it is exact,
since the words are written from the scene.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import Literal, get_args

from mezzotint.diffusion.rng import stream
from mezzotint.metrics.scene_accuracy import Relation
from mezzotint.worlds.scenes.scene import Object, Scene

Style = Literal["plain", "short", "detailed", "relations", "paraphrased", "tags"]
STYLES: tuple[Style, ...] = get_args(Style)

_PARAPHRASES = (
    "a picture of {objects} on a {floor} floor",
    "a scene with {objects}",
    "on a {floor} floor there is {objects}",
    "there is {objects} on a {floor} floor",
    "{objects} standing on a {floor} floor",
    "{objects} on a {floor} floor under a {sky} sky",
)
_NEAR = 0.5
_RELATION_WORDS = {
    None: "next to",
    "left of": "to the left of",
    "right of": "to the right of",
    "in front of": "in front of",
    "behind": "behind",
}


@dataclass(frozen=True)
class Span:
    """Characters `start .. end - 1` of a text."""

    start: int
    end: int


@dataclass(frozen=True)
class Binding:
    """One attribute word and the noun it belongs to.

    Attributes:
        index: the object's place in the scene, from 0.
        attribute: the kind of word: size, material, colour or pattern.
        word: where the attribute stands.
        noun: where the object's shape stands.
    """

    index: int
    attribute: str
    word: Span
    noun: Span


@dataclass(frozen=True)
class Caption:
    """A text and what each of its words is about.

    Attributes:
        text: the caption.
        nouns: the noun of each object, by the object's place in the scene, in the order of the text.
        bindings: the attribute words, in the order of the text.
        relations: what the text says about who stands where; "next to" is no relation that a picture could miss.
    """

    text: str
    nouns: tuple[tuple[int, Span], ...]
    bindings: tuple[Binding, ...]
    relations: tuple[Relation, ...] = ()

    def __str__(self) -> str:
        return self.text


class _Writer:
    """Text under construction."""

    def __init__(self) -> None:
        self.text = ""
        self.nouns: list[tuple[int, Span]] = []
        self.bindings: list[Binding] = []
        self.relations: list[Relation] = []

    def write(self, text: str) -> Span:
        start = len(self.text)
        self.text += text
        return Span(start, len(self.text))

    def phrase(self, item: Object, index: int, attributes: tuple[str, ...], *, article: bool = True) -> None:
        """`a small red striped cube`, remembering where each word stands."""
        words = [(name, getattr(item, name)) for name in attributes if getattr(item, name) not in ("plain", "matte")]
        if article:
            first = words[0][1] if words else item.shape
            self.write("an " if first[0] in "aeio" else "a ")
        spans = []
        for name, word in words:
            spans.append((name, self.write(word)))
            self.write(" ")
        noun = self.write(item.shape)
        self.nouns.append((index, noun))
        self.bindings += [Binding(index, name, span, noun) for name, span in spans]

    def finish(self) -> Caption:
        return Caption(self.text, tuple(self.nouns), tuple(self.bindings), tuple(self.relations))


def caption(scene: Scene, style: Style = "plain", *, seed: int = 0) -> Caption:
    """Describe a scene.

    Args:
        scene: the scene.
        style: `plain` (a red cube and a blue sphere on a gray floor), `short` (no floor), `detailed` (size, material
            and pattern too), `relations` (who stands where), `paraphrased` (other wordings), or `tags` (a comma list).
        seed: picks the order of the objects and the wording; the same seed gives the same caption.

    Raises:
        ValueError: for an unknown style.
    """
    if style not in STYLES:
        raise ValueError(f"style must be one of {', '.join(STYLES)}; got {style!r}")
    generator = stream(seed, f"caption/{style}", 0, len(scene.objects))
    choose = random.Random(int(generator.initial_seed()))
    order = list(range(len(scene.objects)))
    choose.shuffle(order)
    writer = _Writer()
    _WRITERS[style](writer, scene, order, choose)
    return writer.finish()


def _plain(writer: _Writer, scene: Scene, order: list[int], _choose: random.Random) -> None:
    _short(writer, scene, order, _choose)
    writer.write(f" on a {scene.floor} floor")


def _short(writer: _Writer, scene: Scene, order: list[int], _choose: random.Random) -> None:
    _list(writer, scene, order, ("colour",))


def _detailed(writer: _Writer, scene: Scene, order: list[int], _choose: random.Random) -> None:
    _list(writer, scene, order, ("size", "material", "colour", "pattern"))
    writer.write(f" on a {scene.floor} floor under a {scene.sky} sky")


def _paraphrased(writer: _Writer, scene: Scene, order: list[int], choose: random.Random) -> None:
    before, after = choose.choice(_PARAPHRASES).format(objects="|", floor=scene.floor, sky=scene.sky).split("|")
    writer.write(before)
    _list(writer, scene, order, choose.choice((("colour",), ("size", "colour"), ("colour", "pattern"))))
    writer.write(after)


def _tags(writer: _Writer, scene: Scene, order: list[int], _choose: random.Random) -> None:
    for index in order:
        writer.phrase(scene.objects[index], index, ("size", "colour", "pattern"), article=False)
        writer.write(", ")
    writer.write(f"{scene.floor} floor")


def _relations(writer: _Writer, scene: Scene, order: list[int], choose: random.Random) -> None:
    if len(order) < 2:
        _plain(writer, scene, order, choose)
        return
    first, second, *rest = order
    kind = relation(scene, first, second)
    writer.phrase(scene.objects[first], first, ("colour",))
    writer.write(f" {_RELATION_WORDS[kind]} ")
    if kind is not None:
        writer.relations.append(Relation(first, kind, second))
    writer.phrase(scene.objects[second], second, ("colour",))
    for index in rest:
        writer.write(" and ")
        writer.phrase(scene.objects[index], index, ("colour",))
    writer.write(f" on a {scene.floor} floor")


def relation(scene: Scene, one: int, other: int) -> str | None:
    """Where one object stands as seen from another, along the axis (of the camera) on which they are farther apart.

    Args:
        scene: the scene; left and right, front and back are those of its camera.
        one: place of the object that is described.
        other: place of the object that it is compared with.

    Returns:
        "left of", "right of", "in front of", "behind", or None where they are closer than half a unit on both axes.
    """
    turn = math.radians(scene.camera.azimuth)
    dx, dz = scene.objects[one].x - scene.objects[other].x, scene.objects[one].z - scene.objects[other].z
    across, nearer = dx * math.cos(turn) - dz * math.sin(turn), dx * math.sin(turn) + dz * math.cos(turn)
    if max(abs(across), abs(nearer)) < _NEAR:
        return None
    if abs(across) >= abs(nearer):
        return "left of" if across < 0 else "right of"
    return "in front of" if nearer > 0 else "behind"


def _list(writer: _Writer, scene: Scene, order: list[int], attributes: tuple[str, ...]) -> None:
    for place, index in enumerate(order):
        if place:
            writer.write(" and " if place == len(order) - 1 else ", ")
        writer.phrase(scene.objects[index], index, attributes)
    if not order:
        writer.write("nothing")


_WRITERS = {
    "plain": _plain,
    "short": _short,
    "detailed": _detailed,
    "relations": _relations,
    "paraphrased": _paraphrased,
    "tags": _tags,
}
