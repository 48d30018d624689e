"""Redraw the figures of a prompt and its program together: the skill is to find and copy them, not to remember them."""

import random
import re

from fincompress.finqa import program
from fincompress.finqa.numbers import FIGURE, YEARS, parse_number

SMALL = 31  # whole numbers up to this are kept: days of a month, counts, notes
KEPT = (0, 100, 500)  # programs write the base of an index, and of a percentage, as const_100; 500 names an index
DATE = re.compile(r"([1-9]|[12]\d|3[01])(19[89]|20[0-4])\d")  # day and year, as rows' names have them: 312013
TRIES = 10  # draws before an example is left as it is


def redraw(prompt: str, text: str, generator: random.Random) -> tuple[str, str]:
    """``(prompt, program)`` with new figures, the same ones in both, of as many digits and decimals.

    Commas and signs stay where they are; years, dates, small whole numbers, 100, 500, constants and figures in the name
    of a row that the program uses are kept. Different figures stay different. A pair whose program no longer executes,
    as where what it divides by has become 0, is drawn again; after ``TRIES`` it is returned as it was.
    """
    tokens = program.tokenize(text)
    fixed = {figure for row in program.operands(text)[1] for figure in map(_plain, FIGURE.findall(row))}
    plain = [_plain(figure) for figure in FIGURE.findall(prompt + " " + " ".join(program.operands(text)[0]))]
    figures = [figure for figure in dict.fromkeys(plain) if figure not in fixed and not _is_kept(figure)]
    arithmetic = not any(name in program.TABLE for name in program.operations(tokens))
    for _ in range(TRIES):
        new = {figure: _draw(figure, generator) for figure in figures}
        if len(set(new.values())) < len(new) or not fixed.isdisjoint(new.values()):
            continue
        written = ", ".join(_rewrite_step(step, new) for step in text.split(", "))
        # What a table operation gives cannot be told from the lines of a prompt.
        if not arithmetic or program.execute(program.tokenize(written), []) is not None:
            return _rewrite(prompt, new), written
    return prompt, text


def _plain(figure: str) -> str:
    """A figure in one spelling, as prompt and program may differ in it: 1,250.50 is 1250.5, and .5 is 0.5."""
    figure = ("0" if figure[0] == "." else "") + figure.replace(",", "")
    return figure.rstrip("0").rstrip(".") if "." in figure else figure


def _is_kept(figure: str) -> bool:
    value = float(figure)
    return value in KEPT or ("." not in figure and (value <= SMALL or value in YEARS or bool(DATE.fullmatch(figure))))


def _draw(figure: str, generator: random.Random) -> str:
    """As many digits, none of them a leading 0 that was not there, and no figure that would be kept.

    Nor decimals that end in 0: 31.0 equals a 31 that is kept, and 4.0 a 4 drawn for another figure.
    """
    while True:
        leading = re.match(r"[0.]*", figure)[0]
        rest = figure[len(leading) :]
        drawn = leading + "".join(
            digit if digit == "." else str(generator.randint(position == 0, 9)) for position, digit in enumerate(rest)
        )
        if not _is_kept(drawn) and _plain(drawn) == drawn:
            return drawn


def _rewrite(text: str, new: dict[str, str]) -> str:
    """``text`` with new figures where the old ones stood, commas included."""

    def replace(match: re.Match) -> str:
        figure = _plain(match[0])
        drawn = new.get(figure, figure)[match[0][0] == "." :]
        digits = iter(drawn + match[0].replace(",", "")[len(drawn) :])
        return "".join(character if character == "," else next(digits) for character in match[0])

    return FIGURE.sub(replace, text)


def _rewrite_step(part: str, new: dict[str, str]) -> str:
    """A part of a program's text between two commas: ``add(5829`` or ``5735)``; references and constants stay."""
    name, bracket, argument = part.rpartition("(")
    if "#" in argument or "const" in argument or name in program.TABLE or parse_number(argument.rstrip(")")) is None:
        return part
    return name + bracket + _rewrite(argument, new)
