"""Numbers and cells as the official evaluator reads them; what is shown is in test_evidence.py."""

import math

import pytest

from fincompress.finqa import numbers


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("5829", 5829),
        ("1,234.5", 1234.5),
        ("-7", -7),
        ("5%", 0.05),
        ("5 %", 0.05),
        ("const_100", 100),
        ("const_1,000", 1000),
        ("const_m1", -1),
        ("const_m10", None),
        ("1e3", 1000),
        ("1_000", 1000),
        ("٣", 3),
        ("inf", math.inf),
        ("9" * 10_000, math.inf),
        ("", None),
        ("%", None),
        ("abc", None),
        ("none", None),
        ("$5", None),
        ("#0", None),
        ("const_x", None),
        ("const", None),
        ("const_5%", None),
    ],
)
def test_parse_number(text, number):
    assert numbers.parse_number(text) == number


def test_parse_number_reads_nan():
    assert math.isnan(numbers.parse_number("nan"))


@pytest.mark.parametrize(
    ("cell", "number"),
    [
        ("$ 5.2 ( 3.1% )", 5.2), ("$ -14 ( 14 )", -14), ("12.4% ( 12.4 % )", 0.124), ("1,020", 1020), ("$5", 5),
        ("(3)", None), ("", None), ("-", None), ("sales", None),
    ],
)  # fmt: skip
def test_parse_cell(cell, number):
    assert numbers.parse_cell(cell) == (number if number is None else pytest.approx(number))
