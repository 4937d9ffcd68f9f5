"""`demo` and `bench`: from the methods' experiments to a page and a table of results."""

from types import SimpleNamespace

import pytest

from mezzotint.evidence import Evidence, Experiment
from mezzotint.methods import Card


class Door:
    """A method with an experiment of a millisecond, whose numbers depend on seed and budget."""

    def __init__(self, name):
        self.name, self.calls = name, []
        self.card = Card(name, name.title(), "It wins.", "Nobody. Nowhere. 2024.", "", "@misc{x}", "sampling")
        self.experiment = SimpleNamespace(experiment=self.run)

    def run(self, seeds, budget):
        self.calls.append((tuple(seeds), budget))
        trial = Experiment(self.card, seeds=seeds, budget=budget)
        trial.arm("ours", "method")
        trial.arm("theirs", "baseline")
        ours = [[seed + unit / 10 for unit in range(8)] for seed in seeds]
        theirs = [[value + 1 for value in row] for row in ours]
        trial.measure("error", {"ours": ours, "theirs": theirs}, direction="lower")
        trial.claim("smaller error", "error", "ours", over=("theirs",))
        return trial.finish()


@pytest.fixture
def doors(monkeypatch):
    found = {name: Door(name) for name in ("first", "second")}
    monkeypatch.setattr("mezzotint.methods.discover", lambda: tuple(found.values()))
    return found


def test_demo_measures_every_method_on_the_quick_budget(doors, terminal, tmp_path):
    told = terminal.json("demo", "--out", tmp_path / "report", "--seed", "4")
    assert told["outcomes"] == {"first": "supported", "second": "supported"}
    assert [door.calls for door in doors.values()] == [[((4,), "quick")]] * 2
    page = (tmp_path / "report" / "index.html").read_text()
    assert "First" in page
    assert "Second" in page
    assert "first: supported" in terminal.err


def test_demo_of_one_method(doors, terminal, tmp_path):
    assert terminal.json("demo", "second", "--out", tmp_path / "report")["outcomes"].keys() == {"second"}
    assert doors["first"].calls == []
    assert "did you mean 'first'?" in terminal.refused("demo", "frst")


def test_bench_of_one_method_keeps_the_results_of_the_others(doors, terminal, tmp_path):
    out = tmp_path / "docs" / "results.md"
    terminal("bench", "--out", out, "--seeds", "0", "1")
    terminal("bench", "first", "--out", out, "--seeds", "0", "1", "2")
    assert doors["first"].calls == [((0, 1), "full"), ((0, 1, 2), "full")]
    assert doors["second"].calls == [((0, 1), "full")]
    text = out.read_text()
    assert "First" in text
    assert "Second" in text
    assert Evidence.load(tmp_path / "docs" / "results" / "first.json").seeds == (0, 1, 2)


def test_without_methods_there_is_nothing_to_measure(terminal, monkeypatch, tmp_path):
    monkeypatch.setattr("mezzotint.methods.discover", lambda: ())
    assert "no methods to measure" in terminal.refused("demo", "--out", tmp_path)
