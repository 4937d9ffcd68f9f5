"""Exported folders: read by `datasets` offline, exact, reproducible, complete or absent."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from mezzotint import files
from mezzotint.worlds import scenes
from mezzotint.worlds.scenes import DEPTH_SCALE, Scene, export, render, sample

COUNT, SIZE = 5, 32


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return export(COUNT, tmp_path_factory.mktemp("data") / "scenes", seed=8, size=SIZE, style="detailed")


@pytest.fixture(scope="module")
def rows(folder, tmp_path_factory):
    from datasets import load_dataset

    cache = tmp_path_factory.mktemp("cache")
    return load_dataset("imagefolder", data_dir=str(folder), cache_dir=str(cache), split="train")


def test_datasets_reads_pictures_depth_masks_and_captions(rows):
    drawn = sample(COUNT, seed=8)
    frames = render(drawn, SIZE)
    assert len(rows) == COUNT
    for k, row in enumerate(rows):
        assert Scene.from_json(row["scene"]) == drawn[k]
        assert row["text"] == scenes.caption(drawn[k], "detailed", seed=k).text
        pixels = torch.from_numpy(np.array(row["image"])).permute(2, 0, 1)
        torch.testing.assert_close(pixels / 255, frames.rgb[k], atol=0.5 / 255 + 1e-6, rtol=0)
        depth = torch.from_numpy(np.array(row["depth"]).astype(np.float32)) / DEPTH_SCALE
        expected = torch.where(torch.isfinite(frames.depth[k, 0]), frames.depth[k, 0], 0.0)
        torch.testing.assert_close(depth, expected, atol=0.5 / DEPTH_SCALE + 1e-5, rtol=0)
        assert torch.equal(torch.from_numpy(np.array(row["mask"])).long(), frames.instance[k, 0] % 256)
        torch.testing.assert_close(torch.tensor(row["intrinsics"]), frames.intrinsics[k])
        torch.testing.assert_close(torch.tensor(row["world_to_camera"]), frames.world_to_camera[k])


def test_bindings_name_the_characters_of_the_text(rows):
    assert sum(len(row["bindings"]) for row in rows) >= COUNT
    for row in rows:
        items = Scene.from_json(row["scene"]).objects
        for found in row["bindings"]:
            assert row["text"][found["word_start"] : found["word_end"]] == found["word"]
            assert row["text"][found["noun_start"] : found["noun_end"]] == found["noun"]
            assert getattr(items[found["index"]], found["attribute"]) == found["word"]
            assert items[found["index"]].shape == found["noun"]


def test_the_same_arguments_give_the_same_bytes(folder, tmp_path):
    again = export(COUNT, tmp_path / "again", seed=8, size=SIZE, style="detailed")
    assert files.verify_folder(again) == files.verify_folder(folder)


def test_parts_are_the_whole(folder, tmp_path):
    part = export(2, tmp_path / "part", seed=8, size=SIZE, style="detailed", first=3)
    whole, found = files.verify_folder(folder), files.verify_folder(part)
    pictures = {name for name in found if name.endswith(".png")}
    assert pictures == {f"{kind}/00000{k}.png" for kind in ("images", "depth", "masks") for k in (3, 4)}
    assert all(found[name] == whole[name] for name in pictures)
    lines = (folder / "metadata.jsonl").read_text().splitlines()
    assert (part / "metadata.jsonl").read_text().splitlines() == lines[3:]


def test_what_is_not_wanted_is_not_written(tmp_path):
    bare = export(1, tmp_path / "bare", size=16, depth=False, masks=False)
    assert sorted(files.verify_folder(bare)) == ["README.md", "images/000000.png", "metadata.jsonl"]
    row = json.loads((bare / "metadata.jsonl").read_text())
    assert row["file_name"] == "images/000000.png"
    assert not {"depth_file_name", "mask_file_name"} & row.keys()


def test_the_sky_has_no_depth_and_a_mask_of_its_own():
    frame = render([Scene(camera=scenes.Camera(elevation=1.0))], 32)
    module = __import__("sys").modules["mezzotint.worlds.scenes.export"]
    sky = (frame.instance[0, 0] == scenes.SKY).numpy()
    assert sky.any()
    depth, mask = module.depth_image(frame.depth[0]), module.mask_image(frame.instance[0])
    assert depth.mode == "I;16"
    assert (np.array(depth)[sky] == 0).all()
    assert (np.array(depth)[~sky] > 0).all()
    assert (np.array(mask)[sky] == 255).all()


def test_a_folder_that_stands_there_is_left_alone(folder, tmp_path):
    before = files.verify_folder(folder)
    with pytest.raises(FileExistsError):
        export(1, folder, size=16)
    assert files.verify_folder(folder) == before


@pytest.mark.parametrize("wrong", [{"count": 0}, {"size": 4}, {"first": -1}])
def test_wrong_requests_write_nothing(tmp_path, wrong):
    arguments = {"count": 1, "size": 16} | wrong
    with pytest.raises(ValueError, match="must"):
        export(arguments.pop("count"), tmp_path / "out", **arguments)
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_export_leaves_nothing(tmp_path, monkeypatch):
    calls = []

    def fail_later(self, *arguments, **options):
        calls.append(self)
        if len(calls) > 4:
            raise OSError(28, "No space left on device")
        return save(self, *arguments, **options)

    save = Image.Image.save
    monkeypatch.setattr(Image.Image, "save", fail_later)
    with pytest.raises(OSError, match="space"):
        export(4, tmp_path / "out", size=16)
    assert list(tmp_path.iterdir()) == []
