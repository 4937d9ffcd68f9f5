"""What concepts in boxes cost a guided pass of a U-Net with the proportions of Stable Diffusion 1.5 at a smaller size.

Four levels, two layers a block, 77 tokens, disjoint strips, rank 16 on all attention layers. The arms take turns within
every round; keys and values of the regions are there already, as in every step of a run but the first. Figures are the
median processor seconds of a pass and the median ratio to the pass without concepts. Run:
`python benchmarks/multibooth_regions.py`.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from attention_overhead import measure
from diffusers import UNet2DConditionModel

from mezzotint.attention import install
from mezzotint.methods.multibooth.base import projections
from mezzotint.methods.multibooth.boxes import auto_boxes
from mezzotint.methods.multibooth.regions import Customised, edits

TOKENS = 77


def concepts(unet: UNet2DConditionModel, count: int, rank: int) -> Customised:
    """Random concepts of the true shapes, in strips."""
    shapes = projections(unet)
    loras = [
        {name: (0.02 * torch.randn(rank, n), 0.02 * torch.randn(m, rank)) for name, (n, m) in shapes.items()}
        for _ in range(count)
    ]
    texts = tuple(torch.randn(count, 1, TOKENS, unet.config.cross_attention_dim).unbind(0))
    return Customised(tuple(auto_boxes(count)), (1.0,) * count, texts, tuple(loras))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", type=int, nargs="+", default=[0, 1, 2, 3, 5], help="numbers of concepts")
    parser.add_argument("--side", type=int, default=32, help="side of the latents")
    parser.add_argument("--width", type=int, default=80, help="channels of the first level; 320 in Stable Diffusion")
    parser.add_argument("--rank", type=int, default=16, help="of the LoRA")
    parser.add_argument("--rounds", type=int, default=7, help="rounds of all arms")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    width, text_width = options.width, options.width * 768 // 320
    unet = UNet2DConditionModel(
        sample_size=options.side, block_out_channels=(width, 2 * width, 4 * width, 4 * width),
        norm_num_groups=16, attention_head_dim=8, cross_attention_dim=text_width,
    ).eval().requires_grad_(False)  # fmt: skip
    latent, text = torch.randn(2, 4, options.side, options.side), torch.randn(2, TOKENS, text_width)

    @contextmanager
    def arm(count: int) -> Iterator[None]:
        with install(unet, *edits(unet, concepts(unet, count, options.rank))):
            unet(latent, 500, text)
            yield

    arms = {f"{count} concepts": partial(arm, count) for count in options.counts}
    with torch.inference_mode():
        for row in measure(f"latents {options.side}", lambda: unet(latent, 499, text), arms, options.rounds):
            print(f"{row.arm:12} {row.seconds:8.3f} s   x {row.ratio:.3f} [{row.low:.3f}, {row.high:.3f}]", flush=True)


if __name__ == "__main__":
    main()
