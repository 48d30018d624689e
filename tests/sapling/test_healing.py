"""A healed depth is trained on a branch: its best weights are kept, and the run is what it was before."""

from types import SimpleNamespace
from unittest import mock

import pandas as pd
import pytest
import torch
from depth_models import make_model
from recovery_models import make_trainer
from safetensors.torch import load_file
from sapling_runs import SAPLING, TAUGHT, done, read
from scripts import run_in_process
from transformers import TrainerCallback

from fincompress import training
from fincompress.sapling.healing import KeepBest
from fincompress.sapling.recovery import Recovery, train_stage
from fincompress.sapling.teacher import load_teacher


def depths_of(directory):
    return sorted((int(path.name) for path in directory.iterdir() if path.is_dir()), reverse=True)


def test_every_depth_that_is_named_is_healed_and_no_other_is_saved(taught, phase_1):
    directory, _ = taught
    metrics = read(directory / "train_metrics.json")
    assert [row["units_left"] for row in metrics["healed"]] == [10, 8] == depths_of(directory)
    for row in metrics["healed"]:
        facts = read(directory / str(row["units_left"]) / "train_metrics.json")
        assert facts["healed"] and facts["calibration_nll"] == row["calibration_nll"]
    frozen = [
        load_file(folder / "model.safetensors")["model.embed_tokens.weight"]
        for folder in (directory / "8", phase_1 / "merged")
    ]
    assert torch.equal(*frozen)
    assert [row["examples_seen"] for row in metrics["healed"]] == [16, 16]
    assert metrics["examples_seen"] == 3 * 32 and facts["examples_seen"] == 2.5 * 32  # two cycles, two healings
    curve = pd.read_csv(directory / "loss_curve.csv")
    stages = curve["stage"]
    assert stages.drop_duplicates().tolist() == ["10 of 12 units", "healing 10 of 12 units",
                                                 "8 of 12 units", "healing 8 of 12 units"]  # fmt: skip
    rates = curve.groupby("stage")["learning_rate"].last()
    assert rates["healing 10 of 12 units"] < 0.3 * rates["10 of 12 units"]  # falls to 0, and does not within a cycle


def test_a_healed_branch_leaves_the_run_as_it_was(taught, six):
    directory, command = taught
    straight = six[0] / f"{directory.name}_unbranched"
    with (
        mock.patch("fincompress.sapling.run.train_stage", wraps=train_stage) as stages,
        mock.patch.object(training, "shuffled_stream", wraps=training.shuffled_stream) as stream,
        mock.patch("fincompress.sapling.recovery.Recovery", wraps=Recovery) as recoveries,
    ):
        done(*command, f"--RUN={straight.name}", "--HEAL_AT=[]", "--HEALING_EPOCHS=0.5", **six[1])
    assert [bool(call.kwargs["moments"]) for call in stages.call_args_list] == [False, True]
    assert {call.args[:4] for call in recoveries.call_args_list} == {(1.0, 0.3, 1.0, 2.0)}  # as TAUGHT says
    learned = [call.args[1] for call in stream.call_args_list if call.args[2] > 8]  # without what a patch reads
    assert learned == [0, 32, 64]  # each stage goes on in the stream
    assert depths_of(straight) == [8]
    weights = [(folder / "8" / "model.safetensors").read_bytes() for folder in (directory, straight)]
    assert weights[0] == weights[1]
    tables = [pd.read_csv(folder / "trajectory.csv") for folder in (directory, straight)]
    assert tables[0]["nll_after_training"].tolist() == tables[1]["nll_after_training"].tolist()


def test_healing_keeps_its_best_weights_and_stops_where_it_gets_worse(tmp_path):
    nlls = iter([0.9, 0.5, 0.4, 0.6, 0.7, 0.1])
    model, weights = make_model(), []
    keep_best = KeepBest(model, lambda model: (torch.tensor([next(nlls)]), torch.ones(1, dtype=torch.bool)), every=2)

    class Watch(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            weights.append({name: p.detach().clone() for name, p in model.named_parameters()})

    trainer = make_trainer(model, tmp_path, steps=20, callbacks=[keep_best, Watch()])
    trainer.train()
    assert trainer.state.global_step == 8  # two scores of 2 steps each after the best one
    best = keep_best.restore_best(trainer.args, trainer.state.log_history)
    assert best["step"] == 4 and best["calibration_nll"] == 0.4
    assert all(torch.equal(p, weights[3][name]) for name, p in model.named_parameters())
    assert not all(torch.equal(weights[3][name], weights[-1][name]) for name in weights[3])


def test_healing_that_makes_a_model_worse_leaves_it_as_it_was(tmp_path):
    """A first score worse than that of the start does not stop it."""
    nlls, model = iter([0.4, 0.7, 0.6, 0.5]), make_model()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    keep_best = KeepBest(model, lambda model: (torch.tensor([next(nlls)]), torch.ones(1, dtype=torch.bool)), every=2)
    trainer = make_trainer(model, tmp_path, steps=6, callbacks=[keep_best])
    trainer.train()
    assert trainer.state.global_step == 6
    assert not all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    best = keep_best.restore_best(trainer.args, trainer.state.log_history)
    assert best["step"] == 0 and best["calibration_nll"] == 0.4
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_after_a_kill_the_best_weights_are_those_of_the_steps_that_counted(tmp_path):
    """A newer best was written before the kill; resumed from an older checkpoint, the steps after it go otherwise."""
    model, nll = make_model(), [0.5]
    keep_best = KeepBest(model, lambda model: (torch.tensor([nll[-1]]), torch.ones(1, dtype=torch.bool)), every=1)
    args, control = mock.Mock(output_dir=str(tmp_path)), mock.Mock()

    def step(number, log_history):
        with torch.no_grad():
            model.lm_head.weight.fill_(number)
        state = mock.Mock(global_step=number, max_steps=9, log_history=log_history)
        keep_best.on_step_end(args, state, control)
        return state.log_history

    log_history = step(1, [])
    nll.append(0.4)
    step(2, list(log_history))  # and killed
    nll.append(0.6)
    best = keep_best.restore_best(args, step(2, log_history))
    assert best["step"] == 1 and (model.lm_head.weight == 1).all()


@pytest.mark.parametrize("taught", ["full"], indirect=True)
def test_a_teacher_knows_which_of_its_blocks_the_student_has(taught, six, phase_1):
    settings = {"KL": 1.0, "HIDDEN_STATES": 1.0, "CRITERION": "calibration", "UPDATE": "full",
                "RESULTS_DIR": str(six[0]), "START_FROM": None}  # fmt: skip
    blocks = read(taught[0] / "8" / "train_metrics.json")["blocks"]
    for run, own, wanted in (("six_qlora", [0, 2, 5], [0, 2, 5]), ("taught_full/8", blocks[::3], [0, 3])):
        student = SimpleNamespace(
            settings=settings | {"TEACHER": run}, blocks=own, device=torch.device("cpu"), dtype=torch.bfloat16
        )
        assert load_teacher(student).blocks == wanted


@pytest.mark.parametrize("taught", ["full"], indirect=True)
def test_a_pruned_model_learns_further_from_the_unpruned_one(taught, six):
    directory, _ = taught
    results, environment = six
    blocks = read(directory / "8" / "train_metrics.json")["blocks"]
    assert len(blocks) == 4 and blocks == sorted(set(blocks)) and max(blocks) <= 5
    further = (*SAPLING, *TAUGHT, "--TEACHER=six_qlora", "--HEAL_AT=[]", "--HEALING_EPOCHS=0.5")
    whole = ("--RUN=healed_again", "--START_FROM=taught_full/8", "--TARGET_SIZE=1")
    done(*further, *whole, **environment)
    assert read(results / "healed_again" / "8" / "train_metrics.json")["blocks"] == blocks
    # One that is pruned further keeps the unpruned model's numbers.
    done(*further, "--RUN=deeper", "--START_FROM=taught_full/8", "--TARGET_SIZE=0.9", **environment)
    assert set(read(results / "deeper" / "6" / "train_metrics.json")["blocks"]) < set(blocks)
    refused = run_in_process(*further, "--RUN=no", "--TEACHER=taught_full/8", **environment)
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1) and "lacks blocks" in refused.stderr
    assert not (results / "no").exists()
