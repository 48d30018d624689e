"""A healed depth is trained to the end on a branch, and the run is what it was before."""

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

from fincompress import training
from fincompress.sapling.healing import ScorePasses
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
        assert [scores["step"] for scores in row["calibration"]] == [row["steps"]]
        assert row["calibration"][-1]["calibration_nll"] == row["calibration_nll"]
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


def test_healing_trains_to_the_end_whatever_the_calibration_split_says(tmp_path):
    """The NLL rises where a model learns from gold programs alone, and it answers more: docs/recipe.md."""
    nlls = iter([0.5, 0.4, 0.6, 0.7])
    model, asked = make_model(), []

    def scores(scored):
        asked.append(scored)
        return torch.tensor([next(nlls)]), torch.ones(1, dtype=torch.bool)

    trainer = make_trainer(model, tmp_path, steps=7, callbacks=[ScorePasses(scores, every=2)])
    trainer.train()
    assert trainer.state.global_step == 7 and asked == [model] * 4
    scored = [row for row in trainer.state.log_history if "calibration_nll" in row]
    assert [row["step"] for row in scored] == [2, 4, 6, 7]
    assert [row["calibration_nll"] for row in scored] == pytest.approx([0.5, 0.4, 0.6, 0.7])


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
    with mock.patch.object(training, "TrainingRows", wraps=training.TrainingRows) as rows:
        done(*further, *whole, **environment)
    # The first run saw the examples' own figures. Others are drawn by its name, not by what it took.
    assert rows.call_args.args[5:] == (0, "taught_full/8")
    assert read(results / "healed_again" / "8" / "train_metrics.json")["blocks"] == blocks
    # One that is pruned further keeps the unpruned model's numbers.
    done(*further, "--RUN=deeper", "--START_FROM=taught_full/8", "--TARGET_SIZE=0.9", **environment)
    assert set(read(results / "deeper" / "6" / "train_metrics.json")["blocks"]) < set(blocks)
    refused = run_in_process(*further, "--RUN=no", "--TEACHER=taught_full/8", **environment)
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1) and "lacks blocks" in refused.stderr
    assert not (results / "no").exists()
