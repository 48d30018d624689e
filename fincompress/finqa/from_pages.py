"""Programs first: further questions about training pages, made from their tables and sentences.

A program of FinQA's mix is drawn first, on figures that the page shows, then worded from the names of rows and years
(as TaNOS does, arXiv 2604.21495). What else the page says stays as distraction.
"""

import random
import re
from collections import Counter
from dataclasses import replace

from fincompress.finqa import evidence, numbers, program
from fincompress.finqa.examples import Example
from fincompress.finqa.questions import Asker, Figure, Grid, next_ask, program_kind, unlike

# Per cent of FinQA's programs with one, two, and three or more steps (Chen et al. 2021, section 3). What a training
# part keeps of the release may have another mix.
STEPS = {1: 59.1, 2: 32.7, 3: 8.2}
LOOSE, LATEST = 0.3, 0.5  # of ``Asker``
PER_PAGE = 12  # questions about one page at most
UNDATED = "no year"  # stands for the date of a table with one column of amounts and no year

_YEAR = re.compile(r"\b(?:19[89]|20[0-4])\d\b")
_NO_DATE = re.compile(r"\b(?:thereafter|after|beyond|due|matur\w+|notes?)\b")  # a year beside these dates no figure
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


def make(examples: list[Example], count: int, seed: int, held_out: list[Example] = ()) -> list[Example]:
    """``count`` further examples about the pages of ``examples``, fewer where these do not allow so many.

    Their programs have the mix of those of ``examples``, brought to the published shares of steps, as far as the pages
    allow. None ``leaks`` a page of ``held_out``, as a report repeats figures of the years before. The same arguments
    give the same examples.
    """
    if not count:
        return []
    pages = list({example.page: example for example in examples}.values())
    places = figure_places(held_out)
    asks: dict[str, list[dict]] = {}
    for page in pages:
        of_page = page_asks(page, random.Random(f"questions {seed} {page.page}"))
        asks[page.page] = [ask for ask in of_page if not leaks(ask, page.table, places)]
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
            asks[page.page] = unlike(left, qa)
            keys = [f"table_{source}" if isinstance(source, int) else source for source in ask["sources"]]
            made.append(
                replace(
                    page, id=f"{page.id}-made-{turn}", question=qa["question"], program=qa["program"],
                    exe_ans=qa["exe_ans"], gold_inds=dict.fromkeys(keys, ""),
                )
            )  # fmt: skip
    return made


def figure_places(examples: list[Example]) -> dict[float, set[str]]:
    """Names of the pages on which each figure stands."""
    places: dict[float, set[str]] = {}
    for page in {example.page: example for example in examples}.values():
        for value, _ in numbers.numbers_in("\n".join(line.text for line in evidence.page_lines(page))):
            places.setdefault(value, set()).add(page.page)
    return places


def leaks(ask: dict, table: list[list[str]], places: dict[float, set[str]]) -> bool:
    """Whether one page holds all figures of a program, two of them of three digits or more, which is no chance.

    A table operation takes those of its row.
    """
    text = ask["qa"]["program"]
    figures = evidence.numbers_needed(text)
    for name in program.operands(text)[1]:
        figures |= numbers.numbers_in("|".join(cell for row in table if row[0] == name for cell in row[1:]))
    values = [value for value, _ in figures]
    telling = sum(len(f"{value:g}".replace(".", "")) > 2 for value in values)
    return telling > 1 and bool(set.intersection(*(places.get(value, set()) for value in values)))


def program_shares(examples: list[Example]) -> dict[str, float]:
    """Per cent of each kind of program, as ``Asker.asks`` names kinds, at the published shares of steps."""
    kinds = Counter(program_kind(example.program) for example in examples)
    steps = {kind: min(3, len(kind.removeprefix("index ").split())) for kind in kinds}
    totals = Counter()
    for kind, number in kinds.items():
        totals[steps[kind]] += number
    return {kind: STEPS[steps[kind]] * number / totals[steps[kind]] for kind, number in kinds.items()}


def page_asks(page: Example, rng: random.Random) -> list[dict]:
    """All that ``Asker`` asks about a page's table and about sentences that tell an amount of several years."""
    table = page.table or [[""]]
    about_table = Asker(rng, table, LOOSE, LATEST)
    grid = table_grid(table)
    names = list(grid)
    index = {name: row for name, row in grid.items() if len(row) > 2 and re.match(r"100(\.0+)?$", [*row.values()][0])}
    if index and len(index) == len(grid):  # what an investment of 100 became
        start, *later = next(iter(index.values()))
        about_table.ask_grid({name: {year: row[year] for year in later} for name, row in index.items()}, start=start)
    else:
        # Rows below zero throughout lose their sign, as FinQA's questions have what is paid or lost: "dividends of 5".
        # No sum or share takes one of them and a row that has its sign.
        paid = {name for name, row in grid.items() if all(figure[0] == "-" for figure in row.values())}
        ask_rows(about_table, {name: row for name, row in grid.items() if name not in paid}, names)
        ask_rows(about_table, {name: _unsigned(grid[name]) for name in names if name in paid}, names)
    for ask in about_table.asks:
        ask["qa"]["question"] = ask["qa"]["question"].replace(f" in {UNDATED}", "")
    about_text = Asker(rng, [[]], LOOSE, LATEST)
    for place, text in enumerate(page.pre_text + page.post_text):
        for name, row in told(numbers.clean_sentence(text)).items():
            about_text.ask_grid({name: {year: Figure(figure).at(f"text_{place}") for year, figure in row.items()}})
    return about_table.asks + about_text.asks


def ask_rows(asker: Asker, rows: Grid, names: list[str]) -> None:
    """Ask about rows of a table whose rows have these ``names``, and of each total about what stands above it."""
    asker.ask_grid(rows)
    for whole in [name for name in rows if name.startswith("total")]:
        above = names[: names.index(whole)]
        begin = max((i + 1 for i, name in enumerate(above) if name.startswith("total")), default=0)
        parts = [name for name in above[begin:] if name in rows]
        if parts:
            asker.ask_grid({name: rows[name] for name in [*parts, whole]}, whole)


def _unsigned(row: dict[str, Figure]) -> dict[str, Figure]:
    return {year: Figure(figure[1:]).at(figure.source) for year, figure in row.items()}


def table_grid(table: list[list[str]]) -> Grid:
    """The figures of a table by row and by year, in order of years; of one with a row a year, by column and by year.

    Only rows with a name of their own and a figure, no year, of every year; of one column of amounts without a year the
    date is ``UNDATED``.
    """
    columns = _by_year(table[0])
    rows = _by_year([row[0] if len(row) == len(table[0]) else "" for row in table])
    if len(rows) > 1 >= len(columns):
        cells = [(name, {year: (i, j) for year, i in rows.items()}) for j, name in enumerate(table[0]) if j]
    else:
        columns = columns or ({UNDATED: 1} if len(table[0]) == 2 else {})
        whole = [(row[0], i) for i, row in enumerate(table) if i and len(row) == len(table[0])]
        cells = [(name, {year: (i, j) for year, j in columns.items()}) for name, i in whole]
    grid: Grid = {}
    named = Counter(clean_name(name) for name, _ in cells)
    for name, places in [(clean_name(name), places) for name, places in cells]:
        figures = {year: Figure(numbers.clean_cell(table[i][j])).at(i) for year, (i, j) in places.items()}
        dates = all(figure.isdigit() and int(figure) in numbers.YEARS for figure in figures.values())
        if name and named[name] == 1 and not dates and all(map(_is_amount, figures.values())):
            grid[name] = figures
    return grid


def _is_amount(figure: str) -> bool:
    """Whether a cell is a number but 0, and no dash."""
    return bool(_FIGURE.fullmatch(figure)) and not numbers.DASH.fullmatch(figure) and float(figure.rstrip("%")) != 0


def _by_year(labels: list[str]) -> dict[str, int]:
    """Where each year stands, in order of years: of labels with one year each, no two of them the same."""
    years_at = {
        place: _YEAR.findall(label) for place, label in enumerate(labels) if place and not _NO_DATE.search(label)
    }
    single = {place: years[0] for place, years in years_at.items() if len(years) == 1}
    if len(single) == 1 and any(len(years) > 1 and {*single.values()} <= {*years} for years in years_at.values()):
        return {}  # labels that lost their places
    counts = Counter(single.values())
    return dict(sorted((year, place) for place, year in single.items() if counts[year] == 1))


def clean_name(name: str) -> str:
    """A row's name as a question says it, without notes in brackets; empty where it is none."""
    name = " ".join(re.sub(r"\([^)]*\)|[:*()]", " ", name.lower()).split()).strip(" .,-")
    name = re.sub(r"^(?:we (?:had )?|the company |had |included )+(?:an? )?", "", name)
    return name if re.search("[a-z]{3}", name) and len(name) <= 70 and not re.search(r"(?:19|20)\d\d", name) else ""


def told(sentence: str) -> dict[str, dict[str, str]]:
    """Amounts of several years that a sentence tells, by what they are of, in order of years."""
    rows = {}
    for pattern in _TELLS:
        for match in pattern.finditer(sentence):
            years = re.findall(r"\d{4}", match["years"])
            amounts = re.findall(r"[\d.]*\d%?", match["amounts"])
            name = clean_name(match["name"])
            units = re.findall("[mb]illion", match["amounts"])
            alike = len(set(units)) < 2 and len({amount[-1] == "%" for amount in amounts}) == 1
            if name and alike and len(years) == len(amounts) == len(set(years)) and all(map(_is_amount, amounts)):
                rows[name] = dict(sorted(zip(years, amounts, strict=True)))
    return rows
