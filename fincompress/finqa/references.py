"""Figures by reference: a program names a cell by row and column, ``r2c1``, or a figure of a sentence, ``n3``.

To copy a figure a small model must find row and column and then spell digits; to refer to it, each is one choice. The
prompt says which is which: rows and columns are numbered, ``r2 net sales|41|39`` under ``|c1 2018|c2 2017``, and so are
the figures of sentences, ``a gain of $n3=5 million``. A minus sign or ``%`` stays the program's own: ``-r2c1``,
``n3%``. References are resolved before a program is executed or scored.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from fincompress.finqa import program
from fincompress.finqa.evidence import HEADER, Line
from fincompress.finqa.numbers import FIGURE, YEARS

REFERENCE = re.compile(r"\b(?:r\d+c\d+|n\d+)\b")
_ROW, _TOLD = re.compile(r"r(\d+) "), re.compile(rf"\b(n\d+)=({FIGURE.pattern})")


def number_lines(lines: Sequence[Line]) -> list[Line]:
    """``lines`` of a page with their rows, columns and figures numbered, in reading order."""
    numbered, rows, figures = [], 0, 0

    def number(match: re.Match) -> str:
        nonlocal figures
        if "." not in match[0] and float(match[0].replace(",", "")) in YEARS:
            return match[0]
        figures += 1
        return f"n{figures}={match[0]}"

    for line in lines:
        if line.key == HEADER:
            first, *columns = line.text.split("|")
            text = "|".join([first, *(f"c{place} {name}".rstrip() for place, name in enumerate(columns, start=1))])
        elif line.is_row:
            rows += 1
            text = f"r{rows} {line.text}"
        else:
            text = FIGURE.sub(number, line.text)
        numbered.append(Line(line.key, text))
    return numbered


def figures_of(text: str) -> dict[str, str]:
    """The figure, without sign and ``%``, of every reference that a prompt, or one of its lines, allows."""
    found = {}
    for line in text.split("\n"):
        if row := _ROW.match(line):
            for place, cell in enumerate(line.split("|")[1:], start=1):
                if figure := FIGURE.search(cell):
                    found[f"r{row[1]}c{place}"] = figure[0].replace(",", "")
        else:
            found |= {name: figure.replace(",", "") for name, figure in _TOLD.findall(line)}
    return found


def refer(text: str, lines: Sequence[Line], gold: Sequence[str]) -> str:
    """The program ``text`` with references to ``lines`` in place of the figures that they show.

    Of several places with one figure, those in the lines of the keys ``gold`` come first, then reading order. A figure
    that no line shows stays.
    """
    places: dict[float, str] = {}
    for line in sorted(lines, key=lambda line: line.key not in gold):
        for name, figure in figures_of(line.text).items():
            places.setdefault(float(figure), name)

    tokens = program.tokenize(text)
    for step in range(0, len(tokens) - 1, 4):
        if tokens[step][:-1] in program.ARITHMETIC:
            for place in (step + 1, step + 2):
                if written := re.fullmatch(r"(-?)([\d.,]*\d)(%?)", tokens[place]):
                    sign, figure, percent = written.groups()
                    tokens[place] = sign + places.get(float(figure.replace(",", "")), figure) + percent
    return program.detokenize(tokens)


def resolve(text: str, figures: dict[str, str]) -> str:
    """The program ``text`` with ``figures`` in place of references; an unknown one stays, and executes as invalid."""
    return REFERENCE.sub(lambda match: figures.get(match[0], match[0]), text)
