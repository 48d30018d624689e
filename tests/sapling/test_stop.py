"""Stop rules: memory and latency end a run, the accuracy floor is a share of its own accuracy and is returned to."""

import weakref
from types import SimpleNamespace

import pytest
import torch
from bitsandbytes.optim import GlobalOptimManager
from sapling_runs import SAPLING, done, read, settings_of

import fincompress.sapling as method
from fincompress import generation, runs
from fincompress.depth.ranking import Ranking, Score
from fincompress.depth.sublayers import SubLayer
from fincompress.errors import UserError
from fincompress.sapling.state import State
from fincompress.sapling.stop import stop_reason
from fincompress.sapling.student import Student


def score(share):
    """Answers to 100 questions, this share of them exact."""
    return Score((), torch.zeros(100), (torch.arange(100) < 100 * share).float())


def test_a_target_of_memory_stops_a_run(six):
    results, environment = six
    target = ("--RUN=memory", "--TARGET_MEMORY_GB=0.0009", "--TARGET_SIZE=0.4", "--SAVE_EVERY=2")
    done(*SAPLING, *target, **environment)
    metrics = read(results / "memory" / "train_metrics.json")
    assert "GB of memory" in metrics["stopped"] and metrics["share_of_bytes"] > 0.4
    assert (results / "memory" / str(metrics["units_left"]) / "config.json").exists()


@pytest.mark.parametrize(("seconds", "stops"), [([0.011, 0.011, 0.001], False), ([0.009, 0.009, 5.0], True)])
def test_a_target_of_latency_is_a_median_in_milliseconds(six, monkeypatch, seconds, stops):
    monkeypatch.setattr(generation, "time_decoding", lambda *_: seconds)
    settings = settings_of(six[1], TARGET_LATENCY_MS=10.0, START_FROM=None)
    student = Student(settings, six[1]["BASE_MODEL"], "bf16", torch.device("cpu"), torch.bfloat16)
    student.load()
    run = SimpleNamespace(settings=settings, student=student, state=State())
    assert bool(stop_reason(run, score(0.5))) == stops


def test_one_attention_and_one_mlp_stay(six):
    settings = settings_of(six[1], TARGET_SIZE=0.1, START_FROM=None)
    student = Student(settings, six[1]["BASE_MODEL"], "bf16", torch.device("cpu"), torch.bfloat16)
    student.load()
    for block in range(5):
        student.remove(f"block.{block}")
    run = SimpleNamespace(settings=settings, student=student, state=State())
    assert stop_reason(run, score(0.5)) == "nothing is left that may be dropped"


def test_many_go_at_once_in_the_first_half_of_the_way_by_scans_on_other_questions_that_know_the_last(six):
    changed = {"RUN": "told", "START_FROM": None, "KL": 0.0, "HIDDEN_STATES": 0.0, "PATCH_EXAMPLES": 0}
    changed |= {"DROPS_EARLY": 2, "DROPS_LATE": 1, "TARGET_SIZE": 0.52, "CALIBRATION_EXAMPLES": 6}
    run = method.open_run(settings_of(six[1], **changed), "sapling_train.py")
    calibration, _ = runs.load_processed(six[1]["RESULTS_DIR"], "six_data", "calibration")
    # Drawn: questions of one page stand together.
    assert len(run.calibration) == 6 and run.calibration["id"] != calibration["id"][:6]
    run.choose_trainable(run.rank_by_importance())
    before = run.questions(4)
    run.drop(run.score())
    assert [row["scan"] for row in run.state.trajectory] == [2, 2] and run.drops_per_cycle == 1
    assert [batch["input_ids"].tolist() for batch in run.questions(4)] != [b["input_ids"].tolist() for b in before]
    unit = (SubLayer(1, "mlp"),)  # eliminated after one question of two
    whole = Score((), torch.tensor([1.0, 9.0]), torch.ones(2))
    run.record_scores(Ranking([Score(unit, torch.tensor([3.0]), torch.ones(1))], whole))
    told = run.context({})
    assert (told.drops, told.earlier) == (1, {unit: 2.0})


def test_the_accuracy_floor_is_a_share_of_the_run_s_own_accuracy(six):
    settings = settings_of(six[1], ACCURACY_FLOOR=0.9, START_FROM=None)
    student = Student(settings, six[1]["BASE_MODEL"], "bf16", torch.device("cpu"), torch.bfloat16)
    student.load()
    run = SimpleNamespace(settings=settings, student=student, state=State(reference={"accuracy": 0.0}))
    with pytest.raises(UserError, match="which is 0: train longer"):
        stop_reason(run, score(0.0))
    run.state.reference["accuracy"] = 0.5
    assert stop_reason(run, score(0.46)) is None and run.state.last_above_floor["units"] == 12
    assert "fell below 90% of 50.0%; the last depth above that had 12" in stop_reason(run, score(0.44))


def test_a_model_that_is_loaded_again_leaves_nothing_of_the_one_before(six):
    """An 8-bit optimizer registers the embeddings beside it for good: 0.26 GB of Llama-2-7B's a time."""
    student = Student(settings_of(six[1]), six[1]["BASE_MODEL"], "bf16", torch.device("cpu"), torch.bfloat16)
    student.load()
    embeddings = student.model.get_input_embeddings()
    GlobalOptimManager.get_instance().register_module_override(embeddings, "weight", {"optim_bits": 32})
    before = weakref.ref(embeddings)
    del embeddings
    student.load()
    assert before() is None


@pytest.mark.parametrize("update", ["full", "qlora"])
def test_a_run_that_fell_below_the_floor_returns_to_the_last_depth_above_it(six, update):
    changed = {"RUN": f"floor_{update}", "UPDATE": update, "CRITERION": "last", "ACCURACY_FLOOR": 0.9}
    changed |= {"START_FROM": None, "KL": 0.0, "HIDDEN_STATES": 0.0, "DROPS_EARLY": 1, "DROPS_LATE": 1}
    changed |= {"SAVE_EVERY": 1}
    run = method.open_run(settings_of(six[1], **changed), "sapling_train.py")
    run.choose_trainable(run.rank_by_importance())
    run.save_state()

    def drop_at(share):
        ranking = run.score()
        ranking.whole = score(share)
        run.drop(ranking)
        run.save_state()

    def train_to(share):
        for parameter in run.student.trained_parameters().values():
            parameter.data += 0.01  # what training would do
        run.save_state(trained=True)
        run.state.stopped = method.stop_reason(run, score(share))

    drop_at(0.5)
    run.state.reference = {"accuracy": 0.5}  # of before any drop: what is scored later is not it
    train_to(0.46)
    assert not run.state.stopped
    before = {name: parameter.clone() for name, parameter in run.student.trained_parameters().items()}
    left, kept = run.student.left, run.state.weights
    drop_at(0.46)
    train_to(0.44)
    method.save_on_the_way(run)
    assert "fell below" in run.state.stopped and run.student.left < left
    assert (run.directory / str(run.student.left)).exists()
    assert {path.name for path in run.directory.glob("state-*")} == {kept, run.state.weights}
    for _ in range(2):  # a killed run does it once more when it resumes
        method.return_above_floor(run)
        assert run.student.left == left == 10 and len(run.state.trajectory) == 1 and not run.state.trained
        assert not (run.directory / "8").exists()
        after = run.student.trained_parameters()
        assert set(after) == set(before) and all(torch.equal(after[name], before[name]) for name in before)
        assert State.read(run.directory) == run.state
