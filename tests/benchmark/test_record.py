"""What a record of the benchmark says, and what is read from it."""

import made_up_runs as made
import pytest

from fincompress import runs
from fincompress.benchmark import record
from fincompress.benchmark.rounds import Entrant
from fincompress.errors import UserError


@pytest.fixture
def entrant():
    return Entrant(None, None)


def test_what_slows_a_machine_for_longer_than_a_turn_cancels_in_the_ratio(entrant):
    slowness = [1, 2, 4, 4, 2]  # of the machine in the turns dense, fast, dense, fast, dense
    dense = [[0.1 * slow] * 4 for slow in slowness[::2]]
    fast = [[0.05 * slow] * 4 for slow in slowness[1::2]]
    entrant.turns = {
        "decode 1": list(zip(fast, dense, dense[1:], strict=False)),
        "prefill 64": [([1.0], [2.0], [2.0]), ([4.0], [4.0], [16.0])],
    }
    assert record.rates(entrant, "decode 1") == pytest.approx([10, 5])
    assert record.ratios(entrant, "decode 1") == pytest.approx([2, 2 / 2**0.5])
    assert record.rates(entrant, "prefill 64") == [64, 16] and record.ratios(entrant, "prefill 64") == [2, 2]


def test_a_batch_counts_every_sequence():
    assert record.tokens_per_s("decode 2", [0.1, 0.1, 0.2, 0.1]) == pytest.approx(2 * 4 / 0.5)


def test_a_spread_has_median_and_range_and_that_of_nothing_is_none(entrant):
    found = record.spread([3.0, 1.0, 2.0])
    assert (found["median"], found["low"], found["high"], found["rounds"]) == (2.0, 1.0, 3.0, [3.0, 1.0, 2.0])
    assert record.spread([]) is None and record.rates(entrant, "decode 1") == []


def test_a_machine_that_changes_between_rounds_is_told_of():
    assert record.unsteady(None) is None and record.unsteady(record.spread([41.0, 50.0, 44.0])) is None
    assert "moved 41 to 78 GB/s between rounds" in record.unsteady(record.spread([46.0, 78.0, 41.0]))


def test_only_rounds_of_one_call_are_paired(tmp_path):
    made.throughput(tmp_path, "aa", 20.0, base=23.0)
    made.throughput(tmp_path, "bbb", 40.0, base=23.0)
    made.throughput(tmp_path, "c", 40.0, base=23.5)
    one, same, other = (record.read_throughput(tmp_path / run / "throughput_cpu.json") for run in ("aa", "bbb", "c"))
    first, second = record.paired_rounds(one, same, "decode_tokens_per_s")
    assert len(first) == 5 and all(b / a == pytest.approx(2, rel=0.1) for a, b in zip(first, second, strict=True))
    recorded = runs.read_json(tmp_path / "aa" / "throughput_cpu.json")["decode"]["1"]
    assert first == recorded["ratio"]["rounds"]
    assert record.paired_rounds(one, other, "decode_tokens_per_s") is None
    same["rounds"]["decode_tokens_per_s"] = same["rounds"]["decode_tokens_per_s"][:3]  # a slow model: fewer rounds
    assert len(record.paired_rounds(one, same, "decode_tokens_per_s")[0]) == 3
    one["ratios"]["decode_tokens_per_s"] = one["ratios"]["decode_tokens_per_s"][:2]  # a slow base model: fewer still
    assert record.paired_rounds(one, same, "decode_tokens_per_s")[0] == recorded["tokens_per_s"]["rounds"][:3]


@pytest.mark.parametrize("content", ['{"prefill": 3}', "[]", "{"])
def test_a_damaged_record_is_named_and_left_out_of_the_table(tmp_path, content, capsys):
    made.throughput(tmp_path, "good", 20.0)
    (tmp_path / "bad").mkdir()
    path = tmp_path / "bad" / "throughput_cpu.json"
    path.write_text(content)
    with pytest.raises(UserError, match=r"bad/throughput_cpu\.json"):
        record.read_throughput(path)
    if content != '{"prefill": 3}':  # which is a record with little in it
        assert [row["run"] for row in record.table(str(tmp_path))] == ["good"]
        assert "left out of throughput.csv" in capsys.readouterr().out


def test_a_row_of_the_table_has_an_entry_of_the_record_in_every_column(tmp_path):
    assert record.table(str(tmp_path)) == []
    made.throughput(tmp_path, "a", 20.0)
    written = runs.read_json(tmp_path / "a" / "throughput_cpu.json")
    (row,) = record.table(str(tmp_path))
    assert row["decode_1_tokens_per_s_median"] == written["decode"]["1"]["tokens_per_s"]["median"]
    assert row["prefill_median_ratio_low"] == written["prefill"]["median"]["ratio"]["low"]
    assert row["hardware_threads"] == 2 and not any(isinstance(value, (list, dict)) for value in row.values())
