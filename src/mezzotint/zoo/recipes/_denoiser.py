"""The denoiser of `scenes`: a UNet2DConditionModel on 16x16 latents with Stable Diffusion 1.5's noise schedule.

Epsilon prediction, scaled-linear betas 0.00085..0.012, weights under which every noise level contributes about the
same loss (`balanced`), 10 % empty captions, timesteps stratified over each batch. Widths 64/192; the outer level has
cross-attention alone, the inner one self-attention too.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from mezzotint.diffusion.levels import Levels
from mezzotint.training import Config, Step

SCHEDULE = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "epsilon",
}
_EMPTY_SHARE = 0.1
_GAMMA = 5.0
_LAYOUT = -2.0

CONFIG = Config(
    steps=5000,
    batch_size=64,
    optimiser="muon",
    learning_rate=1e-3,
    rates={"text": 0.2},
    weight_decay=0.01,
    betas=(0.9, 0.99),
    schedule="cosine",
    warmup=150,
    final=0.03,
    precision="bfloat16",
    ema=0.9985,
    checkpoint_every=250,
    held_out_every=250,
    log_every=50,
)


def build() -> Any:
    """The untrained denoiser (8.3 M parameters)."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        block_out_channels=(64, 192),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        only_cross_attention=(True, False),
        cross_attention_dim=128,
        attention_head_dim=(2, 6),
        norm_num_groups=16,
    )


def levels() -> Levels:
    """The noise levels of the training schedule."""
    from diffusers import DDPMScheduler

    return Levels.from_scheduler(DDPMScheduler(**SCHEDULE))


def stratified(step: Step, share: Float[Tensor, " steps"]) -> Int[Tensor, " count"]:
    """One training timestep for each item, one from each of `batch_size` equal parts of a distribution.

    Args:
        step: what is being trained on.
        share: the probability of each timestep.
    """
    place = torch.arange(step.first, step.first + step.count, device=step.device)
    drawn = (place + step.uniform("timestep")) / step.batch_size
    return torch.searchsorted(share.cumsum(0).to(drawn), drawn, right=True).clamp(max=len(share) - 1)


def middle(alphas_cumprod: Float[Tensor, " steps"], around: float = 0.0) -> Float[Tensor, " steps"]:
    """Training timesteps, half of them uniform, half drawn from a logistic in log SNR.

    Latents of 16x16 lose their layout and then their shapes at lower noise than those of 64x64, for which the schedule
    was made (arXiv 2301.11093, section 2.1).

    Args:
        alphas_cumprod: the training schedule.
        around: the log SNR of the middle: 0 is where layouts turn into shapes, -2 where objects appear at all.
    """
    log_snr = (alphas_cumprod / (1 - alphas_cumprod)).log()
    bump = ((log_snr - around) / 2).cosh().pow(-2)
    return 0.5 * bump / bump.sum() + 0.5 / len(bump)


def min_snr(alphas_cumprod: Float[Tensor, " steps"]) -> Float[Tensor, " steps"]:
    """Weight min(SNR, gamma) / SNR of the epsilon loss at each timestep."""
    snr = alphas_cumprod / (1 - alphas_cumprod)
    return snr.clamp(max=_GAMMA) / snr


def balanced(alphas_cumprod: Float[Tensor, " steps"]) -> Float[Tensor, " steps"]:
    """Weight of the epsilon loss under which all timesteps contribute alike, as the learnt one of arXiv 2312.02696.

    That is min-SNR times sqrt(1 + 1 / SNR), halfway between the weights of epsilon and of v. Under min-SNR alone an
    error in the clean latents at log SNR -3 weighs a twentieth of one at 0, and objects go missing: `scenes` trained so
    left 19 % of one-object pictures without their object; 6 % given a true layout at log SNR -3.3, 2 % at -2.4.
    """
    snr = alphas_cumprod / (1 - alphas_cumprod)
    return min_snr(alphas_cumprod) * (1 + 1 / snr).sqrt()


def loss(unet: Any, text: Any, scale: float, *, fast: Any = None) -> Any:
    """Weighted epsilon error of a batch with `latents` (unscaled) and `ids` (several captions an item).

    `fast` is the same network, compiled, for the calls that are differentiated.
    """
    alphas_cumprod = levels().alphas_cumprod.float()
    weights, share = balanced(alphas_cumprod), middle(alphas_cumprod.double(), around=_LAYOUT)
    empty = torch.ones(48, dtype=torch.long)
    empty[0] = 0

    def of_batch(batch: dict[str, Tensor], step: Step) -> Tensor:
        clean = batch["latents"].float() * scale
        chosen = step.integers("caption", 0, batch["ids"].shape[1])
        ids = batch["ids"][torch.arange(len(chosen), device=chosen.device), chosen].long()
        ids = torch.where(step.uniform("empty")[:, None] < _EMPTY_SHARE, empty.to(ids.device), ids)
        timestep = stratified(step, share)
        noise = step.normal("noise", *clean.shape[1:])
        signal = alphas_cumprod.to(clean.device)[timestep][:, None, None, None]
        noisy = signal.sqrt() * clean + (1 - signal).sqrt() * noise
        # At this size the plain product-softmax-product is faster to differentiate on a CPU than the fused kernel.
        with sdpa_kernel([SDPBackend.MATH] if clean.device.type == "cpu" else list(_KERNELS)):
            network = fast if fast is not None and torch.is_grad_enabled() else unet
            made = network(noisy, timestep, text(ids).last_hidden_state).sample.float()
        error = (made - noise).square().mean((1, 2, 3))
        return (error * weights.to(error.device)[timestep]).mean()

    return of_batch


_KERNELS = (SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH)
