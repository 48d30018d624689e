"""benchmark_throughput.py: who is compared, in which order, what the numbers mean, one bad model among good ones."""

import json
import shutil
import time
from dataclasses import replace
from pathlib import Path

import pandas as pd
import psutil
import pytest
import torch
from conftest import run_script
from transformers import AutoModelForCausalLM, LlamaConfig

from fincompress import memory, models, runs, throughput
from fincompress.errors import UserError
from fincompress.throughput import Entrant, Plan, Subject

QUICK = ("benchmark_throughput.py", "--ROUNDS=2", "--NEW_TOKENS=4", "--BATCH_SIZES=[2]", "--DATA_RUN=speed_data")


def plan(**changes):
    settings = {"lengths": {"fixed": 64}, "batch_sizes": [2], "rounds": 3, "new_tokens": 4, "max_seconds": 60.0,
                "results_dir": "results", "limit_gb": None}  # fmt: skip
    return Plan(**settings | changes)


def subject(run="a", **changes):
    return Subject(**{"run": run, "base_model": "shape:tiny", "path": "nowhere", "files": []} | changes)


# ----------------------------------------------------------------------------------------------------------- numbers


def test_what_slows_a_machine_down_for_longer_than_a_turn_cancels_in_the_ratio():
    dense, fast = Entrant(subject(), plan()), Entrant(subject(), plan())
    slowness = [1, 2, 4, 4, 2]  # of the machine in the turns dense, fast, dense, fast, dense
    dense.values = {"decode 1": [[0.1 * slow] * 4 for slow in slowness[::2]]}
    fast.values = {"decode 1": [[0.05 * slow] * 4 for slow in slowness[1::2]], "prefill 64": [1.0, 4.0]}
    pairs = zip(dense.values["decode 1"][:-1], dense.values["decode 1"][1:], strict=True)
    fast.beside = {"decode 1": list(pairs), "prefill 64": [(2.0, 2.0), (4.0, 16.0)]}
    assert throughput.rates(dense, "decode 1") == pytest.approx([10, 2.5, 5])
    assert throughput.ratios(fast, "decode 1") == pytest.approx([2, 2 / 2**0.5])
    assert throughput.rates(fast, "prefill 64") == [64, 16] and throughput.ratios(fast, "prefill 64") == [2, 2]


def test_a_machine_that_changes_between_rounds_is_told_of():
    assert throughput.unsteady(None) is None and throughput.unsteady(throughput.spread([41.0, 50.0, 44.0])) is None
    assert "moved 41 to 78 GB/s between rounds" in throughput.unsteady(throughput.spread([46.0, 78.0, 41.0]))


def test_a_batch_counts_every_sequence():
    entrant = Entrant(subject(), plan())
    entrant.values = {"decode 2": [[0.1, 0.1, 0.2, 0.1]]}
    assert throughput.rates(entrant, "decode 2") == pytest.approx([2 * 4 / 0.5])


def test_spread_of_nothing_is_nothing():
    entrant = Entrant(subject(), plan())
    entrant.values = {"prefill 64": [1.0]}  # the base model was not measured beside it
    assert throughput.spread([]) is None and throughput.ratios(entrant, "prefill 64") == []
    assert throughput.ratios(entrant, "decode 1") == throughput.rates(entrant, "decode 1") == []
    assert throughput.spread([3.0, 1.0, 2.0])["median"] == 2.0


# ------------------------------------------------------------------------------------------------------------ rounds


class FakeWorker:
    """Answers at once and notes the order in which workers are asked."""

    order: list = []
    seconds: dict = {}
    asked = 0

    def __init__(self):
        self.run = None
        self.process = type("P", (), {"poll": staticmethod(lambda: None)})

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
        seconds = FakeWorker.asked * 1e-3
        return {"load": {}, "bandwidth": {"bandwidth_gb_per_s": 50.0}, "peak": {"rss": 0.1},
                "prefill": {"seconds": seconds}, "decode": {"token_seconds": [seconds]}}[do]  # fmt: skip

    def close(self):
        FakeWorker.order.append((self.run, "close", None))


@pytest.fixture
def fake(monkeypatch):
    FakeWorker.order, FakeWorker.seconds, FakeWorker.asked = [], {}, 0
    monkeypatch.setattr(throughput, "WorkerProcess", FakeWorker)
    return FakeWorker


def test_models_take_turns_at_every_measure_the_base_model_before_and_after_every_two(fake):
    subjects = [subject(name) for name in ("base", "a", "b", "c")]
    entrants, failed = throughput.measure_all(subjects, plan(rounds=2), resident=True)
    assert not failed and [len(e.values["decode 2"]) for e in entrants.values()] == [6, 2, 2, 2]
    assert [entrant.bandwidth for entrant in entrants.values()] == [[50.0] * 2, [], [], []]
    probes = [i for i, (run, do, _) in enumerate(fake.order) if do == "bandwidth"]
    assert probes[1] - probes[0] == 1 + 6 * 3  # once a round, before it
    turns = [turn for turn in fake.order if turn[1] != "bandwidth"][-(6 * 3 * 2 + 4) : -4]
    assert [run for run, _, _ in turns] == ["base", "a", "b", "base", "c", "base"] * 6
    assert [(do, batch) for _, do, batch in turns[::6]] == [("prefill", None), ("decode", 1), ("decode", 2)] * 2
    base, *others = entrants.values()
    for one, before in zip(others, (0, 0, 1), strict=True):
        for name, turns in base.values.items():
            assert one.beside[name] == [(turns[i + before], turns[i + before + 1]) for i in (0, 3)]
    assert throughput.ratios(base, "decode 1") == pytest.approx([1] * 6)


def test_without_a_base_model_the_others_take_turns(fake):
    entrants, _ = throughput.measure_all([subject("a"), subject("b")], plan(rounds=2), resident=True)
    assert [run for run, _, _ in fake.order[-14:-2]] == ["a", "b"] * 6
    assert throughput.ratios(entrants["a"], "decode 1") == [] and len(throughput.rates(entrants["a"], "decode 1")) == 2


def test_models_that_do_not_fit_together_are_closed_before_the_next_is_loaded(fake):
    entrants, _ = throughput.measure_all([subject("base"), subject("b")], plan(rounds=2), resident=False)
    held = set()
    for run, do, _ in fake.order:
        held = held - {run} if do == "close" else held | {run}
        assert len(held) <= 1
    assert [len(e.loads) for e in entrants.values()] == [3, 3]
    base, b = entrants.values()
    assert [len(e.values["decode 1"]) for e in (base, b)] == [2, 2]
    assert b.beside["decode 1"] == [(turn, turn) for turn in base.values["decode 1"]]  # that of the same round


def test_one_bad_model_does_not_stop_the_others_nor_one_batch_its_model(fake):
    subjects = [subject("a"), subject("bad"), subject("c")]
    entrants, failed = throughput.measure_all(subjects, plan(batch_sizes=[64]), resident=True)
    assert list(entrants) == ["a", "c"] and failed == {"bad": "it is damaged"}
    assert entrants["a"].not_measured == {"decode 64": "out of memory"} and len(entrants["a"].values["decode 1"]) == 3


def test_a_slow_measure_is_taken_in_fewer_rounds(fake):
    fake.seconds = {("slow", "prefill"): 0.06}
    entrants, _ = throughput.measure_all([subject("a"), subject("slow")], plan(rounds=4, max_seconds=0.15), True)
    assert len(entrants["a"].values["prefill 64"]) == 4
    assert len(entrants["slow"].values["prefill 64"]) == 2 and len(entrants["slow"].values["decode 1"]) == 4


def test_a_slow_base_model_takes_fewer_rounds_and_the_others_are_in_relation_to_those(fake):
    fake.seconds = {("base", "prefill"): 0.06}
    subjects = [subject("base"), subject("a"), subject("b")]
    entrants, _ = throughput.measure_all(subjects, plan(rounds=4, max_seconds=0.15), resident=True)
    base, a, b = entrants.values()
    assert len(base.values["prefill 64"]) == 2 * 2 and len(base.values["decode 1"]) == 2 * 4
    for one in (a, b):
        assert len(one.values["prefill 64"]) == 4 and len(throughput.ratios(one, "prefill 64")) == 2
        turns = base.values["prefill 64"]
        assert one.beside["prefill 64"] == [(turns[0], turns[1]), (turns[2], turns[3])]


def test_a_base_model_that_fails_midway_leaves_the_others_without_ratios(fake, monkeypatch):
    measure = Entrant.measure

    def failing(self, names, number):
        if self.subject.run == "base" and number == 1:
            raise UserError("out of memory")
        return measure(self, names, number)

    monkeypatch.setattr(Entrant, "measure", failing)
    entrants, failed = throughput.measure_all([subject("base"), subject("a")], plan(rounds=3), resident=True)
    assert failed == {"base": "out of memory"} and list(entrants) == ["a"]
    a = entrants["a"]
    assert len(a.values["decode 1"]) == 3 and len(throughput.ratios(a, "decode 1")) == 1  # record() then gives none


def test_a_process_that_dies_says_so_and_a_sleeping_one_does_not_spin(monkeypatch):
    monkeypatch.setenv("GOMP_SPINCOUNT", "500")
    worker = throughput.WorkerProcess()
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


# ------------------------------------------------------------------------------------------------------------ worker


@pytest.fixture
def worker(tiny_base):
    worker = throughput.Worker()
    found = worker.load(subject=vars(subject(path=tiny_base)), results_dir="results", limit_gb=None)
    return worker, found


def test_decoding_is_greedy_as_generate_does_it_and_starts_from_the_same_prompt_every_time(worker, monkeypatch):
    worker, _ = worker
    seen = []
    original = type(worker.model).forward

    def forward(self, *arguments, **named):
        seen.append(named["input_ids"])
        return original(self, *arguments, **named)

    monkeypatch.setattr(type(worker.model), "forward", forward)
    for _ in range(2):
        assert len(worker.decode(context=64, batch=2, new_tokens=5)["token_seconds"]) == 5
    prompt, first, second = seen[0], seen[1:7], seen[7:]
    assert len(seen) == 13 and all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    monkeypatch.undo()
    expected = worker.model.generate(
        prompt, attention_mask=torch.ones_like(prompt), do_sample=False, min_new_tokens=6, max_new_tokens=6
    )
    # Suppressing EOS for min_new_tokens changes nothing unless EOS came first, which the seed rules out.
    assert torch.cat(first, 1)[0].tolist() == torch.cat(first, 1)[1].tolist() == expected[0, 64:].tolist()
    assert worker.contexts[64][0].get_seq_length() == 64


def test_bytes_per_token_leave_out_an_embedding_table_that_is_not_the_head(tmp_path, tiny_base):
    for tied in (True, False):
        config = LlamaConfig(**models.SHAPES["tiny"] | {"tie_word_embeddings": tied})
        folder = tmp_path / str(tied)
        models.write_checkpoint(
            folder, AutoModelForCausalLM.from_config(config), models.load_tokenizer(tiny_base), torch.float32
        )
        worker = throughput.Worker()
        found = worker.load(
            vars(subject(path=str(folder), files=throughput.weight_files(str(folder)))), "results", None
        )
        table = 2048 * 64 * worker.dtype.itemsize
        held = round(found["in_memory_gb"] * 1e9)
        assert held - found["bytes_per_token"] == (0 if tied else table)


def test_packed_weights_count_with_their_scales_and_parameters_as_if_dense(tiny_base):
    cpu = torch.device("cpu")
    model = models.load_base(tiny_base, "nf4", cpu, torch.bfloat16, packed=True)
    packed = [m for m in model.modules() if type(m).__name__ == "Linear4bit"]
    weights = sum(m.in_features * m.out_features for m in packed)
    found = sum(throughput.tensor_bytes(m.weight) for m in packed)
    assert 0.5 * weights < found < 0.75 * weights  # tiny matrices: the codebook of 256 scales weighs as well
    dense = models.load_base(tiny_base, "auto", cpu, torch.bfloat16)
    assert memory.parameter_sizes(model.config)["total"] == sum(p.numel() for p in dense.parameters())
    assert throughput.kernel(model).startswith("Linear4bit") and throughput.kernel(dense).startswith("Linear bfloat16")


def test_gptq_s_file_is_let_go_once_the_kernel_has_packed_its_weights(tmp_path, tiny_base, monkeypatch):
    base = subject(path=tiny_base, files=throughput.weight_files(tiny_base))
    folder = tmp_path / "tiny"
    shutil.copytree(tiny_base, folder)
    (packed,) = throughput.variant_subjects(replace(base, path=str(folder)), ["gptq"], str(tmp_path))

    def mapped():
        return packed.files[0] in Path("/proc/self/maps").read_text()

    worker = throughput.Worker()
    worker.load(vars(packed), str(tmp_path), None)
    assert not mapped()
    monkeypatch.setattr(throughput.memory, "release_files", lambda model: None)
    worker.load(vars(packed), str(tmp_path), None)
    assert mapped()  # or the file would be let go anyhow


# -------------------------------------------------------------------------------------------------------- who and fit


@pytest.fixture
def finished(tmp_path, tiny_base):
    """A results directory with runs of every kind, each of them the tiny base model under another name."""

    def make(run, weights=True, base_model="shape:tiny", data_run="speed_data"):
        folder = tmp_path / run
        shutil.copytree(tiny_base, folder) if weights else folder.mkdir(parents=True, exist_ok=True)
        record = {"base_model": base_model, "base_precision": "auto", "settings": {"DATA_RUN": data_run}}
        runs.write_json(folder / "settings.json", record)
        runs.write_json(folder / "train_metrics.json", {})

    (tmp_path / "base_models").mkdir()
    shutil.copytree(tiny_base, tmp_path / "base_models" / "shape-tiny")
    for depth in ("4", "12"):
        make(f"sapling/{depth}")
    make("sapling", weights=False)
    make("other", base_model="shape:llama-160m")
    make("sapling/.2.99.partial")
    (tmp_path / "unfinished").mkdir()
    return tmp_path


def test_every_finished_run_of_the_base_model_is_found(finished, capsys):
    shutil.copytree(finished / "sapling" / "4", finished / "sapling" / "4" / "merged")
    found = throughput.find_subjects(str(finished), None, "shape:tiny", "speed_data", [])
    assert [s.run for s in found] == ["base", "sapling/4", "sapling/4/merged", "sapling/12"]
    assert "other: left out, it is of shape:llama-160m" in capsys.readouterr().out


def test_named_runs_bring_their_base_model_and_must_agree(finished):
    found = throughput.find_subjects(str(finished), ["sapling/4"], "smollm2-135m", "data", [])
    assert [(s.run, s.base_model, s.data_run) for s in found] == [
        ("base", "shape:tiny", "speed_data"), ("sapling/4", "shape:tiny", "speed_data")
    ]  # fmt: skip
    for names, says in (
        (["sapling/4", "other"], "more than one base model"),
        (["unfinished"], "is not finished"),
        (["nothing"], "does not exist"),
        (["sapling"], "name one of its depths"),
    ):
        with pytest.raises(UserError, match=says):
            throughput.find_subjects(str(finished), names, "shape:tiny", "speed_data", [])


def test_variants_of_a_shape_are_nf4_gptq_and_a_single_block(finished):
    found = throughput.find_subjects(str(finished), [], "shape:tiny", "speed_data", None)
    assert [s.run for s in found] == ["base", "base-nf4", "base-gptq", "base-blocks1"]
    dense, nf4, gptq, one = found
    assert nf4.size_gb < dense.size_gb > one.size_gb and gptq.size_gb < dense.size_gb and gptq.precision == "gptq"
    with pytest.raises(UserError, match="'blocks:<n>' with n up to 2"):
        throughput.find_subjects(str(finished), [], "shape:tiny", "speed_data", ["blocks:3"])


@pytest.mark.parametrize(
    ("changes", "too_large", "placement", "says"),
    [
        ({"predicted_gb": 9.4}, "offload", "as it is", None),
        ({"predicted_gb": 13.5}, "offload", "offload", "offloaded to the CPU"),
        ({"predicted_gb": 13.5}, "nf4", "nf4", "measured in 4 bits"),
    ],
)
def test_a_model_that_does_not_fit_the_card_is_labelled(changes, too_large, placement, says):
    one = subject(**changes)
    label = throughput.place(one, 10.0, too_large, lambda subject, precision: 4.0)
    assert one.placement == placement
    assert label is None if says is None else says in label and "does not fit 10 GB" in label


def test_what_fits_in_no_way_is_one_line():
    with pytest.raises(UserError, match="nor does it in 4 bits"):
        throughput.place(subject(predicted_gb=130.0), 10.0, "nf4", lambda subject, precision: 40.0)
    with pytest.raises(UserError, match="in few bits already"):
        throughput.place(subject(predicted_gb=13.0, precision="gptq"), 10.0, "offload", lambda *_: 4.0)


# -------------------------------------------------------------------------------------------------------- the script


def test_the_script_measures_what_it_can_and_says_what_it_cannot(finished):
    report = {"splits": {"dev": {"prompt_tokens": {"p50": 40, "p95": 70}}, "train": {}}}
    (finished / "speed_data").mkdir()
    runs.write_json(finished / "speed_data" / "data_report.json", report)
    data = {"source": "synthetic", "fingerprint": "f"}
    runs.write_json(finished / "speed_data" / "settings.json", {"data": data})
    (finished / "sapling" / "12" / "model.safetensors").write_bytes(b"\x00" * 100)  # damaged
    environment = {"BASE_MODEL": "shape:tiny", "RESULTS_DIR": finished}
    done = run_script(*QUICK, "--VARIANTS=['nf4', 'gptq', 'blocks:1']", **environment)
    assert done.returncode == 0, done.stderr
    last = json.loads(done.stdout.splitlines()[-1])
    measured = ["base", "sapling/4", "base-nf4", "base-gptq", "base-blocks1"]
    assert list(last["runs"]) == measured and list(last["not_measured"]) == ["sapling/12"]
    assert "sapling/12: not measured" in done.stdout + done.stderr and "VRAM_LIMIT_GB does not apply" in done.stdout
    assert last["runs"]["base"]["decode_ratio"] == 1

    found = runs.read_json(finished / "sapling" / "4" / "throughput_cpu.json")
    assert found["data"] == data and found["reference"] == "base" and found["vram_limit_gb"] is None
    assert {k: v["prompt_tokens"] for k, v in found["prefill"].items()} == {"median": 40, "p95": 70, "fixed": 512}
    assert len(found["decode"]["1"]["tokens_per_s"]["rounds"]) == 2 and set(found["decode"]) == {"1", "2"}
    assert found["parameters"] == 2 * 2048 * 64 + 2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128 + 2 * 64) + 64
    assert len(found["ceiling"]["bandwidth_of_rounds"]["rounds"]) == 2
    assert found["threads"] >= 1 and found["kernel"].endswith("attention sdpa")
    wider = models.pick_dtype(torch.device("cpu"))[0].itemsize / 2  # than on disk, where the CPU has no bf16
    assert wider * found["on_disk_gb"] == pytest.approx(found["in_memory_gb"], rel=0.05)
    assert not (finished / "sapling" / "12" / "throughput_cpu.json").exists()
    table = pd.read_csv(finished / "throughput.csv")
    assert sorted(table["run"]) == sorted(measured) and set(table["device"]) == {"cpu"}
    kernels = dict(zip(table["run"], table["kernel"], strict=True))
    gptq = runs.read_json(finished / "base-gptq" / "throughput_cpu.json")
    assert gptq["resident"] is True
    assert kernels["base-nf4"].startswith("NF4 unpacked once: Linear") and "Linear " not in kernels["base-gptq"]
    assert (table["decode_batch1_ratio"] > 0).all() and (table["data_fingerprint"] == "f").all()

    # Named or not, what cannot be measured does not keep the others from the table and the charts that come next.
    named = run_script(*QUICK, "--RUNS=['sapling/12']", "--VARIANTS=[]", **environment)
    assert named.returncode == 0 and "sapling/12: not measured" in named.stdout + named.stderr


def test_predictions_need_no_weights(tmp_path):
    done = run_script(
        "benchmark_throughput.py", "--PREDICT=True", "--BASE_MODEL=shape:llama-2-7b", RESULTS_DIR=tmp_path
    )
    assert done.returncode == 0, done.stderr
    rows = {row["method"]: row for row in json.loads(done.stdout.splitlines()[-1])["predicted"]}
    assert rows["train QLoRA (NF4 base)"]["fits"] and not rows["decode in 16 bits"]["fits"]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--RUNS=['nothing']",), "'nothing' does not exist"),
        (("--RUNS=[1]",), "RUNS are names"),
        (("--BASE_MODEL=shape:llama",), "there is no shape 'llama'"),
        (("--BATCH_SIZES=[0]",), "BATCH_SIZES are whole numbers"),
        (("--ROUNDS=0",), "ROUNDS must be above 0"),
        (("--TOO_LARGE=nf5",), "did you mean 'nf4'"),
        (("--VARIANTS=['int3']",), "VARIANTS has 'int3'"),
    ],
)
def test_bad_input_is_one_line_and_status_2(tmp_path, arguments, says):
    done = run_script("benchmark_throughput.py", *arguments, RESULTS_DIR=tmp_path, BASE_MODEL="shape:tiny")
    assert done.returncode == 2 and says in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert not list(tmp_path.rglob("throughput*"))


def test_a_record_of_another_version_is_left_out_of_the_table(tmp_path, capsys):
    for run, record in {"a": '{"run": "a", "device": "cpu"}', "b": "[]", "c": "{"}.items():
        (tmp_path / run).mkdir()
        (tmp_path / run / "throughput_cpu.json").write_text(record)
    assert throughput.table(str(tmp_path)) == []
    assert capsys.readouterr().out.count("left out of throughput.csv") == 3
