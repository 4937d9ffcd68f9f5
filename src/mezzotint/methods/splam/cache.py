"""Latents and prompt embeddings, computed once: mean and standard deviation of every latent, one row a caption.

The autoencoder's noise is drawn anew at every training step from mean and standard deviation. Captions that occur many
times are encoded once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mezzotint import files
from mezzotint.diffusion import Condition, pixels, posterior

from .data import Pair, pairs

__all__ = ["Cached", "flatten", "gathered", "restore", "tracked"]

T = TypeVar("T")

LATENTS, EMBEDS, FACTS = "latents.safetensors", "prompt_embeds.safetensors", "captions.json"


@dataclass(frozen=True, eq=False)
class Cached:
    """Training data.

    Attributes:
        mean: of the latents, in the denoiser's units.
        std: likewise.
        caption: row of `conditions` of every latent.
        conditions: of the captions.
        uncond: the unconditional one, one row.
        captions: the texts or classes, one a row of `conditions`.
        source: where they came from.
    """

    mean: Float[Tensor, "count channels h w"]
    std: Float[Tensor, "count channels h w"]
    caption: Int[Tensor, " count"]
    conditions: Condition
    uncond: Condition
    captions: tuple[Any, ...]
    source: str

    def __post_init__(self) -> None:
        """Refuse data without captions, and captions without a row.

        Raises:
            ValueError: such data.
        """
        if not self.captions or not len(self.mean):
            raise ValueError(f"the data {self.source!r} are empty: at least one captioned picture is needed")
        if len(self.caption) != len(self.mean) or int(self.caption.max()) >= len(self.captions):
            raise ValueError(f"{len(self.mean)} latents need as many rows of {len(self.captions)} captions")

    def tensors(self) -> dict[str, Tensor]:
        """What a training loop draws items from."""
        return {"mean": self.mean, "std": self.std, "caption": self.caption}

    @classmethod
    def of(cls, pipe: Any, mean: Tensor, std: Tensor, *, captions: Sequence[Any], source: str) -> Cached:
        """Encode captions, each text once.

        Args:
            pipe: whose text encoder is used.
            mean: of the latents.
            std: of the latents.
            captions: one a latent.
            source: name of the data.

        Raises:
            ValueError: there are no captions.
        """
        unique = tuple(dict.fromkeys(captions))
        if not unique:
            raise ValueError(f"the data {source!r} are empty: at least one captioned picture is needed")
        rows = {caption: row for row, caption in enumerate(unique)}
        places = torch.tensor([rows[caption] for caption in captions])
        return cls(mean, std, places, *_encoded(pipe, unique), unique, source)


def gathered(
    pipe: Any, data: str | Path, *, count: int, side: int | None = None, seed: int = 0, folder: Path | None = None
) -> Cached:
    """Read, encode and keep the training data of a pipeline.

    Args:
        pipe: a latent diffusion pipeline.
        data: see `data.pairs`.
        count: pictures.
        side: resolution; the model's own when None.
        seed: of scenes and cuts.
        folder: where the cache is kept; None keeps it in memory.

    Raises:
        ValueError: no data, or the folder holds a cache of other data or of another model.
    """
    side = side or pixels(pipe)
    facts = {"data": str(data), "count": count, "side": side, "seed": seed}
    if folder is not None and (folder / "cache").is_dir():
        return _read(pipe, folder / "cache", facts)
    classes = getattr(pipe, "text_encoder", None) is None
    means, stds, captions = [], [], []
    for batch in _batched(pairs(data, side=side, count=count, seed=seed, classes=classes), count):
        mean, std = posterior(pipe, torch.stack([picture for picture, _ in batch]).to(pipe.device))
        means.append(mean.cpu())
        stds.append(std.cpu())
        captions += [caption for _, caption in batch]
    made = Cached.of(pipe, torch.cat(means), torch.cat(stds), captions=captions, source=str(data))
    if folder is not None:
        _write(pipe, folder / "cache", made, facts)
    return made


def flatten(cond: Condition, prefix: str) -> dict[str, Tensor]:
    """The tensors of a condition by name, such as "added_cond_kwargs.time_ids"; what is None is left out."""
    found: dict[str, Tensor] = {}
    for name, value in cond.arguments().items():
        parts = value.items() if isinstance(value, Mapping) else [("", value)]
        found |= {f"{prefix}.{name}.{key}".rstrip("."): part for key, part in parts if part is not None}
    return found


def restore(tensors: Mapping[str, Tensor], prefix: str, empty: Sequence[str] = ()) -> Condition:
    """The condition of `flatten`.

    Args:
        tensors: by name.
        prefix: of the names.
        empty: names of added arguments that the model takes as None.
    """
    named: dict[str, Any] = {}
    added: dict[str, Tensor | None] = dict.fromkeys(empty)
    extra: dict[str, Tensor] = {}
    known = {field.name for field in dataclasses.fields(Condition)}
    for name, value in tensors.items():
        key, _, inner = name.removeprefix(f"{prefix}.").partition(".")
        if not name.startswith(f"{prefix}."):
            continue
        if inner:
            added[inner] = value
        elif key in known:
            named[key] = value
        else:
            extra[key] = value
    return Condition(**named, added_cond_kwargs=added or None, extra=extra)


def _encoded(pipe: Any, captions: Sequence[Any], at_once: int = 64) -> tuple[Condition, Condition]:
    parts, uncond = [], None
    for k in range(0, len(captions), at_once):
        cond, negative = Condition.from_prompt(pipe, list(captions[k : k + at_once]))
        parts.append(cond.to("cpu"))
        uncond = negative[0].to("cpu") if uncond is None else uncond
    if uncond is None:
        raise ValueError("captions must not be empty")
    return Condition.concat(*parts), uncond


def _batched(items: Iterator[Pair], total: int, size: int = 16) -> Iterator[list[Pair]]:
    groups = iter(lambda: list(islice(items, size)), [])
    yield from tracked(groups, "encoding", -(-total // size))


def tracked(items: Iterable[T], title: str, total: int) -> Iterator[T]:
    """Items with a bar on standard error, where that is a terminal."""
    from rich.console import Console
    from rich.progress import track

    screen = Console(stderr=True)
    yield from track(items, title, total, console=screen, transient=True, disable=not screen.is_terminal)


def _probe(pipe: Any, caption: Any) -> dict[str, Tensor]:
    """What tells one autoencoder and text encoder from another: a fixed picture and a caption, encoded."""
    side = 8 * 2 ** (len(pipe.vae.config.block_out_channels) - 1)
    ramp = torch.linspace(0, 1, side).expand(1, 3, side, side)
    mean, _ = posterior(pipe, ramp.to(pipe.device))
    return {"probe.latents": mean.cpu(), **flatten(_encoded(pipe, [caption])[0], "probe")}


def _write(pipe: Any, folder: Path, made: Cached, facts: Mapping[str, Any]) -> None:
    empty = [name for name, value in (made.conditions.added_cond_kwargs or {}).items() if value is None]
    embeds = flatten(made.conditions, "cond") | flatten(made.uncond, "uncond") | _probe(pipe, made.captions[0])
    with files.atomic_folder(folder) as place:
        files.write_safetensors(place / LATENTS, made.tensors())
        files.write_safetensors(place / EMBEDS, embeds)
        files.write_json(place / FACTS, {**facts, "captions": list(made.captions), "empty": empty})


def _read(pipe: Any, folder: Path, facts: Mapping[str, Any]) -> Cached:
    files.verify_folder(folder)
    known = files.read_json(folder / FACTS, max_bytes=2**30)
    if changed := {name: (known.get(name), value) for name, value in facts.items() if known.get(name) != value}:
        raise ValueError(f"{folder} was made from other data ({changed}); remove it or choose another run folder")
    latents, embeds = files.read_safetensors(folder / LATENTS), files.read_safetensors(folder / EMBEDS)
    for name, value in _probe(pipe, known["captions"][0]).items():
        stored = embeds.get(name)
        if stored is None or stored.shape != value.shape or not torch.allclose(stored, value, rtol=1e-2, atol=1e-3):
            raise ValueError(f"{folder} was made by another autoencoder or text encoder; remove it or choose another")
    return Cached(
        **latents,
        conditions=restore(embeds, "cond", known["empty"]),
        uncond=restore(embeds, "uncond", known["empty"]),
        captions=tuple(known["captions"]),
        source=str(facts["data"]),
    )
