"""sapling_train.py on a random decoder of six layers: what it leaves, ways to drop and to train, a kill, refusals."""

import contextlib
import json
import shutil
from unittest import mock

import pandas as pd
import pytest
import torch
from sapling_runs import PAPER, QLORA, TAUGHT, assert_same_run, command, done, read, settings_of
from scripts import run_in_process
from transformers import AutoModelForCausalLM, TrainerCallback

from fincompress import memory, models, runs
from fincompress.depth import repack
from fincompress.depth import sublayers as sub
from fincompress.sapling import algorithm
from fincompress.training.loss import TargetCollator, target_logits

CPU = torch.device("cpu")


def dropped_by(run):
    return pd.read_csv(run / "trajectory.csv")["dropped"].tolist()


def test_a_run_leaves_an_ordinary_checkpoint_for_each_depth_and_its_tables(sapling):
    directory, environment, printed = sapling
    assert [row["layers"] for row in read(directory / "train_metrics.json")["depths"]] == [5, 4]
    assert dropped_by(directory)[0].startswith("block.") and len(dropped_by(directory)) == 2
    for depth in (5, 4):
        folder = directory / str(depth)
        model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
        assert not info["missing_keys"] and not info["unexpected_keys"] and model.config.num_hidden_layers == depth
        record, facts = read(folder / "settings.json"), read(folder / "train_metrics.json")
        assert record["step"] == f"SAPLING, {depth} of 6 layers" and len(facts["blocks"]) == depth
        assert [step["run"] for step in record["lineage"]] == ["six_qlora"]
    for name in ("trajectory.csv", "layer_scores.csv", "loss_curve.csv", "layer_importance.png", "loss_curve.png"):
        assert (directory / name).stat().st_size > 0
    assert not list(directory.glob("state*")) and not list(directory.glob("trainer*"))
    assert f"{directory}/5/" in printed and "calibration exact match" in printed
    done("evaluate.py", "--RUN=sapling", "--SPLIT=test", "--MAX_NEW_TOKENS=8", **environment)  # all depths
    assert {path.parent.name for path in directory.glob("*/eval_test.json")} == {"5", "4"}
    assert "finished already" in done(*command("sapling", TAUGHT), **environment)


def test_depths_are_shares_of_the_layers_too_and_all_layers_means_recovery_alone(six, phase_1):
    done(*command("shares", TAUGHT, DEPTHS=[1.0, 0.67], RECOVERY_EPOCHS=0.25, DROPS_PER_CYCLE=None), **six[1])
    folders = {path.parent.name: read(path)["step"] for path in (six[0] / "shares").glob("*/settings.json")}
    assert folders == {"6": "recovery training", "4": "SAPLING, 4 of 6 layers"}


def test_as_the_paper_trains_a_quarter_of_the_sublayers_learns_and_the_others_stay(six):
    results, environment = six
    done(*command("paper", PAPER), **environment)
    metrics = read(results / "paper" / "train_metrics.json")
    scores = pd.read_csv(results / "paper" / "layer_scores.csv").query("purpose == 'trainable'")
    assert len(metrics["trainable"]) == 3 and set(metrics["trainable"]) == set(scores.nlargest(3, "nll")["unit"])
    start = models.load_base(environment["BASE_MODEL"], "bf16", CPU, torch.bfloat16)
    trained = models.load_base(str(results / "paper" / "6"), "bf16", CPU, torch.bfloat16)
    for sublayer in sub.sublayers(start):
        pairs = zip(sub.parameters(start, sublayer), sub.parameters(trained, sublayer), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs) == (str(sublayer) not in metrics["trainable"])
    assert not torch.equal(*(model.get_input_embeddings().weight for model in (start, trained)))
    assert all(len(sub.parse_unit(name)) == 2 for name in dropped_by(results / "paper"))
    assert "no teacher" in read(results / "paper" / "3" / "settings.json")["step"]
    # a recovery at 6, two trainings between the drops to 3, a recovery at 3, each of half a pass
    assert metrics["examples_seen"] == 4 * 16


@pytest.mark.parametrize("criterion", ["last", "angular", "taylor", "kl"])
def test_other_criteria_drop_in_one_shot(six, phase_1, criterion):
    run = six[0] / f"by_{criterion}"
    shot = {"CRITERION": criterion, "DROPS_PER_CYCLE": None, "DEPTHS": [3], "RECOVERY_EPOCHS": 0.25}
    done(*command(run.name, TAUGHT, shot), **six[1])
    blocks = [int(name.removeprefix("block.")) for name in dropped_by(run)]
    assert len(set(blocks)) == 3 and pd.read_csv(run / "layer_scores.csv")["scan"].max() == 1
    if criterion == "last":
        assert blocks == [5, 4, 3]
    if criterion == "angular":
        assert sorted(blocks) == list(range(min(blocks), min(blocks) + 3))


@pytest.mark.parametrize("criterion", ["calibration", "kl"])
def test_without_training_a_drop_leaves_what_its_score_said(six, phase_1, criterion):
    """With its patch, on the same questions; the next scan asks them again."""
    run = six[0] / f"scored_{criterion}"
    done(*command(run.name, TAUGHT, CRITERION=criterion, RECOVERY_EPOCHS=0.0, DEPTHS=[4]), **six[1])
    scores, drops = pd.read_csv(run / "layer_scores.csv"), pd.read_csv(run / "trajectory.csv")
    whole = scores[(scores["scan"] == 2) & (scores["questions"] == 8)]["nll_whole"].iloc[0]
    assert whole == pytest.approx(drops["nll_alone"][0], rel=5e-3)


def test_a_floor_ends_a_run_before_a_depth_that_is_below_it_is_saved(six, phase_1):
    def scores(run, model):
        exact = torch.arange(8) < (6 if run.layers_left > 4 else 2)
        return torch.ones(8), exact

    with mock.patch.object(algorithm.Run, "calibration_scores", scores):
        printed = done(*command("floor", TAUGHT, ACCURACY_FLOOR=0.9, DEPTHS=[5, 4, 3], RECOVERY_EPOCHS=0.0), **six[1])
    assert "25.0% is below 90% of 75.0%" in printed
    assert [path.parent.name for path in (six[0] / "floor").glob("*/config.json")] == ["5"]
    assert read(six[0] / "floor" / "train_metrics.json")["layers"] == 5


def test_a_target_of_memory_is_a_depth(six):
    config = models.read_config(six[1]["BASE_MODEL"])
    three, four = (memory.inference_gb(repack.shortened_config(config, layers), 1024) for layers in (3, 4))
    room = {"TARGET_MEMORY_GB": (three + four) / 2, "DEPTHS": [5, 2]}
    assert algorithm.open_run(settings_of(six[1], PAPER, room, RUN="memory")).depths == [5, 3]


@pytest.mark.parametrize("rank", [4, 12])
def test_adapters_start_from_phase_1_with_room_for_patches_without_quantizing_what_it_learned(
    six, phase_1, rank, monkeypatch
):
    monkeypatch.setattr("fincompress.sapling.student.PATCH_RANK", rank)
    run = algorithm.open_run(settings_of(six[1], QLORA, RUN=f"begun_{rank}"))
    rows, _ = runs.load_processed(six[1]["RESULTS_DIR"], "six_data", "dev")
    batch = TargetCollator(0)([rows[i] for i in range(4)])
    references = [
        models.load_run(phase_1, six[1]["RESULTS_DIR"], CPU, torch.bfloat16)[0],
        models.load_base(str(phase_1 / "merged"), "nf4", CPU, torch.bfloat16),
        models.load_base(six[1]["BASE_MODEL"], "nf4", CPU, torch.bfloat16),
    ]
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16), run.student.scoring_model() as model:
        ours, phase, again, base = (target_logits(each.eval(), batch)[0].float() for each in (model, *references))
    learned = (phase - base).norm()
    assert (ours - phase).norm() < 0.1 * learned < (again - phase).norm()
    assert len(run.state.trainable) == 3
    trained = {sub.parse_unit(name)[0].block for name in run.state.trainable}
    assert {int(name.split("layers.")[1].split(".")[0]) for name in run.student.trained_parameters()} == trained


class Killed(BaseException):
    pass


@contextlib.contextmanager
def killed(method, times):
    """The process ends at the ``times``-th call of a method of the run, after it."""
    original, calls = getattr(algorithm.Run, method), []

    def die(run, *arguments):
        outcome = original(run, *arguments)
        calls.append(method)
        if len(calls) == times:
            raise Killed
        return outcome

    with mock.patch.object(algorithm.Run, method, die), pytest.raises(Killed):
        yield


@contextlib.contextmanager
def killed_in_step(number):
    """The process ends within the training of a depth, after a checkpoint."""

    def die(self, args, state, control, **kwargs):
        if state.global_step == number:
            raise Killed

    with mock.patch.object(TrainerCallback, "on_step_begin", die), pytest.raises(Killed):
        yield


@pytest.mark.parametrize("update", [TAUGHT, pytest.param(QLORA, marks=pytest.mark.real)])
@pytest.mark.parametrize(
    "kill", [lambda: killed("drop", 2), lambda: killed("recover", 1), lambda: killed_in_step(5)],
    ids=["after a drop", "before a depth is saved", "while it trains"],
)  # fmt: skip
def test_a_killed_run_resumes_with_the_same_drops_and_ends_the_same(six, phase_1, sapling, update, kill, request):
    results, environment = six
    unbroken = sapling[0]
    if update is QLORA:
        unbroken = results / "unbroken_qlora"
        if not unbroken.exists():
            done(*command(unbroken.name, QLORA), **environment)
    broken = command("broken", update)
    with kill():
        run_in_process(*broken, **environment)
    assert not (results / "broken" / "train_metrics.json").exists()
    assert "resuming" in done(*broken, **environment)
    assert_same_run(unbroken, results / "broken")
    shutil.rmtree(results / "broken")


def test_a_lost_or_torn_state_is_one_line(six, phase_1):
    results, environment = six
    broken = command("torn", TAUGHT)
    with killed("save", 1):
        run_in_process(*broken, **environment)
    (weights,) = (results / "torn").glob("state-*.safetensors")
    weights.write_bytes(weights.read_bytes()[:100])
    refused = run_in_process(*broken, **environment)
    assert refused.returncode == 2 and "to start again" in refused.stderr.splitlines()[-1]
    (results / "torn" / "state.json").unlink()
    refused = run_in_process(*broken, **environment)
    assert refused.returncode == 2 and "holds depths but no state.json" in refused.stderr.splitlines()[-1]


def test_a_pruned_model_learns_further_from_the_unpruned_one(sapling, six):
    directory, environment, _ = sapling
    blocks = read(directory / "4" / "train_metrics.json")["blocks"]
    further = {"START_FROM": "sapling/4", "TEACHER": "six_qlora", "DEPTHS": [4, 3], "RECOVERY_EPOCHS": 0.25}
    done(*command("further", further), **environment)
    facts = [read(six[0] / "further" / depth / "train_metrics.json") for depth in "43"]
    assert facts[0]["blocks"] == blocks and set(facts[1]["blocks"]) < set(blocks)
    record = read(six[0] / "further" / "3" / "settings.json")
    assert record["step"] == "SAPLING, 3 of 6 layers" and len(record["lineage"]) == 2
    refused = run_in_process(*command("no", TAUGHT, TEACHER="sapling/4"), **environment)
    assert (refused.returncode, refused.stderr.count("error:")) == (2, 1) and "lacks layers" in refused.stderr


@pytest.mark.parametrize(
    ("constants", "says"),
    [
        ({"DEPTHS": [7]}, "the model has 6 layers"),
        ({"DEPTHS": [2.5]}, "the model has 6 layers"),
        ({"DEPTHS": [0.01]}, "the model has 6 layers"),
        ({"TARGET_MEMORY_GB": 1e-4}, "too little for one layer"),
        ({"CRITERION": "calibraton"}, "did you mean 'calibration'"),
        ({"CRITERION": "angular", "DROP_UNIT": "sublayer"}, "set DROP_UNIT = 'block'"),
        ({"CRITERION": "kl", "TEACHER": None}, "compares with a teacher: set TEACHER"),
        ({"START_FROM": None}, "TEACHER = 'start', but START_FROM is None"),
        ({"START_FROM": "nothing"}, "'nothing' does not exist"),
        (QLORA | {"CRITERION": "taylor"}, "needs gradients"),
        (QLORA | {"TEACHER": "other"}, "TEACHER must be 'start' or None"),
        (QLORA | {"LORA_RANK": 8}, "was trained with LORA_RANK = 4: set it so, not to 8"),
        ({"START_FROM": "other_base"}, "of another base model"),
        ({"TEACHER": "other_data"}, "was trained on other data"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(six, phase_1, constants, says):
    for name, change in (("base", {"base_model": "another"}), ("data", {"data": {"source": "another"}})):
        run = six[0] / f"other_{name}"
        if not run.exists():
            shutil.copytree(phase_1 / "merged", run)
            (run / "settings.json").write_text(json.dumps(read(run / "settings.json") | change))
    refused = run_in_process(*command("bad", TAUGHT, constants), **six[1])
    assert refused.returncode == 2 and says in refused.stderr.splitlines()[-1], refused.stderr
    assert refused.stderr.count("error:") == 1 and not (six[0] / "bad").exists()


def test_without_a_data_run_nothing_is_made(tmp_path):
    refused = run_in_process("sapling_train.py", RESULTS_DIR=tmp_path, BASE_MODEL="shape:tiny")
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1) and "'data' does not exist" in refused.stderr
    assert list(tmp_path.iterdir()) == []
