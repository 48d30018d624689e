"""The models of one benchmark call: which they are, what they need in memory, and whether they fit."""

from dataclasses import dataclass
from pathlib import Path

import torch

from fincompress import memory, models, quantization, runs
from fincompress.errors import UserError

BASE = "base"  # the name under which the untuned base model is evaluated and measured
FIXED_PROMPT = 512  # tokens, for comparison with papers
PROCESS_GB = 0.5  # what Python and its libraries, or a CUDA context, take in every worker


@dataclass
class Subject:
    """One model to measure."""

    run: str  # its name, and the folder under the results directory that its record goes to
    base_model: str
    path: str  # what is loaded
    precision: str = "auto"  # of the blocks' weights
    lora_rank: int = 0  # of an adapter on the base it was trained against; 0: none
    data_run: str | None = None
    size_gb: float | None = None  # as the accuracy table counts it
    predicted_gb: float = 0.0  # of inference at batch 1, with the longest prompt


def find_subjects(results_dir: str, names: list[str] | None, base_model: str, data_run: str) -> list[Subject]:
    """The base model first, then the runs: the ones named, or every finished one of this base model and data run.

    Raises UserError where a named run is missing, unfinished, or one of another base model or data run than the rest.
    """
    candidates = runs_with_weights(results_dir) if names is None else names
    chosen = [run_subject(results_dir, name) for name in candidates if name != BASE]
    if names is not None and chosen:
        base_model, data_run = chosen[0].base_model, chosen[0].data_run
    left_out = [subject.run for subject in chosen if (subject.base_model, subject.data_run) != (base_model, data_run)]
    if left_out and names is not None:
        raise UserError(f"RUNS are of more than one base model or data run: leave out {', '.join(left_out)}")
    if left_out:
        print(f"left out, of another base model or data run: {', '.join(left_out)}")
    chosen = [subject for subject in chosen if subject.run not in left_out]
    settings = Path(results_dir) / BASE / "settings.json"
    if settings.exists() and runs.read_json(settings)["base_model"] != base_model:
        raise UserError(f"{settings.parent}/ is about another base model than {base_model}: choose another RESULTS_DIR")
    path = models.checkpoint_folder(models.base_model_path(base_model, results_dir))
    size_gb = models.size_gb(None, base_model, results_dir)
    return [Subject(BASE, base_model, str(path), data_run=data_run, size_gb=size_gb), *chosen]


def runs_with_weights(results_dir: str) -> list[str]:
    """Names of the finished runs that hold a model, merged ones included."""
    folders = {record.parent for record in runs.records(results_dir, "*_metrics.json")}
    folders |= {folder / "merged" for folder in folders}
    held = [folder for folder in folders if (folder / "config.json").exists() or (folder / "adapter").exists()]
    return sorted(folder.relative_to(results_dir).as_posix() for folder in held)


def run_subject(results_dir: str, run: str) -> Subject:
    """A finished run as it is evaluated; ``<run>/merged`` is its adapter merged into 16 bits."""
    record = runs.read_json(runs.finished_run(results_dir, run.removesuffix("/merged")) / "settings.json")
    directory, precision, rank = runs.run_directory(results_dir, run), "auto", 0
    if (directory / "config.json").exists():
        if method := quantization.method_of(directory):
            precision = f"{method.name}-{models.read_config(str(directory)).quantization_config['bits']}bit"
    elif (directory / "adapter").exists():
        precision, rank = record["base_precision"], runs.read_json(directory / "adapter" / "adapter_config.json")["r"]
    else:
        raise UserError(f"{directory}/ has no weights and no adapter of its own: name one of its depths, <run>/<n>")
    size_gb = models.size_gb(directory, record["base_model"], results_dir)
    data_run = record.get("settings", {}).get("DATA_RUN")
    return Subject(run, record["base_model"], str(directory), precision, rank, data_run, size_gb)


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


def which_fit(
    chosen: list[Subject], results_dir: str, prompt: int, new_tokens: int, card: dict, room_gb: float
) -> tuple[list[Subject], dict[str, str]]:
    """``(models to measure, reasons by run)``: a model that needs more than ``room_gb`` is not measured.

    Sets each model's ``predicted_gb``. ``card`` is the reply of ``rounds.probe``. Raises UserError where the others do
    not fit in the device's memory together, with a margin for batches and processes.
    """
    device, dtype = card["device"], getattr(torch, card["dtype"])
    for subject in chosen:
        config = models.base_config(subject.base_model if subject.lora_rank else subject.path, results_dir)
        tokens = prompt + new_tokens
        subject.predicted_gb = memory.inference_gb(
            config, tokens, subject.precision, subject.lora_rank, device=device, dtype=dtype
        )
    fitting = [subject for subject in chosen if subject.predicted_gb <= room_gb]
    needed, room = sum(1.2 * subject.predicted_gb + PROCESS_GB for subject in fitting), 0.9 * card["free_gb"]
    if len(fitting) > 1 and needed > room:
        names = ", ".join(subject.run for subject in fitting)
        raise UserError(f"{names}: {needed:.1f} GB does not fit together in {room:.1f} GB: name fewer RUNS")
    reasons = {subject.run: f"needs {subject.predicted_gb:.1f} GB, {room_gb:.1f} GB are free" for subject in chosen}
    return fitting, {subject.run: reasons[subject.run] for subject in chosen if subject not in fitting}
