"""Finished runs as rows: what each is, what was measured of it, and which of them may share a table."""

from __future__ import annotations

import copy
import math
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from fincompress import provenance, runs
from fincompress.benchmark.record import read_throughput
from fincompress.errors import UserError
from fincompress.finqa import examples
from fincompress.report import statistics
from fincompress.report.methods import KINDS, PHASE_1, depth, describe, record_of, run_folder, settings_of

SPEEDS = ("prefill_tokens_per_s", "decode_tokens_per_s")


@dataclass
class Row:
    """One run on one split: what it is, and what was measured; None where it was not."""

    run: str
    directory: Path
    kind: str  # one of KINDS
    method: str  # in words
    base_model: str = ""
    source: str | None = None  # of the data: "FinQA", "synthetic"
    fingerprint: str | None = None  # of the data as read
    prepared: str | None = None  # how it was preprocessed, and the longest output allowed
    split: str = "dev"
    questions: int = 0
    execution: dict | None = None  # {"accuracy", "interval", "correct", "of"}, as is the next
    program: dict | None = None
    steps: dict[str, dict] = field(default_factory=dict)  # execution accuracy by steps of the gold program
    size_gb: float | None = None
    share_of_bytes: float | None = None  # of the base model in 16 bits
    sublayers_left: int | None = None
    sublayers: int | None = None  # of the unpruned model
    healed: bool | None = None  # None: not a checkpoint of a pruned run
    training_seconds: float | None = None  # with what it started from: training, scans, quantization
    tokens_seen: int | None = None  # in the training of both
    dtype: str | None = None  # compute type of its evaluation
    answer_tokens: int | None = None  # of the median gold program
    settings: dict = field(default_factory=dict)
    devices: dict[tuple[str, str], dict] = field(default_factory=dict)  # (device, hardware) -> read_throughput
    speed: dict | None = None  # the one of ``devices`` that belongs to this row's section
    lost: dict | None = None  # statistics.compare of the reference run with this one
    on_frontier: bool = False  # of accuracy against bytes
    label: str = ""  # of a chart: the method, with the run's name where two would read the same
    missing: dict[str, str] = field(default_factory=dict)  # field -> why it is None

    @property
    def family(self) -> str:
        """The run that this is a checkpoint of, or the run itself."""
        return self.run.rpartition("/")[0] or self.run if self.kind in ("sapling", "pruning") else self.run

    @property
    def quantizer(self) -> str | None:
        """The quantization method, None for a run that is not quantized."""
        return self.settings.get("METHOD", "gptq") if "quantized" in self.kind else None

    @property
    def depth(self) -> str:
        """``"22 of 60"``, or ``"22"`` where the unpruned model's depth was not recorded; empty: nothing was dropped."""
        return " of ".join(str(count) for count in (self.sublayers_left, self.sublayers) if count is not None)

    @property
    def description(self) -> str:
        """The method with its depth, in words."""
        return f"{self.method}, {self.depth} sub-layers" if self.depth else self.method

    @property
    def seconds_per_question(self) -> float | None:
        """To read a prompt of median length and decode the median answer, whose first token the prefill gives."""
        speed = self.speed or {}
        needed = [speed.get(name) for name in (*SPEEDS, "prompt_tokens")] + [self.answer_tokens]
        if None in needed or speed["label"]:
            return None
        prefill, decode, prompt, answer = needed
        return prompt / prefill + (answer - 1) / decode

    @property
    def memory_gb(self) -> float | None:
        """Peak memory of inference, None where another form of the model was measured."""
        return self.speed["inference_memory_gb"] if self.speed and not self.speed["label"] else None


@dataclass
class Section:
    """Rows that may share a table: one base model, data set, split and device."""

    base_model: str
    source: str | None
    fingerprint: str | None
    split: str
    questions: int
    prepared: str | None
    device: str | None  # None: no speed was measured
    hardware: str | None
    rows: list[Row]
    remark: str = ""  # tells it from a section whose title would read the same
    reference: str | None = None  # the run of phase 1 that lost accuracy is counted from

    @property
    def title(self) -> str:
        """In words, device last."""
        data = f"{self.source or 'unknown data'}, {self.split} ({self.questions} questions)"
        speed = f"speed on {self.device}: {self.hardware}" if self.device else "speed not measured"
        return f"{self.base_model}, {data}{self.remark}; {speed}"

    @property
    def slug(self) -> str:
        """The part of a file name that tells this section's figures from those of the others."""
        name = "-".join(filter(None, (self.source, self.split, Path(self.base_model).name, self.device)))
        unlike = (self.base_model, self.fingerprint, self.prepared, self.questions, self.hardware)
        return re.sub(r"[^a-z0-9]", "-", name.lower()) + "-" + provenance.fingerprint(unlike)[:4]

    def is_whole(self, source: str) -> bool:
        """Whether this is all of a split of ``source``, as released where the data is FinQA; a sliver is not."""
        return self.source == source and (source != "FinQA" or self.questions == examples.RELEASE.get(self.split))


def training_cost(directory: Path, results_dir: Path) -> tuple[float | None, int | None, str | None]:
    """``(seconds, tokens, why not)`` of training, scans and quantization of a run and of what it started from."""
    seconds, tokens, here = 0.0, 0, directory
    while True:
        found = settings_of(here, results_dir)
        if found is None:
            return None, None, "no settings.json"
        folder, record = found
        settings = record.get("settings", {})
        if record.get("script") == "evaluate.py":
            break
        # A checkpoint has what it took to get there; a merged model has nothing of its own: its run's counts.
        above = [here.parent] if record_of(here.parent, "settings.json").get("settings") == settings else []
        metrics: dict = {}
        for place in (*above, folder, here):
            metrics |= record_of(place, "train_metrics.json") | record_of(place, "quantize_metrics.json")
        spent = [metrics.get(f"{name}_seconds") for name in ("training", "scanning", "quantization")]
        spent = [value for value in spent if isinstance(value, (int, float))]
        if not spent:
            return None, None, f"{folder.name}/ has no record of its training time"
        seconds += sum(spent)
        if record.get("script") != "quantize_gptq.py":
            seen = metrics.get("tokens_seen")
            tokens = None if None in (tokens, seen) else tokens + seen
        before = settings.get("START_FROM") or settings.get("SOURCE_RUN")
        if not before:
            break
        source = run_folder(before, results_dir)
        if source is None or source == here:
            return None, None, f"the run it started from, {before}, is not here"
        here = source
    return round(seconds, 1), tokens, None


def answer_tokens(results_dir: Path, data_run: str | None) -> int | None:
    """Tokens of the median gold program of a data run, on the split whose prompts the benchmark takes."""
    folder = run_folder(data_run, results_dir)
    splits = record_of(folder, "data_report.json").get("splits", {}) if folder else {}
    split = next((splits[name] for name in ("dev", "test", "train") if name in splits), {})
    return split.get("target_tokens", {}).get("p50")


# --- rows and sections ----------------------------------------------------------------------------------------------


def read_rows(results_dir: str, splits: list[str] | None = None) -> tuple[list[Row], list[str]]:
    """Every evaluated run under ``results_dir``, and what was left out and why, a line each.

    A run evaluated on two splits is two rows; ``splits`` None: all splits. ``results/published`` is left out unless it
    is itself what is read. Raises UserError naming a record that is damaged.
    """
    root = Path(results_dir)
    if not root.is_dir():
        raise UserError(f"{root}/ does not exist: run evaluate.py first, or set RESULTS_DIR")
    rows, left_out = [], []
    for path in runs.records(results_dir, "eval_*.json"):
        folder, split = path.parent, path.stem.partition("_")[2]
        if settings_of(folder, root) is None:
            left_out.append(f"{folder.relative_to(root)}: no settings.json, so nothing says what it is")
        elif splits is not None and split not in splits:
            left_out.append(f"{folder.relative_to(root)}: the split {split} is no split to report")
        else:
            try:
                rows.append(make_row(folder, root, runs.read_json(path)))
            except (KeyError, TypeError, AttributeError) as error:  # no row is lost without a word
                raise UserError(f"{path} is damaged ({error!r}): evaluate that run again, or remove it") from None
    return rows, left_out


def make_row(folder: Path, root: Path, evaluation: dict) -> Row:
    """One run on one split from its files."""
    _, record = settings_of(folder, root)
    kind, method = describe(folder, root, evaluation.get("base_precision"))
    metrics = record_of(folder, "train_metrics.json") if kind in ("sapling", "pruning") else {}
    seconds, tokens, reason = training_cost(folder, root)
    decoding = evaluation.get("decoding") or {}
    longest = decoding.get("MAX_NEW_TOKENS")  # an output that was cut short is wrong for no fault of the model
    measured = [read_throughput(path) for path in sorted(folder.glob("throughput_*.json"))]
    row = Row(
        run=evaluation.get("run") or folder.relative_to(root).as_posix(),
        directory=folder,
        kind=kind,
        method=method,
        base_model=str(evaluation["base_model"]),
        source=evaluation["data"]["source"],
        fingerprint=evaluation["data"]["fingerprint"],
        prepared=f"{evaluation.get('prepared')}, outputs of at most {longest} tokens",
        split=evaluation["split"],
        questions=evaluation["questions"],
        execution=evaluation["execution_accuracy"],
        program=evaluation.get("program_accuracy"),
        steps=evaluation.get("steps") or {},
        size_gb=evaluation.get("size_gb"),
        share_of_bytes=evaluation.get("share_of_base"),
        training_seconds=seconds,
        tokens_seen=tokens,
        dtype=decoding.get("dtype"),
        answer_tokens=next((answer_tokens(root, one["data_run"]) for one in measured), None),
        settings=record.get("settings", {}),
        devices={(one["device"], one["hardware"]): one for one in measured},
        missing={"training_seconds": reason} if reason else {},
    )
    if "sapling" in kind or "pruning" in kind:
        row.sublayers_left, row.sublayers = depth(folder, root)
    row.healed = metrics.get("healed", False) or metrics.get("final", False) if "healed" in metrics else None
    return row


def make_sections(rows: list[Row], reference: str | None = None) -> list[Section]:
    """Rows that may share a table, together; never two base models, data sets, splits or devices.

    Where speed was measured on several devices, the runs stand once in the section of each. FinQA comes first, larger
    sections before smaller.
    """
    groups: dict[tuple, list[Row]] = {}
    for row in rows:
        key = (row.base_model, row.source, row.fingerprint, row.split, row.questions, row.prepared)
        groups.setdefault(key, []).append(row)
    sections = []
    for key, members in groups.items():
        for device in sorted({device for row in members for device in row.devices}) or [(None, None)]:
            here = [copy.copy(row) for row in members]
            flags = statistics.frontier([(row.share_of_bytes, row.execution["accuracy"]) for row in here])
            for row, flag in zip(here, flags, strict=True):
                row.speed, row.on_frontier, row.missing = row.devices.get(device), flag, dict(row.missing)
            here.sort(key=lambda r: (KINDS.index(r.kind), r.family, -(r.sublayers_left or 0), r.run))
            label_apart(here)
            section = Section(*key, *device, rows=here)
            compare_with_phase_1(section, reference)
            sections.append(section)
    titles = Counter(section.title for section in sections)
    for section in sections:
        if titles[section.title] > 1:  # other data of one name, or preprocessed in another way
            section.remark = f", data {section.fingerprint}, prepared {section.prepared}"
    sections.sort(key=lambda s: (s.source != "FinQA", -len(s.rows), s.title))
    return sections


def label_apart(rows: list[Row]) -> None:
    """Set each row's ``label``: its method, and its run where two would read the same."""
    families = Counter(method for _, method in {(row.family, row.method) for row in rows})
    for row in rows:
        row.label = row.method + (f" ({row.family})" if families[row.method] > 1 else "")


def compare_with_phase_1(section: Section, reference: str | None) -> None:
    """Set each row's ``lost``: accuracy of the reference run minus its own, paired on the same questions.

    That run is ``reference``; None: of the runs of QLoRA, else of merged or 8-bit LoRA, the one of lowest NLL on the
    calibration split. The most accurate one on this split would be so by luck too.
    """
    named = [row for row in section.rows if row.run == reference]
    of_kind = [[row for row in section.rows if row.kind == kind] for kind in PHASE_1]
    candidates = named if reference else next((found for found in of_kind if found), [])
    if not candidates:
        for row in section.rows:
            row.missing["lost"] = f"no run {reference} in this section" if reference else "no run of phase 1 here"
        return
    first = min(candidates, key=lambda row: (calibration_nll(row), -row.execution["accuracy"], row.run))
    section.reference = first.run
    for row in section.rows:
        if row is first:
            row.missing["lost"] = "the reference run"
        else:
            row.lost, row.missing["lost"] = compare_rows(first, row)


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
