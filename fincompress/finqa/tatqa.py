"""TAT-QA's arithmetic questions (Zhu et al., ACL 2021) as FinQA records, to train on beside FinQA's own.

A derivation such as ``(44.1-56.7)/56.7`` becomes ``subtract(44.1, 56.7), divide(#0, 56.7)``, and the page is written as
FinQA writes pages: lower case, no thousands separators, one header row, a sentence an entry. A final ``* 100`` is left
out, so that a percentage is a fraction, as in FinQA; a difference of percentages stays in points.
"""

import ast
import re
from collections import Counter
from pathlib import Path

from fincompress.errors import UserError
from fincompress.finqa import examples, program
from fincompress.finqa.numbers import is_amount, numbers_in, release_cell, release_text

OPERATIONS = {ast.Add: "add", ast.Sub: "subtract", ast.Mult: "multiply", ast.Div: "divide", ast.Pow: "exp"}
COUNTS = range(1, 11)  # what a sum is divided by, which stands on no page: const_2
CONSTANTS = {1: "const_1", 100: "const_100", 1000: "const_1000", 1000000: "const_1000000"}
FIXED = {ast.Sub: 1, ast.Mult: 100, ast.Div: 100}  # on the right of these a constant, as FinQA writes it


def load(folder: str) -> tuple[list[examples.Example], dict]:
    """The usable arithmetic questions of every JSON file in a folder, and a report of them.

    The report has ``source``, ``fingerprint`` of the files, ``usable`` and ``left_out``, the number of questions by
    reason. Raises UserError where the folder holds no TAT-QA, or a file of it without answers.
    """
    paths = sorted(Path(folder).glob("*.json"))
    if not paths:
        raise UserError(f"EXTRA_DATA_DIR={folder} holds no JSON file; it should hold TAT-QA's")
    files = {path.name: examples.parse_records(path.read_bytes(), path) for path in paths}
    records, left_out = [], Counter()
    for name, pages in files.items():
        try:
            questions = [(page, question) for page in pages for question in page["questions"]]
            if questions and not any("answer_type" in question for _, question in questions):
                raise UserError(f"{Path(folder) / name} holds no answers: remove it (TAT-QA's test_gold file has them)")
            for page, question in questions:
                if question.get("answer_type") == "arithmetic":
                    try:
                        records.append(convert_question(page, question))
                    except ValueError as error:
                        left_out[str(error)] += 1
        except (KeyError, TypeError, AttributeError):
            raise UserError(
                f"{Path(folder) / name} is not TAT-QA: expected pages with table, paragraphs, questions"
            ) from None
    if not records:
        raise UserError(f"EXTRA_DATA_DIR={folder} holds no arithmetic question of TAT-QA with a derivation")
    usable, skipped = examples.validate_split("train", records)
    left_out.update(example["reason"] for example in skipped)
    fingerprint = examples.fingerprint_records(files)
    return usable, {"source": "TAT-QA", "fingerprint": fingerprint, "usable": len(usable), "left_out": dict(left_out)}


def convert_question(page: dict, question: dict) -> dict:
    """One record; raises ValueError with the reason it cannot be had."""
    paragraphs = sorted(page["paragraphs"], key=lambda paragraph: paragraph["order"])
    texts = examples.sentences([paragraph["text"] for paragraph in paragraphs])
    sentences = [release_text(text) for text in texts]
    table = make_table(page["table"]["table"])
    shown = {value for text in [*sentences, *(cell for row in table for cell in row)] for value, _ in numbers_in(text)}
    if not isinstance(question["derivation"], str):
        raise ValueError("it has no derivation")
    text = write_program(question["derivation"], question["scale"] == "percent", shown)
    result = program.execute(program.tokenize(text), table)
    if result is None or not gives(result, question["answer"], question["scale"]):
        raise ValueError("the derivation does not give the answer")
    return {
        "id": question["uid"],
        "filename": page["table"]["uid"],
        "pre_text": sentences,
        "post_text": [],
        "table": table,
        "qa": {"question": release_text(question["question"]), "program": text, "exe_ans": result, "gold_inds": {}},
    }


def gives(result: float | str, answer: object, scale: str) -> bool:
    """Whether a result is the answer as rounded, which for percentages may be a hundred times a fraction."""
    try:
        wanted = float(str(answer).replace(",", ""))
    except ValueError:
        return False
    digits = len(str(answer).partition(".")[2])
    return any(
        abs(result * factor - wanted) <= 0.51 * 10**-digits for factor in ((1, 100) if scale == "percent" else (1,))
    )


# --- pages -----------------------------------------------------------------------------------------------------------


def make_table(rows: list[list[str]]) -> list[list[str]]:
    """Cells cleaned, and the leading rows that hold no amounts joined, column by column, to one header."""
    table = [[release_cell(cell) for cell in row] for row in rows]
    header = 0
    while header < len(table) - 1 and not any(is_amount(cell) for cell in table[header][1:]):
        header += 1
    header = max(1, header)
    return [examples.join_header(table[:header]), *table[header:]]


# --- programs --------------------------------------------------------------------------------------------------------


def write_program(derivation: str, percent: bool, shown: set[float]) -> str:
    """The FinQA program of a derivation; raises ValueError where it is none, or a number of it is not ``shown``."""
    text = release_text(derivation).replace("[", "(").replace("]", ")").replace("\u00d7", "*").replace("\u00f7", "/")
    text = re.sub(r"[$%\u00a3\u20ac\s]", "", text)
    try:
        tree = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise ValueError("the derivation is no formula") from None
    if percent and isinstance(tree, ast.BinOp) and isinstance(tree.op, ast.Mult) and number(tree.right, text) == "100":
        tree = tree.left
    steps: list[str] = []
    write(tree, text, shown, steps)
    if not steps:
        raise ValueError("the derivation has no operation")
    return ", ".join(steps)


def number(node: ast.expr, text: str) -> str | None:
    """A literal as it is written, its sign with it; None for anything else."""
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        literal = number(node.operand, text)
        return literal and f"-{literal}"
    is_number = isinstance(node, ast.Constant) and type(node.value) in (int, float)
    return ast.get_source_segment(text, node) if is_number else None


def write(node: ast.expr, text: str, shown: set[float], steps: list[str], divisor: bool = False) -> str:
    """Append the steps of a formula and return what refers to its value: a number, a constant or ``#k``."""
    literal = number(node, text)
    if literal is not None:
        return operand(literal, shown, divisor)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        arguments, name = [write(node.operand, text, shown, steps), "const_m1"], "multiply"
    elif isinstance(node, ast.BinOp) and type(node.op) in OPERATIONS:
        name, left = OPERATIONS[type(node.op)], node.left.operand if isinstance(node.left, ast.UnaryOp) else node.left
        mean = name == "divide" and isinstance(left, ast.BinOp) and isinstance(left.op, ast.Add)
        arguments = [write(node.left, text, shown, steps), write(node.right, text, shown, steps, divisor=mean)]
        right, fixed = number(node.right, text), FIXED.get(type(node.op))
        if right is not None and float(right) == fixed:
            arguments[1] = CONSTANTS[fixed]
    else:
        raise ValueError("the derivation is no formula")
    steps.append(f"{name}({arguments[0]}, {arguments[1]})")
    return f"#{len(steps) - 1}"


def operand(literal: str, shown: set[float], divisor: bool) -> str:
    """A number that is on the page, as it is; else a constant."""
    value = float(literal)
    if divisor and value in COUNTS:
        return f"const_{value:.0f}"
    if abs(value) in shown:
        return literal
    if value in CONSTANTS:
        return CONSTANTS[value]
    raise ValueError("a number is not on the page")
