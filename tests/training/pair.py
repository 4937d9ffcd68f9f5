"""One process of a run that several processes share; started by test_processes with the variables of torchrun set."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
from torch import nn

from mezzotint import files
from mezzotint.training import NonFiniteError
from tests.training import small


def main(folder: Path, what: str) -> None:
    """Do the small run of `what`, and write what this process has at its end."""
    torch.set_num_threads(1)
    rank = os.environ.get("RANK", "0")
    # Every process begins with other weights: the run has to begin with the first one's.
    net = small.network(plain=True)
    if rank != "0":
        for value in net.parameters():
            nn.init.zeros_(value)
    if what == "bad" and rank == "1":
        net[1].register_forward_hook(lambda *_: torch.full((1, 8, 4, 4), float("nan")))
    try:
        state, run = small.train(folder / "run", net=net, log_every=1, held_out=small.tensors(), held_out_every=4)
    except NonFiniteError as error:
        (folder / f"error-{rank}.txt").write_text(f"{error.step} {error.layer}")
        return
    files.write_safetensors(folder / f"state-{rank}.safetensors", state)
    files.write_json(folder / f"rows-{rank}.json", run.rows)


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
