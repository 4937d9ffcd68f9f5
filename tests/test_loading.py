"""Laws of loading: a stock pipeline comes out as it went in, and an unsound folder is refused before it is read."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline, DiTTransformer2DModel, LCMScheduler
from PIL import Image

import mezzotint
from mezzotint import loading
from mezzotint.diffusion import stream
from mezzotint.files import FileError, write_json, write_safetensors
from mezzotint.loading import check_model, embedded, find, model_hash, recommended, zoo_path
from mezzotint.training import lora


@pytest.fixture(scope="module")
def original() -> DiTPipeline:
    """A whole class-conditional pipeline, tiny."""
    transformer = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=4, in_channels=4, out_channels=8, num_layers=1, sample_size=4,
        patch_size=2, num_embeds_ada_norm=1000, norm_num_groups=4,
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(8, 8), norm_num_groups=4, latent_channels=4, down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, sample_size=8,
    )  # fmt: skip
    return DiTPipeline(transformer, vae, DDIMScheduler(clip_sample=False))


@pytest.fixture(scope="module")
def saved(original: DiTPipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "pipe"
    original.save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(saved, tmp_path / "pipe"))


def test_a_pipeline_comes_back_and_can_be_used(original: DiTPipeline, saved: Path) -> None:
    pipe = mezzotint.load(saved)
    assert type(pipe) is DiTPipeline
    for name in ("transformer", "vae"):
        ours, theirs = getattr(pipe, name), getattr(original, name)
        assert not ours.training
        for key, value in theirs.state_dict().items():
            assert torch.equal(ours.state_dict()[key], value), key
    pipe.set_progress_bar_config(disable=True)
    made = pipe([1], num_inference_steps=2, generator=torch.Generator().manual_seed(0))
    assert isinstance(made.images[0], Image.Image)


@pytest.mark.parametrize("dtype", ["bfloat16", torch.float16])
def test_the_precision_is_what_was_asked(saved: Path, dtype: torch.dtype | str) -> None:
    wanted = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    pipe = mezzotint.load(str(saved), dtype=dtype)
    assert {parameter.dtype for parameter in pipe.transformer.parameters()} == {wanted}


@pytest.mark.parametrize("dtype", ["int8", "load", "float", torch.int64, ""])
def test_a_wrong_precision_is_refused(saved: Path, dtype: torch.dtype | str) -> None:
    if dtype == "float":
        assert next(mezzotint.load(saved, dtype=dtype).vae.parameters()).dtype == torch.float32
        return
    with pytest.raises(ValueError, match="dtype must be"):
        mezzotint.load(saved, dtype=dtype)


def test_libraries_speak_again_after_a_load(saved: Path) -> None:
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    libraries = (diffusers_logging, transformers_logging)
    before = [(library.get_verbosity(), library.is_progress_bar_enabled()) for library in libraries]
    mezzotint.load(saved)
    assert [(library.get_verbosity(), library.is_progress_bar_enabled()) for library in libraries] == before


def test_the_hash_names_the_content(saved: Path, folder: Path) -> None:
    assert model_hash(folder) == model_hash(saved)
    config = folder / "scheduler" / "scheduler_config.json"
    config.write_text(config.read_text().replace("0.02", "0.03"))
    assert model_hash(folder) != model_hash(saved)


def test_embedded_names_are_folders() -> None:
    assert all(zoo_path(name).is_dir() and find(name) == zoo_path(name) for name in embedded())
    with pytest.raises(ValueError, match="unknown checkpoint 'nothing'; embedded: "):
        zoo_path("nothing")


def test_only_a_hub_id_may_touch_the_network() -> None:
    assert find("owner/name") is None
    for name in ("nothing", "a/b/c", "../x", "/nowhere", "owner/", "~/nowhere/at/all", ""):
        if name:
            with pytest.raises(ValueError, match="unknown model"):
                find(name)
    with pytest.raises(ValueError, match="unknown model"):
        mezzotint.load("nothing")


def test_a_misspelt_name_gets_a_suggestion(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "embedded", lambda: ("scenes", "scenes-dit"))
    with pytest.raises(ValueError, match="did you mean 'scenes'"):
        find("scense")


def _index(change: Callable[[dict], object]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        path = folder / "model_index.json"
        index = json.loads(path.read_text())
        change(index)
        path.write_text(json.dumps(index))

    return spoil


def _config(folder: Path) -> None:
    path = folder / "vae" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "auto_map": {"AutoModel": "evil--evil.Model"}}))


def _overlap(folder: Path) -> None:
    path = folder / "vae" / "diffusion_pytorch_model.safetensors"
    write_safetensors(path, {"a": torch.zeros(2), "b": torch.zeros(2)})
    path.write_bytes(path.read_bytes().replace(b'"data_offsets":[8,16]', b'"data_offsets":[4,12]'))


SPOILED: dict[str, Callable[[Path], object]] = {
    "it has no model_index.json": lambda folder: (folder / "model_index.json").unlink(),
    "not valid JSON": lambda folder: (folder / "vae" / "config.json").write_text("{"),
    "must be a JSON object": lambda folder: (folder / "vae" / "config.json").write_text("[]"),
    "overlap": _overlap,
    "a zip archive": lambda folder: (folder / "vae" / "diffusion_pytorch_model.safetensors").write_bytes(b"PK\3\4" * 9),
    "auto_map": _config,
    "takes 'vae' from 'os'": _index(lambda index: index.update(vae=["os", "system"])),
    "takes 'vae' from 'my_code'": _index(lambda index: index.update(vae=["my_code", "Model"])),
    "takes 'vae' from '__spec__'": _index(lambda index: index.update(vae=["__spec__", "Model"])),
    "takes 'vae' from ''": _index(lambda index: index.update(vae=["a", "b", "c"])),
    "class from a file": _index(lambda index: index.update(_class_name=["my_pipeline", "Pipeline"])),
    "is code": lambda folder: (folder / "vae" / "diffusers.py").write_text("print('loaded')"),
    "leaves the model's folder": lambda folder: (folder / "vae" / "weights.bin").symlink_to("/etc/hostname"),
}


@pytest.mark.parametrize("match", SPOILED)
def test_a_spoiled_folder_is_refused(folder: Path, match: str) -> None:
    check_model(folder)
    SPOILED[match](folder)
    with pytest.raises(FileError, match=match):
        mezzotint.load(folder)


def test_pickled_weights_are_not_a_substitute(folder: Path) -> None:
    weights = folder / "vae" / "diffusion_pytorch_model.safetensors"
    torch.save({}, folder / "vae" / "diffusion_pytorch_model.bin")
    weights.unlink()
    with pytest.raises(OSError, match="safetensors"):
        mezzotint.load(folder)


def test_links_within_the_hubs_cache_are_followed(saved: Path, tmp_path: Path) -> None:
    repository = tmp_path / "models--owner--name"
    snapshot = Path(shutil.copytree(saved, repository / "snapshots" / "0123"))
    (repository / "blobs").mkdir()
    weights = snapshot / "vae" / "diffusion_pytorch_model.safetensors"
    weights.rename(repository / "blobs" / "ff")
    weights.symlink_to("../../../blobs/ff")
    check_model(snapshot)
    weights.unlink()
    shutil.move(repository / "blobs" / "ff", tmp_path / "ff")
    weights.symlink_to(tmp_path / "ff")
    with pytest.raises(FileError, match="leaves"):
        check_model(snapshot)


def test_a_file_is_no_pipeline(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"")
    with pytest.raises(FileError, match="a pipeline is a folder"):
        mezzotint.load(tmp_path / "x.safetensors")


def test_a_model_recommends_what_its_makers_measured(tmp_path: Path) -> None:
    pipe = SimpleNamespace(config=SimpleNamespace(_name_or_path=str(tmp_path)))
    assert recommended(pipe, "guidance_scale") is None
    write_json(tmp_path / "metrics.json", {"recommended": {"guidance_scale": 3.5}})
    assert recommended(pipe, "guidance_scale") == 3.5
    assert recommended(pipe, "steps") is None
    assert recommended(SimpleNamespace(), "guidance_scale") is None


def test_a_card_does_not_change_what_a_model_is(tmp_path: Path) -> None:
    write_json(tmp_path / "config.json", {"width": 3})
    before = model_hash(tmp_path)
    write_json(tmp_path / "metrics.json", {"accuracy": 0.9})
    write_json(tmp_path / "manifest.json", {})
    assert model_hash(tmp_path) == before


@pytest.fixture
def adapter(tmp_path: Path) -> tuple[Any, Path]:
    """A LoRA for the embedded pipeline, with a scheduler of its own."""
    pipe = mezzotint.load("scenes")
    lora.add(pipe.unet, rank=2, targets=("to_q", "conv1"))
    for name, value in lora.parameters(pipe.unet).items():
        value.data = torch.randn(value.shape, generator=stream(0, name)) * 0.05
    lora.save(tmp_path, {"unet": pipe.unet})
    LCMScheduler.from_config(pipe.scheduler.config).save_pretrained(tmp_path / "scheduler")
    facts = {"base": "scenes", "recommended": {"guidance_scale": 1.0, "num_inference_steps": 4}}
    write_json(tmp_path / "metrics.json", facts)
    return pipe.unet, tmp_path


def test_a_lora_of_an_embedded_pipeline_is_loaded_with_its_base(adapter: tuple[Any, Path]) -> None:
    unet, folder = adapter
    pipe = mezzotint.load(folder)
    x, text = torch.randn(1, 4, 16, 16), torch.randn(1, 48, 128)
    with torch.no_grad():
        torch.testing.assert_close(pipe.unet(x, 500, text).sample, unet(x, 500, text).sample, rtol=1e-4, atol=1e-5)
    assert not getattr(pipe.unet, "peft_config", None)
    assert isinstance(pipe.scheduler, LCMScheduler)
    assert recommended(pipe, "num_inference_steps") == 4


def test_the_hash_of_a_lora_changes_with_its_base(adapter: tuple[Any, Path]) -> None:
    with_base = model_hash(adapter[1])
    write_json(adapter[1] / "metrics.json", {"base": "scenes-dit"})
    assert model_hash(adapter[1]) != with_base


@pytest.mark.parametrize("base", [None, "../elsewhere", "runwayml/stable-diffusion-v1-5", "scene-splam"])
def test_a_lora_without_an_embedded_base_says_what_to_do(adapter: tuple[Any, Path], base: object) -> None:
    write_json(adapter[1] / "metrics.json", {"base": base})
    with pytest.raises(FileError, match="is a LoRA: load its base model"):
        mezzotint.load(adapter[1])


def test_a_lora_whose_scheduler_is_none_of_diffusers_is_refused(adapter: tuple[Any, Path]) -> None:
    path = adapter[1] / "scheduler" / "scheduler_config.json"
    write_json(path, {"_class_name": "StableDiffusionPipeline"})
    with pytest.raises(FileError, match="no scheduler of diffusers"):
        mezzotint.load(adapter[1])
