"""Words of the user's own in prompts: a placeholder is one token whose embedding is a learnt vector.

While placeholders are installed the pipeline holds copies of its tokenizers that know the new words, and hooks on its
text encoders: token numbers beyond the table are exchanged for an ordinary one before the encoder sees them, and the
rows that the table then looks up for them are replaced by the vectors. No table is resized, no row of it is written;
leaving takes hooks and copies away. Vectors may carry gradients (Textual Inversion, arXiv 2208.01618, figure 2).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from mezzotint.diffusion import text_window

from .base import TextPart, text_parts
from .concept import Concept

__all__ = ["Placeholders", "noun_ids", "spoken", "taught"]

_LONGEST = 100_000
"""Stands for tokenizers that know no limit; theirs is a number that they cannot cut at."""
Vectors = Sequence[Tensor]
"""One for each text encoder: [width] for all prompts alike, or [batch, width] for prompt k of every batch."""


@contextmanager
def spoken(pipe: Any, concepts: Sequence[Concept]) -> Iterator[Placeholders]:
    """The pipeline reads the placeholders of stored concepts; their LoRA is another matter.

    Args:
        pipe: a diffusers pipeline.
        concepts: learnt for this base model, each with a placeholder of its own.

    Raises:
        ValueError: a concept of another base, or a placeholder that is taken.
    """
    for concept in concepts:
        concept.check(pipe)
    words = Placeholders(pipe, [concept.placeholder for concept in concepts])
    words.vectors.update({concept.placeholder: concept.embeddings for concept in concepts})
    with words.installed():
        yield words


class Placeholders:
    """New words for a pipeline.

    Attributes:
        words: the placeholders.
        vectors: what each of them looks up; may be changed at any time, and must be set before a prompt names it.
        read: (number of the text encoder, placeholder) of all that were looked up so far.

    Args:
        pipe: a diffusers pipeline with one or two text encoders.
        words: the placeholders, each used once and none a word that the tokenizers have already.

    Raises:
        ValueError: a placeholder that is taken or given twice.
    """

    def __init__(self, pipe: Any, words: Sequence[str]) -> None:
        if len(set(words)) < len(words):
            raise ValueError(f"every concept needs a placeholder of its own, got {', '.join(words)}")
        self.pipe, self.words = pipe, tuple(words)
        self.vectors: dict[str, Vectors] = {}
        self.read: set[tuple[int, str]] = set()
        self._parts = text_parts(pipe)
        self._tokenizers = [taught(part.tokenizer, words) for part in self._parts]

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Until the block ends, the pipeline reads the placeholders."""
        with ExitStack() as stack:
            for place, (part, tokenizer) in enumerate(zip(self._parts, self._tokenizers, strict=True)):
                stack.callback(setattr, self.pipe, part.tokenizer_name, getattr(self.pipe, part.tokenizer_name))
                setattr(self.pipe, part.tokenizer_name, tokenizer)
                exchange = _Exchange(self, place, part, self._ids(tokenizer))
                stack.callback(part.encoder.register_forward_pre_hook(exchange.ids, with_kwargs=True).remove)
                for lookup in part.lookups:
                    stack.callback(lookup.register_forward_hook(exchange.rows).remove)
            yield

    def check_prompt(self, prompt: str, words: Sequence[str] | None = None) -> None:
        """See that a prompt shows placeholders to every text encoder.

        Args:
            prompt: one text.
            words: those that it has to name; all when not given.

        Raises:
            ValueError: a placeholder is absent, or cut off because the prompt is longer than the encoder's window.
        """
        for tokenizer in self._tokenizers:
            limit = min(int(tokenizer.model_max_length), text_window(self.pipe) or _LONGEST, _LONGEST)
            kept = set(tokenizer(prompt, truncation=True, max_length=limit).input_ids)
            ids = self._ids(tokenizer)
            for word in self.words if words is None else words:
                if word not in prompt:
                    raise ValueError(f"the prompt {prompt!r} does not name {word!r}: put it where the concept belongs")
                if ids[word] not in kept:
                    raise ValueError(
                        f"{word!r} is cut off: the prompt has more than the {limit} tokens that the text encoder "
                        "reads; shorten it or name the concept earlier"
                    )

    def check_read(self) -> None:
        """See that every text encoder has looked up every placeholder.

        Raises:
            ValueError: one has not, for instance because the pipeline turns prompts into lower case.
        """
        for place, part in enumerate(self._parts):
            if missed := [word for word in self.words if (place, word) not in self.read]:
                raise ValueError(
                    f"{type(part.encoder).__name__} never read {missed[0]!r}: {type(self.pipe).__name__} changes "
                    "prompts before it reads them; choose a placeholder in lower case, such as '<s>'"
                )

    def _ids(self, tokenizer: Any) -> dict[str, int]:
        return {word: int(tokenizer.convert_tokens_to_ids(word)) for word in self.words}


def taught(tokenizer: Any, words: Sequence[str]) -> Any:
    """A copy of a tokenizer that reads each of these words, however long, as one token of its own.

    Raises:
        ValueError: a word is one token of the vocabulary already.
    """
    from transformers import AddedToken

    for word in words:
        ids = tokenizer(word, add_special_tokens=False).input_ids
        known = len(ids) == 1 and ids[0] != tokenizer.unk_token_id
        if not ids or known or word in tokenizer.get_added_vocab():
            raise ValueError(
                f"placeholder {word!r} is a word of the vocabulary already: choose one that is none, such as '<S>'"
            )
    made = copy.deepcopy(tokenizer)
    made.add_tokens([AddedToken(word, normalized=False) for word in words])
    return made


def noun_ids(part: TextPart, noun: str) -> list[int]:
    """The tokens of a class noun.

    Raises:
        ValueError: it has none, or one that the vocabulary does not know.
    """
    ids: list[int] = part.tokenizer(noun, add_special_tokens=False).input_ids
    if not ids or part.tokenizer.unk_token_id in ids:
        raise ValueError(f"class_word {noun!r} is not in the tokenizer's vocabulary: choose a common noun")
    return ids


class _Exchange:
    """The two hooks of one text encoder."""

    def __init__(self, owner: Placeholders, place: int, part: TextPart, ids: Mapping[str, int]) -> None:
        self.owner, self.place, self.own = owner, place, ids
        special = set(part.tokenizer.all_special_ids)
        # Any ordinary word will do: its row is replaced. Encoders that look for their end token, or for the largest
        # number, must not take a placeholder for it.
        self.ordinary = next(number for number in range(len(special) + 1) if number not in special)
        self.found: Tensor | None = None

    def ids(self, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        given = args[0] if args else kwargs.get("input_ids")
        self.found = None
        if given is None:
            return args, kwargs
        new = torch.isin(given, torch.tensor(list(self.own.values()), device=given.device))
        if not bool(new.any()):
            return args, kwargs
        self.found, plain = given, torch.where(new, self.ordinary, given)
        return ((plain, *args[1:]), kwargs) if args else (args, {**kwargs, "input_ids": plain})

    def rows(self, _: Any, __: tuple[Any, ...], output: Tensor) -> Tensor:
        if self.found is None:
            return output
        for word, number in self.own.items():
            here = self.found.reshape(output.shape[:-1]) == number
            if bool(here.any()):
                output = torch.where(here[..., None], self._vector(word, output), output)
                self.owner.read.add((self.place, word))
        return output

    def _vector(self, word: str, like: Tensor) -> Tensor:
        if word not in self.owner.vectors:
            raise ValueError(f"placeholder {word!r} has no vector yet")
        vector = self.owner.vectors[word][self.place].to(like)
        return vector if vector.ndim == 1 else vector[:, None]
