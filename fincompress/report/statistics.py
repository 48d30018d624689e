"""Intervals and tests of the report: two runs on the same questions, a ratio of throughputs."""

import math

import numpy as np
from scipy import stats

RESAMPLES = 10_000


def bootstrap_mean(values: list[float], confidence: float = 0.95, seed: int = 0) -> tuple[float, float]:
    """Percentile interval of the mean of what each question contributes, questions resampled (Efron 1979).

    Of a difference of two accuracies that is the difference of their verdicts, 1, -1 or 0, so questions stay paired; of
    means over seeds a share. Values are few, so one resample is one draw of their counts from a multinomial
    distribution.
    """
    distinct, counts = np.unique(np.asarray(values, dtype=float), return_counts=True)
    order = sorted(range(len(distinct)), key=lambda place: (-abs(distinct[place]), -distinct[place]))
    shares = counts[order] / len(values)
    drawn = np.random.default_rng(seed).multinomial(len(values), shares, size=RESAMPLES)
    tail = (1 - confidence) / 2
    low, high = np.quantile(drawn @ distinct[order] / len(values), (tail, 1 - tail))
    return float(low), float(high)


def compare(first: dict[str, float], second: dict[str, float], confidence: float = 0.95) -> dict:
    """Accuracy of ``first`` minus that of ``second`` (shares), ``{question id: verdict}`` of the same questions.

    A verdict is a truth value or, of several seeds, the share of them that have the question right. Returns
    ``difference``, ``interval`` (paired bootstrap), ``mcnemar_p`` (two-sided exact test of the questions that one has
    right more often, McNemar 1947), ``questions`` and ``confidence``.
    """
    apart = [float(first[question]) - float(second[question]) for question in first]
    better, worse = (sum(sign * value > 0 for value in apart) for sign in (1, -1))
    return {
        "questions": len(first),
        "difference": math.fsum(apart) / len(first),
        "interval": list(bootstrap_mean(apart, confidence)),
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
