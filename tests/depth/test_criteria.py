"""Criteria: each is what its paper says, and each file of the folder is one."""

import math

import pytest
import torch
from scripts import REPOSITORY

from fincompress.depth import criteria, scan
from fincompress.depth import sublayers as sub
from fincompress.depth.criteria import Context
from fincompress.training.loss import IGNORE, target_logits


def ranked(name, model, units, batches, **context):
    ranking = criteria.get(name)(model, units, batches, Context(**context))
    return [(score.unit, score.value) for score in ranking.scores]


@pytest.mark.parametrize("name", criteria.names())
def test_every_criterion_ranks_every_unit_once(model, batches, name):
    units = sub.units(model, "block")

    def teacher(batch):
        logits, labels = target_logits(model, batch)
        return logits[labels.ne(IGNORE)]

    ranking = criteria.get(name)(model, units, batches, Context(teacher=teacher))
    assert sorted(score.unit for score in ranking.scores) == units
    assert ranking.by == {"kl": "nll", "calibration": "accuracy"}.get(name, "order")
    assert set(criteria.get(name).needs) <= {"gradients", "teacher", "blocks", "patches"}


def test_the_example_in_contributing_md_is_a_criterion(model, batches, tmp_path, monkeypatch):
    blocks = (REPOSITORY / "CONTRIBUTING.md").read_text().split("```")
    (example,) = [block for block in blocks if "@criterion()\n" in block]
    (tmp_path / "weight_norm.py").write_text(example.removeprefix("python\n"))
    monkeypatch.setattr(criteria, "__path__", [*criteria.__path__, str(tmp_path)])
    assert "weight_norm" in criteria.names()
    for parameter in sub.parameters(model, sub.SubLayer(3, "mlp")):
        parameter.data *= 0.1
    assert ranked("weight_norm", model, sub.units(model, "block"), batches)[0][0] == sub.parse_unit("block.3")


def test_block_influence_and_angular_are_as_by_hand_and_norms_reach_100(model, batches):
    units = sub.units(model, "block")
    with torch.no_grad():
        hidden = [
            model(
                input_ids=b["input_ids"], attention_mask=b["attention_mask"], position_ids=b["position_ids"],
                output_hidden_states=True,
            ).hidden_states
            for b in batches
        ]  # fmt: skip
    cosine = torch.nn.functional.cosine_similarity
    block = 2
    turned = [1 - cosine(h[block], h[block + 1], dim=-1) for h in hidden]
    influence = torch.cat([t[b["attention_mask"].bool()] for t, b in zip(turned, batches, strict=True)]).mean()
    angle = torch.cat([torch.arccos(cosine(h[block][:, -1], h[block + 1][:, -1], dim=-1)) / math.pi for h in hidden])
    scores = {name: dict(ranked(name, model, units, batches)) for name in ("block_influence", "angular")}
    assert scores["block_influence"][units[block]] == pytest.approx(influence.item(), rel=1e-3)
    assert scores["angular"][units[block]] == pytest.approx(angle.mean().item(), rel=1e-3)
    norms = dict(ranked("activation_norm", model, sub.units(model, "sublayer"), batches))
    assert max(norms.values()) == pytest.approx(100)
    traces = [scan.trace(model, batch) for batch in batches]
    by_hand = {unit: sum(seen.squares(unit) for seen in traces) for unit in sub.units(model, "sublayer")}
    assert list(norms) == sorted(by_hand, key=by_hand.get, reverse=True)

    with sub.skipped(model, *units[block]):  # nothing turns where nothing is added, however a cosine rounds
        assert dict(ranked("angular", model, units, batches))[units[block]] == pytest.approx(0, abs=1e-3)

    spans = [
        sum(float((torch.arccos(cosine(h[s][:, -1], h[s + 3][:, -1], dim=-1)) / math.pi).sum()) for h in hidden)
        for s in range(3)  # the last state of hidden_states is normed already
    ]
    in_one_shot = ranked("angular", model, units[:5], batches, drops=3)
    assert {unit for unit, _ in in_one_shot[:3]} == set(units[:5][spans.index(min(spans)) :][:3])


def test_the_last_come_first_and_a_random_order_follows_its_seed(model, batches):
    units = sub.units(model, "sublayer")
    assert [unit for unit, _ in ranked("last", model, units, [])] == units[::-1]
    orders = [[unit for unit, _ in ranked("random", model, units, [], seed=seed)] for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2] and sorted(orders[0]) == sorted(units)


def test_taylor_is_weight_times_gradient(model, batches):
    from copy import deepcopy

    copy = deepcopy(model).requires_grad_(True)
    for batch in batches:
        logits, labels = target_logits(copy, batch)
        nll = -logits.log_softmax(-1).gather(-1, labels.clamp(min=0).unsqueeze(-1)).squeeze(-1)
        nll[labels.ne(IGNORE)].sum().backward()
    expected = {
        unit: sum(float((p * p.grad).abs().sum()) for sublayer in unit for p in sub.parameters(copy, sublayer))
        for unit in sub.units(copy, "block")
    }
    model.requires_grad_(False)
    ranking = ranked("taylor", model, sub.units(model, "block"), batches)
    assert [unit for unit, _ in ranking] == sorted(expected, key=expected.get)
    assert all(score == pytest.approx(expected[unit], rel=1e-4) for unit, score in ranking)
