"""One view D(x, level, condition) over any diffusers U-Net or transformer and whatever it predicts.

`eps`, `x0` and `v` take the model's own variance preserving input x_t and a training timestep; `denoise` is the EDM
view (arXiv 2206.00364, sec. 5): VE input x0 + sigma eps, result E[x0 | x]. Outputs with a learned variance (arXiv
2102.09672) are split and the variance is dropped.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mezzotint.diffusion.condition import Condition
from mezzotint.diffusion.levels import Levels, Timestep, per_item

__all__ = ["Condition", "Denoiser", "Predictor"]

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")


class Predictor(ABC):
    """What all denoiser views share: conversions from the model's own output. Views say how that output is made.

    Attributes:
        levels: the noise levels the model was trained on.
        prediction_type: "epsilon", "v_prediction" or "sample".
    """

    levels: Levels
    prediction_type: str

    @abstractmethod
    def model_output(
        self, x: Float[Tensor, "batch ..."], t: Timestep, cond: Condition | None = None
    ) -> Float[Tensor, "batch ..."]:
        """Return what the network predicts for x_t (VP), in its own parametrisation, without learned variance."""

    def eps(
        self, x: Float[Tensor, "batch ..."], t: Timestep, cond: Condition | None = None
    ) -> Float[Tensor, "batch ..."]:
        """Predict the noise of x_t (VP)."""
        output = self.model_output(x, t, cond)
        if self.prediction_type == "epsilon":
            return output
        to_eps = self.levels.eps_from_v if self.prediction_type == "v_prediction" else self.levels.eps_from_x0
        return to_eps(x, t, output)

    def x0(
        self, x: Float[Tensor, "batch ..."], t: Timestep, cond: Condition | None = None
    ) -> Float[Tensor, "batch ..."]:
        """Predict the clean sample of x_t (VP)."""
        output = self.model_output(x, t, cond)
        if self.prediction_type == "sample":
            return output
        to_x0 = self.levels.x0_from_v if self.prediction_type == "v_prediction" else self.levels.x0_from_eps
        return to_x0(x, t, output)

    def v(
        self, x: Float[Tensor, "batch ..."], t: Timestep, cond: Condition | None = None
    ) -> Float[Tensor, "batch ..."]:
        """Predict the velocity alpha_t eps - std_t x0 of x_t (VP)."""
        output = self.model_output(x, t, cond)
        if self.prediction_type == "v_prediction":
            return output
        to_v = self.levels.v_from_eps if self.prediction_type == "epsilon" else self.levels.v_from_x0
        return to_v(x, t, output)

    def denoise(
        self,
        x_ve: Float[Tensor, "batch ..."],
        sigma: float | Tensor,
        cond: Condition | None = None,
        *,
        fractional: bool = False,
    ) -> Float[Tensor, "batch ..."]:
        """Predict the clean sample of x_ve = x0 + sigma eps.

        Args:
            x_ve: sample in VE coordinates.
            sigma: its noise level, greater than 0; one number or one an item.
            cond: the condition.
            fractional: tell the model the exact, fractional timestep instead of the nearest training one.

        Raises:
            ValueError: if a sigma is not positive.
        """
        t = self.levels.timestep(sigma, fractional=fractional)
        noise_scale = per_item(sigma, x_ve)
        total = (1 + noise_scale**2).sqrt()
        output = self.model_output((x_ve / total).to(x_ve.dtype), t, cond)
        if self.prediction_type == "sample":
            return output
        if self.prediction_type == "v_prediction":
            return (x_ve / total**2 - (noise_scale / total) * output).to(x_ve.dtype)
        return (x_ve - noise_scale * output).to(x_ve.dtype)


class Denoiser(Predictor):
    """A diffusers model seen as a denoiser.

    The model is called as `model(x, timestep=[batch], **condition)` and may return a tensor, a tuple or an object with
    `.sample`. The sample is handed over in the model's dtype and the result comes back in that of x, so a sampler can
    keep float32 latents around a bfloat16 network.

    Args:
        model_or_pipe: a pipeline (its `unet` or `transformer` and its scheduler are used) or the network itself.
        scheduler: where the noise levels and the prediction type are read; required for a bare network.

    Raises:
        ValueError: without scheduler, for a scheduler without `alphas_cumprod`, or an unknown prediction type.
    """

    def __init__(self, model_or_pipe: Any, scheduler: Any = None) -> None:
        self.model = _network(model_or_pipe)
        scheduler = scheduler if scheduler is not None else getattr(model_or_pipe, "scheduler", None)
        if scheduler is None:
            raise ValueError("a bare network needs a scheduler: Denoiser(model, scheduler)")
        self.prediction_type = str(getattr(scheduler.config, "prediction_type", "epsilon"))
        if self.prediction_type not in PREDICTION_TYPES:
            raise ValueError(f"prediction_type must be one of {PREDICTION_TYPES}, got {self.prediction_type!r}")
        parameter = next(self.model.parameters(), None)
        self.levels = Levels.from_scheduler(scheduler).to("cpu" if parameter is None else parameter.device)

    def model_output(
        self, x: Float[Tensor, "batch ..."], t: Timestep, cond: Condition | None = None
    ) -> Float[Tensor, "batch ..."]:
        """Return what the network predicts for x_t (VP), in its own parametrisation, without learned variance."""
        arguments = {} if cond is None else cond.arguments()
        steps = torch.as_tensor(t, device=x.device).expand(len(x))
        output = self.model(x.to(self._dtype(x)), timestep=steps, **arguments)
        output = output if isinstance(output, Tensor) else output[0]
        return output[:, : x.shape[1]].to(x.dtype)

    def _dtype(self, x: Tensor) -> torch.dtype:
        if getattr(self.model.forward, "casts", False):
            return x.dtype
        # Read at every call (a microsecond), for the model may have been converted since.
        return next((p.dtype for p in self.model.parameters() if p.is_floating_point()), x.dtype)


def _network(model_or_pipe: Any) -> Any:
    for name in ("unet", "transformer"):
        if isinstance(getattr(model_or_pipe, name, None), torch.nn.Module):
            return getattr(model_or_pipe, name)
    if isinstance(model_or_pipe, torch.nn.Module):
        return model_or_pipe
    kind = type(model_or_pipe).__name__
    raise ValueError(f"need a torch module or a pipeline with a `unet` or `transformer`, got {kind}")
