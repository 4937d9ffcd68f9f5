"""Textual Inversion (Gal et al., arXiv 2208.01618, equation 2): one free vector is learnt, everything else is frozen.

v* = argmin_v E || eps - eps_theta(z_t, t, tau(P(v))) ||^2, begun at the class noun's embedding, without normalisation.
"""

from __future__ import annotations

from typing import Any

from .base import fingerprint
from .concept import Concept
from .joint import Training, free_embedding, train_jointly
from .learning import borrowed, kept_embedding
from .objective import Learnt
from .pictures import Subject

__all__ = ["textual_inversion"]


def textual_inversion(pipe: Any, subject: Subject, training: Training, *, progress: bool = True) -> Concept:
    """Learn the embedding of one concept; 5e-3 is the customary learning rate.

    Args:
        pipe: a latent diffusion pipeline; it stays as it is.
        subject: its word is the placeholder.
        training: the settings.
        progress: show a bar.

    Returns:
        A concept without LoRA.
    """
    with borrowed(pipe):
        token = free_embedding(pipe, subject.class_word)
        train_jointly(pipe, [subject], training, weights={}, tokens=[token], progress=progress)
        _, vectors = kept_embedding(Learnt(subject.word, (), token), subject)
        facts = {"method": "textual inversion", "steps": training.steps, "learning_rate": training.learning_rate}
        base = fingerprint(pipe)
    return Concept(subject.word, subject.class_word, vectors, {}, rank=0, base=base, facts=facts)
