"""Learning one concept: QFormer and LoRA trained on a few pictures, one embedding kept (arXiv 2404.14239, section 3.2).

The pipeline is as it was afterwards: its weights are never written, the LoRA is taken out again, and what was trainable
or active before is so again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from mezzotint import files
from mezzotint.attention.sites import backbone
from mezzotint.diffusion import Condition
from mezzotint.training import Config, Run, fit, lora
from mezzotint.zoo.saving import seeded

from .base import fingerprint, projections, text_parts
from .concept import Concept
from .encoder import Free, QFormer, Shape
from .normalisation import class_embedding, class_norm
from .objective import Learnt, Objective, gathered
from .options import Options
from .pictures import Subject, read_pictures
from .placeholder import Placeholders, noun_ids
from .templates import TEMPLATES, prompts

__all__ = ["ADAPTER", "borrowed", "class_lengths", "encode", "kept_embedding", "learn_concept", "learn_given"]

ADAPTER = "mezzotint_concept"


def learn_given(pipe: Any, *, images: str, run: str | None, out: str | None, vision: Any, **given: Any) -> Concept:
    """See `mezzotint.methods.multibooth.learn`."""
    options = Options(**{field.name: given[field.name] for field in fields(Options)})
    target = None if out is None else files.free_folder(Path(out).expanduser())
    pictures = read_pictures(images, pipe)
    concept = learn_concept(pipe, pictures, options, folder=None if run is None else Path(run), vision=vision)
    if target is not None:
        concept.save(target)
    return concept


def learn_concept(
    pipe: Any,
    pictures: Float[Tensor, "count 3 height width"],
    options: Options,
    *,
    folder: Path | None = None,
    vision: Any = None,
    progress: bool = True,
) -> Concept:
    """Learn one concept.

    Args:
        pipe: a latent diffusion pipeline with text encoders.
        pictures: of the concept, in 0..1.
        options: the settings.
        folder: for checkpoints, so that a killed run can be continued.
        vision: a `CLIPVisionModel`; the pipeline's own image encoder, if it has one, when not given.
        progress: show a bar.

    Raises:
        ValueError: pictures, noun, placeholder or pipeline that nothing can be learnt from.
        NonFiniteError: the loss stopped being finite.
    """
    with borrowed(pipe):
        made = _Making.start(
            pipe, pictures, options, getattr(pipe, "image_encoder", None) if vision is None else vision
        )
        _remember(folder, made)
        with made.words.installed():
            done = made.train(folder, progress=progress)
        return made.finish(done)


@dataclass(frozen=True, eq=False)
class _Making:
    """A concept in the making."""

    pipe: Any
    options: Options
    subject: Subject
    words: Placeholders
    encoder: nn.Module
    lengths: tuple[float, ...]
    digest: str

    @classmethod
    def start(cls, pipe: Any, pictures: Tensor, options: Options, vision: Any) -> _Making:
        words = Placeholders(pipe, [options.placeholder])
        lengths = class_lengths(pipe, options.class_word)
        shapes = projections(pipe, options.layers)
        _refuse_integers(backbone(pipe), shapes)
        digest = _digest(pictures)
        pictures = torch.cat([pictures, pictures.flip(-1)]) if options.flip else pictures
        subject = Subject.of(pipe, pictures, word=options.placeholder, class_word=options.class_word, vision=vision)
        for prompt in _contexts(options):
            words.check_prompt(prompt)
        made = cls(pipe, options, subject, words, encode(pipe, subject, options), lengths, digest)
        lora.add(backbone(pipe), rank=options.rank, targets=list(shapes), name=ADAPTER, seed=options.seed)
        return made

    def train(self, folder: Path | None, *, progress: bool) -> Run:
        options, network = self.options, backbone(self.pipe)
        adapter = {f"lora.{name}": value for name, value in lora.parameters(network, ADAPTER).items()}
        learnt = Learnt(options.placeholder, _contexts(options), self.encoder, self.lengths if options.acn else None)
        objective = Objective(self.pipe, self.words, [learnt], penalty=options.regulariser)
        self._see_that_the_word_is_read()
        self.encoder.train()
        place = None if folder is None else folder / "training"
        trained: dict[str, Any] = {"encoder": self.encoder, **adapter}
        config = _configured(options)
        return fit(objective, trained, gathered([self.subject]), config, folder=place, progress=progress)

    @torch.no_grad()
    def _see_that_the_word_is_read(self) -> None:
        parts = text_parts(self.pipe)
        self.words.vectors[self.options.placeholder] = tuple(part.table.weight[0].detach() for part in parts)
        Condition.from_prompt(self.pipe, list(_contexts(self.options)[:1]))
        self.words.check_read()

    def finish(self, done: Run) -> Concept:
        network, options = backbone(self.pipe), self.options
        learnt = Learnt(options.placeholder, (), self.encoder, self.lengths if options.acn else None)
        v, embeddings = kept_embedding(learnt, self.subject)
        pairs = {
            name: tuple(side[ADAPTER].weight.detach().float().cpu().clone() for side in (layer.lora_A, layer.lora_B))
            for name, layer in lora.layers(network, ADAPTER).items()
        }
        facts: dict[str, Any] = {
            **{key: value for key, value in options.to_json().items() if key not in ("templates", "placeholder")},
            "pictures": len(self.subject.mean),
            "steps_done": done.step,
            "length_before": [round(float(vector.norm()), 4) for vector in v],
            "length": [round(float(vector.norm()), 4) for vector in embeddings],
            "length_of_noun": [round(length, 4) for length in self.lengths],
        }
        shared = {"rank": options.rank, "base": fingerprint(self.pipe), "facts": facts}
        return Concept(options.placeholder, options.class_word, embeddings, pairs, **shared)  # type: ignore[arg-type]


def encode(pipe: Any, subject: Subject, options: Options) -> nn.Module:
    """A new encoder for a subject, on the pipeline's device."""
    parts = text_parts(pipe)
    ids = [noun_ids(part, options.class_word) for part in parts]
    if options.encoder == "free":
        start = [class_embedding(part.table.weight, own) for part, own in zip(parts, ids, strict=True)]
        return Free(start).to(pipe.device)
    shape = Shape.of(parts[0].width, queries=options.queries, layers=options.encoder_layers)
    rows = parts[0].table.weight.detach()[torch.tensor(ids[0], device=parts[0].table.weight.device)].float().cpu()
    sizes: dict[str, Any] = {"noun": len(ids[0]), "features": subject.features.shape[-1]}
    made: nn.Module = seeded(
        lambda: QFormer(shape, widths=[part.width for part in parts], start=rows, **sizes), options.seed
    )
    return made.to(pipe.device)


def class_lengths(pipe: Any, class_word: str) -> tuple[float, ...]:
    """||c_l|| in each text encoder's token table.

    Raises:
        ValueError: the noun has no embedding.
    """
    return tuple(class_norm(part.table.weight, noun_ids(part, class_word)) for part in text_parts(pipe))


@torch.no_grad()
def kept_embedding(learnt: Learnt, subject: Subject) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """The one v that is kept, and its vhat: the mean over the pictures in eval mode, then normalised.

    Raises:
        ValueError: the concept has no encoder.
    """
    if learnt.encoder is None:
        raise ValueError(f"{learnt.word!r} is a word of the vocabulary: there is no embedding to keep")
    learnt.encoder.eval()
    v = tuple(vectors.float().mean(0).cpu().clone() for vectors in learnt.encoder(subject.features))
    return v, learnt.embeddings(v)


@contextmanager
def borrowed(pipe: Any) -> Iterator[None]:
    """Freeze all networks of a pipeline, in eval mode; afterwards they are as they were, without adapters of ours.

    An adapter of the user's is inactive meanwhile: a concept is learnt for the base model.
    """
    modules = [part for part in pipe.components.values() if isinstance(part, nn.Module)]
    modes = [(inner, inner.training) for module in modules for inner in module.modules()]
    needs = [(value, value.requires_grad) for module in modules for value in module.parameters()]
    network = backbone(pipe)
    active = [(part, list(part.active_adapters)) for part in network.modules() if isinstance(part, LoraLayer)]
    try:
        for module in modules:
            module.eval().requires_grad_(False)
        yield
    finally:
        if ADAPTER in getattr(network, "peft_config", {}):
            lora.remove(network, ADAPTER)
        for part, names in active:
            part.set_adapter(names)
        for inner, mode in modes:
            inner.training = mode
        for value, need in needs:
            value.requires_grad_(need)


def _contexts(options: Options) -> tuple[str, ...]:
    return tuple(prompts(f"{options.placeholder} {options.class_word}", options.templates or TEMPLATES))


def _configured(options: Options) -> Config:
    return Config(
        steps=options.steps,
        batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        rates={"encoder": options.encoder_rate},
        weight_decay=options.weight_decay,
        precision=options.precision,
        seed=options.seed,
        checkpoint_every=200,
    )


def _remember(folder: Path | None, made: _Making) -> None:
    """Keep what a run was begun with, and refuse to continue it with other settings or pictures.

    Raises:
        ValueError: the folder holds another run.
    """
    if folder is None:
        return
    path = folder / "learning.json"
    facts = {**made.options.to_json(), "pictures": made.digest, "base": fingerprint(made.pipe)}
    if path.is_file():
        known = files.read_json(path)
        if changed := sorted(key for key in facts if key != "steps" and known.get(key) != facts[key]):
            raise ValueError(f"{folder} holds a run with another {', '.join(changed)}; choose another folder")
    files.write_json(path, facts)


def _digest(pictures: Float[Tensor, "count 3 height width"]) -> str:
    """Names the pictures of a run, by their pixels in 8 bits."""
    rounded = (pictures.float() * 255).round().to(torch.uint8).cpu().contiguous()
    return hashlib.sha256(rounded.numpy().tobytes()).hexdigest()[:16]


def _refuse_integers(network: nn.Module, names: Iterable[str]) -> None:
    """Quantised layers give no gradient."""
    for name in names:
        if not hasattr(network.get_submodule(name), "weight"):
            raise ValueError(f"layer {name!r} is quantised: learn on the original model and place on this one")
