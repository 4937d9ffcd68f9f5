"""Laws of learning concepts: normalisation, placeholders, what is trained and what is left alone, resuming."""

import hashlib
import math
from itertools import pairwise

import pytest
import torch
from diffusers import UNet2DConditionModel
from PIL import Image
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModel

from mezzotint import files
from mezzotint.diffusion import Condition, Denoiser, Predictor
from mezzotint.methods import multibooth, q_dit
from mezzotint.methods.multibooth import base, encoder, learning, normalisation, templates
from mezzotint.methods.multibooth.finetuned import summed
from mezzotint.methods.multibooth.objective import Learnt, Objective, Prior, gathered, reconstruction
from mezzotint.methods.multibooth.options import Options
from mezzotint.methods.multibooth.pictures import Subject, read_pictures
from mezzotint.methods.multibooth.placeholder import Placeholders, spoken, taught
from mezzotint.training import Step, lora
from tests.cli.conftest import stable_diffusion

WORD = "<S>"
TEMPLATES = ("a {}", "the {}")


@pytest.fixture(scope="module")
def pipe():
    made = stable_diffusion()
    made.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():  # a fresh U-Net hardly looks at its text
        for name, value in made.unet.named_parameters():
            if ".attn" in name and value.ndim == 2:
                value.copy_(torch.randn(value.shape, generator=generator) / value.shape[1] ** 0.5)
    for part in (made.unet, made.vae, made.text_encoder):
        part.eval()
    return made


def photos(count=3, seed=0):
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


def options(**changes):
    small = {"steps": 2, "rank": 2, "batch_size": 2, "queries": 2, "encoder_layers": 2, "learning_rate": 1e-2}
    return Options(**{"class_word": "cube", "templates": TEMPLATES, **small, **changes})


def learn(pipe, **changes):
    folder = changes.pop("folder", None)
    return learning.learn_concept(pipe, photos(), options(**changes), folder=folder, progress=False)


def step(count=3, number=0):
    return Step(0, number, 0, count, count, torch.device("cpu"))


def sums(module):
    return {
        name: hashlib.sha256(value.detach().cpu().numpy().tobytes()).hexdigest()
        for name, value in module.state_dict().items()
    }


def rows(pipe, text):
    """What the token table hands on, and the encoder's result."""
    seen = []
    hook = pipe.text_encoder.get_input_embeddings().register_forward_hook(lambda *call: seen.append(call[2]))
    ids = pipe.tokenizer(text, return_tensors="pt").input_ids
    result = pipe.text_encoder(ids)
    hook.remove()
    return seen[0][0], result


# Normalisation and the regulariser -----------------------------------------------------------------------------------


def gradients(pipe, *, acn, penalty=0.0, wrong=None):
    """v, and the gradient of the loss in it, for a free embedding."""
    vector = encoder.Free([torch.linspace(-1, 2, 16)])
    words = Placeholders(pipe, [WORD])
    learnt = Learnt(WORD, tuple(templates.prompts(f"{WORD} cube", TEMPLATES)), vector, (0.4,) if acn else None)
    subject = Subject.of(pipe, photos(), word=WORD, class_word="cube")
    loss = Objective(pipe, words, [learnt], penalty=penalty)
    with words.installed():
        value, _ = loss(gathered([subject]), step())
    if wrong is not None:
        value = value + wrong(vector.vectors[0])
    return vector.vectors[0], torch.autograd.grad(value, vector.vectors[0])[0]


def cosine(a, b):
    return abs(float(torch.nn.functional.cosine_similarity(a.detach(), b, dim=0)))


def test_the_reconstruction_has_no_force_along_v_and_the_penalty_is_the_only_one(pipe):
    with learning.borrowed(pipe):
        v, plain = gradients(pipe, acn=True)
        assert plain.norm() > 0
        assert cosine(v, plain) < 1e-4
        _, both = gradients(pipe, acn=True, penalty=0.01)
        torch.testing.assert_close(both - plain, 0.01 * 2 * v.detach(), rtol=1e-3, atol=1e-7)


def test_the_law_fails_without_normalisation_and_penalising_vhat_does_nothing(pipe):
    with learning.borrowed(pipe):
        v, free = gradients(pipe, acn=False)
        assert cosine(v, free) > 1e-3
        _, plain = gradients(pipe, acn=True)
        constant = lambda v: 0.01 * normalisation.squared_norm(normalisation.normalise(v[None], 0.4))  # noqa: E731
        _, useless = gradients(pipe, acn=True, wrong=constant)
        torch.testing.assert_close(useless, plain, rtol=1e-4, atol=1e-9)


def test_plain_descent_without_the_regulariser_only_lengthens_v(pipe):
    vector = encoder.Free([torch.linspace(-1, 2, 16) / 20])
    words = Placeholders(pipe, [WORD])
    learnt = Learnt(WORD, (f"a {WORD} cube",), vector, (0.4,))
    batch = gathered([Subject.of(pipe, photos(), word=WORD, class_word="cube")])
    loss, sgd = Objective(pipe, words, [learnt]), torch.optim.SGD(vector.parameters(), lr=0.5)
    squares = [float(vector.vectors[0].detach().double().square().sum())]
    with learning.borrowed(pipe), words.installed():
        for number in range(4):
            sgd.zero_grad()
            loss(batch, step(number=number))[0].backward()
            growth = 0.25 * float(vector.vectors[0].grad.double().square().sum())
            sgd.step()
            squares.append(float(vector.vectors[0].detach().double().square().sum()))
            assert squares[-1] == pytest.approx(squares[-2] + growth, rel=1e-5), "|v - eta g|^2 = |v|^2 + eta^2 |g|^2"
    assert all(after > before for before, after in pairwise(squares))


def test_a_noun_of_several_tokens_has_the_mean_of_their_lengths(pipe):
    part = base.text_parts(pipe)[0]
    ids = part.tokenizer("cube", add_special_tokens=False).input_ids
    assert len(ids) > 1
    expected = part.table.weight[ids].norm(dim=1).mean().detach()
    torch.testing.assert_close(learning.class_lengths(pipe, "cube")[0], float(expected))


# Placeholders --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("word", [WORD, "my-old-teapot", "*"])
def test_a_placeholder_of_any_length_is_one_row_and_the_others_keep_their_bits(pipe, word):
    vector = torch.linspace(-0.1, 0.1, 16)
    words = Placeholders(pipe, [word])
    words.vectors[word] = (vector,)
    plain, _ = rows(pipe, "a cube")
    before, tokenizer = sums(pipe.text_encoder), pipe.tokenizer
    with words.installed():
        found, _ = rows(pipe, f"a {word} cube")
        assert torch.equal(rows(pipe, "a cube")[0], plain), "prompts without it are read as before"
    assert torch.equal(found[2], vector)
    assert torch.equal(torch.cat([found[:2], found[3:]]), plain)
    assert pipe.tokenizer is tokenizer
    assert word not in tokenizer.get_vocab()
    assert sums(pipe.text_encoder) == before
    assert not pipe.text_encoder._forward_pre_hooks
    assert not pipe.text_encoder.get_input_embeddings()._forward_hooks


def test_encoders_that_look_for_the_largest_number_still_find_the_end(pipe):
    """Older CLIP configurations take the largest token for the end of the text; a new token must not be it."""
    class_row = pipe.text_encoder.get_input_embeddings().weight[3].detach()
    words = Placeholders(pipe, [WORD])
    words.vectors[WORD] = (class_row,)
    own = pipe.text_encoder.eos_token_id
    try:
        pipe.text_encoder.eos_token_id = 2
        ids = pipe.tokenizer("a cube", return_tensors="pt").input_ids
        expected = pipe.text_encoder(torch.cat([ids[:, :2], torch.tensor([[3]]), ids[:, 2:]], dim=1)).pooler_output
        with words.installed():
            _, found = rows(pipe, f"a {WORD} cube")
        torch.testing.assert_close(found.pooler_output, expected)
    finally:
        pipe.text_encoder.eos_token_id = own


def test_each_prompt_of_a_batch_can_have_a_vector_of_its_own(pipe):
    words = Placeholders(pipe, [WORD])
    vectors = torch.stack([torch.full((16,), 0.1), torch.linspace(-1, 1, 16)])
    with words.installed():
        words.vectors[WORD] = (vectors,)
        both, _ = Condition.from_prompt(pipe, [f"a {WORD} cube"] * 2)
        single = []
        for vector in vectors:
            words.vectors[WORD] = (vector,)
            single.append(Condition.from_prompt(pipe, f"a {WORD} cube")[0].encoder_hidden_states)
    torch.testing.assert_close(both.encoder_hidden_states, torch.cat(single))


def test_placeholders_may_be_installed_within_each_other(pipe):
    outer = Placeholders(pipe, [WORD])
    outer.vectors[WORD] = (torch.full((16,), 0.2),)
    with outer.installed():
        inner = Placeholders(pipe, ["<V>"])
        inner.vectors["<V>"] = (torch.full((16,), -0.2),)
        with inner.installed():
            found, _ = rows(pipe, f"a {WORD} cube <V>")
    assert torch.equal(found[2], outer.vectors[WORD][0])
    assert torch.equal(found[-2], inner.vectors["<V>"][0])


def test_both_encoders_of_sdxl_get_their_own_vector(sdxl):
    words = Placeholders(sdxl, [WORD])
    words.vectors[WORD] = (torch.full((768,), 0.3), torch.full((1280,), -0.3))
    seen, before = {}, (sdxl.tokenizer, sdxl.tokenizer_2)
    with words.installed():
        hooks = [
            part.table.register_forward_hook(lambda *call, name=part.tokenizer_name: seen.setdefault(name, call[2]))
            for part in base.text_parts(sdxl)
        ]
        Condition.from_prompt(sdxl, f"a {WORD} cat")
    for hook in hooks:
        hook.remove()
    assert (sdxl.tokenizer, sdxl.tokenizer_2) == before
    for name, vector in zip(("tokenizer", "tokenizer_2"), words.vectors[WORD], strict=True):
        assert torch.equal(seen[name][0, 2], vector)


def test_the_pipeline_is_restored_when_the_block_fails(pipe):
    tokenizer = pipe.tokenizer
    with pytest.raises(RuntimeError, match="stop"), Placeholders(pipe, [WORD]).installed():
        raise RuntimeError("stop")
    assert pipe.tokenizer is tokenizer
    assert not pipe.text_encoder._forward_pre_hooks


def test_words_that_are_taken_are_refused(pipe):
    with pytest.raises(ValueError, match="a word of the vocabulary already"):
        taught(pipe.tokenizer, ["a"])
    with pytest.raises(ValueError, match="a word of the vocabulary already"):
        taught(pipe.tokenizer, ["<|endoftext|>"])
    with pytest.raises(ValueError, match="a placeholder of its own"):
        Placeholders(pipe, [WORD, WORD])


def test_a_placeholder_that_is_absent_or_cut_off_is_an_error(pipe):
    words = Placeholders(pipe, [WORD])
    words.check_prompt(f"a {WORD} cube")
    with pytest.raises(ValueError, match="does not name"):
        words.check_prompt("a cube")
    with pytest.raises(ValueError, match="is cut off: the prompt has more than the 24 tokens"):
        words.check_prompt("abcdefgh ijklmnop qrstuvwx " + WORD)
    with pytest.raises(ValueError, match="has no vector yet"), words.installed():
        Condition.from_prompt(pipe, WORD)


# The encoder ---------------------------------------------------------------------------------------------------------


def test_a_qformer_looks_at_picture_and_noun_and_has_a_head_for_each_width():
    torch.manual_seed(0)
    features = torch.randn(2, 5, 12)
    network = encoder.QFormer(encoder.Shape(3, 2, 16, 4), noun=2, features=12, widths=[16, 24]).eval()
    one, other = network(features)
    assert (one.shape, other.shape) == ((2, 16), (2, 24))
    assert isinstance(network.heads[0], nn.Identity), "nothing between the mean and an embedding of the same width"
    alone = network(features[:1])[0]
    torch.testing.assert_close(alone, one[:1])
    assert not torch.allclose(one[0], one[1]), "another picture, another embedding"
    with torch.no_grad():
        network.network.get_input_embeddings().weight.neg_()
    assert not torch.allclose(network(features)[0], one), "another noun, another embedding"


def test_v_is_the_mean_of_the_query_outputs_alone():
    torch.manual_seed(0)
    network = encoder.QFormer(encoder.Shape(3, 2, 16, 4), noun=2, features=12, widths=[16]).eval()
    seen = []
    network.network.register_forward_hook(lambda _, __, output: seen.append(output.last_hidden_state))
    (v,) = network(torch.randn(2, 5, 12))
    assert seen[0].shape == (2, 5, 16), "three queries and two tokens of the noun"
    torch.testing.assert_close(v, seen[0][:, :3].mean(1))
    assert not torch.allclose(v, seen[0].mean(1))


@pytest.mark.parametrize(("width", "hidden", "layers"), [(16, 16, 2), (768, 768, 12), (1024, 768, 12), (4096, 768, 12)])
def test_a_qformer_is_never_wider_than_bert_base(width, hidden, layers):
    shape = encoder.Shape.of(width)
    assert (shape.hidden, shape.layers) == (hidden, layers)


@pytest.mark.parametrize("where", ["given", "of the pipeline"])
def test_an_image_encoder_is_looked_through_and_left_alone(where):
    own = stable_diffusion()
    own.set_progress_bar_config(disable=True)
    torch.manual_seed(0)
    config = CLIPVisionConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
                              image_size=8, patch_size=4)  # fmt: skip
    vision = CLIPVisionModel(config).eval()
    before = sums(vision)
    if where == "of the pipeline":
        own.image_encoder = vision
    given = {"vision": vision} if where == "given" else {}
    found = learning.learn_concept(own, photos(), options(), progress=False, **given)
    assert sums(vision) == before
    assert [value.requires_grad for value in vision.parameters()] == [True] * len(list(vision.parameters()))
    plain = learn(own, encoder="free")
    assert not torch.allclose(found.embeddings[0], plain.embeddings[0])


def test_a_quantised_model_is_refused_with_what_to_do(pipe):
    small = q_dit.quantise(pipe, weights=8, group="auto", rounding="rtn").pipe
    with pytest.raises(ValueError, match="is quantised: learn on the original model"):
        learn(small)


def test_latents_are_cut_into_at_most_64_patches_without_losing_a_number():
    latents = torch.arange(2 * 4 * 10 * 18, dtype=torch.float32).reshape(2, 4, 10, 18) + 1
    cut = encoder.patches(latents)
    assert cut.shape[1] <= 64
    assert sorted(cut[cut != 0].tolist()) == latents.flatten().tolist()


def test_a_clip_encoder_is_used_where_there_is_one():
    torch.manual_seed(0)
    config = CLIPVisionConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
                              image_size=8, patch_size=4)  # fmt: skip
    vision = CLIPVisionModel(config).eval()
    found = encoder.image_features(photos(2), torch.zeros(2, 4, 8, 8), vision)
    assert found.shape == (2, 5, 16), "class token and four patches"
    assert not torch.allclose(found[0], found[1])


# Training ------------------------------------------------------------------------------------------------------------


def test_only_encoder_and_lora_are_trained_and_the_pipeline_is_as_it_was(pipe):
    parts = {"unet": pipe.unet, "text_encoder": pipe.text_encoder, "vae": pipe.vae}
    before = {name: sums(part) for name, part in parts.items()}
    needs = [value.requires_grad for value in pipe.unet.parameters()]
    pipe.unet.train()
    tokenizer = pipe.tokenizer
    concept = learn(pipe)
    assert {name: sums(part) for name, part in parts.items()} == before
    assert [value.requires_grad for value in pipe.unet.parameters()] == needs
    assert pipe.unet.training
    pipe.unet.eval()
    assert pipe.tokenizer is tokenizer
    assert not hasattr(pipe.unet, "peft_config")
    assert set(concept.lora) == set(base.projections(pipe))
    assert all(B.abs().sum() > 0 for _, B in concept.lora.values()), "every layer took part"
    torch.testing.assert_close(float(concept.embeddings[0].norm()), learning.class_lengths(pipe, "cube")[0])
    concept.check(pipe)


def test_every_part_of_the_encoder_gets_a_gradient(pipe):
    with learning.borrowed(pipe):
        made = learning._Making.start(pipe, photos(), options(), None)
        learnt = Learnt(WORD, (f"a {WORD} cube",), made.encoder, made.lengths)
        with made.words.installed():
            Objective(pipe, made.words, [learnt], penalty=0.01)(gathered([made.subject]), step())[0].backward()
        adapters = lora.parameters(pipe.unet, learning.ADAPTER)
        assert all(value.grad is not None for name, value in adapters.items() if "lora_B" in name)
        lacking = [name for name, value in made.encoder.named_parameters() if value.grad is None]
        others = [name for name, value in pipe.unet.named_parameters() if value.grad is not None and "lora" not in name]
    # The text's own feed-forward of the last layer comes after everything that queries could still see.
    assert all(name.startswith("network.encoder.layer.1.") for name in lacking)
    assert made.encoder.queries.grad.abs().sum() > 0
    assert others == []
    assert all(value.grad is None for value in pipe.text_encoder.parameters())


def test_a_new_lora_changes_nothing(pipe):
    latents, cond = torch.randn(1, 4, 8, 8), Condition.from_prompt(pipe, "a cube")[0]
    plain = Denoiser(pipe).eps(latents, 500, cond)
    with learning.borrowed(pipe):
        made = learning._Making.start(pipe, photos(), options(), None)
        torch.testing.assert_close(Denoiser(pipe).eps(latents, 500, cond), plain)
        assert made.pipe is pipe


def test_an_adapter_of_the_users_survives(pipe):
    lora.add(pipe.unet, rank=1, targets=["attn1.to_q", "attn2.to_k"], name="style")
    try:
        learn(pipe, steps=1)
        layers = lora.layers(pipe.unet, "style")
        assert all(layer.active_adapters == ["style"] for layer in layers.values())
        with pytest.raises(ValueError, match="no adapter"):
            lora.layers(pipe.unet, learning.ADAPTER)
    finally:
        lora.remove(pipe.unet, "style")


def test_a_failed_run_leaves_the_pipeline_as_it_was(pipe):
    before = sums(pipe.unet)
    with pytest.raises(ValueError, match="is cut off"):
        learn(pipe, templates=("abcdefgh ijklmnop qrstuvwx {}",))
    with pytest.raises(ValueError, match="at least one picture"):
        learning.learn_concept(pipe, photos(0), options(), progress=False)
    assert sums(pipe.unet) == before
    assert not hasattr(pipe.unet, "peft_config")


def same(one, other):
    assert all(torch.equal(a, b) for a, b in zip(one.embeddings, other.embeddings, strict=True))
    assert all(torch.equal(a, b) for name in one.lora for a, b in zip(one.lora[name], other.lora[name], strict=True))


def test_a_run_that_is_continued_ends_with_the_same_bits(pipe, tmp_path):
    whole = learn(pipe, steps=4)
    learn(pipe, steps=2, folder=tmp_path / "run")
    same(learn(pipe, steps=4, folder=tmp_path / "run"), whole)
    with pytest.raises(ValueError, match="another learning_rate"):
        learn(pipe, steps=4, learning_rate=1e-3, folder=tmp_path / "run")
    with pytest.raises(ValueError, match="another pictures"):
        learning.learn_concept(pipe, photos(seed=1), options(), folder=tmp_path / "run", progress=False)


def test_seeds_decide(pipe):
    same(learn(pipe), learn(pipe))
    assert not torch.equal(learn(pipe).embeddings[0], learn(pipe, seed=1).embeddings[0])


def test_half_precision_is_that_of_the_arithmetic_not_of_what_is_kept(pipe):
    exact, rough = (learn(pipe, precision=precision) for precision in ("float32", "bfloat16"))
    pairs = [(exact.lora[name][1], rough.lora[name][1]) for name in exact.lora]
    assert all(a.dtype == b.dtype == torch.float32 for a, b in pairs)
    assert 0 < max(float((a - b).abs().max()) for a, b in pairs) < 0.05


def test_cross_attention_alone_and_a_free_vector(pipe):
    concept = learn(pipe, layers="cross", encoder="free")
    assert {name.split(".")[-2] for name in concept.lora} == {"attn2"}
    assert len(concept.lora) * 2 == len(base.projections(pipe))


def test_without_normalisation_the_mean_v_itself_is_kept(pipe):
    concept = learn(pipe, acn=False)
    assert concept.facts["length"] == concept.facts["length_before"]
    assert concept.facts["length"][0] != pytest.approx(concept.facts["length_of_noun"][0], rel=1e-2)


def test_a_concept_of_sdxl_has_two_embeddings(sdxl):
    small = options(steps=1, batch_size=1, rank=1, encoder="free")
    concept = learning.learn_concept(sdxl, photos(1), small, progress=False)
    assert [len(vector) for vector in concept.embeddings] == [768, 1280]
    concept.check(sdxl)
    with spoken(sdxl, [concept]):
        cond, _ = Condition.from_prompt(sdxl, f"a {concept.phrase}")
    plain, _ = Condition.from_prompt(sdxl, "a cube")
    assert not torch.allclose(cond.added_cond_kwargs["text_embeds"], plain.added_cond_kwargs["text_embeds"])


# The loss ------------------------------------------------------------------------------------------------------------


class Exact(Predictor):
    """Knows the clean latents, and predicts what it is asked for."""

    def __init__(self, denoiser, clean, prediction_type):
        self.levels, self.clean, self.prediction_type = denoiser.levels, clean, prediction_type

    def model_output(self, x, t, cond=None):
        if self.prediction_type == "sample":
            return self.clean
        eps = self.levels.eps_from_x0(x, t, self.clean)
        return eps if self.prediction_type == "epsilon" else self.levels.v_from_eps(x, t, eps)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_the_target_is_what_the_model_predicts(pipe, kind):
    clean = torch.randn(3, 4, 8, 8)
    perfect = reconstruction(Exact(Denoiser(pipe), clean, kind), clean, Condition(), step())
    assert float(perfect) < 1e-4
    wrong = reconstruction(Exact(Denoiser(pipe), clean + 1, kind), clean, Condition(), step())
    assert float(wrong) > 1e-3


def test_the_prior_term_is_added_with_its_weight(pipe):
    subject = Subject.of(pipe, photos(), word="sks", class_word="cube")
    learnt, losses = Learnt("sks", ("a sks cube",)), []
    for weight in (0.0, 1.0, 3.0):
        prior = Prior(subject.mean[:1], subject.std[:1], ("a cube",), weight)
        loss, _ = Objective(pipe, None, [learnt], prior=prior)(gathered([subject]), step())
        losses.append(float(loss.detach()))
    assert losses[1] > losses[0]
    assert losses[2] - losses[0] == pytest.approx(3 * (losses[1] - losses[0]), rel=1e-4)


# Bad input -----------------------------------------------------------------------------------------------------------


def test_pictures_are_read_in_order_cut_in_the_middle_and_refused_when_damaged(pipe, tmp_path):
    with pytest.raises(ValueError, match="must be a folder"):
        read_pictures(tmp_path / "none", pipe)
    with pytest.raises(ValueError, match="there are no pictures"):
        read_pictures(tmp_path, pipe)
    wide = Image.new("RGB", (48, 16), "red")
    wide.paste("blue", (16, 0, 32, 16))
    files.write_image(tmp_path / "b.png", wide)
    files.write_image(tmp_path / "a.png", Image.new("RGB", (16, 16), "lime"))
    found = read_pictures(tmp_path, pipe)
    assert found.shape == (2, 3, 16, 16)
    assert found.mean((2, 3)).round().tolist() == [[0, 1, 0], [0, 0, 1]]
    (tmp_path / "c.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    with pytest.raises(files.FileError, match=r"c\.png"):
        read_pictures(tmp_path, pipe)


def test_many_pictures_are_warned_of(pipe, tmp_path):
    for number in range(11):
        files.write_image(tmp_path / f"{number}.png", Image.new("RGB", (16, 16)))
    with pytest.warns(UserWarning, match="11 pictures of one concept"):
        read_pictures(tmp_path, pipe)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps must be at least 1"),
        ({"rank": 0}, "rank must be at least 1"),
        ({"regulariser": -1.0}, "regulariser must be 0 or above"),
        ({"regulariser": math.nan}, "regulariser must be 0 or above"),
        ({"learning_rate": 0.0}, "learning_rate must be above 0"),
        ({"class_word": " "}, "class_word must name"),
        ({"encoder_layers": 0}, "encoder_layers must be at least 1"),
    ],
)
def test_settings_out_of_range_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        options(**change)


def test_a_noun_without_length_is_refused(pipe):
    with pytest.raises(ValueError, match="has the length 0"):
        normalisation.class_norm(torch.zeros(4, 8), [1, 2])
    with pytest.raises(ValueError, match="not in the tokenizer's vocabulary"):
        learn(pipe, class_word="éñ")


def test_a_network_without_cross_attention_is_refused():
    plain = UNet2DConditionModel(sample_size=8, block_out_channels=(8,), norm_num_groups=4, layers_per_block=1,
                                 down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",),
                                 mid_block_type=None, cross_attention_dim=8)  # fmt: skip
    with pytest.raises(ValueError, match=r"no attention layer|no cross-attention"):
        base.projections(plain)


def test_a_place_that_is_taken_is_refused_before_the_training(pipe, tmp_path):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "x").touch()
    with pytest.raises(FileExistsError, match="already exists"):
        multibooth.learn(pipe, images=str(tmp_path), class_word="cube", out=str(tmp_path / "taken"))


def test_the_door_learns_from_a_folder_and_writes_one(pipe, tmp_path):
    (tmp_path / "photos").mkdir()
    files.write_image(tmp_path / "photos" / "a.png", Image.new("RGB", (20, 16), "red"))
    small = {"steps": 1, "rank": 1, "queries": 2, "encoder_layers": 1, "templates": ("a {}",)}
    made = multibooth.learn(
        pipe, images=str(tmp_path / "photos"), class_word="cube", out=str(tmp_path / "concept"), **small
    )
    same(made, multibooth.Concept.load(tmp_path / "concept"))
    with summed(pipe, [made]).applied(pipe):
        picture = pipe(f"a {made.phrase}", num_inference_steps=2, output_type="pt").images
    assert torch.isfinite(torch.as_tensor(picture)).all()
