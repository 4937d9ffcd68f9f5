"""One training loop for every method: averages, checkpoints that survive a kill, exact resume, LoRA, sample grids."""

from __future__ import annotations

from mezzotint.training.checkpoints import CheckpointError
from mezzotint.training.config import Config
from mezzotint.training.data import Source
from mezzotint.training.ema import EMA
from mezzotint.training.finite import NonFiniteError
from mezzotint.training.fit import Run, fit
from mezzotint.training.grids import grid
from mezzotint.training.optimisers import Muon, adamw, muon
from mezzotint.training.step import Step

__all__ = [
    "EMA",
    "CheckpointError",
    "Config",
    "Muon",
    "NonFiniteError",
    "Run",
    "Source",
    "Step",
    "adamw",
    "fit",
    "grid",
    "muon",
]
