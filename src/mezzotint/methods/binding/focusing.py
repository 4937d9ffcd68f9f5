"""A pipeline whose attributes are bound while a context lasts: prompts, passes and attention put together."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from mezzotint.attention import Installation, backbone, install, sites
from mezzotint.diffusion import text_window

from .disclip import conditioning, overflow
from .fca import FocusedAttention
from .masks import Links, link, stacked
from .options import Options
from .oracle import given_maps
from .passes import Call, calling, position, rehearsal, unguided
from .report import BindingReport, Bound
from .resolve import syntax_of
from .tokens import token_indices
from .words import Binding, Syntax

__all__ = ["bound", "focused", "require_text_attention", "syntaxes"]


@contextmanager
def focused(
    pipe: Any,
    prompts: Sequence[str],
    *,
    bindings: Sequence[Any] | None,
    parser: Any,
    masks: Any,
    disclip: str | None,
    options: Options,
) -> Iterator[BindingReport]:
    """The body of `binding.focus`, which explains the arguments; `bindings` has one entry a prompt here."""
    require_text_attention(pipe)
    parsed = syntaxes(prompts, bindings, parser)
    report = BindingReport(options.mode, options.tau, tuple(bound(pipe, syntax) for syntax in parsed))
    if disclip is not None:
        report.left_out = tuple(tuple(each.text for each in row) for row in overflow(pipe, list(prompts), parsed))
    links = stacked([_links(each, options) for each in report.prompts])
    embeds = None if disclip is None else conditioning(pipe, list(prompts), parsed, variant=disclip)
    attention = None
    if links.bindings or options.mode == "online_strict":
        given = given_maps(masks, report.prompts, links.bindings) if options.mode == "oracle" else None
        # The scheduler is looked up when a step is, for it may be exchanged meanwhile.
        schedule = partial(_position, pipe)
        attention = FocusedAttention(links, options, report, schedule=schedule, maps=given)
    with ExitStack() as stack:
        installation = None if attention is None else stack.enter_context(install(pipe, *attention.edits()))
        run = _Run(pipe, tuple(prompts), embeds, attention, installation)
        stack.enter_context(calling(pipe, run))
        yield report


@dataclass(frozen=True)
class _Run:
    """What a call of the pipeline does inside the context."""

    pipe: Any
    prompts: tuple[str, ...]
    embeds: dict[str, Any] | None
    attention: FocusedAttention | None
    installation: Installation | None

    def __call__(self, call: Call, arguments: dict[str, Any]) -> Any:
        _require_prompts(arguments, self.prompts)
        _require_text(self.pipe, self.prompts, arguments)
        arguments = arguments if self.embeds is None else _swapped(arguments, self.embeds)
        attention, installation = self.attention, self.installation
        if attention is None or installation is None:
            return call(**arguments)
        attention.begin()
        attention.pictures = len(self.prompts) * _images(self.pipe, arguments)
        with installation.passing("cond") if unguided(self.pipe, arguments) else nullcontext():
            try:
                if attention.options.mode == "averaged":
                    self._record(attention, installation, call, arguments)
                return call(**arguments)
            finally:
                attention.rest()

    def _record(
        self, attention: FocusedAttention, installation: Installation, call: Call, arguments: dict[str, Any]
    ) -> None:
        """The first pass: as the plain pipeline, from the same noise."""
        with attention.recorded():
            rehearsal(call, arguments, torch.device(self.pipe._execution_device))
        size = installation.plan.latent
        assert size is not None
        attention.use(attention.recorder.average(size))
        installation.reset()


def syntaxes(prompts: Sequence[str], bindings: Sequence[Any] | None, parser: Any) -> list[Syntax]:
    """The syntax of every prompt, from given bindings, a parser, or the built-in one."""
    given = [None] * len(prompts) if bindings is None else bindings
    return [syntax_of(prompt, pairs, parser) for prompt, pairs in zip(prompts, given, strict=True)]


def bound(pipe: Any, syntax: Syntax) -> Bound:
    """A prompt's words with the text tokens that the pipeline makes of them.

    Raises:
        ValueError: the pipeline rewrites the prompt, or its tokenizers cut it differently.
    """
    text = _as_read(pipe, syntax)
    tokenizers = [each for each in (getattr(pipe, name, None) for name in ("tokenizer", "tokenizer_2")) if each]
    spans = [token_indices(tokenizer, text, length=text_window(pipe)) for tokenizer in tokenizers]
    pairs = tuple(dict.fromkeys((binding.attribute, binding.head) for binding in syntax.bindings))
    words = {number for pair in pairs for number in pair}
    if any(each[number] != spans[0][number] for each in spans for number in words):
        raise ValueError(f"the two tokenizers of the pipeline cut {syntax.prompt!r} differently: it cannot be bound")
    acting = tuple(i for i, (attribute, head) in enumerate(pairs) if spans[0][attribute] and spans[0][head])
    texts = tuple(word.text for word in syntax.words)
    return Bound(syntax.prompt, texts, spans[0], pairs, acting, tuple(part.text for part in syntax.constituents))


def require_text_attention(pipe: Any) -> None:
    """Refuses pipelines without text tokens to attend to.

    Raises:
        ValueError: there is no tokenizer, no cross-attention, or the network changes the text's tokens.
    """
    if any(base.__name__ in {"PAGMixin", "StableDiffusionSAGPipeline"} for base in type(pipe).__mro__):
        raise ValueError(
            f"{type(pipe).__name__} exchanges attention processors while it draws, which leaves no room for others: "
            "use the pipeline without perturbed or self-attention guidance"
        )
    if getattr(pipe, "tokenizer", None) is None:
        raise ValueError(f"{type(pipe).__name__} has no tokenizer: a class-conditional model has no words to bind")
    network = backbone(pipe)
    if not any(site.kind == "cross" for site in sites(network)):
        raise ValueError(f"{type(network).__name__} has no cross-attention: there are no text tokens to bind")
    projection = getattr(network.config, "encoder_hid_dim_type", None)
    if projection in ("text_image_proj", "image_proj"):
        raise ValueError(f"the network's encoder_hid_proj ({projection}) changes the text tokens: they cannot be bound")


def _links(each: Bound, options: Options) -> Links:
    acting = [Binding(*each.bindings[number]) for number in each.acting]
    return link(each.tokens, acting, several=options.several)


def _as_read(pipe: Any, syntax: Syntax) -> Syntax:
    """The prompt as the text encoder reads it: PixArt lowers and strips it, textual inversions may lengthen it."""
    prompt = syntax.prompt
    if hasattr(pipe, "maybe_convert_prompt") and pipe.maybe_convert_prompt(prompt, pipe.tokenizer) != prompt:
        raise ValueError("a learned word of the prompt stands for several tokens: it cannot be aligned with the text")
    if not hasattr(pipe, "_text_preprocessing"):
        return syntax
    lowered, margin = prompt.lower().strip(), len(prompt) - len(prompt.lstrip())
    if len(lowered) != len(prompt.strip()):
        raise ValueError(f"lower case changes the length of {prompt!r}: its words cannot be aligned")
    words = tuple(replace(word, start=word.start - margin, end=word.end - margin) for word in syntax.words)
    return replace(syntax, prompt=lowered, words=words)


def _images(pipe: Any, arguments: dict[str, Any]) -> int:
    """Pictures of a prompt that a call asks for."""
    parameter = inspect.signature(type(pipe).__call__).parameters.get("num_images_per_prompt")
    usual = 1 if parameter is None or parameter.default is inspect.Parameter.empty else parameter.default
    return int(arguments.get("num_images_per_prompt", usual) or 1)


def _swapped(arguments: dict[str, Any], embeds: dict[str, Any]) -> dict[str, Any]:
    for name in ("prompt_embeds", "clip_skip"):
        if arguments.get(name) is not None:
            raise ValueError(f"disclip makes the embeddings itself: leave {name} away, or give focus disclip=False")
    second = {"prompt_2": None} if "prompt_2" in arguments else {}
    return arguments | {"prompt": None} | second | embeds


def _require_prompts(arguments: dict[str, Any], prompts: tuple[str, ...]) -> None:
    called, embeds = arguments.get("prompt"), arguments.get("prompt_embeds")
    listed = (called,) if isinstance(called, str) else tuple(called or ())
    if called is not None and listed != prompts:
        raise ValueError(
            f"focus was given {list(prompts)}, the pipeline is called with {list(listed)}: give both the same"
        )
    if called is None and embeds is not None and len(embeds) != len(prompts):
        raise ValueError(f"focus was given {len(prompts)} prompts, the pipeline {len(embeds)} embeddings")
    second = arguments.get("prompt_2")
    if second is not None and second != called:
        raise ValueError("prompt_2 must be the prompt itself where attributes are bound: tokens of both share a place")


def _require_text(pipe: Any, prompts: tuple[str, ...], arguments: dict[str, Any]) -> None:
    """PixArt may rewrite captions further than `_as_read` knows."""
    if arguments.get("clean_caption", True) and hasattr(pipe, "_clean_caption") and _can_clean():
        cleaned = pipe._text_preprocessing(list(prompts), clean_caption=True)
        if cleaned != [prompt.lower().strip() for prompt in prompts]:
            raise ValueError("the pipeline cleans the prompt, which moves its words: call it with clean_caption=False")


def _can_clean() -> bool:
    from diffusers.utils import is_bs4_available, is_ftfy_available

    return bool(is_bs4_available() and is_ftfy_available())


def _position(pipe: Any, timestep: float) -> tuple[int, int] | None:
    return position(pipe.scheduler, timestep)
