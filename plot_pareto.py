"""The answer: one table, charts of accuracy against size, speed and memory, and which model to use.

Reads what every run left in results/<run>/ (settings.json, eval_<split>.json, predictions_<split>.jsonl,
throughput_<device>.json). Writes results.csv, results.md, pareto.png, speed.png and memory.png to results/.
Measures nothing; takes seconds.

    python plot_pareto.py                                                       every run in results/
    python plot_pareto.py --COMPARE="['sapling_gptq/20', 'gptq_4bit']"          and a difference with its intervals
    python plot_pareto.py --RESULTS_DIR=results/published/finqa-smollm2-135m    the published record
"""

from fincompress.settings import check_choice, configure

# -----------------------------------------------------------------------------
RESULTS_DIR: str = "results"  # every run has a folder in here; results/published counts only if named itself
SPLITS: list[str] = ["dev", "test"]  # splits to report, never one that recipes are tuned on
RUNS: list[str] | None = None  # runs to show, in this order; * stands for the seeds of a recipe, averaged; None: all
COMPARE: list[str] | None = None  # two runs, or recipes with *: their difference in accuracy, with its intervals
EQUAL_WITHIN: float = 0.02  # execution accuracy that advice may give away for size or speed, a share
README: str | None = None  # file to put the table and the chart into, between its markers; None: none
# -----------------------------------------------------------------------------
configure(globals())

import os
from pathlib import Path

from fincompress import runs
from fincompress.errors import UserError, run_script
from fincompress.report import charts, table
from fincompress.report.advice import advice
from fincompress.report.compare import compare, interval, sentence, verdicts

CHARTS = {  # file, column and axis of each
    "pareto": ("size_mb", "size of the checkpoint (MB)"),
    "speed": ("decode_tokens_per_s", "throughput (tokens/s, one answer at a time)"),
    "memory": ("inference_memory_gb", "memory (GB)"),
}


def main() -> None:
    for split in SPLITS:
        check_choice("SPLITS", split, ("dev", "test"))
    if COMPARE and len(COMPARE) != 2:
        raise UserError(f"COMPARE takes two runs or recipes, not {len(COMPARE)}")
    evaluated = table.read(RESULTS_DIR, SPLITS)
    sections = [(shared, rows) for shared, rows in evaluated.groupby(table.SECTION, dropna=False, sort=True)]
    if RUNS or COMPARE or README:
        sections = [section for section in sections if has_all(section[1])][:1]
    if not sections:
        raise UserError("no data set and split has all the runs that RUNS and COMPARE name: evaluate them alike")
    root, report = Path(RESULTS_DIR), ["# Results"]
    for number, (shared, rows) in enumerate(sections, start=1):
        shown, names = choose_rows(rows)
        files = draw(root, shown, "" if number == 1 else f"-{number}")
        parts = [table.markdown(shown, names), *(f"![{file}]({file})" for file in files)]
        said = advice(shown, EQUAL_WITHIN)
        if COMPARE:
            said.append(sentence(*COMPARE, compare(RESULTS_DIR, rows, *COMPARE)))
        report += [f"## {table.title(shared)}", *parts, "\n".join(f"- {line}" for line in said)]
        print(f"\n{table.title(shared)}\n\n{parts[0]}\n\n" + "\n".join(said))
        if README and not files:
            raise UserError("there is no chart for README of the untuned model alone: evaluate a trained one first")
        if README:
            write_readme(parts[0], root / files[0])
    runs.write_csv(root / "results.csv", evaluated.to_dict("records"))
    runs.write_text(root / "results.md", "\n\n".join(report) + "\n")
    also = f", and {README}" if README else ""
    print(f"\nwrote results.csv, results.md and the charts that it shows to {root}/{also}")


def has_all(rows) -> bool:
    """Whether a section has a run for each pattern of RUNS and COMPARE."""
    try:
        return all(len(table.select(rows, pattern)) for pattern in [*(RUNS or []), *(COMPARE or [])])
    except UserError:
        return False


def choose_rows(rows) -> tuple:
    """The rows to show and their names: all runs, or the recipes of RUNS with seeds averaged."""
    if not RUNS:
        shown = rows
        names = [f"{row.method} (`{row.run}`)" for row in rows.itertuples()]
    else:
        shown = table.averaged(rows, RUNS)
        names = table.short_names(shown)
        for place, row in shown.iterrows():  # of a mean over seeds: what other questions would change
            right = [verdicts(RESULTS_DIR, run, row["split"]) for run in row["runs"]]
            low, high = interval([sum(one[question] for one in right) / len(right) for question in right[0]])
            shown.loc[place, ["execution_accuracy_low", "execution_accuracy_high"]] = low, high
    return shown.assign(label=table.labels(shown), size_mb=1000 * shown["size_gb"]), names


def draw(root: Path, rows, suffix: str) -> list[str]:
    """Write the charts of a section; returns their file names."""
    files = []
    for name, (column, axis) in CHARTS.items():
        if rows.loc[rows["series"].isin(charts.SERIES), column].notna().any():  # not of the untuned model alone
            files.append(f"{name}{suffix}.png")
            charts.scatter(root / files[-1], rows, column, axis, "label")
    return files


def write_readme(markdown: str, chart: Path) -> None:
    """Put the table and the chart between the markers of README."""
    try:
        before = Path(README).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UserError(f"README = {README!r} cannot be read as text in UTF-8: {error}") from None
    place = Path(os.path.relpath(chart.resolve(), Path(README).resolve().parent)).as_posix()
    content = f"![Accuracy against size]({place})\n\n{markdown}"
    runs.write_text(Path(README), table.replace_between_markers(before, content, README))


if __name__ == "__main__":
    run_script(main)
