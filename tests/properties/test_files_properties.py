"""Properties of the files: any value comes back, and any bytes are read or refused with the typed error."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image

from mezzotint.files import (
    FileError,
    atomic_folder,
    format_parameters,
    parse_json,
    parse_parameters,
    read_image,
    read_json,
    read_safetensors,
    read_settings,
    safetensors_metadata,
    verify_folder,
    write_bytes,
    write_image,
    write_json,
    write_safetensors,
)

WORDS = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats(allow_nan=False, allow_infinity=False)
    | WORDS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(WORDS, inner, max_size=4),
    max_leaves=12,
)
DTYPES = st.sampled_from(
    [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool]
)
SHAPES = st.lists(st.integers(0, 4), max_size=3)


def _folder() -> Path:
    return Path(tempfile.mkdtemp())


def _bytes(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


@given(VALUES)
def test_json_comes_back(value: object) -> None:
    path = _folder() / "x.json"
    write_json(path, value)
    assert read_json(path) == value


@given(st.binary(max_size=200) | WORDS.map(str.encode))
def test_any_bytes_are_json_or_refused(content: bytes) -> None:
    try:
        value = parse_json(content, "x")
    except FileError:
        return
    assert value == json.loads(content)


@given(st.dictionaries(WORDS, VALUES, max_size=6), st.binary(min_size=12, max_size=12))
def test_settings_come_back_from_a_picture(settings: dict, pixels: bytes) -> None:
    path = _folder() / "x.png"
    image = Image.frombytes("RGB", (2, 2), pixels)
    write_image(path, image, settings)
    assert read_settings(path) == settings
    assert read_image(path).tobytes() == pixels


LINES = (
    st.text(st.characters(categories=["L", "N", "P", "S", "Zs"]), min_size=1, max_size=60).map(str.strip).filter(bool)
)


@given(
    LINES,
    LINES | st.none(),
    st.integers(0, 2**63),
    st.integers(1, 999),
    st.floats(0.125, 99).map(lambda x: round(x, 3)),
    LINES,
)
def test_the_parameters_of_other_tools_come_back(
    prompt: str, negative: str | None, seed: int, steps: int, guidance: float, model: str
) -> None:
    settings = {"prompt": prompt, "seed": seed, "steps": steps, "guidance": guidance, "model": model}
    settings |= {"width": 64, "height": 32} | ({"negative_prompt": negative} if negative else {})
    assume(not model.replace(".", "").replace("-", "").isnumeric())
    assert parse_parameters(format_parameters(settings)) == settings


@given(st.text(max_size=400))
def test_any_parameters_text_is_understood_somehow(text: str) -> None:
    found = parse_parameters(text)
    assert isinstance(found["prompt"], str)
    assert found["prompt"] in text.strip()


TENSOR_NAMES = WORDS.filter(lambda name: name not in {"", "__metadata__"})


@given(
    st.dictionaries(TENSOR_NAMES, st.tuples(DTYPES, SHAPES), max_size=5),
    st.dictionaries(WORDS, WORDS, max_size=3),
    st.randoms(use_true_random=False),
)
def test_tensors_come_back_and_their_order_does_not_matter(kinds: dict, metadata: dict, shuffle) -> None:
    tensors = {name: (torch.arange(100)[: torch.Size(shape).numel()] * 3 - 7).reshape(shape).to(dtype)
               for name, (dtype, shape) in kinds.items()}  # fmt: skip
    folder = _folder()
    write_safetensors(folder / "1", tensors, metadata)
    names = list(tensors)
    shuffle.shuffle(names)
    write_safetensors(folder / "2", {name: tensors[name] for name in names}, metadata)
    assert (folder / "1").read_bytes() == (folder / "2").read_bytes()
    again = read_safetensors(folder / "1")
    assert {name: (t.dtype, t.shape, _bytes(t)) for name, t in again.items()} == {
        name: (t.dtype, t.shape, _bytes(t)) for name, t in tensors.items()
    }
    assert safetensors_metadata(folder / "1") == metadata


GOOD = _folder() / "good.safetensors"
write_safetensors(GOOD, {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(3, dtype=torch.int64)}, {"k": "v"})
PICTURE = _folder() / "good.png"
write_image(PICTURE, Image.linear_gradient("L").resize((16, 16)).convert("RGB"), {"prompt": "x", "seed": 1})


@given(st.data())
def test_a_damaged_header_is_refused_or_harmless(data: st.DataObject) -> None:
    content = bytearray(GOOD.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = _folder() / "x"
    path.write_bytes(content[: data.draw(st.sampled_from([len(content), len(content) - 1, len(content) // 2, 9]))])
    try:
        tensors = read_safetensors(path)
    except FileError:
        return
    assert sum(tensor.nbytes for tensor in tensors.values()) == 48, "what was accepted covers the data exactly once"


@given(st.data())
def test_a_damaged_picture_is_refused_or_has_its_size(data: st.DataObject) -> None:
    content = bytearray(PICTURE.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = _folder() / "x"
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    for read in (lambda: read_image(path, max_pixels=1000).size, lambda: len(read_settings(path)) + 1):
        try:
            assert read()
        except FileError:
            continue


NAMES = st.lists(st.from_regex(r"[a-zA-Z0-9_ é-]{1,12}", fullmatch=True), min_size=1, max_size=3).map("/".join)


@given(st.dictionaries(NAMES, st.binary(max_size=50), min_size=1, max_size=4), st.data())
def test_a_folder_verifies_until_any_bit_flips(files: dict, data: st.DataObject) -> None:
    assume(not any(other.startswith(f"{name}/") for name in files for other in files))
    target = _folder() / "run"
    with atomic_folder(target) as folder:
        for name, content in files.items():
            write_bytes(folder / name, content)
    assert verify_folder(target).keys() == files.keys()
    name = data.draw(st.sampled_from(sorted(files)))
    content = bytearray(files[name] or b"\1")
    content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    (target / name).write_bytes(content)
    with pytest.raises(FileError):
        verify_folder(target)
