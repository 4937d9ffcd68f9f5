"""StructureDiffusion, a baseline: keys from the full prompt, values averaged over noun phrases (arXiv 2212.05032).

E_i is the full prompt's embedding in which the tokens of noun phrase i are replaced by that phrase encoded alone;
cross-attention gives O = P (V_0 + V_1 + ... + V_k) / (k + 1), with V_i = W_v E_i and P the softmax of the full prompt.
As W_v is affine, the mean of the values is the value of the mean embedding, so one edit of the values' tokens does it
and the fused kernel stays.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mezzotint.attention import Call, Context, Installation, install
from mezzotint.diffusion.condition import Condition

from .tagging import tokenise
from .tokens import token_indices
from .words import Constituent, Syntax

__all__ = ["mean_embeds", "structured"]


@contextmanager
def structured(pipe: Any, prompt: str | Sequence[str], syntax: Syntax | Sequence[Syntax]) -> Iterator[Installation]:
    """Averages the values of cross-attention over noun phrases, in the conditional half, while the context lasts.

    Args:
        pipe: a pipeline in the layout of Stable Diffusion or SDXL.
        prompt: the prompt or prompts the pipeline will be called with.
        syntax: the structure of each.

    Raises:
        ValueError: the pipeline has no CLIP text encoder, or a structure is another prompt's; later, when the pipeline
            is called with another number of prompts.
    """
    values = mean_embeds(pipe, prompt, syntax)

    def averaged(_: Call, keys: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        images, rest = divmod(len(present), len(values))
        if rest or present.shape[1:] != values.shape[1:]:
            raise ValueError(
                f"text embeddings {tuple(present.shape)} of the call do not belong to the {len(values)} prompts that "
                f"were given, with {tuple(values.shape[1:])} tokens and features"
            )
        return keys, values.to(present).repeat_interleave(images, dim=0)

    with install(pipe, Context(averaged, kind="cross", branch="cond")) as installation:
        yield installation


def mean_embeds(
    pipe: Any, prompt: str | Sequence[str], syntax: Syntax | Sequence[Syntax]
) -> Float[Tensor, "batch tokens width"]:
    """Mean of E_0 (the full prompt) and E_1 ... E_k (its noun phrases); ValueError as for `structured`."""
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    syntaxes = [syntax] if isinstance(syntax, Syntax) else list(syntax)
    _check(pipe, prompts, syntaxes)
    whole = _encode(pipe, prompts)
    rows = [_mean(pipe, row, each) for row, each in zip(whole, syntaxes, strict=True)]
    return torch.stack(rows)


def _mean(pipe: Any, whole: Float[Tensor, "tokens width"], syntax: Syntax) -> Float[Tensor, "tokens width"]:
    phrases = [phrase for phrase in syntax.constituents if syntax.prompt[phrase.start : phrase.end] == phrase.text]
    if not phrases:
        return whole
    versions = [whole]
    for phrase, alone in zip(phrases, _encode(pipe, [phrase.text for phrase in phrases]), strict=True):
        outside, inside = _tokens(pipe.tokenizer, syntax, phrase)
        version = whole.clone()
        version[outside] = alone[inside]
        versions.append(version)
    return torch.stack(versions).mean(0)


def _tokens(tokenizer: Any, syntax: Syntax, phrase: Constituent) -> tuple[list[int], list[int]]:
    """Tokens of a noun phrase in the prompt, and in the phrase encoded alone."""
    spans = token_indices(tokenizer, syntax)
    within = [
        span
        for word, span in zip(syntax.words, spans, strict=True)
        if word.start >= phrase.start and word.end <= phrase.end
    ]
    outside = sorted({token for span in within for token in span})
    alone = token_indices(tokenizer, Syntax(phrase.text, tokenise(phrase.text)))
    inside = sorted({token for span in alone for token in span})
    count = min(len(outside), len(inside))
    return outside[:count], inside[:count]


def _encode(pipe: Any, texts: list[str]) -> Float[Tensor, "texts tokens width"]:
    states = Condition.from_prompt(pipe, texts)[0].encoder_hidden_states
    assert states is not None
    return states


def _check(pipe: Any, prompts: list[str], syntaxes: list[Syntax]) -> None:
    if getattr(pipe, "unet", None) is None or getattr(pipe, "text_encoder", None) is None:
        raise ValueError(f"{type(pipe).__name__} has no CLIP text encoder, on which StructureDiffusion rests")
    if getattr(pipe.unet, "encoder_hid_proj", None) is not None:
        raise ValueError("the U-Net projects its text embeddings first (encoder_hid_proj), so they cannot be replaced")
    if prompts != [syntax.prompt for syntax in syntaxes]:
        raise ValueError(f"syntax must be that of the prompts: {prompts} and {[s.prompt for s in syntaxes]}")
