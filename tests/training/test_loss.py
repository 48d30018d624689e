"""The loss sees the target and its EOS alone, whatever the padding."""

import datasets
import pytest
import torch
import torch.nn.functional as F
from training_rows import CPU, EOS, PAD, make_rows

from fincompress import models
from fincompress.training import loss


@pytest.fixture(scope="module")
def model(tiny_base):
    return models.load_base(tiny_base, "fp32", CPU, torch.float32)


def test_labels_are_the_target_with_its_eos_and_nothing_else():
    rows = make_rows(6)
    batch = loss.TargetCollator(PAD)(rows)
    for row, labels, ids, mask in zip(rows, batch["labels"], batch["input_ids"], batch["attention_mask"], strict=True):
        assert labels[labels != -100].tolist() == row["input_ids"][row["prompt_tokens"] :]
        assert labels[-1] == EOS
        assert ids[mask == 1].tolist() == row["input_ids"]
        assert (ids[mask == 0] == PAD).all()
    for positions, mask in zip(batch["position_ids"], batch["attention_mask"], strict=True):
        assert positions[mask == 1].tolist() == list(range(int(mask.sum())))  # as of one row without padding
    assert "rows" not in batch
    numbered = [row | {"row": 7 - place} for place, row in enumerate(rows)]  # their places in a teacher's cache
    assert loss.TargetCollator(PAD)(numbered)["rows"].tolist() == [7, 6, 5, 4, 3, 2]


def test_loss_is_the_mean_over_target_tokens_whatever_the_padding(model):
    rows = make_rows(5)
    batch = loss.TargetCollator(PAD)(rows)
    logits, labels = loss.target_logits(model, batch)
    ours = loss.target_loss(logits, labels)
    losses = []
    for row in rows:  # one row at a time, no padding, the whole head
        ids = torch.tensor([row["input_ids"]])
        full = model(ids).logits[0, row["prompt_tokens"] - 1 : -1]
        losses.append(F.cross_entropy(full, ids[0, row["prompt_tokens"] :], reduction="none"))
    expected = torch.cat(losses)
    assert ours.item() == pytest.approx(expected.mean().item(), abs=1e-5)
    # Of several batches in one optimizer step each is divided by the tokens of all.
    assert loss.target_loss(logits, labels, 1000).item() == pytest.approx(expected.sum().item() / 1000, abs=1e-5)


def test_exact_match_and_nll_agree_with_one_row_at_a_time(model):
    rows = make_rows(7)
    # Make two targets the ones that greedy decoding writes, so that exact match has something to find.
    for row in rows[:2]:
        ids = torch.tensor([row["input_ids"][: row["prompt_tokens"]]])
        for _ in range(4):
            ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], dim=1)
        row.update(input_ids=ids[0].tolist(), target_tokens=4, length=ids.shape[1])
    nll, exact = loss.score_targets(
        model, datasets.Dataset.from_list(rows), loss.TargetCollator(PAD), batch_size=3, dtype=torch.float32
    )
    assert exact.tolist() == [True, True] + [False] * 5
    for row, value in zip(rows, nll.tolist(), strict=True):
        ids = torch.tensor([row["input_ids"]])
        losses = F.cross_entropy(model(ids).logits[0, row["prompt_tokens"] - 1 : -1], ids[0, row["prompt_tokens"] :])
        assert value == pytest.approx(losses.item(), abs=1e-4)


def test_hidden_states_are_given_where_they_are_asked_for(model):
    batch = loss.TargetCollator(PAD)(make_rows(2))
    assert loss.target_outputs(model, batch)[2] is None
    states = loss.target_outputs(model, batch, hidden_states=True)[2]
    assert len(states) == 1 + model.config.num_hidden_layers  # before the first block, and after each
    assert {tuple(state.shape[:2]) for state in states} == {tuple(batch["input_ids"].shape)}


def test_means_over_the_calibration_split_are_of_all_its_questions():
    means = loss.calibration_means(torch.tensor([0.1, 0.2, 0.5]), torch.tensor([True, False, True]))
    assert means == {"calibration_nll": 0.26667, "calibration_exact": 0.66667}
