"""A synthetic FinQA: report pages, questions, programs and gold evidence in the official schema, made from a seed.

It stands in where neither the data nor a network is there. A page is a table of one of 21 kinds (``PAGE_KINDS``)
between sentences: some carry figures that questions ask for, some carry figures that only distract, most carry none.
Companies, figures and sentences are invented; what is copied from FinQA is its look (lower case, spaced punctuation,
``-14 ( 14 )``, ``12.4% ( 12.4 % )``, ``2014`` and ``2019s`` where a dash and an apostrophe were) and its mix of
programs.

It is much easier than FinQA, on purpose: a model of 135 million parameters has to learn it from some 1,500 examples
in minutes on a CPU, or there is no accuracy that compression could lose. What is left of the difficulty is choosing
row, column and sentence among others of their kind. What is easier: tables have few rows and mostly two years, the
later first; figures are short; a question mostly names row and year as the table does (``LOOSE`` says how rarely it is
worded freely); a sentence mostly has one figure, and those without stand in long paragraphs, so that a budget of 80
tokens holds nearly all that a program needs. What is left out is FinQA's noise: wrong operands, averages divided by
the wrong constant, ``multiply(#1, const_100)`` at whim. The order of operands follows from the wording. Scores on this
set say little about scores on FinQA.

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
    "divide": 32.2, "subtract": 15.9, "add": 3.0, "multiply": 3.3, "greater": 1.0,
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
PAGE_WORDS = (160, 280)  # of prose and table; shorter than FinQA's, whose median is 690, so that training is quick

# How hard it is to find an operand. Raise LOOSE and lower the others for a set nearer to FinQA.
LOOSE = 0.12  # of the questions are worded freely: the last wording of a family
ALIASED = 0.2  # of the rows that have another name are called by it
LATER_FIRST = 0.9  # of the tables show the later year first
LATEST = 0.75  # of the questions about one year of a table with several are about the latest
ONE_FIGURE = 0.85  # of the texts that give a figure for several years give each in a sentence of its own
DECIMALS = 0.08  # of the tables of amounts have a decimal

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
    """One kind of question: its program, whether the answer is a percentage, and ways to ask it, without the ``?``.

    Fields in braces are filled from the page; ``{when}`` may become empty. The last wording is the free one.
    """

    program: str
    percent: bool
    wordings: tuple[str, ...]


_GROWTH = "subtract({b}, {a}), divide(#0, {a})"
_SHARE = "divide({a}, {b})"

FAMILIES = {
    # One figure in two years: a of y0, the earlier, and b of y1. Sums name p of u0 and q of u1 as the page shows them.
    "change": Family("subtract({b}, {a})", False, (
        "what was the change in {x} from {y0} to {y1}",
        "what was the net change in {x} from {y0} to {y1}",
        "how much did {x} change between {y0} and {y1}",
    )),
    "increase": Family("subtract({b}, {a})", False, (
        "what was the increase in {x} from {y0} to {y1}",
        "by how much did {x} increase from {y0} to {y1}",
        "how much higher was {x} in {y1} than in {y0}",
    )),
    "decrease": Family("subtract({a}, {b})", False, (
        "what was the decrease in {x} from {y0} to {y1}",
        "by how much did {x} decrease from {y0} to {y1}",
        "how much lower was {x} in {y1} than in {y0}",
    )),
    "growth": Family(_GROWTH, True, (
        "what was the percentage change in {x} from {y0} to {y1}",
        "what was the percent change in {x} from {y0} to {y1}",
        "what was the growth rate in {x} from {y0} to {y1}",
        "by what percentage did {x} change from {y0} to {y1}",
        "what is the growth rate in {x} for {y1} over {y0}",
    )),
    "growth from a ratio": Family("divide({b}, {a}), subtract(#0, const_1)", True, (
        "how much {higher} , in percent , was {x} in {y1} than in {y0}",
        "what percent {higher} was {x} in {y1} than in {y0}",
        "in percent , how far was {x} in {y1} from {y0}",
    )),
    "ratio of years": Family(_SHARE, False, (
        "what was the ratio of {x} in {y0} to {y1}",
        "what is the ratio of {x} in {y0} to {y1}",
        "how many times {y1} {x} was {y0} {x}",
    )),
    "average of two": Family("add({p}, {q}), divide(#0, const_2)", False, (
        "what was the average {x} for {u0} and {u1}",
        "what is the average of {x} in {u0} and {u1}",
        "for {u0} and {u1} , what was {x} on average",
    )),
    "sum of two": Family("add({p}, {q})", False, (
        "what was the total {x} for {u0} and {u1}",
        "what is the sum of {x} in {u0} and {u1}",
        "how much were {x} in {u0} and {u1} together",
    )),
    # In three years and more: a, b, c as the page shows them, from y0 to y1.
    "average of three": Family("add({a}, {b}), add(#0, {c}), divide(#1, const_3)", False, (
        "what was the average {x} for the three years {y0} to {y1}",
        "what is the average of {x} in the three years {y0} to {y1}",
        "considering the years {y0}-{y1} , what was the average {x}",
    )),
    "average of four": Family("add({a}, {b}), add(#0, {c}), add(#1, {d}), divide(#2, const_4)", False, (
        "what was the average {x} for the four years {y0} to {y1}",
        "what is the average of {x} in the four years {y0} to {y1}",
        "considering the four years {y0}-{y1} , what was the average {x}",
    )),
    "average of five": Family(
        "add({a}, {b}), add(#0, {c}), add(#1, {d}), add(#2, {e}), divide(#3, const_5)", False, (
        "what was the average {x} for the five years {y0} to {y1}",
        "what is the average of {x} in the five years {y0} to {y1}",
        "considering the five years {y0}-{y1} , what was the average {x}",
    )),
    "sum of three": Family("add({a}, {b}), add(#0, {c})", False, (
        "what was the total {x} for the three years {y0} to {y1}",
        "what is the sum of {x} in the three years {y0} to {y1}",
        "what were cumulative {x} from {y0} through {y1}",
    )),
    "sum of four": Family("add({a}, {b}), add(#0, {c}), add(#1, {d})", False, (
        "what was the total {x} for the four years {y0} to {y1}",
        "what is the sum of {x} in the four years {y0} to {y1}",
        "what were cumulative {x} over the four years {y0} through {y1}",
    )),
    "row average": Family("table_average({row}, none)", False, (
        "what was the average {x} over the years shown",
        "what is the average {x} over all years shown",
        "for all years presented , what was the average {x}",
    )),
    "row maximum": Family("table_max({row}, none)", False, (
        "what was the highest {x} over the years shown",
        "what is the maximum {x} over all years shown",
        "in the years presented , what was the greatest {x}",
    )),
    "row minimum": Family("table_min({row}, none)", False, (
        "what was the lowest {x} over the years shown",
        "what is the minimum {x} over all years shown",
        "in the years presented , what was the smallest {x}",
    )),
    "row sum": Family("table_sum({row}, none)", False, (
        "what was the total of {x} over the years shown",
        "what is the sum of {x} over all years shown",
        "for all years presented , what was {x} in total",
    )),
    # Two figures of one date: a is x, b is z.
    "difference": Family("subtract({a}, {b})", False, (
        "what was the difference between {x} and {z}{when}",
        "what is the difference between {x} and {z}{when}",
        "what was {x}{when} net of {z}",
    )),
    "excess": Family("subtract({a}, {b})", False, (
        "by how much did {x} exceed {z}{when}",
        "how much higher was {x} than {z}{when}",
        "how much more was {x}{when} than {z}",
    )),
    "ratio": Family(_SHARE, False, (
        "what was the ratio of {x} to {z}{when}",
        "what is the ratio of {x} to {z}{when}",
        "how many times {z} was {x}{when}",
    )),
    "combined": Family("add({a}, {b})", False, (
        "what was the total of {x} and {z}{when}",
        "what is the sum of {x} and {z}{when}",
        "how much were {x} and {z} together{when}",
    )),
    "greater": Family("greater({a}, {b})", False, (
        "was {x} greater than {z}{when}",
        "was {x} higher than {z}{when}",
        "did {x} exceed {z}{when}",
    )),
    "growth gap": Family(
        "subtract({b}, {a}), divide(#0, {a}), subtract({d}, {c}), divide(#2, {c}), subtract(#1, #3)", True, (
        "what was the difference in the percentage change in {x} and {z} from {y0} to {y1}",
        "what was the difference in the growth rate in {x} and {z} from {y0} to {y1}",
        "by how much did the growth rate in {x} differ from that in {z} from {y0} to {y1}",
    )),
    "combined growth": Family("add({b}, {d}), add({a}, {c}), subtract(#0, #1), divide(#2, #1)", True, (
        "what was the percentage change in the total of {x} and {z} from {y0} to {y1}",
        "what was the growth rate in the total of {x} and {z} from {y0} to {y1}",
        "by what percent did {x} and {z} together change from {y0} to {y1}",
    )),
    # Parts of a whole.
    "share": Family(_SHARE, True, (
        "what was {x} as a percentage of {whole}{when}",
        "what is {x} as a percent of {whole}{when}",
        "{x} was what percent of {whole}{when}",
        "what percentage of {whole}{when} was {x}",
    )),
    "share of two": Family("add({a}, {b}), divide(#0, {t})", True, (
        "what were {x} and {z} as a percentage of {whole}{when}",
        "{x} and {z} were what percent of {whole}{when}",
        "what percentage of {whole}{when} was {x} and {z} combined",
    )),
    "share of three": Family("add({a}, {b}), add(#0, {c}), divide(#1, {t})", True, (
        "what were {x} , {z} and {w} as a percentage of {whole}{when}",
        "{x} , {z} and {w} were what percent of {whole}{when}",
        "what percentage of {whole}{when} was {x} , {z} and {w} combined",
    )),
    "share of four": Family("add({a}, {b}), add(#0, {c}), add(#1, {d}), divide(#2, {t})", True, (
        "what were {x} , {z} , {w} and {v} as a percentage of {whole}{when}",
        "{x} , {z} , {w} and {v} were what percent of {whole}{when}",
        "what percentage of {whole}{when} was {x} , {z} , {w} and {v} combined",
    )),
    "whole without": Family("subtract({t}, {a})", False, (
        "what was {whole} excluding {x}{when}",
        "what was {whole} without {x}{when}",
        "how much of {whole}{when} was not {x}",
    )),
    "whole without two": Family("subtract({t}, {a}), subtract(#0, {b})", False, (
        "what was {whole} excluding {x} and {z}{when}",
        "what was {whole} without {x} and {z}{when}",
        "how much of {whole}{when} was neither {x} nor {z}",
    )),
    "share gap": Family("divide({b}, {d}), divide({a}, {c}), subtract(#0, #1)", True, (
        "what was the change in {x} as a percentage of {whole} from {y0} to {y1}",
        "what was the change in {x} as a percent of {whole} from {y0} to {y1}",
        "by how many percentage points did the share of {x} in {whole} change from {y0} to {y1}",
    )),
    "share of change": Family("subtract({b}, {a}), subtract({d}, {c}), divide(#0, #1)", True, (
        "what was the change in {x} from {y0} to {y1} as a percentage of the change in {whole}",
        "the change in {x} from {y0} to {y1} was what percent of the change in {whole}",
        "what portion of the change in {whole} from {y0} to {y1} came from {x}",
    )),
    "projected share": Family("divide({a}, {c}), multiply(#0, {d})", False, (
        "at the {y0} ratio of {x} to {whole} , what would {x} be in {y1}",
        "assuming the {y0} ratio of {x} to {whole} , what would {x} be in {y1}",
        "if {x} had been the same part of {whole} in {y1} as in {y0} , what would it have been",
    )),
    # Share repurchases: a shares at b dollars, c shares at d dollars.
    "spent": Family("multiply({a}, {b})", False, (
        "what was the cost of the shares purchased in {x}",
        "what was the total cost of the shares purchased in {x}",
        "how much was spent on shares in {x}",
    )),
    "spent in millions": Family("multiply({a}, {b}), divide(#0, const_1000000)", False, (
        "what was the cost of the shares purchased in {x} , in millions",
        "in millions , what was the cost of the shares purchased in {x}",
        "how many million dollars were spent on shares in {x}",
    )),
    "spent more": Family("multiply({a}, {b}), multiply({c}, {d}), subtract(#0, #1)", False, (
        "what was the difference in the cost of the shares purchased in {x} and in {z}",
        "what is the difference in the cost of the shares purchased in {x} and {z}",
        "how much more was spent on shares in {x} than in {z}",
    )),
    "spent more in percent": Family(
        "multiply({a}, {b}), multiply({c}, {d}), subtract(#0, #1), divide(#2, #1)", True, (
        "by what percentage was the cost of the shares purchased in {x} above {z}",
        "by what percent was the cost of the shares purchased in {x} above that in {z}",
        "how much more , in percent , was spent on shares in {x} than in {z}",
    )),
    # Stock performance: an index that starts at 100.
    "return": Family("subtract({a}, const_100), divide(#0, const_100)", True, (
        "what was the total return of {x} from {y0} to {y1}",
        "what was the percentage total return of {x} from {y0} to {y1}",
        "what is the roi of an investment in {x} from {y0} to {y1}",
    )),
    "return in dollars": Family("subtract({a}, const_100)", False, (
        "what was the gain in dollars of $ 100 invested in {x} from {y0} to {y1}",
        "what was the gain of $ 100 invested in {x} from {y0} to {y1}",
        "how much had $ 100 placed in {x} in {y0} gained by {y1}",
    )),
    "return gap": Family(
        "subtract({a}, const_100), divide(#0, const_100), subtract({b}, const_100), divide(#2, const_100), "
        "subtract(#1, #3)", True, (
        "what was the difference in the total return of {x} and {z} from {y0} to {y1}",
        "what was the difference in the percentage total return of {x} and {z} from {y0} to {y1}",
        "by how much did the return of {x} differ from that of {z} by {y1}",
    )),
    # Stock prices by quarter: a high, b low.
    "price range": Family("subtract({a}, {b})", False, (
        "what was the difference between the high and low price in the {x}",
        "what is the difference between the high and low price in the {x}",
        "how far apart were the high and the low price in the {x}",
    )),
    "price average": Family("add({a}, {b}), divide(#0, const_2)", False, (
        "what was the average of the high and low price in the {x}",
        "what is the average of the high and low price in the {x}",
        "considering the {x} , what is the average price",
    )),
    # The table and the text together: a is in the table.
    "without an event": Family("subtract({a}, {b})", False, (
        "what was {x} excluding {event} in {y1}",
        "what was {x} without {event} in {y1}",
        "what would {x} have been in {y1} but for {event}",
    )),
    "share of an event": Family("divide({b}, {a})", True, (
        "what was {event} as a percentage of {x} in {y1}",
        "{event} was what percent of {x} in {y1}",
        "what portion of {y1} {x} came from {event}",
    )),
    "amount from a percentage": Family("multiply({a}, {b})", False, (
        "how much of {x} was from {event} in {y1}",
        "what amount of {x} was from {event} in {y1}",
        "what is the value of {x} attributable to {event} in {y1}",
    )),
    "share in billions": Family("multiply({b}, const_1000), divide(#0, {a})", True, (
        "what was the part from {event} as a percentage of {x} in {y1}",
        "the part from {event} was what percent of {x} in {y1}",
        "what portion of {y1} {x} came from {event}",
    )),
    "per unit": Family("divide({a}, {b})", False, (
        "what was {x} per {event} in {y1}",
        "what was the average {x} per {event} in {y1}",
        "how much {x} was there for each {event} in {y1}",
    )),
    "yearly payment": Family("divide({b}, const_{n}), divide(#0, {a})", True, (
        "what is the annual payment to {event} as a percentage of {x} in {y1}",
        "the annual payment to {event} is what percent of {x} in {y1}",
        "what portion of {y1} {x} would one payment to {event} be",
    )),
}  # fmt: skip


class Note(NamedTuple):
    """Sentences with figures that questions can be asked about without the table; a page has one ``about`` a thing.

    ``numbers`` is ``name: (low, high, decimals)``, ``name: (other name, low, high)`` for a fraction of another, or
    ``name: (low, high, decimals, "%")``. Sentences that are parted by ``" | "`` stand one after the other.
    """

    about: str
    sentences: str
    numbers: dict[str, tuple]
    questions: tuple[Family, ...]


NOTES = (
    Note(
        "senior notes",
        "in {month} {y} , we sold $ {a} million of senior notes . | the interest rate on the senior notes is {r} .",
        {"a": (21, 490, 0), "r": (2.1, 8.9, 1, "%")},
        (Family("multiply({a}, {r})", False, (
            "what is the annual interest on the senior notes",
            "what is the annual interest expense on the senior notes",
            "how much interest do the senior notes of {month} {y} cost a year")),),
    ),
    Note(
        "shares repurchased",
        "we repurchased {a} million shares in {y} . | the average price of the shares repurchased was $ {p} .",
        {"a": (3, 59, 0), "p": (12, 98, 0)},
        (Family("multiply({a}, {p})", False, (
            "what was the total cost of the shares repurchased in {y}",
            "what was the cost of the shares repurchased in {y}",
            "how much was spent on buying back shares during {y}")),),
    ),
    Note(
        "shares repurchased",
        "the shares repurchased in {y} cost $ {b} million . | we repurchased {a} million shares in {y} .",
        {"a": (3, 19, 0), "b": (110, 980, 0)},
        (Family("divide({b}, {a})", False, (
            "what was the average price of the shares repurchased in {y}",
            "what was the average price per share of the shares repurchased in {y}",
            "how much was paid per repurchased share in {y}")),),
    ),
    Note(
        "shares repurchased",
        "we may repurchase {a} million authorized shares . | by the end of {y} , {b} million of the authorized shares "
        "had been repurchased . | the price of our stock was $ {p} at that time .",
        {"a": (21, 98, 0), "b": ("a", 0.2, 0.8), "p": (12, 98, 0)},
        (Family("subtract({a}, {b}), multiply(#0, {p})", False, (
            "what would the remaining authorized shares cost at the {y} price",
            "what would the remaining authorized shares cost at the price of our stock",
            "how much would buying the rest of the authorized shares cost")),
         Family("divide({b}, {a})", True, (
            "what percentage of the authorized shares had been repurchased by {y}",
            "what percent of the authorized shares had been repurchased by {y}",
            "shares repurchased were what part of those authorized"))),
    ),
    Note(
        "settlement",
        "under the settlement of {month} {y} , we will pay $ {a} million in {count} equal annual installments .",
        {"a": (21, 490, 0)},
        (Family("divide({a}, const_{n})", False, (
            "what is each annual installment of the settlement of {month} {y}",
            "what is the annual payment under the settlement of {month} {y}",
            "how much has to be paid each year for the settlement")),),
    ),
    Note(
        "dividends",
        "our quarterly dividend was $ {p} per share in {month} {y} .",
        {"p": (0.11, 0.99, 2)},
        (Family("multiply({p}, const_4)", False, (
            "what is the annual dividend at the quarterly dividend of {month} {y}",
            "what is the annual dividend per share at the quarterly dividend of {y}",
            "how much is paid per share in dividends a year")),),
    ),
    Note(
        "capital investments",
        "we bought {b} {machines} in {y} . | the {machines} cost $ {a} million .",
        {"a": (21, 99, 0), "b": (12, 98, 0)},
        (Family("multiply({a}, const_1000000), divide(#0, {b})", False, (
            "what was the average cost in dollars of the {machines} bought in {y}",
            "what was the cost in dollars of each of the {machines} bought in {y}",
            "how many dollars did one of the {machines} of {y} cost")),),
    ),
    Note(
        "pension trust",
        "assets of the pension trust were $ {a} million in {y} . | the expected return on the pension trust is {r} a "
        "year .",
        {"a": (110, 980, 0), "r": (4.1, 8.9, 1, "%")},
        (Family("add(const_1, {r}), exp(#0, const_{n}), multiply(#1, {a})", False, (
            "at the expected return , what will the pension trust be worth in {count} years",
            "at the expected return , what will assets of the pension trust be in {count} years",
            "to what would the pension trust grow over {count} years")),
         Family("multiply({a}, {r})", False, (
            "what is the expected return on assets of the pension trust",
            "what is the annual expected return on assets of the pension trust",
            "how much is the pension trust expected to earn a year"))),
    ),
    Note(
        "backlog",
        "our backlog was $ {a} million in {y} . | we expect {r} of the backlog to become sales in {y1} .",
        {"a": (110, 980, 0), "r": (21, 89, 0, "%")},
        (Family("multiply({a}, {r})", False, (
            "how much of the backlog is expected to become sales in {y1}",
            "what amount of the backlog is expected to become sales in {y1}",
            "what sales are expected from the backlog in {y1}")),),
    ),
    Note(
        "services",
        "revenue of the services business was $ {a} million in {y} . | the services business provided {r} of "
        "consolidated revenue .",
        {"a": (21, 490, 0), "r": (11, 59, 0, "%")},
        (Family("divide({a}, {r})", False, (
            "what was consolidated revenue in {y} based on the services business",
            "what is consolidated revenue in {y} based on the services business",
            "what consolidated revenue does the services business imply for {y}")),),
    ),
    Note(
        "facilities",
        "owned space is {a} thousand square feet . | leased space is {b} thousand square feet .",
        {"a": (21, 490, 0), "b": (21, 490, 0)},
        (Family("add({a}, {b}), divide({a}, #0)", True, (
            "what is owned space as a percentage of owned and leased space",
            "owned space is what percent of owned and leased space",
            "what portion of all square feet is owned")),
         Family("add({a}, {b})", False, (
            "what is the total of owned space and leased space",
            "what is the sum of owned space and leased space",
            "how many thousand square feet are there in all")),
         Family("divide({a}, {b})", False, (
            "what is the ratio of owned space to leased space",
            "what was the ratio of owned space to leased space",
            "how many times the leased square feet are the owned ones"))),
    ),
)  # fmt: skip

# --- the prose ------------------------------------------------------------------------------------------------------

# Amounts that sentences give for two or three years.
_TOPICS = (
    "rent expense", "advertising expense", "stock compensation", "capital expenditures", "interest income",
    "cash paid for interest", "savings plan contributions", "environmental costs", "royalty income", "severance costs",
    "bad debt expense", "shipping costs", "letters of credit", "related party purchases", "repair costs",
    "affiliate earnings", "securitized receivables", "legal fees", "gains on property sales", "development costs",
    "customer guarantees", "training costs", "license fees", "insurance recoveries",
)  # fmt: skip
# Amounts of one year that sentences give: a total and some of its parts.
_GROUPS = (
    ("total purchase price", ("goodwill", "customer relationships", "acquired technology", "assumed debt")),
    ("total plan charges", ("severance", "asset write-downs", "lease terminations", "relocation")),
    ("total bank facilities", ("term loans", "revolving borrowings", "bank guarantees", "overdrafts")),
    ("total tax positions", ("federal positions", "state positions", "foreign positions", "accrued penalties")),
    ("total cash", ("domestic cash", "foreign cash", "restricted cash", "money market funds")),
    ("total claims", ("environmental claims", "product claims", "labor claims", "patent claims")),
)
_ONE_YEAR = "{x} totaled $ {a} million in {y} ."
_TWO_YEARS = "{x} totaled $ {b} million in {y1} and $ {a} million in {y0} ."
_THREE_YEARS = "{x} totaled $ {c} million in {y2} , $ {b} million in {y1} and $ {a} million in {y0} ."
_EVENTS = (
    "the customer settlement", "the facility sale", "the product recall", "the hurricane damage",
    "the contract termination", "the plant closure", "the acquired business", "the change in estimate",
)  # fmt: skip
_SOURCES = (
    "foreign customers", "government customers", "large customers", "european operations", "long-term contracts",
    "automotive customers", "the asia pacific region", "online channels",
)  # fmt: skip
_AGREEMENTS = ("remove the old tanks", "support local schools", "clean up the former site", "renew the license")
_COUNTED = {"store": "stores", "location": "locations", "aircraft": "aircraft", "branch": "branches",
            "warehouse": "warehouses", "service center": "service centers"}  # fmt: skip
_MACHINES = ("locomotives", "freight cars", "drilling rigs", "towers", "delivery vehicles", "cranes")
_QUARTERS = (
    "in the four quarters of {y} , {x} totaled $ {a} million , $ {b} million , $ {c} million and $ {d} million , after "
    "$ {e} million in {y0} and $ {f} million in the year before ."
)
_MONTHS = ("january", "february", "march", "april", "may", "june", "july", "august", "september", "october",
           "november", "december")  # fmt: skip
_WORDS = {3: "three", 4: "four", 5: "five"}

# Sentences without figures; they stand together in paragraphs.
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
    unit: str = ""  # what may end a question: "in millions"
    row: str = ""


class _Ask(NamedTuple):
    question: str
    program: str
    percent: bool
    sources: tuple[tuple[str, int], ...]
    kind: str  # the key of PROGRAM_SHARES
    evidence: str  # the key of EVIDENCE_SHARES


class _Unlucky(Exception):
    """No figures of this split were found that add up to totals of this split; the page is given up."""


class _Page:
    """A page while it is made: its table, its sentences, and all that could be asked about them."""

    def __init__(self, rng: random.Random, split: str):
        self.rng = rng
        self.split = split
        head, tail = rng.choice(_NAMES[split].split()), rng.choice(_ENDINGS)
        self.company = f"{head}{tail} {rng.choice(_FORMS)}"
        self.year = rng.randint(2001, 2022)
        self.filename = f"{head[:3]}{tail[0]}".upper() + f"/{self.year}/page_{rng.randint(12, 98)}.pdf"
        self.intro = ""
        self.aside = ""  # a sentence that nobody asks about
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

    def integers(self, low: int, high: int, count: int) -> list[int]:
        """Return ``count`` numbers from ``low`` to ``high``; their sum may be shown as well."""
        for _ in range(200):
            numbers = [self.integer(low, high) for _ in range(count)]
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
        program = family.program.format(**fields)
        sources = {fields[name].source for name in re.findall(r"{(\w+)}", family.program)
                   if isinstance(fields[name], _Value)}  # fmt: skip
        sources |= {("table", row) for row in rows}
        places = {place for place, _ in sources}
        wording = family.wordings[-1] if self.rng.random() < LOOSE else self.rng.choice(family.wordings[:-1])
        question = wording.format(**fields).replace("total total ", "total ")
        percent = percent or family.percent
        if fields.get("unit") and not percent and self.rng.random() < 0.1:
            question += f" , {fields['unit']}"
        evidence = "both" if len(places) == 2 else places.pop()
        kind = " ".join(operations(tokenize(program)))
        if ", const_100), divide" in program and f"index {kind}" in PROGRAM_SHARES:
            kind = f"index {kind}"
        self.asks.append(_Ask(f"{question}?", program, percent, tuple(sorted(sources)), kind, evidence))

    # The finished page.

    def arrange(self) -> tuple[list[str], list[str], dict[int, int]]:
        """Return pre_text, post_text and, for each sentence made by ``say``, its position in the two together.

        Sentences without figures are long paragraphs, which leaves an evidence budget to those with figures.
        """
        fillers = self.rng.sample(_FILLERS, len(_FILLERS))

        def paragraph(size: int) -> str:
            return " ".join(fillers.pop() for _ in range(size))

        blocks = [*self.blocks]
        opening = f"{self.rng.choice(_OPENINGS).format(company=self.company, y=self.year)} {self.aside} {paragraph(4)}"
        intro = f"{paragraph(3)} {self.intro}"
        words = sum(len(text.split()) for text in (opening, intro, *self.sentences))
        words += sum(len(cell.split()) for row in self.table for cell in row)
        target = self.rng.randint(*PAGE_WORDS)
        while len(blocks) < 2 or words < target:
            blocks.append([len(self.sentences)])
            self.sentences.append(paragraph(4))
            words += len(self.sentences[-1].split())
        self.rng.shuffle(blocks)
        cut = self.rng.randint(1, len(blocks) - 1)
        before = [number for block in blocks[:cut] for number in block]
        after = [number for block in blocks[cut:] for number in block]
        pre_text = [opening, *(self.sentences[number] for number in before), intro]
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


def _ask_years(page: _Page, series: _Series, years: Sequence[str], later_first: bool) -> None:
    """Ask about one figure over ``years``, earliest first; ``later_first`` says how the page shows them."""
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
                page.ask("growth from a ratio", **span, higher="higher" if b.number > a.number else "lower")
                if rng.random() < 0.25:  # rare in FinQA
                    page.ask("ratio of years", **span | {"a": b, "b": a, "y0": years[last], "y1": years[first]})
                if rng.random() < 0.05:
                    page.ask("ratio of years", **span)
    p, q = (last, first) if later_first else (first, last)
    both = common | {"p": values[p], "q": values[q], "u0": years[p], "u1": years[q]}
    page.ask("average of two", **both)
    if not percent:
        page.ask("sum of two", **both)
    for length, word in ((3, "three"), (4, "four"), (5, "five")) if years[0].isdigit() else ():
        starts = [start for start in range(len(values) - length + 1) if None not in values[start : start + length]]
        if not starts:
            break
        start = rng.choice(starts)
        run = values[start : start + length][:: -1 if later_first else 1]
        named = common | dict(zip("abcde", run, strict=False), y0=years[start], y1=years[start + length - 1])
        page.ask(f"average of {word}", **named)
        if length < 5 and not percent:
            page.ask(f"sum of {word}", **named)
    if series.row and None not in values:
        operation = rng.choice(("average", "average", "maximum", "minimum", "average" if percent else "sum"))
        page.ask(f"row {operation}", [a.source[1]], **common, row=series.row)


def _ask_pair(page: _Page, one: _Series, two: _Series, when: str, years: Sequence[str] = ()) -> None:
    """Ask about two figures of column ``when``, and about their growth over ``years``."""
    a, b = one.values.get(when), two.values.get(when)
    if a is not None and b is not None and min(a.number, b.number) > 0:
        pair = {"x": one.name, "z": two.name, "a": a, "b": b, "unit": one.unit, "when": _in(when)}
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
    chosen = sorted(page.rng.sample(range(len(parts)), min(4, len(parts) - 1)))  # never all, and in the page's order
    parts = [parts[place] for place in chosen]
    common = {"whole": whole.name, "t": total, "unit": whole.unit, "when": _in(when)}
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


def _one(rng: random.Random, years: Sequence[str]) -> str:
    """Return one of ``years``, mostly the last: see ``LATEST``."""
    return years[-1] if len(years) == 1 or rng.random() < LATEST else rng.choice(years[:-1])


def _in(when: str) -> str:
    return f" in {when}" if when else ""


# --- sentences with figures -----------------------------------------------------------------------------------------


def _tell_topic(page: _Page, name: str) -> None:
    """Tell an amount of the last two or three years, the later first, and ask about it."""
    years = [str(page.year - back) for back in range(page.rng.choice((1, 1, 1, 1, 2)), -1, -1)]
    level = page.rng.randint(13, 390)
    figures = {letter: page.figure(level * 0.8, level * 1.2) for letter in "abc"[: len(years)]}
    dates = {f"y{place}": year for place, year in enumerate(years)}
    if page.rng.random() < ONE_FIGURE:
        sentences = [_ONE_YEAR.replace("{a}", f"{{{letter}}}").replace("{y}", f"{{{year}}}")
                     for letter, year in zip(figures, dates, strict=True)]  # fmt: skip
        template = " | ".join(reversed(sentences))
    else:
        template = _THREE_YEARS if len(years) == 3 else _TWO_YEARS
    values = page.say(template, figures, x=name, **dates)
    by_year = dict(zip(years, (values[letter] for letter in figures), strict=True))
    _ask_years(page, _Series(name, by_year, "in millions"), years, later_first=True)


def _tell_group(page: _Page, whole: str, parts: Sequence[str]) -> None:
    """Tell a total of this year and two or three of its parts, and ask about them."""
    rng, year = page.rng, str(page.year)
    total = page.figure(90, 980)
    chosen = rng.sample(parts, rng.choice((2, 2, 3)))
    told = {name: page.figure(float(total) * 0.08, float(total) * 0.3) for name in chosen}
    template = " | ".join(_ONE_YEAR.format(x=name, y=year, a=f"{{{letter}}}") for letter, name in
                          zip("abcd", [*told, whole], strict=False))  # fmt: skip
    values = page.say(template, dict(zip("abcd", [*told.values(), total], strict=False)))
    series = [_Series(name, {year: value}, "in millions") for name, value in
              zip([*told, whole], values.values(), strict=True)]  # fmt: skip
    _ask_parts(page, series[:-1], series[-1], year)
    _ask_pair(page, series[0], series[1], year)


def _tell_note(page: _Page, note: Note) -> None:
    rng = page.rng
    figures: dict[str, str] = {}
    for name, (low, high, *rest) in note.numbers.items():
        if isinstance(low, str):
            whole = float(figures[low])
            figures[name] = page.figure(whole * high, whole * rest[0])
        else:
            figures[name] = page.figure(low, high, rest[0]) + "".join(rest[1:])
    number = rng.choice((3, 4, 5))
    words = {"y": str(page.year), "y1": str(page.year + 1), "month": rng.choice(_MONTHS),
             "machines": rng.choice(_MACHINES), "n": str(number), "count": _WORDS[number]}  # fmt: skip
    values = page.say(note.sentences, figures, **words)
    for family in note.questions:
        page.ask(family, **values, **words)


def _tell_more(page: _Page, series: _Series, years: Sequence[str], later_first: bool) -> None:
    """Tell something of a table row that needs the table as well."""
    rng, name = page.rng, series.name
    year = _one(rng, years)
    how = rng.choice(("before", "before", "event", "event", "event", "source", "billions", "count", "installments"))
    if how == "before":
        year = years[0]
    value = series.values.get(year)
    if value is None or value.number < 12:
        return
    decimals = len(value.text.partition(".")[2])
    row = {"x": name, "a": value, "y1": year, "unit": series.unit}

    def tell(template: str, figure: str, **words: str) -> _Value:
        return page.say(template, {"b": figure}, x=name, y=year, **words)["b"]

    def part(low: float, high: float) -> str:
        return page.figure(max(2, value.number * low), max(2, value.number * high), decimals)

    if how == "before":  # the year before the table begins
        before = str(int(year) - 1)
        told = tell("{x} totaled $ {b} million in {before} .", part(0.6, 1.1), before=before)
        both = series._replace(values={before: told, year: value}, row="")
        _ask_years(page, both, [before, year], later_first)
    elif how == "event":
        event = page.fresh(_EVENTS)
        told = tell("{x} in {y} included $ {b} million for {event} .", part(0.05, 0.4), event=event)
        page.ask("without an event", **row, b=told, event=event)
        page.ask("share of an event", **row, b=told, event=event)
    elif how == "billions" and value.number > 400:
        source = page.fresh(_SOURCES)
        told = tell("$ {b} billion of {x} in {y} was from {event} .",
                    page.figure(0.1, max(0.1, value.number / 1100), 1), event=source)  # fmt: skip
        page.ask("share in billions", **row, b=told, event=source)
    elif how in ("billions", "source"):
        source = page.fresh(_SOURCES)
        told = tell("{b} of {x} in {y} was from {event} .", page.figure(11, 79) + "%", event=source)
        page.ask("amount from a percentage", **row, b=told, event=source)
    elif how == "count":
        counted = page.fresh(sorted(_COUNTED))
        told = tell("we had {b} {counted} in {y} .", page.figure(12, 98), counted=_COUNTED[counted])
        page.ask("per unit", **row, b=told, event=counted)
    else:
        event, number = page.fresh(_AGREEMENTS), rng.choice((3, 4, 5))
        told = tell("we agreed to {event} and will pay $ {b} million in {count} equal annual installments .",
                    part(0.1, 0.5), event=event, count=_WORDS[number])  # fmt: skip
        page.ask("yearly payment", **row, b=told, event=event, n=number)


def _finish_prose(page: _Page) -> None:
    """Add what has nothing to do with the table: at times a topic, a group or a note; figures that only distract."""
    rng = page.rng
    named = {word for row in page.table for word in row[0].split()}
    topics = [topic for topic in _TOPICS if not named & set(topic.split())]
    groups = [group for group in _GROUPS if not named & set(" ".join(group[1]).split())]
    about = page.fresh([note.about for note in NOTES])
    tellings = [
        lambda: _tell_topic(page, page.fresh(topics)),
        lambda: _tell_group(page, *rng.choice(groups)),
        lambda: _tell_note(page, rng.choice([note for note in NOTES if note.about == about])),
    ]
    for tell in rng.sample(tellings, rng.choice((0, 0, 1) if page.sentences else (1, 1, 1, 2))):
        tell()
    figures = {letter: page.figure(13, 390) for letter in "abcdef"}
    page.aside = _QUARTERS.format(x=page.fresh(topics), y=page.year, y0=page.year - 1, **figures)


# --- tables of amounts by year --------------------------------------------------------------------------------------


class Sheet(NamedTuple):
    """A table whose rows are amounts and whose columns are years.

    A row is ``(name, effect, low, high)``, with the range as a share of the sheet's size. Effects: ``+`` added, ``-``
    deducted and shown without a sign, ``n`` deducted and shown negative, ``" "`` of no effect, ``=`` the running total.
    Of the rows with a ``?`` after their effect a page has some. ``kind`` is ``money``, ``percent``, or the unit of a
    count.
    """

    title: str  # what the sentence before the table calls it
    rows: tuple[tuple, ...]
    kind: str = "money"
    whole: str = ""  # the total that the rows above it are parts of
    base: str = ""  # else a row that others are given in per cent of
    columns: tuple[int, ...] = (2, 2, 2, 2, 2, 2, 3)  # how many years, to choose from


_ALIASES = {
    "cost of goods sold": "cost of sales", "net sales": "sales", "gross profit": "gross margin",
    "research and development": "r&d expense", "raw materials": "materials", "income taxes": "tax expense",
    "salaries and benefits": "personnel costs", "capital expenditures": "capital spending",
}  # fmt: skip

_SHEETS = {
    "income statement": Sheet(
        "our results of operations",
        (("net sales", "+", 1.0, 1.0), ("cost of goods sold", "-", 0.45, 0.6), ("gross profit", "=", 0, 0),
         ("advertising", "-?", 0.04, 0.09), ("research and development", "-?", 0.03, 0.08),
         ("depreciation", "-?", 0.03, 0.08), ("operating income", "=", 0, 0)),
        base="net sales",
    ),
    "segment revenue": Sheet(
        "revenue by segment",
        (("agriculture", "+?", 0.08, 0.3), ("automotive", "+?", 0.08, 0.3), ("chemicals", "+?", 0.08, 0.3),
         ("energy", "+?", 0.08, 0.3), ("healthcare", "+?", 0.08, 0.3), ("consumer brands", "+?", 0.08, 0.3),
         ("aerospace", "+?", 0.08, 0.3), ("total revenue", "=", 0, 0)),
        whole="total revenue",
    ),
    "operating expenses": Sheet(
        "operating expenses",
        (("salaries and benefits", "+?", 0.2, 0.4), ("fuel", "+?", 0.1, 0.3), ("purchased services", "+?", 0.08, 0.2),
         ("depreciation", "+?", 0.06, 0.15), ("equipment rents", "+?", 0.04, 0.1), ("marketing", "+?", 0.03, 0.09),
         ("other costs", "+?", 0.03, 0.08), ("total expenses", "=", 0, 0)),
        whole="total expenses",
    ),
    "inventories": Sheet(
        "inventories at year end",
        (("raw materials", "+", 0.15, 0.4), ("work in process", "+", 0.1, 0.3), ("finished goods", "+", 0.2, 0.5),
         ("spare parts", "+?", 0.03, 0.1), ("supplies", "+?", 0.03, 0.1), ("lifo reserve", "n?", 0.02, 0.06),
         ("total inventories", "=", 0, 0)),
        whole="total inventories",
    ),
    "property": Sheet(
        "property at year end",
        (("land", "+", 0.04, 0.1), ("buildings", "+", 0.2, 0.4), ("machinery", "+?", 0.3, 0.6),
         ("furniture", "+?", 0.03, 0.1), ("vehicles", "+?", 0.03, 0.1), ("total property", "=", 0, 0),
         ("accumulated depreciation", "n", 0.3, 0.5)),
        whole="total property",
    ),
    "accrued liabilities": Sheet(
        "accrued liabilities at year end",
        (("accrued wages", "+?", 0.1, 0.3), ("customer deposits", "+?", 0.1, 0.3), ("taxes payable", "+?", 0.1, 0.3),
         ("interest due", "+?", 0.05, 0.2), ("casualty costs", "+?", 0.05, 0.2), ("deferred income", "+?", 0.05, 0.2),
         ("total liabilities", "=", 0, 0)),
        whole="total liabilities",
    ),
    "cash flows": Sheet(
        "our cash flows",
        (("operating activities", "+", 0.8, 1.2), ("investing activities", "n", 0.3, 0.6),
         ("financing activities", "n", 0.1, 0.4), ("net change in cash", "=", 0, 0), ("dividends paid", " ", 0.1, 0.2),
         ("free cash flow", " ", 0.2, 0.5)),
        base="operating activities",
    ),
    "tax reconciliation": Sheet(
        "our effective tax rate",
        (("statutory rate", "+", 0.21, 0.39), ("state taxes", "+", 0.011, 0.045),
         ("foreign operations", "n", 0.02, 0.09), ("research credits", "n?", 0.01, 0.03),
         ("valuation allowances", "+?", 0.01, 0.03),
         ("domestic production", "n?", 0.01, 0.03), ("effective rate", "=", 0, 0)),
        kind="percent",
    ),
    "pension cost": Sheet(
        "pension cost",
        (("service cost", "+", 0.4, 0.7), ("interest accrued", "+", 0.5, 0.9), ("expected return", "n", 0.3, 0.6),
         ("amortization", "+", 0.08, 0.3), ("settlement losses", "+?", 0.05, 0.1), ("net pension cost", "=", 0, 0)),
        base="net pension cost",
    ),
    "segment results": Sheet(
        "the segment 2019s results",
        (("net sales", " ", 1.0, 1.0), ("operating profit", " ", 0.08, 0.16), ("orders received", " ", 0.8, 1.3),
         ("capital expenditures", " ", 0.03, 0.07), ("depreciation", " ", 0.03, 0.07)),
        base="net sales",
    ),
    "option assumptions": Sheet(
        "the assumptions used to value stock options",
        (("interest rate", " ", 0.011, 0.048), ("volatility", " ", 0.21, 0.49), ("dividend yield", " ", 0.011, 0.039),
         ("forfeitures", " ", 0.02, 0.09)),
        kind="percent",
    ),
    "sales volumes": Sheet(
        "sales volumes by product",
        (("gasoline", "+?", 0.2, 0.4), ("distillates", "+?", 0.15, 0.3), ("propane", "+?", 0.03, 0.1),
         ("feedstocks", "+?", 0.05, 0.15), ("heavy fuel", "+?", 0.03, 0.1), ("asphalt", "+?", 0.04, 0.1),
         ("total volumes", "=", 0, 0)),
        kind="thousand barrels", whole="total volumes",
    ),
    "employees": Sheet(
        "the number of employees by region",
        (("north america", "+?", 0.2, 0.5), ("brazil", "+?", 0.05, 0.2), ("europe", "+?", 0.1, 0.3),
         ("africa", "+?", 0.05, 0.2), ("middle east", "+?", 0.04, 0.1), ("asia", "+?", 0.1, 0.3),
         ("total employees", "=", 0, 0)),
        kind="employees", whole="total employees",
    ),
    "purchase price": Sheet(
        "the allocation of the purchase price",
        (("receivables", "+?", 0.05, 0.15), ("inventory", "+?", 0.05, 0.15), ("equipment", "+", 0.1, 0.3),
         ("customer lists", "+?", 0.1, 0.2), ("technology", "+?", 0.05, 0.2), ("trademarks", "+?", 0.05, 0.2),
         ("goodwill", "+", 0.2, 0.5), ("total assets", "=", 0, 0), ("assumed liabilities", "n", 0.05, 0.2)),
        whole="total assets", columns=(1,),
    ),
}  # fmt: skip

_INTROS = (
    "the following table presents {title}{unit} : .",
    "{title}{unit} : .",
    "the table below shows {title}{unit} : .",
)


def _draw_column(page: _Page, rows: Sequence[tuple], size: float, shares: dict[str, float]) -> dict[str, int]:
    """Return one column's amounts by row name, such that every total may be shown."""

    def amount(name: str, effect: str, low: float, high: float) -> int:
        if high <= 0.1 and effect in "+n" and page.rng.random() < 0.04:
            return 0  # shown as a dash
        near = size * shares[name]
        number = page.integer(max(1, round(near * 0.88)), max(2, round(near * 1.14)))
        return -number if effect == "n" else number

    for _ in range(20):
        column, total, start = {}, 0, 0
        for end, (name, effect, *_) in enumerate(rows):
            if effect == "=":
                for _ in range(300):
                    group = {row[0]: amount(*row) for row in rows[start:end]}
                    signs = {row[0]: {"-": -1, " ": 0}.get(row[1], 1) for row in rows[start:end]}
                    new = total + sum(signs[part] * value for part, value in group.items())
                    if new and page.may_show(new):
                        break
                column |= group
                column[name] = total = new
                start = end + 1
        column |= {row[0]: amount(*row) for row in rows[start:]}
        totals = [column[row[0]] for row in rows if row[1] == "="]
        if all(totals) and all(page.may_show(value) for value in totals):
            return column
    raise _Unlucky


def _build_sheet(page: _Page, sheet: Sheet) -> None:
    rng = page.rng
    optional = [row for row in sheet.rows if row[1].endswith("?")]
    fixed = len(sheet.rows) - len(optional)
    kept = rng.sample(optional, min(len(optional), rng.randint(max(1, 4 - fixed), max(2, 5 - fixed))))
    rows = [(row[0], row[1].rstrip("?"), *row[2:]) for row in sheet.rows if row not in optional or row in kept]

    percent, money = sheet.kind == "percent", sheet.kind == "money"
    decimals = 1 if percent or (money and rng.random() < DECIMALS) else 0
    size = 1000.0 if percent else 10 ** rng.uniform(2.4, 3.4)
    years = [str(page.year - back) for back in range(rng.choice(sheet.columns) - 1, -1, -1)]
    shares = {row[0]: rng.uniform(row[2], row[3]) for row in rows if row[1] != "="}
    columns = [_draw_column(page, rows, size * (1 if percent else rng.uniform(0.85, 1.2)), shares) for _ in years]

    # The table, in the order in which it is shown.
    later_first = rng.random() < LATER_FIRST
    shown = years[::-1] if later_first else years
    unit = "in millions" if money else "" if percent else sheet.kind
    corner = unit if rng.random() < 0.3 else ""  # else the unit stands in the sentence before the table
    page.table = [[corner, *shown]]
    series: dict[str, _Series] = {}
    for place, (name, effect, *_) in enumerate(rows, start=1):
        figures = {}
        for year, column in zip(years, columns, strict=True):
            text = _decimal(column[name], decimals)
            figures[year] = (text.removesuffix(".0") + "%") if percent else text
        dollar = money and (place == 1 or effect == "=")
        cells = {year: ("$ " if dollar else "") + "2014" if not float(text.rstrip("%")) else _cell(text, dollar)
                 for year, text in figures.items()}  # fmt: skip
        page.table.append([name, *(cells[year] for year in shown)])
        values = {year: _Value(text, ("table", place)) for year, text in figures.items() if float(text.rstrip("%"))}
        called = _ALIASES[name] if name in _ALIASES and rng.random() < ALIASED else name
        series[name] = _Series(called, values, unit if money else "", name if len(years) > 1 else "")
    said = f" ( {unit} )" if unit and not corner else ""
    page.intro = rng.choice(_INTROS).format(title=sheet.title, unit=said)

    _ask_sheet(page, sheet, rows, series, years, later_first)
    if money:
        told = rng.sample([row[0] for row in rows if row[1] != "n"], 2)
        for name in told[: rng.choice((1, 1, 1, 2))]:
            _tell_more(page, series[name], years, later_first)
    _finish_prose(page)


def _ask_sheet(page: _Page, sheet: Sheet, rows: list[tuple], series: dict[str, _Series], years: list[str],
               later_first: bool) -> None:  # fmt: skip
    rng = page.rng
    names = [row[0] for row in rows]
    for name in rng.sample(names, 4):
        _ask_years(page, series[name], years, later_first)
    # A total is not compared with its own parts.
    alike = [row[0] for row in rows if not (sheet.whole and row[1] == "=")]
    if sheet.kind == "percent":
        one, two = (series[name] for name in rng.sample(alike, 2))
        when = _one(rng, years)
        a, b = one.values.get(when), two.values.get(when)
        if a and b and min(a.number, b.number) > 0:
            pair = {"x": one.name, "z": two.name, "a": a, "b": b, "when": _in(when)}
            page.ask("difference", percent=True, **pair)
            page.ask("ratio", **pair)
            page.ask("greater", **pair)
        return
    for _ in range(2):
        one, two = rng.sample(alike, 2)
        _ask_pair(page, series[one], series[two], _one(rng, years), years)
    whole = sheet.whole or sheet.base
    parts = names[: names.index(whole)] if sheet.whole else [name for name in names if name != whole]
    for _ in range(2):
        _ask_parts(page, [series[name] for name in parts], series[whole], _one(rng, years), years)


# --- tables of other shapes -----------------------------------------------------------------------------------------


class Schedule(NamedTuple):
    """Payments by year: a row for each year, a column for each kind of payment, and whether a total ends the table."""

    title: str
    names: tuple[str, ...]  # of the columns
    total: bool = True


_SCHEDULES = {
    "debt maturities": Schedule("debt maturities of the next years", ("debt maturities",)),
    "lease commitments": Schedule("minimum payments under leases", ("operating leases", "capital leases")),
    "amortization schedule": Schedule("the expected amortization", ("amortization expense",), False),
    "purchase commitments": Schedule("payments under supply contracts", ("purchase contracts", "transport contracts")),
}


def _build_schedule(page: _Page, schedule: Schedule) -> None:
    rng = page.rng
    years = [str(page.year + ahead) for ahead in range(1, 6)]
    labels = [*years, "thereafter", "total"] if schedule.total else years
    names = schedule.names[: rng.choice((1, 1, 2))]
    page.table = [["in millions" if rng.random() < 0.3 else "", *names]]
    columns = []
    for name in names:
        size = 10 ** rng.uniform(1.5, 2.2)
        if schedule.total:
            amounts = page.integers(round(size * 0.5), round(size * 1.5), 6)
            amounts.append(sum(amounts))
        else:
            amounts = [page.integer(round(size * 0.5), round(size * 1.5)) for _ in years]
        values = {label: _Value(str(amount), ("table", place))
                  for place, (label, amount) in enumerate(zip(labels, amounts, strict=True), start=1)}  # fmt: skip
        columns.append(_Series(name, values, "in millions"))
    for place, label in enumerate(labels, start=1):
        page.table.append([label, *(_cell(column.values[label].text, place == 1 or label == "total")
                                    for column in columns)])  # fmt: skip
    page.intro = rng.choice(_INTROS).format(title=schedule.title, unit="" if page.table[0][0] else " ( in millions )")

    for column in columns:
        _ask_years(page, column, years, later_first=False)
        if schedule.total:
            # Only the first part is named in full: `debt maturities in 2014 , 2015 and 2016`.
            for start in sorted(rng.sample(range(5), 3)):
                parts = [_Series(f"{column.name} in {label}" if place == 0 else label, {"": column.values[label]})
                         for place, label in enumerate(labels[start:-1])]  # fmt: skip
                _ask_due(page, parts, _Series(f"total {column.name}", {"": column.values["total"]}, column.unit))
    if len(columns) == 2:
        _ask_pair(page, *columns, rng.choice(years), years)
    _tell_more(page, rng.choice(columns), years[:-3], later_first=False)
    _finish_prose(page)


def _ask_due(page: _Page, parts: Sequence[_Series], whole: _Series) -> None:
    """Ask what the first payments of ``parts`` are of ``whole``."""
    named = dict(zip("xzwv", (part.name for part in parts), strict=False))
    named |= dict(zip("abcd", (part.values[""] for part in parts), strict=False))
    named |= {"whole": whole.name, "t": whole.values[""], "unit": whole.unit, "when": ""}
    page.ask("share", **named | {"b": named["t"]})
    page.ask("whole without", **named)
    for size, word in ((2, "two"), (3, "three"), (4, "four")):
        if len(parts) >= size:
            page.ask(f"share of {word}", **named)


def _build_repurchases(page: _Page) -> None:
    rng = page.rng
    start = rng.choice((0, 3, 6, 9))
    months = _MONTHS[start : start + 3]
    size, price = 10 ** rng.uniform(2.0, 3.2), rng.uniform(15, 90)
    bought = page.integers(round(size * 0.4), round(size * 1.6), len(months))
    paid = [page.figure(price * 0.9, price * 1.1) for _ in months]
    page.table = [["", "shares purchased", "average price"]]
    for month, number, each in zip(months, bought, paid, strict=True):
        page.table.append([month, str(number), _cell(each, dollar=True)])
    page.table.append(["total", str(sum(bought)), ""])
    page.intro = rng.choice(_INTROS).format(title="purchases of our common stock during the quarter", unit="")

    bought = [_Value(str(number), ("table", place)) for place, number in enumerate(bought, start=1)]
    paid = [_Value(each, ("table", place)) for place, each in enumerate(paid, start=1)]
    total = _Series("total shares purchased", {"": _Value(page.table[-1][1], ("table", 4))})
    _ask_parts(page, [_Series(f"shares purchased in {month}", {"": number})
                      for month, number in zip(months, bought, strict=True)], total, "")  # fmt: skip
    for name, column in (("average price", paid), ("shares purchased", bought)):
        _ask_years(page, _Series(name, dict(zip(months, column, strict=True))), months, later_first=False)
        one, two = rng.sample(range(3), 2)
        _ask_pair(page, *(_Series(f"{name} in {months[place]}", {"": column[place]}) for place in (one, two)), "")
    for place in rng.sample(range(3), 2):
        page.ask("spent", a=bought[place], b=paid[place], x=months[place])
        page.ask("spent in millions", a=bought[place], b=paid[place], x=months[place])
    one, two = sorted(rng.sample(range(3), 2))
    both = {"a": bought[one], "b": paid[one], "c": bought[two], "d": paid[two], "x": months[one], "z": months[two]}
    page.ask("spent more", **both)
    page.ask("spent more in percent", **both)
    _finish_prose(page)


def _build_performance(page: _Page) -> None:
    """What 100 dollars became: a row for each investment, the first year's column always 100."""
    rng = page.rng
    years = [str(page.year - back) for back in range(rng.choice((1, 2, 2)), -1, -1)]
    names = [page.company.split()[0],
             *rng.sample(("s&p 500", "peer group", "nasdaq index", "dow jones"), rng.choice((1, 2, 2)))]  # fmt: skip
    page.table = [[rng.choice(("", "", "index")), *years]]
    series = []
    decimals = rng.choice((0, 0, 0, 0, 2))
    for place, name in enumerate(names, start=1):
        level, texts = 100.0, []
        for _ in years[1:]:
            level = level * rng.uniform(0.8, 1.4)
            texts.append(page.figure(level * 0.95, level * 1.05, decimals))
        page.table.append([name, *(_cell(text, place == 1) for text in ("100.00" if decimals else "100", *texts))])
        # The first year is left out: programs write it as const_100.
        values = {year: _Value(text, ("table", place)) for year, text in zip(years[1:], texts, strict=True)}
        series.append(_Series(name, values))
    page.intro = rng.choice(_INTROS).format(title=f"the total return of $ 100 invested in {years[0]}", unit="")
    for one in series:
        year = _one(rng, years[1:])
        page.ask("return", x=one.name, a=one.values[year], y0=years[0], y1=year)
        page.ask("return in dollars", x=one.name, a=one.values[year], y0=years[0], y1=year)
        _ask_years(page, one._replace(name=f"value of {one.name}"), years[1:], later_first=False)
    one, two = rng.sample(series, 2)
    year = _one(rng, years[1:])
    page.ask("return gap", x=one.name, z=two.name, a=one.values[year], b=two.values[year], y0=years[0], y1=year)
    _ask_pair(page, one, two, year)
    _finish_prose(page)


def _build_prices(page: _Page) -> None:
    """Stock prices by quarter."""
    rng = page.rng
    quarters = ["first quarter", "second quarter", "third quarter", "fourth quarter"]
    price = rng.uniform(14, 88)
    decimals = rng.choice((0, 0, 2))
    highs, lows = [], []
    page.table = [[str(page.year) if rng.random() < 0.3 else "", "high", "low"]]
    for place, quarter in enumerate(quarters, start=1):
        price *= rng.uniform(0.85, 1.2)
        high, low = page.figure(price * 1.04, price * 1.2, decimals), page.figure(price * 0.8, price * 0.96, decimals)
        page.table.append([quarter, _cell(high, place == 1), _cell(low, place == 1)])
        highs.append(_Value(high, ("table", place)))
        lows.append(_Value(low, ("table", place)))
    page.intro = rng.choice(_INTROS).format(title=f"high and low prices of our common stock in {page.year}", unit="")
    for place in rng.sample(range(4), 2):
        page.ask("price range", x=quarters[place], a=highs[place], b=lows[place])
        page.ask("price average", x=quarters[place], a=highs[place], b=lows[place])
    for name, column in (("high price", highs), ("low price", lows)):
        spoken = [f"the {quarter}" for quarter in quarters]
        _ask_years(page, _Series(name, dict(zip(spoken, column, strict=True))), spoken, later_first=False)
    one, two = rng.sample(range(4), 2)
    _ask_pair(page, *(_Series(f"high price in the {quarters[place]}", {"": highs[place]}) for place in (one, two)), "")
    _finish_prose(page)


def _sheet_builder(sheet: Sheet) -> Callable[[_Page], None]:
    return lambda page: _build_sheet(page, sheet)


def _schedule_builder(schedule: Schedule) -> Callable[[_Page], None]:
    return lambda page: _build_schedule(page, schedule)


PAGE_KINDS: dict[str, Callable[[_Page], None]] = {
    **{name: _sheet_builder(sheet) for name, sheet in _SHEETS.items()},
    **{name: _schedule_builder(schedule) for name, schedule in _SCHEDULES.items()},
    "share repurchases": _build_repurchases,
    "stock performance": _build_performance,
    "stock prices": _build_prices,
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
