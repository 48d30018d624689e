"""A synthetic FinQA: invented report pages, questions, programs and gold evidence in FinQA's schema, from a seed.

It stands in where neither the data nor a network is there. It is much easier than FinQA, on purpose: a model of 135
million parameters has to learn it from 700 examples, within two minutes. Tables are small, figures short, and questions
name row and year as the table does; what is left is choosing row, column and sentence among others of their kind.
Splits share wordings, row names and dates only: companies and numbers of three digits or more belong to one
(``may_show``).
"""

import itertools
import random
import zlib
from collections import Counter
from collections.abc import Sequence

from fincompress.finqa.numbers import YEARS
from fincompress.finqa.questions import FIELD, Asker, Figure, Grid, next_ask, unlike

DEFAULT_COUNTS = {"train": 900, "dev": 400, "test": 400}

# Per cent of the programs by their operations, and of the questions by where the evidence lies: the commonest kinds of
# FinQA's dev split. "index" would mark programs on an index that starts at 100.
PROGRAM_SHARES = {
    "divide": 35, "subtract": 20, "add": 8, "multiply": 4, "table_average": 3, "table_max": 2,
    "subtract divide": 25, "add divide": 3,
}  # fmt: skip
EVIDENCE_SHARES = {"table": 61.4, "text": 22.4, "both": 16.2}

# How hard it is to find an operand: raise LOOSE and BY_YEAR, lower LATER_FIRST and LATEST for a harder set.
LOOSE = 0.0  # of the questions are worded freely: the last wording of a family
LATER_FIRST = 1.0  # of the tables show the later year first
LATEST = 0.9  # of the questions about one date are about the latest
COLUMNS = (1, 2, 2, 2, 2, 2, 2)  # how many years a table has, to choose from
BY_YEAR = 0.0  # of the tables have a row a year

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
    if number == 0 or abs(number) in YEARS:
        return False
    # A checksum: under a remainder, parts of one split would hardly ever sum to a total of that split.
    owner = ("train", "train", "dev", "test")[zlib.crc32(str(abs(number)).rstrip("0").encode()) % 4]
    return abs(number) < 100 or owner == split


# --- pages ----------------------------------------------------------------------------------------------------------

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


class _Page(Asker):
    """A page while it is made: its table, its sentences, and all that could be asked about them."""

    def __init__(self, seed: int, split: str, number: int):
        # random.Random hashes a string with SHA-512: the same everywhere, unlike hash().
        super().__init__(random.Random(f"{seed}/{split}/{number}"), [], LOOSE, LATEST)
        self.split = split
        head, tail = self.rng.choice(_NAMES[split].split()), self.rng.choice(_ENDINGS)
        self.company, self.year = head + tail, self.rng.randint(2001, 2022)
        self.filename = f"{head[:3]}{tail[0]}".upper() + f"/{self.year}/page_{number}.pdf"
        self.blocks: list[list[str]] = []  # sentences that stand one after the other

    def number(self, low: float, high: float) -> int:
        """Return a number from ``low`` to ``high`` that this split may show; higher if there is none."""
        low, high = max(1, round(low)), max(2, round(high))
        draws = (self.rng.randint(low, high + attempt // 20) for attempt in itertools.count())
        return next(number for number in draws if may_show(number, self.split))

    def figure(self, low: float, high: float, decimals: int = 0, unit: str = "") -> Figure:
        number = self.number(low * 10**decimals, high * 10**decimals)
        return Figure(f"{number / 10**decimals:.{decimals}f}{unit}")

    def column(self, levels: Sequence[float], total: bool) -> list[int]:
        """Return a number near each of ``levels`` and, if ``total``, their sum, all of which the split may show."""
        for attempt in itertools.count():
            drawn = [self.number(abs(level) * 0.88, abs(level) * 1.14 + attempt / 50) for level in levels]
            drawn = [-number if level < 0 else number for number, level in zip(drawn, levels, strict=True)]
            if not total or may_show(sum(drawn), self.split):
                return drawn + [sum(drawn)] * total

    def say(self, *sentences: str, **fields: object) -> None:
        """Add sentences, draw those of their figures that ``fields`` lacks, and ask about them."""
        for name in FIELD.findall(" ".join(sentences)):
            if name in _RANGES:
                fields[name] = self.figure(*_RANGES[name])
        shown = {name: _cell(field) if isinstance(field, Figure) else field for name, field in fields.items()}
        self.blocks.append([sentence.format(**shown) for sentence in sentences])
        for sentence, said in zip(sentences, self.blocks[-1], strict=True):
            for name in FIELD.findall(sentence):
                if isinstance(fields[name], Figure):
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
        figures = [Figure(f"{number / 10:.1f}%" if percent else number) for number in numbers]
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


def _tell_more(page: _Page, name: str, row: dict[str, Figure]) -> None:
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
    figures = [Figure(level) if name == whole else page.figure(level * 0.08, level * 0.3) for name, _ in told]
    sentences = [f"{name} totaled $ {{f{place}}} million in {date} ." for place, (name, date) in enumerate(told)]
    page.say(*sentences, **{f"f{place}": figure for place, figure in enumerate(figures)})
    grid: Grid = {}
    for (name, date), figure in sorted(zip(told, figures, strict=True), key=lambda pair: pair[0][1]):
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
            ask = next_ask(page.asks, page.rng, seen, len(examples) + 1, kind=PROGRAM_SHARES, evidence=EVIDENCE_SHARES)
            page.asks = unlike(page.asks, ask["qa"])
            gold = {lines[x]: x if isinstance(x, str) else " ".join(page.table[x]) for x in ask["sources"]}
            examples.append({"id": f"{page.filename}-{order}", **shared, "qa": ask["qa"] | {"gold_inds": gold}})
