"""From an example to the text a model reads and the text it must write."""

from fincompress.errors import UserError
from fincompress.finqa import evidence, numbers
from fincompress.finqa.examples import Example


def build_prompt(example: Example, settings: dict, tokenizer) -> tuple[str, list[evidence.Line]]:
    """The prompt of an example by the constants of a data run, and the lines of evidence that it shows.

    The gold program follows on a new line. EVIDENCE_TOKENS bounds what is retrieved (None: MAX_PROMPT_TOKENS alone
    does); where no line is that short, one that MAX_PROMPT_TOKENS allows is shown. The least relevant lines go first;
    the question and the table's header are never cut.
    """

    def count_tokens(texts: list[str]) -> list[int]:
        return [len(ids) for ids in tokenizer(texts, add_special_tokens=False).input_ids]

    budget = room = max(0, settings["MAX_PROMPT_TOKENS"] - len(tokenizer(end(example)).input_ids))
    if settings["EVIDENCE"] == "retrieved" and settings["EVIDENCE_TOKENS"] is not None:
        budget = min(budget, settings["EVIDENCE_TOKENS"])
    lines = evidence.select(example, settings["EVIDENCE"], budget, count_tokens, room)
    return _prompt(lines, example), lines


def check_fit(examples: list[Example], settings: dict, tokenizer) -> None:
    """Raise UserError where what is never cut of a prompt, table header and question, exceeds MAX_PROMPT_TOKENS."""
    tokens = [len(ids) for ids in tokenizer([shortest_prompt(example) for example in examples]).input_ids]
    longest, example = max(zip(tokens, examples, strict=True), key=lambda pair: pair[0])
    if longest > (limit := settings["MAX_PROMPT_TOKENS"]):
        raise UserError(
            f"MAX_PROMPT_TOKENS = {limit}: question and table header of {example.id}, which are never cut, have "
            f"{longest}: shorten the question, or raise it"
        )


def shortest_prompt(example: Example) -> str:
    """What of a prompt is never cut: the table's header and the question."""
    return _prompt([line for line in evidence.page_lines(example) if line.key == evidence.HEADER], example)


def _prompt(lines: list[evidence.Line], example: Example) -> str:
    return "\n".join(line.text for line in lines) + "\n" + end(example)


def end(example: Example) -> str:
    """What of a prompt follows its evidence."""
    return f"Question: {numbers.part_dates(' '.join(example.question.split()))}\nProgram:\n"


def encode(prompt: str, text: str, tokenizer) -> dict:
    """``input_ids`` of prompt + program + EOS, and how many of them are the prompt's."""
    prompt_ids = tokenizer(prompt).input_ids
    target_ids = [*tokenizer(text, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
    return {"input_ids": prompt_ids + target_ids, "prompt_tokens": len(prompt_ids)}
