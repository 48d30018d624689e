"""Rows as tables: for Markdown and a terminal, as results.csv and quantization_report.csv, and the README's results."""

import sys
from pathlib import Path

import pandas as pd

from fincompress import runs
from fincompress.errors import UserError
from fincompress.report.methods import record_of
from fincompress.report.rows import Row, Section, accuracy_lost, compare_rows, key, read_rows

SHORT = ("Run", "Method", "Sub-layers left", "% of bytes", "Execution accuracy %", "s per question", "Memory GB")
FULL = (*SHORT[:5], "Program accuracy %", "Accuracy lost, points", "lost to the longer phase 1", "GB",
        "Prefill tokens/s", "Decode tokens/s", *SHORT[5:], "Training min")  # fmt: skip
CSV = (
    "base_model", "data", "data_fingerprint", "prepared", "prompts", "split", "questions", "device", "hardware", "run",
    "method", "description", "sublayers_left", "sublayers", "execution_accuracy", "execution_accuracy_low",
    "execution_accuracy_high", "program_accuracy", "program_accuracy_low", "program_accuracy_high", "size_gb",
    "share_of_bytes", "on_frontier", "prompt_tokens", "prefill_tokens_per_s", "prefill_ratio", "decode_tokens_per_s",
    "decode_ratio", "inference_memory_gb", "kernel", "answer_tokens", "seconds_per_question", "speed_of",
    "benchmark_call", "evaluation_dtype", "total_training_seconds", "total_tokens_seen", "reference_run",
    "accuracy_lost", "accuracy_lost_low", "accuracy_lost_high", "mcnemar_p",
    "longer_run", "longer_lost", "longer_lost_low", "longer_lost_high",
)  # fmt: skip
QUANTIZED_WITH = ("BITS", "DESC_ACT", "CALIBRATION", "CALIBRATION_EXAMPLES")  # settings in the report
LEGEND = "Brackets: 95 % intervals, Wilson for an accuracy, paired bootstrap for a difference."
BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"


class Table:
    """A table of texts whose cells may refer to numbered notes."""

    def __init__(self, columns: tuple[str, ...]):
        self.columns, self.lines, self.notes = columns, [], {}

    def noted(self, text: str, note: str | None) -> str:
        """``text`` with the number of ``note``; as it is where there is none."""
        return f"{text} ({self.notes.setdefault(note, len(self.notes) + 1)})" if note else text

    def markdown(self) -> str:
        lines = [self.columns, ["---"] + ["---:"] * (len(self.columns) - 1), *self.lines]
        text = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
        return text + "\n" + "".join(f"\n{number}: {note}.<br>" for note, number in self.notes.items()) + "\n"

    def plain(self) -> str:
        text = pd.DataFrame(self.lines, columns=self.columns).to_string(index=False)
        return text + "".join(f"\n{number}: {note}." for note, number in self.notes.items())


def results_table(rows: list[Row], columns: tuple[str, ...]) -> Table:
    """Rows of a section under some of the columns of FULL; what was not measured is a dash.

    Behind a mean over seeds stand the accuracies of each.
    """
    table = Table(columns)
    for row in rows:
        unhealed = "saved on the way down, not healed as the last depth is" if row.healed is False else None
        speed = None if row.speed else "speed not measured on this device"
        if row.speed and row.speed_of != row.run:
            speed = "measured of another run of the same shape"
        accuracy = percent(row.execution_accuracy, (row.execution_accuracy_low, row.execution_accuracy_high))
        seeds = ", ".join(f"{100 * peer.execution_accuracy:.1f}" for peer in row.seeds)
        lost, longer = (
            percent(loss["difference"], loss["interval"], "+") if loss else "-"
            for loss in (row.lost, row.lost_to_longer)
        )
        values = {
            "Run": row.title,
            "Method": table.noted(row.name, unhealed),
            "Sub-layers left": row.depth,
            "% of bytes": shown(row.share_of_bytes, ".0f", 100),
            "Execution accuracy %": f"{accuracy} ({seeds})" if seeds else accuracy,
            "Program accuracy %": shown(row.program_accuracy, ".1f", 100),
            "Accuracy lost, points": "reference" if is_one_of(row, row.reference_run) else lost,
            "lost to the longer phase 1": "reference" if is_one_of(row, row.longer_run) else longer,
            "GB": shown(row.size_gb, ".3f"),
            "Prefill tokens/s": table.noted(shown(row.prefill_tokens_per_s, ".0f"), speed),
            "Decode tokens/s": table.noted(shown(row.decode_tokens_per_s, ".1f"), speed),
            "s per question": table.noted(shown(row.seconds_per_question, ".2f"), speed),
            "Memory GB": table.noted(shown(row.inference_memory_gb, ".2f"), speed),
            "Training min": shown(row.total_training_seconds, ".0f", 1 / 60),
        }
        table.lines.append([values[column] for column in columns])
    return table


def shown(value: float | None, form: str, factor: float = 1) -> str:
    return "-" if value is None else f"{factor * value:{form}}"


def percent(value: float, interval: list[float], sign: str = "") -> str:
    """``"28.3 [25.4, 31.4]"``, or with the sign ``"+"`` ``"+1.7 [-0.3, +3.7]"``."""
    return "{} [{}, {}]".format(*(f"{100 * share:{sign}.1f}" for share in (value, *interval)))


def headline_rows(section: Section, count: int) -> list[Row]:
    """At most ``count`` rows that answer the question, in the section's order.

    Seeds of a recipe are one row. First phase 1, also trained longer, their quantized models, and SAPLING at a
    quantized model's size and at its most accurate, and the best of both methods together; then SAPLING next in size,
    the base model and other pruning. Runs whose speed was measured go first, then those of most seeds, for of single
    runs the most accurate is so by luck.
    """
    rows = sorted(section.means, key=lambda row: row.speed is None)

    def of(kind: str) -> list[Row]:
        return [row for row in rows if row.kind == kind]

    size = next((row.share_of_bytes for row in of("quantized")), None) or 0

    def sure(row: Row) -> tuple[bool, int, float]:
        return row.speed is None, -len(row.seeds), -row.execution_accuracy

    sizes: dict[float, Row] = {}  # a row of each size
    for row in sorted(of("sapling"), key=sure):
        sizes.setdefault(row.size_gb, row)
    nearest = sorted(sizes.values(), key=lambda row: (row.speed is None, abs((row.share_of_bytes or 0) - size)))
    kinds = ("sapling", "sapling_quantized", "pruning")
    best, both, pruned = (sorted(of(kind), key=sure) for kind in kinds)
    compared = [row for name in ("reference_run", "longer_run") for row in rows if is_one_of(row, vars(row)[name])]
    wanted = [
        *compared, *of("quantized")[:2], *nearest[:1], *best[:1], *both[:1], *nearest[1:2], *of("base")[:1],
        *pruned[:1], *rows,
    ]  # fmt: skip
    names = list(dict.fromkeys(row.run for row in wanted))[:count]
    return [row for row in section.means if row.run in names]


def is_one_of(row: Row, names: str | None) -> bool:
    """Whether a row's run is among those of ``reference_run`` or ``longer_run``."""
    return row.run in (names or "").split(", ")


def csv_rows(sections: list[Section]) -> list[dict]:
    """One row a run and section for results.csv; results/README.md describes the columns."""
    return [{name: getattr(row, name) for name in CSV} for section in sections for row in section.rows]


# --- phase 2's report -----------------------------------------------------------------------------------------------


def quantization_report(results_dir: str) -> list[dict]:
    """One row for every quantized run, and split on which it and its source were scored.

    Accuracy lost is the source's execution accuracy minus the quantized run's, paired on the same questions.
    """
    rows, report = read_rows(results_dir)[0], []
    for path in runs.records(results_dir, "quantize_metrics.json"):
        if not (path.parent / "settings.json").exists():  # nothing says what it is
            continue
        metrics, settings = runs.read_json(path), record_of(path.parent, "settings.json")["settings"]
        common = {
            "run": path.parent.relative_to(results_dir).as_posix(),
            "source_run": metrics["source_run"],
            "quantizer": settings.get("METHOD", "gptq"),
            **{name.lower(): settings.get(name) for name in QUANTIZED_WITH},
            "group_size": metrics["group_size"],
            "size_gb_before": metrics["size_before_gb"],
            "size_gb_after": metrics["size_after_gb"],
            "blocks_size_ratio": round(metrics["blocks_after_gb"] / metrics["blocks_before_gb"], 4),
            "quantization_seconds": metrics["quantization_seconds"],
        }
        ends = [[row for row in rows if row.run == common[name]] for name in ("source_run", "run")]
        pairs = [(source, quantized) for source in ends[0] for quantized in ends[1] if key(source) == key(quantized)]
        for source, quantized in pairs or [(None, None)]:
            scores = {
                **{name: getattr(quantized, name, None) for name in ("data", "split", "questions")},
                "execution_accuracy_before": getattr(source, "execution_accuracy", None),
                "execution_accuracy_after": getattr(quantized, "execution_accuracy", None),
                **accuracy_lost(compare_rows(source, quantized) if quantized else None),
            }
            report.append(common | scores)
    return report


def write_quantization_report(results_dir: str) -> None:
    """Rebuild ``quantization_report.csv``, if there is a quantized run; a damaged record leaves it as it is."""
    try:
        report = quantization_report(results_dir)
    except UserError as error:
        print(f"quantization_report.csv is left as it is: {error}", file=sys.stderr)
        return
    if report:
        runs.write_csv(Path(results_dir) / "quantization_report.csv", report)


# --- README ---------------------------------------------------------------------------------------------------------


def replace_between_markers(text: str, content: str, name: str = "README.md") -> str:
    """``text`` with what stands between the results markers replaced; the markers stay, so it can be done again."""
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise UserError(f"{name} needs the lines {BEGIN} and {END}, once each and in this order, around its results")
    before, _, rest = text.partition(BEGIN)
    return f"{before}{BEGIN}\n{content.strip()}\n{END}{rest.partition(END)[2]}"
