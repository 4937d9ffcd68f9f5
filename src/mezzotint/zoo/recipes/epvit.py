"""Trains EPViT, the judge of attribute binding, and a CLIP-like similarity to compare it with.

Both learn from the same renders. EPViT learns from graphs (arXiv 2404.13766): cross-entropy of the edges, half of them
true, a quarter with an attribute of another object of the picture, a quarter with anything else, plus half the
cross-entropy of the nodes. So that few pictures suffice, patches near the middle of an object also learn to name its
words, through a layer that is thrown away (ours).

The similarity learns from captions by contrast within a batch (arXiv 2103.00020), where a caption with swapped
attributes hardly ever occurs.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from mezzotint.files import atomic_folder, write_safetensors
from mezzotint.metrics.edge_prediction import NOUNS, WORDS, EPViT, Graphs
from mezzotint.metrics.parser import ATTRIBUTES
from mezzotint.training import Step, fit
from mezzotint.worlds.scenes.captions import Style, caption
from mezzotint.worlds.scenes.sampling import sample
from mezzotint.zoo.recipes import _words, scene_parser
from mezzotint.zoo.recipes.scenes import once
from mezzotint.zoo.saving import load_as_float32, seeded

WIDTH, LAYERS, HEADS, PATCH = 128, 4, 4, 8
CAPTIONS: tuple[Style, ...] = ("plain", "short", "detailed", "paraphrased")
_KEPT, _ADDED, _KIND = 0.85, 0.2, 0.7
_HELD_OUT = 512
_GRID, _REACH, _PATCH_WEIGHT = scene_parser.SIZE // PATCH, 0.8, 0.2

CONFIG = dataclasses.replace(
    scene_parser.CONFIG, steps=3000, weight_decay=0.05, checkpoint_every=100, held_out_every=500, log_every=50
)


def train(
    out: Path,
    *,
    pictures: int = 10240,
    steps: int = CONFIG.steps,
    similarity_steps: int = 2000,
    seed: int = 0,
    run: Path | None = None,
) -> Path:
    """Train both networks from scratch; EPViT is written to a folder, the similarity to `similarity` within it.

    Args:
        out: the folder to write.
        pictures: number of training renders.
        steps: optimiser steps of EPViT, 32 pictures each.
        similarity_steps: optimiser steps of the similarity, 32 pictures each.
        seed: seed of the weights and of every draw.
        run: folder for renders and checkpoints, to be able to continue; none by default.
    """
    table = once(run, lambda: data(pictures))
    held_out = data(_HELD_OUT, split="validation")
    network = seeded(build, seed)
    names = seeded(build_names, seed)
    parts = {"network": network, "names": names}
    _fit(loss(network, names), parts, table, held_out, steps=steps, seed=seed, folder=run and run / "epvit")
    tokenizer = _words.build_tokenizer(out.parent / f"{out.name}-tokenizer")
    similarity = seeded(lambda: build_similarity(len(tokenizer)), seed)
    table, held_out = (
        {**part, "ids": captions(tokenizer, len(part["picture"]), split=split)}
        for part, split in ((table, "train"), (held_out, "validation"))
    )
    place = run and run / "similarity"
    parts = {"similarity": similarity}
    _fit(contrast(similarity), parts, table, held_out, steps=similarity_steps, seed=seed, folder=place)
    save(network, similarity, tokenizer, out)
    return out


def build() -> EPViT:
    """The untrained EPViT."""
    from transformers import ViTConfig

    config = ViTConfig(
        image_size=scene_parser.SIZE,
        patch_size=PATCH,
        **_sizes(LAYERS),
        id2label=dict(enumerate(WORDS)),
        label2id={word: index for index, word in enumerate(WORDS)},
        decoder_layers=2,
        dtype="float32",
    )
    return EPViT(config)


def build_names() -> torch.nn.Linear:
    """The layer by which patches name the words of their object while EPViT is trained."""
    return torch.nn.Linear(WIDTH, len(WORDS))


def build_similarity(words: int) -> Any:
    """The untrained similarity: a picture encoder of EPViT's size, a text encoder of two layers."""
    from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig

    text = CLIPTextConfig(
        vocab_size=words,
        max_position_embeddings=_words.LENGTH,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
        **_sizes(2),
    )
    vision = CLIPVisionConfig(image_size=scene_parser.SIZE, patch_size=PATCH, **_sizes(LAYERS))
    return CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=WIDTH))


def data(count: int, *, split: str = "train") -> dict[str, Tensor]:
    """Pictures (uint8), the words and centres of their objects, and which of them show; every combination occurs."""
    table = scene_parser.data(count, split=split)
    return {name: table[name] for name in ("picture", "visible", "words", "centre")}


def captions(tokenizer: Any, count: int, *, split: str) -> Tensor:
    """Tokens of four captions of every scene of `data`."""
    scenes = sample(count, split=split, combinations="all")  # type: ignore[arg-type]
    texts = [caption(scene, style, seed=k).text for k, scene in enumerate(scenes) for style in CAPTIONS]
    return _words.encode(tokenizer, texts).view(count, len(CAPTIONS), -1)


def truth(words: Tensor, visible: Bool[Tensor, "batch objects"]) -> Bool[Tensor, "batch nouns attributes"]:
    """Whether any object with a noun has an attribute, for all of them; only objects that show count."""
    noun = F.one_hot(words[..., 0], len(NOUNS)).bool() & visible[..., None]
    kinds = [F.one_hot(words[..., k], len(names)) for k, names in enumerate(ATTRIBUTES.values()) if k]
    attribute = torch.cat(kinds, -1).bool()
    return (noun[..., None] & attribute[..., None, :]).any(1)


def drawn(true: Bool[Tensor, "batch nouns attributes"], step: Step) -> Bool[Tensor, "batch words"]:
    """Nodes of random graphs: most of what is in the picture, some of what is not, of a few kinds of attribute."""
    there = _there(true)
    chance = torch.special.ndtr(step.normal("nodes", len(WORDS)))
    kept = torch.where(there, chance < _KEPT, chance < _ADDED)
    kinds = torch.special.ndtr(step.normal("kinds", len(ATTRIBUTES))) < _KIND
    kinds[:, 0] = True
    of_kind = torch.tensor([k for k, names in enumerate(ATTRIBUTES.values()) for _ in names], device=true.device)
    kept = kept & kinds[:, of_kind]
    nouns = torch.arange(len(WORDS), device=true.device) < len(NOUNS)
    # A graph without objects or without attributes would say nothing: it gets all of them.
    for part in (nouns, ~nouns):
        kept = kept | (part & ~(kept & part).any(1, keepdim=True))
    return kept


def complete(words: Bool[Tensor, "batch words"]) -> Graphs:
    """Graphs on the chosen words with an edge for every attribute and object, padded no more than is needed."""
    place = torch.arange(len(WORDS), device=words.device)
    labels = _packed(torch.where(words, place, -1), words)
    pairs = torch.cartesian_prod(place[len(NOUNS) :], place[: len(NOUNS)])
    both = words[:, pairs].all(-1)
    node = words.cumsum(1) - 1
    return Graphs(labels, _packed(torch.where(both[..., None], node[:, pairs], -1), both))


def loss(network: EPViT, names: torch.nn.Module) -> Any:
    """Cross-entropy of edges and nodes of random graphs, and of patches' words, for `mezzotint.training.fit`."""

    def of_batch(batch: dict[str, Tensor], step: Step) -> tuple[Tensor, dict[str, Tensor]]:
        true = truth(batch["words"], batch["visible"])
        graphs = complete(drawn(true, step))
        # Below 1024 tokens the plain product-softmax-product is faster to differentiate on a CPU than the fused kernel.
        with sdpa_kernel([SDPBackend.MATH]):
            patches = network.encode(augmented(batch["picture"], step))
            nodes, edges = network.read(patches, graphs)
        target = _there(true).gather(1, graphs.labels.clamp_min(0))
        node_loss = _mean(_cross_entropy(nodes, target), graphs.nodes)
        edge_loss, right = edge_losses(edges, graphs, true)
        named = patch_loss(names(patches[:, 1:]).float(), batch, step)
        parts = {"edges": edge_loss.detach(), "names": named.detach(), "swapped right": right}
        return edge_loss + 0.5 * node_loss + _PATCH_WEIGHT * named, parts

    return of_batch


def edge_losses(
    logits: Float[Tensor, "batch edges"], graphs: Graphs, true: Bool[Tensor, "batch nouns attributes"]
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Cross-entropy with weights 1/2 true, 1/4 swapped, 1/4 other edges; and the share of swapped ones seen as false.

    An edge is swapped when the noun and the attribute are both in the picture, but not on one object.
    """
    rows = torch.arange(len(logits), device=logits.device)[:, None]
    attribute, noun = graphs.labels.gather(1, graphs.edges.clamp_min(0).flatten(1)).unflatten(1, (-1, 2)).unbind(-1)
    attribute = attribute - len(NOUNS)
    target = true[rows, noun, attribute]
    swapped = true.any(2)[rows, noun] & true.any(1)[rows, attribute] & ~target
    losses = _cross_entropy(logits, target)
    shares = ((target, 0.5), (swapped, 0.25), (~target & ~swapped, 0.25))
    total = torch.stack([weight * _mean(losses, graphs.stated & kind) for kind, weight in shares]).sum()
    return total, _mean((logits < 0).float(), graphs.stated & swapped).detach()


def patch_loss(logits: Float[Tensor, "batch patches words"], batch: dict[str, Tensor], step: Step) -> Float[Tensor, ""]:
    """Cross-entropy of the words of the patches that lie on the middle of an object."""
    centre = torch.where(mirrored(step)[:, None, None], _mirror(batch["centre"]), batch["centre"])
    sizes = {name: len(words) for name, words in ATTRIBUTES.items()}
    maps = logits.transpose(1, 2).unflatten(2, (_GRID, _GRID)).split(list(sizes.values()), dim=1)
    distance = scene_parser.distances(centre, batch["visible"], grid=_GRID)
    return scene_parser.word_loss(dict(zip(sizes, maps, strict=True)), batch["words"], distance, reach=_REACH)


def contrast(model: Any) -> Any:
    """Symmetric cross-entropy of matching the pictures and the captions of a batch (arXiv 2103.00020, figure 3)."""

    def of_batch(batch: dict[str, Tensor], step: Step) -> Tensor:
        rows = torch.arange(step.count, device=step.device)
        ids = batch["ids"][rows, step.integers("caption", 0, len(CAPTIONS))].long()
        with sdpa_kernel([SDPBackend.MATH]):
            pixels = augmented(batch["picture"], step) * 2 - 1
            return model(input_ids=ids, pixel_values=pixels, return_loss=True).loss.float()

    return of_batch


def augmented(picture: Tensor, step: Step) -> Float[Tensor, "batch 3 height width"]:
    """Pictures in 0..1, half of them mirrored, some softened, with a little noise: a decoder's pictures are soft."""
    x = picture.float() / 255
    x = torch.where(mirrored(step)[:, None, None, None], x.flip(-1), x)
    soft = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1)
    x = torch.lerp(x, soft, step.uniform("soften", 0.0, 0.6)[:, None, None, None])
    return x + 0.015 * step.normal("noise", *x.shape[1:])


def mirrored(step: Step) -> Bool[Tensor, " batch"]:
    """Which pictures of a batch are shown mirrored."""
    return step.uniform("mirror") < 0.5


def save(network: EPViT, similarity: Any, tokenizer: Any, out: Path) -> None:
    """Write both networks in float16 safetensors, atomically."""
    with atomic_folder(out, replace=True) as folder:
        network.config.save_pretrained(folder)
        half = {name: value.detach().to(torch.float16) for name, value in network.state_dict().items()}
        write_safetensors(folder / "model.safetensors", half)
        similarity.to(torch.float16).save_pretrained(folder / "similarity", safe_serialization=True)
        tokenizer.save_pretrained(folder / "similarity")
        load_as_float32(folder)


def _fit(
    objective: Any,
    parts: dict[str, torch.nn.Module],
    table: dict[str, Tensor],
    held_out: dict[str, Tensor],
    *,
    steps: int,
    seed: int,
    folder: Path | None,
) -> None:
    config = dataclasses.replace(CONFIG, steps=steps, seed=seed, warmup=min(CONFIG.warmup, steps))
    done = fit(objective, parts, table, config, folder=folder, held_out=held_out)
    assert done.ema is not None
    done.ema.copy_to_live()


def _mirror(centre: Float[Tensor, "batch objects 2"]) -> Float[Tensor, "batch objects 2"]:
    """Places in a mirrored picture, as shares of its sides."""
    return torch.stack([1 - centre[..., 0], centre[..., 1]], -1)


def _there(true: Bool[Tensor, "batch nouns attributes"]) -> Bool[Tensor, "batch words"]:
    """Which words are in the picture."""
    return torch.cat([true.any(2), true.any(1)], 1)


def _packed(values: Tensor, chosen: Bool[Tensor, "batch items"]) -> Tensor:
    """The chosen items of each row first, in their order, without the columns that no row needs."""
    order = chosen.int().argsort(dim=1, descending=True, stable=True)[:, : int(chosen.sum(1).max())]
    return values[torch.arange(len(values), device=values.device)[:, None], order]


def _cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits.float(), target.float(), reduction="none")


def _mean(values: Tensor, chosen: Tensor) -> Tensor:
    return (values * chosen).sum() / chosen.sum().clamp_min(1)


def _sizes(layers: int) -> dict[str, Any]:
    return {
        "hidden_size": WIDTH,
        "intermediate_size": 4 * WIDTH,
        "num_hidden_layers": layers,
        "num_attention_heads": HEADS,
    }
