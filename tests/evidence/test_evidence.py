"""Laws of evidence: it agrees with itself, and survives the disk."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from mezzotint.evidence import Evidence, Experiment, Facts, Figure, Row, Sample, Series
from mezzotint.evidence.records import as_png, as_values
from mezzotint.methods import Card


def test_saved_and_loaded_evidence_is_equal(evidence: Evidence, tmp_path: Path) -> None:
    path = evidence.save(tmp_path / "evidence.json")
    again = Evidence.load(path)
    assert again == evidence
    assert again.verdicts == evidence.verdicts
    assert again.save(tmp_path / "again.json").read_bytes() == path.read_bytes()


def test_numbers_alone_keep_the_verdicts(evidence: Evidence, tmp_path: Path) -> None:
    bare = Evidence.load(evidence.save(tmp_path / "bare.json", pictures=False))
    assert bare.samples == ()
    assert bare.rows == evidence.rows
    assert [v.outcome for v in bare.verdicts] == [v.outcome for v in evidence.verdicts]


def test_a_verdict_in_a_file_is_not_believed(evidence: Evidence) -> None:
    plain = json.loads(json.dumps(evidence.to_json()))
    assert plain["outcomes"] == ["supported", "supported"]
    plain["outcomes"] = ["contradicted", "contradicted"]
    assert Evidence.from_json(plain).outcome == "supported"


def _broken(evidence: Evidence, *path: Any, value: Any) -> Any:
    plain = copy.deepcopy(json.loads(json.dumps(evidence.to_json())))
    place = plain
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return plain


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("format",), "other", "format must be"),
        (("rows", 0, "values", "ours"), [["x"]], r"rows\[0\]\.values\['ours'\]\[0\]\[0\] must be float"),
        (("rows", 0, "direction"), "sideways", "must be one of"),
        (("rows", 0, "values", "ours"), [[2.0]], "same seeds and units"),
        (("rows", 0, "extra"), 1, "unknown or missing fields: extra"),
        (("facts",), [], "must be an object"),
        (("samples", 0, "png"), "no base64!", "must be base64"),
        (("samples", 0, "right"), "yes", "must be bool"),
        (("seeds",), [True], "must be int"),
        (("claims", 0, "metric"), "unheard of", "no row"),
        (("arms", 0, "name"), "plain", "unique"),
    ],
)
def test_damaged_files_are_refused_with_the_place(
    evidence: Evidence, path: tuple[Any, ...], value: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Evidence.from_json(_broken(evidence, *path, value=value))


def test_no_json_at_all_is_refused() -> None:
    with pytest.raises(ValueError, match="not evidence"):
        Evidence.from_json([1, 2])


def test_values_take_what_experiments_have() -> None:
    expected = ((1.0, 2.0), (3.0, 4.0))
    assert as_values(torch.tensor([[1, 2], [3, 4]])) == expected
    assert as_values([[1, 2], [3, 4]]) == expected
    assert as_values(0.5) == ((0.5,),)
    assert as_values(torch.tensor([1.0, 2.0])) == ((1.0,), (2.0,)), "one dimension is one value a seed"


@pytest.mark.parametrize("bad", [[], [[]], [[1, 2], [3]], [[float("nan")]], [[float("inf")]]])
def test_values_that_cannot_be_paired_are_refused(bad: Any) -> None:
    with pytest.raises(ValueError, match="values must be"):
        as_values(bad)


def test_rates_lie_between_nothing_and_all() -> None:
    with pytest.raises(ValueError, match=r"0\.\.1"):
        Row("right", {"ours": ((1.5,),)}, unit="rate")


def test_draws_belong_to_measured_arms() -> None:
    with pytest.raises(ValueError, match="draws"):
        Row("fd", {"ours": ((1.0,),)}, draws={"other": (1.0,)})
    with pytest.raises(ValueError, match="equally many"):
        Row("fd", {"a": ((1.0,),), "b": ((1.0,),)}, draws={"a": (1.0,), "b": (1.0, 2.0)})


def test_conditions_are_named_by_group_and_place() -> None:
    assert Row("m", {"a": ((1.0,),)}, group="DDIM", at=10, axis="steps").condition == "DDIM, 10 steps"
    assert Row("m", {"a": ((1.0,),)}, at=0.5).condition == "0.5"
    assert Row("m", {"a": ((1.0,),)}).condition == ""


def test_a_tensor_becomes_the_picture_it_shows() -> None:
    from io import BytesIO

    import numpy as np
    from PIL import Image

    pixels = torch.tensor([[[0.0, 1.0], [0.5, 2.0]]]).expand(3, 2, 2)
    shown = np.asarray(Image.open(BytesIO(as_png(pixels))))
    assert shown[..., 0].tolist() == [[0, 255], [128, 255]]
    assert as_png(pixels) == as_png(pixels.clone())


def test_a_second_measurement_joins_the_row() -> None:
    trial = Experiment(Facts("x", "X"), seeds=(0,))
    trial.arm("a", "method")
    trial.arm("b")
    trial.measure("m", {"a": [[1.0, 2.0]]}, direction="higher")
    trial.measure("m", {"b": [[0.0, 1.0]]}, direction="higher")
    assert trial.finish().row("m").values == {"a": ((1.0, 2.0),), "b": ((0.0, 1.0),)}
    with pytest.raises(ValueError, match="same seeds and units"):
        trial.measure("m", {"b": [[0.0]]}, direction="higher")


def test_unknown_and_double_arms_are_refused() -> None:
    trial = Experiment(Facts("x", "X"), seeds=(0,))
    trial.arm("a")
    with pytest.raises(ValueError, match="exists already"):
        trial.arm("a")
    with pytest.raises(ValueError, match="unknown arms b"):
        trial.measure("m", {"b": 1.0})


def test_a_card_is_copied_whole() -> None:
    card = Card("x", "X", "claims", "paper", "1234.56789", "@a{b}", "sampling", ("latents",), departures=("one",))
    facts = Facts.of(card)
    for name in ("slug", "title", "claim", "paper", "arxiv", "bibtex", "family", "inputs", "departures"):
        assert getattr(facts, name) == getattr(card, name)


def test_no_claim_is_no_support(evidence: Evidence) -> None:
    from dataclasses import replace

    assert replace(evidence, claims=()).outcome == "inconclusive"


def test_figures_and_series_refuse_what_cannot_be_drawn() -> None:
    with pytest.raises(ValueError, match="one length"):
        Series.of("a", [1, 2], [1])
    with pytest.raises(ValueError, match="one length"):
        Series.of("a", [1], [1], low=[0])
    with pytest.raises(ValueError, match="either series or a picture"):
        Figure("empty")


def test_samples_keep_bytes() -> None:
    sample = Sample("a", "p", bytes(range(256)))
    from mezzotint.evidence.serialise import from_plain, to_plain

    assert from_plain(Sample, json.loads(json.dumps(to_plain(sample)))) == sample
