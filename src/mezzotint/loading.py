"""From a name to a diffusers pipeline: an embedded checkpoint, a folder on disk, or a hub id.

Whatever is loaded is a stock diffusers pipeline from safetensors. A folder is checked before any library reads it:
sound headers, no links that leave it, no code, and no component from a library that diffusers would import on its word.
Importing this module does not import torch.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import mezzotint
from mezzotint.files import FileError, check_safetensors, read_json
from mezzotint.files.foreign import open_foreign

if TYPE_CHECKING:
    import torch

Pipeline: TypeAlias = Any
"""Any diffusers pipeline, such as ``StableDiffusionPipeline`` or ``DiTPipeline``."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
_LIBRARIES = ("diffusers", "transformers")
_INDEX = "model_index.json"
MEASURED = "metrics.json"
_ADAPTER = "pytorch_lora_weights.safetensors"
_ABOUT = {"manifest.json", MEASURED}
"""What is said about a model is no part of what it is: a new card leaves its hash alone."""
COMPONENT = "mezzotint.json"
"""Beside a component that a method wrote in its own form, this file names the method."""


def load(
    name_or_path: str | Path, *, device: str | torch.device = "cpu", dtype: torch.dtype | str = "float32"
) -> Pipeline:
    """Load a pipeline.

    Args:
        name_or_path: an embedded checkpoint such as ``"scenes"``, a folder in diffusers layout, or a hub id
            ``"owner/name"``. Only a hub id touches the network. A LoRA that is made for an embedded checkpoint, such as
            ``"scenes-splam"``, is loaded with it, fused.
        device: where the pipeline goes.
        dtype: what its weights are converted to, such as ``torch.bfloat16`` or ``"bfloat16"``.

    Returns:
        The diffusers pipeline that the checkpoint names, in evaluation mode.

    Raises:
        FileError: the folder is no sound pipeline; nothing of it was loaded.
        ValueError: there is neither an embedded checkpoint nor a folder of this name, or no such dtype.
    """
    precision = _dtype(dtype)
    folder = find(name_or_path) or _fetch(str(name_or_path))
    if (folder / _ADAPTER).is_file():
        return _adapted(folder, precision).to(device)
    if not (folder / _INDEX).is_file():
        raise FileError(folder, f"is no pipeline: it has no {_INDEX}")
    check_model(folder)
    with _quiet():
        from diffusers import DiffusionPipeline

        ready = {path.parent.name: _component(path, precision) for path in sorted(folder.glob(f"*/{COMPONENT}"))}
        settings = {"dtype": precision, "use_safetensors": True, "local_files_only": True}
        pipe = DiffusionPipeline.from_pretrained(folder, **settings, **ready)
    return pipe.to(device)


def find(name_or_path: str | Path) -> Path | None:
    """The folder that a name means; None when it is a hub id.

    Raises:
        ValueError: it means nothing.
    """
    text = str(name_or_path)
    if text in embedded():
        return zoo_path(text)
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        return path
    if path.is_file():
        raise FileError(path, "is a file; a pipeline is a folder in diffusers layout: convert it with diffusers first")
    if isinstance(name_or_path, str) and _HUB_ID.fullmatch(text):
        return None
    near = difflib.get_close_matches(text, embedded(), n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(
        f"unknown model {text!r}{hint} (embedded: {', '.join(embedded()) or 'none'}; otherwise give a folder in "
        "diffusers layout, or a hub id owner/name)"
    )


def embedded() -> tuple[str, ...]:
    """Names of the checkpoints that ship with the package, sorted."""
    weights = _weights()
    return tuple(sorted(path.name for path in weights.iterdir() if path.is_dir())) if weights.is_dir() else ()


def zoo_path(name: str) -> Path:
    """The folder of an embedded checkpoint.

    Raises:
        ValueError: there is none of this name.
    """
    if name not in embedded():
        raise ValueError(f"unknown checkpoint {name!r}; embedded: {', '.join(embedded()) or 'none'}")
    return _weights() / name


def check_model(folder: str | Path) -> None:
    """Check a model or pipeline folder before a library reads it.

    Raises:
        FileError: a link leaves the folder, it holds code, a safetensors header or a configuration is unsound, or a
            component comes from a library other than diffusers and transformers.
    """
    folder = Path(folder)
    root = _repository(folder).resolve()
    for path in sorted(folder.rglob("*")):
        if not path.resolve().is_relative_to(root):
            raise FileError(path, "is a link that leaves the model's folder")
        if path.suffix == ".py":
            raise FileError(path, "is code; a model's folder holds weights and configurations only")
        if path.suffix == ".safetensors":
            check_safetensors(path)
        elif path.suffix == ".json" and path.name.endswith(("config.json", "index.json")):
            _check_config(path)


def model_hash(folder: str | Path) -> str:
    """Name the content of a model folder: 16 hexadecimal digits of a SHA-256 over its weights and configurations.

    A LoRA that names its embedded base changes with that base.

    Raises:
        FileError: a file cannot be read.
    """
    digest = hashlib.sha256()
    for path in sorted(Path(folder).rglob("*")):
        if path.suffix in {".safetensors", ".json", ".txt"} and path.is_file() and path.name not in _ABOUT:
            with open_foreign(path, max_bytes=2**40) as file:
                content = hashlib.file_digest(file, "sha256").digest()
            digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + content)
    if (base := _base(Path(folder))) is not None:
        digest.update(model_hash(zoo_path(base)).encode())
    return digest.hexdigest()[:16]


def recommended(pipe: Any, setting: str) -> Any:
    """What the model's makers found best for a setting on validation data, such as "guidance_scale"; None if unsaid.

    It is read from `metrics.json` beside the weights, under "recommended".

    Raises:
        FileError: that file is there and cannot be read.
    """
    folder = getattr(getattr(pipe, "config", None), "_name_or_path", None)
    path = Path(str(folder)) / MEASURED
    if not folder or not path.is_file():
        return None
    data = read_json(path)
    found = data.get("recommended") if isinstance(data, dict) else None
    return found.get(setting) if isinstance(found, dict) else None


def _fetch(hub_id: str) -> Path:
    """Download a pipeline's safetensors into diffusers' own cache, so that they are checked as any folder is."""
    from diffusers import DiffusionPipeline

    return Path(DiffusionPipeline.download(hub_id, use_safetensors=True))


def _weights() -> Path:
    return Path(mezzotint.__file__).parent / "zoo" / "weights"


def _repository(folder: Path) -> Path:
    """The folder that links may point into: the hub's cache keeps a snapshot's files beside it, under blobs."""
    parents = folder.absolute().parents
    if len(parents) > 1 and parents[0].name == "snapshots" and parents[1].name.startswith("models--"):
        return parents[1]
    return folder


def _check_config(path: Path) -> None:
    config = read_json(path)
    if not isinstance(config, dict):
        raise FileError(path, "must be a JSON object")
    if "auto_map" in config:
        raise FileError(path, "names code of its own (auto_map); only classes of diffusers and transformers are loaded")
    if path.name == _INDEX:
        for name, value in config.items():
            _check_component(path, name, value)


def _check_component(path: Path, name: str, value: Any) -> None:
    """An entry of a pipeline's index: diffusers imports the library it names, so only known ones may stand there."""
    if name == "_class_name" and not isinstance(value, str):
        raise FileError(path, "names a pipeline class from a file; only classes of diffusers are loaded")
    if name.startswith("_") or not isinstance(value, list):
        return
    library = value[0] if len(value) == 2 else ""
    if library is None or library in _LIBRARIES:
        return
    import diffusers

    if not isinstance(library, str) or library.startswith("_") or not hasattr(diffusers.pipelines, library):
        raise FileError(path, f"takes {name!r} from {library!r}; only diffusers and transformers are allowed")


def _component(path: Path, dtype: torch.dtype) -> Any:
    """A component in a method's own form: the module `saving` of that method reads it."""
    described = read_json(path)
    name = described.get("method") if isinstance(described, dict) else None
    # Methods stand above this layer: which of them there are is known only by looking.
    methods = importlib.import_module("mezzotint.methods")
    if not isinstance(name, str) or name not in methods.names():
        raise FileError(path, f"needs the method {str(name)[:40]!r}, which is not installed")
    reader = importlib.import_module(f"{methods.door(name).__name__}.saving")
    return reader.read_component(path.parent, dtype=dtype)


def _adapted(folder: Path, dtype: torch.dtype) -> Pipeline:
    """A LoRA fused into the embedded pipeline that it names as its base, with the scheduler that lies beside it."""
    if (base := _base(folder)) is None:
        raise FileError(folder, "is a LoRA: load its base model, then call pipe.load_lora_weights with this folder")
    check_model(folder)
    pipe = load(base, dtype=dtype)
    with _quiet():
        pipe.load_lora_weights(folder, weight_name=_ADAPTER, local_files_only=True)
        pipe.fuse_lora()
        pipe.unload_lora_weights()
        if (path := folder / "scheduler" / "scheduler_config.json").is_file():
            pipe.scheduler = _scheduler(path)
    pipe.register_to_config(_name_or_path=str(folder))
    return pipe


def _base(folder: Path) -> str | None:
    """The embedded checkpoint that a folder names as the base of its LoRA."""
    if not ((folder / _ADAPTER).is_file() and (folder / MEASURED).is_file()):
        return None
    about = read_json(folder / MEASURED)
    base = about.get("base") if isinstance(about, dict) else None
    known = isinstance(base, str) and base in embedded() and not (_weights() / base / _ADAPTER).exists()
    return base if known else None


def _scheduler(path: Path) -> Any:
    import diffusers

    name = str(read_json(path).get("_class_name"))[:60]
    kind = getattr(diffusers.schedulers, name, None)
    if not (isinstance(kind, type) and issubclass(kind, diffusers.SchedulerMixin)):
        raise FileError(path, f"names {name!r}, which is no scheduler of diffusers")
    return kind.from_pretrained(path.parent, local_files_only=True)  # type: ignore[attr-defined]


def _dtype(dtype: torch.dtype | str) -> torch.dtype:
    import torch

    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ValueError(f"dtype must be float32, bfloat16, float16 or float64, got {dtype!r}")
    return found


@contextmanager
def _quiet() -> Iterator[None]:
    """No bar and no advice for a load of a second (errors still raise); the libraries' settings are put back."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    libraries = (diffusers_logging, transformers_logging)
    before = [(library, library.is_progress_bar_enabled(), library.get_verbosity()) for library in libraries]
    for library in libraries:
        library.disable_progress_bar()
        library.set_verbosity_error()
    try:
        yield
    finally:
        for library, bar, verbosity in before:
            library.set_verbosity(verbosity)
            if bar:
                library.enable_progress_bar()
