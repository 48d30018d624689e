"""benchmarks/error_kinds.py on made-up predictions: which kind a wrong answer is of, and what was lost."""

import json
import runpy

import datasets
import pytest
from scripts import run_in_process

from fincompress import runs
from fincompress.finqa import program, scoring

SCRIPT = "benchmarks/error_kinds.py"
PROMPT = "in millions|2023|2022\npumps|84.2|79.5\nservice|12.6|9.8\nQuestion: what was the change in pumps?\nProgram:\n"
GOLD = {"program": "subtract(84.2, 79.5)", "exe_ans": 4.7, "prompt": PROMPT, "table": [["pumps", "84.2", "79.5"]]}


def verdict(text, question, name="q"):
    return {"id": name, **scoring.score_program(program.tokenize(text), question)}


@pytest.mark.parametrize(
    "text, kind, gold",
    [
        ("add(84.2, -79.5)", "right", {}),
        ("subtract(12.6, 9.8)", "evidence not shown", {"program": "subtract(84.3, 79.5)", "exe_ans": 4.8}),
        ("subtract(84.2, oranges)", "does not execute", {}),
        ("", "does not execute", {}),
        ("subtract(84.7, 79.5)", "figure not shown", {}),
        ("divide(84.2, 79.5)", "other operations", {}),
        ("subtract(84.2, 79.5), divide(#0, 79.5)", "other operations", {}),
        ("subtract(12.6, 9.8)", "other figures", {}),
        ("table_max(service, none)", "other operations", {"program": "table_sum(pumps, none)", "exe_ans": 163.7}),
        ("table_sum(service, none)", "other figures", {"program": "table_sum(pumps, none)", "exe_ans": 163.7}),
        ("subtract(79.5, 84.2)", "order, sign or constant", {}),
    ],
)
def test_a_wrong_answer_is_of_the_first_kind_that_fits(text, kind, gold):
    question = GOLD | {"table": [*GOLD["table"], ["service", "12.6", "9.8"]]} | gold
    assert runpy.run_path(SCRIPT)["kind"](verdict(text, question), question) == kind


@pytest.fixture
def results(tmp_path):
    """Two runs on four questions: the second loses one by a digit, and gains another."""
    questions = [GOLD | {"id": name} for name in "abcd"]
    datasets.Dataset.from_list(questions).save_to_disk(tmp_path / "data" / "dev")
    for name in ("settings", "data_report"):
        runs.write_json(tmp_path / "data" / f"{name}.json", {"base_model": "x"})
    right, turned, digit = "subtract(84.2, 79.5)", "subtract(79.5, 84.2)", "subtract(84.7, 79.5)"
    for run, texts in {"whole": [right, right, turned, turned], "small": [right, digit, turned, right]}.items():
        runs.write_json(tmp_path / run / "settings.json", {"settings": {"DATA_RUN": "data"}})
        verdicts = [verdict(text, question, question["id"]) for text, question in zip(texts, questions, strict=True)]
        runs.write_jsonl(tmp_path / run / "predictions_dev.jsonl", verdicts)
    return tmp_path


def compare(results, *arguments):
    return run_in_process(SCRIPT, '--RUNS=["whole", "small"]', f"--RESULTS_DIR={results}", *arguments)


def test_shares_add_up_and_what_was_lost_stands_under_its_kind(results):
    done = compare(results)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert {name: share for name, share in report["shares"]["small"].items() if share} == {
        "right": 50, "figure not shown": 25, "order, sign or constant": 25,
    }  # fmt: skip
    assert sum(report["shares"]["whole"].values()) == 100
    compared = report["compared"]["small"]
    assert compared["lost: figure not shown"] == compared["lost in all"] == compared["gained"] == "25.0"
    assert compared["right"].startswith("+0.0 [") and compared["figure not shown"].startswith("+25.0 [")


def test_runs_of_other_questions_are_one_line(results):
    path = results / "small" / "predictions_dev.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:3]))
    done = compare(results)
    assert done.returncode == 2
    assert done.stderr == "error: small and whole were not evaluated on the same questions\n"


@pytest.mark.parametrize(
    "kept, said",
    [(None, "does not exist"), ((), "has no programs"), (("id", "execution_correct"), "has no programs")],
)
def test_predictions_that_are_missing_empty_or_published_are_one_line(results, kept, said):
    path = results / "small" / "predictions_dev.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.unlink()
    if kept is not None:
        runs.write_jsonl(path, [{name: row[name] for name in kept} for row in rows if kept])
    done = compare(results)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and said in done.stderr


def test_no_run_is_one_line():
    done = run_in_process(SCRIPT, "--RUNS=[]")
    assert done.returncode == 2
    assert done.stderr == "error: RUNS is empty: name a run that evaluate.py has scored\n"
