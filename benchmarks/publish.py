"""Copy the records of finished runs to where they are committed and the README's table is made from.

Takes settings, metrics, evaluations, curves, scores and figures of the runs named, of those checkpoints under them
that were evaluated or measured, and of all that these came from, the data as well.
Of predictions it takes each question's id and verdicts: no weights, and nothing that FinQA wrote.

    python benchmarks/publish.py --RESULTS_DIR=results-finqa --TO=results/published/finqa-smollm2-135m
    python plot_pareto.py --RESULTS_DIR=results/published/finqa-smollm2-135m --README=README.md
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fincompress.settings import configure

# -----------------------------------------------------------------------------
RUNS: list[str] = []  # runs to publish, each with what lies under it (merged/, depths); none: all that are finished
TO: str = "results/published/new"  # where to: a folder for each set of runs that share a table
RESULTS_DIR: str = "results"  # where the runs lie
# -----------------------------------------------------------------------------
configure(globals())

import json
import shutil

from fincompress import runs
from fincompress.errors import UserError, run_script
from fincompress.report import methods, tables

RECORDS = ("settings.json", "data_report.json", "*_metrics.json", "eval_*.json", "throughput_*.json", "loss_curve.*",
           "trajectory.csv", "layer_scores.csv", "layer_importance.png", "quant_log.csv")  # fmt: skip
MEASURED = ("eval_*.json", "throughput_*.json")
FINISHED = ("*_metrics.json", "data_report.json", "eval_*.json")
TRAINED = ("settings.json", "train_metrics.json", "quantize_metrics.json")
PREDICTIONS = "predictions_*.jsonl"
VERDICTS = ("id", "execution_correct", "program_correct")


def main() -> None:
    if Path(TO).resolve() == Path(RESULTS_DIR).resolve():
        raise UserError("TO is where the runs lie: name another folder")
    sources = {run: runs.run_directory(RESULTS_DIR, run) for run in RUNS} or finished_runs()
    if not sources:
        raise UserError(f"there is no finished run in {RESULTS_DIR}/")
    for run, source in sources.items():
        if not is_finished(source):
            raise UserError(f"there is no finished run {run!r} in {RESULTS_DIR}/")
    folders = dict.fromkeys(folder for source in sources.values() for folder in with_origins(source))
    verdicts = {path: read_verdicts(path) for folder in folders for path in sorted(folder.glob(PREDICTIONS))}
    for run in sources:
        for path in (Path(TO) / run).rglob("*"):
            if path.is_file() and not any(map(path.match, (*RECORDS, PREDICTIONS))):
                raise UserError(f"TO holds what is no record, and would be removed: {path}")
    refuse_another_origin(folders, list(sources))
    for run in sources:  # all before the first: what another came from may lie in one of them
        shutil.rmtree(Path(TO) / run, ignore_errors=True)  # what a run left before is no part of it now
    for folder in folders:
        target = Path(TO) / folder.relative_to(RESULTS_DIR)
        target.mkdir(parents=True, exist_ok=True)
        copied = [shutil.copyfile(path, target / path.name) for name in RECORDS for path in sorted(folder.glob(name))]
        kept = [path for path in verdicts if path.parent == folder]
        for path in kept:
            runs.write_jsonl(target / path.name, verdicts[path])
        print(f"{folder}: {len(copied) + len(kept)} files")
    tables.write_quantization_report(TO)


def refuse_another_origin(folders: list[Path], published: list[str]) -> None:
    """Raise UserError where a run that stays in TO came from another training of a run that one of ``folders`` holds.

    Its accuracy would be compared with that of a model that it was not made of.
    """
    targets = {Path(TO) / folder.relative_to(RESULTS_DIR): folder for folder in folders}
    replaced = [target for target, folder in targets.items() if is_another(folder, target)]
    for path in runs.records(TO, "settings.json"):
        run = path.parent.relative_to(TO)
        if path.parent in targets or any(run.is_relative_to(name) for name in published):
            continue
        for origin in [record["folder"] for record in methods.lineage(path.parent, Path(TO))]:
            if origin in replaced:
                raise UserError(
                    f"{path.parent} came from another training of {origin.name} than lies in {RESULTS_DIR}/: "
                    "publish it too, or into another folder"
                )


def is_another(folder: Path, published: Path) -> bool:
    """Whether what is published of a run is of another training or quantization than the run in ``folder``."""
    paths = [folder / name for name in TRAINED if (folder / name).exists() and (published / name).exists()]
    return any(path.read_bytes() != (published / path.name).read_bytes() for path in paths)


def with_origins(source: Path) -> list[Path]:
    """The folder of a run, of those checkpoints under it that were evaluated or measured, and of all they came from."""
    below = [path.parent for path in sorted(source.glob("[!.]*/settings.json"))]
    folders = [source, *(folder for folder in below if any(map(any, map(folder.glob, MEASURED))))]
    # What a model is shows in the records of all that it came from.
    chain = [record for folder in folders for record in methods.lineage(folder, Path(RESULTS_DIR))]
    data_runs = {record["settings"].get("DATA_RUN") for record in chain} - {None}
    data = [runs.run_directory(RESULTS_DIR, run) for run in sorted(data_runs)]
    return [*folders, *(record["folder"] for record in chain), *filter(Path.is_dir, data)]


def finished_runs() -> dict[str, Path]:
    """Folders of the finished runs of RESULTS_DIR; of depths that were quantized together each is a run."""
    folders = [path.parent for path in runs.records(RESULTS_DIR, "settings.json") if is_finished(path.parent)]
    inside = [folder for folder in folders if not (folder.parent / "settings.json").exists()]
    return {folder.relative_to(RESULTS_DIR).as_posix(): folder for folder in inside}


def is_finished(folder: Path) -> bool:
    return (folder / "settings.json").exists() and any(map(any, map(folder.glob, FINISHED)))


def read_verdicts(path: Path) -> list[dict]:
    """Each question's id and verdicts of a file of predictions; UserError where it is damaged."""
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
        return [{name: row[name] for name in VERDICTS if name in row} for row in rows]
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error!r}): evaluate that run again") from None


if __name__ == "__main__":
    run_script(main)
