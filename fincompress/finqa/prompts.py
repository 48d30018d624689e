"""From an example to the text a model reads and the text it must write."""

from __future__ import annotations

from collections.abc import Callable

from fincompress.finqa import evidence
from fincompress.finqa.examples import Example


def prompt_for(example: Example, settings: dict, tokenizer) -> tuple[str, list[evidence.Line]]:
    """``build_prompt`` by the constants of a data run; a question that is asked later gets the prompt of training."""
    return build_prompt(
        example, settings["EVIDENCE"], settings["EVIDENCE_TOKENS"], settings["MAX_PROMPT_TOKENS"],
        lambda texts: [len(ids) for ids in tokenizer(texts, add_special_tokens=False).input_ids],
    )  # fmt: skip


def build_prompt(
    example: Example,
    mode: str,
    evidence_tokens: int | None,
    max_prompt_tokens: int,
    count_tokens: Callable[[list[str]], list[int]],
) -> tuple[str, list[evidence.Line]]:
    """Return the prompt of one example and the lines of evidence it shows; the gold program follows on a new line.

    ``mode`` is ``"page"``, ``"retrieved"`` or ``"gold"``; ``evidence_tokens`` is the budget for retrieved evidence
    (None: only the prompt's limit counts, as for the others). Where the whole would be longer than
    ``max_prompt_tokens``, the least relevant lines go first; the question and the table's header are never
    cut. ``count_tokens`` maps texts to token counts.
    """
    budget = max(0, max_prompt_tokens - count_tokens([_end(example)])[0])
    if mode == "retrieved" and evidence_tokens is not None:
        budget = min(budget, evidence_tokens)
    lines = evidence.select(example, mode, budget, count_tokens)
    return _prompt(lines, example), lines


def shortest_prompt(example: Example) -> str:
    """What of a prompt is never cut: the table's header and the question."""
    return _prompt([line for line in evidence.page_lines(example) if line.key == evidence.HEADER], example)


def _prompt(lines: list[evidence.Line], example: Example) -> str:
    return "\n".join(line.text for line in lines) + "\n" + _end(example)


def _end(example: Example) -> str:
    return f"Question: {' '.join(example.question.split())}\nProgram:\n"
