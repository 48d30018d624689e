"""From an example to the text a model reads and the text it must write."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fincompress.finqa import evidence
from fincompress.finqa.examples import Example

QUESTION = "Question: "
CUE = "Program:"  # the last word of a prompt; the gold program follows on a new line


@dataclass(frozen=True)
class Prompt:
    """``text`` ends where the model is to continue with the program; ``lines`` is the evidence on show."""

    text: str
    lines: list[evidence.Line]


def build_prompt(
    example: Example,
    mode: str,
    evidence_tokens: int | None,
    max_prompt_tokens: int,
    count_tokens: Callable[[list[str]], list[int]],
) -> Prompt:
    """The prompt of one example.

    ``mode`` is ``"page"``, ``"retrieved"`` or ``"gold"``; ``evidence_tokens`` is the budget for retrieved evidence
    (None: only the prompt's limit counts, as for the others). Where the whole would be longer than
    ``max_prompt_tokens``, the least relevant lines go first; the question and the table's header are never
    cut. ``count_tokens`` maps texts to token counts.
    """
    question = QUESTION + " ".join(example.question.split()) + "\n" + CUE + "\n"
    room = max(0, max_prompt_tokens - count_tokens([question])[0])
    budget = min(room, evidence_tokens) if mode == "retrieved" and evidence_tokens is not None else room
    lines = evidence.select(example, mode, budget, count_tokens)
    return Prompt(evidence.render(lines) + "\n" + question, lines)
