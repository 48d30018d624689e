"""The table, the comparison, the charts and the advice, on runs made by hand whose truth is known."""

import made_up_runs as made
import numpy as np
import pandas as pd
import pytest
from scipy import stats

from fincompress import runs
from fincompress.errors import UserError
from fincompress.report import charts, compare, table
from fincompress.report.advice import advice


@pytest.fixture
def root(tmp_path):
    """Three seeds of a fine-tuned model, of it in 4 bits and of it pruned; the seed 0 of each is measured."""
    for seed in range(3):
        fine_tuned = {"run": f"seed_{seed}_qlora", "step": "QLoRA fine-tuned", "tokens": 100, "seconds": 1.0}
        made.model(tmp_path, f"seed_{seed}_qlora/merged", "QLoRA fine-tuned", [], 0.42 + 0.01 * seed, 1.0, seed)
        made.model(tmp_path, f"seed_{seed}_gptq", "GPTQ 4-bit", [fine_tuned], 0.41 + 0.01 * seed, 0.43, seed)
        made.model(tmp_path, f"seed_{seed}_layers_15/15", "SAPLING, 15 of 30 layers", [fine_tuned], 0.3, 0.6, seed)
    made.throughput(tmp_path, "seed_0_gptq", 57.0)
    made.throughput(tmp_path, "seed_0_layers_15/15", 61.0)
    return tmp_path


def test_the_seeds_of_a_recipe_are_one_row_with_their_mean_and_the_speed_that_was_measured(root):
    rows = table.read(str(root), ["dev"])
    assert len(rows) == 9
    mean = table.averaged(rows, ["seed_*_gptq"]).iloc[0]
    alone = rows[rows["run"].str.endswith("_gptq")]["execution_accuracy"]
    assert mean["execution_accuracy"] == pytest.approx(alone.mean()) and mean["decode_tokens_per_s"] == pytest.approx(
        rows.set_index("run")["decode_tokens_per_s"]["seed_0_gptq"]
    )
    assert mean["training_tokens"] == 100  # of the run that it came from
    with pytest.raises(UserError, match=r"no evaluated run is named 'seed_\*_awq'"):
        table.averaged(rows, ["seed_*_awq"])


def test_models_are_named_by_what_was_done_to_them_and_never_by_their_folder(root):
    rows = table.averaged(table.read(str(root), ["dev"]), ["seed_*_qlora/merged", "seed_*_gptq", "seed_*_layers_15/15"])
    assert table.short_names(rows) == [
        "QLoRA fine-tuned, 16-bit", "+ GPTQ 4-bit", "+ SAPLING, 15 of 30 layers (50 % drop)"
    ]  # fmt: skip
    assert rows["series"].tolist() == ["fine-tuned", "+ GPTQ", "SAPLING"]
    assert table.method(["QLoRA fine-tuned, first pass", "QLoRA fine-tuned"], "nf4").endswith(
        "(adapter on its 4-bit base)"
    )
    assert table.method(["A", "SAPLING, 20 of 30 layers", "SAPLING, 11 of 30 layers"], "auto") == (
        "A + SAPLING, 11 of 30 layers"
    )


def test_data_sets_splits_and_devices_stay_apart(root):
    made.model(root, "synthetic", "untuned", [], 0.1, 1.0, 0, data={"source": "synthetic", "fingerprint": "f1"})
    made.evaluation(root, "seed_0_gptq", [True, False], split="test")
    made.throughput(root, "seed_0_gptq", 500.0, device="cuda")
    sections = table.read(str(root), ["dev", "test"]).groupby(table.SECTION, dropna=False)
    found = {(shared[1], shared[3], shared[5]): len(rows) for shared, rows in sections}
    assert found[("FinQA", "dev", "cpu")] == found[("FinQA", "dev", "cuda")] + 1 == 9
    assert found[("FinQA", "test", "cuda")] == 1 and found[("synthetic", "dev", "cpu")] == 1


@pytest.mark.parametrize("damage", ["{", "[]", '{"run": "x"}'])
def test_a_damaged_record_is_left_out_and_named_and_the_others_stay(root, capsys, damage):
    (root / "seed_0_gptq" / "eval_dev.json").write_text(damage)
    assert len(table.read(str(root), ["dev"])) == 8
    assert "left out: " in (said := capsys.readouterr().err) and "seed_0_gptq/eval_dev.json" in said


def test_a_split_without_answers_is_no_row(root):
    path = root / "seed_0_gptq" / "eval_dev.json"
    runs.write_json(path, runs.read_json(path) | {"execution_accuracy": None, "program_accuracy": None})
    assert len(table.read(str(root), ["dev"])) == 8


def test_nothing_evaluated_is_one_line(tmp_path):
    with pytest.raises(UserError, match="is evaluated on dev: run evaluate.py first"):
        table.read(str(tmp_path), ["dev"])


# --- comparison -------------------------------------------------------------------------------------------------------


def test_a_difference_has_the_interval_of_its_questions_as_its_standard_error_says(root):
    rows = table.read(str(root), ["dev"])
    found = compare.compare(str(root), rows, "seed_0_qlora/merged", "seed_0_layers_15/15")
    right = [compare.verdicts(str(root), run, "dev") for run in ("seed_0_qlora/merged", "seed_0_layers_15/15")]
    apart = np.array([float(right[0][question]) - float(right[1][question]) for question in right[0]])
    assert found["difference"] == pytest.approx(apart.mean()) and found["seeds"] is None
    normal = stats.norm.interval(0.95, apart.mean(), stats.sem(apart))
    assert found["questions"] == pytest.approx(normal, abs=0.005)


def test_seeds_make_an_interval_wider_and_only_shared_ones_are_compared(root):
    rows = table.read(str(root), ["dev"])
    found = compare.compare(str(root), rows, "seed_*_qlora/merged", "seed_*_layers_15/15")
    assert found["of_seeds"] == [3, 3]
    widths = [high - low for low, high in (found["questions"], found["seeds"])]
    assert widths[1] > widths[0]
    without = rows[rows["run"] != "seed_2_layers_15/15"]
    assert compare.compare(str(root), without, "seed_*_qlora/merged", "seed_*_layers_15/15")["of_seeds"] == [2, 2]


def test_equal_predictions_differ_by_nothing_and_other_questions_are_refused(root):
    rows = table.read(str(root), ["dev"])
    assert compare.compare(str(root), rows, "seed_0_gptq", "seed_0_gptq")["questions"] == (0.0, 0.0)
    made.evaluation(root, "seed_0_gptq", [True, False])
    with pytest.raises(UserError, match="were not asked the same questions"):
        compare.compare(str(root), rows, "seed_0_gptq", "seed_1_gptq")
    (root / "seed_0_gptq" / "predictions_dev.jsonl").write_text('{"id": 1')
    with pytest.raises(UserError, match="damaged"):
        compare.compare(str(root), rows, "seed_0_gptq", "seed_1_gptq")


# --- advice, README, charts -------------------------------------------------------------------------------------------


def test_advice_names_the_best_the_smallest_and_the_fastest_that_are_about_as_accurate():
    rows = pd.DataFrame(
        [
            ("best", 0.42, 0.27, 36.0),
            ("small", 0.405, 0.11, 57.0),
            ("fast", 0.40, 0.2, 70.0),
            ("bad", 0.2, 0.01, 900.0),
        ],
        columns=["run", "execution_accuracy", "size_gb", "decode_tokens_per_s"],
    )
    rows = rows.assign(method="m", execution_accuracy_low=0.38, execution_accuracy_high=0.44)
    lines = advice(rows, 0.02)
    named = [line.partition("(")[2].partition(")")[0] for line in lines[:3]]
    assert named == ["best", "small", "fast"] and "3 points" in lines[3]
    assert "(small)" in advice(rows, 0.016)[2] and len(advice(rows.assign(decode_tokens_per_s=np.nan), 0.02)) == 3


def test_the_part_of_a_readme_between_its_markers_is_replaced_and_nothing_else():
    text = f"above\n{table.BEGIN}\nold\n{table.END}\nbelow"
    new = table.replace_between_markers(text, "new", "README.md")
    assert new == f"above\n{table.BEGIN}\nnew\n{table.END}\nbelow"
    assert table.replace_between_markers(new, "new", "README.md") == new
    with pytest.raises(UserError, match="README.md needs the lines"):
        table.replace_between_markers("nothing", "new", "README.md")


def test_points_that_no_other_beats_are_the_frontier():
    costs, gains = [1.0, 2.0, 3.0, np.nan, 2.0], [0.1, 0.3, 0.2, 0.9, 0.3]
    assert charts.frontier(costs, gains) == [True, True, False, False, True]


def test_a_chart_is_a_picture_also_of_one_model_and_of_a_speed(root, tmp_path):
    rows = table.read(str(root), ["dev"]).assign(label="20 of 30 layers")
    for name, column, axis, part in (
        ("a", "size_gb", "size (GB)", rows), ("b", "decode_tokens_per_s", "speed (tokens/s)", rows),
        ("c", "size_gb", "size (GB)", rows[:1]),
    ):  # fmt: skip
        charts.scatter(tmp_path / f"{name}.png", part, column, axis, "label")
        assert made.drawn(tmp_path / f"{name}.png")


def test_loss_curves_and_the_importance_of_layers_are_pictures(tmp_path):
    curve = [{"step": step, "loss": 5.0 / step, "units_left": 30 - step // 4} for step in range(1, 9)]
    charts.loss_curve(tmp_path / "loss.png", curve, [{"step": 8, "calibration_nll": 0.7}])
    scores = [
        {"scan": scan, "purpose": "drop", "unit": f"block.{block}", "nll": 1 + block / 10, "nll_whole": 0.9}
        for scan in range(3) for block in range(scan, 6)
    ]  # fmt: skip
    charts.layer_importance(tmp_path / "layers.png", scores)
    assert made.drawn(tmp_path / "loss.png") and made.drawn(tmp_path / "layers.png")
