"""Whether two FinQA programs are the same formula: program accuracy."""

import hashlib
from collections.abc import Sequence

from fincompress.finqa import program

PRIME = 2**127 - 1


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
    except program.JUNK:
        return False
    return used <= known and gold is not None and predicted == gold


def _value(tokens: Sequence[str]) -> tuple[int | str | None, set]:
    """Return the value of a program's last step and the symbols of all steps; raises one of ``program.JUNK``.

    A value is a number below ``PRIME``, the text of a comparison, or ``None`` where the official evaluator fails.
    """
    values, symbols = [], set()
    for step in program.complete_steps(tokens):
        name, *arguments = program.split_step(step)
        if name in program.TABLE:
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
    return program.ARITHMETIC[name](x, y) % PRIME


def _point(symbol: object) -> int:
    """Return the value that stands for a symbol: the same in every program."""
    return int.from_bytes(hashlib.sha256(ascii(symbol).encode()).digest(), "big") % PRIME
