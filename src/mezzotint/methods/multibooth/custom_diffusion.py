"""Custom Diffusion (Kumari et al., arXiv 2212.04488): keys and values of cross-attention, and a new word each.

W_k and W_v of all cross-attention layers are trained as full matrices, jointly with the placeholders' free vectors and
with prior preservation (section 3.2). Models learnt one by one are merged in closed form (section 3.3, equation 4):

    min_W || W C_reg^T - W_0 C_reg^T ||_F   subject to   W C^T = V
    W = W_0 + v^T d,   d = C (C_reg^T C_reg)^-1,   v^T = (V - W_0 C^T) (d C^T)^-1

Rows of C are text features of the concepts' words, V what the models that know them make of these.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mezzotint.attention.sites import backbone
from mezzotint.diffusion import Condition

from .base import projections, text_parts
from .finetuned import Finetuned
from .joint import Training, free_embedding, train_jointly, trainable
from .learning import borrowed, kept_embedding
from .objective import Learnt, Prior
from .pictures import Subject
from .placeholder import Placeholders

__all__ = ["closed_form", "custom_diffusion", "merged"]

_RANK, _OUTSIDE = 1e-11, 1e-3


def custom_diffusion(
    pipe: Any, subjects: Sequence[Subject], training: Training, *, prior: Prior | None, progress: bool = True
) -> Finetuned:
    """Learn one or several concepts jointly.

    Args:
        pipe: a latent diffusion pipeline; it stays as it is.
        subjects: their words are placeholders.
        training: the settings.
        prior: the prior-preservation term; None goes without.
        progress: show a bar.
    """
    with borrowed(pipe):
        tokens = [free_embedding(pipe, subject.class_word) for subject in subjects]
        with trainable(pipe, [f"{name}.weight" for name in projections(pipe, "cross")]) as live:
            train_jointly(pipe, subjects, training, weights=live, tokens=tokens, prior=prior, progress=progress)
            weights = {name: value.detach().clone() for name, value in live.items()}
        kept = [kept_embedding(Learnt(s.word, (), token), s)[1] for s, token in zip(subjects, tokens, strict=True)]
    vectors = {subject.word: vector for subject, vector in zip(subjects, kept, strict=True)}
    return Finetuned(weights, vectors, tuple(subject.phrase for subject in subjects))


def closed_form(
    W0: Float[Tensor, "out in"],
    C: Float[Tensor, "targets in"],
    V: Float[Tensor, "out targets"],
    C_reg: Float[Tensor, "captions in"],
) -> Float[Tensor, "out in"]:
    """The matrix nearest to W_0 on the captions' features that maps every target feature as it has to be (equation 4).

    Args:
        W0: the base model's matrix.
        C: features of the concepts' words, linearly independent.
        V: what they have to become.
        C_reg: features of other captions, which have to span those of the concepts' words.

    Raises:
        ValueError: they do not, or the targets' features are not independent.
    """
    wide, target, reference = W0.double(), C.double(), C_reg.double()
    # The last layer norm of a text encoder can confine its features to a hyperplane, where the inverse does not exist.
    # Nothing of the concepts' features points out of it, so the pseudo-inverse is exact there.
    inverse = torch.linalg.pinv(reference.mT @ reference, rtol=_RANK, hermitian=True)
    d = target @ inverse
    if (target - d @ reference.mT @ reference).norm() > _OUTSIDE * target.norm():
        raise ValueError(
            f"merging needs captions whose tokens span the features of the concepts' words: {len(reference)} tokens do "
            "not, give more"
        )
    if int(torch.linalg.matrix_rank(d @ target.mT)) < len(target):
        raise ValueError(f"the {len(target)} features of the concepts' words must be independent to be merged exactly")
    missing = V.double() - wide @ target.mT
    v = torch.linalg.solve((d @ target.mT).mT, missing.mT)
    return (wide + v.mT @ d).to(W0.dtype)


def merged(pipe: Any, parts: Sequence[Finetuned], captions: Sequence[str]) -> Finetuned:
    """Merge models that were learnt one by one, without training.

    Args:
        pipe: their base.
        parts: the models, with placeholders of their own.
        captions: ordinary prompts to keep the model as it is on; some hundreds for Stable Diffusion.

    Raises:
        ValueError: models of different layers, or too few captions.
    """
    names = sorted(parts[0].weights)
    if any(sorted(part.weights) != names for part in parts):
        raise ValueError("models with other layers than each other's cannot be merged")
    features = [torch.cat([_phrase_features(pipe, part, phrase) for phrase in part.phrases]) for part in parts]
    reference = _caption_features(pipe, captions)
    weights = {}
    for name in names:
        base = backbone(pipe).get_parameter(name).detach()
        own = [part.weights[name].to(base) for part in parts]
        V = torch.cat([W.float() @ c.mT for W, c in zip(own, features, strict=True)], dim=1)
        weights[name] = closed_form(base.float(), torch.cat(features), V, reference).to(base)
    vectors = {word: vector for part in parts for word, vector in part.vectors.items()}
    return Finetuned(weights, vectors, tuple(phrase for part in parts for phrase in part.phrases))


def _phrase_features(pipe: Any, part: Finetuned, phrase: str) -> Float[Tensor, "tokens width"]:
    """What the text encoder makes of placeholder and noun, in the prompt "photo of a <S> dog"."""
    words = Placeholders(pipe, list(part.vectors))
    words.vectors.update(part.vectors)
    with words.installed():
        cond, _ = Condition.from_prompt(pipe, f"photo of a {phrase}")
        tokenizer = text_parts(pipe)[0].tokenizer
        before = len(tokenizer("photo of a", add_special_tokens=False).input_ids)
        inside = len(tokenizer(phrase, add_special_tokens=False).input_ids)
    return _rows(cond, 0, 1 + before, inside)


def _caption_features(pipe: Any, captions: Sequence[str]) -> Float[Tensor, "tokens width"]:
    tokenizer = text_parts(pipe)[0].tokenizer
    cond, _ = Condition.from_prompt(pipe, list(captions))
    counts = [len(tokenizer(caption, truncation=True).input_ids) for caption in captions]
    return torch.cat([_rows(cond, index, 1, count - 1) for index, count in enumerate(counts)])


def _rows(cond: Condition, item: int, first: int, count: int) -> Float[Tensor, "tokens width"]:
    hidden = cond.encoder_hidden_states
    if hidden is None:
        raise ValueError("merging needs text features, and this pipeline has none")
    return hidden[item, first : first + count].float()
