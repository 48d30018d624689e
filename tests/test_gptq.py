"""GPTQ: closer than rounding on what it was calibrated on, a checkpoint that anyone can load, and refusals."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import REPOSITORY, run_script
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig

from fincompress import comparison, gptq, memory, models, runs
from fincompress.benchmark.subjects import Subject, weight_files
from fincompress.benchmark.worker import Worker
from fincompress.errors import NoKernel, UserError

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def texts():
    """Token ids with some structure, so that activations are correlated as those of text are."""
    generator = torch.Generator().manual_seed(0)
    pool = torch.randint(10, 2000, (40, 8), generator=generator)
    return [pool[torch.randint(40, (12,), generator=generator)].flatten().tolist() for _ in range(64)]


@pytest.fixture(scope="module")
def quantized(tiny_base, texts, tmp_path_factory):
    """The folder of ``shape:tiny``, quantized to 4 bits in groups of 64, in float32 as on a CPU without bf16."""
    folder = tmp_path_factory.mktemp("gptq")
    before, store_in = sorted(os.listdir()), gptq.store_in
    computed_in = []

    def look_first(directory, dtype):
        computed_in.append(load_file(directory / "model.safetensors")["model.embed_tokens.weight"].dtype)
        store_in(directory, dtype)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gptq, "store_in", look_first)
        gptq.quantize(tiny_base, folder / "out", texts, 4, 64, False, 0.05, 8, CPU, torch.float32, folder / "log")
    assert computed_in == [torch.float32]
    assert sorted(os.listdir()) == before  # gptqmodel's logs/ does not land where one works
    return folder / "out"


def dense(path):
    return models.load_base(str(path), "bf16", CPU, torch.bfloat16).eval()


def linears(model):
    return {name: m for name, m in model.model.named_modules() if isinstance(m, torch.nn.Linear)}


def round_to_nearest(weight, group_size=64):
    """Symmetric 4-bit rounding, a scale for each group of a row: GPTQ's grid without GPTQ."""
    groups = weight.float().reshape(weight.shape[0], -1, group_size)
    scale = 2 * groups.abs().amax(-1, keepdim=True) / 15
    return ((groups / scale).round().clamp(-8, 7) * scale).reshape(weight.shape)


def test_gptq_is_closer_than_rounding_on_its_calibration_texts(tiny_base, quantized, texts):
    source, packed = dense(tiny_base), dense(quantized)
    inputs = {}
    for name, module in linears(source).items():
        module.register_forward_hook(lambda m, args, out, name=name: inputs.__setitem__(name, args[0].flatten(0, 1)))
    with torch.no_grad():
        source(torch.tensor(texts))
    assert len(inputs) == 14
    better = 0
    for name, module in linears(source).items():
        weight, seen = module.weight.float(), inputs[name].float()
        found = linears(packed)[name].weight.float()
        nearest = round_to_nearest(weight)
        # Close to the source: within twice the mean squared error of rounding, weight by weight ...
        assert (found - weight).square().mean() < 2 * (nearest - weight).square().mean()
        # ... and nearer than rounding where it matters, in what the layer computes.
        errors = [(seen @ (one - weight).T).square().mean() for one in (found, nearest)]
        better += bool(errors[0] < errors[1])
    assert better == 14


def test_kernel_and_unpacked_weights_compute_alike(tiny_base, quantized, texts):
    with torch.no_grad():
        packed = models.load_base(str(quantized), "auto", CPU, torch.bfloat16, packed=True).eval()
        assert gptq.kernel(packed) is not None and gptq.kernel(dense(quantized)) is None
        ids = torch.tensor(texts[:4])
        logits = [model(ids).logits.float() for model in (packed, dense(quantized), dense(tiny_base))]
    assert (logits[0] - logits[1]).norm() < 0.1 * (logits[1] - logits[2]).norm()


def test_what_is_benchmarked_is_the_kernel_and_not_unpacked_weights(tmp_path, tiny_base, quantized):
    found = {}
    copy = shutil.copytree(quantized, tmp_path / "packed")  # that no other test has loaded
    for path, precision in ((tiny_base, "auto"), (copy, "gptq")):
        one = Subject("a", "shape:tiny", str(path), weight_files(str(path)), precision=precision)
        worker = Worker()
        found[precision] = worker.load(vars(one), "results", None)
    assert found["auto"]["kernel"].startswith("Linear ")
    assert not found["gptq"]["kernel"].startswith("Linear ")
    assert found["gptq"]["in_memory_gb"] < found["auto"]["in_memory_gb"]
    # The kernel has repacked its weights: the file they were read from is let go.
    assert worker.model is not None and str(copy) not in Path("/proc/self/maps").read_text()


def test_a_fresh_process_with_stock_transformers_loads_it_and_predicts(quantized, texts):
    code = (
        "import os, sys, json; os.environ.setdefault('GPTQMODEL_CPU_WORKERS', '2'); import torch; "
        "from transformers import AutoModelForCausalLM; "
        f"model = AutoModelForCausalLM.from_pretrained({str(quantized)!r}, dtype=torch.bfloat16, device_map='cpu'); "
        f"ids = torch.tensor([{texts[0][:20]}]); "
        "print(json.dumps(model.generate(ids, max_new_tokens=8, do_sample=False)[0, 20:].tolist()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=quantized)
    assert done.returncode == 0, done.stderr[-2000:]
    model = models.load_base(str(quantized), "auto", CPU, torch.bfloat16, packed=True)
    ours = model.generate(torch.tensor([texts[0][:20]]), max_new_tokens=8, do_sample=False)[0, 20:].tolist()
    assert json.loads(done.stdout.strip().splitlines()[-1]) == ours


def test_blocks_shrink_to_less_than_a_third_and_the_ends_do_not(tiny_base, quantized):
    before, after = memory.checkpoint_bytes(tiny_base), memory.checkpoint_bytes(quantized)
    assert 0.25 < after["blocks"] / before["blocks"] <= 0.30
    assert after["ends"] == before["ends"] > 0
    stored = load_file(quantized / "model.safetensors")["model.embed_tokens.weight"]
    assert stored.equal(load_file(Path(tiny_base) / "model.safetensors")["model.embed_tokens.weight"])
    assert runs.read_json(quantized / "config.json")["dtype"] == "bfloat16"


def test_the_format_is_the_one_that_auto_gptq_and_vllm_read(quantized):
    config = runs.read_json(quantized / "config.json")["quantization_config"]
    assert (config["quant_method"], config["checkpoint_format"]) == ("gptq", "gptq")
    assert (config["bits"], config["group_size"], config["desc_act"], config["sym"]) == (4, 64, False, True)
    weights = load_file(quantized / "model.safetensors")
    of_one = {name.rpartition(".")[2]: weights[name] for name in weights if ".0.mlp.down_proj." in name}
    shapes = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in of_one.items()}
    # 128 wide, 64 out: eight weights to an int32 down the columns, a scale and a packed zero for each group of 64.
    assert shapes["qweight"] == ((16, 64), torch.int32) and shapes["qzeros"] == ((2, 8), torch.int32)
    assert shapes["scales"][0] == (2, 64) and shapes["g_idx"] == ((128,), torch.int32)


def test_a_checkpoint_names_no_folder_of_this_machine(quantized):
    for path in (quantized / "config.json", quantized / "quantize_config.json"):
        assert "offload_to_disk_path" not in path.read_text() and "/tmp" not in path.read_text()


def test_a_kernel_that_does_not_load_gives_way_to_the_next(quantized, monkeypatch):
    asked = []

    def load(path, **options):
        asked.append(options["quantization_config"])
        raise {1: ImportError, 2: subprocess.SubprocessError}.get(len(asked), RuntimeError)("far enough")

    monkeypatch.setattr(models.AutoModelForCausalLM, "from_pretrained", load)
    monkeypatch.setattr(gptq, "backends", lambda *_: ["gptq_marlin", "gptq_triton", "gptq_torch"])
    with pytest.raises(NoKernel, match=r"no kernel on this machine runs .* \(far enough\)"):
        models.load_base(str(quantized), "auto", CPU, torch.bfloat16)
    assert [(one.bits, one.backend) for one in asked] == [(4, "gptq_marlin"), (4, "gptq_triton"), (4, "gptq_torch")]


def test_several_shards_are_narrowed_and_their_index_says_so(tmp_path):
    tensors = {f"model.{n}.weight": torch.arange(600.0) for n in range(3)} | {"a.qweight": torch.ones(4).int()}
    models.write_weights(tmp_path, tensors.items(), shard_bytes=5000)
    runs.write_json(tmp_path / "config.json", {"dtype": "float32"})
    gptq.store_in(tmp_path, torch.bfloat16)
    files = sorted(tmp_path.glob("*.safetensors"))
    found = {name: tensor for path in files for name, tensor in load_file(path).items()}
    assert len(files) == 2 and found["a.qweight"].dtype == torch.int32
    assert all(found[name].equal(tensor.bfloat16()) for name, tensor in tensors.items() if name != "a.qweight")
    index = runs.read_json(tmp_path / "model.safetensors.index.json")
    assert index["metadata"]["total_size"] == sum(path.stat().st_size for path in files)


@pytest.mark.parametrize(
    ("bits", "compiles", "found"),
    [(4, {torch.float16, torch.bfloat16}, True), (4, {torch.float16}, False), (4, None, False),
     (2, {torch.float16, torch.bfloat16}, False)],
)  # fmt: skip
def test_the_fast_kernel_of_a_gpu_is_asked_for_where_it_compiles(tmp_path, monkeypatch, bits, compiles, found):
    from gptqmodel.utils import marlin

    def compile_for(dtype):
        if compiles is None:
            raise RuntimeError("nvcc is not here")
        return dtype in compiles

    monkeypatch.setattr(marlin, "prewarm_marlin_extension", compile_for)
    runs.write_json(tmp_path / "config.json", {"quantization_config": {"bits": bits}})
    names = gptq.backends(str(tmp_path), torch.device("cuda"), torch.bfloat16)
    assert names == ["gptq_marlin"] * found + ["gptq_triton", "gptq_torch"]
    assert gptq.backends(str(tmp_path), CPU, torch.bfloat16) == [None]


def test_a_format_that_no_kernel_takes_is_one_line(quantized, tmp_path):
    """Groups of 48, which nothing divides: gptqmodel's own refusal, not one made up here."""
    for path in quantized.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    config = runs.read_json(tmp_path / "config.json")
    config["quantization_config"]["group_size"] = 48
    runs.write_json(tmp_path / "config.json", config)
    with pytest.raises(UserError) as found:
        models.load_base(str(tmp_path), "auto", CPU, torch.bfloat16)
    assert "\n" not in str(found.value) and str(tmp_path) in str(found.value)


def test_a_gptq_checkpoint_with_weights_missing_is_refused(quantized, tmp_path):
    for path in quantized.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.qweight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="not a whole checkpoint"):
        models.load_base(str(tmp_path), "auto", CPU, torch.bfloat16)


@pytest.mark.parametrize(("asked", "found"), [(128, 64), (64, 64), (32, 32), (1024, 64), (-1, -1)])
def test_the_largest_group_that_divides_every_width(asked, found):
    config = LlamaConfig(hidden_size=576, intermediate_size=1536, num_hidden_layers=1, num_attention_heads=9,
                         num_key_value_heads=3, vocab_size=64)  # fmt: skip
    assert gptq.group_size_for(config, asked) == found


@pytest.mark.parametrize("asked", [0, 100, 16])
def test_group_sizes_that_cannot_be(asked):
    config = LlamaConfig(hidden_size=24, intermediate_size=40, num_hidden_layers=1, num_attention_heads=2, vocab_size=8)
    with pytest.raises(UserError, match="GROUP_SIZE"):
        gptq.group_size_for(config, asked)


# ------------------------------------------------------------------------------------------------ the script


LORA = ("--DATA_RUN=gptq_data", "--BATCH_SIZE=4", "--LOGGING_STEPS=1", "--SAVE_STEPS=1", "--LORA_RANK=4",
        "--MAX_STEPS=4")  # fmt: skip


@pytest.fixture(scope="module")
def finished(results_dir, tiny_base):
    """A results directory with an 8-bit LoRA run of shape:tiny and its merged weights, and what to go on with."""
    environment = {"BASE_MODEL": "shape:tiny", "DATA_DIR": "synthetic", "RESULTS_DIR": str(results_dir)}
    data = ("--RUN=gptq_data", "--TRAIN_EXAMPLES=48", "--CALIBRATION_EXAMPLES=8", "--EVAL_EXAMPLES=8",
            "--EVIDENCE_TOKENS=64", "--MAX_PROMPT_TOKENS=200")  # fmt: skip
    for script in (("preprocess_data.py", *data), ("train_lora_8bit.py", "--RUN=source", *LORA)):
        done = run_script(*script, **environment)
        assert done.returncode == 0, done.stderr
    return results_dir, environment


def test_a_run_is_quantized_evaluated_and_reported(finished):
    results, environment = finished
    quantize = ("quantize_gptq.py", "--SOURCE_RUN=source/merged", "--RUN=q4", "--CALIBRATION_EXAMPLES=16")
    done = run_script(*quantize, **environment)
    assert done.returncode == 0, done.stderr
    assert len((done.stdout + done.stderr).splitlines()) < 30  # and not gptqmodel's thousands
    metrics = runs.read_json(results / "q4" / "quantize_metrics.json")
    assert metrics["group_size"] == 64 and metrics["kernel"] and metrics["quantization_seconds"] > 0
    assert metrics["blocks_after_gb"] < 0.3 * metrics["blocks_before_gb"]
    assert (results / "q4" / "quant_log.csv").read_text().count("\n") == 15  # 14 layers
    for run in ("source/merged", "q4"):
        done = run_script("evaluate.py", f"--RUN={run}", **environment)
        assert done.returncode == 0, done.stderr
    report = comparison.quantization_report(str(results))
    row = next(row for row in report if row["run"] == "q4")
    assert row["source_run"] == "source/merged" and row["split"] == "dev" and row["questions"] == 8
    assert row["drop_points"] == 100 * (row["accuracy_before"] - row["accuracy_after"])
    assert (results / "quantization_report.csv").exists() and "drop in points" in done.stdout
    assert "skipped" in run_script(*quantize, **environment).stdout


@pytest.mark.parametrize("script", ["train_lora_8bit.py", "train_qlora_4bit.py"])
def test_recomputing_activations_trains_the_same(finished, script):
    """As on a GPU by default; int8 takes another kind of checkpointing than NF4, in which gradients can get lost."""
    results, environment = finished
    names = ["source", "recomputed_8bit"] if "8bit" in script else ["source_4bit", "recomputed_4bit"]
    for run, recompute in zip(names, (False, True), strict=True):
        if run != "source":  # which is there
            done = run_script(script, f"--RUN={run}", f"--GRADIENT_CHECKPOINTING={recompute}", *LORA, **environment)
            assert done.returncode == 0, done.stderr
    found = [load_file(results / run / "adapter" / "adapter_model.safetensors") for run in names]
    assert all(torch.allclose(found[0][name], value, atol=1e-6) for name, value in found[1].items())
    assert any(value.abs().max() > 0 for name, value in found[1].items() if "lora_B" in name)


def test_a_killed_run_leaves_nothing_behind_once_it_is_started_again(finished):
    results, environment = finished
    quantize = ("quantize_gptq.py", "--SOURCE_RUN=source", "--RUN=killed_gptq", "--CALIBRATION_EXAMPLES=16")
    process = subprocess.Popen([sys.executable, *quantize], cwd=REPOSITORY, env=os.environ | environment,
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
    deadline = time.monotonic() + 120
    while not list((results / "killed_gptq").glob(f"{gptq.OFFLOAD}*")) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert list((results / "killed_gptq").glob(f"{gptq.OFFLOAD}*")), "the run ended before it could be killed"
    (results / "killed_gptq" / ".checkpoint.partial").mkdir(exist_ok=True)
    done = run_script(*quantize, **environment)
    assert done.returncode == 0, done.stderr
    assert not [path.name for path in (results / "killed_gptq").iterdir() if path.name.startswith(".")]
    assert (results / "killed_gptq" / "quantize_metrics.json").exists()


def test_a_damaged_source_is_one_line_and_begins_nothing(finished, monkeypatch):
    import quantize_gptq

    results, _ = finished
    weights = results / "source" / "merged" / "model.safetensors"
    whole = weights.read_bytes()
    for name, value in {"RESULTS_DIR": str(results), "SOURCE_RUN": "source", "RUN": "bad"}.items():
        monkeypatch.setattr(quantize_gptq, name, value)
    weights.write_bytes(whole[: len(whole) // 2])
    try:
        with pytest.raises(UserError, match="is damaged"):
            quantize_gptq.main()
    finally:
        weights.write_bytes(whole)
    assert not (results / "bad").exists()


def test_calibration_texts_are_training_prompts_with_their_targets(finished, monkeypatch):
    import datasets

    import quantize_gptq

    results, _ = finished
    monkeypatch.setattr(quantize_gptq, "RESULTS_DIR", str(results))
    monkeypatch.setattr(quantize_gptq, "CALIBRATION_EXAMPLES", 40)
    record = runs.read_json(results / "source" / "settings.json")
    tokenizer = models.load_tokenizer(str(results / "source" / "merged"))
    found = {tuple(ids) for ids in quantize_gptq.calibration_texts(tokenizer, "gptq_data", record, "source")}
    splits = {
        split: {tuple(ids) for ids in datasets.load_from_disk(str(results / "gptq_data" / split))["input_ids"]}
        for split in ("train", "calibration", "dev", "test")
    }
    assert len(found) == 40 and found <= splits["train"]
    assert not any(found & splits[split] for split in ("calibration", "dev", "test"))


def test_general_texts_are_of_one_length_and_no_training_prompts(finished, monkeypatch):
    import datasets

    import quantize_gptq

    results, _ = finished
    for name, value in {"RESULTS_DIR": str(results), "CALIBRATION": "general", "CALIBRATION_EXAMPLES": 40}.items():
        monkeypatch.setattr(quantize_gptq, name, value)
    tokenizer = models.load_tokenizer(str(results / "source" / "merged"))
    found = quantize_gptq.calibration_texts(tokenizer, "gptq_data", {}, "source")
    assert len({tuple(ids) for ids in found}) == 40 and {len(ids) for ids in found} == {quantize_gptq.GENERAL_TOKENS}
    train = datasets.load_from_disk(str(results / "gptq_data" / "train"))["input_ids"]
    assert not {tuple(ids) for ids in found} & set(map(tuple, train))


def test_eight_bits_in_the_order_of_activations_are_nearer_to_the_source_than_four(
    tiny_base, quantized, texts, tmp_path
):
    gptq.quantize(tiny_base, tmp_path / "out", texts, 8, 64, True, 0.05, 8, CPU, torch.bfloat16, tmp_path / "log")
    config = runs.read_json(tmp_path / "out" / "config.json")["quantization_config"]
    assert (config["bits"], config["desc_act"]) == (8, True)
    with torch.no_grad():
        logits = [
            dense(path)(torch.tensor(texts[:4])).logits.float() for path in (tiny_base, quantized, tmp_path / "out")
        ]
    assert (logits[2] - logits[0]).norm() < 0.25 * (logits[1] - logits[0]).norm()


@pytest.mark.parametrize(
    ("constant", "value", "message"),
    [
        ("SOURCE_RUN", "nowhere", "does not exist"),
        ("SOURCE_RUN", "gptq_data", "is not finished"),
        ("SOURCE_RUN", "unmerged", "no weights in 16 bits"),
        ("SOURCE_RUN", "already", "quantized already"),
        ("BITS", 5, "BITS is one of"),
        ("GROUP_SIZE", 7, "GROUP_SIZE is"),
        ("DAMPING", 0.0, "DAMPING"),
        ("CALIBRATION_EXAMPLES", 49, "there are 48 texts"),
        ("CALIBRATION_EXAMPLES", 0, "above 0"),
        ("CALIBRATION", "wikitext", "'prompts', 'general'"),
    ],
)
def test_bad_input_is_refused_and_leaves_nothing(finished, monkeypatch, constant, value, message):
    import quantize_gptq

    results, _ = finished
    runs.write_json(results / "unmerged" / "train_metrics.json", {})
    runs.write_json(results / "already" / "train_metrics.json", {})
    runs.write_json(results / "already" / "config.json", {"quantization_config": {"quant_method": "gptq"}})
    for name, changed in {"RESULTS_DIR": str(results), "SOURCE_RUN": "source", "RUN": "bad", constant: value}.items():
        monkeypatch.setattr(quantize_gptq, name, changed)
    with pytest.raises(UserError, match=message) as found:
        quantize_gptq.main()
    assert "\n" not in str(found.value)
    assert not (results / "bad").exists()


def test_a_failure_leaves_nothing_that_would_refuse_corrected_constants(finished, monkeypatch):
    import quantize_gptq

    def fail(*arguments):
        raise UserError("no kernel")

    results, _ = finished
    changed = {"RESULTS_DIR": str(results), "SOURCE_RUN": "source", "RUN": "bad", "CALIBRATION_EXAMPLES": 8}
    for name, value in changed.items():
        monkeypatch.setattr(quantize_gptq, name, value)
    monkeypatch.setattr(quantize_gptq.gptq, "quantize", fail)
    with pytest.raises(UserError, match="no kernel"):
        quantize_gptq.main()
    assert not (results / "bad").exists()


def test_a_refusal_is_one_line_and_exit_status_2(finished):
    results, environment = finished
    done = run_script("quantize_gptq.py", "--SOURCE_RUN=nowhere", "--RUN=bad", **environment)
    assert done.returncode == 2 and not (results / "bad").exists()
    assert sum(line.startswith("error: ") for line in done.stderr.splitlines()) == 1
