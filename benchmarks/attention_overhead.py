"""What installed edits cost on the attention layers of Stable Diffusion 1.5 at 512 px (guided: two rows).

Four arms take turns within every round, so that whatever else the machine does meets all of them: the stock processor
(fused SDPA), the installed processor without edits, the installed processor with an additive mask on the logits, and
the stock processor whose fused kernel is handed the same mask: what a mask costs in the kernel itself.
Times are processor seconds of this process; the figure is the median over rounds of the ratio to the stock arm of the
same round, with the quartiles. Run: `python benchmarks/attention_overhead.py [--unet]`.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from mezzotint.attention import LogitMask, install
from mezzotint.files import write_json
from mezzotint.methods.binding.fca import FocusedAttention
from mezzotint.methods.binding.masks import link
from mezzotint.methods.binding.options import Options
from mezzotint.methods.binding.report import BindingReport
from mezzotint.methods.binding.words import Binding

LAYERS = ((4096, 320), (1024, 640), (256, 1280), (64, 1280))
TEXT, TEXT_WIDTH, HEADS = 77, 768, 8
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
Arms = dict[str, Callable[[], AbstractContextManager[object]]]


@dataclass(frozen=True)
class Row:
    """One measured arm."""

    what: str
    arm: str
    seconds: float
    ratio: float
    low: float
    high: float


class Layer(nn.Module):
    """One attention layer as a model of its own."""

    def __init__(self, width: int, *, cross: bool) -> None:
        super().__init__()
        context = TEXT_WIDTH if cross else None
        self.attention = Attention(width, context, heads=HEADS, dim_head=width // HEADS)

    def forward(self, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None) -> Tensor:
        """The layer's output."""
        return self.attention(hidden_states, encoder_hidden_states=encoder_hidden_states)


def measure(what: str, run: Callable[[], object], arms: Arms, rounds: int) -> Iterator[Row]:
    """Medians of each arm, and of its ratio to the first."""
    times: dict[str, list[float]] = {name: [] for name in arms}
    for number in range(rounds + 1):
        order = list(arms) if number % 2 else list(reversed(arms))
        for name in order:
            with arms[name]():
                start = time.process_time()
                run()
                spent = time.process_time() - start
            if number:  # the first round warms up
                times[name].append(spent)
    stock = times[next(iter(arms))]
    for name, spent in times.items():
        ratios = sorted(own / base for own, base in zip(spent, stock, strict=True))
        low, middle, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
        yield Row(what, name, statistics.median(spent), middle, low, high)


@contextmanager
def kernel_masked(bias: Callable[[Tensor, Tensor], Tensor | None]) -> Iterator[object]:
    """The stock processors' calls of the fused kernel, with a mask by query and key."""
    kernel = F.scaled_dot_product_attention

    def call(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **settings: object) -> Tensor:
        given = attn_mask if attn_mask is not None else bias(query, key)
        return kernel(query, key, value, attn_mask=given, **settings)  # type: ignore[arg-type]

    F.scaled_dot_product_attention = call  # type: ignore[assignment]
    try:
        yield kernel
    finally:
        F.scaled_dot_product_attention = kernel


def arms_of(model: nn.Module, mask: LogitMask, bias: Callable[[Tensor, Tensor], Tensor | None]) -> Arms:
    """The arms on a model; `bias` is what `mask` adds."""

    @contextmanager
    def masked() -> Iterator[object]:
        with install(model, mask) as installed:
            yield installed

    return {
        "stock": nullcontext,
        "installed": lambda: install(model),
        "mask": masked,
        "stock, masked": lambda: kernel_masked(bias),
    }


def layers(dtype: torch.dtype, rounds: int, chosen: Sequence[int]) -> Iterator[Row]:
    """Cross- and self-attention at the chosen numbers of tokens."""
    for tokens, width in (layer for layer in LAYERS if layer[0] in chosen):
        for cross in (True, False):
            model = Layer(width, cross=cross).to(dtype).requires_grad_(False)
            hidden, text = torch.randn(2, tokens, width, dtype=dtype), torch.randn(2, TEXT, TEXT_WIDTH, dtype=dtype)
            bias = torch.randn(1, 1, tokens, TEXT if cross else tokens, dtype=dtype)
            arms = arms_of(model, LogitMask(bias), lambda *_, bias=bias: bias)
            given = (hidden, text) if cross else (hidden,)
            repeats = max(1, 1024 // tokens)
            what = f"{'cross' if cross else 'self'} {tokens} x {width} {str(dtype)[6:]}"
            yield from measure(what, lambda: [model(*given) for _ in range(repeats)], arms, rounds)  # noqa: B023


def whole_unet(dtype: torch.dtype, rounds: int) -> Iterator[Row]:
    """One guided pass of a U-Net of SD 1.5's shape: with a mask on every attention layer, and with focused attention.

    Focused cross-attention (arXiv 2404.13766) binds three attributes, in its dearest form: masks anew at every layer.
    """
    model = UNet2DConditionModel(sample_size=64, cross_attention_dim=TEXT_WIDTH).to(dtype).requires_grad_(False)
    latent, text = torch.randn(2, 4, 64, 64, dtype=dtype), torch.randn(2, TEXT, TEXT_WIDTH, dtype=dtype)
    sizes = {(tokens, keys) for tokens, _ in LAYERS for keys in (tokens, TEXT)}
    masks = {size: torch.randn(1, 1, *size, dtype=dtype) for size in sizes}
    mask = LogitMask(lambda call, query, key: masks[query.shape[2], key.shape[2]])  # noqa: ARG005
    what = f"U-Net of SD 1.5 {str(dtype)[6:]}"
    arms = arms_of(model, mask, lambda query, key: masks[query.shape[2], key.shape[2]])
    links = link([[word + 1] for word in range(6)], [Binding(0, 1), Binding(2, 3), Binding(4, 5)])
    focused = FocusedAttention(links, Options(mode="online"), BindingReport("online", 0.6, ()))
    arms["FCA online"] = lambda: install(model, *focused.edits())
    yield from measure(what, lambda: model(latent, 500, text), arms, rounds)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15, help="rounds of all arms")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--tokens", type=int, nargs="+", default=[tokens for tokens, _ in LAYERS], help="which layers")
    parser.add_argument("--unet", action="store_true", help="a whole U-Net instead of single layers")
    parser.add_argument("--out", type=Path, help="also write the rows there")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    rows = []
    with torch.inference_mode():
        dtype, rounds = DTYPES[options.dtype], options.rounds
        for row in whole_unet(dtype, rounds) if options.unet else layers(dtype, rounds, options.tokens):
            rows.append(row)
            quartiles = f"[{row.low:.3f}, {row.high:.3f}]"
            print(f"{row.what:28} {row.arm:14} {row.seconds * 1e3:9.1f} ms   x {row.ratio:.3f} {quartiles}", flush=True)
    if options.out:
        facts = {"torch": torch.__version__, "threads": options.threads, "machine": platform.machine()}
        write_json(options.out, {**facts, "rows": [asdict(row) for row in rows]})


if __name__ == "__main__":
    main()
