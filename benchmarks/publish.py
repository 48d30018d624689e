"""Copy the records of finished runs to where they are committed, and the README's table is made from.

Takes settings, metrics, evaluations, speeds and the order of dropped layers. Of predictions it takes each question's
id, the predicted program and the verdicts: no weights, and nothing that FinQA wrote.

    python benchmarks/publish.py --RESULTS_DIR=results-finqa --TO=results/published/finqa-smollm2-135m
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fincompress.settings import configure

# -----------------------------------------------------------------------------
RUNS: list[str] | None = None  # runs to publish, each with what lies under it (merged/, depths); None: all
TO: str = "results/published/new"  # where to: a folder for each set of runs that share a table
RESULTS_DIR: str = "results"  # where the runs lie
# -----------------------------------------------------------------------------
configure(globals())

import json
import shutil

from fincompress import runs
from fincompress.errors import UserError, run_script

RECORDS = ("settings.json", "data_report.json", "*_metrics.json", "eval_*.json", "throughput_*.json", "trajectory.csv",
           "quant_log.csv")  # fmt: skip
KEPT = ("id", "program", "execution_correct", "program_correct")  # of a prediction


def main() -> None:
    if Path(TO).resolve() == Path(RESULTS_DIR).resolve():
        raise UserError("TO is where the runs lie: name another folder")
    folders = [path.parent for path in runs.records(RESULTS_DIR, "settings.json") if is_chosen(path.parent)]
    if not folders:
        raise UserError(f"there is no finished run {'of RUNS ' if RUNS else ''}in {RESULTS_DIR}/")
    # Everything is read before anything is replaced.
    predictions = {path: read_predictions(path) for folder in folders for path in folder.glob("predictions_*.jsonl")}
    for folder in folders:
        target = Path(TO) / folder.relative_to(RESULTS_DIR)
        target.mkdir(parents=True, exist_ok=True)
        for path in [path for name in RECORDS for path in folder.glob(name)]:
            shutil.copyfile(path, target / path.name)
        for path in [path for path in predictions if path.parent == folder]:
            runs.write_jsonl(target / path.name, predictions[path])
    print(f"copied the records of {len(folders)} runs to {TO}/")


def is_chosen(folder: Path) -> bool:
    """Whether a folder holds a finished run, or data, that RUNS names or that lies under one that it names."""
    run = folder.relative_to(RESULTS_DIR)
    finished = any(any(folder.glob(kind)) for kind in ("*_metrics.json", "data_report.json", "eval_*.json"))
    return finished and (not RUNS or any(run.is_relative_to(name) for name in RUNS))


def read_predictions(path: Path) -> list[dict]:
    """What is published of each prediction in a file; raises UserError where the file is damaged."""
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
        return [{name: row[name] for name in KEPT if name in row} for row in rows]
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error!r}): evaluate that run again") from None


if __name__ == "__main__":
    run_script(main)
