"""AdamW (Loshchilov and Hutter, arXiv 1711.05101) and Muon (Jordan et al. 2024).

Muon replaces the momentum of a weight matrix by the nearest semi-orthogonal matrix, found by five Newton-Schulz steps.
Scaled by 0.2 sqrt(max(rows, columns)) its root mean square is about 0.2, as that of AdamW's updates, so that AdamW's
learning rates and weight decays carry over (Liu et al., arXiv 2502.16982, section 2.2).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mezzotint.training.trainables import Parameters, Trainables

COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def orthogonalise(
    matrices: Float[Tensor, "count rows columns"], *, steps: int = 5, dtype: torch.dtype = torch.bfloat16
) -> Float[Tensor, "count rows columns"]:
    """Push every singular value of each matrix towards 1 (into about 0.7..1.2), keeping its singular vectors.

    Newton-Schulz iteration X <- aX + b(XX')X + c(XX')(XX')X from X / |X|, with the quintic coefficients of Muon.

    Args:
        matrices: any real matrices; zero matrices stay zero.
        steps: iterations.
        dtype: precision of the products; bfloat16 is enough, since only the direction of the update matters.
    """
    a, b, c = COEFFICIENTS
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.to(torch.float32)
    x = (x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)).to(dtype)
    x = x.mT if tall else x
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return (x.mT if tall else x).to(matrices.dtype)


class Muon(torch.optim.Optimizer):
    """Muon on the groups whose "kind" is "muon", AdamW on those whose kind is "adamw", in one optimiser.

    Made by `muon`; each group holds "names" beside its tensors.
    """

    def __init__(self, groups: Iterable[dict[str, Any]]) -> None:
        super().__init__(list(groups), {"lr": 1e-3})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Apply one update to every tensor that has a gradient."""
        result = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            trained = [value for value in group["params"] if value.grad is not None]
            if trained:
                (self._muon if group["kind"] == "muon" else self._adamw)(trained, group)
        return result

    def _muon(self, trained: list[Tensor], group: dict[str, Any]) -> None:
        momenta = [self._state(value, "momentum") for value in trained]
        gradients = [value.grad.to(torch.float32) for value in trained if value.grad is not None]
        torch._foreach_lerp_(momenta, gradients, 1.0 - group["momentum"])
        directions = torch._foreach_lerp(gradients, momenta, group["momentum"])
        torch._foreach_mul_(trained, 1.0 - group["lr"] * group["weight_decay"])
        alike: dict[tuple[int, int], list[int]] = defaultdict(list)
        for index, value in enumerate(trained):
            alike[_matrix_shape(value)].append(index)
        # Matrices of one shape go through one batched product: small layers are bound by the calls, not by arithmetic.
        for (rows, columns), indices in alike.items():
            stacked = torch.stack([directions[index].reshape(rows, columns) for index in indices])
            updates = orthogonalise(stacked, steps=group["iterations"], dtype=group["product_dtype"])
            scale = -group["lr"] * 0.2 * math.sqrt(max(rows, columns))
            for index, update in zip(indices, updates, strict=True):
                trained[index].add_(update.reshape(trained[index].shape).to(trained[index].dtype), alpha=scale)

    def _adamw(self, trained: list[Tensor], group: dict[str, Any]) -> None:
        beta1, beta2 = group["betas"]
        first = [self._state(value, "first") for value in trained]
        second = [self._state(value, "second") for value in trained]
        gradients = [value.grad.to(torch.float32) for value in trained if value.grad is not None]
        torch._foreach_lerp_(first, gradients, 1.0 - beta1)
        torch._foreach_mul_(second, beta2)
        torch._foreach_addcmul_(second, gradients, gradients, 1.0 - beta2)
        torch._foreach_mul_(trained, 1.0 - group["lr"] * group["weight_decay"])
        for value, mean, square in zip(trained, first, second, strict=True):
            count = self.state[value]["count"] = self.state[value].get("count", 0) + 1
            root = (square / (1.0 - beta2**count)).sqrt_().add_(group["epsilon"])
            update = mean / root
            value.add_(update.to(value.dtype), alpha=-group["lr"] / (1.0 - beta1**count))

    def _state(self, value: Tensor, key: str) -> Tensor:
        state = self.state[value]
        if key not in state:
            state[key] = torch.zeros_like(value, dtype=torch.float32, memory_format=torch.preserve_format)
        kept: Tensor = state[key]
        return kept


def muon(
    modules: Parameters,
    lr: float,
    *,
    weight_decay: float = 1e-2,
    momentum: float = 0.95,
    betas: tuple[float, float] = (0.9, 0.999),
    epsilon: float = 1e-8,
    iterations: int = 5,
    product_dtype: torch.dtype = torch.bfloat16,
    rate_of: Callable[[str], float] = lambda _: 1.0,
) -> Muon:
    """Muon for every trained weight with two or more dimensions (convolutions flattened), AdamW for the rest.

    Lookup tables (`nn.Embedding`) go to AdamW, too: a batch touches few of their rows, and orthogonalising would move
    all of them.

    Args:
        modules: a module, or a mapping from names to modules and parameters.
        lr: learning rate, on AdamW's scale.
        weight_decay: decoupled decay of the tensors with two or more dimensions.
        momentum: Nesterov momentum of the matrices.
        betas: decay rates of AdamW's moments.
        epsilon: AdamW's denominator term.
        iterations: Newton-Schulz steps.
        product_dtype: precision of the Newton-Schulz products.
        rate_of: factor on the learning rate by tensor name.
    """
    trainables = Trainables.of(modules)
    tables = _tables(trainables)
    shared = {"muon": {"momentum": momentum, "iterations": iterations, "product_dtype": product_dtype}}
    shared["adamw"] = {"betas": betas, "epsilon": epsilon}

    def kind(value: Tensor) -> str:
        return "muon" if value.ndim >= 2 and id(value) not in tables else "adamw"

    groups = _groups(trainables.parameters, lr=lr, decay=weight_decay, rate_of=rate_of, kind=kind)
    return Muon([{**group, **shared[group["kind"]]} for group in groups])


def adamw(
    modules: Parameters,
    lr: float,
    *,
    weight_decay: float = 1e-2,
    betas: tuple[float, float] = (0.9, 0.999),
    epsilon: float = 1e-8,
    rate_of: Callable[[str], float] = lambda _: 1.0,
) -> torch.optim.AdamW:
    """Torch's fused AdamW on everything trained; weight decay only on tensors with two or more dimensions."""
    groups = _groups(
        Trainables.of(modules).parameters, lr=lr, decay=weight_decay, rate_of=rate_of, kind=lambda _: "adamw"
    )
    return torch.optim.AdamW(groups, lr=lr, betas=betas, eps=epsilon, fused=True)


def _groups(
    named: Mapping[str, nn.Parameter],
    *,
    lr: float,
    decay: float,
    rate_of: Callable[[str], float],
    kind: Callable[[Tensor], str],
) -> list[dict[str, Any]]:
    split: dict[tuple[str, float, float], list[str]] = defaultdict(list)
    for name, value in named.items():
        split[kind(value), lr * rate_of(name), decay if value.ndim >= 2 else 0.0].append(name)
    return [
        {"params": [named[name] for name in names], "names": names, "kind": sort, "lr": rate, "weight_decay": decayed}
        for (sort, rate, decayed), names in split.items()
    ]


def _tables(trainables: Trainables) -> set[int]:
    parts = (part for module in trainables.modules.values() for part in module.modules())
    return {id(part.weight) for part in parts if isinstance(part, nn.Embedding)}


def _matrix_shape(value: Tensor) -> tuple[int, int]:
    return value.shape[0], value.numel() // value.shape[0]
