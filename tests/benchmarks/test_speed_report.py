"""Laws of the speed benchmark's arithmetic: fronts, ratios, costs of a step, verdicts, and the page made of them."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.speed_report import page, pareto_front, per_step, plot, qualities, speed_up, summary, verdicts

NUMBERS = st.integers(0, 6).map(float)
POINTS = st.dictionaries(st.text("abcdefgh", min_size=1, max_size=3), st.tuples(NUMBERS, NUMBERS), min_size=1)


def dominates(one, other):
    return one[0] <= other[0] and one[1] >= other[1] and one != other


@settings(deadline=None, max_examples=50)
@given(POINTS)
def test_the_front_is_what_nothing_dominates(points):
    front = pareto_front(points)
    for name, point in points.items():
        assert (name in front) == (not any(dominates(other, point) for other in points.values()))
    costs, quality = zip(*(points[name] for name in front), strict=True)
    assert list(costs) == sorted(costs)
    assert list(quality) == sorted(quality), "along the front more cost buys more quality"


def test_a_known_front():
    points = {"slow": (9.0, 0.9), "fast": (1.0, 0.5), "worse": (2.0, 0.4), "middle": (4.0, 0.9)}
    assert pareto_front(points) == ["fast", "middle"]


def test_speed_ups_are_ratios_of_the_same_round():
    # Another program doubles the second round of both: the ratio does not see it.
    assert speed_up([10.0, 20.0, 10.0], [2.0, 4.0, 2.0]) == {"median": 5.0, "low": 5.0, "high": 5.0}
    assert speed_up([3.0], [2.0])["median"] == 1.5


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(*[st.floats(0.01, 100)] * 2), min_size=1, max_size=9))
def test_the_median_lies_within_its_quartiles(rounds):
    found = speed_up(*zip(*rounds, strict=True))
    assert found["low"] <= found["median"] * (1 + 1e-9)
    assert found["median"] <= found["high"] * (1 + 1e-9)


@pytest.mark.parametrize("pair", [([], []), ([1.0], [1.0, 2.0])])
def test_rounds_must_be_pairs(pair):
    with pytest.raises(ValueError, match="as many rounds of both"):
        speed_up(*pair)


@settings(deadline=None, max_examples=30)
@given(st.floats(0, 50), st.floats(0.01, 50), st.integers(1, 5), st.integers(6, 60))
def test_fixed_cost_and_steps_come_back_from_two_runs(fixed, step, short, long):
    found = per_step((short, fixed + short * step), (long, fixed + long * step))
    assert found == pytest.approx((fixed, step), rel=1e-6, abs=1e-6)


def test_two_runs_of_one_length_tell_nothing():
    with pytest.raises(ValueError, match="do not tell what a step costs"):
        per_step((2, 1.0), (2, 1.1))


def arm(seconds, accuracy, *, ours=False):
    return {"title": f"arm of {accuracy}", "ours": ours, "seconds": {"16": [seconds] * 3}, "accuracy": accuracy}


@pytest.fixture
def arms():
    return {
        "newcomer": arm(30.0, 0.80),
        "teacher": arm(29.0, 0.82),
        "tuned": arm(5.0, 0.81),
        "splam-4": arm(1.0, 0.81, ours=True),
        "splam-1": arm(0.1, 0.60, ours=True),
    }


def test_only_arms_near_the_teacher_count(arms):
    newcomer, tuned = verdicts(arms, "16")
    assert (newcomer["arm"], newcomer["speed_up"]["median"], newcomer["met"]) == ("splam-4", 30.0, True)
    assert (tuned["speed_up"]["median"], tuned["met"]) == (5.0, False)
    arms["splam-1"]["accuracy"] = 0.80
    assert verdicts(arms, "16")[0]["arm"] == "splam-1", "two points behind is near enough"
    arms["splam-1"]["accuracy"] = 0.799
    assert verdicts(arms, "16")[0]["arm"] == "splam-4"


def test_more_prompts_than_a_timing_draws_decide(arms):
    arms["splam-1"]["many"] = {"behind": {"mean": -0.02, "low": -0.04, "high": 0.0}}
    arms["splam-4"]["many"] = {"behind": {"mean": -0.021, "low": -0.04, "high": 0.0}}
    assert verdicts(arms, "16")[0]["arm"] == "splam-1"
    text = page(results(arms) | {"prompts": 1500}, "plot.svg")
    assert "on 1,500 held-out prompts" in text
    assert re.search(r"arm of 0.81 \|.*-2\.1 \(-4\.0 to \+0\.0\)", text)
    arms["splam-1"]["many"]["behind"]["mean"] = -0.0201
    assert verdicts(arms, "16")[0]["arm"] is None


def test_the_front_goes_by_many_prompts_only_if_all_arms_drew_them(arms):
    for name, one in arms.items():
        assert not qualities(arms, "16")[1], name
        one["many"] = {"accuracy": one["accuracy"] - 0.1, "exact": 0.123}
    points, many = qualities(arms, "16")
    assert many
    assert points["splam-1"] == (0.1, pytest.approx(0.5))
    told = results(arms) | {"prompts": 1500}
    text = page(told, "plot.svg")
    assert "Front and plot go by the 1,500 prompts" in text
    assert re.search(r"arm of 0.81 .*\| 71\.0 % \| 12\.3 % \|", text)
    assert "does not name" in text
    assert "pictures right of 1,500" in plot(told).decode()
    assert verdicts(arms, "16")[0]["arm"] == "splam-4", "not compared on many prompts: the timing's captions decide"


def test_a_page_without_them_says_so(arms):
    assert "64 captions below" in page(results(arms), "plot.svg")


@pytest.mark.parametrize("gone", ["teacher", "newcomer", "splam-4"])
def test_without_a_measurement_there_is_no_verdict(arms, gone):
    del arms[gone]
    assert verdicts(arms, "16")[0]["met"] is None
    assert verdicts(arms, "1")[0]["met"] is None


def results(arms):
    for one in arms.values():
        one |= {"cpu": one["seconds"], "frechet": 0.3, "behind": {"mean": 0.01, "low": -0.02, "high": 0.03}}
        one["costs"] = {"16": {"ready": 3.0, "first": 4.0, "peak": 2**30, "engine": "eager float32"}}
    arms["openvino"] = {"title": "OpenVINO", "ours": False, "skipped": "skipped: not installed"}
    points = {n: (summary(a["seconds"]["16"])["median"], a["accuracy"]) for n, a in arms.items() if "accuracy" in a}
    machine = {"processor": "a processor", "cores": 2, "isa": ["avx2"]}
    large = {"title": "newcomer", "fixed": 2.0, "step": 3.0, "steps": 50, "picture": 152.0, "peak": 2**32}
    return {
        "machine": machine, "versions": {"torch": "2", "diffusers": "0"}, "load": [0.1, 0.2], "threads": 2, "run": 1000,
        "batches": ["16"], "arms": arms, "front": pareto_front(points), "targets": verdicts(arms, "16"), "floor": 0.05,
        "pictures": 64, "sweeps": {"steps": {"newcomer": {"2": 1.0, "4": 2.0}}}, "sd15": {"newcomer": large},
        "sd15_steps": [2, 3],
    }  # fmt: skip


def test_the_page_says_what_was_found_and_what_was_not(arms):
    text = page(results(arms), "../images/plot.svg")
    assert "30 (30 to 30) times, **met**" in text
    assert "5 (5 to 5) times, **missed**" in text
    assert "| OpenVINO | skipped: not installed |" in text
    assert "**arm of 0.6**" in text, "the front is bold"
    assert "| newcomer | 2 | 3 | 50 | 152 | 4,096 |" in text
    for block in re.findall(r"(?:^\|.*\|$\n?)+", text, flags=re.MULTILINE):
        assert len({line.count("|") for line in block.strip().splitlines()}) == 1, block


def test_the_plot_names_every_arm_that_was_measured(arms):
    found = results(arms)
    svg = plot(found).decode()
    assert svg.count("arm of 0.8") == 4
    assert "OpenVINO" not in svg
    assert plot(found) == svg.encode(), "the same measurements give the same file"
