"""Finished runs side by side: what each is, what was measured of it, which share a table, and who dominates whom."""

from __future__ import annotations

import contextlib
import copy
import itertools
import math
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from fincompress import provenance, runs, statistics
from fincompress.errors import UserError
from fincompress.finqa import examples

TRAINED_LORA = {"train_qlora_4bit.py": "QLoRA (NF4 base)", "train_lora_8bit.py": "8-bit LoRA (int8 base)"}
CRITERIA = {
    "calibration": "calibration scan",
    "kl": "KL to the teacher",
    "taylor": "first-order Taylor (Shortened LLaMA)",
    "last": "last layers",
    "random": "random layers",
    "block_influence": "block influence (ShortGPT)",
    "angular": "angular distance (Gromov et al.)",
    "activation_norm": "activation norm",
}
# In the order of a table's rows. "longer": phase 1 trained on, no layer dropped. "pruning": layers dropped by another
# criterion or schedule than SAPLING's.
KINDS = (
    "base", "qlora", "merged", "lora_8bit", "longer", "gptq", "sapling", "sapling_gptq", "pruning", "pruning_gptq",
    "other",
)  # fmt: skip
PHASE_1 = ("qlora", "merged", "lora_8bit")


@dataclass
class Row:
    """One run on one split: what it is, and what was measured; None where it was not, and ``missing`` says why."""

    run: str
    directory: Path
    kind: str  # one of KINDS
    method: str  # in words
    base_model: str
    source: str | None  # of the data: "FinQA", "synthetic"
    fingerprint: str | None  # of the data as read
    prepared: str | None = None  # fingerprint of how it was preprocessed, and the longest output allowed
    target: str | None = None  # "program" or "answer"
    split: str | None = None  # None: not evaluated
    questions: int | None = None
    execution: dict | None = None  # {"accuracy", "interval", "correct", "of"}, as are the next
    program: dict | None = None
    steps: dict[str, dict] = field(default_factory=dict)  # execution accuracy by steps of the gold program
    size_gb: float | None = None
    share_of_base: float | None = None  # of the bytes of the base model in 16 bits
    units_left: int | None = None  # sub-layers, or blocks where blocks were dropped
    remark: str | None = None  # on the method, for a footnote
    family: str | None = None  # the run whose checkpoints this is one of
    training_seconds: float | None = None  # with what it started from: training, scans, quantization
    trained_on: str | None = None  # hardware of it and of what it started from
    tokens_seen: int | None = None  # in the training of both
    decoded_in: str | None = None  # compute type of its evaluation
    settings: dict = field(default_factory=dict)
    command: str = ""
    devices: dict[tuple[str, str], dict] = field(default_factory=dict)  # (device, hardware) -> read_throughput
    speed: dict | None = None  # the one of ``devices`` that belongs to this row's section
    series: str | None = None  # the method without the depth, for the path of a family
    drop: dict | None = None  # phase 1 minus this run: statistics.compare
    on_frontier: bool = False  # of accuracy against size
    missing: dict[str, str] = field(default_factory=dict)  # field -> why it is None


@dataclass
class Section:
    """Rows that may share a table: one base model, data set, split and device."""

    base_model: str
    source: str | None
    fingerprint: str | None
    target: str | None
    split: str | None
    questions: int | None
    device: str | None  # None: no speed was measured
    hardware: str | None
    rows: list[Row]
    prepared: str | None = None
    remark: str = ""  # tells it from a section whose title would read the same
    reference: str | None = None  # the run of phase 1 that drops are counted from

    @property
    def title(self) -> str:
        """In words, device last."""
        data = f"{self.source or 'unknown data'}, {self.split} ({self.questions} questions)"
        if self.split is None:
            data = "accuracy not evaluated"
        speed = f"speed on {self.device}: {self.hardware}" if self.device else "speed not measured"
        bare = ", bare answers" if self.target == "answer" else ""
        return f"{self.base_model}, {data}{bare}{self.remark}; {speed}"

    @property
    def slug(self) -> str:
        """The part of a file name that tells this section's figures from those of the others."""
        parts = (self.source, self.split, Path(self.base_model).name, self.device)
        name = "-".join(part for part in parts if part)
        unlike = (self.base_model, self.fingerprint, self.prepared, self.target, self.questions, self.hardware)
        return "".join(c if c.isalnum() else "-" for c in name.lower()) + "-" + provenance.fingerprint(unlike)[:4]

    def is_whole(self, source: str) -> bool:
        """Whether this is all of a split of ``source``, as released where the data is FinQA; a sliver is not."""
        if self.source != source or self.split is None:
            return False
        return source != "FinQA" or self.questions == examples.RELEASE.get(self.split)


def read_throughput(path: Path) -> dict:
    """What the tables need of a ``throughput_<device>.json`` (benchmark_throughput.py): the one place that knows it.

    Returns ``prefill_tokens_per_s`` (prompts of the data set's median length, of the fixed one where there is no data),
    ``decode_tokens_per_s`` (batch 1) and ``inference_memory_gb``, ``prefill_ratio`` and ``decode_ratio`` to the base
    model, each None where the file does not say; ``device`` ("cpu", "cuda") and ``hardware`` in words;
    ``prompt_tokens`` of the prefill, ``kernel`` and ``label`` (None, or how a model that does not fit was run);
    ``rounds``, ``{measure: tokens/s of each round}``, ``ratios``, the same in relation to the base model's turns close
    by, and the benchmark ``call`` that they are of; ``share_of_bandwidth`` that decoding at batch 1 reaches. Raises
    UserError where the file is damaged.
    """
    try:
        return _throughput(path, runs.read_json(path))
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is no record of benchmark_throughput.py ({error!r})") from None


def _throughput(path: Path, found: dict) -> dict:
    prefill, decode = found.get("prefill") or {}, found.get("decode") or {}
    measured = {"prefill": prefill.get("median") or prefill.get("fixed") or {}, "decode": decode.get("1") or {}}
    out = {
        "device": str(found.get("device") or path.stem.partition("_")[2]),
        "inference_memory_gb": _positive(found.get("inference_memory_gb")),
        "size_gb": _positive(found.get("size_gb")),
        "prompt_tokens": measured["prefill"].get("prompt_tokens"),
        "kernel": found.get("kernel"),
        "label": found.get("label"),
        "call": found.get("call"),
        "share_of_bandwidth": _positive((found.get("ceiling") or {}).get("share_of_bandwidth")),
        "rounds": {},
        "ratios": {},
    }
    out["hardware"] = hardware_name(found.get("hardware"), out["device"])
    for name, entry in measured.items():
        rates, ratios = entry.get("tokens_per_s") or {}, entry.get("ratio") or {}
        out[f"{name}_tokens_per_s"], out[f"{name}_ratio"] = (
            _positive(rates.get("median")),
            _positive(ratios.get("median")),
        )
        out["rounds"][f"{name}_tokens_per_s"] = rates.get("rounds") or []
        out["ratios"][f"{name}_tokens_per_s"] = ratios.get("rounds") or []
    return out


def paired_rounds(first: dict, second: dict, measure: str) -> tuple[list[float], list[float]] | None:
    """The rounds that two models took in turns, as many of each; None where they are not of one benchmark call.

    As ratios to the base model's turns close by: between the turns of the two themselves lie those of others, and time
    in which a shared machine changes its speed. As tokens/s where the base model, the slowest, took fewer rounds than
    the two. A slow model may have taken fewer rounds than the other, the first ones.
    """
    count, of_ratios = (min(len(one[kind][measure]) for one in (first, second)) for kind in ("rounds", "ratios"))
    kind = "ratios" if of_ratios >= count else "rounds"
    rounds = [one[kind][measure][:count] for one in (first, second)]
    together = first["call"] is not None and first["call"] == second["call"]
    if count < 2 or not together or not all(map(_positive, rounds[0] + rounds[1])):
        return None
    return rounds[0], rounds[1]


def hardware_name(hardware: dict | str | None, device: str = "cpu") -> str:
    """The hardware of a record in words: the GPU, or the processor and its threads."""
    if not isinstance(hardware, dict):
        return hardware or "unknown hardware"
    if device.startswith("cuda") and hardware.get("gpu"):
        return str(hardware["gpu"])
    threads = hardware.get("threads", "?")
    return f"{hardware.get('cpu', 'unknown processor')}, {threads} thread{'' if threads == 1 else 's'}"


def _positive(value: object) -> float | None:
    return float(value) if isinstance(value, (int, float)) and value > 0 else None


# ------------------------------------------------------------------------------------------------ what each run is


def settings_of(directory: Path, results_dir: Path) -> tuple[Path, dict] | None:
    """The folder and content of the ``settings.json`` that describes a folder: its own, else that of the run above it.

    A merged checkpoint (``<run>/merged``) has none of its own.
    """
    above = [directory.parent] if results_dir not in (directory, directory.parent) else []
    for folder in (directory, *above):
        if (folder / "settings.json").exists():
            return folder, runs.read_json(folder / "settings.json")
    return None


def record_of(directory: Path, name: str) -> dict:
    """A JSON record in a folder; empty where there is none."""
    return runs.read_json(directory / name) if (directory / name).exists() else {}


def describe(directory: Path, results_dir: Path, precision: str | None = None) -> tuple[str, str]:
    """``(kind, method in words)`` of the run in a folder, from its settings, never from its name.

    ``precision`` is that of the base it was evaluated on, where it was. An adapter that was evaluated on a 16-bit base,
    or a whole checkpoint of a LoRA run, is the merged model.
    """
    found = settings_of(directory, results_dir)
    if found is None:
        return "other", "unknown"
    folder, record = found
    script, settings = record.get("script"), record.get("settings", {})
    if script == "evaluate.py":
        return "base", "base model, untuned"
    if script in TRAINED_LORA:
        whole = folder != directory or (directory / "config.json").exists()
        if whole or (precision or record.get("base_precision")) not in ("nf4", "int8"):
            method = f"{TRAINED_LORA[script].partition(' (')[0]}, merged in 16 bits"
            into = record_of(directory, "train_metrics.json").get("merged_into")
            return "merged", f"{method} (into the {into} base)" if into else method
        return ("qlora" if script == "train_qlora_4bit.py" else "lora_8bit"), TRAINED_LORA[script]
    if script == "sapling_train.py":
        found = record_of(directory, "train_metrics.json")
        left = found.get("units_left")
        how = recovered_by(settings)
        if found.get("dropped") == [] and settings.get("START_FROM"):
            return "longer", f"phase 1 trained on{how}"
        unit = "sub-layers" if settings.get("DROP_UNIT", "sublayer") == "sublayer" else "blocks"
        left = f"{left} {unit} left" if left is not None else unit
        criterion, schedule = settings.get("CRITERION"), settings.get("SCHEDULE")
        if criterion in ("calibration", "kl") and schedule == "successive":
            return "sapling", f"SAPLING{how}, {left}"
        schedule = "one shot" if schedule == "one_shot" else "successive"
        return "pruning", f"pruning by {CRITERIA.get(criterion, criterion)}, {schedule}{how}, {left}"
    if script == "quantize_gptq.py":
        name = f"GPTQ {settings.get('BITS', 4)}-bit"
        source = run_folder(settings.get("SOURCE_RUN"), results_dir)
        if source is None:  # which may have been anything
            return "other", f"{name} (of a run that is not here)"
        kind, method = describe(source, results_dir)
        if kind in (*PHASE_1, "longer"):
            return "gptq", f"{method.partition(' (')[0]} + {name}"
        # Of an untuned base model it is no answer to the question, and not SAPLING's rival.
        return f"{kind}_gptq" if kind in ("sapling", "pruning") else "other", f"{method} + {name}"
    return "other", str(script)


def recovered_by(settings: dict) -> str:
    """What a run of sapling_train.py learns from beside the gold programs, in words behind its method's name."""
    if not settings.get("KL") and not settings.get("HIDDEN_STATES"):
        return ""
    return " with a teacher" + (", adapters on NF4" if settings.get("UPDATE") == "qlora" else "")


def run_folder(run: str | None, results_dir: Path) -> Path | None:
    """The folder of a run by name, None where it is not here; ``<run>/merged`` is here as long as the run is."""
    if not run:
        return None
    folder = runs.run_directory(str(results_dir), run)
    here = folder.exists() or (folder.name == "merged" and settings_of(folder, results_dir) is not None)
    return folder if here else None


def training_seconds(directory: Path, results_dir: Path) -> tuple[float | None, str | None]:
    """``(seconds, why not)``: training, scans and quantization of a run and of what it started from."""
    found = settings_of(directory, results_dir)
    if found is None:
        return None, "no settings.json"
    folder, record = found
    if record.get("script") == "evaluate.py":
        return 0.0, None
    settings = record.get("settings", {})
    # A checkpoint has what it took to get there; a merged model has nothing of its own, and what its run took counts.
    above = [directory.parent] if record_of(directory.parent, "settings.json").get("settings") == settings else []
    metrics = {}
    for place in (*above, folder, directory):
        metrics |= record_of(place, "train_metrics.json") | record_of(place, "quantize_metrics.json")
    spent = [metrics[name] for name in ("training_seconds", "scanning_seconds", "quantization_seconds")
             if isinstance(metrics.get(name), (int, float))]  # fmt: skip
    if not spent:
        return None, f"{folder.name}/ has no record of its training time"
    before = settings.get("START_FROM") or settings.get("SOURCE_RUN")
    if not before:
        return sum(spent), None
    source = run_folder(before, results_dir)
    if source is None or source == directory:
        return None, f"the run it started from, {before}, is not here"
    earlier, reason = training_seconds(source, results_dir)
    return (None, reason) if earlier is None else (earlier + sum(spent), None)


def lineage(directory: Path, results_dir: Path) -> list[tuple[Path, dict]]:
    """``(folder, settings.json)`` of a run after those that it started from, the earliest first."""
    found: list[tuple[Path, dict]] = []
    here: Path | None = directory
    while here is not None and here not in (folder for folder, _ in found):
        _, record = settings_of(here, results_dir) or (None, {})
        found.insert(0, (here, record))
        settings = record.get("settings", {})
        here = run_folder(settings.get("START_FROM") or settings.get("SOURCE_RUN"), results_dir)
    return found


def trained_on(directory: Path, results_dir: Path) -> str:
    """The hardware of a run and of what it started from, in words."""
    records = [record for _, record in lineage(directory, results_dir)]
    names = [hardware_name(one.get("hardware")) for record in records for one in (record, *record.get("resumed", []))]
    return ", then ".join(name for name, _ in itertools.groupby(names))


def tokens_seen(directory: Path, results_dir: Path) -> int | None:
    """Tokens that a run and what it started from were trained on; None where one of them did not record it."""
    counts = []
    for folder, record in lineage(directory, results_dir):
        if record.get("script") in ("evaluate.py", "quantize_gptq.py"):
            continue
        merged = record_of(folder.parent, "train_metrics.json") if folder.name == "merged" else {}
        counts.append((merged | record_of(folder, "train_metrics.json")).get("tokens_seen"))
    return None if None in counts else sum(counts)


# ------------------------------------------------------------------------------------------------ rows


def read_rows(results_dir: str, splits: list[str]) -> tuple[list[Row], list[str]]:
    """Every evaluated or benchmarked run under ``results_dir``, and what was left out and why, a line each.

    A run evaluated on two splits is two rows. ``results/published`` is left out unless it is itself what is read.
    Raises UserError naming a record that is damaged.
    """
    root = Path(results_dir)
    if not root.is_dir():
        raise UserError(f"{root}/ does not exist: run evaluate.py first, or set RESULTS_DIR")
    rows, left_out = [], []
    files = [*runs.records(results_dir, "eval_*.json"), *runs.records(results_dir, "throughput_*.json")]
    for folder in sorted({path.parent for path in files}):
        if settings_of(folder, root) is None and not any(folder.glob("throughput_*.json")):
            left_out.append(f"{folder.relative_to(root)}: no settings.json, so nothing says what it is")
            continue
        evaluations = {path.stem.partition("_")[2]: path for path in sorted(folder.glob("eval_*.json"))}
        for split in [name for name in evaluations if name not in splits]:
            left_out.append(f"{folder.relative_to(root)}: the split {split} is no split to report")
        try:
            measured = [read_throughput(path) for path in sorted(folder.glob("throughput_*.json"))]
            devices = {(one["device"], one["hardware"]): one for one in measured}
            evaluations = [runs.read_json(path) for name, path in evaluations.items() if name in splits]
            for evaluation in evaluations or [None] * bool(devices):
                rows.append(make_row(folder, root, evaluation, devices, splits))
        except (KeyError, TypeError, AttributeError) as error:  # no row is lost without a word
            raise UserError(f"{folder}/ holds a damaged record ({error!r}): make it again, or remove it") from None
    return rows, left_out


def make_row(folder: Path, root: Path, evaluation: dict | None, devices: dict, splits: list[str]) -> Row:
    """One run on one split from its files; ``evaluation`` is None where it has only been benchmarked."""
    described, found = settings_of(folder, root), evaluation or {}
    record = described[1] if described else next(record_of(folder, path.name) for path in folder.glob("throughput_*"))
    data = found.get("data") or record.get("data") or {}
    kind, method = describe(folder, root, found.get("base_precision"))
    if described is None:  # a form of the base model that was only benchmarked
        kind, method = (
            ("base", "base model") if record.get("run") == record.get("reference") else ("other", record["run"])
        )
    row = Row(
        run=found.get("run") or folder.relative_to(root).as_posix(),
        directory=folder,
        kind=kind,
        method=method,
        base_model=str(found.get("base_model") or record.get("base_model")),
        source=data.get("source"),
        fingerprint=data.get("fingerprint"),
        settings=record.get("settings", {}),
        command=str(record.get("command", "")),
        trained_on=trained_on(folder, root),
        tokens_seen=tokens_seen(folder, root),
        devices=devices,
    )
    if evaluation is None:
        reason = f"not evaluated on {' or '.join(splits)} (evaluate.py)"
        row.missing |= dict.fromkeys(("execution", "program"), reason)
    else:
        row.split, row.questions, row.target = found["split"], found["questions"], found.get("target", "program")
        row.execution, row.program = found["execution_accuracy"], found.get("program_accuracy")
        row.steps = found.get("steps") or {}
        decoding = found.get("decoding", {})
        row.prepared, row.decoded_in = found.get("prepared"), decoding.get("dtype")
        if "MAX_NEW_TOKENS" in decoding:  # where outputs were cut short, answers are wrong for no fault of the model
            row.prepared = ", ".join(
                filter(None, (row.prepared, f"outputs of at most {decoding['MAX_NEW_TOKENS']} tokens"))
            )
        row.missing["program"] = "it writes bare answers, no programs"
    row.size_gb, row.share_of_base = found.get("size_gb"), found.get("share_of_base")
    if row.size_gb is None:
        row.size_gb = next((measured["size_gb"] for measured in devices.values()), None)
    row.missing["size"] = "its evaluation did not record a size" if evaluation else row.missing["execution"]
    if kind in ("sapling", "pruning"):
        found = record_of(folder, "train_metrics.json")
        row.units_left = found.get("units_left")
        if found.get("healed") is False and not found.get("final"):
            row.remark = "saved on the way down: trained after its drops for a cycle, not healed as the last depth is"
        row.family = str(folder.parent)
        row.series = re.sub(r", \d+ (sub-layers|blocks) left$", "", method)
    row.training_seconds, row.missing["training_seconds"] = training_seconds(folder, root)
    return row


# ------------------------------------------------------------------------------------------------ sections


def make_sections(rows: list[Row], reference: str | None = None) -> list[Section]:
    """Rows that may share a table, together; never two base models, data sets, splits or devices.

    Where speed was measured on several devices, the runs stand once in the section of each. A run that was only
    benchmarked joins the sections of its own base model and data. FinQA comes first, larger sections before smaller.
    """
    evaluated = [row for row in rows if row.split is not None]
    groups: dict[tuple, list[Row]] = {}
    for row in evaluated:
        key = (row.base_model, row.source, row.fingerprint, row.target, row.split, row.questions, row.prepared)
        groups.setdefault(key, []).append(row)
    for row in [row for row in rows if row.split is None]:
        same = [key for key in groups if key[:3] == (row.base_model, row.source, row.fingerprint)]
        for key in same or [(row.base_model, row.source, row.fingerprint, None, None, None, None)]:
            groups.setdefault(key, []).append(row)
    sections = []
    for key, members in groups.items():
        for device in sorted({device for row in members for device in row.devices}) or [(None, None)]:
            members_here = [on_device(row, device) for row in members]
            label_apart(members_here)
            section = Section(*key[:6], *device, rows=members_here, prepared=key[6])
            compare_with_phase_1(section, reference)
            flags = frontier([(row.share_of_base, row.execution and row.execution["accuracy"]) for row in members_here])
            for row, flag in zip(members_here, flags, strict=True):
                row.on_frontier = flag
            section.rows.sort(
                key=lambda row: (KINDS.index(row.kind), row.family or "", -(row.units_left or 0), row.run)
            )
            sections.append(section)
    titles = Counter(section.title for section in sections)
    for section in sections:
        if titles[section.title] > 1:  # preprocessed in another way
            section.remark = f", data {section.fingerprint}"
            section.remark += f", prepared {section.prepared}" if section.prepared else ""
    sections.sort(key=lambda s: (s.split is None, s.source != "FinQA", -len(s.rows), s.title))
    return sections


def on_device(row: Row, device: tuple[str | None, str | None]) -> Row:
    """A copy of a row for the section of one device: with the speed measured there and nowhere else."""
    row = copy.copy(row)
    row.missing = dict(row.missing)
    row.speed = row.devices.get(device)
    where = "on this device " if device[0] else ""
    row.missing["speed"] = f"not measured {where}(benchmark_throughput.py)"
    for name in ("prefill_tokens_per_s", "decode_tokens_per_s", "inference_memory_gb"):
        row.missing[name] = row.missing["speed"] if row.speed is None else "its benchmark did not record it"
    return row


def label_apart(rows: list[Row]) -> None:
    """Add the run's name to methods that would read the same."""
    counts = Counter(row.method for row in rows)
    families = Counter(series for series, _ in {(row.series, row.family) for row in rows})
    for row in rows:
        if counts[row.method] > 1:
            row.method += f" ({row.run})"
        if row.series and families[row.series] > 1:
            row.series += f" ({row.run.rpartition('/')[0] or row.run})"


def compare_with_phase_1(section: Section, reference: str | None) -> None:
    """Set each row's ``drop``: accuracy of phase 1 minus its own, paired on the same questions.

    Phase 1 is the run called ``reference``; None: of the runs of QLoRA, else of merged or 8-bit LoRA, the one of lowest
    NLL on the calibration split: the most accurate one on this split would be so by luck too. Where none recorded that,
    the most accurate one.
    """
    evaluated = [row for row in section.rows if row.execution]
    named = [row for row in evaluated if row.run == reference]
    of_kind = [[row for row in evaluated if row.kind == kind] for kind in PHASE_1]
    candidates = named if reference else next((found for found in of_kind if found), [])
    if not candidates:
        for row in section.rows:
            row.missing["drop"] = f"no run {reference} in this section" if reference else "no run of phase 1 here"
        return
    first = min(candidates, key=lambda row: (calibration_nll(row), -row.execution["accuracy"], row.run))
    section.reference = first.run
    for row in section.rows:
        if row is first:
            row.missing["drop"] = "this is what drops are counted from"
        elif not row.execution:
            row.missing["drop"] = row.missing["execution"]
        else:
            row.drop, row.missing["drop"] = compare_rows(first, row)


def calibration_nll(row: Row) -> float:
    """NLL of a LoRA run on the calibration split after its last epoch; infinity where that was not recorded."""
    folder = row.directory.parent if row.directory.name == "merged" else row.directory
    scores = record_of(folder, "train_metrics.json").get("calibration") or [{}]
    return scores[-1].get("calibration_nll", math.inf)


def compare_rows(first: Row, second: Row, confidence: float = 0.95) -> tuple[dict | None, str | None]:
    """``(statistics.compare of two rows of a section, None)``, or ``(None, why it cannot be had)``."""
    verdicts = []
    for row in (first, second):
        path = row.directory / f"predictions_{row.split}.jsonl"
        if not path.exists():
            return None, f"the predictions of {row.run} are not here, so nothing can be paired"
        verdicts.append(statistics.read_verdicts(path))
        if sum(verdicts[-1].values()) != row.execution["correct"]:
            raise UserError(f"{path} does not belong to eval_{row.split}.json beside it: evaluate that run again")
    if set(verdicts[0]) != set(verdicts[1]):
        return None, f"{first.run} and {second.run} did not answer the same questions"
    return statistics.compare(*verdicts, confidence=confidence), None


def frontier(points: list[tuple[float | None, float | None]]) -> list[bool]:
    """Which of ``(cost, gain)`` points no other dominates: none costs at most as much and gains at least as much.

    One of the two must be strictly better, so of equal points all are on the frontier or none. A point that lacks a
    value is not on it and dominates nothing.
    """
    whole = [point for point in points if None not in point]

    def dominated(point: tuple[float, float]) -> bool:
        return any(x <= point[0] and y >= point[1] and (x, y) != point for x, y in whole)

    return [None not in point and not dominated(point) for point in points]


# ------------------------------------------------------------------------------------------------ phase 2's report


def quantization_report(results_dir: str) -> list[dict]:
    """One row for every split on which a quantized run and its source were both evaluated, and device likewise.

    The drop is the source's execution accuracy minus the quantized one's, paired on the same questions; ``None`` stands
    where nothing was evaluated or measured on both sides.
    """
    root, rows = Path(results_dir), []
    for path in runs.records(results_dir, "quantize_metrics.json"):
        folder, metrics = path.parent, runs.read_json(path)
        source = run_folder(metrics.get("source_run"), root)
        if source is None:  # removed since
            continue
        settings = record_of(folder, "settings.json")["settings"]
        sizes = {name: metrics[name] for name in ("size_before_gb", "size_after_gb")}
        common = {
            "run": folder.relative_to(root).as_posix(),
            "source_run": metrics["source_run"],
            **{name.lower(): settings[name] for name in ("BITS", "DESC_ACT", "CALIBRATION", "CALIBRATION_EXAMPLES")},
            "group_size": metrics["group_size"],
            **sizes,
            "size_reduction": round(1 - sizes["size_after_gb"] / sizes["size_before_gb"], 4),
            "blocks_share": round(metrics["blocks_after_gb"] / metrics["blocks_before_gb"], 4),
            "quantization_seconds": metrics["quantization_seconds"],
        }
        splits = [one.stem.partition("_")[2] for one in sorted(folder.glob("eval_*.json"))]
        accuracies = [found for split in splits if (found := _accuracy_drop(source, folder, split))]
        speeds = _speeds(source, folder)
        for accuracy in accuracies or [_accuracy_drop(None, folder, "")]:
            rows += [common | accuracy | speed for speed in speeds]
    return rows


def _accuracy_drop(before: Path | None, after: Path, split: str) -> dict | None:
    """Accuracy of two runs on one split and the paired difference; None where it cannot be had."""
    names = ("split", "data", "questions", "accuracy_before", "accuracy_after", "drop_points", "drop_points_low",
             "drop_points_high", "drop_per_cent", "mcnemar_p")  # fmt: skip
    if before is None:
        return dict.fromkeys(names)
    found = [record_of(folder, f"eval_{split}.json") for folder in (before, after)]
    paths = [folder / f"predictions_{split}.jsonl" for folder in (before, after)]
    same = ("data", "prepared", "decoding", "questions")
    if (
        not all(found)
        or any(found[0].get(name) != found[1].get(name) for name in same)
        or not all(path.exists() for path in paths)
    ):
        return None
    verdicts = [statistics.read_verdicts(path) for path in paths]
    difference = statistics.compare(*verdicts)
    first, second = (one["execution_accuracy"]["accuracy"] for one in found)
    points = [100 * value for value in (difference["difference"], *difference["interval"])]
    values = (
        split, found[1]["data"]["source"], found[1]["questions"], first, second, *(round(p, 2) for p in points),
        round(points[0] / first, 2) if first else None, round(difference["mcnemar_p"], 4),
    )  # fmt: skip
    return dict(zip(names, values, strict=True))


def _speeds(before: Path, after: Path) -> list[dict]:
    """Throughput of two runs on every device where one benchmark call measured both; one row of None without any."""
    names = ("prefill_tokens_per_s", "decode_tokens_per_s")
    measured: list[dict] = [{}, {}]
    for folder, found in zip((before, after), measured, strict=True):
        for path in sorted(folder.glob("throughput_*.json")):
            with contextlib.suppress(UserError):  # damaged, which plot_pareto.py says
                one = read_throughput(path)
                if one["call"] is not None:
                    found[one["device"], one["hardware"], one["call"]] = one
    common = sorted(set(measured[0]) & set(measured[1]))
    columns = [f"{name}_{side}" for name in names for side in ("before", "after")]
    rows = [
        {"device": device[0], "kernel": measured[1][device]["kernel"]}
        | dict(zip(columns, (side[device][name] for name in names for side in measured), strict=True))
        for device in common
    ]
    return rows or [dict.fromkeys(("device", "kernel", *columns))]


def write_quantization_report(results_dir: str) -> None:
    """Rebuild ``quantization_report.csv`` and print what quantization did to each run, if there is a quantized one."""
    rows = quantization_report(results_dir)
    if not rows:
        return
    runs.write_csv(Path(results_dir) / "quantization_report.csv", rows)
    line = "{:<20}{:<20}{:<8}{:>8}{:>8}  {:<26}{:>9}{:>8}{:>8}"
    titles = ("run", "source", "split", "before", "after", "drop in points", "per cent", "size", "blocks")
    print("\n" + line.format(*titles))
    for row in rows:
        shown = ["-"] * 4
        if row["split"]:
            interval = f"[{row['drop_points_low']:+.1f}, {row['drop_points_high']:+.1f}]"
            relative = "-" if row["drop_per_cent"] is None else f"{row['drop_per_cent']:+.1f}%"
            shown = [f"{row['accuracy_before']:.1%}", f"{row['accuracy_after']:.1%}",
                     f"{row['drop_points']:+.1f} {interval} p={row['mcnemar_p']:.2f}", relative]  # fmt: skip
        print(
            line.format(
                row["run"],
                row["source_run"],
                row["split"] or "-",
                *shown,
                f"-{row['size_reduction']:.0%}",
                f"{row['blocks_share']:.0%}",
            )  # fmt: skip
        )
        if row["device"]:
            speeds = (
                f"{name} {row[f'{name}_tokens_per_s_before']:.0f} -> {row[f'{name}_tokens_per_s_after']:.0f} tokens/s"
                for name in ("prefill", "decode")
                if row[f"{name}_tokens_per_s_before"] and row[f"{name}_tokens_per_s_after"]
            )
            print(f"  {row['device']}, kernel {row['kernel']}: {', '.join(speeds)}")
