"""FinQA's questions and this repository's verdicts, as lm-evaluation-harness asks for them."""

import json
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2]))  # last: evaluate.py has the name of a library of the harness

from fincompress import runs
from fincompress.errors import UserError
from fincompress.finqa import program, scoring


def load(data: str, split: str, **_) -> dict:
    """The prepared questions of ``split``; ``data`` is the folder of a data run. The harness adds its model's options.

    Leaves with status 2 and one line where they cannot be had.
    """
    folder = Path(data).resolve()
    try:
        questions, _ = runs.load_processed(str(folder.parent), folder.name, split)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    return {"questions": questions}


def score(question: dict, outputs: list[str]) -> dict[str, float]:
    """The verdict on the one output of a question, as ``evaluate.py`` has it."""
    tokens = program.tokenize(program.extract_program(outputs[0]))
    verdict = scoring.score_program(
        tokens, question | {name: json.loads(question[name]) for name in ("exe_ans", "table")}
    )
    return {
        "execution_accuracy": float(verdict["execution_correct"]),
        "program_accuracy": float(verdict["program_correct"]),
        "invalid": float(verdict["invalid"]),
    }
