"""What a run hands to the tools that show its logs, with transformers' callback replaced by one that notes it down."""

import pytest
from scripts import run_in_process
from transformers import TrainerCallback
from transformers.integrations import integration_utils

from fincompress import runs, training

FEW = ("--LORA_RANK=4", "--LOGGING_STEPS=1", "--EPOCHS=1")


@pytest.fixture
def logged(monkeypatch):
    """``(step, logs)`` of all that reaches TensorBoard's callback, which needs no package here."""
    seen = []

    class Noting(TrainerCallback):
        logging_dir = None

        def on_log(self, args, state, control, logs=None, **kwargs):
            assert str(self.logging_dir).endswith(f"{args.run_name}/{training.LOGS}")
            seen.append((state.global_step, logs))

    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "tensorboard", Noting)
    return seen


def with_name(logged, name):
    return [(step, logs[name]) for step, logs in logged if name in logs]


def test_the_losses_and_calibration_scores_of_phase_1_are_reported(six, logged):
    results, environment = six
    script = ("train_qlora_4bit.py", "--DATA_RUN=six_data", "--RUN=reported", *FEW, "--REPORT_TO=tensorboard")
    done = run_in_process(*script, **environment)
    assert done.returncode == 0, done.stderr
    assert [step for step, _ in with_name(logged, "loss")] == list(range(1, 9))
    (score,) = runs.read_json(results / "reported" / "train_metrics.json")["calibration"]
    assert with_name(logged, "eval_calibration_nll") == [(8, score["calibration_nll"])]
    assert with_name(logged, "eval_calibration_exact") == [(8, score["calibration_exact"])]
    again = run_in_process(*script[:-1], **environment)  # the tool is no part of a run's identity
    assert again.returncode == 0 and "finished already, skipped" in again.stdout


def test_the_drops_and_scores_of_sapling_are_reported_on_one_axis_of_steps(six, phase_1, logged):
    import pandas as pd
    from sapling_runs import TAUGHT, command, read

    results, environment = six
    logged.clear()  # phase 1's
    script = command("reported_sapling", TAUGHT, REPORT_TO="tensorboard")
    done = run_in_process(*script, **environment)
    assert done.returncode == 0, done.stderr
    drops = pd.read_csv(results / "reported_sapling" / "trajectory.csv")
    assert len(drops) > 1
    assert [name for _, name in with_name(logged, "eval_dropped")] == drops["dropped"].tolist()
    depths = read(results / "reported_sapling" / "train_metrics.json")["depths"]
    curve = pd.read_csv(results / "reported_sapling" / "loss_curve.csv")
    assert [step for step, _ in with_name(logged, "loss")] == curve["step"].tolist()
    ends = curve.groupby("layers")["step"].max()
    scores = [(ends[row["layers"]], row["calibration_nll"]) for row in depths]
    assert with_name(logged, "eval_calibration_nll") == scores
    steps = [step for step, _ in logged]
    assert steps == sorted(steps)


@pytest.mark.parametrize("script", ["train_qlora_4bit.py", "train_lora_8bit.py", "sapling_train.py"])
def test_a_missing_package_is_one_line_before_anything_is_trained(six, monkeypatch, script):
    def missing(self):
        raise RuntimeError("requires tensorboard to be installed")

    monkeypatch.setattr(integration_utils.TensorBoardCallback, "__init__", missing)
    for name, says in (("tensorboard", "needs the package tensorboard: pip install"), ("wanb", "did you mean 'wandb'")):
        done = run_in_process(script, "--RUN=a", "--DATA_RUN=six_data", f"--REPORT_TO={name}", **six[1])
        assert done.returncode == 2 and says in done.stderr and done.stderr.count("\n") == 1, done.stderr
        assert not (six[0] / "a").exists()
