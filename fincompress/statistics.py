"""Two runs on the same questions: the difference of their accuracies with a paired interval, and McNemar's test.

Both runs answer the same questions, so what tells them apart is the questions on which they differ. Intervals of a
single accuracy are in ``finqa/scoring.py`` (Wilson).
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
from scipy import stats

from fincompress.errors import UserError

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


def pair(first: dict[str, bool], second: dict[str, bool]) -> tuple[np.ndarray, np.ndarray]:
    """The verdicts of two runs as boolean arrays, question by question, in one order.

    Raises UserError where the questions are not the same, or there is none: then nothing is paired.
    """
    if set(first) != set(second):
        alone = sorted(set(first) ^ set(second))
        raise UserError(
            f"the two runs did not answer the same questions ({len(first)} and {len(second)}; {len(alone)} are in one "
            f"only, such as {alone[0]}): evaluate both on the same split"
        )
    if not first:
        raise UserError("no question was answered: there is nothing to compare")
    ids = sorted(first)
    return np.array([first[i] for i in ids], dtype=bool), np.array([second[i] for i in ids], dtype=bool)


def mcnemar(only_first: int, only_second: int) -> float:
    """Two-sided p of McNemar's exact test, from how many questions only one of two runs has right.

    Under equal accuracy each such question is a fair coin (McNemar 1947): twice the smaller binomial tail, at most 1.
    """
    differing = only_first + only_second
    return float(stats.binomtest(only_first, differing).pvalue) if differing else 1.0


def bootstrap_difference(
    first: np.ndarray, second: np.ndarray, confidence: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float]:
    """Percentile interval of accuracy(first) - accuracy(second), questions resampled with both verdicts (Efron 1979).

    A question contributes -1, 0 or 1, so a resample of n questions is one draw of three counts from a multinomial
    distribution: the same bootstrap without 10,000 times n indices. Where no question differs the interval has no
    width, however few the questions are.
    """
    questions, better, worse = len(first), int(np.sum(first & ~second)), int(np.sum(second & ~first))
    shares = np.array([better, worse, questions - better - worse]) / questions
    counts = np.random.default_rng(seed).multinomial(questions, shares, size=resamples)
    differences = (counts[:, 0] - counts[:, 1]) / questions
    tail = (1 - confidence) / 2
    low, high = np.quantile(differences, (tail, 1 - tail))
    return float(low), float(high)


def compare(
    first: dict[str, bool],
    second: dict[str, bool],
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict:
    """What two runs' verdicts say of the difference of their accuracies (``first`` minus ``second``, as shares).

    Raises UserError where the questions differ. ``interval`` is the paired bootstrap's, ``mcnemar_p`` the exact test's.
    """
    one, other = pair(first, second)
    only_first, only_second = int(np.sum(one & ~other)), int(np.sum(other & ~one))
    low, high = bootstrap_difference(one, other, confidence, resamples, seed)
    return {
        "questions": len(one),
        "difference": (only_first - only_second) / len(one),
        "interval": [low, high],
        "confidence": confidence,
        "only_first": only_first,
        "only_second": only_second,
        "mcnemar_p": mcnemar(only_first, only_second),
        "resamples": resamples,
        "seed": seed,
    }


def ratio_interval(first: list[float], second: list[float], confidence: float = 0.95) -> tuple[float, float, float]:
    """``(ratio, low, high)`` of two measurements taken in turns, ``first`` over ``second`` round by round.

    The geometric mean of the rounds' ratios and Student's interval of their logarithms: what drifts between rounds of a
    shared machine is the same for both and cancels. Needs two rounds or more, as many of each, all above zero.
    """
    if len(first) != len(second) or len(first) < 2:
        raise ValueError(f"{len(first)} and {len(second)} rounds: as many of each are needed, two at least")
    logs = np.log(np.asarray(first, dtype=float) / np.asarray(second, dtype=float))
    quantile = float(stats.t.ppf((1 + confidence) / 2, len(logs) - 1))
    centre, half = float(logs.mean()), quantile * float(logs.std(ddof=1)) / math.sqrt(len(logs))
    return math.exp(centre), math.exp(centre - half), math.exp(centre + half)


def favours(comparison: dict) -> int:
    """1 where the first run of a ``compare`` is the better one, -1 where the second is, 0 where it is not decided.

    The bootstrap interval must exclude zero and the exact test must agree at the same level: with a handful of
    differing questions the bootstrap alone is too sure (4 against 0 would do; McNemar's p is 0.125).
    """
    low, high = comparison["interval"]
    if comparison["mcnemar_p"] >= 1 - comparison["confidence"]:
        return 0
    return 1 if low > 0 else -1 if high < 0 else 0
