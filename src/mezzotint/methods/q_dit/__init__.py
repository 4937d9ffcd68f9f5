"""Q-DiT: post-training quantisation of diffusion transformers by groups of input channels (arXiv 2406.17343)."""

from __future__ import annotations

from mezzotint.methods import Card

__all__ = ["CARD"]

CARD = Card(
    slug="q_dit",
    title="Q-DiT",
    claim="With 4-bit weights and 8-bit activations, group-wise scales with ranges measured at run time keep a diffusion "
    "transformer closer to its full-precision self than per-row weights with static ranges do.",
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
    outputs=("the same pipeline with packed integer layers",),
    composes_with=("sampling", "LoRA", "attention edits"),
)
