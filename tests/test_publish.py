"""benchmarks/publish.py on made-up runs: records go along, weights and what a model wrote do not."""

import json

import made_up_runs as made
from scripts import run_in_process

from fincompress import runs


def publish(tmp_path, *names):
    listed = [f"--RUNS={json.dumps(names)}"] if names else []
    return run_in_process("benchmarks/publish.py", *listed, f"--TO={tmp_path / 'to'}", RESULTS_DIR=tmp_path)


def test_publishing_leaves_no_weights_text_or_older_record(tmp_path):
    made.settings(tmp_path / "sapling", "sapling_train.py")
    runs.write_json(tmp_path / "sapling" / "train_metrics.json", {})
    made.settings(tmp_path / "sapling" / "20", "sapling_train.py")
    made.evaluation(tmp_path, "sapling/20", [True, False])
    predictions = tmp_path / "sapling" / "20" / "predictions_dev.jsonl"
    predictions.write_text(predictions.read_text().replace('"x"', '"add(1,\u2028 2)"'))
    (tmp_path / "sapling" / "20" / "model.safetensors").write_text("weights")
    made.settings(tmp_path / "sapling" / "22", "sapling_train.py")  # not evaluated
    made.settings(tmp_path / "sapling" / "24", "sapling_train.py")
    made.throughput(tmp_path, "sapling/24", 9.0)
    for name in ("trajectory.csv", "loss_curve.csv", "layer_scores.csv"):
        (tmp_path / "sapling" / name).write_text("x\n")
    made.settings(tmp_path / "sapling" / ".30.1.partial", "sapling_train.py")
    made.settings(tmp_path / "to" / "sapling" / "40", "sapling_train.py")
    done = publish(tmp_path, "sapling")
    assert done.returncode == 0, done.stderr
    there = sorted(path.relative_to(tmp_path / "to").as_posix() for path in (tmp_path / "to").rglob("*.*"))
    assert there == ["sapling/20/eval_dev.json", "sapling/20/predictions_dev.jsonl", "sapling/20/settings.json",
                     "sapling/24/settings.json", "sapling/24/throughput_cpu.json", "sapling/layer_scores.csv",
                     "sapling/loss_curve.csv", "sapling/settings.json", "sapling/train_metrics.json",
                     "sapling/trajectory.csv"]  # fmt: skip
    published = (tmp_path / "to" / "sapling" / "20" / "predictions_dev.jsonl").read_text()
    assert json.loads(published.split("\n")[0]) == {"id": "P/0", "execution_correct": True, "program_correct": True}
    assert "add" not in published


def test_the_records_of_what_a_run_came_from_are_published_too(tmp_path):
    healed, start = {"START_FROM": "mixed/20"}, {"START_FROM": "qlora"}
    made.settings(tmp_path / "qlora", "train_qlora_4bit.py", {"DATA_RUN": "data"})
    made.settings(tmp_path / "data", "preprocess_data.py")
    made.data_report(tmp_path)
    for run, values, dropped in (("mixed/20", start, ["block.3"]), ("sapling/20", healed, [])):
        made.settings(tmp_path / run, "sapling_train.py", values)
        runs.write_json(tmp_path / run / "train_metrics.json", {"dropped": dropped})
    made.settings(tmp_path / "sapling", "sapling_train.py", healed)
    made.evaluation(tmp_path, "sapling/20", [True, False])
    assert publish(tmp_path, "sapling").returncode == 2  # it has no metrics of its own
    runs.write_json(tmp_path / "sapling" / "train_metrics.json", {})
    made.settings(tmp_path / "mixed", "sapling_train.py", start)
    runs.write_json(tmp_path / "mixed" / "train_metrics.json", {})
    done = publish(tmp_path, "sapling", "mixed")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "to" / "mixed" / "20" / "train_metrics.json").exists()
    assert (tmp_path / "to" / "qlora" / "settings.json").exists()
    assert (tmp_path / "to" / "data" / "data_report.json").exists()


def test_a_wrong_name_or_target_costs_neither_a_record_nor_a_run(tmp_path):
    made.settings(tmp_path / "gptq", "quantize_gptq.py")
    made.evaluation(tmp_path, "gptq", [True])
    made.settings(tmp_path / "to" / "gptq", "quantize_gptq.py", {"BITS": 3})
    before = (tmp_path / "to" / "gptq" / "settings.json").read_text()
    done = publish(tmp_path, "gptq", "typo")
    assert done.returncode == 2 and "no finished run 'typo'" in done.stderr
    assert (tmp_path / "to" / "gptq" / "settings.json").read_text() == before
    arguments = ("--RUNS=['gptq']", f"--TO={tmp_path}")
    done = run_in_process("benchmarks/publish.py", *arguments, RESULTS_DIR=tmp_path)
    assert done.returncode == 2 and "TO is where the runs lie" in done.stderr
    assert (tmp_path / "gptq" / "eval_dev.json").exists()
    (tmp_path / "to" / "gptq" / "model.safetensors").write_text("weights")  # TO holds runs
    done = publish(tmp_path, "gptq")
    assert done.returncode == 2 and "TO holds what is no record" in done.stderr and done.stderr.count("\n") == 1
    assert (tmp_path / "to" / "gptq" / "settings.json").read_text() == before
    (tmp_path / "to" / "gptq" / "model.safetensors").unlink()
    (tmp_path / "gptq" / "predictions_dev.jsonl").write_text('{"id"')
    done = publish(tmp_path, "gptq")
    assert done.returncode == 2 and "predictions_dev.jsonl is damaged" in done.stderr and done.stderr.count("\n") == 1
    assert (tmp_path / "to" / "gptq" / "settings.json").read_text() == before


def test_a_run_that_is_not_finished_is_not_published(tmp_path):
    made.settings(tmp_path / "sapling", "sapling_train.py")
    for name in ("sapling", "nothing"):
        done = publish(tmp_path, name)
        assert done.returncode == 2 and "no finished run" in done.stderr and not (tmp_path / "to").exists()


def test_every_finished_run_is_published_where_none_is_named(tmp_path):
    assert publish(tmp_path).returncode == 2 and not (tmp_path / "to").exists()
    for name in ("qlora", "qlora/merged", "killed", "base", "sapling_gptq/20"):  # the last with no record above it
        made.settings(tmp_path / name, "train_qlora_4bit.py")
    runs.write_json(tmp_path / "qlora" / "train_metrics.json", {})
    runs.write_json(tmp_path / "sapling_gptq" / "20" / "quantize_metrics.json", {})
    for name in ("base", "qlora/merged"):
        made.evaluation(tmp_path, name, [True, False])
    done = publish(tmp_path)
    assert done.returncode == 0, done.stderr
    there = {path.parent.relative_to(tmp_path / "to").as_posix() for path in (tmp_path / "to").rglob("settings.json")}
    assert there == {"qlora", "qlora/merged", "base", "sapling_gptq/20"}


def test_a_published_run_keeps_the_phase_1_that_it_was_made_of(tmp_path):
    def train(seconds):
        runs.write_json(tmp_path / "qlora" / "train_metrics.json", {"training_seconds": seconds})

    for run, script, values in (
        ("qlora", "train_qlora_4bit.py", {}),
        ("first", "sapling_train.py", {"START_FROM": "qlora"}),
        ("second", "quantize_gptq.py", {"SOURCE_RUN": "qlora"}),
    ):
        made.settings(tmp_path / run, script, values)
        made.evaluation(tmp_path, run, [True, False])
    train(1)
    assert publish(tmp_path, "first").returncode == 0
    assert publish(tmp_path, "second").returncode == 0  # of the same phase 1
    before = (tmp_path / "to" / "qlora" / "train_metrics.json").read_text()
    train(2)
    done = publish(tmp_path, "second")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "to/first came from another training of qlora" in done.stderr
    assert (tmp_path / "to" / "qlora" / "train_metrics.json").read_text() == before
    assert publish(tmp_path, "first", "second").returncode == 0
    assert (tmp_path / "to" / "qlora" / "train_metrics.json").read_text() != before
