"""Numbers and table cells: the one place where their text is read or cleaned.

Two readers differ on purpose. ``parse_number`` and ``parse_cell`` read what the official evaluator reads, odd habits
included, since scores depend on them. ``numbers_in`` finds whole numbers in text that a model is shown.
"""

import contextlib
import re

_FIGURE = r"(?<![\w.,])((?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+)(?!\w|[.,]\d)"
FIGURE = re.compile(_FIGURE)
_IN_TEXT = re.compile(_FIGURE + r"( ?(?:%|percent\b))?")
YEARS = range(1980, 2041)  # whole numbers that are no figures where a year may stand
# What the release left of a dash in a table: its code point. In train all such cells are dashes, under the header and
# beyond the first of a row, and no program uses one. In a column of years, and in other tables, they may be years.
DASH = re.compile(r"201[34]%?")
# "december 312013": the release has lost what stood between day and year.
_GLUED_DATE = re.compile(
    r"\b((?:jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sept?(?:ember)?|oct(?:ober)?"
    r"|nov(?:ember)?|dec(?:ember)?)\.? ?)([1-9]|[12]\d|3[01])((?:19|20)\d\d)\b"
)
_GLUED_UNIT = re.compile(r"(?<![\w.,])(\d[\d,]*(?:\.\d+)?)(mn?|bn)\b", re.IGNORECASE)
# Before the amount of a cell.
_CURRENCY = re.compile(
    r"^(- ?|\( ?|)(?:(?:us|a|ca?|hk|nz)\$|[\u20ac\u00a3\u00a5]|(?:usd|eur|gbp)\b) *(?=[-.\d(])(?!000)"
)
_NEGATIVE = re.compile(
    r"^(?:\$ )?\( *(?:\$ )?([\d.]+) *(%?)\)? *(%?)((?: (?:thousand|[mb]illion|bps?|basis points))?)(?: \(\w{1,2}\))?$"
)


# --- as the official evaluator reads them ---------------------------------------------------------------------------


def parse_number(text: str) -> float | None:
    """Return the number that the official evaluator reads in an argument of a program, or ``None``.

    Commas anywhere are dropped, ``5%`` is 0.05, ``const_100`` is 100 and ``const_m1`` is -1. Whatever ``float`` takes
    is a number, as it is there: ``1e5``, ``1_000``, ``inf``, ``nan``, digits of other scripts.
    """
    text = text.replace(",", "")
    with contextlib.suppress(ValueError):
        return float(text)
    with contextlib.suppress(ValueError):
        if "%" in text:
            return float(text.replace("%", "")) / 100.0
        if "const" in text:
            text = text.replace("const_", "")
            return float("-1" if text == "m1" else text)
    return None


def parse_cell(cell: str) -> float | None:
    """Like ``parse_number``, of a table cell: ``$ 5.2 ( 3.1% )`` counts as 5.2."""
    return parse_number(cell.replace("$", "").strip().split("(")[0].strip())


# --- as the release writes them -------------------------------------------------------------------------------------


def release_text(text: str) -> str:
    """A text of another source as FinQA has it: lower case, no thousands separators, hyphens for dashes and minus."""
    text = re.sub(r"(?<=\d),(?=\d{3}\b)", "", " ".join(text.split()).lower())
    return re.sub(r"[\u2013\u2014\u2212]", "-", text).replace("\u2019", "'")


def part_units(text: str) -> str:
    """``84.2m`` and ``84.2bn``, which no reader here takes for figures, with the unit as a word, as FinQA has it."""
    return _GLUED_UNIT.sub(lambda match: f"{match[1]} {match[2][0].lower()}illion", text)


def release_cell(text: str) -> str:
    """A cell of another source as FinQA has it: ``($1,234)`` is ``-1234 ( 1234 )``, a dash alone stays one.

    An amount in another currency has ``$``, the only sign that FinQA knows; a note's number behind a negative goes.
    """
    text = re.sub(r"\$ *", "$ ", _CURRENCY.sub(r"\1$", release_text(text).strip())).strip()
    text = re.sub(r"^- ?\$ (?=[\d.])", "-", re.sub(r"^((?:\$ )?)([\d.]+)-$", r"-\2", text))
    return _NEGATIVE.sub(r"-\1\2\3 ( \1\2\3 )\4", text)


# --- as a model is shown them ---------------------------------------------------------------------------------------


def is_amount(cell: str) -> bool:
    """Whether a cell of the release is a number that is no year."""
    number = re.fullmatch(r"(\$ )?-?\d*\.?\d+ ?%?( \( [\d.]+%? \))?", cell)
    return bool(number) and not re.fullmatch(r"(19|20)\d\d", cell)


def clean_sentence(text: str) -> str:
    """Undo the release's tokenisation: ``a loss of $ 5 , or 8% ( 8 % ) .`` becomes ``a loss of $5, or 8%.``"""
    text = _once(" ".join(text.split()))
    # Quotes and apostrophes became their code points in hexadecimal; so did dashes and bullets, but as 2013, 2014 and
    # 2022 they cannot be told from years.
    text = re.sub(r"\b201c ?| ?\b201d\b", '"', text)
    text = re.sub(r" 2019s\b", "'s", text)
    text = _close_up(part_dates(re.sub(r"\$ (?=[\d.])", "$", text)))
    return text.rstrip(" .") + "." if text.endswith(".") else text


def clean_cell(text: str) -> str:
    """Return a cell as programs write it: ``$ 5829`` is ``5829``, ``-14 ( 14 )`` is ``-14``, ``( 14 )`` is ``-14``."""
    text = _once(" ".join(text.replace("$", " ").split()))
    text = re.sub(r"^\( ?([\d.,]+%?) ?\)( %)?$", lambda match: f"-{match[1]}{'%' if match[2] else ''}", text)
    return _close_up(part_dates(re.sub(r"^- (?=[\d.])", "-", text)))


def part_dates(text: str) -> str:
    """Put a comma between day and year where the release has none: ``december 312013`` is ``december 31, 2013``."""
    return _GLUED_DATE.sub(r"\1\2, \3", text)


def _once(text: str) -> str:
    text = re.sub(r"(?<!\S)(-?)(\S*)% \( ?\2 ?% \)", r"\1\2%", text)
    return re.sub(r"- ?([\d.,]+) \( \1 \)", r"-\1", text)


def _close_up(text: str) -> str:
    return re.sub(r" (?=[,;:)]|\.(?!\d))|(?<=\() |(?<=\d) (?=%)", "", text)


def numbers_in(text: str) -> set[tuple[float, bool]]:
    """Return the numbers that can be read in ``text``, unsigned, each with whether it is a percentage.

    A percentage can be read as a plain number too: programs write both ``5%`` and ``divide(5, const_100)``.
    """
    numbers = set()
    for match in _IN_TEXT.finditer(text):
        value = float(match[1].replace(",", ""))
        numbers.add((value, False))
        if match[2]:
            numbers.add((value, True))
    return numbers
