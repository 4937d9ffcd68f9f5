"""Speed and size of quantised layers: float32, bfloat16, other libraries' 8 bits, and every executor of Q-DiT.

Two tables: single linear layers of DiT-XL/2, and one call of a whole network of that shape with random weights at batch
2, which is one step of guided sampling. The arms of a layer alternate, so that other work on the machine meets all of
them; of the whole network one arm is in memory at a time and takes turns with float32. Wall and CPU seconds are given
with quartiles. Libraries that are not installed are named as such. Random weights tell
nothing about quality: that is the method's experiment.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import importlib.util
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from diffusers import DiTTransformer2DModel
from runtime_table import alternate, spread
from torch import nn

from mezzotint.files import write_json, write_text
from mezzotint.methods.q_dit.apply import quantise_network
from mezzotint.methods.q_dit.groups import largest_group
from mezzotint.methods.q_dit.linear import QuantLinear, share_inputs
from mezzotint.methods.q_dit.quantiser import LayerSpec, Precision, quantise
from mezzotint.methods.q_dit.recipe import Recipe
from mezzotint.methods.q_dit.saving import save_quantised
from mezzotint.methods.q_dit.size import size_report
from mezzotint.runtime import environment

RESULTS = Path(__file__).parent / "results"
LAYERS = ((512, 1152, 3456), (512, 1152, 1152), (512, 1152, 4608), (512, 4608, 1152), (2, 1152, 6912))
GROUPS = (64, 128, 0)
XL = {
    "num_attention_heads": 16, "attention_head_dim": 72, "in_channels": 4, "out_channels": 8, "num_layers": 28,
    "sample_size": 32, "patch_size": 2, "num_embeds_ada_norm": 1000,
}  # fmt: skip
FEW_TOKENS = 32
MISSING = "not installed"


def torchao_int8(module: nn.Module) -> nn.Module | None:
    """Torchao's 8-bit weights with 8-bit activations measured a token, eager."""
    if importlib.util.find_spec("torchao") is None:
        return None
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    module = nn.Sequential(copy.deepcopy(module)) if isinstance(module, nn.Linear) else copy.deepcopy(module)
    config = Int8DynamicActivationInt8WeightConfig()
    quantize_(module, config, filter_fn=lambda part, name: type(part) is nn.Linear and ".emb." not in name)
    return module


def openvino_int8(module: nn.Module, example: Any, threads: int) -> Callable[[Any], Any] | None:
    """OpenVINO with 8-bit weights by NNCF and activations quantised at run time in groups."""
    if any(importlib.util.find_spec(name) is None for name in ("openvino", "nncf")):
        return None
    import nncf
    import openvino

    converted = openvino.convert_model(copy.deepcopy(module), example_input=example)
    compressed = nncf.compress_weights(converted, mode=nncf.CompressWeightsMode.INT8_ASYM)
    settings = {"INFERENCE_NUM_THREADS": threads, "DYNAMIC_QUANTIZATION_GROUP_SIZE": "128"}
    return openvino.Core().compile_model(compressed, "CPU", settings)


def random_layer(width: int, rows: int) -> nn.Linear:
    """Build a layer whose weights are drawn from a fixed stream."""
    layer = nn.Linear(width, rows)
    generator = torch.Generator().manual_seed(0)
    for parameter in layer.parameters():
        parameter.data.normal_(0, 0.03, generator=generator)
    return layer.requires_grad_(False)


def quantised_layer(layer: nn.Linear, *, bits: int, group: int, executor: str, activation: int = 8) -> QuantLinear:
    """Round a layer's weight to nearest; group 0 is the whole row."""
    size = largest_group(layer.in_features, group) if group else layer.in_features
    spec = LayerSpec(Precision(bits), Precision(activation), size)
    codes = quantise(layer.weight, spec.weight, spec.group)
    return QuantLinear.from_codes(codes, layer.bias, spec, executor=executor)


def layer_arms(tokens: int, width: int, rows: int, groups: tuple[int, ...]) -> dict[str, Callable[[], Any] | str]:
    """Every way of computing one layer; a string says why there is none."""
    layer, half = random_layer(width, rows), random_layer(width, rows).bfloat16()
    x = torch.randn(tokens, width, generator=torch.Generator().manual_seed(1))
    half_x = x.bfloat16()
    arms: dict[str, Callable[[], Any] | str] = {"float32": lambda: layer(x), "bfloat16": lambda: half(half_x)}
    peers = {
        "torchao int8": torchao_int8(layer),
        "OpenVINO int8": openvino_int8(layer, x, torch.get_num_threads()),
    }
    for name, peer in peers.items():
        arms[name] = MISSING if peer is None else lambda peer=peer: peer(x)
    kinds = [(f"W4A16 {e}", {"bits": 4, "group": 128, "executor": e, "activation": 16}) for e in ("fused", "simulate")]
    if tokens > FEW_TOKENS:
        kinds = [
            (f"W8A8 g={group or width} {executor}", {"bits": 8, "group": group, "executor": executor})
            for group in groups
            for executor in ("fused", "integer")
        ]
        kinds += [(f"W{bits}A8 g=128 fused", {"bits": bits, "group": 128, "executor": "fused"}) for bits in (4, 6)]
        kinds += [("fast mode, stored W4 g=128", {"bits": 4, "group": 128, "executor": "fast"})]
    for name, options in kinds:
        made = quantised_layer(layer, **options)
        arms[name] = lambda made=made: made(x)
    return arms


def measured(arms: dict[str, Callable[[], Any] | str], rounds: int) -> dict[str, Any]:
    """Times of the arms that there are, and what the others say."""
    runs = {name: arm for name, arm in arms.items() if not isinstance(arm, str)}
    timed = alternate(runs, rounds)
    return {name: timed.get(name, arm) for name, arm in arms.items()}


def xl_network(depth: int = 28) -> DiTTransformer2DModel:
    """Build DiT-XL/2's shape with random weights; its blocks share their embedders, equal in the checkpoint."""
    with torch.device("meta"):
        network = DiTTransformer2DModel(**(XL | {"num_layers": depth}))
    position = DiTTransformer2DModel(**(XL | {"num_layers": 1})).pos_embed.pos_embed
    network = network.to_empty(device="cpu").eval().requires_grad_(False)
    network.pos_embed.pos_embed.copy_(position)
    for block in network.transformer_blocks[1:]:
        block.norm1.emb = network.transformer_blocks[0].norm1.emb
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        parameter.normal_(0, 0.02, generator=generator)
    return network


def caller(network: Any, dtype: torch.dtype = torch.float32) -> Callable[[], Any]:
    """One guided step of a network, or of anything that takes its arguments by name."""
    x = torch.randn(2, 4, 32, 32, generator=torch.Generator().manual_seed(1)).to(dtype)
    rest = {"timestep": torch.tensor([500, 500]), "class_labels": torch.tensor([3, 1000])}
    if isinstance(network, nn.Module):
        return lambda: network(x, **rest)
    return lambda: network({"hidden_states": x, **rest})


def network_arms(network: nn.Module, sizes: dict[str, Any]) -> Iterator[tuple[str, Callable[[], Any] | str]]:
    """Every other way of computing one guided step, one after the other; each is freed before the next is made.

    Args:
        network: in float32.
        sizes: receives those of the quantised networks.
    """
    yield "bfloat16", caller(copy.deepcopy(network).bfloat16(), torch.bfloat16)
    for bits in (8, 4):
        made, _ = quantise_network(network, Recipe(weights=Precision(bits), method="rtn", group=128))
        share_inputs(made)
        sizes[f"W{bits}A8 g=128"] = size_of(made)
        resident = sizes[f"W{bits}A8 g=128"]["run"] = {}
        for executor in ("integer", "fused"):
            yield f"W{bits}A8 g=128 {executor}", caller(run_by(made, executor))
            resident[executor] = size_report(made).resident
        yield f"fast mode, stored W{bits} g=128", caller(run_by(made, "fast"))
        resident["fast"] = size_report(made).resident
        if bits == 8:
            yield "fast mode in bfloat16, stored W8 g=128", caller(made.bfloat16(), torch.bfloat16)
        del made
    example = {"hidden_states": torch.zeros(2, 4, 32, 32), "timestep": torch.tensor([500, 500])}
    example |= {"class_labels": torch.tensor([3, 1000])}
    peers = {
        "torchao int8": torchao_int8,
        "OpenVINO int8": lambda module: openvino_int8(module, example, torch.get_num_threads()),
    }
    for name, make in peers.items():
        peer = make(network)
        yield name, MISSING if peer is None else caller(peer)


def run_by(network: nn.Module, executor: str) -> nn.Module:
    """Let every quantised layer be computed by this executor; what another one has prepared is dropped."""
    for module in network.modules():
        if isinstance(module, QuantLinear):
            module.executor, module._executor = executor, None
    return network


def size_of(network: nn.Module) -> dict[str, Any]:
    """Bytes on disk, and in memory before the first call; everything that is not quantised is stored in 16 bits."""
    with tempfile.TemporaryDirectory() as folder:
        report = save_quantised(network, Path(folder, "network"), dtype=torch.float16)[""]
    return dataclasses.asdict(report)


def measured_network(depth: int, rounds: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Times of all arms, each beside float32 in the same rounds, and sizes."""
    network, sizes = xl_network(depth), {}
    rows: dict[str, Any] = {}
    for name, arm in network_arms(network, sizes):
        print(f"network: {name}", file=sys.stderr, flush=True)
        if isinstance(arm, str):
            rows[name] = arm
            continue
        pair = alternate({"float32": caller(network), name: arm}, rounds)
        rows.setdefault("float32", pair["float32"])
        rows[name] = pair[name] | {"beside": pair["float32"]}
    return rows, sizes


def table(rows: dict[str, Any]) -> str:
    """Arms as lines, with how much faster than float32 by the CPU seconds' medians."""
    lines = ["| arm | wall s | CPU s | times float32 |", "|---|---|---|---|"]
    for name, row in rows.items():
        if isinstance(row, str):
            lines.append(f"| {name} | {row} | | |")
        else:
            ratio = row.get("beside", rows["float32"])["cpu"]["median"] / row["cpu"]["median"]
            lines.append(f"| {name} | {spread(row['wall'])} | {spread(row['cpu'])} | {ratio:.2f} |")
    return "\n".join(lines)


def markdown(results: dict[str, Any]) -> str:
    """Lay out machine, layers, network and sizes."""
    machine = results["machine"]
    where = f"{machine['processor']}, {machine['threads']} thread(s) of {machine['cores']} cores"
    load = f"torch {torch.__version__}; load average {results['load']:.1f} at the end."
    parts = [f"# Quantised layers\n\n{where}, {' '.join(machine['isa'])}; {load}"]
    for name, rows in results["layers"].items():
        parts.append(f"## Layer {name} (tokens, channels in, out)\n\n{table(rows)}")
    if "network" in results:
        depth = results["depth"]
        title = "DiT-XL/2-shaped network" + (f", but {depth} blocks" if depth != XL["num_layers"] else "")
        parts.append(f"## {title}, one guided step\n\n{table(results['network'])}")
    if "sizes" in results:
        ways = list(next(iter(results["sizes"].values()))["run"])
        header = ["network", "on disk", "of 16 bits", "loaded", *(f"run by {way}" for way in ways)]
        lines = [f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
        for name, row in results["sizes"].items():
            taken = " | ".join(f"{row['run'][way]:,}" for way in ways)
            share = row["disk"] / row["half_once"]
            lines.append(f"| {name} | {row['disk']:,} | {share:.3f} | {row['resident']:,} | {taken} |")
        half = next(iter(results["sizes"].values()))["half_once"]
        note = f"16-bit floating point takes {half:,}; layers that are not quantised are in float32 in memory."
        parts.append("## Sizes in bytes\n\n" + "\n".join(lines) + "\n\n" + note)
    return "\n\n".join(parts) + "\n"


def main() -> None:
    """Measure, write the results and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="rounds of a layer; the network gets a third of them")
    parser.add_argument("--layer", type=int, nargs=3, action="append", metavar=("TOKENS", "IN", "OUT"))
    parser.add_argument("--groups", type=int, nargs="+", default=GROUPS, help="group sizes; 0 is the whole row")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--depth", type=int, default=XL["num_layers"], help="blocks of the network")
    parser.add_argument("--skip-network", action="store_true", help="single layers only")
    parser.add_argument("--skip-layers", action="store_true", help="the whole network only")
    parser.add_argument("--out", type=Path, default=RESULTS / "quantised_speed", help="name of the results, no suffix")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    results: dict[str, Any] = {"layers": {}}
    for shape in () if options.skip_layers else options.layer or LAYERS:
        arms = layer_arms(*shape, groups=tuple(options.groups))
        results["layers"][" x ".join(map(str, shape))] = measured(arms, options.rounds)
    if not options.skip_network:
        results["depth"] = options.depth
        results["network"], results["sizes"] = measured_network(options.depth, max(3, options.rounds // 3))
    results["machine"] = dataclasses.asdict(environment())
    results["load"] = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    write_json(options.out.with_suffix(".json"), results)
    write_text(options.out.with_suffix(".md"), markdown(results))
    print(markdown(results))


if __name__ == "__main__":
    main()
