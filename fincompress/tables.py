"""Rows of a section as tables: in Markdown with footnotes, for a terminal, as CSV; and the results part of a README."""

from __future__ import annotations

from collections import Counter

from fincompress.comparison import Row, Section
from fincompress.errors import UserError

COLUMNS = ("Method", "Execution accuracy %", "Program accuracy %", "Size GB", "% of base", "Prefill tokens/s",
           "Decode tokens/s", "Inference memory GB", "Training min", "Drop against phase 1, points")  # fmt: skip

INTERVALS = "Brackets are 95 % intervals: Wilson for an accuracy, paired bootstrap for a drop."


def shown_rows(section: Section, sizes: list[float]) -> list[Row]:
    """The rows of a table for readers: of a run with many checkpoints the largest, the smallest and those nearest to
    ``sizes`` (shares of the base's bytes); every other run whole."""
    chosen = []
    for row in section.rows:
        family = [other for other in section.rows if other.family == row.family and other.share_of_base is not None]
        if row.family is None or row.share_of_base is None:
            chosen.append(row)
            continue
        family.sort(key=lambda other: (other.share_of_base, other.run))
        inside = [size for size in sizes if family[0].share_of_base <= size <= family[-1].share_of_base]
        near = [min(family, key=lambda other, size=size: abs(other.share_of_base - size)) for size in inside]
        if any(row is other for other in (family[0], family[-1], *near)):
            chosen.append(row)
    return chosen


def table(section: Section, rows: list[Row]) -> tuple[list[list[tuple[str, str]]], list[str]]:
    """Cells ``(text, footnote number or "")`` of a table under COLUMNS, and its footnotes.

    A value that was not measured is a dash, and its footnote says why.
    """
    notes: dict[str, str] = {}

    def cell(text: str | None, reason: str | None, remark: str | None = None) -> tuple[str, str]:
        reason = reason if text is None else remark
        number = notes.setdefault(reason, str(len(notes) + 1)) if reason else ""
        return ("-" if text is None else text), number

    dtypes = Counter(row.decoded_in for row in rows if row.decoded_in).most_common(1)
    usual = Counter(row.trained_on for row in rows if row.training_seconds).most_common(1)
    kernels = Counter(row.speed["kernel"] for row in rows if row.speed and row.speed["kernel"]).most_common(1)
    calls = Counter(row.speed["call"] for row in rows if row.speed).most_common(1)

    def how_run(row: Row) -> str | None:
        kernel, label = (row.speed["kernel"], row.speed["label"]) if row.speed else (None, None)
        unusual = f"kernel {kernel}" if kernel and kernel != kernels[0][0] else None
        apart = "measured in another call of the benchmark" if row.speed and row.speed["call"] != calls[0][0] else None
        return "; ".join(filter(None, (unusual, label, apart))) or None

    def how_decoded(row: Row) -> str | None:
        other = row.decoded_in and row.decoded_in != dtypes[0][0]
        return f"decoded in {row.decoded_in}, the others in {dtypes[0][0]}" if other else None

    lines = []
    for row in rows:
        line = [cell(row.method, None, row.remark)]
        line.append(cell(_score(row.execution), row.missing.get("execution"), how_decoded(row)))
        line.append(cell(row.program and f"{100 * row.program['accuracy']:.1f}", row.missing.get("program")))
        size = row.missing.get("size")
        line.append(cell(None if row.size_gb is None else f"{row.size_gb:.3f}", size))
        line.append(cell(None if row.share_of_base is None else f"{100 * row.share_of_base:.0f}", size))
        forms = {"prefill_tokens_per_s": ".0f", "decode_tokens_per_s": ".1f", "inference_memory_gb": ".2f"}
        for name, form in forms.items():
            value = row.speed and row.speed[name]
            line.append(cell(None if value is None else format(value, form), row.missing.get(name), how_run(row)))
        if row.training_seconds is None:
            line.append(cell(None, row.missing["training_seconds"]))
        else:
            other = row.training_seconds and row.trained_on != usual[0][0]
            note = notes.setdefault(f"trained on {row.trained_on}", str(len(notes) + 1)) if other else ""
            line.append((f"{row.training_seconds / 60:.0f}", note))
        if row.drop:
            low, high = row.drop["interval"]
            text = f"{100 * row.drop['difference']:.1f} [{100 * low:.1f}, {100 * high:.1f}]"
            line.append(cell(text, None))
        else:
            line.append(cell(None, row.missing.get("drop")))
        lines.append(line)
    footnotes = [f"{number}: {reason}." for reason, number in notes.items()]
    if kernels:
        lengths = sorted({row.speed["prompt_tokens"] for row in rows if row.speed and row.speed["prompt_tokens"]})
        prompts = " or ".join(map(str, lengths)) or "unrecorded"
        footnotes.append(f"Prefill of {prompts} tokens, decoding at batch 1; kernel {kernels[0][0]} where not noted.")
    if usual:
        footnotes.append(
            f"Training counts what a run started from, scans and quantization; on {usual[0][0]} where not noted."
        )
    return lines, footnotes


def _score(score: dict | None) -> str | None:
    if score is None:
        return None
    low, high = score["interval"]
    return f"{100 * score['accuracy']:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def markdown_table(section: Section, rows: list[Row]) -> str:
    """The table of a section in Markdown, its title above and its footnotes below."""
    lines, footnotes = table(section, rows)
    out = [f"**{section.title}**", "", "| " + " | ".join(COLUMNS) + " |", "|---" + "|---:" * (len(COLUMNS) - 1) + "|"]
    for line in lines:
        cells = [text.replace("|", "\\|") + (f"<sup>{number}</sup>" if number else "") for text, number in line]
        out.append("| " + " | ".join(cells) + " |")
    out += ["", "<br>\n".join([INTERVALS, *footnotes])]
    return "\n".join(out) + "\n"


def plain_table(section: Section, rows: list[Row]) -> str:
    """The table of a section for a terminal."""
    lines, footnotes = table(section, rows)
    titles = ("method", "execution %", "prog. %", "GB", "% base", "prefill/s", "decode/s", "mem. GB", "min", "drop")
    grid = [titles] + [[text + (f"({number})" if number else "") for text, number in line] for line in lines]
    widths = [max(len(line[place]) for line in grid) for place in range(len(titles))]
    out = [section.title]
    for line in grid:
        cells = [line[0].ljust(widths[0])] + [text.rjust(w) for text, w in zip(line[1:], widths[1:], strict=True)]
        out.append("  ".join(cells))
    return "\n".join([*out, *footnotes])


def csv_rows(sections: list[Section]) -> list[dict]:
    """One row a run and section for results.csv, with the columns that keep unlike rows apart."""
    out = []
    for section in sections:
        for row in section.rows:
            speed, drop = row.speed or {}, row.drop or {}
            found = {
                "base_model": section.base_model, "data": section.source, "data_fingerprint": section.fingerprint,
                "target": section.target, "split": section.split, "questions": section.questions,
                "device": section.device, "hardware": section.hardware,
                "run": row.run, "kind": row.kind, "method": row.method, "units_left": row.units_left,
            }  # fmt: skip
            for name, score in (("execution_accuracy", row.execution), ("program_accuracy", row.program)):
                low, high = score["interval"] if score else (None, None)
                found |= {name: score and score["accuracy"], f"{name}_low": low, f"{name}_high": high}
            found |= {"size_gb": row.size_gb, "share_of_base": row.share_of_base, "on_frontier": row.on_frontier}
            for name in ("prompt_tokens", "prefill_tokens_per_s", "prefill_ratio", "decode_tokens_per_s",
                         "decode_ratio", "inference_memory_gb", "kernel", "label"):  # fmt: skip
                found[name] = speed.get(name)
            low, high = drop.get("interval", (None, None))
            found |= {
                "training_seconds": row.training_seconds, "trained_on": row.trained_on,
                "phase_1": section.reference, "drop": drop.get("difference"), "drop_low": low, "drop_high": high,
                "mcnemar_p": drop.get("mcnemar_p"),
            }  # fmt: skip
            out.append(found)
    return out


BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"


def replace_between_markers(text: str, content: str, name: str = "README.md") -> str:
    """``text`` with what stands between the results markers replaced; the markers stay, so it can be done again."""
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise UserError(f"{name} needs the lines {BEGIN} and {END}, once each and in this order, around its results")
    before, _, rest = text.partition(BEGIN)
    return f"{before}{BEGIN}\n{content.strip()}\n{END}{rest.partition(END)[2]}"
