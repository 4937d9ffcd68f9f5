"""Export of an adapter to the kohya key layout (`lora_unet_<layer>.lora_down.weight`, `.lora_up.weight`, `.alpha`).

Other image tools ignore keys that they do not know, without a word. So every export is read back with the converter
that diffusers applies to such files, and is refused unless the output of the model changes, and changes as it should.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from jaxtyping import Float
from torch import Tensor, nn

from mezzotint import files
from mezzotint.diffusion import rng
from mezzotint.training import lora

Probe = Callable[[nn.Module], Tensor]
PREFIXES = {"unet": "lora_unet", "text_encoder": "lora_te", "text_encoder_2": "lora_te2"}
CHECK = "export-check"


def export(
    path: str | Path, models: Mapping[str, nn.Module], *, name: str = "default", probe: Probe | None = None
) -> Path:
    """Write an adapter in kohya's layout and verify the file by reading it back.

    Args:
        path: the .safetensors file to write.
        models: adapted components by diffusers' names: "unet", "text_encoder", "text_encoder_2".
        name: name of the adapter.
        probe: computes the U-Net's output on some input; None for random latents, embeddings and timestep.

    Returns:
        The file.

    Raises:
        ValueError: if a component has no place in the layout, or the file read back does not change the output as the
            adapter does; the file is then not left behind.
    """
    unknown = models.keys() - PREFIXES.keys()
    if unknown:
        raise ValueError(f"the kohya layout knows {', '.join(PREFIXES)}, got {', '.join(sorted(unknown))}")
    target = Path(path)
    files.write_safetensors(target, converted(models, name), {"format": "pt"})
    unet = models.get("unet")
    try:
        if unet is not None:
            verify(target, unet, name=name, probe=probe or random_probe)
    except ValueError:
        target.unlink()
        raise
    return target


def converted(models: Mapping[str, nn.Module], name: str = "default") -> dict[str, Tensor]:
    """An adapter's weights under kohya's names, each layer with its own alpha."""
    found: dict[str, Tensor] = {}
    for component, model in models.items():
        first = "lora_te1" if component == "text_encoder" and "text_encoder_2" in models else PREFIXES[component]
        for key, layer in lora.layers(model, name).items():
            stem = f"{first}.{lora.stored_name(component, key).partition('.')[2]}".replace(".", "_")
            found[f"{stem}.lora_down.weight"] = layer.lora_A[name].weight.detach().contiguous()
            found[f"{stem}.lora_up.weight"] = layer.lora_B[name].weight.detach().contiguous()
            found[f"{stem}.alpha"] = torch.tensor(float(layer.scaling[name] * layer.r[name]))
    return found


def verify(path: Path, unet: nn.Module, *, name: str = "default", probe: Probe) -> float:
    """Read a kohya file with diffusers' own converter into the U-Net and compare outputs; the U-Net is left as it was.

    Returns:
        Largest change of the output that the file makes.

    Raises:
        ValueError: if the output does not change, or differs from that of the live adapter by over 1 % of the change.
    """
    stored = files.read_safetensors(path)
    with torch.no_grad():
        with lora.disabled(unet):
            base = probe(unet)
        live = probe(unet)
        state, alphas = StableDiffusionPipeline.lora_state_dict(dict(stored))
        with lora.several_adapters():
            StableDiffusionPipeline.load_lora_into_unet(state, alphas, unet, adapter_name=CHECK)
        try:
            lora.activate(unet, CHECK)
            again = probe(unet)
        finally:
            lora.remove(unet, CHECK)
            lora.activate(unet, name)
    change = float((again - base).abs().max())
    if change == 0.0:
        raise ValueError(
            f"{path.name} changes nothing when it is read back: the adapter is untrained, or no key matches"
        )
    if float((again - live).abs().max()) > 0.01 * change:
        raise ValueError(f"{path.name} read back does not act as the adapter does: layers or scales were lost")
    return change


def random_probe(model: nn.Module) -> Float[Tensor, "batch channels height width"]:
    """The output of a U-Net for random latents, embeddings and a middle timestep.

    Raises:
        ValueError: if the model is not a UNet2DConditionModel; give a probe of your own.
    """
    if not isinstance(model, UNet2DConditionModel):
        raise ValueError(f"there is no ready probe for a {type(model).__name__}; give one: probe(model) -> tensor")
    config, first = model.config, next(model.parameters())
    generator = rng.stream(0, "lora/probe")

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(first.device, model.dtype)

    extra: dict[str, Tensor] = {}
    if config.addition_embed_type == "text_time":
        width = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        extra = {"text_embeds": draw(1, width), "time_ids": torch.ones(1, 6, device=first.device)}
    size = 2 ** len(config.block_out_channels)
    latents, words = draw(1, config.in_channels, size, size), draw(1, 4, config.cross_attention_dim)
    time = torch.tensor([500], device=first.device)
    output: Tensor = model(latents, time, words, added_cond_kwargs=extra, return_dict=False)[0]
    return output.float()
