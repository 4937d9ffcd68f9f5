"""Methods that act on `sample`: their options, the settings that remember them, and leaving no trace."""

import types
from contextlib import contextmanager

import pytest

from mezzotint import methods
from mezzotint.files import read_settings, write_image
from mezzotint.methods import Card, Effect

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

CARD = {"title": "T", "claim": "C", "paper": "P", "arxiv": "", "bibtex": "B", "family": "F"}


class Report:
    def __init__(self, said: str) -> None:
        self.said = said

    def __str__(self) -> str:
        return self.said


@contextmanager
def dim(pipe, prompts, *, dim: float = 1.0, only: tuple[str, ...] = (), dim_all: bool = False):
    """Weaken what the text says.

    Args:
        pipe: a pipeline.
        prompts: of the batch.
        dim: factor of the text encoder's output.
        only: words of the prompts that it is for.
        dim_all: for all prompts.
    """
    if not dim_all and any(not set(only) & set(prompt.split()) for prompt in prompts):
        raise ValueError(f"none of {list(only)} is in {prompts[0]!r}")
    norm = pipe.text_encoder.final_layer_norm
    handle = norm.register_forward_hook(lambda module, given, made: made * dim)
    try:
        yield Report(f"dimmed to {dim}")
    finally:
        handle.remove()


class Point:
    """Stands in for an installed package's entry point, which cannot be made at test time."""

    def __init__(self, module):
        self.load = lambda: module


@pytest.fixture
def dimming(monkeypatch):
    module = types.ModuleType("dimming")
    module.CARD, module.EFFECT = Card(slug="dimming", **CARD), Effect(dim, stage="words")
    monkeypatch.setattr(methods, "_foreign", lambda: {"dimming": Point(module)})
    methods.names.cache_clear()
    methods.discover.cache_clear()
    yield
    monkeypatch.undo()
    methods.names.cache_clear()
    methods.discover.cache_clear()


@pytest.fixture
def sample(terminal, sd_folder, tmp_path, dimming):
    def run(*words, out="x.png", code=0):
        asked = ("sample", "a red cube", *words, "--model", sd_folder, "--steps", 2, "--out", tmp_path / out)
        return terminal(*asked) if not code else terminal.refused(*asked, code=code)

    return run


def test_an_effect_changes_the_picture_and_is_remembered(sample, terminal, tmp_path):
    sample(out="plain.png")
    sample("--dim", "0.25", "--only", "red", "--only", "green", out="dim.png")
    assert "dimmed to 0.25" in terminal.err
    assert (tmp_path / "plain.png").read_bytes() != (tmp_path / "dim.png").read_bytes()
    told = read_settings(tmp_path / "dim.png")
    assert told["methods"] == ["dimming"]
    assert told["request"]["effects"] == {"dimming": {"dim": 0.25, "only": ["red", "green"], "dim_all": False}}
    assert terminal.json("rerun", tmp_path / "dim.png")["same_bytes"] is True


def test_without_its_options_a_method_takes_no_part(sample, tmp_path):
    sample(out="plain.png")
    assert read_settings(tmp_path / "plain.png")["request"]["effects"] == {}


def test_what_an_effect_refuses_is_said_in_one_line(sample):
    assert "none of ['blue'] is in 'a red cube'" in sample("--dim", "0.5", "--only", "blue", code=2)


def test_an_option_is_listed_with_its_help(terminal, dimming):
    said = terminal("sample", "--help")
    assert "--dim-all" in said
    assert "factor of the text encoder's output" in said


@pytest.mark.parametrize(
    "effects",
    [
        {"nothing": {}},
        {"dimming": {"dim": "0.5"}},
        {"dimming": {"only": [1]}},
        {"dimming": {"other": 1}},
        {"dimming": 3},
        ["dimming"],
    ],
)
def test_tampered_effects_are_refused(sample, terminal, tmp_path, effects):
    sample("--dim", "0.5", "--dim-all")
    path = tmp_path / "x.png"
    settings = read_settings(path)
    settings["request"]["effects"] = effects
    from PIL import Image

    with Image.open(path) as image:
        write_image(path, image.copy(), settings)
    assert "settings of" in terminal.refused("rerun", path)
