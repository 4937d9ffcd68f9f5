"""What a denoiser is conditioned on: everything that is computed once per prompt and handed to every model call."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["Condition", "Prompt", "text_window"]

Prompt: TypeAlias = str | int | Sequence[str] | Sequence[int]
"""One or several texts; for class-conditional models class indices or label names."""


@dataclass(frozen=True, eq=False)
class Condition:
    """The keyword arguments of a diffusers U-Net or transformer beside the sample and the timestep, batch first.

    Args:
        encoder_hidden_states: text embeddings [batch, tokens, width].
        class_labels: class indices [batch].
        added_cond_kwargs: further embeddings of SDXL (`text_embeds`, `time_ids`) and PixArt (`resolution`, ...).
        encoder_attention_mask: which text tokens count [batch, tokens].
        timestep_cond: embedding added to that of the timestep [batch, features] (distilled models).
        extra: any other keyword argument of the model; tensors, and tuples or dicts of tensors, batch first.
    """

    encoder_hidden_states: Float[Tensor, "batch tokens width"] | None = None
    class_labels: Int[Tensor, " batch"] | None = None
    added_cond_kwargs: Mapping[str, Tensor | None] | None = None
    encoder_attention_mask: Tensor | None = None
    timestep_cond: Float[Tensor, "batch features"] | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    @staticmethod
    def from_prompt(
        pipe: Any,
        prompts: Prompt,
        negative_prompt: Prompt = "",
        *,
        height: int | None = None,
        width: int | None = None,
        gradients: bool = False,
    ) -> tuple[Condition, Condition]:
        """Encode prompts as the pipeline itself would, once; returns (conditional, unconditional) of equal batch.

        Works on the layouts of StableDiffusionPipeline, StableDiffusionXLPipeline, PixArtAlphaPipeline,
        PixArtSigmaPipeline and DiTPipeline (prompts are class indices or label names there; the null class is read
        from the model, not fixed at 1000).

        Args:
            pipe: a diffusers pipeline.
            prompts: one prompt or several.
            negative_prompt: what to steer away from; one for all, or one a prompt.
            height: picture height in pixels for models conditioned on it; default the pipeline's own.
            width: picture width in pixels, likewise.
            gradients: whether the text encoders' work is recorded, to train what they read.

        Raises:
            ValueError: for no prompt, another number of negative prompts, or a pipeline of an unknown layout.
        """
        positive = _listed(prompts)
        negative = _listed(negative_prompt)
        if not positive:
            raise ValueError("prompts must not be empty")
        if len(negative) not in (1, len(positive)):
            raise ValueError(f"negative_prompt must be one or {len(positive)} (one a prompt), got {len(negative)}")
        negative = negative * len(positive) if len(negative) == 1 else negative
        with torch.set_grad_enabled(gradients):
            return _encoder(pipe)(pipe, positive, negative, (height, width))

    @staticmethod
    def independent(pipe: Any) -> bool:
        """Whether a pipeline encodes a negative prompt as any other text, by itself (Stable Diffusion does)."""
        return _encoder(pipe) is _encode_sd

    @staticmethod
    def alone(pipe: Any, prompts: Prompt, *, device: torch.device | None = None) -> Condition:
        """Encode prompts without negative ones, each different one once: all that sampling without guidance needs.

        Args:
            pipe: as for `from_prompt`.
            prompts: one prompt or several.
            device: of the pipeline where it is known; asking a pipeline takes a millisecond.

        Raises:
            ValueError: for no prompt, or a pipeline of an unknown layout.
        """
        texts = _listed(prompts)
        different = list(dict.fromkeys(texts))
        device = pipe.device if device is None else device
        if different and Condition.independent(pipe):
            with torch.no_grad():
                found = Condition(pipe.encode_prompt(different, device, 1, False)[0])
        else:
            found, _ = Condition.from_prompt(pipe, different)
        if len(different) == len(texts):
            return found
        return found[torch.tensor([different.index(text) for text in texts], device=device)]

    @property
    def batch(self) -> int | None:
        """Number of items, or None for the empty condition of an unconditional model."""
        return _batch(self.arguments())

    def arguments(self) -> dict[str, Any]:
        """Return the model's keyword arguments, without those that are not set."""
        named = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "extra"}
        return {name: value for name, value in named.items() if value is not None} | dict(self.extra)

    def repeat(self, count: int) -> Condition:
        """Repeat every item `count` times in a row, as `num_images_per_prompt` does."""
        return self._map(lambda tensor: tensor.repeat_interleave(count, dim=0))

    def concat(self, *others: Condition) -> Condition:
        """Join conditions along the batch: `a.concat(b, c)` or `Condition.concat(a, b, c)`."""
        parts = (self, *others)
        joined = {f.name: _join([getattr(part, f.name) for part in parts]) for f in fields(self)}
        return Condition(**joined)

    def __getitem__(self, index: int | slice | Tensor) -> Condition:
        """Select items by slice, by a tensor of indices, or one by number (the batch axis stays)."""
        if isinstance(index, int):
            if not -(self.batch or 0) <= index < (self.batch or 0):
                raise IndexError(f"item {index} of a condition with {self.batch or 0} items")
            index = slice(index, index + 1 or None)
        return self._map(lambda tensor: tensor[index])

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Condition:
        """Move all tensors; only floating ones change their dtype."""
        return self._map(lambda tensor: tensor.to(device, dtype if tensor.is_floating_point() else None))

    def _map(self, function: Callable[[Tensor], Tensor]) -> Condition:
        return replace(self, **{f.name: _apply(function, getattr(self, f.name)) for f in fields(self)})


def _apply(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, Mapping):
        return {key: _apply(function, item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)(_apply(function, item) for item in value)
    return value


def _join(values: Sequence[Any]) -> Any:
    first = values[0]
    if any(type(value) is not type(first) for value in values):
        kinds = [type(value).__name__ for value in values]
        raise ValueError(f"conditions of different kinds cannot be joined: {kinds}")
    if isinstance(first, Tensor):
        return torch.cat(list(values))
    if isinstance(first, Mapping):
        if any(value.keys() != first.keys() for value in values):
            raise ValueError(f"conditions with different arguments cannot be joined: {[list(v) for v in values]}")
        return {key: _join([value[key] for value in values]) for key in first}
    if isinstance(first, (tuple, list)):
        return type(first)(_join(items) for items in zip(*values, strict=True))
    return first


def _batch(value: Any) -> int | None:
    if isinstance(value, Tensor):
        return value.shape[0]
    items = value.values() if isinstance(value, Mapping) else value if isinstance(value, (tuple, list)) else ()
    sizes = (_batch(item) for item in items)
    return next((size for size in sizes if size is not None), None)


def _listed(prompts: Prompt) -> list[Any]:
    return [prompts] if isinstance(prompts, (str, int)) else list(prompts)


Size: TypeAlias = tuple[int | None, int | None]
Encoder: TypeAlias = Callable[[Any, list[Any], list[Any], Size], tuple[Condition, Condition]]


def _encoder(pipe: Any) -> Encoder:
    has = {name for name in ("unet", "transformer", "text_encoder", "text_encoder_2") if getattr(pipe, name, None)}
    if {"unet", "text_encoder_2"} <= has:
        return _encode_sdxl
    if {"unet", "text_encoder"} <= has:
        return _encode_sd
    if {"transformer", "text_encoder"} == has and hasattr(pipe.transformer, "use_additional_conditions"):
        return _encode_pixart
    if {"transformer"} == has and getattr(pipe.transformer.config, "num_embeds_ada_norm", None):
        return _encode_dit
    raise ValueError(
        f"{type(pipe).__name__} has no conditioning known here; supported are the layouts of Stable Diffusion, "
        "SDXL, PixArt and DiT. Build a Condition from the model's own arguments instead."
    )


def _encode_sd(pipe: Any, prompts: list[Any], negative: list[Any], _: Size) -> tuple[Condition, Condition]:
    embeds, negative_embeds = pipe.encode_prompt(prompts, pipe.device, 1, True, negative)
    return Condition(embeds), Condition(negative_embeds)


def _encode_sdxl(pipe: Any, prompts: list[Any], negative: list[Any], size: Size) -> tuple[Condition, Condition]:
    # SDXL treats "no negative prompt" (zeros, if so configured) and "" differently; like the pipeline, default to none.
    given = negative if any(negative) else None
    embeds, negative_embeds, pooled, negative_pooled = pipe.encode_prompt(
        prompts, device=pipe.device, negative_prompt=given
    )
    height, width = _pixels(pipe, pipe.unet, size)
    time_ids = torch.tensor([[height, width, 0, 0, height, width]], dtype=embeds.dtype, device=embeds.device)
    time_ids = time_ids.repeat(len(prompts), 1)
    return (
        Condition(embeds, added_cond_kwargs={"text_embeds": pooled, "time_ids": time_ids}),
        Condition(negative_embeds, added_cond_kwargs={"text_embeds": negative_pooled, "time_ids": time_ids}),
    )


def _encode_pixart(pipe: Any, prompts: list[Any], negative: list[Any], size: Size) -> tuple[Condition, Condition]:
    embeds, mask, negative_embeds, negative_mask = pipe.encode_prompt(
        prompts, negative_prompt=negative, device=pipe.device
    )
    added: dict[str, Tensor | None] = {"resolution": None, "aspect_ratio": None}
    if pipe.transformer.use_additional_conditions:
        height, width = _pixels(pipe, pipe.transformer, size)
        added["resolution"] = embeds.new_tensor([[height, width]]).repeat(len(prompts), 1)
        added["aspect_ratio"] = embeds.new_tensor([[height / width]]).repeat(len(prompts), 1)
    return (
        Condition(embeds, added_cond_kwargs=added, encoder_attention_mask=mask),
        Condition(negative_embeds, added_cond_kwargs=added, encoder_attention_mask=negative_mask),
    )


def _encode_dit(pipe: Any, prompts: list[Any], negative: list[Any], _: Size) -> tuple[Condition, Condition]:
    null = int(pipe.transformer.config.num_embeds_ada_norm)
    labels = [_label(pipe, prompt, null) for prompt in prompts]
    negatives = [null if item == "" else _label(pipe, item, null) for item in negative]
    device = pipe.device
    return Condition(class_labels=torch.tensor(labels, device=device)), Condition(
        class_labels=torch.tensor(negatives, device=device)
    )


def _label(pipe: Any, prompt: str | int, count: int) -> int:
    names = getattr(pipe, "labels", None) or {}
    if isinstance(prompt, str):
        if prompt not in names:
            raise ValueError(f"unknown class {prompt!r}; the model has {len(names)} names, such as {sorted(names)[:5]}")
        return int(names[prompt])
    if not 0 <= prompt < count:
        raise ValueError(f"class index must lie in 0..{count - 1}, got {prompt}")
    return int(prompt)


def _pixels(pipe: Any, model: Any, size: Size) -> tuple[int, int]:
    default = int(model.config.sample_size) * int(pipe.vae_scale_factor)
    return size[0] or default, size[1] or default


def text_window(pipe: Any) -> int | None:
    """Tokens of a prompt that a pipeline reads, where `encode_prompt` says so and not its tokenizer (T5 in PixArt)."""
    encode = getattr(type(pipe), "encode_prompt", None)
    told = None if encode is None else inspect.signature(encode).parameters.get("max_sequence_length")
    return told.default if told is not None and isinstance(told.default, int) else None
