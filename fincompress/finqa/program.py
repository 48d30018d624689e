"""FinQA programs: read them, execute them, score them as the official evaluator does.

A program is a chain of steps such as ``subtract(5829, 5735), divide(#0, 5735)``; ``#k`` is step k's result, from 0.
The two metrics are those of Chen et al., EMNLP 2021, as ``code/evaluate/evaluate.py`` of github.com/czyssrs/FinQA has
them: execution accuracy (the result, rounded to 5 decimals, equals ``exe_ans``) and program accuracy (the two programs
are the same formula of the gold program's arguments).

Odd habits of that evaluator are kept, because scores are only comparable with them; each is noted where it is kept.
Unlike it, nothing here raises or runs away, whatever a model wrote: see ``execute`` and ``program_correct``.
"""

from __future__ import annotations

import decimal
import functools
import operator
import random
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

ARITHMETIC = ("add", "subtract", "multiply", "divide", "exp", "greater")
TABLE = ("table_max", "table_min", "table_sum", "table_average")
OPERATIONS = ARITHMETIC + TABLE
INVALID = "n/a"
END = "EOF"

MAX_STEPS = 100_000  # longer programs (over 1 MB of text) are invalid; gold programs have a handful of steps
MAX_TEXT = 1_000  # characters of a "yesyes..." that adding the results of `greater` may grow to
MAX_INDEX = 1_000  # characters of the k in #k: int() is quadratic in them
MAX_LEAVES = 32  # arguments of the written-out formula that sympy is asked to simplify
MAX_TERMS = 1_000  # terms, above times below the line, that sympy may have to multiply out
MAX_EXPONENT = 3  # numeric exponent, as in (a + b) ** (c/c + c/c), that sympy may expand
MAX_EVALUATED = 2_000  # distinct steps that are evaluated numerically to compare two programs

# Errors that junk in a program or a table can cause; the official evaluator catches everything.
_JUNK = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)


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
        if "const" not in argument and parse_number(argument) is not None
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


def parse_number(text: str) -> float | None:
    """Return the number that the official evaluator reads in ``text``, or ``None``.

    Commas anywhere are dropped, ``5%`` is 0.05, ``const_100`` is 100 and ``const_m1`` is -1. Whatever ``float`` takes
    is a number, as it is there: ``1e5``, ``1_000``, ``inf``, ``nan``, digits of other scripts.
    """
    try:
        return _number(text)
    except ValueError:
        return None


def _number(text: str) -> float | None:
    """Like ``parse_number``, but an unreadable constant raises ``ValueError``, which ends a program another way."""
    text = text.replace(",", "")
    try:
        return float(text)
    except ValueError:
        pass
    if "%" in text:
        try:
            return float(text.replace("%", "")) / 100.0
        except ValueError:
            return None
    if "const" in text:
        value = text.replace("const_", "")
        return float("-1" if value == "m1" else value)
    return None


# --- steps ----------------------------------------------------------------------------------------------------------


class _Rejected(Exception):
    """The official evaluator stops at this step by itself, not through an error: the result so far is rounded."""


def _complete_steps(tokens: Sequence[str]) -> list[str]:
    """Return the texts of the complete steps, such as ``add(|1|2|`` and, from the second on, ``|add(|1|2|``.

    The last token is dropped unseen (it should be ``EOF``), and so is a step without its ``)``.
    Raises one of ``_JUNK`` where an operation or a ``)`` is not in its place.
    """
    tokens = tokens[:-1]
    if len(tokens) > 4 * MAX_STEPS:
        raise ValueError(f"more than {MAX_STEPS} steps")
    if any(token.strip("(") not in OPERATIONS for token in tokens[::4]) or any(token != ")" for token in tokens[3::4]):
        raise ValueError("every fourth token must be an operation, and the third after it a closing parenthesis")
    # Joined and parted again as the official evaluator does: a token may hold "|" or ")" itself.
    return [step.strip() for step in "|".join(tokens).split(")")[:-1]]


def _split_step(step: str) -> tuple[str, str, str]:
    """Return operation and two arguments of a step's text; raises ``_Rejected`` or one of ``_JUNK``."""
    name, *rest = step.split("(")
    if len(rest) > 1:
        raise _Rejected
    arguments = rest[0].strip("|").strip().split("|")
    return name.strip("|").strip(), arguments[0].strip(), arguments[1].strip()


def _index(digits: str) -> int:
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
    result = INVALID
    invalid = False
    results = {}
    rows = _Rows(table)
    try:
        for index, step in enumerate(_complete_steps(tokens)):
            name, first, second = _split_step(step)
            if name in ARITHMETIC:
                result = _arithmetic(name, _operand(first, results), _operand(second, results))
                results[index] = result
            elif "table" in name:
                if "#" in first:  # the step must exist; the official evaluator then takes the row looked up last
                    results[_index(first.replace("#", ""))]
                else:
                    rows.look_up(first)
                result = rows.compute(name, result)
                results[index] = result
    except _Rejected:
        invalid = True
    except _JUNK:
        return Execution(True, INVALID if isinstance(result, complex) else result)
    if result in ("yes", "no", INVALID):
        return Execution(invalid, result)
    try:
        return Execution(invalid, round(result, 5))
    except _JUNK:  # complex, or "yesyes"
        return Execution(True, result if isinstance(result, str) else INVALID)


def execution_correct(execution: Execution, exe_ans: float | str) -> bool:
    """Return whether ``execution`` is valid and gave exactly ``exe_ans``: execution accuracy of one program."""
    return not execution.invalid and execution.result == exe_ans


def _operand(text: str, results: dict[int, float | str]) -> float | str:
    if "#" in text:
        return results[_index(text.replace("#", ""))]
    number = _number(text)
    if number is None:
        raise _Rejected
    return number


def _arithmetic(name: str, a: float | str, b: float | str) -> float | str:
    """Apply an operation to numbers, or to results of ``greater`` as far as Python strings allow it."""
    if name == "greater":
        return "yes" if a > b else "no"
    if name == "add":
        if isinstance(a, str) and isinstance(b, str) and len(a) + len(b) > MAX_TEXT:
            raise ValueError("text too long")  # add(#0, #0), add(#1, #1), ... doubles it at every step
        return a + b
    if name == "subtract":
        return a - b
    if name == "multiply":
        return a * b
    if name == "divide":
        return a / b
    return pow(a * 1.0, b * 1.0)  # floats overflow at once; integers, which an empty row sums to, would grow for ever


class _Rows:
    """Rows of a table by their first cell. What was computed is kept: a program may ask for it at every step."""

    def __init__(self, table: Sequence[Sequence[str]]):
        self.table = table
        self.cells = None  # name of a row -> its cells but the first, once needed
        self.numbers = {}  # name of a row -> its numbers
        self.computed = {}  # (operation, name of a row) -> result
        self.last = None  # name of the row that was looked up last

    def look_up(self, name: str) -> None:
        """Read the row ``name``, matched exactly; of rows of the same name the last is meant.

        Raises ``_Rejected`` if there is none or one of its cells is no number, or one of ``_JUNK``.
        """
        if self.cells is None:
            self.cells = {row[0]: row[1:] for row in self.table}
        if name not in self.numbers:
            if name not in self.cells:
                raise _Rejected
            # "$ 5.2 ( 3.1% )" counts as 5.2
            numbers = [_number(cell.replace("$", "").strip().split("(")[0].strip()) for cell in self.cells[name]]
            if None in numbers:
                raise _Rejected
            self.numbers[name] = numbers
        self.last = name

    def compute(self, operation: str, otherwise: float | str) -> float | str:
        """Return maximum, minimum, sum or mean of the row looked up last; ``otherwise`` for an unknown operation."""
        if self.last is None:
            raise ValueError("a table operation on a reference, and no row looked up before")
        if operation not in TABLE:
            return otherwise
        if (operation, self.last) not in self.computed:
            self.computed[operation, self.last] = _aggregate(operation, self.numbers[self.last])
        return self.computed[operation, self.last]


def _aggregate(operation: str, numbers: list[float]) -> float:
    if operation == "table_max":
        return max(numbers)
    if operation == "table_min":
        return min(numbers)
    # From left to right: sum() of floats rounds otherwise from Python 3.12 on, and scores must not depend on that.
    total = functools.reduce(operator.add, numbers, 0)
    return total if operation == "table_sum" else total / len(numbers)


# --- equality of programs -------------------------------------------------------------------------------------------


def program_correct(predicted_tokens: Sequence[str], gold_tokens: Sequence[str]) -> bool:
    """Return whether two programs are the same formula: program accuracy of one program.

    Every argument of the gold program is a symbol (by its text: ``5`` and ``5.0`` differ), every table step is one as a
    whole, and the prediction may use no other. The official evaluator compares what sympy's ``simplify`` makes of the
    two formulas of the last steps, and so does this, except that formulas which

    - are identical up to the order of operands of ``add`` and ``multiply`` are equal,
    - differ in value at a point are unequal,
    - are too large for sympy (see ``_Formulas.is_small``), for which it would take seconds to for ever, are equal if
      their values are.

    Never raises. A gold program that cannot be read equals nothing.
    """
    formulas = _Formulas()
    try:
        gold = formulas.read(gold_tokens, new_symbols=True)
        predicted = formulas.read(predicted_tokens, new_symbols=False)
    except (*_JUNK, _Rejected):
        return False
    if not (formulas.is_sound(gold) and formulas.is_sound(predicted)):
        return False
    if gold == predicted:
        return True
    alike = formulas.alike(gold, predicted)
    if alike is False:
        return False
    if not (formulas.is_small(gold) and formulas.is_small(predicted)):
        return alike is True
    expression, other = formulas.built(gold), formulas.built(predicted)
    if expression is None or other is None:
        return False
    if expression == other:
        return True
    expression, other = _simplify(expression), _simplify(other)
    return expression is not None and other is not None and bool(expression == other)


_TOLERANCE = decimal.Decimal("1e-20")
_INFINITY = decimal.Decimal("Infinity")


def _near(x: decimal.Decimal, y: decimal.Decimal) -> bool:
    return abs(x - y) <= max(abs(x), abs(y)) * _TOLERANCE


def _above(x: decimal.Decimal, y: decimal.Decimal) -> bool | None:
    return None if _near(x, y) else x > y  # of two equal values, rounding would tell which is greater


class _Formulas:
    """Formulas as one graph without duplicates: a step is a number, so that equal formulas are equal numbers.

    Steps are kept in an order in which operands come first; no formula is ever written out as a tree, whose size can be
    exponential in the number of steps (``add(#0, #0), add(#1, #1), ...``).
    """

    def __init__(self):
        self.nodes = []  # ("symbol", name), (operation, position, position), or ("broken",)
        self.numbers = {}  # node -> its position in nodes
        self.symbols = {}  # text of an argument or of a table step -> its node's position

    def read(self, tokens: Sequence[str], new_symbols: bool) -> int:
        """Add a program's steps and return the position of the last; raises ``_Rejected`` or one of ``_JUNK``."""
        results = []
        for step in _complete_steps(tokens):
            name, *arguments = _split_step(step)
            if "table" in name:
                # By the whole text, and so with the "|" that every step but the first begins with: the official
                # evaluator takes the same table step in first and in a later place for two different things.
                results.append(self._symbol(step, new_symbols))
                continue
            operands = []
            for argument in arguments:
                if "#" not in argument:
                    operands.append(self._symbol(argument, new_symbols))
                    continue
                index = _index(argument.strip("#"))
                # A negative reference only matters in a step that the last one needs.
                operands.append(results[index] if index >= 0 else self._add(("broken",)))
            if name in ("add", "multiply"):
                operands.sort()
            results.append(self._add((name, *operands)))
        return results[-1]

    def _symbol(self, text: str, new_symbols: bool) -> int:
        if text not in self.symbols:
            if not new_symbols:
                raise _Rejected
            # Numbered as in the official evaluator: sympy's choice among simple forms may depend on the names.
            self.symbols[text] = self._add(("symbol", f"a{len(self.symbols)}"))
        return self.symbols[text]

    def _add(self, node: tuple) -> int:
        if node not in self.numbers:
            self.numbers[node] = len(self.nodes)
            self.nodes.append(node)
        return self.numbers[node]

    def _needed(self, root: int) -> list[int]:
        """Return the positions of the nodes that ``root`` is made of, operands first, itself last."""
        needed = {root}
        for position in range(root, -1, -1):
            if position in needed and self.nodes[position][0] != "symbol":
                needed.update(self.nodes[position][1:])
        return sorted(needed)

    def is_sound(self, root: int) -> bool:
        """Return whether sympy can build the formula: known operations, and no arithmetic on the result of greater."""
        for position in self._needed(root):
            name, *operands = self.nodes[position]
            if name == "symbol":
                continue
            if name not in ARITHMETIC or any(self.nodes[operand][0] == "greater" for operand in operands):
                return False
        return True

    def alike(self, a: int, b: int) -> bool | None:
        """Return whether two formulas have the same values at random points; ``None`` if that cannot be told.

        What simplifies to the same expression has the same values, so that ``False`` is certain: points are positive
        (laws of powers hold), and values carry 100 digits of which 20 are compared.
        """
        needed = sorted({*self._needed(a), *self._needed(b)})
        if len(needed) > MAX_EVALUATED:
            return False
        agreed = False
        for seed in range(4):
            value, other = self._values(needed, a, b, seed)
            if value is None or other is None:
                continue
            if isinstance(value, bool) or isinstance(other, bool):
                if type(value) is not type(other) or value != other:
                    return False
            elif not _near(value, other):
                return False
            else:
                agreed = True
        return True if agreed else None  # the signs of two inequalities prove nothing

    def _values(self, needed: list[int], a: int, b: int, seed: int) -> list[decimal.Decimal | bool | None]:
        """Return the values of two formulas; ``None`` where one has no reliable real value at this point."""
        # Values outside 1e-30 ... 1e30 are given up: below may be a zero that rounding missed.
        context = decimal.Context(
            prec=100,
            Emax=30,
            Emin=-30,
            traps=[decimal.Overflow, decimal.Subnormal, decimal.InvalidOperation, decimal.DivisionByZero],
        )
        compute = {
            "add": context.add,
            "subtract": context.subtract,
            "multiply": context.multiply,
            "divide": context.divide,
            "exp": context.power,
            "greater": _above,
        }
        generator = random.Random(seed)
        values = {}
        for position in needed:
            name, *operands = self.nodes[position]
            if name == "symbol":
                # Below 1.44 even a ** a ** a ... stays small.
                values[position] = decimal.Decimal(generator.randrange(105 * 10**16, 140 * 10**16)).scaleb(-18)
                continue
            x, y = (values[operand] for operand in operands)
            try:
                value = None if x is None or y is None else compute[name](x, y)
            except ArithmeticError:
                value = None
            values[position] = None if value == _INFINITY else value  # of 0 ** -1, which raises nothing
        return [values[a], values[b]]

    def is_small(self, root: int) -> bool:
        """Return whether sympy simplifies the formula within about a second, as far as its size tells.

        Two sizes count: arguments of the formula written out as a tree (``MAX_LEAVES``), and terms that it has over one
        denominator, multiplied out but not collected: those above times those below (``MAX_TERMS``).
        """
        sizes = {}
        for position in self._needed(root):
            name, *operands = self.nodes[position]
            if name == "symbol":
                sizes[position] = (1, 1, 1)
                continue
            (leaves, above, below), (other_leaves, other_above, other_below) = (sizes[operand] for operand in operands)
            leaves += other_leaves
            if name == "multiply":
                above, below = above * other_above, below * other_below
            elif name == "divide":
                above, below = above * other_below, below * other_above
            elif name == "exp":  # x ** (y + z) is multiplied out as well
                above, below = above * below * other_above * other_below, 1
            else:
                above, below = above * other_below + below * other_above, below * other_below
            if leaves > MAX_LEAVES or above * below > MAX_TERMS:
                return False
            sizes[position] = (leaves, above, below)
        return True

    def built(self, root: int):
        """Return a small formula as a sympy expression; ``None`` where sympy refuses, or would expand a high power."""
        expressions = {}
        for position in self._needed(root):
            name, *operands = self.nodes[position]
            if name == "symbol":
                expressions[position] = _symbol(operands[0])
                continue
            x, y = (expressions[operand] for operand in operands)
            if name == "exp" and y.is_Rational and abs(y) > MAX_EXPONENT:
                return None
            try:
                expressions[position] = _SYMPY[name](x, y)
            except Exception:  # comparing infinities, and whatever else sympy has in store
                return None
        return expressions[root]


_SYMPY = {
    "add": operator.add,
    "subtract": operator.sub,
    "multiply": operator.mul,
    "divide": operator.truediv,
    "exp": operator.pow,
    "greater": operator.gt,
}


# sympy is imported where it is used: it is slow to import, and only needed for programs that have the values of the
# gold program, but differ from it in more than the order of operands.


def _symbol(name: str):
    from sympy import Symbol

    return Symbol(name)


@functools.lru_cache(maxsize=4096)
def _simplify(expression):
    """Return the simplest form that sympy finds; ``None`` where it fails, as it does at some infinities."""
    from sympy import simplify

    try:
        return simplify(expression)
    except Exception:  # sympy names no set of errors it may raise here; none of them may stop a scoring run
        return None
