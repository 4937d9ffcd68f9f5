"""DisCLIP: embeddings of a prompt in which the phrases are disentangled (arXiv 2404.13766).

CLIP's text encoder is causal: the vectors at the end token and at the padding behind it have read the whole sentence,
and so carry every attribute to every object. With E the embeddings of the full prompt [L, width], g the place of its
first end token and c_0, c_1, ... the constituents, each encoded alone,

    E[g + i] = E_{c_i}[end of c_i]          while g + i < L.

All else stays. `disclip-leaf` also takes each word from the first, smallest constituent that holds it, `disclip-avg`
from the mean over all that hold it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mezzotint.diffusion.condition import Condition

from .tagging import tokenise
from .tokens import end_index, token_indices, window
from .words import Constituent, Syntax

__all__ = ["VARIANTS", "conditioning", "disentangled", "overflow"]

VARIANTS = ("disclip", "disclip-leaf", "disclip-avg")


def disentangled(
    pipe: Any, prompts: str | Sequence[str], syntaxes: Syntax | Sequence[Syntax], *, variant: str = "disclip"
) -> Float[Tensor, "batch tokens width"]:
    """Embeddings to be given to the pipeline as `prompt_embeds`.

    Args:
        pipe: a pipeline in the layout of Stable Diffusion or SDXL.
        prompts: one prompt or several.
        syntaxes: the structure of each.
        variant: `disclip` (words stay), `disclip-leaf` or `disclip-avg`.

    Raises:
        ValueError: an unknown variant, another number of structures, one of another prompt, or a pipeline whose text
            encoder has no sentence vector (T5 of PixArt).
    """
    return conditioning(pipe, prompts, syntaxes, variant=variant)["prompt_embeds"]


def conditioning(
    pipe: Any, prompts: str | Sequence[str], syntaxes: Syntax | Sequence[Syntax], *, variant: str = "disclip"
) -> dict[str, Tensor]:
    """All arguments that take the prompt's place in a call of the pipeline, negative prompts aside.

    These are `prompt_embeds` as of `disentangled`, and for SDXL `pooled_prompt_embeds` of the full prompt.
    """
    texts, parsed = _checked(pipe, prompts, syntaxes, variant)
    whole = Condition.from_prompt(pipe, texts)[0]
    assert whole.encoder_hidden_states is not None
    embeds = whole.encoder_hidden_states.clone()
    phrases = sorted({phrase.text for syntax in parsed for phrase in syntax.constituents})
    alone = _encoded(pipe, phrases, texts, embeds)
    for encoder in _encoders(pipe):
        for row, syntax in enumerate(parsed):
            view = embeds[row, :, encoder.columns]
            replacement = {text: vectors[:, encoder.columns] for text, vectors in alone.items()}
            if variant != "disclip":
                _replace_words(encoder, syntax, replacement, view, smallest=variant == "disclip-leaf")
            _replace_ends(encoder, syntax, replacement, view)
    pooled = (whole.added_cond_kwargs or {}).get("text_embeds")
    return {"prompt_embeds": embeds} | ({} if pooled is None else {"pooled_prompt_embeds": pooled})


def overflow(
    pipe: Any, prompts: str | Sequence[str], syntaxes: Syntax | Sequence[Syntax]
) -> tuple[tuple[Constituent, ...], ...]:
    """Constituents of each prompt for which there is no place behind the end token, and which are left out."""
    _, parsed = _checked(pipe, prompts, syntaxes, "disclip")
    encoder = _encoders(pipe)[0]
    places = [window(encoder.tokenizer) - encoder.end(syntax.prompt) for syntax in parsed]
    return tuple(syntax.constituents[room:] for syntax, room in zip(parsed, places, strict=True))


@dataclass(frozen=True)
class _Encoder:
    """One text encoder: its tokenizer, and where its features stand among those of the pipeline."""

    pipe: Any
    tokenizer: Any
    columns: slice

    def end(self, text: str) -> int:
        """Place of the first end token."""
        return end_index(self.tokenizer, self.read(text))

    def read(self, text: str) -> str:
        """The text with learned words spelt out as the pipeline does."""
        convert = getattr(self.pipe, "maybe_convert_prompt", None)
        return text if convert is None else convert(text, self.tokenizer)


def _encoders(pipe: Any) -> tuple[_Encoder, ...]:
    pairs = [(pipe.tokenizer, pipe.text_encoder)]
    if getattr(pipe, "text_encoder_2", None) is not None:
        pairs.append((pipe.tokenizer_2, pipe.text_encoder_2))
    found, start = [], 0
    for tokenizer, encoder in pairs:
        found.append(_Encoder(pipe, tokenizer, slice(start, start + encoder.config.hidden_size)))
        start += encoder.config.hidden_size
    return tuple(found)


def _encoded(pipe: Any, phrases: list[str], prompts: list[str], embeds: Tensor) -> dict[str, Tensor]:
    """Each phrase encoded alone [tokens, width]. Padding behind its end token is never read: the encoder is causal."""
    known = {prompt: embeds[row].clone() for row, prompt in enumerate(prompts)}
    new = [phrase for phrase in phrases if phrase not in known]
    if new:
        states = Condition.from_prompt(pipe, new)[0].encoder_hidden_states
        assert states is not None
        known |= dict(zip(new, states, strict=True))
    return known


def _replace_ends(encoder: _Encoder, syntax: Syntax, alone: dict[str, Tensor], view: Tensor) -> None:
    """Writes the end vectors of the constituents from the prompt's end token on."""
    first = encoder.end(syntax.prompt)
    for place, phrase in enumerate(syntax.constituents[: len(view) - first]):
        view[first + place] = alone[phrase.text][encoder.end(phrase.text)]


def _replace_words(
    encoder: _Encoder, syntax: Syntax, alone: dict[str, Tensor], view: Tensor, *, smallest: bool
) -> None:
    """Writes each word's vectors as its constituents have them: the first that holds it, or the mean of all."""
    outside = token_indices(encoder.tokenizer, syntax)
    vectors: dict[int, list[Tensor]] = {}
    for phrase in syntax.constituents:
        inner = Syntax(phrase.text, tokenise(phrase.text))
        inside = token_indices(encoder.tokenizer, inner)
        for place, index in enumerate(_words_of(syntax, phrase, [word.text for word in inner.words])):
            for token, twin in zip(() if index is None else outside[index], inside[place], strict=False):
                vectors.setdefault(token, []).append(alone[phrase.text][twin])
    for token, found in vectors.items():
        view[token] = found[0] if smallest else torch.stack(found).mean(0)


def _words_of(syntax: Syntax, phrase: Constituent, texts: list[str]) -> list[int | None]:
    """Which word of the prompt each word of a phrase is; nouns are told by the phrase, the others follow each other."""
    inside = [k for k, word in enumerate(syntax.words) if word.start >= phrase.start and word.end <= phrase.end]
    if [syntax.words[k].text for k in inside] == texts:
        return list(inside)
    heads, found, last = list(phrase.heads), [], inside[0] - 1 if inside else -1
    for text in texts:
        is_head = bool(heads) and syntax.words[heads[0]].text == text
        rest = [k for k in inside if k > last and syntax.words[k].text == text]
        index = heads.pop(0) if is_head else next(iter(rest), None)
        found.append(index)
        last = last if index is None else index
    return found


def _checked(pipe: Any, prompts: Any, syntaxes: Any, variant: str) -> tuple[list[str], list[Syntax]]:
    if variant not in VARIANTS:
        raise ValueError(f"variant must be one of {', '.join(VARIANTS)}; got {variant!r}")
    if getattr(pipe, "unet", None) is None or getattr(pipe, "text_encoder", None) is None:
        raise ValueError(
            f"{type(pipe).__name__} has no CLIP text encoder: DisCLIP replaces the sentence vectors of a causal "
            "encoder, at its end token and padding, and neither T5 nor class labels have them; go without disclip"
        )
    texts = [prompts] if isinstance(prompts, str) else list(prompts)
    parsed = [syntaxes] if isinstance(syntaxes, Syntax) else list(syntaxes)
    if texts != [syntax.prompt for syntax in parsed]:
        raise ValueError(f"syntaxes must be those of the prompts, one each: {texts} and {[s.prompt for s in parsed]}")
    return texts, parsed
