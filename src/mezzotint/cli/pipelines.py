"""Pipelines as the command line needs them: loaded from a word, identified by a hash, with the solver asked for."""

from __future__ import annotations

import inspect
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from mezzotint.cli.terminal import UsageError, quiet

__all__ = ["Solver", "default", "hash_of", "is_here", "load", "set_solver", "set_timesteps", "takes", "versions"]

Solver = Literal["model", "ddim", "ddpm", "dpm++", "dpm++sde", "euler"]

_SOLVERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddim": ("DDIMScheduler", {}),
    "ddpm": ("DDPMScheduler", {}),
    "dpm++": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++"}),
    "dpm++sde": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "euler": ("EulerDiscreteScheduler", {}),
}
_PACKAGES = ("mezzotint", "torch", "diffusers", "transformers", "numpy", "pillow")


@lru_cache(maxsize=1)
def versions() -> dict[str, str]:
    """Return the installed versions of everything that a picture's bytes depend on."""
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def load(model: str, *, device: str, dtype: str) -> Any:
    """Load a pipeline and keep its libraries from talking.

    Args:
        model: name of an embedded pipeline, folder, or hub id.
        device: where to compute.
        dtype: name of a torch dtype.

    Raises:
        UsageError: this machine has no such device.
    """
    import torch

    quiet()
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as cause:
        reason = str(cause).splitlines()[0]
        raise UsageError(f"device {device!r} is not usable here ({reason}); try --device cpu") from cause
    from mezzotint.loading import load as load_pipeline

    pipe = load_pipeline(model, device=device, dtype=dtype)
    if hasattr(pipe, "set_progress_bar_config"):
        pipe.set_progress_bar_config(disable=True)
    return pipe


def is_here(model: str) -> bool:
    """Whether the word is an embedded pipeline or a folder on this machine, so that no network is needed."""
    from mezzotint.loading import find

    try:
        return find(model) is not None
    except ValueError:
        return False


def hash_of(model: str) -> str:
    """Name the content of the model that `load` reads for this word; a hub id must have been loaded before."""
    from mezzotint.loading import find, model_hash

    folder = find(model)
    if folder is None:
        from huggingface_hub import snapshot_download

        folder = Path(snapshot_download(model, local_files_only=True))
    return model_hash(folder)


def takes(pipe: Any, parameter: str) -> bool:
    """Whether a pipeline's call has this parameter."""
    return parameter in inspect.signature(type(pipe).__call__).parameters


def default(pipe: Any, parameter: str) -> Any:
    """Return the value for a parameter that is not given: what the model recommends, else what its call would use."""
    from mezzotint.loading import recommended

    if (best := recommended(pipe, parameter)) is not None:
        return best
    found = inspect.signature(type(pipe).__call__).parameters.get(parameter)
    return None if found is None or found.default is inspect.Parameter.empty else found.default


def _is_ddim(pipe: Any, solver: str) -> bool:
    """Whether the steps are DDIM's, without any clipping of the predicted picture."""
    config = pipe.scheduler.config
    if config.get("clip_sample") or config.get("thresholding"):
        return False
    return solver == "ddim" or (solver == "model" and type(pipe.scheduler).__name__ == "DDIMScheduler")


def set_solver(pipe: Any, solver: str, *, custom: bool = False, final: str = "zero") -> None:
    """Exchange the pipeline's sampler, keeping its noise levels and its kind of prediction.

    DDIM is the first-order DPM-Solver++ (arXiv 2211.01095), and diffusers' class for the latter takes custom timesteps
    where its DDIM class does not; so with custom timesteps DDIM runs in that form.

    Args:
        pipe: changed in place.
        solver: ``"model"`` keeps its own.
        custom: custom timesteps will be set.
        final: with custom timesteps, where the last step ends: ``"zero"`` noise, or ``"t_min"``, the lowest level.
    """
    import diffusers

    if custom and _is_ddim(pipe, solver):
        name, settings = "DPMSolverMultistepScheduler", {"solver_order": 1, "algorithm_type": "dpmsolver++"}
    elif solver == "model":
        name, settings = type(pipe.scheduler).__name__, {}
    else:
        name, settings = _SOLVERS[solver]
    ends = {"final_sigmas_type": "sigma_min" if final == "t_min" else "zero"} if custom else {}
    kind = getattr(diffusers, name, type(pipe.scheduler))
    known = inspect.signature(kind.__init__).parameters
    wanted = settings | {key: value for key, value in ends.items() if key in known}
    if solver != "model" or wanted:
        pipe.scheduler = kind.from_config(pipe.scheduler.config, **wanted)


def set_timesteps(pipe: Any, timesteps: tuple[int, ...]) -> None:
    """Make the pipeline's sampler run exactly these timesteps, whatever number its call asks for.

    Args:
        pipe: changed in place.
        timesteps: strictly decreasing training indices.

    Raises:
        UsageError: the sampler takes no custom timesteps, or the model has no such index.
    """
    scheduler = pipe.scheduler
    trained = int(scheduler.config.num_train_timesteps)
    if timesteps[0] >= trained or timesteps[-1] < 0:
        raise UsageError(f"timesteps must be in 0..{trained - 1}, got {timesteps[0]}..{timesteps[-1]}")
    if "timesteps" not in inspect.signature(scheduler.set_timesteps).parameters:
        raise UsageError(
            f"{type(scheduler).__name__} takes no custom timesteps, which --schedule needs; "
            "choose one that does: --solver dpm++, dpm++sde, euler or ddpm"
        )
    original = scheduler.set_timesteps

    def fixed(num_inference_steps: int | None = None, device: Any = None, **_: Any) -> None:
        del num_inference_steps
        original(timesteps=list(timesteps), device=device)

    scheduler.set_timesteps = fixed
