"""Averages of distilled LoRAs: the mean of the updates, not of the factors, in a file that stock diffusers loads."""

import shutil

import pytest
import torch
from diffusers import StableDiffusionPipeline
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from mezzotint import files
from mezzotint.cli import main
from mezzotint.files import FileError
from mezzotint.methods import splam
from mezzotint.methods.splam.averaging import truncated
from mezzotint.training import lora
from tests.methods.test_splam_pipelines import distilled, tiny

pytestmark = pytest.mark.filterwarnings(r"ignore:\d+ steps are few:UserWarning")


@pytest.fixture(scope="module")
def teacher():
    return tiny()


@pytest.fixture(scope="module")
def students(teacher, tmp_path_factory):
    """Two students of other seeds, ranks and scales, with their fused weights."""
    folders = []
    for seed, rank, alpha in ((0, 4, None), (1, 3, 6.0)):
        made = distilled(teacher, mode="splam_lora", seed=seed, rank=rank, alpha=alpha)
        folders.append(made.save(tmp_path_factory.mktemp("student") / str(seed)))
    return folders


def fused(folder, teacher, scale=1.0):
    parts = {name: getattr(teacher, name) for name in ("vae", "text_encoder", "tokenizer", "scheduler")}
    pipe = StableDiffusionPipeline(
        **parts, unet=tiny().unet, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )
    pipe.load_lora_weights(folder)
    pipe.fuse_lora(lora_scale=scale)
    pipe.unload_lora_weights()
    return pipe.unet.state_dict()


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 7), st.integers(1, 9), st.integers(0, 99))
def test_the_product_is_the_nearest_of_its_rank(outputs, inputs, inner, rank, seed):
    generator = torch.Generator().manual_seed(seed)
    up = torch.randn(outputs, inner, generator=generator, dtype=torch.float64)
    down = torch.randn(inner, inputs, generator=generator, dtype=torch.float64)
    left, right, (kept, total) = truncated(up, down, rank)
    assert left.shape == (outputs, rank)
    assert right.shape == (rank, inputs)
    u, s, v = torch.linalg.svd(up @ down, full_matrices=False)
    assert_close(left @ right, (u[:, :rank] * s[:rank]) @ v[:rank], atol=1e-9, rtol=0)
    assert kept == pytest.approx(s[:rank].square().sum().item())
    assert total == pytest.approx(s.square().sum().item())


def test_stock_diffusers_loads_the_mean_of_the_updates_times_the_strength(students, teacher, tmp_path):
    made = splam.average(*map(str, students), out=str(tmp_path / "mean"), strength=1.5, rank=7)
    base, one, two = teacher.unet.state_dict(), *(fused(folder, teacher) for folder in students)
    for name, value in fused(made, teacher).items():
        assert_close(value, base[name] + 1.5 * ((one[name] + two[name]) / 2 - base[name]), atol=2e-6, rtol=1e-4)
    assert any(not torch.equal(one[name], two[name]) for name in base)
    assert files.read_json(made / "metrics.json")["distillation"]["average"]["energy_kept"] == 1.0


def test_one_student_alone_is_only_made_stronger(students, teacher, tmp_path):
    made = splam.average(str(students[1]), out=str(tmp_path / "one"), strength=1.25)
    stronger = fused(students[1], teacher, scale=1.25)
    for name, value in fused(made, teacher).items():
        assert_close(value, stronger[name], atol=2e-6, rtol=1e-4)
    assert files.read_json(made / "scheduler/scheduler_config.json") == files.read_json(
        students[1] / "scheduler/scheduler_config.json"
    )


def test_a_smaller_rank_says_what_it_keeps(students, tmp_path):
    made = splam.average(*map(str, students), out=str(tmp_path / "small"), rank=2)
    told = files.read_json(made / "metrics.json")["distillation"]["average"]
    assert 0 < told["energy_kept"] < 1
    assert told["rank"] == 2
    assert [each["seed"] for each in told["of"]] == [0, 1]
    weights = files.read_safetensors(made / lora.FILE)
    assert {min(value.shape[:2]) <= 2 or 2 in value.shape for value in weights.values()} == {True}


def test_the_command_line_averages(students, tmp_path, capsys):
    assert main(["average", *map(str, students), "--dtype", "float16", "--out", str(tmp_path / "mean")]) == 0
    assert {value.dtype for value in files.read_safetensors(tmp_path / "mean" / lora.FILE).values()} == {torch.float16}


def altered(folder, place, name, change):
    """A copy of a student in which one JSON file is another."""
    shutil.copytree(folder, place)
    files.write_json(place / name, change(files.read_json(place / name)))
    return str(place)


class TestRefused:
    def test_a_folder_without_a_lora(self, students, tmp_path):
        with pytest.raises(FileNotFoundError, match="modes with a LoRA"):
            splam.average(str(students[0]), str(tmp_path), out=str(tmp_path / "x"))

    def test_another_scheduler(self, students, tmp_path):
        def change(config):
            return {**config, "original_inference_steps": 25}

        other = altered(students[1], tmp_path / "other", "scheduler/scheduler_config.json", change)
        with pytest.raises(ValueError, match="different schedulers"):
            splam.average(str(students[0]), other, out=str(tmp_path / "x"))

    def test_another_guidance(self, students, tmp_path):
        def change(facts):
            return {**facts, "recommended": {"guidance_scale": 1.5}}

        other = altered(students[1], tmp_path / "other", "metrics.json", change)
        with pytest.raises(ValueError, match="different settings"):
            splam.average(str(students[0]), other, out=str(tmp_path / "x"))

    def test_other_layers_or_networks(self, students, tmp_path):
        place = tmp_path / "other"
        shutil.copytree(students[1], place)
        weights = files.read_safetensors(place / lora.FILE)
        name = next(iter(weights))
        files.write_safetensors(place / lora.FILE, {key: value for key, value in weights.items() if key != name})
        with pytest.raises(ValueError, match="different layers"):
            splam.average(str(students[0]), str(place), out=str(tmp_path / "x"))
        wider = {key: torch.cat([value, value], 1) if ".lora_A." in key else value for key, value in weights.items()}
        files.write_safetensors(place / lora.FILE, wider)
        with pytest.raises(ValueError, match="other sizes"):
            splam.average(str(students[0]), str(place), out=str(tmp_path / "x"))

    @pytest.mark.parametrize("given", [{"strength": 0.0}, {"strength": float("nan")}, {"rank": 0}])
    def test_values_out_of_range(self, students, tmp_path, given):
        with pytest.raises(ValueError, match="must be"):
            splam.average(str(students[0]), out=str(tmp_path / "x"), **given)
        assert not (tmp_path / "x").exists()

    def test_nothing_to_average_and_an_occupied_folder(self, students, tmp_path):
        with pytest.raises(ValueError, match="at least one"):
            splam.average(out=str(tmp_path / "x"))
        with pytest.raises(FileExistsError):
            splam.average(str(students[0]), out=str(students[1]))

    def test_a_broken_file(self, students, tmp_path):
        place = tmp_path / "other"
        shutil.copytree(students[1], place)
        (place / lora.FILE).write_bytes(b"nothing")
        with pytest.raises(FileError):
            splam.average(str(place), out=str(tmp_path / "x"))
