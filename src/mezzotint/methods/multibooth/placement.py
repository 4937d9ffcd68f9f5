"""Learnt concepts in their boxes, in the pipeline's own sampling loop (arXiv 2404.14239, section 3.3).

Everything that does not depend on the noise is done on entering: concepts are checked against the base, their words
taught, region prompts encoded, and texts mixed. Nothing of the base is copied, no weight of it is written, and what was
installed goes when the block ends.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from mezzotint.attention import backbone, install
from mezzotint.diffusion import Condition

from .boxes import Box, auto_boxes, checked_boxes, checked_weights
from .concept import Concept
from .placeholder import spoken
from .region_prompts import region_prompts as by_template
from .regions import Customised, SelfLora, TextMix, edits, mixed_text

__all__ = ["Boxes", "Concepts", "Placed", "Placement", "arranged", "customised", "placed"]

Sides: TypeAlias = Box | Sequence[float]
Given: TypeAlias = Concept | str | Path | tuple[Concept | str | Path, Sides | None]
Concepts: TypeAlias = Mapping[str, Given] | Sequence[Given]
"""Concepts or their folders, each alone or with its box; a mapping names the placeholder to be used."""
Boxes: TypeAlias = Sequence[Sides] | Mapping[str, Sides] | Callable[[int], Sequence[Sides]]


@dataclass(frozen=True, eq=False)
class Placed:
    """One concept in its box.

    Attributes:
        concept: under the placeholder that the prompts use.
        box: its part of the picture.
        prompt: what is said in it.
        weight: its share where boxes overlap, before division by the sum.
    """

    concept: Concept
    box: Box
    prompt: str
    weight: float


@dataclass(frozen=True, eq=False)
class Placement:
    """What is installed.

    Attributes:
        prompt: the base prompt.
        placed: the concepts in their boxes.
    """

    prompt: str
    placed: tuple[Placed, ...]


def arranged(
    prompt: str,
    concepts: Concepts,
    *,
    boxes: Boxes | None = None,
    region_prompts: Mapping[str, str] | Sequence[str] | None = None,
    weights: Mapping[str, float] | Sequence[float] | None = None,
) -> Placement:
    """Give every concept its placeholder, box, prompt and weight.

    Raises:
        ValueError: these do not fit each other; see `mezzotint.multibooth.place`.
    """
    named, inline = _named(concepts)
    names = [concept.placeholder for concept in named]
    found = checked_boxes(names, _boxes(prompt, names, inline, boxes))
    shares = checked_weights(names, None if weights is None else _in_order(weights, names, "weights"))
    if region_prompts is None:
        texts = by_template(prompt, {concept.placeholder: concept.class_word for concept in named})
    else:
        texts = _in_order(region_prompts, names, "region_prompts")
    rows = zip(named, found, texts, shares, strict=True)
    return Placement(prompt, tuple(Placed(*row) for row in rows))


def _in_order(given: Mapping[str, Any] | Sequence[Any], names: Sequence[str], what: str) -> list[Any]:
    """One value for each concept, in their order."""
    if isinstance(given, str) or len(given) != len(names):
        raise ValueError(f"{what} must be one a concept ({', '.join(names)}), got {given!r}")
    if not isinstance(given, Mapping):
        return list(given)
    if given.keys() != set(names):
        raise ValueError(f"{what} must name {', '.join(names)}, got {', '.join(given)}")
    return [given[name] for name in names]


def _named(concepts: Concepts) -> tuple[list[Concept], list[Sides | None]]:
    """Concepts under the placeholders to be used, and the boxes that came with them."""
    if isinstance(concepts, (Concept, str, Path)):
        raise ValueError("concepts must be a list of concepts, or a mapping from placeholders to them; got one alone")
    entries = list(concepts.values()) if isinstance(concepts, Mapping) else list(concepts)
    pairs = [entry if isinstance(entry, tuple) else (entry, None) for entry in entries]
    found = [each if isinstance(each, Concept) else Concept.load(each) for each, _ in pairs]
    own = [concept.placeholder for concept in found]
    names = list(concepts.keys()) if isinstance(concepts, Mapping) else own
    if len(set(names)) < len(names):
        raise ValueError(
            f"every concept needs a placeholder of its own, got {', '.join(names)}: give a mapping from new "
            'placeholders to the concepts, such as {"<S>": one, "<V>": other}'
        )
    return [concept.renamed(name) for concept, name in zip(found, names, strict=True)], [box for _, box in pairs]


def _boxes(prompt: str, names: Sequence[str], inline: Sequence[Sides | None], boxes: Boxes | None) -> Sequence[Sides]:
    """The boxes from where they were given; strips in the order of the prompt where they were not."""
    brought = [box for box in inline if box is not None]
    if boxes is not None and brought:
        raise ValueError("boxes were given twice: with the concepts and as `boxes`; leave one of them away")
    if brought:
        return brought
    if boxes is not None and not callable(boxes):
        return _in_order(boxes, names, "boxes")
    strips = (boxes or auto_boxes)(len(names))
    if len(strips) != len(names):
        raise ValueError(f"the layout gave {len(strips)} boxes for {len(names)} concepts")
    order = sorted(names, key=lambda name: prompt.find(name) if name in prompt else len(prompt))
    return [strips[order.index(name)] for name in names]


@contextmanager
def placed(
    pipe: Any,
    placement: Placement,
    *,
    text_mix: TextMix = "concat",
    self_lora: SelfLora = "regional",
    branches: tuple[str, ...] | None = None,
) -> Iterator[Placement]:
    """Install a placement on a pipeline; see `mezzotint.multibooth.place`."""
    with spoken(pipe, [each.concept for each in placement.placed]) as words:
        for each in placement.placed:
            words.check_prompt(each.prompt, [each.concept.placeholder])
        words.check_prompt(placement.prompt, [word for word in words.words if word in placement.prompt])
        read = customised(pipe, placement, text_mix)
        words.check_read()
        with install(pipe, *edits(pipe, read, self_lora), branches=branches):
            yield placement


def customised(pipe: Any, placement: Placement, text_mix: TextMix = "concat") -> Customised:
    """What attention needs of a placement; the pipeline must speak its placeholders."""
    network: Any = backbone(pipe)
    texts, biases = region_texts(pipe, placement, text_mix) if placement.placed else ((), ())
    return Customised(
        boxes=tuple(each.box for each in placement.placed),
        weights=tuple(each.weight for each in placement.placed),
        texts=texts,
        loras=tuple(each.concept.to(network.device, network.dtype).lora for each in placement.placed),
        biases=biases,
    )


@torch.no_grad()
def region_texts(
    pipe: Any, placement: Placement, text_mix: TextMix
) -> tuple[tuple[Float[Tensor, "1 tokens width"], ...], tuple[Tensor | None, ...]]:
    """c_i of every concept as the attention layers read it, and the additive masks of its tokens."""
    prompts = [placement.prompt, *(each.prompt for each in placement.placed)]
    condition, _ = Condition.from_prompt(pipe, prompts)
    encoded, mask = condition.encoder_hidden_states, condition.encoder_attention_mask
    if encoded is None:
        raise ValueError(f"{type(pipe).__name__} does not read prompts through cross-attention")
    texts = _as_layers_read(backbone(pipe), mixed_text(encoded[1:], encoded[:1].expand_as(encoded[1:]), text_mix))
    if mask is None:
        return tuple(texts.split(1)), (None,) * len(texts)
    own, shared = mask[1:], mask[:1].expand_as(mask[1:])
    # A token of the texts mixed counts that counts in either.
    hidden = (torch.cat([own, shared], dim=-1) if text_mix == "concat" else own + shared) == 0
    biases = torch.zeros_like(hidden, dtype=texts.dtype).masked_fill(hidden, -math.inf)
    return tuple(texts.split(1)), tuple(biases.split(1))


def _as_layers_read(network: Any, texts: Tensor) -> Tensor:
    """Texts after what the network itself does to them before its layers."""
    texts = texts.to(network.dtype)
    if getattr(network, "caption_projection", None) is not None:
        return network.caption_projection(texts)
    adapters = getattr(network.config, "encoder_hid_dim_type", None) == "ip_image_proj"
    if getattr(network, "encoder_hid_proj", None) is not None and not adapters:
        raise ValueError(f"{type(network).__name__} projects its text by an encoder_hid_proj, which is not supported")
    return texts
