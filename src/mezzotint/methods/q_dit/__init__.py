"""Q-DiT: post-training quantisation of diffusion transformers by groups of input channels (arXiv 2406.17343)."""

from __future__ import annotations

from typing import Any, Literal

from mezzotint.methods import Card

from .groups import DEFAULT, SPACE
from .quantised import LayerReport, Quantised

__all__ = ["CARD", "VERBS", "LayerReport", "Quantised", "quantise"]

CARD = Card(
    slug="q_dit",
    title="Q-DiT",
    claim="With 4-bit weights and 8-bit activations, GPTQ in groups of channels with activation ranges measured at run "
    "time keeps a diffusion transformer closer to its full precision than rounding rows to nearest with static ranges "
    "does.",
    paper="Chen, Meng, Tang, Ma, Jiang, Wang, Wang and Zhu. Q-DiT: Accurate Post-Training Quantization for Diffusion "
    "Transformers. CVPR 2025.",
    arxiv="2406.17343",
    bibtex="""@inproceedings{chen2025qdit,
  title     = {Q-DiT: Accurate Post-Training Quantization for Diffusion Transformers},
  author    = {Chen, Lei and Meng, Yuan and Tang, Chen and Ma, Xinzhu and Jiang, Jingyan and Wang, Xin and Wang, Zhi and
               Zhu, Wenwu},
  booktitle = {IEEE/CVF Conference on Computer Vision and Pattern Recognition},
  year      = {2025}
}""",
    family="compression",
    inputs=("any diffusers pipeline with a transformer or a U-Net",),
    outputs=("the same pipeline with packed integer layers, in memory or as a folder",),
    composes_with=("sampling", "guidance", "attention edits"),
    departures=(
        "Ranges always contain zero; the public round-to-nearest path clamps zero points and saturates some groups.",
        "GPTQ takes the scales of a group from its current columns; official_stale_params those of the public code.",
        "The modulation (adaLN) is quantised too, weights alone, in groups of at most 128.",
        "One gene of the search is one shared input: query, key and value have one group size.",
        "A gene changes weights and activations of exactly its layers; in the public search activations never change.",
        "Candidates are judged by latents beside full precision from the same noise, not by FID, on fewer pictures.",
        "Candidates have the precisions of the final model (asymmetric unless asked otherwise), rounded to nearest.",
        "Searched sizes hold layer by layer, also in GPTQ; the public pipeline takes those of one block for all.",
        "With static ranges, the matrix of GPTQ is made from inputs that are not quantised.",
        "Fast mode re-rounds rows to one int8 scale a row, and inputs to one a token; not the simulated grid.",
        "Static ranges are averaged in the one pass over each block, behind blocks that are already quantised.",
    ),
)


def quantise(
    pipe: Any,
    *,
    weights: Literal[2, 3, 4, 5, 6, 8] = 4,
    activations: Literal[2, 3, 4, 5, 6, 8, 16] = 8,
    group: int | Literal["search", "auto", "row"] = DEFAULT,
    rounding: Literal["gptq", "rtn"] = "gptq",
    symmetric: bool = False,
    act_scope: Literal["token", "sample"] = "token",
    act_range: Literal["dynamic", "static"] = "dynamic",
    ranges: Literal["max", "mse"] = "max",
    smoothing: float | None = None,
    modulation: bool = True,
    layers: tuple[str, ...] = (),
    executor: Literal["auto", "simulate", "integer", "fused", "fast"] = "auto",
    prompts: tuple[int | str, ...] = (),
    samples: int = 256,
    steps: int = 50,
    guidance: float = 1.5,
    batch_size: int = 16,
    space: tuple[int, ...] = SPACE,
    constraint: Literal["mean_group", "scale_ops", "bytes"] = "mean_group",
    budget_group: int = DEFAULT,
    generations: int = 10,
    population: int = 50,
    pictures: int = 64,
    official_stale_params: bool = False,
    seed: int = 0,
    calibration: Any = None,
) -> Quantised:
    """Quantise the network of a pipeline to small integers, without training; the pipeline given stays as it is.

    Args:
        pipe: a diffusers pipeline with a transformer (DiT, PixArt, SD3, Flux ...) or a U-Net, not quantised yet.
        weights: bits of a weight.
        activations: bits of a layer's input; 16 leaves inputs alone.
        group: input channels that share a scale: a number that divides every layer's width, auto (largest divisor up
            to 128), row (one scale a row), or search (one size for every layer, found by evolution).
        rounding: gptq makes up for rounding with calibration data, rtn rounds to nearest.
        symmetric: codes around zero, without zero points, for weights and activations.
        act_scope: one activation range for every token, or for every sample.
        act_range: measured at run time, or fixed from calibration data.
        ranges: of weights: the extremes, or the shrunken range with the least error.
        smoothing: SmoothQuant's alpha, 0 to 1; none when not given.
        modulation: quantise the weights of adaLN layers too.
        layers: names of the layers to quantise; all linear ones inside transformer blocks when empty.
        executor: how the integers are multiplied; auto takes the fastest that this machine has.
        prompts: texts, class names or class indices of calibration pictures, used in turn; random classes when empty.
        samples: calibration inputs.
        steps: sampling steps of calibration and search.
        guidance: guidance scale of calibration pictures.
        batch_size: calibration pictures at once.
        space: group sizes that the search chooses from.
        constraint: what the search has a budget of: mean group size, rescalings of outputs, or bytes.
        budget_group: the budget is what this group size everywhere would spend.
        generations: of the search.
        population: of the search.
        pictures: on which the search judges a candidate.
        official_stale_params: GPTQ scales as the public code takes them.
        seed: of calibration and search.
        calibration: a `calibration.Calibration` of your own instead of sampled inputs.

    Raises:
        ValueError: a value outside its range, a group that does not divide a layer's width, weights that are not
            finite, a network in training mode, quantised already or with LoRA layers, nothing to quantise.
    """
    options = dict(locals())
    from .driver import quantise_pipeline

    return quantise_pipeline(options.pop("pipe"), calibration=options.pop("calibration"), **options)


VERBS = {"quantize": quantise}
