"""Attribute binding: focused cross-attention and disentangled text embeddings (arXiv 2404.13766)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from mezzotint.methods import Card, Effect

from .options import Mode, Options, Several, Variant
from .report import BindingReport

__all__ = ["CARD", "EFFECT", "BindingReport", "focus"]

CARD = Card(
    slug="binding",
    title="Attribute binding: FCA and DisCLIP",
    claim="With attribute tokens open only where their nouns are looked at, and with phrases embedded one by one, "
    "fewer attributes land on the wrong object than in the plain pipeline.",
    paper="Trusca, Nuyts, Thomm, Honig, Hofmann, Tuytelaars and Moens. Object-Attribute Binding in Text-to-Image "
    "Generation: Evaluation and Control. 2024.",
    arxiv="2404.13766",
    bibtex="""@article{trusca2024object,
  title   = {Object-Attribute Binding in Text-to-Image Generation: Evaluation and Control},
  author  = {Trusca, Maria Mihaela and Nuyts, Wolf and Thomm, Jonathan and Honig, Robert and Hofmann, Thomas and
             Tuytelaars, Tinne and Moens, Marie-Francine},
  journal = {arXiv preprint arXiv:2404.13766},
  year    = {2024}
}""",
    family="attention",
    inputs=("any text-to-image pipeline of diffusers with cross-attention", "a prompt"),
    outputs=("an effect on sampling, undone on leaving", "report (JSON: words, tokens, bindings, kept fractions)"),
    composes_with=("sampling", "distillation", "LoRA", "attention edits", "quantised weights"),
    departures=(
        "The default is the averaged, two-pass form; the released scripts run the raw-logit form (mode online_strict).",
        "Only attribute tokens are masked; the released raw-logit form also closes others where BOS is weak.",
        "The released averaged form is never reached and masks all but the attributes; here it is as described.",
        "Only the conditional half is masked (mask_uncond=True masks both, as released).",
        "Several heads of one attribute: union of their scaled maps (several='sum' is official).",
        "All sub-tokens of a word are constrained, and those of a head averaged; as released, only the first is.",
        "An attribute of which less than min_keep positions remain at a layer is left alone there, and counted.",
        "Grids that do not divide the size of the averaged maps are pooled adaptively.",
        "online_signed (max(s, 0) instead of |s|), oracle masks, steps and a mask value of -inf are ours.",
        "In the first pass the caller's callbacks are not called, so it is the run without them.",
        "Free prompts are parsed by built-in rules and a lexicon instead of the LAL-Parser: no model, no download.",
        "Colours and materials are attributes also where taggers call them nouns; quantifiers ('several') are none.",
        "Adjectives behind a copula are bound; every adjective of a noun phrase describes its noun.",
        "In constituents compounds are abstracted to their last noun; any preposition, 'and' or 'or' links phrases.",
        "DisCLIP encodes constituents in one padded batch; the encoder is causal, so the result is the same.",
        "SDXL: both encoders are disentangled, the pooled vector is the full prompt's. T5 is refused.",
        "StructureDiffusion averages value tokens instead of values, which is the same since W_v is affine.",
        "Attend-and-Excite: refinement steps are fractions of the trajectory (0, 0.2, 0.4: steps 0, 10, 20 of 50).",
        "Attend-and-Excite and SynGen: the attention grid nearest to 16x16 cells plays the role of 16x16.",
        "Attend-and-Excite: a noun of several tokens has the mean of their maps.",
    ),
)


@contextmanager
def focus(
    pipe: Any,
    prompt: str | Sequence[str],
    *,
    bindings: Sequence[Any] | None = None,
    parser: Callable[[str], Any] | None = None,
    mode: Mode = "averaged",
    tau: float = 0.6,
    masks: Any = None,
    disclip: bool | Variant = False,
    mask_uncond: bool = False,
    min_keep: int = 1,
    steps: tuple[float, float] = (0.0, 1.0),
    several: Several = "union",
    mask_value: float = -50.0,
) -> Iterator[BindingReport]:
    """Bind attributes to their nouns in what the pipeline draws inside the context.

    Inside, call the pipeline with the same prompt. In mode averaged a call runs twice from the same noise: once plainly
    to see where the nouns are looked at, without callbacks, and once masked. A prompt with nothing to bind gives the
    plain pipeline's picture, bit for bit, at its cost (but not in mode online_strict or with disclip).

    Args:
        pipe: a diffusers pipeline with cross-attention to a text (Stable Diffusion, SDXL, PixArt ...).
        prompt: one or several; a batch may have different bindings, and `num_images_per_prompt` repeats them.
        bindings: (attribute, head) pairs of words of the prompt, such as [("red", "cube")]; for several prompts a list
            a prompt. The dependable way.
        parser: finds bindings in a prompt when they are not given; the built-in English one by default.
        mode: where a noun is looked at: averaged (attention maps of a first pass), online (raw logits of the running
            layer), online_signed (their positive part), online_strict (as the released scripts, all tokens and both
            guidance halves), oracle (`masks`).
        tau: a position is kept where the noun's map, scaled to 1, is above it; in [0, 1).
        masks: for mode oracle, from a head (word or word index) to a mask [height, width] or a box (left, top, right,
            bottom) in 0..1; or a tensor [bindings, height, width]; for several prompts a list of these.
        disclip: also embed the prompt's phrases one by one: True or disclip, disclip-leaf, disclip-avg.
        mask_uncond: mask the unconditional half as well.
        min_keep: an attribute is left alone at a layer where fewer positions than this remain.
        steps: part of the trajectory in which masks act, as fractions of the scheduler's steps.
        several: union or sum of the maps of several heads of one attribute.
        mask_value: what is added to masked logits, negative; -inf closes them wholly.

    Yields:
        A report that is filled by each call of the pipeline.

    Raises:
        ValueError: a value outside its range, bindings that the prompt does not hold, masks that do not fit, a
            pipeline without text tokens to attend to, or a call with another prompt.
    """
    options = Options(
        mode=mode, tau=tau, mask_uncond=mask_uncond, min_keep=min_keep, steps=steps, several=several,
        mask_value=mask_value,
    )  # fmt: skip
    prompts = (prompt,) if isinstance(prompt, str) else tuple(prompt)
    if not prompts:
        raise ValueError("prompt must not be empty: give one text or several")
    given = [bindings] if isinstance(prompt, str) and bindings is not None else bindings
    if given is not None and len(given) != len(prompts):
        raise ValueError(f"bindings must have one list a prompt, {len(prompts)}; got {len(given)}")
    if masks is not None and mode != "oracle":
        raise ValueError(f"masks are for mode oracle, got mode {mode!r}")
    variant = ("disclip" if disclip else None) if isinstance(disclip, bool) else disclip
    from .focusing import focused

    with focused(
        pipe, prompts, bindings=given, parser=parser, masks=masks, disclip=variant, options=options
    ) as report:  # fmt: skip
        yield report


@contextmanager
def _act(
    pipe: Any, prompts: Sequence[str], *, bind: bool = False, binding: tuple[str, ...] = (), disclip: bool = False
) -> Iterator[BindingReport]:
    """Bind attributes while `mezzotint sample` draws.

    Args:
        pipe: the pipeline.
        prompts: of the batch.
        bind: keep each attribute of the prompt on its own object (focused cross-attention); takes twice the time.
        binding: the same for a pair that you name, such as red:cube; may be given several times.
        disclip: embed the phrases of the prompt one by one.
    """
    pairs = [_pair(each) for each in binding]
    given = [pairs] * len(prompts) if pairs or not bind else None
    with focus(pipe, list(prompts), bindings=given, disclip=disclip) as report:
        yield report


def _pair(text: str) -> tuple[str, str]:
    attribute, colon, noun = (part.strip() for part in text.rpartition(":"))
    if not (attribute and colon and noun):
        raise ValueError(f"--binding must be ATTRIBUTE:NOUN, such as red:cube, got {text!r}")
    return attribute, noun


EFFECT = Effect(_act)
