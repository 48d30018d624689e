"""TAT-QA's questions become FinQA records: programs that give the answer, pages in FinQA's form."""

import json
import os
from pathlib import Path

import pytest

from fincompress.errors import UserError
from fincompress.finqa import evidence, numbers, program, tatqa

PAGE = {
    "table": {
        "uid": "page-1",
        "table": [["", "", "Years ended June 30,"], ["", "2019", "2018"], ["Net sales", "$ 1,250.5", "$ 1,000.0"],
                  ["Loss", "(2,085)", "(3,343)"], ["Rate", "2.5%", "2%"]],
    },
    "paragraphs": [
        {"uid": "p2", "order": 2, "text": "The loss of $2,085 was expected."},
        {"uid": "p1", "order": 1, "text": "Sales grew \u2013 by 12. Orders were 40."},
    ],
    "questions": [],
}  # fmt: skip


def question(derivation, answer, scale="", **fields):
    return {"uid": "q", "question": "What was It?", "answer_type": "arithmetic", "derivation": derivation,
            "answer": answer, "scale": scale} | fields  # fmt: skip


@pytest.mark.parametrize(
    ("derivation", "answer", "scale", "text", "value"),
    [
        ("1,250.5-1,000.0", 250.5, "million", "subtract(1250.5, 1000.0)", 250.5),
        ("($1,250.5 - 1,000.0)/1,000.0", 25.05, "percent", "subtract(1250.5, 1000.0), divide(#0, 1000.0)", 0.2505),
        ("((1,250.5-1,000.0)/1,000.0)*100", "25.05", "percent", "subtract(1250.5, 1000.0), divide(#0, 1000.0)", 0.2505),
        ("-2,085-(-3,343)", "1,258", "thousand", "subtract(-2085, -3343)", 1258),
        ("[1,250.5 + 1,000.0] / 2", 1125.25, "million", "add(1250.5, 1000.0), divide(#0, const_2)", 1125.25),
        ("-(2,085+3,343)/2", -2714, "", "add(2085, 3343), multiply(#0, const_m1), divide(#1, const_2)", -2714),
        ("2.5% - 2%", 0.5, "percent", "subtract(2.5, 2)", 0.5),
        ("40/12 - 2", 1.33, "", "divide(40, 12), subtract(#0, 2)", 1.33333),
        ("40*100", 4000, "", "multiply(40, const_100)", 4000),
        ("40/12 - 1", 233.33, "percent", "divide(40, 12), subtract(#0, const_1)", 2.33333),
    ],
)
def test_a_derivation_becomes_a_program_that_gives_the_answer(derivation, answer, scale, text, value):
    record = tatqa.convert_question(PAGE, question(derivation, answer, scale))
    assert (record["qa"]["program"], record["qa"]["exe_ans"]) == (text, value)
    assert program.execute(program.tokenize(text), record["table"]) == value


@pytest.mark.parametrize(
    ("derivation", "answer", "reason"),
    [
        ("1,250.5-1,000.0", 251.5, "does not give the answer"),
        ("1,250.5-1,000.0", "n/a", "does not give the answer"),
        ("1,250.5/0", 0, "a number is not on the page"),
        ("1,250.5-999", 251.5, "a number is not on the page"),
        ("1,250.5", 1250.5, "has no operation"),
        ("40 million + 12", 52, "is no formula"),
        ("__import__('os')", 1, "is no formula"),
        (None, 1, "has no derivation"),
    ],
)
def test_a_question_that_cannot_be_had_says_why(derivation, answer, reason):
    with pytest.raises(ValueError, match=reason):
        tatqa.convert_question(PAGE, question(derivation, answer))


def test_a_page_is_written_as_finqa_writes_pages():
    record = tatqa.convert_question(PAGE, question("40-12", 28))
    assert record["pre_text"] == ["sales grew - by 12.", "orders were 40.", "the loss of $2085 was expected."]
    assert record["table"] == [["years ended june 30,", "2019", "2018"], ["net sales", "$ 1250.5", "$ 1000.0"],
                               ["loss", "-2085 ( 2085 )", "-3343 ( 3343 )"], ["rate", "2.5%", "2%"]]  # fmt: skip
    assert record["qa"]["question"] == "what was it?"


@pytest.mark.parametrize("cell", ["(5.2%)", "(5.2)%", "( 5.2 ) %", "$ (5.2%)"])
def test_a_negative_share_keeps_its_sign(cell):
    assert numbers.release_cell(cell) == "-5.2% ( 5.2% )"


@pytest.mark.parametrize(
    "cell",
    ["($1,234)", "$(1,234)", "( $ 1,234 )", "(1,234)", "-$1,234", "- $ 1,234", "\u2212$1,234", "(1,234) (2)", "1,234-",
     "(\u20ac1,234)", "\u00a3(1,234)", "US$ (1,234)", "-EUR 1,234"],
)  # fmt: skip
def test_an_amount_below_zero_is_read_by_table_operations_and_shown_with_its_sign(cell):
    written = numbers.release_cell(cell)
    assert (numbers.parse_cell(written), numbers.clean_cell(written)) == (-1234, "-1234")


@pytest.mark.parametrize(
    ("cell", "shown"),
    [("(5.2) million", "-5.2 million"), ("(78) bps", "-78 bps"), ("\u20ac 5.2", "5.2"), ("\u00a3000", "\u00a3000"),
     ("2019 \u00a3m", "2019 \u00a3m"), ("(1) restated", "(1) restated"), ("usd denominated", "usd denominated")],
)  # fmt: skip
def test_words_beside_an_amount_stay_and_what_is_none_stays_as_it_is(cell, shown):
    assert numbers.clean_cell(numbers.release_cell(cell)) == shown


def test_questions_of_other_kinds_are_passed_over_and_reasons_are_counted(tmp_path):
    asked = [question("40-12", 28, uid="a"), question("40-12", 29, uid="b"), question("", ["x"], answer_type="span")]
    (tmp_path / "any_name.json").write_text(json.dumps([PAGE | {"questions": asked}]))
    examples, report = tatqa.load(str(tmp_path))
    assert [example.id for example in examples] == ["a"] and examples[0].page == "page-1"
    assert (report["usable"], report["left_out"]) == (1, {"the derivation does not give the answer": 1})


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "holds no JSON"),
        ("[", "is not JSON"),
        ('[{"id": 1}]', "is not TAT-QA"),
        ('[{"questions": []}]', "no arithmetic"),
        ('[{"questions": [{"question": "how many?"}]}]', "train.json holds no answers"),
    ],
)
def test_a_folder_that_holds_no_tatqa_is_one_line(tmp_path, content, says):
    if content:
        (tmp_path / "train.json").write_text(content)
    with pytest.raises(UserError, match=says):
        tatqa.load(str(tmp_path))


@pytest.mark.real
def test_of_real_tatqa_nearly_all_is_usable_and_shows_its_numbers():
    folder = Path(os.environ.get("TATQA_DIR", Path(__file__).parents[3] / "shared" / "tatqa"))
    if not folder.is_dir():
        pytest.skip("TAT-QA is not here: set TATQA_DIR")
    examples, report = tatqa.load(str(folder))
    assert len(examples) / (len(examples) + sum(report["left_out"].values())) > 0.95
    assert all(evidence.shows_program(example, evidence.page_lines(example)) for example in examples)
