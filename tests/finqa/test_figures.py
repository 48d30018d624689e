"""Redrawn figures: the same new ones in prompt and program, in the form of the old; what is no figure stays."""

import random
import re

import pytest

from fincompress.finqa import evidence, figures, numbers, program

PROMPT = (
    "in millions|2019|2018\nnet sales|1,250.50|1000.4\nloss (12%)|-2,085|-38%\n"
    "Question: what changed by 1250.5 in 2018?\nProgram:\n"
)
TEXT = "subtract(1250.5, 1000.4), divide(#0, 1000.4), multiply(#1, const_100), add(#2, -2085), add(#3, 38%)"


def test_prompt_and_program_get_the_same_new_figures_of_the_old_form():
    prompt, text = figures.redraw(PROMPT, TEXT, random.Random(0))
    match = re.fullmatch(
        r"in millions\|2019\|2018\nnet sales\|([1-9],\d{3}\.\d)0\|([1-9]\d{3}\.\d)\n"
        r"loss \(12%\)\|-([1-9],\d{3})\|-([1-9]\d)%\nQuestion: what changed by ([\d.]+) in 2018\?\nProgram:\n",
        prompt,
    )
    a, b, c, d, asked = (figure.replace(",", "") for figure in match.groups())
    assert asked == a != "1250.5" and len({a, b, c, d}) == 4
    assert text == f"subtract({a}, {b}), divide(#0, {b}), multiply(#1, const_100), add(#2, -{c}), add(#3, {d}%)"
    assert figures.redraw(PROMPT, TEXT, random.Random(0)) == (prompt, text)  # seeded
    assert figures.redraw(PROMPT, TEXT, random.Random(1)) != (prompt, text)


def test_dates_without_a_space_and_the_names_of_indices_stay():
    prompt = "balance at december 312013|48210\ns&p 500|143.2\nQuestion: what of the s&p500?\n"
    drawn, _ = figures.redraw(prompt, "divide(48210, 143.2)", random.Random(0))
    assert "balance at december 312013|" in drawn and "s&p 500|" in drawn and "48210" not in drawn


def test_rows_of_table_operations_keep_their_names():
    prompt = "|2019|2018\nnotes due 2045 at 5.75%|325.5|410.2\nother 5.75%|88.25|99.5\n"
    text = "table_max(notes due 2045 at 5.75%, none), divide(#0, 325.5)"
    drawn, written = figures.redraw(prompt, text, random.Random(3))
    assert "notes due 2045 at 5.75%|" in drawn and written.startswith("table_max(notes due 2045 at 5.75%, none)")
    figure = drawn.split("|")[3]
    assert figure != "325.5" and written.endswith(f"divide(#0, {figure})")


def test_a_figure_below_one_stays_the_same_with_and_without_its_zero():
    prompt, text = figures.redraw("x|.75|12.5|.048\n", "divide(0.75, 12.5), add(#0, 0.048)", random.Random(1))
    first, second, third = re.fullmatch(r"x\|(\.\d\d)\|([1-9]\d\.\d)\|(\.0\d\d)\n", prompt).groups()
    assert first != ".75" and text == f"divide(0{first}, {second}), add(#0, 0{third})"


def test_a_program_that_would_divide_by_zero_is_drawn_again():
    text = "subtract(97, 45), subtract(#0, 51), divide(900, #1)"
    for seed in range(600):  # of which two would
        _, drawn = figures.redraw("97|45|51|900\n", text, random.Random(seed))
        assert program.execute(program.tokenize(drawn), []) is not None


def test_figures_that_differ_stay_different():
    for seed in range(200):  # in three of which one would be drawn twice
        drawn, _ = figures.redraw("41|42|900\n", "add(41, 42), add(#0, 900)", random.Random(seed))
        assert len(set(drawn.strip().split("|"))) == 3


@pytest.mark.parametrize(
    "text",
    [
        "add(39.5, 32.5)",  # would become equal as 31.0 and 31, or as 56.0 and 56.0
        "table_max(due in 2045 at 5.75, none), add(#0, 39.5)",  # 5.75 is a row's name
    ],
)
def test_figures_that_differ_stay_different_numbers(text):
    for seed in range(500):
        drawn, _ = figures.redraw("39.5|32.5|5.5|31|7|5.75|9.25|4.0\n", text, random.Random(seed))
        assert len({float(figure) for figure in drawn.strip().split("|")}) == 8


@pytest.mark.parametrize("prompt", ["2019|31|12|0|1990|0.0|100|100.00\n", "q1|10-k|a1b\n"])
def test_years_small_numbers_zeros_and_parts_of_words_stay(prompt):
    assert figures.redraw(prompt, "add(12, const_1)", random.Random(0)) == (prompt, "add(12, const_1)")


@pytest.mark.real
def test_redrawn_examples_of_real_finqa_execute_and_show_their_numbers(finqa_dir):
    from fincompress.finqa.examples import load_dataset

    examples = load_dataset(str(finqa_dir), splits=("train",)).splits["train"]
    changed, generator = 0, random.Random(0)
    for example in examples:
        lines = evidence.page_lines(example)
        prompt = "\n".join(line.text for line in lines) + f"\nQuestion: {example.question}\n"
        drawn, text = figures.redraw(prompt, example.program, generator)
        changed += text != example.program
        if evidence.shows_program(example, lines):
            assert evidence.numbers_needed(text) <= numbers.numbers_in(drawn)
        if not program.operands(text)[1]:
            assert program.execute(program.tokenize(text), []) is not None
        assert re.sub(r"\d", "0", drawn) == re.sub(r"\d", "0", prompt)
    assert changed > 0.8 * len(examples)
