"""FinQA programs: read them and execute them as the official evaluator does.

A program is a chain of steps such as ``subtract(5829, 5735), divide(#0, 5735)``; ``#k`` is step k's result, from 0.
Execution accuracy is that of Chen et al., EMNLP 2021, as ``code/evaluate/evaluate.py`` of github.com/czyssrs/FinQA has
it: the result, rounded to 5 decimals, equals ``exe_ans``. ``program_correct`` is the other metric, program accuracy.

Odd habits of that evaluator are kept, because scores are only comparable with them; each is noted where it is kept.
Unlike it, nothing here raises or runs away, whatever a model wrote: see ``execute``.
"""

import functools
import hashlib
import math
import operator
import re
from collections.abc import Sequence

from fincompress.finqa.numbers import parse_cell, parse_number

ARITHMETIC = {
    "add": operator.add,
    "subtract": operator.sub,
    "multiply": operator.mul,
    "divide": operator.truediv,
    "exp": math.pow,  # unlike ``**`` it refuses what would be complex
    "greater": lambda a, b: "yes" if a > b else "no",
}
TABLE = {
    "table_max": max,
    "table_min": min,
    # From left to right: sum() of floats rounds otherwise from Python 3.12 on, and scores must not depend on that.
    "table_sum": lambda row: functools.reduce(operator.add, row, 0.0),
    "table_average": lambda row: functools.reduce(operator.add, row, 0.0) / len(row),
}
OPERATIONS = (*ARITHMETIC, *TABLE)
END = "EOF"
MAX_STEPS = 100_000  # longer programs (over 1 MB of text) are invalid; gold programs have a handful of steps

PRIME = 2**127 - 1  # of program accuracy: see ``program_correct``

# Errors that junk in a program or a table can cause; the official evaluator catches everything.
JUNK = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)


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
    text = ", ".join(tokens[:-1] if tokens and tokens[-1] == END else tokens)
    return re.sub(r"(?<=\(), |, (?=\)(?:, |$))", "", text)


def operations(tokens: Sequence[str]) -> list[str]:
    """Return the names of the operations in ``tokens``, in order, those of an unfinished last step included."""
    return [token[:-1] for token in tokens if token.endswith("(") and token[:-1] in OPERATIONS]


def operands(program: str) -> tuple[list[str], list[str]]:
    """Return the numbers that ``program`` writes (``["5829", "5.3%"]``) and the table rows that it names.

    Each stands once, in order. Constants (``const_100``) and references (``#0``) are left out. The program executes.
    """
    tokens, numbers, rows = tokenize(program), [], []
    for name, first, second in zip(tokens[::4], tokens[1::4], tokens[2::4], strict=False):
        if name[:-1] in TABLE:
            rows.append(first.strip())
        else:
            numbers += [
                text.strip() for text in (first, second) if "const" not in text and parse_number(text) is not None
            ]
    return list(dict.fromkeys(numbers)), list(dict.fromkeys(rows))


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
    """Return operation and two arguments of a step's text; raises one of ``JUNK``."""
    name, arguments = step.split("(")
    first, second, *_ = arguments.strip("|").strip().split("|")
    return name.strip("|").strip(), first.strip(), second.strip()


def execute(tokens: Sequence[str], table: Sequence[Sequence[str]]) -> float | str | None:
    """Execute a program given as official ``tokens``, whose last one is dropped, on a ``table`` of rows of cells.

    Returns a number rounded to 5 decimals (maybe ``inf`` or ``nan``, which strict JSON refuses), "yes", "no", or
    None where nothing can be computed. Never raises: complex numbers, overflow, division by zero, programs of more
    than ``MAX_STEPS`` steps and those without a whole step are None too. An unfinished last step is ignored, as in the
    official evaluator. Takes time and memory in proportion to tokens and table.
    """
    result: float | str | None = None
    results: dict[int, float | str] = {}
    row = None  # numbers of the row that was looked up last
    try:
        for index, step in enumerate(complete_steps(tokens)):
            name, first, second = split_step(step)
            if name in ARITHMETIC:
                a, b = _operand(first, results), _operand(second, results)
                if isinstance(a, str) and name != "greater":
                    raise TypeError("arithmetic on yes and no")
                result = ARITHMETIC[name](a, b)
            else:
                if "#" in first:  # the step must exist; the official evaluator then takes the row looked up last
                    _operand(first, results)
                else:
                    row = _row_numbers(first, table)
                result = TABLE[name](row)
            results[index] = result
    except JUNK:
        return None
    return round(result, 5) if isinstance(result, int | float) else result


def steps(tokens: Sequence[str], table: Sequence[Sequence[str]]) -> list[tuple[str, float | str | None]]:
    """Return ``(text, value)`` of each step of a program, to show how its result comes about.

    The value is None from the first step on that cannot be computed, and for an unfinished one.
    """
    results = []
    for start in range(0, len(tokens) - 1, 4):
        step = tokens[start : min(start + 4, len(tokens) - 1)]
        value = execute([*tokens[: start + len(step)], END], table) if len(step) == 4 else None
        results.append((detokenize(step), value))
    return results


def _operand(text: str, results: dict[int, float | str]) -> float | str:
    number = results[int(text.replace("#", ""))] if "#" in text else parse_number(text)
    if number is None:
        raise ValueError(f"no number: {text}")
    return number


def _row_numbers(name: str, table: Sequence[Sequence[str]]) -> list[float]:
    """Return the numbers of the row ``name``, matched exactly; of rows of the same name the last is meant."""
    rows = {row[0]: row[1:] for row in table}
    row = [parse_cell(cell) for cell in rows[name]]
    if None in row:
        raise ValueError(f"a cell of {name} is no number")
    return row


# --- the same formula ------------------------------------------------------------------------------------------------


def program_correct(predicted_tokens: Sequence[str], gold_tokens: Sequence[str]) -> bool:
    """Return whether two programs are the same formula: program accuracy of one program.

    Every argument of the gold program is a symbol (by its text: ``5`` and ``5.0`` differ), every table step is one as a
    whole, and the prediction may use no other. The official evaluator compares what sympy's ``simplify`` makes of the
    formulas of the last steps, which can take for ever. This compares their values at a point, computed exactly modulo
    a prime: equal formulas have equal values, and different ones do with a chance of about 1e-36 (Schwartz, 1980).
    Powers, comparisons and divisions by zero are no arithmetic modulo a prime. They are equal where both operands are.

    Never raises, and takes time in proportion to the tokens. A gold program that cannot be read equals nothing.
    """
    try:
        gold, known = _value(gold_tokens)
        predicted, used = _value(predicted_tokens)
    except JUNK:
        return False
    return used <= known and gold is not None and predicted == gold


def _value(tokens: Sequence[str]) -> tuple[int | str | None, set]:
    """Return the value of a program's last step and the symbols of all steps; raises one of ``JUNK``.

    A value is a number below ``PRIME``, the text of a comparison, or ``None`` where the official evaluator fails.
    """
    values, symbols = [], set()
    for step in complete_steps(tokens):
        name, *arguments = split_step(step)
        if name in TABLE:
            # By the whole text, and so with the "|" that every step but the first begins with: the official evaluator
            # takes the same table step in first and in a later place for two different things.
            symbols.add(step)
            values.append(_point(step))
            continue
        operands = []
        for argument in arguments:
            if "#" in argument:
                index = int(argument.strip("#"))
                operands.append(values[index] if index >= 0 else None)
            else:
                symbols.add(argument)
                operands.append(_point(argument))
        values.append(_apply(name, *operands))
    return values[-1], symbols


def _apply(name: str, x: int | str | None, y: int | str | None) -> int | str | None:
    if not isinstance(x, int) or not isinstance(y, int):
        return None
    if name == "greater":
        return f"{x} > {y}"
    if name == "exp" or (name == "divide" and y == 0):
        return _point((name, x, y))
    if name == "divide":
        return x * pow(y, -1, PRIME) % PRIME
    return ARITHMETIC[name](x, y) % PRIME


def _point(symbol: object) -> int:
    """Return the value that stands for a symbol: the same in every program."""
    return int.from_bytes(hashlib.sha256(ascii(symbol).encode()).digest(), "big") % PRIME
