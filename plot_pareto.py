"""The answer: results table, verdict and charts of every evaluated run, from what the runs left behind.

Reads results/<run>/ (settings.json, eval_<split>.json, predictions_<split>.jsonl, throughput_<device>.json,
train_metrics.json). Writes results.csv, verdict.md, pareto.png and .svg, loss_curves.png and accuracy_by_steps.png to
results/, and with README the results section of that file. Measures nothing; takes seconds.

    python plot_pareto.py
    python plot_pareto.py --RESULTS_DIR=results/published/finqa-smollm2-135m --README=README.md     the README's results
"""

from fincompress.settings import configure

# -----------------------------------------------------------------------------
# Where
RESULTS_DIR = "results"  # every run has a folder in here; results/published counts only if named itself
README: str | None = None  # file whose part between the results markers is replaced; None: none
README_DATA: str | None = "FinQA"  # only sections of this data set, on the whole split, go there; None: all
# What
SPLITS = ["dev", "test"]  # splits to report, never one that recipes are tuned on
PHASE_1: str | None = None  # run that lost accuracy is counted from; None: the QLoRA run of lowest calibration NLL
EQUAL_WITHIN: float = 0.03  # execution accuracy that may be lost and still be called equal, a share
# -----------------------------------------------------------------------------
configure(globals())

import os  # noqa: E402
from pathlib import Path  # noqa: E402

import pandas as pd  # noqa: E402

from fincompress import runs  # noqa: E402
from fincompress.errors import UserError, run_script  # noqa: E402
from fincompress.report import charts, rows, tables, verdict  # noqa: E402

FIGURES = ("pareto", "accuracy_by_steps", "loss_curves")


def main() -> None:
    check_settings()
    found, left_out = rows.read_rows(RESULTS_DIR, SPLITS)
    for line in left_out:
        print(f"left out: {line}")
    if not found:
        raise UserError(f"no run in {RESULTS_DIR}/ is evaluated on {' or '.join(SPLITS)}: run evaluate.py first")
    sections = rows.make_sections(found, PHASE_1)
    if PHASE_1 and PHASE_1 not in [section.reference for section in sections]:
        there = ", ".join(sorted({row.run for row in found}))
        raise UserError(f"PHASE_1 = {PHASE_1!r} is no evaluated run; there are {there}")
    root = Path(RESULTS_DIR)
    judged = [(section, verdict.judge(section, EQUAL_WITHIN)) for section in sections]
    names = [{name: f"{name}{f'-{section.slug}' if i else ''}.png" for name in FIGURES}
             for i, section in enumerate(sections)]  # fmt: skip
    readme = new_readme(judged, names)  # what can be wrong with it shows before anything is written
    for section, files in zip(sections, names, strict=True):
        data = section.title.partition(";")[0]
        charts.pareto(root / files["pareto"], section.rows, section.title)
        charts.accuracy_by_steps(root / files["accuracy_by_steps"], tables.headline_rows(section, 6), data)
        charts.loss_curves(root / files["loss_curves"], section.rows, curves(section), data)
    runs.write_csv(root / "results.csv", tables.csv_rows(sections))
    runs.write_text(root / "verdict.md", report(judged, names))
    if readme:
        runs.write_text(Path(README), readme)
    for section, pairs in judged:
        print(f"\n{section.title}\n\n{tables.results_table(section.rows, tables.SHORT).plain()}")
        if pairs:
            print("\n" + verdict.table(pairs).plain())
        print("\n" + verdict.sentence(section, pairs))
    written = ["results.csv", "verdict.md", *(name for files in names for name in files.values())]
    print(f"\nwrote {', '.join(written)} in {root}/" + (f", and the results in {README}" if readme else ""))


def check_settings() -> None:
    if not SPLITS or not set(map(str, SPLITS)) <= {"dev", "test"}:
        raise UserError(f"SPLITS is a list of 'dev' and 'test', or one of them, not {SPLITS!r}")
    if not 0 < EQUAL_WITHIN < 1:
        raise UserError(f"EQUAL_WITHIN is a share, above 0 and below 1, not {EQUAL_WITHIN}")


def curves(section: rows.Section) -> dict[str, list[dict]]:
    """Rows of loss_curve.csv by label, one curve for all checkpoints of a run; runs without a curve are left out."""
    found: dict[str, list[dict]] = {}
    for row in section.rows:
        for path in (row.directory / "loss_curve.csv", row.directory.parent / "loss_curve.csv"):
            if row.label not in found and path.exists() and row.kind != "merged":
                frame = pd.read_csv(path) if path.stat().st_size > 1 else pd.DataFrame()
                if len(frame):
                    found[row.label] = frame.to_dict("records")
    return found


def report(judged: list, names: list[dict[str, str]]) -> str:
    """``verdict.md``: for each section the verdict, its table, the charts and the table of all runs."""
    question = "Does SAPLING beat quantization at equal size and at equal accuracy?"
    parts = ["# Verdict", f"{question} The rules are in `docs/comparing-runs.md`, the columns in `results/README.md`."]
    for (section, pairs), files in zip(judged, names, strict=True):
        parts += [f"## {section.title}", f"**{verdict.sentence(section, pairs)}**"]
        parts += [verdict.table(pairs).markdown(), verdict.LEGEND] if pairs else []
        parts += [f"![{name}]({file})" for name, file in files.items()]
        parts += ["### All runs", tables.results_table(section.rows, tables.FULL).markdown(), tables.LEGEND]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def new_readme(judged: list, names: list[dict[str, str]]) -> str | None:
    """The README with new results, None where it stays as it is: a synthetic or partial run never goes there."""
    if not README:
        return None
    whole = [README_DATA is None or section.is_whole(README_DATA) for section, _ in judged]
    chosen = whole.index(True) if True in whole else None
    if chosen is None:
        print(f"{README} stays as it is: no run here on a whole split of {README_DATA}")
        return None
    if not Path(README).is_file():
        raise UserError(f"README = {README!r} is no file: name another, or None")
    section, pairs = judged[chosen]
    chart = os.path.relpath(Path(RESULTS_DIR, names[chosen]["pareto"]).resolve(), Path(README).resolve().parent)
    parts = [] if chart.startswith("..") else [f"![Accuracy against size, time and memory]({Path(chart).as_posix()})"]
    table = tables.results_table(tables.headline_rows(section, 8), tables.SHORT).markdown()
    parts += [table, f"{section.title}. {tables.LEGEND}"]
    parts.append("\n".join(f"- {line}" for line in verdict.answers(section, pairs)))
    content = "\n\n".join(part.strip() for part in parts)
    return tables.replace_between_markers(Path(README).read_text(encoding="utf-8"), content, README)


if __name__ == "__main__":
    run_script(main)
