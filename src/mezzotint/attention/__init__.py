"""One attention processor, many composable edits, on any U-Net, DiT or PixArt of diffusers.

    with install(pipe, LogitMask(bias, kind="cross", branch="cond"), Observe(record, kind="cross")):
        images = pipe(prompt).images

`edits` describes the kinds of edit and the order in which they act, `processor.install` how rows, branches and steps
are counted, `sites` how layers are named.
"""

from mezzotint.attention.edits import (
    Call,
    Context,
    Edit,
    KeysValues,
    LogitMask,
    Moment,
    Observe,
    Output,
    Probabilities,
    Record,
    States,
    during,
)
from mezzotint.attention.heads import low_rank, merge_heads, split_heads
from mezzotint.attention.plan import Installation
from mezzotint.attention.processor import install
from mezzotint.attention.regions import LowRank, Region, Regions
from mezzotint.attention.sites import Site, backbone, resize_maps, sites

__all__ = [
    "Call",
    "Context",
    "Edit",
    "Installation",
    "KeysValues",
    "LogitMask",
    "LowRank",
    "Moment",
    "Observe",
    "Output",
    "Probabilities",
    "Record",
    "Region",
    "Regions",
    "Site",
    "States",
    "backbone",
    "during",
    "install",
    "low_rank",
    "merge_heads",
    "resize_maps",
    "sites",
    "split_heads",
]
