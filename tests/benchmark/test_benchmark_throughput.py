"""benchmark_throughput.py measures what it can, and says what it cannot."""

import json

import pandas as pd
import pytest

import benchmark_throughput
from fincompress import runs
from fincompress.benchmark import rounds
from fincompress.benchmark.worker import Worker
from fincompress.errors import UserError


class LocalWorker(Worker):
    """A worker without a process of its own: test_rounds.py has one with."""

    def ask(self, *command, until=None):
        return super().ask(*command)

    def close(self):
        pass


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
    monkeypatch.setattr(rounds, "watch_load", lambda: lambda: 0.0)  # whatever else runs beside the tests
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
    assert "sapling/12: not measured" in output.out
    assert last["runs"]["base"]["decode_ratio"] == 1 and last["runs"]["sapling/4"]["decode_ratio"] > 0

    written = runs.read_json(finished / "sapling" / "4" / "throughput_cpu.json")
    assert written["data"] == data and written["kernel"] == "Linear; attention sdpa"
    assert {k: v["prompt_tokens"] for k, v in written["prefill"].items()} == {"median": 40, "p95": 70, "fixed": 512}
    assert len(written["decode"]["1"]["tokens_per_s"]["rounds"]) == 2 and set(written["decode"]) == {"1", "2"}
    assert not (finished / "sapling" / "12" / "throughput_cpu.json").exists()
    table = pd.read_csv(finished / "throughput.csv")
    assert sorted(table["run"]) == ["base", "sapling/4"] and (table["data_fingerprint"] == "f").all()
    assert (table["decode_1_ratio_median"] > 0).all()


def test_models_that_do_not_fit_are_refused_before_any_is_loaded(finished, script, monkeypatch):
    card = {"device": "cpu", "dtype": "float32", "reason": "", "free_gb": 1.0, "bandwidth_gb_per_s": 9.0,
            "hardware": {"cpu": "Some CPU", "cores": 2, "threads": 2, "memory_gb": 16.0}}  # fmt: skip
    monkeypatch.setattr(LocalWorker, "ask", lambda self, do, *arguments: card)
    with pytest.raises(UserError, match="does not fit together in 0.9 GB: name fewer RUNS"):
        script(RESULTS_DIR=str(finished))
    card["free_gb"] = 0.0
    with pytest.raises(UserError, match="nothing was measured: needs 0.0 GB, 0.0 GB are free"):
        script(RESULTS_DIR=str(finished))


@pytest.mark.parametrize(
    ("constants", "says"),
    [
        ({"RUNS": ["nothing"]}, "'nothing' does not exist"),
        ({"BASE_MODEL": "shape:llama"}, "there is no shape 'llama'"),
        ({"NEW_TOKENS": 2047}, "NEW_TOKENS = 2047: with a prompt of 1 that is more than the model's context of 2048"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(finished, script, constants, says):
    with pytest.raises(UserError, match=says):
        script(RESULTS_DIR=str(finished), **constants)
    assert not list(finished.rglob("throughput*"))
