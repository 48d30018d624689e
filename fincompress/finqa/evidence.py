"""What of a report page a model is shown: compact lines, ranked for a question, within a budget of tokens.

A page becomes lines: one for each sentence, one for the table's header, one for each row under it, cells parted by
``|``. They are ranked for the question by a small linear score around BM25 (Robertson and Zaragoza, 2009), which
``bm25s`` computes.
Evidence is good when every number that the gold program needs can be read in it: ``shows_program``.
"""

import logging
import math
import os.path
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import bm25s
from bm25s.stopwords import STOPWORDS_EN

from fincompress.finqa import numbers, program
from fincompress.finqa.examples import Example

MODES = ("page", "retrieved", "gold")
HEADER = "header"  # the key of the table's header line, which is table_0 in FinQA's numbering
# How the release names its pages.
RELEASED = re.compile(r"[A-Z.]+/(199|200|201)\d/page_\d+\.pdf")

logging.getLogger("bm25s").setLevel(logging.WARNING)  # it reports every index it builds


class Line(NamedTuple):
    """One line of evidence. ``key`` is ``"header"``, ``"table_3"`` or ``"text_7"`` as in ``Example.gold_inds``."""

    key: str
    text: str

    @property
    def is_row(self) -> bool:
        """Whether this is a table row under the header."""
        return self.key.startswith("table_")


def page_lines(example: Example) -> list[Line]:
    """Return the page's lines in reading order: sentences before the table, header, rows, sentences after it.

    Lines without a letter or digit are left out. Numbers keep the form in which gold programs write them; what the
    release writes twice, as in ``-14 ( 14 )`` or ``1.2% ( 1.2 % )``, stands once. Row names stay as they are, because
    table operations name rows by them. A dash, of which the release's tables have the code point, is one again.
    """
    texts = [numbers.clean_sentence(text) for text in example.pre_text + example.post_text]
    sentences = [Line(f"text_{i}", text) for i, text in enumerate(texts)]
    released = RELEASED.fullmatch(example.page)
    table: list[Line] = []
    for i, row in enumerate(example.table):
        cells = [numbers.clean_cell(cell) for cell in row]
        if i == 0:
            cells = _share_words(cells)
        else:
            cells[0] = " ".join(row[0].strip().splitlines())
            for j, cell in enumerate(cells[1:], 1):
                if released and numbers.DASH.fullmatch(cell) and not _has_years(example.table, j):
                    cells[j] = "-"
        table.append(Line(f"table_{i}" if i else HEADER, "|".join(cells)))
    before = len(example.pre_text)
    return [line for line in sentences[:before] + table + sentences[before:] if re.search(r"[^\W_]", line.text)]


def _has_years(table: Sequence[Sequence[str]], column: int) -> bool:
    """Whether most cells with digits in a column under the header begin with a year, those aside that may be dashes."""
    cells = [numbers.clean_cell(row[column]) for row in table[1:] if len(row) > column]
    figures = [cell for cell in cells if re.search(r"\d", cell) and not numbers.DASH.fullmatch(cell)]
    return 2 * sum(bool(re.match(r"(19|20)\d\d\b", cell)) for cell in figures) > len(figures)


def _share_words(header: list[str]) -> list[str]:
    """Move the words that all columns of a header begin with to its first cell.

    ``in millions | year ended may 31 2018 | year ended may 31 2017`` becomes
    ``in millions year ended may 31 | 2018 | 2017``: every token that the header costs is one less for rows.
    """
    columns = [cell.split() for cell in header[1:] if cell]
    if len(columns) < 2:
        return header
    shared = os.path.commonprefix([column[:-1] for column in columns])  # no column is left without words
    first = " ".join([header[0], *shared]).strip()
    return [first] + [" ".join(cell.split()[len(shared) :]) for cell in header[1:]]


# --- what a program needs --------------------------------------------------------------------------------------------


def numbers_needed(text: str) -> set[tuple[float, bool]]:
    """Return the numbers that the program ``text`` uses, in the form of ``numbers.numbers_in``."""
    operands = {(abs(numbers.parse_number(x.replace("%", ""))), "%" in x) for x in program.operands(text)[0]}
    return {operand for operand in operands if math.isfinite(operand[0])}


def shows_numbers(text: str, shown: str) -> bool:
    """Return whether all numbers that the program ``text`` uses can be read in what is ``shown``."""
    return numbers_needed(text) <= numbers.numbers_in(shown)


def rows_needed(example: Example) -> set[str]:
    """Return the keys of the rows that table operations use, as the executor finds them: the last row of a name.

    A name that no row has gives the key ``""``, which no line has.
    """
    rows = {row[0]: f"table_{i}" if i else HEADER for i, row in enumerate(example.table)}
    return {rows.get(name, "") for name in program.operands(example.program)[1]}


def shows_program(example: Example, lines: Sequence[Line]) -> bool:
    """Return whether ``lines`` show all that the gold program needs: its numbers, and the rows of table operations.

    Numbers are compared by value and as whole numbers: ``1,234`` shows ``1234``, ``15`` and ``5.2`` do not show ``5``.
    Signs are ignored, because gold programs write ``-14 ( 14 )`` as ``14`` or as ``-14``. ``5%`` in a program is shown
    by ``5%``, ``5 %`` or ``5 percent`` only; a plain ``5`` also by ``5%``. A number in the question counts as shown,
    for a prompt always holds the question.
    """
    texts = [example.question, *(line.text for line in lines)]
    return shows_numbers(example.program, "\n".join(texts)) and rows_needed(example) <= {line.key for line in lines}


def evidence_location(example: Example) -> str:
    """Return where the gold evidence lies: ``"table"``, ``"text"``, ``"both"`` or ``"unknown"``.

    That is what ``gold_inds`` says; where the release leaves it empty, it is what shows the program, the table first.
    """
    kinds = {"text" if key.startswith("text") else "table" for key in example.gold_inds}
    if kinds:
        return "both" if len(kinds) == 2 else kinds.pop()
    lines = page_lines(example)
    text = [line for line in lines if line.key.startswith("text")]
    places = {"table": [line for line in lines if line not in text], "text": text, "both": lines}
    return next((place for place, shown in places.items() if shows_program(example, shown)), "unknown")


# --- ranking ---------------------------------------------------------------------------------------------------------

# A logistic regression of "the gold program needs a number of this line, or this row", fitted on the training split.
WEIGHTS = {
    "bias": -9.38,
    "bm25": 4.36,  # BM25 of the line, a row counting with its header, as a share of the page's best
    "near": 0.47,  # in a sentence, the same of the lines before and after it, added
    "number": 2.62,  # there is a number other than a year
    "amount": 1.89,  # in a sentence, there is one that is no day of a month either
    "row": 2.33,  # a row of the table, against a sentence
    "label": 2.07,  # the share of a row's name that the question says
    "last_row": 0.73,  # the table's last row, often the total
}
LENGTH = 0.5  # lines are ranked by probability / length ** LENGTH: 0 ignores length, 1 is probability per character

_STOP_WORDS = frozenset(STOPWORDS_EN)


def rank(example: Example, lines: Sequence[Line]) -> list[float]:
    """Return a score for each of ``lines``: the higher, the sooner it is shown.

    The score is log(p / length ** LENGTH). p is the probability that the program needs the line, from ``WEIGHTS``; the
    length, in characters, counts because the room that one long line takes could hold two short ones.
    """
    scores = []
    for line, features in zip(lines, line_features(example, lines), strict=True):
        logit = sum(WEIGHTS[name] * value for name, value in features.items())
        scores.append(-math.log1p(math.exp(-logit)) - LENGTH * math.log(1 + len(line.text)))
    return scores


def line_features(example: Example, lines: Sequence[Line]) -> list[dict[str, float]]:
    """Return for each of ``lines`` the numbers that ``WEIGHTS`` weighs, by name."""
    question = _words(example.question)
    words = [_words(line.text) for line in lines]
    header = next((words[i] for i, line in enumerate(lines) if line.key == HEADER), [])
    matches = _bm25(question, [header + w if line.is_row else w for line, w in zip(lines, words, strict=True)])
    best = max(matches, default=0.0) or 1.0
    bm25 = [match / best for match in matches]
    last_row = max((i for i, line in enumerate(lines) if line.is_row), default=None)

    features = []
    for i, line in enumerate(lines):
        row = line.is_row
        values = {v for v, percent in numbers.numbers_in(line.text) if percent or v not in numbers.YEARS}
        label = {word for word in _words(line.text.partition("|")[0]) if not word[0].isdigit()} if row else set()
        features.append(
            {
                "bias": 1.0,
                "bm25": bm25[i],
                "near": 0.0 if row else sum(bm25[max(0, i - 1) : i] + bm25[i + 1 : i + 2]),
                "number": float(bool(values)),
                "amount": float(not row and any(value > 31 or value % 1 for value in values)),
                "row": float(row),
                "label": len(label.intersection(question)) / max(1, len(label)),
                "last_row": float(i == last_row),
            }
        )
    return features


def _bm25(question: list[str], documents: list[list[str]]) -> list[float]:
    """Return the BM25 score of each of ``documents`` for the words of ``question``."""
    known = [word for word in dict.fromkeys(question) if any(word in document for document in documents)]
    if not known:
        return [0.0] * len(documents)
    index = bm25s.BM25()
    index.index(documents, show_progress=False)
    return index.get_scores(known).tolist()


def _words(text: str) -> list[str]:
    """Return the words and numbers of ``text``, stop words left out.

    Words are cut to five letters, so that ``leases`` finds ``leasing``: as good on one page as a stemmer.
    """
    words = re.findall(r"[^\W\d_]+|\d+(?:\.\d+)?", text.lower())
    return [word if word[0].isdigit() else word[:5] for word in words if word not in _STOP_WORDS]


# --- selection -------------------------------------------------------------------------------------------------------


def select(
    example: Example, mode: str, budget: int, count_tokens: Callable[[list[str]], list[int]], room: int = 0
) -> list[Line]:
    """Return the lines to show, in reading order.

    ``mode`` says what may be shown: ``"page"`` and ``"retrieved"`` all lines of the page, so that they differ by the
    budget they are given; ``"gold"`` the lines of ``gold_inds``, and the header if a row is among them, or all lines
    where ``gold_inds`` is empty or names no line of the page.

    ``budget`` is the most tokens that the lines may have, each with its newline. Over it, lines are taken from the best
    of ``rank`` down; one that does not fit is passed over for the next that does, never cut. The header always stays,
    even where it alone is over the budget. Where no line fits, the best one that ``room`` tokens hold is shown.
    ``count_tokens`` maps texts to their token counts, special tokens left out.
    """
    page = lines = page_lines(example)
    if mode == "gold":
        keys = {HEADER if key == "table_0" else key for key in example.gold_inds}
        if any(line.is_row and line.key in keys for line in page):
            keys.add(HEADER)
        lines = [line for line in page if line.key in keys] or page
    costs = count_tokens([line.text + "\n" for line in lines]) if lines else []
    if sum(costs) <= budget:
        return lines
    scores = {line.key: score for line, score in zip(page, rank(example, page), strict=True)}
    return [lines[i] for i in fill_budget(lines, [scores[line.key] for line in lines], costs, budget, room)]


def fill_budget(
    lines: Sequence[Line], scores: Sequence[float], costs: Sequence[int], budget: int, room: int = 0
) -> list[int]:
    """Return the indices, in order, of the header and of as many of the best ``lines`` as ``budget`` tokens hold, or of
    the best that ``room`` tokens hold.
    """
    header = [i for i, line in enumerate(lines) if line.key == HEADER]
    ranked = sorted({*range(len(lines))} - {*header}, key=lambda i: (-scores[i], i))
    left = budget - sum(costs[i] for i in header)
    shown = []
    for i in ranked:
        if costs[i] <= left:
            shown.append(i)
            left -= costs[i]
    left += room - budget
    return sorted(header + (shown or [i for i in ranked if costs[i] <= left][:1]))
