"""sapling_train.py on a random decoder of six blocks: its files, and its criteria, schedules and ways to train."""

import copy
import shutil

import pandas as pd
import pytest
import torch
from sapling_runs import QLORA, SAPLING, TAUGHT, assert_same_run, done, read, settings_of
from scripts import run_in_process

import fincompress.sapling as method
from fincompress import models, runs
from fincompress.depth import criteria
from fincompress.depth import sublayers as sub
from fincompress.sapling.patch import absorb
from fincompress.training.loss import TargetCollator, target_logits

CPU = torch.device("cpu")


def test_a_run_leaves_its_tables_and_a_checkpoint_per_depth(sapling):
    directory, _, printed = sapling
    trajectory = pd.read_csv(directory / "trajectory.csv")
    metrics = read(directory / "train_metrics.json")
    assert metrics["share_of_bytes"] <= 0.52 < trajectory["share_of_bytes"].iloc[-2]
    assert trajectory["units_left"].tolist() == list(range(10, 10 - 2 * len(trajectory), -2))
    assert trajectory["nll_after_training"].notna().all()
    assert set(trajectory["decided_by"]) <= {"accuracy", "nll"}
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
    assert metrics["examples_seen"] == 16 * (2 + len(depths) - 1)


def test_checkpoints_are_standard_and_evaluate(sapling):
    from transformers import AutoModelForCausalLM

    directory, environment, _ = sapling
    depth = read(directory / "train_metrics.json")["units_left"]
    model, info = AutoModelForCausalLM.from_pretrained(directory / str(depth), output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and model.config.num_hidden_layers == depth // 2
    arguments = ("--SPLIT=test", "--MAX_NEW_TOKENS=8")
    done("evaluate.py", f"--RUN=sapling/{depth}", *arguments, **environment)
    summary = read(directory / str(depth) / "eval_test.json")
    assert summary["questions"] == 8 and summary["share_of_base"] == pytest.approx(0.5, abs=0.03)
    done("evaluate.py", "--RUN=sapling", *arguments, **environment)  # all depths
    assert all((path.parent / "eval_test.json").exists() for path in directory.glob("[0-9]*/config.json"))


def test_depths_are_quantized_in_one_call(sapling):
    directory, environment, _ = sapling
    two = directory.parent / "sapling_two"
    shutil.copytree(directory, two, ignore=lambda folder, names: {"12", "6"} & {*names})
    quantize = ("quantize_gptq.py", "--METHOD=rtn", "--SOURCE_RUN=sapling_two", "--RUN=sapling_gptq")
    assert "128 does not divide every input width" in done(*quantize, "--CALIBRATION_EXAMPLES=8", **environment)
    for depth in (10, 8):
        folder = directory.parent / "sapling_gptq" / str(depth)
        metrics = read(folder / "quantize_metrics.json")
        assert metrics["source_run"] == f"sapling_two/{depth}" and metrics["group_size"] == 64
        assert read(folder / "settings.json")["settings"]["SOURCE_RUN"] == f"sapling_two/{depth}"
        assert metrics["blocks_after_gb"] < 0.3 * metrics["blocks_before_gb"]
        assert read(folder / "config.json")["num_hidden_layers"] == depth // 2


def test_frozen_weights_are_bit_identical_after_training(sapling):
    directory, environment, _ = sapling
    metrics = read(directory / "train_metrics.json")
    scores = pd.read_csv(directory / "layer_scores.csv").query("purpose == 'trainable'")
    assert len(metrics["trainable"]) == 3 and set(metrics["trainable"]) == set(scores.nlargest(3, "nll")["unit"])
    start = models.load_base(environment["BASE_MODEL"], "bf16", CPU, torch.bfloat16)
    trained = models.load_base(str(directory / "12"), "bf16", CPU, torch.bfloat16)
    for sublayer in sub.sublayers(start):
        same = all(
            torch.equal(a, b)
            for a, b in zip(sub.parameters(start, sublayer), sub.parameters(trained, sublayer), strict=True)
        )
        assert same == (str(sublayer) not in metrics["trainable"]), str(sublayer)
    ends = [model.get_input_embeddings().weight for model in (start, trained)]
    assert not torch.equal(*ends)  # TRAIN_ENDS


@pytest.mark.real  # tests/sapling/test_recovery.py compares gradients
def test_recomputed_activations_train_the_same_model(sapling, six):
    directory, environment, _ = sapling
    done(*SAPLING, "--RUN=recomputed", "--GRADIENT_CHECKPOINTING=True", **environment)
    assert_same_run(directory, six[0] / "recomputed")


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.real)


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("last", ("--CRITERION=last", "--SCHEDULE=one_shot", "--DROP_UNIT=block")),
        ("gromov", ("--CRITERION=angular", "--SCHEDULE=one_shot", "--DROP_UNIT=block")),
        slow("norm", ("--CRITERION=activation_norm", "--SCHEDULE=one_shot", "--PACKABLE_ONLY=False")),
        slow("one_scan", ("--SCHEDULE=one_shot", "--DROP_UNIT=block")),
        slow("random", ("--CRITERION=random", "--TRAIN_RATIO=1.0")),
        ("qlora", ("--UPDATE=qlora", "--TRAIN_RATIO=0.5")),
    ],
)
def test_other_criteria_schedules_and_updates_reach_the_size(six, name, overrides):
    results, environment = six
    short = ("--FIRST_EPOCHS=0.25", "--CYCLE_EPOCHS=0.25", "--HEALING_EPOCHS=0.25")
    done(*SAPLING, *short, *overrides, f"--RUN={name}", **environment)
    metrics = read(results / name / "train_metrics.json")
    assert metrics["share_of_bytes"] <= 0.52
    dropped = pd.read_csv(results / name / "trajectory.csv")["dropped"].tolist()
    if name == "last":
        assert dropped == ["block.5", "block.4", "block.3", "block.2"][: len(dropped)] and len(dropped) > 2
    if name == "gromov":
        blocks = sorted(int(unit.removeprefix("block.")) for unit in dropped)
        assert blocks == list(range(blocks[0], blocks[-1] + 1))
    if name in ("last", "gromov", "one_scan"):
        # As many blocks are trained as SAPLING trains, all of them among those that are left.
        assert len(metrics["trainable"]) == 2 and not set(metrics["trainable"]) & set(dropped)
    loaded = models.load_base(str(results / name / str(metrics["units_left"])), "bf16", CPU, torch.bfloat16)
    depth = results / name / str(metrics["units_left"])
    assert loaded.config.num_hidden_layers == len(read(depth / "train_metrics.json")["blocks"])


def test_a_criterion_is_one_new_file(six, tmp_path, monkeypatch):
    """Here outside of the package, for the test alone. It uses gradients, and its need of whole blocks is checked."""
    (tmp_path / "least_gradient.py").write_text(
        """
from fincompress.depth import sublayers as sub
from fincompress.depth.criteria import criterion
from fincompress.depth.ranking import Ranking
from fincompress.training.loss import IGNORE, target_logits


@criterion("gradients", "blocks")
def least_gradient(model, units, batches, context):
    model.requires_grad_(True)
    for batch in batches:
        logits, labels = target_logits(model, batch)
        logits[labels.ne(IGNORE)].float().logsumexp(-1).sum().backward()
    return Ranking.lowest_first(
        {unit: sum(float(p.grad.norm()) for one in unit for p in sub.parameters(model, one)) for unit in units}
    )
"""
    )
    monkeypatch.setattr(criteria, "__path__", [*criteria.__path__, str(tmp_path)])
    assert "'last', 'least_gradient', 'random'" in run_in_process("sapling_train.py", "--CRITERION=none").stderr
    results, environment = six
    command = (*SAPLING, "--CRITERION=least_gradient", "--TARGET_SIZE=0.8", "--RUN=least_gradient")
    refused = run_in_process(*command, **environment)
    assert "CRITERION = 'least_gradient' is about whole blocks" in refused.stderr and refused.returncode == 2
    refused = run_in_process(*command, "--DROP_UNIT=block", "--UPDATE=qlora", **environment)
    assert "'least_gradient' needs gradients of weights" in refused.stderr and refused.returncode == 2
    done(*command, "--DROP_UNIT=block", **environment)
    scores = pd.read_csv(results / "least_gradient" / "layer_scores.csv").query("purpose == 'drop' and units_left == 6")
    assert scores["score"].is_monotonic_increasing and scores["score"].min() > 0
    first = pd.read_csv(results / "least_gradient" / "trajectory.csv").iloc[0]
    assert first["dropped"] == scores["unit"].iloc[0] and first["decided_by"] == "least_gradient"


def test_one_shot_heals_several_depths_after_one_ranking(six, phase_1):
    overrides = (
        "--SCHEDULE=one_shot",
        "--DROP_UNIT=block",
        "--HEAL_AT=[5]",
        "--CRITERION=taylor",
        "--PROTECT=True",
        "--PATCH_EXAMPLES=8",
    )
    done(*SAPLING, *TAUGHT, *overrides, "--RUN=taylor", **six[1])
    metrics = read(six[0] / "taylor" / "train_metrics.json")
    assert [row["units_left"] for row in metrics["healed"]] == [5, 4]
    dropped = pd.read_csv(six[0] / "taylor" / "trajectory.csv")["dropped"].tolist()
    assert len(dropped) == 2 and not {"block.0", "block.5"} & set(dropped)


def test_units_are_chosen_by_what_they_cost_against_the_teacher(six, phase_1):
    overrides = (
        "--CRITERION=kl",
        "--HIDDEN_STATES=0",
        "--TARGET_SIZE=0.9",
        "--HEAL_AT=[]",
        "--HEALING_EPOCHS=1",
    )
    done(*SAPLING, *TAUGHT, *overrides, "--RUN=by_kl", **six[1])
    scores = pd.read_csv(six[0] / "by_kl" / "layer_scores.csv")
    first = scores[scores["scan"] == 1]
    # Nothing is dropped yet, so the model is its teacher; the unit that goes costs least.
    assert first["nll_whole"].abs().max() < 1e-3 and (first["nll"] > 0).all()
    assert not (six[0] / "by_kl" / "teaching").exists()


@pytest.mark.parametrize("criterion", ["calibration", "kl"])
def test_without_training_a_drop_leaves_what_its_score_said(six, phase_1, criterion):
    """With its patch, on the same questions; the next scan asks them again."""
    overrides = (
        f"--CRITERION={criterion}",
        "--PATCH_EXAMPLES=8",
        "--CYCLE_EPOCHS=0",
        "--HEALING_EPOCHS=0",
        "--HEAL_AT=[]",
        "--TARGET_SIZE=0.7",
    )
    done(*SAPLING, *TAUGHT, *overrides, f"--RUN=scored_{criterion}", **six[1])
    dropped = pd.read_csv(six[0] / f"scored_{criterion}" / "trajectory.csv")
    assert len(dropped) == 3
    assert dropped["nll_after_training"][:2].tolist() == pytest.approx(dropped["nll_alone"][:2].tolist(), rel=5e-3)


def test_adapters_take_up_the_patch_of_every_unit_that_is_scored_with_one(six):
    """Also where they are new and a quarter of the units is trained."""
    quarter = {"TRAIN_RATIO": 0.25, "HEALING_TRAIN_RATIO": 0.25, "PATCH_EXAMPLES": 8}
    untaught = {"START_FROM": None, "KL": 0.0, "HIDDEN_STATES": 0.0}
    settings = settings_of(six[1], RUN="quarter", UPDATE="qlora", **quarter, **untaught)
    run = method.open_run(settings, "sapling_train.py")
    run.choose_trainable(run.rank_by_importance())
    assert len(run.state.trainable) == 3
    with run.student.scoring_model() as model:
        fitted = run.patches(model, run.student.units())
        assert len(fitted) == len(run.student.units()) - 1  # before the first one nothing stands
        for unit in fitted:
            assert absorb(copy.deepcopy(model), unit, run.patch_batches(), adapters=True)


def test_a_depth_to_heal_may_be_a_share_of_the_bytes(six, phase_1):
    """Of 12 sub-layers 10 have 88 %, 8 have 75 %."""
    done(*SAPLING, *TAUGHT, "--HEAL_AT=[0.8]", "--TARGET_SIZE=0.7", "--RUN=by_share", **six[1])
    healed = read(six[0] / "by_share" / "train_metrics.json")["healed"]
    assert [row["units_left"] for row in healed] == [8, 6]


def test_the_paper_s_recovery_is_set_by_one_constant(six, phase_1):
    overrides = ("--RECOVERY=paper", "--SAVE_EVERY=1", "--TARGET_SIZE=0.9", "--RUN=paper")
    assert "RECOVERY = 'paper' sets KL = 0.0" in done(*SAPLING, *TAUGHT, *overrides, **six[1])
    record = read(six[0] / "paper" / "settings.json")["settings"]
    assert (record["TRAIN_RATIO"], record["HEAL_AT"], record["KL"], record["TIES"]) == (0.25, [], 0.0, "norm")
    assert len(read(six[0] / "paper" / "train_metrics.json")["trainable"]) == 3


@pytest.mark.parametrize("ties", ["nll", "norm"])
def test_what_decides_a_tie_is_a_constant(six, ties, monkeypatch):
    settings = settings_of(six[1], RUN=f"ties_{ties}", TIES=ties, START_FROM=None, KL=0.0, HIDDEN_STATES=0.0)
    run = method.open_run(settings | {"PATCH_EXAMPLES": 0}, "sapling_train.py")
    monkeypatch.setattr("fincompress.depth.ranking.behind", lambda *scores, errors: False)  # all tie
    scores = run.score()
    best, reason = scores.next(run.student.allowed())
    last = [score for score in scores.scores if score.questions == scores.whole.questions]
    wanted = min(last, key=lambda score: score.nll.mean()) if ties == "nll" else max(last, key=lambda score: score.norm)
    assert (best, reason) == (wanted, ties)


@pytest.mark.parametrize("rank", [4, 12])
def test_adapters_start_from_phase_1_with_room_for_patches_without_quantizing_what_it_learned(six, phase_1, rank):
    results = six[1]["RESULTS_DIR"]
    begun = {"RUN": f"begun_{rank}", "UPDATE": "qlora", "START_FROM": "six_qlora", "LORA_RANK": 4, "LORA_ALPHA": 8}
    begun["PATCH_RANK"] = rank
    run = method.open_run(settings_of(six[1], **begun), "sapling_train.py")
    rows, _ = runs.load_processed(results, "six_data", "dev")
    batch = TargetCollator(0)([rows[i] for i in range(4)])
    references = [
        models.load_run(phase_1, results, CPU, torch.bfloat16)[0],
        models.load_base(str(phase_1 / "merged"), "nf4", CPU, torch.bfloat16),
        models.load_base(six[1]["BASE_MODEL"], "nf4", CPU, torch.bfloat16),
    ]
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16), run.student.scoring_model() as model:
        ours, phase, again, base = (target_logits(each.eval(), batch)[0].float() for each in (model, *references))
        assert not torch.is_autocast_cache_enabled()  # a scan's peak has no room for 16-bit copies of the adapter
    learned = (phase - base).norm()
    assert (ours - phase).norm() < 0.1 * learned < (again - phase).norm()
    run.choose_trainable(run.rank_by_importance())
    chosen = [sublayer for name in run.state.trainable for sublayer in sub.parse_unit(name)]
    expected = {
        id(parameter)
        for sublayer in chosen
        for name, parameter in sub.module(run.student.model, sublayer).named_parameters()
        if "lora_" in name and ".teacher." not in name
    }
    trained = run.student.trained_parameters()
    assert {id(p) for p in trained.values()} == expected != set()
    assert {min(p.shape) for p in trained.values()} == {4, rank}
    assert all((min(p.shape) == rank) == ("o_proj" in n or "down_proj" in n) for n, p in trained.items() if rank > 4)


def test_adapters_of_phase_1_are_shrunk_without_its_merged_weights(six, phase_1):
    results, environment = six
    merged = (phase_1 / "merged").rename(phase_1 / "away")
    done(*SAPLING, "--TARGET_SIZE=0.9", "--LEARNING_RATE=1e-5", *QLORA, "--RUN=on_adapters", **environment)
    merged.rename(phase_1 / "merged")
    metrics = read(results / "on_adapters" / "train_metrics.json")
    assert metrics["share_of_bytes"] <= 0.9 and metrics["data"]["source"] == "synthetic"
    done("evaluate.py", f"--RUN=on_adapters/{metrics['units_left']}", "--MAX_NEW_TOKENS=8", **environment)


def test_a_pruned_model_is_pruned_further(sapling):
    directory, environment, _ = sapling
    deeper = ("--TARGET_SIZE=0.9", "--FIRST_EPOCHS=0", "--HEALING_EPOCHS=0")
    done(*SAPLING, "--RUN=again", "--START_FROM=sapling/10", *deeper, **environment)
    assert read(directory.parent / "again" / "train_metrics.json")["units_left"] == 8
