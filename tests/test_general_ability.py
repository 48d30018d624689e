"""benchmarks/general_ability.py on a made-up archive and a tiny model."""

import io
import json
import runpy
import tarfile

import pytest
import torch
from scripts import run_in_process

from fincompress import models

SCRIPT = "benchmarks/general_ability.py"
PREFIX = "bigbench-1.0.0/bigbench/benchmark_tasks"


@pytest.fixture
def archive(tmp_path):
    """An archive like the package's, of a multiple-choice task in a folder of another and one without options."""
    choices = {"yes": 0, "no , never": 1, "perhaps": 0}
    tasks = {
        "first/part": [{"input": f"is {number} odd?", "target_scores": choices} for number in range(0, 20, 2)],
        "written": [{"input": "1 + 1", "target": "2"}],
    }
    path = tmp_path / "bigbench.tar.gz"
    with tarfile.open(path, "w:gz") as file:
        for name, examples in tasks.items():
            content = json.dumps({"examples": examples}).encode()
            member = tarfile.TarInfo(f"{PREFIX}/{name}/task.json")
            member.size = len(content)
            file.addfile(member, io.BytesIO(content))
    return path


def compare(archive, results_dir, task="first/part"):
    return run_in_process(
        SCRIPT, '--RUNS=["base", "base_again"]', f"--ARCHIVE={archive}", f'--TASKS=["{task}"]', "--QUESTIONS=8",
        BASE_MODEL="shape:tiny", RESULTS_DIR=results_dir,
    )  # fmt: skip


def test_a_model_is_no_better_than_itself(archive, results_dir, tiny_base):
    done = compare(archive, results_dir)
    assert done.returncode == 0, done.stderr
    assert "first/part: 8 questions, by chance 33.3 % right" in done.stdout
    again = [line for line in done.stdout.splitlines() if line.startswith("base_again ")]
    assert len(again) == 2 and all(line.endswith("+0.0 [+0.0, +0.0]") for line in again)  # the task, and all


def test_the_likeliest_option_is_the_answer(monkeypatch):
    judge = runpy.run_path(SCRIPT)["judge"]
    monkeypatch.setitem(judge.__globals__, "log_likelihoods", lambda *_: [-3.0, -1.0, -2.0])
    asked = [{"prompt": "", "target_scores": {"a": 0, "b": b, "c": 1 - b}} for b in (1, 0)]
    assert judge(None, None, "t", asked) == {"t 0": True, "t 1": False}


def test_an_option_is_as_likely_as_its_part_of_the_whole_text(results_dir, tiny_base):
    model, tokenizer = models.load_run(tiny_base, str(results_dir), torch.device("cpu"), torch.float32)
    prompt, options = "Q: is 4 odd?\nA:", [" no , never in all these years", " yes"]
    for likelihood, option in zip(
        runpy.run_path(SCRIPT)["log_likelihoods"](model, tokenizer, prompt, options), options, strict=True
    ):
        start, ids = len(tokenizer(prompt).input_ids), torch.tensor([tokenizer(prompt + option).input_ids])
        with torch.inference_mode():
            chances = model(input_ids=ids).logits.log_softmax(-1)[0, start - 1 : -1]
        assert likelihood == pytest.approx(float(chances.gather(-1, ids[0, start:, None]).sum()), abs=1e-3)


@pytest.mark.parametrize("task", ["written", "nowhere"])
def test_a_task_without_options_is_one_line(archive, results_dir, tiny_base, task):
    done = compare(archive, results_dir, task)
    assert done.returncode == 2
    assert done.stderr == f"error: TASKS: {archive} has no multiple-choice task '{task}'\n"


@pytest.mark.parametrize("content", [None, b"no archive"])
def test_an_archive_that_is_missing_or_broken_is_one_line(tmp_path, results_dir, tiny_base, content):
    path = tmp_path / "bigbench.tar.gz"
    if content:
        path.write_bytes(content)
    done = compare(path, results_dir)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: ARCHIVE = {path} is n") and done.stderr.count("\n") == 1
