"""A prompt: lines of the page and the question, in either order, and the place where the program begins."""

from fincompress.finqa import examples, prompts

PAGE = examples.Example(
    "a-1", "a", ["sales rose ."], [], [["", "2018", "2017"], ["sales", "41", "39"]],
    "what  was the\nchange?", "subtract(41, 39)", 2.0, {},
)  # fmt: skip


def build(**options) -> str:
    return prompts.build_prompt(
        PAGE, "page", None, 100, lambda texts: [len(text.split()) for text in texts], **options
    )[0]


def test_the_question_stands_after_the_lines_or_before_them():
    lines, question = "sales rose.\n|2018|2017\nsales|41|39\n", "Question: what was the change?\n"
    assert build() == lines + question + "Program:\n"
    assert build(question_first=True) == question + lines + "Program:\n"
