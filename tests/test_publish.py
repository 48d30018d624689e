"""What is published of a run: its records, of predictions the programs and verdicts, and nothing that FinQA wrote."""

import json

import made_up_runs as made
import pytest
from scripts import run_in_process

from fincompress import runs


@pytest.fixture
def results(tmp_path):
    root = tmp_path / "results"
    made.model(root, "qlora_4bit/merged", "QLoRA fine-tuned", [], 0.42, 1.0, 0)
    made.settings(root / "qlora_4bit", "train_qlora_4bit.py")
    runs.write_json(root / "qlora_4bit" / "train_metrics.json", {"tokens_seen": 1})
    (root / "qlora_4bit" / "merged" / "model.safetensors").write_bytes(b"weights")
    made.model(root, "gptq_4bit", "GPTQ 4-bit", [], 0.41, 0.43, 0)
    said = {"id": "P/0", "question": "what was sales?", "output": "x", "program": "add(1, 2)", "gold": "add(1, 1)",
            "execution_correct": True, "program_correct": False}  # fmt: skip
    runs.write_jsonl(root / "gptq_4bit" / "predictions_dev.jsonl", [said])
    made.settings(root / "unfinished", "train_qlora_4bit.py")
    return root


def publish(results, to, *arguments):
    return run_in_process("benchmarks/publish.py", f"--RESULTS_DIR={results}", f"--TO={to}", *arguments)


def test_records_and_predicted_programs_are_copied_without_weights_and_without_what_finqa_wrote(results, tmp_path):
    done = publish(results, tmp_path / "to")
    assert done.returncode == 0 and "3 runs" in done.stdout, done.stderr
    files = {path.relative_to(tmp_path / "to").as_posix() for path in (tmp_path / "to").rglob("*") if path.is_file()}
    assert {"qlora_4bit/train_metrics.json", "qlora_4bit/merged/eval_dev.json", "gptq_4bit/settings.json"} <= files
    assert not [name for name in files if "safetensors" in name or "unfinished" in name]
    (kept,) = (json.loads(line) for line in (tmp_path / "to/gptq_4bit/predictions_dev.jsonl").read_text().splitlines())
    assert kept == {"id": "P/0", "program": "add(1, 2)", "execution_correct": True, "program_correct": False}


def test_runs_that_are_named_are_copied_with_what_lies_under_them_alone(results, tmp_path):
    assert publish(results, tmp_path / "to", "--RUNS=['qlora_4bit']").returncode == 0
    assert {path.name for path in (tmp_path / "to").iterdir()} == {"qlora_4bit"}


def test_what_a_person_gets_wrong_is_one_line_and_changes_nothing(results, tmp_path):
    for to, more, says in (
        (results, (), "TO is where the runs lie"),
        (tmp_path / "to", ("--RUNS=['nothing']",), "there is no finished run of RUNS"),
    ):
        done = publish(results, to, *more)
        assert done.returncode == 2 and says in done.stderr and done.stderr.count("\n") == 1
    (results / "gptq_4bit" / "predictions_dev.jsonl").write_text("{")
    done = publish(results, tmp_path / "to")
    assert done.returncode == 2 and "is damaged" in done.stderr and not (tmp_path / "to").exists()
