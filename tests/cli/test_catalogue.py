"""`methods`, `cite` and `doctor`."""

import os

import torch

from mezzotint.methods import discover, names


def test_methods_lists_all_and_tells_all_about_one(terminal):
    lines = terminal("methods").splitlines()
    assert [line.split()[0] for line in lines] == list(names())
    for door in discover():
        text = terminal("methods", door.name.replace("_", "-"))
        assert door.card.claim in text
        for departure in door.card.departures:
            assert departure in text
        (told,) = terminal.json("methods", door.name)
        assert told["verbs"] == list(door.verbs)
        assert told["departures"] == list(door.card.departures)


def test_cite_prints_the_entries_and_nothing_else(terminal):
    assert terminal("cite").strip() == "\n\n".join(door.card.bibtex.strip() for door in discover())
    first = names()[0]
    assert terminal.json("cite", first).keys() == {first}
    assert f"did you mean '{first}'?" in terminal.refused("cite", first[:-1])


def test_doctor_reports_this_machine(terminal):
    told = terminal.json("doctor")
    assert told["versions"]["mezzotint"]
    assert told["cores"] == len(os.sched_getaffinity(0))
    assert told["threads"] == torch.get_num_threads()
    text = terminal("doctor")
    for key in told:
        assert key.replace("_", " ") in text
