"""Rows as tables: for Markdown and a terminal, as results.csv and quantization_report.csv, and the README's results."""

from __future__ import annotations

from pathlib import Path

from fincompress import runs
from fincompress.errors import UserError
from fincompress.report.methods import record_of
from fincompress.report.rows import SPEEDS, Row, Section, compare_rows, make_sections, read_rows

SHORT = ("Run", "Method", "Sub-layers left", "% of bytes", "Execution accuracy %", "s per question", "Memory GB")
FULL = (*SHORT[:5], "Program accuracy %", "Accuracy lost, points", "GB", "Prefill tokens/s", "Decode tokens/s",
        *SHORT[5:], "Training min")  # fmt: skip
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
        grid = [self.columns, *self.lines]
        widths = [max(len(line[place]) for line in grid) for place in range(len(self.columns))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in grid]
        notes = [f"{number}: {note}." for note, number in self.notes.items()]
        return "\n".join(line.rstrip() for line in [*lines, *notes])


def results_table(rows: list[Row], columns: tuple[str, ...]) -> Table:
    """Rows of a section under some of the columns of FULL; what was not measured is a dash, a note says why."""
    table = Table(columns)
    for row in rows:
        speed = row.speed or {}
        unmeasured = "its benchmark did not record it" if row.speed else "speed not measured on this device"
        lost = row.lost and points(row.lost["difference"], row.lost["interval"])
        unhealed = "saved on the way down, not healed as the last depth is" if row.healed is False else None
        values = {
            "Run": (row.run, None, None),
            "Method": (row.method, None, unhealed),
            "Sub-layers left": (row.depth, None, None),
            "% of bytes": (shown(row.share_of_bytes, "{:.0f}", 0.01), "size not recorded", None),
            "GB": (shown(row.size_gb, "{:.3f}"), "size not recorded", None),
            "Execution accuracy %": (accuracy(row.execution), None, None),
            "Program accuracy %": (row.program and f"{100 * row.program['accuracy']:.1f}", "not recorded", None),
            "Accuracy lost, points": (lost, row.missing.get("lost"), None),
            "Prefill tokens/s": (shown(speed.get("prefill_tokens_per_s"), "{:.0f}"), unmeasured, speed.get("label")),
            "Decode tokens/s": (shown(speed.get("decode_tokens_per_s"), "{:.1f}"), unmeasured, speed.get("label")),
            "s per question": (shown(row.seconds_per_question, "{:.2f}"), speed.get("label") or unmeasured, None),
            "Memory GB": (shown(row.memory_gb, "{:.2f}"), speed.get("label") or unmeasured, None),
            "Training min": (shown(row.training_seconds, "{:.0f}", 60), row.missing.get("training_seconds"), None),
        }
        cells = (values[column] for column in columns)
        table.lines.append(
            [table.noted("-", reason) if text is None else table.noted(text, remark) for text, reason, remark in cells]
        )
    return table


def shown(value: float | None, form: str, divisor: float = 1) -> str | None:
    return None if value is None else form.format(value / divisor)


def accuracy(score: dict) -> str:
    """``"28.3 [25.4, 31.4]"``, in per cent."""
    low, high = score["interval"]
    return f"{100 * score['accuracy']:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def points(difference: float, interval: list[float]) -> str:
    """``"+1.7 [-0.3, +3.7]"``, in points of a hundred."""
    return f"{100 * difference:+.1f} [{100 * interval[0]:+.1f}, {100 * interval[1]:+.1f}]"


def headline_rows(section: Section, count: int) -> list[Row]:
    """At most ``count`` rows that answer the question, in the section's order.

    First phase 1, the quantized model, and of one SAPLING run the checkpoint of the quantized model's size and the
    largest; then the base model, the other SAPLING runs at that size, both methods together, and other pruning.
    Runs whose speed was measured go before others.
    """
    rows = sorted(section.rows, key=lambda row: row.speed is None)
    kinds = {row.kind: [other for other in rows if other.kind == row.kind] for row in rows}
    rivals = kinds.get("quantized", [])
    size = (rivals[0].share_of_bytes if rivals else None) or 0.0
    families: dict[str, list[Row]] = {}
    for row in kinds.get("sapling", []):
        families.setdefault(row.family, []).append(row)
    same_size = [min(depths, key=lambda row: abs((row.share_of_bytes or 0) - size)) for depths in families.values()]
    largest = [max(depths, key=lambda row: row.share_of_bytes or 0) for depths in families.values()]
    pruned = sorted(kinds.get("pruning", []), key=lambda row: -row.execution["accuracy"])
    wanted = [
        *(row for row in rows if row.run == section.reference), *rivals[:1], *same_size[:1], *largest[:1],
        *kinds.get("base", [])[:1], *same_size[1:2], *kinds.get("sapling_quantized", [])[:1], *pruned[:1],
        *rivals[1:], *same_size[2:], *rows,
    ]  # fmt: skip
    chosen = {row.run: row for row in wanted}
    names = list(chosen)[:count]
    return [row for row in section.rows if row.run in names]


def csv_rows(sections: list[Section]) -> list[dict]:
    """One row a run and section for results.csv; results/README.md describes the columns."""
    out = []
    for section in sections:
        for row in section.rows:
            speed, lost = row.speed or {}, row.lost or {}
            found = {
                "base_model": section.base_model, "data": section.source, "data_fingerprint": section.fingerprint,
                "split": section.split, "questions": section.questions, "device": section.device,
                "hardware": section.hardware, "run": row.run,
                "method": row.kind.replace("quantized", row.quantizer or ""), "description": row.description,
                "sublayers_left": row.sublayers_left, "sublayers": row.sublayers,
            }  # fmt: skip
            for name, score in (("execution_accuracy", row.execution), ("program_accuracy", row.program)):
                low, high = score["interval"] if score else (None, None)
                found |= {name: score and score["accuracy"], f"{name}_low": low, f"{name}_high": high}
            found |= {"size_gb": row.size_gb, "share_of_bytes": row.share_of_bytes, "on_frontier": row.on_frontier}
            for name in ("prompt_tokens", "prefill_tokens_per_s", "prefill_ratio", "decode_tokens_per_s",
                         "decode_ratio", "inference_memory_gb", "kernel", "label"):  # fmt: skip
                found[name] = speed.get(name)
            found |= {
                "answer_tokens": row.answer_tokens, "seconds_per_question": row.seconds_per_question,
                "benchmark_call": speed.get("call"), "evaluation_dtype": row.dtype,
                "total_training_seconds": row.training_seconds, "total_tokens_seen": row.tokens_seen,
                "reference_run": section.reference, **accuracy_lost(lost),
            }  # fmt: skip
            out.append(found)
    return out


def accuracy_lost(lost: dict) -> dict:
    """The columns of a difference in execution accuracy; each None where ``lost`` is empty."""
    low, high = lost.get("interval", (None, None))
    values = {"accuracy_lost": lost.get("difference"), "accuracy_lost_low": low, "accuracy_lost_high": high}
    values = {name: None if value is None else round(value, 5) for name, value in values.items()}
    return values | {"mcnemar_p": float(f"{lost['mcnemar_p']:.4g}") if lost else None}


# --- phase 2's report -----------------------------------------------------------------------------------------------


def quantization_report(results_dir: str) -> list[dict]:
    """One row for every split and device on which a quantized run and its source stand in one section.

    Accuracy lost is the source's execution accuracy minus the quantized run's, paired on the same questions. Speeds are
    there where one call of the benchmark measured both.
    """
    root, out = Path(results_dir), []
    sections = make_sections(read_rows(results_dir)[0])
    for path in runs.records(results_dir, "quantize_metrics.json"):
        folder, metrics = path.parent, runs.read_json(path)
        run, source = folder.relative_to(root).as_posix(), metrics["source_run"]
        settings = record_of(folder, "settings.json")["settings"]
        before, after = metrics["size_before_gb"], metrics["size_after_gb"]
        common = {
            "run": run,
            "source_run": source,
            "quantizer": settings.get("METHOD", "gptq"),
            **{name.lower(): settings.get(name) for name in QUANTIZED_WITH},
            "group_size": metrics["group_size"],
            "size_gb_before": before,
            "size_gb_after": after,
            "blocks_size_ratio": round(metrics["blocks_after_gb"] / metrics["blocks_before_gb"], 4),
            "quantization_seconds": metrics["quantization_seconds"],
        }
        pairs = [
            (section, one, other)
            for section in sections
            for one in section.rows
            for other in section.rows
            if (one.run, other.run) == (source, run)
        ]
        effects = [effect(*pair) for pair in pairs] or [effect(None, None, None)]
        measured = {one["split"] for one in effects if one["device"]}
        for place, one in enumerate(effects):  # a section of a device that measured neither says nothing more
            if one not in effects[:place] and (one["device"] or one["split"] not in measured):
                out.append(common | one)
    return out


def effect(section: Section | None, before: Row | None, after: Row | None) -> dict:
    """What quantization did to a run in one section; all None where the two stand in none."""
    lost = compare_rows(before, after)[0] if section else None
    found = {
        "data": section and section.source,
        "split": section and section.split,
        "questions": section and section.questions,
        "execution_accuracy_before": section and before.execution["accuracy"],
        "execution_accuracy_after": section and after.execution["accuracy"],
        **accuracy_lost(lost or {}),
    }
    speeds = [row.speed for row in (before, after)] if section else [None, None]
    together = None not in speeds and speeds[0]["call"] is not None and speeds[0]["call"] == speeds[1]["call"]
    found |= {"device": section.device if together else None, "kernel": speeds[1]["kernel"] if together else None}
    for name in SPEEDS:
        found |= {f"{name}_before": speeds[0][name] if together else None}
        found |= {f"{name}_after": speeds[1][name] if together else None}
    return found


def write_quantization_report(results_dir: str) -> None:
    """Rebuild ``quantization_report.csv`` and print what quantization did to each run, if there is a quantized one."""
    try:
        rows = quantization_report(results_dir)
    except UserError as error:  # another run's damaged record does not stop what has just finished
        print(f"quantization_report.csv stays as it is: {error}")
        return
    if not rows:
        return
    runs.write_csv(Path(results_dir) / "quantization_report.csv", rows)
    table = Table(("run", "source", "split", "accuracy", "accuracy lost, points", "size GB", "decode tokens/s"))
    for row in rows:
        lost, interval = row["accuracy_lost"], [row["accuracy_lost_low"], row["accuracy_lost_high"]]
        table.lines.append([
            row["run"], row["source_run"], row["split"] or "-", change(row, "execution_accuracy", "{:.1%}"),
            "-" if lost is None else points(lost, interval), change(row, "size_gb", "{:.3f}"),
            change(row, "decode_tokens_per_s", "{:.1f}"),
        ])  # fmt: skip
    print("\n" + table.plain())


def change(row: dict, name: str, form: str) -> str:
    """``"before -> after"`` of a column, a dash where one of them is unknown."""
    values = [row[f"{name}_before"], row[f"{name}_after"]]
    return "-" if None in values else " -> ".join(form.format(value) for value in values)


# --- README ---------------------------------------------------------------------------------------------------------


def replace_between_markers(text: str, content: str, name: str = "README.md") -> str:
    """``text`` with what stands between the results markers replaced; the markers stay, so it can be done again."""
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise UserError(f"{name} needs the lines {BEGIN} and {END}, once each and in this order, around its results")
    before, _, rest = text.partition(BEGIN)
    return f"{before}{BEGIN}\n{content.strip()}\n{END}{rest.partition(END)[2]}"
