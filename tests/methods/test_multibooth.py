"""Laws of a stored concept, of the baselines, and of the concept objects and their judge."""

import json

import pytest
import torch
from diffusers import UNet2DConditionModel

import mezzotint
from mezzotint import files
from mezzotint.diffusion import Condition
from mezzotint.evidence import Experiment
from mezzotint.methods.multibooth import CARD, Concept, base, single_experiment
from mezzotint.methods.multibooth import judge as judging
from mezzotint.methods.multibooth.custom_diffusion import closed_form, custom_diffusion, merged
from mezzotint.methods.multibooth.dreambooth import RARE, dreambooth
from mezzotint.methods.multibooth.finetuned import Finetuned, summed
from mezzotint.methods.multibooth.joint import Training, prior_of, sampled_class
from mezzotint.methods.multibooth.judge import Judge, windows
from mezzotint.methods.multibooth.pictures import Subject
from mezzotint.methods.multibooth.templates import TEMPLATES, prompts
from mezzotint.methods.multibooth.textual_inversion import textual_inversion
from mezzotint.methods.multibooth.world import CONCEPTS, appearances, class_pictures, pictures_of, rivals, scenes_of
from mezzotint.worlds.scenes import HELD_OUT, render, sample
from tests.cli.conftest import stable_diffusion

WORD, OTHER = "<S>", "<V>"
TRAINING = Training(steps=1, batch_size=1, learning_rate=1e-2, templates=("a {}",))


@pytest.fixture(scope="module")
def pipe():
    made = stable_diffusion()
    made.set_progress_bar_config(disable=True)
    for part in (made.unet, made.vae, made.text_encoder):
        part.eval()
    return made


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def invented(pipe, placeholder=WORD, *, rank=2, seed=0, scale=0.3):
    """A concept with weights from nowhere."""
    lora = {
        name: (scale * normal(rank, inputs, seed=seed + 1), scale * normal(outputs, rank, seed=seed + 2))
        for name, (inputs, outputs) in base.projections(pipe).items()
    }
    vectors = tuple(0.05 * normal(part.width, seed=seed + 3) for part in base.text_parts(pipe))
    return Concept(placeholder, "cube", vectors, lora, rank, base.fingerprint(pipe), {"steps": 3})


def subject(pipe, word=WORD, noun="cube", seed=0):
    pictures = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(seed))
    return Subject.of(pipe, pictures, word=word, class_word=noun)


def images(pipe, model, prompt):
    with model.applied(pipe):
        noise = normal(1, 4, 8, 8)
        return pipe(prompt, latents=noise, num_inference_steps=2, output_type="latent").images


def state(pipe):
    return {name: value.clone() for name, value in pipe.unet.state_dict().items()}


def unchanged(pipe, before):
    return all(torch.equal(value, before[name]) for name, value in pipe.unet.state_dict().items())


def data_bytes(folder):
    """Size of the tensors' file without its header."""
    content = (folder / "model.safetensors").read_bytes()
    return len(content) - 8 - int.from_bytes(content[:8], "little")


# The stored concept --------------------------------------------------------------------------------------------------


def test_a_saved_concept_makes_the_same_pictures_and_is_as_large_as_its_numbers(pipe, tmp_path):
    concept = invented(pipe)
    concept.save(tmp_path / "c")
    again = Concept.load(tmp_path / "c")
    prompt = f"a {concept.phrase}"
    assert torch.equal(images(pipe, summed(pipe, [again]), prompt), images(pipe, summed(pipe, [concept]), prompt))
    assert again.to_json() == concept.to_json()
    assert data_bytes(tmp_path / "c") == 4 * concept.numbers
    assert concept.numbers == base.lora_numbers(base.projections(pipe), 2) + 16
    concept.save(tmp_path / "half", half=True)
    assert data_bytes(tmp_path / "half") == 2 * concept.numbers
    with pytest.raises(FileExistsError):
        concept.save(tmp_path / "c")


def test_stable_diffusion_takes_less_than_seven_megabytes():
    with torch.device("meta"):
        unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
    everything = base.lora_numbers(base.projections(unet, "all"), 16)
    cross = base.lora_numbers(base.projections(unet, "cross"), 16)
    assert (everything, cross) == (1_591_296, 792_576)
    assert 4 * (everything + 768) < 7e6


def test_a_concept_of_another_base_is_refused(pipe, sdxl):
    concept = invented(pipe)
    concept.check(pipe)
    with pytest.raises(ValueError, match="embeddings of widths"):
        concept.check(sdxl)
    wide = Concept(WORD, "cube", (torch.zeros(24),), concept.lora, 2, concept.base)
    with pytest.raises(ValueError, match="embeddings of widths"):
        wide.check(pipe)
    renamed = {f"elsewhere.{name}": pair for name, pair in concept.lora.items()}
    with pytest.raises(ValueError, match="no such layer"):
        Concept(WORD, "cube", concept.embeddings, renamed, 2, concept.base).check(pipe)
    with pytest.raises(ValueError, match="learnt for the base model ffff"):
        Concept(WORD, "cube", concept.embeddings, concept.lora, 2, "ffff").check(pipe)


def test_a_concept_moves_to_another_checkpoint_of_its_architecture(pipe):
    other = stable_diffusion()
    with torch.no_grad():
        for value in other.unet.parameters():
            value.add_(0.01)
    invented(pipe).check(other)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("placeholder", "two words", "one word without spaces"),
        ("class_word", " ", "class_word must name"),
        ("embeddings", (), "one embedding"),
        ("rank", 3, r"A and B of .* must be \[3, in\]"),
    ],
)
def test_unsound_concepts_cannot_be_made(pipe, field, value, message):
    good = invented(pipe)
    values = {name: getattr(good, name) for name in ("placeholder", "class_word", "embeddings", "lora", "rank", "base")}
    with pytest.raises(ValueError, match=message):
        Concept(**{**values, field: value})


def test_unsound_folders_are_refused(pipe, tmp_path):
    concept = invented(pipe)

    def damaged(name, change):
        concept.save(tmp_path / name)
        change(tmp_path / name)
        with pytest.raises(files.FileError) as found:
            Concept.load(tmp_path / name)
        return str(found.value)

    def config(**changes):
        def change(folder):
            path = folder / "config.json"
            path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

        return change

    def tensors(**changes):
        def change(folder):
            path = folder / "model.safetensors"
            files.write_safetensors(path, {**files.read_safetensors(path), **changes})

        return change

    assert "no description of a concept" in damaged("a", config(format="other"))
    assert "unsound entry 'rank'" in damaged("b", config(rank="2"))
    assert "does not hold a concept" in damaged("c", config(rank=5))
    assert "unknown tensor" in damaged("d", tensors(more=torch.zeros(1)))
    assert "not finite" in damaged("e", tensors(**{"embedding.0": torch.full((16,), torch.nan)}))
    assert "cannot be opened" in damaged("f", lambda folder: (folder / "model.safetensors").unlink())


def test_numbers_that_half_precision_cannot_hold_are_refused(pipe, tmp_path):
    concept = invented(pipe, scale=1e6)
    with pytest.raises(ValueError, match=r"float16 cannot hold"):
        concept.save(tmp_path / "c", half=True)
    assert not (tmp_path / "c").exists()


def test_renaming_changes_the_word_alone(pipe):
    concept = invented(pipe)
    other = concept.renamed(OTHER)
    one = images(pipe, summed(pipe, [concept]), f"a {WORD} cube")
    assert torch.equal(images(pipe, summed(pipe, [other]), f"a {OTHER} cube"), one)


# Weights applied for a while -----------------------------------------------------------------------------------------


def test_summed_concepts_do_not_depend_on_their_order_and_leave_no_trace(pipe):
    one, other, before = invented(pipe), invented(pipe, OTHER, seed=9, rank=3), state(pipe)
    prompt = f"a {WORD} cube and a {OTHER} cube"
    both = images(pipe, summed(pipe, [one, other]), prompt)
    torch.testing.assert_close(images(pipe, summed(pipe, [other, one]), prompt), both)
    assert not torch.allclose(images(pipe, summed(pipe, [one]), f"a {WORD} cube"), both)
    assert unchanged(pipe, before)


def test_the_very_tensors_come_back_after_an_exception(pipe):
    model = summed(pipe, [invented(pipe)])
    live = {name: value.data_ptr() for name, value in pipe.unet.named_parameters()}
    with pytest.raises(RuntimeError, match="stop"), model.applied(pipe):
        raise RuntimeError("stop")
    assert {name: value.data_ptr() for name, value in pipe.unet.named_parameters()} == live


def test_nothing_learnt_is_the_pipeline_itself(pipe):
    plain = pipe("a cube", latents=normal(1, 4, 8, 8), num_inference_steps=2, output_type="latent").images
    assert torch.equal(images(pipe, Finetuned({}, {}, ("cube",)), "a cube"), plain)


def test_weights_of_another_network_are_refused(pipe):
    with pytest.raises(ValueError, match="it has another base"), Finetuned({"x": torch.zeros(1)}, {}, ()).applied(pipe):
        pass


# Baselines -----------------------------------------------------------------------------------------------------------


def test_textual_inversion_learns_one_vector_and_nothing_else(pipe):
    before = state(pipe)
    concept = textual_inversion(pipe, subject(pipe), TRAINING, progress=False)
    assert unchanged(pipe, before)
    assert concept.lora == {}
    start = pipe.text_encoder.get_input_embeddings().weight.detach()
    noun = start[pipe.tokenizer("cube", add_special_tokens=False).input_ids].mean(0)
    moved = (concept.embeddings[0] - noun).abs()
    assert 0 < float(moved.max()) <= 1e-2 * 1.1, "one step of AdamW from the class noun's embedding"
    concept.check(pipe)


@pytest.mark.parametrize("full", [False, True])
def test_dreambooth_changes_weights_and_gives_them_back(pipe, full):
    before = state(pipe)
    one, other = subject(pipe, RARE[0]), subject(pipe, RARE[1], noun="ball", seed=1)
    prior = prior_of(pipe, {"cube": torch.rand(2, 3, 16, 16), "ball": torch.rand(1, 3, 16, 16)})
    assert prior.prompts == ("a photo of a cube",) * 2 + ("a photo of a ball",)
    training = Training(steps=2, batch_size=2, learning_rate=1e-2, templates=("a {}",))
    model = dreambooth(pipe, [one, other], training, prior=prior, rank=2, full=full, progress=False)
    assert unchanged(pipe, before)
    assert not hasattr(pipe.unet, "peft_config")
    attention = {name for name in before if ".to_" in name and name.endswith("weight")}
    assert model.weights.keys() == (before.keys() if full else attention)
    changed = [name for name, value in model.weights.items() if not torch.equal(value, before[name])]
    assert len(changed) > len(model.weights) // 2
    with model.applied(pipe):
        assert all(torch.equal(dict(pipe.unet.named_parameters())[name], model.weights[name]) for name in changed)
    assert model.phrases == (f"{RARE[0]} cube", f"{RARE[1]} ball")


def test_custom_diffusion_trains_keys_and_values_of_cross_attention(pipe):
    before = state(pipe)
    model = custom_diffusion(pipe, [subject(pipe)], TRAINING, prior=None, progress=False)
    assert unchanged(pipe, before)
    names = {f"{name}.weight" for name in base.projections(pipe, "cross")}
    assert model.weights.keys() == names
    assert all(".attn2.to_" in name for name in names)
    assert all(not torch.equal(value, before[name]) for name, value in model.weights.items())
    assert set(model.vectors) == {WORD}


def tuned(pipe, word, seed):
    """A model as Custom Diffusion leaves it, without the training."""
    weights = {}
    for place, name in enumerate(base.projections(pipe, "cross")):
        value = pipe.unet.get_parameter(f"{name}.weight").detach()
        weights[f"{name}.weight"] = value + 0.1 * normal(*value.shape, seed=seed + place)
    return Finetuned(weights, {word: (normal(16, seed=seed),)}, (f"{word} q",))


def phrase_features(pipe, part):
    from mezzotint.methods.multibooth.custom_diffusion import _phrase_features

    return _phrase_features(pipe, part, part.phrases[0])


def test_merged_models_do_with_every_concept_what_its_own_model_does(pipe):
    parts = [tuned(pipe, WORD, 10), tuned(pipe, OTHER, 20)]
    captions = [f"{a}{b} {c}" for a in "abcdefg" for b in "hijk" for c in "lmn"]
    model = merged(pipe, parts, captions)
    for part in parts:
        C = phrase_features(pipe, part)
        assert C.shape == (2, 16), "placeholder and noun"
        for name, W in model.weights.items():
            torch.testing.assert_close(C @ W.T, C @ part.weights[name].T, rtol=1e-3, atol=1e-3)
    assert set(model.vectors) == {WORD, OTHER}


def test_no_other_matrix_that_meets_the_constraint_is_nearer_on_the_captions():
    W0, C, V, C_reg = normal(5, 8), normal(2, 8, seed=1), normal(5, 2, seed=2), normal(30, 8, seed=3)
    W = closed_form(W0, C, V, C_reg)
    torch.testing.assert_close(W @ C.T, V, rtol=1e-4, atol=1e-4)
    found = ((W - W0) @ C_reg.T).norm()
    free = torch.eye(8) - torch.linalg.pinv(C) @ C
    for seed in range(5):
        rival = W + 0.1 * normal(5, 8, seed=20 + seed) @ free
        torch.testing.assert_close(rival @ C.T, V, rtol=1e-3, atol=1e-3)
        assert ((rival - W0) @ C_reg.T).norm() > found
    torch.testing.assert_close(closed_form(W0, C, W0 @ C.T, C_reg), W0, rtol=1e-4, atol=1e-4)


def test_too_few_captions_cannot_be_merged_on():
    with pytest.raises(ValueError, match="span the features of the concepts' words: 4 tokens"):
        closed_form(normal(5, 8), normal(2, 8, seed=1), normal(5, 2), normal(4, 8))
    twice = normal(1, 8).repeat(2, 1)
    with pytest.raises(ValueError, match="must be independent"):
        closed_form(normal(5, 8), twice, normal(5, 2), normal(20, 8))


def test_class_pictures_of_the_model_are_the_same_alone(pipe):
    two = sampled_class(pipe, "cube", 2, steps=1, seed=3)
    torch.testing.assert_close(sampled_class(pipe, "cube", 1, steps=1, seed=3), two[:1])
    assert not torch.allclose(two[0], two[1])


# Templates, things, judge --------------------------------------------------------------------------------------------


def test_there_are_27_contexts_and_others_need_one_slot():
    assert len(set(TEMPLATES)) == 27
    assert all("<S> dog" in prompt for prompt in prompts("<S> dog"))
    with pytest.raises(ValueError, match="exactly one"):
        prompts("<S> dog", ["a dog"])
    with pytest.raises(ValueError, match="must not be empty"):
        prompts("<S> dog", [])


def test_the_embedded_model_was_never_shown_a_concept():
    assert all((concept.class_word, concept.colour) in HELD_OUT for concept in CONCEPTS)
    seen = {(item.shape, item.colour) for scene in sample(200) for item in scene.objects}
    assert not seen & {(concept.class_word, concept.colour) for concept in CONCEPTS}


def test_every_concept_has_seven_rivals_of_its_class():
    everything = appearances()
    assert len(everything) == len(set(everything)) == 8 * len(CONCEPTS)
    for concept in CONCEPTS:
        others = rivals(concept)
        assert {other.class_word for other in others} == {concept.class_word}
        assert any(other.pattern == concept.pattern for other in others)
        assert any(other.colour == concept.colour for other in others)


def test_scenes_show_the_thing_in_scenery_of_their_own_split():
    concept = CONCEPTS[0]
    shown, held = scenes_of(concept, 5), scenes_of(concept, 5, split="test")
    for scene in (*shown, *held):
        assert [(o.shape, o.colour, o.pattern) for o in scene.objects] == [("cube", "cyan", "checkered")]
    assert {scene.objects[0].x for scene in shown}.isdisjoint({scene.objects[0].x for scene in held})
    assert scenes_of(concept, 3, first=2) == shown[2:]
    assert [len(scene.objects) for scene in scenes_of(concept, 2, instances=2)] == [2, 2]
    assert torch.equal(pictures_of(concept, 2), pictures_of(concept, 3)[:2])
    assert class_pictures(concept, 3).shape == (3, 3, 64, 64)


def test_a_window_in_the_middle_is_the_middle_of_the_picture():
    picture = torch.rand(2, 3, 64, 64)
    cut = windows(picture, torch.full((2, 2), 0.5), 32)
    torch.testing.assert_close(cut, picture[..., 16:48, 16:48], rtol=1e-4, atol=1e-5)
    moved = windows(picture, torch.tensor([[0.5 + 4 / 64, 0.5]] * 2), 32)
    torch.testing.assert_close(moved, picture[..., 16:48, 20:52], rtol=1e-4, atol=1e-5)


def test_a_judge_that_has_learnt_nothing_refuses():
    with pytest.raises(ValueError, match=r"more than 97% are needed"):
        Judge.train(appearances(CONCEPTS[:1]), views=4, steps=1, progress=False)


@pytest.mark.slow
def test_a_judge_knows_the_things_it_learnt_where_they_stand():
    judge = Judge.train(appearances(CONCEPTS[:1]), views=40, steps=200, progress=False)
    assert judge.accuracy > 0.97
    pictures = render(scenes_of(CONCEPTS[0], 12, split="test"), 64).rgb.clone()
    seen = judge.seen(pictures)
    assert sum(found == CONCEPTS[0] for found in seen) >= 11
    assert judge.seen(pictures[:2], (0.0, 0.0, 1.0, 0.05)) == [None, None], "nothing stands in the sky"


def test_the_vector_of_a_concept_is_what_its_prompt_reads(pipe):
    concept = invented(pipe)
    plain, _ = Condition.from_prompt(pipe, "a cube")
    with summed(pipe, [concept]).applied(pipe):
        same, _ = Condition.from_prompt(pipe, "a cube")
        named, _ = Condition.from_prompt(pipe, f"a {concept.phrase}")
    assert torch.equal(same.encoder_hidden_states, plain.encoder_hidden_states)
    assert not torch.allclose(named.encoder_hidden_states, plain.encoder_hidden_states)


@pytest.mark.slow
def test_the_experiment_fills_every_table_at_the_smallest_size(monkeypatch):
    monkeypatch.setattr(judging, "ENOUGH", -1.0)
    trial = Experiment(CARD, seeds=(0,), settings={})
    for name, kind, note in single_experiment.ARMS:
        trial.arm(name, kind, note)
    pipe = mezzotint.load("scenes")
    pipe.set_progress_bar_config(disable=True)
    size = single_experiment.Size(
        concepts=1, shown=2, steps=1, batch=1, pictures=2, sampling=1, judge_steps=1, judge_views=2
    )
    judge = Judge.train(appearances(CONCEPTS[:1]), views=2, steps=1, progress=False)
    known: single_experiment.Known = {}
    single_experiment.measure_single(trial, pipe, (0,), size, guidance=6.0, judge=judge, known=known)
    assert len(known) == len(single_experiment.VARIANTS)
    monkeypatch.setattr(single_experiment, "learn_concept", None)
    options = single_experiment.options_of(CONCEPTS[0], size, 0)
    again = single_experiment.learn_concept_once(pipe, CONCEPTS[0], size, options, known=known)
    assert again is known[CONCEPTS[0], size.shown, options], "what is known is not learnt again"
    single_experiment.claims(trial, size)
    found = {row.metric: row.values for row in trial.finish().rows}
    lengths = {arm: table[0][0] for arm, table in found[single_experiment.LENGTH].items()}
    noun = lengths[single_experiment.NOUN]
    assert all(lengths[arm] == pytest.approx(noun, rel=1e-3) for arm in ("MultiBooth", "no regulariser", "no QFormer"))
    assert all(lengths[arm] != pytest.approx(noun, rel=1e-2) for arm in ("no normalisation", "neither"))
    assert found[single_experiment.IDENTITY].keys() == {name for name, _, _ in single_experiment.ARMS}
    assert found[single_experiment.ALIGNED].keys() == found[single_experiment.IDENTITY].keys() - {"renders"}
