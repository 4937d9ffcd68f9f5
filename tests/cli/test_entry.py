"""What the words mean, and which exit codes and messages they give."""

import subprocess
import sys
import warnings
from types import ModuleType
from typing import Any

import pytest

from mezzotint.cli import verbs
from mezzotint.methods import Card, Door, names


class Grid:
    def __init__(self, values):
        self.values = values

    def to_json(self):
        return {"values": self.values}

    def save(self, path):
        path.write_text(str(self.values))


def spread(*, steps: int = 2) -> Grid:
    """Spread levels.

    Args:
        steps: how many.
    """
    return Grid(list(range(steps)))


def gather(*, steps: int = 2, pipe: Any = None) -> Grid:
    """Gather levels."""
    return Grid([steps, pipe])


def explode() -> None:
    """Fail."""
    raise RuntimeError("the boiler\nburst")


def warn() -> int:
    """Warn."""
    warnings.warn("guidance 3 is\nunusual", UserWarning, stacklevel=2)
    warnings.warn("another name is coming", FutureWarning, stacklevel=2)
    return 3


def refuse(*, steps: int = 1) -> None:
    """Refuse."""
    raise ValueError(f"steps must be at least 2, got {steps}")


def door(name, **functions):
    module = ModuleType(name)
    module.CARD = Card(name, name.title(), "It works.", "Nobody. Nowhere. 2024.", "", "@misc{x}", "sampling")
    return Door(name, module, functions)


@pytest.fixture
def doors(monkeypatch):
    found = [door("first", level=spread, explode=explode, refuse=refuse, warn=warn), door("second", level=gather)]
    monkeypatch.setattr(verbs, "doors", lambda: iter(found))
    return found


def test_help_lists_every_verb_on_stdout(terminal):
    text = terminal("--help")
    for word in ("sample", "show", "rerun", "methods", "cite", "demo", "bench", "world", "zoo", "doctor"):
        assert f"\n  {word} " in text
    assert terminal.err == ""


def test_no_words_are_wrong_usage(terminal):
    assert "usage" in terminal(code=2)


def test_an_unknown_verb_is_answered_with_the_nearest(terminal):
    assert "did you mean 'sample'?" in terminal.refused("smaple")
    assert "allowed: card, list" in terminal.refused("zoo", "lst")


def test_version(terminal):
    import mezzotint

    assert terminal("--version").strip() == mezzotint.__version__


def test_house_verbs_do_not_look_at_the_methods(terminal, monkeypatch):
    monkeypatch.setattr(verbs, "doors", lambda: pytest.fail("a method was imported"))
    terminal("zoo", "list")


def test_a_broken_method_does_not_take_the_others_with_it(terminal, monkeypatch, tmp_path):
    def import_door(name):
        raise ImportError(f"{name} needs a package that is not here")

    monkeypatch.setattr("mezzotint.methods.door", import_door)
    assert "sample" in terminal("--help")
    assert terminal.err.count("is left out") == len(names())


def test_a_method_cannot_take_a_word_of_the_house(terminal, monkeypatch):
    monkeypatch.setattr(verbs, "doors", lambda: iter([door("first", sample=spread)]))
    assert "belong to the house" in terminal.refused("--help")


def test_one_task_of_two_methods_needs_the_method(doors, terminal):
    assert "--method with one of first, second" in terminal.refused("level")
    assert terminal.json("level", "--method", "first", "--steps", "3") == {"values": [0, 1, 2]}
    assert terminal.json("level", "--steps", "3", "--method=second") == {"values": [3, None]}
    assert "did you mean 'second'?" in terminal.refused("level", "--method", "secnd")


def test_a_result_is_saved_where_out_says_and_printed_anyway(doors, terminal, tmp_path):
    out = tmp_path / "new" / "grid.txt"
    told = terminal.json("level", "--method", "first", "--out", out)
    assert told == {"out": str(out), "values": [0, 1]}
    assert out.read_text() == "[0, 1]"


def test_failures_are_code_1_and_wrong_input_is_code_2(doors, terminal):
    said = terminal.refused("explode", code=1)
    assert "RuntimeError: the boiler burst" in said
    assert terminal.refused("refuse") == "mezzotint refuse: steps must be at least 2, got 1"


@pytest.mark.filterwarnings("default")
def test_a_warning_is_one_line_and_does_not_stop_anything(doors, terminal):
    assert terminal("warn") == "3\n"
    assert terminal.err == "warning: guidance 3 is unusual\n"


def test_traceback_shows_where_it_arose(doors, terminal):
    terminal("--traceback", "explode", code=1)
    assert "in explode" in terminal.err


def test_a_folder_with_files_is_refused_before_any_work(doors, terminal, tmp_path, monkeypatch):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("mine")
    monkeypatch.setattr("mezzotint.cli.entry.call", lambda *_: pytest.fail("worked before it looked"))
    assert "already exists" in terminal.refused("level", "--method", "first", "--out", tmp_path / "full")
    assert (tmp_path / "full" / "x").read_text() == "mine"


def test_a_file_in_the_way_of_the_output_is_wrong_input(doors, terminal, tmp_path):
    (tmp_path / "file").touch()
    assert "is a file, not a folder" in terminal.refused("level", "--method", "first", "--out", tmp_path / "file" / "x")


def test_help_of_a_task_of_two_methods_lists_them(doors, terminal):
    text = terminal("level", "--help")
    assert "first" in text
    assert "Gather levels" in text


@pytest.mark.parametrize("words", [["--help"], ["sample", "--help"], ["zoo", "list"], ["cite"], ["schedule", "--help"]])
def test_no_torch_before_it_is_needed(words):
    code = f"import sys; from mezzotint.cli import main; assert main({words!r}) == 0; assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr


def test_a_reader_that_stops_listening_is_no_error():
    """As in `mezzotint cite | head -0`."""
    words = [sys.executable, "-m", "mezzotint.cli", "cite"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        child.stdout.close()
        assert child.wait(timeout=60) == 0
        assert child.stderr.read() == ""


def test_a_verb_is_found_in_both_spellings():
    assert [verbs.find(word).name for word in ("distil", "distill", "quantise")] == ["distill", "distill", "quantize"]
