"""Pictures: read with their size known before they are decoded, written as PNG.

Equal pictures with equal settings give equal bytes.
"""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mezzotint.files.atomic import write_bytes
from mezzotint.files.foreign import MEBIBYTE, FileError, guess, open_foreign
from mezzotint.files.settings import decode_settings, encode_settings

if TYPE_CHECKING:
    from PIL import Image

MAX_PIXELS = 2**26
_IMAGE_BYTES = 256 * MEBIBYTE
_FORMATS = ("PNG", "JPEG", "WEBP")
_MODES = ("1", "L", "LA", "I;16", "P", "RGB", "RGBA")


def read_image(path: str | Path, *, max_pixels: int = MAX_PIXELS, mode: str | None = "RGB") -> Image.Image:
    """Read a PNG, JPEG or WebP picture, upright as its camera meant it.

    Args:
        path: the file; of an animation the first picture is read.
        max_pixels: largest width x height that is accepted, at most 2^27.
        mode: pillow's colour mode to convert to (``"RGB"`` drops transparency); None keeps the file's own.

    Raises:
        FileError: it is no such picture, has too many pixels, or is damaged.
    """
    with open_foreign(path, max_bytes=_IMAGE_BYTES) as file:
        content = file.read(64)
        file.seek(0)
        return _checked(file, content, path, max_pixels=max_pixels, mode=mode)


def parse_image(
    content: bytes, path: str | Path, *, max_pixels: int = MAX_PIXELS, mode: str | None = "RGB"
) -> Image.Image:
    """Decode a PNG, JPEG or WebP picture that is in memory already, such as a member of an archive.

    Args:
        content: the bytes.
        path: where they come from, for the message.
        max_pixels: as :func:`read_image`.
        mode: as :func:`read_image`.

    Raises:
        FileError: as :func:`read_image`.
    """
    return _checked(io.BytesIO(content), content[:64], path, max_pixels=max_pixels, mode=mode)


def write_image(path: str | Path, image: Image.Image, settings: dict[str, Any] | None = None) -> None:
    """Write a PNG atomically; equal pixels and settings give equal bytes.

    Args:
        path: the target, ending in ``.png``.
        image: the picture; what it carries beside its pixels (profiles, comments) is left out.
        settings: how it was made; goes into text chunks, see ``mezzotint.files.settings``.

    Raises:
        ValueError: the name does not end in ``.png``, PNG cannot hold this mode, or JSON cannot hold the settings.
        OSError: it could not be written; what stood there is untouched.
    """
    if Path(path).suffix.lower() != ".png":
        raise ValueError(f"pictures are written as PNG, so the name must end in .png, got {str(path)!r}")
    if image.mode not in _MODES:
        raise ValueError(f"a PNG holds the modes {', '.join(_MODES)}, got {image.mode}: convert the picture first")
    from PIL.PngImagePlugin import PngInfo

    chunks = PngInfo()
    for key, text in encode_settings(settings).items() if settings is not None else ():
        chunks.add_text(key, text)
    bare = image.copy()
    bare.info = {key: value for key, value in image.info.items() if key == "transparency"}
    buffer = io.BytesIO()
    bare.save(buffer, format="PNG", pnginfo=chunks, compress_level=6)
    write_bytes(path, buffer.getvalue())


def read_settings(path: str | Path) -> dict[str, Any]:
    """Read how a PNG was made: the complete settings, or what another tool's ``parameters`` text says.

    Raises:
        FileError: it is no PNG, is damaged, or carries no settings.
    """
    with open_foreign(path, max_bytes=_IMAGE_BYTES) as file:
        return decode_settings(file, path)


def _checked(file: Any, begin: bytes, path: str | Path, *, max_pixels: int, mode: str | None) -> Image.Image:
    try:
        return _decode(file, max_pixels, mode)
    except (OSError, SyntaxError, ValueError, TypeError, LookupError, EOFError, struct.error, zlib.error) as error:
        reason = f"is {wrong}" if (wrong := guess(begin)) else f"is damaged or no picture: {error}"
        raise FileError(path, f"{reason}; {', '.join(_FORMATS)} are read") from error


def _decode(file: Any, max_pixels: int, mode: str | None) -> Image.Image:
    from PIL import Image, ImageOps

    with warnings.catch_warnings():
        # Pillow warns at a limit of its own; ours decides.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        try:
            image = Image.open(file, formats=_FORMATS)
        except Image.DecompressionBombError as error:
            raise ValueError(f"more than the accepted {max_pixels:,} pixels") from error
    width, height = image.size
    if width * height > max_pixels:
        raise ValueError(f"{width} x {height} is more than the accepted {max_pixels:,} pixels")
    # Checksums first: decoding ignores those of a PNG. It leaves the picture unusable, so it is opened again.
    image.verify()
    file.seek(0)
    image = Image.open(file, formats=_FORMATS)
    image.load()
    upright = ImageOps.exif_transpose(image)
    return upright.convert(mode) if mode is not None and upright.mode != mode else upright
