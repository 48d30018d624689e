"""A prompt: lines of the page, the question, and the place where the program begins."""

from dataclasses import replace
from types import SimpleNamespace

from fincompress.finqa import examples, prompts

PAGE = examples.Example(
    "a-1", "a", ["sales rose ."], [], [["", "2018", "2017"], ["sales", "41", "39"]],
    "what  was the\nchange?", "subtract(41, 39)", 2.0, {},
)  # fmt: skip


SETTINGS = {"EVIDENCE": "page", "EVIDENCE_TOKENS": None, "MAX_PROMPT_TOKENS": 100}


def words(texts, add_special_tokens=True):
    """Stands for a tokenizer whose tokens are words and that puts BOS in front."""
    front = ["<s>"] * add_special_tokens
    if isinstance(texts, str):
        return SimpleNamespace(input_ids=front + texts.split())
    return SimpleNamespace(input_ids=[front + text.split() for text in texts])


def build(mode, tokens):
    return prompts.build_prompt(PAGE, SETTINGS | {"EVIDENCE": mode, "MAX_PROMPT_TOKENS": tokens}, words)


def test_the_lines_come_first_then_the_question_then_the_program():
    prompt, _ = build("page", 100)
    assert prompt == "sales rose.\n|2018|2017\nsales|41|39\nQuestion: what was the change?\nProgram:\n"


def test_a_day_and_its_year_are_parted():
    table = [["millions", "december 312018", "december 312017"], ["at december 312018", "41", "39"]]
    page = replace(PAGE, question="as of dec. 312018 ?", pre_text=["due june 12019 ."], table=table)
    lines = prompts.build_prompt(page, SETTINGS, words)[0].splitlines()
    assert lines == [
        "due june 1, 2019.", "millions december 31,|2018|2017", "at december 312018|41|39",  # names of rows stay
        "Question: as of dec. 31, 2018 ?", "Program:",
    ]  # fmt: skip


def test_a_prompt_with_its_first_token_is_within_its_limit():
    assert len(words(build("page", 11)[0]).input_ids) == 11
    assert len(words(build("page", 10)[0]).input_ids) <= 10


def test_the_shortest_prompt_is_what_every_prompt_shows():
    assert prompts.shortest_prompt(PAGE) == "|2018|2017\nQuestion: what was the change?\nProgram:\n"
    for mode in ("page", "retrieved"):
        prompt, _ = build(mode, 1)
        assert prompt == prompts.shortest_prompt(PAGE)
