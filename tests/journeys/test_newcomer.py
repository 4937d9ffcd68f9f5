"""What somebody does on the first day: look around, draw, ask how, draw it again, find better steps, use them."""

import json
import subprocess
import sys

import pytest
from PIL import Image

# DPM-Solver++ of diffusers hands tensors to NumPy in the old way.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

PROMPT = "a red cube and a blue sphere on a gray floor"


def test_from_looking_around_to_a_better_schedule(terminal, sd_folder, tmp_path):
    assert "schedule" in terminal("--help")
    assert "align_your_steps" in terminal("methods")
    assert terminal("cite", "align-your-steps").startswith("@")

    picture = tmp_path / "x.png"
    assert terminal(
        "sample", PROMPT, "--model", sd_folder, "--seed", "1", "--steps", "3", "--out", picture
    ).strip() == str(picture)
    assert f"prompt: {PROMPT}" in terminal("show", picture)
    assert terminal.json("rerun", picture)["same_bytes"] is True

    steps = tmp_path / "steps.json"
    quick = (
        "--steps 5 --data self --prompts a --samples 4 --levels 11 --candidates 3 --no-early-stopping --stop-samples 2"
    )
    told = terminal.json("schedule", "--model", sd_folder, "--out", steps, *quick.split())
    assert told["out"] == str(steps)
    assert told["timesteps"] == json.loads(steps.read_text())["timesteps"]
    assert told["timesteps"] == sorted(set(told["timesteps"]), reverse=True)

    better = tmp_path / "better.png"
    terminal("sample", PROMPT, "--model", sd_folder, "--seed", "1", "--schedule", steps, "--out", better)
    settings = terminal.json("show", better)
    assert settings["request"]["timesteps"] == told["timesteps"]
    assert settings["methods"] == [told["name"]]
    assert terminal.json("rerun", better)["same_bytes"] is True


def test_the_schedule_drives_stock_diffusers(terminal, sd_folder, tmp_path):
    """The file alone is enough: no mezzotint in the pipeline, and the same picture as the command line's."""
    import torch
    from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline

    from mezzotint.diffusion.rng import stream

    steps = tmp_path / "steps.json"
    steps.write_text(json.dumps({"name": "mine", "timesteps": [900, 500, 100]}))
    terminal(
        "sample",
        PROMPT,
        "--model",
        sd_folder,
        "--seed",
        "1",
        "--schedule",
        steps,
        "--solver",
        "dpm++",
        "--out",
        tmp_path / "x.png",
    )
    pipe = StableDiffusionPipeline.from_pretrained(sd_folder, use_safetensors=True)
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    timesteps = json.loads(steps.read_text())["timesteps"]
    with torch.inference_mode():
        stock = pipe(PROMPT, timesteps=timesteps, generator=stream(1, "sample", 0, 0)).images[0]
    with Image.open(tmp_path / "x.png") as ours:
        assert ours.convert("RGB").tobytes() == stock.tobytes()


@pytest.mark.slow
def test_fresh_processes_make_the_same_bytes(sd_folder, tmp_path):
    for name in ("a", "b", "c"):
        words = [
            "sample",
            PROMPT,
            "--model",
            str(sd_folder),
            "--seed",
            "1",
            "--steps",
            "4",
            "--out",
            f"{tmp_path}/{name}.png",
        ]
        subprocess.run([sys.executable, "-m", "mezzotint.cli", *words], check=True, capture_output=True, timeout=300)
    contents = {(tmp_path / f"{name}.png").read_bytes() for name in ("a", "b", "c")}
    assert len(contents) == 1
