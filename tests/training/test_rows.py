"""Training rows: an example has its own figures in the first pass and new ones in each later pass, by seed and id."""

import datasets
import pytest

from fincompress import models
from fincompress.finqa import prompts
from fincompress.training.rows import FIGURES, TrainingRows

PROMPT, TEXT = "net sales|5829|5735\nQuestion: what changed?\nProgram:\n", "subtract(5829, 5735)"


@pytest.fixture(scope="module")
def tokenizer(tiny_base):
    return models.load_tokenizer(tiny_base)


def make_rows(tokenizer, count=3):
    row = prompts.encode(PROMPT, TEXT, tokenizer) | {"prompt": PROMPT, "program": TEXT, "evidence_shown": True}
    return datasets.Dataset.from_list([row | {"id": str(i), "length": len(row["input_ids"])} for i in range(count)])


def texts(rows, tokenizer):
    return [tokenizer.decode(row["input_ids"]) for row in rows]


def test_the_first_pass_is_as_released_and_later_ones_have_new_figures_each(tokenizer):
    examples = make_rows(tokenizer)
    rows = TrainingRows(examples.select([0, 1, 2, 2, 0]), tokenizer, FIGURES, seed=0, passes=[3, 2])
    row_texts = texts(rows, tokenizer)
    assert row_texts[:3] == texts(examples, tokenizer) and len({*row_texts[:1], *row_texts[3:]}) == 3
    assert all(text.endswith("<|im_end|>") and "subtract(" in text for text in row_texts)
    for text in row_texts[3:]:
        first, second = text.split("|")[1], text.split("|")[2].partition("\n")[0]
        assert f"subtract({first}, {second})" in text
    assert rows.lengths == examples.select([0, 1, 2, 2, 0])["length"]


def test_a_resumed_run_sees_the_figures_of_an_unbroken_one(tokenizer):
    examples = make_rows(tokenizer)
    unbroken = texts(TrainingRows(examples.select([0, 1, 2, 2, 0]), tokenizer, FIGURES, 0, [3, 2]), tokenizer)
    later = TrainingRows(examples.select([2, 0]), tokenizer, FIGURES, 0, [2], first_pass=1)
    assert texts(later, tokenizer) == unbroken[3:]
    epochs = TrainingRows(examples, tokenizer, FIGURES, 0)
    epochs.epoch = 1
    assert texts(epochs, tokenizer)[2] == unbroken[3]
    assert texts(TrainingRows(examples, tokenizer, FIGURES, 1, first_pass=1), tokenizer)[2] != unbroken[3]


def test_a_stage_sees_none_of_the_figures_of_the_stage_before(tokenizer):
    examples = make_rows(tokenizer)
    before, after, later = (
        texts(TrainingRows(examples, tokenizer, FIGURES, 0, None, number, start), tokenizer)
        for start, number in ((None, 1), ("mixed", 0), ("qlora", 0))
    )
    assert not set(before) & set(after) and not set(after) & set(later)
    assert not set(after) & set(texts(examples, tokenizer))


def test_an_example_whose_figures_are_not_on_show_stays_as_it_is(tokenizer):
    examples = make_rows(tokenizer)
    unseen = examples.remove_columns("evidence_shown").add_column("evidence_shown", [True, False, True])
    redrawn = texts(TrainingRows(unseen, tokenizer, FIGURES, seed=0, first_pass=3), tokenizer)
    assert [new == old for new, old in zip(redrawn, texts(examples, tokenizer), strict=True)] == [False, True, False]


def test_nothing_is_redrawn_unless_asked_for(tokenizer):
    examples = make_rows(tokenizer)
    rows = TrainingRows(examples, tokenizer, None, seed=0, first_pass=3)
    assert texts(rows, tokenizer) == texts(examples, tokenizer)
