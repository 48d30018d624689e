"""Questions about figures: FinQA's kinds of program, ways to ask for each, and which of them a page's figures allow."""

from __future__ import annotations

import random
import re
from collections import Counter

from fincompress.finqa.numbers import clean_cell
from fincompress.finqa.program import execute, operations, tokenize

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


class Figure(str):
    """A figure as programs write it (``-14``, ``12.4%``), or a row's name, and the line that shows it."""

    source: int | str  # a row of the table, or a sentence

    def at(self, source: int | str) -> Figure:
        self.source = source
        return self


Grid = dict[str, dict[str, Figure]]  # figures by what they are of, then by date
FIELD = re.compile(r"{(\w+)}")  # of a template


NEEDED = [set(FIELD.findall(template + wording)) for template, wording, *_ in FAMILIES]  # what each is filled with

# Of a row whose figures are of one share, barrel, ...
_EACH = re.compile(r"\bper\b|\b(?:average|closing|conversion|exercise|market|share|stock) prices?\b|grant date")
# Programs whose result has another unit than their figures, which must be positive.
_UNITLESS = re.compile(r"greater|multiply|divide\(\S+ (?!const_[23])")


class Asker:
    """All that could be asked about the figures of one page, whose table is ``table``: ``asks``.

    ``loose`` is the share of questions with the last, freest wording of their family, ``latest`` the share of those
    about one date that are about the latest.
    """

    def __init__(self, rng: random.Random, table: list[list[str]], loose: float, latest: float):
        self.rng, self.table, self.loose, self.latest = rng, table, loose, latest
        self.asks: list[dict] = []

    def ask(self, **fields: object) -> None:
        """Add a question of each of ``FAMILIES`` that ``fields`` can fill and whose program executes."""
        for (template, *wordings), needed in zip(FAMILIES, NEEDED, strict=True):
            if not needed <= fields.keys():
                continue
            figures = [fields[name] for name in FIELD.findall(template)]
            program = template.format(**fields)
            value = execute(tokenize(program), self.table)
            if value is None or (_UNITLESS.search(template) and any(figure[0] == "-" for figure in figures)):
                continue
            wording = wordings[-1] if self.rng.random() < self.loose else self.rng.choice(wordings[:-1])
            if self.rng.random() < 0.3:
                wording = re.sub("^what was", "what is", wording)
            question = wording.format(**fields).replace("total total ", "total ") + "?"
            places = {"text" if isinstance(figure.source, str) else "table" for figure in figures}
            self.asks.append({
                "qa": {"question": question, "program": program, "exe_ans": value},
                "sources": dict.fromkeys(figure.source for figure in figures),
                "kind": program_kind(program),
                "evidence": "both" if len(places) == 2 else places.pop(),
            })  # fmt: skip

    def ask_grid(self, grid: Grid, whole: str = "", **fields: str) -> None:
        """Ask about the figures of ``grid``; ``whole`` is the one that the others are parts of."""
        parts = [name for name in grid if name != whole]
        single = [[name] for name in self.rng.sample([*grid], min(4, len(grid)))]
        count = min(3, len(parts) - bool(whole))  # never all parts of the whole
        several = [sorted(self.rng.sample(parts, count), key=parts.index) for _ in range(3)] if count > 1 else []
        for names in single + several:
            rows = dict(zip("xzw", names, strict=False)) | ({"t": whole} if whole and len(names) > 1 else {})
            units = {
                (figure[-1] == "%", bool(_EACH.search(name)))
                for name in rows.values()
                for figure in grid[name].values()
            }
            if len(units) > 1:
                continue  # amounts, percentages and prices have nothing to do with one another
            self.ask(**fields, **rows, **self.dated({letter: grid[name] for letter, name in rows.items()}))

    def dated(self, rows: Grid) -> dict[str, str]:
        """Return the fields of dates drawn for ``rows``, whose figures are named as in ``FAMILIES``."""
        dates, figures = [*rows["x"]], [*rows["x"].values()]
        date = dates[-1] if len(dates) == 1 or self.rng.random() < self.latest else self.rng.choice(dates[:-1])
        fields = {"d": date} | {f"{letter}2": row[date] for letter, row in rows.items()}
        if len(dates) == 1:
            return fields
        sources = {figure.source for figure in figures}
        if len(sources) == 1 and len(dates) == len(self.table[0]) - 1 and "%" not in figures[0]:  # a whole row
            name, *cells = self.table[source := sources.pop()]
            if {*figures} == {*map(clean_cell, cells)}:  # not without the sign that table operations would read
                fields["row"] = Figure(name).at(source)
        y0, y1 = (dates[place] for place in sorted(self.rng.sample(range(len(dates)), 2)))
        fields |= {"y0": y0, "y1": y1, "span": f"from {y0} to {y1}"}
        for letter, row in rows.items():
            fields |= {f"{letter}0": row[y0], f"{letter}1": row[y1]}
        low, high = sorted((fields["x0"], fields["x1"]), key=lambda figure: float(figure.rstrip("%")))
        if low != high:
            words = ("increase", "higher") if high == fields["x1"] else ("decrease", "lower")
            fields |= {"low": low, "high": high, "increase": words[0], "higher": words[1]}
        if len(dates) > 2 and int(dates[-1]) - int(dates[-3]) == 2:
            fields |= {"first": dates[-3], "last": dates[-1]} | dict(zip(("u0", "u1", "u2"), figures[-3:], strict=True))
        return fields


def program_kind(program: str) -> str:
    """The operations of a program in order; "index" before those of what an investment of 100 became."""
    return "index " * ("const_100), divide" in program) + " ".join(operations(tokenize(program)))


def unlike(asks: list[dict], qa: dict) -> list[dict]:
    """The asks that have neither the question nor the program of ``qa``, which was taken."""
    return [ask for ask in asks if not {*qa.values()} & {ask["qa"]["program"], ask["qa"]["question"]}]


def next_ask(asks: list[dict], rng: random.Random, seen: Counter[str], count: int, **shares: dict[str, float]) -> dict:
    """Return the ask whose kind is furthest behind its share, in per cent, of ``count``; among equals, one by chance.

    ``shares`` is by field of an ask, the most important first. So the mix comes out as wanted although most pages allow
    only some kinds of program. ``seen`` counts every kind.
    """
    for field, of_kind in shares.items():
        lag = {kind: of_kind.get(kind, 0) * count / 100 - seen[kind] for kind in sorted({ask[field] for ask in asks})}
        behind = max(lag, key=lag.__getitem__)
        seen[behind] += 1
        asks = [ask for ask in asks if ask[field] == behind]
    return rng.choice(asks)
