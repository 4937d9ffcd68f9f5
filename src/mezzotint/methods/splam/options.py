"""The settings of a distillation, checked before anything is computed, and the names of its forms."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["Mode", "Options"]

Mode = Literal["splam", "splam_lora", "lcm", "lcm_fixed_w", "lcm_lora"]
MODES = ("splam", "splam_lora", "lcm", "lcm_fixed_w", "lcm_lora")


@dataclass(frozen=True, kw_only=True)
class Options:
    """Everything that a distillation depends on beside pipeline and data; see `mezzotint.methods.splam.distil`."""

    mode: Mode = "splam"
    steps: int = 1000
    batch_size: int = 12
    learning_rate: float = 8e-6
    guidance: float = 9.0
    guidance_range: tuple[float, float] = (6.0, 16.0)
    points: int = 50
    teacher_steps: int = 1
    jumps: int = 0
    ema: float = 0.95
    effective_time: bool = False
    gamma_one_prob: float = 0.0
    init: Literal["zero", "torch"] = "zero"
    sigma_mode: Literal["quadrature", "linear"] = "quadrature"
    rank: int = 64
    alpha: float | None = None
    targets: tuple[str, ...] = ()
    precision: Literal["float32", "bfloat16"] = "float32"
    teacher_precision: Literal["float32", "bfloat16"] = "float32"
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse values outside their range.

        Raises:
            ValueError: such a value, or two that contradict each other.
        """
        _one_of("mode", self.mode, MODES)
        _one_of("init", self.init, ("zero", "torch"))
        _one_of("sigma_mode", self.sigma_mode, ("quadrature", "linear"))
        _one_of("precision", self.precision, ("float32", "bfloat16"))
        _one_of("teacher_precision", self.teacher_precision, ("float32", "bfloat16"))
        for name in ("steps", "batch_size", "rank", "teacher_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.jumps < 0:
            raise ValueError(f"jumps must be 0 (a new one at every step) or more, got {self.jumps}")
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate must be greater than 0 and finite, got {self.learning_rate}")
        if not 1 <= self.guidance < math.inf:
            raise ValueError(f"guidance must be at least 1 (w = guidance - 1 >= 0) and finite, got {self.guidance}")
        if not 1 <= self.guidance_range[0] < self.guidance_range[1] < math.inf:
            raise ValueError(f"guidance_range must have its low end first, at 1 or more, got {self.guidance_range}")
        if not 0 <= self.gamma_one_prob <= 1:
            raise ValueError(f"gamma_one_prob must lie in [0, 1], got {self.gamma_one_prob}")
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema must lie in [0, 1), got {self.ema}")
        self._refuse_contradictions()

    @property
    def sub_path(self) -> bool:
        """Whether gamma varies."""
        return self.mode in {"splam", "splam_lora"}

    @property
    def lora(self) -> bool:
        """Whether an adapter is trained."""
        return self.mode.endswith("lora")

    @property
    def embedded(self) -> bool:
        """Whether the network gets a layer for an embedding (of gamma, or of the guidance weight)."""
        return self.mode != "lcm_lora" and not self.effective_time

    @property
    def weights(self) -> tuple[float, float]:
        """Range of the guidance weight w in training."""
        low, high = self.guidance_range if self.mode == "lcm" else (self.guidance, self.guidance)
        return low - 1, high - 1

    @property
    def sampling_guidance(self) -> tuple[float, float]:
        """Guidance scales that a sampler may use."""
        if self.mode == "lcm":
            return self.guidance_range
        return (1.0, 2.0) if self.mode == "lcm_lora" else (1.0, 1.0)

    @property
    def form(self) -> str:
        """The name under which results are reported."""
        if not self.sub_path:
            name = {"lcm": "LCM", "lcm_fixed_w": "LCM-fixed-w", "lcm_lora": "LCM-LoRA"}[self.mode]
            walk = f", {self.teacher_steps} teacher steps a jump" if self.teacher_steps > 1 else ""
            return name + walk + (", stored jumps" if self.jumps else "")
        name = "SPLAM-LoRA" if self.lora else "SPLAM"
        noise, teacher = self.sigma_mode != "quadrature", self.teacher_steps > 1 or self.jumps
        if not (self.effective_time or self.gamma_one_prob or noise or teacher):
            return f"{name} official" if self.init == "torch" else f"{name} official, zero start"
        return f"{name} improved"

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        values = dataclasses.asdict(self)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    def _refuse_contradictions(self) -> None:
        if self.effective_time and self.mode in {"lcm", "lcm_lora"}:
            raise ValueError(f"effective_time goes with splam, splam_lora and lcm_fixed_w, got mode {self.mode!r}")
        if self.effective_time and self.sigma_mode != "linear":
            raise ValueError("effective_time needs sigma_mode 'linear': at that noise level the teacher is right")
        if self.mode == "lcm" and not self.guidance_range[0] <= self.guidance <= self.guidance_range[1]:
            raise ValueError(
                f"guidance is what mode lcm recommends to samplers, so it must lie in guidance_range "
                f"{self.guidance_range}, got {self.guidance}"
            )
        if self.targets and not self.lora:
            raise ValueError(f"targets are layers of a LoRA, and mode {self.mode!r} trains none: leave them away")
        if self.gamma_one_prob and not self.sub_path:
            raise ValueError(f"gamma_one_prob goes with splam and splam_lora, got mode {self.mode!r}")


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")
