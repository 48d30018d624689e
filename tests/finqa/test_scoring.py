"""Intervals, matching of bare answers, prediction files, and evaluate.py on a file of predictions."""

import json
import math
import shutil

import pytest
from scripts import FINQA, needs_finqa, run_in_process

from fincompress.errors import UserError
from fincompress.finqa import program, scoring, synthetic
from fincompress.runs import write_jsonl

TABLE = [["", "2010", "2009"], ["revenue", "30", "20"]]


def question(text="subtract(30, 20), divide(#0, 20)", exe_ans=0.5, where="table"):
    return {"program": text, "exe_ans": exe_ans, "table": TABLE, "evidence_location": where}


def strict_json(text):
    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    return json.loads(text, parse_constant=refuse)


# --- intervals and counts -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("successes", "total", "low", "high"),
    [
        (0, 10, 0.0, 0.2775),
        (5, 10, 0.2366, 0.7634),
        (10, 10, 0.7225, 1.0),
        # Newcombe, Statistics in Medicine 17 (1998), table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_interval_is_wilsons(successes, total, low, high):
    scores = scoring.accuracy([place < successes for place in range(total)])
    assert scores["interval"] == pytest.approx((low, high), abs=5e-5)


def test_accuracy_counts_and_divides():
    assert scoring.accuracy([True, False, False]) == {
        "accuracy": 0.33333, "interval": [0.06149, 0.79234], "correct": 1, "of": 3
    }  # fmt: skip


def test_summary_counts_by_steps_operation_and_evidence():
    asked = [
        question("divide(30, 20), divide(#0, 20), add(#1, 1)", where="both"),
        question("divide(30, 20)", where="table"),
        question("table_sum(revenue, none)", where="table"),
    ]
    verdicts = [{"execution_correct": x, "program_correct": x, "invalid": False} for x in (True, False, True)]
    counts = {
        group: {key: (value["correct"], value["of"]) for key, value in values.items()}
        for group, values in scoring.summarize(verdicts, asked).items()
        if group in ("steps", "operation", "evidence")
    }
    assert counts == {
        "steps": {"1": (1, 2), "3": (1, 1)},
        "operation": {"add": (1, 1), "divide": (1, 2), "table_sum": (1, 1)},
        "evidence": {"both": (1, 1), "table": (1, 2)},
    }


def test_summary_refuses_a_question_without_a_verdict():
    with pytest.raises(ValueError, match="zip"):
        scoring.summarize([{"execution_correct": True}], [question(), question()])


def test_summary_of_programs_counts_each_metric():
    asked = [question() for _ in range(4)]
    texts = ["subtract(30, 20), divide(#0, 20)", "divide(10, 20)", "divide(30, 20)", "the answer is 0.5"]
    verdicts = [scoring.score_program(program.tokenize(x), q) for x, q in zip(texts, asked, strict=True)]
    summary = scoring.summarize(verdicts, asked)
    assert summary["questions"] == 4
    assert [summary[x]["correct"] for x in ("execution_accuracy", "program_accuracy", "invalid")] == [2, 1, 1]


# --- one verdict ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value", "invalid", "execution", "formula"),
    [
        ("subtract(30, 20), divide(#0, 20)", 0.5, False, True, True),
        ("divide(10, 20)", 0.5, False, True, False),
        ("divide(30, 20)", 1.5, False, False, False),
        ("divide(30, 0)", None, True, False, False),
        ("", None, True, False, False),  # merely wrong to the official evaluator, but nothing could be computed
        ("0.5", None, True, False, False),
        ("greater(30, 20)", "yes", False, False, False),
    ],
)
def test_verdict_on_a_program(text, value, invalid, execution, formula):
    verdict = scoring.score_program(program.tokenize(text), question())
    assert verdict == {
        "program": text, "value": value, "invalid": invalid, "execution_correct": execution, "program_correct": formula
    }  # fmt: skip


def test_a_table_operation_reads_the_question_s_table():
    text = "table_sum(revenue, none)"
    verdict = scoring.score_program(program.tokenize(text), question(text, 50.0))
    assert verdict["value"] == 50.0 and verdict["execution_correct"] and verdict["program_correct"]


@pytest.mark.parametrize("text", ["multiply(1e300, 1e300)", "subtract(inf, inf)"])
def test_a_result_that_json_cannot_hold_has_no_value(text):
    verdict = scoring.score_program(program.tokenize(text), question())
    assert strict_json(json.dumps(verdict)) == verdict
    assert (verdict["value"], verdict["execution_correct"]) == (None, False)


# --- prediction files -----------------------------------------------------------------------------------------------

TOKENS = ["divide(", "30", "20", ")", "EOF"]


@pytest.mark.parametrize(
    "text",
    [
        json.dumps([{"id": "a", "predicted": TOKENS}, {"id": "b", "predicted": ["EOF"]}]),
        "\n " + json.dumps([{"id": "a", "predicted": TOKENS}, {"id": "b", "predicted": ["EOF"]}], indent=1),
        '{"id": "a", "program": "divide(30, 20)"}\n{"id": "b", "program": ""}\n',
        '{"id": "a", "program": " \\n divide(30, 20)\\nor so"}\n{"id": "b", "program": "\\n"}\n',  # as it was decoded
        '\n{"id": "a", "program": "divide(30, 20)", "value": 1.5}\r\n\n{"id": "b", "predicted": ["EOF"]}',
        '[{"id": "a", "program": "divide(30, 20)"}, {"id": "b", "program": ""}]',
        '\ufeff[{"id": "a", "program": "divide(30, 20)"}, {"id": "b", "program": ""}]',  # a byte order mark
    ],
)
def test_predictions_are_read_from_either_format(tmp_path, text):
    path = tmp_path / "predictions.json"
    path.write_bytes(text.encode())
    assert scoring.read_predictions(path) == {"a": TOKENS, "b": ["EOF"]}


def test_own_predictions_are_read_back(tmp_path):
    path = tmp_path / "predictions_dev.jsonl"
    junk = "a\u2028b\x85c\x1cd\n\re"  # what a model may write, and str.splitlines() takes for ends of lines
    write_jsonl(path, [{"id": "a", "output": junk, "program": "a"}, {"id": "b", "output": None, "program": ""}])
    assert scoring.read_predictions(path) == {"a": ["a", "EOF"], "b": ["EOF"]}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "holds no prediction"),
        (b"[]", "holds no prediction"),
        (b"not json", "cannot be read as a JSON list or JSONL"),
        (b'[{"id": "a", ', "cannot be read as a JSON list or JSONL"),
        (b"[" * 100_000, "cannot be read as a JSON list or JSONL"),
        (b'\xff{"id": "a"}', "cannot be read as a JSON list or JSONL"),
        (b'{"id": "a", "program": "x"}\n{"id": "b"}', "record 2: expected"),
        (b'[{"id": "a", "program": "x"}, ["b"]]', "record 2: expected"),
        (b'[["a"]]', "record 1: expected"),
        (b'{"a": "divide(1, 2)"}', "record 1: expected"),
        (b'[{"id": 1, "predicted": ["EOF"]}]', "record 1: expected"),
        (b'[{"id": "a", "predicted": [1, 2]}]', "record 1: expected"),
        (b'[{"id": "a", "predicted": "divide(1, 2)"}]', "record 1: expected"),
        (b'[{"id": "a", "program": null}]', "record 1: expected"),
        (b'[{"id": "a", "program": "x"}, {"id": "b", "program": "x"}, {"id": "a", "program": "y"}]',
         "record 3: a stands twice"),
    ],
)  # fmt: skip
def test_bad_predictions_are_refused_with_their_place(tmp_path, content, said):
    path = tmp_path / "predictions.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=said) as raised:
        scoring.read_predictions(path)
    assert str(path) in str(raised.value) and "\n" not in str(raised.value)


def test_missing_predictions_are_one_line(tmp_path):
    with pytest.raises(UserError, match="No such file"):
        scoring.read_predictions(tmp_path / "none.json")


# --- evaluate.py on a file ------------------------------------------------------------------------------------------


def evaluate(folder, predictions, *arguments, data="synthetic"):
    """Run evaluate.py on a file of predictions, its results in ``folder``/results."""
    path = folder / "guess.json"
    path.write_text(predictions if isinstance(predictions, str) else json.dumps(predictions))
    places = (f"--PREDICTIONS={path}", f"--DATA_DIR={data}", f"--RESULTS_DIR={folder / 'results'}")
    return run_in_process("evaluate.py", *places, *arguments)


def test_question_without_a_prediction_counts_as_wrong(tmp_path):
    first, second, third, fourth = synthetic.generate("dev", count=4)
    done = evaluate(
        tmp_path,
        [
            {"id": first["id"], "predicted": program.tokenize(first["qa"]["program"])},
            {"id": second["id"], "program": "divide(1, 0)"},
            {"id": third["id"], "program": "multiply(1e300, 1e300)"},
            {"id": fourth["id"], "program": fourth["qa"]["program"]},
            {"id": "of another split", "program": "divide(1, 2)"},
        ],
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "4 of 400 questions of dev are answered by 5 predictions" in done.stdout
    folder = tmp_path / "results" / "predictions" / "guess"
    summary = strict_json((folder / "eval_dev.json").read_text())
    questions = synthetic.DEFAULT_COUNTS["dev"]
    assert (summary["questions"], summary["answered"], summary["data"]["source"]) == (questions, 4, "synthetic")
    for name, correct in (
        ("execution_accuracy", 2),
        ("program_accuracy", 2),
        ("invalid", 397),
    ):  # 396 of them without a prediction
        assert (summary[name]["correct"], summary[name]["of"]) == (correct, questions)
    for group in ("steps", "evidence"):
        assert sum(score["of"] for score in summary[group].values()) == questions
        assert sum(score["correct"] for score in summary[group].values()) == 2
    verdicts = [strict_json(line) for line in (folder / "predictions_dev.jsonl").read_text().splitlines()]
    assert len({verdict["id"] for verdict in verdicts}) == questions
    assert [verdict["output"] is None for verdict in verdicts[:5]] == [False] * 4 + [True]
    assert (tmp_path / "results" / "accuracy.csv").read_text().count("\n") == 2
    (tmp_path / "other").mkdir()
    shutil.copy(tmp_path / "guess.json", tmp_path / "other" / "guess.json")
    done = run_in_process(
        "evaluate.py", f"--PREDICTIONS={tmp_path / 'other' / 'guess.json'}", "--DATA_DIR=synthetic",
        f"--RESULTS_DIR={tmp_path / 'results'}",
    )  # fmt: skip
    assert done.returncode == 2 and "another file of that name: rename one of them" in done.stderr


@pytest.mark.parametrize(
    ("predictions", "arguments", "said"),
    [
        ("{", [], "cannot be read as a JSON list or JSONL"),
        ([{"id": "other", "program": "divide(1, 2)"}], [], "holds no id of dev (its first is other)"),
        ([{"id": "a"}], ["--SPLIT=calibration"], "SPLIT is one of 'train', 'dev', 'test', not 'calibration'"),
        ([{"id": "a", "program": ""}], ["--DATA_DIR=nowhere"], "DATA_DIR=nowhere is no folder"),
    ],
)
def test_bad_predictions_are_one_line_and_leave_no_result(tmp_path, predictions, arguments, said):
    done = evaluate(tmp_path, predictions, *arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and said in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / "results").exists()


@needs_finqa
def test_gold_programs_of_the_release_score_full_marks(tmp_path):
    records = json.loads((FINQA / "dev.json").read_text())
    gold = [{"id": r["id"], "predicted": program.tokenize(r["qa"]["program"])} for r in records]
    done = evaluate(tmp_path, gold, data=FINQA)
    assert (done.returncode, done.stderr) == (0, "")
    summary = strict_json((tmp_path / "results" / "predictions" / "guess" / "eval_dev.json").read_text())
    for name, correct in (("execution_accuracy", 883), ("program_accuracy", 883), ("invalid", 0)):
        assert (summary[name]["correct"], summary[name]["of"]) == (correct, 883)
    assert summary["data"]["source"] == "FinQA"


@pytest.mark.parametrize(
    ("text", "exe_ans", "correct"),
    [
        ("divide(1, 3)", 0.33333, True),
        ("divide(1, 3)", 0.33334, False),
        ("add(1, 2)", 3.0, True),
        ("add(1, 2), divide(#0, 0)", 3.0, False),
        ("greater(2, 1)", "yes", True),
        ("greater(1, 2)", "yes", False),
        ("", "yes", False),
        ("subtract(inf, inf)", math.nan, False),
    ],
)
def test_a_result_is_right_only_exactly(text, exe_ans, correct):
    example = {"table": [], "exe_ans": exe_ans, "program": "add(1, 2)"}
    assert scoring.score_program(program.tokenize(text), example)["execution_correct"] is correct
