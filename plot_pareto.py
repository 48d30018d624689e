"""The answer: results table, verdict and charts of every evaluated run, from what the runs left behind.

Reads results/<run>/ (settings.json, eval_<split>.json, predictions_<split>.jsonl, throughput_<device>.json,
train_metrics.json, quantize_metrics.json) and the data run's report. Writes results.csv, verdict.md, pareto.png and
accuracy_by_steps.png to results/, and with README the results section of that file. Measures nothing; takes seconds.

    python plot_pareto.py
    python plot_pareto.py --RESULTS_DIR=results/published/finqa-smollm2-135m --README=README.md     the README's results
"""

from fincompress.settings import check_choice, configure

# -----------------------------------------------------------------------------
# Where
RESULTS_DIR: str = "results"  # every run has a folder in here; results/published counts only if named itself
README: str | None = None  # file to put results of a whole split of FinQA into, between its markers; None: none
# What
SPLITS: list[str] = ["dev", "test"]  # splits to report, never one that recipes are tuned on
EQUAL_WITHIN: float = 0.03  # execution accuracy that may be lost and still be called equal, a share
# -----------------------------------------------------------------------------
configure(globals())

import os
from pathlib import Path

from fincompress import runs
from fincompress.errors import UserError, run_script
from fincompress.finqa import examples
from fincompress.report import charts, rows, tables, verdict


def main() -> None:
    for split in SPLITS or [""]:
        check_choice("SPLITS", split, ("dev", "test"))
    evaluated, left_out = rows.read_rows(RESULTS_DIR, SPLITS)
    for line in left_out:
        print(f"left out: {line}")
    if not evaluated:
        raise UserError(f"no run in {RESULTS_DIR}/ is evaluated on {' or '.join(SPLITS)}: run evaluate.py first")
    root = Path(RESULTS_DIR)
    sections = rows.make_sections(evaluated)
    judged = [(section, verdict.judge(section, EQUAL_WITHIN)) for section in sections]
    readme = new_readme(judged)  # what can be wrong with it shows before anything is written
    for number, section in enumerate(sections, start=1):
        charts.pareto(root / figure("pareto", number), section.means, section.title)
        data = section.title.partition(";")[0]
        charts.accuracy_by_steps(root / figure("accuracy_by_steps", number), tables.headline_rows(section, 6), data)
    runs.write_csv(root / "results.csv", tables.csv_rows(sections))
    runs.write_text(root / "verdict.md", report(judged))
    if readme:
        runs.write_text(Path(README), readme)
    for section, pairs in judged:
        print(f"\n{section.title}\n\n{tables.results_table(section.means, tables.SHORT).plain()}")
        if pairs:
            print("\n" + verdict.table(pairs).plain())
        print("\n" + verdict.sentence(pairs))
    suffix = f", and the results in {README}" if readme else ""
    print(f"\nwrote results.csv, verdict.md and the figures that it shows in {root}/{suffix}")


def figure(name: str, number: int) -> str:
    """File of a figure of the first, second, ... section."""
    return f"{name}.png" if number == 1 else f"{name}-{number}.png"


def report(judged: list) -> str:
    """``verdict.md``: for each section the verdict, its table, the charts and the table of all runs."""
    question = "Does SAPLING beat quantization at equal size and at equal accuracy?"
    parts = ["# Verdict", f"{question} The rules are in `docs/comparing-runs.md`, the columns in `results/README.md`."]
    for number, (section, pairs) in enumerate(judged, start=1):
        parts += [f"## {section.title}", f"**{verdict.sentence(pairs)}**"]
        parts += [verdict.table(pairs).markdown(), verdict.LEGEND] if pairs else []
        parts += [f"![{name}]({figure(name, number)})" for name in ("pareto", "accuracy_by_steps")]
        means = [f"- {row.title}: {', '.join(seed.run for seed in row.seeds)}" for row in section.means if row.seeds]
        parts += ["### Means over seeds", "\n".join(means)] if means else []
        parts += ["### All runs", tables.results_table(section.rows, tables.FULL).markdown(), tables.LEGEND]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def new_readme(judged: list) -> str | None:
    """The README with new results, None where it stays as it is: a synthetic or partial run never goes there."""
    if not README:
        return None
    wholes = [
        number
        for number, (section, _) in enumerate(judged, start=1)
        if section.rows[0].data == "FinQA" and section.rows[0].questions == examples.RELEASE[section.rows[0].split]
    ]
    if not wholes:
        print(f"{README} stays as it is: no run here on a whole split of FinQA")
        return None
    section, pairs = judged[wholes[0] - 1]
    chart = os.path.relpath(Path(RESULTS_DIR, figure("pareto", wholes[0])).resolve(), Path(README).resolve().parent)
    parts = [] if chart.startswith("..") else [f"![Accuracy against size, time and memory]({Path(chart).as_posix()})"]
    table = tables.results_table(tables.headline_rows(section, 8), tables.SHORT).markdown()
    said = "Brackets: 95 % intervals in the table, 99 % or wider below; in parentheses each seed."
    parts += [table, f"{section.title}. {said}"]
    parts.append("\n".join(f"- {line}" for line in verdict.answers(pairs)))
    content = "\n\n".join(part.strip() for part in parts)
    try:
        before = Path(README).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UserError(f"README = {README!r} cannot be read as text in UTF-8: {error}") from None
    return tables.replace_between_markers(before, content, README)


if __name__ == "__main__":
    run_script(main)
