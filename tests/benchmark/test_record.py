"""What a record of the benchmark says, and what is read from it."""

import made_up_runs as made
import pytest

from fincompress import runs
from fincompress.benchmark import record
from fincompress.benchmark.rounds import Entrant, Plan
from fincompress.benchmark.subjects import Subject
from fincompress.errors import UserError

CARD = {"device": "cpu", "hardware": made.HARDWARE, "dtype": "bfloat16", "bandwidth_gb_per_s": 10.0}


def test_what_is_written_is_read_and_a_batch_counts_every_sequence(tmp_path):
    plan = Plan({"median": 64, "fixed": 64}, [2], 2, 4, str(tmp_path), 8.0, 60.0)
    loaded = {"memory_gb": {"rss": 0.5}, "kernel": "Linear", "load_seconds": 1.0, "bytes_per_token": 10**8}
    entrant = Entrant(Subject("a", "shape:tiny", "nowhere", size_gb=0.1), plan, None, loaded)
    entrant.turns = {
        "prefill 64": [[1.0], [4.0]],
        "decode 1": [[0.1] * 4, [0.2] * 4],
        "decode 2": [[0.1, 0.1, 0.2, 0.1]],
    }
    entrant.ratios = {"decode 1": [2.0, 1.0]}
    path = record.write(str(tmp_path), entrant, CARD, {"call": "c", "data_run": "data"})
    written, row = runs.read_json(path), record.read_throughput(path)
    assert written["decode"]["2"]["tokens_per_s"]["median"] == pytest.approx(2 * 4 / 0.5)
    assert written["prefill"]["fixed"] == written["prefill"]["median"] and written["prefill"]["median"]["ratio"] is None
    assert row["rounds"] == {"prefill_tokens_per_s": [64, 16], "decode_tokens_per_s": [10, 5]}
    assert (row["prefill_tokens_per_s"], row["prefill_ratio"], row["prompt_tokens"]) == (40, None, 64)
    assert (row["decode_tokens_per_s"], row["decode_ratio"]) == (7.5, 1.5)
    assert row["share_of_bandwidth"] == pytest.approx(7.5 * 1e8 / 1e10)
    assert (row["device"], row["hardware"]) == ("cpu", "Some CPU, 2 threads")
    assert record.read_throughput(path.rename(path.with_stem("throughput_cpu_of_another_machine"))) == row
    assert (row["inference_memory_gb"], row["size_gb"], row["call"]) == (0.5, 0.1, "c")


def test_a_spread_has_median_and_range_and_that_of_nothing_is_none():
    spread = record.spread([3.0, 1.0, 2.0])
    assert (spread["median"], spread["low"], spread["high"], spread["rounds"]) == (2.0, 1.0, 3.0, [3.0, 1.0, 2.0])
    assert record.spread([]) is None


def test_only_rounds_of_one_call_are_paired(tmp_path):
    made.throughput(tmp_path, "aa", 20.0, base=23.0)
    made.throughput(tmp_path, "bbb", 40.0, base=23.0)
    made.throughput(tmp_path, "c", 40.0, base=23.5)
    row, same, later = (record.read_throughput(tmp_path / run / "throughput_cpu.json") for run in ("aa", "bbb", "c"))
    first, second = record.paired_rounds(row, same, "decode_tokens_per_s")
    assert len(first) == 5 and all(b / a == pytest.approx(2, rel=0.1) for a, b in zip(first, second, strict=True))
    recorded = runs.read_json(tmp_path / "aa" / "throughput_cpu.json")["decode"]["1"]
    assert first == recorded["ratio"]["rounds"]
    assert record.paired_rounds(row, later, "decode_tokens_per_s") is None
    same["rounds"]["decode_tokens_per_s"] = same["rounds"]["decode_tokens_per_s"][:3]  # a slow model: fewer rounds
    assert len(record.paired_rounds(row, same, "decode_tokens_per_s")[0]) == 3
    row["ratios"]["decode_tokens_per_s"] = row["ratios"]["decode_tokens_per_s"][:2]  # a slow base model: fewer still
    assert record.paired_rounds(row, same, "decode_tokens_per_s")[0] == recorded["tokens_per_s"]["rounds"][:3]


def test_a_measure_that_failed_is_read_as_not_measured(tmp_path):
    made.throughput(tmp_path, "a", 20.0)
    path = tmp_path / "a" / "throughput_cpu.json"
    throughput = runs.read_json(path)
    throughput["prefill"]["median"] |= {"tokens_per_s": None, "ratio": None}
    runs.write_json(path, throughput)
    row = record.read_throughput(path)
    assert row["prefill_tokens_per_s"] is row["prefill_ratio"] is None and row["decode_tokens_per_s"] is not None


@pytest.mark.parametrize("content", ["[]", "{"])
def test_a_damaged_record_is_named(tmp_path, content):
    (tmp_path / "bad").mkdir()
    path = tmp_path / "bad" / "throughput_cpu.json"
    path.write_text(content)
    with pytest.raises(UserError, match=r"bad/throughput_cpu\.json"):
        record.read_throughput(path)


def test_a_row_of_the_table_has_an_entry_of_the_record_in_every_column(tmp_path):
    made.throughput(tmp_path, "a", 20.0)
    written = runs.read_json(tmp_path / "a" / "throughput_cpu.json")
    (row,) = record.table(str(tmp_path))
    assert row["decode_1_tokens_per_s_median"] == written["decode"]["1"]["tokens_per_s"]["median"]
    assert row["prefill_median_ratio_low"] == written["prefill"]["median"]["ratio"]["low"]
    assert row["hardware_threads"] == 2 and not any(isinstance(value, (list, dict)) for value in row.values())


def test_a_speed_measured_beside_other_jobs_decides_nothing(tmp_path):
    made.throughput(tmp_path, "a", 20.0)
    path = tmp_path / "a" / "throughput_cpu.json"
    idle = record.read_throughput(path)
    for load, used in ((0.02, True), (0.3, False)):
        runs.write_json(path, runs.read_json(path) | {"load": load})
        row = record.read_throughput(path)
        assert (row == idle) == used and (row["decode_tokens_per_s"] is None) != used
        assert bool(row["ratios"]["decode_tokens_per_s"]) == used
