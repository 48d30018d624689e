"""Which models are measured, and whether they fit."""

import shutil
from unittest import mock

import pytest

from fincompress import runs
from fincompress.benchmark import subjects
from fincompress.benchmark.subjects import Subject
from fincompress.errors import UserError


def subject(run="a", **changes):
    return Subject(**{"run": run, "base_model": "shape:tiny", "path": "nowhere"} | changes)


def test_every_finished_run_of_the_base_model_is_found(finished, capsys):
    shutil.copytree(finished / "sapling" / "4", finished / "sapling" / "4" / "merged")
    chosen = subjects.find_subjects(str(finished), None, "shape:tiny", "speed_data")
    assert [s.run for s in chosen] == ["base", "sapling/12", "sapling/4", "sapling/4/merged"]
    assert "left out, of another base model or data run: other" in capsys.readouterr().out


def test_named_runs_bring_their_base_model_and_data_run(finished):
    chosen = subjects.find_subjects(str(finished), ["sapling/4"], "smollm2-135m", "data")
    assert [(s.run, s.base_model, s.data_run) for s in chosen] == [
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


CARD = {"device": "cuda", "dtype": "bfloat16", "free_gb": 24.0}


GB = {"auto": 13.8, "gptq-4bit": 4.2, "gptq-8bit": 7.3}  # of Llama-2-7B, as it is predicted


def fit(chosen, room_gb, **card):
    def inference_gb(config, tokens, precision, *_, **__):
        return GB[precision] if config.hidden_size == 4096 else 0.1

    with mock.patch.object(subjects.memory, "inference_gb", inference_gb):
        fitting, reasons = subjects.which_fit(chosen, "results", 512, 16, CARD | card, room_gb)
    return [subject.run for subject in fitting], reasons


def seven_billion(run, precision="auto"):
    return subject(run, path="shape:llama-2-7b", precision=precision)


def test_a_model_that_is_too_large_for_the_card_is_not_measured_and_the_others_are():
    fitting, reasons = fit(
        [seven_billion("base"), seven_billion("q", "gptq-4bit"), subject("tiny", path="shape:tiny")], 9.5
    )
    assert fitting == ["q", "tiny"] and list(reasons) == ["base"]
    assert reasons["base"] == "needs 13.8 GB, 9.5 GB are free"
    assert fit([seven_billion("base"), seven_billion("q", "gptq-4bit")], 24.0, free_gb=80.0) == (["base", "q"], {})


def test_models_that_do_not_fit_together_are_refused_with_the_numbers():
    several = [seven_billion("a", "gptq-4bit"), seven_billion("b", "gptq-4bit")]
    with pytest.raises(UserError, match=r"a, b: \d+\.\d GB does not fit together in 9\.0 GB: name fewer RUNS"):
        fit(several, 9.5, free_gb=10.0)
    assert fit([seven_billion("c", "gptq-8bit")], 5.0)[0] == []
    assert fit(several[:1], 9.5, free_gb=5.0) == (["a"], {})  # alone, it is its own room that counts


def test_prompt_lengths_are_those_of_the_data_run_up_to_a_model_s_positions(tmp_path):
    report = {"splits": {"dev": {"prompt_tokens": {"p50": 40, "p95": 700}}, "train": {}}}
    runs.write_json(tmp_path / "d" / "data_report.json", report)
    runs.write_json(tmp_path / "d" / "settings.json", {"data": {"source": "synthetic"}})
    lengths, data = subjects.prompt_lengths(str(tmp_path), "d", 600)
    assert lengths == {"median": 40, "p95": 600, "fixed": 512} and data == {"source": "synthetic"}
    assert subjects.prompt_lengths(str(tmp_path), "none", 600) == ({"fixed": 512}, None)
