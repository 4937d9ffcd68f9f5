"""SPLAM on diffusers' own classes at tiny size: what is trained, what is written, and that stock diffusers reads it."""

import hashlib
import io
import json
import tarfile
from dataclasses import replace
from functools import partial

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DiTPipeline,
    DiTTransformer2DModel,
    LCMScheduler,
    PixArtTransformer2DModel,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from PIL import Image
from torch.testing import assert_close
from transformers import CLIPTextModel

from mezzotint import files
from mezzotint.diffusion import Condition, Denoiser, guided
from mezzotint.methods import splam
from mezzotint.methods.splam import adapters, cache, data, jumps, networks, sampling
from mezzotint.methods.splam.embedding import WIDTH, gamma_embedding
from mezzotint.methods.splam.networks import Averaged, folded, make_student
from mezzotint.methods.splam.objective import Objective
from mezzotint.methods.splam.options import Options
from mezzotint.methods.splam.points import sampling_timesteps
from mezzotint.methods.splam.sampler import multistep
from mezzotint.methods.splam.student import Point, Student
from mezzotint.methods.splam.teacher import exact, teacher_step
from mezzotint.methods.splam.trainer import distil_pipeline, prepared, settings_of
from mezzotint.training import lora
from tests.diffusion.conftest import tiny_pixart_pipe
from tests.methods.conftest import sd15_shaped, sd_scheduler, sdxl_shaped, text_config, tiny_vae, tokenizer

pytestmark = [
    pytest.mark.filterwarnings(r"ignore:\d+ steps are few:UserWarning"),
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]
END = gamma_embedding(torch.ones(1))
PROMPTS = ["a", "bc", "d"]


def tiny_unet(**changes):
    torch.manual_seed(3)
    settings = {
        "sample_size": 8, "block_out_channels": (16, 16), "norm_num_groups": 4, "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "attention_head_dim": 4,
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"), "cross_attention_dim": 16,
    }  # fmt: skip
    return UNet2DConditionModel(**(settings | changes)).eval()


def tiny(unet=None, **scheduler):
    words = tokenizer()
    torch.manual_seed(4)
    pipe = StableDiffusionPipeline(
        vae=tiny_vae(), text_encoder=CLIPTextModel(text_config(words, 16)).eval(), tokenizer=words,
        unet=unet or tiny_unet(), scheduler=sd_scheduler(**scheduler), safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


def tiny_dit():
    torch.manual_seed(5)
    transformer = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=2, sample_size=8,
        num_embeds_ada_norm=1000, norm_num_groups=1,
    )  # fmt: skip
    # DiT starts with its blocks switched off, and would not react to a timestep at all.
    for value in transformer.parameters():
        torch.nn.init.normal_(value, std=0.1)
    pipe = DiTPipeline(transformer=transformer.eval(), vae=tiny_vae(), scheduler=sd_scheduler())
    pipe.set_progress_bar_config(disable=True)
    return pipe


def tiny_pixart():
    torch.manual_seed(6)
    return PixArtTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=2, sample_size=8,
        cross_attention_dim=16, caption_channels=8, patch_size=2, num_embeds_ada_norm=1000, norm_num_groups=1,
        use_additional_conditions=False,
    ).eval()  # fmt: skip


def latents(pipe, captions=("a", "bc", "d", "a")):
    generator = torch.Generator().manual_seed(0)
    mean = torch.randn(len(captions), 4, 8, 8, generator=generator)
    return cache.Cached.of(pipe, mean, 0.1 * torch.ones_like(mean), captions=list(captions), source="test")


def distilled(pipe, captions=None, **changes):
    guidance = 9.0 if changes.get("mode") == "lcm" else 3.0
    options = {"steps": 3, "batch_size": 4, "learning_rate": 1e-2, "rank": 4, "guidance": guidance} | changes
    found = latents(pipe) if captions is None else latents(pipe, captions)
    return distil_pipeline(pipe, Options(**options), cached=found, progress=False)


def digest(*modules):
    total = hashlib.sha256()
    for module in modules:
        for name, value in module.state_dict().items():
            total.update(name.encode() + value.detach().numpy().tobytes())
    return total.hexdigest()


def inputs(count=3, width=16):
    generator = torch.Generator().manual_seed(1)
    x, text = torch.randn(count, 4, 8, 8, generator=generator), torch.randn(count, 5, width, generator=generator)
    return x, torch.tensor([19, 500, 999])[:count], text


class TestNetworks:
    def test_7_the_student_begins_as_the_teacher_at_every_gamma(self):
        teacher = tiny_unet()
        student = make_student(teacher, embedded=True)
        extra = set(student.state_dict()) - set(teacher.state_dict())
        assert extra == {networks.KEY}
        assert student.config.time_cond_proj_dim == WIDTH
        x, t, text = inputs()
        for gamma in (0.0, 0.3, 1.0):
            e = gamma_embedding(torch.full((3,), gamma))
            assert torch.equal(student(x, t, text, timestep_cond=e).sample, teacher(x, t, text).sample)
        other = make_student(teacher, embedded=True, init="torch", seed=1)
        assert not torch.allclose(other(x, t, text, timestep_cond=e).sample, teacher(x, t, text).sample, atol=1e-4)
        again = make_student(teacher, embedded=True, init="torch", seed=1)
        assert torch.equal(other.state_dict()[networks.KEY], again.state_dict()[networks.KEY])

    def test_7_weights_that_do_not_fit_are_named(self):
        with pytest.raises(ValueError, match="do not fit a UNet2DConditionModel"):
            networks.replica(tiny_unet(), layers_per_block=2)

    @pytest.mark.parametrize("kind", ["unet", "dit", "pixart"])
    def test_12_the_folded_network_is_a_plain_one_that_does_the_same(self, kind):
        x, t, text = inputs(width=8 if kind == "pixart" else 16)
        teacher = {"unet": tiny_unet, "dit": lambda: tiny_dit().transformer, "pixart": tiny_pixart}[kind]()
        named = {
            "unet": {"encoder_hidden_states": text},
            "dit": {"class_labels": torch.tensor([1, 2, 3])},
            "pixart": {"encoder_hidden_states": text, "added_cond_kwargs": {"resolution": None, "aspect_ratio": None}},
        }[kind]
        student = make_student(teacher, embedded=True, init="torch")
        plain = folded(student, END)
        assert type(plain) is type(teacher)
        assert plain.state_dict().keys() == teacher.state_dict().keys()
        with torch.no_grad():
            wanted = student(x, timestep=t, timestep_cond=END.expand(3, -1), **named)[0]
            made = plain(x, timestep=t, **named)[0]
            before = teacher(x, timestep=t, **named)[0]
        assert_close(made, wanted, rtol=0, atol=1e-5)
        # Folded for nothing, the test would hold with any layer: the embedding does change the output.
        assert (before - wanted).abs().max() > 1e-3

    def test_a_transformer_without_the_embedding_is_left_alone(self):
        pipe = tiny_dit()
        x, t, _ = inputs()
        student = make_student(pipe.transformer, embedded=True, init="torch")
        labels = torch.tensor([1, 2, 3])
        wanted = pipe.transformer(x, timestep=t, class_labels=labels)[0]
        assert torch.equal(student(x, timestep=t, class_labels=labels)[0], wanted)

    def test_the_average_runs_beside_the_weights(self):
        network = tiny_unet()
        x, t, text = inputs()
        other = {name: value + 0.05 for name, value in network.named_parameters()}
        average = Averaged(network)
        average.values = other
        before = network(x, t, text).sample
        there = average(x, t, text).sample
        assert torch.equal(network(x, t, text).sample, before)
        for name, value in network.named_parameters():
            value.data.copy_(other[name])
        assert torch.equal(network(x, t, text).sample, there)

    def test_a_constant_is_a_linear_function_of_the_timestep_features(self):
        for channels in (16, 64, 320):
            features = next(
                networks.timestep_features(tiny_unet(block_out_channels=(channels, 16)), torch.arange(1000))
            )[1]
            found = adapters.constant(features)
            assert_close(features @ found, torch.ones(1000), rtol=0, atol=2e-6)
        few = next(networks.timestep_features(sd15_shaped().unet, torch.arange(1000)))[1]
        with pytest.raises(ValueError, match="8 timestep features hold a constant only to"):
            adapters.constant(few)

    def test_targets_that_match_nothing_are_refused(self):
        with pytest.raises(ValueError, match="nothing_like_it"):
            distilled(tiny(), mode="lcm_lora", targets=("nothing_like_it",))


@pytest.fixture(scope="module")
def teacher():
    return tiny()


class TestTraining:
    @pytest.mark.parametrize("mode", ["splam", "splam_lora", "lcm", "lcm_fixed_w", "lcm_lora"])
    def test_10_only_the_student_moves(self, teacher, mode):
        before = digest(teacher.unet, teacher.vae, teacher.text_encoder)
        flags = [value.requires_grad for value in teacher.unet.parameters()]
        made = distilled(teacher, mode=mode)
        assert digest(teacher.unet, teacher.vae, teacher.text_encoder) == before
        assert [value.requires_grad for value in teacher.unet.parameters()] == flags
        trained = {name for name, value in made.student.named_parameters() if value.requires_grad}
        start = make_student(teacher.unet, embedded=made.options.embedded).state_dict()
        now = {name.replace(".base_layer", ""): value for name, value in made.student.state_dict().items()}
        moved = {name for name, value in start.items() if not torch.equal(value, now[name])}
        if mode.endswith("lora"):
            assert all("lora_" in name or name == networks.KEY for name in trained)
            assert moved <= {networks.KEY}
        else:
            assert len(moved) > len(start) // 2
        assert (made.average is None) == (mode == "lcm_lora")

    @pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
    @pytest.mark.parametrize("effective_time", [False, True])
    def test_every_prediction_type_trains(self, kind, effective_time):
        sigma_mode = "linear" if effective_time else "quadrature"
        made = distilled(tiny(prediction_type=kind), effective_time=effective_time, sigma_mode=sigma_mode)
        assert 0 < made.facts["rows"][0]["loss"] < 100
        assert made.options.embedded is not effective_time

    def test_7_before_the_first_step_the_loss_is_that_of_the_teacher(self, teacher):
        """Zero-initialised layer, or B = 0: student and target are the teacher, so both have one loss at step 1."""
        losses = {
            mode: distilled(teacher, mode=mode, steps=1).facts["rows"][0]["loss"]
            for mode in ("lcm_fixed_w", "lcm_lora")
        }
        assert losses["lcm_fixed_w"] == losses["lcm_lora"]
        other = distilled(teacher, mode="splam", steps=1).facts["rows"][0]["loss"]
        assert other != losses["lcm_fixed_w"]

    @pytest.mark.parametrize("who", ["precision", "teacher_precision"])
    def test_in_bfloat16_teacher_and_student_are_nearly_the_same(self, teacher, who):
        one, other = (
            distilled(teacher, steps=1, **{who: name}).facts["rows"][0]["loss"] for name in ("float32", "bfloat16")
        )
        assert one != other
        assert_close(one, other, rtol=0.05, atol=0.0)

    @pytest.mark.parametrize("make", [sdxl_shaped, tiny_dit])
    def test_other_layouts_train_and_fold(self, make):
        pipe = make()
        captions = (1, 2, 1) if make is tiny_dit else None
        for changes in ({}, {"effective_time": True, "sigma_mode": "linear"}):
            made = distilled(pipe, captions, steps=2, batch_size=2, **changes)
            name = "transformer" if make is tiny_dit else "unet"
            plain, base = getattr(made.pipeline(), name), getattr(pipe, name)
            assert plain.state_dict().keys() == base.state_dict().keys()
            assert digest(plain) != digest(base)

    def test_stored_jumps_are_those_of_the_teacher_and_are_read_again(self, teacher, tmp_path, monkeypatch):
        options = Options(
            mode="splam_lora", points=4, teacher_steps=2, jumps=10, effective_time=True, sigma_mode="linear",
            gamma_one_prob=0.5, steps=3, batch_size=4, learning_rate=1e-2, rank=4, guidance=3.0,
        )  # fmt: skip
        found = latents(teacher)
        monkeypatch.setattr(jumps, "BATCHES", 2)
        made = distil_pipeline(teacher, options, cached=found, run=tmp_path / "run", progress=False)
        places = sorted((tmp_path / "run" / "jumps").iterdir())
        assert [place.name for place in places] == ["000000.safetensors", "000002.safetensors"]
        parts = [files.read_safetensors(place) for place in places]
        kept = {name: torch.cat([part[name] for part in parts])[:10] for name in parts[0]}
        assert {name: len(value) for name, value in kept.items()} == dict.fromkeys(
            ("x_t", "x_to", "t", "weight", "caption"), 10
        )
        assert set(kept["t"].tolist()) <= {249, 499, 749, 999}
        assert len(kept["caption"].unique()) == len(found.captions)
        network = make_student(teacher.unet, embedded=False)
        objective = Objective(
            Denoiser(teacher),
            network,
            teacher.scheduler,
            prepare=prepared(found),
            settings=settings_of(options, network),
        )
        cond = found.conditions[kept["caption"]]
        view = guided(Denoiser(teacher), cond, found.uncond, 3.0)
        to = (kept["t"] - 250).clamp(min=0)
        middle = to + (kept["t"] - to) // 2
        x = teacher_step(view, kept["x_t"], kept["t"], middle, levels=objective.levels)
        assert_close(teacher_step(view, x, middle, to, levels=objective.levels), kept["x_to"], rtol=1e-4, atol=1e-5)
        # A run that was killed between two files makes what is missing, as it would have been.
        places[1].unlink()
        again = distil_pipeline(teacher, replace(options, steps=4), cached=found, run=tmp_path / "run", progress=False)
        assert all(torch.equal(value, parts[1][name]) for name, value in files.read_safetensors(places[1]).items())
        # Then the teacher is not asked again, neither by the steps nor by a run that is continued.
        monkeypatch.setattr(Objective, "jumps", lambda *_: pytest.fail("the teacher was asked"))
        again = distil_pipeline(teacher, replace(options, steps=5), cached=found, run=tmp_path / "run", progress=False)
        assert digest(again.student) != digest(made.student)

    def test_a_student_begins_as_the_lora_it_is_given(self, teacher, tmp_path):
        options = {"effective_time": True, "sigma_mode": "linear", "mode": "splam_lora"}
        first = distilled(teacher, **options)
        folder = first.save(tmp_path / "first")
        tiny_rate = {"steps": 1, "batch_size": 4, "rank": 4, "guidance": 3.0, "learning_rate": 1e-12}
        go_on = partial(distil_pipeline, teacher, cached=latents(teacher), progress=False)
        for place in (folder, folder / lora.FILE):
            second = go_on(Options(**options, **tiny_rate), start=place)
            theirs, ours = (lora.tensors(made.pipeline().unet) for made in (second, first))
            for name, value in ours.items():
                assert_close(theirs[name], value, rtol=1e-5, atol=1e-7)
        assert second.facts["start"] == str(folder / lora.FILE)
        with pytest.raises(ValueError, match=r"does not fit a LoRA of rank 8 .* tensors differ, such as"):
            go_on(Options(**options, **(tiny_rate | {"rank": 8})), start=folder)
        with pytest.raises(ValueError, match="mode 'splam' trains none"):
            go_on(Options(**(options | {"mode": "splam"})), start=folder)
        with pytest.raises(ValueError, match="layer for gamma folded in"):
            go_on(Options(mode="splam_lora"), start=folder)

    def test_a_killed_run_continues_bit_for_bit(self, teacher, tmp_path):
        folders = [tmp_path / "whole", tmp_path / "parts"]
        options = {"batch_size": 4, "learning_rate": 1e-2, "guidance": 3.0}
        found = latents(teacher)
        whole = distil_pipeline(teacher, Options(steps=4, **options), cached=found, run=folders[0], progress=False)
        distil_pipeline(teacher, Options(steps=2, **options), cached=found, run=folders[1], progress=False)
        again = distil_pipeline(teacher, Options(steps=4, **options), cached=found, run=folders[1], progress=False)
        assert digest(whole.student) == digest(again.student)
        for name, value in whole.average.items():
            assert torch.equal(again.average[name], value)
        with pytest.raises(ValueError, match="other settings of guidance"):
            distil_pipeline(
                teacher, Options(steps=4, **(options | {"guidance": 4.0})), cached=found, run=folders[1], progress=False
            )


def our_latents(made, noise, steps, generator, *, weight=None):
    """Few-step samples of the unfolded student, with its averaged weights."""
    network = Averaged(made.student)
    network.values = made.average or {}
    cond, _ = Condition.from_prompt(made.pipe, PROMPTS)
    conditioning = "embedding" if made.options.embedded else "none"
    conditioning = "effective_time" if made.options.effective_time else conditioning
    student = Student(Denoiser(network, made.pipe.scheduler), conditioning)
    levels = exact(student.denoiser.levels)

    def f(x, t):
        told = None if weight is None else torch.full((len(x),), weight)
        return student(x, Point.end(levels, t), cond, weight=told)

    return multistep(
        f, noise, sampling_timesteps(steps), levels=levels,
        draw=lambda _: torch.randn(noise.shape, generator=generator),
    )  # fmt: skip


def stock_latents(pipe, noise, steps, generator, scale=1.0, **told):
    pipe.set_progress_bar_config(disable=True)
    return pipe(
        PROMPTS, latents=noise, generator=generator, guidance_scale=scale, num_inference_steps=steps,
        output_type="latent", **told,
    ).images  # fmt: skip


class TestStockDiffusers:
    @pytest.mark.parametrize(
        "changes",
        [
            {"init": "torch"},
            {"effective_time": True, "sigma_mode": "linear", "gamma_one_prob": 0.5},
            {"mode": "splam_lora", "init": "torch"},
            {"mode": "lcm_lora"},
        ],
        ids=["folded", "effective", "splam-lora", "lcm-lora"],
    )
    def test_files_give_the_same_samples_without_this_library(self, teacher, tmp_path, changes):
        made = distilled(teacher, **changes)
        folder = made.save(tmp_path / "out")
        files.verify_folder(folder)
        if made.options.lora:
            stock = tiny()
            stock.load_lora_weights(folder)
            stock.scheduler = LCMScheduler.from_pretrained(folder, subfolder="scheduler")
        else:
            stock = StableDiffusionPipeline.from_pretrained(folder)
            assert stock.unet.config.time_cond_proj_dim is None
            assert str(tmp_path) not in (folder / "unet" / "config.json").read_text()
        assert (stock.scheduler.config.original_inference_steps, type(stock.scheduler)) == (50, LCMScheduler)
        noise = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(2))
        known = json.loads((folder / "metrics.json").read_text())["timesteps"]
        for steps in (1, 2, 4, 8):
            ours = our_latents(made, noise, steps, torch.Generator().manual_seed(7))
            theirs = stock_latents(stock, noise, steps, torch.Generator().manual_seed(7))
            assert stock.scheduler.timesteps.tolist() == list(sampling_timesteps(steps)) == known[str(steps)]
            assert_close(theirs, ours, rtol=0, atol=1e-4)
        untouched = stock_latents(tiny_with_lcm(), noise, 1, None)
        assert (untouched - our_latents(made, noise, 1, None)).abs().max() > 1e-2

    @pytest.mark.parametrize(
        "changes",
        [{"init": "torch"}, {"mode": "splam_lora", "effective_time": True, "sigma_mode": "linear"}],
        ids=["folded", "lora"],
    )
    @pytest.mark.parametrize("kind", ["v", "sdxl", "pixart"])
    def test_other_predictions_and_layouts_give_the_same_samples_too(self, kind, changes, tmp_path):
        make, told = {
            "v": (lambda: tiny(prediction_type="v_prediction"), {}),
            "sdxl": (sdxl_shaped, {}),
            "pixart": (tiny_pixart_pipe, {"use_resolution_binning": False, "clean_caption": False}),
        }[kind]
        pipe = make()
        made = distilled(pipe, batch_size=2, **changes)
        folder = made.save(tmp_path / "out")
        if not made.options.lora:
            stock = type(pipe).from_pretrained(folder)
        elif kind == "pixart":
            stock = make()
            lora.load(folder, {"transformer": stock.transformer})
            stock.scheduler = LCMScheduler.from_pretrained(folder, subfolder="scheduler")
        else:
            stock = make()
            stock.load_lora_weights(folder)
            stock.scheduler = LCMScheduler.from_pretrained(folder, subfolder="scheduler")
        noise = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(2))
        for steps in (1, 4):
            ours = our_latents(made, noise, steps, torch.Generator().manual_seed(7))
            theirs = stock_latents(stock, noise, steps, torch.Generator().manual_seed(7), **told)
            assert_close(theirs, ours, rtol=0, atol=1e-4)
        stock = make()
        stock.scheduler = LCMScheduler.from_pretrained(folder, subfolder="scheduler")
        untouched = stock_latents(stock, noise, 1, None, **told)
        assert (untouched - our_latents(made, noise, 1, None)).abs().max() > 1e-2

    def test_lcm_keeps_its_guidance_as_a_setting(self, teacher, tmp_path):
        made = distilled(teacher, mode="lcm", init="torch")
        stock = StableDiffusionPipeline.from_pretrained(made.save(tmp_path / "out"))
        noise = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(2))
        found = {}
        for scale in (6.0, 9.0):
            theirs = stock_latents(stock, noise, 2, torch.Generator().manual_seed(7), scale)
            assert_close(
                theirs, our_latents(made, noise, 2, torch.Generator().manual_seed(7), weight=scale - 1),
                rtol=1e-3, atol=1e-3,
            )  # fmt: skip
            found[scale] = theirs
        assert not torch.allclose(found[6.0], found[9.0], atol=1e-3)
        with pytest.raises(ValueError, match=r"guidance_scale must be 6\.\.16"):
            splam.sample(stock, PROMPTS, guidance_scale=1.0)

    def test_a_class_conditional_pipeline(self, tmp_path):
        made = distilled(tiny_dit(), (1, 2, 1), init="torch")
        stock = DiTPipeline.from_pretrained(made.save(tmp_path / "out"))
        stock.set_progress_bar_config(disable=True)
        ours = sampling.generate(made.pipeline(), [3, 4], (999,))
        network = Averaged(made.student)
        network.values = made.average
        noise, _ = sampling.fresh_noise(made.pipe, 2, seed=0)
        cond, _ = Condition.from_prompt(made.pipe, [3, 4])
        student = Student(Denoiser(network, made.pipe.scheduler))
        with torch.no_grad():
            end = student(noise, Point.end(exact(student.denoiser.levels), torch.tensor([999, 999])), cond)
            again = sampling.generate(stock, [3, 4], (999,))
        assert_close(sampling.decode(made.pipe, end), ours, rtol=0, atol=1e-4)
        assert_close(again, ours, rtol=0, atol=1e-4)
        pictures = stock([3, 4], guidance_scale=1.0, num_inference_steps=2, output_type="np").images
        assert pictures.shape == (2, 16, 16, 3)

    def test_sample_gives_the_same_picture_in_every_batch_and_from_the_files(self, teacher, tmp_path):
        made = distilled(teacher, init="torch")
        both = splam.sample(made, PROMPTS, steps=2, seed=5)
        single = splam.sample(made, PROMPTS, steps=2, seed=5, batch_size=1)
        loaded = splam.sample(
            StableDiffusionPipeline.from_pretrained(made.save(tmp_path / "out")), PROMPTS, steps=2, seed=5
        )
        for one, other, third in zip(both, single, loaded, strict=True):
            for made_again in (other, third):
                gap = torch.tensor(list(one.tobytes()), dtype=torch.int) - torch.tensor(list(made_again.tobytes()))
                assert gap.abs().max() <= 1
        assert both[0].tobytes() != both[1].tobytes()

    @pytest.mark.parametrize("make", [tiny, tiny_dit])
    def test_the_card_of_a_lora_names_the_loader_that_the_pipeline_has(self, make, tmp_path):
        pipe = make()
        made = distilled(pipe, (1, 2, 1) if make is tiny_dit else None, mode="lcm_lora", steps=1, targets=("to_q",))
        folder = made.save(tmp_path / "out")
        card = (folder / "README.md").read_text()
        assert ("pipe.load_lora_weights(THIS_FOLDER)" in card) is hasattr(pipe, "load_lora_weights")
        if make is tiny_dit:
            assert 'lora.load(THIS_FOLDER, {"transformer": pipe.transformer})' in card
            lora.load(folder, {"transformer": pipe.transformer})

    def test_the_online_adapter_has_the_online_layer(self, teacher, tmp_path):
        made = distilled(teacher, mode="splam_lora", init="torch")
        with pytest.warns(UserWarning, match="online weights are noisier"):
            made.save(tmp_path / "online", online=True)
        made.save(tmp_path / "mean")
        layers = [files.read_safetensors(tmp_path / name / "cond_proj.safetensors") for name in ("online", "mean")]
        live = networks.projection(made.student).weight
        assert torch.equal(layers[0]["cond_proj.weight"], live)
        average = next(value for name, value in made.average.items() if name.endswith("cond_proj.weight"))
        assert torch.equal(layers[1]["cond_proj.weight"], average)
        assert not torch.equal(average, live)

    def test_1_splam_at_gamma_one_is_the_consistency_model_bit_for_bit(self, teacher):
        splam_, lcm = (
            distilled(teacher, mode=mode, gamma_one_prob=probability, init="torch")
            for mode, probability in (("splam", 1.0), ("lcm_fixed_w", 0.0))
        )
        assert digest(splam_.student) == digest(lcm.student)
        assert digest(splam_.pipeline().unet) == digest(lcm.pipeline().unet)
        assert digest(distilled(teacher, init="torch").student) != digest(lcm.student)

    def test_the_online_weights_warn_and_differ(self, teacher):
        made = distilled(teacher)
        before = digest(made.student)
        with pytest.warns(UserWarning, match="online weights are noisier"):
            online = made.pipeline(online=True)
        assert digest(online.unet) != digest(made.pipeline().unet)
        assert digest(made.student) == before


def tiny_with_lcm():
    pipe = tiny()
    pipe.scheduler = LCMScheduler.from_config(pipe.scheduler.config, clip_sample=False)
    return pipe


class TestRefusals:
    def test_sampling(self, teacher):
        made = distilled(teacher)
        for named, message in (
            ({"guidance_scale": 7.5}, "guidance_scale must be 1 for this model"),
            ({"negative_prompt": "blurry"}, "negative prompt"),
            ({"steps": 0}, "steps must be"),
            ({"steps": 51}, "steps must be"),
            ({"timesteps": (259, 999)}, "strictly decreasing"),
        ):
            with pytest.raises(ValueError, match=message):
                splam.sample(made, PROMPTS, **named)
        with pytest.raises(ValueError, match="DDIMScheduler, so it is not distilled"):
            splam.sample(teacher, PROMPTS)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"points": 30}, "points must divide"),
            (
                {"teacher_steps": 21},
                "teacher_steps must be at most 20, the timesteps from one of 50 points to the next",
            ),
            ({"points": 2000}, r"points must be in 1\.\.1000"),
            ({"guidance": 0.0}, "guidance must be at least 1"),
            ({"guidance": float("nan")}, "guidance must be at least 1"),
            ({"guidance_range": (6.0, 6.0)}, "low end first"),
            ({"mode": "lcm", "guidance": 4.5}, "must lie in guidance_range"),
            ({"steps": 0}, "steps must be at least 1"),
            ({"batch_size": 0}, "batch_size must be at least 1"),
            ({"learning_rate": -1.0}, "learning_rate must be greater than 0"),
            ({"targets": ("to_q",)}, "targets are layers of a LoRA"),
            ({"mode": "splam_lora", "targets": ("to_q", "linear_1")}, "carry the folded embedding"),
        ],
    )
    def test_settings(self, teacher, changes, message):
        with pytest.raises(ValueError, match=message):
            distilled(teacher, **changes)

    def test_teachers(self):
        done = tiny(tiny_unet(time_cond_proj_dim=WIDTH))
        with pytest.raises(ValueError, match="so it is distilled"):
            distilled(done)
        found = distil_pipeline(
            done, Options(steps=1, batch_size=2), cached=latents(done), allow_distilled=True, progress=False
        )
        assert found.facts["steps_done"] == 1
        for mode in ("splam_lora", "lcm_lora"):
            with pytest.raises(ValueError, match="keeps its guidance embedding beside a LoRA"):
                distil_pipeline(
                    done, Options(steps=1, mode=mode), cached=latents(done), allow_distilled=True, progress=False
                )
        with pytest.raises(ValueError, match="mode lcm keeps an embedding"):
            distilled(tiny_dit(), (1, 2, 1), mode="lcm", guidance=9.0)
        with pytest.raises(ValueError, match="has an LCMScheduler"):
            distilled(tiny_with_lcm())
        with pytest.raises(ValueError, match=r"must be float32, got torch\.bfloat16"):
            distilled(tiny(tiny_unet().to(torch.bfloat16)))
        adapted = tiny()
        lora.add(adapted.unet, rank=2)
        with pytest.raises(ValueError, match="carries a LoRA"):
            distilled(adapted)
        pipe = tiny()
        pipe.scheduler.register_to_config(prediction_type="flow")
        with pytest.raises(ValueError, match="prediction_type must be one of"):
            distilled(pipe)

    def test_what_was_saved_is_known_as_distilled_and_a_base_is_not(self, teacher, tmp_path, monkeypatch):
        stock = StableDiffusionPipeline.from_pretrained(distilled(teacher).save(tmp_path / "out"))
        with pytest.raises(ValueError, match="is a distilled model"):
            distilled(stock)
        sampling.refuse(stock, 1.0)
        for scale, negative in ((7.5, None), (1.0, "blurry")):
            with pytest.raises(ValueError, match=r"guidance_scale must be 1|negative prompt"):
                sampling.refuse(stock, scale, negative)
        sampling.refuse(teacher, 7.5, "blurry")
        # A pipeline without a name reads nothing, wherever the process stands.
        monkeypatch.chdir(tmp_path / "out")
        sampling.refuse(tiny_with_lcm(), 7.5)
        files.write_json(tmp_path / "base" / "metrics.json", {"recommended": {"guidance_scale": 4.5}})
        base = tiny_with_lcm()
        base.register_to_config(_name_or_path=str(tmp_path / "base"))
        assert len(splam.sample(base, "ab", steps=1)) == 1
        with pytest.raises(ValueError, match="prompts must not be empty"):
            splam.sample(base, [])

    def test_a_students_own_layer_is_dropped_where_it_was_not_trained(self, teacher):
        own = tiny_unet(time_cond_proj_dim=WIDTH)
        options = Options(steps=1, batch_size=2, effective_time=True, sigma_mode="linear")
        made = distil_pipeline(teacher, options, cached=latents(teacher), student=own, progress=False)
        network = made.pipeline().unet
        assert network.config.time_cond_proj_dim is None
        assert network.state_dict().keys() == teacher.unet.state_dict().keys()

    def test_half_precision_encoders_and_pipelines(self, teacher, tmp_path):
        pipe = tiny()
        pipe.text_encoder.to(torch.bfloat16)
        assert distilled(pipe, steps=1).facts["steps_done"] == 1
        made = distilled(teacher, mode="lcm", guidance=9.0)
        half = StableDiffusionPipeline.from_pretrained(made.save(tmp_path / "out")).to(torch.bfloat16)
        assert len(splam.sample(half, PROMPTS, steps=2)) == 3

    def test_a_teacher_in_training_mode_warns_and_gets_it_back(self):
        pipe = tiny()
        pipe.unet.train()
        with pytest.warns(UserWarning, match="not in eval mode"):
            distilled(pipe, steps=1)
        assert pipe.unet.training

    def test_few_steps_warn(self, teacher):
        with pytest.warns(UserWarning, match="2 steps are few"):
            distilled(teacher, steps=2)

    @pytest.mark.parametrize(
        ("student", "message"),
        [
            ({"in_channels": 8}, "same in_channels, got 8 and 4"),
            ({"cross_attention_dim": 32}, "same cross_attention_dim, got 32 and 16"),
            ({}, "no layer for the embedding"),
        ],
    )
    def test_students(self, teacher, student, message):
        with pytest.raises(ValueError, match=message):
            distil_pipeline(teacher, Options(steps=1), cached=latents(teacher), student=tiny_unet(**student))

    def test_a_narrower_student_of_the_callers_own(self, teacher):
        own = tiny_unet(block_out_channels=(16, 8), time_cond_proj_dim=WIDTH)
        made = distil_pipeline(
            teacher, Options(steps=1, batch_size=2), cached=latents(teacher), student=own, progress=False
        )
        assert made.student is own
        assert made.pipeline().unet.config.block_out_channels[1] == 8

    def test_a_lora_is_one_of_the_teacher(self, teacher):
        with pytest.raises(ValueError, match="belongs to the teacher's own network"):
            distil_pipeline(
                teacher, Options(steps=1, mode="lcm_lora"), cached=latents(teacher), student=tiny_unet(), progress=False
            )

    def test_no_captions(self, teacher):
        with pytest.raises(ValueError, match="at least one captioned picture"):
            latents(teacher, ())

    def test_a_place_that_is_taken_is_refused_before_anything_is_done(self, teacher, tmp_path):
        (tmp_path / "x").write_text("mine")
        with pytest.raises(FileExistsError, match="already exists"):
            splam.distil(teacher, data="nowhere", out=str(tmp_path))


def folder_of(place, count=3, size=(40, 24)):
    place.mkdir()
    for k in range(count):
        ramp = Image.linear_gradient("L").resize(size).convert("RGB")
        ramp.rotate(k, expand=False).save(place / f"{k}.png")
        (place / f"{k}.txt").write_text(f"abc{k}" if k else "a\n")
    return place


class TestData:
    def test_side_files_metadata_and_shards_are_the_same_data(self, tmp_path):
        plain = folder_of(tmp_path / "plain")
        listed, packed = tmp_path / "listed", tmp_path / "packed"
        listed.mkdir()
        packed.mkdir()
        rows = []
        with tarfile.open(packed / "0.tar", "w") as archive:
            for k in range(3):
                content = (plain / f"{k}.png").read_bytes()
                (listed / f"p{k}.png").write_bytes(content)
                text = (plain / f"{k}.txt").read_text().strip()
                rows.append(json.dumps({"file_name": f"p{k}.png", "text": text}))
                for name, part in ((f"{k}.png", content), (f"{k}.txt", text.encode())):
                    info = tarfile.TarInfo(name)
                    info.size = len(part)
                    archive.addfile(info, io.BytesIO(part))
        (listed / "metadata.jsonl").write_text("\n".join(rows))
        found = [list(data.pairs(place, side=16, count=9)) for place in (plain, listed, packed, packed / "0.tar")]
        for other in found[1:]:
            for (picture, caption), (again, text) in zip(found[0], other, strict=True):
                assert torch.equal(picture, again)
                assert caption == text
        assert found[0][0][0].shape == (3, 16, 16)
        assert [caption for _, caption in found[0]] == ["a", "abc1", "abc2"]

    def test_the_shorter_side_is_resized_and_the_cut_is_seeded(self):
        wide = Image.linear_gradient("L").rotate(90).resize((64, 16)).convert("RGB")
        cuts = [data.square(wide, 16, seed=0, index=k) for k in (0, 0, 1)]
        assert torch.equal(cuts[0], cuts[1])
        assert not torch.equal(cuts[0], cuts[2])

    @pytest.mark.parametrize("wrong", ["empty", "silent", "missing", "outside", "nameless"])
    def test_refusals(self, tmp_path, wrong):
        place = folder_of(tmp_path / "data", 0 if wrong == "empty" else 2)
        if wrong == "silent":
            (place / "1.txt").unlink()
        if wrong == "outside":
            (place / "metadata.jsonl").write_text('{"file_name": "../x.png", "text": "a"}')
        if wrong == "nameless":
            (place / "metadata.jsonl").write_text('{"image": "0.png", "text": "a"}')
        where = tmp_path / "nowhere" if wrong == "missing" else place
        with pytest.raises(
            ValueError, match=r"no pictures|no caption|data must be|outside its folder|object with file_name"
        ):
            list(data.pairs(where, side=16, count=5))

    def test_the_world_gives_captions_or_classes(self):
        pictures = list(data.pairs("scenes", side=16, count=3, seed=1))
        again = list(data.pairs("scenes", side=16, count=3, seed=1))
        assert all(torch.equal(a, b) and c == d for (a, c), (b, d) in zip(pictures, again, strict=True))
        assert len({caption for _, caption in pictures}) == 3
        classes = [label for _, label in data.pairs("scenes", side=16, count=3, classes=True)]
        assert all(0 <= label < 48 for label in classes)

    def test_the_cache_is_what_was_encoded_and_knows_its_model(self, teacher, tmp_path):
        place = folder_of(tmp_path / "data")
        fresh = cache.gathered(teacher, place, count=3, folder=tmp_path)
        again = cache.gathered(teacher, place, count=3, folder=tmp_path)
        assert again.captions == fresh.captions
        for name, value in fresh.tensors().items():
            assert torch.equal(again.tensors()[name], value)
        for one, other in ((fresh.conditions, again.conditions), (fresh.uncond, again.uncond)):
            assert torch.equal(one.encoder_hidden_states, other.encoder_hidden_states)
        with pytest.raises(ValueError, match="made from other data"):
            cache.gathered(teacher, place, count=2, folder=tmp_path)
        torch.manual_seed(11)
        other = tiny()
        other.vae = AutoencoderKL.from_config(other.vae.config).eval()
        with pytest.raises(ValueError, match="another autoencoder"):
            cache.gathered(other, place, count=3, folder=tmp_path)

    def test_conditions_of_every_layout_survive_the_disk(self):
        cond = Condition(
            torch.ones(2, 3, 4),
            added_cond_kwargs={"text_embeds": torch.zeros(2, 5), "resolution": None},
            encoder_attention_mask=torch.ones(2, 3),
        )
        back = cache.restore(cache.flatten(cond, "cond") | {"other.x": torch.ones(1)}, "cond", ["resolution"])
        assert back.arguments().keys() == cond.arguments().keys()
        assert back.added_cond_kwargs["resolution"] is None
        assert torch.equal(back.added_cond_kwargs["text_embeds"], torch.zeros(2, 5))

    def test_the_door_runs_from_folder_to_folder(self, teacher, tmp_path):
        made = splam.distil(
            teacher, data=str(folder_of(tmp_path / "data")), steps=1, batch_size=2, run=str(tmp_path / "run"),
            out=str(tmp_path / "out"),
        )  # fmt: skip
        assert made.options.guidance == 9.0
        assert StableDiffusionPipeline.from_pretrained(tmp_path / "out").unet.config.time_cond_proj_dim is None
        assert (tmp_path / "run" / "cache" / "latents.safetensors").is_file()
        assert json.dumps(made.to_json())


@pytest.mark.slow
def test_the_experiment_runs_on_the_embedded_pipeline(monkeypatch):
    from mezzotint.methods.splam import analytic, embedded
    from mezzotint.methods.splam.experiment import experiment

    tiny = embedded.Adapter(2, 4, 8, rank=2, learning_rate=1e-3)
    size = embedded.Size(2, 4, 16, 6, steps=(1, 4), shown=1, draws=5, adapter=tiny, mild=replace(tiny, guidance=3.0))
    monkeypatch.setattr(embedded, "FULL", size)
    monkeypatch.setattr(
        analytic, "FULL", analytic.Size(20, 5, tuple(analytic.ARMS)[:6], samples=50, data=60, paired=20)
    )
    found = experiment(budget="full")
    arms = {arm for row in found.rows for arm in row.values}
    own = {"SPLAM improved", "SPLAM official", "LCM-fixed-w", embedded.ADAPTER, *embedded.SOLVERS}
    assert own | set(embedded.MILD.values()) <= arms
    rows = {(row.metric, row.condition): row.values for row in found.rows}
    assert rows[embedded.CALLS, embedded.SPEED]["teacher, 50 steps"] == ((100.0,),)
    # Hardly trained, a student's first guess is that of its teacher without guidance, somewhere near the reference.
    gaps = rows[embedded.RMSE, "1 steps"]
    assert max(gaps["SPLAM improved"][0]) < 3
    teachers = {embedded.REFERENCE, embedded.MILD[embedded.REFERENCE]}
    assert rows[embedded.TO_TEACHER, "4 steps"].keys() == arms & rows[embedded.FRECHET, "4 steps"].keys() - teachers
    solver = rows[embedded.RMSE, "4 steps"]
    assert solver["teacher DDIM"] != solver[embedded.MILD["teacher DDIM"]], "the same start noise, another guidance"
    assert embedded.MILD[embedded.ADAPTER] not in rows[embedded.SECONDS, embedded.SPEED]
    assert len(found.samples) == 11


@pytest.mark.slow
def test_the_demonstration_shows_what_is_shipped(monkeypatch):
    from mezzotint.methods.splam import analytic, embedded
    from mezzotint.methods.splam.experiment import experiment

    monkeypatch.setattr(embedded, "QUICK", embedded.Size(0, 0, 0, 3, steps=(4,), shown=2, draws=0))
    monkeypatch.setattr(analytic, "QUICK", analytic.Size(5, 5, analytic.CHEAP, samples=50, data=60, paired=20))
    found = experiment()
    rows = {row.metric: row.values for row in found.rows if row.condition == "4 steps"}
    assert embedded.FRECHET not in rows, "three pictures are too few"
    assert len(rows[embedded.RIGHT][embedded.SHIPPED][0]) == 3
    assert {sample.arm for sample in found.samples} == set(rows[embedded.RIGHT])
    assert experiment(pipe=object()).rows, "another pipeline has no student in the zoo"
