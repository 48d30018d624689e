"""Which models are measured, and whether they fit."""

import shutil

import pytest
from finished_runs import make_finished_runs

from fincompress import runs
from fincompress.benchmark import subjects
from fincompress.benchmark.subjects import Subject
from fincompress.errors import UserError


@pytest.fixture
def finished(tmp_path, tiny_base):
    return make_finished_runs(tmp_path, tiny_base)


def subject(run="a", **changes):
    return Subject(**{"run": run, "base_model": "shape:tiny", "path": "nowhere", "files": []} | changes)


def test_every_finished_run_of_the_base_model_is_found(finished, capsys):
    shutil.copytree(finished / "sapling" / "4", finished / "sapling" / "4" / "merged")
    found = subjects.find_subjects(str(finished), None, "shape:tiny", "speed_data")
    assert [s.run for s in found] == ["base", "sapling/4", "sapling/4/merged", "sapling/12"]
    assert "other: left out, it is of shape:llama-2-7b" in capsys.readouterr().out


def test_named_runs_bring_their_base_model_and_data_run(finished):
    found = subjects.find_subjects(str(finished), ["sapling/4"], "smollm2-135m", "data")
    assert [(s.run, s.base_model, s.data_run) for s in found] == [
        ("base", "shape:tiny", "speed_data"), ("sapling/4", "shape:tiny", "speed_data")
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (["sapling/4", "other"], "more than one base model"),
        (["unfinished"], "is not finished"),
        (["nothing"], "does not exist"),
        (["sapling"], "name one of its depths"),
    ],
)
def test_named_runs_must_be_finished_and_of_one_base_model(finished, names, says):
    with pytest.raises(UserError, match=says):
        subjects.find_subjects(str(finished), names, "shape:tiny", "speed_data")


def test_a_16_bit_model_that_is_too_large_for_the_card_is_offloaded_and_labelled():
    fits, large = subject(predicted_gb=9.4), subject(predicted_gb=13.5)
    subjects.place(fits, 10.0, 9.5)
    assert (fits.offload, fits.label) == (False, None)
    subjects.place(large, 10.0, 9.5)
    assert large.offload and large.label.startswith("does not fit 10 GB (needs 14.0)")


@pytest.mark.parametrize(
    ("changes", "limit", "says"),
    [
        ({"predicted_gb": 13.0, "precision": "gptq"}, 10.0, "in few bits already"),
        ({"predicted_gb": 13.0}, None, "needs 13.0 GB, 9.5 GB are free"),
    ],
)
def test_what_fits_in_no_way_is_refused(changes, limit, says):
    with pytest.raises(UserError, match=says):
        subjects.place(subject(**changes), limit, 9.5)


def test_models_that_do_not_fit_together_are_refused_with_the_numbers():
    several = [subject("base", predicted_gb=4.0), subject("a", predicted_gb=4.0)]  # and a fifth more, and 0.5 each
    subjects.check_fit_together(several, None, 11.8)
    with pytest.raises(UserError, match=r"base, a: 10\.6 GB does not fit together in 9\.9 GB: name fewer RUNS"):
        subjects.check_fit_together(several, None, 11.0)
    subjects.check_fit_together(several[:1], None, 4.5)  # alone, it is a question of place
    subjects.check_fit_together([subject("base", predicted_gb=40.0, offload=True), several[1]], 10.0, 24.0)


def test_prompt_lengths_are_those_of_the_data_run_up_to_a_model_s_positions(tmp_path):
    report = {"splits": {"dev": {"prompt_tokens": {"p50": 40, "p95": 700}}, "train": {}}}
    runs.write_json(tmp_path / "d" / "data_report.json", report)
    runs.write_json(tmp_path / "d" / "settings.json", {"data": {"source": "synthetic"}})
    lengths, data = subjects.prompt_lengths(str(tmp_path), "d", 600)
    assert lengths == {"median": 40, "p95": 600, "fixed": 512} and data == {"source": "synthetic"}
    assert subjects.prompt_lengths(str(tmp_path), "none", 600) == ({"fixed": 512}, None)
