"""Two recipes, each trained with several seeds: the mean accuracy of either, and the difference of the means.

Reads eval_<SPLIT>.json and predictions_<SPLIT>.jsonl of the runs. Each question counts by the share of a recipe's runs
that have it right. Two kinds of interval: where questions are resampled it is of these very runs; where seeds are too,
of the recipes, as far as two or three seeds can say (they say too little: such an interval is too narrow). Where the
runs of both, in their order, came from phase 1 of the same seeds, these stay paired.

    python benchmarks/seeds.py --RESULTS_DIR=results/published/finqa-smollm2-135m \\
        --ONE="['seed_0_gptq', 'seed_1_gptq']" --OTHER="['seed_0_longer_30_gptq', 'seed_1_longer_30_gptq']"
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

from fincompress.errors import UserError, run_script
from fincompress.report import rows
from fincompress.report.statistics import RESAMPLES, bootstrap_mean
from fincompress.report.tables import percent


def main() -> None:
    if not ONE or not OTHER:
        raise UserError("ONE and OTHER are lists of runs: name at least one run in each")
    evaluated = {row.run: row for row in rows.read_rows(RESULTS_DIR, [SPLIT])[0]}
    if missing := [run for run in ONE + OTHER if run not in evaluated]:
        raise UserError(f"{', '.join(missing)}: not evaluated on {SPLIT} in {RESULTS_DIR}/")
    asked = [evaluated[run] for run in ONE + OTHER]
    if len(set(map(rows.key, asked))) > 1:
        raise UserError("these runs were not asked the same questions in the same form")
    verdicts = {run: rows.read_predictions(evaluated[run]) for run in ONE + OTHER}
    if without := [run for run, right in verdicts.items() if right is None]:
        raise UserError(f"{', '.join(without)}: no predictions_{SPLIT}.jsonl, evaluate it again")
    questions = list(verdicts[ONE[0]])
    sides = [np.array([[verdicts[run][question] for question in questions] for run in runs]) for runs in (ONE, OTHER)]
    for name, runs, right in zip(("one", "other"), (ONE, OTHER), sides, strict=True):
        for run, share in zip(runs, right.mean(axis=1), strict=True):
            print(f"{name:<8}{run:<32}{100 * share:.1f}")
        print(f"{name:<8}{'mean':<32}{100 * right.mean():.1f}")
    apart = sides[0].mean(axis=0) - sides[1].mean(axis=0)
    for confidence in (0.95, 0.99):
        shown = percent(apart.mean(), bootstrap_mean(apart, confidence), "+")
        print(f"one - other, {len(questions)} questions, {confidence:.0%} interval: {shown}")
    if len(ONE) > 1 and len(OTHER) > 1:
        seeds = [[evaluated[run].seed[-1:] for run in runs] for runs in (ONE, OTHER)]
        paired = seeds[0] == seeds[1] and len(set(seeds[0])) > 1
        shown = percent(apart.mean(), np.quantile(resample(*sides, paired), (0.025, 0.975)), "+")
        print(f"one - other, questions and {'paired ' * paired}seeds, 95% interval: {shown}")


def resample(first: np.ndarray, second: np.ndarray, paired: bool) -> list[float]:
    """Differences of two recipes' means, of other questions and other seeds; arrays are (seeds, questions).

    Where ``paired``, both have the same seeds in a resample.
    """
    generator = np.random.default_rng(0)
    differences = []
    for _ in range(RESAMPLES):
        picked = generator.integers(first.shape[1], size=first.shape[1])
        seeds = generator.integers(len(first), size=len(first))
        others = seeds if paired else generator.integers(len(second), size=len(second))
        differences.append(first[seeds][:, picked].mean() - second[others][:, picked].mean())
    return differences


if __name__ == "__main__":
    run_script(main)
