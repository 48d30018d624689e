"""References: what a program names resolves to the figures it was written with."""

import random

import pytest

from fincompress.finqa import examples, figures, program, prompts, references

PAGE = examples.Example(
    "a-1", "a", ["a gain of $ 5 million and 12.4% ( 12.4 % ) in 2017 ."], ["5 stores cost $ 1,250 each ."],
    [["in millions", "2018", "2017"], ["net sales", "$ 41", "39"], ["loss", "-14 ( 14 )", "8.00% ( 8.00 % )"],
     ["tax", "39", "$ 2014"]],
    "how much?", "add(41, 39)", 80.0, {},
)  # fmt: skip


def build(**options):
    count = lambda texts: [len(text.split()) for text in texts]  # noqa: E731
    return prompts.build_prompt(PAGE, "page", None, 100, count, numbered=True, **options)


def test_rows_columns_and_figures_of_sentences_are_numbered_and_years_are_not():
    assert build()[0].splitlines()[:-2] == [
        "a gain of $n1=5 million and n2=12.4% in 2017.",
        "in millions|c1 2018|c2 2017",
        "r1 net sales|41|39",
        "r2 loss|-14|8.00%",
        "r3 tax|39|2014",
        "n3=5 stores cost $n4=1,250 each.",
    ]


@pytest.mark.parametrize(
    ("text", "gold", "referred"),
    [
        ("add(41, 39), divide(#0, const_2)", (), "add(r1c1, r1c2), divide(#0, const_2)"),
        ("add(41, 39)", ("table_3",), "add(r1c1, r3c1)"),  # of two places that of the gold evidence
        ("subtract(-14, 14)", (), "subtract(-r2c1, r2c1)"),
        ("multiply(8.00%, 12.4)", (), "multiply(r2c2%, n2)"),
        ("multiply(5, 1250), subtract(#0, 77)", ("text_1",), "multiply(n3, n4), subtract(#0, 77)"),
        ("table_max(net sales, none)", (), "table_max(net sales, none)"),
    ],
)
def test_a_program_refers_to_what_is_shown_and_resolves_to_itself(text, gold, referred):
    prompt, lines = build()
    assert references.refer(text, lines, gold) == referred
    assert references.resolve(referred, references.figures_of(prompt)) == text


def test_an_unknown_reference_executes_as_invalid():
    resolved = references.resolve("add(r9c1, n1)", references.figures_of(build()[0]))
    assert resolved == "add(r9c1, 5)" and program.execute(program.tokenize(resolved), []).invalid


def test_redrawn_figures_keep_their_references():
    prompt, _ = build()
    redrawn, text = figures.redraw(prompt, "subtract(r1c1, r1c2), divide(#0, n4)", random.Random(0))
    assert text == "subtract(r1c1, r1c2), divide(#0, n4)" and redrawn != prompt
    before, after = references.figures_of(prompt), references.figures_of(redrawn)
    assert before.keys() == after.keys() and before["n4"] != after["n4"]


def test_real_programs_resolve_to_what_they_give(finqa_dir):
    train = examples.load_split(str(finqa_dir), "train")[1][:150]
    referred = 0
    for example in train:
        prompt, lines = prompts.build_prompt(
            example, "page", None, 10**6, lambda texts: [1] * len(texts), numbered=True
        )
        text = references.refer(example.program, lines, [*example.gold_inds])
        resolved = references.resolve(text, references.figures_of(prompt))
        first, second = (program.execute(program.tokenize(one), example.table) for one in (example.program, resolved))
        assert first == second, (example.id, example.program, text)
        referred += text != example.program
    assert referred > 0.9 * len(train)
