"""Verdicts on predictions and accuracies with intervals; docs/data.md explains them to a reader."""

import json
import math
from collections import defaultdict
from pathlib import Path

from scipy import stats

from fincompress.errors import UserError
from fincompress.finqa import program
from fincompress.finqa.program import program_correct


def score_program(tokens: list[str], example: dict) -> dict:
    """The verdict on a predicted program in the official token form, ``EOF`` included.

    ``example`` holds ``table``, ``exe_ans`` and the gold ``program``. ``invalid`` says that nothing could be computed:
    an output without one whole step counts, though the official evaluator calls it merely wrong. ``value`` is None
    where the program is invalid or its result is not finite. Of a question without an answer both verdicts are None.
    """
    value, gold = program.execute(tokens, example["table"]), example["program"]
    finite = not isinstance(value, float) or math.isfinite(value)  # JSON has no infinity
    return {
        "program": program.detokenize(tokens),
        "value": value if finite else None,
        "invalid": value is None,
        "execution_correct": value == example["exe_ans"] if gold else None,
        "program_correct": program_correct(tokens, program.tokenize(gold)) if gold else None,
    }


def accuracy(flags: list[bool]) -> dict:
    """``{"accuracy", "interval", "correct", "of"}`` of verdicts; the 95 % score interval of a share (Wilson 1927)."""
    correct, of = sum(flags), len(flags)
    interval = stats.binomtest(correct, of).proportion_ci(method="wilson")
    rounded = [round(float(end), 5) for end in interval]
    return {"accuracy": round(correct / of, 5), "interval": rounded, "correct": correct, "of": of}


def summarize(verdicts: list[dict], examples: list[dict]) -> dict:
    """What ``eval_<split>.json`` says of a list of verdicts, one a gold question.

    Execution accuracy is also given by number of steps, by operation of the gold program, and by where the evidence
    lies. A question counts once for each operation that its gold program uses.
    """
    groups: dict[str, dict[str, list[bool]]] = {name: defaultdict(list) for name in ("steps", "operation", "evidence")}
    for verdict, example in zip(verdicts, examples, strict=True):
        operations = program.operations(program.tokenize(example["program"]))
        correct = verdict["execution_correct"]
        groups["steps"][str(len(operations))].append(correct)
        for operation in set(operations):
            groups["operation"][operation].append(correct)
        groups["evidence"][example["evidence_location"]].append(correct)
    return {
        "questions": len(examples),
        "execution_accuracy": accuracy([verdict["execution_correct"] for verdict in verdicts]),
        "program_accuracy": accuracy([verdict["program_correct"] for verdict in verdicts]),
        "invalid": accuracy([verdict["invalid"] for verdict in verdicts]),
    } | {name: {key: accuracy(flags) for key, flags in sorted(group.items())} for name, group in groups.items()}


def read_predictions(path: Path) -> dict[str, list[str]]:
    """Predicted tokens by question id, from the official format or from JSONL with ``id`` and ``program``.

    The official format is one JSON list of ``{"id", "predicted": [tokens..., "EOF"]}``. Raises UserError naming the
    place of the first record that is neither, and for an id that stands twice.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")  # with a byte order mark or without
        is_list = text.lstrip().startswith("[")
        # splitlines() also parts at U+2028
        records = json.loads(text) if is_list else [json.loads(line) for line in text.split("\n") if line.strip()]
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as a JSON list or JSONL: {error}") from None
    predictions: dict[str, list[str]] = {}
    for number, record in enumerate(records, start=1):
        record = record if isinstance(record, dict) else {}
        name, tokens = record.get("id"), record.get("predicted")
        if tokens is None and isinstance(record.get("program"), str):
            tokens = program.tokenize(program.extract_program(record["program"]))
        if not isinstance(name, str) or not isinstance(tokens, list) or not all(isinstance(x, str) for x in tokens):
            raise UserError(
                f'{path}, record {number}: expected {{"id", "predicted": [tokens]}} or {{"id", "program": text}}'
            )
        if name in predictions:
            raise UserError(f"{path}, record {number}: {name} stands twice")
        predictions[name] = tokens
    if not predictions:
        raise UserError(f"{path} holds no prediction")
    return predictions
