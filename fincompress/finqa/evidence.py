"""What of a report page a model is shown: compact lines, ranked for a question, within a budget of tokens.

A page becomes lines: one for each sentence, one for the table's header, one for each row under it, cells parted by
``|``. They are ranked for the question by a small linear score around BM25 (Robertson and Zaragoza, 2009), which
``bm25s`` computes.
Evidence is good when every number that the gold program needs can be read in it: ``shows_program``.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import bm25s
from bm25s.stopwords import STOPWORDS_EN

from fincompress.finqa import numbers, program
from fincompress.finqa.examples import Example

MODES = ("page", "retrieved", "gold")
HEADER = "header"  # the key of the table's header line, which is table_0 in FinQA's numbering

logging.getLogger("bm25s").setLevel(logging.WARNING)  # it reports every index it builds


@dataclass(frozen=True)
class Line:
    """One line of evidence. ``key`` is ``"header"``, ``"table_3"`` or ``"text_7"`` as in ``Example.gold_inds``."""

    key: str
    text: str

    @property
    def is_row(self) -> bool:
        """Whether this is a table row under the header."""
        return self.key.startswith("table_")


# --- lines -----------------------------------------------------------------------------------------------------------


def page_lines(example: Example) -> list[Line]:
    """Return the page's lines in reading order: sentences before the table, header, rows, sentences after it.

    Lines without a letter or digit are left out. Numbers keep the form in which gold programs write them; what the
    release writes twice, as in ``-14 ( 14 )`` or ``1.2% ( 1.2 % )``, stands once. Row names stay as they are, because
    table operations name rows by them.
    """
    texts = example.pre_text + example.post_text
    sentences = [Line(f"text_{i}", numbers.clean_sentence(text)) for i, text in enumerate(texts)]
    table = [Line(f"table_{i}" if i else HEADER, text) for i, text in enumerate(_table_texts(example.table))]
    before = len(example.pre_text)
    return [line for line in sentences[:before] + table + sentences[before:] if re.search(r"[^\W_]", line.text)]


def render(lines: Sequence[Line]) -> str:
    """Return the evidence text: one line each, no newline at the end."""
    return "\n".join(line.text for line in lines)


def _table_texts(table: Sequence[Sequence[str]]) -> list[str]:
    """Return one text for each row of ``table``, the header's first; rows may be ragged or empty."""
    texts = []
    for i, row in enumerate(table):
        cells = [numbers.clean_cell(cell) for cell in row]
        if i == 0:
            cells = _share_words(cells)
        elif row:
            cells[0] = " ".join(row[0].strip().splitlines())
        texts.append("|".join(cells))
    return texts


def _share_words(header: list[str]) -> list[str]:
    """Move the words that all columns of a header begin with to its first cell.

    ``in millions | year ended may 31 2018 | year ended may 31 2017`` becomes
    ``in millions year ended may 31 | 2018 | 2017``: every token that the header costs is one less for rows.
    """
    columns = [cell.split() for cell in header[1:] if cell]
    shared = 0
    while len(columns) > 1 and all(len(c) > shared + 1 and c[shared] == columns[0][shared] for c in columns):
        shared += 1
    if not shared:
        return header
    first = " ".join([header[0], *columns[0][:shared]]).strip()
    return [first] + [" ".join(cell.split()[shared:]) for cell in header[1:]]


# --- what a program needs --------------------------------------------------------------------------------------------


def numbers_needed(text: str) -> set[tuple[float, bool]]:
    """Return the numbers that the program ``text`` uses, in the form of ``numbers.numbers_in``."""
    found = set()
    for written in program.numbers_used(text):
        value = numbers.parse_number(written.replace("%", ""))
        if value is not None and math.isfinite(value):
            found.add((abs(value), "%" in written))
    return found


def rows_needed(example: Example) -> set[str]:
    """Return the keys of the rows that table operations use, as the executor finds them: the last row of a name.

    A name that no row has gives the key ``""``, which no line has.
    """
    rows = {row[0]: f"table_{i}" if i else HEADER for i, row in enumerate(example.table) if row}
    return {rows.get(name, "") for name in program.table_rows_used(example.program)}


def shows_program(example: Example, lines: Sequence[Line], with_question: bool = True) -> bool:
    """Return whether ``lines`` show all that the gold program needs: its numbers, and the rows of table operations.

    Numbers are compared by value and as whole numbers: ``1,234`` shows ``1234``, ``15`` and ``5.2`` do not show ``5``.
    Signs are ignored, because gold programs write ``-14 ( 14 )`` as ``14`` or as ``-14``. ``5%`` in a program is shown
    by ``5%``, ``5 %`` or ``5 percent`` only; a plain ``5`` also by ``5%``. A number in the question counts as shown,
    for a prompt always holds the question; ``with_question=False`` asks the lines alone.
    """
    shown = numbers.numbers_in(example.question) if with_question else set()
    for line in lines:
        shown |= numbers.numbers_in(line.text)
    return numbers_needed(example.program) <= shown and rows_needed(example) <= {line.key for line in lines}


def evidence_location(example: Example) -> str:
    """Return where the gold evidence lies: ``"table"``, ``"text"``, ``"both"`` or ``"unknown"``.

    That is what ``gold_inds`` says; where the release leaves it empty, it is where the program's numbers and rows are
    found. A number that both a row and a sentence hold is counted for the table, where most evidence is.
    """
    kinds = {"text" if key.startswith("text") else "table" for key in example.gold_inds}
    if not kinds:
        in_table, in_text = set(), set()
        for line in page_lines(example):
            (in_text if line.key.startswith("text") else in_table).update(numbers.numbers_in(line.text))
        needed = numbers_needed(example.program)
        if needed & in_table or rows_needed(example):
            kinds.add("table")
        if (needed & in_text) - in_table:
            kinds.add("text")
    return "both" if len(kinds) == 2 else kinds.pop() if kinds else "unknown"


# --- ranking ---------------------------------------------------------------------------------------------------------

# A logistic regression of "the gold program needs a number of this line, or this row", fitted on the training split:
# `python benchmarks/evidence_recall.py --FIT=True` prints these numbers again.
WEIGHTS = {
    "bias": -9.37,
    "bm25": 4.36,  # BM25 of the line, a row counting with its header, as a share of the page's best
    "near": 0.46,  # in a sentence, the same of the lines before and after it, added
    "number": 2.61,  # there is a number other than a year
    "amount": 1.90,  # in a sentence, there is one that is no day of a month either
    "row": 2.35,  # a row of the table, against a sentence
    "label": 2.07,  # the share of a row's name that the question says
    "last_row": 0.72,  # the table's last row, often the total
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
        values = {value for value, percent in numbers.numbers_in(line.text) if percent or not _is_year(value)}
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


def _is_year(value: float) -> bool:
    return 1980 <= value <= 2040 and value % 1 == 0


def _bm25(question: list[str], documents: list[list[str]]) -> list[float]:
    """Return the BM25 score of each of ``documents`` for the words of ``question``."""
    vocabulary = set().union(*documents)
    known = [word for word in dict.fromkeys(question) if word in vocabulary]
    if not known:
        return [0.0] * len(documents)
    index = bm25s.BM25()
    index.index(documents, show_progress=False)
    return index.get_scores(known).tolist()


def _words(text: str) -> list[str]:
    """Return the words and numbers of ``text``, stop words left out.

    Words are cut to five letters, so that ``leases`` finds ``leasing``: as good on one page as a stemmer.
    """
    found = re.findall(r"[^\W\d_]+|\d+(?:\.\d+)?", text.lower())
    return [word if word[0].isdigit() else word[:5] for word in found if word not in _STOP_WORDS]


# --- selection -------------------------------------------------------------------------------------------------------


def select(
    example: Example, mode: str, budget: int | None, count_tokens: Callable[[list[str]], list[int]]
) -> list[Line]:
    """Return the lines to show, in reading order.

    ``mode`` says what may be shown: ``"page"`` and ``"retrieved"`` all lines of the page, so that they differ by the
    budget they are given; ``"gold"`` the lines of ``gold_inds``, and the header if a row is among them, or all lines
    where ``gold_inds`` is empty or names no line of the page.

    ``budget`` is the most tokens that the lines may have, each with its newline; None is no limit. Over it, lines are
    taken from the best of ``rank`` down; one that does not fit is passed over for the next that does, never cut. The
    header always stays, even where it alone is over the budget. ``count_tokens`` maps texts to their token counts,
    special tokens left out. Raises ``ValueError`` for an unknown mode.
    """
    if mode not in MODES:
        raise ValueError(f"evidence mode {mode!r} is none of {', '.join(MODES)}")
    page = page_lines(example)
    lines = _gold_lines(example, page) if mode == "gold" else page
    if budget is None or not lines:
        return lines
    costs = count_tokens([line.text + "\n" for line in lines])
    if sum(costs) <= budget:
        return lines
    scores = dict(zip(page, rank(example, page), strict=True))
    return [lines[i] for i in fill_budget(lines, [scores[line] for line in lines], costs, budget)]


def _gold_lines(example: Example, page: list[Line]) -> list[Line]:
    """Return the lines that ``gold_inds`` names, and the header where a row is among them; else all of ``page``."""
    keys = {HEADER if key == "table_0" else key for key in example.gold_inds}
    if any(line.is_row and line.key in keys for line in page):
        keys.add(HEADER)
    return [line for line in page if line.key in keys] or page


def fill_budget(lines: Sequence[Line], scores: Sequence[float], costs: Sequence[int], budget: int) -> list[int]:
    """Return the indices, in order, of the header and of as many of the best ``lines`` as ``budget`` tokens hold."""
    shown = [i for i, line in enumerate(lines) if line.key == HEADER]
    left = budget - sum(costs[i] for i in shown)
    for i in sorted(range(len(lines)), key=lambda i: (-scores[i], i)):
        if lines[i].key != HEADER and costs[i] <= left:
            shown.append(i)
            left -= costs[i]
    return sorted(shown)
