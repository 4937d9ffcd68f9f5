"""Quantised pipelines as folders: diffusers' layout, with the quantised network as packed integers and a sidecar.

    model_index.json                    the pipeline, as diffusers writes it
    transformer/config.json             the network, as diffusers writes it
    transformer/quantised.safetensors   every tensor once; weights as packed codes, scales and zero points
    transformer/mezzotint.json          method, source, executor, and for each layer bits, symmetry and group size
    vae/ scheduler/ ...                 as diffusers writes them

`mezzotint.load` reads such a folder. Nothing of it is trusted: layers must exist in the network that the configuration
describes, with the shapes that it gives them.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mezzotint.files import FileError, atomic_folder, read_json, read_safetensors, write_json, write_safetensors
from mezzotint.loading import COMPONENT, MEASURED, model_hash
from mezzotint.zoo.saving import load_as_float32

from .adapters import accept_adapters
from .executors import EXECUTORS
from .layers import check_adapters
from .linear import EXACT, QuantLinear, share_inputs
from .quantiser import LayerSpec, Precision
from .size import SizeReport, quantised_layers, size_report

__all__ = ["TENSORS", "read_component", "save_quantised", "write_component"]

TENSORS = "quantised.safetensors"
_FORMAT = 1
_WORTH_SHARING = 2**16
_INDEX = "model_index.json"


def save_quantised(
    pipe: Any, folder: str | Path, *, dtype: torch.dtype | None = None, replace: bool = False
) -> dict[str, SizeReport]:
    """Write a pipeline with quantised networks as a folder that `mezzotint.load` reads.

    Args:
        pipe: a diffusers pipeline, or a network alone.
        folder: to write; complete or absent.
        dtype: what everything that is not quantised is stored in, such as torch.float16; as it is when not given.
        replace: whether a folder that stands there may be replaced.

    Returns:
        Sizes of every quantised network.

    Raises:
        ValueError: nothing in it is quantised, or adapters are on it.
        OSError: it could not be written; what stood there is untouched.
    """
    components = {"": pipe} if isinstance(pipe, nn.Module) else dict(pipe.components)
    networks = {name: part for name, part in components.items() if isinstance(part, nn.Module) and _quantised(part)}
    if not networks:
        raise ValueError(
            f"nothing in this {type(pipe).__name__} is quantised: quantise it first, or use save_pretrained"
        )
    for network in networks.values():
        check_adapters(network, "unload it first, and load it again after `mezzotint.load`")
    source = _source(pipe)
    with atomic_folder(folder, replace=replace) as work:
        for name, network in networks.items():
            write_component(network, work / name, dtype=dtype, source=source)
        if not isinstance(pipe, nn.Module):
            _write_rest(pipe, work, {name: part for name, part in components.items() if name not in networks}, dtype)
    target = Path(folder)
    return {name: size_report(network, target / name) for name, network in networks.items()}


def write_component(network: Any, folder: Path, *, dtype: torch.dtype | None = None, source: str | None = None) -> None:
    """Write one quantised network into a folder.

    Args:
        network: a diffusers model with quantised layers.
        folder: is made if missing.
        dtype: see `save_quantised`.
        source: hash of the model that was quantised.
    """
    layers = quantised_layers(network)
    exact = {f"{name}.{part}" for name in layers for part in EXACT}
    tensors = {
        name: tensor.to(dtype) if dtype is not None and tensor.is_floating_point() and name not in exact else tensor
        for name, tensor in network.state_dict().items()
    }
    same = _repeated({name: tensor for name, tensor in tensors.items() if name.rpartition(".")[0] not in layers})
    folder.mkdir(parents=True, exist_ok=True)
    network.save_config(folder)
    _forget_paths(folder / "config.json")
    write_safetensors(folder / TENSORS, {name: tensor for name, tensor in tensors.items() if name not in same})
    described = {name: _describe(layer) for name, layer in layers.items()}
    sidecar = {"format": _FORMAT, "method": "q_dit", "class": type(network).__name__, "source": source}
    write_json(folder / COMPONENT, sidecar | {"same": same, "layers": described})


def read_component(folder: str | Path, *, dtype: torch.dtype = torch.float32) -> nn.Module:
    """Read one quantised network.

    Args:
        folder: what `write_component` wrote.
        dtype: of what is not quantised.

    Raises:
        FileError: it is not sound, or layers do not fit the network that the configuration describes.
    """
    folder = Path(folder)
    sidecar = _read_sidecar(folder / COMPONENT)
    network = _empty_network(folder, sidecar["class"])
    for name, entry in sidecar["layers"].items():
        _place(network, name, entry, folder / COMPONENT)
    tensors = read_safetensors(folder / TENSORS)
    for alias, name in sidecar["same"].items():
        if name not in tensors or alias in tensors:
            raise FileError(folder / COMPONENT, f"says that {alias[:80]!r} is as {str(name)[:80]!r}, which cannot be")
        tensors[alias] = tensors[name]
    _check_tensors(network, tensors, folder / TENSORS)
    network.load_state_dict(tensors, assign=True)
    _tie(network, sidecar["same"])
    share_inputs(network)
    accept_adapters()
    network.requires_grad_(False)
    return network.to(dtype).eval()


def _write_rest(pipe: Any, work: Path, components: Mapping[str, Any], dtype: torch.dtype | None) -> None:
    """Everything but the quantised networks, as diffusers writes it."""
    pipe.save_config(work)
    _forget_paths(work / _INDEX)
    for name, part in components.items():
        if hasattr(part, "save_pretrained"):
            stored: Any = copy.deepcopy(part).to(dtype) if dtype is not None and isinstance(part, nn.Module) else part
            stored.save_pretrained(work / name)
    load_as_float32(work)
    measured = Path(str(getattr(pipe.config, "_name_or_path", "") or "")) / MEASURED
    if measured.is_file() and isinstance(found := read_json(measured), dict) and "recommended" in found:
        write_json(work / MEASURED, {"recommended": found["recommended"]})


def _quantised(network: nn.Module) -> bool:
    return any(isinstance(module, QuantLinear) for module in network.modules())


def _source(pipe: Any) -> str | None:
    """Hash of the folder that the pipeline was loaded from."""
    name = getattr(getattr(pipe, "config", None), "_name_or_path", None)
    return model_hash(name) if name and Path(str(name)).is_dir() else None


def _forget_paths(path: Path) -> None:
    """Where a part was loaded from is a path of this machine."""
    config = read_json(path)
    config.pop("_name_or_path", None)
    write_json(path, config)


def _repeated(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Large tensors of equal content: name -> the first of that content (a DiT's blocks repeat their embedders)."""
    first: dict[tuple[Any, ...], str] = {}
    same = {}
    for name, tensor in tensors.items():
        if tensor.numel() * tensor.element_size() < _WORTH_SHARING:
            continue
        data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
        key = (tensor.dtype, tuple(tensor.shape), hashlib.sha256(data).digest())
        if (original := first.setdefault(key, name)) != name:
            same[name] = original
    return same


def _describe(layer: QuantLinear) -> dict[str, Any]:
    return {
        "in_features": layer.in_features,
        "out_features": layer.out_features,
        "bias": layer.bias is not None,
        "input_scale": layer.input_scale is not None,
        "executor": layer.executor,
        **asdict(layer.spec),
    }


def _read_sidecar(path: Path) -> dict[str, Any]:
    """The sidecar, its form checked."""
    found = read_json(path)
    kinds = {"format": int, "method": str, "class": str, "source": (str, type(None)), "same": dict, "layers": dict}
    if not isinstance(found, dict) or found.keys() != kinds.keys() or found["format"] != _FORMAT:
        raise FileError(path, f"is no description of a quantised network of format {_FORMAT}")
    if wrong := [key for key, kind in kinds.items() if not isinstance(found[key], kind)]:  # type: ignore[arg-type]
        raise FileError(path, f"has an unsound entry {wrong[0]!r}")
    return found


def _empty_network(folder: Path, name: str) -> nn.Module:
    """The network of a configuration, without memory for its weights."""
    import diffusers
    from accelerate import init_empty_weights

    kind: Any = getattr(diffusers, name, None)
    known = isinstance(kind, type) and issubclass(kind, diffusers.ModelMixin)
    if not known:
        raise FileError(folder / COMPONENT, f"names {name[:80]!r}, which is no model class of diffusers")
    config = read_json(folder / "config.json")
    with init_empty_weights(include_buffers=False):
        return kind.from_config(config)


def _place(network: nn.Module, name: str, entry: Any, path: Path) -> None:
    """Put an empty quantised layer in the place of a linear one."""
    try:
        old = network.get_submodule(name)
    except AttributeError:
        old = None
    if not isinstance(old, nn.Linear):
        raise FileError(path, f"quantises {name[:80]!r}, which is no linear layer of this network")
    made = _layer(entry, name, path)
    shapes = [(layer.in_features, layer.out_features, layer.bias is not None) for layer in (old, made)]
    if shapes[0] != shapes[1]:
        raise FileError(path, f"gives layer {name!r} the shape {shapes[1]}, but the network has {shapes[0]}")
    network.set_submodule(name, made)


def _layer(entry: Any, name: str, path: Path) -> QuantLinear:
    kinds = {"in_features": int, "out_features": int, "bias": bool, "input_scale": bool, "executor": str, "group": int}
    wanted = {*kinds, "weight", "activation", "act_scope", "act_range"}
    sound = isinstance(entry, dict) and entry.keys() == wanted
    if (
        not sound
        or any(type(entry[key]) is not kind for key, kind in kinds.items())
        or entry["executor"] not in EXECUTORS
    ):
        raise FileError(path, f"describes layer {name[:80]!r} in a form that is not known")
    try:
        weight, activation = _precision(entry["weight"]), _precision(entry["activation"])
        ranges = {"act_scope": entry["act_scope"], "act_range": entry["act_range"]}
        spec = LayerSpec(weight, activation, entry["group"], **ranges)
        flags = {key: entry[key] for key in ("bias", "input_scale", "executor")}
        with torch.device("meta"):
            sizes = (entry["in_features"], entry["out_features"])
            return QuantLinear(*sizes, spec, static=spec.act_range == "static", **flags)
    except (TypeError, ValueError) as error:
        raise FileError(path, f"describes layer {name[:80]!r} wrongly: {error}") from error


def _precision(entry: Any) -> Precision:
    if not isinstance(entry, dict) or type(entry.get("bits")) is not int or type(entry.get("symmetric")) is not bool:
        raise ValueError("a precision needs bits and symmetric")
    return Precision(**entry)


def _check_tensors(network: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    expected = network.state_dict()
    if wrong := sorted(expected.keys() ^ tensors.keys()):
        what = "lacks" if wrong[0] in expected else "has an unknown tensor"
        raise FileError(path, f"{what} {wrong[0][:80]!r}")
    exact = {f"{name}.{part}" for name in quantised_layers(network) for part in EXACT}
    for name, tensor in tensors.items():
        want = expected[name]
        if tensor.shape != want.shape:
            raise FileError(
                path, f"gives {name!r} the shape {tuple(tensor.shape)}, the network has {tuple(want.shape)}"
            )
        if tensor.dtype != want.dtype if name in exact else tensor.is_floating_point() != want.is_floating_point():
            raise FileError(path, f"gives {name!r} the type {tensor.dtype}, {want.dtype} is needed")
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise FileError(path, f"has numbers that are not finite in {name!r}")


def _tie(network: nn.Module, same: Mapping[str, str]) -> None:
    """Let equal tensors be one, in memory too."""
    for alias, name in same.items():
        (owner, _, leaf), (origin, _, original) = alias.rpartition("."), name.rpartition(".")
        parameters = network.get_submodule(owner)._parameters
        if leaf in parameters:
            parameters[leaf] = network.get_submodule(origin)._parameters[original]
