"""Programs first: further questions about training pages, made from their tables and sentences.

A program of FinQA's mix is drawn first, on figures that the page shows, then worded from the names of rows and years
(as TaNOS does, arXiv 2604.21495). What else the page says stays as distraction.
"""

import random
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace

from fincompress.finqa import numbers, program
from fincompress.finqa.examples import Example
from fincompress.finqa.questions import FAMILIES, Asker, Figure, Grid, next_ask

# Per cent of FinQA's programs with one, two, and three or more steps (Chen et al. 2021, section 3). What a training
# part keeps of the release may have another mix.
STEPS = {1: 59.1, 2: 32.7, 3: 8.2}
LOOSE, LATEST = 0.3, 0.5  # of ``Asker``
PER_PAGE = 12  # questions about one page at most
SHORTENED = 0.4  # share of long names that a question says without one of their words
UNDATED = "no year"  # stands for the date of a table with one column of amounts and no year
# Kinds of question that only real pages are asked, as in ``FAMILIES``.
FURTHER = (
    ("divide({s2}, {b2})", "what percentage of {b} was {s} in {d}", "what was {s} as a percentage of {b} in {d}",
     "{s} was what percent of {b} in {d}", "what portion of {b} came from {s} in {d}"),
    ("divide({s2}, {b2})", "what percent of {b} did {s} make up in {d}", "{s} were what part of {b} in {d}"),
    ("add({x2}, {z2}), divide(#0, const_2)", "what was the average of {x} and {z} in {d}",
     "for {x} and {z} , what was the average in {d}"),
    ("subtract({x2}, {z2}), divide(#0, {z2})", "by what percent was {x} above {z} in {d}",
     "what was the percentage difference between {x} and {z} in {d}"),
    ("add({x2}, {z2}), add(#0, {w2})", "what was the sum of {x} , {z} and {w} in {d}",
     "how much were {x} , {z} and {w} in all in {d}"),
    ("multiply({number}, {price})", "what was the cost of the shares in {d}", "how much was paid for shares in {d}"),
    ("multiply({number}, {price}), divide(#0, const_1000000)", "what was the cost of the shares in {d} , in millions",
     "how many millions were paid for shares in {d}"),
)  # fmt: skip

_YEAR = re.compile(r"\b(?:(?:19[89]|20[0-4])\d|(?:\d\d?/){1,2}\d\d)\b(?!/)")
# Heads figures of another unit than the next column's.
_RATE = re.compile(r"price|per ?share|average|\brate|percent|life")
_FIGURE = re.compile(r"-?(?:\d+\.?\d*|\.\d+)%?")
_NAME = r"(?P<name>[a-z][a-z0-9 /&'()-]{3,90}?)"
_SAYS = r" (?:was|were|totaled|totalled|aggregated|approximated|amounted to|of)(?: approximately| about)? "
_AMOUNTS = (
    r"(?P<amounts>\$?[\d.]+%?(?: [mb]illion)?(?:, \$?[\d.]+%?(?: [mb]illion)?)*,? and \$?[\d.]+%?(?: [mb]illion)?)"
)
_YEARS = r"(?P<years>(?:19|20)\d\d(?:, (?:19|20)\d\d)*,? and (?:19|20)\d\d)"
# "rent expense was $71 million and $74 million in 2014 and 2013", and with the years in front.
_TELLS = (
    re.compile(rf"(?:^|[.,;] |\bthe |\bour ){_NAME}{_SAYS}{_AMOUNTS},? (?:[a-z]+ )*(?:[a-z]+ \d\d?, )?{_YEARS}\b"),
    re.compile(rf"\b{_YEARS}, (?:the |our |we had )?{_NAME}{_SAYS}{_AMOUNTS},? respectively"),
)


def make(examples: list[Example], count: int, seed: int) -> list[Example]:
    """``count`` further examples about the pages of ``examples``, fewer where these do not allow so many.

    Their programs have the mix of those of ``examples``, brought to the published shares of steps, as far as the pages
    allow. The same arguments give the same examples.
    """
    if not count:
        return []
    pages = list({example.page: example for example in examples}.values())
    asks = {page.page: page_asks(page, random.Random(f"questions {seed} {page.page}")) for page in pages}
    rng, seen, shares = random.Random(f"questions {seed}"), Counter(), program_shares(examples)
    known = {(example.page, example.question) for example in examples}
    made: list[Example] = []
    for turn in range(PER_PAGE):
        rng.shuffle(pages)
        for page in pages:
            if len(made) >= count:
                return made
            left = [ask for ask in asks[page.page] if (page.page, ask["qa"]["question"]) not in known]
            if not left:
                continue
            ask = next_ask(left, rng, seen, len(made) + 1, kind=shares)
            qa = ask["qa"]
            asks[page.page] = [
                one for one in left if not {*qa.values()} & {one["qa"]["program"], one["qa"]["question"]}
            ]
            made.append(
                replace(
                    page, id=f"{page.id}-made-{turn}", question=qa["question"], program=qa["program"],
                    exe_ans=qa["exe_ans"], gold_inds=gold_inds(page, ask["sources"]),
                )
            )  # fmt: skip
    return made


def program_shares(examples: list[Example]) -> dict[str, float]:
    """Per cent of each kind of program, as ``Asker.asks`` names kinds, at the published shares of steps."""
    kinds = Counter(
        "index " * ("const_100), divide" in example.program)
        + " ".join(program.operations(program.tokenize(example.program)))
        for example in examples
    )
    steps = {kind: min(3, len(kind.removeprefix("index ").split())) for kind in kinds}
    totals = Counter()
    for kind, number in kinds.items():
        totals[steps[kind]] += number
    return {kind: STEPS[steps[kind]] * number / totals[steps[kind]] for kind, number in kinds.items()}


def gold_inds(page: Example, sources: Iterable[int | str]) -> dict[str, str]:
    """The evidence of figures from rows of the table, given by number, and from sentences, given by key."""
    rows = {f"table_{i}": " ".join(row) for i, row in enumerate(page.table)}
    texts = {f"text_{i}": text for i, text in enumerate(page.pre_text + page.post_text)}
    keys = [f"table_{source}" if isinstance(source, int) else source for source in sources]
    return {key: (rows | texts)[key] for key in keys}


def page_asks(page: Example, rng: random.Random) -> list[dict]:
    """All that ``Asker`` asks about a page's table and about sentences that tell an amount of several years."""
    table = page.table or [[""]]
    about_table = Asker(rng, table, LOOSE, LATEST, FAMILIES + FURTHER)
    grid = table_grid(table)
    names = list(grid)
    index = {name: row for name, row in grid.items() if len(row) > 2 and re.match(r"100(\.0+)?$", [*row.values()][0])}
    if index and len(index) == len(grid):  # what an investment of 100 became
        start, *later = next(iter(index.values()))
        about_table.ask_grid({name: {year: row[year] for year in later} for name, row in index.items()}, start=start)
    elif grid:
        about_table.ask_grid(grid)
        for whole in [name for name in names if name.startswith("total")]:
            parts = names[: names.index(whole)]
            begin = max((i + 1 for i, name in enumerate(parts) if name.startswith("total")), default=0)
            if parts[begin:]:
                about_table.ask_grid({name: grid[name] for name in [*parts[begin:], whole]}, whole)
    if not grid or len(_by_year(table[0])) < len(table[0]) - 1 and not _years_down(table):
        ask_by_heading(about_table)
    labels = [clean_label(label) for label in [*table[0], *(row[0] for row in table[1:])]]
    for ask in about_table.asks:
        ask["qa"]["question"] = shorten(ask["qa"]["question"].replace(f" in {UNDATED}", ""), labels, rng)
    about_text = Asker(rng, [[]], LOOSE, LATEST)
    for place, text in enumerate(page.pre_text + page.post_text):
        for name, row in told(numbers.clean_sentence(text)).items():
            about_text.ask_grid({name: {year: Figure(figure).at(f"text_{place}") for year, figure in row.items()}})
    return about_table.asks + about_text.asks


def ask_by_heading(asker: Asker) -> None:
    """Ask about two or three cells of one column, and of one row, of a table whose columns are not years."""
    head, *rows = asker.table
    labels = [clean_label(row[0]) for row in rows]
    columns: Grid = {clean_label(label): {} for label in head[1:]}
    for i, (row, label) in enumerate(zip(rows, labels, strict=True), 1):
        cells = [Figure(numbers.clean_cell(cell)).at(i) for cell in row[1:]]
        if label and labels.count(label) == 1 and len(cells) == len(columns):
            for heading, cell in zip(columns, cells, strict=True):
                columns[heading] |= {label: cell} if heading and _is_amount(cell) else {}
    lines: Grid = {
        label: {name: column[label] for name, column in columns.items() if label in column} for label in labels
    }
    for line, cells in [*columns.items(), *lines.items()]:
        before, fields = len(asker.asks), {}
        if line in lines:
            number = [cell for name, cell in cells.items() if re.search("number of ?shares|shares ?purchased", name)]
            price = [cell for name, cell in cells.items() if re.search("(price|cost) .*per ?share", name)]
            fields = {"number": number[0], "price": price[0]} if number and price else {}
            cells = {name: cell for name, cell in cells.items() if not _RATE.search(name)}
        named = line in columns and asker.rng.random() < 0.5  # "price of 2014 notes" against "2014 notes in price"
        names = {name: f"{line} of {name}" if named else name for name in cells}
        grid = {names[name]: {UNDATED if named else line: cell} for name, cell in cells.items()}
        asker.ask_grid(grid, **fields)
        for name in cells:
            if re.search("^total|total$" if line in columns else "total$", name):
                asker.ask_grid(grid, names[name])
        for ask in asker.asks[before:]:
            place = asker.rng.choice((" in ", " for ", " , "))
            ask["qa"]["question"] = ask["qa"]["question"].replace(f" in {line}", place + line)


def shorten(question: str, names: list[str], rng: random.Random) -> str:
    """``question`` with some long ones of ``names`` said without one word, which leaves them apart from the others."""
    for name in names:
        words = name.split()
        optional = [place for place, word in enumerate(words) if word.isalpha() and word != "total"]
        if len(words) < 3 or not optional or name not in question or rng.random() >= SHORTENED:
            continue
        del words[rng.choice(optional)]
        if not any({*words} <= {*other.split()} for other in names if other != name):
            question = question.replace(name, " ".join(words))
    return question


def table_grid(table: list[list[str]]) -> Grid:
    """The figures of a table by row and by year, in order of years; of one with a row a year, by column and by year.

    Only rows that have a figure of every year; of one column of amounts without a year the date is ``UNDATED``.
    """
    columns, rows = _by_year(table[0]), _years_down(table)
    if rows:
        cells = {name: {year: (i, j) for year, i in rows.items()} for j, name in enumerate(table[0]) if j}
    else:
        columns = columns or ({UNDATED: 1} if len(table[0]) == 2 else {})
        by_row = {row[0]: i for i, row in enumerate(table) if i and len(row) == len(table[0])}
        cells = {name: {year: (i, j) for year, j in columns.items()} for name, i in by_row.items()}
    grid: Grid = {}
    for name, places in cells.items():
        figures = {year: Figure(numbers.clean_cell(table[i][j])).at(i) for year, (i, j) in places.items()}
        name = clean_name(name)
        if name and figures and all(map(_is_amount, figures.values())):
            grid[name] = figures
    return grid


def _is_amount(figure: str) -> bool:
    """Whether a cell is a number but 0; a dash became its code point in hexadecimal, 2013 or 2014."""
    return bool(_FIGURE.fullmatch(figure)) and figure not in ("2013", "2014") and float(figure.rstrip("%")) != 0


def _years_down(table: list[list[str]]) -> dict[str, int]:
    """Where each year's row stands, of a table with years down its side and not along its head; else empty."""
    rows = _by_year([row[0] if len(row) == len(table[0]) else "" for row in table])
    return rows if len(rows) > 1 >= len(_by_year(table[0])) else {}


def _by_year(labels: list[str]) -> dict[str, int]:
    """Where each year stands, in order of years: of labels with one year each, no two of them the same."""
    found = {place: [_full_year(year) for year in _YEAR.findall(label)] for place, label in enumerate(labels) if place}
    years = [one[0] for one in found.values() if len(one) == 1]
    single = {one[0]: place for place, one in found.items() if len(one) == 1 and years.count(one[0]) == 1}
    return dict(sorted(single.items()))


def _full_year(year: str) -> str:
    """``2007`` of ``2007`` and of ``12/31/07``."""
    short = int(year[-2:])
    return year if "/" not in year else f"{2000 + short if short < 50 else 1900 + short}"


def clean_label(label: str) -> str:
    """A row's or column's name as a question says it, without notes in brackets; empty where it is none."""
    label = " ".join(re.sub(r"\([^)]*\)|[:*()]", " ", label.lower()).split()).strip(" .,-")
    return label if re.search("[a-z]{3}", label) and len(label) <= 70 else ""


def clean_name(name: str) -> str:
    """``clean_label`` without a verb in front; empty also where a year is part of it."""
    name = re.sub(r"^(?:we (?:had )?|the company |had |included )+(?:an? )?", "", clean_label(name))
    return name if not re.search(r"(?:19|20)\d\d", name) else ""


def told(sentence: str) -> dict[str, dict[str, str]]:
    """Amounts of several years that a sentence tells, by what they are of, in order of years."""
    found = {}
    for pattern in _TELLS:
        for match in pattern.finditer(sentence):
            years = re.findall(r"\d{4}", match["years"])
            amounts = re.findall(r"[\d.]*\d%?", match["amounts"])
            name = clean_name(match["name"])
            if name and len(years) == len(amounts) == len(set(years)) and all(map(_is_amount, amounts)):
                found[name] = dict(sorted(zip(years, amounts, strict=True)))
    return found
