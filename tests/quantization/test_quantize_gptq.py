"""quantize_gptq.py: runs it leaves, texts it calibrates on, a kill, and what it refuses."""

import errno
import os
from unittest.mock import Mock

import datasets
import llama_cpp
import pytest
import torch
from safetensors.torch import load_file
from scripts import run_and_kill, run_in_process

import evaluate
import preprocess_data
import quantize_gptq
import train_lora_8bit
import train_qlora_4bit
from fincompress import quantization, runs
from fincompress.benchmark import subjects
from fincompress.errors import UserError
from fincompress.quantization import gguf
from fincompress.report import table

LORA = {"BASE_MODEL": "shape:tiny", "DATA_RUN": "quantization_data", "BATCH_SIZE": 4, "LOGGING_STEPS": 1,
        "SAVE_STEPS": 1, "LORA_RANK": 4, "MAX_STEPS": 4}  # fmt: skip


def run_main(script, **constants):
    """A script's ``main`` with these constants, as if they stood at its top."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in constants.items():
            patch.setattr(script, name, value)
        if hasattr(script, "SETTINGS"):
            patch.setattr(script, "SETTINGS", script.SETTINGS | constants)
        script.main()


@pytest.fixture(scope="module")
def results(results_dir, tiny_base):
    """A results directory with an 8-bit LoRA run of shape:tiny, ``source``, and its merged weights."""
    run_main(
        preprocess_data, BASE_MODEL="shape:tiny", DATA_DIR="synthetic", RESULTS_DIR=str(results_dir),
        RUN="quantization_data", TRAIN_EXAMPLES=48, CALIBRATION_EXAMPLES=8, EVAL_EXAMPLES=8, EVIDENCE_TOKENS=64,
        MAX_PROMPT_TOKENS=200,
    )  # fmt: skip
    run_main(train_lora_8bit, RESULTS_DIR=str(results_dir), RUN="source", **LORA)
    return results_dir


@pytest.fixture
def quantize(results):
    """Run quantize_gptq.py on ``source`` with overrides."""

    def call(**constants):
        common = {"RESULTS_DIR": str(results), "SOURCE_RUN": "source/merged", "CALIBRATION_EXAMPLES": 16}
        run_main(quantize_gptq, **(common | constants))

    return call


@pytest.fixture(scope="module")
def q4(results):
    """A run of GPTQ as the command line makes it, and what it printed."""
    done = run_in_process(
        "quantize_gptq.py", "--SOURCE_RUN=source/merged", "--RUN=q4", "--CALIBRATION_EXAMPLES=16", RESULTS_DIR=results
    )
    assert done.returncode == 0, done.stderr
    return results / "q4", done.stdout + done.stderr


def test_a_run_is_quantized_evaluated_and_reported(results, q4):
    folder, printed = q4
    assert len(printed.splitlines()) < 30  # and not gptqmodel's thousands
    metrics = runs.read_json(folder / "quantize_metrics.json")
    assert metrics["group_size"] == 64 and metrics["kernel"] and metrics["quantization_seconds"] > 0
    assert metrics["blocks_after_gb"] < 0.3 * metrics["blocks_before_gb"] and metrics["calibration_tokens"] > 0
    assert (folder / "quant_log.csv").read_text().count("\n") == 15  # 14 layers
    record = runs.read_json(folder / "settings.json")
    assert (record["settings"]["METHOD"], record["base_precision"]) == ("gptq", "gptq-4bit")
    assert record["step"] == "GPTQ 4-bit" and [step["run"] for step in record["lineage"]] == ["source/merged"]
    for run in ("source/merged", "q4"):
        run_main(evaluate, RESULTS_DIR=str(results), BASE_MODEL="shape:tiny", RUN=run, MAX_NEW_TOKENS=8)
    rows = table.read(str(results), ["dev"]).set_index("run")
    assert rows.loc["q4", "method"] == "8-bit LoRA fine-tuned + GPTQ 4-bit" and rows.loc["q4", "series"] == "+ GPTQ"
    assert rows.loc["q4", "size_gb"] < rows.loc["source/merged", "size_gb"] and (rows["questions"] == 8).all()


def test_rounding_to_nearest_reads_no_texts_and_is_reported_as_such(results, quantize, capsys):
    quantize(RUN="q4_rtn", METHOD="rtn", CALIBRATION_EXAMPLES=10**6)  # of which none is read
    printed = capsys.readouterr().out
    assert "rtn, 4 bits, groups of 64 (128 does not divide every input width), no calibration" in printed
    record = runs.read_json(results / "q4_rtn" / "settings.json")
    assert (record["settings"]["METHOD"], record["base_precision"]) == ("rtn", "rtn-4bit")
    metrics = runs.read_json(results / "q4_rtn" / "quantize_metrics.json")
    assert metrics["calibration_tokens"] == 0 and metrics["kernel"]
    assert record["step"] == "RTN 4-bit"


@pytest.mark.parametrize(("script", "precision"), [(train_lora_8bit, "8bit"), (train_qlora_4bit, "4bit")])
def test_recomputing_activations_trains_the_same(results, script, precision):
    """As on a GPU by default; int8 takes another kind of checkpointing than NF4, in which gradients can get lost."""
    names = ["source", "recomputed_8bit"] if precision == "8bit" else ["source_4bit", "recomputed_4bit"]
    for run, recompute in zip(names, (False, True), strict=True):
        if run != "source":  # which is there
            run_main(script, RESULTS_DIR=str(results), RUN=run, GRADIENT_CHECKPOINTING=recompute, **LORA)
    adapters = [load_file(results / run / "adapter" / "adapter_model.safetensors") for run in names]
    assert all(torch.allclose(adapters[0][name], value, atol=1e-6) for name, value in adapters[1].items())
    assert any(value.abs().max() > 0 for name, value in adapters[1].items() if "lora_B" in name)


def test_what_gptqmodel_still_writes_at_the_end_costs_no_quantized_model(results, quantize, monkeypatch):
    busy, rmdir = [], os.rmdir

    def not_empty(path, **options):
        if ".offload-" in str(path) and not busy:
            busy.append(path)
            raise OSError(errno.ENOTEMPTY, "Directory not empty")
        rmdir(path, **options)

    monkeypatch.setattr(os, "rmdir", not_empty)
    quantize(RUN="busy", METHOD="rtn")
    assert busy and (results / "busy" / "quantize_metrics.json").exists() and not list((results / "busy").glob(".*"))


@pytest.mark.real
def test_a_killed_run_leaves_nothing_behind_once_it_is_started_again(results, quantize):
    constants = {"SOURCE_RUN": "source", "RUN": "killed_q4", "CALIBRATION_EXAMPLES": 16}
    command = ("quantize_gptq.py", *(f"--{name}={value}" for name, value in constants.items()))
    run_and_kill("fincompress.quantization:Method", "run", 1, *command, RESULTS_DIR=results)
    assert (
        list((results / "killed_q4").glob(".offload-*"))
        and not (results / "killed_q4" / "quantize_metrics.json").exists()
    )
    (results / "killed_q4" / ".checkpoint.partial").mkdir(exist_ok=True)
    quantize(**constants)
    assert not [path.name for path in (results / "killed_q4").iterdir() if path.name.startswith(".")]
    assert (results / "killed_q4" / "quantize_metrics.json").exists()


def test_a_failure_leaves_nothing_that_would_refuse_corrected_constants(results, quantize, monkeypatch):
    def fail(*arguments):
        arguments[-1].write_text("what led to it")
        raise UserError("no kernel")

    monkeypatch.setattr(quantization.Method, "quantize", fail)
    with pytest.raises(UserError, match="no kernel"):
        quantize(RUN="bad")
    assert not (results / "bad").exists()
    assert (results / "bad.log").read_text() == "what led to it"


@pytest.mark.parametrize("failure", [KeyboardInterrupt, torch.OutOfMemoryError])
def test_a_model_that_could_not_be_tried_out_is_kept_and_one_that_computes_nothing_is_not(
    results, quantize, monkeypatch, capsys, failure
):
    constants = {"RUN": f"tried_{failure.__name__}", "METHOD": "rtn"}
    with monkeypatch.context() as patch, pytest.raises(UserError, match="computes no numbers"):
        patch.setattr(quantization.Method, "computes", lambda *arguments: False)
        quantize(**constants)
    assert not (results / constants["RUN"]).exists()
    with monkeypatch.context() as patch, pytest.raises(failure):
        patch.setattr(quantization.Method, "computes", Mock(side_effect=failure))
        quantize(**constants)
    assert load_file(results / constants["RUN"] / "model.safetensors")
    capsys.readouterr()
    quantize(**constants)
    assert "finished already, skipped" in capsys.readouterr().out


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"{}"])
@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer.json"])
def test_a_damaged_source_is_one_line_and_begins_nothing(results, quantize, file, damage):
    path = results / "source" / "merged" / file
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    try:
        with pytest.raises(UserError, match="is damaged"):
            quantize(RUN="bad")
    finally:
        path.write_bytes(whole)
    assert not (results / "bad").exists()


@pytest.mark.parametrize(
    ("constants", "message"),
    [
        ({"SOURCE_RUN": "nowhere"}, "does not exist"),
        ({"SOURCE_RUN": "quantization_data"}, "is not finished"),
        ({"SOURCE_RUN": "unmerged"}, "no weights in 16 bits"),
        ({"SOURCE_RUN": "already"}, "quantized already"),
        ({"METHOD": "gptx"}, "METHOD is one of 'awq', .*'gptq', 'rtn', not 'gptx'; did you mean 'gptq'"),
        ({"BITS": 5}, "BITS = 5: METHOD = 'gptq' takes 2, 3, 4, 8"),
        ({"GROUP_SIZE": 7}, "GROUP_SIZE = 7: METHOD = 'gptq' takes -1, 1024"),
    ],
)
def test_bad_input_is_refused_and_leaves_nothing(results, quantize, constants, message):
    runs.write_json(results / "unmerged" / "train_metrics.json", {})
    runs.write_json(results / "already" / "train_metrics.json", {})
    runs.write_json(results / "already" / "config.json", {"quantization_config": {"quant_method": "gptq"}})
    with pytest.raises(UserError, match=message) as refusal:
        quantize(RUN="bad", **constants)
    assert "\n" not in str(refusal.value)
    assert not (results / "bad").exists()


def split_texts(results, split):
    rows = datasets.load_from_disk(str(results / "quantization_data" / split))
    return {tuple(ids) for ids in rows["input_ids"]}


@pytest.mark.parametrize(("asked", "taken"), [(40, 40), (49, 48)])  # of 48
def test_calibration_texts_are_training_prompts_with_their_targets(results, monkeypatch, capsys, asked, taken):
    monkeypatch.setattr(quantize_gptq, "RESULTS_DIR", str(results))
    monkeypatch.setattr(quantize_gptq, "CALIBRATION_EXAMPLES", asked)
    record = runs.read_json(results / "source" / "settings.json")
    texts = {tuple(ids) for ids in quantize_gptq.calibration_texts(record, "source")}
    assert len(texts) == taken and texts <= split_texts(results, "train")
    assert ("has 48 training texts" in capsys.readouterr().out) == (asked > 48)
    assert not any(texts & split_texts(results, split) for split in ("calibration", "dev", "test"))


def test_a_file_of_llama_cpp_is_a_quantized_run_that_asks_for_its_binding(results, quantize, tmp_path, capsys):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gguf, "installed", lambda package: package == "sentencepiece")
        sources = llama_cpp.stand_in(tmp_path / "cpp", results / "source" / "merged")
        quantize(METHOD="q4_k_m", RUN="file", LLAMA_CPP=sources)
        assert "groups of 32, no calibration" in (printed := capsys.readouterr().out)
        assert "cannot be run here" in printed and "needs the package xllamacpp" in printed
        with pytest.raises(UserError, match="needs the package xllamacpp"):
            run_main(evaluate, RESULTS_DIR=str(results), BASE_MODEL="shape:tiny", RUN="file", MAX_NEW_TOKENS=8)
    metrics, record = (runs.read_json(results / "file" / f"{name}.json") for name in ("quantize_metrics", "settings"))
    assert metrics["size_after_gb"] == pytest.approx(2 * metrics["size_before_gb"], rel=0.01)  # 32 bits of 16
    assert metrics["kernel"] is None
    assert record["base_precision"] == "q4_k_m-4bit" and "LLAMA_CPP" not in record["settings"]
    assert "Q4_K_M" in record["step"] and [step["run"] for step in record["lineage"]] == ["source/merged"]
    subject = subjects.run_subject(str(results), "file")
    assert subject.precision == "q4_k_m-4bit"
    assert subject.size_gb > metrics["size_after_gb"]  # the vocabulary lies in it too
