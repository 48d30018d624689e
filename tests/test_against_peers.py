"""benchmarks/against_peers.py on a tiny model: whose turn it is, ratios, equal losses, and a missing package."""

import json
import runpy
import sys

import pytest
import torch
from scripts import run_in_process

SCRIPT = "benchmarks/against_peers.py"
FEW = ("--RUN=base", "--DATA_RUN=peers_data", "--EXAMPLES=8", "--QUESTIONS=4", "--PLAIN_QUESTIONS=2", "--ROUNDS=1",
       "--MAX_NEW_TOKENS=6", "--TOKENS=128")  # fmt: skip
CPU = torch.device("cpu")


@pytest.fixture
def script():
    return runpy.run_path(SCRIPT)


@pytest.fixture(scope="module")
def data(results_dir):
    arguments = ("--TRAIN_EXAMPLES=12", "--CALIBRATION_EXAMPLES=8", "--EVAL_EXAMPLES=4", "--EVIDENCE_TOKENS=40")
    environment = {"BASE_MODEL": "shape:tiny", "DATA_DIR": "synthetic", "RESULTS_DIR": str(results_dir)}
    done = run_in_process("preprocess_data.py", "--RUN=peers_data", *arguments, **environment)
    assert done.returncode == 0, done.stderr
    return str(results_dir)


def compare(data, *arguments):
    return run_in_process(SCRIPT, *FEW, *arguments, BASE_MODEL="shape:tiny", RESULTS_DIR=data)


def test_every_turn_of_a_peer_lies_between_two_of_the_first(script):
    taken = []

    def contestant(name, items):
        def take():
            taken.append(name)
            torch.ones(4, 4) @ torch.ones(4, 4)  # a ceiling needs FLOPs
            return items, 2.0, 1.0

        return script["Contestant"](take, weights_gb=0.5)

    contestants = {"first": contestant("first", 8), "second": contestant("second", 4), "third": contestant("third", 2)}
    script["take_turns"](contestants, "training")
    assert taken == ["first", "second", "third"] * (script["ROUNDS"] + 1) + ["first"]
    assert [len(c.rates) for c in contestants.values()] == [4, 3, 3]  # the first turns are not recorded
    row = script["summary"](contestants, "training", {"tflops": 1.0, "bandwidth_gb_per_s": 1.0})["third"]
    assert row["examples_per_s"]["median"] == 1 and row["ratio"]["rounds"] == [4, 4, 4]


def test_a_ratio_is_to_the_turns_on_both_sides(script):
    assert script["ratios"]([4.0, 9.0, 1.0], [2.0, 3.0]) == pytest.approx([3.0, 1.0])


def test_the_ceiling_is_the_slower_of_arithmetic_and_memory(script):
    fast = script["Contestant"](None, 0.0, [2.0, 2.0], 1.0, gflop=100.0, gb=0.1)
    slow = script["Contestant"](None, 0.0, [2.0], 1.0, gflop=100.0, gb=2.0)
    card = {"tflops": 1.0, "bandwidth_gb_per_s": 10.0}
    rows = script["summary"]({"fast": fast, "slow": slow}, "training", card)
    assert rows["fast"]["ceiling_per_s"] == pytest.approx(10) and rows["fast"]["reached"] == pytest.approx(0.2)
    assert rows["slow"]["ceiling_per_s"] == pytest.approx(5) and rows["slow"]["loss_difference"] == 0


def test_flops_and_passes_of_a_turn_are_counted(script):
    embedding, linear = torch.nn.Embedding(7, 8), torch.nn.Linear(8, 16, bias=False)

    def take():
        for _ in range(3):
            linear(embedding(torch.zeros(5, dtype=torch.long)))

    contestant = script["Contestant"](take, weights_gb=0.5)
    with script["counted"](contestant):
        take()
    assert contestant.gflop * 1e9 == pytest.approx(3 * 2 * 5 * 8 * 16) and contestant.gb == 1.5
    query = torch.zeros(2, 4, 10, 8)
    with script["counted"](contestant):
        torch.nn.functional.scaled_dot_product_attention(query, query, query)
    assert contestant.gflop * 1e9 == pytest.approx(2 * 2 * 2 * 4 * 10 * 10 * 8)


def test_outputs_are_compared_as_far_as_both_go(script):
    assert script["compared"](["a", "b", "c"], ["a", "x"]) == {"equal": 1, "outputs": 2}


def test_padding_to_the_full_width_trains_to_the_same_loss(script, data, monkeypatch):
    names = script["trainings"].__globals__
    for name, value in {"BASE_MODEL": "shape:tiny", "RESULTS_DIR": data, "DATA_RUN": "peers_data", "EXAMPLES": 8,
                        "TOKENS": 128}.items():  # fmt: skip
        monkeypatch.setitem(names, name, value)
    contestants = script["trainings"](CPU, torch.float32)
    (items, seconds, loss), (_, _, padded) = (contestants[name].take() for name in ("this project", "padded to 128"))
    assert items == 8 and seconds > 0
    assert padded == pytest.approx(loss, abs=1e-5)


@pytest.mark.parametrize(("module", "package"), [("trl", "trl"), ("lm_eval", "lm-eval")])
def test_a_missing_package_is_one_line(monkeypatch, tmp_path, module, package):
    monkeypatch.setitem(sys.modules, module, None)
    part = {"trl": "training", "lm_eval": "evaluation"}[module]
    done = compare(tmp_path, f'--PARTS=["{part}"]')
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {package} cannot be imported") and done.stderr.count("\n") == 1


def test_all_peers_do_the_same_work(data):
    pytest.importorskip("trl", reason="trl is not installed: pip install trl")
    pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install lm-eval")
    done = compare(data)
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout.splitlines()[-1])
    assert all(abs(row["loss_difference"]) < 1e-3 for row in results["training"].values())
    assert results["evaluation"]["this project"]["equal"] == results["evaluation"]["this project"]["outputs"] == 4
    assert {row["outputs"] for row in results["evaluation"].values()} == {4, 2}
