"""Plots follow the page: colours are variables, ids are unique, the same numbers give the same bytes."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

from mezzotint.evidence import Arm, Evidence, Figure, Series
from mezzotint.evidence.charts import COLOURS, Panel, colour, figure_panel, row_panels, slots


def _ids(panel: Panel) -> set[str]:
    return set(re.findall(r'\bid="([^"]+)"', panel.svg))


def test_one_panel_a_group_and_all_arms_in_it(evidence: Evidence) -> None:
    panels = row_panels(evidence.rows_of("error"), slots(evidence))
    assert [(p.title, set(p.names)) for p in panels] == [("DDIM", {"ours", "plain", "half"})]
    panels = row_panels(evidence.rows_of("right"), slots(evidence))
    assert [set(p.names) for p in panels] == [{"ours", "plain", "half", "truth"}]


def test_the_same_numbers_give_the_same_bytes(evidence: Evidence, make: Callable[..., Evidence]) -> None:
    first, second = (row_panels(e.rows_of("error"), slots(e), salt="s") for e in (evidence, make()))
    assert first == second
    other = row_panels(make(better=0.1).rows_of("error"), slots(evidence), salt="s")
    assert other[0].svg != first[0].svg


def test_every_colour_is_a_variable_of_the_page(evidence: Evidence) -> None:
    colours = slots(evidence)
    for panel in (*row_panels(evidence.rows_of("error"), colours), *row_panels(evidence.rows_of("right"), colours)):
        bare = re.sub(r"var\(--\w+, #[0-9a-f]{6}\)", "", panel.svg)
        assert not re.search(r"#[0-9a-f]{6}", bare)
        assert "var(--s0, " in panel.svg


def test_ids_of_two_panels_never_meet_and_every_reference_is_answered(evidence: Evidence) -> None:
    colours = slots(evidence)
    panels = [
        *row_panels(evidence.rows_of("error"), colours, salt="a"),
        *row_panels(evidence.rows_of("error"), colours, salt="b"),
        *row_panels(evidence.rows_of("right"), colours, salt="a"),
        figure_panel(evidence.figures[0], colours, salt="a"),
    ]
    for k, panel in enumerate(panels):
        assert all(not _ids(panel) & _ids(other) for other in panels[k + 1 :])
        references = re.findall(r'(?:url\(|href=")#([^")]+)', panel.svg)
        assert set(references) <= _ids(panel)


def test_labels_are_text_and_escaped(evidence: Evidence) -> None:
    figure = Figure.lines("Odd", [Series.of("ours", [0, 1], [0, 1])], x_label="a < b & <i>c</i>")
    svg = figure_panel(figure, slots(evidence)).svg
    assert "a &lt; b &amp; &lt;i&gt;c&lt;/i&gt;" in svg
    assert "<i>" not in svg


def test_the_method_has_the_first_colour_and_oracles_the_last(evidence: Evidence) -> None:
    found = slots(evidence)
    assert found["ours"] == 0
    assert found["truth"] == len(COLOURS) - 1
    assert len(set(found.values())) == len(found)


def test_colours_used_again_look_different(evidence: Evidence) -> None:
    arms = (*evidence.arms, *(Arm(f"baseline {k}") for k in range(11)))
    found = slots(replace(evidence, arms=arms))
    assert len(set(found.values())) == len(found), "14 arms and a label, 16 looks"
    again = [name for name, slot in found.items() if slot >= len(COLOURS)]
    assert again
    assert all(0 < colour(found[name]) < len(COLOURS) - 1 for name in again)


def test_every_kind_of_figure_draws_its_numbers(evidence: Evidence) -> None:
    colours = slots(evidence)
    series = [Series.of("ours", range(3), [1, 2, 4], low=[0.5, 1, 3], high=[2, 3, 5])]
    for kind in ("lines", "points", "bars"):
        low = figure_panel(Figure.lines("F", series, kind=kind, y_log=kind == "lines"), colours)
        moved = [replace(series[0], y=(1.0, 2.0, 3.0))]
        assert low.svg != figure_panel(Figure.lines("F", moved, kind=kind, y_log=kind == "lines"), colours).svg


def test_a_plot_as_a_file_stands_on_paper(evidence: Evidence) -> None:
    panel = row_panels(evidence.rows_of("right"), slots(evidence))[0]
    assert 'style="background' in panel.file[:200]
    assert panel.file.startswith("<svg ")
    assert 'xmlns="http://www.w3.org/2000/svg"' in panel.file
