"""The synthetic set: official schema, executable programs, gold evidence, FinQA's mix, nothing shared by two splits."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from fincompress.finqa import examples, program, questions, synthetic

ROOT = Path(__file__).resolve().parents[2]
SPLITS = ("train", "dev", "test")
SHARED_NUMBERS = {"100", "500"}  # an index starts at 100, and `s&p 500` is a name


@pytest.fixture(scope="module")
def splits() -> dict[str, list[dict]]:
    return {split: synthetic.generate(split) for split in SPLITS}


@pytest.fixture(scope="module")
def everything(splits) -> list[dict]:
    return [example for part in splits.values() for example in part]


def shares(counts: Counter) -> dict:
    return {kind: 100 * count / counts.total() for kind, count in counts.items()}


def mix(part: list[dict]) -> dict[str, dict]:
    """Shares in per cent of step counts (5 is 5 or more), operations, and kinds of evidence where it is given."""
    programs = [program.operations(program.tokenize(example["qa"]["program"])) for example in part]
    places = [{key.partition("_")[0] for key in example["qa"]["gold_inds"]} for example in part]
    return {
        "steps": shares(Counter(min(len(steps), 5) for steps in programs)),
        "operations": shares(Counter(step for steps in programs for step in steps)),
        "evidence": shares(Counter("both" if len(place) == 2 else min(place) for place in places if place)),
    }


def pages(part: list[dict]) -> dict[str, dict]:
    return {example["filename"]: example for example in part}


def page_texts(example: dict) -> list[str]:
    return [*example["pre_text"], *example["post_text"], *(cell for row in example["table"] for cell in row)]


def large_numbers(texts: list[str]) -> set[str]:
    """The digits, without zeros in front, of numbers of three digits or more; years and shared numbers left out."""
    numbers = set()
    for number in re.findall(r"\d+(?:\.\d+)?", " ".join(texts)):
        digits = number.replace(".", "").lstrip("0")
        year = number.isdigit() and 1980 <= int(number) <= 2040
        if len(digits) >= 3 and not year and number not in SHARED_NUMBERS:
            numbers.add(digits)
    return numbers


# --- one example ----------------------------------------------------------------------------------------------------


def test_splits_have_their_default_sizes(splits):
    assert {split: len(part) for split, part in splits.items()} == synthetic.DEFAULT_COUNTS
    assert synthetic.DEFAULT_COUNTS == {"train": 900, "dev": 400, "test": 400}


def test_schema_is_the_official_one(everything):
    for example in everything:
        assert set(example) == {"pre_text", "post_text", "table", "filename", "id", "qa"}
        assert set(example["qa"]) == {"question", "program", "exe_ans", "gold_inds"}
        assert re.fullmatch(r"[A-Z]{4}/20\d\d/page_\d+\.pdf", example["filename"])
        assert re.fullmatch(re.escape(example["filename"]) + r"-[1-4]", example["id"])
        assert all(isinstance(text, str) and text for text in example["pre_text"] + example["post_text"])
        assert all(isinstance(cell, str) for row in example["table"] for cell in row)
        assert len({len(row) for row in example["table"]}) == 1 < len(example["table"])
        assert isinstance(example["qa"]["exe_ans"], float) or example["qa"]["exe_ans"] in ("yes", "no")
        assert example["qa"]["gold_inds"]
    assert len({example["id"] for example in everything}) == len(everything)
    json.dumps(everything, allow_nan=False)


def test_the_loader_accepts_every_example(splits):
    for split, part in splits.items():
        loaded, skipped = examples.validate_split(split, part)
        assert len(loaded) == len(part) and not skipped
    examples.check_pages_disjoint({split: examples.validate_split(split, part)[0] for split, part in splits.items()})


def test_programs_execute_to_exe_ans(everything):
    for example in everything:
        value = program.execute(program.tokenize(example["qa"]["program"]), example["table"])
        assert value == example["qa"]["exe_ans"], example["id"]


def test_gold_evidence_is_quoted_from_its_place(everything):
    for example in everything:
        text, table = example["pre_text"] + example["post_text"], example["table"]
        for key, value in example["qa"]["gold_inds"].items():
            place, index = key.split("_")
            if place == "text":
                assert value == text[int(index)]
                continue
            assert int(index) > 0  # the header is no evidence
            assert value == " ".join(table[int(index)])


def test_gold_evidence_contains_every_number_of_the_program(everything):
    for example in everything:
        evidence = " ".join(example["qa"]["gold_inds"].values()).split()
        used, rows = program.operands(example["qa"]["program"])
        assert {*used} <= {*evidence}, example["id"]
        assert all(any(text.startswith(row) for text in example["qa"]["gold_inds"].values()) for row in rows)


def test_every_gold_line_is_needed(everything):
    for example in everything:
        used, rows = program.operands(example["qa"]["program"])
        for text in example["qa"]["gold_inds"].values():
            assert set(used) & set(text.split()) or any(text.startswith(row) for row in rows)


# What a question means, computed from the table without its program.
MEANINGS = {
    r"what (?:was|is) the percentage change in (.+) from (\d+) to (\d+)": lambda a, b: (b - a) / a,
    r"what (?:was|is) the growth rate in (.+) for (?P<b>\d+) over (?P<a>\d+)": lambda a, b: (b - a) / a,
    r"how much (?:higher|lower) , in percent , was (.+) in (?P<b>\d+) than in (?P<a>\d+)": lambda a, b: b / a - 1,
    r"what (?:was|is) the change in (.+) from (\d+) to (\d+)": lambda a, b: b - a,
    r"by how much did (.+) increase from (\d+) to (\d+)": lambda a, b: b - a,
    r"by how much did (.+) decrease from (\d+) to (\d+)": lambda a, b: a - b,
    r"what (?:was|is) the average (.+) for (\d+) and (\d+)": lambda a, b: (a + b) / 2,
    r"what (?:was|is) the total (.+) for (\d+) and (\d+)": lambda a, b: a + b,
}
# Two rows of one year.
PAIRS = {
    r"what percentage of (?P<b>.+) in (?P<year>\d+) was (?P<a>.+)": lambda a, b: a / b,
    r"what (?:was|is) (?P<a>.+) as a percentage of (?P<b>.+) in (?P<year>\d+)": lambda a, b: a / b,
    r"what (?:was|is) the ratio of (?P<a>.+) to (?P<b>.+) in (?P<year>\d+)": lambda a, b: a / b,
    r"what (?:was|is) (?P<a>.+) excluding (?P<b>.+) in (?P<year>\d+)": lambda a, b: a - b,
    r"by how much did (?P<a>.+) exceed (?P<b>.+) in (?P<year>\d+)": lambda a, b: a - b,
    r"what (?:was|is) the total of (?P<a>.+) and (?P<b>.+) in (?P<year>\d+)": lambda a, b: a + b,
}


def cell_number(table: list[list[str]], row: str, year: str) -> float | None:
    """The number of a cell, or None where the table has no such row or column."""
    rows = {cells[0]: cells for cells in table}
    if row not in rows or year not in table[0][1:]:
        return None
    text = rows[row][table[0].index(year, 1)].replace("$", "").split()[0]
    return float(text.rstrip("%")) / (100 if text.endswith("%") else 1)


def test_answers_are_what_the_questions_ask_for(everything):
    checked = Counter()
    for example in everything:
        table, expected = example["table"], example["qa"]["exe_ans"]
        question = example["qa"]["question"].removesuffix("?")
        for pattern, meaning in MEANINGS.items():
            match = re.fullmatch(pattern, question)
            if match:
                named = match.groupdict() or {"a": match[2], "b": match[3]}
                a, b = (cell_number(table, match[1], named[letter]) for letter in "ab")
                if a is not None and b is not None:
                    assert expected == pytest.approx(meaning(a, b), abs=1e-4), example["id"]
                    checked[pattern] += 1
        for pattern, meaning in PAIRS.items():
            match = re.fullmatch(pattern, question)
            if match:
                a, b = (cell_number(table, match[letter], match["year"]) for letter in "ab")
                if a is not None and b is not None:
                    assert expected == pytest.approx(meaning(a, b), abs=1e-4), example["id"]
                    checked[pattern] += 1
    assert len(checked) >= 5 and checked.total() >= 150


def test_no_template_is_left_unfilled_and_all_is_lower_case(everything):
    for example in everything:
        for text in [*page_texts(example), example["qa"]["question"], example["qa"]["program"]]:
            assert not set(text) & set("{}|"), text
            assert text == text.lower() and text == " ".join(text.split()), text
            assert "the the " not in text and "total total" not in text, text


# --- the set --------------------------------------------------------------------------------------------------------


def test_every_kind_of_table_occurs_in_every_split(splits):
    for part in splits.values():
        intros = " ".join(text for page in pages(part).values() for text in page["pre_text"])
        assert all(f"the following table presents {title}" in intros for title, *_ in synthetic.SHEETS)


@pytest.mark.parametrize("sheet", synthetic.SHEETS, ids=lambda sheet: sheet[0])
class TestSheet:
    def page(self, monkeypatch, sheet, seed):
        monkeypatch.setattr(synthetic, "SHEETS", (sheet,))
        monkeypatch.setattr(synthetic, "COLUMNS", (2,))
        monkeypatch.setattr(synthetic, "BY_YEAR", 0)
        page = synthetic._Page(seed, "train", 0)
        synthetic._make_table(page)
        return page

    def test_several_things_can_be_asked(self, monkeypatch, sheet):
        for seed in range(5):
            asks = self.page(monkeypatch, sheet, seed).asks
            assert len(asks) >= 10 and len({ask["kind"] for ask in asks} & set(synthetic.PROGRAM_SHARES)) >= 3

    def test_columns_add_up_to_the_total(self, monkeypatch, sheet):
        for seed in range(5):
            header, *rows = self.page(monkeypatch, sheet, seed).table
            for year in header[1:]:
                column = [cell_number([header, row], row[0], year) for row in rows]
                if sheet[2]:
                    assert rows[-1][0] == sheet[2] and sum(column[:-1]) == pytest.approx(column[-1], abs=1e-6)
                elif sheet[3] == "in millions":
                    assert max(column) == column[0]


def test_families_have_several_wordings(splits):
    assert len(questions.FAMILIES) == 34
    for _, *wordings in questions.FAMILIES:
        assert len(set(wordings)) >= 2
    openings = {
        re.sub(r"\d+", "0", " ".join(example["qa"]["question"].split()[:5]))
        for example in splits["train"][:1500]
        if re.fullmatch(r"subtract\([^#]+\), divide\(#0, [^#]+\)", example["qa"]["program"])
    }
    assert len(openings) >= 7


def test_pages_are_of_realistic_shape(splits):
    for part in splits.values():
        own = pages(part).values()
        lengths = sorted(sum(len(text.split()) for text in page_texts(page)) for page in own)
        assert 220 <= lengths[len(lengths) // 2] <= 300
        assert max(Counter(example["filename"] for example in part).values()) == 4
        cells = {cell for page in own for row in page["table"][1:] for cell in row[1:]}
        shapes = (r"\$ \d+", r"\d+", r"-\d+ \( \d+ \)", r"\d+\.\d% \( \d+\.\d % \)")
        for shape in shapes:
            assert any(re.fullmatch(shape, cell) for cell in cells), shape
        assert any(row[0][0] == "" for row in (page["table"] for page in own))


def test_questions_are_rarely_repeated(splits):
    questions = [example["qa"]["question"] for example in splits["train"]]
    assert len(set(questions)) > 0.93 * len(questions)
    for part in splits.values():
        asked = Counter((example["filename"], example["qa"]["question"]) for example in part)
        assert max(asked.values()) == 1


def test_questions_name_what_their_evidence_is_about(splits):
    for part in splits.values():
        named = []
        for example in part:
            table, rows = example["table"], [key for key in example["qa"]["gold_inds"] if key.startswith("table")]
            named += [table[int(key[6:])][0].removeprefix("total ") in example["qa"]["question"] for key in rows]
        assert sum(named) / len(named) > 0.9  # a row by year lies between the years that a question names


def test_tables_are_mostly_small_and_their_figures_short(splits):
    for part in splits.values():
        tables = [page["table"] for page in pages(part).values()]
        columns = Counter(len(table[0]) - 1 for table in tables)
        assert set(columns) <= set(range(1, 7)) and columns[2] > 0.5 * columns.total() > 2 * columns[3]
        cells = [cell for table in tables for row in table[1:] for cell in row[1:] if cell]
        digits = Counter(len(re.sub(r"\D", "", cell.partition("(")[0])) for cell in cells)
        assert sum(share for count, share in shares(digits).items() if count <= 4) > 90


def test_rows_and_years_of_the_evidence_stand_beside_others_of_their_kind(splits):
    for part in splits.values():
        sizes = [(len(page["table"]) - 1) * (len(page["table"][0]) - 1) for page in pages(part).values()]
        assert sum(size >= 6 for size in sizes) / len(sizes) > 0.7
        assert sum(sizes) / len(sizes) > 7


def test_numbers_of_the_evidence_are_hidden_among_others(everything):
    for example in everything:
        on_page = set(re.findall(r"\d+(?:\.\d+)?", " ".join(page_texts(example))))
        assert len(on_page) > 3 * len(program.operands(example["qa"]["program"])[0])


# --- determinism ----------------------------------------------------------------------------------------------------


def test_fewer_examples_are_the_first_ones_of_more(splits):
    for split in SPLITS:
        for count in (0, 1, 2, 7, 100):
            assert synthetic.generate(split, count) == splits[split][:count]
    assert synthetic.generate("dev", 500)[:400] == splits["dev"]


def test_global_random_state_is_neither_used_nor_changed():
    random.seed(1)
    state = random.getstate()
    first = synthetic.generate("dev", 20)
    assert random.getstate() == state
    random.seed(2)
    assert synthetic.generate("dev", 20) == first


def test_other_seeds_give_other_pages():
    first, second = (synthetic.generate("dev", 200, seed=seed) for seed in (0, 1))
    contents = [{json.dumps(page_texts(example)) for example in part} for part in (first, second)]
    assert not contents[0] & contents[1]


def test_the_same_arguments_give_the_same_examples_also_under_another_hash_seed(splits):
    code = (
        "import hashlib, json; from fincompress.finqa import synthetic as s;"
        "print(hashlib.sha256(json.dumps([s.generate(x, 150) for x in s.DEFAULT_COUNTS]).encode()).hexdigest())"
    )
    here = hashlib.sha256(json.dumps([splits[split][:150] for split in SPLITS]).encode()).hexdigest()
    environment = {**os.environ, "PYTHONHASHSEED": "1", "PYTHONPATH": str(ROOT)}
    ran = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == here


@pytest.mark.parametrize("seed", range(1, 6))
def test_other_seeds_keep_their_promises(seed):
    made = {split: synthetic.generate(split, 120, seed) for split in SPLITS}
    seen = Counter()
    for part in made.values():
        seen.update(large_numbers([text for page in pages(part).values() for text in page_texts(page)]))
    assert max(seen.values()) == 1
    for part in made.values():
        for example in part:
            value = program.execute(program.tokenize(example["qa"]["program"]), example["table"])
            assert value == example["qa"]["exe_ans"]


# --- nothing shared between splits ----------------------------------------------------------------------------------


@pytest.mark.parametrize("first, second", [("train", "dev"), ("train", "test"), ("dev", "test")])
class TestNothingShared:
    def test_pages(self, splits, first, second):
        a, b = pages(splits[first]), pages(splits[second])
        assert not set(a) & set(b)
        for contents in (page_texts, lambda page: page["table"], lambda page: page["pre_text"] + page["post_text"]):
            texts = [{json.dumps(contents(page)) for page in part.values()} for part in (a, b)]
            assert not texts[0] & texts[1]
        # Nor the same prose with other figures under another name (the first sentence has the company's).
        bare = [{re.sub(r"\d+", "0", " ".join(page["pre_text"][1:] + page["post_text"])) for page in part.values()}
                for part in (a, b)]  # fmt: skip
        assert not bare[0] & bare[1]

    def test_companies(self, splits, first, second):
        tickers = [{name.split("/")[0][:3] for name in pages(splits[split])} for split in (first, second)]
        assert not tickers[0] & tickers[1]
        assert min(map(len, tickers)) >= 5
        ends = "|".join(synthetic._ENDINGS)
        for split, foreign in ((first, second), (second, first)):
            names = re.compile(rf"(?:{synthetic._NAMES[foreign].replace(' ', '|')})(?:{ends})")
            assert not any(names.search(text) for page in pages(splits[split]).values() for text in page_texts(page))

    def test_large_numbers(self, splits, first, second):
        seen = []
        for split in (first, second):
            texts = [text for page in pages(splits[split]).values() for text in page_texts(page)]
            texts += [example["qa"][key] for example in splits[split] for key in ("question", "program")]
            seen.append(large_numbers([re.sub(r"const_\w+", "", text) for text in texts]))
        assert min(map(len, seen)) > 200  # numbers are short, so few
        assert not seen[0] & seen[1]


def test_names_and_ticker_symbols_are_unique():
    heads = [head for names in synthetic._NAMES.values() for head in names.split()]
    assert len({head[:3] for head in heads}) == len(heads)
    assert len({ending[0] for ending in synthetic._ENDINGS}) == len(synthetic._ENDINGS)


def test_a_large_number_has_one_split():
    def owners(number):
        return [split for split in SPLITS if synthetic.may_show(number, split)]

    assert owners(5829) == owners(582900) == owners(-5829)
    assert owners(7) == owners(42) == list(SPLITS) and owners(0) == owners(2014) == []
    counts = Counter(split for number in range(3000, 100_000) for split in owners(number))
    assert counts.total() == 97_000
    assert counts["train"] / counts.total() == pytest.approx(0.5, abs=0.02)
    assert counts["dev"] / counts.total() == pytest.approx(0.25, abs=0.02)


def test_program_numbers_belong_to_the_split(splits):
    for split, part in splits.items():
        for example in part:
            for number in program.operands(example["qa"]["program"])[0]:
                assert synthetic.may_show(int(re.sub(r"\D", "", number)), split)
