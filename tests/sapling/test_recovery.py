"""Recovery on small random models: teachers, losses and moments do what they say, to the bit."""

import pytest
import torch
import torch.nn.functional as F
from depth_models import make_batches, make_model
from recovery_models import make_trainer, training_steps

from fincompress.depth import repack
from fincompress.depth import sublayers as sub
from fincompress.depth.sublayers import SubLayer
from fincompress.sapling import losses
from fincompress.sapling.losses import TEMPERATURE, RecoveryLoss
from fincompress.sapling.teacher import ADAPTER, SharedTeacher, Teacher
from fincompress.training.loss import IGNORE, target_outputs

GONE = (SubLayer(2, "mlp"), SubLayer(3, "attention"))


def logits_of(model, batch):
    with torch.no_grad():
        return target_outputs(model, batch)[0]


def with_adapters():
    """A model under a trained adapter, "default", and the same adapter once more, as the teacher's."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    model = get_peft_model(make_model(), LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
    model.add_adapter(ADAPTER, LoraConfig(r=2, target_modules="all-linear"))
    parameters = dict(model.named_parameters())
    for name, parameter in parameters.items():
        if f".{ADAPTER}." in name:
            parameter.data.copy_(parameters[name.replace(ADAPTER, "default")].data)
    return model.eval()


def test_the_loss_is_the_weighted_sum_of_its_parts():
    (batch,) = make_batches(1)
    student, teacher = make_model("qwen3"), Teacher(make_model())
    logits, labels = target_outputs(student, batch)[:2]
    real = labels.ne(IGNORE)
    ours, theirs = logits[real], logits_of(teacher.model, batch)[real]
    log_ours, log_theirs = ((logits / TEMPERATURE).log_softmax(-1) for logits in (ours, theirs))
    kl = F.kl_div(log_ours, log_theirs, log_target=True, reduction="batchmean")  # all tokens are among the likeliest
    wanted = float(TEMPERATURE**2 * kl + 0.3 * F.cross_entropy(ours, labels[real]))
    # The distance of hidden states is scaled to be as large as the rest.
    assert float(RecoveryLoss(teacher.teach)(student, batch)) == pytest.approx(2 * wanted, rel=1e-4)
    loss = RecoveryLoss(teacher.teach)(student, batch, 1000)
    assert float(loss) == pytest.approx(2 * wanted * int(real.sum()) / 1000, rel=1e-4)
    alone = float(RecoveryLoss(None)(student, batch))
    assert alone == pytest.approx(float(F.cross_entropy(ours, labels[real])), rel=1e-4)


def test_in_bf16_the_streams_that_are_matched_stay_in_16_bits(tmp_path, monkeypatch):
    seen, at_positions = set(), losses.at_positions
    monkeypatch.setattr(
        losses,
        "at_positions",
        lambda states, *rest: seen.update(s.dtype for s in states) or at_positions(states, *rest),
    )
    student = make_model()
    for module in (student.get_input_embeddings(), sub.decoder(student).norm):
        module.to(torch.bfloat16)  # as all that is frozen
    trainer = make_trainer(student, tmp_path, steps=1, dtype=torch.bfloat16)
    trainer.recovery_loss = RecoveryLoss(Teacher(make_model()).teach)
    trainer.train()
    assert seen == {torch.bfloat16}


def test_a_teacher_of_its_own_says_the_same_while_the_student_trains():
    batches = make_batches()
    student, teacher = make_model(), Teacher(make_model())
    before = teacher(batches[0])[0]
    sub.remove(student, *GONE)
    training_steps(student, RecoveryLoss(teacher.teach), batches)
    assert torch.equal(teacher(batches[0])[0], before)
    assert all(p.grad is None for p in teacher.model.parameters())


@pytest.mark.parametrize("adapter", [True, False])
def test_a_teacher_that_shares_the_model_says_the_same_while_the_student_trains(adapter):
    batches, model = make_batches(), with_adapters()
    trained = [n for n, p in model.named_parameters() if "lora_" in n and f".{ADAPTER}." not in n and ".1." not in n]
    model.requires_grad_(False)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trained)
    unpruned = logits_of(model, batches[0])
    removed = sub.remove(model, *GONE)
    pruned = logits_of(model, batches[0])
    teacher = SharedTeacher(model, removed, adapter)
    before = teacher(batches[0])[0]
    labels = batches[0]["labels"][:, 1:].ne(IGNORE)
    assert torch.equal(before, unpruned[labels]) == adapter
    assert torch.equal(logits_of(model, batches[0]), pruned)  # what was removed is out again
    training_steps(model, RecoveryLoss(teacher.teach), batches)
    assert torch.equal(teacher(batches[0])[0], before)
    assert not torch.equal(logits_of(model, batches[0]), pruned)  # the student did learn
    left = {name for name, p in model.named_parameters() if p.requires_grad}
    assert left == set(trained) & {name for name, _ in model.named_parameters()}
    assert model.active_adapter == "default"


def test_hidden_states_of_the_unpruned_student_are_the_teacher_s():
    (batch,) = make_batches(1)
    student, teacher = make_model(), Teacher(make_model())
    theirs = teacher.teach(batch).hidden

    def distance():
        states, blocks = target_outputs(student, batch, hidden_states=True)[2], losses.matched_blocks(student)
        assert len(states) == 7
        ours = losses.at_positions(states, blocks, batch["attention_mask"])
        return losses.hidden_distance(ours, theirs[:, blocks]).detach()

    assert losses.matched_blocks(student) == list(range(6))
    assert float(distance()) == pytest.approx(0, abs=1e-6)
    sub.remove(student, *GONE)
    assert losses.matched_blocks(student) == [0, 1, 3, 4, 5]  # attention 2 and MLP 3 are one block now
    pruned_distance = distance()
    assert float(pruned_distance) > 1e-3
    assert float(losses.with_hidden_states(torch.tensor(0.7), pruned_distance)) == pytest.approx(1.4)


def test_a_repacked_student_is_matched_with_the_blocks_that_it_is_made_of():
    (batch,) = make_batches(1)
    student, whole = make_model(), make_model()
    sub.remove(student, *GONE)
    blocks = losses.matched_blocks(student)
    repacked = repack.repacked_model(student)

    def distance(model, teacher):
        states, own = target_outputs(model, batch, hidden_states=True)[2], losses.matched_blocks(model)
        ours = losses.at_positions(states, own, batch["attention_mask"])
        return losses.hidden_distance(ours, teacher.teach(batch).hidden[:, own])

    assert losses.matched_blocks(repacked) == list(range(5))
    expected = distance(student, Teacher(whole))
    assert torch.equal(distance(repacked, Teacher(whole, blocks)), expected)
    assert distance(repacked, Teacher(whole, list(range(5)))) > expected


def test_a_repacked_student_that_lacks_the_last_blocks_alone_is_no_distance_away():
    """A model gives its last state behind its final norm, the others before."""
    (batch,) = make_batches(1)
    student, whole = make_model(), make_model()
    sub.remove(student, *(unit for unit in sub.sublayers(student) if unit.block > 3))
    repacked = repack.repacked_model(student)
    ours = losses.at_positions(
        target_outputs(repacked, batch, hidden_states=True)[2], range(4), batch["attention_mask"]
    )
    theirs = Teacher(whole, list(range(4))).teach(batch).hidden
    assert losses.hidden_distance(ours, theirs) < 1e-6


@pytest.mark.parametrize("shared", [False, True])
def test_recomputed_activations_give_the_same_gradients(shared):
    """As on a GPU by default, where hidden states are seen inside of what is recomputed."""
    (batch,) = make_batches(1)
    gradients = []
    for recompute in (False, True):
        model = with_adapters() if shared else make_model()
        removed = sub.remove(model, *GONE)
        teacher = SharedTeacher(model, removed, True) if shared else Teacher(make_model())
        if recompute:
            model.gradient_checkpointing_enable({"use_reentrant": False})
            if shared:
                model.enable_input_require_grads()
        model.train()
        RecoveryLoss(teacher.teach)(model, batch).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys() and len(gradients[0]) > 10
    assert all(torch.allclose(gradients[1][name], grad, atol=1e-6) for name, grad in gradients[0].items())


def test_hidden_states_are_compared_at_an_example_s_own_tokens(monkeypatch):
    """Evenly spaced from its first to its last token, however much padding is before them."""
    monkeypatch.setattr(losses, "POSITIONS", 3)
    stream = torch.arange(14.0).view(2, 7, 1)
    mask = torch.tensor([[1, 1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 1, 1, 1]])
    states = losses.at_positions((torch.zeros(1), stream), [0], mask)
    assert states.flatten(1).tolist() == [[0, 3, 6], [11, 12, 13]]
    cut = losses.at_positions((torch.zeros(1), stream[1:, 2:]), [0], mask[1:, 2:])
    assert torch.equal(cut, states[1:])


def test_kl_is_the_whole_one_where_all_tokens_are_kept_and_lumps_the_rest_where_not(monkeypatch):
    torch.manual_seed(0)
    ours, theirs = torch.randn(5, 40), 3 * torch.randn(5, 40)
    log_ours, log_theirs = (F.log_softmax(logits / TEMPERATURE, -1) for logits in (ours, theirs))
    whole = TEMPERATURE**2 * F.kl_div(log_ours, log_theirs, log_target=True, reduction="none").sum(-1)
    kl = losses.kl(ours, losses.Teaching.from_logits(theirs))
    assert torch.allclose(kl, whole, atol=1e-5)
    monkeypatch.setattr(losses, "TOP_K", 3)
    lumped = losses.kl(ours, losses.Teaching.from_logits(theirs))
    assert (lumped < whole).all() and (lumped >= 0).all()
    top = theirs.topk(3).indices

    def lump(logits):
        kept = (logits / TEMPERATURE).softmax(-1).gather(-1, top)
        return torch.cat([kept, 1 - kept.sum(-1, keepdim=True)], -1)

    p, q = lump(theirs), lump(ours)
    assert torch.allclose(lumped, TEMPERATURE**2 * (p * (p / q).log()).sum(-1), atol=1e-4)
    same = losses.kl(theirs, losses.Teaching.from_logits(theirs))
    assert torch.allclose(same, torch.zeros(5), atol=1e-5)
