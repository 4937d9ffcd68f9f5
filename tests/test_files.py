"""Laws of the files: what is written comes back, equal things give equal bytes, a target is whole or untouched."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from mezzotint.files import (
    MANIFEST,
    FileError,
    atomic_folder,
    format_parameters,
    free_folder,
    parse_parameters,
    read_image,
    read_json,
    read_safetensors,
    read_settings,
    replacing,
    safetensors_metadata,
    verify_folder,
    write_bytes,
    write_image,
    write_json,
    write_safetensors,
    write_text,
)

SETTINGS = {
    "prompt": 'a red cube, "shiny": and a blue sphere\non a gray floor',
    "negative_prompt": "blurry, dark",
    "steps": 50,
    "sampler": "DDIM",
    "guidance": 4.5,
    "seed": 7,
    "width": 64,
    "height": 48,
    "model": "scenes",
    "model_hash": "0123456789abcdef",
    "methods": ["align_your_steps"],
    "version": "mezzotint 0.1.0",
    "versions": {"torch": "2.13.0"},
}


def _picture(width: int = 9, height: int = 7, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def _tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    wide = torch.randn(4, 6, generator=generator)
    return {
        "weight": wide,
        "half": wide.half(),
        "brain": wide.bfloat16(),
        "view": wide.T[1:, ::2],
        "scalar": torch.tensor(3, dtype=torch.int64),
        "flags": wide > 0,
        "empty": torch.zeros(0, 5),
        "eight": wide.to(torch.float8_e4m3fn),
        "complex": torch.complex(wide, -wide).conj(),
        "grad": wide.clone().requires_grad_(),
    }


@pytest.mark.parametrize("value", [{"b": 1, "a": [1.5, None, True, "é"]}, [], "text", 0, -1.25e-300])
def test_json_round_trip(tmp_path: Path, value: object) -> None:
    write_json(tmp_path / "deep" / "er" / "x.json", value)
    assert read_json(tmp_path / "deep" / "er" / "x.json") == value


@pytest.mark.parametrize("value", [float("nan"), {"x": float("inf")}, {1, 2}, object(), {(1, 2): 3}])
def test_json_refuses_what_it_cannot_say_and_writes_nothing(tmp_path: Path, value: object) -> None:
    write_json(tmp_path / "x.json", "old")
    with pytest.raises(ValueError, match="JSON cannot hold"):
        write_json(tmp_path / "x.json", value)
    assert read_json(tmp_path / "x.json") == "old"
    assert os.listdir(tmp_path) == ["x.json"]


def test_text_keeps_its_line_ends(tmp_path: Path) -> None:
    write_text(tmp_path / "x.txt", "a\nb\r\nc")
    assert (tmp_path / "x.txt").read_bytes() == b"a\nb\r\nc"


def test_an_exception_while_writing_leaves_the_old_file_and_no_litter(tmp_path: Path) -> None:
    write_bytes(tmp_path / "x", b"old")

    def fail() -> None:
        with replacing(tmp_path / "x") as file:
            file.write(b"half of the new")
            raise KeyError("caller")

    with pytest.raises(KeyError, match="caller"):
        fail()
    assert (tmp_path / "x").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["x"]


def test_a_symbolic_link_is_replaced_and_its_target_untouched(tmp_path: Path) -> None:
    (tmp_path / "precious").write_bytes(b"precious")
    (tmp_path / "link").symlink_to("precious")
    write_bytes(tmp_path / "link", b"new")
    assert (tmp_path / "precious").read_bytes() == b"precious"
    assert (tmp_path / "link").read_bytes() == b"new"
    assert not (tmp_path / "link").is_symlink()


def test_written_files_have_the_mode_that_the_umask_says(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_bytes(tmp_path / "x", b"")
    finally:
        os.umask(before)
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o640


def test_a_folder_in_the_place_is_named_in_the_error(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    with pytest.raises(IsADirectoryError, match=r"a folder stands there.*x'"):
        write_bytes(tmp_path / "x", b"")
    assert os.listdir(tmp_path) == ["x"]


def test_the_longest_file_name_can_be_written(tmp_path: Path) -> None:
    name = "n" * 255
    write_bytes(tmp_path / name, b"1")
    assert os.listdir(tmp_path) == [name]


def test_safetensors_round_trip_and_the_library_agrees(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    tensors = _tensors()
    write_safetensors(path, tensors, {"format": "pt", "what": "é"})
    ours, theirs = read_safetensors(path), safetensors.torch.load_file(path)
    assert ours.keys() == theirs.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert ours[name].dtype == theirs[name].dtype == tensor.dtype
        assert ours[name].shape == tensor.shape
        wanted = tensor.detach().resolve_conj().contiguous().reshape(-1).view(torch.uint8)
        assert torch.equal(ours[name].reshape(-1).view(torch.uint8), wanted), name
        assert torch.equal(theirs[name].reshape(-1).view(torch.uint8), wanted), name
    assert safetensors_metadata(path) == {"format": "pt", "what": "é"}


def test_what_the_library_writes_is_read(tmp_path: Path) -> None:
    tensors = {name: tensor.detach().contiguous() for name, tensor in _tensors().items() if name != "complex"}
    safetensors.torch.save_file(tensors, tmp_path / "x.safetensors", {"a": "b"})
    ours = read_safetensors(tmp_path / "x.safetensors")
    for name, tensor in tensors.items():
        assert torch.equal(ours[name].reshape(-1).view(torch.uint8), tensor.reshape(-1).view(torch.uint8)), name
    assert safetensors_metadata(tmp_path / "x.safetensors") == {"a": "b"}


def test_equal_tensors_give_equal_bytes_whatever_their_order(tmp_path: Path) -> None:
    tensors, metadata = _tensors(), {"b": "1", "a": "2", "c": "3"}
    write_safetensors(tmp_path / "1", tensors, metadata)
    write_safetensors(tmp_path / "2", dict(reversed(tensors.items())), dict(reversed(metadata.items())))
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()


def test_read_tensors_outlive_the_file_and_are_their_own(tmp_path: Path) -> None:
    path = tmp_path / "x"
    write_safetensors(path, {"a": torch.ones(3)})
    read = read_safetensors(path)["a"]
    read.add_(1)
    write_safetensors(path, {"a": torch.zeros(3)})
    path.unlink()
    assert read.tolist() == [2, 2, 2]


@pytest.mark.parametrize(
    ("name", "tensor", "match"),
    [
        ("__metadata__", torch.ones(1), "must not be named"),
        ("", torch.ones(1), "must not be named"),
        ("s", torch.eye(2).to_sparse(), "must be dense"),
        ("m", torch.ones(1, device="meta"), "must be dense"),
        ("c", torch.ones(1, dtype=torch.complex128), "is torch.complex128"),
    ],
)
def test_tensors_that_cannot_be_written(tmp_path: Path, name: str, tensor: torch.Tensor, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        write_safetensors(tmp_path / "x", {"good": torch.ones(1), name: tensor})
    assert os.listdir(tmp_path) == []


def test_picture_and_settings_round_trip(tmp_path: Path) -> None:
    write_image(tmp_path / "x.png", _picture(), SETTINGS)
    assert read_image(tmp_path / "x.png").tobytes() == _picture().tobytes()
    assert read_settings(tmp_path / "x.png") == SETTINGS


@pytest.mark.parametrize("mode", ["1", "L", "LA", "I;16", "P", "RGB", "RGBA"])
def test_every_mode_of_png_keeps_its_pixels(tmp_path: Path, mode: str) -> None:
    image = _picture(16, 5).convert("L").convert(mode) if mode != "I;16" else Image.new("I;16", (16, 5), 4660)
    write_image(tmp_path / "x.png", image)
    again = read_image(tmp_path / "x.png", mode=None)
    assert again.mode == mode
    assert again.tobytes() == image.tobytes()


def test_a_mode_that_png_lacks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="got CMYK: convert"):
        write_image(tmp_path / "x.png", Image.new("CMYK", (2, 2)))


def test_pictures_are_png_only(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"must end in \.png"):
        write_image(tmp_path / "x.jpg", _picture())


def test_equal_pictures_and_settings_give_equal_bytes(tmp_path: Path) -> None:
    dressed = _picture()
    dressed.info = {"icc_profile": b"left out", "dpi": (300, 300), "comment": "left out"}
    write_image(tmp_path / "1.png", _picture(), SETTINGS)
    write_image(tmp_path / "2.png", dressed, dict(reversed(SETTINGS.items())))
    assert (tmp_path / "1.png").read_bytes() == (tmp_path / "2.png").read_bytes()
    assert dressed.info["comment"] == "left out", "the caller's picture is untouched"


def test_other_tools_see_both_text_chunks(tmp_path: Path) -> None:
    write_image(tmp_path / "x.png", _picture(), SETTINGS)
    with Image.open(tmp_path / "x.png") as image:
        texts = image.text
    assert json.loads(texts["mezzotint"]) == SETTINGS
    assert texts["parameters"] == format_parameters(SETTINGS)


def test_the_parameters_text_is_what_other_tools_expect() -> None:
    settings = {**SETTINGS, "prompt": "a red cube"}
    assert format_parameters(settings).split("\n") == [
        "a red cube",
        "Negative prompt: blurry, dark",
        (
            "Steps: 50, Sampler: DDIM, CFG scale: 4.5, Seed: 7, Size: 64x48, Model hash: 0123456789abcdef, "
            "Model: scenes, Methods: align_your_steps, Version: mezzotint 0.1.0"
        ),
    ]


def test_a_picture_of_another_tool_can_be_shown(tmp_path: Path) -> None:
    text = (
        "a castle, (night:1.2)\nsecond line\nNegative prompt: low quality\n"
        "Steps: 20, Sampler: Euler a, CFG scale: 7.5, Seed: 12345, Size: 512x768, Model: v1-5, "
        'Lora hashes: "a: 1, b: 2"'
    )
    chunks = PngInfo()
    chunks.add_text("parameters", text)
    _picture().save(tmp_path / "x.png", pnginfo=chunks)
    assert read_settings(tmp_path / "x.png") == {
        "prompt": "a castle, (night:1.2)\nsecond line",
        "negative_prompt": "low quality",
        "steps": 20,
        "sampler": "Euler a",
        "guidance": 7.5,
        "seed": 12345,
        "width": 512,
        "height": 768,
        "model": "v1-5",
        "Lora hashes": "a: 1, b: 2",
    }


def test_a_bare_prompt_is_a_prompt() -> None:
    assert parse_parameters("just words, no line of values") == {"prompt": "just words, no line of values"}


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("text", ["latin é", "snow ☃"])
def test_every_kind_of_text_chunk_is_read(tmp_path: Path, text: str, zipped: bool) -> None:
    chunks = PngInfo()
    chunks.add_text("parameters", text, zip=zipped)
    _picture().save(tmp_path / "x.png", pnginfo=chunks)
    assert read_settings(tmp_path / "x.png") == {"prompt": text}


@pytest.mark.parametrize("settings", [{"x": (1, 2)}, {"x": float("nan")}, {"x": {1: 2}}, {"x": b""}])
def test_settings_that_would_not_come_back_are_refused(tmp_path: Path, settings: dict) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_image(tmp_path / "x.png", _picture(), settings)
    assert os.listdir(tmp_path) == []


def test_pictures_are_turned_upright(tmp_path: Path) -> None:
    image = _picture(8, 16)
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "x.png", exif=exif)
    upright = read_image(tmp_path / "x.png")
    assert upright.size == (16, 8)
    assert upright.tobytes() == image.transpose(Image.Transpose.ROTATE_270).tobytes()


def test_a_folder_appears_whole_with_a_true_manifest(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "run"
    with atomic_folder(target) as folder:
        write_text(folder / "a.txt", "a")
        (folder / "sub").mkdir()
        (folder / "sub" / "b.bin").write_bytes(b"b" * 1000)
        assert not target.exists()
    assert verify_folder(target) == {
        "a.txt": hashlib.sha256(b"a").hexdigest(),
        "sub/b.bin": hashlib.sha256(b"b" * 1000).hexdigest(),
    }
    assert os.listdir(tmp_path / "deep") == ["run"]


def test_a_failed_folder_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> None:
        with atomic_folder(tmp_path / "run") as folder:
            write_text(folder / "a.txt", "a")
            raise KeyError("caller")

    with pytest.raises(KeyError, match="caller"):
        fail()
    assert os.listdir(tmp_path) == []


def test_an_existing_folder_is_replaced_only_when_told(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "run") as folder:
        write_text(folder / "old", "old")
    with pytest.raises(FileExistsError, match="give another name"), atomic_folder(tmp_path / "run"):
        pass
    with atomic_folder(tmp_path / "run", replace=True) as folder:
        write_text(folder / "new", "new")
        assert verify_folder(tmp_path / "run").keys() == {"old"}
    assert verify_folder(tmp_path / "run").keys() == {"new"}
    assert os.listdir(tmp_path) == ["run"]


def test_an_empty_folder_counts_as_none(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with atomic_folder(tmp_path / "run") as folder:
        write_text(folder / "a", "a")
    assert verify_folder(tmp_path / "run").keys() == {"a"}


def test_a_replacement_without_exchange_is_as_good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mezzotint.files.folders._exchange", lambda one, other: False)
    for name in ("old", "new"):
        with atomic_folder(tmp_path / "run", replace=True) as folder:
            write_text(folder / name, name)
    assert verify_folder(tmp_path / "run").keys() == {"new"}
    assert os.listdir(tmp_path) == ["run"]


def test_a_link_in_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="is a link"), atomic_folder(tmp_path / "run") as folder:
        (folder / "a").symlink_to("/etc/hostname")
    assert os.listdir(tmp_path) == []


def _run(tmp_path: Path) -> Path:
    with atomic_folder(tmp_path / "run") as folder:
        write_text(folder / "a", "aaaa")
        write_text(folder / "b", "bbbb")
    return tmp_path / "run"


DAMAGES = {
    "incomplete": lambda run: (run / MANIFEST).unlink(),
    "cannot be opened": lambda run: (run / "a").unlink(),
    "another SHA-256": lambda run: (run / "a").write_text("aaab"),
    "its manifest says 4": lambda run: (run / "a").write_text("aaa"),
    "does not list": lambda run: (run / "c").write_text(""),
    "is a link": lambda run: ((run / "a").unlink(), (run / "a").symlink_to("b")),
    "is not a manifest": lambda run: (run / MANIFEST).write_text("[]"),
    "not valid JSON": lambda run: (run / MANIFEST).write_text('{"format": 1, "files": {'),
    "not a plain name": lambda run: (run / MANIFEST).write_text(
        json.dumps({"format": 1, "files": {"../run/a": {"bytes": 4, "sha256": hashlib.sha256(b"aaaa").hexdigest()}}})
    ),
    "must give bytes": lambda run: (run / MANIFEST).write_text('{"format": 1, "files": {"a": {"bytes": true}}}'),
}


@pytest.mark.parametrize("match", DAMAGES)
def test_a_damaged_folder_is_noticed(tmp_path: Path, match: str) -> None:
    run = _run(tmp_path)
    verify_folder(run)
    DAMAGES[match](run)
    with pytest.raises(FileError, match=match):
        verify_folder(run)


def test_two_writers_do_not_take_each_others_folder(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "run", replace=True) as one:
        write_text(one / "a", "one")
        os.utime(one, (0, 0))
        with atomic_folder(tmp_path / "run", replace=True) as two:
            write_text(two / "a", "two")
        assert (one / "a").read_text() == "one", "a folder that is being filled is locked, however old it looks"
    assert (tmp_path / "run" / "a").read_text() == "one"


def test_what_a_killed_writer_left_is_swept_by_the_next(tmp_path: Path) -> None:
    program = (
        "import os, sys, signal\nfrom mezzotint.files import atomic_folder\n"
        "with atomic_folder(sys.argv[1]) as folder:\n    (folder / 'a').write_text('a')\n"
        "    os.utime(folder, (0, 0))\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = subprocess.run([sys.executable, "-c", program, tmp_path / "run"], check=False)
    assert killed.returncode == -9
    assert len(os.listdir(tmp_path)) == 1
    assert not (tmp_path / "run").exists()
    with atomic_folder(tmp_path / "run") as folder:
        write_text(folder / "b", "b")
    assert os.listdir(tmp_path) == ["run"]


def test_a_free_folder_is_absent_or_empty(tmp_path):
    assert free_folder(tmp_path / "new") == tmp_path / "new"
    assert free_folder(tmp_path) == tmp_path
    (tmp_path / "file").write_text("x")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for taken in (tmp_path, tmp_path / "file", tmp_path / "dangling"):
        with pytest.raises(FileExistsError, match="already exists"):
            free_folder(taken)
    assert not (tmp_path / "new").exists()
