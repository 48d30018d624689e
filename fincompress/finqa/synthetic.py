"""A synthetic FinQA: invented report pages, questions, programs and gold evidence in FinQA's schema, from a seed.

It stands in where neither the data nor a network is there. It is much easier than FinQA, on purpose: a model of 135
million parameters has to learn it from 1,400 examples. Tables are small, figures short, and most questions name row and
year as the table does; what is left is choosing row, column and sentence among others of their kind. Splits share
wordings, row names and dates only: companies and numbers of three digits or more belong to one (``may_show``).
"""

from __future__ import annotations

import itertools
import random
import re
import zlib
from collections import Counter
from collections.abc import Sequence

from fincompress.finqa.program import execute, operations, tokenize

DEFAULT_COUNTS = {"train": 3000, "dev": 400, "test": 400}

# Per cent of the programs by their operations, and of the questions by where the evidence lies: FinQA's dev split, its
# rarest kinds gathered into their nearest. "index" marks programs on an index that starts at 100.
PROGRAM_SHARES = {
    "divide": 31.9, "subtract": 15.7, "add": 3.0, "multiply": 3.8, "greater": 1.0,
    "table_average": 1.9, "table_max": 0.8, "table_min": 0.6, "table_sum": 0.5,
    "subtract divide": 17.4, "index subtract divide": 3.6, "multiply divide": 4.2, "add divide": 3.6, "add add": 2.0,
    "divide subtract": 1.7,
    "add add divide": 3.8, "divide divide subtract": 1.1, "add add subtract divide": 1.6,
    "subtract divide subtract divide subtract": 0.7, "index subtract divide subtract divide subtract": 1.1,
}  # fmt: skip
EVIDENCE_SHARES = {"table": 61.4, "text": 22.4, "both": 16.2}

# How hard it is to find an operand: raise LOOSE and BY_YEAR, lower LATER_FIRST and LATEST for a harder set.
LOOSE = 0.12  # of the questions are worded freely: the last wording of a family
LATER_FIRST = 0.9  # of the tables show the later year first
LATEST = 0.75  # of the questions about one date are about the latest
COLUMNS = (1, 2, 2, 2, 2, 2, 3)  # how many years a table has, to choose from
BY_YEAR = 0.1  # of the tables have a row a year

# First parts of company names; their first three letters, which begin the ticker symbol, are unique over all splits.
_NAMES = {
    "train": "alder ambler ashen barrow bexley birch calder canton colton corwin dalton denver elmer ember fallow "
    "farrow gable halden ibis jasper juniper kelder kirk lander maple nettle norwood oaken palmer quarry rowan saddler",
    "dev": "garnet larken orchard pembroke tamar teller ulmer valley walden",
    "test": "harrow marlow raven upland wexford winter yarrow yonder zephyr",
}
_ENDINGS = ("bridge", "crest", "dale", "field", "grove", "haven", "line", "mont", "port", "stone", "vale", "worth")


def may_show(number: int, split: str) -> bool:
    """Return whether a split's pages show a number, written without its decimal point.

    Numbers below 100 are anyone's and years nobody's. Others go by a hash of their digits, so that 5829, 58.29 and
    582900 have one owner: train has half of them, dev and test a quarter each.
    """
    if number == 0 or abs(number) in range(1980, 2041):
        return False
    # A checksum: under a remainder, parts of one split would hardly ever sum to a total of that split.
    owner = ("train", "train", "dev", "test")[zlib.crc32(str(abs(number)).rstrip("0").encode()) % 4]
    return abs(number) < 100 or owner == split


# --- questions ------------------------------------------------------------------------------------------------------

# Kinds of question: the program, and ways to ask it, the free one last. Rows are x, z, w, their total t; x2 is x at the
# date d, x0 and x1 are x in y0 and the later y1, span is from y0 to y1.
FAMILIES = (
    ("subtract({x1}, {x0})", "what was the change in {x} {span}", "what was the net change in {x} {span}",
     "how much did {x} change between {y0} and {y1}"),
    ("subtract({high}, {low})", "what was the {increase} in {x} {span}", "by how much did {x} {increase} {span}",
     "how much {higher} was {x} in {y1} than in {y0}"),
    ("subtract({x1}, {x0}), divide(#0, {x0})", "what was the percentage change in {x} {span}",
     "what was the growth rate in {x} {span}", "by what percentage did {x} change {span}",
     "what was the growth rate in {x} for {y1} over {y0}"),
    ("divide({x1}, {x0}), subtract(#0, const_1)", "how much {higher} , in percent , was {x} in {y1} than in {y0}",
     "what percent {higher} was {x} in {y1} than in {y0}", "in percent , how far was {x} in {y1} from {y0}"),
    ("add({x0}, {x1})", "what was the total {x} for {y0} and {y1}", "how much were {x} in {y0} and {y1} together"),
    ("add({x0}, {x1}), divide(#0, const_2)", "what was the average {x} for {y0} and {y1}",
     "for {y0} and {y1} , what was {x} on average"),
    ("add({u0}, {u1}), add(#0, {u2})", "what was the total {x} for the three years {first} to {last}",
     "what were cumulative {x} in {first}-{last}"),
    ("add({u0}, {u1}), add(#0, {u2}), divide(#1, const_3)",
     "what was the average {x} for the three years {first} to {last}",
     "considering the years {first}-{last} , what was the average {x}"),
    *((f"table_{operation}({{row}}, none)", f"what was the {word} {{x}} over the years shown",
       f"for all years presented , what was the {word} {{x}}")
      for operation, word in (("average", "average"), ("max", "highest"), ("min", "lowest"), ("sum", "total"))),
    ("subtract({x2}, {z2})", "what was the difference between {x} and {z} in {d}",
     "by how much did {x} exceed {z} in {d}", "what was {x} in {d} net of {z}"),
    ("divide({x2}, {z2})", "what was the ratio of {x} to {z} in {d}", "how many times {z} was {x} in {d}"),
    ("add({x2}, {z2})", "what was the total of {x} and {z} in {d}", "how much were {x} and {z} together in {d}"),
    ("greater({x2}, {z2})", "was {x} greater than {z} in {d}", "did {x} exceed {z} in {d}"),
    ("subtract({x1}, {x0}), divide(#0, {x0}), subtract({z1}, {z0}), divide(#2, {z0}), subtract(#1, #3)",
     "what was the difference in the percentage change in {x} and {z} {span}",
     "by how much did the growth rate in {x} differ from that in {z} {span}"),
    ("add({x1}, {z1}), add({x0}, {z0}), subtract(#0, #1), divide(#2, #1)",
     "what was the percentage change in the total of {x} and {z} {span}",
     "by what percent did {x} and {z} together change {span}"),
    ("divide({x2}, {t2})", "what was {x} as a percentage of {t} in {d}", "{x} was what percent of {t} in {d}",
     "what percentage of {t} in {d} was {x}"),
    ("add({x2}, {z2}), divide(#0, {t2})", "what were {x} and {z} as a percentage of {t} in {d}",
     "what percentage of {t} in {d} was {x} and {z} combined"),
    ("add({x2}, {z2}), add(#0, {w2}), divide(#1, {t2})", "what were {x} , {z} and {w} as a percentage of {t} in {d}",
     "what percentage of {t} in {d} was {x} , {z} and {w} combined"),
    ("subtract({t2}, {x2})", "what was {t} excluding {x} in {d}", "how much of {t} in {d} was not {x}"),
    ("divide({x1}, {t1}), divide({x0}, {t0}), subtract(#0, #1)",
     "what was the change in {x} as a percentage of {t} {span}",
     "by how many percentage points did the share of {x} in {t} change {span}"),
    # An index that starts at 100; the table and the text together.
    ("subtract({x2}, const_100), divide(#0, const_100)", "what was the total return of {x} from {start} to {d}",
     "what was the roi of an investment in {x} from {start} to {d}"),
    ("subtract({x2}, const_100), divide(#0, const_100), subtract({z2}, const_100), divide(#2, const_100), "
     "subtract(#1, #3)", "what was the difference in the total return of {x} and {z} from {start} to {d}",
     "by how much did the return of {x} differ from that of {z} from {start} to {d}"),
    ("subtract({x2}, {cost})", "what was {x} excluding {event} in {d}", "what was {x} without {event} in {d}",
     "what would {x} have been in {d} but for {event}"),
    ("divide({cost}, {x2})", "what was {event} as a percentage of {x} in {d}", "{event} was what percent of {x} in {d}",
     "what portion of {x} in {d} came from {event}"),
    ("multiply({x2}, {part})", "how much of {x} was from {source} in {d}",
     "what was the value of {x} attributable to {source} in {d}"),
    ("multiply({billions}, const_1000), divide(#0, {x2})",
     "what was the part from {source} as a percentage of {x} in {d}", "what portion of {x} in {d} came from {source}"),
    ("divide({x2}, {count})", "what was {x} per {unit} in {d}", "how much {x} was there for each {unit} in {d}"),
    # Of NOTES.
    ("multiply({principal}, {rate})", "what was the annual interest on the senior notes of {d}",
     "how much interest do the senior notes of {d} cost a year"),
    ("divide({paid}, {shares})", "what was the average price of the shares repurchased in {d}",
     "how much was paid per repurchased share in {d}"),
    ("multiply({each}, {trucks}), divide(#0, const_1000)", "what was the cost in thousands of the trucks bought in {d}",
     "how many thousand dollars did the trucks of {d} cost"),
    ("add({owned}, {leased}), divide({owned}, #0)", "what was owned space as a percentage of owned and leased space",
     "what percent of all square feet is owned"),
)  # fmt: skip

# Sentences that need no table, and those that tell more of a row x of the table. Ranges of their figures: low, high,
# decimals and unit.
NOTES = (
    ("in {d} , we sold $ {principal} million of senior notes .", "the interest rate on the senior notes is {rate} ."),
    ("the shares repurchased in {d} cost $ {paid} million .", "we repurchased {shares} million shares in {d} ."),
    ("we bought {trucks} trucks in {d} .", "the trucks cost $ {each} each ."),
    ("owned space is {owned} thousand square feet .", "leased space is {leased} thousand square feet ."),
)
_COST = "{x} in {d} included $ {cost} million for {event} ."
_LARGE = "$ {billions} billion of {x} in {d} was from {source} ."
_MORE = (_COST, _COST, "{part} of {x} in {d} was from {source} .", "we had {count} {unit}s in {d} .")
_RANGES = {
    "principal": (21, 490), "rate": (2.1, 8.9, 1, "%"), "paid": (110, 980), "shares": (3, 19), "trucks": (12, 98),
    "each": (210, 980), "owned": (21, 490), "leased": (21, 490), "part": (11, 79, 0, "%"), "count": (12, 98),
}  # fmt: skip

# Amounts that sentences tell: totals and their parts.
_GROUPS = (
    ("total purchase price", ("goodwill", "customer lists", "acquired technology", "assumed debt", "acquired land")),
    ("total plan charges", ("severance", "asset write-downs", "lease terminations", "relocation", "retraining")),
    ("total bank facilities", ("term loans", "revolving borrowings", "bank guarantees", "overdrafts", "bridge loans")),
    ("total claims", ("environmental claims", "product claims", "labor claims", "patent claims", "tax claims")),
    ("total fees", ("legal fees", "license fees", "franchise fees", "advisory fees", "audit fees", "bank fees")),
    ("total income from others", ("royalty income", "rental income", "interest income", "dividend income")),
)
_EVENTS = ("the customer settlement", "the facility sale", "the product recall", "the hurricane damage")
_SOURCES = ("foreign customers", "government customers", "long-term contracts", "online channels")
_UNITS = ("store", "location", "warehouse", "service center")
_FILLERS = (
    "these statements should be read in conjunction with the notes to the consolidated financial statements .",
    "the preparation of financial statements requires management to make estimates and assumptions .",
    "our businesses are subject to competition , regulation and changes in the general economy .",
    "the company recognizes revenue when control of the goods or services passes to the customer .",
    "we are party to various legal proceedings that arise in the normal course of business .",
    "shares of the company 2019s common stock trade on a national exchange .",
)
# Tables with a column a year: title, rows, of which a page shows some and those with a "-" as negative, the last row,
# which is their sum, and the unit. Of money without a sum, the first row is always shown, and others are parts of it.
_MONEY = "in millions"
SHEETS = (
    ("our results", "net sales, cost of goods sold, advertising, research and development, rent", "", _MONEY),
    ("the segment 2019s results", "net sales, operating profit, orders received, capital expenditures", "", _MONEY),
    ("revenue by segment", "agriculture, automotive, chemicals, energy, healthcare", "total revenue", _MONEY),
    ("operating expenses", "salaries and benefits, fuel, depreciation, rents, marketing", "total expenses", _MONEY),
    ("inventories", "raw materials, work in process, finished goods, supplies, -reserve", "total inventories", _MONEY),
    ("property", "land, buildings, machinery, furniture, vehicles, -depreciation", "net property", _MONEY),
    ("accrued liabilities", "wages, customer deposits, taxes payable, interest due", "total liabilities", _MONEY),
    ("cash flows", "operations, -investments, -financing, disposals, -dividends", "net change in cash", _MONEY),
    ("pension cost", "service cost, interest accrued, amortization, -expected return", "net pension cost", _MONEY),
    ("the purchase price", "receivables, inventory, equipment, technology, trademarks", "total assets", _MONEY),
    ("our tax rate", "statutory rate, state taxes, -foreign operations, -credits, allowances", "effective rate", "%"),
    ("option assumptions", "volatility, interest rate, dividend yield, forfeitures, early exercises", "", "%"),
    ("total return of $ 100", "s&p 500, peer group, nasdaq index, dow jones, our stock", "", "index"),
    ("total return of $ 100", "s&p 500, industry peers, russell index, our shares", "", "index"),
    ("sales volumes", "gasoline, distillates, propane, heavy fuel, asphalt, coke", "total volumes", "thousand barrels"),
    ("employees by region", "north america, brazil, europe, africa, asia, australia", "total employees", "employees"),
)

# --- one page -------------------------------------------------------------------------------------------------------


class _Figure(str):
    """A figure as programs write it (``-14``, ``12.4%``), or a row's name, and the line that shows it."""

    source: int | str  # a row of the table, or a sentence

    def at(self, source: int | str) -> _Figure:
        self.source = source
        return self


_Grid = dict[str, dict[str, _Figure]]  # figures by what they are of, then by date
_FIELD = re.compile(r"{(\w+)}")  # of a template
# Programs whose result has another unit than their figures, which must be positive.
_UNITLESS = re.compile(r"greater|multiply|divide\(\S+ (?!const_[23])")


class _Page:
    """A page while it is made: its table, its sentences, and all that could be asked about them."""

    def __init__(self, seed: int, split: str, number: int):
        # random.Random hashes a string with SHA-512: the same everywhere, unlike hash().
        self.rng, self.split = random.Random(f"{seed}/{split}/{number}"), split
        head, tail = self.rng.choice(_NAMES[split].split()), self.rng.choice(_ENDINGS)
        self.company, self.year = head + tail, self.rng.randint(2001, 2022)
        self.filename = f"{head[:3]}{tail[0]}".upper() + f"/{self.year}/page_{number}.pdf"
        self.table: list[list[str]] = []
        self.blocks: list[list[str]] = []  # sentences that stand one after the other
        self.asks: list[dict] = []

    def number(self, low: float, high: float) -> int:
        """Return a number from ``low`` to ``high`` that this split may show; higher if there is none."""
        low, high = max(1, round(low)), max(2, round(high))
        draws = (self.rng.randint(low, high + attempt // 20) for attempt in itertools.count())
        return next(number for number in draws if may_show(number, self.split))

    def figure(self, low: float, high: float, decimals: int = 0, unit: str = "") -> _Figure:
        number = self.number(low * 10**decimals, high * 10**decimals)
        return _Figure(f"{number / 10**decimals:.{decimals}f}{unit}")

    def column(self, levels: Sequence[float], total: bool) -> list[int]:
        """Return a number near each of ``levels`` and, if ``total``, their sum, all of which the split may show."""
        for attempt in itertools.count():
            drawn = [self.number(abs(level) * 0.88, abs(level) * 1.14 + attempt / 50) for level in levels]
            drawn = [-number if level < 0 else number for number, level in zip(drawn, levels, strict=True)]
            if not total or may_show(sum(drawn), self.split):
                return drawn + [sum(drawn)] * total

    def say(self, *sentences: str, **fields: object) -> None:
        """Add sentences, draw those of their figures that ``fields`` lacks, and ask about them."""
        for name in _FIELD.findall(" ".join(sentences)):
            if name in _RANGES:
                fields[name] = self.figure(*_RANGES[name])
        shown = {name: _cell(field) if isinstance(field, _Figure) else field for name, field in fields.items()}
        self.blocks.append([sentence.format(**shown) for sentence in sentences])
        for sentence, said in zip(sentences, self.blocks[-1], strict=True):
            for name in _FIELD.findall(sentence):
                if isinstance(fields[name], _Figure):
                    fields[name].at(said)
        self.ask(**fields)

    def arrange(self, title: str) -> tuple[list[str], list[str]]:
        """Return pre_text and post_text.

        Sentences without figures are long paragraphs, which leaves an evidence budget to those with figures.
        """
        fillers = [" ".join(self.rng.sample(_FILLERS, count)) for count in (3, 3, 4)]
        self.say(fillers[2])
        topic = self.rng.choice(("training costs", "repair costs", "shipping costs", "sales commissions"))
        amounts = " , ".join(f"$ {self.figure(13, 390)} million" for _ in range(6))
        distraction = f"in the quarters of {self.year - 1} and {self.year} , {topic} were {amounts} ."
        self.rng.shuffle(self.blocks)
        cut = self.rng.randint(1, len(self.blocks) - 1)
        opening = f"{self.company} annual report {self.year} . {distraction} {fillers[0]}"
        intro = f"{fillers[1]} the following table presents {title} : ."
        return [opening, *itertools.chain(*self.blocks[:cut]), intro], [*itertools.chain(*self.blocks[cut:])]

    def ask(self, **fields: object) -> None:
        """Add a question of each of ``FAMILIES`` that ``fields`` can fill and whose program executes."""
        for template, *wordings in FAMILIES:
            if not {*_FIELD.findall(template + wordings[0])} <= fields.keys():
                continue
            figures = [fields[name] for name in _FIELD.findall(template)]
            program = template.format(**fields)
            execution = execute(tokenize(program), self.table)
            if execution.invalid or (_UNITLESS.search(template) and any(figure[0] == "-" for figure in figures)):
                continue
            wording = wordings[-1] if self.rng.random() < LOOSE else self.rng.choice(wordings[:-1])
            if self.rng.random() < 0.3:
                wording = re.sub("^what was", "what is", wording)
            question = wording.format(**fields).replace("total total ", "total ") + "?"
            places = {"text" if isinstance(figure.source, str) else "table" for figure in figures}
            self.asks.append({
                "qa": {"question": question, "program": program, "exe_ans": execution.result},
                "sources": dict.fromkeys(figure.source for figure in figures),
                "kind": "index " * ("const_100), divide" in program) + " ".join(operations(tokenize(program))),
                "evidence": "both" if len(places) == 2 else places.pop(),
            })  # fmt: skip

    def ask_grid(self, grid: _Grid, whole: str = "", **fields: str) -> None:
        """Ask about the figures of ``grid``; ``whole`` is the one that the others are parts of."""
        parts = [name for name in grid if name != whole]
        single = [[name] for name in self.rng.sample([*grid], min(4, len(grid)))]
        count = min(3, len(parts) - bool(whole))  # never all parts of the whole
        several = [sorted(self.rng.sample(parts, count), key=parts.index) for _ in range(3)] if count > 1 else []
        for names in single + several:
            rows = dict(zip("xzw", names, strict=False)) | ({"t": whole} if whole and len(names) > 1 else {})
            self.ask(**fields, **rows, **self.dated({letter: grid[name] for letter, name in rows.items()}))

    def dated(self, rows: _Grid) -> dict[str, str]:
        """Return the fields of dates drawn for ``rows``, whose figures are named as in ``FAMILIES``."""
        dates, figures = [*rows["x"]], [*rows["x"].values()]
        date = dates[-1] if len(dates) == 1 or self.rng.random() < LATEST else self.rng.choice(dates[:-1])
        fields = {"d": date} | {f"{letter}2": row[date] for letter, row in rows.items()}
        if len(dates) == 1:
            return fields
        (source, *others) = {figure.source for figure in figures}
        if not others and len(dates) == len(self.table[0]) - 1 and "%" not in figures[0]:  # a whole row
            fields["row"] = _Figure(self.table[source][0]).at(source)
        y0, y1 = (dates[place] for place in sorted(self.rng.sample(range(len(dates)), 2)))
        fields |= {"y0": y0, "y1": y1, "span": f"from {y0} to {y1}"}
        for letter, row in rows.items():
            fields |= {f"{letter}0": row[y0], f"{letter}1": row[y1]}
        low, high = sorted((fields["x0"], fields["x1"]), key=lambda figure: float(figure.rstrip("%")))
        if low != high:
            words = ("increase", "higher") if high == fields["x1"] else ("decrease", "lower")
            fields |= {"low": low, "high": high, "increase": words[0], "higher": words[1]}
        if len(dates) > 2:
            fields |= {"first": dates[-3], "last": dates[-1]} | dict(zip(("u0", "u1", "u2"), figures[-3:], strict=True))
        return fields


def _cell(figure: str, dollar: bool = False) -> str:
    """Return a figure as FinQA shows it: ``$ -14 ( 14 )``, ``12.4% ( 12.4 % )``."""
    bare = figure.strip("-%")
    shown = f"{figure} ( {bare} % )" if figure.endswith("%") else figure if figure == bare else f"{figure} ( {bare} )"
    return f"$ {shown}" if dollar else shown


# --- what a page tells ----------------------------------------------------------------------------------------------


def _make_table(page: _Page) -> str:
    """Make the page's table, ask about it, and return its title."""
    rng = page.rng
    title, listed, total, unit = rng.choice(SHEETS)
    names, money, index, percent = listed.split(", "), unit == _MONEY, unit == "index", unit == "%"
    years = [str(page.year - back) for back in range(rng.choice(COLUMNS) - 1 + index, -1, -1)]
    first = int(money and not total)  # the row that others are parts of is always shown, and the largest
    kept = rng.sample(names[first:], 3 if index else min(len(names), rng.randint(3, 5)) - first)
    names = names[:first] + sorted(kept, key=names.index)
    shares = [1.0 if index or name in names[:first] else rng.uniform(0.05, 0.4) for name in names]
    shares = [-share if name[0] == "-" else share for name, share in zip(names, shares, strict=True)]
    size = 120 if index else 400 if percent else 10 ** rng.uniform(2.4, 3.4)
    levels = [size * rng.uniform(0.85, 1.2) for _ in years]
    columns = [page.column([share * level for share in shares], bool(total)) for level in levels]
    if index:
        columns[0] = [100] * len(names)
    names = [name.lstrip("-") for name in names] + [total] * bool(total)
    corner = rng.choice(("", "", "" if percent else unit))
    step = -1 if rng.random() < LATER_FIRST else 1
    by_year = rng.random() < BY_YEAR
    page.table, grid = [[corner, *years[::step]]], {}
    for place, (name, numbers) in enumerate(zip(names, zip(*columns, strict=True), strict=True), start=1):
        figures = [_Figure(f"{number / 10:.1f}%" if percent else number) for number in numbers]
        page.table.append([name, *(_cell(x, money and place in (1, len(names))) for x in figures[::step])])
        grid[name] = {year: figure.at(page.table[0].index(year, 1) if by_year else place)
                      for year, figure in zip(years, figures, strict=True)}  # fmt: skip
    if by_year:
        page.table = [[*line] for line in zip(*page.table, strict=True)]
    # Programs write the first figures of an index as const_100.
    asked = {name: {year: row[year] for year in years[index:]} for name, row in grid.items()}
    page.ask_grid(asked, "" if percent or index else names[first - 1], **{"start": years[0]} if index else {})
    for name in rng.sample(names, rng.choice((1, 1, 1, 2))) if money else ():
        _tell_more(page, name, grid[name])
    return title if percent or index else f"{title} ( {unit} )"


def _tell_more(page: _Page, name: str, row: dict[str, _Figure]) -> None:
    """Tell something of a table row that needs the table as well."""
    rng, dated, first = page.rng, page.dated({"x": row}), min(row)
    value = float(dated["x2"])
    if value < 12:
        return
    if rng.random() < 0.25:  # the year before the table begins
        before, figure = str(int(first) - 1), page.figure(value * 0.6, value * 1.1)
        page.say(f"{name} totaled $ {{b}} million in {before} .", b=figure)
        page.ask_grid({name: {before: figure, first: row[first]}})
        return
    sentence = rng.choice(_MORE + (_LARGE, _LARGE, _LARGE) * (value > 400))
    figures = {_COST: {"cost": page.figure(value * 0.05, value * 0.4)},
               _LARGE: {"billions": page.figure(0.1, value / 1100, 1)}}  # fmt: skip
    page.say(sentence, x=name, d=dated["d"], x2=dated["x2"], event=rng.choice(_EVENTS), source=rng.choice(_SOURCES),
             unit=rng.choice(_UNITS), **figures.get(sentence, {}))  # fmt: skip


def _tell_amounts(page: _Page, whole: str, parts: Sequence[str]) -> None:
    """Tell an amount of two years, the later first, or some parts of a total of one year and then the total."""
    rng, year, level = page.rng, page.year, page.number(90, 980)
    names = rng.sample(parts, rng.choice((1, 1, 2, 3)))
    told = [(names[0], year), (names[0], year - 1)] if len(names) == 1 else [(name, year) for name in [*names, whole]]
    figures = [_Figure(level) if name == whole else page.figure(level * 0.08, level * 0.3) for name, _ in told]
    sentences = [f"{name} totaled $ {{f{place}}} million in {date} ." for place, (name, date) in enumerate(told)]
    page.say(*sentences, **{f"f{place}": figure for place, figure in enumerate(figures)})
    grid: _Grid = {}
    for (name, date), figure in sorted(zip(told, figures, strict=True), key=lambda one: one[0][1]):
        grid.setdefault(name, {})[str(date)] = figure
    page.ask_grid(grid, whole if whole in grid else "")


def generate(split: str, count: int | None = None, seed: int = 0) -> list[dict]:
    """Return ``count`` examples (by default ``DEFAULT_COUNTS``) of a split in FinQA's schema, without ``answer``.

    One to four in a row ask about the same page. The same arguments give the same examples on every machine; fewer are
    the first ones of more; two seeds give different pages of the same companies and number pools.
    """
    count = DEFAULT_COUNTS[split] if count is None else count
    examples, seen = [], Counter()
    for number in itertools.count():
        if len(examples) >= count:
            return examples[:count]
        page = _Page(seed, split, number)
        title = _make_table(page)
        told = [*page.rng.sample(_GROUPS, 2), page.rng.choice(NOTES)]
        for about in page.rng.sample(told, page.rng.choice((0, 0, 1, 1, 1) if page.blocks else (1, 1, 1, 2))):
            page.say(*about, d=page.year) if about in NOTES else _tell_amounts(page, *about)
        pre_text, post_text = page.arrange(title)
        lines = {text: f"text_{place}" for place, text in enumerate(pre_text + post_text)}
        lines |= {place: f"table_{place}" for place in range(len(page.table))}
        shared = {"pre_text": pre_text, "post_text": post_text, "table": page.table, "filename": page.filename}
        for order in range(1, page.rng.choice((1, 2, 2, 3, 3, 4, 4)) + 1):
            if not page.asks:
                break
            ask = _next_ask(page, seen, len(examples) + 1)
            page.asks = [x for x in page.asks if not {*ask["qa"].values()} & {x["qa"]["program"], x["qa"]["question"]}]
            gold = {lines[x]: x if isinstance(x, str) else " ".join(page.table[x]) for x in ask["sources"]}
            examples.append({"id": f"{page.filename}-{order}", **shared, "qa": ask["qa"] | {"gold_inds": gold}})


def _next_ask(page: _Page, seen: Counter[str], count: int) -> dict:
    """Return a question whose kind of program, then kind of evidence, is furthest behind its share of ``count``.

    So the mix comes out as wanted although most pages allow only some kinds of program. ``seen`` counts both.
    """
    asks = page.asks
    for shares, field in ((PROGRAM_SHARES, "kind"), (EVIDENCE_SHARES, "evidence")):
        lag = {kind: shares[kind] * count / 100 - seen[kind] for kind in sorted({ask[field] for ask in asks})}
        behind = max(lag, key=lag.__getitem__)
        seen[behind] += 1
        asks = [ask for ask in asks if ask[field] == behind]
    return page.rng.choice(asks)
