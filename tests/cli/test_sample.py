"""`sample`, `show` and `rerun` on real pipelines of tiny size."""

import json
import shutil

import pytest
import torch
from PIL import Image, ImageChops

from mezzotint.files import read_settings, write_image

# DPM-Solver++ of diffusers hands tensors to NumPy in the old way.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

PROMPTS = ("a red cube", "a blue ball")


def difference(one, other):
    """Largest difference of two pictures in 8-bit steps."""
    with Image.open(one) as first, Image.open(other) as second:
        return max(high for _, high in ImageChops.difference(first.convert("RGB"), second.convert("RGB")).getextrema())


@pytest.fixture
def sample(terminal, sd_folder, tmp_path):
    def run(*words, out="x.png", prompts=PROMPTS[:1], model=sd_folder, steps=("--steps", 2)):
        return [*terminal("sample", *prompts, "--model", model, *steps, "--out", tmp_path / out, *words).splitlines()]

    return run


def test_two_runs_give_identical_bytes_and_another_seed_another_picture(sample, tmp_path):
    sample(out="a.png")
    sample(out="b.png")
    sample("--seed", "1", out="c.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert difference(tmp_path / "a.png", tmp_path / "c.png") > 0


def test_strict_pictures_are_the_same_bytes_alone_and_in_company(sample, tmp_path):
    files = sample("--count", "2", "--strict", out="all.png", prompts=PROMPTS)
    assert [path.rsplit("/", 1)[1] for path in files] == [f"all-00{index}.png" for index in range(4)]
    sample("--first", "3", "--strict", out="alone.png", prompts=PROMPTS[1:])
    assert (tmp_path / "alone.png").read_bytes() == (tmp_path / "all-003.png").read_bytes()


def test_a_batch_gives_the_pictures_of_its_singles(sample, tmp_path):
    sample("--count", "3", "--batch-size", "3", out="batch.png")
    sample("--count", "3", "--batch-size", "1", out="single.png")
    for index in range(3):
        assert difference(tmp_path / f"batch-00{index}.png", tmp_path / f"single-00{index}.png") <= 1
    assert difference(tmp_path / "batch-000.png", tmp_path / "batch-001.png") > 0


def test_a_picture_knows_how_it_was_made(sample, terminal, sd_folder, tmp_path):
    sample("--seed", "7", "--guidance", "3", "--negative", "blue")
    told = terminal.json("show", tmp_path / "x.png")
    assert told == read_settings(tmp_path / "x.png")
    assert (told["prompt"], told["negative_prompt"]) == (PROMPTS[0], "blue")
    assert (told["seed"], told["index"], told["steps"], told["guidance"]) == (7, 0, 2, 3.0)
    assert (told["model"], told["sampler"], told["width"]) == (str(sd_folder), "DDIMScheduler", 16)
    assert {"torch", "diffusers", "mezzotint"} <= told["versions"].keys()
    assert str(tmp_path / "x.png") not in json.dumps(told)
    with Image.open(tmp_path / "x.png") as image:
        assert image.text["parameters"].splitlines()[:2] == [PROMPTS[0], "Negative prompt: blue"]
    assert "prompt: a red cube" in terminal("show", tmp_path / "x.png")


def test_negative_prompt_and_guidance_reach_the_model(sample, tmp_path):
    sample(out="a.png")
    sample("--negative", "blue", out="b.png")
    sample("--guidance", "1", out="c.png")
    assert difference(tmp_path / "a.png", tmp_path / "b.png") > 0
    assert difference(tmp_path / "a.png", tmp_path / "c.png") > 0


def test_the_models_own_defaults_are_used_and_written_down(sample, terminal, tmp_path):
    sample("--batch-size", "1", steps=())
    told = terminal.json("show", tmp_path / "x.png")
    assert (told["steps"], told["guidance"]) == (50, 7.5)


def test_rerun_makes_the_same_bytes(sample, terminal, tmp_path):
    sample("--count", "3", "--batch-size", "2", "--solver", "dpm++sde", prompts=PROMPTS)
    for index in (0, 3):
        told = terminal.json("rerun", tmp_path / f"x-00{index}.png")
        assert told["same_bytes"] is True
        assert told["different_versions"] == {}
    assert (tmp_path / "x-003.rerun.png").read_bytes() == (tmp_path / "x-003.png").read_bytes()
    assert "model: the same" in terminal.err


def test_rerun_uses_the_recorded_number_of_threads(sample, terminal, tmp_path):
    before = torch.get_num_threads()
    sample()
    try:
        torch.set_num_threads(before + 1)
        assert terminal.json("rerun", tmp_path / "x.png")["same_bytes"] is True
        assert torch.get_num_threads() == before
    finally:
        torch.set_num_threads(before)


def test_a_contact_sheet_holds_the_single_pictures_and_reruns(sample, terminal, tmp_path):
    sample("--count", "2", "--grid", "--strict", out="sheet.png", prompts=PROMPTS)
    sample("--count", "2", "--strict", out="x.png", prompts=PROMPTS)
    with Image.open(tmp_path / "sheet.png") as sheet, Image.open(tmp_path / "x-002.png") as third:
        assert sheet.size == (2 * 16 + 3 * 4, 2 * 16 + 3 * 4)
        assert sheet.crop((4, 24, 20, 40)).tobytes() == third.convert("RGB").tobytes()
    assert terminal.json("rerun", tmp_path / "sheet.png")["same_bytes"] is True


def test_rerun_refuses_another_model_unless_forced(sample, terminal, sd_folder, tmp_path):
    sample()
    other = tmp_path / "other"
    other.mkdir()
    for path in sd_folder.rglob("*"):
        target = other / path.relative_to(sd_folder)
        target.mkdir(exist_ok=True) if path.is_dir() else target.write_bytes(path.read_bytes())
    config = json.loads((other / "scheduler" / "scheduler_config.json").read_text())
    (other / "scheduler" / "scheduler_config.json").write_text(json.dumps(config | {"beta_end": 0.02}))
    assert "was made by" in terminal.refused("rerun", tmp_path / "x.png", "--model", other)
    told = terminal.json("rerun", tmp_path / "x.png", "--model", other, "--force", code=1)
    assert told["same_bytes"] is False
    assert "ANOTHER" in terminal.err


def test_rerun_in_place_still_compares_with_the_old_bytes(sample, terminal, tmp_path):
    sample()
    path = tmp_path / "x.png"
    settings = read_settings(path)
    with Image.open(path) as image:
        write_image(path, image.point(lambda value: 255 - value), settings)
    assert terminal.json("rerun", path, "--out", path, code=1)["same_bytes"] is False
    assert terminal.json("rerun", path, "--out", path)["same_bytes"] is True


def test_rerun_never_fetches_what_a_picture_names(terminal, tmp_path):
    request = {"model": "someone/something", "prompts": ["x"], "seed": 0, "steps": 2, "guidance": 1.0}
    settings = {"request": request, "kind": "picture", "index": 0, "methods": [], "model_hash": "0"}
    write_image(tmp_path / "x.png", Image.new("RGB", (8, 8)), settings)
    assert "not on this machine: say where it is with --model" in terminal.refused("rerun", tmp_path / "x.png")


@pytest.mark.parametrize(
    "change",
    [{"request": {"prompts": "x"}}, {"index": 5}, {"kind": "film"}, {"index": "many"}, {"methods": 3}, {"request": []}],
)
def test_tampered_settings_are_refused(sample, terminal, tmp_path, change):
    request = {"model": "scenes", "prompts": ["x"], "seed": 0, "steps": 2, "guidance": 1.0}
    settings = {"request": request, "kind": "picture", "index": 0, "methods": [], "model_hash": "0"} | change
    write_image(tmp_path / "x.png", Image.new("RGB", (8, 8)), settings)
    assert "settings of" in terminal.refused("rerun", tmp_path / "x.png")


def test_a_picture_without_settings_is_refused(terminal, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "x.png")
    for verb in ("show", "rerun"):
        assert "no settings" in terminal.refused(verb, tmp_path / "x.png")
    assert "nowhere.png" in terminal.refused("show", tmp_path / "nowhere.png")


@pytest.fixture
def schedule(tmp_path):
    def write(**content):
        path = tmp_path / "schedule.json"
        path.write_text(json.dumps(content))
        return path

    return write


def test_ddim_on_its_own_timesteps_as_a_schedule_is_ddim(sample, schedule, tmp_path):
    """Four steps of DDIM visit 751, 501, 251, 1 and end on the model's lowest level."""
    sample(out="own.png", steps=("--steps", 4))
    path = schedule(name="mine", timesteps=[751, 501, 251, 1], final="t_min")
    sample("--schedule", path, out="custom.png", steps=())
    assert difference(tmp_path / "own.png", tmp_path / "custom.png") <= 1
    told = read_settings(tmp_path / "custom.png")
    assert (told["steps"], told["methods"], told["request"]["timesteps"]) == (4, ["mine"], [751, 501, 251, 1])


def test_a_schedule_is_what_the_model_runs(sample, schedule, terminal, tmp_path):
    path = schedule(timesteps=[900, 300])
    for solver in ("model", "dpm++", "dpm++sde", "euler", "ddpm"):
        sample("--schedule", path, "--solver", solver, out=f"{solver}.png", steps=())
        assert terminal.json("rerun", tmp_path / f"{solver}.png")["same_bytes"] is True
    path = schedule(timesteps=[900, 600])
    sample("--schedule", path, "--solver", "dpm++", out="other.png", steps=())
    assert difference(tmp_path / "dpm++.png", tmp_path / "other.png") > 0


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"timesteps": [10, 20]}, "strictly decreasing"),
        ({"timesteps": []}, "list of whole numbers"),
        ({"timesteps": [True]}, "list of whole numbers"),
        ({"sigmas": [1.0]}, "list of whole numbers"),
        ({"timesteps": [1000, 3]}, r"timesteps must be in 0..999"),
        ({"timesteps": [900, -3]}, r"timesteps must be in 0..999"),
    ],
)
def test_wrong_schedules_are_refused(schedule, terminal, sd_folder, tmp_path, content, said):
    words = ("--model", sd_folder, "--schedule", schedule(**content), "--out", tmp_path / "x.png")
    assert said in terminal.refused("sample", "a", *words)
    assert not (tmp_path / "x.png").exists()


def test_a_class_conditional_model_draws_names_and_numbers(sample, terminal, dit_folder, tmp_path):
    names, numbers = ("red box", "blue sphere"), ("0", "1")
    sample(out="names.png", prompts=names, model=dit_folder)
    sample(out="numbers.png", prompts=numbers, model=dit_folder)
    assert difference(tmp_path / "names-001.png", tmp_path / "numbers-001.png") == 0
    assert difference(tmp_path / "names-000.png", tmp_path / "names-001.png") > 0
    assert terminal.json("rerun", tmp_path / "names-000.png")["same_bytes"] is True
    out = ("--out", tmp_path / "y.png", "--steps", "2")
    assert "neither a number nor a name" in terminal.refused("sample", "green", "--model", dit_folder, *out)
    said = terminal.refused("sample", "1", "--model", dit_folder, "--negative", "x", *out)
    assert "takes no negative" in said


def test_the_precision_is_the_one_asked_for(sample, tmp_path):
    sample(out="full.png")
    sample("--dtype", "bfloat16", out="half.png")
    assert 0 < difference(tmp_path / "full.png", tmp_path / "half.png") < 64


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "a prompt is needed"),
        (("a", "--out", "x.jpg"), "must end in .png"),
        (("a", "--count", "0"), "count must be at least 1, got 0"),
        (("a", "--steps", "0"), "steps must be between 1 and 10000, got 0"),
        (("a", "--seed", "-1"), "seed must be between 0"),
        (("a", "--batch-size", "0"), "batch-size must be between 1 and 4096, got 0"),
        (("a", "--guidance", "nan"), "guidance must be a finite number"),
        (("a", "--model", "no-such-model"), "no-such-model"),
        (("a", "--device", "abacus"), "device 'abacus' is not usable here"),
        (("a", "--grid", "--count", "2000"), "at most 1024 pictures"),
    ],
)
def test_wrong_requests_are_refused_before_anything_is_written(terminal, tmp_path, monkeypatch, words, said):
    monkeypatch.chdir(tmp_path)
    assert said in terminal.refused("sample", *words)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "said"),
    [(("--guidance", "7.5"), "guidance_scale must be 1 for this model"), (("--negative", "blurry"), "negative prompt")],
)
def test_what_a_distilled_model_cannot_follow_is_refused(sample, terminal, sd_folder, tmp_path, words, said):
    folder = tmp_path / "four"
    shutil.copytree(sd_folder, folder)
    facts = {"recommended": {"guidance_scale": 1.0}, "distillation": {"options": {"mode": "splam"}}}
    (folder / "metrics.json").write_text(json.dumps(facts))
    assert said in terminal.refused("sample", "a", "--model", folder, "--out", tmp_path / "x.png", *words)
    assert not (tmp_path / "x.png").exists()
    assert sample(model=folder)
    assert sample(*words, out="y.png"), "any other model follows"
