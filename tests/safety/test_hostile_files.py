"""A corpus of hostile files: each is refused with the typed error, in bounded time and memory.

Processor time and peak memory are measured in a child process that reads the whole corpus, as a user's process would:
without the type checks of the tests.
"""

from __future__ import annotations

import io
import json
import os
import pickle  # noqa: TID251 - the corpus needs real ones
import struct
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from mezzotint.files import FileError, read_image, read_json, read_safetensors, read_settings, safetensors_metadata

SECONDS = 1.0
MEMORY = 256 * 2**20


def _tensors(header: object, data: bytes = b"", announced: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if announced is None else announced) + text + data


def _entry(begin: int, end: int, shape: list, dtype: str = "F32") -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def _chunk(kind: bytes, content: bytes, check: int | None = None) -> bytes:
    check = zlib.crc32(kind + content) if check is None else check
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", check)


def _png(*chunks: bytes, width: int = 1, height: int = 1) -> bytes:
    head = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(chunks) + _chunk(b"IEND", b"")


def _picture(form: str) -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise((64, 64), 80).convert("RGB").save(buffer, form)
    return buffer.getvalue()


def _torch_file(legacy: bool) -> bytes:
    buffer = io.BytesIO()
    torch.save({"a": torch.ones(3)}, buffer, _use_new_zipfile_serialization=not legacy)
    return buffer.getvalue()


def _zip_bomb() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("data.pkl", bytes(2**26))
    return buffer.getvalue()


class Evil:
    """Unpickling it would leave a mark in the working folder."""

    def __reduce__(self) -> tuple:
        return (open, ("pwned", "w"))


IDAT = _chunk(b"IDAT", zlib.compress(bytes(4)))

TENSORS = {
    "empty": b"",
    "seven bytes": b"1234567",
    "pickle": pickle.dumps(Evil()),
    "old pickle": pickle.dumps(Evil(), protocol=0),
    "torch.save": _torch_file(legacy=False),
    "legacy torch.save": _torch_file(legacy=True),
    "zip bomb": _zip_bomb(),
    "gzip bomb": zlib.compress(bytes(2**24), wbits=31),
    "git-lfs pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
    "web page": b"<!DOCTYPE html><html>not found</html>",
    "header of 2^63 bytes": _tensors({}, announced=2**63),
    "header of 2^64-1 bytes": _tensors({}, announced=2**64 - 1),
    "header longer than the file": _tensors({}, announced=10**6),
    "header of 64 MiB": _tensors(b"{" + b" " * (64 * 2**20) + b"}"),
    "header is a list": _tensors([]),
    "header is no JSON": _tensors(b"{nonsense"),
    "header is no UTF-8": _tensors(b'{"\xff": 1}'),
    "header nests 100,000 deep": _tensors(b'{"a":' * 100_000 + b"1" + b"}" * 100_000),
    "one name twice": _tensors(b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":1}', b"1"),
    "30,000 tensors": _tensors({str(i): _entry(0, 0, [0]) for i in range(30_000)}),
    "overlapping ranges": _tensors({"a": _entry(0, 8, [2]), "b": _entry(4, 12, [2])}, bytes(12)),
    "the same range twice": _tensors({"a": _entry(0, 8, [2]), "b": _entry(0, 8, [2])}, bytes(8)),
    "a hole": _tensors({"a": _entry(0, 4, [1]), "b": _entry(8, 12, [1])}, bytes(12)),
    "a tail": _tensors({"a": _entry(0, 4, [1])}, bytes(400)),
    "truncated data": _tensors({"a": _entry(0, 400, [100])}, bytes(399)),
    "range beyond 2^64": _tensors({"a": _entry(0, 2**66, [2**64])}),
    "product overflows to 0": _tensors({"a": _entry(0, 0, [2**32, 2**32, 2**32])}),
    "negative shape": _tensors({"a": _entry(0, 4, [-1, -1])}, bytes(4)),
    "negative offsets": _tensors({"a": _entry(-4, 0, [1])}, bytes(4)),
    "reversed offsets": _tensors({"a": _entry(4, 0, [1])}, bytes(4)),
    "fractional shape": _tensors({"a": _entry(0, 4, [1.0])}, bytes(4)),
    "boolean shape": _tensors({"a": _entry(0, 4, [True])}, bytes(4)),
    "1,000 dimensions": _tensors({"a": _entry(0, 4, [1] * 1000)}, bytes(4)),
    "unknown type": _tensors({"a": _entry(0, 4, [1], "Q4_K")}, bytes(4)),
    "type is a list": _tensors({"a": {**_entry(0, 4, [1]), "dtype": ["F32"]}}, bytes(4)),
    "extra key": _tensors({"a": {**_entry(0, 4, [1]), "reduce": "os.system"}}, bytes(4)),
    "entry is a number": _tensors({"a": 1}),
    "metadata is a list": _tensors({"__metadata__": []}),
    "metadata is nested": _tensors({"__metadata__": {"a": {"b": "c"}}}),
}

JSON = {
    "empty": b"",
    "pickle": pickle.dumps(Evil()),
    "not a number": b"[NaN]",
    "infinity": b"-Infinity",
    "too large a float": b"[1e999]",
    "integer of 100,000 digits": b"9" * 100_000,
    "100,000 deep": b"[" * 100_000,
    "100,000 deep objects": b'{"a":' * 100_000,
    "one key twice": b'{"a": 1, "a": 2}',
    "two values": b"1 2",
    "UTF-16": '{"a": 1}'.encode("utf-16"),
    "byte order mark": b"\xef\xbb\xbf{}",
    "20 MiB": b"[" + b"0," * (10 * 2**20) + b"0]",
    "comment": b"{} // hello",
    "truncated": b'{"a": [1, 2',
}

IMAGES = {
    "empty": b"",
    "pickle": pickle.dumps(Evil()),
    "zip bomb": _zip_bomb(),
    "script": b"<svg onload=alert(1)>",
    "EPS, which would start an interpreter": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    "10^9 pixels": _png(IDAT, width=31_623, height=31_623),
    "2^62 pixels": _png(IDAT, width=2**31 - 1, height=2**31 - 1),
    "just too many pixels": _png(IDAT, width=8192, height=8193),
    "no pixels": _png(IDAT, width=0),
    "no data": _png(width=100, height=100),
    "data of another size": _png(IDAT, width=100, height=100),
    "broken zlib": _png(_chunk(b"IDAT", b"\x78\x9c" + b"\xff" * 50)),
    "wrong checksum": _png(_chunk(b"IDAT", zlib.compress(bytes(4)), check=1)),
    "chunk of 2^31 bytes": _png(struct.pack(">I", 2**31) + b"IDAT"),
    "text bomb": _png(_chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(2**28))), IDAT),
    "profile bomb": _png(_chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(2**28))), IDAT)[:-20],
    "signature only": b"\x89PNG\r\n\x1a\n",
    **{f"truncated {form}": _picture(form)[:1500] for form in ("PNG", "JPEG", "WEBP")},
    "TIFF": _picture("TIFF"),
    "GIF": _picture("GIF"),
}

SETTINGS = {
    "empty": b"",
    "JPEG": _picture("JPEG"),
    "plain PNG": _picture("PNG"),
    "signature only": b"\x89PNG\r\n\x1a\n",
    "text of 2 MiB": _png(_chunk(b"tEXt", b"mezzotint\0" + b"a" * 2**21)),
    "zTXt bomb": _png(_chunk(b"zTXt", b"mezzotint\0\0" + zlib.compress(bytes(2**28)))),
    "iTXt bomb": _png(_chunk(b"iTXt", b"mezzotint\0\1\0\0\0" + zlib.compress(bytes(2**28)))),
    "damaged zTXt": _png(_chunk(b"zTXt", b"mezzotint\0\0nonsense")),
    "wrong checksum": _png(_chunk(b"tEXt", b"mezzotint\0{}", check=1)),
    "settings are a list": _png(_chunk(b"tEXt", b"mezzotint\0[]")),
    "settings are no JSON": _png(_chunk(b"tEXt", b"mezzotint\0{")),
    "a million empty chunks": _png(*[_chunk(b"aaAa", b"")] * 10**6),
    "chunk beyond the end": _png()[:-12] + struct.pack(">I", 2**32 - 1) + b"IDAT",
}

READERS: dict[str, tuple[Callable, dict[str, bytes]]] = {
    "tensors": (read_safetensors, TENSORS),
    "metadata": (safetensors_metadata, TENSORS),
    "json": (read_json, JSON),
    "image": (read_image, IMAGES),
    "settings": (read_settings, SETTINGS),
}
CASES = [(reader, name) for reader, (_, corpus) in READERS.items() for name in corpus]


@pytest.mark.parametrize(("reader", "name"), CASES, ids=[": ".join(case) for case in CASES])
def test_a_hostile_file_is_refused(reader: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    read, corpus = READERS[reader]
    path = tmp_path / "file"
    path.write_bytes(corpus[name])
    with pytest.raises(FileError) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert len(str(caught.value).removeprefix(str(path))) < 400, "one readable line"
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("kind", ["missing", "folder", "pipe", "endless device", "dangling link", "loop", "no name"])
def test_what_is_no_file_is_refused(reader: str, kind: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "endless device":
        path = Path("/dev/zero")
    elif kind == "dangling link":
        path.symlink_to("nowhere")
    elif kind == "loop":
        path.symlink_to(path)
    elif kind == "no name":
        path = Path("a\0b")
    with pytest.raises(FileError):
        READERS[reader][0](path)


@pytest.mark.parametrize("reader", READERS)
def test_a_sparse_file_of_a_terabyte_is_refused(reader: str, tmp_path: Path) -> None:
    with (tmp_path / "file").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(FileError, match="at most"):
        READERS[reader][0](tmp_path / "file")


def test_the_largest_picture_that_is_accepted_is_read(tmp_path: Path) -> None:
    Image.new("L", (300, 200), 7).save(tmp_path / "x.png")
    assert read_image(tmp_path / "x.png", max_pixels=60_000).getpixel((299, 199)) == (7, 7, 7)
    with pytest.raises(FileError, match="more than the accepted 59,999"):
        read_image(tmp_path / "x.png", max_pixels=59_999)


MEASURE = """
import json, re, sys, time
from pathlib import Path
import safetensors.torch, PIL.PngImagePlugin, PIL.JpegImagePlugin, PIL.WebPImagePlugin
from mezzotint.files import *

readers = dict(tensors=read_safetensors, metadata=safetensors_metadata, json=read_json, image=read_image,
               settings=read_settings)
# Not getrusage: a child inherits its parent's maximum there.
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024
before, seconds = peak(), {}
for path in sorted(Path(sys.argv[1]).iterdir()):
    started = time.process_time()
    try:
        readers[path.suffix[1:]](path)
        sys.exit(f"{path} was read")
    except FileError:
        seconds[path.name] = time.process_time() - started
print(json.dumps([peak() - before, seconds]))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read as Linux tells it")
def test_time_and_memory_stay_bounded_over_the_whole_corpus(tmp_path: Path) -> None:
    for number, (reader, name) in enumerate(CASES):
        (tmp_path / f"{number}.{reader}").write_bytes(READERS[reader][1][name])
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, tmp_path], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    memory, seconds = json.loads(done.stdout)
    slow = {": ".join(CASES[int(name.split(".")[0])]): time for name, time in seconds.items() if time > SECONDS}
    assert slow == {}
    assert 0 < memory < MEMORY
