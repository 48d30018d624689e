"""The examples of a training in the order of a stream, and their figures, drawn again in later passes."""

import bisect
import itertools
import random

import datasets
import torch

from fincompress.finqa import figures, prompts

FIGURES = "figures"  # the value of AUGMENT
SHOWN = ("id", "prompt", "program", "evidence_shown")  # what new figures are drawn from


class TrainingRows(torch.utils.data.Dataset):
    """Rows of a data run for the Trainer, on the fly: no copy of a redrawn example is stored.

    ``passes`` says how many rows belong to each pass over the examples, of which ``first_pass`` is the number of the
    first. ``epoch``, which the sampler sets, counts passes on. New figures depend on ``seed``, the pass, the example's
    id and ``start_from``, the name of the run that is trained further: a run that is resumed or repeated sees the same,
    and a stage none of the stage before, nor the examples' own, which that has seen.
    """

    def __init__(
        self, rows: datasets.Dataset, tokenizer, augment: str | None, seed: int,
        passes: list[int] | None = None, first_pass: int = 0, start_from: str | None = None,
    ):  # fmt: skip
        self.columns = [name for name in ("input_ids", "prompt_tokens", "row") if name in rows.column_names]
        self.rows = rows.select_columns([*self.columns, "length", *(SHOWN if augment else ())])
        self.tokenizer, self.augment, self.seed = tokenizer, augment, f"{seed} {start_from}" if start_from else seed
        self.passes, self.first_pass, self.epoch = passes or [len(rows)], first_pass + bool(start_from), 0
        self.ends = list(itertools.accumulate(self.passes))

    def set_epoch(self, epoch: int) -> None:
        """Called by accelerate in each epoch: of several processes, resumed in one, it does not reach the sampler."""
        self.epoch = epoch

    @property
    def lengths(self) -> list[int]:
        """Tokens of each row as it was prepared; new figures have as many digits, so about as many tokens."""
        return list(self.rows["length"])

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict:
        row = self.rows[index]
        example = {name: row[name] for name in self.columns}
        number = self.first_pass + self.epoch + bisect.bisect(self.ends, index)
        # Figures that the prompt does not show cannot be found there, new ones not even be remembered.
        if self.augment is None or number == 0 or not row["evidence_shown"]:
            return example
        generator = random.Random(f"{self.seed} {number} {row['id']}")
        prompt, text = figures.redraw(row["prompt"], row["program"], generator)
        return example | prompts.encode(prompt, text, self.tokenizer)
