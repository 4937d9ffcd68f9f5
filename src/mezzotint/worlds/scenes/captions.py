"""Captions of scenes in several styles, with the characters that name each object and each of its attributes.

A `Binding` says which attribute word belongs to which noun, by character spans into the caption's text; it is exact, since the words are
written from the scene.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal, get_args

from mezzotint.diffusion.rng import stream
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


@dataclass(frozen=True)
class Span:
    """Characters `start .. end - 1` of a text."""

    start: int
    end: int


@dataclass(frozen=True)
class Binding:
    """One attribute word and the noun it belongs to; `index` is the object's place in the scene, `attribute` the kind of word."""

    index: int
    attribute: str
    word: Span
    noun: Span


@dataclass(frozen=True)
class Caption:
    """A text, the noun of each object in it (by the object's index in the scene) and the bindings of its attribute words."""

    text: str
    nouns: tuple[tuple[int, Span], ...]
    bindings: tuple[Binding, ...]

    def __str__(self) -> str:
        return self.text


class _Writer:
    """Text under construction."""

    def __init__(self) -> None:
        self.text = ""
        self.nouns: list[tuple[int, Span]] = []
        self.bindings: list[Binding] = []

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
        return Caption(self.text, tuple(self.nouns), tuple(self.bindings))


def caption(scene: Scene, style: Style = "plain", *, seed: int = 0) -> Caption:
    """Describe a scene.

    Args:
        scene: the scene.
        style: `plain` (a red cube and a blue sphere on a gray floor), `short` (no floor), `detailed` (size, material and pattern
            too), `relations` (who stands where), `paraphrased` (other wordings), or `tags` (a comma list).
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


def _plain(writer: _Writer, scene: Scene, order: list[int], choose: random.Random) -> None:
    _short(writer, scene, order, choose)
    writer.write(f" on a {scene.floor} floor")


def _short(writer: _Writer, scene: Scene, order: list[int], choose: random.Random) -> None:
    _list(writer, scene, order, ("colour",))


def _detailed(writer: _Writer, scene: Scene, order: list[int], choose: random.Random) -> None:
    _list(writer, scene, order, ("size", "material", "colour", "pattern"))
    writer.write(f" on a {scene.floor} floor under a {scene.sky} sky")


def _paraphrased(writer: _Writer, scene: Scene, order: list[int], choose: random.Random) -> None:
    before, after = choose.choice(_PARAPHRASES).format(objects="|", floor=scene.floor, sky=scene.sky).split("|")
    writer.write(before)
    _list(writer, scene, order, choose.choice((("colour",), ("size", "colour"), ("colour", "pattern"))))
    writer.write(after)


def _tags(writer: _Writer, scene: Scene, order: list[int], choose: random.Random) -> None:
    for index in order:
        writer.phrase(scene.objects[index], index, ("size", "colour", "pattern"), article=False)
        writer.write(", ")
    writer.write(f"{scene.floor} floor")


def _relations(writer: _Writer, scene: Scene, order: list[int], choose: random.Random) -> None:
    if len(order) < 2:
        return _plain(writer, scene, order, choose)
    first, second, *rest = order
    writer.phrase(scene.objects[first], first, ("colour",))
    writer.write(f" {_relation(scene.objects[first], scene.objects[second])} ")
    writer.phrase(scene.objects[second], second, ("colour",))
    for index in rest:
        writer.write(" and ")
        writer.phrase(scene.objects[index], index, ("colour",))
    writer.write(f" on a {scene.floor} floor")


def _relation(one: Object, other: Object) -> str:
    """Where `one` stands as seen from `other`, along the axis on which they are farther apart."""
    dx, dz = one.x - other.x, one.z - other.z
    if max(abs(dx), abs(dz)) < _NEAR:
        return "next to"
    if abs(dx) >= abs(dz):
        return "to the left of" if dx < 0 else "to the right of"
    return "in front of" if dz > 0 else "behind"


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
