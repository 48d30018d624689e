"""Models take turns at every measure, in processes of their own; one that fails does not stop the others."""

import time

import psutil
import pytest

from fincompress.benchmark import record, rounds
from fincompress.benchmark.rounds import Entrant, Plan
from fincompress.benchmark.subjects import Subject
from fincompress.errors import UserError


def plan(**changes):
    settings = {"lengths": {"fixed": 64}, "batch_sizes": [2], "rounds": 3, "new_tokens": 4, "max_seconds": 60.0,
                "results_dir": "results", "limit_gb": None}  # fmt: skip
    return Plan(**settings | changes)


def subjects(*names):
    return [Subject(run=name, base_model="shape:tiny", path="nowhere", files=[]) for name in names]


class FakeWorker:
    """Answers at once and notes the order in which workers are asked."""

    order: list = []
    seconds: dict = {}
    asked = 0

    def __init__(self):
        self.run = None

    def alive(self):
        return True

    def ask(self, do, **arguments):
        if do == "load":
            self.run = arguments["subject"]["run"]
            if self.run == "bad":
                raise UserError("it is damaged")
        FakeWorker.order.append((self.run, do, arguments.get("batch")))
        time.sleep(FakeWorker.seconds.get((self.run, do), 0))
        if do == "decode" and arguments["batch"] == 64:
            raise UserError("out of memory")
        FakeWorker.asked += 1  # each measure takes a little longer than the one before
        return {"load": {}, "bandwidth": {"bandwidth_gb_per_s": 50.0}, "peak": {"rss": 0.1}}.get(
            do, {"seconds": [FakeWorker.asked * 1e-3]}
        )

    def close(self):
        FakeWorker.order.append((self.run, "close", None))


@pytest.fixture
def fake(monkeypatch):
    FakeWorker.order, FakeWorker.seconds, FakeWorker.asked = [], {}, 0
    monkeypatch.setattr(rounds, "WorkerProcess", FakeWorker)
    return FakeWorker


def seconds(entrant, name):
    return [turn[0] for turn in entrant.turns[name]]


def test_models_take_turns_at_every_measure_the_base_model_before_and_after_every_two(fake):
    entrants, failed = rounds.measure_all(subjects("base", "a", "b", "c"), plan(rounds=2))
    assert not failed and [len(e.turns["decode 2"]) for e in entrants.values()] == [6, 2, 2, 2]
    assert [entrant.bandwidth for entrant in entrants.values()] == [[50.0] * 2, [], [], []]
    probes = [i for i, (run, do, _) in enumerate(fake.order) if do == "bandwidth"]
    assert probes[1] - probes[0] == 1 + 6 * 3  # once a round, before it
    turns = [turn for turn in fake.order if turn[1] != "bandwidth"][-(6 * 3 * 2 + 4) : -4]
    assert [run for run, _, _ in turns] == ["base", "a", "b", "base", "c", "base"] * 6
    assert [(do, batch) for _, do, batch in turns[::6]] == [("prefill", None), ("decode", 1), ("decode", 2)] * 2
    base, *others = entrants.values()
    for one, before in zip(others, (0, 0, 1), strict=True):
        for name in base.turns:
            beside = [turn[1:] for turn in one.turns[name]]
            times = seconds(base, name)
            assert beside == [(times[i + before], times[i + before + 1]) for i in (0, 3)]
    assert record.ratios(base, "decode 1") == pytest.approx([1] * 6)


def test_everything_is_done_once_unrecorded_before_the_first_round(fake):
    rounds.measure_all(subjects("a"), plan(rounds=1))
    warm_up = [(do, batch) for _, do, batch in fake.order[:-4]]
    assert warm_up[:2] == [("load", None), ("prefill", None)]
    assert [turn for turn in warm_up if turn[0] != "peak"][-3:] == [("prefill", None), ("decode", 1), ("decode", 2)]
    assert [do for _, do, _ in fake.order[-4:]] == ["prefill", "decode", "decode", "close"]


def test_without_a_base_model_the_others_take_turns_and_have_no_ratios(fake):
    entrants, _ = rounds.measure_all(subjects("a", "b"), plan(rounds=2))
    assert [run for run, _, _ in fake.order[-14:-2]] == ["a", "b"] * 6
    assert record.ratios(entrants["a"], "decode 1") == [] and len(record.rates(entrants["a"], "decode 1")) == 2


def test_a_model_that_fails_is_left_out_and_a_batch_that_fails_is_noted(fake):
    entrants, failed = rounds.measure_all(subjects("a", "bad", "c"), plan(batch_sizes=[64]))
    assert list(entrants) == ["a", "c"] and failed == {"bad": "it is damaged"}
    assert entrants["a"].not_measured == {"decode 64": "out of memory"} and len(entrants["a"].turns["decode 1"]) == 3


@pytest.mark.parametrize("slow", ["a", "base"])
def test_a_slow_measure_is_taken_in_fewer_rounds(fake, slow):
    fake.seconds = {(slow, "prefill"): 0.06}
    entrants, _ = rounds.measure_all(subjects("base", "a", "b"), plan(rounds=4, max_seconds=0.15))
    base, a, b = entrants.values()
    assert [len(e.turns["decode 1"]) for e in (base, a, b)] == [8, 4, 4]
    assert [len(e.turns["prefill 64"]) for e in (base, a, b)] == ([4, 4, 4] if slow == "base" else [8, 2, 4])
    # Ratios are to the turns that the base model has.
    assert [len(record.ratios(e, "prefill 64")) for e in (a, b)] == ([2, 2] if slow == "base" else [2, 4])
    times = seconds(base, "prefill 64")
    assert [turn[1:] for turn in b.turns["prefill 64"]][:2] == [(times[0], times[1]), (times[2], times[3])]


def test_a_base_model_that_fails_midway_leaves_the_others_their_rates(fake, monkeypatch):
    measure = Entrant.measure

    def failing(self, name, number):
        if self.subject.run == "base" and number == 1:
            raise UserError("out of memory")
        return measure(self, name, number)

    monkeypatch.setattr(Entrant, "measure", failing)
    entrants, failed = rounds.measure_all(subjects("base", "a"), plan())
    assert failed == {"base": "out of memory"} and list(entrants) == ["a"]
    assert len(record.rates(entrants["a"], "decode 1")) == 3 and len(record.ratios(entrants["a"], "decode 1")) == 1


def test_a_process_that_dies_says_so_and_a_sleeping_one_does_not_spin(monkeypatch):
    monkeypatch.setenv("GOMP_SPINCOUNT", "500")
    worker = rounds.WorkerProcess()
    try:
        assert worker.ask("probe", seconds=0.1)["bandwidth_gb_per_s"] > 0
        process = psutil.Process(worker.process.pid)
        assert not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & set(process.environ())  # whatever the caller waits like
        before = sum(process.cpu_times()[:2])
        time.sleep(1)
        assert sum(process.cpu_times()[:2]) - before < 0.1
        worker.process.kill()
        with pytest.raises(UserError, match="process ended .killed, as when memory runs out"):
            worker.ask("probe", seconds=0.1)
    finally:
        worker.close()
