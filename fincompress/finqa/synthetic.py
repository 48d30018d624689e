"""A synthetic FinQA: report pages, questions, programs and gold evidence in the official schema, made from a seed.

It stands in where neither the data nor a network is there. A page is a table of one of 26 kinds (``PAGE_KINDS``)
between sentences: some carry figures that questions ask for, some carry figures that only distract, some carry none.
Companies, figures and sentences are invented; what is copied from FinQA is its look (lower case, spaced punctuation,
``-14 ( 14 )``, ``12.4% ( 12.4 % )``, ``2014`` and ``2019s`` where a dash and an apostrophe were) and its mix of
programs.

What makes it hard is what makes FinQA hard: choosing row, column and sentence among others of their kind. What it
leaves out is FinQA's noise: wrong operands, averages divided by the wrong constant, ``multiply(#1, const_100)`` at
whim. The order of operands follows from the wording. Scores on this set say little about scores on FinQA.

Between splits nothing is shared but wordings, row names, dates and sentences without large figures (as in FinQA):
companies are named from disjoint lists, and every number of three digits or more belongs to one split
(``number_owner``).
"""

from __future__ import annotations

import random
import re
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

from fincompress.finqa.program import execute, operations, tokenize

DEFAULT_COUNTS = {"train": 3000, "dev": 400, "test": 400}

# What FinQA's programs look like, measured on its dev split (883 programs, 1,369 operations) and, in brackets, on 1,964
# of its train programs, of which two-step ones are over-represented. Per cent.
#   steps       1: 59.2 (39.6)   2: 32.5 (49.5)   3: 4.9 (8.1)   4: 1.6 (1.4)   5 or more: 1.8 (1.4)
#   operations  divide 46.7 (43.9), subtract 30.5 (30.9), add 13.2 (16.3), multiply 6.1 (7.9), table_average 1.4 (0.2),
#               greater 0.7 (0.7), table_max 0.6 (0.0), table_min 0.4 (0.0), table_sum 0.3 (0.0), exp 0.1 (0.1)
#   evidence    table 61.4, text 22.4, both 16.2
# Below, the share of each sequence of operations: dev's, rare ones gathered into their nearest, with a little more
# `add` and `multiply`, which train has more of. The shares of each number of steps are dev's. `index` marks programs
# that begin with subtract(.., const_100): the returns of stock performance pages, 4.9 (4.1) per cent of all.
PROGRAM_SHARES = {
    "divide": 32.2, "subtract": 15.5, "add": 3.4, "multiply": 3.3, "greater": 1.0,
    "table_average": 1.9, "table_max": 0.8, "table_min": 0.6, "table_sum": 0.5,
    "subtract divide": 17.4, "index subtract divide": 3.6, "multiply divide": 3.4, "add divide": 2.9, "add add": 1.8,
    "divide subtract": 1.2, "divide divide": 0.8, "divide multiply": 0.7, "subtract multiply": 0.4,
    "subtract subtract": 0.3,
    "add add divide": 3.0, "add add add": 0.6, "divide divide subtract": 0.5, "subtract subtract divide": 0.4,
    "multiply multiply subtract": 0.3, "add exp multiply": 0.1,
    "add add add divide": 1.0, "add add subtract divide": 0.4, "multiply multiply subtract divide": 0.2,
    "subtract divide subtract divide subtract": 0.4, "index subtract divide subtract divide subtract": 1.1,
    "add add add add divide": 0.3,
}  # fmt: skip
EVIDENCE_SHARES = {"table": 61.4, "text": 22.4, "both": 16.2}
QUESTIONS_PER_PAGE = {1: 15, 2: 30, 3: 25, 4: 30}  # weights
PAGE_WORDS = (140, 280)  # of prose and table; shorter than FinQA's, whose median is 690, so that training is quick

# --- what belongs to one split only ---------------------------------------------------------------------------------

# First parts of company names; the first three letters, which begin the ticker symbol, are unique over all splits.
_NAMES = {
    "train": "alder ambler ashen barrow bexley birch calder canton colton corwin dalton denver elmer ember fallow "
    "farrow gable halden ibis jasper juniper kelder kirk lander maple nettle norwood oaken palmer quarry rowan saddler",
    "dev": "garnet larken orchard pembroke tamar teller ulmer valley walden",
    "test": "harrow marlow raven upland wexford winter yarrow yonder zephyr",
}
_ENDINGS = ("bridge", "crest", "dale", "field", "grove", "haven", "line", "mont", "port", "stone", "vale", "worth")
_FORMS = ("corporation", "inc .", "holdings inc .", "group inc .", "industries inc .", "company")
SHARED_NUMBERS = {"100", "100.00", "500"}  # an index starts at 100, and `s&p 500` is a name
_YEARS = range(1980, 2041)


def number_owner(number: str) -> str | None:
    """Return the only split that shows ``number`` (``"5829"``, ``"12.4%"``), or ``None`` if all may.

    Numbers of one or two digits, years and ``SHARED_NUMBERS`` are anyone's. Others go by a hash of their digits without
    leading and trailing zeros, so that 5829, 58.29 and 582900 have one owner: train has half of them, dev and test a
    quarter each.
    """
    if number in SHARED_NUMBERS or (number.isdigit() and int(number) in _YEARS):
        return None
    return _digits_owner(re.sub(r"\D", "", number))


def _digits_owner(digits: str) -> str | None:
    digits = digits.lstrip("0")
    if len(digits) < 3:
        return None
    # A checksum, since under anything linear, such as a remainder, parts of one split would hardly ever sum to a total
    # of that split.
    return ("train", "train", "dev", "test")[zlib.crc32(digits.rstrip("0").encode()) % 4]


# --- wordings -------------------------------------------------------------------------------------------------------


class Family(NamedTuple):
    """One kind of question: its program, whether the answer is a percentage, and ways to ask it.

    Fields in braces are filled from the page; ``{unit}``, ``{when}`` and ``{at}`` may become empty.
    """

    program: str
    percent: bool
    wordings: tuple[str, ...]


_GROWTH = "subtract({b}, {a}), divide(#0, {a})"
_SHARE = "divide({a}, {b})"

FAMILIES = {
    # One figure in several years: a, b, c from the earliest on.
    "change": Family("subtract({b}, {a})", False, (
        "what was the change in {x} from {y0} to {y1}{unit}?",
        "what is the net change in {x} between {y0} and {y1}{unit}?",
        "how much did {x} change from {y0} to {y1}{unit}?",
        "considering the years {y0} and {y1} , what is the variation in {x}{unit}?",
        "what was the difference in {x} from {y0} to {y1}{unit}?",
    )),
    "increase": Family("subtract({b}, {a})", False, (
        "by how much did {x} increase from {y0} to {y1}{unit}?",
        "what was the increase in {x} between {y0} and {y1}{unit}?",
        "how much higher was {x} in {y1} than in {y0}{unit}?",
        "what is the growth of {x} from {y0} to {y1}{unit} , as an amount?",
    )),
    "decrease": Family("subtract({a}, {b})", False, (
        "by how much did {x} decrease from {y0} to {y1}{unit}?",
        "what was the decline in {x} between {y0} and {y1}{unit}?",
        "how much lower was {x} in {y1} than in {y0}{unit}?",
        "what was the reduction of {x} from {y0} to {y1}{unit}?",
    )),
    "growth": Family(_GROWTH, True, (
        "what was the percentage change in {x} from {y0} to {y1}?",
        "what is the growth rate in {x} from {y0} to {y1}?",
        "what is the percent change of {x} between {y0} and {y1}?",
        "by what percentage did {x} change from {y0} to {y1}?",
        "what was the percent of the change in the {x} from {y0} to {y1}",
        "what was the percentage {direction} in {x} from {y0} to {y1}?",
    )),
    "growth of a year": Family(_GROWTH, True, (
        "what is the growth rate in {x} in {y1}?",
        "what was the percentage change in {x} in {y1} compared to {y0}?",
        "what is the growth rate in {x} for {y1} over {y0}?",
        "in {y1} , what was the percent of the change in {x}?",
        "by what percent did {x} {verb} during {y1}?",
    )),
    "growth from a ratio": Family("divide({b}, {a}), subtract(#0, const_1)", True, (
        "what percent {higher} was {x} in {y1} than in {y0}?",
        "how much {higher} , in percent , was {x} in {y1} than in {y0}?",
        "in percent , how far was {x} in {y1} from its level in {y0}?",
    )),
    "ratio of years": Family(_SHARE, False, (
        "what was the ratio of {x} in {y0} to {x} in {y1}?",
        "what is the ratio of {y0} {x} to {y1} {x}?",
        "how many times {y1} {x} was {y0} {x}?",
    )),
    "average of two": Family("add({a}, {b}), divide(#0, const_2)", False, (
        "what was the average {x} for {y0} and {y1}{unit}?",
        "what is the average of {x} in {y0} and {y1}{unit}?",
        "for {y0} and {y1} , what was the average in {x}{unit}?",
        "what was the average {x} between {y0} and {y1}{unit}?",
    )),
    "average of three": Family("add({a}, {b}), add(#0, {c}), divide(#1, const_3)", False, (
        "what was the average {x} from {y0} to {y1}{unit}?",
        "considering the years {y0}-{y1} , what was the average {x}{unit}?",
        "what is the average {x}{unit} , for {y0}-{y1}?",
        "what was the average annual {x} from {y0} through {y1}{unit}?",
    )),
    "average of four": Family("add({a}, {b}), add(#0, {c}), add(#1, {d}), divide(#2, const_4)", False, (
        "what was the average {x} for the four years from {y0} to {y1}{unit}?",
        "what is the four-year average of {x} from {y0} to {y1}{unit}?",
        "what is the average {x} over the four years {y0}-{y1}{unit}?",
    )),
    "average of five": Family(
        "add({a}, {b}), add(#0, {c}), add(#1, {d}), add(#2, {e}), divide(#3, const_5)", False, (
        "what was the average {x} for the five years from {y0} to {y1}{unit}?",
        "what is the five-year average of {x} from {y0} to {y1}{unit}?",
        "what is the average {x} over the five years {y0}-{y1}{unit}?",
    )),
    "sum of two": Family("add({a}, {b})", False, (
        "what was the total {x} for {y0} and {y1}{unit}?",
        "what is the sum of {x} in {y0} and {y1}{unit}?",
        "what was the combined {x} in {y0} and {y1}{unit}?",
        "how much were {x} in {y0} and {y1} together{unit}?",
    )),
    "sum of three": Family("add({a}, {b}), add(#0, {c})", False, (
        "what was the total {x} from {y0} to {y1}{unit}?",
        "what is the sum of {x} for the years {y0}-{y1}{unit}?",
        "what were cumulative {x} from {y0} through {y1}{unit}?",
    )),
    "sum of four": Family("add({a}, {b}), add(#0, {c}), add(#1, {d})", False, (
        "what was the total {x} for the four years from {y0} to {y1}{unit}?",
        "what is the sum of {x} for the four years {y0}-{y1}{unit}?",
        "what were cumulative {x} over the four years {y0} through {y1}{unit}?",
    )),
    "row average": Family("table_average({row}, none)", False, (
        "what was the average {x} for the {span} year period{unit}?",
        "what is the average {x} over the years shown{unit}?",
        "for all {span} years presented , what was the average {x}{unit}?",
        "what is the average value for {x} in the table{unit}?",
    )),
    "row maximum": Family("table_max({row}, none)", False, (
        "what was the highest {x} for the {span} year period{unit}?",
        "what is the greatest {x} over the years shown{unit}?",
        "in the years presented , what was the highest amount of {x}{unit}?",
        "what is the maximum {x} observed{unit}?",
    )),
    "row minimum": Family("table_min({row}, none)", False, (
        "what was the lowest {x} for the {span} year period{unit}?",
        "what is the smallest {x} over the years shown{unit}?",
        "in the years presented , what was the lowest amount of {x}{unit}?",
        "what is the minimum {x} observed{unit}?",
    )),
    "row sum": Family("table_sum({row}, none)", False, (
        "what was {x} in total for the {span} year period{unit}?",
        "what is the sum of {x} over all the years shown{unit}?",
        "for all {span} years presented , what is the total of {x}{unit}?",
    )),
    # Two figures of one date: a is x, b is z.
    "difference": Family("subtract({a}, {b})", False, (
        "what is the difference between {x} and {z}{when}{unit}?",
        "{at}what was the difference between {x} and {z}{unit}?",
        "what was the difference{when} between the {x} and the {z}{unit}?",
    )),
    "excess": Family("subtract({a}, {b})", False, (
        "how much higher was {x} than {z}{when}{unit}?",
        "{at}by how much did {x} exceed {z}{unit}?",
        "{at}how much more was {x} than {z}{unit}?",
        "what was {x}{when} net of {z}{unit}?",
        "how much would {x}{when} have been after deducting {z}{unit}?",
    )),
    "ratio": Family(_SHARE, False, (
        "what was the ratio of {x} to {z}{when}?",
        "{at}what was the ratio of the {x} to the {z}",
        "what is the ratio of {x} compared to {z}{when}?",
        "{at}how many times {z} was {x}?",
    )),
    "combined": Family("add({a}, {b})", False, (
        "what was the total of {x} and {z}{when}{unit}?",
        "what is the combined amount of {x} and {z}{when}{unit}?",
        "{at}how much were {x} and {z} together{unit}?",
        "{at}what was the sum of {x} and {z}{unit}?",
    )),
    "greater": Family("greater({a}, {b})", False, (
        "was {x} greater than {z}{when}?",
        "{at}did {x} exceed {z}?",
        "{at}was {x} higher than {z}?",
        "is {x} larger than {z}{when}?",
    )),
    "growth gap": Family(
        "subtract({b}, {a}), divide(#0, {a}), subtract({d}, {c}), divide(#2, {c}), subtract(#1, #3)", True, (
        "what was the difference in the percentage change in {x} and in {z} from {y0} to {y1}?",
        "from {y0} to {y1} , by how much did the growth rate in {x} differ from that in {z}?",
        "how much greater was the growth rate of {x} than of {z} between {y0} and {y1}?",
    )),
    "combined growth": Family("add({b}, {d}), add({a}, {c}), subtract(#0, #1), divide(#2, #1)", True, (
        "what was the percentage change in the combined {x} and {z} from {y0} to {y1}?",
        "what is the growth rate in the total of {x} and {z} from {y0} to {y1}?",
        "by what percent did {x} and {z} together change from {y0} to {y1}?",
    )),
    # Parts of a whole.
    "share": Family(_SHARE, True, (
        "what percentage of {whole}{when} was {x}?",
        "what portion of the {whole}{when} is related to {x}?",
        "{at}what percent of the {whole} was comprised of {x}?",
        "{at}what was the percent of the {whole} that was {x}",
        "{x} is what percent of {whole}{when}?",
        "what was {x} as a percentage of {whole}{when}?",
    )),
    "share of two": Family("add({a}, {b}), divide(#0, {t})", True, (
        "what percentage of {whole}{when} was {x} and {z} combined?",
        "{at}what portion of the {whole} is related to {x} and {z}?",
        "{x} and {z} together are what percent of {whole}{when}?",
    )),
    "share of three": Family("add({a}, {b}), add(#0, {c}), divide(#1, {t})", True, (
        "what percentage of {whole}{when} was {x} , {z} and {w} combined?",
        "{at}what portion of the {whole} is related to {x} , {z} and {w}?",
        "{x} , {z} and {w} together are what percent of {whole}{when}?",
    )),
    "share of four": Family("add({a}, {b}), add(#0, {c}), add(#1, {d}), divide(#2, {t})", True, (
        "what percentage of {whole}{when} was {x} , {z} , {w} and {v} combined?",
        "{at}what portion of the {whole} is related to {x} , {z} , {w} and {v}?",
        "{x} , {z} , {w} and {v} together are what percent of {whole}{when}?",
    )),
    "whole without": Family("subtract({t}, {a})", False, (
        "what was {whole}{when} excluding {x}{unit}?",
        "without {x} , what would {whole} have been{when}{unit}?",
        "{at}how much of the {whole} was not {x}{unit}?",
    )),
    "whole without two": Family("subtract({t}, {a}), subtract(#0, {b})", False, (
        "what was {whole}{when} excluding {x} and {z}{unit}?",
        "without {x} and {z} , what would {whole} have been{when}{unit}?",
        "{at}how much of the {whole} was neither {x} nor {z}{unit}?",
    )),
    "share gap": Family("divide({b}, {d}), divide({a}, {c}), subtract(#0, #1)", True, (
        "what was the change in {x} as a percentage of {whole} from {y0} to {y1}?",
        "by how many percentage points did {x} as a share of {whole} change between {y0} and {y1}?",
        "what is the difference in the portion of {whole} that was {x} from {y0} to {y1}?",
    )),
    "share of change": Family("subtract({b}, {a}), subtract({d}, {c}), divide(#0, #1)", True, (
        "what percentage of the change in {whole} from {y0} to {y1} was due to {x}?",
        "what portion of the change in {whole} between {y0} and {y1} came from {x}?",
        "how much of the change in {whole} from {y0} to {y1} is attributable to {x} , in percent?",
    )),
    "projected share": Family("divide({a}, {c}), multiply(#0, {d})", False, (
        "if {x} had been the same percentage of {whole} in {y1} as in {y0} , what would {x} have been in {y1}{unit}?",
        "assuming the {y0} ratio of {x} to {whole} , what would {x} be in {y1}{unit}?",
        "applying the portion of {whole} that was {x} in {y0} to {y1} , what would {x} have been{unit}?",
    )),
    "margin": Family(_SHARE, True, (
        "what was the {x}{when}?",
        "{at}what was the {x}",
        "what is the company 2019s {x}{when}?",
        "{at}what was the {x} , as a percentage?",
    )),
    "margin gap": Family("divide({b}, {d}), divide({a}, {c}), subtract(#0, #1)", True, (
        "what was the change in the {x} from {y0} to {y1}?",
        "by how many percentage points did the {x} change between {y0} and {y1}?",
        "what is the difference in the {x} from {y0} to {y1}?",
    )),
    # A row that closes a roll-forward, or a bridge from one year to the next.
    "roll growth": Family(_GROWTH, True, (
        "what was the percentage change in the {x} balance during {y1}?",
        "what is the growth rate in the {x} in {y1}?",
        "by what percent did the {x} change from the beginning to the end of {y1}?",
    )),
    "roll change": Family("subtract({b}, {a})", False, (
        "what was the net change in the {x} balance during {y1}{unit}?",
        "how much did the {x} change from the beginning to the end of {y1}{unit}?",
        "what is the change in the balance of {x} in {y1}{unit}?",
    )),
    "bridge share": Family("subtract({b}, {a}), divide({c}, #0)", True, (
        "what percent of the change in {x} from {y0} to {y1} was due to {z}?",
        "what portion of the net change in {x} between {y0} and {y1} is related to {z}?",
        "{z} is what percent of the change in {x} between {y0} and {y1}?",
    )),
    # Payments by year: x is what is paid, whole its total.
    "due in a year": Family(_SHARE, True, (
        "what percentage of {whole} are due in {y0}?",
        "what portion of the {whole} is due in {y0}?",
        "what percent of {whole} comes due in {y0}?",
        "as of december 31 , {y} , what percent of the {whole} falls in {y0}?",
    )),
    "due later": Family(_SHARE, True, (
        "what percentage of {whole} are due after {y1}?",
        "what portion of the {whole} is due thereafter?",
        "what percent of {whole} falls after {y1}?",
    )),
    "due within 24 months": Family("add({a}, {b})", False, (
        "what amount of {x} is due in the next 24 months as of december 31 , {y}{unit}?",
        "what is the sum of {x} due in {y0} and {y1}{unit}?",
        "how much of the {x} has to be paid in {y0} and {y1} together{unit}?",
    )),
    "due within 36 months": Family("add({a}, {b}), add(#0, {c})", False, (
        "what amount of {x} is due in the next 36 months as of december 31 , {y}{unit}?",
        "what is the sum of {x} due in the three years from {y0} to {y1}{unit}?",
        "how much of the {x} has to be paid in the years {y0}-{y1} together{unit}?",
    )),
    "share within 24 months": Family("add({a}, {b}), divide(#0, {t})", True, (
        "what portion of {whole} is due in the next 24 months?",
        "what percentage of {whole} are due in {y0} and {y1}?",
        "what percent of the {whole} falls in {y0} and {y1} together?",
    )),
    "share within 36 months": Family("add({a}, {b}), add(#0, {c}), divide(#1, {t})", True, (
        "what portion of {whole} is due in the next 36 months?",
        "what percentage of {whole} are due in the three years {y0}-{y1}?",
        "what percent of the {whole} falls in the years from {y0} to {y1}?",
    )),
    "share within 48 months": Family("add({a}, {b}), add(#0, {c}), add(#1, {d}), divide(#2, {t})", True, (
        "what portion of {whole} is due in the next 48 months?",
        "what percentage of {whole} are due in the four years {y0}-{y1}?",
        "what percent of the {whole} falls in the four years from {y0} to {y1}?",
    )),
    # Share repurchases: a shares at b dollars, c shares at d dollars.
    "spent": Family("multiply({a}, {b})", False, (
        "how much was spent on share repurchases in {x}?",
        "what is the cash outflow for the repurchase of shares during {x}?",
        "based on the average price paid per share , what did the shares purchased in {x} cost?",
    )),
    "spent in millions": Family("multiply({a}, {b}), divide(#0, const_1000000)", False, (
        "what is the total amount of cash outflow used for shares repurchased during {x} , in millions?",
        "how much was spent on share repurchases in {x} , in millions of dollars?",
        "in millions , what did the shares purchased in {x} cost at the average price paid?",
    )),
    "spent more": Family("multiply({a}, {b}), multiply({c}, {d}), subtract(#0, #1)", False, (
        "how much more was spent on share repurchases in {x} than in {z}?",
        "what is the difference in the cost of the shares purchased in {x} and in {z}?",
        "by how much does the cash outflow for repurchases in {x} differ from that in {z}?",
    )),
    "spent more in percent": Family(
        "multiply({a}, {b}), multiply({c}, {d}), subtract(#0, #1), divide(#2, #1)", True, (
        "how much more , in percent , was spent on share repurchases in {x} than in {z}?",
        "by what percentage does the cost of the shares purchased in {x} differ from {z}?",
        "in percent , how far was the cash outflow for repurchases in {x} from that in {z}?",
    )),
    "remaining cost": Family("multiply({a}, {b})", False, (
        "what would it cost to purchase all shares that may yet be purchased after {x} at the average price of {x}?",
        "at the average price paid in {x} , what is the value of the shares that may yet be purchased then?",
        "if the shares that may yet be purchased after {x} were bought at the price of {x} , what would they cost?",
    )),
    # Stock performance: an index that starts at 100.
    "return": Family("subtract({a}, const_100), divide(#0, const_100)", True, (
        "what was the percentage total return of {x} from {y0} to {y1}?",
        "what is the roi of an investment in {x} from {y0} to {y1}?",
        "what was the percentage cumulative total shareholder return for {x} for the period ended {y1}?",
        "what is the rate of return of an investment in {x} made in {y0} and held to {y1}?",
    )),
    "return in dollars": Family("subtract({a}, const_100)", False, (
        "how much would $ 100 invested in {x} in {y0} have gained by {y1}?",
        "what was the gain in dollars of a $ 100 investment in {x} from {y0} to {y1}?",
        "what was the total change in value by {y1} of $ 100 placed in {x}?",
    )),
    "return gap": Family(
        "subtract({a}, const_100), divide(#0, const_100), subtract({b}, const_100), divide(#2, const_100), "
        "subtract(#1, #3)", True, (
        "what was the difference in percentage cumulative total return between {x} and {z} from {y0} to {y1}?",
        "what was the difference in percentage return for {x} and {z} for the period ended {y1}?",
        "by how much , in percent , did the return of {x} differ from that of {z} by {y1}?",
    )),
    "outperformed": Family("greater({a}, {b})", False, (
        "did {x} outperform {z} over the period ended {y1}?",
        "was the cumulative return of {x} greater than that of {z} by {y1}?",
        "by {y1} , was an investment in {x} worth more than one in {z}?",
    )),
    # Stock prices by quarter: a high, b low.
    "price range": Family("subtract({a}, {b})", False, (
        "what was the difference between the high and low stock price in the {x}?",
        "what is the range of the stock price for the {x}?",
        "how far apart were the high and the low price per share in the {x}?",
    )),
    "price average": Family("add({a}, {b}), divide(#0, const_2)", False, (
        "what was the average of the high and low stock price in the {x}?",
        "considering the {x} , what is the average sale price per share?",
        "what is the midpoint between the high and the low price in the {x}?",
    )),
    "price change": Family(_GROWTH, True, (
        "what was the percentage change in the {z} stock price from the {x} to the {w}?",
        "by what percent did the {z} price change between the {x} and the {w}?",
        "what is the growth rate in the {z} sale price from the {x} to the {w}?",
    )),
    # Awards: a of them at b dollars.
    "award value": Family("multiply({a}, {b})", False, (
        "what was the total value of the {x} during {y}?",
        "what is the total fair value of {x} in {y}?",
        "based on the weighted average fair value , what was the value of {x} in {y}?",
    )),
    # The table and the text together: a is in the table.
    "without an event": Family("subtract({a}, {b})", False, (
        "what would {x} have been in {y1} without {event}{unit}?",
        "excluding {event} , what was {x} in {y1}{unit}?",
        "what was {x} in {y1} before the effect of {event}{unit}?",
    )),
    "share of an event": Family("divide({b}, {a})", True, (
        "what percentage of {x} in {y1} was related to {event}?",
        "what portion of {y1} {x} came from {event}?",
        "in {y1} , {event} was what percent of {x}?",
    )),
    "amount from a percentage": Family("multiply({a}, {b})", False, (
        "what was the amount of {x} in {y1} from {event}{unit}?",
        "in {y1} , how much of the {x} came from {event}{unit}?",
        "what is the value of {x} attributable to {event} in {y1}{unit}?",
    )),
    "share in billions": Family("multiply({b}, const_1000), divide(#0, {a})", True, (
        "what percentage of {x} in {y1} was from {event}?",
        "what portion of {y1} {x} is represented by {event}?",
        "{event} were what percent of {x} in {y1}?",
    )),
    "share by millions": Family("divide({a}, const_1000), divide({b}, #0)", True, (
        "what percentage of {x} in {y1} was from {event}?",
        "what portion of {y1} {x} is represented by {event}?",
        "{event} were what percent of {x} in {y1}?",
    )),
    "per unit": Family("divide({a}, {b})", False, (
        "what was the average {x} per {event} in {y1}{unit}?",
        "how much {x} was there for each {event} in {y1}{unit}?",
        "in {y1} , what was the {x} per {event}{unit}?",
    )),
    "yearly payment": Family("divide({b}, const_{n}), divide(#0, {a})", True, (
        "what is the average annual payment under the agreement to {event} as a percentage of {x} in {y1}?",
        "the yearly installment for the agreement to {event} is what percent of {y1} {x}?",
        "what portion of {y1} {x} would one annual payment to {event} be?",
    )),
}  # fmt: skip


class Note(NamedTuple):
    """Sentences with figures that questions can be asked about without the table; a page has one ``about`` a thing.

    ``numbers`` is ``name: (low, high, decimals)``, ``name: (other name, low, high)`` for a fraction of another, or
    ``name: (low, high, decimals, "%")``. Sentences that are parted by ``" | "`` stand one after the other.
    """

    about: str
    sentences: tuple[str, ...]
    numbers: dict[str, tuple]
    questions: tuple[Family, ...]


NOTES = (
    Note(
        "employees",
        ("at december 31 , {y} , we employed {a} people , including {b} people who are covered by labor agreements .",
         "we had {a} employees at the end of {y} , of whom {b} were represented by labor unions ."),
        {"a": (2000, 49000, 0), "b": ("a", 0.05, 0.6)},
        (Family("divide({b}, {a})", True, (
            "what percentage of employees are covered by labor agreements or represented by labor unions?",
            "in {y} , what portion of the employees was represented by labor unions or labor agreements?",
            "what percent of the people we employed in {y} were covered by labor agreements or unions?")),
         Family("subtract({a}, {b})", False, (
            "how many employees were not covered by labor agreements or unions in {y}?",
            "what is the number of people employed at december 31 , {y} outside of labor agreements and unions?",
            "excluding those represented by labor unions or agreements , how many employees did we have?"))),
    ),
    Note(
        "facilities",
        ("our facilities have {a} thousand square feet of owned space and {b} thousand square feet of leased space .",
         "we own {a} thousand square feet of facilities and lease another {b} thousand square feet ."),
        {"a": (120, 3900, 0), "b": ("a", 0.1, 0.9)},
        (Family("add({a}, {b}), divide({a}, #0)", True, (
            "what percentage of the total square feet of facilities is owned?",
            "what portion of our square feet of space is owned?",
            "owned space is what percent of the square feet of all facilities , owned and leased?")),
         Family("add({a}, {b})", False, (
            "what is the total square feet of owned and leased facilities , in thousands?",
            "how many thousand square feet do we own and lease together?",
            "in thousands , what are the combined square feet of facilities?")),
         Family("divide({a}, {b})", False, (
            "what is the ratio of owned to leased square feet?",
            "how many times the leased square feet are the owned square feet?",
            "what is the ratio of the owned space to the leased space?"))),
    ),
    Note(
        "notes issued",
        ("in {month} {y} , we issued $ {a} million of {r} senior notes due {due} .",
         "on {month} 15 , {y} , the company sold $ {a} million of its {r} senior notes that mature in {due} ."),
        {"a": (110, 1900, 0), "r": (2.05, 8.95, 2, "%")},
        (Family("multiply({a}, {r})", False, (
            "what is the annual interest expense on the senior notes due {due} , in millions?",
            "what is the yearly interest on the notes issued in {month} {y} , in millions?",
            "how much interest do the senior notes of {month} {y} cost a year , in millions?")),),
    ),
    Note(
        "credit facility",
        ("we have a revolving credit facility of $ {a} million that expires in {due} . | at december 31 , {y} , "
         "borrowings of $ {b} million were outstanding under the credit facility .",
         "our credit facility permits borrowings of up to $ {a} million . | at december 31 , {y} , $ {b} million was "
         "drawn under the credit facility ."),
        {"a": (150, 2900, 0), "b": ("a", 0.05, 0.8)},
        (Family("subtract({a}, {b})", False, (
            "how much was available under the credit facility at december 31 , {y} , in millions?",
            "what is the unused amount of the credit facility in {y} , in millions?",
            "in millions , how much could still be borrowed under the credit facility at the end of {y}?")),
         Family("divide({b}, {a})", True, (
            "what percentage of the credit facility was drawn at december 31 , {y}?",
            "what portion of the credit facility was outstanding at the end of {y}?",
            "borrowings at december 31 , {y} were what percent of the credit facility?"))),
    ),
    Note(
        "total debt",
        ("our total debt was $ {a} million at december 31 , {y} . | the weighted average financing cost of our total "
         "debt was {r} in {y} .",
         "total debt amounted to $ {a} million at the end of {y} . | the average interest rate on total debt during "
         "{y} was {r} ."),
        {"a": (210, 9800, 0), "r": (1.1, 8.9, 1, "%")},
        (Family("multiply({a}, {r})", False, (
            "what would the interest expense be for {y} on the total debt at the average rate , in millions?",
            "based on the average cost , what is the annual interest on total debt at the end of {y} , in millions?",
            "in millions , what is the yearly financing cost of total debt at its {y} average?")),),
    ),
    Note(
        "acquisition",
        ("in {month} {y} , we acquired {thing} for $ {a} million , of which $ {b} million was paid in cash .",
         "we completed the acquisition of {thing} in {month} {y} . | the purchase price of $ {a} million included "
         "cash of $ {b} million ."),
        {"a": (110, 2400, 0), "b": ("a", 0.3, 0.9)},
        (Family("divide({b}, {a})", True, (
            "what percentage of the purchase price of {thing} was paid in cash?",
            "what portion of the price of {thing} was cash?",
            "cash was what percent of the total paid for {thing} in {y}?")),
         Family("subtract({a}, {b})", False, (
            "how much of the purchase price of {thing} was not paid in cash , in millions?",
            "excluding cash , what was paid for {thing} , in millions?",
            "what was the part of the {thing} acquisition price other than cash , in millions?"))),
    ),
    Note(
        "acquisition",
        ("the purchase price of {thing} was $ {t} million . | we allocated $ {a} million of it to goodwill and $ {b} "
         "million to customer relationships .",
         "we paid $ {t} million for {thing} , including $ {a} million for goodwill and $ {b} million for customer "
         "relationships ."),
        {"t": (150, 2900, 0), "a": ("t", 0.2, 0.5), "b": ("t", 0.1, 0.4)},
        (Family("add({a}, {b}), divide(#0, {t})", True, (
            "what percentage of the purchase price of {thing} was goodwill and customer relationships combined?",
            "what portion of the price paid for {thing} is related to goodwill and customer relationships?",
            "goodwill and customer relationships together are what percent of the price of {thing}?")),
         Family("divide({a}, {t})", True, (
            "what percentage of the purchase price of {thing} is represented by goodwill?",
            "what portion of the price paid for {thing} was goodwill?",
            "goodwill is what percent of the purchase price of {thing}?"))),
    ),
    Note(
        "capital investments",
        ("included in capital investments in {y} was $ {a} million for the purchase of {b} {machines} .",
         "during {y} , we bought {b} {machines} at a total cost of $ {a} million ."),
        {"a": (21, 99, 0), "b": (110, 980, 0)},
        (Family("multiply({a}, const_1000000), divide(#0, {b})", False, (
            "what was the average cost in dollars of the {machines} bought in {y}?",
            "what was the cost per unit of the {machines} purchased in {y} , in dollars?",
            "in dollars , how much did each of the {machines} of {y} cost?")),),
    ),
    Note(
        "share repurchases",
        ("during {y} , we repurchased {a} million shares of our common stock at an average price of $ {p} per share .",
         "the company bought back {a} million of its shares in {y} , paying an average price of $ {p} a share ."),
        {"a": (1.1, 29.9, 1), "p": (12.05, 98.95, 2)},
        (Family("multiply({a}, {p})", False, (
            "what was the total cost of the shares repurchased in {y} , in millions?",
            "how much was spent on shares repurchased or bought back during {y} , in millions?",
            "in millions , what did the company pay for its shares in {y}?")),),
    ),
    Note(
        "share repurchases",
        ("we repurchased {a} million shares of common stock in {y} at a cost of $ {b} million .",
         "in {y} , {a} million shares were repurchased for a total of $ {b} million ."),
        {"a": (1.1, 9.9, 1), "b": (110, 980, 0)},
        (Family("divide({b}, {a})", False, (
            "what was the average price per share of the shares repurchased in {y}?",
            "how much was paid per share for the repurchased shares in {y}?",
            "at what average price were shares repurchased during {y}?")),),
    ),
    Note(
        "market value",
        ("as of {month} 10 , {y1} , there were {a} million shares of common stock outstanding . | the closing price of "
         "our common stock on that date was $ {p} per share .",
         "on {month} 10 , {y1} , the closing price of our common stock was $ {p} per share and we had {a} million "
         "outstanding shares ."),
        {"a": (31.1, 399.9, 1), "p": (11.05, 98.95, 2)},
        (Family("multiply({a}, {p})", False, (
            "what was the market capitalization on {month} 10 , {y1} , in millions?",
            "based on the closing price , what is the outstanding common stock worth in {month} {y1} , in millions?",
            "in millions , what were all outstanding shares worth on {month} 10 , {y1}?")),),
    ),
    Note(
        "settlement",
        ("in {month} {y} , we agreed to pay $ {a} million in {count} equal annual installments to settle the matter .",
         "the settlement of {month} {y} requires $ {a} million to be paid in {count} equal annual installments ."),
        {"a": (21, 980, 0)},
        (Family("divide({a}, const_{n})", False, (
            "how much has to be paid each year for the settlement , in millions?",
            "what is the amount of each annual installment under the {month} {y} settlement , in millions?",
            "in millions , what is the yearly payment to settle the matter?")),),
    ),
    Note(
        "dividends",
        ("our board declared a regular quarterly dividend of $ {p} per share in {month} {y1} .",
         "in {month} {y1} , the quarterly dividend was raised to $ {p} per share ."),
        {"p": (0.11, 0.99, 2)},
        (Family("multiply({p}, const_4)", False, (
            "what is the annual dividend per share at the quarterly rate declared in {month} {y1}?",
            "at the {month} {y1} quarterly rate , how much is paid per share in dividends a year?",
            "what would the yearly dividend per share be , based on the quarterly dividend of {month} {y1}?")),),
    ),
    Note(
        "tax positions",
        ("as of december 31 , {y} , unrecognized tax positions were $ {a} million , of which $ {b} million would "
         "affect the effective tax rate if recognized .",
         "of the $ {a} million of unrecognized tax positions at the end of {y} , $ {b} million would affect the "
         "effective tax rate ."),
        {"a": (21, 390, 0), "b": ("a", 0.3, 0.9)},
        (Family("divide({b}, {a})", True, (
            "what percentage of unrecognized tax positions would affect the effective tax rate in {y}?",
            "what portion of the unrecognized tax positions at december 31 , {y} would change the effective tax rate?",
            "the tax positions that affect the effective tax rate are what percent of the {y} total?")),),
    ),
    Note(
        "cash",
        ("at december 31 , {y} , foreign subsidiaries held $ {b} million of our total cash of $ {a} million .",
         "our cash was $ {a} million at the end of {y} . | of this cash , $ {b} million was held by foreign "
         "subsidiaries ."),
        {"a": (120, 2900, 0), "b": ("a", 0.1, 0.8)},
        (Family("divide({b}, {a})", True, (
            "what percentage of cash was held by foreign subsidiaries at december 31 , {y}?",
            "what portion of the {y} cash is related to foreign subsidiaries?",
            "at the end of {y} , cash of foreign subsidiaries was what percent of total cash?")),
         Family("subtract({a}, {b})", False, (
            "how much cash was held outside of foreign subsidiaries at december 31 , {y} , in millions?",
            "what was total cash in {y} excluding cash of foreign subsidiaries , in millions?",
            "in millions , how much of the {y} cash did foreign subsidiaries not hold?"))),
    ),
    Note(
        "pension",
        ("the pension trust had assets of $ {a} million at december 31 , {y} . | the expected long-term return on "
         "pension trust assets is {r} a year .",
         "at the end of {y} , assets of the pension trust were $ {a} million and are expected to earn {r} a year ."),
        {"a": (110, 2900, 0), "r": (4.1, 8.9, 1, "%")},
        (Family("add(const_1, {r}), exp(#0, const_{n}), multiply(#1, {a})", False, (
            "at the expected return , what would the pension trust assets be worth in {count} years , in millions?",
            "in millions , to what would the pension trust assets grow over {count} years at the expected return?",
            "what are the pension trust assets after {count} years of the expected return , in millions?")),
         Family("multiply({a}, {r})", False, (
            "what is the expected return on the pension trust assets for one year , in millions?",
            "in millions , how much are pension trust assets of {y} expected to earn a year?",
            "how much return is expected on the assets of the pension trust in a year , in millions?"))),
    ),
    Note(
        "share repurchases",
        ("our board authorized the repurchase of {a} million shares , of which {b} million had been repurchased by "
         "december 31 , {y} . | the price of our stock at that date was $ {p} per share .",
         "under the authorized program , {b} million of {a} million shares had been repurchased at the end of {y} . | "
         "our stock closed the year at a price of $ {p} ."),
        {"a": (11.1, 49.9, 1), "b": ("a", 0.1, 0.9), "p": (11.05, 98.95, 2)},
        (Family("subtract({a}, {b}), multiply(#0, {p})", False, (
            "what would it cost to repurchase the shares still authorized at the {y} price , in millions?",
            "at the price of december 31 , {y} , what is the value of the remaining authorized shares , in millions?",
            "in millions , how much would buying the rest of the authorized shares cost at the year-end price?")),
         Family("divide({b}, {a})", True, (
            "what percentage of the authorized shares had been repurchased by december 31 , {y}?",
            "what portion of the share repurchase program was used at the end of {y}?",
            "shares repurchased were what percent of those authorized by the end of {y}?"))),
    ),
    Note(
        "restructuring",
        ("we expect the plan to cost $ {a} million in total , of which $ {b} million was incurred through {y} .",
         "the plan 2019s total cost is estimated at $ {a} million . | through december 31 , {y} , $ {b} million of the "
         "cost had been incurred ."),
        {"a": (31, 490, 0), "b": ("a", 0.2, 0.9)},
        (Family("subtract({a}, {b})", False, (
            "how much of the cost of the plan remains to be incurred after {y} , in millions?",
            "what is the remaining cost of the plan at december 31 , {y} , in millions?",
            "in millions , what does the plan still cost after {y}?")),
         Family("divide({b}, {a})", True, (
            "what percentage of the total cost of the plan was incurred through {y}?",
            "what portion of the plan 2019s expected cost had been incurred by the end of {y}?",
            "the cost incurred through december 31 , {y} is what percent of the total?"))),
    ),
    Note(
        "accruals",
        ("liabilities at december 31 , {y} included $ {a} million for environmental matters and $ {b} million for "
         "legal matters .",
         "in {y} , $ {a} million had been accrued for environmental matters and $ {b} million for legal matters ."),
        {"a": (21, 390, 0), "b": (21, 390, 0)},
        (Family("add({a}, {b})", False, (
            "what was accrued for environmental and legal matters together in {y} , in millions?",
            "what is the total of the {y} liabilities for environmental and legal matters , in millions?",
            "in millions , what is the sum for environmental matters and legal matters at december 31 , {y}?")),
         Family("add({a}, {b}), divide({a}, #0)", True, (
            "what percentage of the amount for environmental and legal matters was environmental in {y}?",
            "of the accruals for environmental and legal matters , what portion is environmental?",
            "environmental matters are what percent of the {y} total for environmental and legal matters?"))),
    ),
    Note(
        "restructuring",
        ("the charge of {y} consisted of $ {a} million of severance , $ {b} million of asset write-downs and $ {c} "
         "million of lease termination costs .",
         "in {y} , we recorded severance of $ {a} million , asset write-downs of $ {b} million and lease termination "
         "costs of $ {c} million ."),
        {"a": (11, 290, 0), "b": (11, 290, 0), "c": (11, 290, 0)},
        (Family("add({a}, {b}), add(#0, {c})", False, (
            "what was the sum of severance , asset write-downs and lease termination costs in {y} , in millions?",
            "what is the total charge of {y} for severance , write-downs and lease termination , in millions?",
            "in millions , what did severance , asset write-downs and lease termination come to in {y}?")),
         Family("add({a}, {b}), add(#0, {c}), divide({a}, #1)", True, (
            "what percentage of the {y} severance , write-downs and lease termination costs was severance?",
            "of the sum of severance , asset write-downs and lease termination costs , what portion is severance?",
            "severance is what percent of all {y} charges for severance , write-downs and leases?"))),
    ),
    Note(
        "commitments",
        ("we have commitments to purchase materials of $ {a} million in {y1} and $ {b} million in {y2} .",
         "commitments to purchase materials are $ {a} million for {y1} and $ {b} million for {y2} ."),
        {"a": (21, 890, 0), "b": (21, 890, 0)},
        (Family("add({a}, {b})", False, (
            "what are the total commitments to purchase materials for {y1} and {y2} , in millions?",
            "in millions , what is the sum of the {y1} and {y2} commitments to purchase materials?",
            "how much is committed to purchase materials in {y1} and {y2} combined , in millions?")),
         Family(_GROWTH, True, (
            "what is the percentage change in commitments to purchase materials from {y1} to {y2}?",
            "by what percent do commitments to purchase materials change from {y1} to {y2}?",
            "what is the growth rate in the commitments to purchase materials between {y1} and {y2}?"))),
    ),
    Note(
        "backlog",
        ("our backlog was $ {a} million at december 31 , {y} , of which {r} should be converted into sales in {y1} .",
         "at the end of {y} , backlog stood at $ {a} million . | approximately {r} of the backlog is expected to "
         "become sales in {y1} ."),
        {"a": (210, 9800, 0), "r": (21, 89, 0, "%")},
        (Family("multiply({a}, {r})", False, (
            "what amount of the backlog is expected to be converted into sales in {y1} , in millions?",
            "how much of the {y} backlog will become sales in {y1} , in millions?",
            "in millions , what sales are expected in {y1} from the backlog?")),),
    ),
    Note(
        "services",
        ("our services business had revenue of $ {a} million in {y} , which was {r} of consolidated revenue .",
         "in {y} , revenue of the services business was $ {a} million . | the services business provided {r} of "
         "consolidated revenue in {y} ."),
        {"a": (110, 2900, 0), "r": (11, 59, 0, "%")},
        (Family("divide({a}, {r})", False, (
            "based on the services business , what would consolidated revenue be in {y} , in millions?",
            "what was consolidated revenue in {y} as implied by the services business , in millions?",
            "in millions , what consolidated revenue does the share of the services business imply for {y}?")),),
    ),
    Note(
        "exchange rates",
        ("a 10% ( 10 % ) increase in exchange rates would reduce fair value by $ {a} million , while a 10% ( 10 % ) "
         "decrease would raise it by $ {b} million .",
         "fair value would fall by $ {a} million if exchange rates rose by 10% ( 10 % ) and rise by $ {b} million if "
         "exchange rates fell by as much ."),
        {"a": (11, 390, 0), "b": (11, 390, 0)},
        (Family("add({a}, {b})", False, (
            "what is the range of fair value between an increase and a decrease in exchange rates , in millions?",
            "in millions , what is the total difference in fair value if exchange rates fall instead of rise?",
            "how far apart are the fair values after a rise and a fall in exchange rates , in millions?")),),
    ),
)  # fmt: skip

# --- the prose ------------------------------------------------------------------------------------------------------

# Amounts that a sentence gives for two or three years: name, smallest and largest amount in millions.
_TOPICS = (
    ("rent expense", 11, 390), ("advertising expense", 11, 690), ("stock-based compensation expense", 11, 290),
    ("capital expenditures", 31, 2900), ("interest income", 11, 190), ("cash paid for interest", 21, 490),
    ("cash paid for income taxes", 21, 890), ("contributions to the savings plan", 11, 190),
    ("environmental remediation costs", 11, 290), ("royalty income", 11, 190), ("severance costs", 11, 190),
    ("bad debt expense", 11, 90), ("shipping and handling costs", 21, 690), ("letters of credit outstanding", 21, 490),
    ("purchases from related parties", 21, 890), ("repairs and maintenance expense", 21, 890),
    ("unrecognized compensation cost", 11, 290), ("equity in earnings of affiliates", 11, 390),
    ("receivables sold under the securitization program", 110, 1900), ("legal and professional fees", 11, 190),
    ("gains on the sale of property", 11, 290), ("minimum pension contributions", 11, 390),
    ("sponsored development costs", 21, 990), ("guarantees of customer debt", 21, 690),
)  # fmt: skip
_SERIES_OF_TWO = (
    "{x} totaled $ {b} million in {y1} , compared with $ {a} million in {y0} .",
    "{x} amounted to $ {a} million in {y0} and $ {b} million in {y1} .",
    "{x} was $ {b} million and $ {a} million in {y1} and {y0} , respectively .",
    "we recorded {x} of $ {b} million for {y1} ( $ {a} million for {y0} ) .",
)
_SERIES_OF_THREE = (
    "{x} was $ {c} million , $ {b} million and $ {a} million for the years ended december 31 , {y2} , {y1} and {y0} , "
    "respectively .",
    "during {y2} , {y1} and {y0} , {x} totaled $ {c} million , $ {b} million and $ {a} million , respectively .",
    "{x} amounted to $ {c} million in {y2} , $ {b} million in {y1} and $ {a} million in {y0} .",
)
_REASONS = (
    "higher volumes", "lower selling prices", "the acquisition completed in the second quarter", "cost reductions",
    "the effect of foreign exchange rates", "a change in the mix of products", "weaker demand in europe",
    "the timing of customer orders", "higher raw material costs", "productivity improvements",
)  # fmt: skip
_EVENTS = (
    "the settlement of a customer claim", "the sale of a former facility", "the recall of a product line",
    "damage from hurricanes", "the early termination of a contract", "the closure of the northern plant",
    "the businesses acquired during the year", "the change in accounting estimate",
)  # fmt: skip
_SOURCES = (
    "customers outside the united states", "government customers", "the ten largest customers",
    "the european operations", "long-term contracts", "customers in the automotive sector",
    "the asia pacific region", "online channels",
)  # fmt: skip
_AGREEMENTS = ("remove the old tanks", "support local schools", "clean up the former site", "renew the license")
_COUNTED = {"store": "stores", "customer location": "customer locations", "plant": "plants", "aircraft": "aircraft",
            "branch": "branches", "service center": "service centers"}  # fmt: skip
_THINGS = (
    "a coatings business", "a maker of sensors", "a regional pipeline operator", "a payment processor",
    "a supplier of filters", "a software developer", "a packaging company", "a chain of clinics",
)  # fmt: skip
_MACHINES = ("locomotives", "freight cars", "drilling rigs", "towers", "delivery vehicles", "cranes")
_MONTHS = ("january", "february", "march", "april", "may", "june", "july", "august", "september", "october",
           "november", "december")  # fmt: skip
_WORDS = {2: "two", 3: "three", 4: "four", 5: "five", 6: "six", 8: "eight"}

_FILLERS = (
    "these statements should be read in conjunction with the notes to the consolidated financial statements .",
    "the preparation of financial statements requires management to make estimates and assumptions .",
    "what happens in fact can turn out better or worse than we estimate .",
    "certain amounts of prior years have been reclassified to conform to the current presentation .",
    "we believe that cash from operations will be sufficient to meet our needs for the next twelve months .",
    "our businesses are subject to competition , regulation and changes in the general economy .",
    "management reviews the performance of each business on a regular basis .",
    "see the notes for a further discussion of our accounting policies .",
    "we do not expect the adoption of the new standard to have a material effect on our results .",
    "fair value is determined from quoted prices in active markets where these are available .",
    "we use derivative contracts to reduce our exposure to changes in interest rates and currencies .",
    "substantially all of our receivables are due from customers in the ordinary course of business .",
    "the company recognizes revenue when control of the goods or services passes to the customer .",
    "an impairment loss is recognized when the carrying amount of an asset is not recoverable .",
    "the table below should not be taken as an indication of future performance .",
    "we are party to various legal proceedings that arise in the normal course of business .",
    "in the opinion of management , the outcome of these matters will not have a material adverse effect .",
    "our fiscal year ends on december 31 unless otherwise stated .",
    "amounts may not add due to rounding .",
    "deferred taxes are measured at the rates expected to apply when the differences reverse .",
    "we operate in several countries and are exposed to the risks of each of them .",
    "the agreement contains covenants that limit our ability to incur additional debt .",
    "at year end the company was in compliance with all of its covenants .",
    "plan assets are invested in a diversified portfolio of equity and debt securities .",
    "the increase was partially offset by lower costs of distribution .",
    "no single customer accounted for a material part of our revenue .",
    "shares of the company 2019s common stock trade on a national exchange .",
    "we review the useful lives of our assets each year and adjust them where needed .",
    "goodwill is tested for impairment in the fourth quarter of every year .",
    "costs that relate to future periods are deferred and expensed as the benefits are received .",
)  # fmt: skip
_OPENINGS = (
    "{company} notes to consolidated financial statements 2014 ( continued ) .",
    "{company} and subsidiaries management 2019s discussion and analysis of financial condition .",
    "{company} annual report {y} .",
    "table of contents {company} notes to the financial statements .",
    "part ii item 7 . {company} management 2019s discussion and analysis .",
)


# --- one page -------------------------------------------------------------------------------------------------------


class _Value(NamedTuple):
    """A figure as programs write it (``5829``, ``-14``, ``12.4%``) and where it stands.

    ``source`` is ``("table", row)`` or ``("text", number of the sentence)``, counted in the order of ``_Page.say``.
    """

    text: str
    source: tuple[str, int]

    def __str__(self) -> str:
        return self.text

    @property
    def number(self) -> float:
        return float(self.text.rstrip("%"))


class _Series(NamedTuple):
    """A figure by year or other column; ``row`` is its table row's name where table operations can use it."""

    name: str
    values: dict[str, _Value]
    unit: str  # what may end a question: "in millions", or "" where that would be odd
    row: str = ""


class _Ask(NamedTuple):
    question: str
    program: str
    percent: bool
    sources: tuple[tuple[str, int], ...]
    kind: str  # the key of PROGRAM_SHARES
    evidence: str  # the key of EVIDENCE_SHARES


_DIRECTIONS = {
    True: {"direction": "increase", "verb": "grow", "higher": "higher"},
    False: {"direction": "decrease", "verb": "decline", "higher": "lower"},
}


class _Unlucky(Exception):
    """No figures of this split were found that add up to totals of this split; the page is given up."""


class _Page:
    """A page while it is made: its table, its sentences, and all that could be asked about them."""

    def __init__(self, rng: random.Random, split: str):
        self.rng = rng
        self.split = split
        head, tail = rng.choice(_NAMES[split].split()), rng.choice(_ENDINGS)
        self.company = f"{head}{tail} {rng.choice(_FORMS)}"
        self.year = rng.randint(2003, 2018)
        self.filename = f"{head[:3]}{tail[0]}".upper() + f"/{self.year}/page_{rng.randint(12, 98)}.pdf"
        self.intro = ""
        self.table: list[list[str]] = []
        self.sentences: list[str] = []
        self.blocks: list[list[int]] = []  # sentences that must stay together
        self.asks: list[_Ask] = []
        self.about: set[str] = set()  # what has been told, so that nothing is told twice with other figures

    # Figures.

    def integer(self, low: int, high: int) -> int:
        """Return a number from ``low`` to ``high`` whose digits this split may show; wider if there is none."""
        for attempt in range(1000):
            number = self.rng.randint(low, high + attempt // 20)
            if self.may_show(number):
                return number
        raise _Unlucky

    def integers(self, ranges: Sequence[tuple[int, int]]) -> list[int]:
        """Return a number from each range; their sum may be shown as well."""
        for _ in range(200):
            numbers = [self.integer(low, high) for low, high in ranges]
            if self.may_show(sum(numbers)):
                return numbers
        raise _Unlucky

    def may_show(self, number: int) -> bool:
        return abs(number) not in _YEARS and _digits_owner(str(abs(number))) in (None, self.split)

    def figure(self, low: float, high: float, decimals: int = 0) -> str:
        scale = 10**decimals
        return _decimal(self.integer(round(low * scale), max(round(low * scale), round(high * scale))), decimals)

    # Sentences.

    def fresh(self, options: Sequence[str]) -> str:
        """Return one of ``options`` that was not yet told about on this page."""
        option = self.rng.choice([option for option in options if option not in self.about])
        self.about.add(option)
        return option

    def say(self, template: str, figures: dict[str, str], **words: str) -> dict[str, _Value]:
        """Add the sentences of ``template``; return each figure of ``figures`` with the sentence that it stands in."""
        shown = {name: f"{text} ( {text[:-1]} % )" if text.endswith("%") else text for name, text in figures.items()}
        values, block = {}, []
        for part in template.split(" | "):
            block.append(len(self.sentences))
            self.sentences.append(part.format(**shown, **words))
            values |= {name: _Value(figures[name], ("text", block[-1])) for name in figures if f"{{{name}}}" in part}
        self.blocks.append(block)
        return values

    # Questions.

    def ask(self, family: str | Family, rows: Sequence[int] = (), percent: bool = False, **fields: object) -> None:
        """Add one wording of ``family``; ``rows`` are evidence beside the figures that the program names.

        ``percent`` says that the figures are percentages, and so is the answer.
        """
        family = FAMILIES[family] if isinstance(family, str) else family
        if isinstance(fields.get("b"), _Value) and isinstance(fields.get("a"), _Value):
            fields = _DIRECTIONS[fields["b"].number > fields["a"].number] | fields
        program = family.program.format(**fields)
        sources = {fields[name].source for name in re.findall(r"{(\w+)}", family.program)
                   if isinstance(fields[name], _Value)}  # fmt: skip
        sources |= {("table", row) for row in rows}
        places = {place for place, _ in sources}
        unit = fields.get("unit")
        if unit:
            fields["unit"] = self.rng.choice(("", "", f" {unit}", f" , {unit}"))
        question = self.rng.choice(family.wordings).format(**fields).replace("total total ", "total ")
        if self.rng.random() < 0.08:
            question = question.removesuffix("?")
        evidence = "both" if len(places) == 2 else places.pop()
        kind = " ".join(operations(tokenize(program)))
        if ", const_100), divide" in program and f"index {kind}" in PROGRAM_SHARES:
            kind = f"index {kind}"
        self.asks.append(_Ask(question, program, percent or family.percent, tuple(sorted(sources)), kind, evidence))

    # The finished page.

    def arrange(self) -> tuple[list[str], list[str], dict[int, int]]:
        """Return pre_text, post_text and, for each sentence made by ``say``, its position in the two together."""
        blocks = [*self.blocks]
        words = sum(len(text.split()) for text in self.sentences)
        words += sum(len(cell.split()) for row in self.table for cell in row)
        target = self.rng.randint(*PAGE_WORDS)
        for filler in self.rng.sample(_FILLERS, len(_FILLERS)):
            if words >= target:
                break
            blocks.append([len(self.sentences)])
            self.sentences.append(filler)
            words += len(filler.split())
        self.rng.shuffle(blocks)
        cut = self.rng.randint(1, len(blocks) - 1)
        before = [number for block in blocks[:cut] for number in block]
        after = [number for block in blocks[cut:] for number in block]
        opening = self.rng.choice(_OPENINGS).format(company=self.company, y=self.year)
        pre_text = [opening, *(self.sentences[number] for number in before), self.intro]
        places = {number: place for place, number in enumerate(before, start=1)}
        places |= {number: place for place, number in enumerate(after, start=len(pre_text))}
        return pre_text, [self.sentences[number] for number in after], places


def _decimal(number: int, decimals: int) -> str:
    """Return ``number`` / 10 ** ``decimals`` as a string: 5829 with 1 decimal is ``582.9``."""
    if not decimals:
        return str(number)
    digits = f"{abs(number):0{decimals + 1}d}"
    return ("-" if number < 0 else "") + f"{digits[:-decimals]}.{digits[-decimals:]}"


def _cell(figure: str, dollar: bool = False) -> str:
    """Return a figure as FinQA's tables show it: ``$ -14 ( 14 )``, ``12.4% ( 12.4 % )``."""
    if figure.endswith("%"):
        shown = f"{figure} ( {figure.strip('-%')} % )"
    elif figure.startswith("-"):
        shown = f"{figure} ( {figure[1:]} )"
    else:
        shown = figure
    return f"$ {shown}" if dollar else shown


# --- questions that any figure allows -------------------------------------------------------------------------------


def _ask_years(page: _Page, series: _Series, years: Sequence[str]) -> None:
    """Ask about one figure over ``years``, earliest first."""
    values = [series.values.get(year) for year in years]
    rng, known = page.rng, [position for position, value in enumerate(values) if value is not None]
    if len(known) < 2:
        return
    first, last = sorted(rng.sample(known, 2))
    a, b = values[first], values[last]
    percent = a.text.endswith("%")
    common = {"x": series.name, "unit": series.unit, "percent": percent}
    span = common | {"a": a, "b": b, "y0": years[first], "y1": years[last]}
    if a.number != b.number:
        page.ask("change", **span)
        if min(a.number, b.number) > 0:
            page.ask("increase" if b.number > a.number else "decrease", **span)
            if not percent:
                page.ask("growth", **span)
                page.ask("growth from a ratio", **span)
                if last == first + 1:
                    page.ask("growth of a year", **span)
                if rng.random() < 0.25:  # rare in FinQA
                    page.ask("ratio of years", **span)
                    page.ask("ratio of years", **span | {"a": b, "b": a, "y0": years[last], "y1": years[first]})
    page.ask("average of two", **span)
    if not percent:
        page.ask("sum of two", **span)
    for length, word in ((3, "three"), (4, "four"), (5, "five")):
        starts = [start for start in range(len(values) - length + 1) if None not in values[start : start + length]]
        if not starts:
            break
        start = rng.choice(starts)
        run = common | dict(zip("abcde", values[start : start + length], strict=False))
        run |= {"y0": years[start], "y1": years[start + length - 1]}
        page.ask(f"average of {word}", **run)
        if length < 5 and not percent:
            page.ask(f"sum of {word}", **run)
    if series.row and None not in values and len(values) in _WORDS:
        operation = rng.choice(("average", "average", "maximum", "minimum", "average" if percent else "sum"))
        page.ask(f"row {operation}", [a.source[1]], **common, row=series.row, span=_WORDS[len(values)])


def _ask_pair(page: _Page, one: _Series, two: _Series, when: str, years: Sequence[str] = ()) -> None:
    """Ask about two figures of column ``when``, and about their growth over ``years``."""
    a, b = one.values.get(when), two.values.get(when)
    if a is not None and b is not None and min(a.number, b.number) > 0:
        pair = {"x": one.name, "z": two.name, "a": a, "b": b, "unit": one.unit, **_at(page, when)}
        page.ask("greater", **pair)
        page.ask("ratio", **pair)
        page.ask("combined", **pair)
        page.ask("difference" if a.number <= b.number or page.rng.random() < 0.5 else "excess", **pair)
    if len(years) > 1:
        y0, y1 = _two(page.rng, years)
        values = [series.values.get(year) for series in (one, two) for year in (y0, y1)]
        if None not in values and min(value.number for value in values) > 0:
            change = dict(zip("abcd", values, strict=True), x=one.name, z=two.name, y0=y0, y1=y1)
            page.ask("growth gap", **change)
            page.ask("combined growth", **change)


def _ask_parts(page: _Page, parts: Sequence[_Series], whole: _Series, when: str, years: Sequence[str] = ()) -> None:
    """Ask what ``parts`` are of ``whole`` in column ``when``, and how that changed over ``years``."""
    total = whole.values.get(when)
    parts = [part for part in parts if part.values.get(when) is not None and part.values[when].number > 0]
    if total is None or total.number <= 0 or len(parts) < 2:
        return
    parts = page.rng.sample(parts, min(4, len(parts) - 1))  # never all of the whole
    common = {"whole": whole.name, "t": total, "unit": whole.unit, **_at(page, when)}
    values = [part.values[when] for part in parts]
    names = [part.name for part in parts]
    for part, value in zip(names[:2], values[:2], strict=False):
        page.ask("share", **common, x=part, a=value, b=total)
    named = common | dict(zip("xzwv", names, strict=False)) | dict(zip("abcd", values, strict=False))
    page.ask("whole without", **named)
    for size, word in ((2, "two"), (3, "three"), (4, "four")):
        if len(parts) >= size:
            page.ask(f"share of {word}", **named)
    if len(parts) > 2:
        page.ask("whole without two", **named)
    if len(years) > 1:
        y0, y1 = _two(page.rng, years)
        values = [series.values.get(year) for series in (parts[0], whole) for year in (y0, y1)]
        if None not in values and min(value.number for value in values) > 0:
            change = dict(zip("abcd", values, strict=True), x=names[0], whole=whole.name, y0=y0, y1=y1)
            change["unit"] = whole.unit
            page.ask("share gap", **change)
            page.ask("projected share", **change)
            if values[0].text != values[1].text and values[2].text != values[3].text:
                page.ask("share of change", **change)


def _two(rng: random.Random, years: Sequence[str]) -> tuple[str, str]:
    """Return two of ``years`` in their order."""
    first, last = sorted(rng.sample(range(len(years)), 2))
    return years[first], years[last]


def _at(page: _Page, when: str) -> dict[str, str]:
    """Return how a question says ``when``, at its start and later on; nothing for a table's only column."""
    if not when.isdigit():
        return {"when": "", "at": ""}
    late = page.rng.choice((" in {}", " in {}", " for {}", " as of december 31 , {}"))
    early = page.rng.choice(("in {} , ", "in {} ", "for {} , ", "as of december 31 , {} "))
    return {"when": late.format(when), "at": early.format(when)}


# --- sentences with figures -----------------------------------------------------------------------------------------


def _tell_topic(page: _Page, name: str, low: int, high: int) -> None:
    """Tell an amount of the last two or three years and ask about it."""
    years = [str(page.year - back) for back in range(page.rng.choice((1, 2, 2)), -1, -1)]
    level = page.rng.randint(low, high)
    letters = "abc"[: len(years)]
    figures = {letter: page.figure(level * page.rng.uniform(0.8, 1), level * 1.2) for letter in letters}
    template = page.rng.choice(_SERIES_OF_THREE if len(years) == 3 else _SERIES_OF_TWO)
    values = page.say(template, figures, x=name, **{f"y{n}": year for n, year in enumerate(years)})
    by_year = {year: values[letter] for year, letter in zip(years, letters, strict=True)}
    _ask_years(page, _Series(name, by_year, "in millions"), years)


def _tell_note(page: _Page, note: Note) -> None:
    rng = page.rng
    figures: dict[str, str] = {}
    for name, (low, high, *rest) in note.numbers.items():
        if isinstance(low, str):
            whole = float(figures[low])
            figures[name] = page.figure(whole * high, whole * rest[0], len(figures[low].partition(".")[2]))
        else:
            figures[name] = page.figure(low, high, rest[0]) + "".join(rest[1:])
    number = rng.choice((3, 4, 5))
    words = {
        "y": str(page.year), "y1": str(page.year + 1), "y2": str(page.year + 2), "due": str(page.year + number + 2),
        "month": rng.choice(_MONTHS), "thing": page.fresh(_THINGS), "machines": rng.choice(_MACHINES),
        "n": str(number), "count": _WORDS[number],
    }  # fmt: skip
    values = page.say(rng.choice(note.sentences), figures, **words)
    for family in note.questions:
        page.ask(family, **values, **words)


def _tell_more(page: _Page, series: _Series, years: Sequence[str], scale: str) -> None:
    """Tell something of a table row that needs the table as well: ``scale`` is ``million`` or ``thousand``."""
    rng, name = page.rng, series.name
    year = rng.choice(years)
    value = series.values.get(year)
    if value is None or value.number < 12:
        return
    decimals = len(value.text.partition(".")[2])
    row = {"x": name, "a": value, "y1": year, "unit": series.unit}

    def tell(template: str, figure: str, **words: str) -> _Value:
        return page.say(template, {"b": figure}, x=name, y=year, scale=scale, **words)["b"]

    how = rng.choice((0, 0, 1, 1, 2, 3, 3, 4, 5, 6))
    if how == 0:  # the year before the table begins
        before = str(int(years[0]) - 1)
        told = tell("{x} had been $ {b} {scale} in {before} .",
                    page.figure(value.number * 0.6, value.number * 1.1, decimals), before=before)  # fmt: skip
        change = {**row, "a": told, "b": value, "y0": before}
        page.ask("growth", **change)
        page.ask("change", **change)
    elif how == 1:
        event = page.fresh(_EVENTS)
        told = tell("{x} in {y} included $ {b} {scale} related to {event} .",
                    page.figure(value.number * 0.02, value.number * 0.4, decimals), event=event)  # fmt: skip
        page.ask("without an event", **row, b=told, event=event)
        page.ask("share of an event", **row, b=told, event=event)
    elif how in (2, 3):
        source = page.fresh(_SOURCES)
        if how == 3 and scale == "million" and value.number > 3000:
            told = tell("{event} contributed approximately $ {b} billion to {x} in {y} .",
                        page.figure(0.3, min(9.9, value.number / 1100), 1), event=source)  # fmt: skip
            page.ask("share in billions", **row, b=told, event=source)
        elif how == 3 and scale == "thousand" and value.number > 30000:
            told = tell("{event} contributed approximately $ {b} million to {x} in {y} .",
                        page.figure(value.number / 9000, value.number / 1500, 1), event=source)  # fmt: skip
            if rng.random() < 0.5:
                page.ask("share in billions", **row, b=told, event=source)
            page.ask("share by millions", **row, b=told, event=source)
        else:
            share = page.figure(11, 79) + "%"
            told = tell("approximately {b} of {x} in {y} was from {event} .", share, event=source)
            page.ask("amount from a percentage", **row, b=told, event=source)
    elif how == 4:
        counted = page.fresh(sorted(_COUNTED))
        told = tell("we had {b} {counted} at the end of {y} .", page.figure(12, 890), counted=_COUNTED[counted])
        page.ask("per unit", **row, b=told, event=counted)
    elif how == 5:
        event, number = page.fresh(_AGREEMENTS), rng.choice((3, 4, 5))
        told = tell("in {y} , we agreed to {event} , for which $ {b} {scale} will be paid in {count} equal annual "
                    "installments .", page.figure(max(3, value.number * 0.05), value.number * 0.5, decimals),
                    event=event, count=_WORDS[number])  # fmt: skip
        page.ask("yearly payment", **row, b=told, event=event, n=number)
    else:  # a figure of the same name that nobody asks for
        tell("in the {quarter} quarter of {y} alone , {x} came to $ {b} {scale} .",
             page.figure(value.number * 0.15, value.number * 0.35, decimals),
             quarter=rng.choice(("first", "second", "third", "fourth")))  # fmt: skip


def _tell_trend(page: _Page, series: _Series, years: Sequence[str]) -> None:
    """Tell the rounded growth of a row: a distraction, since questions want it exact."""
    if len(years) < 2:
        return
    y0, y1 = _two(page.rng, years)
    a, b = series.values.get(y0), series.values.get(y1)
    if a is None or b is None or a.number <= 0 or b.number <= 0 or a.text.endswith("%"):
        return
    change = round(100 * (b.number / a.number - 1))
    if 0 < abs(change) < 100:
        page.say("{x} {verb} approximately {r} from {y0} to {y1} , primarily due to {reason} .",
                 {"r": f"{abs(change)}%"}, x=series.name, verb="increased" if change > 0 else "decreased",
                 y0=y0, y1=y1, reason=page.rng.choice(_REASONS))  # fmt: skip


def _finish_prose(page: _Page) -> None:
    """Add topics and notes that have nothing to do with the table."""
    names = " ".join(row[0] for row in page.table)
    topics = [topic for topic in _TOPICS if topic[0].split()[0] not in names]
    for topic in page.rng.sample(topics, page.rng.choice((1, 2, 2))):
        _tell_topic(page, *topic)
    for _ in range(page.rng.choice((1, 2, 2))):
        about = page.fresh([note.about for note in NOTES])
        _tell_note(page, page.rng.choice([note for note in NOTES if note.about == about]))


# --- tables of amounts by year --------------------------------------------------------------------------------------


class Sheet(NamedTuple):
    """A table whose rows are amounts and whose columns are years, or a single column of amounts.

    A row is ``(name, effect, low, high)``, with the range as a share of the sheet's size. Effects: ``+`` added, ``-``
    deducted and shown without a sign, ``n`` deducted and shown negative, ``~`` either sign, ``" "`` of no effect, ``=``
    the running total, ``%`` the percentage of one row (in place of ``low``) in another (of ``high``). Of the rows with
    a ``?`` after their effect a page has some. ``kind`` is ``money``, ``percent``, or the unit of a count.
    """

    intros: tuple[str, ...]
    rows: tuple[tuple, ...]
    kind: str = "money"
    whole: str = ""  # the total that the rows above it are parts of
    margins: tuple[tuple[str, str, str], ...] = ()  # name, numerator row, denominator row
    rolls: str = ""  # what is carried forward from column to column; first row and total are its balances
    columns: tuple[int, ...] = (2, 3, 3, 3, 5)  # how many years, to choose from


_ALIASES = {
    "selling general and administrative expenses": "sg&a expenses", "cost of goods sold": "cost of sales",
    "net sales": "sales", "raw materials and supplies": "raw materials", "buildings and improvements": "buildings",
    "accumulated other charges": "other charges", "amortization of actuarial losses": "actuarial losses amortization",
    "cash provided by operating activities": "operating cash flow", "salaries and benefits": "salaries",
}  # fmt: skip

_SHEETS = {
    "income statement": Sheet(
        ("the following table presents our consolidated results of operations :",
         "selected data from the statements of income are as follows :",
         "results of operations for the years ended december 31 were :"),
        (("net sales", "+", 1.0, 1.0), ("cost of goods sold", "-", 0.45, 0.6), ("gross profit", "=", 0, 0),
         ("selling general and administrative expenses", "-", 0.1, 0.18),
         ("research and development", "-?", 0.02, 0.05), ("restructuring charges", "-?", 0.004, 0.02),
         ("depreciation", "-?", 0.02, 0.04), ("operating income", "=", 0, 0),
         ("interest expense", "-", 0.01, 0.03), ("income taxes", "-", 0.02, 0.05), ("net income", "=", 0, 0)),
        margins=(("gross margin", "gross profit", "net sales"), ("operating margin", "operating income", "net sales"),
                 ("net profit margin", "net income", "net sales")),
    ),
    "segment revenue": Sheet(
        ("the following table provides revenue by segment :", "revenue by line of business was as follows :",
         "our revenue by segment for the years ended december 31 was :"),
        (("agricultural products", "+?", 0.08, 0.3), ("automotive", "+?", 0.08, 0.3), ("chemicals", "+?", 0.08, 0.3),
         ("energy", "+?", 0.08, 0.3), ("industrial products", "+?", 0.08, 0.3), ("healthcare", "+?", 0.08, 0.3),
         ("consumer brands", "+?", 0.08, 0.3), ("aerospace", "+?", 0.08, 0.3), ("total segment revenue", "=", 0, 0)),
        whole="total segment revenue",
    ),
    "operating expenses": Sheet(
        ("operating expenses consist of the following :", "the table below shows our operating expenses :",
         "a summary of operating expenses follows :"),
        (("salaries and benefits", "+?", 0.2, 0.4), ("fuel", "+?", 0.1, 0.3), ("purchased services", "+?", 0.08, 0.2),
         ("depreciation and amortization", "+?", 0.06, 0.15), ("equipment rents", "+?", 0.04, 0.1),
         ("occupancy costs", "+?", 0.03, 0.08), ("marketing", "+?", 0.02, 0.08), ("other costs", "+?", 0.02, 0.06),
         ("total operating expenses", "=", 0, 0)),
        whole="total operating expenses",
    ),
    "inventories": Sheet(
        ("inventories at december 31 were as follows :", "the major classes of inventories are :",
         "inventories consisted of the following at year end :"),
        (("raw materials and supplies", "+", 0.15, 0.4), ("work in process", "+", 0.1, 0.3),
         ("finished goods", "+", 0.2, 0.5), ("spare parts", "+?", 0.02, 0.08),
         ("reserve for obsolescence", "n?", 0.01, 0.05), ("total inventories", "=", 0, 0)),
        whole="total inventories", columns=(2, 2, 3),
    ),
    "property": Sheet(
        ("property and equipment at december 31 consisted of the following :",
         "the components of property and equipment are as follows :", "a summary of property and equipment follows :"),
        (("land", "+", 0.04, 0.1), ("buildings and improvements", "+", 0.2, 0.4),
         ("machinery and equipment", "+", 0.4, 0.7), ("construction in progress", "+", 0.03, 0.1),
         ("total property at cost", "=", 0, 0),
         ("accumulated depreciation", "n", 0.3, 0.5), ("property and equipment net", "=", 0, 0)),
        whole="total property at cost", columns=(2, 2, 3),
    ),
    "accrued liabilities": Sheet(
        ("accrued liabilities at year end are comprised of the following :",
         "the table below details accrued liabilities :", "accrued liabilities as of december 31 consisted of :"),
        (("accrued wages and vacation", "+?", 0.1, 0.3), ("customer deposits", "+?", 0.1, 0.3),
         ("taxes payable", "+?", 0.1, 0.3), ("interest payable", "+?", 0.05, 0.2),
         ("dividends payable", "+?", 0.05, 0.2), ("casualty costs", "+?", 0.05, 0.2),
         ("deferred income", "+?", 0.05, 0.2), ("total accrued liabilities", "=", 0, 0)),
        whole="total accrued liabilities", columns=(2, 2, 3),
    ),
    "cash flows": Sheet(
        ("the following table summarizes our cash flows :", "cash flows for the years ended december 31 were :",
         "a summary of sources and uses of cash follows :"),
        (("cash provided by operating activities", "+", 0.8, 1.2), ("cash used in investing activities", "n", 0.3, 0.7),
         ("cash used in financing activities", "n", 0.2, 0.6), ("effect of exchange rates on cash", "~", 0.01, 0.04),
         ("net change in cash", "=", 0, 0), ("dividends paid", " ", 0.1, 0.2), ("free cash flow", " ", 0.2, 0.5)),
    ),
    "tax reconciliation": Sheet(
        ("the statutory rate is reconciled to our effective tax rate as follows :",
         "the items that explain our effective tax rate are :", "a reconciliation of the income tax rate follows :"),
        (("federal statutory rate", "+", 0.35, 0.35), ("state income taxes", "+", 0.011, 0.045),
         ("foreign rate differential", "n", 0.02, 0.09), ("research credits", "n?", 0.004, 0.02),
         ("domestic production deduction", "n?", 0.006, 0.02), ("valuation allowances", "~?", 0.003, 0.03),
         ("other items", "~", 0.001, 0.02), ("effective tax rate", "=", 0, 0)),
        kind="percent",
    ),
    "pension cost": Sheet(
        ("the components of net pension cost are as follows :", "net periodic pension cost included the following :",
         "pension cost for the years ended december 31 was :"),
        (("service cost", "+", 0.4, 0.7), ("interest cost", "+", 0.5, 0.9),
         ("expected return on plan assets", "n", 0.3, 0.6),
         ("amortization of actuarial losses", "+", 0.08, 0.3), ("settlement losses", "+?", 0.02, 0.1),
         ("net pension cost", "=", 0, 0)),
    ),
    "segment results": Sheet(
        ("operating results of the segment included the following :", "the segment 2019s results were as follows :",
         "summary operating results for the segment are :"),
        (("net sales", " ", 1.0, 1.0), ("operating profit", " ", 0.08, 0.16),
         ("operating margin", "%", "operating profit", "net sales"), ("backlog at year-end", " ", 1.2, 2.4),
         ("capital expenditures", " ", 0.03, 0.07)),
        margins=(("ratio of capital expenditures to net sales", "capital expenditures", "net sales"),),
    ),
    "unrecognized tax benefits": Sheet(
        ("a reconciliation of unrecognized tax benefits is as follows :",
         "the beginning and ending amounts of unrecognized tax benefits are reconciled below :",
         "changes in unrecognized tax benefits were :"),
        (("balance at january 1", "+", 0.8, 1.2), ("additions for current year tax positions", "+", 0.08, 0.25),
         ("additions for prior year tax positions", "+?", 0.02, 0.1),
         ("settlements with taxing authorities", "n", 0.03, 0.15),
         ("lapse of statute of limitations", "n?", 0.01, 0.06), ("balance at december 31", "=", 0, 0)),
        rolls="unrecognized tax benefits", columns=(2, 3, 3),
    ),
    "warranty reserve": Sheet(
        ("changes in the warranty reserve were as follows :", "the activity in the warranty reserve is shown below :",
         "a roll-forward of the warranty reserve follows :"),
        (("balance at beginning of year", "+", 0.7, 1.2), ("warranty provisions", "+", 0.3, 0.6),
         ("warranty payments", "n", 0.2, 0.6), ("changes in estimates", "~", 0.02, 0.1),
         ("balance at end of year", "=", 0, 0)),
        rolls="warranty reserve", columns=(2, 3, 3),
    ),
    "option assumptions": Sheet(
        ("the fair value of options was estimated with the following weighted average assumptions :",
         "assumptions used to value stock options were :", "the option pricing model used these assumptions :"),
        (("risk-free interest rate", " ", 0.011, 0.048), ("expected volatility", " ", 0.21, 0.49),
         ("expected dividend yield", " ", 0.011, 0.039), ("expected forfeiture rate", " ", 0.02, 0.09)),
        kind="percent", columns=(3, 3, 2),
    ),
    "sales volumes": Sheet(
        ("sales volumes by product are shown below :", "the table below gives our sales volumes :",
         "volumes sold in each year were :"),
        (("gasoline", "+?", 0.2, 0.4), ("distillates", "+?", 0.15, 0.3), ("propane", "+?", 0.02, 0.08),
         ("feedstocks", "+?", 0.05, 0.15), ("heavy fuel oil", "+?", 0.02, 0.08), ("asphalt", "+?", 0.04, 0.1),
         ("total volumes", "=", 0, 0)),
        kind="thousands of barrels per day", whole="total volumes",
    ),
    "employees": Sheet(
        ("the number of employees by region at year end was :", "our employees by region are as follows :",
         "employees at december 31 were located as shown below :"),
        (("north america", "+?", 0.2, 0.5), ("latin america", "+?", 0.05, 0.2), ("western europe", "+?", 0.1, 0.3),
         ("eastern europe", "+?", 0.05, 0.2), ("middle east", "+?", 0.03, 0.1), ("asia pacific", "+?", 0.1, 0.3),
         ("total employees", "=", 0, 0)),
        kind="number of employees", whole="total employees", columns=(2, 3),
    ),
    "purchase price": Sheet(
        ("the purchase price was allocated as follows :",
         "the fair values of assets acquired and liabilities assumed are :",
         "the allocation of the purchase price is summarized below :"),
        (("cash and receivables", "+", 0.05, 0.15), ("inventory", "+?", 0.05, 0.15),
         ("property and equipment", "+", 0.1, 0.3), ("customer lists", "+?", 0.1, 0.2),
         ("technology", "+?", 0.05, 0.2), ("trademarks", "+?", 0.05, 0.2),
         ("goodwill", "+", 0.2, 0.5), ("total assets acquired", "=", 0, 0), ("current liabilities", "n", 0.03, 0.1),
         ("deferred tax liabilities", "n", 0.03, 0.1), ("net assets acquired", "=", 0, 0)),
        whole="total assets acquired", columns=(1,),
    ),
    "net revenue bridge": Sheet(
        ("following is an analysis of the change in net revenue comparing {y1} to {y0} :",
         "the change in net revenue from {y0} to {y1} is explained below :",
         "net revenue of {y1} compares to that of {y0} as follows :"),
        (("{y0} net revenue", "+", 1.0, 1.0), ("retail electric price", "+?", 0.02, 0.08),
         ("volume and weather", "~", 0.01, 0.06),
         ("transmission revenue", "+?", 0.005, 0.03), ("fuel recovery", "n?", 0.01, 0.04),
         ("purchased power capacity", "n?", 0.01, 0.04), ("other variances", "~", 0.004, 0.02),
         ("{y1} net revenue", "=", 0, 0)),
        columns=(1,),
    ),
}  # fmt: skip

_HEADERS = {
    "million": ("( in millions )", "in millions", "millions", "( $ in millions )", "( dollars in millions )"),
    "thousand": ("( in thousands )", "in thousands", "( dollars in thousands )", "thousands"),
}


def _draw_column(
    page: _Page, rows: Sequence[tuple], size: float, shares: dict[str, float], opening: int
) -> dict[str, int]:
    """Return one column's amounts by row name, such that every total may be shown; ``opening`` replaces the first."""

    def amount(position: int, name: str, effect: str, low: float, high: float) -> int:
        if position == 0 and opening:
            return opening
        if low == high != 1.0:
            return round(size * low)  # a rate set by law, the same in every split
        if high <= 0.1 and effect in "+n" and page.rng.random() < 0.05:
            return 0  # shown as a dash
        near = size * shares[name]
        number = page.integer(max(1, round(near * 0.88)), max(2, round(near * 1.14)))
        return -number if effect == "n" or (effect == "~" and page.rng.random() < 0.5) else number

    for _ in range(20):
        column, total, start = {}, 0, 0
        for end, (name, effect, *_) in enumerate(rows):
            if effect == "=":
                for _ in range(300):
                    group = {row[0]: amount(place, *row) for place, row in enumerate(rows[start:end], start)}
                    signs = {row[0]: {"-": -1, " ": 0}.get(row[1], 1) for row in rows[start:end]}
                    new = total + sum(signs[part] * value for part, value in group.items())
                    if new and page.may_show(new):
                        break
                column |= group
                column[name] = total = new
                start = end + 1
        column |= {row[0]: amount(place, *row) for place, row in enumerate(rows[start:], start) if row[1] != "%"}
        ratios = {row[0]: round(1000 * column[row[2]] / column[row[3]]) for row in rows if row[1] == "%"}
        totals = [column[row[0]] for row in rows if row[1] == "="]
        if all(totals) and all(page.may_show(value) for value in [*totals, *ratios.values()]):
            return column | ratios
    raise _Unlucky


def _build_sheet(page: _Page, sheet: Sheet) -> None:
    rng = page.rng
    words = {"y0": str(page.year - 1), "y1": str(page.year)}
    optional = [row for row in sheet.rows if row[1].endswith("?")]
    kept = rng.sample(optional, rng.randint(min(3, len(optional)), min(5, len(optional))))
    rows = [row for row in sheet.rows if row not in optional or row in kept]
    rows = [(row[0].format(**words), row[1].rstrip("?"), *row[2:]) for row in rows]

    scale, decimals = "", 0
    if sheet.kind == "percent":
        size, decimals = 1000.0, 1
    elif sheet.kind == "money":
        scale = rng.choice(("million", "million", "million", "thousand"))
        size = 10 ** (rng.uniform(2.6, 4.3) if scale == "million" else rng.uniform(4.0, 5.6))
        if size < 2500 and rng.random() < 0.5:
            size, decimals = size * 10, 1
    else:
        size = 10 ** rng.uniform(2.8, 4.2)
    unit = f"in {scale}s" if scale else ""

    count = rng.choice(sheet.columns)
    years = [str(page.year - back) for back in range(count - 1, -1, -1)] if count > 1 else ["amount"]
    shares = {row[0]: rng.uniform(row[2], row[3]) for row in rows if row[1] not in "=%"}
    columns, opening = [], 0
    for _ in years:
        columns.append(_draw_column(page, rows, size, shares, opening))
        if sheet.kind != "percent":
            size *= rng.uniform(0.88, 1.2)
        totals = [row[0] for row in rows if row[1] == "="]
        opening = columns[-1][totals[-1]] if sheet.rolls else 0

    # The table, in the order in which it is shown.
    shown = years[::-1] if rng.random() < 0.75 else years
    if scale:
        header = rng.choice(_HEADERS[scale])
        corner, titles = (header, shown) if count > 1 else ("", [f"amount {header}"])
        if rng.random() < 0.4 and count > 1:
            corner = ""  # the unit then stands in the sentence before the table
    else:
        header = "" if sheet.kind == "percent" else f"( {sheet.kind} )"
        corner, titles = header, shown
    page.table = [[corner, *titles]]
    series: dict[str, _Series] = {}
    for place, (name, effect, *_) in enumerate(rows, start=1):
        percent = sheet.kind == "percent" or effect == "%"
        figures = {}
        for year, column in zip(years, columns, strict=True):
            text = _decimal(column[name], 1 if percent else decimals)
            figures[year] = (text.removesuffix(".0") + "%") if percent else text
        dollar = bool(scale) and not percent and (place == 1 or effect == "=")
        cells = {year: ("$ " if dollar else "") + "2014" if not float(text.rstrip("%")) else _cell(text, dollar)
                 for year, text in figures.items()}  # fmt: skip
        page.table.append([name, *(cells[year] for year in shown)])
        values = {year: _Value(text, ("table", place)) for year, text in figures.items() if float(text.rstrip("%"))}
        called = _ALIASES[name] if name in _ALIASES and rng.random() < 0.3 else name
        series[name] = _Series(called, values, "" if percent else unit, name if count > 1 else "")
    said = f" ( {header.strip('( )')} )" if header and (not corner or rng.random() < 0.5) else ""
    intro = rng.choice(sheet.intros).format(**words)
    page.intro = f"{intro.removesuffix(' :')}{said} : ."

    _ask_sheet(page, sheet, rows, series, years)
    if scale and count > 1:
        told = [row[0] for row in rows if row[1] in "+-= " and not (sheet.rolls and row[0].startswith("balance"))]
        told = rng.sample(told, min(4, len(told)))
        for name in told[: rng.choice((2, 2, 3))]:
            _tell_more(page, series[name], years, scale)
        _tell_trend(page, series[told[-1]], years)
    _finish_prose(page)


def _ask_sheet(page: _Page, sheet: Sheet, rows: list[tuple], series: dict[str, _Series], years: list[str]) -> None:
    rng = page.rng
    names = [row[0] for row in rows]
    balances = {names[0], names[-1]} if sheet.rolls else set()
    plain = [name for name in names if name not in balances]
    if len(years) > 1:
        for name in rng.sample(plain, min(4, len(plain))):
            _ask_years(page, series[name], years)
        rising = years
    else:
        rising = []
    # A total is not compared with its own parts.
    alike = [row[0] for row in rows if row[1] != "%" and not (sheet.whole and row[1] == "=") and row[0] in plain]
    if sheet.kind != "percent":
        for _ in range(2):
            one, two = rng.sample(alike, 2)
            _ask_pair(page, series[one], series[two], rng.choice(years), rising)
    else:
        one, two = rng.sample(alike, 2)
        when = rng.choice(years)
        a, b = series[one].values.get(when), series[two].values.get(when)
        if a and b and min(a.number, b.number) > 0:
            page.ask("difference", percent=True, x=one, z=two, a=a, b=b, unit="", **_at(page, when))
    if sheet.whole:
        above = names[: names.index(sheet.whole)]
        for _ in range(2):
            _ask_parts(page, [series[name] for name in above], series[sheet.whole], rng.choice(years), rising)
    for name, top, bottom in sheet.margins:
        when = rng.choice(years)
        a, b = series[top].values.get(when), series[bottom].values.get(when)
        if a and b:
            page.ask("margin", x=name, a=a, b=b, **_at(page, when))
        y0, y1 = _two(rng, years)
        values = [series[row].values.get(year) for row in (top, bottom) for year in (y0, y1)]
        if None not in values:
            page.ask("margin gap", x=name, **dict(zip("abcd", values, strict=True)), y0=y0, y1=y1)
    if sheet.rolls:
        for year in years:
            first, last = (series[name].values.get(year) for name in (names[0], names[-1]))
            if first and last and first.number > 0 and last.number > 0:
                roll = {"x": sheet.rolls, "a": first, "b": last, "y1": year, "unit": series[names[0]].unit}
                page.ask("roll growth", **roll)
                page.ask("roll change", **roll)
        _ask_years(page, series[names[-1]]._replace(name=f"{sheet.rolls} balance at december 31", row=""), years)
    if names[-1].endswith(" net revenue"):
        a, b = (series[name].values["amount"] for name in (names[0], names[-1]))
        change = {"x": "net revenue", "a": a, "b": b, "y0": names[0][:4], "y1": names[-1][:4]}
        page.ask("change", **change, unit=series[names[0]].unit)
        page.ask("growth", **change)
        effects = [(name, series[name].values["amount"]) for name in names[1:-1] if series[name].values]
        effects = [(name, value) for name, value in effects if value.number * (b.number - a.number) > 0]
        if effects:
            name, value = rng.choice(effects)
            page.ask("bridge share", **change, z=name, c=value)


# --- tables of other shapes -----------------------------------------------------------------------------------------


class Schedule(NamedTuple):
    """Payments by year: what they are called, in one or two columns, and whether a total ends the table."""

    intros: tuple[str, ...]
    names: tuple[str, ...]  # of the columns, as questions call them
    titles: tuple[str, ...]
    whole: str  # of the first column
    total: bool = True


_SCHEDULES = {
    "debt maturities": Schedule(
        ("maturities of long-term debt for the next five years are as follows :",
         "long-term debt outstanding at december 31 , {y} matures as follows :",
         "the annual maturities of long-term debt are :"),
        ("long-term debt maturities",), ("amount",), "total long-term debt maturities",
    ),
    "lease commitments": Schedule(
        ("future minimum lease payments at december 31 , {y} were as follows :",
         "minimum rentals under non-cancelable leases are payable as follows :",
         "our commitments under leases with terms of more than one year are :"),
        ("operating lease payments", "capital lease payments"), ("operating leases", "capital leases"),
        "total future minimum operating lease payments",
    ),
    "amortization schedule": Schedule(
        ("estimated amortization expense of intangible assets for the next five years is :",
         "we expect amortization expense as follows :",
         "the future amortization of intangible assets is estimated below :"),
        ("estimated amortization expense",), ("amortization expense",), "total estimated amortization expense", False,
    ),
    "purchase commitments": Schedule(
        ("minimum payments under purchase contracts at december 31 , {y} were :",
         "we have commitments under supply contracts that are payable as follows :",
         "payments required by purchase contracts are :"),
        ("purchase contract payments", "transportation contract payments"),
        ("purchase contracts", "transportation contracts"),
        "total purchase contract payments",
    ),
}  # fmt: skip


def _build_schedule(page: _Page, schedule: Schedule) -> None:
    rng = page.rng
    scale = rng.choice(("million", "million", "thousand"))
    size = 10 ** (rng.uniform(1.5, 3.4) if scale == "million" else rng.uniform(3.3, 5.2))
    decimals = 1 if scale == "million" and size < 400 and rng.random() < 0.4 else 0
    size *= 10**decimals
    unit = f"in {scale}s"
    years = [str(page.year + ahead) for ahead in range(1, 6)]
    keys = [*years, "thereafter", "total"] if schedule.total else years
    titles = schedule.titles[: rng.choice((1, 2))]
    amounts: list[list[int]] = []
    for share in (1.0, 0.4)[: len(titles)]:
        ranges = [(round(size * share * 0.3) + 2, round(size * share * 1.5) + 3)] * len(years)
        if schedule.total:
            column = page.integers([*ranges, (round(size * share) + 2, round(size * share * 5) + 5)])
            amounts.append([*column, sum(column)])
        else:
            amounts.append([page.integer(*ends) for ends in ranges])
    unit_title = rng.choice(_HEADERS[scale])
    heading = rng.choice(("", unit_title, "year ending december 31 ,", "years"))
    plain = heading == unit_title or len(titles) > 1
    page.table = [[heading, *(titles if plain else [f"{titles[0]} {unit_title}"])]]
    labels = [*years, rng.choice(("thereafter", "later years")), rng.choice(("total", schedule.whole))]
    columns: list[dict[str, _Value]] = [{} for _ in titles]
    for place, key in enumerate(keys, start=1):
        texts = [_decimal(column[place - 1], decimals) for column in amounts]
        page.table.append([labels[place - 1], *(_cell(text, place == 1 or key == "total") for text in texts)])
        for values, text in zip(columns, texts, strict=True):
            values[key] = _Value(text, ("table", place))
    page.intro = rng.choice(schedule.intros).format(y=page.year).removesuffix(" :")
    page.intro += f" ( {unit} ) : ." if plain else " : ."

    for values, name in zip(columns, schedule.names, strict=False):
        _ask_years(page, _Series(name, values, unit), years)
        due = {"x": name, "y": page.year, "unit": unit, "whole": schedule.whole.replace(schedule.names[0], name)}
        a, b, c, d = (values[year] for year in years[:4])
        due |= {"a": a, "b": b, "c": c, "d": d, "y0": years[0]}
        page.ask("due within 24 months", **due, y1=years[1])
        page.ask("due within 36 months", **due, y1=years[2])
        if schedule.total:
            due["t"] = values["total"]
            page.ask("share within 24 months", **due, y1=years[1])
            page.ask("share within 36 months", **due, y1=years[2])
            page.ask("share within 48 months", **due, y1=years[3])
            for year in rng.sample(years, 2):
                page.ask("due in a year", **due | {"a": values[year], "b": values["total"], "y0": year})
            page.ask("due later", **due | {"a": values["thereafter"], "b": values["total"], "y1": years[-1]})
    if len(columns) == 2:
        one, two = (_Series(name, values, unit) for values, name in zip(columns, schedule.names, strict=True))
        _ask_pair(page, one, two, rng.choice(years), years)
    _finish_prose(page)


def _build_obligations(page: _Page) -> None:
    """Contractual obligations by the time they are due: totals to the left and at the foot."""
    rng = page.rng
    pool = ("long-term debt", "interest on debt", "operating leases", "purchase obligations", "pension contributions",
            "capital leases", "other liabilities")  # fmt: skip
    names = rng.sample(pool, rng.randint(3, 5))
    spans = ["less than 1 year", "1-3 years", "3-5 years", "more than 5 years"]
    size = 10 ** rng.uniform(1.7, 3.2)

    cell = (round(size * 0.2), round(size * 2))
    rows = []
    for _ in names[:-1]:
        row = page.integers([cell] * len(spans))
        rows.append([sum(row), *row])
    sums = [sum(column) for column in zip(*rows, strict=True)]
    for _ in range(500):  # the totals of the last row are tried one by one: five at once would rarely do
        last: list[int] = []
        for before in sums[1:]:
            last.append(next((n for n in (page.integer(*cell) for _ in range(50)) if page.may_show(before + n)), 0))
        if all(last) and page.may_show(sum(last)) and page.may_show(sums[0] + sum(last)):
            break
    else:
        raise _Unlucky
    rows.append([sum(last), *last])
    rows.append([sum(column) for column in zip(*rows, strict=True)])
    whole = rng.choice(("total contractual obligations", "total obligations", "total commitments"))
    heading = rng.choice(("( in millions )", "contractual obligations", "( $ in millions )", ""))
    page.table = [[heading, "total", *spans]]
    series = []
    for place, (name, numbers) in enumerate(zip([*names, whole], rows, strict=True), start=1):
        texts = [str(number) for number in numbers]
        page.table.append([name, *(_cell(text, place in (1, len(rows))) for text in texts)])
        values = {span: _Value(text, ("table", place)) for span, text in zip(["total", *spans], texts, strict=True)}
        series.append(_Series(name, values, "in millions"))
    page.intro = rng.choice((
        "our contractual obligations at december 31 , {y} , in millions , are due as follows : .",
        "the following table shows contractual obligations by the period in which they are due ( in millions ) : .",
        "payments due by period under contractual obligations ( in millions ) : .",
    )).format(y=page.year)  # fmt: skip
    spoken = {"total": "", "less than 1 year": " due in less than 1 year", "1-3 years": " due in 1-3 years",
              "3-5 years": " due in 3-5 years", "more than 5 years": " due in more than 5 years"}  # fmt: skip
    total = series[-1]
    for span in rng.sample(sorted(spoken), 3):
        named = [one._replace(name=one.name + spoken[span]) for one in series]
        _ask_parts(page, named[:-1], named[-1], span)
        one, two = rng.sample(named[:-1], 2)
        _ask_pair(page, one, two, span)
    for one in rng.sample(series, 2):
        parts = [one._replace(name=f"amount{spoken[span]}", values={"total": one.values[span]}) for span in spans]
        _ask_parts(page, parts, one if one is total else one._replace(name=f"total {one.name}"), "total")
    _finish_prose(page)


def _build_repurchases(page: _Page) -> None:
    rng = page.rng
    start = rng.choice((0, 3, 6, 9))
    months = [rng.choice(("{}", "{} 1 - {} 31", "{} 1 to {} 31")).format(*[month] * 2) if rng.random() < 0.2 else month
              for month in _MONTHS[start : start + 3]]  # fmt: skip
    spoken = _MONTHS[start : start + 3]
    level, price = 10 ** rng.uniform(3.6, 6.2), rng.uniform(15, 95)
    shares = page.integers([(round(level * 0.3), round(level * 1.7))] * len(months))
    prices = [page.figure(price * 0.93, price * 1.07, 2) for _ in months]
    program = [min(number, page.integer(round(number * 0.5), number)) for number in shares]
    left = page.integer(round(level * 6), round(level * 20))
    remaining = []
    for number in program:
        left = page.integer(round((left - number) * 0.98), left - number)
        remaining.append(left)
    page.table = [["period", "total number of shares purchased", "average price paid per share",
                   "shares purchased as part of announced programs", "shares that may yet be purchased"]]  # fmt: skip
    for place in range(3):
        counts = (str(column[place]) for column in (shares, program, remaining))
        page.table.append([months[place], next(counts), f"$ {prices[place]}", *counts])
    page.table.append(["total", str(sum(shares)), "", "", ""])
    page.intro = rng.choice((
        "purchases of our common stock during the quarter were as follows : .",
        "the following table presents share repurchases for each month of the quarter : .",
        "the table below shows the shares repurchased by the company in the quarter : .",
    ))  # fmt: skip

    def values(texts: Sequence[object]) -> list[_Value]:
        return [_Value(str(text), ("table", place)) for place, text in enumerate(texts, start=1)]

    bought, paid, left_over = values(shares), values(prices), values(remaining)
    total = _Value(str(sum(shares)), ("table", 4))
    whole = _Series("total shares purchased", {"": total}, "")
    parts = [_Series(f"shares purchased in {spoken[place]}", {"": bought[place]}, "") for place in range(3)]
    _ask_parts(page, parts, whole, "")
    _ask_pair(page, *rng.sample(parts, 2), "")
    costs = [_Series(f"average price paid in {spoken[place]}", {"": paid[place]}, "") for place in range(3)]
    _ask_pair(page, *rng.sample(costs, 2), "")
    first, second = sorted(rng.sample(range(3), 2))
    for name, column in (("average price paid per share", paid), ("number of shares purchased", bought)):
        a, b = column[first], column[second]
        change = {"x": name, "a": a, "b": b, "y0": spoken[first], "y1": spoken[second], "unit": ""}
        page.ask("growth", **change)
        page.ask("change", **change)
        page.ask("average of two", **change)
    for place in rng.sample(range(3), 2):
        page.ask("spent", a=bought[place], b=paid[place], x=spoken[place])
        page.ask("spent in millions", a=bought[place], b=paid[place], x=spoken[place])
    page.ask("remaining cost", a=left_over[first], b=paid[first], x=spoken[first])
    one, two = rng.sample(range(3), 2)
    two_months = {"a": bought[one], "b": paid[one], "c": bought[two], "d": paid[two]}
    two_months |= {"x": spoken[one], "z": spoken[two]}
    page.ask("spent more", **two_months)
    page.ask("spent more in percent", **two_months)
    _finish_prose(page)


def _build_performance(page: _Page) -> None:
    rng = page.rng
    years = [str(page.year - back) for back in range(5, -1, -1)]
    brief = page.company.split()[0]
    pool = ("s&p 500 index", "peer group", "nasdaq composite index", "dow jones industrial average",
            "s&p industrials index")  # fmt: skip
    names = [rng.choice((page.company, f"{brief} common stock", brief)), *rng.sample(pool, rng.choice((2, 2, 3)))]
    labels = rng.choice(({year: year for year in years}, {year: f"12/31/{year}" for year in years},
                         {year: f"december 31 {year}" for year in years}))  # fmt: skip
    page.table = [[rng.choice(("", "company/index", "index")), *labels.values()]]
    series = []
    decimals = rng.choice((2, 2, 0))
    for place, name in enumerate(names, start=1):
        level, texts = 100.0, []
        for _ in years[1:]:
            level = min(max(level * rng.uniform(0.75, 1.4), 25), 480)
            texts.append(page.figure(level * 0.97, level * 1.05, decimals))
        base = "100.00" if decimals else "100"
        page.table.append([name, *(_cell(text, place == 1) for text in (base, *texts))])
        # The first year is left out: programs write it as const_100.
        values = {year: _Value(text, ("table", place)) for year, text in zip(years[1:], texts, strict=True)}
        series.append(_Series(name, values, ""))
    page.intro = rng.choice((
        "the graph compares the cumulative total return of our common stock with that of the indices , assuming $ 100 "
        "was invested on december 31 , {y} and dividends were reinvested : .",
        "comparison of five year cumulative total return of $ 100 invested on december 31 , {y} : .",
        "the following shows what $ 100 invested at the end of {y} would have become , including dividends : .",
    )).format(y=years[0])  # fmt: skip
    for one in rng.sample(series, 2):
        for year in (years[-1], rng.choice(years[1:-1])):
            page.ask("return", x=one.name, a=one.values[year], y0=years[0], y1=year)
            page.ask("return in dollars", x=one.name, a=one.values[year], y0=years[0], y1=year)
        y0, y1 = _two(rng, years[1:])
        a, b = one.values[y0], one.values[y1]
        page.ask("growth", x=f"value of {one.name}", a=a, b=b, y0=y0, y1=y1)
    one, two = rng.sample(series, 2)
    year = rng.choice((years[-1], years[-1], rng.choice(years[2:])))
    both = {"x": one.name, "z": two.name, "a": one.values[year], "b": two.values[year], "y0": years[0], "y1": year}
    page.ask("return gap", **both)
    page.ask("outperformed", **both)
    page.ask("ratio", **both, **_at(page, year))
    _finish_prose(page)


def _build_prices(page: _Page) -> None:
    """Stock prices and dividends by quarter."""
    rng = page.rng
    quarters = ["first quarter", "second quarter", "third quarter", "fourth quarter"]
    price = rng.uniform(14, 88)
    page.table = [[rng.choice(("", "quarter", str(page.year))), "high", "low", "dividends declared"]]
    highs, lows, paid = [], [], []
    dividend = rng.uniform(0.1, 0.7)  # below 1.00 all year: numbers of two digits need no owner
    for place, quarter in enumerate(quarters, start=1):
        price *= rng.uniform(0.85, 1.2)
        high, low = page.figure(price * 1.02, price * 1.15, 2), page.figure(price * 0.82, price * 0.97, 2)
        dividend *= rng.choice((1, 1, 1.1))
        given = f"{dividend:.2f}"
        page.table.append([quarter, *(_cell(text, place == 1) for text in (high, low, given))])
        for column, text in ((highs, high), (lows, low), (paid, given)):
            column.append(_Value(text, ("table", place)))
    page.intro = rng.choice((
        "the table sets forth high and low sale prices of our common stock and dividends declared per share in {y} : .",
        "quarterly high and low stock prices and dividends for {y} were as follows : .",
        "market price of and dividends on our common stock by quarter of {y} : .",
    )).format(y=page.year)  # fmt: skip
    for place in rng.sample(range(4), 2):
        page.ask("price range", x=quarters[place], a=highs[place], b=lows[place])
        page.ask("price average", x=quarters[place], a=highs[place], b=lows[place])
    for name, column in (("high", highs), ("low", lows)):
        first, second = sorted(rng.sample(range(4), 2))
        page.ask("price change", z=name, x=quarters[first], w=quarters[second], a=column[first], b=column[second])
    rows = dict(zip("abcd", paid, strict=True))
    page.ask(Family("add({a}, {b}), add(#0, {c}), add(#1, {d})", False, (
        "what were total dividends declared per share in {y}?",
        "what is the sum of the dividends declared in the four quarters of {y}?",
        "how much was declared in dividends per share for all quarters of {y}?")), y=page.year, **rows)  # fmt: skip
    page.ask(Family("add({a}, {b})", False, (
        "what were dividends declared per share in the first half of {y}?",
        "what is the sum of the dividends declared in the first quarter and the second quarter of {y}?",
        "how much was declared in dividends per share for the first two quarters?")), y=page.year, **rows)  # fmt: skip
    _ask_pair(page, *(
        _Series(f"high price in the {quarters[place]}", {"": highs[place]}, "") for place in rng.sample(range(4), 2)
    ), "")  # fmt: skip
    page.about.add("dividends")
    _finish_prose(page)


def _build_awards(page: _Page) -> None:
    """Activity of restricted stock units: numbers and fair values."""
    rng = page.rng
    level, price = 10 ** rng.uniform(3.0, 6.2), rng.uniform(15, 90)
    kind = rng.choice(("restricted stock units", "performance shares", "restricted shares", "deferred share units"))
    for _ in range(200):
        start = page.integer(round(level), round(level * 2))
        granted = page.integer(round(level * 0.3), round(level))
        vested = page.integer(round(level * 0.3), round(level * 0.9))
        forfeited = page.integer(round(level * 0.02), round(level * 0.2))
        end = start + granted - vested - forfeited
        if end > 0 and page.may_show(end):
            break
    else:
        raise _Unlucky
    balances = [f"nonvested at december 31 {year}" for year in (page.year - 1, page.year)]
    labels = [balances[0], "granted", "vested", "forfeited", balances[1]]
    numbers = [start, granted, -vested, -forfeited, end]
    fair = [page.figure(price * 0.8, price * 1.2, 2) for _ in numbers]
    page.table = [["", f"number of {kind}", "weighted average grant date fair value"]]
    for place, (label, number, value) in enumerate(zip(labels, numbers, fair, strict=True)):
        page.table.append([label, _cell(str(number)), _cell(value, place in (0, 4))])
    page.intro = rng.choice((
        "the following table summarizes the activity of {kind} during {y} : .",
        "activity in {kind} for the year ended december 31 , {y} was : .",
        "a summary of nonvested {kind} and changes in {y} follows : .",
    )).format(kind=kind, y=page.year)  # fmt: skip
    counts = [_Value(str(abs(number)), ("table", place)) for place, number in enumerate(numbers, start=1)]
    values = [_Value(text, ("table", place)) for place, text in enumerate(fair, start=1)]
    for place, word in ((1, "granted"), (2, "vested"), (3, "forfeited")):
        page.ask("award value", x=f"{kind} {word}", a=counts[place], b=values[place], y=page.year)
    years = {"y0": str(page.year - 1), "y1": str(page.year), "unit": ""}
    for name, column in ((f"nonvested {kind}", counts), (f"weighted average fair value of nonvested {kind}", values)):
        change = {"x": name, "a": column[0], "b": column[4], **years}
        page.ask("change", **change)
        page.ask("growth", **change)
        page.ask("average of two", **change)
    series = [_Series(f"{kind} {labels[place]}", {"": counts[place]}, "") for place in (1, 2, 3)]
    _ask_pair(page, *rng.sample(series, 2), "")
    opening = _Series(f"{kind} nonvested at the start of {page.year}", {"": counts[0]}, "")
    _ask_parts(page, series[1:], opening, "")
    _finish_prose(page)


def _sheet_builder(sheet: Sheet) -> Callable[[_Page], None]:
    return lambda page: _build_sheet(page, sheet)


def _schedule_builder(schedule: Schedule) -> Callable[[_Page], None]:
    return lambda page: _build_schedule(page, schedule)


PAGE_KINDS: dict[str, Callable[[_Page], None]] = {
    **{name: _sheet_builder(sheet) for name, sheet in _SHEETS.items()},
    **{name: _schedule_builder(schedule) for name, schedule in _SCHEDULES.items()},
    "contractual obligations": _build_obligations,
    "share repurchases": _build_repurchases,
    "stock performance": _build_performance,
    "stock prices": _build_prices,
    "stock awards": _build_awards,
}


# --- the set --------------------------------------------------------------------------------------------------------


def generate(split: str, count: int | None = None, seed: int = 0) -> list[dict]:
    """Return ``count`` examples (by default ``DEFAULT_COUNTS``) of a split in FinQA's official schema.

    Each is ``{id, filename, pre_text, post_text, table, qa: {question, program, exe_ans, answer, gold_inds}}``; one to
    four in a row ask about the same page. The same arguments give the same examples on every machine, and fewer
    examples are the first ones of more. Two seeds give different pages of the same companies and number pools.

    Raises ValueError for a split that is none of ``DEFAULT_COUNTS`` and for a negative count.
    """
    if split not in DEFAULT_COUNTS:
        raise ValueError(f"unknown split {split!r}: expected one of {', '.join(DEFAULT_COUNTS)}")
    count = DEFAULT_COUNTS[split] if count is None else count
    if count < 0:
        raise ValueError(f"count is {count}: it cannot be negative")
    examples: list[dict] = []
    filenames: set[str] = set()
    programs: Counter[str] = Counter()
    evidence: Counter[str] = Counter()
    number = 0
    while len(examples) < count:
        # random.Random hashes a string with SHA-512: the same everywhere, unlike hash().
        rng = random.Random(f"{seed}/{split}/{number}")
        number += 1
        page = _Page(rng, split)
        if page.filename in filenames:
            continue
        kind = rng.choice(sorted(PAGE_KINDS) + ["stock performance"] * 2)  # as common in FinQA as three others
        page.about.add(kind)
        try:
            PAGE_KINDS[kind](page)
        except _Unlucky:
            continue
        filenames.add(page.filename)
        pre_text, post_text, places = page.arrange()
        weights = list(QUESTIONS_PER_PAGE.values())
        for order in range(1, rng.choices(list(QUESTIONS_PER_PAGE), weights)[0] + 1):
            ask = _next_ask(page, programs, evidence)
            page.asks = [one for one in page.asks if one.program != ask.program and one.question != ask.question]
            examples.append(_example(page, ask, order, pre_text, post_text, places))
    return examples[:count]


def _next_ask(page: _Page, programs: Counter[str], evidence: Counter[str]) -> _Ask:
    """Return a question whose kind of program, then kind of evidence, is furthest behind its share; count both.

    So the mix comes out as wanted although most kinds of page allow only some kinds of program.
    """

    def lag(shares: dict[str, float], seen: Counter[str], kind: str) -> float:
        return shares[kind] / sum(shares.values()) * (seen.total() + 1) - seen[kind]

    kinds = sorted({ask.kind for ask in page.asks})
    kind = max(kinds, key=lambda kind: lag(PROGRAM_SHARES, programs, kind))
    asks = [ask for ask in page.asks if ask.kind == kind]
    sources = sorted({ask.evidence for ask in asks})
    source = max(sources, key=lambda source: lag(EVIDENCE_SHARES, evidence, source))
    programs[kind] += 1
    evidence[source] += 1
    return page.rng.choice([ask for ask in asks if ask.evidence == source])


def _example(
    page: _Page, ask: _Ask, order: int, pre_text: list[str], post_text: list[str], places: dict[int, int]
) -> dict:
    gold = {}
    for place, index in ask.sources:
        if place == "table":
            gold[f"table_{index}"] = _row_text(page.table[0], page.table[index])
        else:
            gold[f"text_{places[index]}"] = page.sentences[index]
    execution = execute(tokenize(ask.program), page.table)
    assert not execution.invalid, f"{ask.program} does not execute on {page.filename}"
    return {
        "pre_text": [*pre_text],  # copies: examples of a page must not change with one another
        "post_text": [*post_text],
        "filename": page.filename,
        "table": [[*row] for row in page.table],
        "id": f"{page.filename}-{order}",
        "qa": {
            "question": ask.question,
            "program": ask.program,
            "gold_inds": gold,
            "exe_ans": execution.result,
            "answer": _answer(execution.result, ask.percent),
        },
    }


def _row_text(header: list[str], row: list[str]) -> str:
    """Return a table row as FinQA's evidence writes it: ``the sales of 2012 is $ 5829 ; the sales of 2011 is ...``."""
    cells = " ".join(f"the {row[0]} of {title} is {cell} ;" for title, cell in zip(header[1:], row[1:], strict=True))
    return " ".join(f"{header[0]} {cells}".split())


def _answer(result: float | str, percent: bool) -> str:
    """Return ``result`` as annotators wrote it: ``1.6%``, ``380``, ``12.35``, ``yes``."""
    if isinstance(result, str):
        return result
    if percent:
        return f"{100 * result:.1f}%".replace("-0.0%", "0.0%")
    return str(int(result)) if result == int(result) else f"{result:.2f}".rstrip("0").rstrip(".")
