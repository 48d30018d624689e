"""``results/<run>/`` on disk: whole-file writes, settings, metrics and the tables built from them."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING

from fincompress import provenance
from fincompress.errors import UserError
from fincompress.settings import DEFAULTS

if TYPE_CHECKING:
    import datasets

LOCATIONS = ("RESULTS_DIR", "DATA_DIR", "RUN")  # constants that say where things lie
RECORD_KEEPING = (
    "SAVE_STEPS",
    "LOGGING_STEPS",
    "CACHE_GB",
)  # constants that change what is kept on the way, and no result
PUBLISHED = "published"  # folder of records of other runs of this repository, inside results/


@contextlib.contextmanager
def atomic_path(path: Path):
    """A path beside ``path`` to write to; renamed onto ``path`` when the block ends well, removed when it does not.

    Works for a file or a folder. A file is synced before it is renamed, so a crash leaves the old one or the new one.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        if partial.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with open(partial, "rb") as file:
                os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        if error.errno is not None:  # a write to a full disk does not say where
            error.filename = error.filename or str(path)
        raise
    finally:
        if partial.is_dir():
            shutil.rmtree(partial, ignore_errors=True)
        else:
            partial.unlink(missing_ok=True)


def remove_partials(directory: Path) -> None:
    """Remove what a kill left of files and folders that were being written in a run's folder."""
    for partial in Path(directory).glob(".*.partial"):
        shutil.rmtree(partial) if partial.is_dir() else partial.unlink()


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    with atomic_path(path) as partial:
        # Half a surrogate pair, which a file of predictions may hold, is no UTF-8; escaped, it is JSON all the same.
        partial.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(path: Path, value: object) -> None:
    """Write JSON whole or not at all; NaN and infinity are refused rather than written as invalid JSON."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_jsonl(path: Path, rows: list[dict]) -> None:
    """Write one JSON object a line, whole or not at all; NaN and infinity are refused."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows))


def write_csv(path: Path, rows: list[dict]) -> None:
    """Write rows as CSV, whole or not at all; the columns are the first row's keys."""
    import pandas as pd

    write_text(path, pd.DataFrame(rows).to_csv(index=False))


def read_json(path: Path) -> dict:
    """Read a JSON object from a file; raises UserError where it is missing, broken or something else."""
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not readable as JSON: {error}") from None
    if not isinstance(found, dict):
        raise UserError(f"{path} holds no JSON object")
    return found


def run_directory(results_dir: str, run: str) -> Path:
    """``results_dir/run``; a run name is one or more plain folder names (``sapling/40`` is a run)."""
    parts = run.split("/")
    if not run or any(part in ("", ".", "..") for part in parts) or "\\" in run:
        raise UserError(f"{run!r} is no run name: use a plain folder name under {results_dir}/")
    return Path(results_dir).joinpath(*parts)


def finished_run(results_dir: str, run: str, kind: str = "*_metrics.json") -> Path:
    """The folder of a finished run, or a UserError that lists the runs there are.

    ``kind`` names the record that a run leaves at its end; by default that of any run that leaves a model.
    """
    directory = run_directory(results_dir, run)
    if not any(directory.glob(kind)):
        there = sorted({str(path.parent.relative_to(results_dir)) for path in records(results_dir, kind)})
        state = "is not finished" if directory.exists() else "does not exist"
        raise UserError(f"run {run!r} {state} in {results_dir}/; finished: {', '.join(there) or 'none'}")
    return directory


def with_depths(results_dir: str, run: str) -> list[str]:
    """``[run]``, or one run a depth where its folder holds depths, as SAPLING's does; the largest model first."""
    folders = run_directory(results_dir, run).glob("*/settings.json")
    depths = sorted((int(path.parent.name) for path in folders if path.parent.name.isdigit()), reverse=True)
    return [f"{run}/{depth}" for depth in depths] or [run]


def load_processed(results_dir: str, data_run: str, split: str) -> tuple[datasets.Dataset, dict]:
    """A split that ``preprocess_data.py`` wrote (memory-mapped), and the record of that run."""
    import datasets

    directory = finished_run(results_dir, data_run, "data_report.json")
    record = read_json(directory / "settings.json")
    if not (directory / split).exists():
        there = [path.name for path in sorted(directory.iterdir()) if path.is_dir()]
        raise UserError(f"data run {data_run!r} has no split {split!r}; it has {', '.join(there)}")
    try:
        return datasets.load_from_disk(str(directory / split)), record
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{directory / split} is damaged ({error}): remove {directory}/ and preprocess again") from None


def check_tokenised_for(base_model: str, data_run: str, record: dict) -> None:
    """Raise UserError where a data run's tokens are another model's."""
    if record["base_model"] != base_model:
        raise UserError(
            f"data run {data_run!r} was tokenised for {record['base_model']}, not for {base_model}: "
            f"run preprocess_data.py --BASE_MODEL={base_model} --RUN=another_name"
        )


def start_run(
    results_dir: str, run: str, script: str, settings: dict, facts: dict, done: str | None = None
) -> Path | None:
    """Open ``results_dir/run`` for a script and write ``settings.json``; None where the same run is finished already.

    ``settings`` are the script's constants, ``facts`` what else decides the result (base model, data fingerprint).
    ``done`` is the file that marks the run as finished (None: the script finds out itself). A folder that holds a run
    with other settings is refused: results of two recipes are never mixed in one folder. A resumed run keeps the
    commit, versions and hardware that it began with; others are added under ``resumed``.
    """
    if is_untuned(run) and script != "evaluate.py":
        raise UserError(f"RUN = {run!r}: names that start with base_ are those of untuned models; choose another RUN")
    directory = run_directory(results_dir, run)
    settings = {name: value for name, value in settings.items() if name not in LOCATIONS}
    before = _record_to_resume(directory)
    if before:
        _check_same_recipe(directory, before, script, settings, facts)
        if done and (directory / done).exists():
            print(f"{run}: finished already, skipped (remove {directory}/ to do it again)")
            return None
    directory.mkdir(parents=True, exist_ok=True)
    made_by = provenance.provenance()
    if before:
        begun = {name: before.get(name) for name in made_by}
        resumed = before.get("resumed", [])
        last = resumed[-1] if resumed else begun
        if any(last[name] != made_by[name] for name in ("code", "versions", "hardware")):
            resumed = [*resumed, made_by]
        made_by = begun | ({"resumed": resumed} if resumed else {})
    write_json(directory / "settings.json", {"script": script, "settings": settings, **facts, **made_by})
    return directory


def _record_to_resume(directory: Path) -> dict:
    """What ``settings.json`` of an earlier start says; empty where there is nothing to resume.

    Raises UserError where the folder holds something else than a run.
    """
    names = [path.name for path in directory.iterdir()] if directory.is_dir() else []
    if "settings.json" in names:
        # A run that failed before it left anything but its settings does not stand in the way of a corrected one.
        return read_json(directory / "settings.json") if len(names) > 1 else {}
    # Hidden files are left of a kill, and the benchmark measures a base model before it is evaluated.
    if not all(name.startswith((".", "throughput_")) for name in names):
        raise UserError(f"{directory}/ is there and holds no run, perhaps folders of other runs: choose another RUN")
    return {}


def _check_same_recipe(directory: Path, before: dict, script: str, settings: dict, facts: dict) -> None:
    """Raise UserError where a folder's run is one of another script, or of other settings or facts."""
    if before.get("script", script) != script:
        raise UserError(f"{directory}/ holds a run of {before['script']}: choose another RUN, or remove that folder")
    known = {*DEFAULTS, *settings}  # a constant that a script no longer has decides nothing
    earlier = {name: value for name, value in before.get("settings", {}).items() if name in known}
    differing = changed(_deciding(earlier), _deciding(settings))
    differing += changed({name: before.get(name) for name in facts}, facts)
    if differing:
        raise UserError(
            f"{directory}/ holds a run with other settings ({'; '.join(differing[:4])}): "
            "choose another RUN, or remove that folder"
        )


def _deciding(settings: dict) -> dict:
    """The constants that decide a result; one that an older run did not have yet had the script's default."""
    every = DEFAULTS | settings
    return {name: value for name, value in every.items() if name not in LOCATIONS + RECORD_KEEPING}


def changed(before: dict, now: dict) -> list[str]:
    """``name old -> new`` for every entry that differs."""
    return [
        f"{name} {before.get(name)!r} -> {now.get(name)!r}"
        for name in sorted({*before, *now})
        if before.get(name) != now.get(name)
    ]


def is_untuned(run: str) -> bool:
    """Whether a run's name says that it is BASE_MODEL without any training."""
    return run == "base" or run.startswith("base_")


class Stopwatch:
    """Seconds that a run took, counted across a kill and a restart: ``before`` is what earlier attempts took."""

    def __init__(self, before: float = 0.0):
        self.before = before
        self.started = time.perf_counter()

    def seconds(self) -> float:
        """Seconds so far, earlier attempts included."""
        return self.before + time.perf_counter() - self.started


def records(results_dir: str, pattern: str) -> list[Path]:
    """Files of that name of every run under ``results_dir``, sorted.

    ``results/published``, records of other runs of this repository, is left out unless it is itself what is read;
    hidden folders, which hold what is not finished, always are.
    """
    root = Path(results_dir)
    found = [path for path in root.rglob(pattern) if PUBLISHED not in path.relative_to(root).parts]
    return sorted(path for path in found if not any(part.startswith(".") for part in path.relative_to(root).parts))


def accuracy_table(results_dir: str) -> list[dict]:
    """``accuracy_row`` of every ``eval_<split>.json`` under ``results_dir``."""
    return [accuracy_row(read_json(path)) for path in records(results_dir, "eval_*.json")]


def accuracy_row(found: dict) -> dict:
    """What ``eval_<split>.json`` says of a run, with the columns that keep unlike rows apart."""
    row = {
        "run": found["run"],
        "base_model": found["base_model"],
        "data": found["data"]["source"],
        "data_fingerprint": found["data"]["fingerprint"],
        "split": found["split"],
        "questions": found["questions"],
        "size_gb": found.get("size_gb"),
        "share_of_bytes": found.get("share_of_base"),
    }
    for name in ("execution_accuracy", "program_accuracy"):
        scores = found[name]
        row[name] = scores and scores["accuracy"]
        row[f"{name}_low"], row[f"{name}_high"] = scores["interval"] if scores else (None, None)
    return row | {"invalid": found["invalid"]["accuracy"]}
