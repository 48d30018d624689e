"""``results/<run>/`` on disk: whole-file writes, settings, metrics and the tables built from them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from fincompress.errors import UserError
from fincompress.settings import DEFAULTS

if TYPE_CHECKING:
    import datasets

LIBRARIES = (
    "torch", "transformers", "peft", "bitsandbytes", "gptqmodel", "optimum", "accelerate", "datasets", "bm25s", "numpy",
)  # fmt: skip
LOCATIONS = ("RESULTS_DIR", "DATA_DIR", "RUN")  # constants that say where things lie
RECORD_KEEPING = ("SAVE_STEPS", "LOGGING_STEPS")  # constants that change what is written on the way, and no result
BF16_FLAGS = ("amx_bf16", "avx512_bf16")  # of processors that multiply bf16 natively
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
    ``done`` is the file that marks the run as finished (None: the script finds out itself). A folder that
    holds a run with other settings is refused: results of two recipes are never mixed in one folder. A resumed run
    keeps the commit, versions and hardware that it began with; others are added under ``resumed``.
    """
    if is_untuned(run) and script != "evaluate.py":
        raise UserError(f"RUN = {run!r}: names that start with base_ are those of untuned models; choose another RUN")
    directory = run_directory(results_dir, run)
    record = {"script": script, "settings": _comparable(settings), **facts}
    path = directory / "settings.json"
    # Hidden files are left of a kill, and the benchmark measures a base model before it is evaluated.
    known = (".*", "throughput_*.json")
    if (
        directory.is_dir()
        and not path.exists()
        and any(not any(map(found.match, known)) for found in directory.iterdir())
    ):
        raise UserError(f"{directory}/ is there and holds no run, perhaps folders of other runs: choose another RUN")
    # A run that failed before it left anything but its settings does not stand in the way of a corrected one.
    before: dict = {}
    if path.exists() and any(other.name != path.name for other in directory.iterdir()):
        before = read_json(path)
        if before.get("script", script) != script:
            raise UserError(
                f"{directory}/ holds a run of {before['script']}: choose another RUN, or remove that folder"
            )
        known = {*DEFAULTS, *record["settings"]}  # a constant that a script no longer has decides nothing
        settings_before = {name: value for name, value in before.get("settings", {}).items() if name in known}
        differing = changed(*map(_deciding, (settings_before, record["settings"])))
        differing += changed({name: before.get(name) for name in facts}, facts)
        if differing:
            raise UserError(
                f"{directory}/ holds a run with other settings ({'; '.join(differing[:4])}): "
                "choose another RUN, or remove that folder"
            )
        if done and (directory / done).exists():
            print(f"{run}: finished already, skipped (remove {directory}/ to do it again)")
            return None
    directory.mkdir(parents=True, exist_ok=True)
    made_by = {"code": code_version(), "versions": versions(), "hardware": hardware(), "command": _command()}
    if before:  # goes on: who began it stays, and who went on is added where that is another
        begun = {name: before.get(name) for name in made_by}
        since, last = before.get("resumed", []), (before.get("resumed") or [begun])[-1]
        if any(last[name] != made_by[name] for name in ("code", "versions", "hardware")):
            since = [*since, made_by]
        made_by = begun | ({"resumed": since} if since else {})
    write_json(path, record | made_by)
    return directory


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


def _deciding(settings: dict) -> dict:
    """The constants that decide a result; one that an older run did not have yet had the script's default."""
    defaults = {name: value for name, value in DEFAULTS.items() if name not in LOCATIONS}
    return {name: value for name, value in (defaults | settings).items() if name not in RECORD_KEEPING}


def _comparable(settings: dict) -> dict:
    """The constants that decide a result: not where things lie on this disk."""
    return {name: value for name, value in settings.items() if name not in LOCATIONS}


def _command() -> str:
    """The command line as typed, of this machine's folders the last part alone."""
    shown = ["python", Path(sys.argv[0]).name]
    for name, equals, value in (argument.partition("=") for argument in sys.argv[1:]):
        shown.append(name + equals + (Path(value).name if os.path.isabs(value) else value))
    return " ".join(shown)


def code_version() -> str | None:
    """The commit of this code, with ``+`` where files were changed since; None outside a git checkout."""
    root = Path(__file__).parents[1]
    git = ["git", "-C", str(root)]
    try:
        if not (root / ".git").exists():  # installed somewhere inside another repository
            return None
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changes = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + ("+" if changes.stdout.strip() else "")


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that decide a result."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def hardware() -> dict[str, object]:
    """Processor, cores, memory in GB, and the GPU where torch sees one."""
    import psutil
    import torch

    found: dict[str, object] = {
        "cpu": cpu_name(),
        "cores": psutil.cpu_count(logical=False) or psutil.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
    }
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name(0)
        found["vram_gb"] = round(torch.cuda.get_device_properties(0).total_memory / 1e9, 1)
    return found


def cpu_name() -> str:
    """The processor's name, its generation, which clouds leave out of the name, and its instructions for bf16: they
    decide the compute type, and the speed.
    """
    name, found = platform.processor() or platform.machine(), {}
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines():
            key, _, value = line.partition(":")
            found[key.strip()] = value.strip()
    generation = [f"{key.split()[-1]} {found[key]}" for key in ("cpu family", "model") if key in found]
    special = [flag for flag in BF16_FLAGS if flag in found.get("flags", "").split()] or ["no bf16"]
    return f"{found.get('model name', name)} ({', '.join(generation + special)})"


def fingerprint(*parts: object) -> str:
    """A short hash (16 hex digits) of JSON-serialisable values, to tell whether two runs saw the same thing."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


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
    """One row for every ``eval_<split>.json`` under ``results_dir``, with the columns that keep unlike rows apart."""
    rows = []
    for path in records(results_dir, "eval_*.json"):
        found = read_json(path)
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
        rows.append(row | {"invalid": found["invalid"]["accuracy"]})
    return rows
