"""How an image was made, as text chunks of its PNG.

Two forms stand side by side: the complete settings as JSON under the key ``mezzotint``, and the ``parameters`` text
that other image tools read (prompt, negative prompt, one line of named values). The second is lossy, and for them only.
Chunks: PNG specification, section 11.3.3 (tEXt, zTXt, iTXt).
"""

from __future__ import annotations

import json
import re
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from mezzotint.files.atomic import dump_json
from mezzotint.files.foreign import MEBIBYTE, FileError, parse_json

KEY, PARAMETERS = "mezzotint", "parameters"
SIGNATURE = b"\x89PNG\r\n\x1a\n"
_TEXT_BYTES = MEBIBYTE
_MAX_CHUNKS = 2**17

# Our key -> the name that other tools use, in their order; Size stands for width and height.
_NAMES = {
    "steps": "Steps",
    "sampler": "Sampler",
    "guidance": "CFG scale",
    "seed": "Seed",
    "size": "Size",
    "model_hash": "Model hash",
    "model": "Model",
    "methods": "Methods",
    "version": "Version",
}
_NEGATIVE = "Negative prompt: "
_PAIR = re.compile(r'([A-Z][\w \-/]{0,40}?): *("(?:\\.|[^"\\])*"|[^,]*)(?:,|$)')


def encode_settings(settings: dict[str, Any]) -> dict[str, str]:
    """The text chunks of an image.

    Args:
        settings: what JSON can hold, with string keys; see :func:`format_parameters` for the keys that other tools see.

    Raises:
        ValueError: JSON cannot hold them, or they are longer than a reader accepts.
    """
    text = dump_json(settings, ensure_ascii=True, sort_keys=True, separators=(",", ":"))
    if json.loads(text) != settings:
        raise ValueError("settings must come back from JSON unchanged: use string keys, and lists instead of tuples")
    parameters = format_parameters(settings)
    if max(len(text), len(parameters.encode())) > _TEXT_BYTES:
        raise ValueError(f"settings must not be longer than {_TEXT_BYTES:,} characters, got {len(text):,}")
    return {PARAMETERS: parameters, KEY: text}


def format_parameters(settings: dict[str, Any]) -> str:
    """Write settings in the form that other image tools read.

    Used keys: prompt, negative_prompt, steps, sampler, guidance, seed, width and height, model_hash, model, methods (a
    list of names), version. Others stay in the JSON alone.
    """
    values = {name: settings[name] for name in _NAMES if settings.get(name) is not None}
    if "width" in settings and "height" in settings:
        values["size"] = f"{settings['width']}x{settings['height']}"
    if isinstance(settings.get("methods"), list):
        values["methods"] = " + ".join(map(str, settings["methods"]))
    lines = [str(settings.get("prompt", ""))]
    if settings.get("negative_prompt"):
        lines.append(f"{_NEGATIVE}{settings['negative_prompt']}")
    lines.append(", ".join(f"{title}: {_quoted(values[name])}" for name, title in _NAMES.items() if name in values))
    return "\n".join(lines).replace("\0", " ").strip()


def parse_parameters(text: str) -> dict[str, Any]:
    """Read the ``parameters`` text of any tool, as far as it can be understood.

    Returns:
        ``prompt``, ``negative_prompt`` where there is one, our names for known values, others under their own name.
    """
    *lines, last = text.strip().split("\n")
    pairs = _PAIR.findall(last)
    if not any(name in _NAMES.values() for name, _ in pairs):
        lines, pairs = [*lines, last], []
    ours = {title: name for name, title in _NAMES.items()}
    found: dict[str, Any] = {ours.get(name, name): _number(_unquoted(value)) for name, value in pairs}
    if match := re.fullmatch(r"(\d{1,9})x(\d{1,9})", str(found.get("size", ""))):
        del found["size"]
        found |= {"width": int(match[1]), "height": int(match[2])}
    prompt, _, negative = "\n".join(["", *lines]).partition(f"\n{_NEGATIVE}")
    return {"prompt": prompt[1:], **({"negative_prompt": negative} if negative else {}), **found}


def decode_settings(file: BinaryIO, path: str | Path) -> dict[str, Any]:
    """Read the settings from an open PNG.

    Raises:
        FileError: it is no PNG, or damaged, or carries no settings.
    """
    texts: dict[str, str] = {}
    for kind, content in _text_chunks(file, path):
        key, text = _text(kind, content, path)
        texts.setdefault(key, text)
    if KEY in texts:
        settings = parse_json(texts[KEY].encode(errors="replace"), path)
        if not isinstance(settings, dict):
            raise FileError(path, "carries settings that are not a JSON object")
        return settings
    if PARAMETERS in texts:
        return parse_parameters(texts[PARAMETERS])
    raise FileError(path, f"carries no settings: it has neither a {KEY!r} nor a {PARAMETERS!r} text chunk")


def _quoted(value: Any) -> str:
    text = str(value)
    return json.dumps(text) if set(text) & set(',:"\n') or text != text.strip() else text


def _unquoted(text: str) -> str:
    if not (len(text) > 1 and text.startswith('"') and text.endswith('"')):
        return text.strip()
    try:
        return str(json.loads(text))
    except ValueError:
        return text


def _number(text: str) -> int | float | str:
    if re.fullmatch(r"-?\d{1,20}", text):
        return int(text)
    return float(text) if re.fullmatch(r"-?\d{1,15}\.\d{1,15}", text) else text


def _text_chunks(file: BinaryIO, path: str | Path) -> Iterator[tuple[bytes, bytes]]:
    """Kind and content of the text chunks; the others are stepped over."""
    if file.read(8) != SIGNATURE:
        raise FileError(path, "is not a PNG")
    for _ in range(_MAX_CHUNKS):
        head = file.read(8)
        if len(head) < 8:
            raise FileError(path, "is truncated: it ends before its last chunk")
        length, kind = struct.unpack(">I4s", head)
        if kind == b"IEND":
            return
        if kind not in {b"tEXt", b"zTXt", b"iTXt"}:
            file.seek(length + 4, 1)
            continue
        if length > _TEXT_BYTES:
            raise FileError(path, f"has a text chunk of {length:,} bytes, at most {_TEXT_BYTES:,} are accepted")
        content, check = file.read(length), file.read(4)
        if check != struct.pack(">I", zlib.crc32(kind + content)):
            raise FileError(path, "has a damaged text chunk: its checksum is wrong")
        yield kind, content
    raise FileError(path, f"has more than the accepted {_MAX_CHUNKS:,} chunks")


def _text(kind: bytes, content: bytes, path: str | Path) -> tuple[str, str]:
    """Key and text of one chunk."""
    key, _, rest = content.partition(b"\0")
    encoding = "utf-8" if kind == b"iTXt" else "latin-1"
    packed = kind == b"zTXt"
    if packed:
        rest = rest[1:]
    elif kind == b"iTXt":
        packed, rest = rest[:1] == b"\1", rest[2:].split(b"\0", 2)[-1]
    if packed:
        rest = _inflate(rest, path)
    return key.decode("latin-1"), rest.decode(encoding, errors="replace")


def _inflate(packed: bytes, path: str | Path) -> bytes:
    """Unpack at most as much as a text chunk may hold, however small it was packed."""
    try:
        content = zlib.decompressobj().decompress(packed, _TEXT_BYTES + 1)
    except zlib.error as error:
        raise FileError(path, f"has a damaged text chunk: {error}") from error
    if len(content) > _TEXT_BYTES:
        raise FileError(path, f"has a text chunk that unpacks to more than {_TEXT_BYTES:,} bytes")
    return content
