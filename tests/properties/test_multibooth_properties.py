"""Adaptive concept normalisation and pooling, for all vectors: length, direction, scale, order."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from mezzotint.methods.multibooth.encoder import pooled
from mezzotint.methods.multibooth.normalisation import normalise, squared_norm

lengths = st.floats(1e-2, 1e3)
seeds = st.integers(0, 2**16)
sizes = st.tuples(st.integers(1, 4), st.integers(2, 40))


def vectors(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(seeds, sizes, lengths)
def test_the_length_is_the_nouns_and_the_direction_is_kept(seed, size, length):
    v = vectors(seed, *size)
    made = normalise(v, length)
    torch.testing.assert_close(made.norm(dim=-1), torch.full((size[0],), length, dtype=torch.float64))
    directions = torch.nn.functional.cosine_similarity(made, v, dim=-1)
    torch.testing.assert_close(directions, torch.ones_like(directions))


@given(seeds, sizes, lengths, st.floats(1e-3, 1e3))
def test_normalising_twice_or_at_another_scale_changes_nothing(seed, size, length, scale):
    v = vectors(seed, *size)
    once = normalise(v, length)
    torch.testing.assert_close(normalise(once, length), once)
    torch.testing.assert_close(normalise(scale * v, length), once)


@given(seeds, st.integers(1, 6), st.integers(1, 12))
def test_pooling_does_not_know_the_order_of_the_queries(seed, queries, width):
    outputs = vectors(seed, 2, queries, width)
    order = torch.randperm(queries, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(pooled(outputs[:, order]), pooled(outputs))


@given(seeds, sizes)
def test_the_penalty_pulls_along_v_alone(seed, size):
    v = vectors(seed, *size).requires_grad_()
    (gradient,) = torch.autograd.grad(squared_norm(v), v)
    torch.testing.assert_close(gradient, 2 * v.detach() / size[0])
