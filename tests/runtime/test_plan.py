"""The decision as a function of measurements."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mezzotint.runtime import plan

FP32, BF16 = ("float32", 2), ("bfloat16", 2)
SD15 = {"modules": 700, "compiler": True, "compiled": None}


def decide(seconds, *, present=FP32, calls=1000, **changes):
    return plan(seconds, present=present, calls=calls, **(SD15 | changes))


def test_the_fastest_engine_wins():
    assert decide({FP32: 3.0, BF16: 1.2}).dtype == "bfloat16"
    assert decide({FP32: 3.0, BF16: 3.6}).dtype == "float32"
    assert decide({FP32: 3.0, ("float32", 1): 2.0}).threads == 1


def test_a_few_percent_are_not_worth_other_numbers():
    # 5 % is below the threshold of 10 %.
    kept = decide({FP32: 1.0, BF16: 0.952})
    assert (kept.dtype, kept.threads) == FP32
    assert "would gain a factor of 1.05 only" in kept.reasons[0]


def test_fewer_threads_must_be_worth_it():
    assert decide({FP32: 3.0, BF16: 1.05, ("bfloat16", 1): 1.0}).threads == 2
    assert decide({FP32: 3.0, BF16: 1.20, ("bfloat16", 1): 1.0}).threads == 1


def test_compiling_must_pay_back():
    # 10 + 0.08 x 700 = 66 s of compiling; it saves 1.1 x (1 - 1/1.15) = 0.143 s a call, margin 1.5: 690 calls.
    assert not decide({FP32: 3.0, BF16: 1.1}, calls=680).compiled
    assert decide({FP32: 3.0, BF16: 1.1}, calls=700).compiled
    assert not decide({FP32: 3.0, BF16: 1.1}, calls=10_000, compiler=False).compiled
    assert "no C++ compiler" in decide({FP32: 3.0}, compiler=False).reasons[1]


def test_demands_are_obeyed_and_named():
    assert decide({FP32: 1e-3}, calls=1, compiled=True).compiled
    refused = decide({FP32: 9.0}, calls=10**6, compiled=False)
    assert not refused.compiled
    assert "as asked" in refused.reasons[1]
    with pytest.raises(ValueError, match="needs a C\\+\\+ compiler"):
        decide({FP32: 1.0}, compiled=True, compiler=False)


def test_the_present_state_must_be_measured():
    with pytest.raises(ValueError, match="must be among"):
        decide({BF16: 1.0})


@given(seconds=st.floats(1e-4, 10), calls=st.integers(1, 10**6), more=st.integers(0, 10**6))
def test_a_longer_run_never_gives_up_compiling(seconds, calls, more):
    if decide({FP32: seconds}, calls=calls).compiled:
        assert decide({FP32: seconds}, calls=calls + more).compiled


@given(
    seconds=st.dictionaries(
        st.tuples(st.sampled_from(["float32", "bfloat16"]), st.integers(1, 4)), st.floats(1e-4, 10), max_size=5
    ),
    present=st.floats(1e-4, 10),
    calls=st.integers(1, 10**5),
)
def test_no_plan_is_predicted_to_lose(seconds, present, calls):
    chosen = decide(seconds | {FP32: present}, calls=calls)
    assert chosen.saving >= 0
    assert (chosen.dtype, chosen.threads) in seconds | {FP32: present}


@given(present=st.floats(1e-3, 1), factor=st.floats(0.1, 100))
def test_only_ratios_choose_the_engine(present, factor):
    seconds = {FP32: present, BF16: 0.5}
    scaled = {choice: value * factor for choice, value in seconds.items()}
    assert decide(seconds).dtype == decide(scaled).dtype
