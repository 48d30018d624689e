"""What a run refuses before anything is done: one line, status 2, and no folder left behind."""

import json
import shutil

import pytest
import torch
from sapling_runs import QLORA, SAPLING, TAUGHT, read, settings_of
from scripts import run_in_process

from fincompress import memory, models
from fincompress.sapling.start import apply_recovery, room_gb
from fincompress.sapling.student import Student


def assert_refused(six, says, *arguments):
    results, environment = six
    process = run_in_process(*SAPLING, "--RUN=bad", *arguments, **environment)
    assert process.returncode == 2
    assert says in process.stderr.splitlines()[-1] and process.stderr.count("error:") == 1, process.stderr
    assert not (results / "bad").exists()


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (("--TARGET_SIZE=0.05",), "embeddings, head and 1 of the blocks"),
        (("--TARGET_SIZE=0.05", "--PROTECT=True"), "embeddings, head and 2 of the blocks"),
        (("--SCHEDULE=one_shot", "--DROP_UNIT=block", "--HEAL_AT=[10]"), "would train FIRST_EPOCHS between"),
        (("--TARGET_MEMORY_GB=0.0001",), "embeddings, head and one block take"),
        (("--CALIBRATION_EXAMPLES=170",), "the calibration split of 'six_data' has 10"),
        (("--CRITERION=calibraton",), "did you mean 'calibration'"),
        (("--CRITERION=angular",), "set DROP_UNIT = 'block'"),
        (("--START_FROM=nothing",), "'nothing' does not exist"),
        (("--SCHEDULE=one_shot",), "needs DROP_UNIT = 'block' or PACKABLE_ONLY = False"),
        (("--SCHEDULE=one_shot", "--DROP_UNIT=block", "--ACCURACY_FLOOR=0.9"), "need 'successive'"),
        (("--ACCURACY_FLOOR=0.9", "--HEAL_AT=[10]"), "would be healed in vain"),
    ],
)
def test_bad_input_is_one_line_and_status_2(six, overrides, says):
    assert_refused(six, says, *overrides)


def test_a_floor_under_an_accuracy_of_0_keeps_what_was_trained(six):
    """And its folder takes a run with corrected constants."""
    results, environment = six
    process = run_in_process(*SAPLING, "--RUN=floor_of_0", "--ACCURACY_FLOOR=0.9", "--FIRST_EPOCHS=0", **environment)
    assert process.returncode == 2 and "accuracy before any drop, which is 0" in process.stderr.splitlines()[-1]
    assert (results / "floor_of_0" / "state.json").exists() and (results / "floor_of_0" / "failed.txt").exists()


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (("--START_FROM=None",), "there is no teacher"),
        (("--HEAL_AT=[12]",), "starts with 12 sub-layers"),
        (("--HEAL_AT=[4]",), "stops at 8 sub-layers"),
        (("--HEAL_AT=[0.2]",), "stops at 8 sub-layers"),
        (("--DROP_UNIT=block", "--HEAL_AT=[6]"), "starts with 6 blocks"),
        (("--DROP_UNIT=block", "--HEAL_AT=[3]"), "stops at 4 blocks"),
        (("--KL=0", "--CROSS_ENTROPY=0"), "nothing would be learned"),
        (("--RECOVERY=papers",), "did you mean 'paper'"),
        (("--RECOVERY=paper", "--CYCLE_EPOCHS=0"), "trains between drops: set CYCLE_EPOCHS"),
        (("--RECOVERY=paper", "--TEACHER=six_qlora"), "nothing is learned from TEACHER"),
        ((*QLORA, "--TEACHER=other"), "TEACHER must be START_FROM"),
        ((*QLORA, "--CRITERION=taylor"), "needs gradients of weights"),
        ((*QLORA, "--LORA_RANK=8"), "was trained with LORA_RANK = 4: set it so, not to 8"),
        (("--TEACHER=other_base",), "of another base model"),
        (("--TEACHER=other_data",), "was trained on other data"),
    ],
)
def test_bad_input_to_the_recovery_is_one_line_and_status_2(six, phase_1, overrides, says):
    for name, change in (("base", {"base_model": "another"}), ("data", {"data": {"source": "another"}})):
        run = six[0] / f"other_{name}"
        if not run.exists():
            shutil.copytree(phase_1 / "merged", run)
            (run / "settings.json").write_text(json.dumps(read(run / "settings.json") | change))
    assert_refused(six, says, *TAUGHT, *overrides)


def test_a_start_trained_on_data_that_was_prepared_again_is_refused(six, sapling):
    path = sapling[0] / "10" / "settings.json"
    record = path.read_text()
    path.write_text(json.dumps(json.loads(record) | {"prepared": "of another calibration split"}))
    try:
        assert_refused(six, "may have seen some of these questions", "--START_FROM=sapling/10")
    finally:
        path.write_text(record)


def test_a_pruned_teacher_that_does_not_say_which_blocks_it_kept_is_refused(six, sapling, phase_1):
    path = sapling[0] / "10" / "train_metrics.json"
    record = path.read_text()
    path.write_text(json.dumps({name: value for name, value in read(path).items() if name != "blocks"}))
    try:
        assert_refused(six, "does not say which blocks 'sapling/10' has kept", *TAUGHT, "--TEACHER=sapling/10")
    finally:
        path.write_text(record)


def test_without_a_data_run_nothing_is_made(tmp_path):
    refused = run_in_process("sapling_train.py", RESULTS_DIR=tmp_path, BASE_MODEL="shape:tiny")
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1) and "'data' does not exist" in refused.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_depth_takes_the_room_of_the_layers_that_it_keeps(six):
    settings = settings_of(six[1], START_FROM=None, UPDATE="qlora")
    config = models.base_config(six[1]["BASE_MODEL"], six[1]["RESULTS_DIR"])
    adapter = 4 * memory.adapter_parameters(config, settings["LORA_RANK"], settings["PATCH_RANK"]) / 1e9

    def room(*depths):
        settings["HEAL_AT"] = list(depths)
        student = Student(settings, six[1]["BASE_MODEL"], "nf4", torch.device("cpu"), torch.bfloat16)
        return room_gb(student) - 4 * 3 * adapter  # states and checkpoints

    whole = room()
    assert whole == pytest.approx(memory.weights_gb(config, "bf16"))
    assert room(1.0) == pytest.approx(2 * whole) and room(0.25) == pytest.approx(1.25 * whole)
    assert room(12) == pytest.approx(2 * whole) and 1.5 * whole < room(6) < 1.9 * whole  # 12 units, and both ends


@pytest.mark.parametrize(("update", "patches", "rank"), [("qlora", 0, 8), ("qlora", 64, 128), ("full", 0, 128)])
def test_adapters_have_no_rank_for_patches_where_there_are_none(update, patches, rank):
    constants = {"RECOVERY": "teacher", "UPDATE": update, "PATCH_EXAMPLES": patches, "PATCH_RANK": 128, "LORA_RANK": 8}
    apply_recovery(constants)
    assert constants["PATCH_RANK"] == rank
