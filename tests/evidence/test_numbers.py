"""Numbers are printed with the digits that their intervals warrant."""

from __future__ import annotations

import pytest

from mezzotint.evidence.numbers import common_decimals, print_duration, print_effect, print_interval
from mezzotint.metrics.bootstrap import Interval

MINUS, NARROW = "\N{MINUS SIGN}", "\N{THIN SPACE}"


@pytest.mark.parametrize(
    ("interval", "unit", "value", "span"),
    [
        (Interval(0.875, 0.8401, 0.9062), "rate", "87.5\N{NO-BREAK SPACE}%", "84.0 to 90.6"),
        (Interval(12.3456, 11.1, 13.7), "dB", "12.3\N{NO-BREAK SPACE}dB", "11.1 to 13.7"),
        (Interval(0.0123456, 0.0120, 0.0126), "", "0.01235", "0.01200 to 0.01260"),
        (Interval(12345.6, 11000, 14000), "", f"12{NARROW}346", f"11{NARROW}000 to 14{NARROW}000"),
        (Interval(-0.5, -0.6, -0.4), "", f"{MINUS}0.50", f"{MINUS}0.60 to {MINUS}0.40"),
        (Interval(0.25, 0.25, 0.25), "", "0.250", "0.250 to 0.250"),
        (Interval(0.0, 0.0, 0.0), "", "0", "0 to 0"),
        (Interval(3e-9, 2e-9, 4e-9), "", f"3.00e{MINUS}09", f"2.00e{MINUS}09 to 4.00e{MINUS}09"),
    ],
)
def test_means(interval: Interval, unit: str, value: str, span: str) -> None:
    printed = print_interval(interval, unit)
    assert (printed.value, printed.span) == (value, span)


def test_differences_carry_their_sign_and_rates_differ_by_points() -> None:
    assert str(print_effect(Interval(0.066, -0.012, 0.15), "rate")) == (
        f"+6.6\N{NO-BREAK SPACE}points [{MINUS}1.2 to +15.0]"
    )
    assert print_effect(Interval(-0.3, -0.4, -0.2), "mm", relative=True).value == f"{MINUS}30.0\N{NO-BREAK SPACE}%"
    assert print_effect(Interval(-0.0001, -0.02, 0.02)).value == "0.000", "no negative zero"


def test_neighbours_are_printed_alike_unless_their_precision_differs() -> None:
    assert common_decimals([Interval(0.17, 0.163, 0.177), Interval(0.3, 0.28, 0.32)]) == 3
    assert common_decimals([Interval(0.17, 0.16999, 0.17001), Interval(300, 200, 400)]) is None


def test_durations() -> None:
    assert [print_duration(s) for s in (1.234, 59.4, 61, 3_720)] == ["1.2 s", "59 s", "1 min 01 s", "1 h 02 min"]
