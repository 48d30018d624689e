"""Each quantization method: what it stores, that anyone can load it, how close it is to its source, and refusals."""

import json
import os
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from scripts import REPOSITORY, run_script
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from fincompress import memory, models, quantization, runs
from fincompress.benchmark.subjects import Subject
from fincompress.benchmark.worker import Worker
from fincompress.errors import NoKernel, UserError
from fincompress.quantization import METHODS, Recipe
from fincompress.quantization import method as shared

CPU = torch.device("cpu")
RECIPE = Recipe(bits=4, group_size=64)
NAMES = ("gptq", "rtn", "awq")
every_method = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(scope="module")
def texts():
    """Token ids with some structure, so that activations are correlated as those of text are."""
    generator = torch.Generator().manual_seed(0)
    pool = torch.randint(10, 2000, (40, 8), generator=generator)
    return [pool[torch.randint(40, (12,), generator=generator)].flatten().tolist() for _ in range(16)]


@pytest.fixture(scope="module")
def base(tiny_base, tmp_path_factory):
    """The folder of a random Llama, two blocks, every width a multiple of 64, as AWQ needs them."""
    folder = tmp_path_factory.mktemp("base")
    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(tiny_base, num_key_value_heads=4)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_base).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def quantized(base, texts, tmp_path_factory):
    """``{method: folder}``: the base in 4 bits and groups of 64."""
    folder = tmp_path_factory.mktemp("quantized")
    before = sorted(os.listdir())
    for name in NAMES:
        METHODS[name].quantize(base, folder / name, texts, RECIPE, CPU, folder / "log")
    assert sorted(os.listdir()) == before  # gptqmodel's logs/ does not land where one works
    return {name: folder / name for name in NAMES}


def dense(path, dtype=torch.bfloat16):
    return models.load_base(str(path), "auto", CPU, dtype).eval()


def linears(model):
    return {name: m for name, m in model.model.named_modules() if isinstance(m, torch.nn.Linear)}


def nearest(weight, group_size=64):
    """Symmetric 4-bit rounding, a scale for each group of a row."""
    groups = weight.reshape(weight.shape[0], -1, group_size)
    scale = 2 * groups.abs().amax(-1, keepdim=True) / 15
    return ((groups / scale).round().clamp(-8, 7) * scale).reshape(weight.shape)


def copied(source, target):
    target.mkdir(exist_ok=True)
    for path in source.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target


# ------------------------------------------------------------------------------------------------ what is stored


@every_method
def test_packed_layers_take_the_bits_per_weight_of_their_method(base, quantized, name):
    weights = sum(module.weight.numel() for module in linears(dense(base)).values())
    stored = load_file(quantized[name] / "model.safetensors")
    packed = [t for key, t in stored.items() if key.rpartition(".")[2] in ("qweight", "qzeros", "scales")]
    assert len(packed) == 3 * 14
    assert sum(t.nbytes for t in packed) == weights * METHODS[name].bits_per_weight(4, 64) / 8


@every_method
def test_blocks_shrink_to_less_than_a_third_and_the_embeddings_do_not(base, quantized, name):
    before, after = memory.checkpoint_bytes(base), memory.checkpoint_bytes(quantized[name])
    assert 0.25 < after["blocks"] / before["blocks"] <= 0.30
    assert after["embeddings"] == before["embeddings"] > 0
    stored = load_file(quantized[name] / "model.safetensors")["model.embed_tokens.weight"]
    assert stored.equal(load_file(base / "model.safetensors")["model.embed_tokens.weight"])
    assert runs.read_json(quantized[name] / "config.json")["dtype"] == "bfloat16"


@every_method
def test_a_checkpoint_is_known_as_its_methods_and_names_no_folder_of_this_machine(base, quantized, name):
    assert quantization.method_of(quantized[name]) is METHODS[name] and quantization.method_of(base) is None
    for path in (quantized[name] / "config.json", quantized[name] / "quantize_config.json"):
        assert "offload_to_disk_path" not in path.read_text() and "/tmp" not in path.read_text()
    assert (quantized[name] / "quant_log.csv").read_text().count("\n") == 15  # 14 layers


def test_another_tools_checkpoint_of_gptqs_format_is_gptqs(tmp_path):
    runs.write_json(tmp_path / "config.json", {"quantization_config": {"quant_method": "gptq", "bits": 4}})
    assert quantization.method_of(tmp_path) is METHODS["gptq"] and quantization.method_of("a/hub-id") is None


def test_the_formats_are_those_of_auto_gptq_and_autoawq(quantized):
    config = runs.read_json(quantized["gptq"] / "config.json")["quantization_config"]
    assert (config["quant_method"], config["checkpoint_format"], config["bits"]) == ("gptq", "gptq", 4)
    assert (config["group_size"], config["desc_act"], config["sym"]) == (64, False, True)
    config = runs.read_json(quantized["awq"] / "config.json")["quantization_config"]
    assert (config["quant_method"], config["version"], config["zero_point"]) == ("awq", "gemm", True)
    shapes = {}
    for name in NAMES:
        weights = load_file(quantized[name] / "model.safetensors")
        of_one = {key.rpartition(".")[2]: weights[key] for key in weights if ".0.mlp.down_proj." in key}
        shapes[name] = {key: tuple(tensor.shape) for key, tensor in of_one.items()}
        assert of_one["qweight"].dtype == of_one["qzeros"].dtype == torch.int32
    # 128 wide, 64 out: eight weights to an int32, a scale and a packed zero for each group of 64.
    common = {"qzeros": (2, 8), "scales": (2, 64)}
    assert shapes["gptq"] == shapes["rtn"] == {"qweight": (16, 64), "g_idx": (128,), **common}
    assert shapes["awq"] == {"qweight": (128, 8), **common}


# ------------------------------------------------------------------------------------------------ how close it is


def test_rtn_stores_the_nearest_value_and_gptq_computes_closer_outputs_on_calibration_texts(base, quantized, texts):
    source = dense(base, torch.float32)
    layers = {name: linears(dense(quantized[name], torch.float32)) for name in ("gptq", "rtn")}
    inputs = {}
    for name, module in linears(source).items():
        module.register_forward_hook(lambda m, args, out, name=name: inputs.__setitem__(name, args[0].flatten(0, 1)))
    with torch.no_grad():
        source(torch.tensor(texts))
    assert len(inputs) == 14
    for name, module in linears(source).items():
        weight, seen = module.weight, inputs[name]
        gptq, rtn = (layers[method][name].weight for method in ("gptq", "rtn"))
        step = 2 * weight.abs().amax() / 15
        # A tie may fall either way; scales are stored in 16 bits.
        assert ((rtn - weight).abs() <= (nearest(weight) - weight).abs() + 0.005 * step).all()
        assert (gptq - weight).square().mean() < 2 * (rtn - weight).square().mean()
        assert (seen @ (gptq - weight).T).norm() < (seen @ (rtn - weight).T).norm()


def test_gptq_chooses_a_groups_range_by_the_error_where_ranges_are_searched_for(base, quantized, texts, tmp_path):
    recipe = replace(RECIPE, search_ranges=True)
    METHODS["gptq"].quantize(base, tmp_path / "out", texts, recipe, CPU, tmp_path / "log")
    scales = [load_file(path / "model.safetensors")["model.layers.0.self_attn.q_proj.scales"].float()
              for path in (tmp_path / "out", quantized["gptq"], quantized["rtn"])]  # fmt: skip
    ratio = scales[0] / scales[2]
    assert ratio.min() > 0.5 and ratio.median() < 0.97 and (scales[1] == scales[2]).all()


def test_awq_predicts_closer_to_its_source_than_rtn(base, quantized, texts):
    with torch.no_grad():
        logits = {
            name: dense(path)(torch.tensor(texts[:8])).logits.float()
            for name, path in (quantized | {"base": base}).items()
        }
    assert (logits["awq"] - logits["base"]).norm() < (logits["rtn"] - logits["base"]).norm()


def test_eight_bits_are_nearer_to_the_source_than_four(base, quantized, texts, tmp_path):
    recipe = replace(RECIPE, bits=8)
    METHODS["gptq"].quantize(base, tmp_path / "out", texts, recipe, CPU, tmp_path / "log")
    config = runs.read_json(tmp_path / "out" / "config.json")["quantization_config"]
    assert config["bits"] == 8
    paths = (base, quantized["gptq"], tmp_path / "out")
    with torch.no_grad():
        logits = [dense(path)(torch.tensor(texts[:4])).logits.float() for path in paths]
    assert (logits[2] - logits[0]).norm() < 0.25 * (logits[1] - logits[0]).norm()


# ------------------------------------------------------------------------------------------------ loading and kernels


@pytest.mark.real
def test_a_fresh_process_with_stock_transformers_loads_each_and_predicts(quantized, texts, tmp_path):
    code = (
        "import os, sys, json; os.environ.setdefault('GPTQMODEL_CPU_WORKERS', '2'); import torch; "
        "assert not any(name.startswith('fincompress') for name in sys.modules); "
        "from transformers import AutoModelForCausalLM as Auto; "
        f"ids = torch.tensor([{texts[0][:20]}]); "
        "loaded = [Auto.from_pretrained(p, dtype=torch.bfloat16, device_map='cpu') for p in sys.argv[1:]]; "
        "print(json.dumps([m.generate(ids, max_new_tokens=8, do_sample=False)[0, 20:].tolist() for m in loaded]))"
    )
    (tmp_path / "predict.py").write_text(code)
    done = run_script("predict.py", *(quantized[name] for name in NAMES), cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    ours = []
    for name in NAMES:
        model = models.load_base(str(quantized[name]), "auto", CPU, torch.bfloat16, packed=True)
        ids = torch.tensor([texts[0][:20]])
        ours.append(model.generate(ids, max_new_tokens=8, do_sample=False)[0, 20:].tolist())
    assert json.loads(done.stdout.strip().splitlines()[-1]) == ours


@every_method
def test_kernel_and_dequantized_weights_compute_alike(base, quantized, texts, name):
    method, path = METHODS[name], quantized[name]
    with torch.no_grad():
        packed = models.load_base(str(path), "auto", CPU, torch.bfloat16, packed=True).eval()
        assert method.kernel(packed) is not None and method.kernel(dense(path)) is None
        ids = torch.tensor(texts[:4])
        logits = [model(ids).logits.float() for model in (packed, dense(path), dense(base))]
    assert (logits[0] - logits[1]).norm() < 0.1 * (logits[1] - logits[2]).norm()


@every_method
def test_what_is_benchmarked_is_the_kernel_and_not_dequantized_weights(base, quantized, name, tmp_path):
    loaded = {}
    packed = shutil.copytree(quantized[name], tmp_path / "packed")  # that no other test has loaded
    for path, precision in ((base, "auto"), (packed, name)):
        worker = Worker()
        loaded[precision] = worker.load(Subject("a", "shape:tiny", str(path), precision), "results", 8.0, 16, 4)
    assert loaded["auto"]["kernel"].startswith("Linear;") and not loaded[name]["kernel"].startswith("Linear;")
    assert loaded[name]["bytes_per_token"] < loaded["auto"]["bytes_per_token"]
    # The kernel has repacked its weights: the file they were read from is let go.
    assert worker.model is not None and str(packed) not in Path("/proc/self/maps").read_text()


@pytest.mark.parametrize(("name", "backend"), [("gptq", "gptq_torch"), ("rtn", "gptq_torch"), ("awq", "torch_awq")])
def test_a_kernel_that_does_not_load_gives_way_to_the_next(quantized, monkeypatch, capsys, name, backend):
    """The last kernel of a GPU's list is torch's own, which runs on a CPU too."""
    asked, from_pretrained = [], AutoModelForCausalLM.from_pretrained

    def load(path, **options):
        asked.append(options["quantization_config"].backend)
        if len(asked) < 3:
            raise [ImportError, subprocess.SubprocessError][len(asked) - 1]("not here")
        return from_pretrained(path, **options)

    monkeypatch.setattr(shared.AutoModelForCausalLM, "from_pretrained", load)
    monkeypatch.setattr(type(METHODS[name]), "kernels", lambda self, *_: list(self.gpu_kernels))
    model = models.load_base(str(quantized[name]), "auto", CPU, torch.bfloat16, packed=True)
    assert asked == list(METHODS[name].gpu_kernels) and asked[-1] == backend
    assert f"{backend} is its kernel, for another one failed (not here)" in capsys.readouterr().err
    assert METHODS[name].kernel(model) == {"gptq_torch": "TorchLinear", "torch_awq": "AwqTorchLinear"}[backend]


@pytest.mark.parametrize("kind", [RuntimeError, ImportError, subprocess.SubprocessError])  # the last: of a compiler
def test_a_checkpoint_that_no_kernel_takes_says_so_in_one_line(quantized, monkeypatch, kind):
    def load(path, **options):
        raise kind("far enough")

    monkeypatch.setattr(shared.AutoModelForCausalLM, "from_pretrained", load)
    with pytest.raises(NoKernel, match=r"^no kernel on this machine runs .* \(far enough\)$"):
        models.load_base(str(quantized["gptq"]), "auto", CPU, torch.bfloat16)


def test_a_group_size_that_no_kernel_takes_is_one_line(quantized, tmp_path):
    """Groups of 48, which nothing divides: gptqmodel's own refusal, not one made up here."""
    folder = copied(quantized["gptq"], tmp_path / "copy")
    config = runs.read_json(folder / "config.json")
    config["quantization_config"]["group_size"] = 48
    runs.write_json(folder / "config.json", config)
    with pytest.raises(UserError) as refusal:
        models.load_base(str(folder), "auto", CPU, torch.bfloat16)
    assert "\n" not in str(refusal.value) and str(folder) in str(refusal.value)


@every_method
def test_a_quantized_checkpoint_with_weights_missing_is_refused(quantized, tmp_path, name):
    folder = copied(quantized[name], tmp_path / "copy")
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.qweight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="not a whole checkpoint"):
        models.load_base(str(folder), "auto", CPU, torch.bfloat16)


# ------------------------------------------------------------------------------------------------ recipes and refusals


def shape(hidden=576, inner=1536, heads=9, kv=3):
    return LlamaConfig(hidden_size=hidden, intermediate_size=inner, num_hidden_layers=1, num_attention_heads=heads,
                       num_key_value_heads=kv, vocab_size=64)  # fmt: skip


@pytest.mark.parametrize(("asked", "fitting"), [(128, 64), (64, 64), (32, 32), (1024, 64), (-1, -1)])
def test_the_largest_group_that_divides_every_width_is_taken(asked, fitting):
    """SmolLM2's widths, which AWQ takes too."""
    assert METHODS["gptq"].fit(Recipe(group_size=asked), shape()) == Recipe(group_size=fitting)
    if asked <= 128:
        assert METHODS["awq"].fit(Recipe(group_size=asked), shape()) == Recipe(group_size=fitting)


@pytest.mark.parametrize(
    ("name", "recipe", "message"),
    [
        ("gptq", Recipe(group_size=0), "GROUP_SIZE = 0: METHOD = 'gptq' takes -1, 1024"),
        ("gptq", Recipe(group_size=100), "GROUP_SIZE = 100"),
        ("awq", Recipe(group_size=1024), "GROUP_SIZE = 1024"),
        ("rtn", Recipe(group_size=16), "no size up to it divides the input widths [24, 40]"),
        ("gptq", Recipe(bits=5), "BITS = 5: METHOD = 'gptq' takes 2, 3, 4, 8"),
        ("awq", Recipe(bits=3), "BITS = 3: METHOD = 'awq' takes 4"),
    ],
)
def test_a_recipe_that_a_method_cannot_follow_is_one_line(name, recipe, message):
    narrow = shape(24, 40, 2, 2) if "widths" in message else shape()
    with pytest.raises(UserError, match=re.escape(message)) as refusal:
        METHODS[name].fit(recipe, narrow)
    assert "\n" not in str(refusal.value)


def test_memory_is_predicted_from_each_methods_bits_per_weight():
    assert all(memory.BASE_BYTES[f"{name}-4bit"] == pytest.approx(0.5 + 2.5 / 128) for name in NAMES)
    assert (memory.BASE_BYTES["gguf-16bit"], memory.BASE_BYTES["gguf-32bit"]) == (2, 4)


def test_the_example_in_the_documentation_is_a_method_that_quantizes(base, texts, tmp_path, monkeypatch):
    text = (REPOSITORY / "docs" / "quantization.md").read_text()
    scope = {"__name__": "example"}
    exec(re.search(r"```python\n(.*?)```", text, re.DOTALL)[1], scope)
    method = next(kind() for kind in shared.Method.__subclasses__() if kind.__module__ == "example")
    monkeypatch.setitem(METHODS, method.name, method)
    unequal = [text[place % 7 :] for place, text in enumerate(texts)]
    method.quantize(base, tmp_path / "out", unequal, RECIPE, CPU, tmp_path / "log")
    assert quantization.method_of(tmp_path / "out") is method
    with torch.no_grad():
        logits = [dense(path)(torch.tensor(texts[:4])).logits.float() for path in (tmp_path / "out", base)]
    assert (logits[0] - logits[1]).norm() < 0.5 * logits[1].norm()


def test_every_file_of_the_package_is_a_method():
    files = {path.stem for path in Path(quantization.__path__[0]).glob("*.py")} - {"__init__", "method"}
    assert files == {type(method).__module__.rpartition(".")[2] for method in METHODS.values()}
    assert set(METHODS) == {*NAMES, "q4_0", "q4_k_m", "q8_0", "gguf"}
