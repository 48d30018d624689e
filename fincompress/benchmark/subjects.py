"""The models of one benchmark call: which they are, what they need on disk and in memory, and whether they fit."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path

from fincompress import memory, models, quantization, runs
from fincompress.errors import UserError

BASE = "base"  # the name under which the untuned base model is evaluated and measured
FIXED_PROMPT = 512  # tokens, for comparison with papers
DONE = ("train_metrics.json", "quantize_metrics.json")  # the records that a finished run has one of
PROCESS_GB = 0.5  # what Python and its libraries, or a CUDA context, take in every worker


@dataclass
class Subject:
    """One model to measure."""

    run: str  # its name, and the folder under the results directory that its record goes to
    base_model: str
    path: str  # what is loaded
    files: list[str]  # the weights it needs on disk
    precision: str = "auto"  # of the blocks' weights
    lora_rank: int = 0  # of an adapter on the base it was trained against; 0: none
    data_run: str | None = None
    size_gb: float | None = None  # as the accuracy table counts it
    predicted_gb: float = 0.0  # of inference at batch 1, with the longest prompt
    offload: bool = False  # what a small card does not hold stays in main memory
    label: str | None = None  # says so


def find_subjects(results_dir: str, names: list[str] | None, base_model: str, data_run: str) -> list[Subject]:
    """The base model first, then the runs: the ones named, or every finished one of this base model and data run.

    Raises UserError where a named run is missing, unfinished, or one of another base model or data run than the rest.
    """
    chosen = []
    for name in runs_with_weights(results_dir) if names is None else [name for name in names if name != BASE]:
        try:
            subject = run_subject(results_dir, name)
        except UserError as error:
            if names is not None:
                raise
            print(f"{name}: left out, {error}")  # damaged: no reason not to measure the others
            continue
        if names is None and (subject.base_model, subject.data_run) != (base_model, data_run):
            print(f"{name}: left out, it is of {subject.base_model} and data run {subject.data_run!r}")
        else:
            chosen.append(subject)
    for what, attribute in (("base model", "base_model"), ("data run", "data_run")):
        kinds = sorted({str(getattr(subject, attribute)) for subject in chosen})
        if len(kinds) > 1:
            raise UserError(f"RUNS are of more than one {what} ({', '.join(kinds)}): name those of one alone")
    if chosen:
        base_model, data_run = chosen[0].base_model, chosen[0].data_run
    path = models.base_model_path(base_model, results_dir)
    settings = Path(results_dir) / BASE / "settings.json"
    if settings.exists() and runs.read_json(settings)["base_model"] != base_model:
        raise UserError(f"{settings.parent}/ is about another base model than {base_model}: choose another RESULTS_DIR")
    size_gb = models.size_gb(None, base_model, results_dir)
    return [Subject(BASE, base_model, path, weight_files(path), data_run=data_run, size_gb=size_gb), *chosen]


def runs_with_weights(results_dir: str) -> list[str]:
    """Names of the finished runs that hold a model, merged ones included, in natural order."""
    folders = set()
    for kind in DONE:
        for record in runs.records(results_dir, kind):
            directory, merged = record.parent, record.parent / "merged"
            if (directory / "config.json").exists() or (directory / "adapter").exists():
                folders.add(directory)
            if (merged / "config.json").exists():
                folders.add(merged)
    names = [str(folder.relative_to(results_dir)) for folder in folders]
    return sorted(names, key=lambda name: [int(p) if p.isdigit() else p for p in re.split(r"(\d+)", name)])


def run_subject(results_dir: str, run: str) -> Subject:
    """A finished run as it is evaluated; ``<run>/merged`` is its adapter merged into 16 bits."""
    owner = run.removesuffix("/merged")
    directory = runs.run_directory(results_dir, owner)
    kind = next((kind for kind in DONE if (directory / kind).exists()), DONE[0])
    record = runs.read_json(runs.finished_run(results_dir, owner, kind) / "settings.json")
    base_model, data_run = record["base_model"], record.get("settings", {}).get("DATA_RUN")
    directory = runs.run_directory(results_dir, run)
    adapter = directory / "adapter"
    if (directory / "config.json").exists():
        files, lora_rank = weight_files(str(directory)), 0
        method = quantization.method_of(directory)
        precision = method.name if method else "auto"
    elif adapter.exists():
        files = weight_files(models.base_model_path(base_model, results_dir)) + weight_files(str(adapter))
        precision, lora_rank = record["base_precision"], runs.read_json(adapter / "adapter_config.json")["r"]
    else:
        raise UserError(f"{directory}/ has no weights and no adapter of its own: name one of its depths, <run>/<n>")
    size_gb = models.size_gb(directory, base_model, results_dir)
    return Subject(run, base_model, str(directory), files, precision, lora_rank, data_run, size_gb)


def weight_files(path: str) -> list[str]:
    """The safetensors files of a checkpoint, a hub id's in the Hub's cache."""
    return sorted(map(str, models.checkpoint_folder(path).glob("*.safetensors")))


def subject_config(subject: Subject, results_dir: str):
    """The config that decides a subject's memory."""
    return models.base_config(subject.base_model if subject.lora_rank else subject.path, results_dir)


def prompt_lengths(results_dir: str, data_run: str | None, longest: int) -> tuple[dict[str, int], dict | None]:
    """``({"median", "p95", "fixed"}, data record)``: prompt tokens of the data run's dev split (else test, train).

    Without a data run only the fixed length is left. No length is above ``longest``, the positions a model has.
    """
    lengths, record = {"fixed": FIXED_PROMPT}, None
    report = runs.run_directory(results_dir, data_run) / "data_report.json" if data_run else None
    if report and report.exists():
        splits = runs.read_json(report)["splits"]
        split = next(splits[name] for name in ("dev", "test", "train") if name in splits)
        lengths = {"median": split["prompt_tokens"]["p50"], "p95": split["prompt_tokens"]["p95"], **lengths}
        record = runs.read_json(report.parent / "settings.json")["data"]
    return {name: min(tokens, longest) for name, tokens in lengths.items()}, record


def place(subject: Subject, limit_gb: float | None, free_gb: float) -> None:
    """Decide how a subject runs on a card of ``limit_gb`` (None: on a CPU with ``free_gb``).

    A 16-bit model that is too large for the card is offloaded in part, and labelled. Raises UserError where that cannot
    be done.
    """
    if limit_gb is None:
        if subject.predicted_gb > free_gb:
            raise UserError(f"needs {subject.predicted_gb:.1f} GB, {free_gb:.1f} GB are free")
        return
    needed = subject.predicted_gb + memory.CUDA_CONTEXT_GB
    if needed > limit_gb:
        label = f"does not fit {limit_gb:g} GB (needs {needed:.1f})"
        if subject.lora_rank or subject.precision != "auto":
            raise UserError(f"{label}, and is in few bits already")
        subject.offload, subject.label = True, f"{label}: measured with the rest offloaded to the CPU"


def check_fit_together(subjects: list[Subject], limit_gb: float | None, free_gb: float) -> None:
    """Raise UserError where several models do not fit in memory at once, with a margin for batches and processes."""
    held = [min(subject.predicted_gb, limit_gb or math.inf) for subject in subjects]
    needed, room = sum(1.2 * one + PROCESS_GB for one in held), 0.9 * free_gb
    if len(subjects) > 1 and needed > room:
        names = ", ".join(subject.run for subject in subjects)
        raise UserError(f"{names}: {needed:.1f} GB does not fit together in {room:.1f} GB: name fewer RUNS")
