"""What is printed, where, and in which form."""

import io
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from mezzotint.cli.terminal import Answer, UsageError, choose, emit, error, folder, plain, progress


@dataclass(frozen=True)
class Point:
    x: float
    where: Path


class Described:
    def to_json(self):
        return {"kept": (1, 2)}


def test_results_become_plain_data():
    value = {"point": Point(1.5, Path("a/b")), 3: torch.tensor([1, 2]), "set": {4}, "own": Described(), "no": None}
    assert plain(value) == {
        "point": {"x": 1.5, "where": "a/b"},
        "3": [1, 2],
        "set": [4],
        "own": {"kept": [1, 2]},
        "no": None,
    }


def test_data_goes_to_stdout_and_messages_to_stderr(capsys):
    assert emit({"a": 1, "b": "two"}, as_json=False) == 0
    error("sample", "two\nlines")
    out, err = capsys.readouterr()
    assert out == "a: 1\nb: two\n"
    assert err == "mezzotint sample: two lines\n"


def test_an_answer_has_a_text_a_form_for_programs_and_a_code(capsys):
    answer = Answer({"same": False}, "not the same", code=1)
    assert emit(answer, as_json=False) == 1
    assert emit(answer, as_json=True) == 1
    text, _, document = capsys.readouterr().out.partition("\n")
    assert text == "not the same"
    assert json.loads(document) == {"same": False}


def test_long_entries_are_left_to_json(capsys):
    emit({"history": list(range(1000))}, as_json=False)
    assert capsys.readouterr().out == "history: 1000 entries, which --json prints\n"


def test_nothing_to_say_prints_nothing(capsys):
    assert emit(None, as_json=False) == 0
    assert capsys.readouterr().out == ""


def test_a_wrong_word_is_answered_with_the_nearest_and_all():
    with pytest.raises(UsageError, match=r"there is no verb 'smaple'; did you mean 'sample'\? allowed: sample, show"):
        choose("smaple", ["show", "sample"], "verb")
    with pytest.raises(UsageError, match="allowed: none"):
        choose("x", [], "method")


def test_folders_are_made_for_results(tmp_path):
    assert folder(tmp_path / "a" / "b" / "x.png").parent.is_dir()
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="is a file, not a folder"):
        folder(tmp_path / "file" / "deeper" / "x.png")


class Screen(io.StringIO):
    def isatty(self):
        return True


def test_progress_shows_on_a_screen_and_only_there(monkeypatch):
    for stream, shown in ((Screen(), True), (io.StringIO(), False)):
        monkeypatch.setattr(sys, "stderr", stream)
        with progress("sampling", 3) as advance:
            for _ in range(3):
                advance()
        assert ("sampling" in stream.getvalue()) is shown
