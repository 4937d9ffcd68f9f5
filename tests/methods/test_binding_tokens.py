"""Laws of the way from words to tokens: every sub-token is found, on real tokenizers."""

import json
import warnings

import pytest
import torch
from transformers import CLIPTokenizer, CTRLTokenizer

from mezzotint.loading import zoo_path
from mezzotint.methods.binding.resolve import syntax_of
from mezzotint.methods.binding.tokens import end_index, focus_matrix, token_indices, window
from mezzotint.methods.binding.words import Binding
from tests.diffusion.conftest import clip_tokenizer

PROMPT = "a Turquoise dodecahedron, a girl’s red-haired café cat"


@pytest.fixture(scope="module")
def split_tokenizer():
    """A CLIP tokenizer with a small trained vocabulary: long words are split, short ones are not."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token="<|endoftext|>"))
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=600, initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False,
        special_tokens=["<|startoftext|>", "<|endoftext|>"],
    )  # fmt: skip
    learner.train_from_iterator(["a red cat and a blue mug beside the girl"] * 20, trainer)
    model = json.loads(learner.to_str())["model"]
    vocabulary = model["vocab"]
    for letter in alphabet:
        vocabulary.setdefault(f"{letter}</w>", len(vocabulary))
    return CLIPTokenizer(vocab=vocabulary, merges=[tuple(merge) for merge in model["merges"]], model_max_length=77)


@pytest.fixture(scope="module")
def scenes_tokenizer():
    return CLIPTokenizer.from_pretrained(zoo_path("scenes") / "tokenizer")


@pytest.fixture(params=["split", "scenes"])
def tokenizer(request):
    return request.getfixturevalue(f"{request.param}_tokenizer")


def texts(tokenizer, prompt, span):
    ids = tokenizer(prompt)["input_ids"]
    return "".join(tokenizer.convert_ids_to_tokens([ids[token] for token in span])).replace("</w>", "")


def test_every_token_belongs_to_exactly_one_word(tokenizer):
    syntax = syntax_of(PROMPT)
    spans = token_indices(tokenizer, syntax)
    owned = [token for span in spans for token in span]
    assert owned == list(range(1, end_index(tokenizer, PROMPT)))


def test_the_tokens_of_a_word_spell_it(tokenizer):
    syntax = syntax_of(PROMPT)
    spans = token_indices(tokenizer, syntax)
    for word, span in zip(syntax.words, spans, strict=True):
        if word.text.isascii():
            assert texts(tokenizer, PROMPT, span) == word.text.lower()


def test_a_word_split_in_k_tokens_gives_k_constrained_columns(tokenizer):
    syntax = syntax_of(PROMPT, [("turquoise#1", "dodecahedron")])
    spans = token_indices(tokenizer, syntax)
    matrix = focus_matrix(spans, syntax.bindings, window(tokenizer))
    attribute, head = spans[1], spans[2]
    assert len(attribute) > 1
    assert len(head) > 1
    assert matrix.any(1).nonzero().flatten().tolist() == list(attribute)
    assert all(matrix[token].nonzero().flatten().tolist() == list(head) for token in attribute)


def test_upper_case_has_the_tokens_of_lower_case(tokenizer):
    assert token_indices(tokenizer, syntax_of(PROMPT.upper())) == token_indices(tokenizer, syntax_of(PROMPT.lower()))


def test_swapping_heads_swaps_rows_of_the_focus_matrix(tokenizer):
    syntax = syntax_of("a red cat and a blue mug")
    spans = token_indices(tokenizer, syntax)
    straight = focus_matrix(spans, [Binding(1, 2), Binding(5, 6)], 20)
    crossed = focus_matrix(spans, [Binding(1, 6), Binding(5, 2)], 20)
    assert straight[spans[1][0]].equal(crossed[spans[5][0]])
    assert straight[spans[5][0]].equal(crossed[spans[1][0]])
    assert not straight.equal(crossed)


def test_words_beyond_the_window_are_named_and_dropped(tokenizer):
    prompt = " ".join(["very"] * 40 + ["turquoise", "cat"])
    syntax = syntax_of(prompt, [("turquoise", "cat")])
    with pytest.warns(UserWarning, match=r"'cat': no attribute can be bound there, shorten the prompt"):
        spans = token_indices(tokenizer, syntax)
    assert spans[-1] == ()
    assert max(token for span in spans for token in span) == window(tokenizer) - 2
    assert not focus_matrix(spans, syntax.bindings, window(tokenizer)).any()


def test_more_than_77_tokens_warn_and_77_do_not(split_tokenizer):
    assert window(split_tokenizer) == 77
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        token_indices(split_tokenizer, syntax_of(" ".join(["cat"] * 75)))
    with pytest.warns(UserWarning, match="beyond the 76 tokens that the text encoder reads are 'cat'"):
        token_indices(split_tokenizer, syntax_of(" ".join(["cat"] * 76)))


def test_the_end_token_is_where_the_encoder_reads_it(tokenizer):
    for prompt in ("", "a red cat", " ".join(["cat"] * 100)):
        ids = torch.tensor(
            tokenizer(prompt, padding="max_length", truncation=True, max_length=window(tokenizer)).input_ids
        )
        assert end_index(tokenizer, prompt) == int((ids == tokenizer.eos_token_id).int().argmax())


def test_a_tokenizer_without_offsets_is_aligned_by_strings_with_a_warning(tmp_path):
    """CTRL's tokenizer is written in Python and tells no offsets; its merges leave "turquoise" in many pieces."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    pieces = [*letters, *(f"{letter}@@" for letter in letters), "cat", "red", "<unk>"]
    (tmp_path / "vocab.json").write_text(json.dumps({piece: k for k, piece in enumerate(pieces)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\nc a\nca t</w>\nr e\nre d</w>\n")
    slow = CTRLTokenizer(str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt"), model_max_length=64)
    syntax = syntax_of("a red cat beside a turquoise cat")
    with pytest.warns(UserWarning, match="tells no character offsets"):
        spans = token_indices(slow, syntax)
    whole = slow.convert_ids_to_tokens(slow("a red cat beside a turquoise cat")["input_ids"])
    assert [[whole[token] for token in span] for span in spans] == [slow.tokenize(word.text) for word in syntax.words]
    assert [token for span in spans for token in span] == list(range(len(whole)))
    assert len(spans[5]) == len("turquoise")


def test_the_focus_matrix_refuses_what_is_outside():
    with pytest.raises(ValueError, match=r"names word 3; the prompt has words 0\.\.1"):
        focus_matrix([(1,), (2,)], [Binding(0, 3)], 8)
    with pytest.raises(ValueError, match=r"must lie in 0\.\.7"):
        focus_matrix([(1,), (8,)], [Binding(0, 1)], 8)


def test_a_tokenizer_without_a_length_needs_one():
    endless = clip_tokenizer()
    endless.model_max_length = 10**30
    with pytest.raises(ValueError, match="length must say how many tokens"):
        token_indices(endless, syntax_of("a red cat"))
    assert token_indices(endless, syntax_of("a red cat"), length=12)[1] == (2, 3, 4)
