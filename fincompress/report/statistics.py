"""Intervals and tests of the report: one accuracy, two runs on the same questions, a ratio of throughputs."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
from scipy import stats

from fincompress.errors import UserError
from fincompress.finqa.scoring import wilson_interval  # noqa: F401  of one accuracy; the others are below

RESAMPLES = 10_000


def read_verdicts(path: Path, verdict: str = "execution_correct") -> dict[str, bool]:
    """``{question id: verdict}`` of a ``predictions_<split>.jsonl`` that evaluate.py wrote.

    Raises UserError naming the line of a record without id or verdict, and for an id that stands twice.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").split("\n")  # splitlines() also parts at U+2028
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    verdicts: dict[str, bool] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            question, value = record["id"], record[verdict]
        except (ValueError, KeyError, TypeError):
            question = value = None
        if not isinstance(question, str) or not isinstance(value, bool):
            raise UserError(f'{path}, line {number}: expected {{"id": text, "{verdict}": true or false}}')
        if question in verdicts:
            raise UserError(f"{path}, line {number}: {question} stands twice")
        verdicts[question] = value
    return verdicts


def mcnemar(only_first: int, only_second: int) -> float:
    """Two-sided p of McNemar's exact test (1947), from how many questions only one of two runs has right."""
    differing = only_first + only_second
    return float(stats.binomtest(only_first, differing).pvalue) if differing else 1.0


def bootstrap_difference(
    first: np.ndarray, second: np.ndarray, confidence: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float]:
    """Percentile interval of accuracy(first) - accuracy(second), questions resampled in pairs (Efron 1979).

    ``first`` and ``second`` are boolean, shape (questions,). A question contributes -1, 0 or 1, so one resample is one
    draw of three counts from a multinomial distribution.
    """
    questions, better, worse = len(first), int(np.sum(first & ~second)), int(np.sum(second & ~first))
    shares = np.array([better, worse, questions - better - worse]) / questions
    counts = np.random.default_rng(seed).multinomial(questions, shares, size=resamples)
    differences = (counts[:, 0] - counts[:, 1]) / questions
    tail = (1 - confidence) / 2
    low, high = np.quantile(differences, (tail, 1 - tail))
    return float(low), float(high)


def compare(first: dict[str, bool], second: dict[str, bool], confidence: float = 0.95) -> dict:
    """Accuracy of ``first`` minus that of ``second`` (shares) on the same questions, ``{question id: verdict}`` each.

    Returns ``difference``, ``interval`` (paired bootstrap), ``mcnemar_p``, ``only_first`` and ``only_second``
    (questions that one alone has right), ``questions`` and ``confidence``. Raises UserError where the questions differ.
    """
    if set(first) != set(second):
        alone = sorted(set(first) ^ set(second))
        raise UserError(
            f"the two runs did not answer the same questions ({len(first)} and {len(second)}; {len(alone)} are in one "
            f"only, such as {alone[0]}): evaluate both on the same split"
        )
    if not first:
        raise UserError("no question was answered: there is nothing to compare")
    one, other = (np.array([side[question] for question in sorted(first)], dtype=bool) for side in (first, second))
    only_first, only_second = int(np.sum(one & ~other)), int(np.sum(other & ~one))
    return {
        "questions": len(one),
        "difference": (only_first - only_second) / len(one),
        "interval": list(bootstrap_difference(one, other, confidence)),
        "confidence": confidence,
        "only_first": only_first,
        "only_second": only_second,
        "mcnemar_p": mcnemar(only_first, only_second),
    }


def favours(comparison: dict) -> int:
    """1 where the first run of a ``compare`` is the better one, -1 where the second is, 0 where it is not decided.

    Bootstrap and exact test must agree: with a handful of differing questions the bootstrap alone is too sure.
    """
    low, high = comparison["interval"]
    if comparison["mcnemar_p"] >= 1 - comparison["confidence"]:
        return 0
    return 1 if low > 0 else -1 if high < 0 else 0


def ratio_interval(first: list[float], second: list[float], confidence: float = 0.95) -> tuple[float, float, float]:
    """``(ratio, low, high)`` of two measurements taken in turns, ``first`` over ``second`` round by round.

    The geometric mean of the rounds' ratios and Student's interval of their logarithms. Needs two rounds or more, as
    many of each, all above zero.
    """
    if len(first) != len(second) or len(first) < 2:
        raise ValueError(f"{len(first)} and {len(second)} rounds: as many of each are needed, two at least")
    logs = np.log(np.asarray(first, dtype=float) / np.asarray(second, dtype=float))
    quantile = float(stats.t.ppf((1 + confidence) / 2, len(logs) - 1))
    centre, half = float(logs.mean()), quantile * float(logs.std(ddof=1)) / math.sqrt(len(logs))
    return math.exp(centre), math.exp(centre - half), math.exp(centre + half)


def frontier(points: list[tuple[float | None, float | None]]) -> list[bool]:
    """Which of ``(cost, gain)`` points no other dominates: none costs at most as much and gains at least as much.

    Of equal points all are on the frontier or none. A point that lacks a value is not on it and dominates nothing.
    """
    whole = [point for point in points if None not in point]

    def dominated(point: tuple[float, float]) -> bool:
        return any(x <= point[0] and y >= point[1] and (x, y) != point for x, y in whole)

    return [None not in point and not dominated(point) for point in points]
