"""What a criterion says of the units that may be dropped, and which of them goes next."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch

from fincompress.depth.sublayers import SubLayer, unit_name
from fincompress.errors import UserError

WORST = 1e4  # nats per token that stand for what is no number
Unit = tuple[SubLayer, ...]


@dataclass
class Score:
    """What is known of the model without one unit: its answers to calibration questions, or a criterion's number."""

    unit: Unit
    nll: torch.Tensor = field(default_factory=lambda: torch.zeros(0))  # (questions,), nats per target token, or KL
    exact: torch.Tensor = field(default_factory=lambda: torch.zeros(0))  # (questions,), 1 where the program is exact
    value: float | None = None  # of a criterion that asks no questions

    @property
    def questions(self) -> int:
        return len(self.nll)

    def add(self, nll: torch.Tensor, exact: torch.Tensor) -> None:
        # What overflows without a unit is as bad as can be, and must not win because nothing compares with it.
        self.nll = torch.cat([self.nll, nll.float().cpu().nan_to_num(nan=WORST, posinf=WORST)])
        self.exact = torch.cat([self.exact, exact.float().cpu()])


@dataclass
class Ranking:
    """Scores of the units that may be dropped, and of the whole model under an empty unit (None: not scored yet).

    ``by`` says which unit goes first: "order" the first one, "accuracy" and "nll" as ``choose`` decides.
    """

    scores: list[Score]
    whole: Score | None = None
    by: str = "order"

    @classmethod
    def lowest_first(cls, values: dict[Unit, float]) -> Ranking:
        """Units by a number, the lowest first. Raises UserError where one is none: it would win or lose by chance."""
        for unit, value in values.items():
            if not math.isfinite(value):
                raise UserError(f"the criterion's score of {unit_name(unit)} is {value}: choose another CRITERION")
        return cls([Score(unit, value=value) for unit, value in sorted(values.items(), key=lambda pair: pair[1])])

    def next(self, allowed: list[Unit]) -> tuple[Score | None, str]:
        """Which of the ``allowed`` units goes next, and what decided; None where none of them is left.

        After a scan only units that saw every question can go: the others were eliminated.
        """
        left = [score for score in self.scores if score.unit in allowed]
        if self.by == "order":
            return (left[0] if left else None), self.by
        left = [score for score in left if score.questions == self.whole.questions]
        return choose(left, self.by == "accuracy") if left else (None, self.by)


def choose(scores: list[Score], by_accuracy: bool = True) -> tuple[Score, str]:
    """The unit to drop, and what decided: ``accuracy``, ``nll``, or ``only`` where there is one candidate.

    The one whose absence leaves the highest accuracy. Units within one standard error of it, of the difference on
    the same questions, tie; among those the lowest NLL decides. (TrimLLM takes the largest output norm, which is a poor
    criterion by itself.) Attention and MLP are compared alike. Only units that saw every question take part. Without
    ``by_accuracy`` the NLL decides alone, or the KL in its place.
    """
    most = max(score.questions for score in scores)
    scores = [score for score in scores if score.questions == most]
    if len(scores) == 1:
        return scores[0], "only"
    best = max(scores, key=lambda score: (score.exact.mean(), -score.nll.mean()))
    tied = [score for score in scores if not by_accuracy or not behind(-score.exact, -best.exact, errors=1)]
    if len(tied) == 1:
        return best, "accuracy"
    return min(tied, key=lambda score: score.nll.mean()), "nll"


def behind(nll: torch.Tensor, leader: torch.Tensor, errors: float) -> bool:
    """Whether ``nll`` is above the leader's by more than so many standard errors of the paired difference."""
    difference = nll - leader
    # One question that differs is exactly one standard error: not more, however floats round.
    return bool(difference.mean() > errors * standard_error(difference) * (1 + 1e-5))


def standard_error(values: torch.Tensor) -> float:
    """Standard error of the mean."""
    return float(values.std()) / math.sqrt(len(values)) if len(values) > 1 else math.inf
