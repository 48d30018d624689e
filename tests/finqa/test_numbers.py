"""Numbers and cells as the official evaluator reads them, and bare answers; what is shown is in test_evidence.py."""

import math
import time

import pytest

from fincompress.finqa import numbers

PATIENCE_S = 2  # of CPU time for one text; most take microseconds


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
        ("const_5%", None),
    ],
)
def test_parse_number(text, number):
    assert numbers.parse_number(text) == number


def test_parse_number_reads_nan():
    assert math.isnan(numbers.parse_number("nan"))


@pytest.mark.parametrize("text", ["const_x", "const", "const_"])
def test_an_unreadable_constant_is_an_error_of_its_own(text):
    with pytest.raises(ValueError):
        numbers.parse_argument(text)


@pytest.mark.parametrize(
    ("cell", "number"),
    [
        ("$ 5.2 ( 3.1% )", 5.2), ("$ -14 ( 14 )", -14), ("12.4% ( 12.4 % )", 0.124), ("1,020", 1020), ("$5", 5),
        ("(3)", None), ("", None), ("-", None), ("sales", None),
    ],
)  # fmt: skip
def test_parse_cell(cell, number):
    assert numbers.parse_cell(cell) == (number if number is None else pytest.approx(number))


@pytest.mark.parametrize(
    ("text", "value", "decimals", "percent"),
    [
        ("14", 14.0, 0, False),
        ("( 14 )", -14.0, 0, False),
        ("(14)", -14.0, 0, False),
        ("-14", -14.0, 0, False),
        ("$ 1,234.50", 1234.5, 2, False),
        (".5", 0.5, 1, False),
        ("14.", 14.0, 0, False),
        ("1.6 %", 1.6, 1, True),
        ("1.6 percent", 1.6, 1, True),
        ("-1.6%", -1.6, 1, True),
        ("2.5 million", 2.5e6, -5, False),
        ("$ 3 Billion", 3e9, -9, False),
        ("\u00a014\u00a0%", 14.0, 0, True),
    ],
)
def test_a_whole_text_that_is_one_number_is_read(text, value, decimals, percent):
    assert numbers.read_answer(text) == (value, decimals, percent)


@pytest.mark.parametrize(
    "text",
    [
        "", " ", "-", "%", ".", ",", "( 14", "14 )", "the answer is 14", "14 dollars", "1 2", "14, 15", "1e5", "nan",
        "inf", "#0", "divide(14, 2)", "1.2.3", "--5", "$", "٣", "५", "１４", "²", "\u221214", "9" * 41, "9" * 100_000,
        "yes", "\0",
    ],
)  # fmt: skip
def test_any_other_text_is_no_number(text):
    assert numbers.read_answer(text) is None


@pytest.mark.parametrize("text", ["(" + " " * 5000 + "x", "5" + " " * 5000 + "x", "5" + "," * 5000 + "x"])
def test_junk_is_refused_at_once(text):
    began = time.process_time()
    assert numbers.read_answer(text) is None
    assert time.process_time() - began < PATIENCE_S
