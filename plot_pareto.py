"""The answer: results table, Pareto chart, verdict and report of every finished run, from what the runs left behind.

Reads results/<run>/ (settings.json, eval_<split>.json, predictions_<split>.jsonl, throughput_<device>.json,
train_metrics.json). Writes results.csv, verdict.md, report.html, pareto.png and .svg, loss_curves.png,
accuracy_by_steps.png to results/, and with README the results section of that file. Measures nothing; takes seconds.

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
PHASE_1: str | None = None  # run that drops are counted from; None: the QLoRA run of lowest calibration NLL
SHOWN_SIZES = [0.9, 0.8, 0.7, 0.6, 0.5]  # of SAPLING's checkpoints, tables show the nearest to these shares of the base
EQUAL_WITHIN: float = 0.03  # execution accuracy that may be lost and still be called equal, a share
# -----------------------------------------------------------------------------
configure(globals())

from pathlib import Path  # noqa: E402

from fincompress import comparison, report, runs, tables, verdict  # noqa: E402
from fincompress.errors import UserError, run_script  # noqa: E402


def main() -> None:
    check_settings()
    rows, left_out = comparison.read_rows(RESULTS_DIR, SPLITS)
    for line in left_out:
        print(f"left out: {line}")
    if not rows:
        raise UserError(f"no run in {RESULTS_DIR}/ is evaluated on {' or '.join(SPLITS)}: run evaluate.py first")
    sections = comparison.make_sections(rows, PHASE_1)
    if PHASE_1 and PHASE_1 not in [section.reference for section in sections]:
        raise UserError(
            f"PHASE_1 = {PHASE_1!r} is no evaluated run; there are {', '.join(sorted({r.run for r in rows}))}"
        )
    root = Path(RESULTS_DIR)
    figures = [report.figure_paths(section, root, main=i == 0) for i, section in enumerate(sections)]
    verdicts = [verdict.judge(section, EQUAL_WITHIN) + verdict.judge_pruning(section) for section in sections]
    readme = new_readme(sections, figures, verdicts)  # what can be wrong with it shows before anything is written
    for section, paths in zip(sections, figures, strict=True):
        report.draw(section, root, paths, SHOWN_SIZES)
    runs.write_csv(root / "results.csv", tables.csv_rows(sections))
    runs.write_text(root / "verdict.md", verdict.markdown(sections, verdicts, EQUAL_WITHIN))
    runs.write_text(root / "report.html", report.html(sections, figures, verdicts))
    if readme:
        runs.write_text(Path(README), readme)
    for section, found in zip(sections, verdicts, strict=True):
        print("\n" + tables.plain_table(section, tables.shown_rows(section, SHOWN_SIZES)))
        for one in found:
            print("\n" + one.summary.replace("**", ""))
    written = ["results.csv", "verdict.md", "report.html", *(path.name for paths in figures for path in paths.values())]
    print(f"\nwrote {', '.join(written)} in {root}/" + (f", and the results in {README}" if readme else ""))


def check_settings() -> None:
    if not SPLITS or not set(map(str, SPLITS)) <= {"dev", "test"}:
        raise UserError(f"SPLITS is a list of 'dev' and 'test', or one of them, not {SPLITS!r}")
    if any(not isinstance(size, (int, float)) or not 0 < size <= 1 for size in SHOWN_SIZES):
        raise UserError(f"SHOWN_SIZES are shares, above 0 and at most 1, not {SHOWN_SIZES!r}")
    if not 0 < EQUAL_WITHIN < 1:
        raise UserError(f"EQUAL_WITHIN is a share, above 0 and below 1, not {EQUAL_WITHIN}")


def new_readme(sections: list, figures: list, verdicts: list) -> str | None:
    """The README with new results, None where it stays as it is: a synthetic or partial run never goes there."""
    if not README:
        return None
    whole = [README_DATA is None or section.is_whole(README_DATA) for section in sections]
    chosen = [found for found, kept in zip(zip(sections, figures, verdicts, strict=True), whole, strict=True) if kept]
    if not chosen:
        print(f"{README} stays as it is: no run here on a whole split of {README_DATA}")
        return None
    if not Path(README).is_file():
        raise UserError(f"README = {README!r} is no file: name another, or None")
    content = report.readme_part(chosen, Path(README).parent, SHOWN_SIZES)
    return tables.replace_between_markers(Path(README).read_text(encoding="utf-8"), content, README)


if __name__ == "__main__":
    run_script(main)
