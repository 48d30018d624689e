"""benchmarks/seeds.py on made-up verdicts: means over seeds, their paired difference, and what cannot be compared."""

import made_up_runs as made
import numpy as np
import pytest
from scripts import run_in_process

N = np.arange(400)


@pytest.fixture
def two(tmp_path):
    for run, right in {"a_0": N < 200, "a_1": N >= 200, "b": N < 160, "other": N[:50] < 20}.items():
        made.settings(tmp_path / run, "train_qlora_4bit.py")
        made.evaluation(tmp_path, run, right)
    return tmp_path


def seeds(folder, first, second):
    return run_in_process("benchmarks/seeds.py", f"--RESULTS_DIR={folder}", f"--ONE={first}", f"--OTHER={second}")


def test_a_question_counts_by_the_share_of_seeds_that_have_it_right(two):
    done = seeds(two, ["a_0", "a_1"], ["b"])
    assert done.returncode == 0, done.stderr
    means = [line.split()[-1] for line in done.stdout.splitlines() if "mean" in line]
    assert means == ["50.0", "40.0"]  # every question is right once: by chance only the other one varies
    wide = 100 * 1.96 * (0.4 * 0.6 / 400) ** 0.5
    (line,) = [line for line in done.stdout.splitlines() if "95% interval" in line]
    low, high = (float(number) for number in line.partition("[")[2].rstrip("]").split(","))
    assert "+10.0 [" in line and (low, high) == pytest.approx((10 - wide, 10 + wide), abs=0.4)


def test_seeds_are_resampled_too_where_each_recipe_has_some(two):
    for run, right in {"even_0": N < 160, "even_1": N < 160, "uneven_0": N < 240, "uneven_1": N < 80}.items():
        made.settings(two / run, "train_qlora_4bit.py")
        made.evaluation(two, run, right)
    widths = []
    for runs in (["even_0", "even_1"], ["uneven_0", "uneven_1"]):
        printed = seeds(two, runs, ["a_0", "a_1"]).stdout.splitlines()
        (line,) = [line for line in printed if "questions and seeds" in line]
        low, high = (float(number) for number in line.partition("[")[2].rstrip("]").split(","))
        assert low < -10 < high
        widths.append(high - low)
    assert widths[1] > widths[0] + 20  # of two seeds 40 points apart the mean may be that of either
    assert "questions and seeds" not in seeds(two, ["a_0", "a_1"], ["b"]).stdout


def test_seeds_of_one_phase_1_stay_paired(two):
    """Where a good seed of phase 1 makes both good, their difference is surer than either."""
    for seed, right in enumerate((N < 240, N < 80)):
        made.settings(two / f"q_{seed}", "train_qlora_4bit.py", {"SEED": seed})
        for run, added in (("x", 0), ("y", 20)):
            made.settings(two / f"{run}_{seed}", "sapling_train.py", {"SEED": seed, "START_FROM": f"q_{seed}"})
            made.evaluation(two, f"{run}_{seed}", right | ((added + 300 > N) & (N >= 300)))
    widths = {}
    for name, other in (("paired seeds", ["x_0", "x_1"]), ("seeds", ["x_1", "x_0"])):
        printed = seeds(two, ["y_0", "y_1"], other).stdout.splitlines()
        (line,) = [line for line in printed if f"questions and {name}" in line]
        low, high = (float(number) for number in line.partition("[")[2].rstrip("]").split(","))
        widths[name] = high - low
    assert widths["seeds"] > widths["paired seeds"] + 20


@pytest.mark.parametrize(
    ("first", "second", "says"),
    [
        ([], ["b"], "ONE and OTHER are lists of runs"),
        (["a_0"], ["nothing"], "nothing: not evaluated on dev"),
        (["a_0"], ["other"], "not asked the same questions"),
    ],
)
def test_what_cannot_be_compared_is_one_line(two, first, second, says):
    done = seeds(two, first, second)
    assert done.returncode == 2 and says in done.stderr and done.stderr.count("\n") == 1


def test_a_run_without_predictions_is_named(two):
    (two / "b" / "predictions_dev.jsonl").unlink()
    done = seeds(two, ["a_0"], ["b"])
    assert done.returncode == 2 and "b: no predictions_dev.jsonl" in done.stderr
