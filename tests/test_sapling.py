"""sapling_train.py as a person runs it, on a random decoder of six blocks: every file, a kill, and bad input."""

import json
import os
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest
import torch
from conftest import REPOSITORY, is_whole, run_script

from fincompress import models, runs
from fincompress.depth import sublayers as sub
from fincompress.settings import read_constants

DATA = ("preprocess_data.py", "--RUN=six_data", "--TRAIN_EXAMPLES=48", "--CALIBRATION_EXAMPLES=16", "--EVAL_EXAMPLES=8",
        "--EVIDENCE_TOKENS=64", "--MAX_PROMPT_TOKENS=160")  # fmt: skip
SAPLING = ("sapling_train.py", "--DATA_RUN=six_data", "--CALIBRATION_EXAMPLES=16", "--FIRST_SCAN_EXAMPLES=8",
           "--SCAN_BATCH_SIZE=4", "--DROPS_EARLY=1", "--DROPS_LATE=1", "--LOGGING_STEPS=1", "--LEARNING_RATE=1e-3",
           "--FIRST_EPOCHS=0.5", "--CYCLE_EPOCHS=0.5", "--HEALING_EPOCHS=0.5", "--TARGET_SIZE=0.52",
           # Algorithm 1 without a teacher, as RECOVERY = "paper" sets it
           "--START_FROM=None", "--KL=0", "--CROSS_ENTROPY=1", "--HIDDEN_STATES=0", "--HEAL_AT=[]",
           "--KEEP_MOMENTS=False", "--TRAIN_RATIO=0.25", "--HEALING_TRAIN_RATIO=0.25", "--TRAIN_ENDS=True",
           "--LR_SCHEDULE=cosine",
           "--SAVE_EVERY=1")  # fmt: skip


@pytest.fixture(scope="module")
def six(results_dir, tiny_base):
    """The environment of a data run for a random Llama of six blocks, most of whose bytes lie in the blocks."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=2048, hidden_size=64, intermediate_size=256, num_hidden_layers=6, num_attention_heads=4,
        num_key_value_heads=2, pad_token_id=0, eos_token_id=2, tie_word_embeddings=True,
    )  # fmt: skip
    folder = results_dir / "six"
    models.write_checkpoint(
        folder, AutoModelForCausalLM.from_config(config), models.load_tokenizer(tiny_base), torch.bfloat16
    )
    environment = {"BASE_MODEL": str(folder), "DATA_DIR": "synthetic", "RESULTS_DIR": str(results_dir)}
    done = run_script(*DATA, **environment)
    assert done.returncode == 0, done.stderr
    return results_dir, environment


@pytest.fixture(scope="module")
def sapling(six):
    done = run_script(*SAPLING, **six[1])
    assert done.returncode == 0, done.stderr
    return six[0] / "sapling", six[1], done.stdout


def read(path):
    return json.loads(path.read_text())


def test_a_run_leaves_its_tables_and_a_checkpoint_per_depth(sapling):
    directory, _, printed = sapling
    assert "predicted peak: " in printed
    trajectory = pd.read_csv(directory / "trajectory.csv")
    metrics = read(directory / "train_metrics.json")
    assert metrics["share_of_bytes"] <= 0.52 < trajectory["share_of_bytes"].iloc[-2]
    assert trajectory["units_left"].tolist() == list(range(10, 10 - 2 * len(trajectory), -2))
    assert trajectory["nll_after_training"].notna().all() and set(trajectory["decided_by"]) <= {
        "accuracy",
        "nll",
        "norm",
    }
    depths = sorted((int(p.name) for p in directory.iterdir() if p.is_dir()), reverse=True)
    assert depths == list(range(12, metrics["units_left"] - 1, -2))
    full = (directory / "12" / "model.safetensors").stat().st_size
    for depth in depths:
        facts = read(directory / str(depth) / "train_metrics.json")
        size = (directory / str(depth) / "model.safetensors").stat().st_size
        assert size / full == pytest.approx(facts["share_of_bytes"], abs=0.02)
        assert facts["share_of_bytes"] == facts["share_of_parameters"]  # packable: no slot is filled with zeros
    scores = pd.read_csv(directory / "layer_scores.csv")
    assert (scores.groupby("scan")["units_left"].first().diff().dropna() <= 0).all()
    assert (directory / "layer_importance.png").read_bytes().startswith(b"\x89PNG")
    assert not list(directory.glob("state*")) and "stopped" in printed
    assert metrics["examples_seen"] == 24 * (2 + len(depths) - 1)


def test_checkpoints_are_standard_and_evaluate(sapling):
    directory, environment, _ = sapling
    depth = read(directory / "train_metrics.json")["units_left"]
    from transformers import AutoModelForCausalLM

    model, info = AutoModelForCausalLM.from_pretrained(directory / str(depth), output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and model.config.num_hidden_layers == depth // 2
    arguments = ("--SPLIT=test", "--MAX_NEW_TOKENS=8")
    done = run_script("evaluate.py", f"--RUN=sapling/{depth}", *arguments, **environment)
    assert done.returncode == 0, done.stderr
    summary = read(directory / str(depth) / "eval_test.json")
    assert summary["questions"] == 8 and summary["share_of_base"] == pytest.approx(0.5, abs=0.03)
    done = run_script("evaluate.py", "--RUN=sapling", *arguments, **environment)
    assert done.returncode == 2 and "name one of its depths" in done.stderr


def test_depths_are_quantized_in_one_call(sapling):
    directory, environment, _ = sapling
    quantize = ("quantize_gptq.py", "--SOURCE_RUN=['sapling/10', 'sapling/8']", "--RUN=sapling_gptq")
    done = run_script(*quantize, "--CALIBRATION_EXAMPLES=16", **environment)
    assert done.returncode == 0, done.stderr
    assert "128 does not divide every input width" in done.stdout
    for depth in (10, 8):
        folder = directory.parent / "sapling_gptq" / str(depth)
        metrics = read(folder / "quantize_metrics.json")
        assert metrics["source_run"] == f"sapling/{depth}" and metrics["group_size"] == 64
        assert read(folder / "settings.json")["settings"]["SOURCE_RUN"] == f"sapling/{depth}"
        assert metrics["blocks_after_gb"] < 0.3 * metrics["blocks_before_gb"]
        assert read(folder / "config.json")["num_hidden_layers"] == depth // 2
    done = run_script("evaluate.py", "--RUN=sapling_gptq/8", "--MAX_NEW_TOKENS=8", **environment)
    assert done.returncode == 0, done.stderr
    done = run_script("quantize_gptq.py", "--SOURCE_RUN=['a/8', 'b/8']", **environment)
    assert done.returncode == 2 and "two end alike" in done.stderr and done.stderr.count("\n") == 1


def test_frozen_weights_are_bit_identical_after_training(sapling):
    directory, environment, _ = sapling
    metrics = read(directory / "train_metrics.json")
    assert len(metrics["trainable"]) == 3
    cpu = torch.device("cpu")
    start = models.load_base(environment["BASE_MODEL"], "bf16", cpu, torch.bfloat16)
    trained = models.load_base(str(directory / "12"), "bf16", cpu, torch.bfloat16)
    for one in sub.sublayers(start):
        same = all(
            torch.equal(a, b) for a, b in zip(sub.parameters(start, one), sub.parameters(trained, one), strict=True)
        )
        assert same == (str(one) not in metrics["trainable"]), str(one)


def kill_once(condition, run, command, environment):
    """Start a run and kill it as soon as ``condition`` holds."""
    process = subprocess.Popen([sys.executable, *command], cwd=REPOSITORY, env=os.environ | environment,
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
    deadline = time.monotonic() + 240
    while not condition() and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (run / "train_metrics.json").exists(), "the run ended before it could be killed"


def compare(unbroken, broken):
    """Assert that two runs dropped the same, by the same scores, and left the same weights."""
    tables = [pd.read_csv(d / "trajectory.csv") for d in (unbroken, broken)]
    for name in set(tables[0]) & {"dropped", "decided_by", "nll_alone", "nll_after_training"}:
        assert tables[0][name].tolist() == tables[1][name].tolist(), name
    assert pd.read_csv(unbroken / "loss_curve.csv").equals(pd.read_csv(broken / "loss_curve.csv"))
    facts = [read(d / "train_metrics.json") for d in (unbroken, broken)]
    assert facts[0]["tokens_seen"] == facts[1]["tokens_seen"]
    weights = [(d / str(facts[0]["units_left"]) / "model.safetensors").read_bytes() for d in (unbroken, broken)]
    assert weights[0] == weights[1]
    assert not list(broken.glob("trainer*")) and not list(broken.glob("state*"))


def test_a_killed_run_goes_on_with_the_same_drops_and_ends_the_same(sapling, six):
    directory, environment, _ = sapling
    broken = six[0] / "broken"
    state = broken / "state.json"
    kill_once(lambda: state.exists() and read(state)["trajectory"], broken, (*SAPLING, "--RUN=broken"), environment)
    resumed = run_script(*SAPLING, "--RUN=broken", **environment)
    assert resumed.returncode == 0, resumed.stderr
    assert "going on with" in resumed.stdout
    compare(directory, broken)


def test_recomputed_activations_train_the_same_model(sapling, six):
    directory, environment, _ = sapling
    done = run_script(*SAPLING, "--RUN=recomputed", "--GRADIENT_CHECKPOINTING=True", **environment)
    assert done.returncode == 0, done.stderr
    compare(directory, six[0] / "recomputed")


@pytest.mark.parametrize(
    ("name", "more", "stage"),
    [
        ("shot", ("--CRITERION=last", "--SCHEDULE=one_shot", "--DROP_UNIT=block", "--FIRST_EPOCHS=4"), "trainer-0"),
        ("heal", ("--UPDATE=qlora", "--TRAIN_RATIO=0.5", "--TARGET_SIZE=0.9", "--HEALING_EPOCHS=4"), "healing-10"),
    ],
)
def test_a_run_killed_within_training_goes_on_in_the_middle_of_it(six, name, more, stage):
    results, environment = six
    command = (*SAPLING, *more, "--SAVE_STEPS=2")
    done = run_script(*command, f"--RUN={name}", **environment)
    assert done.returncode == 0, done.stderr
    broken = results / f"{name}_broken"
    within = lambda: any(map(is_whole, (broken / stage).glob("checkpoint-*/trainer_state.json")))  # noqa: E731
    kill_once(within, broken, (*command, f"--RUN={name}_broken"), environment)
    resumed = run_script(*command, f"--RUN={name}_broken", **environment)
    assert resumed.returncode == 0, resumed.stderr
    assert "of this stage" in resumed.stdout and "| 0/24 [" not in resumed.stderr  # its 24 steps are not done again
    compare(results / name, broken)


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("last", ("--CRITERION=last", "--SCHEDULE=one_shot", "--DROP_UNIT=block")),
        ("shortgpt", ("--CRITERION=block_influence", "--SCHEDULE=one_shot", "--DROP_UNIT=block")),
        ("gromov", ("--CRITERION=angular", "--SCHEDULE=one_shot", "--DROP_UNIT=block")),
        ("norm", ("--CRITERION=activation_norm", "--SCHEDULE=one_shot", "--PACKABLE_ONLY=False")),
        ("one_scan", ("--SCHEDULE=one_shot", "--DROP_UNIT=block")),
        ("random", ("--CRITERION=random", "--TRAIN_RATIO=1.0")),
        ("qlora", ("--UPDATE=qlora", "--TRAIN_RATIO=0.5")),
    ],
)
def test_other_criteria_schedules_and_updates_reach_the_size(six, name, more):
    results, environment = six
    done = run_script(*SAPLING, f"--RUN={name}", *more, **environment)
    assert done.returncode == 0, done.stderr
    metrics = read(results / name / "train_metrics.json")
    trajectory = pd.read_csv(results / name / "trajectory.csv")
    assert metrics["share_of_bytes"] <= 0.52
    dropped = trajectory["dropped"].tolist()
    if name == "last":
        assert dropped == ["block.5", "block.4", "block.3", "block.2"][: len(dropped)] and len(dropped) > 2
    if name == "gromov":
        blocks = sorted(int(unit.removeprefix("block.")) for unit in dropped)
        assert blocks == list(range(blocks[0], blocks[-1] + 1))
    if name in ("last", "shortgpt", "gromov", "one_scan"):
        # As many blocks are trained as SAPLING trains, all of them among those that are left.
        assert len(metrics["trainable"]) == 2 and not set(metrics["trainable"]) & set(dropped)
    folder = results / name / str(metrics["units_left"])
    loaded = models.load_base(str(folder), "bf16", torch.device("cpu"), torch.bfloat16)
    assert loaded.config.num_hidden_layers == len(sub.units(loaded, "block"))


@pytest.mark.parametrize(
    ("name", "target", "stopped"),
    [
        ("memory", "--TARGET_MEMORY_GB=0.0009", "GB of memory"),
        ("latency", "--TARGET_LATENCY_MS=1e6", "ms a token"),
    ],
)
def test_other_targets_stop_a_run(six, name, target, stopped):
    results, environment = six
    done = run_script(*SAPLING, f"--RUN={name}", target, "--TARGET_SIZE=0.4", "--SAVE_EVERY=2", **environment)
    assert done.returncode == 0, done.stderr
    metrics = read(results / name / "train_metrics.json")
    assert stopped in metrics["stopped"] and metrics["share_of_bytes"] > 0.4
    if name == "latency":
        assert metrics["units_left"] == 12
    assert (results / name / str(metrics["units_left"]) / "config.json").exists()


def test_the_accuracy_floor_is_a_share_of_the_run_s_own_accuracy(sapling):
    from fincompress.depth.importance import Score
    from fincompress.sapling import Run

    run = Run.__new__(Run)
    run.settings = {"ACCURACY_FLOOR": 0.9, "SCHEDULE": "successive", "TARGET_SIZE": 0.5, "DROP_UNIT": "sublayer"}
    run.settings |= {"TARGET_MEMORY_GB": None, "TARGET_LATENCY_MS": None, "PACKABLE_ONLY": True, "PROTECT": False}
    run.state = {"reference": {"accuracy": 0.5}, "last_above_floor": None, "weights": None, "trajectory": []}
    run.model = models.load_base(str(sapling[0] / "12"), "bf16", torch.device("cpu"), torch.bfloat16)
    run.sizes, run.full_size = {"ends": 1, "attention": 1, "mlp": 1}, 13
    whole = Score((), torch.zeros(100), torch.cat([torch.ones(46), torch.zeros(54)]))
    assert run.stop_reason(whole) is None and run.state["last_above_floor"]["units"] == 12
    whole.exact[:2] = 0
    assert "fell below 90% of 50.0%; the last depth above that had 12" in run.stop_reason(whole)


@pytest.mark.parametrize("update", ["full", "qlora"])
def test_a_run_that_fell_below_the_floor_goes_back_to_the_last_depth_above_it(six, monkeypatch, update):
    from fincompress import sapling
    from fincompress.depth.importance import Score

    for name, value in six[1].items():
        monkeypatch.setenv(name, value)
    constants = read_constants(REPOSITORY / "sapling_train.py")
    settings = {name: constant.default for name, constant in constants.items()} | six[1]
    settings |= {"DATA_RUN": "six_data", "RUN": f"floor_{update}", "CALIBRATION_EXAMPLES": 16, "ACCURACY_FLOOR": 0.9}
    settings |= {"UPDATE": update, "CRITERION": "last", "FIRST_SCAN_EXAMPLES": 8, "START_FROM": None}
    settings |= {"HEAL_AT": [], "KL": 0.0, "HIDDEN_STATES": 0.0, "TRAIN_RATIO": 0.25, "HEALING_TRAIN_RATIO": 0.25}
    run = sapling.open_run(settings, "sapling_train.py")
    run.choose_trainable(run.rank_by_importance())
    run.make_trainable()
    run.save_state()

    def score(share):
        return Score((), torch.zeros(100), (torch.arange(100) < 100 * share).float())

    def train_to(share):
        for parameter in dict(run.trained_parameters()).values():
            parameter.data += 0.01  # what training would do
        run.save_state(trained=True)
        run.state["reference"] = {"accuracy": 0.5}
        run.stop_if_reached(score(share))

    run.drop(1, run.score()[0], score(0.5))
    run.save_state()
    train_to(0.46)
    assert not run.stopped
    before = {name: parameter.clone() for name, parameter in run.trained_parameters()}
    left, kept = run.left, run.state["weights"]
    run.drop(1, run.score()[0], score(0.46))
    run.save_state()
    train_to(0.44)
    run.save_checkpoint()
    assert "fell below" in run.stopped and run.left < left and (run.directory / str(run.left)).exists()
    assert {path.name for path in run.directory.glob("state-*")} == {kept, run.state["weights"]}
    run.return_above_floor()
    assert run.left == left == 10 and len(run.drops) == 1 and not run.state["trained"]
    assert not (run.directory / "8").exists()
    after = dict(run.trained_parameters())
    assert set(after) == set(before) and all(torch.equal(after[name], before[name]) for name in before)
    assert run.read_state()["weights"] == run.state["weights"] and run.read_state()["trajectory"] == run.drops
    run.return_above_floor()  # as a killed run does that goes on
    assert run.left == left and len(run.drops) == 1


@pytest.fixture(scope="module")
def phase_1(six):
    """A QLoRA run on the same data; what its adapter learns is small beside the weights, as it is of a real model."""
    train = ("train_qlora_4bit.py", "--DATA_RUN=six_data", "--RUN=six_qlora", "--LORA_RANK=4", "--LORA_ALPHA=8",
             "--LEARNING_RATE=2e-3", "--EPOCHS=1")  # fmt: skip
    done = run_script(*train, **six[1])
    assert done.returncode == 0, done.stderr
    return six[0] / "six_qlora"


QLORA = ("--UPDATE=qlora", "--START_FROM=six_qlora", "--LORA_RANK=4", "--LORA_ALPHA=8")
TAUGHT = ("--START_FROM=six_qlora", "--KL=1", "--CROSS_ENTROPY=0.3", "--HIDDEN_STATES=1", "--KEEP_MOMENTS=True",
          "--TRAIN_RATIO=1", "--HEALING_TRAIN_RATIO=1", "--TRAIN_ENDS=False", "--LR_SCHEDULE=constant_with_warmup",
          "--SAVE_EVERY=None", "--FIRST_EPOCHS=0", "--CYCLE_EPOCHS=2", "--FADE=0.5", "--HEAL_AT=[10]",
          "--HEALING_EPOCHS=2", "--TARGET_SIZE=0.8", "--SAVE_STEPS=2")  # fmt: skip


@pytest.fixture(scope="module", params=["full", "qlora"])
def taught(request, six, phase_1):
    """A run that learns from phase 1, fades what it drops and heals two depths, and its command."""
    command = (*SAPLING, *(QLORA if request.param == "qlora" else ()), *TAUGHT)
    run = f"taught_{request.param}"
    done = run_script(*command, f"--RUN={run}", **six[1])
    assert done.returncode == 0, done.stderr
    return six[0] / run, command


def test_every_depth_that_is_named_is_healed_and_no_other_is_saved(taught):
    directory, _ = taught
    metrics = read(directory / "train_metrics.json")
    assert [row["units_left"] for row in metrics["healed"]] == [10, 8] == sorted(map(int, depths_of(directory)))[::-1]
    for row in metrics["healed"]:
        facts = read(directory / str(row["units_left"]) / "train_metrics.json")
        assert facts["healed"] and facts["calibration_nll"] == row["calibration_nll"]
        assert row["examples_seen"] == 96
    assert metrics["examples_seen"] == 4 * 96 and facts["examples_seen"] == 3 * 96  # two cycles, two healings
    stages = pd.read_csv(directory / "loss_curve.csv")["stage"]
    assert stages.drop_duplicates().tolist() == ["fading", "10 of 12 units", "healing 10 of 12 units",
                                                 "8 of 12 units", "healing 8 of 12 units"]  # fmt: skip


def depths_of(directory):
    return [path.name for path in directory.iterdir() if path.is_dir()]


def test_a_healed_branch_leaves_the_run_as_it_was(taught, six):
    directory, command = taught
    run = f"{directory.name}_unbranched"
    done = run_script(*command, f"--RUN={run}", "--HEAL_AT=[]", **six[1])
    assert done.returncode == 0, done.stderr
    assert depths_of(six[0] / run) == ["8"]
    weights = [(one / "8" / "model.safetensors").read_bytes() for one in (directory, six[0] / run)]
    assert weights[0] == weights[1]
    tables = [pd.read_csv(one / "trajectory.csv") for one in (directory, six[0] / run)]
    assert tables[0]["nll_after_training"].tolist() == tables[1]["nll_after_training"].tolist()


@pytest.mark.parametrize("stage", ["trainer-0", "healing-10"])  # the first fades out what was dropped
def test_a_run_killed_while_it_fades_or_heals_goes_on_in_the_middle_of_it(taught, six, stage):
    directory, command = taught
    broken = six[0] / f"{directory.name}_{stage}"
    command = (*command, f"--RUN={broken.name}")
    within = lambda: any(map(is_whole, (broken / stage).glob("checkpoint-*/trainer_state.json")))  # noqa: E731
    kill_once(within, broken, command, six[1])
    resumed = run_script(*command, **six[1])
    assert resumed.returncode == 0, resumed.stderr
    assert "of this stage" in resumed.stdout
    compare(directory, broken)
    weights = [(one / "10" / "model.safetensors").read_bytes() for one in (directory, broken)]
    assert weights[0] == weights[1]


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (("--START_FROM=None",), "there is no teacher"),
        (("--HEAL_AT=[12]",), "starts with 12 sub-layers"),
        (("--HEAL_AT=[4]",), "stops at 8 sub-layers"),
        (("--HEAL_AT=[0.2]",), "stops at 8 sub-layers"),
        (("--HEAL_AT=['ten']",), "numbers of sub-layers"),
        (("--FADE=1.5",), "FADE is a share of a cycle"),
        (("--SCHEDULE=one_shot", "--DROP_UNIT=block"), "FADE needs training after each drop"),
        (("--KL=0", "--CROSS_ENTROPY=0"), "nothing would be learned"),
        (("--RECOVERY=papers",), "did you mean 'paper'"),
        ((*QLORA, "--TEACHER=other"), "TEACHER must be START_FROM"),
        ((*QLORA, "--CRITERION=taylor"), "needs gradients of weights"),
        (("--TEACHER=other_base",), "of another base model"),
        (("--TEACHER=other_data",), "was trained on other data"),
    ],
)
def test_bad_input_to_the_recovery_is_one_line_and_status_2(six, phase_1, more, says):
    import shutil

    results, environment = six
    for name, change in (("base", {"base_model": "another"}), ("data", {"data": {"source": "another"}})):
        if not (results / f"other_{name}").exists():
            shutil.copytree(phase_1 / "merged", results / f"other_{name}")
            record = read(results / f"other_{name}" / "settings.json")
            (results / f"other_{name}" / "settings.json").write_text(json.dumps(record | change))
    done = run_script(*SAPLING, *TAUGHT, "--RUN=bad", *more, **environment)
    assert done.returncode == 2
    assert says in done.stderr.splitlines()[-1] and done.stderr.count("error:") == 1, done.stderr
    assert not (results / "bad").exists()


def test_the_paper_s_recovery_is_set_by_one_constant(six, phase_1):
    more = ("--RECOVERY=paper", "--SAVE_EVERY=1", "--TARGET_SIZE=0.9", "--RUN=paper")
    done = run_script(*SAPLING, *TAUGHT, *more, **six[1])
    assert done.returncode == 0, done.stderr
    assert "RECOVERY = 'paper' sets KL = 0.0" in done.stdout
    record = read(six[0] / "paper" / "settings.json")["settings"]
    assert (record["TRAIN_RATIO"], record["HEAL_AT"], record["FADE"]) == (0.25, [], 0.0)
    assert len(read(six[0] / "paper" / "train_metrics.json")["trainable"]) == 3


def test_one_shot_heals_several_depths_after_one_ranking(six, phase_1):
    more = ("--SCHEDULE=one_shot", "--DROP_UNIT=block", "--CRITERION=taylor", "--FADE=0", "--PROTECT=True")
    done = run_script(*SAPLING, *TAUGHT, *more, "--RUN=taylor", **six[1])
    assert done.returncode == 0, done.stderr
    metrics = read(six[0] / "taylor" / "train_metrics.json")
    assert [row["units_left"] for row in metrics["healed"]] == [5, 4]
    dropped = pd.read_csv(six[0] / "taylor" / "trajectory.csv")["dropped"].tolist()
    assert len(dropped) == 2 and not {"block.0", "block.5"} & set(dropped)


def test_units_are_chosen_by_what_they_cost_against_the_teacher(six, phase_1):
    more = ("--CRITERION=kl", "--HIDDEN_STATES=0", "--FADE=0", "--TARGET_SIZE=0.9", "--HEAL_AT=[]")
    done = run_script(*SAPLING, *TAUGHT, *more, "--RUN=by_kl", **six[1])
    assert done.returncode == 0, done.stderr
    scores = pd.read_csv(six[0] / "by_kl" / "layer_scores.csv")
    first = scores[scores["scan"] == 1]
    # Nothing is dropped yet, so the model is its teacher; the unit that goes costs least.
    assert first["nll_whole"].abs().max() < 1e-3 and (first["nll"] > 0).all()
    assert not (six[0] / "by_kl" / "teaching.safetensors").exists()


def test_adapters_go_on_from_phase_1_without_quantizing_what_it_learnt(six, phase_1, monkeypatch):
    from fincompress import sapling
    from fincompress.training.loss import TargetCollator, target_logits

    for name, value in six[1].items():
        monkeypatch.setenv(name, value)
    constants = read_constants(REPOSITORY / "sapling_train.py")
    settings = {name: constant.default for name, constant in constants.items()} | six[1]
    settings |= {"DATA_RUN": "six_data", "RUN": "begun", "CALIBRATION_EXAMPLES": 16, "FIRST_SCAN_EXAMPLES": 8}
    settings |= {"UPDATE": "qlora", "START_FROM": "six_qlora", "LORA_RANK": 4, "LORA_ALPHA": 8, "HEAL_AT": []}
    settings |= {"TRAIN_RATIO": 0.25, "HEALING_TRAIN_RATIO": 0.25}
    run = sapling.open_run(settings, "sapling_train.py")
    rows, _ = runs.load_processed(six[1]["RESULTS_DIR"], "six_data", "dev")
    batch = TargetCollator(0)([rows[i] for i in range(4)])
    cpu = torch.device("cpu")
    others = [
        models.load_run(phase_1, six[1]["RESULTS_DIR"], cpu, torch.bfloat16)[0],
        models.load_base(str(phase_1 / "merged"), "nf4", cpu, torch.bfloat16),
        models.load_base(six[1]["BASE_MODEL"], "nf4", cpu, torch.bfloat16),
    ]
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16), run.scoring_model() as model:
        ours, phase, again, base = (target_logits(one.eval(), batch)[0].float() for one in (model, *others))
    learnt = (phase - base).norm()
    assert (ours - phase).norm() < 0.1 * learnt < (again - phase).norm()
    run.choose_trainable(run.rank_by_importance())
    run.make_trainable()
    chosen = [one for name in run.state["trainable"] for one in sub.parse_unit(name)]
    expected = {
        id(parameter)
        for one in chosen
        for name, parameter in sub.module(run.model, one).named_parameters()
        if "lora_" in name and ".teacher." not in name
    }
    assert {id(p) for _, p in run.trained_parameters()} == expected != set()


def test_adapters_of_another_rank_are_not_gone_on_with(six, phase_1):
    done = run_script(*SAPLING, *QLORA, "--LORA_RANK=8", "--RUN=bad", **six[1])
    assert done.returncode == 2 and "was trained with LORA_RANK = 4: set it so, not to 8" in done.stderr
    assert not (six[0] / "bad").exists()


@pytest.mark.parametrize(("name", "more"), [("on_adapters", QLORA), ("on_weights", ("--START_FROM=six_qlora",))])
def test_a_run_of_phase_1_is_shrunk(six, phase_1, name, more):
    results, environment = six
    done = run_script(*SAPLING, "--TARGET_SIZE=0.8", "--LEARNING_RATE=1e-5", *more, f"--RUN={name}", **environment)
    assert done.returncode == 0, done.stderr
    metrics = read(results / name / "train_metrics.json")
    assert metrics["share_of_bytes"] <= 0.8 and metrics["data"]["source"] == "synthetic"
    run = f"{name}/{metrics['units_left']}"
    done = run_script("evaluate.py", f"--RUN={run}", "--MAX_NEW_TOKENS=8", **environment)
    assert done.returncode == 0, done.stderr


def test_a_pruned_model_is_pruned_further_from_a_run_and_from_a_folder(sapling):
    directory, environment, _ = sapling
    deeper = ("--TARGET_SIZE=0.9", "--FIRST_EPOCHS=0", "--HEALING_EPOCHS=0")
    done = run_script(*SAPLING, "--RUN=again", "--START_FROM=sapling/10", *deeper, **environment)
    assert done.returncode == 0, done.stderr
    assert runs.read_json(directory.parent / "again" / "train_metrics.json")["units_left"] == 8


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (("--TARGET_SIZE=0.05",), "cannot be met"),
        (("--TARGET_SIZE=1.5",), "is a share"),
        (("--TARGET_MEMORY_GB=0.0001",), "embeddings, head and one block take"),
        (("--ACCURACY_FLOOR=1.5",), "is a share"),
        (("--BATCH_SIZE=0",), "BATCH_SIZE must be above 0"),
        (("--CYCLE_EPOCHS=-0.2",), "CYCLE_EPOCHS cannot be below 0"),
        (("--CALIBRATION_EXAMPLES=170",), "the calibration split of 'six_data' has 1"),
        (("--CRITERION=calibraton",), "did you mean 'calibration'"),
        (("--CRITERION=angular",), "set DROP_UNIT = 'block'"),
        (("--START_FROM=nothing",), "'nothing' does not exist"),
        (("--SCHEDULE=one_shot",), "needs DROP_UNIT = 'block' or PACKABLE_ONLY = False"),
        (("--SCHEDULE=one_shot", "--DROP_UNIT=block", "--ACCURACY_FLOOR=0.9"), "need 'successive'"),
        (("--ACCURACY_FLOOR=0.9", "--FIRST_EPOCHS=0"), "accuracy before any drop, which is 0"),
    ],
)
def test_bad_input_is_one_line_and_status_2(six, more, says):
    results, environment = six
    done = run_script(*SAPLING, "--RUN=bad", *more, **environment)
    assert done.returncode == 2
    assert says in done.stderr.splitlines()[-1] and done.stderr.count("error:") == 1, done.stderr
    assert not (results / "bad").exists()


def test_a_start_trained_on_data_that_was_prepared_anew_is_one_line(sapling):
    directory, environment, _ = sapling
    path = directory / "10" / "settings.json"
    record = path.read_text()
    path.write_text(json.dumps(json.loads(record) | {"prepared": "of another calibration split"}))
    try:
        done = run_script(*SAPLING, "--RUN=redone", "--START_FROM=sapling/10", **environment)
    finally:
        path.write_text(record)
    assert done.returncode == 2 and not (directory.parent / "redone").exists()
    assert "may have seen some of these questions" in done.stderr and done.stderr.count("\n") == 1


def test_a_missing_or_torn_state_is_one_line(sapling, six):
    directory, environment, _ = sapling
    import shutil

    torn = six[0] / "torn"
    shutil.copytree(directory, torn)
    (torn / "train_metrics.json").unlink()
    done = run_script(*SAPLING, "--RUN=torn", **environment)
    assert done.returncode == 2 and "no state.json" in done.stderr and done.stderr.count("\n") == 1
    (torn / "state.json").write_text('{"trainable": [')
    done = run_script(*SAPLING, "--RUN=torn", **environment)
    assert done.returncode == 2 and "not readable as JSON" in done.stderr and done.stderr.count("\n") == 1
