"""From a trained student to files of diffusers: a folded network in a pipeline, or a LoRA, with an LCM scheduler."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import LCMScheduler

from mezzotint import files
from mezzotint.training import lora
from mezzotint.zoo.saving import load_as_float32

from .adapters import exported
from .distilled import Distilled
from .embedding import gamma_embedding
from .networks import GammaTransformer, folded, projection, replica
from .points import sampling_timesteps
from .scalings import SCALING

__all__ = ["FACTS", "assembled", "component", "lcm_scheduler", "write"]

FACTS = "metrics.json"
"""Where `mezzotint.loading.recommended` looks for the settings a model wants."""


def component(pipe: Any) -> str:
    """Under which name a pipeline holds its network."""
    return "unet" if getattr(pipe, "unet", None) is not None else "transformer"


def lcm_scheduler(scheduler: Any, points: int) -> LCMScheduler:
    """The few-step sampler on the teacher's noise levels."""
    settings = {"original_inference_steps": points, "timestep_scaling": SCALING}
    plain = {"clip_sample": False, "thresholding": False}
    made: LCMScheduler = LCMScheduler.from_config(_known(scheduler.config), **settings, **plain)
    return made


def assembled(made: Distilled, *, online: bool = False) -> Any:
    """See `Distilled.pipeline`."""
    with _weights(made, online=online):
        network = _network(made)
    pipe = copy.copy(made.pipe)
    scheduler = lcm_scheduler(made.pipe.scheduler, made.options.points)
    pipe.register_modules(**{component(pipe): network}, scheduler=scheduler)
    # What the teacher recommends (a guidance scale, found through its path) no longer holds.
    pipe.register_to_config(_name_or_path=None)
    return pipe


def write(made: Distilled, path: Path, *, online: bool = False) -> Path:
    """See `Distilled.save`."""
    pipe = assembled(made, online=online)
    with files.atomic_folder(path) as folder:
        if made.options.lora:
            _write_adapter(made, pipe, folder, online=online)
        else:
            pipe.save_pretrained(folder, safe_serialization=True)
            load_as_float32(folder)
        files.write_json(folder / FACTS, _facts(made))
        files.write_text(folder / "README.md", _card(made))
    return path


def _known(config: Any) -> dict[str, Any]:
    """The part of a scheduler's configuration that the LCM scheduler has, too."""
    import inspect

    names = inspect.signature(LCMScheduler.__init__).parameters
    return {key: value for key, value in config.items() if key in names}


@contextmanager
def _weights(made: Distilled, *, online: bool) -> Iterator[None]:
    """The averaged weights in the student's network; the online ones are put back."""
    if made.average is None or online:
        if online and made.average is not None:
            warnings.warn("the online weights are noisier than their average; use the average", stacklevel=5)
        yield
        return
    live = dict(made.student.named_parameters())
    kept = {name: live[name].detach().clone() for name in made.average}
    try:
        with torch.no_grad():
            for name, value in made.average.items():
                live[name].copy_(value)
        yield
    finally:
        with torch.no_grad():
            for name, value in kept.items():
                live[name].copy_(value)


def _network(made: Distilled) -> Any:
    options = made.options
    embedding = None
    if options.embedded:
        width = projection(made.student).in_features
        embedding = gamma_embedding(torch.ones(1), width)
    if options.lora:
        base = getattr(made.pipe, component(made.pipe))
        trained = int(made.pipe.scheduler.config.num_train_timesteps)
        return exported(base, made.student, embedding, trained)
    if embedding is None:
        return _without_layer(made.student)
    if options.mode == "lcm":
        return replica(made.student)
    return folded(made.student, embedding)


def _without_layer(student: Any) -> Any:
    """A student that was trained without the embedding, without the layer for it that it may bring."""
    if isinstance(student, GammaTransformer):
        return replica(student.network)
    if getattr(student.config, "time_cond_proj_dim", None) is None:
        return replica(student)
    return folded(student, None)


def _write_adapter(made: Distilled, pipe: Any, folder: Path, *, online: bool) -> None:
    name = component(pipe)
    lora.save(folder, {name: getattr(pipe, name)})
    pipe.scheduler.save_pretrained(folder / "scheduler")
    if made.options.embedded:
        with _weights(made, online=online):
            layer = projection(made.student).weight.detach().clone()
        files.write_safetensors(folder / "cond_proj.safetensors", {"cond_proj.weight": layer})


def _facts(made: Distilled) -> dict[str, Any]:
    low, _ = made.options.sampling_guidance
    scale = made.options.guidance if made.options.mode == "lcm" else low
    return {
        "recommended": {"guidance_scale": scale, "num_inference_steps": 4},
        "distillation": made.to_json(),
        "timesteps": {str(n): list(_timesteps(made, n)) for n in (1, 2, 4, 8) if n <= made.options.points},
    }


def _timesteps(made: Distilled, steps: int) -> tuple[int, ...]:
    return sampling_timesteps(steps, made.options.points, int(made.pipe.scheduler.config.num_train_timesteps))


def _card(made: Distilled) -> str:
    kind = type(made.pipe).__name__
    facts = f"Distilled with mezzotint: {made.facts.get('form')}, {made.facts.get('steps_done')} steps.\n"
    if made.options.lora:
        name = component(made.pipe)
        stock = hasattr(made.pipe, "load_lora_weights")
        own = f'mezzotint.training.lora.load(THIS_FOLDER, {{"{name}": pipe.{name}}})'
        use = (
            f"pipe = {kind}.from_pretrained(TEACHER)\n"
            f"{'pipe.load_lora_weights(THIS_FOLDER)' if stock else own}\n"
            'pipe.scheduler = LCMScheduler.from_pretrained(THIS_FOLDER, subfolder="scheduler")\n'
        )
    else:
        use = f"pipe = {kind}.from_pretrained(THIS_FOLDER)\n"
    scale = _facts(made)["recommended"]["guidance_scale"]
    call = f"image = pipe(PROMPT, num_inference_steps=4, guidance_scale={scale}).images[0]\n"
    return f"# {made.facts.get('form')}\n\n{facts}\n```python\n{use}{call}```\n"
