"""Models take turns at every measure, in processes of their own; one that fails does not stop the others."""

import multiprocessing
import os
import time
from unittest import mock

import psutil
import pytest

from fincompress.benchmark import rounds
from fincompress.benchmark.rounds import Plan
from fincompress.benchmark.subjects import Subject
from fincompress.errors import UserError


def plan(**changes):
    settings = {"lengths": {"fixed": 64}, "batch_sizes": [2], "rounds": 3, "new_tokens": 4, "results_dir": "results",
                "room_gb": 8.0, "max_seconds": 60.0}  # fmt: skip
    return Plan(**settings | changes)


def subjects(*names):
    return [Subject(run=name, base_model="shape:tiny", path="nowhere") for name in names]


class FakeWorker:
    """Answers at once and notes the order in which workers are asked; each turn takes a millisecond more."""

    order: list = []
    fails: set = set()  # (run, number of the measurement) from which on it fails
    why = "its process ended"

    def __init__(self):
        self.run = None

    def ask(self, do, *arguments, until):
        if do == "load":
            self.run = arguments[0].run
            if self.run == "bad":
                raise UserError("it is damaged")
            return {}
        batch = arguments[1] if do == "decode" else None
        if batch == 64:
            raise UserError("out of memory")
        FakeWorker.order.append((self.run, do, batch))
        if any(run == self.run and len(FakeWorker.order) > count for run, count in FakeWorker.fails):
            raise UserError(self.why)
        return [len(FakeWorker.order) * 1e-3]

    def close(self):
        FakeWorker.order.append((self.run, "close", None))


@pytest.fixture
def fake(monkeypatch):
    FakeWorker.order, FakeWorker.fails, FakeWorker.why = [], set(), "its process ended"
    monkeypatch.setattr(rounds, "WorkerProcess", FakeWorker)
    return FakeWorker


def test_the_base_model_has_a_turn_before_and_after_every_two_others_and_one_round_is_not_recorded(fake):
    entrants, failed, _ = rounds.measure_all(subjects("base", "a", "b", "c"), plan(rounds=2))
    assert not failed and [len(e.turns["decode 2"]) for e in entrants.values()] == [6, 2, 2, 2]
    order = fake.order[:-4]
    assert [run for run, _, _ in order] == ["base", "a", "b", "base", "c", "base"] * 9
    assert [(do, batch) for _, do, batch in order[::6]] == [("prefill", None), ("decode", 1), ("decode", 2)] * 3
    base, *rest = entrants.values()
    for entrant, before in zip(rest, (0, 0, 1), strict=True):
        for name in base.turns:
            times = [sum(turn) for turn in base.turns[name]]
            for number, (turn, ratio) in enumerate(zip(entrant.turns[name], entrant.ratios[name], strict=True)):
                first, second = times[3 * number + before : 3 * number + before + 2]
                assert ratio == pytest.approx((first * second) ** 0.5 / sum(turn))
    assert base.ratios["decode 1"] == pytest.approx([1] * 6)


def test_what_slows_a_machine_for_longer_than_a_turn_cancels_in_the_ratio():
    entrants = {run: rounds.Entrant(None, None, None, {}) for run in ("base", "a")}
    rounds.note(entrants, "decode 1", [("base", [0.1] * 4), ("a", [0.1] * 4), ("base", [0.4] * 4)])
    assert entrants["a"].ratios["decode 1"] == pytest.approx([2])  # in half the time, at twice the slowness


def test_without_a_base_model_the_others_take_turns_and_have_no_ratios(fake):
    entrants, *_ = rounds.measure_all(subjects("a", "b"), plan(rounds=2))
    assert [run for run, _, _ in fake.order[:-2]] == ["a", "b"] * 9
    assert entrants["a"].ratios == {} and len(entrants["a"].turns["decode 1"]) == 2


def test_a_model_that_fails_is_left_out_and_a_batch_that_fails_is_noted(fake):
    entrants, failed, _ = rounds.measure_all(subjects("a", "bad", "c"), plan(batch_sizes=[64]))
    assert list(entrants) == ["a", "c"] and failed == {"bad": "it is damaged"}
    assert fake.order[0] == ("bad", "close", None)  # before the next is loaded
    assert entrants["a"].not_measured == {"decode 64": "out of memory"} and len(entrants["a"].turns["decode 1"]) == 3


def test_a_base_model_that_fails_midway_leaves_the_others_their_rates(fake):
    fake.fails = {("base", 3 * 3 * 2)}  # after two of four rounds, the unrecorded one included
    entrants, failed, _ = rounds.measure_all(subjects("base", "a"), plan())
    assert failed == {"base": "its process ended"} and list(entrants) == ["a"]
    assert len(entrants["a"].turns["decode 1"]) == 3 and len(entrants["a"].ratios["decode 1"]) == 1


def test_measuring_ends_in_time_with_the_rounds_that_it_has(fake, monkeypatch):
    clock = iter(range(1000))
    monkeypatch.setattr(rounds.time, "monotonic", lambda: float(next(clock)))
    entrants, failed, _ = rounds.measure_all(subjects("base", "a"), plan(rounds=50, max_seconds=20.0))
    assert not failed and 1 <= len(entrants["a"].turns["decode 1"]) < 20


def test_a_model_whose_turn_time_ended_keeps_its_rounds(fake):
    fake.fails, fake.why = {("base", 3 * 3 * 2), ("a", 3 * 3 * 2)}, rounds.LATE
    entrants, failed, _ = rounds.measure_all(subjects("base", "a"), plan())
    assert not failed and [len(entrant.turns["decode 1"]) for entrant in entrants.values()] == [2, 1]
    assert not entrants["a"].not_measured


def test_a_model_that_was_ended_in_its_first_turn_is_late_in_all_others(fake):
    fake.fails, fake.why = {("a", 1)}, rounds.LATE
    asked = fake.ask

    def ask_once(worker, do, *arguments, until):
        assert do == "load" or ("a", "prefill", None) not in fake.order[:-1] or worker.run != "a"  # it is dead
        return asked(worker, do, *arguments, until=until)

    with mock.patch.object(fake, "ask", ask_once):
        entrants, failed, _ = rounds.measure_all(subjects("base", "a"), plan())
    assert failed == {"a": rounds.LATE} and [*entrants] == ["base"]


def test_a_process_that_does_not_reply_in_time_is_ended(monkeypatch):
    worker = rounds.WorkerProcess.__new__(rounds.WorkerProcess)
    worker.pipe, theirs = multiprocessing.Pipe()
    worker.process = mock.Mock()
    with pytest.raises(UserError, match="it took longer than MAX_MINUTES"):
        worker.ask("decode", 1, until=time.monotonic() + 0.01)
    worker.process.kill.assert_called_once_with()
    theirs.send([0.5])
    assert worker.ask("decode", 1, until=time.monotonic() + 10) == [0.5]


def test_the_load_is_the_share_of_the_cores_that_other_jobs_took(monkeypatch):
    monkeypatch.setattr(rounds.time, "monotonic", mock.Mock(side_effect=[0.0, 10.0]))
    second = os.sysconf("SC_CLK_TCK")
    cores = [(35, 35, 0), (40, 43, 9)]
    busy = [
        "cpu  1 2 3\n"
        + "".join(
            f"cpu{core} {user * second} {5 * second} {10 * second} 77\n"
            for core, user in zip((0, 12, 2), users, strict=True)  # core 1 is off
        )
        for users in cores
    ]
    monkeypatch.setattr(rounds.Path, "read_text", mock.Mock(side_effect=busy))
    of_ours = [mock.Mock(), mock.Mock()]  # this process and a child: 5 seconds, then 14
    of_ours[0].cpu_times.side_effect = [(1, 1, 0, 0, 9), (2, 2, 0, 0, 9)]
    of_ours[1].cpu_times.side_effect = [(3, 0, 0, 0, 9), (4, 4, 1, 1, 9)]
    of_ours[0].children.return_value = of_ours[1:]
    of_ours[0].cpu_affinity.return_value = [0, 12]  # a third core is another job's alone
    monkeypatch.setattr(rounds.psutil, "Process", lambda: of_ours[0])
    assert rounds.watch_load()() == pytest.approx((13 - 9) / 20)


@pytest.mark.real
def test_a_process_that_dies_says_so_and_a_sleeping_one_does_not_spin(monkeypatch):
    monkeypatch.setenv("GOMP_SPINCOUNT", "500")
    worker = rounds.WorkerProcess()
    try:
        assert worker.ask("probe")["bandwidth_gb_per_s"] > 0
        process = psutil.Process(worker.process.pid)
        assert not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & set(process.environ())  # whatever the caller waits like
        before = sum(process.cpu_times()[:2])
        time.sleep(1)
        assert sum(process.cpu_times()[:2]) - before < 0.1
        worker.process.kill()
        with pytest.raises(UserError, match="process ended .killed, as when memory runs out"):
            worker.ask("probe")
    finally:
        worker.close()
