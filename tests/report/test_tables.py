"""Tables for readers, the CSVs, and the part of a README between its markers, on hand-made records."""

import json

import made_up_runs as made
import numpy as np
import pytest

from fincompress import runs
from fincompress.errors import UserError
from fincompress.report import rows, tables


@pytest.fixture(scope="module")
def section(tmp_path_factory):
    """One run of each method; tests only read it."""
    folder = tmp_path_factory.mktemp("everything")
    made.everything(folder, questions=200)
    return sections(folder)[0]


def sections(folder):
    return rows.make_sections(rows.read_rows(str(folder), ["dev"])[0])


def cells(table):
    """Lines of a table by column."""
    return [dict(zip(table.columns, line, strict=True)) for line in table.lines]


# --- tables ---------------------------------------------------------------------------------------------------------


def test_a_value_that_was_not_measured_is_a_dash(tmp_path):
    made.settings(tmp_path / "a", "train_qlora_4bit.py")
    made.evaluation(tmp_path, "a", made.answers(0.3, 40))
    record = json.loads((tmp_path / "a" / "eval_dev.json").read_text())
    del record["size_gb"], record["share_of_base"]
    runs.write_json(tmp_path / "a" / "eval_dev.json", record | {"program_accuracy": None})
    table = tables.results_table(sections(tmp_path)[0].rows, tables.FULL)
    (line,) = cells(table)
    assert line["Accuracy lost, points"] == "reference"
    assert [name for name, text in line.items() if text.startswith("-")] == [
        "% of bytes", "Program accuracy %", "lost to the longer phase 1", "GB", "Prefill tokens/s", "Decode tokens/s",
        "s per question", "Memory GB", "Training min"
    ]  # fmt: skip
    assert line["Memory GB"] == "- (1)" and table.markdown().endswith("\n1: speed not measured on this device.<br>\n")


def test_an_accuracy_of_0_is_not_taken_for_missing(tmp_path):
    made.settings(tmp_path / "base", "evaluate.py")
    made.evaluation(tmp_path, "base", [False] * 40)
    (section,) = sections(tmp_path)
    (line,) = cells(tables.results_table(section.rows, tables.FULL))
    assert line["Execution accuracy %"] == "0.0 [0.0, 8.8]" and line["Program accuracy %"] == "0.0"
    assert line["Training min"] == "0" and section.rows[0].on_frontier


def test_a_depth_that_was_not_healed_is_noted(tmp_path):
    for left, healed, final in ((30, False, False), (22, True, True), (20, False, True)):
        values = {"CRITERION": "calibration", "SCHEDULE": "successive"}
        made.settings(tmp_path / "s" / str(left), "sapling_train.py", values)
        made.evaluation(tmp_path, f"s/{left}", made.answers(0.3, 40))
        metrics = {"units_left": left, "healed": healed, "final": final}
        runs.write_json(tmp_path / "s" / str(left) / "train_metrics.json", metrics)
    table = tables.results_table(sections(tmp_path)[0].rows, tables.SHORT)
    assert [line["Method"] for line in cells(table)] == ["SAPLING (1)", "SAPLING", "SAPLING"]
    assert next(iter(table.notes)).startswith("saved on the way down")


def test_behind_a_mean_over_seeds_stands_each(tmp_path):
    for seed in range(2):
        made.settings(tmp_path / f"q{seed}", "train_qlora_4bit.py", {"SEED": seed}, precision="nf4")
        made.evaluation(tmp_path, f"q{seed}", np.arange(40) < 10 + 4 * seed, precision="nf4")
    (section,) = sections(tmp_path)
    (line,) = cells(tables.results_table(section.means, tables.SHORT))
    assert line["Execution accuracy %"].startswith("30.0 [") and line["Execution accuracy %"].endswith("] (25.0, 35.0)")


def test_a_table_reads_the_same_in_markdown_and_in_a_terminal():
    table = tables.Table(("a", "b"))
    table.lines.append(["x|y", table.noted("-", "not measured")])
    assert table.markdown() == "| a | b |\n| --- | ---: |\n| x\\|y | - (1) |\n\n1: not measured.<br>\n"
    assert table.plain() == "  a     b\nx|y - (1)\n1: not measured."


@pytest.mark.parametrize("count", [1, 3, 6, 8])
def test_the_table_for_readers_answers_the_question_in_few_rows(section, count):
    headline = [row.run for row in tables.headline_rows(section, count)]
    depths = [row for row in section.rows if row.kind == "sapling"]
    best = max(depths, key=lambda row: row.execution_accuracy).run
    assert len(headline) == count and "qlora_4bit/merged" in headline
    assert ("gptq_4bit" in headline) == (count > 1)
    assert ("sapling/20" in headline) == (count > 2)  # of its depths the nearest to GPTQ's 43 %
    assert (best in headline) == (count > 3)


def test_phase_1_trained_longer_and_its_quantized_model_stand_in_the_table_for_readers(tmp_path):
    made.everything(tmp_path, questions=40)
    values = {"CRITERION": "calibration", "SCHEDULE": "successive", "START_FROM": "qlora_4bit"}
    made.settings(tmp_path / "longer" / "60", "sapling_train.py", values)
    runs.write_json(tmp_path / "longer" / "60" / "train_metrics.json", {"dropped": [], "training_seconds": 60.0})
    made.settings(tmp_path / "longer_gptq", "quantize_gptq.py", {"SOURCE_RUN": "longer/60", "BITS": 4})
    for run in ("longer/60", "longer_gptq"):
        made.evaluation(tmp_path, run, made.answers(0.35, 40))
    (section,) = sections(tmp_path)
    headline = {row.run for row in tables.headline_rows(section, 8)}
    assert headline >= {"qlora_4bit/merged", "longer/60", "gptq_4bit", "longer_gptq", "sapling/20"}
    rows = {row["run"]: row for row in tables.csv_rows([section])}
    assert {row["longer_run"] for row in rows.values()} == {"longer/60"} and rows["longer/60"]["longer_lost"] is None
    lost = rows["qlora_4bit"]["longer_lost"]
    gained = rows["longer/60"]["execution_accuracy"] - rows["qlora_4bit"]["execution_accuracy"]
    assert lost == pytest.approx(gained, abs=1e-5) and lost > 0.01
    assert rows["qlora_4bit"]["longer_lost_low"] <= lost <= rows["qlora_4bit"]["longer_lost_high"]


# --- CSVs -----------------------------------------------------------------------------------------------------------


def test_results_csv_has_the_columns_that_keep_unlike_rows_apart(section):
    csv_rows = tables.csv_rows([section])
    assert len(csv_rows) == len(section.rows) and len({tuple(row) for row in csv_rows}) == 1
    assert {"base_model", "data", "data_fingerprint", "split", "questions", "device", "hardware"} <= set(csv_rows[0])
    line = next(row for row in csv_rows if row["run"] == "gptq_4bit")
    assert line["method"] == "gptq" and line["share_of_bytes"] == 0.43 and line["total_training_seconds"] == 4150.0
    assert line["accuracy_lost_low"] <= line["accuracy_lost"] <= line["accuracy_lost_high"]
    line = next(row for row in csv_rows if row["run"] == "sapling_gptq")
    assert (line["method"], line["sublayers_left"], line["sublayers"]) == ("sapling_gptq", 24, 60)


def test_the_quantization_report_counts_the_same_questions(tmp_path):
    made.settings(tmp_path / "q", "train_qlora_4bit.py")
    values = {"SOURCE_RUN": "q", "BITS": 4, "DESC_ACT": False, "CALIBRATION": "prompts", "CALIBRATION_EXAMPLES": 256}
    made.settings(tmp_path / "g", "quantize_gptq.py", values)
    sizes = {"size_before_gb": 0.4, "size_after_gb": 0.1, "blocks_before_gb": 0.2, "blocks_after_gb": 0.05}
    runs.write_json(
        tmp_path / "g" / "quantize_metrics.json",
        {"source_run": "q", "group_size": 64, "quantization_seconds": 9.0, **sizes},
    )
    questions = np.arange(200)
    made.evaluation(tmp_path, "q", questions < 80)
    made.evaluation(tmp_path, "g", (questions >= 20) & (questions < 84))  # 20 lost, 4 won
    (row,) = tables.quantization_report(str(tmp_path))
    assert (row["execution_accuracy_before"], row["execution_accuracy_after"]) == (0.4, 0.32)
    assert row["accuracy_lost_low"] < row["accuracy_lost"] == 0.08 < row["accuracy_lost_high"]
    assert row["mcnemar_p"] == 0.001544 and row["quantizer"] == "gptq"
    assert (row["size_gb_before"], row["size_gb_after"], row["blocks_size_ratio"]) == (0.4, 0.1, 0.25)
    path = tmp_path / "g" / "eval_dev.json"
    whole = runs.read_json(path)
    runs.write_json(path, whole | {"decoding": {"MAX_NEW_TOKENS": 8}})  # answers cut short are no loss by quantization
    assert tables.quantization_report(str(tmp_path))[0]["accuracy_lost"] is None
    runs.write_json(path, whole)
    made.evaluation(tmp_path, "g", questions < 80, split="test")  # not evaluated before: no drop to report
    assert len(tables.quantization_report(str(tmp_path))) == 1


def test_a_quantized_run_stands_in_the_report_once_a_split_whatever_was_measured(tmp_path):
    made.everything(tmp_path, questions=50)
    sizes = {"size_before_gb": 0.4, "size_after_gb": 0.1, "blocks_before_gb": 0.2, "blocks_after_gb": 0.05}
    metrics = {"source_run": "qlora_4bit", "group_size": 64, "quantization_seconds": 9.0, **sizes}
    runs.write_json(tmp_path / "gptq_4bit" / "quantize_metrics.json", metrics)
    made.throughput(tmp_path, "base", 50.0, device="cuda", hardware=made.HARDWARE | {"gpu": "Some GPU"})
    assert [row["split"] for row in tables.quantization_report(str(tmp_path))] == ["dev"]
    for path in (tmp_path / "gptq_4bit").glob("eval_*.json"):
        path.unlink()
    (row,) = tables.quantization_report(str(tmp_path))
    assert row["split"] is row["accuracy_lost"] is None and row["size_gb_after"] == 0.1


# --- README ---------------------------------------------------------------------------------------------------------


def test_new_results_replace_the_old_ones_and_the_markers_stay():
    text = f"# Title\n\n{tables.BEGIN}\nold\n{tables.END}\n\nafter\n"
    once = tables.replace_between_markers(text, "new | table\n")
    assert once == f"# Title\n\n{tables.BEGIN}\nnew | table\n{tables.END}\n\nafter\n"
    assert tables.replace_between_markers(once, "new | table\n") == once
    assert tables.replace_between_markers(once, "other") == text.replace("old", "other")


@pytest.mark.parametrize(
    "text", ["", "{b}", "{e}", "{e} {b}", "{b} {b} {e}", "{b} {e} {e}"], ids=lambda text: text or "nothing"
)
def test_text_without_a_pair_of_markers_is_refused(text):
    with pytest.raises(UserError, match=r"README\.md needs the lines"):
        tables.replace_between_markers(text.format(b=tables.BEGIN, e=tables.END), "new")
