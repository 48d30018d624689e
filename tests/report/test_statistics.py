"""Paired comparisons of two runs against published and hand-computed values."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fincompress.report import statistics


def verdicts(both, only_first, only_second, neither):
    """Two runs' verdicts with these counts of questions."""
    pairs = [(True, True)] * both + [(True, False)] * only_first + [(False, True)] * only_second
    pairs += [(False, False)] * neither
    ids = [f"AAA/2001/page_{number}.pdf-1" for number in range(len(pairs))]
    return tuple(dict(zip(ids, side, strict=True)) for side in zip(*pairs, strict=True))


def mcnemar(only_first, only_second):
    return statistics.compare(*verdicts(0, only_first, only_second, 1))["mcnemar_p"]


# Binomial tails by hand: 2 * 1 / 32, 2 * (1 + 5) / 32, 2 * (1 + 10 + 45) / 1024.
@pytest.mark.parametrize(
    ("only_first", "only_second", "p"),
    [(0, 0, 1.0), (1, 0, 1.0), (0, 5, 0.0625), (1, 4, 0.375), (8, 2, 0.109375), (3, 3, 1.0), (6, 0, 0.03125)],
)
def test_mcnemar_is_the_binomial_tail(only_first, only_second, p):
    assert mcnemar(only_first, only_second) == pytest.approx(p, rel=1e-12)


def test_mcnemar_agrees_with_agrestis_presidential_ratings():
    # Agresti, Categorical Data Analysis, table 10.1: 150 against 86; z squared is 17.36, so p is about 3e-5.
    assert 2e-5 < mcnemar(150, 86) < 5e-5


@pytest.mark.parametrize(("a", "b"), [(0, 60), (13, 14), (60, 59), (7, 7)])
def test_mcnemar_is_one_probability_whichever_run_is_first(a, b):
    p = mcnemar(a, b)
    assert 0 < p <= 1 and p == mcnemar(b, a)


def test_bootstrap_interval_is_that_of_resampled_questions():
    first, second = (np.array(list(side.values())) for side in verdicts(150, 90, 60, 583))
    low, high = statistics.bootstrap_mean(np.subtract(first, second, dtype=float))
    # The plain bootstrap, index by index.
    picks = np.random.default_rng(1).integers(0, len(first), (4000, len(first)))
    differences = first[picks].mean(axis=1) - second[picks].mean(axis=1)
    assert (low, high) == pytest.approx(np.quantile(differences, (0.025, 0.975)), abs=0.002)
    # And the normal approximation: variance of a paired difference of proportions.
    n, b, c = len(first), 90, 60
    half = 1.96 * math.sqrt(b + c - (b - c) ** 2 / n) / n
    assert (low, high) == pytest.approx(((b - c) / n - half, (b - c) / n + half), abs=0.002)


def test_bootstrap_uses_that_the_questions_are_paired():
    """Two runs of 25 % that agree on nearly everything are told apart far better than two that agree by chance."""
    alike, unlike = verdicts(215, 8, 1, 659), verdicts(60, 163, 156, 504)
    width = [np.subtract(*statistics.compare(*pair)["interval"][::-1]) for pair in (alike, unlike)]
    assert width[0] < 0.2 * width[1]


def test_the_interval_covers_the_truth_as_often_as_it_says():
    generator = np.random.default_rng(0)
    covered = 0
    for trial in range(400):
        draw = generator.random(300)
        first, second = draw < 0.30, (draw < 0.20) | (draw > 0.95)  # 30 % and 25 %, 0.15 of the questions differ
        low, high = statistics.bootstrap_mean(np.subtract(first, second, dtype=float), seed=trial)
        covered += low <= 0.05 <= high
    assert 0.91 <= covered / 400 <= 0.98


def test_higher_confidence_gives_a_wider_interval():
    apart = [1] * 40 + [-1] * 30 + [0] * 400
    low, high = statistics.bootstrap_mean(apart)
    lower, higher = statistics.bootstrap_mean(apart, confidence=0.995)
    assert lower < low < 0.0213 < high < higher


def test_compare_counts_the_first_run_against_the_second():
    first, second = verdicts(10, 5, 2, 3)
    comparison = statistics.compare(first, second)
    assert comparison["questions"] == 20 and comparison["difference"] == pytest.approx(0.15)
    assert comparison["interval"][0] <= 0.15 <= comparison["interval"][1]
    assert comparison["mcnemar_p"] == pytest.approx(2 * (1 + 7 + 21) / 128)
    turned = statistics.compare(second, first)
    assert turned["difference"] == -comparison["difference"]
    assert comparison["confidence"] == 0.95 and statistics.RESAMPLES == 10_000


def test_the_mean_over_seeds_is_resampled_by_questions_and_tested_by_which_is_right_more_often():
    shares = np.random.default_rng(0).integers(0, 4, (2, 400)) / 3
    first, second = (dict(enumerate(side)) for side in shares)
    comparison = statistics.compare(first, second)
    apart = shares[0] - shares[1]
    picks = np.random.default_rng(1).integers(0, 400, (4000, 400))
    assert comparison["difference"] == pytest.approx(apart.mean())
    assert comparison["interval"] == pytest.approx(np.quantile(apart[picks].mean(axis=1), (0.025, 0.975)), abs=0.004)
    better, worse = sum(apart > 0), sum(apart < 0)
    assert comparison["mcnemar_p"] == mcnemar(better, worse)


def test_order_of_the_questions_does_not_matter():
    first, second = verdicts(10, 5, 2, 3)
    assert statistics.compare(first, dict(reversed(second.items()))) == statistics.compare(first, second)


def test_an_interval_has_no_width_where_every_question_differs_alike():
    same = statistics.compare(*verdicts(5, 0, 0, 5))
    assert (same["difference"], same["interval"], same["mcnemar_p"]) == (0.0, [0.0, 0.0], 1.0)
    apart = statistics.compare(*verdicts(0, 4, 0, 0))
    assert (apart["difference"], apart["interval"]) == (1.0, [1.0, 1.0])


def test_ratio_interval_is_students():
    # Logs of the ratios are log 2 + (-0.1, 0, 0.1): mean log 2, standard deviation 0.1, t(2) = 4.302653.
    first = [2 * math.exp(-0.1), 20.0, 200 * math.exp(0.1)]
    half = 4.302653 * 0.1 / math.sqrt(3)
    expected = (2.0, 2 * math.exp(-half), 2 * math.exp(half))
    assert statistics.ratio_interval(first, [1.0, 10.0, 100.0]) == pytest.approx(expected)
    turned = statistics.ratio_interval([1.0, 10.0, 100.0], first)
    assert turned == pytest.approx((1 / expected[0], 1 / expected[2], 1 / expected[1]))
    assert statistics.ratio_interval([3.0] * 40, [2.0] * 40) == pytest.approx((1.5, 1.5, 1.5))


@pytest.mark.parametrize(
    ("counts", "better"),
    [((50, 60, 20, 200), 1), ((50, 20, 60, 200), -1), ((50, 30, 28, 200), 0), ((50, 0, 0, 200), 0),
     ((50, 4, 0, 200), 0), ((0, 0, 6, 0), -1)],
)  # fmt: skip
def test_a_winner_is_named_only_where_interval_and_exact_test_agree(counts, better):
    assert statistics.favours(statistics.compare(*verdicts(*counts))) == better


# --- frontier -------------------------------------------------------------------------------------------------------


def frontier(points):
    return statistics.frontier([cost for cost, _ in points], [gain for _, gain in points])


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        ([], []),
        ([(1.0, 0.5)], [True]),
        ([(1.0, 0.5), (2.0, 0.5)], [True, False]),  # dearer, no better
        ([(1.0, 0.5), (1.0, 0.4)], [True, False]),
        ([(1.0, 0.5), (2.0, 0.6)], [True, True]),
        ([(1.0, 0.5), (1.0, 0.5), (1.0, 0.4)], [True, True, False]),  # a tie dominates neither of the two
        ([(1.0, 0.5), (1.0, 0.5), (0.9, 0.5)], [False, False, True]),
        ([(None, 0.9), (1.0, 0.5)], [False, True]),
        ([(0.0, 0.0), (1.0, 0.0)], [True, False]),  # 0 is a value
        ([(3, 3), (1, 1), (2, 2), (2, 1)], [True, True, True, False]),
    ],
)
def test_ties_are_on_the_frontier_and_points_without_a_value_off_it(points, expected):
    assert frontier(points) == expected


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=12))
def test_the_frontier_is_every_point_that_no_other_dominates(points):
    flags = frontier(points)
    best = [point for point, flag in zip(points, flags, strict=True) if flag]
    assert not points or best
    for x, y in points:
        better = any(a <= x and b >= y and (a < x or b > y) for a, b in points)
        assert better != ((x, y) in best)
        assert any(a <= x and b >= y for a, b in best)  # every point is matched by one of the frontier
