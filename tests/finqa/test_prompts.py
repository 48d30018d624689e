"""A prompt: lines of the page, the question, and the place where the program begins."""

from fincompress.finqa import examples, prompts

PAGE = examples.Example(
    "a-1", "a", ["sales rose ."], [], [["", "2018", "2017"], ["sales", "41", "39"]],
    "what  was the\nchange?", "subtract(41, 39)", 2.0, {},
)  # fmt: skip


def test_the_lines_come_first_then_the_question_then_the_program():
    prompt, _ = prompts.build_prompt(PAGE, "page", None, 100, lambda texts: [len(text.split()) for text in texts])
    assert prompt == "sales rose.\n|2018|2017\nsales|41|39\nQuestion: what was the change?\nProgram:\n"


def test_the_shortest_prompt_is_what_every_prompt_shows():
    assert prompts.shortest_prompt(PAGE) == "|2018|2017\nQuestion: what was the change?\nProgram:\n"
    for mode in ("page", "retrieved"):
        prompt, _ = prompts.build_prompt(PAGE, mode, None, 1, lambda texts: [len(text.split()) for text in texts])
        assert prompt == prompts.shortest_prompt(PAGE)
