"""Laws of verdicts: the numbers decide, and nothing else."""

from __future__ import annotations

import pytest
import torch

from mezzotint.diffusion.rng import stream
from mezzotint.evidence.records import Claim, Row, as_values
from mezzotint.evidence.verdict import Outcome, arm_interval, difference, judge, overall
from mezzotint.metrics.frechet import frechet_bootstrap, frechet_distance


def _row(shift: float, *, direction: str = "higher", noise: float = 0.01, seeds: int = 3, units: int = 20) -> Row:
    generator = stream(0, "test-verdict")
    base = torch.randn(seeds, units, generator=generator, dtype=torch.float64)
    ours = base + shift + noise * torch.randn(seeds, units, generator=generator, dtype=torch.float64)
    return Row("score", {"ours": as_values(ours), "plain": as_values(base)}, direction=direction)  # type: ignore[arg-type]


def _claim(margin: float = 0.0, *, relative: bool = False) -> Claim:
    return Claim("wins", "score", "ours", ("plain",), margin=margin, relative=relative)


@pytest.mark.parametrize(
    ("shift", "direction", "expected"),
    [
        (0.5, "higher", "supported"),
        (-0.5, "higher", "contradicted"),
        (0.5, "lower", "contradicted"),
        (-0.5, "lower", "supported"),
    ],
)
def test_the_side_of_the_interval_decides(shift: float, direction: str, expected: Outcome) -> None:
    assert judge(_claim(), _row(shift, direction=direction)).outcome == expected


def test_an_interval_that_holds_zero_decides_nothing() -> None:
    verdict = judge(_claim(), _row(0.0, noise=0.5))
    assert verdict.comparisons[0].effect.low < 0 < verdict.comparisons[0].effect.high
    assert verdict.outcome == "inconclusive"


def test_equal_arms_are_inconclusive() -> None:
    row = _row(0.5)
    twin = Row("score", {"ours": row.values["plain"], "plain": row.values["plain"]}, direction="higher")
    assert judge(_claim(), twin).outcome == "inconclusive"


@pytest.mark.parametrize(
    ("margin", "expected"), [(0.4, "supported"), (0.6, "contradicted"), (-0.1, "supported"), (0.5, "inconclusive")]
)
def test_a_margin_moves_the_threshold(margin: float, expected: Outcome) -> None:
    assert judge(_claim(margin), _row(0.5)).outcome == expected


def test_a_negative_margin_allows_a_small_loss() -> None:
    loss = _row(-0.5)
    assert judge(_claim(-0.6), loss).outcome == "supported"
    assert judge(_claim(-0.4), loss).outcome == "contradicted"


def test_a_relative_margin_is_a_share_of_the_baseline() -> None:
    base = torch.full((3, 10), 2.0)
    row = Row("score", {"ours": as_values(base * 0.6), "plain": as_values(base)}, direction="lower")
    assert judge(_claim(0.3, relative=True), row).outcome == "supported"
    assert judge(_claim(0.5, relative=True), row).outcome == "contradicted"
    assert judge(_claim(0.3, relative=True), row).comparisons[0].effect.estimate == pytest.approx(-0.4)


def test_two_seeds_of_one_number_decide_nothing() -> None:
    row = Row("score", {"ours": ((2.0,), (3.5,)), "plain": ((0.0,), (1.0,))}, direction="higher")
    verdict = judge(_claim(), row)
    assert verdict.outcome == "inconclusive"
    assert "at least 3 seeds" in verdict.comparisons[0].reason


def test_three_seeds_decide_only_when_they_agree_well() -> None:
    def outcome(*ours: float) -> Outcome:
        values = {"ours": tuple((v,) for v in ours), "plain": ((0.0,),) * 3}
        return judge(_claim(), Row("score", values, direction="higher")).outcome

    assert outcome(1.0, 1.1, 0.9) == "supported"
    assert outcome(1.0, 3.0, 0.1) == "inconclusive"


def test_a_claim_over_several_must_hold_over_each() -> None:
    row = _row(0.5)
    strong = as_values([[v + 2 for v in line] for line in row.values["ours"]])
    row = Row("score", {**row.values, "strong": strong}, direction="higher")
    verdict = judge(Claim("wins", "score", "ours", ("plain", "strong")), row)
    assert [item.outcome for item in verdict.comparisons] == ["supported", "contradicted"]
    assert verdict.outcome == "contradicted"
    assert verdict.closest.baseline == "strong"


def test_overall() -> None:
    assert overall(["supported", "supported"]) == "supported"
    assert overall(["supported", "inconclusive"]) == "inconclusive"
    assert overall(["inconclusive", "contradicted", "supported"]) == "contradicted"
    with pytest.raises(ValueError, match="at least one"):
        overall([])


def test_frechet_distances_are_judged_by_their_resamples() -> None:
    """One seed, one number an arm: the resampled pictures carry the uncertainty."""
    real = torch.randn(300, 4, generator=stream(0, "test-real"))
    made = torch.randn(150, 4, generator=stream(1, "test-real"))
    arms = {"ours": made + 0.2, "plain": made + 1.0}
    values = {name: as_values(frechet_distance(f, real)) for name, f in arms.items()}
    draws = {name: tuple(frechet_bootstrap(f, real, draws=80).tolist()) for name, f in arms.items()}
    row = Row("score", values, direction="lower", draws=draws)
    found = difference(row, "ours", "plain")
    assert judge(_claim(), row).outcome == "supported"
    assert found.low <= found.estimate <= found.high < 0
    own = arm_interval(row, "ours")
    assert own.low < own.estimate == values["ours"][0][0] < own.high


def test_a_share_is_never_more_than_all() -> None:
    row = Row("score", {"ours": ((1.0, 1.0), (1.0, 0.95), (0.7, 0.7))}, unit="rate", direction="higher")
    found = arm_interval(row, "ours")
    assert 0 <= found.low < found.estimate < found.high == 1.0
    twin = Row("score", row.values, direction="higher")
    assert arm_interval(twin, "ours").high > 1.0


def test_a_difference_of_shares_is_never_more_than_all() -> None:
    one, none = ((1.0, 1.0), (1.0, 0.95), (0.7, 0.7)), ((0.0, 0.0),) * 3
    values = {"ours": one, "plain": none}
    free = difference(Row("score", values, direction="higher"), "ours", "plain")
    found = difference(Row("score", values, unit="rate", direction="higher"), "ours", "plain")
    assert free.high > 1
    assert found.high == 1
    assert (found.estimate, found.low) == (free.estimate, free.low)
    assert difference(Row("score", values, unit="rate", direction="higher"), "plain", "ours").low == -1


@pytest.mark.parametrize(("value", "expected"), [(0.0, (0.0, 0.0, 0.3085)), (1.0, (1.0, 0.6915, 1.0))])
def test_ten_of_ten_may_still_miss_some(value: float, expected: tuple[float, float, float]) -> None:
    """Clopper and Pearson: none of ten leaves up to 30.85 % possible."""
    found = arm_interval(Row("score", {"ours": ((value,) * 10,)}, unit="rate"), "ours")
    assert (found.estimate, found.low, found.high) == pytest.approx(expected, abs=1e-4)


def test_a_few_differences_that_are_all_alike_decide_nothing() -> None:
    def outcome(prompts: int) -> Outcome:
        row = Row("score", {"ours": ((1.0,) * prompts,), "plain": ((0.0,) * prompts,)}, unit="rate", direction="higher")
        return judge(_claim(), row).outcome

    assert [outcome(n) for n in (3, 5, 6, 40)] == ["inconclusive", "inconclusive", "supported", "supported"]


def test_refuses_claims_that_numbers_cannot_decide() -> None:
    with pytest.raises(ValueError, match="no better direction"):
        judge(_claim(), _row(0.5, direction="neither"))
    with pytest.raises(ValueError, match="not measured for 'other'"):
        judge(Claim("wins", "score", "ours", ("other",)), _row(0.5))
    with pytest.raises(ValueError, match="compares an arm with others"):
        Claim("wins", "score", "ours", ("ours",))
