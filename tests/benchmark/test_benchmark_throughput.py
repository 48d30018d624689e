"""benchmark_throughput.py measures what it can, and says what it cannot."""

import json

import pandas as pd
import pytest
import torch
from finished_runs import make_finished_runs

import benchmark_throughput
from fincompress import models, runs
from fincompress.benchmark import rounds
from fincompress.benchmark.subjects import Subject
from fincompress.benchmark.worker import Worker
from fincompress.errors import UserError

CARD = {"device": "cuda", "dtype": "bfloat16", "reason": "", "free_gb": 9.5, "bandwidth_gb_per_s": 500.0,
        "hardware": {"cpu": "Some CPU", "cores": 2, "threads": 2, "memory_gb": 16.0}}  # fmt: skip


class LocalWorker:
    """A worker without a process of its own: test_rounds.py has one with."""

    def __init__(self):
        self.worker = Worker()

    def ask(self, do, **arguments):
        reply = self.worker.answer(do, **arguments)
        if "error" in reply:
            raise UserError(reply["error"])
        return reply

    def alive(self):
        return True

    def close(self):
        pass


@pytest.fixture
def finished(tmp_path, tiny_base):
    return make_finished_runs(tmp_path, tiny_base)


@pytest.fixture
def script(monkeypatch):
    """The script in this process, as short as it gets; other constants are arguments."""

    def call(**constants):
        constants = {"BASE_MODEL": "shape:tiny", "DATA_RUN": "speed_data", "ROUNDS": 2, "NEW_TOKENS": 4,
                     "BATCH_SIZES": [2]} | constants  # fmt: skip
        for name, value in constants.items():
            assert hasattr(benchmark_throughput, name)
            monkeypatch.setattr(benchmark_throughput, name, value)
        benchmark_throughput.main()

    monkeypatch.setattr(rounds, "WorkerProcess", LocalWorker)
    monkeypatch.setattr(rounds.probe, "__defaults__", (0.1,))
    return call


def test_good_models_are_measured_beside_a_damaged_one(finished, script, capsys):
    report = {"splits": {"dev": {"prompt_tokens": {"p50": 40, "p95": 70}}, "train": {}}}
    runs.write_json(finished / "speed_data" / "data_report.json", report)
    data = {"source": "synthetic", "fingerprint": "f"}
    runs.write_json(finished / "speed_data" / "settings.json", {"data": data})
    (finished / "sapling" / "12" / "model.safetensors").write_bytes(b"\x00" * 100)
    script(RESULTS_DIR=str(finished))
    output = capsys.readouterr()
    last = json.loads(output.out.splitlines()[-1])
    assert list(last["runs"]) == ["base", "sapling/4"] and list(last["not_measured"]) == ["sapling/12"]
    assert "sapling/12: not measured" in output.out + output.err and "VRAM_LIMIT_GB does not apply" in output.out
    assert last["runs"]["base"]["decode_ratio"] == 1 and last["runs"]["sapling/4"]["decode_ratio"] > 0

    written = runs.read_json(finished / "sapling" / "4" / "throughput_cpu.json")
    assert written["data"] == data and written["reference"] == "base" and written["vram_limit_gb"] is None
    assert {k: v["prompt_tokens"] for k, v in written["prefill"].items()} == {"median": 40, "p95": 70, "fixed": 512}
    assert len(written["decode"]["1"]["tokens_per_s"]["rounds"]) == 2 and set(written["decode"]) == {"1", "2"}
    assert written["parameters"] == 2 * 2048 * 64 + 2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128 + 2 * 64) + 64
    assert len(written["ceiling"]["bandwidth_of_rounds"]["rounds"]) == 2
    assert written["threads"] >= 1 and written["kernel"].endswith("attention sdpa")
    wider = models.pick_dtype(torch.device("cpu"))[0].itemsize / 2  # than on disk, where the CPU has no bf16
    assert wider * written["on_disk_gb"] == pytest.approx(written["in_memory_gb"], rel=0.05)
    assert not (finished / "sapling" / "12" / "throughput_cpu.json").exists()
    table = pd.read_csv(finished / "throughput.csv")
    assert sorted(table["run"]) == ["base", "sapling/4"] and (table["data_fingerprint"] == "f").all()
    assert (table["decode_1_ratio_median"] > 0).all()


def test_models_that_do_not_fit_together_are_refused_before_any_is_loaded(finished, script, monkeypatch):
    monkeypatch.setattr(LocalWorker, "ask", lambda self, do, **arguments: CARD | {"device": "cpu", "free_gb": 1.0})
    with pytest.raises(UserError, match="does not fit together in 0.9 GB: name fewer RUNS"):
        script(RESULTS_DIR=str(finished))


def test_a_base_model_that_fills_the_card_leaves_it_to_the_others(capsys):
    names = {"base": "auto", "a": "gptq"}
    chosen = [Subject(run, "m", "nowhere", [], precision) for run, precision in names.items()]
    config = models.shape_config("shape:llama-2-7b")
    fitting, failed = benchmark_throughput.which_fit(chosen, dict.fromkeys(names, config), CARD, 512, 10.0)
    assert [subject.run for subject in fitting] == ["a"] and list(failed) == ["base"]
    assert "base: not measured: base, a: " in capsys.readouterr().out
    roomy = CARD | {"free_gb": 24.0}
    fitting, failed = benchmark_throughput.which_fit(chosen, dict.fromkeys(names, config), roomy, 512, 10.0)
    assert [subject.offload for subject in fitting] == [True, False] and not failed


def test_predictions_need_no_weights(tmp_path, script, capsys):
    script(PREDICT=True, BASE_MODEL="shape:llama-2-7b", RESULTS_DIR=str(tmp_path))
    rows = {row["method"]: row for row in json.loads(capsys.readouterr().out.splitlines()[-1])["predicted"]}
    assert rows["train QLoRA (NF4 base)"]["fits"] and not rows["decode in 16 bits"]["fits"]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("constants", "says"),
    [
        ({"RUNS": ["nothing"]}, "'nothing' does not exist"),
        ({"RUNS": [1]}, "RUNS are names"),
        ({"BASE_MODEL": "shape:llama"}, "there is no shape 'llama'"),
        ({"BATCH_SIZES": [0]}, "BATCH_SIZES are whole numbers"),
        ({"ROUNDS": 0}, "ROUNDS must be above 0"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(tmp_path, script, constants, says):
    with pytest.raises(UserError, match=says):
        script(RESULTS_DIR=str(tmp_path), **constants)
    assert not list(tmp_path.rglob("throughput*"))
