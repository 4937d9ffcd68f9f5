"""What quantisation gives: a pipeline, and what each of its layers lost and saved. Importing this imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["LayerReport", "Quantised"]


@dataclass(frozen=True)
class LayerReport:
    """One quantised layer.

    Attributes:
        name: of the module in its network.
        weight_bits: bits of a weight.
        activation_bits: bits of an input; 16: not quantised.
        group: group size g.
        weight_error: ||W - What|| / ||W||, against the weight that was rounded (after smoothing, if any).
        output_error: ||Y - Yhat|| / ||Y|| on calibration inputs; None without calibration data.
        bytes: of codes, scales, zero points and bias, as they are stored.
        bytes_before: bytes of the layer that it replaces.
    """

    name: str
    weight_bits: int
    activation_bits: int
    group: int
    weight_error: float
    output_error: float | None
    bytes: int
    bytes_before: int


@dataclass(frozen=True, eq=False)
class Quantised:
    """A quantised pipeline and its report.

    Attributes:
        pipe: a pipeline like the one given, with integer layers; the one given is unchanged.
        report: one entry a layer.
        facts: how it was made.
    """

    pipe: Any
    report: tuple[LayerReport, ...]
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        """Bytes of the quantised layers as they are stored, on disk and in memory."""
        return sum(layer.bytes for layer in self.report)

    @property
    def bytes_before(self) -> int:
        """Bytes of the layers they replace."""
        return sum(layer.bytes_before for layer in self.report)

    @property
    def resident_bytes(self) -> int:
        """Bytes of the quantised layers in memory once they have run here, with what executors keep."""
        from .layers import network_of
        from .size import resident_bytes

        return resident_bytes(network_of(self.pipe))

    def to_json(self) -> dict[str, Any]:
        """Everything but the pipeline, as plain JSON values."""
        return {
            "layers": len(self.report),
            "bytes": self.bytes,
            "bytes_before": self.bytes_before,
            "resident_bytes": self.resident_bytes,
            **dict(self.facts),
            "report": [asdict(layer) for layer in self.report],
        }

    def save(self, path: str | Path) -> Path:
        """Write the pipeline as a folder that `mezzotint.load` reads.

        Args:
            path: folder to write.
        """
        from .saving import save_quantised

        save_quantised(self.pipe, Path(path))
        return Path(path)
