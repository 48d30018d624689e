"""Two recipes, each trained with several seeds: the mean accuracy of either, and the difference of the means.

Reads eval_<SPLIT>.json and predictions_<SPLIT>.jsonl of the runs. Each question counts by the share of a recipe's runs
that have it right, and questions are resampled: the interval covers the choice of questions for these very runs. How
far other seeds would lie is shown by the runs one by one.

    python benchmarks/seeds.py --RESULTS_DIR=results/published/finqa-smollm2-135m \\
        --ONE="['sapling_blocks_20_gptq', 'seed_1_20_gptq']" --OTHER="['longer_taught_60_gptq', 'seed_1_30_gptq']"
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fincompress.settings import configure

# -----------------------------------------------------------------------------
ONE: list[str] = []  # runs of one recipe, a seed each
OTHER: list[str] = []  # runs of the other
SPLIT: str = "dev"  # that all of them were evaluated on
RESULTS_DIR: str = "results"  # where the runs lie
# -----------------------------------------------------------------------------
configure(globals())

import numpy as np
from scipy import stats

from fincompress.errors import UserError, run_script
from fincompress.report import rows
from fincompress.report.statistics import RESAMPLES
from fincompress.report.tables import percent


def main() -> None:
    if not ONE or not OTHER:
        raise UserError("ONE and OTHER are lists of runs: name at least one run in each")
    evaluated = {row.run: row for row in rows.read_rows(RESULTS_DIR, [SPLIT])[0]}
    if missing := [run for run in ONE + OTHER if run not in evaluated]:
        raise UserError(f"{', '.join(missing)}: not evaluated on {SPLIT} in {RESULTS_DIR}/")
    if len({rows.key(evaluated[run]) for run in ONE + OTHER}) > 1:
        raise UserError("these runs were not asked the same questions in the same form")
    verdicts = {run: rows.read_verdicts(evaluated[run]) for run in ONE + OTHER}
    if without := [run for run, right in verdicts.items() if right is None]:
        raise UserError(f"{', '.join(without)}: no predictions_{SPLIT}.jsonl, evaluate it again")
    questions = list(verdicts[ONE[0]])
    means = []
    for name, runs in (("one", ONE), ("other", OTHER)):
        right = np.array([[verdicts[run][question] for question in questions] for run in runs])
        for run, share in zip(runs, right.mean(axis=1), strict=True):
            print(f"{name:<8}{run:<28}{100 * share:.1f}")
        means.append(right.mean(axis=0))
        print(f"{name:<8}{'mean':<28}{100 * right.mean():.1f}")
    apart = means[0] - means[1]
    for confidence in (0.95, 0.99):
        drawn = stats.bootstrap(
            (apart,), np.mean, n_resamples=RESAMPLES, confidence_level=confidence, method="percentile", rng=0
        )
        shown = percent(apart.mean(), drawn.confidence_interval, "+")
        print(f"one - other, {len(questions)} questions, {confidence:.0%} interval: {shown}")


if __name__ == "__main__":
    run_script(main)
