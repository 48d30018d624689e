"""What a run is, which rows share a table, drops, frontier, tables and README markers, on hand-made records."""

import json

import made_up_runs as made
import numpy as np
import pytest
from fincompress.comparison import frontier
from hypothesis import given
from hypothesis import strategies as st

from fincompress import comparison, runs, tables
from fincompress.errors import UserError

QUESTIONS = 200


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A results folder with one run of each method; tests only read it."""
    folder = tmp_path_factory.mktemp("everything")
    made.everything(folder, questions=QUESTIONS)
    return folder


def sections(folder, splits=("dev", "test"), **more):
    return comparison.make_sections(comparison.read_rows(str(folder), list(splits))[0], **more)


def evaluated(folder, run="a", script="train_qlora_4bit.py", accuracy=0.3, **changes):
    """One evaluated run; ``changes`` go to both records."""
    common = {name: value for name, value in changes.items() if name in ("data", "base_model")}
    made.settings(folder / run, script, precision="nf4", **common)
    questions = changes.pop("questions", 40)
    made.evaluation(folder, run, made.answers(accuracy, questions), precision="nf4", **changes)


# --- frontier -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        ([], []),
        ([(1.0, 0.5)], [True]),
        ([(1.0, 0.5), (2.0, 0.5)], [True, False]),  # dearer, no better
        ([(1.0, 0.5), (1.0, 0.4)], [True, False]),
        ([(1.0, 0.5), (2.0, 0.6)], [True, True]),
        ([(1.0, 0.5), (1.0, 0.5), (1.0, 0.4)], [True, True, False]),  # a tie dominates neither of the two
        ([(1.0, 0.5), (1.0, 0.5), (0.9, 0.5)], [False, False, True]),
        ([(None, 0.9), (1.0, None), (1.0, 0.5), (None, None)], [False, False, True, False]),
        ([(0.0, 0.0), (1.0, 0.0)], [True, False]),  # 0 is a value
        ([(3, 3), (1, 1), (2, 2), (2, 1)], [True, True, True, False]),
    ],
)
def test_ties_are_on_the_frontier_and_points_without_a_value_off_it(points, expected):
    assert frontier(points) == expected


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=12))
def test_the_frontier_is_every_point_that_no_other_dominates(points):
    flags = frontier(points)
    best = [point for point, flag in zip(points, flags, strict=True) if flag]
    assert not points or best
    for x, y in points:
        better = any(a <= x and b >= y and (a < x or b > y) for a, b in points)
        assert better != ((x, y) in best)
        assert any(a <= x and b >= y for a, b in best)  # every point is matched by one of the frontier


# --- what a run is --------------------------------------------------------------------------------------------------


def test_methods_are_told_by_their_settings(root):
    found = {row.run: (row.kind, row.method) for row in comparison.read_rows(str(root), ["dev"])[0]}
    assert found["base"] == ("base", "base model, untuned")
    assert found["qlora_4bit"] == ("qlora", "QLoRA (NF4 base)")
    assert found["qlora_4bit/merged"] == ("merged", "QLoRA, merged in 16 bits")
    assert found["lora_8bit"] == ("lora_8bit", "8-bit LoRA (int8 base)")
    assert found["gptq_4bit"] == ("gptq", "QLoRA + GPTQ 4-bit")
    assert found["sapling/24"] == ("sapling", "SAPLING, 24 sub-layers left")
    assert found["sapling_gptq"] == ("sapling_gptq", "SAPLING, 24 sub-layers left + GPTQ 4-bit")
    assert found["last/12"] == ("pruning", "pruning by last layers, one shot, 12 blocks left")
    assert found["shortgpt/12"][1] == "pruning by block influence (ShortGPT), one shot, 12 blocks left"


def test_settings_decide_what_a_run_is_whatever_its_name(tmp_path):
    for run, criterion, schedule in (("sapling", "last", "successive"), ("qlora_4bit", "calibration", "successive"),
                                     ("gptq", "calibration", "one_shot")):  # fmt: skip
        values = {"CRITERION": criterion, "SCHEDULE": schedule, "DROP_UNIT": "sublayer"}
        made.settings(tmp_path / run / "9", "sapling_train.py", values)
        made.evaluation(tmp_path, f"{run}/9", made.answers(0.3, 20))
    found = {row.run: row.kind for row in comparison.read_rows(str(tmp_path), ["dev"])[0]}
    assert found == {"sapling/9": "pruning", "qlora_4bit/9": "sapling", "gptq/9": "pruning"}


def test_a_teacher_is_named_and_phase_1_trained_on_is_no_pruning(tmp_path):
    taught = {"CRITERION": "calibration", "SCHEDULE": "successive", "KL": 1.0, "HIDDEN_STATES": 1.0, "UPDATE": "full"}
    runs_of = {
        "s/30": (taught, ["block.3"]),
        "a/30": (taught | {"UPDATE": "qlora"}, ["block.3"]),
        "k/30": (taught | {"CRITERION": "kl"}, ["block.3"]),
        "t/30": (taught | {"CRITERION": "taylor", "SCHEDULE": "one_shot"}, ["block.3"]),
        "l/60": (taught | {"START_FROM": "q"}, []),
        "m/60": (taught | {"START_FROM": "q", "KL": 0.0, "HIDDEN_STATES": 0.0}, []),
    }
    evaluated(tmp_path, "q")
    for run, (values, dropped) in runs_of.items():
        made.settings(tmp_path / run, "sapling_train.py", values)
        facts = {"units_left": int(run[2:]), "dropped": dropped, "training_seconds": 60.0}
        runs.write_json(tmp_path / run / "train_metrics.json", facts)
        made.evaluation(tmp_path, run, made.answers(0.3, 20))
    made.settings(tmp_path / "g", "quantize_gptq.py", {"SOURCE_RUN": "m/60", "BITS": 4})
    made.evaluation(tmp_path, "g", made.answers(0.3, 20))
    found = {row.run: (row.kind, row.method) for row in comparison.read_rows(str(tmp_path), ["dev"])[0]}
    assert found["s/30"] == ("sapling", "SAPLING with a teacher, 30 sub-layers left")
    assert found["a/30"] == ("sapling", "SAPLING with a teacher, adapters on NF4, 30 sub-layers left")
    assert found["k/30"][0] == "sapling"
    criterion = "first-order Taylor (Shortened LLaMA)"
    assert found["t/30"] == ("pruning", f"pruning by {criterion}, one shot with a teacher, 30 sub-layers left")
    assert found["l/60"] == ("longer", "phase 1 trained on with a teacher")
    assert found["m/60"] == ("longer", "phase 1 trained on")
    assert found["g"] == ("gptq", "phase 1 trained on + GPTQ 4-bit")  # a rival like GPTQ of phase 1


def test_a_merged_checkpoint_is_a_row_of_its_own_with_its_runs_training_time(tmp_path):
    """As train_qlora_4bit.py leaves it: settings of the run, but 16 bits, and no training time."""
    evaluated(tmp_path, "q")
    runs.write_json(tmp_path / "q" / "train_metrics.json", {"training_seconds": 600.0})
    made.settings(tmp_path / "q" / "merged", "train_qlora_4bit.py", precision="auto")
    runs.write_json(tmp_path / "q" / "merged" / "train_metrics.json", {"merged_into": "original"})
    made.evaluation(tmp_path, "q/merged", made.answers(0.3, 40))
    rows = {row.run: row for row in comparison.read_rows(str(tmp_path), ["dev"])[0]}
    assert rows["q"].kind == "qlora"
    assert rows["q/merged"].kind == "merged"
    assert rows["q/merged"].method == "QLoRA, merged in 16 bits (into the original base)"
    assert rows["q/merged"].training_seconds == 600.0


def test_gptq_of_a_run_that_is_gone_is_not_guessed(tmp_path):
    made.settings(tmp_path / "g", "quantize_gptq.py", {"SOURCE_RUN": "sapling/30", "BITS": 4})
    made.evaluation(tmp_path, "g", made.answers(0.3, 20))
    (row,) = comparison.read_rows(str(tmp_path), ["dev"])[0]
    assert row.method == "GPTQ 4-bit (of a run that is not here)"
    assert row.training_seconds is None and "no record of its training time" in row.missing["training_seconds"]


def test_gptq_of_an_untuned_model_is_no_rival_of_saplings(tmp_path):
    made.settings(tmp_path / "base", "evaluate.py")
    made.evaluation(tmp_path, "base", made.answers(0.3, 20))
    made.settings(tmp_path / "g", "quantize_gptq.py", {"SOURCE_RUN": "base", "BITS": 4})
    made.evaluation(tmp_path, "g", made.answers(0.3, 20))
    rows = {row.run: row for row in comparison.read_rows(str(tmp_path), ["dev"])[0]}
    assert (rows["g"].kind, rows["g"].method) == ("other", "base model, untuned + GPTQ 4-bit")


def test_training_time_includes_what_a_run_started_from(root):
    seconds = {row.run: row.training_seconds for row in comparison.read_rows(str(root), ["dev"])[0]}
    assert seconds["base"] == 0
    assert seconds["qlora_4bit"] == seconds["qlora_4bit/merged"] == 4000
    assert seconds["gptq_4bit"] == 4000 + 150
    assert seconds["sapling/24"] == 4000 + 1000 + 50 * 36 + 300  # to that depth, not to the end
    assert seconds["sapling_gptq"] == seconds["sapling/24"] + 100


def test_hardware_of_what_a_run_started_from_is_noted(tmp_path):
    for run, script, values, threads, record in (
        ("lora", "train_qlora_4bit.py", {"LORA_RANK": 8}, 1, "train_metrics.json"),
        ("gptq", "quantize_gptq.py", {"SOURCE_RUN": "lora", "BITS": 4}, 2, "quantize_metrics.json"),
        ("other", "train_lora_8bit.py", {"LORA_RANK": 8}, 1, "train_metrics.json"),
    ):
        made.settings(tmp_path / run, script, values, hardware=made.HARDWARE | {"threads": threads})
        made.evaluation(tmp_path, run, made.answers(0.3, 40))
        kind = "quantization" if run == "gptq" else "training"
        runs.write_json(tmp_path / run / record, {f"{kind}_seconds": 60.0})
    (section,) = sections(tmp_path)
    text = tables.markdown_table(section, section.rows)
    assert "trained on Some CPU, 1 thread, then Some CPU, 2 threads." in text
    assert "on Some CPU, 1 thread where not noted." in text


def test_decoding_in_another_type_is_noted(tmp_path):
    for run, dtype in (("a", "bfloat16"), ("b", "float32"), ("c", "bfloat16")):
        evaluated(tmp_path, run)
        path = tmp_path / run / "eval_dev.json"
        runs.write_json(path, json.loads(path.read_text()) | {"decoding": {"dtype": dtype}})
    (section,) = sections(tmp_path)
    text = tables.markdown_table(section, section.rows)
    assert text.count("decoded in float32, the others in bfloat16.") == 1
    (number,) = [line.partition(":")[0] for line in text.splitlines() if "decoded in float32" in line]
    assert [line for line in text.splitlines() if f"]<sup>{number}</sup>" in line][0].count("(b)") == 1


# --- sections -------------------------------------------------------------------------------------------------------


OTHER = {
    "data": {"data": {"source": "synthetic", "fingerprint": "s0"}},
    "fingerprint": {"data": {"source": "FinQA", "fingerprint": "f1"}},
    "split": {"split": "test"},
    "base model": {"base_model": "meta-llama/Llama-2-7b-hf"},
    "number of questions": {"questions": 41},
    "longest output": {"decoding": {"MAX_NEW_TOKENS": 8}},
}


@pytest.mark.parametrize("what", OTHER)
def test_unlike_rows_stand_in_tables_of_their_own(what, tmp_path):
    evaluated(tmp_path, "a")
    evaluated(tmp_path, "b", **OTHER[what])
    found = sections(tmp_path)
    assert sorted([row.run for row in section.rows] for section in found) == [["a"], ["b"]]
    assert len({section.slug for section in found}) == 2
    assert len({section.title for section in found}) == 2


def test_devices_stand_in_tables_of_their_own(tmp_path):
    gpu = made.HARDWARE | {"gpu": "Some GPU"}
    for run in ("a", "b", "c"):
        evaluated(tmp_path, run)
    made.throughput(tmp_path, "a", 10.0)
    made.throughput(tmp_path, "a", 99.0, device="cuda", hardware=gpu)
    made.throughput(tmp_path, "b", 98.0, device="cuda", hardware=gpu)
    made.throughput(tmp_path, "c", 20.0, hardware=made.HARDWARE | {"cpu": "Another CPU"})
    found = {section.hardware: section for section in sections(tmp_path)}
    assert set(found) == {"Some CPU, 2 threads", "Another CPU, 2 threads", "Some GPU"}
    speeds = {
        name: {row.run: row.speed and round(row.speed["decode_tokens_per_s"]) for row in section.rows}
        for name, section in found.items()
    }
    assert speeds["Some CPU, 2 threads"] == {"a": 10, "b": None, "c": None}
    assert speeds["Another CPU, 2 threads"] == {"a": None, "b": None, "c": 20}
    assert speeds["Some GPU"]["c"] is None and min(speeds["Some GPU"][run] for run in "ab") > 90
    assert "not measured on this device" in tables.markdown_table(found["Some GPU"], found["Some GPU"].rows)


def test_splits_that_recipes_are_tuned_on_are_left_out(tmp_path):
    evaluated(tmp_path, "a", split="calibration")
    rows, left_out = comparison.read_rows(str(tmp_path), ["dev"])
    assert rows == [] and "split calibration" in left_out[0]


def test_published_records_do_not_count_as_runs_of_this_machine(tmp_path):
    evaluated(tmp_path / "published" / "finqa", "a")
    evaluated(tmp_path, "b")
    assert [row.run for row in comparison.read_rows(str(tmp_path), ["dev"])[0]] == ["b"]
    assert [row["run"] for row in runs.accuracy_table(str(tmp_path))] == ["b"]
    assert [row.run for row in comparison.read_rows(str(tmp_path / "published"), ["dev"])[0]] == ["a"]


def test_a_run_without_settings_is_left_out(tmp_path):
    made.evaluation(tmp_path, "predictions/theirs", made.answers(0.3, 20))
    rows, left_out = comparison.read_rows(str(tmp_path), ["dev"])
    assert rows == [] and left_out == ["predictions/theirs: no settings.json, so nothing says what it is"]


def test_a_run_that_was_only_benchmarked_has_a_row(tmp_path):
    evaluated(tmp_path, "a")
    made.settings(tmp_path / "b", "train_qlora_4bit.py", precision="nf4")
    made.throughput(tmp_path, "b", 10.0)
    (section,) = sections(tmp_path)
    row = next(row for row in section.rows if row.run == "b")
    assert row.execution is None and row.speed["decode_tokens_per_s"] > 9
    assert "not evaluated on dev or test" in tables.markdown_table(section, section.rows)


def test_speed_of_random_weights_stands_apart_from_accuracies(tmp_path):
    evaluated(tmp_path, "a")
    made.settings(tmp_path / "b", "evaluate.py", base_model="shape:llama-160m", data=None)
    made.throughput(tmp_path, "b", 10.0)
    found = sections(tmp_path)
    assert [[row.run for row in section.rows] for section in found] == [["a"], ["b"]]
    assert found[1].title.startswith("shape:llama-160m, accuracy not evaluated; speed on cpu")


# --- drops ----------------------------------------------------------------------------------------------------------


def test_a_drop_is_the_accuracy_lost_against_phase_1(root):
    (section,) = sections(root)
    rows = {row.run: row for row in section.rows}
    assert section.reference == "qlora_4bit" and rows["qlora_4bit"].drop is None
    drop = rows["last/12"].drop
    exact = rows["qlora_4bit"].execution["correct"] - rows["last/12"].execution["correct"]
    assert drop["difference"] == pytest.approx(exact / QUESTIONS) and drop["difference"] > 0.05
    assert drop["interval"][0] <= drop["difference"] <= drop["interval"][1]
    (section,) = sections(root, reference="lora_8bit")
    assert section.reference == "lora_8bit"


def test_without_predictions_or_phase_1_a_drop_is_a_reason(tmp_path):
    evaluated(tmp_path, "b", script="quantize_gptq.py")
    (section,) = sections(tmp_path)
    assert section.rows[0].drop is None and section.rows[0].missing["drop"] == "no run of phase 1 here"
    evaluated(tmp_path, "a")
    (tmp_path / "b" / "predictions_dev.jsonl").unlink()
    (section,) = sections(tmp_path)
    row = next(row for row in section.rows if row.run == "b")
    assert row.drop is None and row.missing["drop"] == "the predictions of b are not here, so nothing can be paired"


def test_drops_are_counted_from_the_run_of_lowest_calibration_nll(tmp_path):
    for run, accuracy, nll in (("lucky", 0.4, 0.5), ("better", 0.3, 0.4)):
        evaluated(tmp_path, run, accuracy=accuracy)
        runs.write_json(tmp_path / run / "train_metrics.json", {"calibration": [{"calibration_nll": nll}]})
    (section,) = sections(tmp_path)
    assert section.reference == "better"


def test_data_prepared_in_another_way_stands_in_a_table_of_its_own(tmp_path):
    for run, prepared in (("a", "p1"), ("b", "p2"), ("c", "p1")):
        evaluated(tmp_path, run)
        path = tmp_path / run / "eval_dev.json"
        runs.write_json(path, json.loads(path.read_text()) | {"prepared": prepared})
    found = sections(tmp_path)
    assert sorted(sorted(row.run for row in section.rows) for section in found) == [["a", "c"], ["b"]]
    assert len({section.title for section in found}) == len({section.slug for section in found}) == 2


def test_other_questions_are_not_paired(tmp_path):
    evaluated(tmp_path, "a")
    evaluated(tmp_path, "b")
    path = tmp_path / "b" / "predictions_dev.jsonl"
    path.write_text(path.read_text().replace('"P/0"', '"Q/0"'))
    (section,) = sections(tmp_path)
    reasons = [row.missing["drop"] for row in section.rows]
    assert any("did not answer the same questions" in reason for reason in reasons)


def test_predictions_of_another_evaluation_are_refused(tmp_path):
    evaluated(tmp_path, "a")
    evaluated(tmp_path, "b")
    path = tmp_path / "b" / "predictions_dev.jsonl"
    path.write_text(path.read_text().replace('"execution_correct": false', '"execution_correct": true'))
    with pytest.raises(UserError, match=r"b/predictions_dev\.jsonl does not belong to eval_dev\.json"):
        sections(tmp_path)


# --- speed ----------------------------------------------------------------------------------------------------------


def test_only_rounds_of_one_call_are_paired(tmp_path):
    made.throughput(tmp_path, "aa", 20.0, base=23.0)
    made.throughput(tmp_path, "bbb", 40.0, base=23.0)
    made.throughput(tmp_path, "c", 40.0, base=23.5)
    one, same, other = (
        comparison.read_throughput(tmp_path / run / "throughput_cpu.json") for run in ("aa", "bbb", "c")
    )
    first, second = comparison.paired_rounds(one, same, "decode_tokens_per_s")
    assert len(first) == 5 and all(b / a == pytest.approx(2, rel=0.1) for a, b in zip(first, second, strict=True))
    recorded = runs.read_json(tmp_path / "aa" / "throughput_cpu.json")["decode"]["1"]
    assert first == recorded["ratio"]["rounds"]
    assert comparison.paired_rounds(one, other, "decode_tokens_per_s") is None
    same["rounds"]["decode_tokens_per_s"] = same["rounds"]["decode_tokens_per_s"][:3]  # a slow model: fewer rounds
    assert len(comparison.paired_rounds(one, same, "decode_tokens_per_s")[0]) == 3
    one["ratios"]["decode_tokens_per_s"] = one["ratios"]["decode_tokens_per_s"][:2]  # a slow base model: fewer still
    assert comparison.paired_rounds(one, same, "decode_tokens_per_s")[0] == recorded["tokens_per_s"]["rounds"][:3]


@pytest.mark.parametrize("record", [{}, {"decode": {}, "prefill": None}, {"decode": {"1": {"tokens_per_s": None}}}])
def test_an_incomplete_benchmark_does_not_stop_the_table(tmp_path, record):
    evaluated(tmp_path, "a")
    runs.write_json(tmp_path / "a" / "throughput_cpu.json", {"device": "cpu", "hardware": made.HARDWARE} | record)
    (section,) = sections(tmp_path)
    assert section.rows[0].speed["decode_tokens_per_s"] is None
    assert "its benchmark did not record it" in tables.markdown_table(section, section.rows)


def test_a_depth_that_was_not_healed_is_noted(tmp_path):
    for left, healed, final in ((30, False, False), (22, True, True), (20, False, True)):
        values = {"CRITERION": "calibration", "SCHEDULE": "successive"}
        made.settings(tmp_path / "s" / str(left), "sapling_train.py", values)
        made.evaluation(tmp_path, f"s/{left}", made.answers(0.3, 40))
        runs.write_json(
            tmp_path / "s" / str(left) / "train_metrics.json", {"units_left": left, "healed": healed, "final": final}
        )
    (section,) = sections(tmp_path)
    lines = tables.markdown_table(section, section.rows).splitlines()
    (unhealed,) = [line for line in lines if "30 sub-layers left<sup>" in line]
    assert not any(f"{left} sub-layers left<sup>" in line for line in lines for left in (22, 20))
    number = unhealed.partition("<sup>")[2].partition("</sup>")[0]
    assert any(line.startswith(f"{number}: saved on the way down") for line in lines)


def test_kernel_and_offloading_are_noted(tmp_path):
    for run in ("a", "b", "c"):
        evaluated(tmp_path, run)
        made.throughput(tmp_path, run, 10.0)
    path = tmp_path / "c" / "throughput_cpu.json"
    runs.write_json(path, json.loads(path.read_text()) | {"kernel": "TorchAten", "label": "half of it on the CPU"})
    (section,) = sections(tmp_path)
    text = tables.markdown_table(section, section.rows)
    assert "kernel TorchAten; half of it on the CPU." in text
    assert "Prefill of 186 tokens, decoding at batch 1; kernel dense where not noted." in text


def test_the_quantization_report_counts_the_same_questions_and_rounds_nothing_away(tmp_path):
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
    made.throughput(tmp_path, "q", 20.0)
    made.throughput(tmp_path, "g", 30.0)
    (row,) = comparison.quantization_report(str(tmp_path))
    assert (row["accuracy_before"], row["accuracy_after"]) == (0.4, 0.32)
    assert (row["drop_points"], row["drop_per_cent"]) == (8.0, 20.0)
    assert row["drop_points_low"] < 8 < row["drop_points_high"] and row["mcnemar_p"] == 0.0015
    assert (row["size_reduction"], row["blocks_share"]) == (0.75, 0.25)
    assert row["decode_tokens_per_s_after"] / row["decode_tokens_per_s_before"] == pytest.approx(1.5, rel=0.05)
    path = tmp_path / "g" / "eval_dev.json"
    whole = runs.read_json(path)
    runs.write_json(path, whole | {"decoding": {"MAX_NEW_TOKENS": 8}})  # answers cut short are no loss by quantization
    assert comparison.quantization_report(str(tmp_path))[0]["drop_points"] is None
    runs.write_json(path, whole)
    made.evaluation(tmp_path, "g", questions < 80, split="test")  # not evaluated before: no drop to report
    assert len(comparison.quantization_report(str(tmp_path))) == 1


# --- tables ---------------------------------------------------------------------------------------------------------


def test_a_value_that_was_not_measured_is_a_dash_with_a_reason(tmp_path):
    evaluated(tmp_path, "a")
    record = json.loads((tmp_path / "a" / "eval_dev.json").read_text())
    del record["size_gb"], record["share_of_base"]
    runs.write_json(tmp_path / "a" / "eval_dev.json", record | {"program_accuracy": None})
    (section,) = sections(tmp_path)
    (line,), footnotes = tables.table(section, section.rows)
    empty = [number for text, number in line if text == "-"]
    assert len(empty) == 8 and all(empty)
    numbers = {note.partition(":")[0] for note in footnotes if note[0].isdigit()}
    assert set(empty) == numbers
    assert len(line) == len(tables.COLUMNS)


def test_an_accuracy_of_0_is_not_taken_for_missing(tmp_path):
    made.settings(tmp_path / "base", "evaluate.py")
    made.evaluation(tmp_path, "base", [False] * 40)
    (section,) = sections(tmp_path)
    (line,), _ = tables.table(section, section.rows)
    assert line[1][0] == "0.0 [0.0, 8.8]" and line[2][0] == "0.0" and line[8][0] == "0"
    assert section.rows[0].on_frontier


def test_the_table_for_readers_has_the_sizes_asked_for_and_both_ends(root):
    (section,) = sections(root)
    shown = [row.units_left for row in tables.shown_rows(section, [0.75, 0.5]) if row.kind == "sapling"]
    assert shown == [60, 40, 24, 20]  # 24 has 53 %, 20 has 47 %: the nearer one to 50 is 20 or 24, the ends stay
    assert [row.units_left for row in tables.shown_rows(section, []) if row.kind == "sapling"] == [60, 20]
    kept = [row.run for row in tables.shown_rows(section, []) if row.kind != "sapling"]
    assert kept == [row.run for row in section.rows if row.kind != "sapling"]


def test_csv_has_the_columns_that_keep_unlike_rows_apart(root):
    (section,) = sections(root)
    rows = tables.csv_rows([section])
    assert len(rows) == len(section.rows) and len({tuple(row) for row in rows}) == 1
    assert {"base_model", "data", "data_fingerprint", "split", "questions", "device", "hardware"} <= set(rows[0])
    line = next(row for row in rows if row["run"] == "gptq_4bit")
    assert line["share_of_base"] == 0.43 and line["training_seconds"] == 4150.0
    assert line["drop_low"] <= line["drop"] <= line["drop_high"]


def test_two_runs_of_one_method_are_told_apart_by_their_names(tmp_path):
    evaluated(tmp_path, "a")
    evaluated(tmp_path, "b")
    (section,) = sections(tmp_path)
    assert [row.method for row in section.rows] == ["QLoRA (NF4 base) (a)", "QLoRA (NF4 base) (b)"]


def test_a_missing_results_folder_is_refused_with_what_to_run_first(tmp_path):
    with pytest.raises(UserError, match="does not exist: run evaluate.py first"):
        comparison.read_rows(str(tmp_path / "none"), ["dev"])


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


@pytest.mark.parametrize(
    ("source", "split", "questions", "whole"),
    [("FinQA", "dev", 883, True), ("FinQA", "dev", 16, False), ("FinQA", "test", 1147, True),
     ("synthetic", "dev", 883, False), ("FinQA", None, None, False)],
)  # fmt: skip
def test_only_every_question_of_a_finqa_split_is_the_whole_split(source, split, questions, whole):
    section = comparison.Section("m", source, "f", "program", split, questions, None, None, [])
    assert section.is_whole("FinQA") is whole


@pytest.mark.parametrize("name", ["eval_dev.json", "throughput_cpu.json"])
@pytest.mark.parametrize("content", ["{}", "[]", "{", '{"split": "dev", "prefill": 3, "decode": 3}'])
def test_a_damaged_record_is_named(tmp_path, name, content):
    made.everything(tmp_path, questions=50)
    (tmp_path / "gptq_4bit" / name).write_text(content)
    if (name, content) == ("throughput_cpu.json", "{}"):  # nothing was measured
        assert comparison.read_rows(str(tmp_path), ["dev"])[1] == []
    else:
        with pytest.raises(UserError, match="gptq_4bit/"):
            comparison.read_rows(str(tmp_path), ["dev"])


def test_paths_of_one_folder_name_in_two_places_stay_apart(tmp_path):
    values = {"CRITERION": "calibration", "SCHEDULE": "successive"}
    for where in ("first", "second"):
        for left in (40, 20):
            made.settings(tmp_path / where / "sapling" / str(left), "sapling_train.py", values)
            made.evaluation(tmp_path, f"{where}/sapling/{left}", np.arange(50) < left, left / 60)
    (section,) = comparison.make_sections(comparison.read_rows(str(tmp_path), ["dev"])[0])
    assert len({row.series for row in section.rows}) == 2
