"""benchmarks/gpu_check.py on made-up records of a GPU: what was measured beside what was predicted, and a verdict."""

import made_up_runs as made
import pytest
from scripts import run_in_process

from fincompress import models, runs


@pytest.fixture
def results(tmp_path):
    for run, gb, context in (("qlora_4bit", 5.5, 0.4), ("lora_8bit", 9.4, 0.7), ("sapling", 6.0, 0.5)):
        peak = {"rss": 3.0, "vram_allocated": gb - 0.4, "vram_reserved": gb, "vram_used": gb + context}
        metrics = {"peak_memory_gb": peak, "tokens_seen": 600, "training_seconds": 2.0}
        runs.write_json(tmp_path / run / "train_metrics.json", metrics)
        runs.write_json(tmp_path / run / "settings.json", {"base_model": "shape:llama-2-7b"})
    names = ("QLoRA", "8-bit LoRA", "SAPLING, UPDATE = qlora, with its teacher")
    predicted = [{"phase": name, "cuda": 5.7, "cpu": 9.0} for name in names]
    runs.write_json(tmp_path / "predicted.json", {"memory": predicted})
    metrics = {"quantization_seconds": 50.0, "kernel": None, "peak_memory_gb": {"rss": 3.0, "vram_reserved": 2.0}}
    runs.write_json(tmp_path / "gptq_4bit" / "quantize_metrics.json", metrics | {"calibration_tokens": 240})
    runs.write_json(
        tmp_path / "gptq_4bit" / "settings.json", {"settings": {"CALIBRATION_EXAMPLES": 4, "BATCH_SIZE": 2}}
    )
    models.shape_config("shape:tiny").save_pretrained(tmp_path / "gptq_4bit")
    made.throughput(tmp_path, "qlora_4bit", 20.0)
    path = tmp_path / "qlora_4bit" / "throughput_cpu.json"
    runs.write_json(
        path, runs.read_json(path) | {"run": "qlora_4bit", "memory_gb": {"predicted": 4.0, "batch 1": {"rss": 4.5}}}
    )
    return tmp_path


def test_each_sentence_of_the_readme_holds_where_memory_stays_below_the_cap(results):
    done = run_in_process("benchmarks/gpu_check.py", f"--RESULTS_DIR={results}")
    assert done.returncode == 0, done.stderr
    record = runs.read_json(results / "gpu_check.json")
    assert [line.split(": ")[1].split(",")[0] for line in record["readme"]] == ["holds", "DOES NOT HOLD", "holds"]
    assert "6.0 GB, +5% of the prediction" in record["readme"][0]
    phases = {row["phase"]: row for row in record["rows"]}
    assert phases["train QLoRA"]["tokens/s"] == 300 and phases["decode qlora_4bit"]["tokens/s"] == pytest.approx(
        20, rel=0.05
    )
    assert phases["decode qlora_4bit"]["predicted GB"] == 4 and phases["decode qlora_4bit"]["measured GB"] == 4.5
    gptq = phases["GPTQ, 25 s a block"]
    assert gptq["kernel"] == "none" and gptq["measured GB"] == 2.5 and 0.5 < gptq["predicted GB"] < 0.51


def test_what_others_had_of_the_card_before_does_not_count(results):
    path = results / "lora_8bit" / "train_metrics.json"
    metrics = runs.read_json(path)
    path.unlink()
    runs.write_json(path, metrics | {"peak_memory_gb": {"rss": 3.0, "vram_reserved": 9.0, "vram_used": 11.5}})
    for before, outcome in ((0, "DOES NOT HOLD, 11.5 GB"), (2000, "holds, 9.5 GB")):
        done = run_in_process("benchmarks/gpu_check.py", f"--RESULTS_DIR={results}", f"--USED_BEFORE_MIB={before}")
        assert done.returncode == 0 and outcome in done.stdout


def test_another_model_confirms_no_sentence_of_the_readme(results):
    runs.write_json(results / "qlora_4bit" / "settings.json", {"base_model": "shape:tiny"})
    done = run_in_process("benchmarks/gpu_check.py", f"--RESULTS_DIR={results}", "--VRAM_CAP_GB=8")
    assert done.returncode == 0 and "Llama-2-7B on 8 GB:\n- nothing: this was shape:tiny" in done.stdout
    record = runs.read_json(results / "gpu_check.json")
    assert record["readme"] == [] and record["base_model"] == "shape:tiny" and len(record["rows"]) == 5


def test_a_phase_that_is_missing_is_one_line(tmp_path):
    done = run_in_process("benchmarks/gpu_check.py", f"--RESULTS_DIR={tmp_path}")
    assert done.returncode == 2 and "run 'qlora_4bit' does not exist" in done.stderr and done.stderr.count("\n") == 1
