"""Low-rank adapters (Hu et al., arXiv 2106.09685) through peft: add, train, save, load and export.

h = W x + (alpha / rank) B A x with A Gaussian and B zero at the start, so a new adapter changes nothing. Files are in
the layout that diffusers reads (`pytorch_lora_weights.safetensors`, keys `unet.<layer>.lora_A.weight`), and can be
exported to the kohya layout that other image tools read.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from mezzotint import files
from mezzotint.diffusion import rng

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
FILE = "pytorch_lora_weights.safetensors"
METADATA = "lora_adapter_metadata"
CONFIG_KEYS = ("r", "lora_alpha", "rank_pattern", "alpha_pattern", "target_modules", "lora_dropout", "bias", "use_dora")


def add(
    model: nn.Module,
    *,
    rank: int = 16,
    alpha: float | None = None,
    targets: Sequence[str] | str = ATTENTION,
    name: str = "default",
    seed: int = 0,
) -> dict[str, nn.Parameter]:
    """Freeze a model and give it a new adapter, active and trainable in float32.

    Args:
        model: a U-Net, diffusion transformer or text encoder.
        rank: inner dimension of the adapter, at least 1.
        alpha: numerator of the scale alpha / rank; None for alpha = rank, scale 1.
        targets: endings of the names of the adapted layers, or one regular expression for whole names.
        name: name of the adapter.
        seed: seed of A.

    Returns:
        The adapter's parameters by name, to be given to `fit` or an optimiser.

    Raises:
        ValueError: if rank or alpha are out of range, the name is taken, or no layer matches the targets.
    """
    if rank < 1:
        raise ValueError(f"rank must be at least 1, got {rank}")
    if alpha is not None and alpha <= 0:
        raise ValueError(f"alpha must be above 0, got {alpha}")
    if name in getattr(model, "peft_config", {}):
        raise ValueError(f"the model already has an adapter called {name!r}; choose another name or remove it first")
    model.requires_grad_(False)
    chosen = targets if isinstance(targets, str) else list(targets)
    config = LoraConfig(
        r=rank, lora_alpha=rank if alpha is None else alpha, init_lora_weights="gaussian", target_modules=chosen
    )
    with torch.random.fork_rng(devices=[]):
        torch.set_rng_state(rng.stream(seed, f"lora/{name}").get_state())
        _inject(model, config, name)
    activate(model, name)
    return parameters(model, name)


def layers(model: nn.Module, name: str = "default") -> dict[str, LoraLayer]:
    """The layers that carry an adapter.

    Raises:
        ValueError: if the model has no such adapter.
    """
    found = {key: part for key, part in model.named_modules() if isinstance(part, LoraLayer) and name in part.lora_A}
    if not found:
        raise ValueError(
            f"the model has no adapter called {name!r}; it has {sorted(getattr(model, 'peft_config', {}))}"
        )
    return found


def parameters(model: nn.Module, name: str = "default") -> dict[str, nn.Parameter]:
    """An adapter's parameters, named as in the model."""
    found = {}
    for key, layer in layers(model, name).items():
        for side in ("lora_A", "lora_B"):
            for inner, value in getattr(layer, side)[name].named_parameters():
                found[f"{key}.{side}.{name}.{inner}"] = value
    return found


def activate(model: nn.Module, *names: str) -> None:
    """Make these adapters, and no others, active; they become trainable, float32, the others frozen."""
    for part in model.modules():
        if isinstance(part, LoraLayer):
            part.set_adapter([name for name in names if name in part.lora_A])
    for name in names:
        for value in parameters(model, name).values():
            value.data = value.data.float()


@contextmanager
def disabled(*models: nn.Module) -> Iterator[None]:
    """The models without their adapters, for instance to evaluate the model that training began with."""
    with ExitStack() as stack:
        for part in (part for model in models for part in model.modules()):
            if isinstance(part, LoraLayer) and not part.disable_adapters:
                stack.callback(_enable, part, [value for value in part.parameters() if value.requires_grad])
                part.enable_adapters(False)
        yield


@contextmanager
def several_adapters() -> Iterator[None]:
    """Add an adapter beside others without peft's warning: here it is what is wanted."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Already found a `peft_config` attribute", category=UserWarning)
        yield


def remove(model: nn.Module, name: str = "default") -> None:
    """Take an adapter out; removing the last one puts the plain layers back."""
    for layer in layers(model, name).values():
        if name in layer.active_adapters:
            layer.set_adapter([other for other in layer.active_adapters if other != name])
        layer.delete_adapter(name)
    config: dict[str, LoraConfig] = getattr(model, "peft_config", {})
    config.pop(name, None)
    if not config:
        for key, layer in [(key, part) for key, part in model.named_modules() if isinstance(part, LoraLayer)]:
            parent, _, child = key.rpartition(".")
            setattr(model.get_submodule(parent), child, layer.get_base_layer())
        vars(model).pop("peft_config", None)
        model._hf_peft_config_loaded = False  # type: ignore[assignment]


def tensors(model: nn.Module, name: str = "default") -> dict[str, Tensor]:
    """An adapter's weights under peft's names ("<layer>.lora_A.weight")."""
    layers(model, name)
    state: dict[str, Tensor] = get_peft_model_state_dict(model, adapter_name=name)
    return {key: value.detach() for key, value in state.items()}


def save(
    folder: str | Path, models: Mapping[str, nn.Module], *, name: str = "default", dtype: torch.dtype = torch.float32
) -> Path:
    """Write an adapter as `folder/pytorch_lora_weights.safetensors`, which `pipe.load_lora_weights(folder)` reads.

    Args:
        folder: made where missing.
        models: the adapted components under diffusers' names: "unet" or "transformer", "text_encoder", ...
        name: name of the adapter.
        dtype: dtype of the stored weights.

    Returns:
        The file.

    Raises:
        ValueError: if a model has no such adapter.
    """
    path = Path(folder) / FILE
    packed: dict[str, Tensor] = {}
    described: dict[str, Any] = {}
    for prefix, model in models.items():
        state = tensors(model, name)
        packed |= {stored_name(prefix, key): value.to("cpu", dtype).contiguous() for key, value in state.items()}
        described |= {f"{prefix}.{key}": value for key, value in _described(model, name).items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_safetensors(path, packed, {"format": "pt", METADATA: json.dumps(described, sort_keys=True)})
    return path


def load(path: str | Path, models: Mapping[str, nn.Module], *, name: str = "default") -> None:
    """Give models the adapter of a file in diffusers' layout; it becomes active.

    Args:
        path: the file, or the folder that holds it.
        models: components by the names under which they were saved.
        name: name for the adapter.

    Raises:
        FileError: if the file is not a readable safetensors file.
        ValueError: if it holds nothing for one of the models, or does not fit it.
    """
    path = Path(path) / FILE if Path(path).is_dir() else Path(path)
    stored = files.read_safetensors(path)
    described = json.loads(files.safetensors_metadata(path).get(METADATA, "{}"))
    for prefix, model in models.items():
        cut = f"{prefix}."
        state = {_live_name(model, key.removeprefix(cut)): v for key, v in stored.items() if key.startswith(cut)}
        if not state:
            raise ValueError(f"{path} holds no LoRA for {prefix!r}; its keys start with {sorted(stored)[:2]}")
        facts = {key.removeprefix(cut): value for key, value in described.items() if key.startswith(cut)}
        _put(model, state, facts or _guessed(state), name)


def stored_name(component: str, layer: str) -> str:
    """The name in a file of a component's layer.

    Text encoders are stored with the level "text_model", which transformers before version 5 and other tools have;
    readers without that level strip it.
    """
    level = "text_model." if component.startswith("text_encoder") and not layer.startswith("text_model.") else ""
    return f"{component}.{level}{layer}"


def _live_name(model: nn.Module, layer: str) -> str:
    return layer if hasattr(model, "text_model") else layer.removeprefix("text_model.")


def _put(model: nn.Module, state: dict[str, Tensor], facts: dict[str, Any], name: str) -> None:
    _inject(model, LoraConfig(**{key: facts[key] for key in CONFIG_KEYS if key in facts}), name)
    problems = set_peft_model_state_dict(model, state, adapter_name=name)
    wanted = tensors(model, name).keys()
    if problems.unexpected_keys or wanted != state.keys():
        remove(model, name)
        different = sorted(wanted ^ state.keys())
        raise ValueError(f"the LoRA does not fit the model: {len(different)} keys differ, such as {different[:2]}")
    activate(model, name)


def _inject(model: nn.Module, config: LoraConfig, name: str) -> None:
    with several_adapters():
        inject_adapter_in_model(config, model, adapter_name=name)
    # What diffusers and transformers look at to know that a model carries adapters.
    model._hf_peft_config_loaded = True  # type: ignore[assignment]


def _described(model: nn.Module, name: str) -> dict[str, Any]:
    configs: dict[str, LoraConfig] = getattr(model, "peft_config", {})
    facts = configs[name].to_dict()
    return {key: sorted(value) if isinstance(value, (set, list)) else value for key, value in facts.items()}


def _guessed(state: Mapping[str, Tensor]) -> dict[str, Any]:
    ranks = {key.removesuffix(".lora_B.weight"): value.shape[1] for key, value in state.items() if ".lora_B." in key}
    if not ranks:
        raise ValueError(f"not a LoRA in diffusers' layout: keys such as {sorted(state)[:2]}")
    rank = max(ranks.values())
    return {"r": rank, "lora_alpha": rank, "rank_pattern": ranks, "alpha_pattern": ranks, "target_modules": list(ranks)}


def _enable(part: LoraLayer, trained: list[nn.Parameter]) -> None:
    part.enable_adapters(True)
    for value in part.parameters():
        value.requires_grad_(any(value is other for other in trained))
