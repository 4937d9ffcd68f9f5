"""The only reader of foreign bytes and the only writer of files.

Reading: everything is bounded before it is decoded (file size, header size, pixel count, nesting), only plain files are
opened, and whatever is refused raises one typed error, :class:`FileError`, with the path, what was wrong and what is
allowed. Nothing is ever unpickled.

Writing: a file or a folder is complete or absent. Bytes go to a unique temporary name beside the target, are flushed
to the disk, and are renamed into place; a killed process or a full disk leaves what stood there before.

Importing this package imports neither torch nor pillow.
"""

from __future__ import annotations

from mezzotint.files.atomic import replacing, write_bytes, write_json, write_text
from mezzotint.files.folders import MANIFEST, atomic_folder, free_folder, verify_folder
from mezzotint.files.foreign import FileError, open_foreign, parse_json, read_bytes, read_json
from mezzotint.files.images import parse_image, read_image, read_settings, write_image
from mezzotint.files.settings import format_parameters, parse_parameters
from mezzotint.files.shards import read_shard
from mezzotint.files.tensors import check_safetensors, read_safetensors, safetensors_metadata, write_safetensors

__all__ = [
    "MANIFEST",
    "FileError",
    "atomic_folder",
    "check_safetensors",
    "format_parameters",
    "free_folder",
    "open_foreign",
    "parse_image",
    "parse_json",
    "parse_parameters",
    "read_bytes",
    "read_image",
    "read_json",
    "read_safetensors",
    "read_settings",
    "read_shard",
    "replacing",
    "safetensors_metadata",
    "verify_folder",
    "write_bytes",
    "write_image",
    "write_json",
    "write_safetensors",
    "write_text",
]
