"""Every script in order on a tiny random model: the files it leaves, skipping, resume after a kill, bad input.

Each script but the benchmark starts once as a person starts it; the other times it runs inside this process.
"""

import json
import shutil
from dataclasses import replace
from unittest import mock

import datasets
import pytest
import torch
from safetensors.torch import load_file, save_file
from scripts import run_in_process, run_script

from fincompress import generation, runs, training
from fincompress.finqa import examples, from_pages
from fincompress.training import lora

DATA = ("preprocess_data.py", "--TRAIN_EXAMPLES=48", "--CALIBRATION_EXAMPLES=8", "--EVAL_EXAMPLES=8",
        "--EVIDENCE_TOKENS=96", "--MAX_PROMPT_TOKENS=200")  # fmt: skip
TRAIN = (
    "train_qlora_4bit.py",
    "--BATCH_SIZE=4",
    "--LOGGING_STEPS=1",
    "--SAVE_STEPS=2",
    "--LORA_RANK=4",
    "--EPOCHS=2",
    "--AUGMENT=figures",
)


@pytest.fixture(scope="module")
def pipeline(results_dir, tiny_base):
    """A results directory with a data run and a trained run of shape:tiny, and the environment for more."""
    environment = {"BASE_MODEL": "shape:tiny", "DATA_DIR": "synthetic", "RESULTS_DIR": str(results_dir)}
    for script in (DATA, TRAIN):
        done = run_in_process(*script, **environment)
        assert done.returncode == 0, done.stderr
    return results_dir, environment


def read(path):
    return json.loads(path.read_text())


def test_the_report_counts_and_the_calibration_pages_are_in_no_other_split(pipeline):
    report = read(pipeline[0] / "data" / "data_report.json")
    assert {name: split["examples"] for name, split in report["splits"].items() if name != "calibration"} == {
        "train": 48, "dev": 8, "test": 8
    }  # fmt: skip
    assert len(report["calibration_ids"]) >= 8
    assert report["source"] == "synthetic" and report["skipped"] == []
    import datasets

    pages = {
        split: {i.rpartition("-")[0] for i in datasets.load_from_disk(str(pipeline[0] / "data" / split))["id"]}
        for split in report["splits"]
    }
    assert not any(pages["calibration"] & pages[split] for split in ("train", "dev", "test"))


def test_every_target_ends_in_eos_and_no_prompt_holds_it(pipeline):
    import datasets

    from fincompress import models

    tokenizer = models.load_tokenizer(str(pipeline[0] / "base_models" / "shape-tiny"))
    for row in datasets.load_from_disk(str(pipeline[0] / "data" / "train")):
        prompt, target = row["input_ids"][: row["prompt_tokens"]], row["input_ids"][row["prompt_tokens"] :]
        assert target[-1] == tokenizer.eos_token_id
        assert tokenizer.eos_token_id not in prompt + target[:-1]
        assert tokenizer.decode(target[:-1]).strip() == row["program"]
        assert tokenizer.decode(prompt).endswith(f"Question: {row['question']}\nProgram:\n")


def test_a_finished_run_keeps_its_record_and_removes_its_checkpoints(pipeline):
    directory = pipeline[0] / "qlora_4bit"
    metrics, settings = read(directory / "train_metrics.json"), read(directory / "settings.json")
    assert metrics["steps"] == 24 and metrics["tokens_seen"] > 0 and metrics["peak_memory_gb"]["rss"] > 0
    assert len(metrics["calibration"]) == 2
    assert settings["settings"]["LORA_RANK"] == 4 and settings["data"]["source"] == "synthetic"
    assert (directory / "loss_curve.csv").read_text().count("\n") == 25
    assert (directory / "loss_curve.png").read_bytes().startswith(b"\x89PNG")
    assert (directory / "adapter" / "adapter_model.safetensors").exists() and (
        directory / "adapter" / "README.md"
    ).exists()
    assert read(directory / "adapter" / "adapter_config.json")["base_model_name_or_path"] == "shape:tiny"
    assert not (directory / "checkpoints").exists()


def test_checkpoints_that_a_kill_left_of_a_finished_run_are_removed(pipeline):
    left = pipeline[0] / "qlora_4bit" / "checkpoints"
    (left / "checkpoint-24").mkdir(parents=True)
    done = run_in_process(*TRAIN, **pipeline[1])
    assert done.returncode == 0 and "finished already, skipped" in done.stdout and not left.exists()


def test_a_test_split_that_has_changed_is_not_taken_for_the_one_that_was_prepared(pipeline, monkeypatch):
    load = examples.load_dataset
    monkeypatch.setattr(examples, "load_dataset", lambda *arguments: replace(load(*arguments), test="another"))
    again = run_in_process(*DATA, **pipeline[1])
    assert again.returncode == 2 and "test.json has changed since" in again.stderr and again.stderr.count("\n") == 1


def test_a_second_start_skips_and_other_settings_are_refused(pipeline):
    before = (pipeline[0] / "qlora_4bit" / "train_metrics.json").read_bytes()
    again = run_in_process(*TRAIN, **pipeline[1])
    assert again.returncode == 0 and "finished already, skipped" in again.stdout
    changed = run_in_process(*TRAIN, "--LEARNING_RATE=5e-4", **pipeline[1])
    assert changed.returncode == 2 and "LEARNING_RATE" in changed.stderr and changed.stderr.count("\n") == 1
    assert (pipeline[0] / "qlora_4bit" / "train_metrics.json").read_bytes() == before


def test_a_finished_run_without_its_merged_weights_merges_its_adapter_again(pipeline):
    """As an adapter is published."""
    directory = pipeline[0] / "qlora_4bit"
    assert {tensor.dtype for tensor in load_file(directory / "adapter" / "adapter_model.safetensors").values()} <= {
        torch.bfloat16, torch.float16
    }  # fmt: skip
    before = (directory / "merged" / "model.safetensors").read_bytes()
    shutil.rmtree(directory / "merged")
    done = run_in_process(*TRAIN, **pipeline[1])
    assert done.returncode == 0 and "finished already" in done.stdout
    assert (directory / "merged" / "model.safetensors").read_bytes() == before


def test_a_killed_run_resumes_and_ends_as_an_unbroken_one(pipeline):
    results, environment = pipeline
    step = training.TargetTrainer.training_step

    class Killed(BaseException):
        """Ends a run where it stands, as a kill does: no handler of the package takes it."""

    def dying(last):
        steps = []

        def die(*arguments):
            steps.append(1)
            if len(steps) == last:
                raise Killed
            return step(*arguments)

        return mock.patch.object(training.TargetTrainer, "training_step", die)

    for last in (7, 13):  # of 24 steps: within the first epoch, then, resumed at 6, in step 19, within the second
        with dying(last), pytest.raises(Killed):
            run_in_process(*TRAIN, "--RUN=killed", **environment)
    assert not (results / "killed" / "train_metrics.json").exists()
    resumed = run_in_process(*TRAIN, "--RUN=killed", **environment)
    assert resumed.returncode == 0, resumed.stderr
    assert "resuming from checkpoint-" in resumed.stdout
    assert_same_training(results / "qlora_4bit", results / "killed")


def test_a_killed_evaluation_goes_on_behind_what_it_has_decoded(pipeline):
    results, environment = pipeline
    continued, batches = generation.continued, []

    def dying(*arguments):
        batches.append(1)
        if len(batches) == 3:
            raise KeyboardInterrupt
        return continued(*arguments)

    ask = ("--SPLIT=test", "--MAX_NEW_TOKENS=8", "--BATCH_SIZE=2")
    run_in_process("evaluate.py", "--RUN=base_unbroken", *ask, **environment)
    with mock.patch.object(generation, "continued", dying):
        run_in_process("evaluate.py", "--RUN=base_killed", *ask, **environment)
        kept = results / "base_killed" / "decoded_test_0.jsonl"
        with open(kept, "a") as file:
            file.write('{"key": "to')  # torn
        done = run_in_process("evaluate.py", "--RUN=base_killed", *ask, **environment)
    assert done.returncode == 0, done.stderr
    assert "resuming behind 4 questions" in done.stdout and len(batches) == 3 + 2  # of 8 questions
    assert not kept.exists()
    written = [(results / run / "predictions_test.jsonl").read_text() for run in ("base_unbroken", "base_killed")]
    assert written[0] == written[1]


def test_what_another_model_decoded_is_not_taken(tmp_path):
    generation.KeptOutputs(tmp_path, "decoded_dev", "one").add({3: {"output": "x"}})
    assert generation.KeptOutputs(tmp_path, "decoded_dev", "one").rows == {3: {"output": "x"}}
    assert generation.KeptOutputs(tmp_path, "decoded_dev", "another").rows == {}


def assert_same_training(unbroken, broken):
    metrics = [read(run / "train_metrics.json") for run in (unbroken, broken)]
    for name in ("steps", "train_loss", "tokens_seen", "trainable_parameters"):
        assert metrics[0][name] == metrics[1][name], name
    scores = [[(row["step"], row["calibration_nll"]) for row in record["calibration"]] for record in metrics]
    assert scores[0] == scores[1]
    weights = [(run / "adapter" / "adapter_model.safetensors").read_bytes() for run in (unbroken, broken)]
    assert weights[0] == weights[1]


def test_outputs_are_scored_against_their_own_questions(pipeline, monkeypatch):
    results, environment = pipeline

    def first_wrong(model, tokenizer, dataset, *options):
        texts = ["add(1, 1)", *(f"\n {program}\nmore" for program in dataset["program"][1:])]
        return [{"output": text, "ended": True, "new_tokens": 9} for text in texts]

    monkeypatch.setattr(generation, "generate", first_wrong)
    done = run_in_process("evaluate.py", "--RUN=base_gold", "--SPLIT=dev", **environment)
    assert done.returncode == 0, done.stderr
    summary = read(results / "base_gold" / "eval_dev.json")
    assert [summary[name]["correct"] for name in ("execution_accuracy", "program_accuracy", "invalid")] == [7, 7, 0]
    rows = (results / "base_gold" / "predictions_dev.jsonl").read_text().splitlines()
    assert [json.loads(row)["execution_correct"] for row in rows] == [False] + [True] * 7


def test_a_run_stopped_after_its_last_step_ends_as_an_unbroken_one(pipeline, monkeypatch):
    """That step, in the middle of an epoch, left no checkpoint: from one the Trainer would take a step too many."""
    results, environment = pipeline
    part = (*TRAIN, "--EPOCHS=0.6", "--SAVE_STEPS=1")
    assert run_in_process(*part, "--RUN=part", **environment).returncode == 0
    unbroken, broken = results / "part", results / "part_stopped"
    with monkeypatch.context() as patch:
        patch.setattr(lora, "finish", lambda *arguments: (_ for _ in ()).throw(KeyboardInterrupt))
        assert run_in_process(*part, "--RUN=part_stopped", **environment).returncode == 130
    assert not (broken / "train_metrics.json").exists()
    torn = broken / "checkpoints" / "checkpoint-99"  # a kill while the Trainer wrote its state
    torn.mkdir()
    (torn / "trainer_state.json").write_text('{"global')
    resumed = run_in_process(*part, "--RUN=part_stopped", **environment)
    assert resumed.returncode == 0, resumed.stderr
    assert f"resuming from checkpoint-{read(unbroken / 'train_metrics.json')['steps'] - 1}" in resumed.stdout
    assert_same_training(unbroken, broken)


def test_a_disk_that_is_too_small_for_the_merged_model_is_said_before_anything_is_trained(pipeline, monkeypatch):
    results, environment = pipeline
    monkeypatch.setattr(runs.shutil, "disk_usage", lambda path: mock.Mock(free=100_000))
    done = run_in_process(*TRAIN, "--RUN=no_room", **environment)
    assert done.returncode == 2 and "GB free: free some" in done.stderr and done.stderr.count("\n") == 1
    assert not (results / "no_room").exists()


def test_a_whole_page_is_shown_whatever_the_budget_for_retrieved_lines(pipeline):
    results, environment = pipeline
    for run, mode in (("page_data", "page"), ("retrieved_data", "retrieved")):
        options = (f"--RUN={run}", f"--EVIDENCE={mode}", "--EVIDENCE_TOKENS=32", "--MAX_PROMPT_TOKENS=2048")
        done = run_in_process(*DATA, *options, **environment)
        assert done.returncode == 0, done.stderr
    page, retrieved = (
        read(results / run / "data_report.json")["splits"]["dev"] for run in ("page_data", "retrieved_data")
    )
    assert page["share_that_lost_lines"] == 0 and page["evidence_recall"] == 1
    assert retrieved["share_that_lost_lines"] == 1


def test_evaluation_scores_every_gold_question_and_shows_five(pipeline, tmp_path):
    results, environment = pipeline
    for run in ("base", "qlora_4bit"):
        done = run_in_process("evaluate.py", f"--RUN={run}", "--SPLIT=test", "--MAX_NEW_TOKENS=8", **environment)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("  question  ") == 5 and "outputs ended by themselves" in done.stdout
        summary = read(results / run / "eval_test.json")
        lines = (results / run / "predictions_test.jsonl").read_text().splitlines()
        assert summary["questions"] == len(lines) == 8 and summary["batch_size"] > 0
        assert {"id", "output", "program", "value", "execution_correct", "program_correct"} <= set(json.loads(lines[0]))
        assert sum(group["of"] for group in summary["steps"].values()) == 8
        assert sum(group["of"] for group in summary["evidence"].values()) == 8
    table = (results / "accuracy.csv").read_text()
    assert "base,shape:tiny,synthetic" in table and "qlora_4bit,shape:tiny,synthetic" in table
    again = run_in_process("evaluate.py", "--SPLIT=test", "--MAX_NEW_TOKENS=8", **environment)
    assert "evaluated already, skipped" in again.stdout
    # Prepared again under the same name, the questions or their answers are others.
    kept = shutil.copytree(results / "data" / "test", tmp_path / "kept")
    questions = datasets.load_from_disk(str(kept))
    shutil.rmtree(results / "data" / "test")
    questions.map(lambda row: {"exe_ans": "0.5"}).save_to_disk(str(results / "data" / "test"))
    again = run_in_process("evaluate.py", "--SPLIT=test", "--MAX_NEW_TOKENS=8", **environment)
    shutil.rmtree(results / "data" / "test")
    kept.rename(results / "data" / "test")
    assert again.returncode == 0 and "skipped" not in again.stdout


@pytest.mark.parametrize(
    ("fact", "value", "says"),
    [("base_model", "another", "was tokenised for another"), ("data_hash", "another", "as it was")],
)
def test_a_data_run_that_was_made_again_otherwise_gives_no_texts(pipeline, fact, value, says):
    path = pipeline[0] / "data" / "settings.json"
    before = path.read_text()
    record = json.loads(before)
    path.write_text(json.dumps(record | {fact: value}))
    calls = [("quantize_gptq.py", "--SOURCE_RUN=qlora_4bit/merged", "--RUN=never", "--CALIBRATION_EXAMPLES=4")]
    calls += [("evaluate.py", "--SPLIT=calibration", "--MAX_NEW_TOKENS=4")]
    done = [run_in_process(*call, **pipeline[1]) for call in calls]
    path.write_text(before)
    assert [(run.returncode, says in run.stderr, run.stderr.count("\n")) for run in done] == [(2, True, 1)] * 2
    assert not (pipeline[0] / "never").exists()


@pytest.mark.real
def test_a_checkpoint_as_the_base_is_scored_again_where_it_was_trained_again(pipeline, tmp_path):
    checkpoint = shutil.copytree(pipeline[0] / "qlora_4bit" / "merged", tmp_path / "checkpoint")
    environment = pipeline[1] | {"BASE_MODEL": str(checkpoint), "RESULTS_DIR": str(tmp_path / "results")}
    assert run_in_process(*DATA, **environment).returncode == 0
    evaluate = ("evaluate.py", "--RUN=base", "--SPLIT=test", "--MAX_NEW_TOKENS=4")
    first, second = (run_in_process(*evaluate, **environment) for _ in range(2))
    assert (first.returncode, second.returncode) == (0, 0) and "evaluated already" in second.stdout
    assert read(tmp_path / "results/base/eval_test.json")["share_of_base"] == 1
    doubled = {name: 2 * tensor for name, tensor in load_file(checkpoint / "model.safetensors").items()}
    save_file(doubled, checkpoint / "model.safetensors", {"format": "pt"})
    third = run_in_process(*evaluate, **environment)
    assert third.returncode == 2 and "results/base/ holds a run with other settings (source " in third.stderr


def test_calibration_questions_that_may_have_been_trained_on_are_not_scored(pipeline):
    results, environment = pipeline
    copy = results / "otherwise"
    shutil.copytree(results / "qlora_4bit", copy)
    runs.write_json(copy / "settings.json", read(copy / "settings.json") | {"data_hash": "otherwise"})
    asked = ("evaluate.py", "--RUN=otherwise", "--MAX_NEW_TOKENS=8")
    done = run_in_process(*asked, "--SPLIT=calibration", **environment)
    assert done.returncode == 2 and "was made otherwise when otherwise was trained" in done.stderr
    assert run_in_process(*asked, "--SPLIT=test", **environment).returncode == 0
    shutil.rmtree(copy)


@pytest.mark.real
def test_speed_and_size_of_an_adapter_are_those_of_it_on_its_base(pipeline):
    results, environment = pipeline
    script = ("benchmark_throughput.py", "--RUNS=['qlora_4bit']", "--ROUNDS=1", "--NEW_TOKENS=4", "--BATCH_SIZES=[2]")
    done = run_script(*script, **environment)
    assert done.returncode == 0, done.stderr
    base, adapter = (read(results / run / "throughput_cpu.json") for run in ("base", "qlora_4bit"))
    assert adapter["precision"] == "nf4" and "LoRA on" in adapter["kernel"] and "LoRA" not in base["kernel"]
    assert adapter["ceiling"]["bytes_per_token"] > base["ceiling"]["bytes_per_token"]
    report = read(results / "data" / "data_report.json")["splits"]["dev"]["prompt_tokens"]
    assert adapter["prefill"]["p95"]["prompt_tokens"] == report["p95"] and adapter["data"]["source"] == "synthetic"


def test_a_calibration_page_among_the_extra_questions_is_refused(pipeline, tmp_path):
    train = examples.load_dataset("synthetic").splits["train"]
    leaked = examples.carve_calibration(train, 8, 0)[1][0].page
    asked = {"uid": "q", "question": "?", "answer_type": "arithmetic", "derivation": "3-2", "answer": 1, "scale": ""}
    page = {
        "table": {"uid": leaked, "table": [["", "a"], ["b", "3"], ["c", "2"]]},
        "paragraphs": [],
        "questions": [asked],
    }
    (tmp_path / "train.json").write_text(json.dumps([page]))
    done = run_in_process(*DATA, "--RUN=leak", f"--EXTRA_DATA_DIR={tmp_path}", **pipeline[1])
    assert done.returncode == 2 and f"page {leaked} is in train and in calibration" in done.stderr
    assert not (pipeline[0] / "leak").exists()
    (tmp_path / "train.json").write_text(json.dumps([page | {"table": page["table"] | {"uid": "another"}}]))
    done = run_in_process(*DATA, "--RUN=more", f"--EXTRA_DATA_DIR={tmp_path}", **pipeline[1])
    assert done.returncode == 0 and "and 1 arithmetic questions of TAT-QA" in done.stdout
    report = json.loads((pipeline[0] / "more" / "data_report.json").read_text())
    assert report["splits"]["train"]["examples"] == 49 and report["extra"]["usable"] == 1


def test_page_questions_are_made_beside_all_pages_that_are_held_out(pipeline, monkeypatch):
    beside = []
    monkeypatch.setattr(from_pages, "make", lambda examples, count, seed, held_out: beside.extend(held_out) or [])
    done = run_in_process(*DATA, "--RUN=beside", "--PAGE_QUESTIONS=20", **pipeline[1])
    assert done.returncode == 0, done.stderr
    ids = {example.id for example in beside}
    for split in ("calibration", "dev", "test"):
        assert {*datasets.load_from_disk(str(pipeline[0] / "beside" / split))["id"]} <= ids


def test_a_run_with_other_page_questions_is_another_one(pipeline, monkeypatch):
    script = (*DATA, "--RUN=few_made", "--PAGE_QUESTIONS=4")
    assert run_in_process(*script, **pipeline[1]).returncode == 0
    assert "finished already" in run_in_process(*script, **pipeline[1]).stdout
    make = from_pages.make
    monkeypatch.setattr(from_pages, "make", lambda *arguments: make(*arguments)[1:])  # as where a page is held out now
    done = run_in_process(*script, **pipeline[1])
    assert done.returncode == 2 and "other settings (page_questions " in done.stderr


def test_a_run_goes_on_from_the_adapter_of_another_also_on_more_data(pipeline, monkeypatch):
    results, environment = pipeline
    begun = []  # the pass that the figures of each training begin with

    class Rows(training.TrainingRows):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            begun.append(self.first_pass)

    monkeypatch.setattr(training, "TrainingRows", Rows)
    done = run_in_process(*DATA, "--RUN=made", "--PAGE_QUESTIONS=20", **environment)
    assert done.returncode == 0 and "20 questions made from" in done.stdout
    assert read(results / "made" / "data_report.json")["splits"]["train"]["examples"] == 68
    script = (*TRAIN, "--DATA_RUN=made", "--RUN=longer", "--START_FROM=qlora_4bit", "--LEARNING_RATE=1e-30",
              "--MERGE=False")  # fmt: skip
    done = run_in_process(*script, **environment)
    assert done.returncode == 0 and "merged" not in done.stdout, done.stderr
    assert not (results / "longer" / "merged").exists()
    before, after = (
        load_file(results / run / "adapter" / "adapter_model.safetensors") for run in ("qlora_4bit", "longer")
    )
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert read(results / "longer" / "settings.json")["source"]
    assert begun == [1]  # the other has seen the examples' own figures
    (results / "qlora_4bit" / "adapter").rename(results / "away")
    again = run_in_process(*script, **environment)  # as where only the last adapter is published
    (results / "away").rename(results / "qlora_4bit" / "adapter")
    assert again.returncode == 0 and "finished already" in again.stdout
    assert not (results / "longer" / "merged").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((*TRAIN, "--RUN=a", "--START_FROM=nothing"), "'nothing' does not exist"),
        ((*TRAIN, "--RUN=a", "--START_FROM=qlora_4bit", "--LORA_RANK=8"), "with LORA_RANK = 4: set it so, not to 8"),
        (("train_lora_8bit.py", "--RUN=a", "--START_FROM=qlora_4bit"), "has no adapter on a base in int8"),
        (("train_qlora_4bit.py", "--RUN=a", "--START_FROM=qlora_4bit/merged"), "has no adapter on a base in nf4"),
        (("evaluate.py", "--RUN=nothing"), "'nothing' does not exist"),
        (("evaluate.py", "--RUN=base_a", "--BASE_MODEL=smollm2-135m"), "tokenised for shape:tiny"),
        (
            ("evaluate.py", "--RUN=base_a", "--MAX_NEW_TOKENS=2000"),
            "is more than the model's context of 2048: lower it",
        ),
        (("evaluate.py", "--SPLIT=tset"), "did you mean 'test'"),
        (("evaluate.py", "--PREDICTIONS=nothing.json"), "nothing.json cannot be read"),
        (("train_qlora_4bit.py", "--RUN=a", "--DATA_RUN=nothing"), "'nothing' does not exist"),
        (("train_qlora_4bit.py", "--RUN=a", "--SAVE_STEPS=7"), "multiple of LOGGING_STEPS"),
        (("train_qlora_4bit.py", "--RUN=a", "--BASE_MODEL=smollm2-135m"), "tokenised for shape:tiny"),
        (("train_qlora_4bit.py", "--RUN=../a"), "no run name"),
        (("preprocess_data.py", "--RUN=a", "--EVIDENCE=papge"), "did you mean 'page'"),
        ((*DATA, "--RUN=a", "--MAX_PROMPT_TOKENS=20"), "which are never cut, have "),
        (("preprocess_data.py", "--RUN=a", "--DATA_DIR=/nothing/here"), "is no folder"),
        (("preprocess_data.py", "--RUN=a", "--BASE_MODEL=/nothing/here"), "no folder here"),
        (("preprocess_data.py", "--RUN=a", "--CALIBRATION_EXAMPLES=2900"), "more than half"),
    ],
)
def test_bad_input_is_one_line_and_status_2(pipeline, arguments, says):
    done = run_in_process(*arguments, **pipeline[1])
    assert done.returncode == 2
    assert says in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert not (pipeline[0] / "a").exists() and not (pipeline[0] / "base_a").exists()


def test_gold_evidence_shows_every_operand(pipeline):
    results, environment = pipeline
    done = run_in_process(*DATA, "--RUN=gold", "--EVIDENCE=gold", **environment)
    assert done.returncode == 0, done.stderr
    assert read(results / "gold" / "data_report.json")["splits"]["train"]["evidence_recall"] == 1


def test_a_broken_example_is_skipped_counted_and_listed(pipeline, tmp_path):
    from fincompress.finqa import synthetic

    results, environment = pipeline
    records = {split: synthetic.generate(split, 60) for split in ("train", "dev", "test")}
    del records["train"][5]["qa"]["question"]
    for split, raw in records.items():
        (tmp_path / f"{split}.json").write_text(json.dumps(raw))
    done = run_in_process(
        *DATA, "--RUN=broken_data", "--TRAIN_EXAMPLES=30", **environment | {"DATA_DIR": str(tmp_path)}
    )
    assert done.returncode == 0, done.stderr
    report = read(results / "broken_data" / "data_report.json")
    (skipped,) = report["skipped"]
    assert skipped["id"] == records["train"][5]["id"] and "question" in skipped["reason"]
    assert skipped["split"] == "train" and "1 broken examples are left out" in done.stdout


def test_a_damaged_adapter_is_one_line(pipeline):
    results, environment = pipeline
    adapter = results / "qlora_4bit" / "adapter" / "adapter_model.safetensors"
    whole = adapter.read_bytes()
    adapter.write_bytes(whole[:100])
    try:
        done = run_in_process("evaluate.py", "--RUN=qlora_4bit", "--SPLIT=dev", **environment)
    finally:
        adapter.write_bytes(whole)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr


@pytest.mark.real
def test_the_hub_token_stays_out_of_output_and_files(pipeline):
    results, environment = pipeline
    done = run_script(*DATA, "--RUN=token", HF_TOKEN="hf_SecretSecretSecret", **environment)
    assert done.returncode == 0 and "SecretSecret" not in done.stdout + done.stderr
    for path in (results / "token").rglob("*"):
        assert not path.is_file() or b"SecretSecret" not in path.read_bytes(), path


def test_a_bad_name_is_refused_before_a_base_model_is_made(tmp_path):
    done = run_in_process("preprocess_data.py", "--RUN=.x", "--BASE_MODEL=shape:tiny", f"--RESULTS_DIR={tmp_path}")
    assert done.returncode == 2 and "is no run name" in done.stderr and not list(tmp_path.iterdir())
