"""What a run trains: the named tensors of one or several modules, and their way to and from plain dictionaries."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

Parameters = nn.Module | Mapping[str, nn.Module | nn.Parameter]


@dataclasses.dataclass(frozen=True)
class Trainables:
    """The trained tensors of a run under stable names, with the modules they live in.

    A single module keeps its own names ("conv_in.weight"); in a mapping the key is put in front
    ("unet.conv_in.weight"). Frozen tensors (`requires_grad` false) are left out; persistent buffers are saved, but
    neither trained nor averaged.
    """

    modules: dict[str, nn.Module]
    parameters: dict[str, nn.Parameter]
    buffers: dict[str, Tensor]
    given: Parameters

    @classmethod
    def of(cls, parameters: Parameters) -> Trainables:
        """Collect what is trainable in a module, or in a mapping from names to modules and single parameters.

        Raises:
            ValueError: if nothing in it is trainable, or a trained tensor is not finite.
        """
        given = {"": parameters} if isinstance(parameters, nn.Module) else dict(parameters)
        modules = {name: unwrap(value) for name, value in given.items() if isinstance(value, nn.Module)}
        loose = {name: value for name, value in given.items() if isinstance(value, nn.Parameter)}
        found = {
            _join(name, key): value for name, module in modules.items() for key, value in module.named_parameters()
        }
        # The same tensor under two names (tied weights, a module given twice) is one thing to train.
        unique = {id(value): name for name, value in reversed((found | loose).items()) if value.requires_grad}
        trained = {name: value for name, value in (found | loose).items() if unique.get(id(value)) == name}
        if not trained:
            raise ValueError("nothing to train: no parameter has requires_grad; unfreeze some or pass other modules")
        bad = [name for name, value in trained.items() if not torch.isfinite(value).all()]
        if bad:
            raise ValueError(f"the weights are not finite before the first step: {', '.join(bad[:5])}")
        buffers = {key: value for name, module in modules.items() for key, value in _buffers(name, module)}
        return cls(modules, trained, buffers, parameters)

    @property
    def device(self) -> torch.device:
        """Device of the trained tensors."""
        return next(iter(self.parameters.values())).device

    def tensors(self) -> dict[str, Tensor]:
        """Everything a checkpoint of the weights has to hold."""
        return {name: value.detach() for name, value in (self.parameters | self.buffers).items()}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy values back in place, keeping device, dtype and memory format.

        Raises:
            ValueError: if names or shapes are not those of this run.
        """
        load_into(self.tensors(), tensors, "the trained weights")

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Every module in eval mode and no gradients; the modes are put back afterwards."""
        modes = [(part, part.training) for module in self.modules.values() for part in module.modules()]
        try:
            for part, _ in modes:
                part.training = False
            with torch.no_grad():
                yield
        finally:
            for part, mode in modes:
                part.training = mode


def unwrap(module: nn.Module) -> nn.Module:
    """The module inside a `torch.compile` wrapper, so that names do not depend on compilation."""
    inner = getattr(module, "_orig_mod", module)
    return inner if isinstance(inner, nn.Module) else module


def load_into(live: Mapping[str, Tensor], saved: Mapping[str, Tensor], what: str) -> None:
    """Copy `saved` into `live` in place.

    Raises:
        ValueError: if the two do not have the same names and shapes.
    """
    missing, extra = sorted(live.keys() - saved.keys()), sorted(saved.keys() - live.keys())
    if missing or extra:
        raise ValueError(
            f"{what} do not fit the checkpoint: {len(missing)} missing in it {missing[:3]}, {len(extra)} unknown "
            f"{extra[:3]}; build the same modules as the run that wrote it"
        )
    for name, value in live.items():
        if value.shape != saved[name].shape:
            raise ValueError(f"{name} has shape {tuple(value.shape)}, the checkpoint has {tuple(saved[name].shape)}")
    with torch.no_grad():
        for name, value in live.items():
            value.copy_(saved[name])


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


def _buffers(prefix: str, module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    persistent = module.state_dict(keep_vars=True).keys()
    trained = any(parameter.requires_grad for parameter in module.parameters())
    for name, value in module.named_buffers():
        if trained and name in persistent:
            yield _join(prefix, name), value
