"""The mathematics of the recipes, and that each of them learns."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

import mezzotint
from mezzotint.loading import zoo_path
from mezzotint.metrics.edge_prediction import NOUNS, WORDS, EPViT, Graph
from mezzotint.metrics.parser import ATTRIBUTES, LABELS, peaks, split_logits
from mezzotint.metrics.scene_accuracy import WantedObject
from mezzotint.metrics.text_similarity import TextSimilarity
from mezzotint.training import Config, Step, fit
from mezzotint.worlds.scenes.captions import caption
from mezzotint.worlds.scenes.sampling import sample
from mezzotint.zoo import swaps
from mezzotint.zoo.recipes import _autoencoder, _denoiser, _words, epvit, scene_parser, scenes, scenes_dit

QUICK = Config(steps=2, batch_size=4)


def step_of(count: int, number: int = 0) -> Step:
    return Step(seed=0, step=number, first=0, count=count, batch_size=count, device=torch.device("cpu"))


def test_crops_are_slices_of_the_pictures() -> None:
    pictures = torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8)
    top, left = torch.tensor([0, 17, 32]), torch.tensor([32, 5, 0])
    cut = _autoencoder.crops(pictures, top, left)
    for k in range(3):
        assert torch.equal(cut[k], pictures[k, :, top[k] : top[k] + 32, left[k] : left[k] + 32])


def test_busy_crops_are_preferred() -> None:
    pictures = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    pictures[0, :, 40:60:2, 40:60] = 255
    weights = _autoencoder.busyness(pictures)[0].view(9, 9)
    assert weights[-1, -1] > 5 * weights[0, 0] > 0


def test_the_picture_distance_is_zero_only_at_home_and_dislikes_blur() -> None:
    sharp = torch.zeros(1, 3, 8, 8)
    sharp[..., 4:] = 1.0
    blurred = torch.nn.functional.avg_pool2d(sharp, 3, 1, 1, count_include_pad=False)
    shifted = sharp + (blurred - sharp).abs().mean()
    assert float(_autoencoder.distance(sharp, sharp)) == 0.0
    assert float(_autoencoder.distance(blurred, sharp)) > float(_autoencoder.distance(shifted, sharp))


def test_timesteps_cover_every_part_of_the_range_once() -> None:
    times = _denoiser.stratified(step_of(50), torch.full((1000,), 1e-3, dtype=torch.float64))
    assert torch.equal(times // 20, torch.arange(50))


def test_timesteps_follow_their_distribution() -> None:
    share = _denoiser.middle(_denoiser.levels().alphas_cumprod.double())
    torch.testing.assert_close(float(share.sum()), 1.0, rtol=1e-9, atol=0)
    times = _denoiser.stratified(step_of(4000), share)
    seen = torch.bincount(times, minlength=1000).double().view(10, 100).sum(1) / 4000
    torch.testing.assert_close(seen, share.view(10, 100).sum(1), rtol=0, atol=2 / 4000)
    assert seen[2:5].min() > 0.12
    assert seen[-1] < 0.06


def test_min_snr_weights() -> None:
    signal = torch.tensor([0.99, 5 / 6, 0.5, 0.01])
    weights = _denoiser.min_snr(signal)
    torch.testing.assert_close(weights, torch.tensor([5 / 99, 1.0, 1.0, 1.0]), rtol=1e-5, atol=1e-6)


def test_balanced_weights_lie_halfway_between_those_of_noise_and_of_velocity() -> None:
    signal = torch.tensor([0.5, 0.1, 0.01])
    velocity = 1 + (1 - signal) / signal
    torch.testing.assert_close(_denoiser.balanced(signal), velocity.sqrt(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("around", [-2.0, 0.0])
def test_half_of_the_timesteps_lie_around_a_log_snr(around: float) -> None:
    signal = _denoiser.levels().alphas_cumprod.double()
    share = _denoiser.middle(signal, around)
    assert float(share.sum()) == pytest.approx(1)
    assert float(share.min()) >= 0.5 / len(share)
    best = signal[share.argmax()]
    assert float((best / (1 - best)).log()) == pytest.approx(around, abs=0.02)


def test_the_schedule_is_that_of_stable_diffusion() -> None:
    levels = _denoiser.levels()
    torch.testing.assert_close(float(levels.sigmas[-1]), 14.6146, rtol=1e-4, atol=0)
    torch.testing.assert_close(float(levels.sigmas[0]), 0.0292, rtol=2e-3, atol=0)


def test_the_bound_vanishes_for_the_true_noise_and_the_smallest_variance() -> None:
    posterior = scenes_dit.Posterior.of(_denoiser.levels().alphas_cumprod.double())
    clean, noise = torch.randn(2, 5, 4, 4, 4, dtype=torch.float64)
    times = torch.tensor([1, 50, 400, 900, 999])
    signal = posterior.signal[times][:, None, None, None]
    noisy = signal.sqrt() * clean + (1 - signal).sqrt() * noise
    lowest = torch.full_like(clean, -1.0)
    exact = posterior.bound(clean, noisy, noise, fraction=lowest, timestep=times)
    torch.testing.assert_close(exact, torch.zeros_like(exact), rtol=0, atol=1e-8)
    assert float(posterior.bound(clean, noisy, noise, fraction=lowest + 1.0, timestep=times)) > 0
    assert float(posterior.bound(clean, noisy, noise + 0.1, fraction=lowest, timestep=times)) > 1e-4


def test_the_bound_agrees_with_the_distributions_of_torch() -> None:
    posterior = scenes_dit.Posterior.of(_denoiser.levels().alphas_cumprod.double())
    clean, noise, wrong = torch.randn(3, 1, 1, 1, 1, dtype=torch.float64)
    t = torch.tensor([300])
    signal = posterior.signal[300]
    noisy = signal.sqrt() * clean + (1 - signal).sqrt() * noise
    guessed = (noisy - (1 - signal).sqrt() * wrong) / signal.sqrt()
    means = [posterior.clean_weight[300] * x + posterior.noisy_weight[300] * noisy for x in (clean, guessed)]
    middle = (posterior.log_smallest[300] + posterior.log_largest[300]) / 2
    true = torch.distributions.Normal(means[0], (posterior.log_smallest[300] / 2).exp())
    made = torch.distributions.Normal(means[1], (middle / 2).exp())
    wanted = torch.distributions.kl_divergence(true, made).mean() / torch.log(torch.tensor(2.0, dtype=torch.float64))
    bound = posterior.bound(clean, noisy, wrong, fraction=torch.zeros_like(clean), timestep=t)
    torch.testing.assert_close(bound, wanted, rtol=1e-6, atol=1e-9)


def test_the_focal_loss_is_least_where_peaks_stand_on_centres() -> None:
    distance = scene_parser.distances(
        torch.tensor([[[0.5, 0.25], [0.2, 0.8], [0.0, 0.0]]]), torch.tensor([[True, True, False]])
    )
    good = torch.full((1, 32, 32), -8.0)
    nearest = distance.amin(1) < 0.8
    good[nearest] = 8.0
    moved = good.roll(5, -1)
    assert float(scene_parser.focal(good, distance)) < 0.2 * float(scene_parser.focal(moved, distance))


def test_the_parser_finds_the_peaks_of_a_heat_map() -> None:
    heat = torch.zeros(1, 32, 32)
    heat[0, 4, 7], heat[0, 4, 8], heat[0, 20, 30] = 0.9, 0.5, 0.7
    score, place = peaks(heat)
    assert place[0, :2].tolist() == [4 * 32 + 7, 20 * 32 + 30]
    torch.testing.assert_close(score[0, :3], torch.tensor([0.9, 0.7, 0.0]))


def test_labels_are_split_by_name() -> None:
    maps = split_logits(torch.arange(len(LABELS)).float().view(1, -1, 1, 1))
    assert [LABELS[int(k)] for k in maps["colour"].flatten()] == [f"colour:{word}" for word in ATTRIBUTES["colour"]]


def test_the_parser_learns_its_labels() -> None:
    table = scene_parser.data(12, seed=3)
    torch.manual_seed(0)
    network = scene_parser.build()
    config = dataclasses.replace(QUICK, steps=14, batch_size=12, optimiser="muon", learning_rate=2e-3)
    rows = fit(
        scene_parser.loss(network), network, table, dataclasses.replace(config, log_every=1), progress=False
    ).rows
    assert rows[-1]["loss"] < 0.85 * rows[0]["loss"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> object:
    return _words.build_tokenizer(tmp_path_factory.mktemp("words"))


def test_every_word_of_the_world_is_one_token_and_others_are_spelt(tokenizer) -> None:
    for scene in sample(20, seed=9, combinations="all"):
        text = caption(scene, "detailed").text
        assert len(tokenizer.tokenize(text)) == len(text.replace(",", " ,").split())
    assert len(tokenizer.tokenize("turquoise")) > 1
    assert tokenizer.decode(tokenizer("turquoise dodecahedron").input_ids, skip_special_tokens=True).split() == [
        "turquoise",
        "dodecahedron",
    ]


def test_noun_tokens_are_labelled_with_what_the_caption_said(tokenizer) -> None:
    table = _words.labelled(tokenizer, 3)
    scene = sample(3, seed=77, combinations="all")[0]
    plain = caption(scene, "plain", seed=0)
    row = table["tokens"][0]
    named = [k for k in range(48) if row[k, 0] >= 0]
    assert len(named) == len(scene.objects)
    shapes = [scene.objects[index].shape for index, _ in plain.nouns]
    assert [ATTRIBUTES["shape"][int(row[k, 0])] for k in named] == shapes
    assert bool((row[:, list(ATTRIBUTES).index("size")] == -1).all())


def test_the_text_encoder_learns(tokenizer) -> None:
    table = _words.labelled(tokenizer, 20)
    torch.manual_seed(0)
    encoder = _words.build_encoder(len(tokenizer))
    heads = _words.build_heads()
    config = dataclasses.replace(QUICK, steps=12, batch_size=16, learning_rate=2e-3, log_every=1)
    parts = {"encoder": encoder, "heads": heads}
    rows = fit(_words.loss(encoder, heads), parts, table, config, progress=False).rows
    assert rows[-1]["loss"] < 0.9 * rows[0]["loss"]


def test_the_transformer_learns_and_saves(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = scenes_dit.build()
    table = {"latents": torch.randn(8, 4, 16, 16), "class": torch.arange(8)}
    config = dataclasses.replace(QUICK, steps=8, batch_size=8, optimiser="muon", learning_rate=2e-3, log_every=1)
    rows = fit(scenes_dit.loss(network, 1.0), network, table, config, progress=False).rows
    assert rows[-1]["simple"] < rows[0]["simple"]


def test_training_goes_on_from_a_pipeline(tmp_path: Path) -> None:
    begun = mezzotint.load("scenes")
    shared = {"start": zoo_path("scenes"), "batch_size": 4, "run": tmp_path / "run"}
    out = scenes.train(tmp_path / "on", pictures=520, steps=1, **shared)
    after = mezzotint.load(out)
    assert all(
        torch.equal(one, other) for one, other in zip(begun.vae.parameters(), after.vae.parameters(), strict=True)
    )
    moved = [
        (one - other).detach().abs().max()
        for one, other in zip(begun.unet.parameters(), after.unet.parameters(), strict=True)
    ]
    assert 0 < float(torch.stack(moved).max()) < 0.1
    assert (tmp_path / "run" / "data.safetensors").is_file()


def test_the_transformer_goes_on_and_names_its_classes(tmp_path: Path) -> None:
    out = scenes_dit.train(tmp_path / "on", start=zoo_path("scenes-dit"), pictures=16, steps=1, batch_size=4)
    after = mezzotint.load(out)
    assert after.labels["red cube"] == scenes_dit.CLASSES.index("red cube")
    assert after.get_label_ids(["green cone"]) == [scenes_dit.CLASSES.index("green cone")]


def test_the_truth_of_edges_is_that_of_the_objects_that_show() -> None:
    words = {name: list(values) for name, values in ATTRIBUTES.items()}

    def numbers(*item: str) -> list[int]:
        return [words[name].index(word) for name, word in zip(words, item, strict=True)]

    objects = [
        numbers("cube", "red", "small", "matte", "plain"),
        numbers("cube", "blue", "large", "matte", "striped"),
        numbers("cone", "green", "small", "shiny", "plain"),
    ]
    true = epvit.truth(torch.tensor([objects]), torch.tensor([[True, True, False]]))[0]
    found = {(NOUNS[o], WORDS[len(NOUNS) + a]) for o, a in torch.nonzero(true).tolist()}
    assert found == {("cube", word) for word in ("red", "blue", "small", "large", "matte", "plain", "striped")}


def test_random_graphs_always_have_objects_and_attributes() -> None:
    true = torch.zeros(200, len(NOUNS), len(WORDS) - len(NOUNS), dtype=torch.bool)
    true[:, 2, 3] = True
    words = epvit.drawn(true, step_of(200))
    assert bool(words[:, : len(NOUNS)].any(1).all())
    assert bool(words[:, len(NOUNS) :].any(1).all())
    assert 0.75 < float(words[:, 2].float().mean()) < 0.95
    assert 0.1 < float(words[:, 0].float().mean()) < 0.3


def test_complete_graphs_have_every_edge_between_chosen_words_and_no_other() -> None:
    words = torch.zeros(2, len(WORDS), dtype=torch.bool)
    words[0, [0, 3, 7, 20]] = True
    words[1, [2, 6]] = True
    graphs = epvit.complete(words)
    assert graphs.labels.tolist() == [[0, 3, 7, 20], [2, 6, -1, -1]]
    for row in range(2):
        ends = [tuple(graphs.labels[row, pair].tolist()) for pair in graphs.edges[row] if pair[0] >= 0]
        chosen = torch.nonzero(words[row]).flatten().tolist()
        nouns = [k for k in chosen if k < len(NOUNS)]
        assert sorted(ends) == sorted((a, o) for a in chosen if a not in nouns for o in nouns)


def test_the_loss_of_edges_weighs_true_swapped_and_other_ones() -> None:
    true = torch.zeros(1, len(NOUNS), len(WORDS) - len(NOUNS), dtype=torch.bool)
    true[0, 0, 0] = true[0, 1, 1] = True
    words = torch.zeros(1, len(WORDS), dtype=torch.bool)
    words[0, [0, 1, 6, 7, 8]] = True
    graphs = epvit.complete(words)
    right = torch.full((1, 6), -9.0)
    ends = [(int(graphs.labels[0, o]), int(graphs.labels[0, a]) - len(NOUNS)) for a, o in graphs.edges[0].tolist()]
    right[0, [ends.index((0, 0)), ends.index((1, 1))]] = 9.0
    best, share = epvit.edge_losses(right, graphs, true)
    assert float(best) < 1e-3
    assert float(share) == 1.0
    swapped = right.clone()
    swapped[0, [ends.index((1, 0)), ends.index((0, 1))]] = 9.0
    worse, share = epvit.edge_losses(swapped, graphs, true)
    torch.testing.assert_close(float(worse), 0.25 * 9.0, rtol=1e-3, atol=0)
    assert float(share) == 0.0
    other = right.clone()
    other[0, ends.index((0, 2))] = 9.0
    torch.testing.assert_close(float(epvit.edge_losses(other, graphs, true)[0]), 0.125 * 9.0, rtol=1e-3, atol=0)


def test_the_judge_and_the_similarity_learn_and_are_read_again(tmp_path: Path) -> None:
    table, text_table = epvit.data(12), None
    network = epvit.seeded(epvit.build, 0)
    tokenizer = _words.build_tokenizer(tmp_path / "words")
    similarity = epvit.seeded(lambda: epvit.build_similarity(len(tokenizer)), 0)
    text_table = {**table, "ids": epvit.captions(tokenizer, 12, split="train")}
    config = dataclasses.replace(QUICK, steps=10, batch_size=12, optimiser="muon", learning_rate=2e-3, log_every=1)
    names = epvit.seeded(epvit.build_names, 0)
    both = {"network": network, "names": names}
    rows = fit(epvit.loss(network, names), both, table, config, progress=False).rows
    assert rows[-1]["loss"] < rows[0]["loss"]
    rows = fit(epvit.contrast(similarity), similarity, text_table, config, progress=False).rows
    assert rows[-1]["loss"] < rows[0]["loss"]
    epvit.save(network, similarity, tokenizer, tmp_path / "out")
    pictures, graph = table["picture"][:2] / 255, Graph.of([WantedObject("cube", colour="red")])
    again = EPViT.load(tmp_path / "out").binding(pictures, [graph] * 2)
    torch.testing.assert_close(network.eval().binding(pictures, [graph] * 2), again, rtol=0, atol=5e-3)
    cosine = TextSimilarity.load(tmp_path / "out" / "similarity").cosine(pictures, ["a red cube", "a blue cone"])
    before = TextSimilarity(similarity.float(), tokenizer).cosine(pictures, ["a red cube", "a blue cone"])
    torch.testing.assert_close(cosine, before, rtol=0, atol=5e-3)


def test_stock_transformers_load_the_encoder_of_the_judge(tmp_path: Path) -> None:
    from transformers import ViTModel
    from transformers.utils import logging

    network = epvit.seeded(epvit.build, 0).eval()
    tokenizer = _words.build_tokenizer(tmp_path / "words")
    epvit.save(network, epvit.build_similarity(len(tokenizer)), tokenizer, tmp_path / "out")
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    encoder = ViTModel.from_pretrained(tmp_path / "out", add_pooling_layer=False, local_files_only=True)
    logging.set_verbosity(before)
    pictures = torch.rand(2, 3, 64, 64) * 2 - 1
    ours, theirs = (part(pictures).last_hidden_state for part in (network.vit, encoder.eval()))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-2)


def test_exchanged_scenes_differ_in_one_attribute_of_two_objects() -> None:
    found = swaps.swaps(6, "pattern", seed=3)
    for scene, other in zip(found.scenes, found.exchanged, strict=True):
        assert len({item.shape for item in scene.objects}) == len(scene.objects)
        changed = [k for k, item in enumerate(scene.objects) if item != other.objects[k]]
        assert len(changed) == 2
        assert sorted(item.pattern for item in scene.objects) == sorted(item.pattern for item in other.objects)

    def stated(graph: Graph) -> set[tuple[str, str]]:
        return {(graph.attributes[a], graph.objects[o]) for a, o in graph.edges}

    true, false = found.graphs()
    assert all(len(stated(one) - stated(two)) == 2 for one, two in zip(true, false, strict=True))
    said, unsaid = swaps.text_pairs(found)
    assert all(one != two and sorted(one.split()) == sorted(two.split()) for one, two in zip(said, unsaid, strict=True))
