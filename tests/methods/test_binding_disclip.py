"""Laws of DisCLIP and of StructureDiffusion, on real pipelines of random weights."""

import pytest
import torch

from mezzotint.attention import Observe, install, split_heads
from mezzotint.diffusion.condition import Condition
from mezzotint.methods.binding.disclip import conditioning, disentangled, overflow
from mezzotint.methods.binding.resolve import syntax_of
from mezzotint.methods.binding.structure_diffusion import mean_embeds, structured
from mezzotint.methods.binding.tokens import end_index, token_indices
from mezzotint.methods.binding.words import Syntax
from tests.diffusion.conftest import tiny_pixart_pipe, tiny_sd, tiny_sdxl

PROMPT = "a red ox or a big cat"


@pytest.fixture(scope="module")
def pipes():
    return {"sd": tiny_sd(), "sdxl": tiny_sdxl()}


@pytest.fixture(params=["sd", "sdxl"])
def pipe(request, pipes):
    return pipes[request.param]


def embeds(pipe, *texts):
    return Condition.from_prompt(pipe, list(texts))[0].encoder_hidden_states


def without_phrases(text):
    syntax = syntax_of(text)
    return Syntax(text, syntax.words, syntax.bindings)


def test_no_constituents_leave_the_embeddings_alone(pipe):
    assert disentangled(pipe, PROMPT, without_phrases(PROMPT)).equal(embeds(pipe, PROMPT))


def test_end_vectors_are_those_of_the_constituents_encoded_alone(pipe):
    syntax = syntax_of(PROMPT)
    first, count = end_index(pipe.tokenizer, PROMPT), len(syntax.constituents)
    ours, plain = disentangled(pipe, PROMPT, syntax)[0], embeds(pipe, PROMPT)[0]
    assert count == 3
    assert ours[:first].equal(plain[:first])
    assert ours[first + count :].equal(plain[first + count :])
    for place, phrase in enumerate(syntax.constituents):
        alone = embeds(pipe, phrase.text)[0, end_index(pipe.tokenizer, phrase.text)]
        torch.testing.assert_close(ours[first + place], alone)
        assert not torch.allclose(ours[first + place], plain[first + place], atol=1e-3)


def test_an_end_vector_does_not_read_the_padding_behind_it(pipe):
    """So "encoded alone, no padding beyond the end" and a padded batch are one thing: the encoder is causal."""
    tokens = pipe.tokenizer("a red ox", return_tensors="pt").input_ids
    with torch.no_grad():
        bare = pipe.text_encoder(tokens, output_hidden_states=True)
    width = pipe.text_encoder.config.hidden_size
    states = bare.hidden_states[-2] if hasattr(pipe, "text_encoder_2") else bare.last_hidden_state
    torch.testing.assert_close(states[0, -1], embeds(pipe, "a red ox")[0, tokens.shape[1] - 1, :width])


def test_one_phrase_alone_is_left_as_it_is(pipe):
    syntax = syntax_of("a red cube")
    assert [phrase.text for phrase in syntax.constituents] == ["a red cube"]
    assert disentangled(pipe, "a red cube", syntax).equal(embeds(pipe, "a red cube"))


def test_leaf_takes_words_from_their_smallest_phrase_and_avg_from_all(pipe):
    syntax = syntax_of(PROMPT)
    spans = token_indices(pipe.tokenizer, syntax)
    leaf = disentangled(pipe, PROMPT, syntax, variant="disclip-leaf")[0]
    mean = disentangled(pipe, PROMPT, syntax, variant="disclip-avg")[0]
    plain = disentangled(pipe, PROMPT, syntax)[0]
    phrase = embeds(pipe, "a big cat")[0]
    top = embeds(pipe, "ox or cat")[0]
    inside = token_indices(pipe.tokenizer, syntax_of("a big cat"))
    above = token_indices(pipe.tokenizer, syntax_of("ox or cat"))
    for word, place in ((5, 1), (6, 2)):
        torch.testing.assert_close(leaf[list(spans[word])], phrase[list(inside[place])])
    torch.testing.assert_close(mean[list(spans[5])], phrase[list(inside[1])])
    torch.testing.assert_close(mean[list(spans[6])], (phrase[list(inside[2])] + top[list(above[2])]) / 2)
    torch.testing.assert_close(leaf[list(spans[3])], top[list(above[1])])
    for variant in (leaf, mean):
        assert variant[end_index(pipe.tokenizer, PROMPT) :].equal(plain[end_index(pipe.tokenizer, PROMPT) :])


def test_a_repeated_word_is_taken_from_its_own_phrase(pipe):
    prompt = "a red ox or a big ox"
    leaf = disentangled(pipe, prompt, syntax_of(prompt), variant="disclip-leaf")[0]
    spans = token_indices(pipe.tokenizer, syntax_of(prompt))
    for word, phrase in ((2, "a red ox"), (6, "a big ox")):
        inside = token_indices(pipe.tokenizer, syntax_of(phrase))[2]
        torch.testing.assert_close(leaf[list(spans[word])], embeds(pipe, phrase)[0, list(inside)])


def test_prompts_of_a_batch_do_not_know_each_other(pipe):
    prompts = [PROMPT, "a red cube", "an ox"]
    together = disentangled(pipe, prompts, [syntax_of(prompt) for prompt in prompts])
    for row, prompt in enumerate(prompts):
        torch.testing.assert_close(together[row : row + 1], disentangled(pipe, prompt, syntax_of(prompt)))


def test_constituents_without_a_place_are_left_out_and_reported(pipe):
    prompt = "a red ox or a big cat or an ox"
    syntax = syntax_of(prompt)
    left = overflow(pipe, prompt, syntax)[0]
    first, length = end_index(pipe.tokenizer, prompt), pipe.tokenizer.model_max_length
    assert left == syntax.constituents[length - first :]
    assert left
    ours = disentangled(pipe, prompt, syntax)[0]
    last = syntax.constituents[length - first - 1]
    torch.testing.assert_close(ours[-1], embeds(pipe, last.text)[0, end_index(pipe.tokenizer, last.text)])
    assert overflow(pipe, "an ox", syntax_of("an ox")) == ((),)


def test_sdxl_keeps_the_pooled_vector_of_the_full_prompt(pipes):
    given = conditioning(pipes["sdxl"], PROMPT, syntax_of(PROMPT))
    pooled = Condition.from_prompt(pipes["sdxl"], PROMPT)[0].added_cond_kwargs["text_embeds"]
    assert given["pooled_prompt_embeds"].equal(pooled)
    assert conditioning(pipes["sd"], PROMPT, syntax_of(PROMPT)).keys() == {"prompt_embeds"}


def test_the_pipeline_takes_them_in_the_prompts_place(pipe):
    def picture(**prompt):
        generator = torch.Generator().manual_seed(0)
        return pipe(
            num_inference_steps=2, height=16, width=16, output_type="latent", generator=generator, **prompt
        ).images

    plain = picture(prompt=PROMPT)
    assert picture(**conditioning(pipe, PROMPT, without_phrases(PROMPT))).equal(plain)
    assert not picture(**conditioning(pipe, PROMPT, syntax_of(PROMPT))).equal(plain)


def test_a_text_encoder_without_sentence_vectors_is_refused():
    with pytest.raises(ValueError, match="PixArtSigmaPipeline has no CLIP text encoder: DisCLIP replaces"):
        disentangled(tiny_pixart_pipe(), PROMPT, syntax_of(PROMPT))


def test_what_does_not_belong_together_is_refused(pipe):
    with pytest.raises(ValueError, match="variant must be one of disclip, disclip-leaf, disclip-avg; got 'leaf'"):
        disentangled(pipe, PROMPT, syntax_of(PROMPT), variant="leaf")
    with pytest.raises(ValueError, match="must be those of the prompts"):
        disentangled(pipe, PROMPT, syntax_of("an ox"))


def passed(pipe, condition, edits=()):
    latent = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), install(pipe, *edits, branches=("cond",)):
        return pipe.unet(latent, 500, **condition.arguments()).sample


def test_structured_values_are_the_mean_over_the_phrases(pipe):
    """V = (W_v E_0 + W_v E_1 + W_v E_2) / 3 and K = W_k E_0, seen in a layer."""
    syntax, seen = syntax_of(PROMPT), {}
    condition = Condition.from_prompt(pipe, PROMPT)[0]
    whole = condition.encoder_hidden_states
    versions = [whole]
    for phrase in syntax.constituents[:2]:
        start = len(pipe.tokenizer(PROMPT[: phrase.start]).input_ids) - 1
        version, count = whole.clone(), end_index(pipe.tokenizer, phrase.text) - 1
        version[0, start : start + count] = embeds(pipe, phrase.text)[0, 1 : 1 + count]
        versions.append(version)

    def keep(call, query, key, value):
        seen[call.site.name] = call.attention, key, value

    with structured(pipe, PROMPT, syntax):
        passed(pipe, condition, [Observe(keep, of="query_key_value", kind="cross")])
    assert seen
    for layer, key, value in seen.values():
        mean = sum(layer.to_v(version) for version in versions) / 3
        torch.testing.assert_close(value, split_heads(mean, layer.heads))
        assert key.equal(split_heads(layer.to_k(whole), layer.heads))


def test_structured_without_phrases_changes_nothing(pipe):
    condition = Condition.from_prompt(pipe, PROMPT)[0]
    with structured(pipe, PROMPT, without_phrases(PROMPT)):
        inside = passed(pipe, condition)
    assert inside.equal(passed(pipe, condition))
    with structured(pipe, PROMPT, syntax_of(PROMPT)):
        assert not passed(pipe, condition).equal(inside)
    assert passed(pipe, condition).equal(inside)


def test_structured_repeats_with_the_images_of_a_prompt(pipe):
    prompts = [PROMPT, "an ox"]

    def pictures():
        generators = [torch.Generator().manual_seed(seed) for seed in (0, 0, 1, 1)]
        return pipe(
            prompts, num_inference_steps=2, height=16, width=16, output_type="latent", generator=generators,
            num_images_per_prompt=2,
        ).images  # fmt: skip

    plain = pictures()
    with structured(pipe, prompts, [syntax_of(prompt) for prompt in prompts]):
        ours = pictures()
        torch.testing.assert_close(ours[0], ours[1])
        torch.testing.assert_close(ours[2:], plain[2:])
        assert not torch.allclose(ours[0], plain[0])
        with pytest.raises(ValueError, match="do not belong to the 2 prompts"):
            pipe("an ox", num_inference_steps=1, height=16, width=16, output_type="latent")
    assert pictures().equal(plain)


def test_mean_embeds_of_one_whole_phrase_are_the_prompts(pipe):
    torch.testing.assert_close(mean_embeds(pipe, "an ox", syntax_of("an ox")), embeds(pipe, "an ox"))
