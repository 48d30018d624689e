"""FinQA programs against the official evaluator's verdicts, against values computed by hand, and against junk."""

import json
import math
import time

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from scripts import FINQA, needs_finqa

from fincompress.finqa.numbers import parse_number
from fincompress.finqa.program import (
    OPERATIONS,
    detokenize,
    execute,
    extract_program,
    operands,
    operations,
    program_correct,
    steps,
    tokenize,
)

TABLE = [
    ["", "2018", "2019"],
    ["revenue", "$ 10", "1,020"],
    ["margin", "5%", "-0.5%"],
    ["loss", "7 ( note 1 )", "(3)"],
    ["cost", "1", "2"],
    ["cost", "30", "40"],
    ["nothing"],
    ["change", "$ -1.5 ( 2.3% )", "4.5"],
]

# Nobody waits longer than this (CPU time) for the verdict on one prediction; most take a thousandth of it.
PATIENCE_S = 5


def run(program, table=TABLE):
    return execute(tokenize(program), table)


# --- the release ----------------------------------------------------------------------------------------------------


def read(name):
    text = (FINQA / name).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()] if name.endswith(".jsonl") else json.loads(text)


@pytest.mark.skipif(
    not (FINQA / "scorer_cases.jsonl").is_file(), reason="the evaluator's recorded verdicts are not here"
)
def test_every_verdict_of_the_official_evaluator():
    examples = {example["id"]: example for example in read("dev.json")}
    cases = read("scorer_cases.jsonl")
    assert len(cases) == 904
    for case in cases:
        gold = examples[case["id"]]
        value = execute(case["predicted"], gold["table"])
        # That of the last good step of an invalid program, and "n/a", are no results here.
        assert value == (None if case["invalid"] or case["result"] == "n/a" else case["result"]), case
        assert (value == gold["qa"]["exe_ans"]) == case["exe_correct"], case
        assert program_correct(case["predicted"], tokenize(gold["qa"]["program"])) == case["prog_correct"], case


@needs_finqa
@pytest.mark.parametrize(("name", "counts"), [("dev.json", [883]), ("train.json", [1964, 6251])])  # a part, or all
def test_every_gold_program_gives_its_answer_and_equals_itself(name, counts):
    examples = read(name)
    assert len(examples) in counts
    failures = []
    for gold in examples:
        tokens = tokenize(gold["qa"]["program"])
        right = execute(tokens, gold["table"]) == gold["qa"]["exe_ans"]
        whole = detokenize(tokens) == gold["qa"]["program"]
        if not (right and whole and program_correct(tokens, tokens)):
            failures.append(gold["id"])
    assert failures == []


# --- text and tokens ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("program", "tokens"),
    [
        ("add(1, 2)", ["add(", "1", "2", ")", "EOF"]),
        (
            "divide(5,829, 5.3%), exp(#0, const_2)",
            ["divide(", "5,829", "5.3%", ")", "exp(", "#0", "const_2", ")", "EOF"],
        ),
        ("table_sum(net sales, none)", ["table_sum(", "net sales", "none", ")", "EOF"]),
        ("add(1,2)", ["add(", "1,2", ")", "EOF"]),
        ("a(b(c)d", ["a(", "b(", "c", ")", "d", "EOF"]),
        ("()", ["(", ")", "EOF"]),
        ("", ["EOF"]),
    ],
)
def test_tokens(program, tokens):
    assert tokenize(program) == tokens


@pytest.mark.parametrize(
    "program",
    ["add(1, 2)", "subtract(5829, 5735), divide(#0, 5735)", "table_max(net sales, none)", "add(1, 2), add(#0"],
)
def test_detokenize_is_the_inverse(program):
    assert detokenize(tokenize(program)) == program
    assert detokenize(tokenize(program)[:-1]) == program


@pytest.mark.parametrize(
    ("output", "program"),
    [
        ("add(1, 2)", "add(1, 2)"),
        ("\n  \n add(1, 2) \nsubtract(3, 4)", "add(1, 2)"),
        ("The answer is add(1, 2)", "The answer is add(1, 2)"),
        ("```\nadd(1, 2)\n```", "```"),
        ("", ""),
        (" \r\n\t", ""),
    ],
)
def test_extract_program_takes_the_first_line_and_repairs_nothing(output, program):
    assert extract_program(output) == program


def test_operations_are_named_in_order():
    assert operations(tokenize("subtract(3, 1), divide(#0, 1)")) == ["subtract", "divide"]
    assert operations(["add(", "1", "EOF"]) == ["add"]
    assert operations(["foo(", "add", ")", "EOF"]) == []


def test_what_a_program_refers_to():
    program = "subtract(5829, 5.3%), divide(#0, 5829), multiply(const_100, abc), table_max(2019, none), add(-1,000, x)"
    assert operands(program) == (["5829", "5.3%", "-1,000"], ["2019"])
    assert operands("table_max(b, none), table_min(a, none), table_sum(b, none)") == ([], ["b", "a"])
    assert operands("") == operands("table_max(") == ([], [])


# --- execution ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("program", "result"),
    [
        ("add(1, 2)", 3),
        ("subtract(1, 2)", -1),
        ("multiply(3, 1,000)", 3000),
        ("divide(1, 3)", 0.33333),
        ("divide(2, 3)", 0.66667),
        ("exp(2, 10)", 1024),
        ("exp(-2, const_3)", -8),
        ("greater(2, 1)", "yes"),
        ("greater(1, 1)", "no"),
        ("subtract(5829, 5735), divide(#0, 5735)", 0.01639),
        ("add(1, 2), add(3, 4), multiply(#0, #1)", 21),
        ("multiply(200, 5%)", 10),
        ("multiply(const_m1, const_100)", -100),
        ("divide(1, 1000000)", 0),
        ("divide(15, 1000000)", 0.00002),  # only the last result is rounded ...
        ("divide(1, 1000000), multiply(#0, 1000000)", 1),  # ... no result on the way to it
        ("table_max(revenue, none)", 1020),
        ("table_min(revenue, none)", 10),
        ("table_sum(revenue, none)", 1030),
        ("table_average(revenue, none)", 515),
        ("table_sum(margin, none)", 0.045),
        ("table_max(change, none)", 4.5),
        ("table_min(change, none)", -1.5),
        ("table_average(cost, none)", 35),  # of rows of the same name the last is meant
        ("table_sum(cost, none), add(#0, 1)", 71),
        ("table_sum(nothing, none)", 0),
        ("add(1, 2), divide(", 3),  # an unfinished last step is ignored
        ("add(1, 2), divide(#0", 3),
    ],
)
def test_results(program, result):
    assert run(program) == result


@pytest.mark.parametrize(
    "program",
    [
        # no whole step
        "",
        "add",
        "add(",
        "add(1, 2",
        # structure
        "junk",
        "5829",
        "foo(1, 2)",
        "Add(1, 2)",
        "add(1,2)",
        "add(1)",
        "add(1, 2, 3)",
        "add(1, 2) add(3, 4)",
        "add(subtract(3, 2), 1)",
        # arguments
        "add(abc, 2)",
        "add(1, #0)",
        "add(#1, 2), add(1, 2)",
        "add(#-1, 2)",
        "add(const_x, 2)",
        "table_max(Revenue, none)",
        "table_max(loss, none)",  # "(3)" is cut to nothing, not read as -3
        "table_max(nothing, none)",
        "table_max(#0, none)",
        # arithmetic
        "divide(1, 0)",
        "exp(-8, 0.5)",
        "exp(0, const_m1)",
        "greater(1, 2), add(#0, 1)",
        "divide(1, 3), divide(#0, 0)",
        "divide(1, 3), add(#0, abc)",
        "exp(const_1000000, const_1000000)",
        "exp(const_1000, const_100), exp(#0, #0)",
        "exp(-8, 0.5), multiply(#0, 1)",
    ],
)
def test_programs_that_give_nothing(program):
    assert run(program) is None


def test_the_last_token_is_dropped_whatever_it_is():
    assert execute(["add(", "1", "2", ")", "EOF"], []) == 3
    assert execute(["add(", "1", "2", ")", "junk"], []) == 3
    assert execute(["add(", "1", "2", ")"], []) is None  # no EOF: the parenthesis is dropped
    assert execute(["add(", "1", "2", ")", "EOF", "EOF"], []) is None


def test_infinity_and_nan_are_results():
    assert run("add(inf, 1)") == math.inf
    assert math.isnan(run("subtract(inf, inf)"))


def test_a_table_step_on_a_reference_takes_the_row_read_last():
    assert run("table_sum(revenue, none), add(1, 1), table_max(#1, none)") == 1020


def test_results_of_greater_are_text():
    assert run("greater(2, 1), greater(1, 2), greater(#0, #1)") == "yes"  # "yes" > "no"
    assert run("greater(2, 1), add(#0, #0)") is None


@pytest.mark.parametrize("table", [[], [[]], [["revenue"]], [["revenue", 3]], [["revenue", None]], None, 3, [None]])
def test_a_table_that_is_none(table):
    assert run("table_max(revenue, none)", table) is None
    assert run("add(1, 2)", table) == 3


# --- junk -----------------------------------------------------------------------------------------------------------


def chain(name, length, first="1, 2"):
    """Return a program whose every step takes the one before twice: its formula has 2 ** length arguments."""
    steps = [f"{name}({first})"] + [f"{name}(#{k}, #{k})" for k in range(length - 1)]
    return ", ".join(steps)


@pytest.mark.parametrize(("steps", "invalid"), [(100_000, False), (100_001, True)])
def test_longest_program(steps, invalid):
    assert (run("add(1, 2), " * steps) is None) == invalid


@pytest.mark.parametrize(
    "program",
    [
        "(" * 100_000,
        ")" * 100_000,
        "#" * 100_000,
        ", " * 100_000,
        "9" * 1_000_000,
        "add(#" + "9" * 1_000_000 + ", 1)",
        "add(1, 2), add(#" + "0" * 1_000_000 + ", 1)",
        "add(" + "9" * 1_000_000 + ", 1)",
        "add(" + "%" * 1_000_000 + ", 1)",
        "add(1, 2), " * 300_000,
        chain("add", 200_000, "greater"),
    ],
    ids=lambda program: program[:12],
)
def test_endless_output(program):
    start = time.process_time()
    tokens = tokenize(program)
    execute(tokens, TABLE)
    program_correct(tokens, tokens)
    program_correct(tokens, tokenize("add(1, 2)"))
    assert time.process_time() - start < PATIENCE_S


def test_a_text_that_doubles():
    program = "greater(2, 1), " + ", ".join(f"add(#{k}, #{k})" for k in range(500))
    assert run(program) is None


@pytest.mark.parametrize(
    "tokens", [None, 3, [None], [None, "EOF"], [1, 2, 3, 4, "EOF"], ["add(", 1, 2, ")", "EOF"], "add"]
)
def test_tokens_that_are_none(tokens):
    assert execute(tokens, TABLE) is None
    assert not program_correct(tokens, tokenize("add(1, 2)"))
    assert not program_correct(tokenize("add(1, 2)"), tokens)


NASTY = [
    *(
        "1",
        "2",
        "0",
        "-3",
        "0.5",
        "5%",
        "1,000",
        "const_m1",
        "const_1000000",
        "const_x",
        "const",
        "inf",
        "nan",
        "1e308",
    ),
    *(
        "#0",
        "#1",
        "#2",
        "#7",
        "#-1",
        "#",
        "0#",
        "##1",
        "#1_0",
        "#٣",
        "none",
        "revenue",
        "Revenue",
        "cost",
        "loss",
        "nothing",
    ),
    *("", " ", "|", "1|2", "x)add(2|3", "%", "(", ")", "EOF", "\x00", "\ud800"),
]
ARGUMENTS = st.one_of(st.sampled_from(["1", "2", "3", "#0", "#1", "#2"]), st.sampled_from(NASTY), st.text(max_size=4))
STEPS = st.tuples(
    st.one_of(
        st.sampled_from([f"{name}(" for name in OPERATIONS]), st.sampled_from(["add", "((add((", "foo(", "xtable(", ""])
    ),
    ARGUMENTS,
    ARGUMENTS,
    st.sampled_from([")"] * 20 + ["", "))"]),
)
PROGRAMS = st.lists(STEPS, max_size=7).map(lambda steps: [token for step in steps for token in step] + ["EOF"])
JUNK_TOKENS = st.lists(st.one_of(st.sampled_from([f"{name}(" for name in OPERATIONS] + NASTY), st.text()), max_size=12)

FUZZ = {"deadline": PATIENCE_S * 1000, "suppress_health_check": [HealthCheck.too_slow], "derandomize": True}


def check_contract(tokens, gold):
    value = execute(tokens, TABLE)
    assert value in (None, "yes", "no") or isinstance(value, int | float)
    assert program_correct(tokens, gold) in (True, False)
    assert program_correct(gold, tokens) in (True, False)
    assert set(operations(tokens)) <= set(OPERATIONS)
    assert isinstance(detokenize(tokens), str)


@settings(max_examples=300, **FUZZ)
@given(st.one_of(PROGRAMS, JUNK_TOKENS), PROGRAMS)
def test_any_tokens_get_a_verdict(tokens, gold):
    check_contract(tokens, gold)


@settings(max_examples=300, **FUZZ)
@given(st.one_of(st.text(), st.lists(st.sampled_from([*NASTY, "add(", "exp(", ", ", ")"]), max_size=20).map("".join)))
@example("exp(const_1000000, const_1000000)")
@example("add(#0, #0)")
def test_any_text_gets_a_verdict(text):
    tokens = tokenize(extract_program(text))
    check_contract(tokens, tokenize("add(1, 2)"))
    assert "".join(tokens[:-1]) == extract_program(text).replace(", ", "")
    assert all(isinstance(name, str) for names in operands(text) for name in names)
    parse_number(text)


@settings(max_examples=100, **FUZZ)
@given(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6))
def test_arithmetic_is_that_of_floats(a, b):
    for name, value in [("add", a + b), ("subtract", a - b), ("multiply", a * b)]:
        assert run(f"{name}({a!r}, {b!r})") == round(value, 5)
    assert run(f"greater({a!r}, {b!r})") == ("yes" if a > b else "no")


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("subtract(84.2, 79.5), divide(#0, 79.5)", [4.7, 0.05912]),
        ("add(1, 2), divide(#0, 0), add(1, 1)", [3.0, None, None]),  # nothing after a failure
        ("add(1, 2), add(#0", [3.0, None]),  # a step cut short
        ("table_max(pumps, none), greater(#0, 80)", [84.2, "yes"]),
        ("the answer is 5", [None]),
        ("", []),
    ],
)
def test_each_step_has_its_value_until_one_cannot_be_computed(text, values):
    pairs = steps(tokenize(text), [["", "2023", "2022"], ["pumps", "84.2", "79.5"]])
    assert [value for _, value in pairs] == values
    assert ", ".join(step for step, _ in pairs) == text
