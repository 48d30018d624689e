"""Figures of a section, the results part of the README, and the report: one HTML file that needs nothing else."""

from __future__ import annotations

import base64
import os
import re
from collections import Counter
from html import escape
from pathlib import Path

import pandas as pd

from fincompress import charts, comparison, tables
from fincompress.comparison import Row, Section
from fincompress.verdict import Verdict

CAPTIONS = {
    "pareto": "Accuracy against size and against decode throughput.",
    "accuracy_by_steps": "Execution accuracy by steps of the gold program: does compression lose the hard questions?",
    "loss_curves": "Training loss of every run.",
}
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; color: #111; }
table { border-collapse: collapse; margin: 1rem 0; font-size: 13px; display: block; overflow-x: auto; }
th, td { border-bottom: 1px solid #ccc; padding: .3rem .6rem; text-align: right; vertical-align: top; }
th:first-child, td:first-child { text-align: left; }
img { max-width: 100%; } figure { margin: 1.5rem 0; } figcaption, .notes { font-size: 13px; color: #444; }
details { margin: .4rem 0; } code { background: #f2f2f2; padding: 0 .2em; }
"""


def figure_paths(section: Section, root: Path, main: bool) -> dict[str, Path]:
    """Where the figures of a section go: ``pareto.png`` and so on for the main one, the others with their section."""
    if section.split is None:  # nothing was evaluated, so there is nothing to draw
        return {}
    return {name: root / f"{name}{'' if main else '-' + section.slug}.png" for name in CAPTIONS}


def draw(section: Section, root: Path, paths: dict[str, Path], sizes: list[float]) -> None:
    """Draw the figures of a section; the Pareto chart also as ``.svg``."""
    if not paths:
        return
    charts.pareto(paths["pareto"], points(section.rows), section.title)
    shown = [row for row in tables.shown_rows(section, sizes) if row.execution]
    methods = [{"label": row.method, "steps": row.steps} for row in shown]
    data = section.title.partition(";")[0]
    charts.accuracy_by_steps(paths["accuracy_by_steps"], methods, data)
    charts.loss_curves(paths["loss_curves"], curves(section, root), data.partition(", ")[0])


def points(rows: list[Row]) -> list[dict]:
    """Rows as ``charts.pareto`` takes them."""
    found = []
    families = Counter(row.family for row in rows if row.execution)
    for row in rows:
        path = row.series if families[row.family] > 1 else None  # one checkpoint alone makes no path
        accuracy = row.execution and row.execution["accuracy"]
        low, high = row.execution["interval"] if row.execution else (None, None)
        # Of another form of the model, 4-bit or offloaded for want of room, it does not belong to this accuracy.
        speed = row.speed["decode_tokens_per_s"] if row.speed and not row.speed["label"] else None
        found.append(
            {
                "kind": row.kind, "label": row.method, "series": path, "number": row.units_left,
                "accuracy": accuracy, "low": low, "high": high, "share": row.share_of_base,
                "decode": speed, "share_frontier": row.on_frontier,
            }
        )  # fmt: skip
    flags = comparison.frontier([(None if p["decode"] is None else -p["decode"], p["accuracy"]) for p in found])
    return [point | {"decode_frontier": flag} for point, flag in zip(found, flags, strict=True)]


def curves(section: Section, root: Path) -> list[dict]:
    """The loss curves of the section's runs, one for all checkpoints of a run."""
    folders: dict[Path, Row] = {}
    for row in section.rows:
        for folder in (row.directory, row.directory.parent):
            if (folder / "loss_curve.csv").exists():
                folders.setdefault(folder, row)
                break
    found = []
    for folder, row in folders.items():
        try:
            frame = pd.read_csv(folder / "loss_curve.csv")
        except (pd.errors.EmptyDataError, pd.errors.ParserError):  # of a run that trained nothing, or damaged
            continue
        if len(frame) and {"step", "loss"} <= set(frame):
            label = row.series or row.method
            found.append(
                {"label": label, "kind": row.kind, "steps": list(frame["step"]), "losses": list(frame["loss"])}
            )
    return found


def readme_part(chosen: list[tuple[Section, dict, list[Verdict]]], folder: Path, sizes: list[float]) -> str:
    """What stands between the README's markers: for each section table, chart and the verdicts in a sentence each."""
    parts = []
    for section, paths, verdicts in chosen:
        parts.append(tables.markdown_table(section, tables.shown_rows(section, sizes)))
        if paths:
            link = Path(os.path.relpath(paths["pareto"].resolve(), folder.resolve())).as_posix()
            if not link.startswith(".."):  # results that lie elsewhere cannot be linked to
                parts.append(f"![{CAPTIONS['pareto']}]({link})\n")
        parts += [one.summary + "\n" for one in verdicts]
    return "\n".join(parts)


def html(sections: list[Section], figures: list[dict], verdicts: list[list[Verdict]]) -> str:
    """``report.html``: verdicts, table, figures and the settings of each run, section by section."""
    body = ["<h1>Financial LLM optimization via structural compression: report</h1>"]
    for section, paths, found in zip(sections, figures, verdicts, strict=True):
        body.append(f"<h2>{escape(section.title)}</h2>")
        body += [paragraph(text) for one in found for text in (one.summary, *one.details)]
        body.append(html_table(section, section.rows))
        for name, path in paths.items():
            body.append(figure(path, CAPTIONS[name]))
        seen = set()
        for row in section.rows:
            importance = row.directory.parent / "layer_importance.png"
            if row.family and row.family not in seen and importance.exists():
                seen.add(row.family)
                body.append(figure(importance, f"Layer importance over cycles, {row.series}."))
        body.append("<h3>Settings of each run</h3>")
        body += [settings_table(row) for row in section.rows]
    title = "<title>Structural compression report</title>"
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width">{title}<style>{STYLE}</style>'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n' + "\n".join(body) + "\n</body></html>\n"


def html_table(section: Section, rows: list[Row]) -> str:
    """The table of a section as HTML, footnotes below."""
    lines, footnotes = tables.table(section, rows)
    out = ["<table><thead><tr>", *(f"<th>{escape(name)}</th>" for name in tables.COLUMNS), "</tr></thead><tbody>"]
    for line in lines:
        cells = [f"<td>{escape(text)}" + (f"<sup>{n}</sup>" if n else "") + "</td>" for text, n in line]
        out.append(f"<tr>{''.join(cells)}</tr>")
    notes = "<br>".join(escape(note) for note in [tables.INTERVALS, *footnotes])
    return "".join(out) + f'</tbody></table>\n<p class="notes">{notes}</p>'


def figure(path: Path, caption: str) -> str:
    """A figure with the image inside the file."""
    data = base64.b64encode(path.read_bytes()).decode()
    shown = escape(caption)
    return f'<figure><img alt="{shown}" src="data:image/png;base64,{data}"><figcaption>{shown}</figcaption></figure>'


def settings_table(row: Row) -> str:
    """The constants of a run, folded away."""
    cells = "".join(
        f"<tr><td>{escape(str(name))}</td><td>{escape(str(value))}</td></tr>" for name, value in row.settings.items()
    )
    summary = f"<summary>{escape(row.method)}: <code>{escape(row.run)}</code></summary>"
    return f"<details>{summary}<p><code>{escape(row.command)}</code></p><table>{cells}</table></details>"


def paragraph(text: str) -> str:
    """A paragraph of a verdict's Markdown, and the list at its end where it has one, as HTML."""
    first, *points = text.split("\n- ")
    items = "".join(f"<li>{inline(point)}</li>" for point in points)
    return f"<p>{inline(first.strip())}</p>" + (f"<ul>{items}</ul>" if items else "")


def inline(text: str) -> str:
    """Bold and code of a verdict's Markdown as HTML; everything else is escaped."""
    text = re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", escape(text, quote=False))
    return re.sub(r"`(.+?)`", r"<code>\1</code>", text)
