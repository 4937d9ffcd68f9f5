"""`zoo` and `world`: the embedded models and the data with exact ground truth."""

import json

import pytest

import mezzotint.loading
from mezzotint.cli import shelves
from mezzotint.files import atomic_folder
from mezzotint.loading import embedded


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    """A shelf with one complete model on it."""
    with atomic_folder(tmp_path / "tiny") as folder:
        (folder / "README.md").write_text("# tiny\n\nRandom weights.\n")
        (folder / "config.json").write_text("{}")
    monkeypatch.setattr(mezzotint.loading, "_weights", lambda: tmp_path)
    return tmp_path


def test_list_path_and_card(shelf, terminal):
    (entry,) = terminal.json("zoo", "list")
    assert (entry["name"], entry["path"], entry["card"]) == ("tiny", str(shelf / "tiny"), True)
    assert terminal("zoo", "list").split()[0] == "tiny"
    assert terminal("zoo", "path", "tiny").strip() == str(shelf / "tiny")
    assert terminal("zoo", "card", "tiny") == "# tiny\n\nRandom weights.\n"
    assert "did you mean 'tiny'?" in terminal.refused("zoo", "path", "tny")


def test_a_model_without_a_card_is_named(shelf, terminal):
    (shelf / "tiny" / "README.md").unlink()
    assert terminal.json("zoo", "list")[0]["card"] is False
    assert "has no card" in terminal.refused("zoo", "card", "tiny")


def test_verify_finds_a_damaged_file(shelf, terminal):
    assert terminal.json("zoo", "verify") == {"tiny": "complete"}
    (shelf / "tiny" / "config.json").write_text("[]")
    assert terminal.json("zoo", "verify", "tiny", code=1) == {"tiny": "broken"}
    assert "config.json" in terminal.err


def test_embedded_models_are_complete(terminal):
    assert terminal.json("zoo", "verify") == dict.fromkeys(embedded(), "complete")


def train(*, out: str = "weights", steps: int = 10) -> str:
    """Train it.

    Args:
        out: where.
        steps: how long.
    """
    return f"{out} after {steps}"


def test_train_takes_the_recipes_own_options(terminal, monkeypatch):
    monkeypatch.setattr("mezzotint.cli.entry.recipe", lambda name: {"tiny": train}[name])
    assert terminal("zoo", "train", "tiny", "--steps", "3", "--out", "x") == "x after 3\n"
    assert "--steps INT" in terminal("zoo", "train", "tiny", "--help")
    assert "one recipe is needed" in terminal.refused("zoo", "train")


def test_every_recipe_has_a_train_function():
    for name in shelves._recipes():
        assert callable(shelves.recipe(name)), name


def test_world_writes_what_was_asked_and_the_same_again(terminal, tmp_path):
    for place in ("a", "b"):
        words = ("--count", "3", "--seed", "5", "--size", "32", "--out", tmp_path / place)
        assert terminal("world", "scenes", *words).strip() == str(tmp_path / place)
    rows = [json.loads(line) for line in (tmp_path / "a" / "metadata.jsonl").read_text().splitlines()]
    assert len(rows) == 3
    for path in sorted((tmp_path / "a").rglob("*")):
        if path.is_file():
            assert path.read_bytes() == (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes(), path


def test_wrong_worlds_are_refused(terminal, tmp_path):
    out = ("--out", tmp_path / "x")
    assert "count must be at least 1" in terminal.refused("world", "scenes", "--count", "0", *out)
    assert "'holdout'" in terminal.refused("world", "scenes", "--count", "1", "--split", "holdout", *out)
    assert "--count INT is missing" in terminal.refused("world", "scenes", *out)
