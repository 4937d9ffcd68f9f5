"""The words of `scenes`: a tokenizer made from captions, and a text encoder taught to understand them first.

The text encoder (CLIPTextModel, causal as CLIP's) is trained for a few minutes to name, at each noun, everything
the caption has said about that object, and at the end of the text which objects there are. The denoiser then
starts from words that already mean something, and goes on training them.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor, nn

from mezzotint.training import Config, Step, fit
from mezzotint.worlds.scenes.captions import STYLES, Caption, Style, caption
from mezzotint.worlds.scenes.sampling import sample
from mezzotint.worlds.scenes.scene import Scene
from mezzotint.worlds.scenes.vocabulary import COLOURS, FLOORS, MATERIALS, PATTERNS, SHAPES, SIZES
from mezzotint.zoo.saving import seeded

LENGTH, WIDTH = 48, 128
START, END = "<|startoftext|>", "<|endoftext|>"
ATTRIBUTES = {
    "shape": SHAPES,
    "colour": tuple(COLOURS),
    "size": tuple(SIZES),
    "material": MATERIALS,
    "pattern": PATTERNS,
}
PAIRS = {"colour": 10.0, "size": 5.0, "pattern": 5.0}
MIX: tuple[Style, ...] = ("plain", "plain", "short", "detailed", "detailed", "relations", "paraphrased", "tags")

_EXTRA_WORDS = (
    "an image photo photograph picture scene of the small big tiny huge grey one two three objects and with without no "
    "nothing empty ball box ring donut pillar tube spheres cubes cylinders cones toruses capsules table ground magenta "
    "violet gold silver wooden metal rubber glass stone left right above below under behind front next beside near "
    "between matte glossy plain"
)
_PATTERN = r"""'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"""

CONFIG = Config(
    steps=600,
    batch_size=64,
    learning_rate=2e-3,
    betas=(0.9, 0.99),
    schedule="cosine",
    warmup=50,
    log_every=100,
)


def build_tokenizer(folder: Path) -> Any:
    """Learn the merges from captions and return a CLIPTokenizer; `folder` keeps its vocabulary."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token=END))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    split = pre_tokenizers.Split(Regex(_PATTERN), "removed", invert=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=1100,
        initial_alphabet=alphabet,
        end_of_word_suffix="</w>",
        special_tokens=[START, END],
        show_progress=False,
        min_frequency=2,
    )
    texts = [
        caption(scene, style, seed=1).text for scene in sample(1500, seed=5, combinations="all") for style in STYLES
    ]
    tokenizer.train_from_iterator(texts + [_EXTRA_WORDS] * 30, trainer)
    _write_vocabulary(json.loads(tokenizer.to_str())["model"], alphabet, folder)
    return CLIPTokenizer.from_pretrained(folder, model_max_length=LENGTH)


def build_encoder(words: int) -> Any:
    """The untrained text encoder: 3 layers of width 128."""
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(
        vocab_size=words,
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=LENGTH,
        projection_dim=WIDTH,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    return CLIPTextModel(config)


def train(tokenizer: Any, *, scenes: int = 4000, steps: int = CONFIG.steps, seed: int = 0) -> Any:
    """Train a text encoder on captions of `scenes` scenes; returns it."""
    encoder = seeded(lambda: build_encoder(len(tokenizer)), seed)
    config = dataclasses.replace(CONFIG, steps=steps, seed=seed, warmup=min(CONFIG.warmup, steps))
    heads = seeded(build_heads, seed)
    fit(loss(encoder, heads), {"encoder": encoder, "heads": heads}, labelled(tokenizer, scenes), config)
    return encoder


def encode(tokenizer: Any, texts: list[str]) -> Int[Tensor, "count 48"]:
    """Token numbers of texts, padded and cut to the encoder's length."""
    return tokenizer(texts, padding="max_length", max_length=LENGTH, truncation=True, return_tensors="pt").input_ids


def labelled(tokenizer: Any, count: int) -> dict[str, Tensor]:
    """Captions in every style and what each of their tokens should know; -1 where a caption does not say."""
    scenes = sample(count, seed=77, combinations="all")
    pairs = [(scene, caption(scene, style, seed=k)) for k, scene in enumerate(scenes) for style in STYLES]
    texts = [text.text for _, text in pairs]
    offsets = tokenizer(texts, padding="max_length", max_length=LENGTH, return_offsets_mapping=True)["offset_mapping"]
    rows = [_labels(scene, text, offset) for (scene, text), offset in zip(pairs, offsets, strict=True)]
    table = {name: torch.tensor([getattr(row, name) for row in rows]) for name in _Row.__dataclass_fields__}
    return {"ids": encode(tokenizer, texts), **table}


def loss(encoder: Any, heads: nn.ModuleDict) -> Any:
    """Cross-entropy of the attributes at noun tokens, and of what there is at the end token and one padding token."""

    def of_batch(batch: dict[str, Tensor], step: Step) -> Tensor:
        hidden = encoder(batch["ids"]).last_hidden_state
        total = hidden.new_zeros(())
        for k, name in enumerate(ATTRIBUTES):
            wanted = batch["tokens"][..., k]
            if bool((wanted >= 0).any()):
                total = total + F.cross_entropy(heads[name](hidden).flatten(0, 1), wanted.flatten(), ignore_index=-1)
        end = (batch["ids"] == 1).int().argmax(1)
        later = (end + step.integers("padding", 0, 18)).clamp_max(LENGTH - 1)
        rows = torch.arange(len(end), device=end.device)
        return total + _sentence(heads, hidden[rows, end], batch) + _sentence(heads, hidden[rows, later], batch)

    return of_batch


@dataclass(frozen=True)
class _Row:
    tokens: list[list[int]]
    colour: list[float]
    size: list[float]
    pattern: list[float]
    floor: int
    count: int


def _labels(scene: Scene, text: Caption, offsets: list[tuple[int, int]]) -> _Row:
    tokens = [[-1] * len(ATTRIBUTES) for _ in range(LENGTH)]
    sets = {name: [0.0] * (len(SHAPES) * len(ATTRIBUTES[name])) for name in PAIRS}
    for index, noun in text.nouns:
        item = scene.objects[index]
        said = {"shape", *(binding.attribute for binding in text.bindings if binding.index == index)}
        values = [ATTRIBUTES[name].index(getattr(item, name)) if name in said else -1 for name in ATTRIBUTES]
        for place, (start, end) in enumerate(offsets):
            if start < noun.end and end > noun.start:
                tokens[place] = values
        for name in said & set(PAIRS):
            sets[name][SHAPES.index(item.shape) * len(ATTRIBUTES[name]) + values[list(ATTRIBUTES).index(name)]] = 1.0
    floor = list(FLOORS).index(scene.floor) if f"{scene.floor} floor" in text.text else -1
    return _Row(tokens, sets["colour"], sets["size"], sets["pattern"], floor, len(scene.objects) - 1)


def _sentence(heads: nn.ModuleDict, vector: Tensor, batch: dict[str, Tensor]) -> Tensor:
    total = F.cross_entropy(heads["count"](vector), batch["count"])
    if bool((batch["floor"] >= 0).any()):
        total = total + F.cross_entropy(heads["floor"](vector), batch["floor"], ignore_index=-1)
    for name, weight in PAIRS.items():
        total = total + weight * F.binary_cross_entropy_with_logits(heads[f"pair_{name}"](vector), batch[name])
    return total


def build_heads() -> nn.ModuleDict:
    """One linear classifier for each thing that a token should know."""
    return nn.ModuleDict({name: nn.Linear(WIDTH, size) for name, size in _head_sizes().items()})


def _head_sizes() -> dict[str, int]:
    pairs = {f"pair_{name}": len(SHAPES) * len(ATTRIBUTES[name]) for name in PAIRS}
    return {**{name: len(words) for name, words in ATTRIBUTES.items()}, **pairs, "floor": len(FLOORS), "count": 3}


def write_vocabulary(tokenizer: Any, folder: Path) -> None:
    """Write `vocab.json` and `merges.txt`, the older form of a CLIP tokenizer."""
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    _write_vocabulary(model, [], folder)


def _write_vocabulary(model: dict[str, Any], alphabet: list[str], folder: Path) -> None:
    words: dict[str, int] = model["vocab"]
    for letter in alphabet:
        words.setdefault(f"{letter}</w>", len(words))
    merges = [" ".join(merge) if isinstance(merge, list) else merge for merge in model["merges"]]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(words), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
