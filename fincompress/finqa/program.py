"""FinQA programs: read them and execute them as the official evaluator does.

A program is a chain of steps such as ``subtract(5829, 5735), divide(#0, 5735)``; ``#k`` is step k's result, from 0.
Execution accuracy is that of Chen et al., EMNLP 2021, as ``code/evaluate/evaluate.py`` of github.com/czyssrs/FinQA has
it: the result, rounded to 5 decimals, equals ``exe_ans``. ``equality`` has the other metric, program accuracy.

Odd habits of that evaluator are kept, because scores are only comparable with them; each is noted where it is kept.
Unlike it, nothing here raises or runs away, whatever a model wrote: see ``execute``.
"""

from __future__ import annotations

import functools
import operator
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from fincompress.finqa import numbers

ARITHMETIC = ("add", "subtract", "multiply", "divide", "exp", "greater")
TABLE = ("table_max", "table_min", "table_sum", "table_average")
OPERATIONS = ARITHMETIC + TABLE
INVALID = "n/a"
END = "EOF"

# Of numbers and of sympy's expressions; `greater` differs.
OPERATORS = {
    "add": operator.add,
    "subtract": operator.sub,
    "multiply": operator.mul,
    "divide": operator.truediv,
    "exp": operator.pow,
    "greater": operator.gt,
}

MAX_STEPS = 100_000  # longer programs (over 1 MB of text) are invalid; gold programs have a handful of steps
MAX_TEXT = 1_000  # characters of a "yesyes..." that adding the results of `greater` may grow to
MAX_INDEX = 1_000  # characters of the k in #k: int() is quadratic in them

# Errors that junk in a program or a table can cause; the official evaluator catches everything.
JUNK = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)


class Execution(NamedTuple):
    """What executing a program gave.

    ``result`` is a number rounded to 5 decimals (possibly ``inf`` or ``nan``, which strict JSON refuses), ``"yes"`` or
    ``"no"``, or ``INVALID``. Of an invalid program it is, as in the official evaluator, what the last good step gave,
    not always rounded: for error analysis only. ``invalid`` is false and ``result`` is ``INVALID`` for a program
    without a single complete step, such as an empty output; it is not correct either.
    """

    invalid: bool
    result: float | str


# --- text and tokens ------------------------------------------------------------------------------------------------


def extract_program(output: str) -> str:
    """Return the program in a model's raw ``output``: its first line that is not blank, stripped; else ``""``.

    Nothing is repaired: prose before the program, a code fence or a list number make the program invalid.
    """
    return next((line.strip() for line in output.splitlines() if line.strip()), "")


def tokenize(program: str) -> list[str]:
    """Return the official tokens of ``program``: ``["add(", "1", "2", ")", "EOF"]`` for ``"add(1, 2)"``.

    Arguments are parted at ``", "`` alone, so ``"add(1,2)"`` has the one argument ``1,2``, which is no valid step:
    commas without a space are thousands separators.
    """
    tokens = [token for part in program.split(", ") for token in re.findall(r"[^()]+\(?|[()]", part)]
    return [*tokens, END]


def detokenize(tokens: Sequence[str]) -> str:
    """Return the text of official ``tokens``, with or without the final ``EOF``: ``"add(1, 2), exp(#0, 3)"``."""
    if len(tokens) and tokens[-1] == END:
        tokens = tokens[:-1]
    pieces = []
    opened = True  # no comma before the first token, nor after an opening parenthesis
    for token in map(str, tokens):
        pieces.append(token if opened or token == ")" else ", " + token)
        opened = token.endswith("(")
    return "".join(pieces)


def operations(tokens: Sequence[str]) -> list[str]:
    """Return the names of the operations in ``tokens``, in order, those of an unfinished last step included."""
    names = (token[:-1] for token in tokens if isinstance(token, str) and token.endswith("("))
    return [name for name in names if name in OPERATIONS]


def number_of_steps(tokens: Sequence[str]) -> int:
    """Return how many steps ``tokens`` begin; a token that is no operation begins none."""
    return len(operations(tokens))


def numbers_used(program: str) -> list[str]:
    """Return the numbers written in ``program``, as written and each once: ``["5829", "5.3%"]``.

    Constants (``const_100``), references (``#0``) and everything inside table operations are left out, and so is any
    argument that is no number.
    """
    return _unique(
        argument
        for name, arguments in _calls(program)
        if name not in TABLE
        for argument in arguments
        if "const" not in argument and numbers.parse_number(argument) is not None
    )


def table_rows_used(program: str) -> list[str]:
    """Return the row names that table operations of ``program`` look up, each once, in order."""
    return _unique(arguments[0] for name, arguments in _calls(program) if name in TABLE and arguments)


def _calls(program: str) -> Iterator[tuple[str, list[str]]]:
    """Yield operation name and arguments of each step, however incomplete."""
    name, arguments = "", []
    for token in tokenize(program)[:-1]:
        if token.endswith("("):
            if name:
                yield name, arguments
            name, arguments = token[:-1].strip(), []
        elif token != ")":
            arguments.append(token.strip())
    yield name, arguments


def _unique(items: Iterator[str]) -> list[str]:
    return list(dict.fromkeys(items))


# --- steps ----------------------------------------------------------------------------------------------------------


class Rejected(Exception):
    """The official evaluator stops at this step by itself, not through an error: the result so far is rounded."""


def complete_steps(tokens: Sequence[str]) -> list[str]:
    """Return the texts of the complete steps, such as ``add(|1|2|`` and, from the second on, ``|add(|1|2|``.

    The last token is dropped unseen (it should be ``EOF``), and so is a step without its ``)``.
    Raises one of ``JUNK`` where an operation or a ``)`` is not in its place.
    """
    tokens = tokens[:-1]
    if len(tokens) > 4 * MAX_STEPS:
        raise ValueError(f"more than {MAX_STEPS} steps")
    if any(token.strip("(") not in OPERATIONS for token in tokens[::4]) or any(token != ")" for token in tokens[3::4]):
        raise ValueError("every fourth token must be an operation, and the third after it a closing parenthesis")
    # Joined and parted again as the official evaluator does: a token may hold "|" or ")" itself.
    return [step.strip() for step in "|".join(tokens).split(")")[:-1]]


def split_step(step: str) -> tuple[str, str, str]:
    """Return operation and two arguments of a step's text; raises ``Rejected`` or one of ``JUNK``."""
    name, *rest = step.split("(")
    if len(rest) > 1:
        raise Rejected
    arguments = rest[0].strip("|").strip().split("|")
    return name.strip("|").strip(), arguments[0].strip(), arguments[1].strip()


def step_index(digits: str) -> int:
    if len(digits) > MAX_INDEX:
        raise ValueError("no step has an index this long")
    return int(digits)


# --- execution ------------------------------------------------------------------------------------------------------


def execute(tokens: Sequence[str], table: Sequence[Sequence[str]]) -> Execution:
    """Execute a program given as official ``tokens``, whose last one is dropped, on a ``table`` of rows of cells.

    Never raises: anything that cannot be computed is ``invalid``, and so are complex numbers, overflow, division by
    zero and programs of more than ``MAX_STEPS`` steps. Takes time and memory in proportion to tokens and table.
    An unfinished last step is ignored, as in the official evaluator.
    """
    result, invalid = INVALID, False
    results: dict[int, float | str] = {}
    row = None  # numbers of the row that was looked up last
    try:
        for index, step in enumerate(complete_steps(tokens)):
            name, first, second = split_step(step)
            if name in ARITHMETIC:
                result = results[index] = _arithmetic(name, _operand(first, results), _operand(second, results))
            elif "table" in name:
                if "#" in first:  # the step must exist; the official evaluator then takes the row looked up last
                    results[step_index(first.replace("#", ""))]
                else:
                    row = _row_numbers(table, first)
                if row is None:
                    raise ValueError("a table operation on a reference, and no row looked up before")
                if name in TABLE:
                    result = _aggregate(name, row)
                results[index] = result
    except Rejected:
        invalid = True
    except JUNK:
        return Execution(True, INVALID if isinstance(result, complex) else result)
    if result in ("yes", "no", INVALID):
        return Execution(invalid, result)
    try:
        return Execution(invalid, round(result, 5))
    except JUNK:  # complex, or "yesyes"
        return Execution(True, result if isinstance(result, str) else INVALID)


def execution_correct(execution: Execution, exe_ans: float | str) -> bool:
    """Return whether ``execution`` is valid and gave exactly ``exe_ans``: execution accuracy of one program."""
    return not execution.invalid and execution.result == exe_ans


def _operand(text: str, results: dict[int, float | str]) -> float | str:
    if "#" in text:
        return results[step_index(text.replace("#", ""))]
    number = numbers.parse_argument(text)
    if number is None:
        raise Rejected
    return number


def _arithmetic(name: str, a: float | str, b: float | str) -> float | str:
    """Apply an operation to numbers, or to results of ``greater`` as far as Python strings allow it."""
    if name == "greater":
        return "yes" if a > b else "no"
    if name == "exp":  # floats overflow at once; integers, which an empty row sums to, would grow for ever
        a, b = a * 1.0, b * 1.0
    elif name == "add" and isinstance(a, str) and isinstance(b, str) and len(a) + len(b) > MAX_TEXT:
        raise ValueError("text too long")  # add(#0, #0), add(#1, #1), ... doubles it at every step
    return OPERATORS[name](a, b)


def _row_numbers(table: Sequence[Sequence[str]], name: str) -> list[float]:
    """Return the numbers of the row ``name``, matched exactly; of rows of the same name the last is meant.

    Raises ``Rejected`` if there is none or one of its cells is no number, or one of ``JUNK``.
    """
    rows = {row[0]: row[1:] for row in table}
    if name not in rows:
        raise Rejected
    row = [numbers.parse_cell(cell) for cell in rows[name]]
    if None in row:
        raise Rejected
    return row


def _aggregate(operation: str, row: list[float]) -> float:
    if operation == "table_max":
        return max(row)
    if operation == "table_min":
        return min(row)
    # From left to right: sum() of floats rounds otherwise from Python 3.12 on, and scores must not depend on that.
    total = functools.reduce(operator.add, row, 0)
    return total if operation == "table_sum" else total / len(row)
