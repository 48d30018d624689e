"""Which unit goes: accuracy, then NLL, with ties as specified; or the first of an order."""

import math

import pytest
import torch

from fincompress.depth import ranking
from fincompress.depth.ranking import Ranking, Score
from fincompress.depth.sublayers import SubLayer
from fincompress.errors import UserError


def score(kind, exact, nll, block=0):
    return Score((SubLayer(block, kind),), torch.tensor(nll), torch.tensor(exact))


def test_accuracy_decides_where_it_can():
    good, bad = [1.0] * 90 + [0.0] * 10, [1.0] * 60 + [0.0] * 40
    best, why = ranking.choose([score("mlp", bad, [0.1] * 100), score("attention", good, [0.9] * 100)])
    assert best.unit[0].kind == "attention" and why == "accuracy"


def test_a_tie_in_accuracy_falls_to_nll_also_across_kinds():
    # 50 of 100 against 51 of 100 on the same questions: well within one standard error.
    lower, higher = [1.0] * 50 + [0.0] * 50, [0.0] * 49 + [1.0] * 51
    candidates = [("mlp", higher, 0.5, 0), ("attention", lower, 0.2, 0), ("mlp", lower, 0.4, 1)]
    best, why = ranking.choose([score(kind, exact, [nll] * 100, block=n) for kind, exact, nll, n in candidates])
    assert best.unit[0].kind == "attention" and why == "nll"


def test_more_than_one_standard_error_in_accuracy_is_no_tie():
    higher, lower = [1.0] * 52 + [0.0] * 48, [1.0] * 50 + [0.0] * 50  # 2 points, 1.4 standard errors
    best, why = ranking.choose([score("mlp", lower, [0.1] * 100), score("attention", higher, [0.9] * 100)])
    assert best.unit[0].kind == "attention" and why == "accuracy"


def test_only_units_that_saw_every_question_are_chosen():
    eliminated = score("mlp", [1.0] * 10, [0.0] * 10)
    best, _ = ranking.choose([eliminated, score("attention", [0.0] * 100, [0.9] * 100)])
    assert best.unit[0].kind == "attention"


def test_paired_differences_see_what_unpaired_ones_cannot():
    hard = torch.randn(200, generator=torch.Generator().manual_seed(1)).abs() * 5
    assert ranking.behind(hard + 0.01 + 0.001 * torch.rand(200), hard, errors=3)
    assert not ranking.behind(hard, hard, errors=0)
    assert ranking.standard_error(torch.tensor([1.0])) == math.inf


@pytest.mark.parametrize("questions", range(2, 66, 7))
def test_one_question_that_differs_is_one_standard_error_and_not_more(questions):
    worse = torch.zeros(questions)
    worse[0] = 1.0
    assert ranking.standard_error(worse) == pytest.approx(1 / questions)
    assert not ranking.behind(worse, torch.zeros(questions), errors=1)
    assert ranking.behind(worse, torch.zeros(questions), errors=0.99)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_no_number_loses(value):
    good, broken = ((SubLayer(block, "mlp"),) for block in range(2))
    scores = {unit: Score(unit) for unit in (broken, good)}
    scores[broken].add(torch.full((16,), value), torch.zeros(16))
    scores[good].add(torch.full((16,), 2.0), torch.zeros(16))
    assert ranking.choose(list(scores.values()))[0].unit == good
    assert ranking.behind(scores[broken].nll, scores[good].nll, errors=3)


def test_without_accuracy_the_lowest_kl_decides():
    exact = torch.cat([torch.ones(8), torch.zeros(2)])
    accurate = Score((SubLayer(0, "mlp"),), torch.full((10,), 0.9) + torch.rand(10) / 100, exact)
    near = Score((SubLayer(1, "mlp"),), torch.full((10,), 0.1) + torch.rand(10) / 100, torch.zeros(10))
    assert ranking.choose([accurate, near]) == (accurate, "accuracy")
    assert ranking.choose([accurate, near], by_accuracy=False) == (near, "nll")
    for by, first in (("accuracy", accurate), ("nll", near)):
        assert Ranking([accurate, near], Score((), exact, exact), by=by).next([accurate.unit, near.unit])[0] is first


def test_a_ranking_gives_the_next_allowed_unit_and_what_decided():
    units = [(SubLayer(block, "mlp"),) for block in range(3)]
    by_value = Ranking.lowest_first({units[0]: 2.0, units[1]: 0.5, units[2]: 1.0})
    assert [score.unit for score in by_value.scores] == [units[1], units[2], units[0]]
    assert by_value.next(units)[0].unit == units[1] and by_value.next([units[0]])[0].unit == units[0]
    assert by_value.next([]) == (None, "order")
    scores = [Score(unit, torch.full((10,), float(place)), torch.ones(10)) for place, unit in enumerate(units)]
    scores[0].nll, scores[0].exact = scores[0].nll[:5], scores[0].exact[:5]  # eliminated
    scanned = Ranking(scores, Score((), torch.zeros(10), torch.ones(10)), by="nll")
    assert scanned.next(units) == (scores[1], "nll") and scanned.next(units[2:]) == (scores[2], "only")
    assert scanned.next(units[:1]) == (None, "nll")


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_score_that_is_no_number_ranks_nothing(value):
    units = [(SubLayer(block, "attention"), SubLayer(block, "mlp")) for block in range(2)]
    with pytest.raises(UserError, match=f"score of block.1 is {value}"):
        Ranking.lowest_first({units[0]: 1.0, units[1]: value})
