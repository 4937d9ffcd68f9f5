"""Methods meet in one picture: a schedule drives a quantised model, and a distilled student is quantised."""

from __future__ import annotations

import copy
from contextlib import ExitStack

import numpy as np
import pytest
import torch
from PIL import Image

import mezzotint
from mezzotint.files import read_settings, write_image
from mezzotint.methods import align_your_steps, binding, multibooth, q_dit, splam
from mezzotint.methods.multibooth import Concept, base
from mezzotint.methods.splam.sampling import generate
from tests.cli.conftest import stable_diffusion

# DPM-Solver++ of diffusers hands tensors to NumPy in the old way.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def _latents(pipe):
    noise = torch.randn(2, *_shape(pipe), generator=torch.Generator().manual_seed(0))
    return pipe(["a", "b"], latents=noise, num_inference_steps=5, output_type="latent").images


def _tiny():
    pipe = stable_diffusion()
    pipe.set_progress_bar_config(disable=True)
    for part in (pipe.unet, pipe.vae, pipe.text_encoder):
        part.eval()
    return pipe


def _with(pipe, scheduler):
    other = copy.copy(pipe)
    other.register_modules(scheduler=scheduler)
    return other


def _shape(pipe):
    config = pipe.unet.config
    return config.in_channels, config.sample_size, config.sample_size


def _distilled_and_quantised(pipe, folder):
    """A student as a LoRA in `folder / "student"`, whole, and the same base in 8 bits, read from its folder."""
    made = splam.distil(
        pipe, data="scenes", mode="splam_lora", effective_time=True, sigma_mode="linear", steps=2, rank=2,
        batch_size=2, pictures=2, guidance=2.0, learning_rate=0.05,
    )  # fmt: skip
    made.save(folder / "student")
    q_dit.quantise(pipe, weights=8, group="auto", rounding="rtn").save(folder / "small")
    small = mezzotint.load(folder / "small")
    small.set_progress_bar_config(disable=True)
    return made.pipeline(), small


def test_a_schedule_drives_a_quantised_model_from_its_folder(tmp_path):
    pipe = _tiny()
    q_dit.quantise(pipe, weights=8, group="auto", rounding="rtn").save(tmp_path / "small")
    small = mezzotint.load(tmp_path / "small")
    small.set_progress_bar_config(disable=True)
    schedule = align_your_steps.make("edm", pipe=pipe, steps=5)
    plain = _latents(small)
    with schedule.apply(pipe), schedule.apply(small):
        exact, made = _latents(pipe), _latents(small)
        assert [int(t) for t in small.scheduler.timesteps] == schedule.timesteps
    assert 0 < float((made - exact).norm() / exact.norm()) < 0.05
    assert not torch.equal(made, plain), "the schedule changes what the quantised model makes"
    assert torch.equal(_latents(small), plain), "and leaves nothing behind"


@pytest.mark.filterwarnings("ignore:1 steps are few:UserWarning")
def test_a_distilled_student_is_quantised_and_still_takes_few_steps():
    pipe = _tiny()
    student = splam.distil(pipe, data="scenes", mode="lcm_fixed_w", steps=1, batch_size=2, pictures=2, guidance=2.0)
    whole = student.pipeline()
    small = q_dit.quantise(whole, weights=8, group="auto", rounding="rtn").pipe
    one, other = (splam.sample(model, ["a cube"], steps=2, seed=3)[0] for model in (whole, small))
    gap = np.asarray(one, dtype=float) - np.asarray(other, dtype=float)
    assert 0 < np.abs(gap).mean() < 6


@pytest.mark.filterwarnings("ignore:2 steps are few:UserWarning")
def test_a_distilled_lora_goes_on_a_quantised_folder_and_comes_off_again(tmp_path):
    pipe = _tiny()
    whole, small = _distilled_and_quantised(pipe, tmp_path)
    plain = _latents(small)
    own = small.scheduler
    small.load_lora_weights(tmp_path / "student")
    small.scheduler = whole.scheduler
    one, other = (generate(model, ["a", "b"], (999, 499), seed=3) for model in (whole, small))
    base = generate(_with(pipe, whole.scheduler), ["a", "b"], (999, 499), seed=3)
    assert 0 < float((one - other).abs().mean()) < 0.3 * float((one - base).abs().mean())
    small.unload_lora_weights()
    small.scheduler = own
    assert torch.equal(_latents(small), plain), "unloading restores the quantised model"


PROMPT = "a <a> cube and a red <b> ball"
LEFT, RIGHT = (0.0, 0.5, 0.5, 1.0), (0.5, 0.5, 1.0, 1.0)


def _concept(pipe, word, noun, seed):
    """A concept nobody had to learn: random numbers of the true shapes."""
    generator = torch.Generator().manual_seed(seed)
    lora = {
        name: (torch.randn(2, inputs, generator=generator), torch.randn(outputs, 2, generator=generator))
        for name, (inputs, outputs) in base.projections(pipe, "all").items()
    }
    vectors = tuple(0.3 * torch.randn(part.width, generator=generator) for part in base.text_parts(pipe))
    return Concept(word, noun, vectors, lora, 2, base.fingerprint(pipe))


@pytest.mark.filterwarnings("ignore:2 steps are few:UserWarning")
def test_two_concepts_bound_words_a_distilled_sampler_and_integers_in_one_picture(tmp_path):
    pipe = _tiny()
    whole, small = _distilled_and_quantised(pipe, tmp_path)
    concepts = {"<a>": (_concept(pipe, "<a>", "cube", 1), LEFT), "<b>": (_concept(pipe, "<b>", "ball", 2), RIGHT)}
    noise = torch.randn(1, *_shape(pipe), generator=torch.Generator().manual_seed(0))

    def drawn(*, place=True, focus=True):
        with ExitStack() as stack:
            if place:
                stack.enter_context(multibooth.place(small, PROMPT, concepts))
            if focus:
                stack.enter_context(
                    binding.focus(small, PROMPT, bindings=[("red", "ball")], mode="oracle", masks={"ball": RIGHT})
                )
            few = {"num_inference_steps": 4, "guidance_scale": 1.0, "generator": torch.Generator().manual_seed(1)}
            return small(PROMPT, latents=noise.clone(), output_type="latent", **few).images

    untouched = drawn(place=False, focus=False)
    own = small.scheduler
    small.load_lora_weights(tmp_path / "student")
    small.scheduler = whole.scheduler
    plain, placed, bound, everything = (
        drawn(place=place, focus=focus) for place, focus in ((False, False), (True, False), (False, True), (True, True))
    )
    made = [untouched, plain, placed, bound, everything]
    assert all(bool(each.isfinite().all()) for each in made)
    same = [(j, k) for k, one in enumerate(made) for j, other in enumerate(made[:k]) if torch.equal(one, other)]
    assert same == [], "each part acts"
    assert torch.equal(drawn(place=False, focus=False), plain), "words and boxes leave nothing behind"
    small.unload_lora_weights()
    small.scheduler = own
    assert torch.equal(drawn(place=False, focus=False), untouched)


def test_the_command_line_puts_them_together_and_makes_the_same_bytes_again(terminal, sd_folder, tmp_path):
    pipe = mezzotint.load(sd_folder)
    for word, noun, seed in (("<S>", "cube", 1), ("<S>", "ball", 2)):
        _concept(pipe, word, noun, seed).save(tmp_path / noun)
    schedule = tmp_path / "steps.json"
    schedule.write_text('{"name": "mine", "timesteps": [900, 400]}')
    common = ("sample", PROMPT, "--model", sd_folder, "--schedule", schedule, "--solver", "dpm++")
    placing = (
        "--concept", f"a={tmp_path / 'cube'}@0,0,0.5,1", "--concept", f"b={tmp_path / 'ball'}@0.5,0,1,1",
    )  # fmt: skip
    terminal(*common, *placing, "--out", tmp_path / "placed.png")
    terminal(*common, *placing, "--binding", "red:ball", "--disclip", "--out", tmp_path / "all.png")
    assert "red -> ball" in terminal.err
    assert (tmp_path / "placed.png").read_bytes() != (tmp_path / "all.png").read_bytes()
    assert read_settings(tmp_path / "all.png")["methods"] == ["mine", "multibooth", "binding"]
    assert terminal.json("rerun", tmp_path / "all.png")["same_bytes"] is True
    assert "of a learnt concept" in terminal.refused(*common, "--concept", f"a={tmp_path}", "--out", tmp_path / "x.png")
    assert "row by row" in terminal.refused(*common, "--disclip", "--strict", "--out", tmp_path / "x.png")
    assert "ATTRIBUTE:NOUN" in terminal.refused(*common, "--binding", "red", "--out", tmp_path / "x.png")


def test_what_is_learnt_from_pictures_is_drawn_where_it_is_put(terminal, sd_folder, tmp_path):
    """The README's two commands: learn a thing from a folder, then name it in a prompt with its box."""
    (tmp_path / "photos").mkdir()
    pixels = np.random.default_rng(0)
    for number in range(3):
        picture = Image.fromarray(pixels.integers(0, 256, (16, 16, 3), dtype=np.uint8))
        write_image(tmp_path / "photos" / f"{number}.png", picture)
    few = ("--steps", 3, "--rank", 2, "--queries", 2, "--encoder-layers", 2, "--learning-rate", 0.01)
    for out, seed in (("mine", 0), ("other", 1)):
        terminal(
            "learn", "--model", sd_folder, "--images", tmp_path / "photos", "--class-word", "cube", "--seed", seed,
            "--out", tmp_path / out, *few,
        )  # fmt: skip
    files = [path for path in (tmp_path / "mine").rglob("*") if path.is_file()]
    assert {path.suffix for path in files} <= {".json", ".safetensors", ".md"}
    made = {}
    for name, folder, box in (
        ("left", "mine", "0,0,0.5,1"),
        ("right", "mine", "0.5,0,1,1"),
        ("other", "other", "0,0,0.5,1"),
    ):
        made[name] = tmp_path / f"{name}.png"
        asked = ("--concept", f"a={tmp_path / folder}@{box}", "--steps", 2, "--out", made[name])
        terminal("sample", "a <a> cube and a ball", "--model", sd_folder, *asked)
    pictures = {name: path.read_bytes() for name, path in made.items()}
    assert len(set(pictures.values())) == 3, "the thing and its place both count"
    assert terminal.json("rerun", made["left"])["same_bytes"] is True


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_bind_reads_the_prompt_itself(terminal, sd_folder, tmp_path):
    asked = ("sample", "a red cube and a blue ball", "--model", sd_folder, "--steps", 2, "--out")
    terminal(*asked, tmp_path / "plain.png")
    assert "->" not in terminal.err
    terminal(*asked, tmp_path / "bound.png", "--bind")
    assert "red -> cube" in terminal.err
    assert "blue -> ball" in terminal.err
    assert read_settings(tmp_path / "bound.png")["methods"] == ["binding"]
    assert (tmp_path / "plain.png").read_bytes() != (tmp_path / "bound.png").read_bytes()
    assert terminal.json("rerun", tmp_path / "bound.png")["same_bytes"] is True
