"""results/<run>/ on disk: whole or nothing, never two recipes in one folder, nothing of this machine in its records."""

import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
from scripts import release_runs

from fincompress import runs
from fincompress.errors import UserError

SETTINGS = {"LEARNING_RATE": 1e-3, "RUN": "lora", "RESULTS_DIR": "results", "DATA_DIR": "data", "RANK": None}
FACTS = {"base_model": "smollm2-135m", "data": {"source": "FinQA", "fingerprint": "f0"}}


def start(results, settings=None, facts=None, run="lora"):
    settings, facts = SETTINGS | (settings or {}), FACTS | (facts or {})
    return runs.start_run(str(results), run, "train.py", settings, facts, done="done.json")


def tree(folder):
    """Every file below ``folder`` and its text."""
    return {str(p.relative_to(folder)): p.read_text() for p in Path(folder).rglob("*") if p.is_file()}


# --- whole or nothing -----------------------------------------------------------------------------------------------


def test_a_failed_write_leaves_the_old_file_and_no_partial(tmp_path):
    path = tmp_path / "metrics.json"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), runs.atomic_path(path) as partial:
        partial.write_text("half of the ne")
        assert partial.parent == tmp_path  # a rename is only atomic inside one file system
        raise KeyboardInterrupt
    assert tree(tmp_path) == {"metrics.json": "old"}


def test_a_reader_sees_only_whole_files(tmp_path):
    path = tmp_path / "new" / "metrics.json"
    with runs.atomic_path(path) as partial:
        partial.write_text("first")
        assert not path.exists()
    with open(path) as reader:  # began before the second write, and must not see any of it
        with runs.atomic_path(path) as partial:
            partial.write_text("second")
        assert reader.read() == "first"
    assert tree(tmp_path) == {"new/metrics.json": "second"}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {"a": [-float("inf")]}, {"a": object()}])
def test_json_that_others_cannot_read_is_refused_and_the_old_file_stays(tmp_path, value):
    path = tmp_path / "x.json"
    runs.write_json(path, {"old": 1})
    for write in (lambda: runs.write_json(path, value), lambda: runs.write_jsonl(path, [{"ok": 1}, {"value": value}])):
        with pytest.raises((ValueError, TypeError)):
            write()
        assert tree(tmp_path) == {"x.json": '{\n  "old": 1\n}\n'}


def test_json_comes_back_as_it_was_written(tmp_path):
    value = {"name": "€ \u2028 \n", "list": [1, 2.5, None, True]}
    runs.write_json(tmp_path / "x.json", value)
    assert runs.read_json(tmp_path / "x.json") == value
    runs.write_jsonl(tmp_path / "x.jsonl", [value, {}])
    assert [json.loads(line) for line in (tmp_path / "x.jsonl").read_text("utf-8").split("\n")[:-1]] == [value, {}]


@pytest.mark.parametrize("content", [b"", b'{"a": ', b"\xff\xfe"])
def test_broken_json_is_named(tmp_path, content):
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(UserError, match=r"x\.json is not readable as JSON"):
        runs.read_json(tmp_path / "x.json")


# --- run folders ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "run",
    ["", ".", "..", "../x", "a/../b", "a/..", "/abs", "a//b", "a/", "./a", "a\\b"]
    + [
        ".a",
        "..a",
        "a/.b",
        "published",
        "published/a",
        "a/published",
        "a" * 101,
        "a::b",
        "a\nb",
        "a\tb",
        "a\x00",
        "\ud800",
        "\u2028",
    ],
)
def test_run_names_that_lead_elsewhere_or_are_hidden_or_cannot_be_shown_are_refused_in_one_line(run):
    with pytest.raises(UserError, match="is no run name") as refusal:
        runs.run_directory("results", run)
    assert str(refusal.value).isprintable()


def test_depths_of_a_run_that_is_not_finished_are_said_to_be_so_far(tmp_path, capsys):
    for name in ("s", "s/9", "s/20"):
        runs.write_json(tmp_path / name / "settings.json", {})
    assert runs.with_depths(str(tmp_path), "s") == ["s/20", "s/9"]
    assert capsys.readouterr().out == "s is not finished: of its depths there are 20, 9 so far\n"
    runs.write_json(tmp_path / "s" / "train_metrics.json", {})
    assert runs.with_depths(str(tmp_path), "s") == ["s/20", "s/9"] and capsys.readouterr().out == ""
    assert runs.with_depths(str(tmp_path), "s/9") == ["s/9"]


def held(path):
    """Whether another process could not take the folder: a lock counts between two openings of one process too."""
    folder = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(folder)
    return False


def test_a_run_is_held_until_its_process_ends_also_by_a_kill(tmp_path):
    directory = start(tmp_path)
    assert held(directory) and start(tmp_path) == directory  # by its own process again
    release_runs()
    code = f"from fincompress import runs; runs.hold(runs.Path({str(directory)!r})); print('held', flush=True); input()"
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "held\n"
        before = tree(tmp_path)
        for settings in ({}, {"RANK": 8}):
            with pytest.raises(UserError, match=r"lora/ is in use by another process: wait for it, or choose another"):
                start(tmp_path, settings)
        assert tree(tmp_path) == before
    finally:
        process.kill()
        process.communicate()
    assert start(tmp_path) == directory


@pytest.mark.parametrize("finished", [True, False])
def test_what_a_kill_left_half_written_is_removed_at_the_next_start(tmp_path, finished):
    directory = start(tmp_path)
    (directory / ("done.json" if finished else "checkpoint.txt")).touch()
    before = tree(tmp_path)
    for name in (".x.json.1.partial", ".offload-ab.partial"):
        (directory / name).touch()
    (directory / ".merged-original.partial").mkdir()
    start(tmp_path)
    assert tree(tmp_path) == before and not list(directory.glob("*.partial"))


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    (tmp_path / "file").touch()
    for results, run in (
        (tmp_path, "circle"),
        (tmp_path, "file/x"),
        (tmp_path, "file"),
        ("/proc", "x"),
        (tmp_path, "x/" * 3000 + "x"),
    ):
        with pytest.raises(UserError, match=r"/ cannot be made: .*; choose another RUN or RESULTS_DIR$"):
            start(results, run=run)


def test_an_unfinished_run_resumes_with_its_settings_written(tmp_path):
    directory = start(tmp_path)
    assert directory == tmp_path / "lora"
    record = runs.read_json(directory / "settings.json")
    assert record["script"] == "train.py"
    assert record["settings"] == {"LEARNING_RATE": 1e-3, "RANK": None}
    assert {name: record[name] for name in FACTS} == FACTS
    assert record["versions"]["python"].startswith("3.")
    assert record["hardware"]["cores"] >= 1 and record["hardware"]["memory_gb"] > 0
    (directory / "checkpoint.txt").write_text("kept")
    assert start(tmp_path) == directory
    assert (directory / "checkpoint.txt").read_text() == "kept"
    assert runs.read_json(directory / "settings.json") == record


def test_a_finished_run_is_skipped_wherever_it_lies(tmp_path, capsys):
    directory = start(tmp_path)
    (directory / "done.json").write_text("{}")
    before = tree(tmp_path)
    assert start(tmp_path) is None
    assert start(tmp_path, {"DATA_DIR": "moved", "RESULTS_DIR": "also"}) is None  # where things lie decides no result
    assert "finished already" in capsys.readouterr().out
    assert tree(tmp_path) == before


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize(
    ("settings", "facts", "said"),
    [
        ({"LEARNING_RATE": 2e-4}, {}, r"LEARNING_RATE 0\.001 -> 0\.0002"),
        ({"RANK": 8}, {}, "RANK None -> 8"),
        ({"ADDED": 1}, {}, "ADDED None -> 1"),
        ({}, {"base_model": "other"}, "base_model 'smollm2-135m' -> 'other'"),
        ({}, {"data": {"source": "FinQA", "fingerprint": "f1"}}, "data .*'f0'.* -> .*'f1'."),
        ({}, {"data": {"source": "synthetic", "fingerprint": "f0"}}, "data .*'FinQA'.* -> .*'synthetic'.*"),
    ],
)
def test_a_second_recipe_in_one_folder_is_refused_by_what_differs(tmp_path, settings, facts, said, finished):
    directory = start(tmp_path)
    (directory / ("done.json" if finished else "checkpoint.txt")).write_text("{}")
    before = tree(tmp_path)
    with pytest.raises(UserError, match=rf"lora/ holds a run with other settings \({said}\)"):
        start(tmp_path, settings, facts)
    assert tree(tmp_path) == before


@pytest.mark.parametrize(
    ("fact", "here", "there"), [("dtype", "bfloat16", "float32"), ("optimizer", "adamw_bnb_8bit", "adamw_torch_fused")]
)
def test_only_a_run_that_is_finished_may_have_another_machines_compute_type_or_optimizer(tmp_path, fact, here, there):
    directory = start(tmp_path, facts={fact: here})
    (directory / "checkpoint.txt").write_text("")
    with pytest.raises(UserError, match=f"{fact} '{here}' -> '{there}'"):
        start(tmp_path, facts={fact: there})
    (directory / "done.json").write_text("{}")
    assert start(tmp_path, facts={fact: there}) is None


def test_record_keeping_and_constants_that_were_removed_since_are_no_other_settings(tmp_path):
    directory = start(tmp_path, {"SAVE_STEPS": 100, "MERGE": False, "REMOVED": 3})
    (directory / "done.json").write_text("{}")
    assert start(tmp_path, {"SAVE_STEPS": 7, "MERGE": True}) is None


@pytest.mark.parametrize("name", ["base", "base_lr1"])
def test_names_of_untuned_models_are_refused_before_anything_is_trained(tmp_path, name):
    with pytest.raises(UserError, match="untuned models; choose another RUN"):
        start(tmp_path, run=name)
    assert not tree(tmp_path)


def test_a_run_of_another_script_is_refused(tmp_path):
    (start(tmp_path) / "checkpoint.txt").write_text("")
    with pytest.raises(UserError, match=r"lora/ holds .* other settings \(script 'train\.py' -> 'quantize_gptq\.py'"):
        runs.start_run(str(tmp_path), "lora", "quantize_gptq.py", {"BITS": 4}, {})


def test_a_run_that_left_only_settings_gives_way_to_a_corrected_one(tmp_path):
    start(tmp_path)
    assert start(tmp_path, {"RANK": 8}) is not None
    assert runs.read_json(tmp_path / "lora" / "settings.json")["settings"]["RANK"] == 8


def test_a_folder_of_other_runs_is_refused_as_a_run(tmp_path):
    start(tmp_path, run="group/lora")
    with pytest.raises(UserError, match="holds no run"):
        start(tmp_path, run="group")
    assert (tmp_path / "group" / "lora" / "settings.json").exists()


def test_settings_name_no_folder_of_this_machine_and_no_token(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_doNotShowThis")
    results, data = tmp_path / "results", tmp_path / "data"
    arguments = ["--RANK=8", f"--RESULTS_DIR={results}", f"--DATA_DIR={data}/", "--RUN=sapling/40"]
    monkeypatch.setattr(sys, "argv", [f"{tmp_path}/train.py", *arguments])
    start(results, {"RESULTS_DIR": str(results), "DATA_DIR": str(data), "RANK": 8})
    text = (results / "lora" / "settings.json").read_text()
    assert str(tmp_path.parent) not in text and str(Path.home()) + "/" not in text and sys.prefix not in text
    assert "hf_doNotShowThis" not in text
    command = "python train.py --RANK=8 --RESULTS_DIR=results --DATA_DIR=data --RUN=sapling/40"
    assert json.loads(text)["command"] == command


def test_a_finished_run_is_found_and_an_unfinished_one_names_the_others(tmp_path):
    for run in ("b", "sapling/40", "a"):
        runs.write_json(tmp_path / run / "train_metrics.json", {})
    (tmp_path / "begun").mkdir()
    assert runs.finished_run(str(tmp_path), "sapling/40", "train_metrics.json") == tmp_path / "sapling" / "40"
    for run, state in (("begun", "is not finished"), ("none", "does not exist")):
        with pytest.raises(UserError, match=rf"run '{run}' {state} in .*; finished: a, b, sapling/40$"):
            runs.finished_run(str(tmp_path), run, "train_metrics.json")
    with pytest.raises(UserError, match="finished: none$"):
        runs.finished_run(str(tmp_path / "nowhere"), "a", "train_metrics.json")


def evaluation(run, split, program_accuracy, **changes):
    score = {"accuracy": 0.5, "interval": [0.25, 0.75], "correct": 5, "of": 10}
    return {
        "run": run, "base_model": "m", "data": {"source": "FinQA", "fingerprint": "f0"}, "split": split,
        "questions": 10, "execution_accuracy": score, "program_accuracy": program_accuracy and score,
        "invalid": score | {"accuracy": 0.1},
    } | changes  # fmt: skip


def test_the_accuracy_table_has_a_row_for_every_evaluation(tmp_path):
    runs.write_json(tmp_path / "lora" / "eval_dev.json", evaluation("lora", "dev", True))
    pruned = evaluation("sapling/40", "test", None, data={"source": "synthetic", "fingerprint": None}, base_model=None)
    runs.write_json(tmp_path / "sapling" / "40" / "eval_test.json", pruned)
    runs.write_json(tmp_path / "lora" / "train_metrics.json", {"no": "evaluation"})
    execution = {"execution_accuracy": 0.5, "execution_accuracy_low": 0.25, "execution_accuracy_high": 0.75}
    assert runs.accuracy_table(str(tmp_path)) == [
        {"run": "lora", "base_model": "m", "data": "FinQA", "data_fingerprint": "f0", "split": "dev", "questions": 10,
         "size_gb": None, "share_of_bytes": None,
         **execution, "program_accuracy": 0.5, "program_accuracy_low": 0.25, "program_accuracy_high": 0.75,
         "invalid": 0.1},
        {"run": "sapling/40", "base_model": None, "data": "synthetic", "data_fingerprint": None, "split": "test",
         "questions": 10, "size_gb": None, "share_of_bytes": None,
         **execution, "program_accuracy": None, "program_accuracy_low": None,
         "program_accuracy_high": None, "invalid": 0.1},
    ]  # fmt: skip


DAMAGED = [
    ("", "is not readable as JSON"),
    ("[" * 100_000, "is not readable as JSON"),
    ("\x00\xff", "is not readable as JSON"),
    ("[1]", "holds no JSON object"),
    ("{}", "is damaged (KeyError"),
    (json.dumps(evaluation("b", "dev", True, data=None)), "is damaged (TypeError"),
]


@pytest.mark.parametrize(("text", "says"), DAMAGED)
def test_a_damaged_record_of_another_run_is_named_and_left_out(tmp_path, capsys, text, says):
    runs.write_json(tmp_path / "a" / "eval_dev.json", evaluation("a", "dev", True))
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "eval_dev.json").write_bytes(text.encode("latin-1"))
    assert [row["run"] for row in runs.accuracy_table(str(tmp_path))] == ["a"]
    error = capsys.readouterr().err
    assert says in error and "b/eval_dev.json" in error and error.count("\n") == 1


def test_a_damaged_split_is_one_line(tmp_path):
    runs.write_json(tmp_path / "data" / "data_report.json", {"splits": {}})
    runs.write_json(tmp_path / "data" / "settings.json", {"script": "preprocess_data.py", "settings": {}})
    (tmp_path / "data" / "dev").mkdir()
    for text in ("{", "{}", '{"_data_files": [{"filename": "data.arrow"}]}'):
        (tmp_path / "data" / "dev" / "state.json").write_text(text)
        (tmp_path / "data" / "dev" / "dataset_info.json").write_text(text)
        with pytest.raises(UserError, match=r"data/dev/ is damaged .*: run preprocess_data\.py again"):
            runs.load_processed(str(tmp_path), "data", "dev")


def test_a_disk_that_is_too_small_is_said_with_the_bytes_that_are_needed(tmp_path, monkeypatch):
    directory = tmp_path / "not" / "there"
    runs.check_room(directory, 1e-6)
    monkeypatch.setattr(runs.shutil, "disk_usage", lambda path: mock.Mock(free=13_400_000_000))
    with pytest.raises(UserError, match=r"takes 13\.50 GB, and its disk has 13\.40 GB free: free some"):
        runs.check_room(directory, 13.5)
    assert not directory.parent.exists()
