"""Concepts of the scenes world: things the embedded model was never shown, rendered as a user would photograph them.

Shape and colour of every concept are a held-out pair (`worlds.scenes.HELD_OUT`), which no training scene contains, and
a pattern and a material are added. Around each stand seven rivals of the same shape, which an identity judge must not
take for it: the plain object of that colour, others with its pattern, and plain members of the class.
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from mezzotint.worlds.scenes import COLOURS, Scene, edit, picture, sample
from mezzotint.worlds.scenes.sampling import Split

__all__ = ["CONCEPTS", "Thing", "appearances", "class_pictures", "pictures_of", "rivals", "scenes_of", "thing"]

_OTHER_PATTERN = 2
_APPEARANCES = 8
_APART = 100_000


@dataclass(frozen=True)
class Thing:
    """One appearance of an object, whatever its place, rotation and surroundings.

    Attributes:
        class_word: its shape, which is the class noun.
        colour: in the world's words.
        pattern: likewise.
        material: likewise.
        size: likewise.
    """

    class_word: str
    colour: str
    pattern: str = "plain"
    material: str = "matte"
    size: str = "large"

    @property
    def name(self) -> str:
        """All its words."""
        return f"{self.material} {self.colour} {self.pattern} {self.class_word}"


CONCEPTS: tuple[Thing, ...] = (
    Thing("cube", "cyan", "checkered", "matte"),
    Thing("sphere", "orange", "striped", "shiny"),
    Thing("cylinder", "pink", "dotted", "matte"),
    Thing("cone", "yellow", "striped", "shiny"),
)
"""The concepts of the experiment, each of another class."""


def thing(class_word: str) -> Thing:
    """The concept of a class.

    Raises:
        ValueError: there is none.
    """
    found = [concept for concept in CONCEPTS if concept.class_word == class_word]
    if not found:
        nouns = ", ".join(concept.class_word for concept in CONCEPTS)
        raise ValueError(f"class_word must be one of {nouns}, got {class_word!r}")
    return found[0]


def rivals(concept: Thing) -> tuple[Thing, ...]:
    """Seven other appearances of the same class: two of them share the pattern, one the colour, the others neither."""
    noun, others = concept.class_word, [colour for colour in COLOURS if colour != concept.colour]
    alike = [Thing(noun, colour, concept.pattern, concept.material) for colour in others[:_OTHER_PATTERN]]
    plain = [Thing(noun, colour) for colour in (concept.colour, *others[_OTHER_PATTERN:])]
    return (*alike, *plain)[: _APPEARANCES - 1]


def appearances(concepts: tuple[Thing, ...] = CONCEPTS) -> tuple[Thing, ...]:
    """The concepts first, then the rivals of each."""
    return (*concepts, *(rival for concept in concepts for rival in rivals(concept)))


def scenes_of(
    kind: Thing, count: int, *, seed: int = 0, split: Split = "train", first: int = 0, instances: int = 1
) -> list[Scene]:
    """Scenes with one thing in random places, under random light, on random floors.

    Args:
        kind: what stands there.
        count: scenes.
        seed: of the data set.
        split: scenery of training, validation and test never meets.
        first: number of the first scene.
        instances: how many of it stand in a scene, 1 to 3.
    """
    place = appearances().index(kind) if kind in appearances() else len(appearances())
    start = first + place * _APART
    made = sample(count, seed=seed, split=split, first=start, objects=(instances, instances), combinations="all")
    looks = {"shape": kind.class_word, **{key: getattr(kind, key) for key in ("colour", "pattern", "material", "size")}}
    for index in range(instances):
        made = [edit(scene, index, **looks) for scene in made]
    return made


def pictures_of(
    kind: Thing, count: int, *, seed: int = 0, split: Split = "train", side: int = 64
) -> Float[Tensor, "count 3 side side"]:
    """Renders of one thing, as the pictures that it is learnt from."""
    return picture(scenes_of(kind, count, seed=seed, split=split), side).clone()


def class_pictures(concept: Thing, count: int, *, seed: int = 0, side: int = 64) -> Float[Tensor, "count 3 side side"]:
    """Renders of plain members of a concept's class, for prior preservation."""
    members = [rival for rival in rivals(concept) if rival.pattern == "plain" and rival.colour != concept.colour]
    scenes = [scenes_of(members[k % len(members)], 1, seed=seed, first=k)[0] for k in range(count)]
    return picture(scenes, side).clone()
