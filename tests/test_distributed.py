"""Two processes that share the work through gloo on the CPU, against one: losses, drops, verdicts, and how they end."""

import math
import signal

import pandas as pd
import pytest
import torch
from sapling_runs import QLORA as ADAPTERS
from sapling_runs import TAUGHT, command, done, read
from scripts import run_ranks

from fincompress import distributed

pytestmark = pytest.mark.real  # two processes import torch again for every command

QLORA = ("train_qlora_4bit.py", "--DATA_RUN=six_data", "--LORA_RANK=4", "--LEARNING_RATE=2e-3",
         "--LOGGING_STEPS=1", "--SAVE_STEPS=2", "--MAX_STEPS=7", "--GRADIENT_ACCUMULATION=2")  # fmt: skip


def in_two(*arguments, **environment):
    """Run a script in two processes that have to end well; returns what rank 0 printed."""
    first, second = run_ranks(*arguments, **environment)
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    assert second.stdout == second.stderr == ""
    return first.stdout


def assert_same_training(first, second):
    curves = [pd.read_csv(folder / "loss_curve.csv") for folder in (first, second)]
    assert curves[0]["step"].tolist() == curves[1]["step"].tolist()
    assert curves[0]["loss"].to_numpy() == pytest.approx(curves[1]["loss"].to_numpy(), rel=1e-3)
    assert sorted(path.name for path in first.iterdir()) == sorted(path.name for path in second.iterdir())


@pytest.fixture(scope="module")
def by_one(six):
    """A run of phase 1 in one process."""
    done(*QLORA, "--RUN=by_one", **six[1])
    return six[0] / "by_one"


def test_two_processes_train_as_one_does_and_end_where_the_loss_is_no_number(six, by_one):
    """The loss of one process is no number: it is the loss of both."""
    results, environment = six
    command = (*QLORA, "--RUN=by_two")
    broken_loss = ("fincompress.training.trainer", "target_loss", 7, math.nan)  # of 14, in the fourth step
    broken = run_ranks(*QLORA, "--RUN=broken", kill=broken_loss, **environment)
    assert [process.returncode for process in broken] == [2, 2]
    assert "error: the loss is nan at step 4: lower LEARNING_RATE" in broken[0].stderr
    in_two(*command, **environment)
    assert_same_training(by_one, results / "by_two")
    metrics = [read(folder / "train_metrics.json") for folder in (by_one, results / "by_two")]
    scores = [[row["calibration_nll"] for row in record["calibration"]] for record in metrics]
    assert scores[0] == pytest.approx(scores[1], abs=1e-3) and len(scores[0]) == 2
    assert read(results / "by_two" / "settings.json")["hardware"]["processes"] == 2


def test_one_process_resumes_what_two_began(six, by_one):
    results, environment = six
    command, run = (*QLORA, "--RUN=killed_of_two"), results / "killed_of_two"
    kill = ("fincompress.training.TargetTrainer", "training_step", 7)  # of 14, in the fourth step
    first, second = run_ranks(*command, kill=kill, **environment)
    assert first.returncode and second.returncode == -signal.SIGKILL and not (run / "train_metrics.json").exists()
    assert "resuming from checkpoint-2" in done(*command, **environment)
    assert_same_training(by_one, run)


def test_a_launch_of_one_process_sums_up_nothing_though_accelerate_joins_it(monkeypatch):
    """Its group of a GPU could not sum up what lies on a CPU."""
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    distributed.join()
    assert torch.equal(distributed.total(torch.ones(2)), torch.ones(2)) and distributed.gather(3) == [3]


def test_int8_is_trained_by_two_as_by_one(six):
    results, environment = six
    command = ("train_lora_8bit.py", *QLORA[1:])
    done(*command, "--RUN=int8_by_one", **environment)
    in_two(*command, "--RUN=int8_by_two", **environment)
    assert_same_training(results / "int8_by_one", results / "int8_by_two")


def test_two_processes_give_the_verdicts_that_one_gives(six, phase_1):
    _, environment = six
    command = ("evaluate.py", "--RUN=six_qlora", "--SPLIT=test", "--MAX_NEW_TOKENS=8", "--BATCH_SIZE=3")
    verdicts, summaries = [], []
    for start in (in_two, done):
        printed = start(*command, **environment)
        assert printed.count("  question  ") == 5
        verdicts.append((phase_1 / "predictions_test.jsonl").read_text())
        summaries.append(read(phase_1 / "eval_test.json"))
        (phase_1 / "eval_test.json").unlink()
    assert verdicts[0] == verdicts[1] and len(verdicts[0].splitlines()) == 8
    measured = {"seconds", "peak_memory_gb"}
    assert [{k: v for k, v in row.items() if k not in measured} for row in summaries][0].items() <= summaries[1].items()


def assert_same_drops(first, second):
    assert_same_training(first, second)
    tables = [pd.read_csv(run / "trajectory.csv") for run in (first, second)]
    for name in ("dropped", "questions"):
        assert tables[0][name].tolist() == tables[1][name].tolist() and len(tables[0]) == 2
    assert tables[0]["nll_alone"].to_numpy() == pytest.approx(tables[1]["nll_alone"].to_numpy(), abs=1e-3)


def test_two_processes_drop_and_recover_as_one_does(six, sapling):
    results, environment = six
    in_two(*command("weights_by_two", TAUGHT), **environment)
    assert_same_drops(sapling[0], results / "weights_by_two")


def test_two_processes_drop_under_adapters_as_one_does_also_after_a_kill(six, phase_1):
    results, environment = six
    # Units of a random model are worth nearly the same: with this seed no drop hangs on rounding.
    constants = {"SEED": 1, "CYCLE_EPOCHS": 0.75, "DEPTHS": [4], "RECOVERY_EPOCHS": 0.25}
    done(*command("adapters_by_one", ADAPTERS, constants), **environment)
    by_two = command("adapters_by_two", ADAPTERS, constants)
    kill = ("fincompress.training.TargetTrainer", "training_step", 9)  # between the drops
    first, second = run_ranks(*by_two, kill=kill, **environment)
    assert first.returncode and second.returncode == -signal.SIGKILL
    assert "of this stage" in in_two(*by_two, **environment)
    assert_same_drops(results / "adapters_by_one", results / "adapters_by_two")
