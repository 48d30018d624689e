"""Whether two FinQA programs are the same formula: program accuracy, as the official evaluator judges it.

Unlike it, nothing here raises or runs away, whatever a model wrote: see ``program_correct``.
"""

from __future__ import annotations

import decimal
import functools
import random
from collections.abc import Callable, Sequence

from fincompress.finqa import program

MAX_LEAVES = 32  # arguments of the written-out formula that sympy is asked to simplify
MAX_TERMS = 1_000  # terms, above times below the line, that sympy may have to multiply out
MAX_EXPONENT = 3  # numeric exponent, as in (a + b) ** (c/c + c/c), that sympy may expand
MAX_EVALUATED = 2_000  # distinct steps that are evaluated numerically to compare two programs


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
    except (*program.JUNK, program.Rejected):
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
        self.positions = {}  # node -> its position in nodes
        self.symbols = {}  # text of an argument or of a table step -> its node's position

    def read(self, tokens: Sequence[str], new_symbols: bool) -> int:
        """Add a program's steps and return the position of the last; raises ``Rejected`` or one of ``JUNK``."""
        results = []
        for step in program.complete_steps(tokens):
            name, *arguments = program.split_step(step)
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
                index = program.step_index(argument.strip("#"))
                # A negative reference only matters in a step that the last one needs.
                operands.append(results[index] if index >= 0 else self._add(("broken",)))
            if name in ("add", "multiply"):
                operands.sort()
            results.append(self._add((name, *operands)))
        return results[-1]

    def _symbol(self, text: str, new_symbols: bool) -> int:
        if text not in self.symbols:
            if not new_symbols:
                raise program.Rejected
            # Numbered as in the official evaluator: sympy's choice among simple forms may depend on the names.
            self.symbols[text] = self._add(("symbol", f"a{len(self.symbols)}"))
        return self.symbols[text]

    def _add(self, node: tuple) -> int:
        if node not in self.positions:
            self.positions[node] = len(self.nodes)
            self.nodes.append(node)
        return self.positions[node]

    def _needed(self, root: int) -> list[int]:
        """Return the positions of the nodes that ``root`` is made of, operands first, itself last."""
        needed = {root}
        for position in range(root, -1, -1):
            if position in needed and self.nodes[position][0] != "symbol":
                needed.update(self.nodes[position][1:])
        return sorted(needed)

    def _fold(self, root: int, leaf: Callable, combine: Callable):
        """Return a property of a formula: ``leaf`` of a symbol's position, ``combine`` of an operation's operands."""
        found = {}
        for position in self._needed(root):
            name, *operands = self.nodes[position]
            found[position] = leaf(position) if name == "symbol" else combine(name, *(found[x] for x in operands))
        return found[root]

    def is_sound(self, root: int) -> bool:
        """Return whether sympy can build the formula: known operations, and no arithmetic on the result of greater."""
        for name, *operands in (self.nodes[position] for position in self._needed(root)):
            if name == "symbol":
                continue
            if name not in program.ARITHMETIC or any(self.nodes[operand][0] == "greater" for operand in operands):
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
            generator = random.Random(seed)
            # Below 1.44 even a ** a ** a ... stays small.
            point = {
                position: decimal.Decimal(generator.randrange(105 * 10**16, 140 * 10**16)).scaleb(-18)
                for position in needed
                if self.nodes[position][0] == "symbol"
            }
            value, other = (self._fold(root, point.__getitem__, _compute) for root in (a, b))
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

    def is_small(self, root: int) -> bool:
        """Return whether sympy simplifies the formula within about a second, as far as its size tells."""
        return self._fold(root, lambda position: (1, 1, 1), _size) is not None

    def built(self, root: int):
        """Return a small formula as a sympy expression; ``None`` where sympy refuses, or would expand a high power."""
        return self._fold(root, lambda position: _symbol(self.nodes[position][1]), _build)


# Values outside 1e-30 ... 1e30 are given up: below may be a zero that rounding missed.
_CONTEXT = decimal.Context(
    prec=100,
    Emax=30,
    Emin=-30,
    traps=[decimal.Overflow, decimal.Subnormal, decimal.InvalidOperation, decimal.DivisionByZero],
)
_COMPUTE = {
    "add": _CONTEXT.add,
    "subtract": _CONTEXT.subtract,
    "multiply": _CONTEXT.multiply,
    "divide": _CONTEXT.divide,
    "exp": _CONTEXT.power,
    "greater": _above,
}


def _compute(name: str, x: decimal.Decimal | None, y: decimal.Decimal | None) -> decimal.Decimal | bool | None:
    """Return the value of an operation; ``None`` where it has no reliable real value."""
    try:
        value = None if x is None or y is None else _COMPUTE[name](x, y)
    except ArithmeticError:
        return None
    return None if value == _INFINITY else value  # of 0 ** -1, which raises nothing


def _size(name: str, first: tuple[int, ...] | None, second: tuple[int, ...] | None) -> tuple[int, int, int] | None:
    """Return the size of an operation from those of its operands; ``None`` where it is too large.

    A size is the arguments of the formula written out as a tree, and the terms above and below the line that it has
    over one denominator, multiplied out but not collected.
    """
    if first is None or second is None:
        return None
    (leaves, above, below), (other_leaves, other_above, other_below) = first, second
    leaves += other_leaves
    if name == "multiply":
        above, below = above * other_above, below * other_below
    elif name == "divide":
        above, below = above * other_below, below * other_above
    elif name == "exp":  # x ** (y + z) is multiplied out as well
        above, below = above * below * other_above * other_below, 1
    else:
        above, below = above * other_below + below * other_above, below * other_below
    return (leaves, above, below) if leaves <= MAX_LEAVES and above * below <= MAX_TERMS else None


def _build(name: str, x, y):
    """Return the sympy expression of an operation, or ``None``: see ``_Formulas.built``."""
    if x is None or y is None or (name == "exp" and y.is_Rational and abs(y) > MAX_EXPONENT):
        return None
    try:
        return program.OPERATORS[name](x, y)
    except Exception:  # comparing infinities, and whatever else sympy has in store
        return None


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
