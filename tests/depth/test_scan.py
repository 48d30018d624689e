"""The scan: cached equals plain, elimination finds what the exact scan finds."""

import itertools

import pytest
import torch
from depth_models import make_batches, make_model

from fincompress.depth import ranking, scan
from fincompress.depth import sublayers as sub
from fincompress.depth.ranking import Score
from fincompress.depth.sublayers import SubLayer
from fincompress.training.loss import IGNORE, target_logits


@pytest.mark.parametrize(("drop_unit", "packable"), [("sublayer", False), ("sublayer", True), ("block", False)])
def test_the_cached_scan_equals_the_plain_one(any_model, batches, drop_unit, packable):
    sub.remove(any_model, SubLayer(1, "attention"), SubLayer(3, "mlp"))
    units = sub.units(any_model, drop_unit, packable)
    cached, whole = scan.scan(any_model, units, batches)
    plain, again = scan.scan(any_model, units, batches, cached=False)
    assert torch.equal(whole.nll, again.nll)
    for ours, theirs in zip(cached, plain, strict=True):
        assert ours.unit == theirs.unit and ours.questions == 12
        assert torch.allclose(ours.nll, theirs.nll, atol=1e-5)
        assert torch.equal(ours.exact, theirs.exact)


def test_a_scan_leaves_the_model_as_it_was(model, batches):
    before = target_logits(model, batches[0])[0]
    scan.scan(model, sub.units(model, "sublayer"), batches, drops=1)
    assert torch.equal(target_logits(model, batches[0])[0], before)
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in model.modules())


def test_norms_are_of_what_each_unit_adds_padding_left_out(model):
    batch, outputs = make_batches(1)[0], {}
    block = model.model.layers[2]
    hooks = [
        block.self_attn.register_forward_hook(lambda m, args, output: outputs.update(attention=output[0])),
        block.mlp.register_forward_hook(lambda m, args, output: outputs.update(mlp=output)),
    ]
    target_logits(model, batch)
    for hook in hooks:
        hook.remove()
    outputs["block"] = outputs["attention"] + outputs["mlp"]  # whose norm is not that of two norms
    for name, added in outputs.items():
        unit = sub.parse_unit(f"{name}.2")
        expected = added[batch["attention_mask"].bool()].square().sum().item()
        assert scan.trace(model, batch).squares(unit) == pytest.approx(expected, rel=1e-3), name


def make_good_model():
    """A model in which some sub-layers matter and others hardly do, as in a trained one."""
    model = make_model()
    for block, factor in enumerate((1.0, 0.02, 0.3, 0.01, 0.1, 1.0)):
        model.model.layers[block].self_attn.o_proj.weight.data *= factor
        model.model.layers[block].mlp.down_proj.weight.data *= factor
    return model


@pytest.mark.parametrize("seed", [0, 1, 2, *(pytest.param(seed, marks=pytest.mark.real) for seed in (3, 4))])
def test_elimination_drops_what_the_exact_scan_drops_or_one_within_its_error(seed):
    model, batches = make_good_model(), make_batches(count=16, size=8, seed=seed)
    for batch in batches:  # targets the model half knows, so that without a sub-layer it does worse
        ids = batch["input_ids"]
        with torch.no_grad():
            logits, labels = target_logits(model, batch)
        known = torch.where(labels != -100, logits.argmax(-1), labels)
        batch["labels"][:, 1:] = known
        ids[:, -labels.shape[1] :] = torch.where(known != -100, known, ids[:, -labels.shape[1] :])
    units = sub.units(model, "sublayer")
    exact, _ = scan.scan(model, units, batches)
    early, _ = scan.scan(model, units, batches, drops=1)
    assert sum(s.questions for s in early) < 0.6 * sum(s.questions for s in exact)
    assert {s.questions for s in exact} == {128} and max(s.questions for s in early) == 128
    theirs, ours = ranking.choose(exact)[0], ranking.choose(early)[0]
    ours_exact = next(s for s in exact if s.unit == ours.unit)
    assert not ranking.behind(-ours_exact.exact, -theirs.exact, errors=1)
    assert not ranking.behind(ours_exact.nll, theirs.nll, errors=2)


def test_between_cuts_only_what_is_hopeless_goes():
    units = [(SubLayer(block, "mlp"),) for block in range(12)]
    swing = torch.tensor([0.1, -0.1] * 8)
    errors = [0.0] + [2.5] * 7 + [3.5] * 4  # standard errors behind the leader
    scores = {
        unit: Score(unit, count * ranking.standard_error(swing) + (swing if count else 0 * swing), torch.zeros(16))
        for unit, count in zip(units, errors, strict=True)
    }
    race = scan.Elimination(units)
    race.next_cut = 17
    race.eliminate(scores)
    assert race.alive == units[:8]


def test_the_worse_half_goes_when_the_questions_have_doubled():
    units = [(SubLayer(block, "mlp"),) for block in range(16)]
    race, swing = scan.Elimination(units), torch.tensor([1.0, -1.0] * 16)
    for questions, stay in ((8, 8), (12, 8), (16, 4)):
        scores = {
            unit: Score(unit, place / 100 + swing[:questions] * (place > 0), torch.zeros(questions))
            for place, unit in enumerate(units)
        }
        race.eliminate(scores)
        assert race.alive == units[:stay]


def test_enough_finalists_stay_for_the_drops_that_follow():
    # Pairs of neighbours in a row: the best ones overlap, and of two that share a sub-layer only one can be dropped.
    row = [SubLayer(block, kind) for block in range(20) for kind in ("attention", "mlp")]
    pairs = list(itertools.pairwise(row))
    scores = {
        pair: Score(pair, torch.full((64,), float(place)) + torch.rand(64), torch.zeros(64))
        for place, pair in enumerate(pairs)
    }
    for drops in (1, 3, 5):
        race = scan.Elimination(pairs, drops)
        for _ in range(5):
            race.next_cut = 0
            race.eliminate(scores)
        assert race.alive == pairs[: max(4, 2 * drops + 1)]  # every other one of them, and one to spare


def test_a_unit_that_was_bad_earlier_goes_only_if_it_is_clearly_behind_now():
    """16 units on 8 questions, in standard errors behind the leader: 0.6 and, for unit 1, 1.7. An earlier scan found
    units 1 and 2 bad: the one that is now clearly behind goes, the one that is not stays."""
    units = [(SubLayer(block, "mlp"),) for block in range(16)]
    means = [0.0, 0.15, 0.05, *(0.2 + place / 100 for place in range(13))]
    swing = torch.tensor([0.24, -0.24] * 4)
    scores = {
        unit: Score(unit, mean + (swing if mean else 0 * swing), torch.zeros(8))
        for unit, mean in zip(units, means, strict=True)
    }

    def survivors(earlier):
        race = scan.Elimination(units, earlier=earlier)
        race.eliminate(scores)
        return race.alive

    assert survivors(None) == units[:8]
    earlier = dict.fromkeys(units, 0.0) | dict.fromkeys(units[1:3], 2.0) | dict.fromkeys(units[10:], 1.0)
    assert set(survivors(earlier)) == {units[0], *units[2:9]}
    assert survivors(earlier)[-1] == units[2]  # tried last
    later = scan.Elimination(units, earlier=earlier)
    later.next_cut = 16  # after the first cut what an earlier scan found counts no more
    later.eliminate(scores)
    assert units[1] in later.alive


def test_units_are_tried_in_the_order_of_an_earlier_scan_and_new_ones_first():
    units = [(SubLayer(block, "mlp"),) for block in range(3)]
    assert scan.Elimination(units, earlier={units[0]: 0.9, units[1]: 0.2}).alive == [units[2], units[1], units[0]]


def test_the_units_of_the_highest_accuracy_stay():
    """Accuracy decides first, so as many units as will be dropped stay for it, however their NLL looks."""
    units = [(SubLayer(block, "mlp"),) for block in range(20)]
    exact = {16: 0.75, 17: 0.75, 18: 1.0}
    scores = {
        (mlp,): Score((mlp,), torch.full((64,), float(mlp.block)) + torch.rand(64), torch.zeros(64)) for (mlp,) in units
    }
    for place, share in exact.items():
        scores[units[place]].exact[: int(64 * share)] = 1
    for drops, stay in ((1, [18]), (3, [16, 17, 18])):
        race = scan.Elimination(units, drops)
        for _ in range(5):
            race.next_cut = 0
            race.eliminate(scores)
        assert race.alive == [*units[: max(4, drops + 1)], *(units[place] for place in stay)]


def test_nothing_is_eliminated_on_fewer_questions_however_small_the_batch():
    model = make_good_model()
    for size in (1, 4, 16):
        batches = make_batches(count=32 // size, size=size)
        scores, _ = scan.scan(model, sub.units(model, "sublayer"), batches, drops=1)
        assert min(s.questions for s in scores) >= 8


@pytest.mark.parametrize("size", [1, 3, 8, 64])
def test_batches_hold_like_lengths_and_every_cut_sees_the_first_of_the_order(size):
    order = torch.randperm(50, generator=torch.Generator().manual_seed(1)).tolist()
    lengths = torch.randint(9, 99, (50,), generator=torch.Generator().manual_seed(2)).tolist()
    batches = scan.nested_batches(order, lengths, size)
    assert sorted(sum(batches, [])) == list(range(50)) and max(map(len, batches)) <= size
    seen = 0
    for batch in batches:
        seen += len(batch)
        if seen in (8, 16, 32, 50):
            assert set(sum(batches[: batches.index(batch) + 1], [])) == set(order[:seen])
    padded = [sum(len(part) * max(lengths[i] for i in part) for part in parts)
              for parts in (batches, [order[i : i + size] for i in range(0, 50, size)])]  # fmt: skip
    assert padded[0] <= padded[1]


def test_a_scan_against_a_teacher_measures_its_kl(model, batches):
    teacher = make_model("qwen3")
    units = sub.units(model, "sublayer")

    def answers(batch):
        logits, labels = target_logits(teacher, batch)
        return logits[labels.ne(IGNORE)].detach()

    scores, whole = scan.scan(model, units, batches, teacher=answers)
    plain, _ = scan.scan(model, units, batches, teacher=answers, cached=False)
    for score, expected in ((scores[7], units[7]), (whole, ())):
        divergences = []
        for batch in batches:
            with sub.skipped(model, *expected), torch.no_grad():
                logits, labels = target_logits(model, batch)
            for row in range(len(labels)):
                counted = labels[row].ne(IGNORE)
                ours = logits[row][counted].log_softmax(-1)
                theirs = target_logits(teacher, batch)[0][row][counted].detach().log_softmax(-1)
                divergences.append((theirs.exp() * (theirs - ours)).sum(-1).mean())
        assert torch.allclose(score.nll, torch.stack(divergences), atol=1e-4)
    assert all(torch.allclose(a.nll, b.nll, atol=1e-4) for a, b in zip(scores, plain, strict=True))


def test_the_stream_around_a_unit_is_that_of_its_sub_layers(model, batches):
    seen, blocks = scan.trace(model, batches[0]), model.model.layers
    for number in (2, 5):
        attention, mlp = SubLayer(number, "attention"), SubLayer(number, "mlp")
        before, between = seen.around(attention, attention)
        assert torch.equal(between, seen.streams[mlp])
        assert torch.equal(before, seen.streams[attention]) and not torch.equal(before, between)
        with torch.no_grad():
            after = between + blocks[number].mlp(blocks[number].post_attention_layernorm(between))
        assert torch.allclose(seen.around(attention, mlp)[1], after, atol=1e-5)


def test_a_process_without_questions_has_no_scores(model, batches):
    """Where a batch has fewer questions than there are processes."""
    scores, whole = scan.scan(model, sub.units(model, "block"), [{name: rows[:0] for name, rows in batches[0].items()}])
    assert len(scores) == 6 and {score.questions for score in [*scores, whole]} == {0}
