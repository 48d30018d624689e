"""A killed run resumes: the same drops, the same scores, the same weights; a state that is torn is refused."""

import shutil
from pathlib import Path
from unittest import mock

import pandas as pd
import pytest
import torch
from sapling_runs import SAPLING, TAUGHT, assert_same_run, done, read, settings_of
from scripts import run_in_process

import fincompress.sapling as method
from fincompress import training
from fincompress.sapling.recovery import RecoveryTrainer, open_teaching
from fincompress.sapling.state import State
from fincompress.sapling.teacher import TeachingCache


class Killed(BaseException):
    """Ends a run where it stands, as a kill does: no handler of the package takes it."""


def kill_within(stage, *command, **environment):
    """Run until the first checkpoint within a stage of training is written."""
    save = RecoveryTrainer._save_checkpoint

    def save_and_die(trainer, *arguments):
        save(trainer, *arguments)
        if Path(trainer.args.output_dir).name == stage:
            raise Killed

    with mock.patch.object(RecoveryTrainer, "_save_checkpoint", save_and_die), pytest.raises(Killed):
        run_in_process(*command, **environment)


def kill_after_healing(*command, **environment):
    """Run until the first depth is healed, saved, and in the state."""
    heal = method.heal

    def heal_and_die(run, *arguments, **options):
        heal(run, *arguments, **options)
        if run.state.healed:
            raise Killed

    with mock.patch.object(method, "heal", heal_and_die), pytest.raises(Killed):
        run_in_process(*command, **environment)


def test_a_killed_run_resumes_with_the_same_drops_and_ends_the_same(sapling, six):
    directory, environment, _ = sapling
    broken = six[0] / "broken"
    save, saved = method.Run.save_state, []

    def save_and_die(*arguments, **options):
        save(*arguments, **options)
        saved.append(1)
        if len(saved) == 3:
            raise Killed

    with mock.patch.object(method.Run, "save_state", save_and_die), pytest.raises(Killed):
        run_in_process(*SAPLING, "--RUN=broken", **environment)
    assert read(broken / "state.json")["trajectory"]
    assert not (broken / "train_metrics.json").exists()
    assert "resuming with" in done(*SAPLING, "--RUN=broken", **environment)
    assert_same_run(directory, broken)


def test_one_shot_resumes_within_its_training(six):
    """Also with patched weights and redrawn figures."""
    results, environment = six
    command = (*SAPLING, "--CRITERION=last", "--SCHEDULE=one_shot", "--DROP_UNIT=block", "--FIRST_EPOCHS=1.5",
               "--SAVE_STEPS=2", "--PATCH_EXAMPLES=8", "--AUGMENT=figures")  # fmt: skip
    with mock.patch.object(training, "TrainingRows", wraps=training.TrainingRows) as rows:
        done(*command, "--RUN=shot", **environment)
    assert [(call.args[2], call.args[5]) for call in rows.call_args_list] == [("figures", 0), ("figures", 1)]
    kill_within("trainer-0", *command, "--RUN=shot_broken", **environment)
    assert "of this stage" in done(*command, "--RUN=shot_broken", **environment)
    assert_same_run(results / "shot", results / "shot_broken")


def test_what_a_patch_made_of_frozen_weights_is_there_again_after_a_kill(six):
    settings = settings_of(six[1], RUN="patched", PATCH_EXAMPLES=8, TRAIN_RATIO=0.1, START_FROM=None, KL=0.0,
                           HIDDEN_STATES=0.0, SAVE_EVERY=None)  # fmt: skip
    run = method.open_run(settings, "sapling_train.py")
    run.choose_trainable(run.rank_by_importance())
    run.save_state()
    run.drop(run.score())
    run.save_state()
    weights = {name: p for name, p in run.student.model.named_parameters() if name in run.state.patched}
    assert any(not p.requires_grad for p in weights.values())
    again = dict(method.open_run(settings, "sapling_train.py").student.model.named_parameters())
    assert all(torch.equal(again[name], p) for name, p in weights.items())


def test_what_the_teacher_says_is_kept_of_data_that_stay_and_where_there_is_room(six, phase_1):
    changed = {"RUN": "asked_again", "START_FROM": "six_qlora", "AUGMENT": "figures"}
    run = method.open_run(settings_of(six[1], **changed), "sapling_train.py")
    assert not isinstance(open_teaching(run), TeachingCache)
    run.settings |= {"AUGMENT": None, "CACHE_GB": 1e-9}
    assert not isinstance(open_teaching(run), TeachingCache)
    run.settings["HIDDEN_STATES"] = 0  # what it says of the target tokens takes room too
    assert not isinstance(open_teaching(run), TeachingCache)
    run.settings |= {"CACHE_GB": 8.0, "HIDDEN_STATES": 1.0}
    assert isinstance(open_teaching(run), TeachingCache)


def test_adapters_that_healing_alone_trains_are_the_same_after_a_kill(six):
    """Also where they took up what a dropped unit did; moments of what they were before are of no use then."""
    settings = settings_of(six[1], RUN="new_adapters", UPDATE="qlora", TRAIN_RATIO=0.25, HEALING_TRAIN_RATIO=1.0,
                           START_FROM=None, KL=0.0, HIDDEN_STATES=0.0, PATCH_EXAMPLES=8, SAVE_EVERY=None)  # fmt: skip
    run = method.open_run(settings, "sapling_train.py")
    run.choose_trainable(run.rank_by_importance())
    run.moments = {name: {} for name in run.changed_parameters()}
    run.drop(run.score())
    changed = set(run.changed_parameters())
    assert changed - set(run.moments) == changed & set(run.state.patched) != set()
    run.moments = {}
    run.save_state()
    weights = {name: p for name, p in run.student.model.named_parameters() if "lora_A" in name}
    assert any(not p.requires_grad for p in weights.values())
    again = dict(method.open_run(settings, "sapling_train.py").student.model.named_parameters())
    assert all(torch.equal(again[name], p) for name, p in weights.items())


def test_a_run_killed_while_it_trains_and_while_it_heals_resumes_in_the_middle_of_it(taught, six):
    directory, command = taught
    broken = six[0] / f"{directory.name}_broken"
    command = (*command, f"--RUN={broken.name}")
    for stage in ("trainer-0", "healing-10"):
        kill_within(stage, *command, **six[1])
        assert list((broken / stage).glob("checkpoint-*"))
        state = read(broken / "state.json")
        if state["patched"]:  # the weights are those after the last drop
            assert state["weights"].endswith(f"-{len(state['trajectory'])}.safetensors")
    assert bool(state["patched"]) == ("qlora" in broken.name)
    kill_after_healing(*command, **six[1])
    weights = (broken / "10" / "model.safetensors").stat().st_mtime_ns
    done(*command, **six[1])
    assert (broken / "10" / "model.safetensors").stat().st_mtime_ns == weights  # not healed a second time
    assert_same_run(directory, broken)


def test_a_kill_after_a_kept_healing_loses_nothing_that_is_trained_between_drops_alone(six, phase_1):
    command = (*SAPLING, *TAUGHT, "--KEEP_HEALED=True", "--TRAIN_RATIO=1", "--HEALING_TRAIN_RATIO=0.25", "--RUN=fewer")
    kill_after_healing(*command, **six[1])
    assert "resuming with" in done(*command, **six[1])


def test_a_run_that_keeps_what_it_healed_goes_on_from_it_also_after_a_kill(six, phase_1):
    results, environment = six
    command = (*SAPLING, *TAUGHT, "--KEEP_HEALED=True", "--TRAIN_RATIO=0.25", "--PATCH_EXAMPLES=8")
    done(*command, "--RUN=kept", **environment)
    metrics = read(results / "kept" / "train_metrics.json")
    first, last = metrics["healed"]
    assert (first["kept"], last["kept"]) == (True, False)
    after = pd.read_csv(results / "kept" / "trajectory.csv")["nll_after_training"]
    # In 16 bits a scan differs from a pass of its own by as much; without healing the NLL is 0.01 higher.
    assert after[0] == pytest.approx(first["calibration_nll"], abs=2e-4)
    seen = [read(results / "kept" / depth / "train_metrics.json")["examples_seen"] for depth in ("10", "8")]
    assert seen == [32 + 16, 32 + 16 + 32 + 16] and metrics["examples_seen"] == seen[1]
    kill_after_healing(*command, "--RUN=kept_broken", **environment)
    done(*command, "--RUN=kept_broken", **environment)
    assert_same_run(results / "kept", results / "kept_broken")


def test_a_missing_or_torn_state_is_one_line(sapling, six):
    directory, environment, _ = sapling
    torn = six[0] / "torn"
    shutil.copytree(directory, torn)
    (torn / "train_metrics.json").unlink()
    for text, says in (
        (None, "no state.json"),
        ('{"trainable": [', "not readable as JSON"),
        ('{"trainable": []}', "is no state of this version"),
    ):
        if text:
            (torn / "state.json").write_text(text)
        process = run_in_process(*SAPLING, "--RUN=torn", **environment)
        assert process.returncode == 2 and says in process.stderr and process.stderr.count("error:") == 1


def test_weights_that_no_state_names_are_removed(tmp_path):
    parameters, moments = {"a": torch.nn.Parameter(torch.arange(3.0))}, {"a": {"step": 3}, "gone": {"step": 1}}
    state = State()
    state.write_weights(tmp_path, parameters, moments)
    state.write(tmp_path)
    first = state.weights
    state.examples_seen, state.last_above_floor = 5, {"weights": first}
    state.write_weights(tmp_path, parameters, moments)
    state.write(tmp_path)
    assert {path.name for path in tmp_path.glob("*.safetensors")} == {first, state.weights}
    state.last_above_floor = None
    state.write(tmp_path)
    assert [path.name for path in tmp_path.glob("*.safetensors")] == [state.weights]
    assert State.read(tmp_path) == state
    weights, kept = state.read_weights(tmp_path, torch.device("cpu"))
    assert torch.equal(weights["a"], torch.arange(3.0)) and kept == {"a": {"step": 3}}
