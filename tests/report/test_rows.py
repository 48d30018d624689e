"""What a run is, which rows share a table, and what accuracy is lost against phase 1, on hand-made records."""

import json

import made_up_runs as made
import numpy as np
import pytest

from fincompress import runs
from fincompress.errors import UserError
from fincompress.report import methods, rows, tables

QUESTIONS = 200
SAPLING = {"CRITERION": "calibration", "SCHEDULE": "successive"}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A results folder with one run of each method; tests only read it."""
    folder = tmp_path_factory.mktemp("everything")
    made.everything(folder, questions=QUESTIONS)
    return folder


def read(folder, split="dev"):
    """``{run: row}`` of one split."""
    return {row.run: row for row in rows.read_rows(str(folder), [split])[0]}


def sections(folder, splits=("dev", "test")):
    return rows.make_sections(rows.read_rows(str(folder), list(splits))[0])


def evaluated(folder, run="a", script="train_qlora_4bit.py", accuracy=0.3, **changes):
    """One evaluated run; ``changes`` go to both records."""
    common = {name: value for name, value in changes.items() if name in ("data", "base_model")}
    made.settings(folder / run, script, precision="nf4", **common)
    questions = changes.pop("questions", 40)
    made.evaluation(folder, run, made.answers(accuracy, questions), precision="nf4", **changes)


def pruned(folder, run, values, **metrics):
    """An evaluated checkpoint of sapling_train.py."""
    made.settings(folder / run, "sapling_train.py", values)
    made.evaluation(folder, run, made.answers(0.3, 20))
    runs.write_json(folder / run / "train_metrics.json", {"training_seconds": 60.0, **metrics})


# --- what a run is --------------------------------------------------------------------------------------------------


def test_methods_are_told_by_their_settings(root):
    methods = {run: (row.kind, row.description) for run, row in read(root).items()}
    assert methods["base"] == ("base", "base model, untuned")
    assert methods["qlora_4bit"] == ("qlora", "QLoRA (NF4 base)")
    assert methods["qlora_4bit/merged"] == ("merged", "QLoRA, merged")
    assert methods["lora_8bit"] == ("lora_8bit", "8-bit LoRA (int8 base)")
    assert methods["gptq_4bit"] == ("quantized", "QLoRA + GPTQ 4-bit")
    assert methods["sapling/24"] == ("sapling", "SAPLING, 24 of 60 sub-layers")
    assert methods["sapling_gptq"] == ("sapling_quantized", "SAPLING + GPTQ 4-bit, 24 of 60 sub-layers")
    assert methods["last/12"] == ("pruning", "pruning (last), one shot, 24 of 60 sub-layers")
    assert methods["shortgpt/12"][1] == "pruning (block influence), one shot, 24 of 60 sub-layers"


def test_settings_decide_what_a_run_is_whatever_its_name(tmp_path):
    for run, criterion, schedule in (("sapling", "last", "successive"), ("qlora_4bit", "calibration", "successive"),
                                     ("gptq", "calibration", "one_shot")):  # fmt: skip
        pruned(tmp_path, f"{run}/9", {"CRITERION": criterion, "SCHEDULE": schedule})
    kinds = {run: row.kind for run, row in read(tmp_path).items()}
    assert kinds == {"sapling/9": "pruning", "qlora_4bit/9": "sapling", "gptq/9": "pruning"}


@pytest.mark.parametrize("method", [None, "gptq", "awq", "rtn"])
def test_a_quantized_run_is_named_after_its_method_and_gptq_is_the_default(tmp_path, method):
    evaluated(tmp_path, "q")
    made.settings(tmp_path / "g", "quantize_gptq.py", {"SOURCE_RUN": "q"} | ({"METHOD": method} if method else {}))
    made.evaluation(tmp_path, "g", made.answers(0.3, 20))
    row = read(tmp_path)["g"]
    assert (row.kind, row.quantizer, row.name) == ("quantized", method or "gptq",
                                                     f"QLoRA + {(method or 'gptq').upper()} 4-bit")  # fmt: skip


def test_a_teacher_is_named_and_phase_1_trained_on_is_no_pruning(tmp_path):
    taught = SAPLING | {"KL": 1.0, "HIDDEN_STATES": 1.0, "UPDATE": "full"}
    evaluated(tmp_path, "q")
    pruned(tmp_path, "s/30", taught, units_left=30, dropped=["block.3"])
    pruned(tmp_path, "a/30", taught | {"UPDATE": "qlora"}, dropped=["block.3"])
    pruned(tmp_path, "k/30", taught | {"CRITERION": "kl"}, dropped=["block.3"])
    pruned(tmp_path, "t/30", taught | {"CRITERION": "taylor", "SCHEDULE": "one_shot"}, dropped=["block.3"])
    pruned(tmp_path, "l/60", taught | {"START_FROM": "q"}, dropped=[])
    pruned(tmp_path, "m/60", SAPLING | {"START_FROM": "q"}, dropped=[])
    pruned(tmp_path, "p/30", taught | {"START_FROM": "l/60"}, dropped=["block.3"])
    pruned(tmp_path, "h/30", taught | {"START_FROM": "s/30"}, dropped=[])  # healed further, which is another thing
    made.settings(tmp_path / "g", "quantize_gptq.py", {"SOURCE_RUN": "m/60", "BITS": 4})
    made.evaluation(tmp_path, "g", made.answers(0.3, 20))
    methods = {run: (row.kind, row.description) for run, row in read(tmp_path).items()}
    assert methods["s/30"] == ("sapling", "SAPLING with a teacher, 30 of 32 sub-layers")
    assert methods["a/30"] == ("sapling", "SAPLING with a teacher, adapters on NF4")
    assert methods["k/30"][0] == "sapling"
    assert methods["t/30"] == ("pruning", "pruning (taylor), one shot with a teacher")
    assert methods["l/60"] == ("longer", "phase 1, trained longer with a teacher")
    assert methods["p/30"] == ("sapling", "SAPLING of a longer phase 1 with a teacher")
    assert methods["h/30"][1].startswith("SAPLING with a teacher")
    assert methods["g"] == ("quantized", "phase 1, trained longer + GPTQ 4-bit")  # a rival like GPTQ of phase 1


def test_what_is_lost_to_a_longer_phase_1_is_lost_to_the_better_one_of_as_many_tokens(tmp_path):
    evaluated(tmp_path, "q")
    runs.write_json(tmp_path / "q" / "train_metrics.json", {"training_seconds": 60.0, "tokens_seen": 5})
    for run, tokens, nll in (("a/60", 9, 0.3), ("b/60", 9, 0.2), ("c/60", 8, 0.1)):
        pruned(tmp_path, run, SAPLING | {"START_FROM": "q"}, dropped=[], tokens_seen=tokens, calibration_nll=nll)
    assert {row.longer_run for section in sections(tmp_path) for row in section.rows if row.questions == 20} == {"b/60"}


def test_a_depth_that_is_healed_or_pruned_further_is_counted_from_the_unpruned_model(tmp_path):
    evaluated(tmp_path, "q")
    pruned(tmp_path, "s/30", SAPLING | {"START_FROM": "q"}, units_left=30, dropped=["block.3", "mlp.1+attention.2"])
    pruned(tmp_path, "healed/30", SAPLING | {"START_FROM": "s/30"}, units_left=30, dropped=[])
    last = {"CRITERION": "last", "SCHEDULE": "one_shot", "DROP_UNIT": "block", "START_FROM": "healed/30"}
    pruned(tmp_path, "deeper/14", last, units_left=14, dropped=["block.14"])
    made.settings(tmp_path / "small", "quantize_gptq.py", {"SOURCE_RUN": "healed/30"})
    made.evaluation(tmp_path, "small", made.answers(0.3, 20))
    facts = {run: (row.kind, row.depth, row.family) for run, row in read(tmp_path).items()}
    assert facts["healed/30"] == ("sapling", "30 of 34", "s")
    assert facts["small"] == ("sapling_quantized", "30 of 34", "s")
    assert facts["deeper/14"] == ("pruning", "28 of 34", "s")


def test_what_was_pruned_in_several_runs_is_named_after_all_of_them(tmp_path):
    evaluated(tmp_path, "q")
    teacher, adapters = {"KL": 1.0}, {"UPDATE": "qlora"}
    pruned(tmp_path, "s/30", SAPLING | {"START_FROM": "q"}, dropped=["block.3"])
    pruned(tmp_path, "taught/30", SAPLING | teacher | {"START_FROM": "s/30"}, dropped=[])
    pruned(tmp_path, "then/30", SAPLING | {"START_FROM": "taught/30"}, dropped=[])
    pruned(tmp_path, "adapters/30", SAPLING | adapters | {"START_FROM": "q"}, dropped=["block.3"])
    shot = {"CRITERION": "block_influence", "SCHEDULE": "one_shot"}
    pruned(tmp_path, "b/30", SAPLING | shot | {"START_FROM": "q"}, dropped=["block.3"])
    pruned(tmp_path, "deeper/28", SAPLING | teacher | {"START_FROM": "b/30"}, dropped=["block.4"])
    names = {run: (row.kind, row.name) for run, row in read(tmp_path).items()}
    assert names["s/30"] == ("sapling", "SAPLING")
    assert names["taught/30"] == names["then/30"] == ("sapling", "SAPLING with a teacher")
    assert names["adapters/30"] == ("sapling", "SAPLING, adapters on NF4")
    assert names["deeper/28"] == ("pruning", "pruning (block influence), one shot with a teacher")  # and SAPLING


def test_what_was_healed_further_is_no_phase_1_where_its_start_is_not_here(tmp_path):
    pruned(tmp_path, "healed/30", SAPLING | {"START_FROM": "s/30"}, units_left=30, dropped=[])
    made.settings(tmp_path / "small", "quantize_gptq.py", {"SOURCE_RUN": "healed/30"})
    made.evaluation(tmp_path, "small", made.answers(0.3, 20))
    assert {row.kind for row in read(tmp_path).values()} == {"other"}


def test_depth_counts_sub_layers_of_blocks_pairs_and_single_drops(tmp_path):
    blocks = {"CRITERION": "last", "SCHEDULE": "one_shot", "DROP_UNIT": "block"}
    pruned(tmp_path, "b/3", blocks, units_left=3, dropped=["block.3"])
    pruned(tmp_path, "s/4", SAPLING, units_left=4, dropped=["mlp.1+attention.2", "block.3"])
    pruned(tmp_path, "one/7", SAPLING, units_left=7, dropped=["mlp.3"])
    pruned(tmp_path, "unknown/7", SAPLING, units_left=7)
    depths = {run: row.depth for run, row in read(tmp_path).items()}
    assert depths == {"b/3": "6 of 8", "s/4": "4 of 8", "one/7": "7 of 8", "unknown/7": "7"}


def test_a_merged_checkpoint_is_a_row_of_its_own_with_its_runs_training_time(tmp_path):
    """As train_qlora_4bit.py leaves it: settings of the run, but 16 bits, and no training time."""
    evaluated(tmp_path, "q")
    runs.write_json(tmp_path / "q" / "train_metrics.json", {"training_seconds": 600.0})
    made.settings(tmp_path / "q" / "merged", "train_qlora_4bit.py", precision="auto")
    runs.write_json(tmp_path / "q" / "merged" / "train_metrics.json", {"merged_into": "original"})
    made.evaluation(tmp_path, "q/merged", made.answers(0.3, 40))
    by_run = read(tmp_path)
    assert (by_run["q"].kind, by_run["q/merged"].kind) == ("qlora", "merged")
    assert by_run["q/merged"].total_training_seconds == 600.0


def test_quantization_of_a_run_that_is_gone_is_not_guessed(tmp_path):
    made.settings(tmp_path / "g", "quantize_gptq.py", {"SOURCE_RUN": "sapling/30", "BITS": 4})
    made.evaluation(tmp_path, "g", made.answers(0.3, 20))
    row = read(tmp_path)["g"]
    assert (row.kind, row.name) == ("other", "GPTQ 4-bit (of a run that is not here)")
    assert row.total_training_seconds is None


def test_a_rehearsal_on_a_few_blocks_is_no_rival(tmp_path):
    evaluated(tmp_path, "q")
    made.settings(tmp_path / "g", "quantize_gptq.py", {"SOURCE_RUN": "q", "BITS": 4, "BLOCKS": 2})
    made.evaluation(tmp_path, "g", made.answers(0.3, 20))
    row = read(tmp_path)["g"]
    assert row.kind == "other" and row.name.endswith("+ GPTQ 4-bit, 2 blocks of it")


def test_a_quantized_untuned_model_is_no_rival_of_saplings(tmp_path):
    made.settings(tmp_path / "base", "evaluate.py")
    made.evaluation(tmp_path, "base", made.answers(0.3, 20))
    made.settings(tmp_path / "g", "quantize_gptq.py", {"SOURCE_RUN": "base", "BITS": 4})
    made.evaluation(tmp_path, "g", made.answers(0.3, 20))
    row = read(tmp_path)["g"]
    assert (row.kind, row.name) == ("other", "base model, untuned + GPTQ 4-bit")


def test_training_time_includes_what_a_run_started_from(root):
    seconds = {run: row.total_training_seconds for run, row in read(root).items()}
    assert seconds["base"] == 0
    assert seconds["qlora_4bit"] == seconds["qlora_4bit/merged"] == 4000
    assert seconds["gptq_4bit"] == 4000 + 150
    assert seconds["sapling/24"] == 4000 + 1000 + 50 * 36 + 300  # to that depth, not to the end
    assert seconds["sapling_gptq"] == seconds["sapling/24"] + 100


def test_tokens_of_what_a_run_started_from_are_counted(tmp_path):
    evaluated(tmp_path, "lora")
    runs.write_json(tmp_path / "lora" / "train_metrics.json", {"training_seconds": 5.0, "tokens_seen": 3})
    pruned(tmp_path, "s/20", SAPLING | {"START_FROM": "lora"}, tokens_seen=1)
    pruned(tmp_path, "unrecorded/20", SAPLING | {"START_FROM": "lora"})
    by_run = read(tmp_path)
    assert (by_run["s/20"].total_tokens_seen, by_run["unrecorded/20"].total_tokens_seen) == (4, None)


# --- speed ----------------------------------------------------------------------------------------------------------


def test_seconds_per_question_are_those_of_a_median_prompt_and_answer(tmp_path):
    evaluated(tmp_path, "a")
    made.data_report(tmp_path)
    made.throughput(tmp_path, "a", 10.0, prefill=186.0, spread=0.0)
    (section,) = sections(tmp_path)
    speed = section.rows[0].speed
    expected = 186 / speed["prefill_tokens_per_s"] + 17 / speed["decode_tokens_per_s"]
    assert section.rows[0].seconds_per_question == pytest.approx(expected)
    assert expected == pytest.approx(1 + 1.7, rel=0.15)


def of_one_shape(folder, *names, **shares):
    """Evaluated checkpoints of SAPLING as large as each other, but those with a share of their own."""
    made.data_report(folder)
    for run in names:
        made.settings(folder / run, "sapling_train.py", {"KL": 1.0, "CRITERION": "kl", "SCHEDULE": "successive"})
        made.evaluation(folder, run, made.answers(0.3, 40), shares.get(run, 0.6))


def test_a_run_that_was_not_measured_is_as_fast_as_another_of_its_shape(tmp_path):
    of_one_shape(tmp_path, "measured", "alike", "own", "smaller", smaller=0.5)
    for run, script, values, precision in (
        ("quantized", "quantize_gptq.py", {"SOURCE_RUN": "alike"}, "auto"),
        ("ordered", "quantize_gptq.py", {"SOURCE_RUN": "alike", "DESC_ACT": True}, "auto"),  # its kernel takes longer
        ("adapter", "train_qlora_4bit.py", {}, "nf4"),
    ):
        made.settings(tmp_path / run, script, values, precision=precision)
        made.evaluation(tmp_path, run, made.answers(0.3, 40), 0.6, precision=precision)
    for run in ("measured", "own", "ordered"):
        made.throughput(tmp_path, run, 10.0)
    (section,) = sections(tmp_path)
    by_run = {row.run: row for row in section.rows}
    assert {run: row.speed_of for run, row in by_run.items()} == {
        "measured": "measured", "alike": "measured", "own": "own", "smaller": None, "quantized": None,
        "ordered": "ordered", "adapter": None,
    }  # fmt: skip
    assert by_run["alike"].seconds_per_question == by_run["measured"].seconds_per_question is not None
    assert by_run["alike"].benchmark_call == by_run["measured"].benchmark_call
    lines = {line[0]: line for line in tables.results_table(section.rows, tables.SHORT).lines}
    assert lines["alike"][-1] == "0.50 (2)" and lines["measured"][-1] == "0.50" and lines["smaller"][-1] == "- (1)"


def test_of_several_of_one_shape_the_speed_is_of_the_call_that_measured_most_and_of_an_idle_machine(tmp_path):
    of_one_shape(tmp_path, "a_alone", "b_busy", "c_beside", "larger", "unmeasured", larger=0.9)
    for run, call in (("a_alone", 20.0), ("b_busy", 23.0), ("c_beside", 23.0), ("larger", 23.0)):
        made.throughput(tmp_path, run, 10.0, base=call)
    path = tmp_path / "b_busy" / "throughput_cpu.json"
    runs.write_json(path, json.loads(path.read_text()) | {"load": 0.9})
    (section,) = sections(tmp_path)
    assert {row.run: row.speed_of for row in section.rows} == {
        "a_alone": "a_alone", "b_busy": "c_beside", "c_beside": "c_beside", "larger": "larger", "unmeasured": "c_beside"
    }  # fmt: skip


# --- sections -------------------------------------------------------------------------------------------------------


OTHER = {
    "data": {"data": {"source": "synthetic", "fingerprint": "s0"}},
    "fingerprint": {"data": {"source": "FinQA", "fingerprint": "f1"}},
    "split": {"split": "test"},
    "base model": {"base_model": "meta-llama/Llama-2-7b-hf"},
    "number of questions": {"questions": 41},
    "longest output": {"decoding": {"MAX_NEW_TOKENS": 8}},
    "beams": {"decoding": {"beams": 4}},
}


@pytest.mark.parametrize("what", OTHER)
def test_unlike_rows_stand_in_tables_of_their_own(what, tmp_path):
    evaluated(tmp_path, "a")
    evaluated(tmp_path, "b", **OTHER[what])
    groups = sections(tmp_path)
    assert sorted([row.run for row in section.rows] for section in groups) == [["a"], ["b"]]
    assert len({section.title for section in groups}) == 2


def test_an_older_evaluation_that_has_no_hash_of_its_prompts_stands_apart_from_those_that_have_one(tmp_path):
    for run, prompts in (("a", "p1"), ("b", None), ("c", "p2")):
        evaluated(tmp_path, run)
        path = tmp_path / run / "eval_dev.json"
        runs.write_json(path, runs.read_json(path) | ({"prompts": prompts} if prompts else {}))
    assert [len(section.rows) for section in sections(tmp_path)] == [1, 1, 1]


@pytest.mark.parametrize("fact", ["prepared", "prompts"])
def test_data_prepared_in_another_way_stands_in_a_table_of_its_own(tmp_path, fact):
    for run, prepared in (("a", "p1"), ("b", "p2"), ("c", "p1")):
        evaluated(tmp_path, run)
        path = tmp_path / run / "eval_dev.json"
        runs.write_json(path, json.loads(path.read_text()) | {fact: prepared})
    groups = sections(tmp_path)
    assert sorted(sorted(row.run for row in section.rows) for section in groups) == [["a", "c"], ["b"]]
    assert len({section.title for section in groups}) == 2


def test_devices_stand_in_tables_of_their_own(tmp_path):
    gpu = made.HARDWARE | {"gpu": "Some GPU"}
    for run, share in (("a", 1.0), ("b", 0.9), ("c", 0.8)):
        evaluated(tmp_path, run, share=share)
    made.throughput(tmp_path, "a", 10.0)
    made.throughput(tmp_path, "a", 99.0, device="cuda", hardware=gpu)
    made.throughput(tmp_path, "b", 98.0, device="cuda", hardware=gpu)
    made.throughput(tmp_path, "c", 20.0, hardware=made.HARDWARE | {"cpu": "Another CPU"})
    by_hardware = {section.rows[0].hardware: section for section in sections(tmp_path)}
    assert set(by_hardware) == {"Some CPU, 2 threads", "Another CPU, 2 threads", "Some GPU"}
    speeds = {
        name: {row.run: row.speed and round(row.speed["decode_tokens_per_s"]) for row in section.rows}
        for name, section in by_hardware.items()
    }
    assert speeds["Some CPU, 2 threads"] == {"a": 10, "b": None, "c": None}
    assert speeds["Another CPU, 2 threads"] == {"a": None, "b": None, "c": 20}
    assert speeds["Some GPU"]["c"] is None and min(speeds["Some GPU"][run] for run in "ab") > 90


def test_splits_that_recipes_are_tuned_on_are_left_out(tmp_path):
    evaluated(tmp_path, "a", split="calibration")
    kept, left_out = rows.read_rows(str(tmp_path), ["dev"])
    assert kept == [] and "split calibration" in left_out[0]


def test_published_records_do_not_count_as_runs_of_this_machine(tmp_path):
    evaluated(tmp_path / "published" / "finqa", "a")
    evaluated(tmp_path, "b")
    assert list(read(tmp_path)) == ["b"]
    assert [row["run"] for row in runs.accuracy_table(str(tmp_path))] == ["b"]
    assert list(read(tmp_path / "published")) == ["finqa/a"]


def test_a_run_without_settings_is_left_out(tmp_path):
    made.evaluation(tmp_path, "predictions/theirs", made.answers(0.3, 20))
    kept, left_out = rows.read_rows(str(tmp_path), ["dev"])
    assert kept == [] and left_out == ["predictions/theirs: no settings.json, so nothing says what it is"]


def test_a_missing_results_folder_is_refused_with_what_to_run_first(tmp_path):
    with pytest.raises(UserError, match="does not exist: run evaluate.py first"):
        rows.read_rows(str(tmp_path / "none"), ["dev"])


def test_the_speed_of_another_base_model_in_the_folder_of_an_untuned_one_is_not_its_own(tmp_path):
    evaluated(tmp_path, "a")
    made.throughput(tmp_path, "a", 10.0)
    assert sections(tmp_path)[0].rows[0].decode_tokens_per_s == pytest.approx(10.0, rel=0.1)
    path = tmp_path / "a" / "throughput_cpu.json"
    runs.write_json(path, runs.read_json(path) | {"base_model": "shape:tiny"})
    assert sections(tmp_path)[0].rows[0].decode_tokens_per_s is None


@pytest.mark.parametrize("name", ["eval_dev.json", "throughput_cpu.json"])
@pytest.mark.parametrize("content", ["{}", "[]", "{", '{"split": "dev", "prefill": 3, "decode": 3}'])
def test_a_damaged_record_is_named(tmp_path, name, content):
    evaluated(tmp_path, "a")
    made.throughput(tmp_path, "a", 10.0)
    (tmp_path / "a" / name).write_text(content)
    with pytest.raises(UserError, match=f"a/{name}"):
        read(tmp_path)


def test_two_runs_of_one_method_are_told_apart_by_their_names(tmp_path):
    for run in ("first/40", "first/20", "second/40"):
        pruned(tmp_path, run, SAPLING)
    evaluated(tmp_path, "q", questions=20)
    (section,) = sections(tmp_path)
    assert {row.run: row.chart_label for row in section.means} == {
        "q": "QLoRA (NF4 base)", "first/40": "SAPLING (first)", "first/20": "SAPLING (first)",
        "second/40": "SAPLING (second)",
    }  # fmt: skip


def test_ways_to_drop_layers_are_series_of_their_own_and_their_depths_one(tmp_path):
    """Two depths of phase 1, made alike, and a third one that was trained on other data."""
    ways = {"a/40": {"TARGET_SIZE": 0.7}, "b/20": {"TARGET_SIZE": 0.5}, "c/30": {"DATA_RUN": "mixed"}}
    for run, values in ways.items():
        left = int(run.partition("/")[2])
        pruned(tmp_path, run, SAPLING | {"DATA_RUN": "finqa"} | values, dropped=["block.3"], units_left=left)
    (section,) = sections(tmp_path)
    labels = {row.run: row.chart_label for row in section.means}
    assert labels == {"a/40": "SAPLING (a)", "b/20": "SAPLING (a)", "c/30": "SAPLING (c)"}


def test_depths_made_of_one_another_are_one_series_of_a_chart(tmp_path):
    for run, start in (("a/40", None), ("b/30", "a/40"), ("c/20", "a/40"), ("straight/30", None)):
        left = int(run.partition("/")[2])
        pruned(tmp_path, run, SAPLING | {"SEED": 0, "START_FROM": start}, dropped=["block.3"], units_left=left)
    (section,) = sections(tmp_path)
    assert {row.run: row.chart_label for row in section.means} == {
        "a/40": "SAPLING (a)", "b/30": "SAPLING (a)", "c/20": "SAPLING (a)", "straight/30": "SAPLING (straight)",
    }  # fmt: skip


def test_runs_of_one_folder_name_in_two_places_stay_apart(tmp_path):
    for where in ("first", "second"):
        for left in (40, 20):
            made.settings(tmp_path / where / "sapling" / str(left), "sapling_train.py", SAPLING)
            made.evaluation(tmp_path, f"{where}/sapling/{left}", np.arange(50) < left, left / 60)
    (section,) = sections(tmp_path)
    assert len({row.chart_label for row in section.means}) == len({row.family for row in section.rows}) == 2


def test_a_run_that_was_moved_has_the_name_of_its_folder(tmp_path):
    evaluated(tmp_path, "a")
    (tmp_path / "a").rename(tmp_path / "moved")
    evaluated(tmp_path, "a")
    (section,) = sections(tmp_path)
    assert sorted(row.run for row in section.rows) == ["a", "moved"]
    assert sorted(row["run"] for row in runs.accuracy_table(str(tmp_path))) == ["a", "moved"]


def test_a_run_in_the_place_of_what_it_started_from_is_of_unknown_origin(tmp_path):
    values = SAPLING | {"START_FROM": "a"}
    made.settings(tmp_path / "a", "sapling_train.py", values)
    chain = methods.lineage(tmp_path / "a", tmp_path)
    assert len(chain) == 1 and methods.training_cost(chain) == (None, None)


# --- seeds ----------------------------------------------------------------------------------------------------------


def seeds(folder, changes=None, questions=20):
    """Runs ``s<seed>/20`` of one recipe, each made of a phase 1 of its own seed; ``changes`` of constants of one."""
    for seed in range(3):
        made.settings(folder / f"q{seed}", "train_qlora_4bit.py", {"SEED": seed, "EPOCHS": 1})
        values = SAPLING | {"SEED": seed, "START_FROM": f"q{seed}", "TEACHER": f"q{seed}", "KL": 1.0}
        pruned(folder, f"s{seed}/20", values | ((changes or {}) if seed == 1 else {}), dropped=["block.3"])
        made.evaluation(folder, f"s{seed}/20", np.arange(questions) < 5 + 2 * seed, 0.5)


def means(folder):
    return {row.run: [seed.run for seed in row.seeds] for row in sections(folder)[0].means}


def test_seeds_of_a_recipe_are_one_row_with_their_mean(tmp_path):
    seeds(tmp_path)
    (section,) = sections(tmp_path)
    (mean,) = section.means
    assert (mean.title, mean.chart_label, len(section.rows)) == ("s0/20, 3 seeds", "SAPLING with a teacher", 3)
    assert mean.execution_accuracy == pytest.approx(7 / 20) == mean.program_accuracy
    assert mean.execution_accuracy_low < 7 / 20 < mean.execution_accuracy_high
    assert sorted(set(rows.read_verdicts(mean.seeds).values())) == pytest.approx([0, 1 / 3, 2 / 3, 1])
    assert sum(score["of"] for score in mean.steps.values()) == 60
    assert sum(score["correct"] for score in mean.steps.values()) == 21


def test_a_mean_has_the_name_and_the_costs_of_the_seed_that_was_measured(tmp_path):
    seeds(tmp_path)
    made.throughput(tmp_path, "s1/20", 10.0)
    assert means(tmp_path) == {"s1/20": ["s0/20", "s1/20", "s2/20"]}


def test_what_is_lost_is_lost_to_phase_1_of_the_same_seeds(tmp_path):
    """Phase 1 of another seed is another model; of one seed, chosen by NLLs that may be of other questions, a mean's
    loss would be luck.
    """
    seeds(tmp_path)
    for seed, nll in enumerate((0.3, 0.1, 0.2)):
        made.evaluation(tmp_path, f"q{seed}", np.arange(20) < 10 + seed, 0.5)
        runs.write_json(tmp_path / f"q{seed}" / "train_metrics.json", {"tokens_seen": 5, "training_seconds": 9.0})
        pruned(tmp_path, f"l{seed}/60", SAPLING | {"SEED": seed, "START_FROM": f"q{seed}"}, dropped=[], tokens_seen=5,
               calibration_nll=nll)  # fmt: skip
        made.evaluation(tmp_path, f"l{seed}/60", np.arange(20) < 13 + seed, 0.5)
    longest = SAPLING | {"SEED": 0, "START_FROM": "l0/60"}  # one seed, whatever it has seen
    pruned(tmp_path, "longest/60", longest, dropped=[], tokens_seen=9)
    (section,) = sections(tmp_path)
    for row in section.means:
        shared = "l0/60" if row.run == "longest/60" else "l0/60, l1/60, l2/60"
        assert (row.reference_run, row.longer_run) == ("q0" if row.run == "longest/60" else "q0, q1, q2", shared)
    single = {row.run: row.lost and round(20 * row.lost["difference"]) for row in section.rows if row.kind == "sapling"}
    assert single == {"s0/20": 10 - 5, "s1/20": 11 - 7, "s2/20": 12 - 9}
    (mean,) = (row.lost for row in section.means if row.kind == "sapling")
    assert mean["difference"] == pytest.approx((11 - 7) / 20)
    lost = {row.run: row.lost_to_longer and row.lost_to_longer["difference"] for row in section.means}
    assert lost.pop("longest/60") is not None
    assert lost == {"q0": pytest.approx(3 / 20), "s0/20": pytest.approx(7 / 20), "l0/60": None}
    shown = [line[7] for line in tables.results_table(section.rows, tables.FULL).lines]
    assert shown.count("reference") == 3 == sum(row.kind == "longer" for row in section.rows) - 1


def test_two_means_are_compared_by_the_seeds_of_phase_1_that_both_have(tmp_path):
    seeds(tmp_path)
    values = SAPLING | {"SEED": 2, "START_FROM": "q2", "TEACHER": "q2", "KL": 1.0, "UPDATE": "qlora"}
    pruned(tmp_path, "adapters/20", values, dropped=["block.3"])
    made.evaluation(tmp_path, "adapters/20", np.arange(20) < 8, 0.5)
    ours, theirs = (row for row in sections(tmp_path)[0].means if row.kind == "sapling")
    ours, theirs = (ours, theirs) if ours.seeds else (theirs, ours)
    assert rows.compare_rows(ours, theirs)["difference"] == pytest.approx((9 - 8) / 20)  # and not the mean's, 7 - 8
    assert [row.run for row in rows.shared_seeds(ours, theirs)[0]] == ["s2/20"]
    theirs.seed = (0, 7)  # none in common
    assert rows.compare_rows(ours, theirs)["difference"] == pytest.approx((7 - 8) / 20)


@pytest.mark.parametrize(
    "changes",
    [
        {"LEARNING_RATE": 1e-3},
        {"TEACHER": "another"},
        {"SEED": 0, "START_FROM": "q0", "TEACHER": "q0"},
        {"SEED": None},
        {"START_FROM": "s0/20"},
    ],
)
def test_runs_that_differ_in_more_than_their_seed_stay_apart(tmp_path, changes):
    for seed in range(2):
        made.settings(tmp_path / f"q{seed}", "train_qlora_4bit.py", {"SEED": seed})
        values = SAPLING | {"SEED": seed, "START_FROM": f"q{seed}", "TEACHER": f"q{seed}", "LEARNING_RATE": 1e-4}
        pruned(tmp_path, f"s{seed}/20", values | (changes if seed else {}), dropped=["block.3"])
    assert means(tmp_path) == {"s0/20": [], "s1/20": []}


def test_constants_that_another_commit_lacks_or_that_did_nothing_keep_no_seeds_apart(tmp_path):
    seeds(tmp_path, changes={"NEW": 3, "TEACHER": None})
    assert means(tmp_path) == {"s0/20": ["s0/20", "s1/20", "s2/20"]}
    for seed in range(2):
        pruned(tmp_path, f"longer{seed}/60", SAPLING | {"SEED": seed, "DROPS_LATE": seed, "START_FROM": f"q{seed}"},
               dropped=[])  # fmt: skip
    assert means(tmp_path)["longer0/60"] == ["longer0/60", "longer1/60"]


def test_seeds_of_phase_1_alone_are_seeds_too(tmp_path):
    seeds(tmp_path, changes={"SEED": 0})
    assert means(tmp_path) == {"s0/20": ["s0/20", "s1/20", "s2/20"]}


def test_each_seed_must_be_like_all_others(tmp_path):
    """A constant that one of them lacks makes it no bridge between two that differ in it."""
    seeds(tmp_path, changes={"NEW": 1})
    path = tmp_path / "s2" / "20" / "settings.json"
    record = runs.read_json(path)
    runs.write_json(path, record | {"settings": record["settings"] | {"NEW": 2}})
    assert means(tmp_path) == {"s0/20": ["s0/20", "s1/20"], "s2/20": []}


@pytest.mark.parametrize("run", ["q1", "s1/20"])
@pytest.mark.parametrize("other", [{"prepared": "b"}, {"data": {"source": "FinQA", "fingerprint": "b"}}])
def test_runs_that_were_trained_on_other_data_are_no_seeds(tmp_path, run, other):
    seeds(tmp_path)
    for path in runs.records(str(tmp_path), "settings.json"):
        runs.write_json(
            path, runs.read_json(path) | {"prepared": "a"} | (other if path.parent == tmp_path / run else {})
        )
    assert means(tmp_path) == {"s0/20": ["s0/20", "s2/20"], "s1/20": []}


def test_a_mean_without_program_accuracies_has_none(tmp_path):
    seeds(tmp_path)
    path = tmp_path / "s1" / "20" / "eval_dev.json"
    runs.write_json(path, runs.read_json(path) | {"program_accuracy": None})
    assert len(means(tmp_path)["s0/20"]) == 3


def test_without_predictions_a_run_stays_by_itself(tmp_path):
    seeds(tmp_path)
    (tmp_path / "s1" / "20" / "predictions_dev.jsonl").unlink()
    assert means(tmp_path) == {"s0/20": ["s0/20", "s2/20"], "s1/20": []}


# --- accuracy lost --------------------------------------------------------------------------------------------------


def test_accuracy_lost_is_counted_from_phase_1(root):
    (section,) = sections(root)
    by_run = {row.run: row for row in section.rows}
    assert by_run["qlora_4bit"].reference_run == "qlora_4bit/merged" and by_run["qlora_4bit/merged"].lost is None
    lost = by_run["last/12"].lost
    exact = by_run["qlora_4bit/merged"].correct - by_run["last/12"].correct
    assert lost["difference"] == pytest.approx(exact / QUESTIONS) and lost["difference"] > 0.05
    assert lost["interval"][0] <= lost["difference"] <= lost["interval"][1]


def lost(folder):
    (section,) = sections(folder)
    return {row.run: row.lost for row in section.rows}


def test_without_phase_1_predictions_or_the_same_questions_no_accuracy_is_lost(tmp_path):
    evaluated(tmp_path, "b", script="quantize_gptq.py")
    assert lost(tmp_path) == {"b": None}
    evaluated(tmp_path, "a")
    assert lost(tmp_path)["b"] is not None
    path = tmp_path / "b" / "predictions_dev.jsonl"
    path.write_text(path.read_text().replace('"P/0"', '"Q/0"'))
    assert lost(tmp_path)["b"] is None
    path.unlink()
    assert lost(tmp_path)["b"] is None


def test_the_reference_is_the_run_of_lowest_calibration_nll(tmp_path):
    for run, accuracy, nll in (("lucky", 0.4, 0.5), ("better", 0.3, 0.4)):
        evaluated(tmp_path, run, accuracy=accuracy)
        runs.write_json(tmp_path / run / "train_metrics.json", {"calibration": [{"calibration_nll": nll}]})
    (section,) = sections(tmp_path)
    assert {row.reference_run for row in section.rows} == {"better"}


def test_predictions_of_another_evaluation_are_refused(tmp_path):
    evaluated(tmp_path, "a")
    evaluated(tmp_path, "b")
    path = tmp_path / "b" / "predictions_dev.jsonl"
    path.write_text(path.read_text().replace('"execution_correct": false', '"execution_correct": true'))
    with pytest.raises(UserError, match=r"b/predictions_dev\.jsonl does not belong to eval_dev\.json"):
        sections(tmp_path)


@pytest.mark.parametrize("line", ['{"id": "a"}', '["a", true]', '{"id": "a", ', '{"execution_correct": true}'])
def test_damaged_predictions_are_named(tmp_path, line):
    evaluated(tmp_path, "a")
    evaluated(tmp_path, "b")
    (tmp_path / "b" / "predictions_dev.jsonl").write_text(line + "\n")
    with pytest.raises(UserError, match=r"b/predictions_dev\.jsonl is damaged"):
        sections(tmp_path)


def test_a_line_separator_in_an_id_ends_no_line(tmp_path):
    evaluated(tmp_path, "a", questions=1)
    record = {"id": "a\u2028b", "execution_correct": False}
    (row,) = read(tmp_path).values()
    row.correct = 0
    (tmp_path / "a" / "predictions_dev.jsonl").write_text(json.dumps(record, ensure_ascii=False) + "\n")
    assert rows.read_verdicts([row]) == {"a\u2028b": False}
