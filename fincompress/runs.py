"""``results/<run>/`` on disk: whole-file writes, settings, metrics and the tables built from them."""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from fincompress import provenance
from fincompress.errors import UserError

if TYPE_CHECKING:
    import datasets

# Constants that decide no result: where things lie, and what is written on the way.
LOCATIONS = ("RESULTS_DIR", "DATA_DIR", "EXTRA_DATA_DIR", "LLAMA_CPP", "RUN")
RECORD_KEEPING = ("SAVE_STEPS", "LOGGING_STEPS", "REPORT_TO", "MERGE")
OF_THE_MACHINE = ("dtype", "optimizer")  # facts that a run must keep while it is trained
HELD: dict[Path, int] = {}  # run folders that this process has locked, and the descriptor that holds each lock


@contextlib.contextmanager
def atomic_path(path: Path):
    """A path beside ``path`` to write to; renamed onto ``path`` when the block ends well, removed when it does not.

    Works for a file or a folder, synced before it is renamed: a crash leaves the old one or the new one, of a folder
    perhaps none.
    Raises UserError where the folder that it lies in cannot be made.
    """
    make_folder(path.parent)
    remove_partials(path.parent)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        sync(partial)
        if partial.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        os.replace(partial, path)
    finally:
        remove(partial)


def sync(path: Path) -> None:
    """Have a file, or all in a folder, on the disk before what says that it is whole."""
    for place in [path, *path.rglob("*")]:
        if place.is_file():
            with open(place, "rb") as file:
                os.fsync(file.fileno())


def remove(path: Path) -> None:
    """Remove a file or a folder, where there is one."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def remove_partials(directory: Path, held: bool = False) -> None:
    """Remove what a kill left half-written: of processes that ended, or all in a ``held`` folder."""
    for partial in directory.glob(".*.partial"):
        process = partial.name.split(".")[-2]
        if held or (process.isdigit() and not psutil.pid_exists(int(process))):
            with contextlib.suppress(FileNotFoundError):  # another process removes them too
                remove(partial)


def make_folder(path: Path) -> None:
    """Make a folder where there is none; raises UserError where that cannot be."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path}/ cannot be made: {error.strerror}; choose another RUN or RESULTS_DIR") from None


def check_room(directory: Path, gb: float) -> None:
    """Raise UserError where the disk of a run's folder has not ``gb`` GB free."""
    existing = next(path for path in (directory, *directory.resolve().parents) if path.exists())
    free = shutil.disk_usage(existing).free / 1e9
    if free < gb:
        raise UserError(
            f"{directory}/ takes {gb:.2f} GB, and its disk has {free:.2f} GB free: free some, or choose another "
            "RESULTS_DIR"
        )


def hold(directory: Path) -> None:
    """Lock a run's folder until this process ends, also by a kill, and remove what a kill left half-written in it.

    Makes the folder where there is none. Raises UserError where that cannot be, or another process holds it.
    """
    make_folder(directory)
    if directory not in HELD:
        folder = os.open(directory, os.O_RDONLY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(folder)
            raise UserError(f"{directory}/ is in use by another process: wait for it, or choose another RUN") from None
        except OSError:  # a file system without locks
            pass
        HELD[directory] = folder
    remove_partials(directory, held=True)


@contextlib.contextmanager
def alone(directory: Path):
    """Wait until no other process is in this block with the same folder."""
    folder = os.open(directory, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


@atexit.register
def release() -> None:
    """Unlock the folders that this process holds; one that has nothing but its settings did nothing and is removed."""
    while HELD:
        directory, folder = HELD.popitem()
        if [path.name for path in directory.glob("*")] == ["settings.json"]:
            remove(directory)
        os.close(folder)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    with atomic_path(Path(path)) as partial:
        # Half a surrogate pair, which a file of predictions may hold, is no UTF-8; escaped, it is JSON all the same.
        partial.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(path: Path, value: object) -> None:
    """Write JSON whole or not at all; NaN and infinity are refused rather than written as invalid JSON."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_jsonl(path: Path, rows: list[dict]) -> None:
    """Write one JSON object a line, whole or not at all; NaN and infinity are refused."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows))


def write_csv(path: Path, rows: list[dict]) -> None:
    """Write rows as CSV, whole or not at all; the columns are all rows' keys."""
    import pandas as pd

    write_text(path, pd.DataFrame(rows).to_csv(index=False))


def read_json(path: Path) -> dict:
    """Read a JSON object from a file; raises UserError where it is missing or broken."""
    path = Path(path)
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{path} is not readable as JSON ({error}): restore it, or remove it and make again what it describes"
        ) from None
    if not isinstance(record, dict):
        raise UserError(f"{path} holds no JSON object: it is damaged; remove it")
    return record


def readable(results_dir: str, pattern: str, read: Callable = read_json) -> list:
    """What ``read`` gives of every run's record of that name; stderr names the damaged ones, which are left out."""
    contents = []
    for path in records(results_dir, pattern):
        try:
            contents.append(read(path))
        except UserError as error:
            print(f"left out: {error}", file=sys.stderr)
        except (KeyError, TypeError, AttributeError) as error:
            print(f"left out: {path} is damaged ({error!r})", file=sys.stderr)
    return contents


def run_directory(results_dir: str, run: str) -> Path:
    """``results_dir/run``; a run name is one or more plain folder names (``sapling/20`` is a run).

    Raises UserError for another name: hidden folders and ``published`` are not read as runs.
    """
    parts = run.split("/")
    if not all(
        0 < len(part) <= 100
        and part[0] != "."
        and part != "published"
        and part.isprintable()
        and "\\" not in part
        and "::" not in part  # datasets would read a chain of addresses
        for part in parts
    ):
        raise UserError(
            f"{run[:100]!r} is no run name: use a plain folder name under {results_dir}/, of at most 100 characters, "
            "without a dot in front or '::', not 'published'"
        )
    return Path(results_dir).joinpath(*parts)


def finished_run(results_dir: str, run: str, kind: str = "*_metrics.json") -> Path:
    """The folder of a finished run, or a UserError that lists the runs there are.

    ``kind`` names the record that a run leaves at its end; by default that of any run that leaves a model.
    """
    directory = run_directory(results_dir, run)
    if not any(directory.glob(kind)):
        finished = sorted({str(path.parent.relative_to(results_dir)) for path in records(results_dir, kind)})
        state = "is not finished" if directory.exists() else "does not exist"
        raise UserError(f"run {run!r} {state} in {results_dir}/; finished: {', '.join(finished) or 'none'}")
    return directory


def with_depths(results_dir: str, run: str) -> list[str]:
    """``[run]``, or one run a depth where its folder holds depths, as SAPLING's does; the largest model first."""
    directory = run_directory(results_dir, run)
    folders = [path.parent.name for path in directory.glob("*/settings.json")]
    depths = sorted((int(name) for name in folders if name.isdigit()), reverse=True)
    if depths and (directory / "settings.json").exists() and not any(directory.glob("*_metrics.json")):
        print(f"{run} is not finished: of its depths there are {', '.join(map(str, depths))} so far")
    return [f"{run}/{depth}" for depth in depths] or [run]


def load_processed(
    results_dir: str, data_run: str, split: str, base_model: str | None = None
) -> tuple[datasets.Dataset, dict]:
    """A split that ``preprocess_data.py`` wrote (memory-mapped), and the record of that run.

    Raises UserError where it is not there, or was tokenised for another model than ``base_model``.
    """
    import datasets

    directory = finished_run(results_dir, data_run, "data_report.json")
    record = read_json(directory / "settings.json")
    if base_model and record["base_model"] != base_model:
        raise UserError(
            f"data run {data_run!r} was tokenised for {record['base_model']}, not for {base_model}: "
            f"run preprocess_data.py --BASE_MODEL={base_model} --RUN=another_name"
        )
    if not (directory / split).exists():
        raise UserError(f"data run {data_run!r} has no split {split!r}")
    try:
        return datasets.load_from_disk(str(directory / split)), record
    except (OSError, ValueError, KeyError, TypeError) as error:  # of datasets, Arrow and JSON
        raise UserError(f"{directory / split}/ is damaged ({error!r}): run preprocess_data.py again") from None


def start_run(
    results_dir: str, run: str, script: str, settings: dict, identity: dict, done: str | None = None
) -> Path | None:
    """Open ``results_dir/run`` for a script and write ``settings.json``; None where the same run is finished already.

    ``settings`` are the script's constants, ``identity`` what else decides the result (base model, data).
    ``done`` is the file that marks the run as finished (None: the script finds out itself). A folder that holds a run
    of another recipe is refused with a UserError, and so is one that another process holds: results of two recipes are
    never mixed in one folder. A resumed run keeps its ``settings.json``.
    """
    if is_untuned(run) and script != "evaluate.py":
        raise UserError(f"RUN = {run!r}: names that start with base_ are those of untuned models; choose another RUN")
    directory = run_directory(results_dir, run)
    hold(directory)
    settings = deciding(settings, LOCATIONS)
    names = [path.name for path in directory.iterdir()]
    # A run that failed before it left anything but its settings does not stand in the way of a corrected one.
    if "settings.json" in names and len(names) > 1:
        free = OF_THE_MACHINE if done in names else ()
        wanted = {"script": script, **{name: value for name, value in identity.items() if name not in free}}
        if differing := differences(read_json(directory / "settings.json"), wanted, settings):
            raise UserError(
                f"{directory}/ holds a run with other settings ({'; '.join(differing[:4])}): "
                "choose another RUN, or remove that folder"
            )
        if done in names:
            print(f"{run}: finished already, skipped (remove {directory}/ to do it again)")
            return None
        return directory
    # Hidden files are left of a kill, and the benchmark measures a base model before it is evaluated.
    if not all(name.startswith((".", "throughput_", "settings.json")) for name in names):
        raise UserError(f"{directory}/ is there and holds no run, perhaps folders of other runs: choose another RUN")
    record = {"script": script, "settings": settings, **identity, **provenance.provenance()}
    write_json(directory / "settings.json", record)
    return directory


def differences(record: dict, identity: dict, settings: dict) -> list[str]:
    """In what a run's ``record`` differs from another identity and other settings: ``"NAME before -> now"`` of each.

    A constant that was removed since decides nothing any more; one that was added counts as None before.
    """
    before = deciding(record["settings"], RECORD_KEEPING)
    pairs = [(name, record.get(name), value) for name, value in identity.items()]
    pairs += [(name, before.get(name), value) for name, value in sorted(deciding(settings).items())]
    return [f"{name} {earlier!r} -> {now!r}" for name, earlier, now in pairs if earlier != now]


def deciding(settings: dict, others: tuple[str, ...] = LOCATIONS + RECORD_KEEPING) -> dict:
    """The constants among ``settings`` that are not of the ``others``."""
    return {name: value for name, value in settings.items() if name not in others}


def is_untuned(run: str) -> bool:
    """Whether a run's name says that it is BASE_MODEL without any training."""
    return run.split("_")[0] == "base"


class Stopwatch:
    """Seconds that a run took, counted across a kill and a restart: ``before`` is what earlier attempts took."""

    def __init__(self, before: float = 0.0):
        self.started = time.perf_counter() - before

    def seconds(self) -> float:
        return time.perf_counter() - self.started


def records(results_dir: str, pattern: str) -> list[Path]:
    """Files of that name of every run under ``results_dir``, sorted.

    ``results/published``, records of other runs of this repository, is left out unless it is itself what is read;
    hidden folders, which hold what is not finished, always are.
    """
    files = {path.relative_to(results_dir): path for path in Path(results_dir).rglob(pattern)}
    unseen = [place for place in files if "published" in place.parts or any(part[0] == "." for part in place.parts)]
    return sorted(path for place, path in files.items() if place not in unseen)


def accuracy_table(results_dir: str) -> list[dict]:
    """``accuracy_row`` of every ``eval_<split>.json`` under ``results_dir``, under the name that its run has now."""

    def read(path: Path) -> dict:
        return accuracy_row(read_json(path)) | {"run": path.parent.relative_to(results_dir).as_posix()}

    return readable(results_dir, "eval_*.json", read)


def accuracy_row(evaluation: dict) -> dict:
    """What ``eval_<split>.json`` says of a run, with the columns that keep unlike rows apart."""
    row = {name: evaluation.get(name) for name in ("run", "base_model")}
    row |= {"data": evaluation["data"]["source"], "data_fingerprint": evaluation["data"]["fingerprint"]}
    row |= {name: evaluation.get(name) for name in ("split", "questions", "size_gb")}
    row["share_of_bytes"] = evaluation.get("share_of_base")
    for name in ("execution_accuracy", "program_accuracy"):
        scores = evaluation[name] or {"accuracy": None, "interval": (None, None)}
        row[name] = scores["accuracy"]
        row[f"{name}_low"], row[f"{name}_high"] = scores["interval"]
    return row | {"invalid": evaluation["invalid"]["accuracy"]}
