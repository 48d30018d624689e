"""Intervals and tests of the report: two runs on the same questions, a ratio of throughputs."""

import math

import numpy as np
from scipy import stats

RESAMPLES = 10_000


def bootstrap_difference(
    better: int, worse: int, questions: int, confidence: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Percentile interval of a difference of two accuracies, questions resampled in pairs (Efron 1979).

    ``better`` questions only the first run has right, ``worse`` only the second. A question contributes 1, -1 or 0, so
    one resample is one draw of three counts from a multinomial distribution.
    """
    shares = np.array([better, worse, questions - better - worse]) / questions
    counts = np.random.default_rng(seed).multinomial(questions, shares, size=RESAMPLES)
    tail = (1 - confidence) / 2
    low, high = np.quantile((counts[:, 0] - counts[:, 1]) / questions, (tail, 1 - tail))
    return float(low), float(high)


def compare(first: dict[str, bool], second: dict[str, bool], confidence: float = 0.95) -> dict:
    """Accuracy of ``first`` minus that of ``second`` (shares), ``{question id: verdict}`` of the same questions.

    Returns ``difference``, ``interval`` (paired bootstrap), ``mcnemar_p`` (two-sided exact test, McNemar 1947),
    ``questions`` and ``confidence``.
    """
    better = sum(first[question] and not second[question] for question in first)
    worse = sum(second[question] and not first[question] for question in first)
    return {
        "questions": len(first),
        "difference": (better - worse) / len(first),
        "interval": list(bootstrap_difference(better, worse, len(first), confidence)),
        "confidence": confidence,
        "mcnemar_p": float(stats.binomtest(better, better + worse).pvalue) if better + worse else 1.0,
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

    The geometric mean of the rounds' ratios and Student's interval of their logarithms, from two rounds or more.
    """
    logs = np.log(np.divide(first, second))
    half = stats.t.ppf((1 + confidence) / 2, len(logs) - 1) * logs.std(ddof=1) / math.sqrt(len(logs))
    return tuple(float(math.exp(log)) for log in (logs.mean(), logs.mean() - half, logs.mean() + half))


def frontier(costs: list[float | None], gains: list[float]) -> list[bool]:
    """Which points no other dominates: none costs at most as much and gains at least as much.

    Of equal points all are on the frontier or none. A point without a cost is not on it and dominates nothing.
    """
    x, y = np.array(costs, dtype=float), np.array(gains, dtype=float)
    as_good = (x <= x[:, None]) & (y >= y[:, None])
    better = (x < x[:, None]) | (y > y[:, None])
    return list(~(as_good & better).any(axis=1) & ~np.isnan(x))
