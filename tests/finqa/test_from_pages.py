"""Questions made from training pages: executable, about what the page shows, in the mix that is wanted."""

import random
import re
from collections import Counter

import pytest

from fincompress.finqa import evidence, examples, from_pages, program

TABLE = [
    ["( in millions )", "december 31 , 2015", "december 31 , 2016", "increase"],
    ["software ( 1 )", "$ 120", "$ 150", "30"],
    ["services", "80", "-40 ( 40 )", "-120"],
    ["licences", "7", "2014", ""],  # a dash, as the release writes it
    ["total revenue", "207", "$ 190", "-17"],
]
SENTENCES = [
    "rent expense under operating leases was $ 71 million and $ 74 million in 2016 and 2015 , respectively .",
    "in 2016 , 2015 and 2014 , we had capital spending of $ 3.5 million , $ 4.1 million and $ 6 million respectively .",
    "net sales were $ 5 million in 2016 .",
]


def example(name: str, table=TABLE, sentences=(), question="what?", text="subtract(150, 120)", **options):
    return examples.Example(name, f"{name}.pdf", list(sentences), [], table, question, text, 30.0, {}, **options)


def test_rows_with_a_figure_of_every_year_are_asked_about():
    grid = from_pages.table_grid(TABLE)
    assert grid == {
        "software": {"2015": "120", "2016": "150"},
        "services": {"2015": "80", "2016": "-40"},
        "total revenue": {"2015": "207", "2016": "190"},
    }
    assert {figure.source for figure in grid["services"].values()} == {2}


def test_a_table_with_a_row_a_year_is_asked_by_column():
    grid = from_pages.table_grid([["", "sales", "profit"], ["2016", "9", "3"], ["2015", "8", "-"]])
    assert grid == {"sales": {"2015": "8", "2016": "9"}}
    assert grid["sales"]["2015"].source == 2


def test_amounts_that_are_all_below_zero_are_asked_about_without_their_sign_and_apart_from_others():
    """As FinQA's programs have them: "how much lower were dividends" means less paid. With sales they make no total."""
    table = [["", "2015", "2016"], ["dividends", "-505 ( 505 )", "( 707 )"], ["buybacks", "-606", "-808"],
             ["taxes", "-101", "-102"], ["sales", "909", "-303"], ["total", "-1212", "-1617"]]  # fmt: skip
    assert from_pages.table_grid(table)["dividends"]["2016"] == "-707"
    assert from_pages.table_grid(table)["dividends"]["2016"].source == 1
    asks = [ask for seed in range(9) for ask in from_pages.page_asks(example("a", table), random.Random(seed))]
    figures = [{*program.operands(ask["qa"]["program"])[0]} for ask in asks]
    paid, others = {"505", "707", "606", "808", "101", "102", "1212", "1617"}, {"909", "-303"}
    assert any({"505", "606"} <= taken for taken in figures) and any({"505", "1212"} <= taken for taken in figures)
    assert any("-303" in taken for taken in figures) and all("-505" not in taken for taken in figures)
    assert not any(taken & paid and taken & others for taken in figures)
    alone = [ask["sources"] for ask, taken in zip(asks, figures, strict=True) if taken == {"505", "707"}]
    assert alone and all([*sources] == [1] for sources in alone)
    operations = {ask["qa"]["program"] for ask in asks if ask["qa"]["program"].startswith("table_")}
    assert operations and all("sales" in program for program in operations)  # they read the row with its sign


@pytest.mark.parametrize(
    ("header", "years"),
    [(["", "2015", "2016 and thereafter"], ["2015"]), (["", "after 2015", "2016"], ["2016"]),
     (["", "notes due 2015", "2016"], ["2016"]), (["", "2016 2015", "2016 2015", "2016"], []),
     (["", "2016", "2015", "2016 vs . 2015"], ["2015", "2016"])],
)  # fmt: skip
def test_a_year_is_a_date_only_where_a_column_is_of_that_year(header, years):
    assert list(from_pages._by_year(header)) == years


def test_prices_and_amounts_are_not_computed_with_one_another():
    table = [
        ["", "2015", "2016"],
        ["shares", "70", "90"],
        ["average price", "1.5", "2.5"],
        ["par per share", "3.5", "4.5"],
    ]
    asks = [ask for seed in range(5) for ask in from_pages.page_asks(example("a", table), random.Random(seed))]
    programs = [ask["qa"]["program"] for ask in asks]
    assert any(".5" in text for text in programs) and any("90" in text for text in programs)
    assert not any(".5" in text and re.search(r"\b[79]0\b", text) for text in programs)


def test_no_question_takes_figures_that_a_held_out_page_has_too():
    page = example("2015", [["", "2014", "2015"], ["sales", "120.5", "130.5"], ["profit", "15", "16"]])
    later = example(
        "2016", [["", "2014", "2015", "2016"], ["sales", "120.5", "130.5", "99"], ["profit", "15", "16", "7"]]
    )
    alone, beside = (from_pages.make([page], 100, 0, held) for held in ([], [later]))
    both = [question for question in alone if {"120.5", "130.5"} <= {*program.operands(question.program)[0]}]
    assert both and not any(question.program in {one.program for one in both} for question in beside)
    assert any(
        "15" in question.program and "16" in question.program for question in beside
    )  # small ones meet by chance
    made = [
        {one.program for seed in range(8) for one in from_pages.make([page], 100, seed, held)} for held in ([], [later])
    ]
    alone, beside = ({program for program in programs if "table_" in program} for programs in made)
    assert "table_average(sales, none)" in alone and "table_average(profit, none)" in beside
    assert not any("sales" in program for program in beside)


def test_rows_of_years_and_names_that_stand_twice_are_left_out():
    header = ["", "2015", "2016"]
    rows = [["sales", "7", "9"], ["percent of sales ( 1 )", "10%", "11%"], ["profit", "3", "4"],
            ["percent of sales", "4%", "5%"], ["tax years open", "2009", "2011"]]  # fmt: skip
    assert list(from_pages.table_grid([header, *rows])) == ["sales", "profit"]


def test_amounts_and_percentages_are_not_computed_with_one_another():
    table = [["", "2015", "2016"], ["sales", "70", "90"], ["margin", "10%", "11%"], ["tax rate", "20%", "25%"]]
    asks = from_pages.page_asks(example("a", table), random.Random(0))
    programs = [ask["qa"]["program"] for ask in asks]
    assert any("90" in text for text in programs) and any("%" in text for text in programs)
    assert not any("%" in text and re.search(r"\b[79]0\b", text) for text in programs)


def test_years_are_said_to_follow_one_another_where_they_do():
    for years, follow in ((("2014", "2015", "2016"), True), (("2005", "2015", "2016"), False)):
        table = [["", *years], ["sales", "70", "80", "90"]]
        asks = [ask for seed in range(9) for ask in from_pages.page_asks(example("a", table), random.Random(seed))]
        assert any("add(70, 80), add(#0, 90)" in ask["qa"]["program"] for ask in asks) == follow


def test_a_column_of_amounts_without_a_year_is_asked_about_undated():
    asks = from_pages.page_asks(
        example("a", [["", "amount"], ["goodwill", "60"], ["total price", "90"]]), random.Random(0)
    )
    asked = {ask["qa"]["program"]: ask["qa"]["question"] for ask in asks}
    assert "divide(60, 90)" in asked and all("in no year" not in question for question in asked.values())


def test_amounts_of_several_years_are_read_from_sentences():
    mixed = "rent expense was $ 1.0 billion and $ 400 million in 2016 and 2015 ."
    assert from_pages.told(from_pages.numbers.clean_sentence(mixed)) == {}
    assert [from_pages.told(from_pages.numbers.clean_sentence(sentence)) for sentence in SENTENCES] == [
        {"rent expense under operating leases": {"2015": "74", "2016": "71"}},
        {"capital spending": {"2014": "6", "2015": "4.1", "2016": "3.5"}},
        {},
    ]


def test_made_examples_execute_and_their_evidence_shows_them():
    pages = [example("a", sentences=SENTENCES), example("b", [["", "2001", "2002"], ["sales", "8.5%", "7.5%"]])]
    made = from_pages.make(pages, 20, seed=0)
    assert {q.page for q in made} == {"a.pdf", "b.pdf"} and len({q.id for q in made}) == len(made) > 10
    for question in made:
        assert program.execute(program.tokenize(question.program), question.table) == question.exe_ans
        lines = [line for line in evidence.page_lines(question) if line.key in question.gold_inds]
        assert evidence.shows_program(question, lines), question.program
    assert from_pages.make(pages, 20, seed=0) == made != from_pages.make(pages, 20, seed=1)
    assert from_pages.make(pages, 5, seed=0) == made[:5] and from_pages.make(pages, 0, seed=0) == []


def test_a_page_without_a_table_is_asked_about_by_its_sentences():
    asks = from_pages.page_asks(example("a", [], SENTENCES), random.Random(0))
    assert asks and all(re.search("rent|spending", ask["qa"]["question"]) for ask in asks)


def test_a_question_that_the_page_has_already_is_not_made_again():
    made = from_pages.make([example("a")], 100, seed=0)
    for known in made:
        again = from_pages.make([example("a", question=known.question)], 100, seed=0)
        assert known.question not in {new.question for new in again}


def test_programs_have_the_kinds_of_the_examples_at_the_published_shares_of_steps():
    shares = from_pages.program_shares(
        [
            *[example(f"{i}", text="subtract(150, 120), divide(#0, 120)") for i in range(6)],
            *[example(f"{i}", text="divide(150, 120)") for i in range(6, 9)],
            example("9", text="add(150, 120)"),
        ]
    )
    assert shares == pytest.approx({"subtract divide": 32.7, "divide": 59.1 * 3 / 4, "add": 59.1 / 4})
    made = from_pages.make([example("a"), example("b", text="subtract(150, 120), divide(#0, 120)")], 12, seed=0)
    steps = Counter(len(program.operations(program.tokenize(question.program))) for question in made)
    assert steps[1] > steps[2] > 0
