"""What goes wrong, model by model: each wrong answer under one kind, and what a compressed model loses of another's.

Reads predictions_<SPLIT>.jsonl of RUNS, all of one data run, and that data run; evaluate.py writes them. Prints the
share of questions of each kind, and for each run but the first its difference to the first on the same questions.

    python benchmarks/error_kinds.py --RUNS='["qlora_4bit/merged", "gptq_4bit", "sapling/15"]'
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fincompress.settings import configure

# -----------------------------------------------------------------------------
RUNS: list[str] = ["qlora_4bit/merged", "gptq_4bit"]  # the first is the one that the others are compared with
SPLIT: str = "dev"  # that all of them were evaluated on
RESULTS_DIR: str = "results"  # where the runs lie
# -----------------------------------------------------------------------------
configure(globals())

import json

import pandas as pd
from fincompress.report.tables import percent

from fincompress import runs
from fincompress.errors import UserError, run_script
from fincompress.finqa import evidence, program
from fincompress.report import statistics

# In the order in which they are asked: a wrong answer is of the first kind that fits.
RIGHT, *WRONG = KINDS = (
    "right",
    "evidence not shown",  # figures of the gold program that the prompt lacks: no model can answer it by reading
    "does not execute",
    "figure not shown",  # one that the prompt lacks: miscopied, or made up
    "other operations",  # than the gold program's, in order
    "other figures",  # the same operations, on other figures or rows of the page
    "order, sign or constant",  # the same figures
)


def main() -> None:
    if not RUNS:
        raise UserError("RUNS is empty: name a run that evaluate.py has scored")
    by_run = {run: kinds_of(run) for run in RUNS}
    first = by_run[RUNS[0]]
    for run, kinds in by_run.items():
        if kinds.keys() != first.keys():
            raise UserError(f"{run} and {RUNS[0]} were not evaluated on the same questions")
    print(f"{len(first)} questions of {SPLIT}; of each kind, % of all questions")
    print(pd.DataFrame({run: shares(kinds) for run, kinds in by_run.items()}).to_string(float_format="{:.1f}".format))
    compared = {run: against(kinds, first) for run, kinds in by_run.items() if run != RUNS[0]}
    if compared:
        print(f"\npoints to {RUNS[0]}, 95 % intervals, paired; what was right there and is wrong now")
        print(pd.DataFrame(compared).to_string())
    print(json.dumps({"split": SPLIT, "questions": len(first), "shares": {run: shares(k) for run, k in by_run.items()},
                      "compared": compared}))  # fmt: skip


def kinds_of(run: str) -> dict[str, str]:
    """``{question id: kind}`` of a run's predictions."""
    path = runs.run_directory(RESULTS_DIR, run) / f"predictions_{SPLIT}.jsonl"
    if not path.exists():
        raise UserError(f"{path} does not exist: run evaluate.py --RUN={run} --SPLIT={SPLIT} first")
    verdicts = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
    record = runs.read_json(path.parent / "settings.json")
    questions = runs.load_processed(RESULTS_DIR, record["settings"]["DATA_RUN"], SPLIT)[0]
    by_id = {question["id"]: question for question in questions}
    if not verdicts or "program" not in verdicts[0] or not by_id.keys() >= {verdict["id"] for verdict in verdicts}:
        raise UserError(f"{path} has no programs, as published ones have not, or is of another data run")
    return {verdict["id"]: kind(verdict, by_id[verdict["id"]]) for verdict in verdicts}


def kind(verdict: dict, question: dict) -> str:
    """Which of KINDS a verdict is of; ``question`` has its ``prompt`` and gold ``program``."""
    text, gold, prompt = verdict["program"], question["program"], question["prompt"]
    if verdict["execution_correct"]:
        return RIGHT
    reasons = (
        lambda: not evidence.shows_numbers(gold, prompt),
        lambda: verdict["invalid"],
        lambda: not evidence.shows_numbers(text, prompt),
        lambda: program.operations(program.tokenize(text)) != program.operations(program.tokenize(gold)),
        lambda: figures(text) != figures(gold),
    )
    return next((name for name, holds in zip(WRONG, reasons, strict=False) if holds()), WRONG[-1])


def figures(text: str) -> tuple:
    """What a program reads from the page: numbers without their sign, and rows of table operations."""
    return evidence.numbers_needed(text), set(program.operands(text)[1])


def shares(kinds: dict[str, str]) -> dict[str, float]:
    """Per cent of the questions by kind."""
    return {name: 100 * list(kinds.values()).count(name) / len(kinds) for name in KINDS}


def against(kinds: dict[str, str], first: dict[str, str]) -> dict[str, str]:
    """Difference of each kind's share to the first run's, and per cent of all questions that were lost, by kind now."""
    column = {}
    for name in KINDS:
        pair = ({question: kinds[question] == name for question in kinds},
                {question: first[question] == name for question in kinds})  # fmt: skip
        difference = statistics.compare(*pair)
        column[name] = percent(difference["difference"], difference["interval"], "+")
    lost = [kinds[question] for question, before in first.items() if before == RIGHT and kinds[question] != RIGHT]
    gained = sum(kinds[question] == RIGHT != before for question, before in first.items())
    column |= {f"lost: {name}": f"{100 * lost.count(name) / len(kinds):.1f}" for name in WRONG}
    return column | {"lost in all": f"{100 * len(lost) / len(kinds):.1f}", "gained": f"{100 * gained / len(kinds):.1f}"}


if __name__ == "__main__":
    run_script(main)
