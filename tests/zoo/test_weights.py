"""The embedded checkpoints: small, complete, stock, and as good as their cards say."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from mezzotint.files import verify_folder
from mezzotint.loading import embedded, load, zoo_path
from mezzotint.metrics.parser import SceneParser
from mezzotint.zoo.measure import parser_error, prompts
from mezzotint.zoo.recipes import _autoencoder
from mezzotint.zoo.recipes.scenes import rendered

MEGABYTE = 1e6
STOCK = """
import sys, torch
from diffusers import StableDiffusionPipeline
pipe = StableDiffusionPipeline.from_pretrained(sys.argv[1], safety_checker=None)
pipe.set_progress_bar_config(disable=True)
latents = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(3))
image = pipe("a red cube and a blue sphere", latents=latents, num_inference_steps=3, output_type="pt").images
assert not any(name.split(".")[0] == "mezzotint" for name in sys.modules)
print(image.flatten().double().tolist())
"""


@pytest.mark.parametrize("name", embedded())
def test_a_checkpoint_is_complete_small_and_described(name: str) -> None:
    folder = zoo_path(name)
    verify_folder(folder)
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert max(path.stat().st_size for path in files) < 30 * MEGABYTE
    assert not {path.suffix for path in files} & {".bin", ".pt", ".pth", ".ckpt", ".pkl"}
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert all(heading in card for heading in ("## Data", "## Training", "## Measured", "## Limits"))
    assert json.loads((folder / "metrics.json").read_text(encoding="utf-8"))


def test_the_zoo_holds_what_is_promised_and_stays_small() -> None:
    assert set(embedded()) >= {"scenes", "scenes-dit", "scene-parser", "epvit"}
    total = sum(path.stat().st_size for name in embedded() for path in zoo_path(name).rglob("*") if path.is_file())
    assert total < 60 * MEGABYTE


def test_stock_diffusers_makes_the_same_picture_without_mezzotint() -> None:
    pipe = load("scenes")
    latents = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(3))
    ours = pipe("a red cube and a blue sphere", latents=latents, num_inference_steps=3, output_type="pt").images
    run = [sys.executable, "-c", STOCK, str(zoo_path("scenes"))]
    printed = subprocess.run(run, capture_output=True, text=True, check=True).stdout
    stock = torch.tensor(json.loads(printed.strip().splitlines()[-1]), dtype=torch.float64)
    torch.testing.assert_close(stock, ours.flatten().double(), rtol=0, atol=1e-6)


def test_the_parser_reads_held_out_renders() -> None:
    error = parser_error(SceneParser.load(), 192)
    assert min(error.shape, error.colour, error.size) >= 0.96
    assert error.count >= 0.95


@pytest.mark.slow
def test_the_parser_meets_its_bar_on_two_thousand_renders() -> None:
    error = parser_error(SceneParser.load(), 2000)
    assert min(error.shape, error.colour, error.size) >= 0.98
    assert error.count >= 0.97


def test_the_autoencoder_is_sharp_on_held_out_renders() -> None:
    scenes, _ = prompts(48, 2)
    values = _autoencoder.psnr(load("scenes").vae, rendered(scenes))
    metrics = json.loads((zoo_path("scenes") / "metrics.json").read_text(encoding="utf-8"))
    assert float(values.mean()) > metrics["vae_psnr_db"]["mean"] - 1.0
